//! The certificate and its key: read from files at the start, and again when the operator orders it.

use std::io;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;

use super::{Validity, suites};
use crate::config::TlsFiles;

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
    #[error(
        "ssl_key {path:?} is encrypted, and nobody can type its password here: decrypt it with openssl pkey -in {path} \
         -out <file>, into a file that only the server's user may read"
    )]
    KeyEncrypted { path: String },
    #[error("ssl_cert {cert_path:?} and ssl_key {key_path:?} cannot be used together: {source}")]
    Unusable {
        cert_path: String,
        key_path: String,
        source: rustls::Error,
    },
    #[error("no key for session tickets: {0}")]
    Tickets(rustls::Error),
}

/// The server's side of TLS, the same for all listeners and shards.
#[derive(Debug)]
pub struct ServerTls {
    files: TlsFiles,
    /// Certificate and ticket keys are replaced together. A client that resumes a session is not shown the certificate, so
    /// with the old ticket keys it would continue under the old certificate.
    current: RwLock<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    validity: Option<Validity>,
}

impl ServerTls {
    /// Reads certificate and key. The configuration allows TLS 1.2 and newer, and HTTP/1.1 only. Tickets are stateless: when
    /// many clients reconnect at once, any shard can resume their sessions without a table.
    ///
    /// # Errors
    /// A file that cannot be read or contains something else, or a key that belongs to another certificate.
    ///
    /// Source: contract/websocket.md §1, contract/operations.md §11.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsFileError> {
        Ok(Self {
            files: files.clone(),
            current: RwLock::new(Loaded::read(files)?),
        })
    }

    /// All problems of the files, one entry each.
    pub fn problems(files: &TlsFiles) -> Vec<TlsFileError> {
        let each = [
            certificates(&files.cert_path).err(),
            private_key(&files.key_path).err(),
        ];
        let each: Vec<_> = each.into_iter().flatten().collect();
        if each.is_empty() {
            Loaded::read(files).err().into_iter().collect()
        } else {
            each
        }
    }

    /// Reads the files again. New connections use what the files contain now; existing connections and handshakes under way
    /// keep what they have.
    ///
    /// # Errors
    /// Those of [`Self::load`]; then nothing has changed.
    pub fn reload(&self) -> Result<(), TlsFileError> {
        let loaded = Loaded::read(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(())
    }

    /// For one new connection.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current().config)
    }

    /// The dates of the certificate in use; `None` when they cannot be read.
    pub fn validity(&self) -> Option<Validity> {
        self.current().validity
    }

    pub fn cert_path(&self) -> &str {
        &self.files.cert_path
    }

    fn current(&self) -> RwLockReadGuard<'_, Loaded> {
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loaded {
    fn read(files: &TlsFiles) -> Result<Self, TlsFileError> {
        let certificates = certificates(&files.cert_path)?;
        let validity = certificates.first().and_then(|leaf| Validity::read(leaf));
        let key = private_key(&files.key_path)?;
        let unusable = |source| TlsFileError::Unusable {
            cert_path: files.cert_path.clone(),
            key_path: files.key_path.clone(),
            source,
        };
        let mut config = ServerConfig::builder_with_provider(Arc::new(suites::provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = ring::Ticketer::new().map_err(TlsFileError::Tickets)?;
        Ok(Self {
            config: Arc::new(config),
            validity,
        })
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
    PrivateKeyDer::from_pem_slice(&pem).map_err(|source| {
        let path = path.to_owned();
        if is_encrypted(&pem) {
            TlsFileError::KeyEncrypted { path }
        } else {
            TlsFileError::KeyInvalid { path, source }
        }
    })
}

/// Recognizes both forms: PKCS#8, and the older one of OpenSSL.
fn is_encrypted(pem: &[u8]) -> bool {
    [
        b"BEGIN ENCRYPTED PRIVATE KEY".as_slice(),
        b"Proc-Type: 4,ENCRYPTED",
    ]
    .iter()
    .any(|mark| memchr::memmem::find(pem, mark).is_some())
}
