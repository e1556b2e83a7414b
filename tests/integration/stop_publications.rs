//! Publications around the stop: what is answered 201 has reached the clients, what cannot reach them is not answered 201.
//! Source: `contract/broadcast.md` §3, `contract/operations.md` §9.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::http::publication;
use crate::support::rails::CURRENT_USER;
use crate::support::raw::Raw;
use crate::support::wait::until;
use crate::support::{Answer, Driver, Gate, Stage, keys};

const CLIENTS: usize = 30;

/// Clients that listen to `stream:A`.
fn listeners(stage: &Stage) -> Vec<Raw> {
    let mut clients: Vec<Raw> = (0..CLIENTS).map(|_| stage.raw()).collect();
    for raw in &mut clients {
        raw.subscribe("A");
    }
    clients
}

/// The bytes of a POST.
fn post(path: &str, token: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

fn broadcast(body: &str) -> Vec<u8> {
    post("/_broadcast", &keys::broadcast_token(keys::SECRET), body)
}

/// A connection on which all but the last `missing` bytes have been sent and read.
fn begun(stage: &Stage, bytes: &[u8], missing: usize) -> Raw {
    let mut raw = Raw::connect(stage.server.address());
    raw.send(&bytes[..bytes.len() - missing]);
    until("the server to read the begin", || {
        stage.server.has_read_all(raw.stream()).then_some(())
    });
    raw
}

fn await_closed_listeners(stage: &Stage) {
    until("connections to be refused", || {
        TcpStream::connect(stage.server.address())
            .is_err()
            .then_some(())
    });
}

/// What the clients got before the notice, each.
fn heard(clients: &mut [Raw]) -> Vec<Vec<String>> {
    let all = clients.iter_mut().map(|raw| {
        let mut texts = vec![raw.next_text()];
        while !texts
            .last()
            .is_some_and(|text| text.contains(r#""type":"disconnect""#))
        {
            texts.push(raw.next_text());
        }
        texts
    });
    all.collect()
}

/// The status of the answer, or nothing when the connection ends without one.
fn status(raw: &mut Raw) -> Option<u16> {
    match raw.stream().peek(&mut [0]) {
        Ok(0) => None,
        Ok(_) => Some(raw.read_head().status()),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            None
        }
    }
}

/// A request of `bytes` is half there when the stop begins; the rest follows when the listeners are closed. Gives what the
/// clients heard.
fn half_at_the_stop(driver: Driver, bytes: &[u8]) -> Vec<Vec<String>> {
    let stage = Stage::new(driver);
    let mut clients = listeners(&stage);
    let missing = 10;
    let mut raw = begun(&stage, bytes, missing);
    stage.server.terminate();
    await_closed_listeners(&stage);
    // Nobody is told while it is missing, and everybody is served.
    for client in &mut clients {
        client.expect_nothing_before_pong();
    }
    raw.send(&bytes[bytes.len() - missing..]);
    assert_eq!(raw.read_head().status(), 201);
    let heard = heard(&mut clients);
    assert!(stage.server.wait_exit().success());
    heard
}

on_both_drivers! {
    fn publication_half_there_at_the_signal_reaches_everybody(driver: Driver) {
        let message = r#"{"identifier":"A","message":1}"#;
        for texts in half_at_the_stop(driver, &broadcast(&publication("stream:A", "1"))) {
            assert_eq!((texts.len(), texts[0].as_str()), (2, message), "{texts:?}");
        }
    }

    fn so_does_a_batch_and_what_comes_through_the_api(driver: Driver) {
        let batch = format!("[{},{}]", publication("stream:A", "1"), publication("stream:A", "2"));
        for texts in half_at_the_stop(driver, &broadcast(&batch)) {
            assert_eq!(texts.len(), 3, "{texts:?}");
        }
        let api = post("/api/publish", &keys::api_token(keys::SECRET), &publication("stream:A", "1"));
        for texts in half_at_the_stop(driver, &api) {
            assert_eq!(texts.len(), 2, "{texts:?}");
        }
    }

    fn remote_disconnect_half_there_at_the_signal_is_obeyed(driver: Driver) {
        let command = json!({ "command": "disconnect", "payload": { "identifier": CURRENT_USER, "reconnect": false } });
        for texts in half_at_the_stop(driver, &broadcast(&command.to_string())) {
            assert_eq!(texts, [r#"{"type":"disconnect","reason":"remote","reconnect":false}"#]);
        }
    }

    fn chunked_publication_is_finished_too(driver: Driver) {
        let body = publication("stream:A", "1");
        let (first, rest) = body.split_at(7);
        let head = format!(
            "POST /_broadcast HTTP/1.1\r\nHost: l\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: chunked\r\n\r\n",
            keys::broadcast_token(keys::SECRET)
        );
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let bytes = format!("{head}{}{}0\r\n\r\n", chunk(first), chunk(rest));
        for texts in half_at_the_stop(driver, bytes.as_bytes()) {
            assert_eq!(texts.len(), 2, "{texts:?}");
        }
    }

    fn publication_that_takes_too_long_is_not_answered_and_keeps_nobody_waiting_for_ever(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients = listeners(&stage);
        let bytes = broadcast(&publication("stream:A", "1"));
        let mut raw = begun(&stage, &bytes, 5);
        let started = Instant::now();
        stage.server.terminate();
        let heard = heard(&mut clients);
        assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
        assert!(heard.iter().all(|texts| texts.len() == 1), "{heard:?}");
        raw.send(&bytes[bytes.len() - 5..]);
        assert_eq!(status(&mut raw), None);
        assert!(stage.server.wait_exit().success());
        stage.server.wait_for_log(&["WRN", "refused a broadcast while the server stops"]);
    }

    fn budget_of_the_shutdown_is_shorter_than_the_time_for_publications(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_timeout=1"]);
        let mut clients = listeners(&stage);
        let _stuck = begun(&stage, &broadcast(&publication("stream:A", "1")), 5);
        stage.server.terminate();
        let heard = heard(&mut clients);
        assert!(heard.iter().all(|texts| texts.len() == 1), "{heard:?}");
        assert!(stage.server.wait_exit().success());
    }

    fn publication_after_the_notices_is_not_answered_with_201(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_disconnect(Answer::success().behind(&gate));
        let mut clients = listeners(&stage);
        // Kept alive by the publisher, and one that has sent the begin of a head.
        let mut kept = begun(&stage, &broadcast(&publication("stream:A", "1")), 0);
        assert_eq!(kept.read_head().status(), 201);
        let late = broadcast(&publication("stream:A", "2"));
        let mut half_head = begun(&stage, &late, late.len() - 20);
        stage.server.terminate();
        let heard = heard(&mut clients);
        assert!(heard.iter().all(|texts| texts.len() == 2), "{heard:?}");
        let _gone = kept.try_send(&late);
        assert_eq!(status(&mut kept), None);
        let _gone = half_head.try_send(&late[20..]);
        assert_eq!(status(&mut half_head), None);
        gate.open();
        assert!(stage.server.wait_exit().success());
    }

    fn test_message_of_the_console_is_refused_when_nobody_would_get_it(driver: Driver) {
        let stage = Stage::with(driver, &["--console"]);
        let gate = Gate::new();
        stage.rails.on_disconnect(Answer::success().behind(&gate));
        let mut clients = listeners(&stage);
        let body = publication("stream:A", "1");
        let length = body.len();
        let head = "POST /_console/publish HTTP/1.1\r\nHost: localhost\r\nX-Ringcable-Console: 1\r\nSec-Fetch-Site: same-origin";
        let request = format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes();
        let mut raw = begun(&stage, &request, 5);
        stage.server.terminate();
        assert!(heard(&mut clients).iter().all(|texts| texts.len() == 1));
        raw.send(&request[request.len() - 5..]);
        let head = raw.read_head();
        assert_eq!(head.status(), 503, "{head:?}");
        let length = head.header("Content-Length").and_then(|text| text.parse().ok()).expect("a length");
        let reason = String::from_utf8(raw.read_exact(length)).expect("UTF-8");
        assert!(reason.contains("the server stops, nobody would get it"), "{reason}");
        gate.open();
        assert!(stage.server.wait_exit().success());
    }

    fn pipelined_publications_are_delivered_or_not_answered(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients = listeners(&stage);
        let first = broadcast(&publication("stream:A", "1"));
        let both = [first.as_slice(), &broadcast(&publication("stream:A", "2"))].concat();
        let mut raw = begun(&stage, &first, 10);
        stage.server.terminate();
        await_closed_listeners(&stage);
        raw.send(&both[first.len() - 10..]);
        let answered = usize::from(raw.read_head().status() == 201)
            + usize::from(status(&mut raw).is_some_and(|status| status == 201));
        let heard = heard(&mut clients);
        assert!(heard.iter().all(|texts| texts.len() > answered), "{answered} answered, {heard:?}");
        assert!(stage.server.wait_exit().success());
    }

    fn nothing_is_taken_when_a_slow_drain_has_told_everybody(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_slowdrain=1"]);
        let gate = Gate::new();
        stage.rails.on_disconnect(Answer::success().behind(&gate));
        let mut client = stage.raw();
        let bytes = broadcast(&publication("stream:A", "1"));
        let mut raw = begun(&stage, &bytes, 5);
        stage.server.terminate();
        assert!(client.next_text().contains("server_restart"));
        client.expect_close(1001, "Server restart");
        await_closed_listeners(&stage);
        raw.send(&bytes[bytes.len() - 5..]);
        assert_eq!(status(&mut raw), None);
        gate.open();
        assert!(stage.server.wait_exit().success());
    }

    fn other_requests_under_way_are_answered(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients = listeners(&stage);
        let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut metrics = begun(&stage, request, 4);
        stage.server.terminate();
        await_closed_listeners(&stage);
        metrics.send(&request[request.len() - 4..]);
        assert_eq!(metrics.read_head().status(), 200);
        assert!(heard(&mut clients).iter().all(|texts| texts.len() == 1));
        assert!(stage.server.wait_exit().success());
    }
}
