//! TLS from the client's side: certificates as files, and clients on rustls, which the server uses too but drives
//! differently.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, SanType, date_time_ymd};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tungstenite::{Message, WebSocket};

use super::rails::{Rails, WELCOME, confirmation};
use super::server::Driver;
use super::wait::{PATIENCE, until};
use super::{Stage, keys};

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A certificate for `localhost` and its key, as files. They are reached through a symbolic link, as those of certbot and of
/// Kubernetes are.
pub struct Certificate {
    directory: TempDir,
    /// How often it was renewed.
    renewals: u32,
    pub der: CertificateDer<'static>,
}

impl Certificate {
    pub fn new() -> Self {
        Self::of(CertificateParams::default())
    }

    /// Valid from so many days after now (before, if negative) until so many.
    pub fn valid(from_days: i64, until_days: i64) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = since.expect("a clock after 1970").as_secs() as i64;
        let in_days = |days: i64| {
            let secs = now + days * 24 * 60 * 60;
            date_time_ymd(1970, 1, 1) + Duration::from_secs(secs as u64)
        };
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = (in_days(from_days), in_days(until_days));
        Self::of(params)
    }

    fn of(params: CertificateParams) -> Self {
        let mut certificate = Self {
            directory: tempfile::tempdir().expect("a directory"),
            renewals: 0,
            der: CertificateDer::from(Vec::new()),
        };
        certificate.issue(params);
        certificate
    }

    /// Makes another certificate with another key, and switches the link to it at once.
    pub fn renew(&mut self) {
        self.renewals += 1;
        self.issue(CertificateParams::default());
    }

    fn issue(&mut self, mut params: CertificateParams) {
        let name = "localhost".try_into().expect("a DNS name");
        params.subject_alt_names = vec![SanType::DnsName(name)];
        let key = KeyPair::generate().expect("a key");
        let made = params.self_signed(&key).expect("a certificate");
        let version = self.directory.path().join(self.renewals.to_string());
        std::fs::create_dir(&version).expect("a directory");
        std::fs::write(version.join("cert.pem"), made.pem()).expect("a file");
        std::fs::write(version.join("key.pem"), key.serialize_pem()).expect("a file");
        self.der = made.der().clone();
        self.switch_to(self.renewals);
    }

    /// Switches the link to an earlier certificate, or to a later one again.
    pub fn switch_to(&self, renewals: u32) {
        let next = self.directory.path().join("next");
        std::os::unix::fs::symlink(renewals.to_string(), &next).expect("a link");
        std::fs::rename(next, self.directory.path().join("live")).expect("a new name");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("live").join(name)
    }

    pub fn args(&self) -> [String; 2] {
        [
            format!("--ssl_cert={}", self.path("cert.pem").display()),
            format!("--ssl_key={}", self.path("key.pem").display()),
        ]
    }

    pub fn client_config(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        trusting(&[&self.der], versions)
    }
}

pub fn trusting(
    certificates: &[&CertificateDer<'static>],
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots
            .add((*certificate).clone())
            .expect("our own certificate");
    }
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions of rustls")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// A stage whose server speaks TLS, and a client configuration that trusts it.
pub struct Scene {
    pub stage: Stage,
    pub certificate: Certificate,
    pub config: Arc<ClientConfig>,
}

impl Scene {
    pub fn new(driver: Driver, args: &[&str]) -> Self {
        Self::with(driver, Certificate::new(), args)
    }

    pub fn with(driver: Driver, certificate: Certificate, args: &[&str]) -> Self {
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails)
            .args(certificate.args())
            .args(args.iter().copied())
            .spawn_without_health();
        let config = Arc::new(certificate.client_config(rustls::ALL_VERSIONS));
        Self {
            stage: Stage { server, rails },
            certificate,
            config,
        }
    }

    /// Renews the certificate and has the server reload it. The configuration of clients is left to the test.
    pub fn renew(&mut self) {
        self.certificate.renew();
        self.reload();
    }

    /// Sends SIGHUP and waits until the certificate has been reloaded.
    pub fn reload(&self) {
        let lines = |log: Vec<String>| {
            let reloaded = |line: &&String| line.contains(" reloaded for new connections");
            log.iter().filter(reloaded).count()
        };
        let before = lines(self.stage.server.log());
        self.stage.server.hang_up();
        until("the certificate to be reloaded", || {
            (lines(self.stage.server.log()) > before).then_some(())
        });
    }

    /// Clients trust the certificate that is there now, and nothing else.
    pub fn trust_renewed(&mut self) {
        self.config = Arc::new(self.certificate.client_config(rustls::ALL_VERSIONS));
    }

    pub fn tcp(&self) -> TcpStream {
        self.tcp_to(self.stage.server.port())
    }

    pub fn tcp_to(&self, port: u16) -> TcpStream {
        prepared(TcpStream::connect(("127.0.0.1", port)).expect("the server accepts"))
    }

    pub fn over(&self, stream: TcpStream) -> Tls {
        tls(&self.config, stream)
    }

    pub fn client(&self) -> Client {
        Client::over(self.over(self.tcp()))
    }

    /// A subscribed client with a tiny receive buffer, which from now on is not read.
    pub fn stuck_client(&self) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket
            .set_recv_buffer_size(4096)
            .expect("an option of every socket");
        socket
            .connect(&self.stage.server.address().into())
            .expect("the server accepts");
        let mut client = Client::over(self.over(prepared(socket.into())));
        client.subscribe("A");
        client
    }

    /// One request on a connection of its own: head and body as they came, after a proper end.
    pub fn request(
        &self,
        method: &str,
        target: &str,
        headers: &str,
        body: &str,
    ) -> (String, String) {
        let mut stream = self.over(self.tcp());
        let length = body.len();
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
        )
        .expect("the server reads");
        let mut answer = String::new();
        // An end without close_notify would be an error.
        stream.read_to_string(&mut answer).expect("a proper end");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
        (head.to_owned(), body.to_owned())
    }

    pub fn metric(&self, name: &str) -> i64 {
        self.sample(&format!("anycable_go_{name}"))
    }

    /// The value of a metric by its whole name, or the sum over all that is behind the name.
    pub fn sample(&self, series: &str) -> i64 {
        let (_, body) = self.request("GET", "/metrics", "", "");
        let values = body.lines().filter_map(|line| {
            let rest = line.strip_prefix(series)?;
            let labels = rest.starts_with(['{', ' ']);
            labels.then(|| rest.rsplit(' ').next()?.parse::<i64>().ok())?
        });
        values
            .reduce(|sum, value| sum + value)
            .unwrap_or_else(|| panic!("no metric {series} in\n{body}"))
    }

    pub fn wait_for_sample(&self, series: &str, value: i64) {
        until(&format!("{series} to be {value}"), || {
            (self.sample(series) == value).then_some(())
        });
    }

    pub fn publish(&self, stream: &str, data: &str) {
        self.broadcast(&serde_json::json!({ "stream": stream, "data": data }));
    }

    /// One publication, or a batch of them.
    pub fn broadcast(&self, body: &Value) {
        let token = keys::broadcast_token(keys::SECRET);
        let authorization = format!("Authorization: Bearer {token}\r\n");
        let (head, _) = self.request("POST", "/_broadcast", &authorization, &body.to_string());
        assert!(head.starts_with("HTTP/1.1 201 "), "{head}");
    }
}

