//! What TLS adds to an established session, to the byte: everything that goes when the session goes.
//!
//! A binary of its own, with an allocator that counts. Sizes are those of mimalloc's classes, which the server has.

#![allow(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringcable::config::TlsFiles;
use ringcable::net::tls::{ServerTls, TlsSession};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, ProtocolVersion, RootCertStore,
    SupportedCipherSuite,
};

/// The most that TLS may add, by version: what was measured with rustls 0.23.46, and a tenth of it.
const TLS_13_BYTES_MAX: usize = 2_488 * 11 / 10;
const TLS_12_BYTES_MAX: usize = 3_544 * 11 / 10;

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

fn class_of(bytes: usize) -> usize {
    // SAFETY: a pure function of its argument.
    unsafe { libmimalloc_sys::mi_good_size(bytes) }
}

// SAFETY: hands everything to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(class_of(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(class_of(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A server with a certificate, and the roots that trust it.
fn server() -> (ServerTls, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let files = TlsFiles {
        cert_path: file("cert.pem", made.cert.pem()),
        key_path: file("key.pem", made.signing_key.serialize_pem()),
    };
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a certificate");
    (ServerTls::load(&files).expect("a pair"), roots)
}

fn client(suite: SupportedCipherSuite, roots: RootCertStore) -> ClientConnection {
    let provider = CryptoProvider {
        cipher_suites: vec![suite],
        ..ring::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[suite.version()])
        .expect("the suite's own version")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::new(config), name).expect("a client")
}

/// Moves records both ways until nobody has any, and gives what the client said.
fn exchange(session: &mut TlsSession, client: &mut ClientConnection) -> Vec<u8> {
    let mut heard = Vec::new();
    loop {
        let mut records = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut records).expect("a vector");
        }
        let quiet = records.is_empty();
        session.decrypt(&mut records, &mut heard).expect("TLS");
        let mut answer = Vec::new();
        session.take_output(&mut answer);
        if quiet && answer.is_empty() {
            return heard;
        }
        receive(client, &answer);
    }
}

fn receive(client: &mut ClientConnection, mut records: &[u8]) {
    while !records.is_empty() {
        client.read_tls(&mut records).expect("room");
        client.process_new_packets().expect("TLS");
    }
}

/// A session that has shaken hands and has spoken both ways, as every session has when it rests.
fn rested(tls: &ServerTls, client: &mut ClientConnection) -> Box<TlsSession> {
    let mut session = Box::new(TlsSession::new(tls.config()).expect("a session"));
    exchange(&mut session, client);
    assert!(!client.is_handshaking());
    for _ in 0..3 {
        client.writer().write_all(b"a command").expect("room");
        assert_eq!(exchange(&mut session, client), b"a command");
        let mut records = Vec::new();
        session.encrypt(&[b'x'; 200], &mut records);
        receive(client, &records);
        let mut said = [0; 200];
        client.reader().read_exact(&mut said).expect("a message");
    }
    session
}

#[test]
fn tls_adds_no_more_than_its_limit_to_a_session_that_rests() {
    let (tls, roots) = server();
    println!("{} bytes of these inline", size_of::<TlsSession>());
    for suite in ring::ALL_CIPHER_SUITES {
        let mut client = client(*suite, roots.clone());
        if suite.suite() == CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 {
            // The certificate is an ECDSA one: the suites for RSA cannot be had, and keep the same.
            break;
        }
        let session = rested(&tls, &mut client);
        let before = ALLOCATED.load(Ordering::Relaxed);
        drop(session);
        let bytes = before - ALLOCATED.load(Ordering::Relaxed);
        let bytes_max = match client.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => TLS_13_BYTES_MAX,
            _ => TLS_12_BYTES_MAX,
        };
        println!("{:?}: {bytes} bytes", suite.suite());
        assert!(bytes <= bytes_max, "{:?}: {bytes} bytes", suite.suite());
    }
}
