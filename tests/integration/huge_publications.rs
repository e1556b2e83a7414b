//! Publications of many megabytes: whole and in order for every kind of client, and nobody else waits for them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::raw::{PING, PONG, Raw, frame};
use crate::support::tls::Scene;
use crate::support::{Stage, keys};

/// One shard: the publication and the others meet there. A debug record of each would hold everybody up.
const ONE_SHARD: &[&str] = &["--cores=1", "--log_level=info", "--ping_interval=0"];

/// `data` of so many megabytes that is JSON and full of escapes, as JSON in JSON is.
fn huge(mib: usize) -> String {
    let text = r#"a\"b"#.repeat((mib << 20) / 4);
    format!(r#"{{"text":"{text}"}}"#)
}

fn delivered(message: &str) -> String {
    format!(r#"{{"identifier":"A","message":{message}}}"#)
}

/// Posts a body in chunks, or with its length; gives the status line and the head of the answer.
fn post(stage: &Stage, body: &[u8], chunked: bool) -> String {
    let mut stream = TcpStream::connect(stage.server.address()).expect("the server accepts");
    let framing = match chunked {
        true => "Transfer-Encoding: chunked".to_owned(),
        false => format!("Content-Length: {}", body.len()),
    };
    let key = keys::broadcast_token(keys::SECRET);
    let head = format!(
        "POST /_broadcast HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n{framing}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("the server reads");
    if chunked {
        for chunk in body.chunks(100_000) {
            write!(stream, "{:x}\r\n", chunk.len()).expect("the server reads");
            stream.write_all(chunk).expect("the server reads");
            stream.write_all(b"\r\n").expect("the server reads");
        }
        stream.write_all(b"0\r\n\r\n").expect("the server reads");
    } else {
        // Who is refused early gets an answer before everything has been sent.
        let _ = stream.write_all(body);
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn publication(data: &str) -> Vec<u8> {
    json!({ "stream": "stream:A", "data": data })
        .to_string()
        .into_bytes()
}

on_both_drivers! {
    fn huge_publications_arrive_whole_and_in_order(driver: Driver) {
        let args = ["--enable_ws_compression", "--ws_max_pending_size=100000000", "--ws_write_timeout=60"];
        let stage = Stage::with(driver, &[ONE_SHARD, &args].concat());
        let mut plain = Raw::welcomed(stage.server.address());
        plain.subscribe("A");
        let long = huge(3);
        let broken = &long[..long.len() - 1];
        for (data, message, chunked) in [
            ("1", "1".to_owned(), false),
            (&long, long.clone(), false),
            ("2", "2".to_owned(), true),
            (&long, long.clone(), true),
            // No JSON: it arrives as text.
            (broken, json!(broken).to_string(), false),
            ("3", "3".to_owned(), false),
        ] {
            assert!(post(&stage, &publication(data), chunked).starts_with("HTTP/1.1 201"));
            assert!(plain.next_text() == delivered(&message), "{} bytes", data.len());
        }
        // For a client that has not read meanwhile most of it has waited.
        let mut slow = Raw::welcomed(stage.server.address());
        slow.subscribe("A");
        for data in [long.as_str(), "4"] {
            assert!(post(&stage, &publication(data), false).starts_with("HTTP/1.1 201"));
        }
        for client in [&mut slow, &mut plain] {
            assert!(client.next_text() == delivered(&long));
            assert_eq!(client.next_text(), delivered("4"));
        }
        let sent = stage.server.metric("server_msg_total");
        assert_eq!(sent, 2 * (1 + 1 + 2) + 6, "welcome, confirmation and messages of both");
    }

    fn huge_publications_arrive_whole_over_tls(driver: Driver) {
        let scene = Scene::new(driver, &[ONE_SHARD, &["--ws_max_pending_size=100000000", "--ws_write_timeout=60"]].concat());
        let mut client = scene.client();
        client.subscribe("A");
        let mut slow = scene.client();
        slow.subscribe("A");
        let long = huge(3);
        for data in [long.as_str(), "1"] {
            scene.publish("stream:A", data);
        }
        for client in [&mut client, &mut slow] {
            for message in [long.as_str(), "1"] {
                assert!(client.next_text() == delivered(message), "{} bytes", message.len());
            }
        }
        assert_eq!(scene.metric("server_msg_total"), 2 * (1 + 1 + 2));
    }

    /// Without a thread of its own for the decoding each of them would wait for as long as the publisher does.
    fn others_are_answered_while_a_huge_publication_is_decoded(driver: Driver) {
        let stage = Stage::with(driver, ONE_SHARD);
        let mut listener = Raw::welcomed(stage.server.address());
        listener.subscribe("A");
        let mut other = Raw::welcomed(stage.server.address());
        let body = publication(&huge(24));
        let (waited, published) = thread::scope(|scope| {
            let publisher = scope.spawn(|| {
                let started = Instant::now();
                assert!(post(&stage, &body, false).starts_with("HTTP/1.1 201"));
                started.elapsed()
            });
            let mut waited = Duration::ZERO;
            while !publisher.is_finished() {
                let started = Instant::now();
                other.send(&frame(PING, b"x"));
                assert_eq!(other.next_frame().opcode, PONG);
                waited = waited.max(started.elapsed());
            }
            (waited, publisher.join().expect("the publisher"))
        });
        assert!(waited < published / 3, "waited {waited:?} of {published:?}");
        assert_eq!(listener.next_frame().payload.len(), delivered(&huge(24)).len());
    }

    /// What decoding takes is charged before it begins; a small one is taken all the same.
    fn huge_publication_is_refused_when_there_is_no_memory_to_decode_it(driver: Driver) {
        let stage = Stage::with(driver, &[ONE_SHARD, &["--memory_bytes_max=20000000"]].concat());
        let mut client = stage.client();
        client.subscribe("A");
        let answer = post(&stage, &publication(&huge(6)), false);
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(post(&stage, &publication(&huge(2)), false).starts_with("HTTP/1.1 201"));
        assert!(client.next_text() == delivered(&huge(2)));
        assert_eq!(stage.server.metric("broadcast_msg_total"), 1);
    }

    fn several_huge_publications_at_one_time_are_decoded_one_by_one(driver: Driver) {
        let stage = Stage::with(driver, ONE_SHARD);
        let mut client = Raw::welcomed(stage.server.address());
        client.subscribe("A");
        let body = publication(&huge(1));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert!(post(&stage, &body, false).starts_with("HTTP/1.1 201")));
            }
            for _ in 0..8 {
                assert!(client.next_text() == delivered(&huge(1)));
            }
        });
    }
}
