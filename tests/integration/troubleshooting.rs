//! `docs/troubleshooting.md`: every line in a box of the page is read from there, provoked with the real server, and found
//! in its output. So the page and the server cannot drift apart.

mod page;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::http::{self, Broadcaster};
use crate::support::ports::free_port;
use crate::support::raw::{KEY, Raw, handshake};
use crate::support::wait::until;
use crate::support::{Answer, Cable, Driver, Gate, Launch, Rails, Server, Stage, keys};
use page::{Line, PAGE, boxes};

/// Makes a test on both drivers of each box of the page; the name of the function is that of the box.
macro_rules! symptoms {
    ($(fn $name:ident($driver:ident: Driver, $line:ident: Line) $body:block)+) => {
        const SYMPTOMS: &[&str] = &[$(stringify!($name)),+];

        on_both_drivers! {
            $(fn $name($driver: Driver) {
                let $line = Line::of(stringify!($name));
                $body
            })+
        }
    };
}

#[test]
fn every_box_of_the_page_has_its_test() {
    let names: Vec<&str> = boxes().iter().map(|(name, _)| *name).collect();
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(names.len(), unique.len(), "two boxes have one name");
    let tested: BTreeSet<&str> = SYMPTOMS.iter().copied().collect();
    assert_eq!(unique, tested);
    for (name, text) in boxes() {
        assert!(!text.contains('\n'), "{name} has more than one line");
    }
    let fences = PAGE.matches("```log").count();
    assert_eq!(names.len(), fences, "a box without a name");
}

/// A server whose check at the start is answered like this.
fn checked(driver: Driver, answer: Answer) -> Stage {
    let rails = Rails::start();
    rails.on_check(answer);
    let server = Stage::launch(driver, &rails)
        .arg("--rpc_request_timeout=500")
        .start();
    Stage { server, rails }
}

/// A server with the secret of the tokens below, and without an app.
fn with_tokens(driver: Driver, args: &[&str]) -> Server {
    Launch::new(driver)
        .args(["--norpc", "--secret=s3Krit"])
        .args(args.iter().copied())
        .start()
}

const EXPIRED: &str = "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjoxMDAwMDAwMDAwfQ.RK1sfmRVVWzNcucJpP3-xJlFOdUbT0sZ5A-8eIJU-7M";
const WITHOUT_EXT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxNSIsImV4cCI6NDEwMjQ0NDgwMH0.AfYrt7j54MoBPoaZm0sNV5ln7qiwSrmWOoGNV-mh7_g";
const WRONGLY_SIGNED: &str = "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ._s1k_CMdPZDzRlhZguoceOr6RLAbygvHp2tbz_CV5LQ";

/// Sends a request for a WebSocket and gives the status of the answer.
fn request(server: &Server, target: &str, headers: &[&str]) -> u16 {
    let mut raw = Raw::connect(server.address());
    raw.send(handshake(target, headers).as_bytes());
    raw.read_head().status()
}

fn post(server: &Server, path: &str, authorization: &[(&str, &str)]) -> u16 {
    let body = http::publication("s", "1");
    http::request(
        server.address(),
        "POST",
        path,
        authorization,
        body.as_bytes(),
    )
    .expect("an answer")
    .status
}

/// An app that speaks TLS with a certificate that nobody has signed. Takes one connection and gives its port.
fn untrusted_app() -> u16 {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions of rustls")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a certificate and its key");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the check of the server");
        let session = ServerConnection::new(Arc::new(config)).expect("a good configuration");
        let mut tls = StreamOwned::new(session, stream);
        // Ends with the alert that the certificate is not trusted.
        let _refused = std::io::Read::read(&mut tls, &mut [0]);
    });
    port
}

/// The certificate of somebody else, in PEM.
fn other_ca() -> String {
    let mut params = CertificateParams::new(Vec::new()).expect("no name is a good list of names");
    params
        .distinguished_name
        .push(DnType::CommonName, "somebody else");
    let key = KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").pem()
}

