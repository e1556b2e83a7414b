//! TLS to the app: which roots are trusted, and a rustls session on a socket.
//!
//! rustls does no I/O: it turns plain bytes into records and back. [`TlsStream`] reads and writes the records.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use super::error::StartError;
use crate::{config::RpcTlsConfig, net::TcpSocket};

/// Bytes read from the socket at a time: the largest record with its header.
const RECORD_BYTES_MAX: usize = (16 << 10) + 256;

/// Why a TLS connection could not be used.
#[derive(Debug)]
pub(super) enum TlsError {
    /// The socket failed: this is a transport error.
    Io(io::Error),
    /// The two sides do not agree, or a certificate is not trusted.
    Protocol(Error),
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> TlsError {
        TlsError::Io(error)
    }
}

/// The client side of TLS for all connections, with the trust settings of `config`.
///
/// # Errors
/// When there is no usable root certificate.
pub(super) fn client_config(config: &RpcTlsConfig) -> Result<Arc<ClientConfig>, StartError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = if config.verify {
        builder.with_root_certificates(roots(&config.root_ca)?)
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Unverified(provider)))
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// `root_ca` is PEM text, a path, or empty for the system's roots.
fn roots(root_ca: &str) -> Result<RootCertStore, StartError> {
    let mut store = RootCertStore::empty();
    if root_ca.is_empty() {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return if store.is_empty() {
            Err(StartError::NoSystemRoots)
        } else {
            Ok(store)
        };
    }
    let read;
    let pem = if root_ca.contains("-----BEGIN") {
        root_ca.as_bytes()
    } else {
        read = std::fs::read(root_ca).map_err(|cause| StartError::RootCaUnreadable {
            path: root_ca.to_owned(),
            cause,
        })?;
        read.as_slice()
    };
    // Blocks that are not a certificate are skipped: bundles often contain comments and keys.
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok));
    if store.is_empty() {
        Err(StartError::RootCaEmpty)
    } else {
        Ok(store)
    }
}

/// A TLS session over one socket.
pub(super) struct TlsStream {
    tcp: TcpSocket,
    session: ClientConnection,
    /// For records, incoming or outgoing.
    buffer: Vec<u8>,
    /// Decrypted bytes that were not asked for yet: at most those of one read from the socket.
    plain: Vec<u8>,
    /// The app has announced the end of its data.
    closed: bool,
}

impl TlsStream {
    /// Does the handshake on a connected socket.
    pub async fn connect(
        tcp: TcpSocket,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<TlsStream, TlsError> {
        let session = ClientConnection::new(config, name).map_err(TlsError::Protocol)?;
        let mut stream = TlsStream {
            tcp,
            session,
            buffer: Vec::new(),
            plain: Vec::new(),
            closed: false,
        };
        stream.flush().await?;
        while stream.session.is_handshaking() {
            if stream.fill().await? == 0 {
                return Err(TlsError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            stream.flush().await?;
        }
        Ok(stream)
    }

    pub fn tcp(&self) -> &TcpSocket {
        &self.tcp
    }

    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), TlsError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // rustls takes at most as much as its buffer limit at a time.
            let taken = self.session.writer().write(rest)?;
            rest = &rest[taken..];
            self.flush().await?;
        }
        Ok(())
    }

    /// Appends plain bytes to `output`; 0 is the end of the connection, announced by close_notify.
    pub async fn read(&mut self, output: &mut Vec<u8>) -> Result<usize, TlsError> {
        while self.plain.is_empty() {
            if self.closed {
                return Ok(0);
            }
            // rustls may have to answer, for example to a key update.
            self.flush().await?;
            if self.fill().await? == 0 {
                return Err(TlsError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        let count = self.plain.len();
        output.append(&mut self.plain);
        Ok(count)
    }

    /// Sends the records that are ready.
    async fn flush(&mut self) -> Result<(), TlsError> {
        while self.session.wants_write() {
            self.buffer.clear();
            while self.session.wants_write() {
                self.session.write_tls(&mut self.buffer)?;
            }
            self.tcp.write_all(&self.buffer).await?;
        }
        Ok(())
    }

    /// Reads from the socket once and passes the bytes to rustls. 0 is the end of the connection.
    async fn fill(&mut self) -> Result<usize, TlsError> {
        self.buffer.clear();
        let count = self.tcp.read(&mut self.buffer, RECORD_BYTES_MAX).await?;
        let records = std::mem::take(&mut self.buffer);
        let processed = self.process(&records);
        self.buffer = records;
        if let Err(TlsError::Protocol(_)) = &processed {
            // This sends the alert that tells the app the reason. The connection is lost already, so a failed write changes
            // nothing.
            self.flush().await.ok();
        }
        processed.map(|()| count)
    }

    fn process(&mut self, mut records: &[u8]) -> Result<(), TlsError> {
        while !records.is_empty() {
            self.session.read_tls(&mut records)?;
            let state = self
                .session
                .process_new_packets()
                .map_err(TlsError::Protocol)?;
            self.closed |= state.peer_has_closed();
            // The plain bytes are taken out at once: while decrypted bytes wait inside, rustls refuses more records.
            let start = self.plain.len();
            self.plain
                .resize(start + state.plaintext_bytes_to_read(), 0);
            self.session.reader().read_exact(&mut self.plain[start..])?;
        }
        Ok(())
    }
}

/// `rpc_tls_verify=false`: every certificate is accepted, but the other side must still prove that it has the key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(verify: bool, root_ca: &str, expected: &str) {
        let config = RpcTlsConfig {
            enabled: true,
            verify,
            root_ca: root_ca.to_owned(),
        };
        let result = client_config(&config).map(|_| ());
        assert_eq!(
            result.map_or_else(|error| error.to_string(), |()| "ok".to_owned()),
            expected
        );
    }

    #[test]
    fn trust_settings_that_cannot_work_are_refused_at_start() {
        let certificate = rcgen::generate_simple_self_signed(["app".to_owned()])
            .unwrap()
            .cert
            .pem();
        check(true, &certificate, "ok");
        check(true, &format!("# a bundle\n{certificate}\n"), "ok");
        check(false, "/no/such/file", "ok");
        check(
            true,
            "/no/such/file",
            "cannot read rpc_tls_root_ca \"/no/such/file\": No such file or directory (os error 2)",
        );
        let empty = "rpc_tls_root_ca contains no usable PEM certificate";
        check(
            true,
            "-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n",
            empty,
        );
        check(true, "/dev/null", empty);
    }
}
