//! TLS between the clients and a server under measurement: a certificate, and rustls on sockets that other code waits for.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tempfile::TempDir;

/// A server certificate, and a client configuration that trusts it.
pub struct Certificate {
    folder: TempDir,
    /// As in browsers: TLS 1.3, AES-128 first. Every handshake is a full one, as on a first visit.
    pub client: Arc<ClientConfig>,
}

impl Certificate {
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])
            .expect("a certificate can be made");
        let mut roots = RootCertStore::empty();
        roots
            .add(made.cert.der().clone())
            .expect("our own certificate");
        let certificate = Self {
            folder: tempfile::tempdir().expect("a folder can be made"),
            client: Arc::new(client_config(roots)),
        };
        let write = |name: &str, text: String| {
            fs::write(certificate.path(name), text).expect("a file can be written");
        };
        write("cert.pem", made.cert.pem());
        write("key.pem", made.signing_key.serialize_pem());
        certificate
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Paths of the certificate and the key.
    pub fn files(&self) -> (PathBuf, PathBuf) {
        (self.path("cert.pem"), self.path("key.pem"))
    }

    /// The flags with which a server uses them.
    pub fn flags(&self) -> Vec<String> {
        let (cert, key) = self.files();
        vec![
            format!("--ssl_cert={}", cert.display()),
            format!("--ssl_key={}", key.display()),
        ]
    }
}

fn client_config(roots: RootCertStore) -> ClientConfig {
    let suites = &ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let provider = CryptoProvider {
        cipher_suites: vec![*suites],
        ..ring::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 has this suite")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config
}

/// The client's side of a new connection.
pub fn connection(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::clone(config), name).expect("a configuration of ours")
}

/// Encrypts `plain` and appends the bytes to send. Until the handshake is complete, `plain` waits in the connection.
pub fn seal(connection: &mut ClientConnection, plain: &[u8], records: &mut Vec<u8>) {
    connection
        .writer()
        .write_all(plain)
        .expect("a few bytes are below the limit");
    take_records(connection, records);
}

/// Decrypts `received`, appends the text to `plain` and the bytes to send back to `records`. False: this is no TLS.
pub fn open(
    connection: &mut ClientConnection,
    mut received: &[u8],
    plain: &mut Vec<u8>,
    records: &mut Vec<u8>,
) -> bool {
    while !received.is_empty() {
        if connection.read_tls(&mut received).is_err() {
            return false;
        }
        let Ok(state) = connection.process_new_packets() else {
            return false;
        };
        // Read at once, because rustls takes no more input while much decrypted text waits.
        let start = plain.len();
        plain.resize(start + state.plaintext_bytes_to_read(), 0);
        if connection.reader().read_exact(&mut plain[start..]).is_err() {
            return false;
        }
    }
    take_records(connection, records);
    true
}

fn take_records(connection: &mut ClientConnection, records: &mut Vec<u8>) {
    while connection.wants_write() {
        connection
            .write_tls(records)
            .expect("a vector takes everything");
    }
}
