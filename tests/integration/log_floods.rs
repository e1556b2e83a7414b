//! What clients and the app can cause at any rate is a few lines of bounded length, whatever they send.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::raw::{Raw, TEXT, frame, handshake};
use crate::support::wait::until;
use crate::support::{Answer, Cable, Driver, Stage};

/// Longer than any limit of a head, so that what is shown was cut by the log or before it.
const LONG: usize = 40_000;

/// No line is longer, whatever is in it.
const LINE_BYTES_MAX: usize = 8 * 1024;

fn stage(driver: Driver, args: &[&str]) -> Stage {
    Stage::with(driver, &[&["--cores=1", "--log_level=info"], args].concat())
}

fn lines_with(stage: &Stage, text: &str) -> Vec<String> {
    let log = stage.server.log();
    log.into_iter().filter(|line| line.contains(text)).collect()
}

/// Waits for the first line with `text`; asks the server something, so that a second one would be there; and expects none.
fn assert_one_line(stage: &Stage, text: &str) {
    stage.server.wait_for_log(&[text]);
    assert_eq!(stage.server.get("/health").status, 200);
    let lines = lines_with(stage, text);
    assert_eq!(lines.len(), 1, "{lines:#?}");
}

fn send_many(client: &mut Raw, count: usize, payload: &str) {
    client.send(&frame(TEXT, payload.as_bytes()).repeat(count));
    client.expect_nothing_before_pong();
}

fn flood_of_garbage(driver: Driver, format: &str) -> Vec<String> {
    const MESSAGES: usize = 200_000;
    let stage = stage(driver, &[format]);
    stage.server.wait_for_log(&["Handle API requests at "]);
    let before = stage.server.log().len();
    let mut attacker = stage.raw();
    let message = frame(TEXT, b"x");
    assert_eq!(message.len(), 7);
    for _ in 0..MESSAGES / 1_000 {
        attacker.send(&message.repeat(1_000));
    }
    until("the flood to be read", || {
        stage.server.has_read_all(attacker.stream()).then_some(())
    });
    attacker.expect_nothing_before_pong();
    assert_eq!(
        stage.server.metric("failed_client_msg_total"),
        MESSAGES as i64
    );
    let lines = stage.server.log().split_off(before);
    assert!(
        !lines.is_empty() && lines.len() < 10,
        "{} lines",
        lines.len()
    );
    let bytes: usize = lines.iter().map(String::len).sum();
    assert!(bytes < 4_096, "{bytes} bytes");
    lines
}