symptoms! {
    // ---- the app ---------------------------------------------------------------------------------------------------

    fn rpc_good(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        let found = line.wait_in(&stage.server);
        assert!(found.contains(&format!(" {}/connect answers", stage.rails.url())), "{found}");
        assert_eq!(stage.rails.checks(), 1);
        assert!(stage.rails.calls().is_empty(), "no code of the app has run");
    }

    fn rpc_refused(driver: Driver, line: Line) {
        let rails = Rails::start();
        rails.stop();
        // Ready all the same.
        let server = Stage::launch(driver, &rails).start();
        let found = line.wait_in(&server);
        assert!(found.contains(&rails.url()), "{found}");
        // The app comes, and the first client finds it.
        rails.restart();
        Cable::to(&server).welcomed();
        server.wait_for_log(&["INF RPC calls work: ", " failed_calls=0"]);
    }

    fn rpc_unknown_name(driver: Driver, line: Line) {
        // A label of DNS has 63 characters at most, so nobody need be asked.
        let name = "a".repeat(64);
        let server = Launch::new(driver).args(["--secret=s", &format!("--rpc_host=http://{name}/_anycable")]).start();
        line.wait_in(&server);
    }

    fn rpc_timeout(driver: Driver, line: Line) {
        let gate = Gate::new();
        let stage = checked(driver, Answer::success().behind(&gate));
        line.wait_in(&stage.server);
    }

    fn rpc_secrets_differ(driver: Driver, line: Line) {
        let stage = checked(driver, Answer::status(401, "Unauthorized"));
        line.wait_in(&stage.server);
        // Clients meet it too; the check has just said why, so the log need not say it again.
        stage.rails.on_connect(Answer::status(401, "Unauthorized"));
        for _ in 0..3 {
            Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        }
        assert_eq!(own_metric(&stage.server, "rpc_unauthorized_total"), 3);
        stage.server.wait_for_log(&["ERR WebSocket session failed", "the secrets differ"]);
        assert!(!stage.server.log().iter().any(|line| line.contains("RPC calls fail")));
    }

    fn rpc_wrong_path(driver: Driver, line: Line) {
        line.wait_in(&checked(driver, Answer::status(404, "<html>")).server);
    }

    fn rpc_host_refused(driver: Driver, line: Line) {
        line.wait_in(&checked(driver, Answer::status(403, "Blocked hosts: web")).server);
    }

    fn rpc_redirected(driver: Driver, line: Line) {
        let answer = Answer::status(301, "").with_header("Location", "https://elsewhere/");
        line.wait_in(&checked(driver, answer).server);
    }

    fn rpc_behind_proxy(driver: Driver, line: Line) {
        line.wait_in(&checked(driver, Answer::status(502, "Bad Gateway")).server);
    }

    fn rpc_not_http(driver: Driver, line: Line) {
        // What a gRPC server sends first: an HTTP/2 frame with its settings.
        line.wait_in(&checked(driver, Answer::raw([0, 0, 0, 4, 0, 0, 0, 0, 0])).server);
    }

    fn rpc_tls_not_trusted(driver: Driver, line: Line) {
        let port = untrusted_app();
        let server = Launch::new(driver)
            .arg("--secret=s")
            .arg(format!("--rpc_host=https://localhost:{port}/_anycable"))
            .arg(format!("--rpc_tls_root_ca={}", other_ca()))
            .start();
        line.wait_in(&server);
    }

    fn rpc_calls_fail(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--rpc_command_timeout=150"]);
        stage.server.wait_for_log(&["INF RPC check: "]);
        stage.rails.stop();
        for _ in 0..3 {
            Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        }
        line.wait_in(&stage.server);
        let count = stage.server.log().iter().filter(|line| line.contains("RPC calls fail")).count();
        assert_eq!(count, 1, "one line for all of them");
    }

    fn rpc_calls_work(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--rpc_command_timeout=150"]);
        stage.server.wait_for_log(&["INF RPC check: "]);
        stage.rails.stop();
        Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        stage.rails.restart();
        stage.client();
        let found = line.wait_in(&stage.server);
        assert!(found.contains(" failed_calls=1 "), "{found}");
    }

    fn session_failed(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        stage.rails.on_connect(Answer::status(500, ""));
        Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        line.wait_in(&stage.server);
    }

    fn rpc_breaker_opens(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        stage.server.wait_for_log(&["INF RPC check: "]);
        stage.rails.stop();
        let _clients: Vec<Raw> = (0..12).map(|_| Raw::upgrade(stage.server.address(), "/cable?pi=0")).collect();
        line.wait_in(&stage.server);
    }

    fn command_failed(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        stage.rails.on_command("subscribe", "A", Answer::status(500, ""));
        stage.client().command("subscribe", "A");
        line.wait_in(&stage.server);
        assert!(!stage.server.log().iter().any(|line| line.contains("RPC calls fail")), "its own business");
    }

    // ---- clients ---------------------------------------------------------------------------------------------------

    fn path_stripped(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        assert_eq!(request(&stage.server, "/", &[]), 404);
        line.wait_in(&stage.server);
    }

    fn path_prefixed(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        assert_eq!(request(&stage.server, "/chat/cable?jid=private", &[]), 404);
        let found = line.wait_in(&stage.server);
        assert!(!found.contains("private"), "{found}");
    }

    fn path_unknown(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        assert_eq!(request(&stage.server, "/ws", &[]), 404);
        line.wait_in(&stage.server);
        assert_eq!(own_metric(&stage.server, "http_not_found_total"), 1);
    }

    fn upgrade_lost(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        let head = format!("GET /cable HTTP/1.1\r\nHost: a\r\nConnection: close\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n");
        raw.send(head.as_bytes());
        assert_eq!(raw.read_head().status(), 400);
        line.wait_in(&stage.server);
    }

    fn origin_refused(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--allowed_origins=example.com,*.b.com"]);
        assert_eq!(request(&stage.server, "/cable", &["Origin: https://evil.example"]), 403);
        let found = line.wait_in(&stage.server);
        assert!(found.contains("of the origin https://evil.example: "), "{found}");
        assert!(found.contains(" has example.com,*.b.com;"), "{found}");
    }

    fn subprotocol_unknown(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        let offer = "Sec-WebSocket-Protocol: graphql-ws, anycable-token.private";
        assert_eq!(request(&stage.server, "/cable", &[offer]), 101);
        let found = line.wait_in(&stage.server);
        assert!(found.contains("(graphql-ws)") && !found.contains("private"), "{found}");
    }

    fn head_too_large(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        let head = format!("GET /cable HTTP/1.1\r\nHost: a\r\nCookie: {}", "x".repeat(70_000));
        let _closed_early = raw.try_send(head.as_bytes());
        line.wait_in(&stage.server);
    }

    fn slow_body(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        let mut raw = Raw::connect(stage.server.address());
        let token = keys::broadcast_token(keys::SECRET);
        let head = format!("POST /_broadcast HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Length: 9\r\n\r\n");
        raw.send(head.as_bytes());
        line.wait_in(&stage.server);
    }

    fn large_heads(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--cores=1", "--max_head_size=16384"]);
        let half = format!("GET /health HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(9_000));
        let _holders: Vec<Raw> = (0..300)
            .map(|_| {
                let mut raw = Raw::connect(stage.server.address());
                raw.send(half.as_bytes());
                raw
            })
            .collect();
        line.wait_in(&stage.server);
    }

    fn request_id_too_long(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        let id = format!("X-Request-ID: {}", "i".repeat(300));
        assert_eq!(request(&stage.server, "/cable", &[&id]), 101);
        line.wait_in(&stage.server);
    }

    fn max_conn_reached(driver: Driver, line: Line) {
        let rails = Rails::start();
        let port = free_port();
        let server = Stage::launch(driver, &rails)
            .arg("--max-conn=1")
            .arg(format!("--port={port}"))
            .start_at(port);
        let _inside = Raw::welcomed(server.address());
        let _waiting = TcpStream::connect(server.address()).expect("the kernel queues it");
        line.wait_in(&server);
    }

    fn listens_at(driver: Driver, line: Line) {
        line.wait_in(&Stage::new(driver).server);
    }

    // ---- tokens ----------------------------------------------------------------------------------------------------

    fn jwt_invalid(driver: Driver, line: Line) {
        let server = with_tokens(driver, &[]);
        assert_eq!(request(&server, &format!("/cable?jid={WRONGLY_SIGNED}"), &[]), 101);
        let found = line.wait_in(&server);
        assert!(!found.contains(WRONGLY_SIGNED), "{found}");
    }

    fn jwt_expired(driver: Driver, line: Line) {
        let server = with_tokens(driver, &[]);
        assert_eq!(request(&server, &format!("/cable?jid={EXPIRED}"), &[]), 101);
        line.wait_in(&server);
    }

    fn jwt_without_ext(driver: Driver, line: Line) {
        let server = with_tokens(driver, &[]);
        assert_eq!(request(&server, &format!("/cable?jid={WITHOUT_EXT}"), &[]), 101);
        line.wait_in(&server);
    }

    fn jwt_missing(driver: Driver, line: Line) {
        let server = with_tokens(driver, &["--enforce_jwt"]);
        assert_eq!(request(&server, "/cable", &[]), 101);
        line.wait_in(&server);
    }

    fn nobody_to_ask(driver: Driver, line: Line) {
        let server = with_tokens(driver, &[]);
        assert_eq!(request(&server, "/cable", &[]), 101);
        line.wait_in(&server);
    }

    // ---- broadcasts ------------------------------------------------------------------------------------------------

    fn broadcast_unauthorized(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        for _ in 0..20 {
            assert_eq!(post(&stage.server, "/_broadcast", &[]), 401);
        }
        let found = line.wait_in(&stage.server);
        assert!(found.contains("it has no Authorization header"), "{found}");
        assert_eq!(own_metric(&stage.server, "http_unauthorized_total"), 20);
        let count = stage.server.log().iter().filter(|line| line.contains("refused a broadcast")).count();
        assert!((1..=2).contains(&count), "one for each shard that was asked, not {count}");
    }

    fn broadcast_unauthorized_key(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--broadcast_key=right"]);
        let broadcaster = Broadcaster { token: Some("wrong-key".to_owned()), ..stage.broadcaster() };
        assert_eq!(broadcaster.try_post("{}").expect("an answer").status, 401);
        let found = line.wait_in(&stage.server);
        assert!(found.contains("its key is another one"), "{found}");
        assert!(!found.contains("wrong-key") && !found.contains("right"), "{found}");
    }

    fn api_unauthorized(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        let broadcast_key = format!("Bearer {}", keys::broadcast_token(keys::SECRET));
        assert_eq!(post(&stage.server, "/api/publish", &[("Authorization", &broadcast_key)]), 401);
        line.wait_in(&stage.server);
    }

    fn broadcast_misplaced(driver: Driver, line: Line) {
        let port = free_port();
        let stage = Stage::with(driver, &[&format!("--http_broadcast_port={port}")]);
        assert_eq!(post(&stage.server, "/_broadcast", &[]), 404);
        let found = line.wait_in(&stage.server);
        assert!(found.contains(&format!("at /_broadcast on port {port};")), "{found}");
        // A stranger who looks for holes is nobody who broadcasts.
        assert_eq!(post(&stage.server, "/wp-login.php", &[]), 404);
        assert!(!stage.server.log().iter().any(|line| line.contains("WRN") && line.contains("wp-login")));
    }

    fn broadcasts_at(driver: Driver, line: Line) {
        line.wait_in(&Stage::new(driver).server);
    }

    fn broadcast_unreadable(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        stage.broadcaster().post("nope");
        line.wait_in(&stage.server);
    }

    // ---- the start -------------------------------------------------------------------------------------------------

    fn port_in_use(driver: Driver, line: Line) {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let launch = Launch::bare()
            .args(["--norpc", "--host=127.0.0.1", driver.flag()])
            .arg(format!("--port={port}"));
        let stderr = line.refuses(launch);
        assert!(stderr.contains(&format!("(pid {})", std::process::id())), "{stderr}");
    }

    fn paths_collide(_driver: Driver, line: Line) {
        line.refuses(Launch::bare().args(["--norpc", "--path=/health"]));
    }

    fn names_in_quotes(_driver: Driver, line: Line) {
        line.refuses(Launch::bare().arg("--norpc").env("ANYCABLE_HEADERS", "\"cookie,origin\""));
    }

    fn service_link(_driver: Driver, line: Line) {
        line.refuses(Launch::bare().arg("--norpc").env("ANYCABLE_PORT", "tcp://10.96.0.7:80"));
    }

    fn key_encrypted(_driver: Driver, line: Line) {
        let directory = tempfile::tempdir().expect("a directory");
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
        std::fs::write(directory.path().join("a.pem"), made.cert.pem()).expect("a file");
        let key = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBvTBXBgkqhkiG9w0B\n-----END ENCRYPTED PRIVATE KEY-----\n";
        std::fs::write(directory.path().join("a.key"), key).expect("a file");
        let launch = Launch::bare().directory(directory.path());
        line.refuses(launch.args(["--norpc", "--ssl_cert=a.pem", "--ssl_key=a.key"]));
    }

    fn redis_adapter_refused(_driver: Driver, line: Line) {
        line.refuses(Launch::bare().args(["--norpc", "--broadcast_adapter=http,redis"]));
    }

    fn redis_url_refused(_driver: Driver, line: Line) {
        line.refuses(Launch::bare().arg("--norpc").env("ANYCABLE_REDIS_URL", "redis://:private@r:6379"));
    }

    fn grpc_refused(_driver: Driver, line: Line) {
        line.refuses(Launch::bare().arg("--rpc_host=localhost:50051"));
    }

    fn rpc_host_missing(_driver: Driver, line: Line) {
        line.refuses(Launch::bare());
    }

    // ---- limits ----------------------------------------------------------------------------------------------------

    fn files_too_few(driver: Driver, line: Line) {
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails).arg("--max-conn=500").open_files_max(300).start();
        let found = line.wait_in(&server);
        assert!(found.contains("(300) allows 172 connections, --max-conn=500 needs 628:"), "{found}");
    }

    fn files_used_up(driver: Driver, line: Line) {
        let rails = Rails::start();
        let port = free_port();
        let launch = Stage::launch(driver, &rails).arg(format!("--port={port}"));
        let server = launch.open_files_max(80).start_at(port);
        server.wait_for_log(&["ringcable is ready"]);
        let clients: Vec<TcpStream> =
            (0..120).map(|_| TcpStream::connect(server.address()).expect("the kernel queues it")).collect();
        line.wait_in(&server);
        drop(clients);
    }

    fn rpc_shortage(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--log_level=info"]);
        let mut client = stage.client();
        let before = crate::shortages::limit_files(&stage.server, Some(3));
        stage.rails.close_connections();
        client.command("subscribe", "A");
        line.wait_in(&stage.server);
        crate::shortages::limit_files(&stage.server, before);
        client.next_text();
    }

    fn driver_at_start(driver: Driver, line: Line) {
        let found = line.wait_in(&Stage::new(driver).server);
        let name = driver.flag().trim_start_matches("--driver=");
        assert!(found.contains(&format!(": driver {name} (")), "{found}");
    }

    fn slow_client(driver: Driver, line: Line) {
        const MESSAGES_MAX: usize = 2_000;
        let stage = Stage::with(driver, &["--ws_max_pending_size=100000", "--ws_write_timeout=20"]);
        let mut stuck = stage.raw();
        stuck.subscribe("A");
        let mut publisher = stage.broadcaster().keep_alive();
        let message = format!("\"{}\"", "x".repeat(20_000));
        let mut sent = 0;
        while stage.server.metric("disconnected_slow_clients_total") == 0 {
            assert!(sent < MESSAGES_MAX, "nothing happened in {sent} publications");
            publisher.publish("stream:A", &message);
            sent += 1;
        }
        line.wait_in(&stage.server);
    }

    fn session_full(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--session_bytes_max=100000"]);
        let mut client = stage.raw();
        client.command("subscribe", &"x".repeat(30_000));
        line.wait_in(&stage.server);
    }

    fn memory_full(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--memory_bytes_max=1000000"]);
        let sent = Cell::new(0);
        let mut client = stage.raw();
        until("no room for another", || {
            client.command("subscribe", &format!("{:060000}", sent.replace(sent.get() + 1)));
            (client.next_json()["type"] == "reject_subscription").then_some(())
        });
        line.wait_in(&stage.server);
    }

    fn no_pongs(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--ping_interval=1", "--pong_timeout=1"]);
        let _silent = Cable::to(&stage.server).subprotocols("actioncable-v1-ext-json").welcomed();
        line.wait_in(&stage.server);
    }

    fn log_dropped(driver: Driver, line: Line) {
        let (rails, gate, port) = (Rails::start(), Gate::new(), free_port());
        let launch = Stage::launch(driver, &rails).arg(format!("--port={port}")).log_is_read_after(&gate);
        let server = launch.start_at(port);
        let mut client = Raw::welcomed(server.address());
        let page = || server.get("/metrics").text();
        while page().contains("\nringcable_log_records_dropped_total 0\n") {
            for _ in 0..1_000 {
                client.send_text("no command");
            }
            client.expect_nothing_before_pong();
        }
        gate.open();
        line.wait_in(&server);
    }

    // ---- shutdown --------------------------------------------------------------------------------------------------

    fn shutdown_begins(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        line.wait_in(&stage.server);
        stage.server.wait_for_log(&["all active connections closed"]);
    }

    fn publication_refused(driver: Driver, line: Line) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_disconnect(Answer::success().behind(&gate));
        let _client = stage.client();
        let mut late = Raw::connect(stage.server.address());
        let head = "POST /_broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nAuthorization: Bearer ";
        late.send(head.as_bytes());
        until("the server to read the begin", || stage.server.has_read_all(late.stream()).then_some(()));
        stage.server.terminate();
        stage.rails.wait_for_calls("disconnect", 1);
        late.send(format!("{}\r\n\r\n", keys::broadcast_token(keys::SECRET)).as_bytes());
        line.wait_in(&stage.server);
        gate.open();
        assert!(stage.server.wait_exit().success());
    }

    fn disconnect_queue_full(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--memory_bytes_max=40000000", "--max_head_size=1048576", "--disconnect_rate=1", "--log_level=info"]);
        crate::disconnects::clients_with_large_cookies(&stage, 30);
        line.wait_in(&stage.server);
        assert!(own_metric(&stage.server, "disconnect_calls_dropped_total") > 0);
    }

    fn disconnects_lost(driver: Driver, line: Line) {
        let stage = Stage::with(driver, &["--shutdown_timeout=1"]);
        stage.rails.on_disconnect(Answer::success().behind(&Gate::new()));
        let _client = stage.client();
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        line.wait_in(&stage.server);
    }
}