pub fn prepared(stream: TcpStream) -> TcpStream {
    stream.set_nodelay(true).expect("an option of every socket");
    for set in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
        set(&stream, Some(PATIENCE)).expect("an option of every socket");
    }
    stream
}

/// Shakes hands and gives the certificate that was shown; nothing when the session was resumed.
pub fn shown(stream: &mut Tls) -> io::Result<Option<CertificateDer<'static>>> {
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    let chain = stream.conn.peer_certificates();
    let full = stream.conn.handshake_kind() == Some(HandshakeKind::Full);
    Ok(chain
        .filter(|_| full)
        .and_then(|chain| chain.first().cloned()))
}

pub fn tls(config: &Arc<ClientConfig>, stream: TcpStream) -> Tls {
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::clone(config), name).expect("a configuration");
    StreamOwned::new(connection, stream)
}

/// An Action Cable client on `tungstenite` over TLS, without pings.
pub struct Client {
    pub socket: WebSocket<Tls>,
}

impl Client {
    pub fn over(stream: Tls) -> Self {
        let url = "wss://localhost/cable?pi=0";
        let (socket, _) = tungstenite::client(url, stream).expect("the upgrade succeeds");
        let mut client = Self { socket };
        assert_eq!(client.next_text(), WELCOME);
        client
    }

    pub fn send(&mut self, text: &str) {
        self.socket
            .send(Message::text(text))
            .expect("the server reads");
    }

    pub fn subscribe(&mut self, identifier: &str) {
        self.send(
            &serde_json::json!({ "command": "subscribe", "identifier": identifier }).to_string(),
        );
        assert_eq!(self.next_text(), confirmation(identifier));
    }

    pub fn perform(&mut self, identifier: &str, data: &str) {
        self.send(
            &serde_json::json!({ "command": "message", "identifier": identifier, "data": data })
                .to_string(),
        );
    }

    pub fn next_text(&mut self) -> String {
        match self.socket.read().expect("a message") {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("expected a text, got {other:?}"),
        }
    }

    pub fn next_data(&mut self) -> Value {
        let text = self.next_text();
        let value: Value = serde_json::from_str(&text).expect("JSON");
        value["message"].clone()
    }

    pub fn expect_pong(&mut self) {
        self.send(r#"{"command":"ping"}"#);
        assert_eq!(self.next_text(), r#"{"type":"pong"}"#);
    }

    /// A close frame, and after it TLS's own end.
    pub fn expect_close(mut self, code: u16, reason: &str) {
        match self.socket.read().expect("a message") {
            Message::Close(Some(frame)) => {
                assert_eq!(
                    (u16::from(frame.code), frame.reason.as_str()),
                    (code, reason)
                );
            }
            other => panic!("expected a close frame, got {other:?}"),
        }
        let mut rest = Vec::new();
        let end = self.socket.get_mut().read_to_end(&mut rest);
        assert!(matches!(end, Ok(0)), "{end:?} {rest:?}");
    }
}
