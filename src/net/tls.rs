//! TLS for clients: the certificate, one client's TLS state, and how a socket of the HTTP phase moves its records.
//!
//! rustls does no I/O: [`TlsSession`] turns ciphertext into bytes and back, whoever holds the socket moves the records.
//! In the HTTP phase that is [`super::Socket`], afterwards the session table, which takes the state over.

use std::io::{self, Read, Write};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ServerConfig, ServerConnection};

use crate::config::TlsFiles;

/// What rustls reads at once. Its buffer rests at this size and is larger only inside a large record.
const RUSTLS_READ_BYTES: usize = 4096;

/// Answer to a client that speaks plain HTTP to a TLS port. Source: contract/websocket.md §1.
pub const PLAIN_HTTP_ANSWER: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
/// Bytes that tell an HTTP request from a TLS record.
pub const OPENING_BYTES: usize = 5;

/// Why the certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFileError {
    #[error("cannot read ssl_cert {path:?}: {source}")]
    CertificateUnreadable { path: String, source: io::Error },
    #[error("ssl_cert {path:?} holds no usable PEM certificate: {source}")]
    CertificateInvalid { path: String, source: pem::Error },
    #[error("cannot read ssl_key {path:?}: {source}")]
    KeyUnreadable { path: String, source: io::Error },
    #[error("ssl_key {path:?} holds no usable PEM private key: {source}")]
    KeyInvalid { path: String, source: pem::Error },
    #[error("ssl_cert {cert_path:?} and ssl_key {key_path:?} cannot be used together: {source}")]
    Unusable {
        cert_path: String,
        key_path: String,
        source: rustls::Error,
    },
    #[error("no key for session tickets: {0}")]
    Tickets(rustls::Error),
}

/// The server's side of TLS, the same for all listeners.
#[derive(Debug)]
pub struct ServerTls;

impl ServerTls {
    /// Reads certificate and key. TLS 1.2 at least, HTTP/1.1 only; tickets are stateless, so that a storm of reconnects
    /// resumes on any shard without a table.
    ///
    /// # Errors
    /// A file that cannot be read or holds something else, or a key of another certificate.
    ///
    /// Source: contract/websocket.md §1, contract/operations.md §11.
    pub fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsFileError> {
        let certificates = certificates(&files.cert_path)?;
        let key = private_key(&files.key_path)?;
        let unusable = |source| TlsFileError::Unusable {
            cert_path: files.cert_path.clone(),
            key_path: files.key_path.clone(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().map_err(TlsFileError::Tickets)?;
        Ok(Arc::new(config))
    }
}

fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, TlsFileError> {
    let pem = std::fs::read(path).map_err(|source| TlsFileError::CertificateUnreadable {
        path: path.to_owned(),
        source,
    })?;
    let invalid = |source| TlsFileError::CertificateInvalid {
        path: path.to_owned(),
        source,
    };
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(invalid)?;
    if certificates.is_empty() {
        return Err(invalid(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn private_key(path: &str) -> Result<PrivateKeyDer<'static>, TlsFileError> {
    let pem = std::fs::read(path).map_err(|source| TlsFileError::KeyUnreadable {
        path: path.to_owned(),
        source,
    })?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|source| TlsFileError::KeyInvalid {
        path: path.to_owned(),
        source,
    })
}

/// TLS state of one client. Whatever a call leaves in [`Self::take_output`] goes to the socket before anything newer.
#[derive(Debug)]
pub struct TlsSession {
    connection: ServerConnection,
    peer_closed: bool,
}

impl TlsSession {
    /// # Errors
    /// A configuration that rustls refuses.
    pub fn new(config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let mut connection = ServerConnection::new(Arc::clone(config))?;
        // Output is taken out after each call; the limit on unsent bytes is the outbox's.
        connection.set_buffer_limit(None);
        Ok(Self {
            connection,
            peer_closed: false,
        })
    }

    /// Takes bytes from the socket and appends what they say to `plain`, also when it fails.
    ///
    /// # Errors
    /// Bytes that are not TLS or were tampered with; an alert for the client is in the output then.
    pub fn decrypt(
        &mut self,
        mut records: &[u8],
        plain: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        let large = records.len() > RUSTLS_READ_BYTES;
        while !records.is_empty() && !self.peer_closed {
            if self.connection.read_tls(&mut records).is_err() {
                // Only a record longer than TLS allows fills the buffer.
                return Err(rustls::InvalidMessage::MessageTooLarge.into());
            }
            let processed = self.connection.process_new_packets();
            // "Would block" and "closed" end it alike: the state tells them apart.
            let _ = self.connection.reader().read_to_end(plain);
            self.peer_closed = processed?.peer_has_closed();
        }
        if large {
            // A read that brings nothing makes rustls shrink its buffer to what is in it.
            let _ = self.connection.read_tls(&mut NothingYet);
        }
        Ok(())
    }

    /// Appends the records that carry `plain` to `records`, behind output that waits.
    pub fn encrypt(&mut self, plain: &[u8], records: &mut Vec<u8>) {
        // Without a limit rustls takes everything; it has no other error for a live connection.
        let _ = self.connection.writer().write_all(plain);
        self.take_output(records);
    }

    /// Appends the records that rustls wants to send.
    pub fn take_output(&mut self, records: &mut Vec<u8>) {
        while self.connection.wants_write() && self.connection.write_tls(records).is_ok() {}
    }

    pub fn has_output(&self) -> bool {
        self.connection.wants_write()
    }

    /// Appends close_notify: nothing follows it.
    pub fn close(&mut self, records: &mut Vec<u8>) {
        self.connection.send_close_notify();
        self.take_output(records);
    }

    /// The client has said that nothing more comes.
    pub fn peer_has_closed(&self) -> bool {
        self.peer_closed
    }
}

/// A source that has nothing now but is not at its end.
struct NothingYet;

impl Read for NothingYet {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// True for the first bytes of an HTTP request: what a browser sends to `http://` on a TLS port.
pub fn is_plain_http(opening: &[u8]) -> bool {
    const METHODS: [&[u8; OPENING_BYTES]; 7] = [
        b"GET /", b"HEAD ", b"POST ", b"PUT /", b"OPTIO", b"PATCH", b"DELET",
    ];
    METHODS.iter().any(|method| *method == opening)
}