/// A metric of ringcable's own, summed over the shards.
fn own_metric(server: &Server, name: &str) -> i64 {
    let prefix = format!("ringcable_{name}{{");
    let body = server.get("/metrics").text();
    let samples: Vec<&str> = body
        .lines()
        .filter(|line| line.starts_with(&prefix))
        .collect();
    assert!(!samples.is_empty(), "no metric {name} in\n{body}");
    samples
        .iter()
        .map(|line| {
            let value = line.rsplit(' ').next().expect("a value");
            value.parse::<i64>().expect("a counter is an integer")
        })
        .sum()
}

on_both_drivers! {
    fn app_that_never_answers_does_not_delay_the_start(driver: Driver) {
        let rails = Rails::start();
        rails.on_check(Answer::success().behind(&Gate::new()));
        let patient = ["--rpc_request_timeout=60000", "--rpc_command_timeout=60000"];
        let server = Stage::launch(driver, &rails).args(patient).start();
        until("the check to be made", || (rails.checks() == 1).then_some(()));
        // A client need not wait for its end.
        Cable::to(&server).welcomed();
        assert!(!server.log().iter().any(|line| line.contains("RPC check")));
    }

    fn nothing_is_checked_where_there_is_no_app(driver: Driver) {
        let server = with_tokens(driver, &[]);
        server.wait_for_log(&["ringcable is ready"]);
        server.terminate();
        assert!(server.wait_exit().success());
        assert!(!server.log().iter().any(|line| line.contains("RPC check")));
    }
}
