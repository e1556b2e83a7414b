//! TLS for clients: the certificate, one client's TLS state, and how a socket of the HTTP phase moves its records.
//!
//! rustls does no I/O: [`TlsSession`] turns ciphertext into bytes and back, whoever holds the socket moves the records.
//! In the HTTP phase that is [`super::Socket`], afterwards the session table, which takes the state over.

use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, WriteTraffic};
use rustls::{InvalidMessage, ServerConfig};

use crate::config::TlsFiles;

/// The most that is kept of a handshake message that has not come whole; a record is smaller. Source: rustls's own limit.
const UNFINISHED_BYTES_MAX: usize = 64 << 10;

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

/// TLS state of one client. Holds no buffer at rest: input is decrypted where it was read to, only a record that has not
/// come whole is kept. Whatever a call leaves for [`Self::take_output`] goes to the socket before anything newer.
pub struct TlsSession {
    connection: UnbufferedServerConnection,
    /// The beginning of a record or of a handshake message.
    unfinished: Vec<u8>,
    /// Records that TLS itself wants to send.
    output: Vec<u8>,
    peer_closed: bool,
    /// After an error or our close_notify: nothing can be said or understood any more.
    over: bool,
}

impl TlsSession {
    /// # Errors
    /// A configuration that rustls refuses.
    pub fn new(config: &Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            connection: UnbufferedServerConnection::new(Arc::clone(config))?,
            unfinished: Vec::new(),
            output: Vec::new(),
            peer_closed: false,
            over: false,
        })
    }

    /// Takes bytes from the socket and appends what they say to `plain`, also when it fails. `records` are used up.
    ///
    /// # Errors
    /// Bytes that are not TLS or were tampered with; an alert for the client is in the output then. What comes behind an
    /// error is ignored.
    pub fn decrypt(
        &mut self,
        records: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        if self.over {
            return Ok(());
        }
        let mut joined = std::mem::take(&mut self.unfinished);
        let input = if joined.is_empty() {
            records
        } else {
            joined.extend_from_slice(records);
            &mut joined
        };
        let used = self.process(input, plain)?;
        let rest = &input[used..];
        if rest.len() > UNFINISHED_BYTES_MAX {
            self.over = true;
            return Err(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        if !self.peer_closed {
            self.unfinished = rest.to_vec();
        }
        Ok(())
    }

    /// Works through `input` and returns how many bytes of it are done with.
    fn process(&mut self, input: &mut [u8], plain: &mut Vec<u8>) -> Result<usize, rustls::Error> {
        let mut used = 0;
        loop {
            let status = self.connection.process_tls_records(&mut input[used..]);
            let mut discard = status.discard;
            match status.state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.output),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                Ok(_) => return Ok(used + discard),
                Err(error) => {
                    self.over = true;
                    self.encode_alert(&mut input[used + discard..]);
                    return Err(error);
                }
            }
            used += discard;
        }
    }

    /// After an error: the alert that tells the client why.
    fn encode_alert(&mut self, rest: &mut [u8]) {
        let status = self.connection.process_tls_records(rest);
        if let Ok(ConnectionState::EncodeTlsData(data)) = status.state {
            encode(data, &mut self.output);
        }
    }

    /// Appends the records that carry `plain` to `records`, behind output that waits. The handshake must be over.
    pub fn encrypt(&mut self, plain: &[u8], records: &mut Vec<u8>) {
        self.write(records, |traffic, room| traffic.encrypt(plain, room));
    }

    /// Appends close_notify: nothing follows it.
    pub fn close(&mut self, records: &mut Vec<u8>) {
        self.write(records, |traffic, room| traffic.queue_close_notify(room));
        self.over = true;
    }

    fn write(
        &mut self,
        records: &mut Vec<u8>,
        mut encrypt: impl FnMut(
            &mut WriteTraffic<'_, ServerConnectionData>,
            &mut [u8],
        ) -> Result<usize, EncryptError>,
    ) {
        self.take_output(records);
        while !self.over {
            let status = self.connection.process_tls_records(&mut self.unfinished);
            match status.state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    append(records, |room| match encrypt(&mut traffic, room) {
                        Ok(bytes) => Ok(bytes),
                        Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                        // Keys are used up: the connection cannot say more.
                        Err(EncryptError::EncryptExhausted) => Ok(0),
                    });
                    return;
                }
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, records),
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                // The handshake is not over, or the connection is.
                _ => return,
            }
        }
    }

    /// Appends the records that TLS itself wants to send.
    pub fn take_output(&mut self, records: &mut Vec<u8>) {
        records.append(&mut self.output);
        self.output = Vec::new();
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// The client has said that nothing more comes.
    pub fn peer_has_closed(&self) -> bool {
        self.peer_closed
    }
}

fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, records: &mut Vec<u8>) {
    append(records, |room| match data.encode(room) {
        Ok(bytes) => Ok(bytes),
        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    });
}

/// Appends what `write` gives. It is asked twice: `Err` says how much room it needs.
fn append(records: &mut Vec<u8>, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
    let start = records.len();
    let mut needed = 0;
    // rustls names the exact size, so the second time is the last.
    for _ in 0..2 {
        records.resize(start + needed, 0);
        match write(&mut records[start..]) {
            Ok(bytes) => return records.truncate(start + bytes),
            Err(bytes) => needed = bytes,
        }
    }
    records.truncate(start);
}

/// True for the first bytes of an HTTP request: what a browser sends to `http://` on a TLS port.
pub fn is_plain_http(opening: &[u8]) -> bool {
    const METHODS: [&[u8; OPENING_BYTES]; 7] = [
        b"GET /", b"HEAD ", b"POST ", b"PUT /", b"OPTIO", b"PATCH", b"DELET",
    ];
    METHODS.iter().any(|method| *method == opening)
}
