//! TLS that ends in the server itself. Source: `contract/websocket.md` §1, `contract/operations.md` §6 and §11.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ProtocolVersion, StreamOwned, version};
use serde_json::{Value, json};
use tungstenite::Message;
use tungstenite::client::IntoClientRequest as _;

use crate::support::rails::{WELCOME, echo};
use crate::support::raw::{self, handshake};
use crate::support::tls::{Certificate, Client, Scene, tls};
use crate::support::wait::until;
use crate::support::{Launch, keys};

/// About what one Campfire message weighs.
const MESSAGE_BYTES: usize = 20_000;

fn message(number: usize) -> String {
    format!("{number:06}{}", "x".repeat(MESSAGE_BYTES))
}

/// Writes byte by byte, so that every record comes in pieces.
struct ByteWise(TcpStream);

impl Read for ByteWise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for ByteWise {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

on_both_drivers! {
    fn client_chats_over_tls_and_the_app_sees_https(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let mut client = scene.client();
        client.subscribe("A");
        client.perform("A", "hello");
        assert_eq!(client.next_text(), echo("A", "hello"));
        scene.publish("stream:A", "42");
        assert_eq!(client.next_data(), 42);
        let calls = scene.stage.rails.calls();
        assert!(calls.iter().all(|call| call.url() == "https://localhost/cable?pi=0"), "{calls:?}");
        client.socket.close(None).expect("an open connection");
        until("the goodbye to be answered", || client.socket.read().is_err().then_some(()));
        scene.stage.rails.wait_for_calls("disconnect", 1);
    }

    fn both_versions_of_tls_work_with_tickets(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        for (version, expected) in [
            (&version::TLS12, ProtocolVersion::TLSv1_2),
            (&version::TLS13, ProtocolVersion::TLSv1_3),
        ] {
            let config = Arc::new(scene.certificate.client_config(&[version]));
            for expected_kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
                let mut client = Client::over(tls(&config, scene.tcp()));
                client.expect_pong();
                let connection = &client.socket.get_ref().conn;
                assert_eq!(connection.protocol_version(), Some(expected));
                assert_eq!(connection.handshake_kind(), Some(expected_kind));
            }
        }
    }