on_both_drivers! {
    fn a_flood_of_garbage_is_a_few_lines_of_text(driver: Driver) {
        let lines = flood_of_garbage(driver, "--log_format=text");
        assert!(lines.iter().any(|line| line.contains("WRN failed to handle incoming message")), "{lines:#?}");
    }

    fn a_flood_of_garbage_is_a_few_objects_of_json(driver: Driver) {
        for line in flood_of_garbage(driver, "--log_format=json") {
            let record: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
            assert!(record["left_out"].is_null() || record["left_out"].is_u64(), "{line}");
        }
    }

    fn each_kind_of_refused_message_is_one_line(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut client = stage.raw();
        client.subscribe("A");
        send_many(&mut client, 50, r#"{"command":"subscribe","identifier":"A"}"#);
        assert_one_line(&stage, "already subscribed to");
        send_many(&mut client, 50, "not json");
        assert_one_line(&stage, "not JSON at byte 0");
        send_many(&mut client, 50, r#"{"command":"message","identifier":"B","data":"{}"}"#);
        assert_one_line(&stage, "unknown subscription");
        assert_eq!(stage.server.metric("failed_client_msg_total"), 150);
    }

    fn calls_that_fail_are_one_line(driver: Driver) {
        let stage = stage(driver, &[]);
        for method in ["subscribe", "message"] {
            stage.rails.on_command(method, "A", Answer::json(&json!({ "status": 3, "error_msg": "no such luck" })));
        }
        let mut client = stage.raw();
        for _ in 0..20 {
            client.command("subscribe", "A");
        }
        client.expect_nothing_before_pong();
        assert_one_line(&stage, "no such luck");
    }

    fn sessions_that_fail_are_one_line(driver: Driver) {
        let stage = stage(driver, &[]);
        stage.rails.on_connect(Answer::json(&json!({ "status": 3, "error_msg": "no database" })));
        for _ in 0..20 {
            Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        }
        assert_one_line(&stage, "WebSocket session failed");
    }

    fn queries_that_cannot_be_read_are_a_line_of_each_kind(driver: Driver) {
        let stage = stage(driver, &[]);
        for _ in 0..20 {
            Raw::upgrade(stage.server.address(), "/cable?jid=%zz").expect_close(1011, "Auth Error");
        }
        assert_one_line(&stage, "WebSocket session failed");
        assert_one_line(&stage, "cannot look for a token in the query");
    }

    fn missing_pongs_are_one_line(driver: Driver) {
        let stage = stage(driver, &["--pong_timeout=1", "--ping_interval=1"]);
        let open = || Cable::to(&stage.server).subprotocols("actioncable-v1-ext-json").welcomed();
        let silent: Vec<Cable> = (0..10).map(|_| open()).collect();
        stage.server.wait_for_metric("clients_num", 0);
        assert_one_line(&stage, "disconnecting session due to no pongs");
        drop(silent);
    }

    fn broadcasts_that_cannot_be_read_are_a_line_of_each_kind(driver: Driver) {
        let stage = stage(driver, &[]);
        for _ in 0..20 {
            stage.broadcaster().post("nope");
            stage.broadcaster().post(r#"{"command":"dance","payload":{}}"#);
        }
        assert_one_line(&stage, "failed to parse pubsub message");
        assert_one_line(&stage, "unknown or malformed remote command, ignored");
    }

    fn ends_that_the_app_is_not_told_of_are_one_line(driver: Driver) {
        let stage = stage(driver, &[]);
        stage.rails.on_disconnect(Answer::json(&json!({ "status": 3, "error_msg": "no such luck" })));
        for _ in 0..20 {
            drop(stage.raw());
        }
        stage.rails.wait_for_calls("disconnect", 20);
        assert_one_line(&stage, "controller disconnect failed");
    }

    fn what_was_left_out_is_told_with_the_next_line(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut client = stage.raw();
        send_many(&mut client, 50, "x");
        assert_one_line(&stage, "failed to handle incoming message");
        // The time between two lines of a kind is part of what is promised.
        std::thread::sleep(Duration::from_secs(10));
        send_many(&mut client, 1, "x");
        stage.server.wait_for_log(&["failed to handle incoming message", "left_out=49"]);
    }

    fn no_value_makes_a_long_line(driver: Driver) {
        for format in ["--log_format=text", "--log_format=json"] {
            let long = "x".repeat(LONG);
            let escaped = "\\u0001".repeat(LONG / 6);
            let stage = Stage::with(driver, &["--cores=1", format, "--allowed_origins=*.example.com,localhost"]);
            let address = stage.server.address();
            let open = |target: &str, headers: &[&str]| {
                let mut raw = Raw::connect(address);
                raw.send(handshake(target, headers).as_bytes());
                raw
            };
            let origin = "Origin: http://localhost";
            for mut raw in [
                open("/cable", &[&format!("Origin: http://{long}.org")]),
                open(&format!("/{long}"), &[origin]),
                open("/cable", &[origin, &format!("Sec-WebSocket-Protocol: {long}")]),
                open(&format!("/cable?pi={long}"), &[origin]),
                open(&format!("/cable?jid={long}"), &[origin]),
                open(&format!("/cable?{long}=%zz"), &[origin]),
                open(&format!("/cable?{long}"), &[origin, &format!("Cookie: {long}")]),
            ] {
                raw.read_head();
            }
            let mut client = open("/cable?pi=0", &[origin, &format!("X-Request-ID: {long}")]);
            assert_eq!(client.read_head().status(), 101);
            assert!(client.next_text().contains("welcome"));
            client.subscribe(&long);
            let failing = format!("{long}!");
            let error = Answer::json(&json!({ "status": 3, "error_msg": long }));
            stage.rails.on_command("subscribe", &failing, error);
            client.command("subscribe", &failing);
            client.command("subscribe", &long);
            client.send_text(&format!(r#"{{"command":"{long}","identifier":"A"}}"#));
            client.send_text(&format!(r#"{{"command":"subscribe","identifier":"{escaped}"}}"#));
            client.send_text(&long);
            client.send(&frame(TEXT, &[0xff; 30_000]));
            client.next_text();
            stage.publish(&long, &json!(long).to_string());
            stage.publish(&"\u{1}".repeat(LONG), &json!(long).to_string());
            stage.broadcaster().post(&long);
            stage.broadcaster().post(&json!({ "command": long, "payload": {} }).to_string());
            let mut wrong = stage.broadcaster();
            wrong.token = Some(long.clone());
            let _refused = wrong.try_post("{}");
            wrong.path = format!("/{long}");
            let _refused = wrong.try_post("{}");
            stage.server.terminate();
            assert!(stage.server.wait_exit().success());
            for line in stage.server.log() {
                assert!(line.len() <= LINE_BYTES_MAX, "{} bytes: {}", line.len(), &line[..500]);
                if format.ends_with("json") {
                    let _record: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
                }
            }
        }
    }

    fn wrong_words_for_the_console_are_one_line(driver: Driver) {
        // Bound to every interface, so that loopback has to log in too.
        let stage = stage(driver, &["--console", "--host=0.0.0.0"]);
        let body = "token=wrong";
        let request = format!(
            "POST /_console/login HTTP/1.1\r\nHost: a\r\nOrigin: http://a\r\nContent-Type: \
             application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        for _ in 0..3 {
            let mut raw = Raw::connect(stage.server.address());
            raw.send(request.as_bytes());
            assert_eq!(raw.read_head().status(), 403);
        }
        assert_one_line(&stage, "a login to the console has failed");
    }
}