    fn health_is_served_and_http_2_is_not_offered(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let mut config = scene.certificate.client_config(rustls::ALL_VERSIONS);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let mut stream = tls(&Arc::new(config), scene.tcp());
        // Twice: the connection is kept.
        for _ in 0..2 {
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the server reads");
            let mut answer = Vec::new();
            while !answer.ends_with(b"stayin' alive.") {
                let mut buffer = [0; 1024];
                let bytes = stream.read(&mut buffer).expect("an answer");
                assert!(bytes > 0, "an end inside the answer");
                answer.extend_from_slice(&buffer[..bytes]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
        }
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    }

    fn plain_request_to_the_tls_port_is_told_so(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(30_000));
        let upgrade = handshake("/cable", &[]);
        for request in ["GET /health HTTP/1.0\r\n\r\n", "POST /_broadcast HTTP/1.1\r\nHost: a\r\n\r\n", &long, &upgrade] {
            let mut stream = scene.tcp();
            stream.write_all(request.as_bytes()).expect("the server reads");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("a proper end");
            assert_eq!(answer, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n");
        }
    }

    fn rubbish_on_the_tls_port_ends_that_connection_only(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let mut client = scene.client();
        let garbage: [&[u8]; 4] = [b"\x00\x00\x00\x00\x00\x00", b"\x16\x03\x01\xff\xff\x00", b"\x16\x03\x01\x00\x05hello", b"SSH-2.0-x\r\n"];
        for bytes in garbage {
            let mut stream = scene.tcp();
            stream.write_all(bytes).expect("the server reads");
            stream.shutdown(std::net::Shutdown::Write).expect("an open connection");
            let mut answer = Vec::new();
            // An alert, then the end; a reset is as good.
            let _ended = stream.read_to_end(&mut answer);
            assert!(answer.is_empty() || answer[0] == 0x15, "{bytes:?} {answer:?}");
        }
        client.expect_pong();
    }

    fn rubbish_in_an_established_session_ends_that_session_only(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let mut other = scene.client();
        let mut client = scene.client();
        client.subscribe("A");
        client.socket.get_mut().sock.write_all(b"\x17\x03\x03\x00\x20aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa").expect("the server reads");
        let error = client.socket.read().expect_err("a fatal alert");
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
        scene.stage.rails.wait_for_calls("disconnect", 1);
        other.expect_pong();
    }

    fn records_may_come_byte_by_byte(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(Arc::clone(&scene.config), name).expect("a configuration");
        let stream = StreamOwned::new(connection, ByteWise(scene.tcp()));
        let (mut socket, _) = tungstenite::client("wss://localhost/cable?pi=0", stream).expect("the upgrade succeeds");
        assert_eq!(socket.read().expect("a message").to_string(), WELCOME);
        for _ in 0..3 {
            socket.send(Message::text(r#"{"command":"ping"}"#)).expect("the server reads");
            assert_eq!(socket.read().expect("a message").to_string(), r#"{"type":"pong"}"#);
        }
    }

    fn commands_behind_the_upgrade_in_the_same_record_are_obeyed(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let mut stream = scene.over(scene.tcp());
        let mut bytes = handshake("/cable?pi=0", &[]).into_bytes();
        for number in 0..200 {
            let data = format!("{number}{}", "y".repeat(50));
            let text = json!({ "command": "message", "identifier": "A", "data": data }).to_string();
            if number == 0 {
                bytes.extend(raw::frame(raw::TEXT, br#"{"command":"subscribe","identifier":"A"}"#));
            }
            bytes.extend(raw::frame(raw::TEXT, text.as_bytes()));
        }
        stream.write_all(&bytes).expect("the server reads");
        let mut received = Vec::new();
        let last = echo("A", &format!("199{}", "y".repeat(50)));
        while !received.ends_with(last.as_bytes()) {
            let mut buffer = [0; 4096];
            let bytes = stream.read(&mut buffer).expect("answers");
            assert!(bytes > 0, "the end before the last answer");
            received.extend_from_slice(&buffer[..bytes]);
        }
        assert_eq!(scene.stage.rails.calls_to("command").len(), 201);
    }

    fn large_messages_pass_both_ways(driver: Driver) {
        let scene = Scene::new(driver, &["--max_message_size=2000000"]);
        let mut client = scene.client();
        client.subscribe("A");
        for bytes in [16_384, 70_000, 1_000_000] {
            let data = "z".repeat(bytes);
            client.perform("A", &data);
            assert!(client.next_text() == echo("A", &data), "the echo of {bytes} bytes differs");
            scene.publish("stream:A", &format!("\"{data}\""));
            assert!(client.next_data() == data, "the broadcast of {bytes} bytes differs");
        }
        client.expect_pong();
    }

    fn message_over_the_limit_is_closed_with_1009_and_close_notify(driver: Driver) {
        let scene = Scene::new(driver, &["--max_message_size=1000"]);
        let mut client = scene.client();
        client.send(&"z".repeat(1001));
        client.expect_close(1009, "");
    }

    fn keys_may_be_updated_in_the_middle_of_a_session(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let mut client = scene.client();
        client.subscribe("A");
        for number in 0..5 {
            client.socket.get_mut().conn.refresh_traffic_keys().expect("TLS 1.3");
            client.expect_pong();
            scene.publish("stream:A", &number.to_string());
            assert_eq!(client.next_data(), number);
        }
    }

    fn close_notify_of_the_client_ends_its_session_after_its_commands(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let mut client = scene.client();
        client.subscribe("A");
        client.perform("A", "last");
        let stream = client.socket.get_mut();
        stream.conn.send_close_notify();
        // The socket stays open: the word of TLS is enough.
        stream.flush().expect("the server reads");
        scene.stage.rails.wait_for_command("message", "A");
        scene.stage.rails.wait_for_calls("disconnect", 1);
    }

    fn message_bytes_are_counted_without_encryption(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let mut client = scene.client();
        client.subscribe("A");
        let (messages, bytes) = (scene.metric("server_msg_total"), scene.metric("data_sent_total"));
        scene.publish("stream:A", "12345");
        let text = client.next_text();
        assert_eq!(scene.metric("server_msg_total") - messages, 1);
        assert_eq!(scene.metric("data_sent_total") - bytes, text.len() as i64);
    }

    fn slow_client_gets_everything_up_to_its_notice_in_order(driver: Driver) {
        let scene = Scene::new(driver, &["--ws_max_pending_size=100000", "--ws_write_timeout=20"]);
        let mut stuck = scene.stuck_client();
        let mut fast = scene.client();
        fast.subscribe("A");
        for number in 0.. {
            if scene.metric("disconnected_slow_clients_total") == 1 {
                break;
            }
            scene.publish("stream:A", &format!("\"{}\"", message(number)));
            assert!(fast.next_data() == message(number));
        }
        for number in 0.. {
            let text = stuck.next_text();
            if text.starts_with(r#"{"type":"disconnect""#) {
                assert_eq!(text, r#"{"type":"disconnect","reason":"too_slow","reconnect":true}"#);
                assert!(number > 0);
                break;
            }
            let value: Value = serde_json::from_str(&text).expect("JSON");
            assert!(value["message"] == message(number), "message {number} is another");
        }
        stuck.expect_close(1000, "");
        fast.expect_pong();
    }

    fn burst_in_one_turn_leaves_no_more_than_the_limit_waiting(driver: Driver) {
        const LIMIT: usize = 200_000;
        const STUCK: usize = 4;
        let scene = Scene::new(driver, &[&format!("--ws_max_pending_size={LIMIT}"), "--ws_write_timeout=30"]);
        let stuck: Vec<Client> = (0..STUCK).map(|_| scene.stuck_client()).collect();
        // 2 MB for each of them, in one body.
        let batch: Vec<Value> = (0..100)
            .map(|number| json!({ "stream": "stream:A", "data": format!("\"{}\"", message(number)) }))
            .collect();
        scene.broadcast(&Value::from(batch));
        until("all of them to be too slow", || {
            (scene.metric("disconnected_slow_clients_total") == STUCK as i64).then_some(())
        });
        // The message that passed the limit, the notice and the close frame come on top.
        let waiting = scene.sample("ringcable_outbox_bytes");
        assert!(waiting <= (STUCK * (LIMIT + MESSAGE_BYTES + 1_000)) as i64, "{waiting} bytes wait");
        for mut client in stuck {
            let mut received = 0;
            loop {
                let text = client.next_text();
                if text.starts_with(r#"{"type":"disconnect""#) {
                    break;
                }
                let value: Value = serde_json::from_str(&text).expect("JSON");
                assert!(value["message"] == message(received), "message {received} is another");
                received += 1;
            }
            assert!(received > 0);
            client.expect_close(1000, "");
        }
        until("nothing to wait any more", || (scene.sample("ringcable_outbox_bytes") == 0).then_some(()));
    }

    fn slow_client_that_never_reads_is_closed_by_the_write_deadline(driver: Driver) {
        let scene = Scene::new(driver, &["--ws_max_pending_size=0", "--ws_write_timeout=1"]);
        let _stuck = scene.stuck_client();
        let mut number = 0;
        until("the write deadline", || {
            scene.publish("stream:A", &format!("\"{}\"", message(number)));
            number += 1;
            (scene.metric("timeout_server_msg_total") == 1).then_some(())
        });
        scene.stage.rails.wait_for_calls("disconnect", 1);
    }

    fn client_that_pauses_within_the_limits_loses_nothing(driver: Driver) {
        let scene = Scene::new(driver, &["--ws_max_pending_size=0", "--ws_write_timeout=30"]);
        let mut stuck = scene.stuck_client();
        for number in 0..100 {
            scene.publish("stream:A", &format!("\"{}\"", message(number)));
        }
        for number in 0..100 {
            assert!(stuck.next_data() == message(number), "message {number} is another");
        }
        stuck.expect_pong();
    }

    fn console_over_tls_has_a_secure_cookie_and_its_figures(driver: Driver) {
        let scene = Scene::new(driver, &["--console", "--host=0.0.0.0", "--ping_interval=0"]);
        let origin = "Origin: https://localhost\r\n";
        let word = format!("token={}", keys::SECRET);
        let (head, _) = scene.request("POST", "/_console/login", origin, &word);
        let cookie = head.lines().find_map(|line| line.strip_prefix("Set-Cookie: ")).expect("a cookie");
        assert!(cookie.ends_with("; SameSite=Strict; Secure"), "{cookie}");
        let cookie = cookie.split(';').next().expect("a pair");
        let mut request = "wss://localhost/_console/cable".into_client_request().expect("a valid URL");
        for (name, value) in [("Origin", "https://localhost"), ("Cookie", cookie)] {
            request.headers_mut().append(name, value.parse().expect("a header value"));
        }
        let (socket, _) = tungstenite::client(request, scene.over(scene.tcp())).expect("the upgrade succeeds");
        let mut console = Client { socket };
        assert!(console.next_text().starts_with(r#"{"type":"welcome""#));
        let channel = r#"{"channel":"ringcable:console"}"#;
        console.send(&json!({ "command": "subscribe", "identifier": channel }).to_string());
        assert!(console.next_text().starts_with(r#"{"type":"confirm_subscription""#));
        assert_eq!(console.next_data()["shards"][1]["sessions"], 0);
    }

    fn drain_says_goodbye_over_tls(driver: Driver) {
        let scene = Scene::new(driver, &[]);
        let mut clients: Vec<Client> = (0..10).map(|_| scene.client()).collect();
        scene.stage.server.terminate();
        for client in &mut clients {
            assert_eq!(client.next_text(), r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#);
        }
        for client in clients {
            client.expect_close(1001, "Server restart");
        }
        assert_eq!(scene.stage.server.wait_exit().code(), Some(0));
    }

    fn files_that_cannot_be_used_stop_the_start_with_one_line(driver: Driver) {
        let certificate = Certificate::new();
        let other = Certificate::new();
        std::fs::write(certificate.path("rubbish.pem"), "rubbish").expect("a file");
        let path = |name: &str| certificate.path(name).display().to_string();
        let foreign_key = other.path("key.pem").display().to_string();
        let table = [
            (path("none.pem"), path("key.pem"), "cannot read ssl_cert"),
            (path("cert.pem"), path("none.pem"), "cannot read ssl_key"),
            (path("rubbish.pem"), path("key.pem"), "holds no usable PEM certificate"),
            (path("cert.pem"), path("rubbish.pem"), "holds no usable PEM private key"),
            (path("cert.pem"), foreign_key, "cannot be used together"),
        ];
        for (cert, key, expected) in table {
            let finished = Launch::new(driver)
                .arg("--norpc")
                .args([format!("--ssl_cert={cert}"), format!("--ssl_key={key}")])
                .run();
            assert_eq!(finished.status.code(), Some(1), "{finished}");
            assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
            assert!(finished.stderr.contains("failed to load SSL certificate, cause: "), "{finished}");
            assert!(finished.stderr.contains(expected), "{finished}");
        }
    }
}
