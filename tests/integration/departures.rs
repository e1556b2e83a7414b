//! Clients that leave while the app is being asked about them: what it has done for them it must be told to undo.
//! Source: `contract/websocket.md` §4, `contract/rpc.md` §8.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::rails::{CURRENT_USER, WELCOME};
use crate::support::raw::{Raw, close_frame, frame_with, handshake};
use crate::support::wait::until;
use crate::support::{Answer, Driver, Gate, Stage};

/// Calls do not run into their time limits on a busy machine while an answer is held back.
fn patient(driver: Driver, args: &[&str]) -> Stage {
    let limits = ["--rpc_request_timeout=15000", "--rpc_command_timeout=15000"];
    Stage::with(driver, &[&limits, args].concat())
}

/// An upgraded client that waits for the answer of Connect.
fn connecting(stage: &Stage, sid: &str) -> Raw {
    let seen = stage.rails.calls_to("connect").len();
    let mut raw = Raw::connect(stage.server.address());
    raw.send(handshake("/cable?pi=0", &[&format!("X-Request-ID: {sid}")]).as_bytes());
    assert_eq!(raw.read_head().status(), 101);
    stage.rails.wait_for_calls("connect", seen + 1);
    raw
}

/// Ends a session; gives the client back when it is still there.
type End = fn(&Stage, Raw) -> Option<Raw>;

fn reset(raw: &Raw) {
    let option = socket2::SockRef::from(raw.stream()).set_linger(Some(Duration::ZERO));
    option.expect("an option of every socket");
}

fn remote_disconnect(stage: &Stage) {
    let command = json!({ "command": "disconnect", "payload": { "identifier": CURRENT_USER, "reconnect": true } });
    stage.broadcaster().post(&command.to_string());
}

fn subscriptions(body: &Value) -> Vec<&str> {
    let list = body["subscriptions"].as_array();
    let mut found: Vec<&str> = list
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    found.sort_unstable();
    found
}

on_both_drivers! {
    fn whoever_leaves_during_connect_is_reported_when_the_app_has_let_it_in(driver: Driver) {
        let stage = patient(driver, &[]);
        // What is sent before the end, and whether the end is a reset.
        let ways: [(&str, Vec<u8>, bool); 5] = [
            ("fin", Vec::new(), false),
            ("reset", Vec::new(), true),
            ("close-frame", close_frame(1000, ""), false),
            ("protocol-error", frame_with(0x83, None, b"x"), false),
            ("half-a-frame", frame_with(0x81, Some([1, 2, 3, 4]), b"hello")[..4].to_vec(), true),
        ];
        for (number, (sid, last_words, with_reset)) in ways.iter().enumerate() {
            let gate = Gate::new();
            stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[WELCOME]).behind(&gate));
            let mut raw = connecting(&stage, sid);
            raw.send(last_words);
            if *with_reset {
                reset(&raw);
            }
            drop(raw);
            until("the server to notice", || (stage.server.sessions_open() == 0).then_some(()));
            assert_eq!(stage.rails.calls_to("disconnect").len(), number, "{sid}: too early");
            gate.open();
            let calls = stage.rails.wait_for_calls("disconnect", number + 1);
            let call = &calls[number];
            assert_eq!((call.sid.as_str(), &call.body["identifiers"]), (*sid, &json!(CURRENT_USER)));
            assert!(call.body.get("subscriptions").is_none(), "{}", call.raw);
        }
        // Those that the server did not notice before the answer, and those that it did, are told once each.
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        assert_eq!(stage.rails.calls_to("disconnect").len(), ways.len());
        assert!(stage.rails.calls().iter().all(|call| !call.aborted), "every call came to its end");
    }

    fn close_frame_before_the_answer_is_read_after_it(driver: Driver) {
        let stage = patient(driver, &[]);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[WELCOME]).behind(&gate));
        let mut raw = connecting(&stage, "polite");
        raw.send(&close_frame(1000, ""));
        gate.open();
        assert_eq!(raw.next_text(), WELCOME);
        raw.expect_close(1000, "");
        stage.rails.wait_for_calls("disconnect", 1);
    }

    fn connection_state_of_a_departed_client_is_in_its_disconnect_call(driver: Driver) {
        let stage = patient(driver, &[]);
        let gate = Gate::new();
        let connect = json!({
            "status": 1, "identifiers": "i d", "transmissions": [WELCOME], "env": { "cstate": { "a": "1" } },
        });
        stage.rails.on_connect(Answer::json(&connect).behind(&gate));
        drop(connecting(&stage, "gone"));
        until("the server to notice", || (stage.server.sessions_open() == 0).then_some(()));
        gate.open();
        let call = &stage.rails.wait_for_calls("disconnect", 1)[0];
        assert_eq!(call.body["identifiers"], "i d");
        assert_eq!(call.body["env"]["cstate"], json!({ "a": "1" }));
        assert!(call.url().ends_with("/cable?pi=0"), "{}", call.raw);
    }

    fn departed_client_that_the_app_has_not_let_in_is_not_reported(driver: Driver) {
        let stage = patient(driver, &[]);
        let refusals = [
            Answer::unauthorized(),
            Answer::json(&json!({ "error_msg": "no" })),
            Answer::status(500, ""),
            Answer::hang_up(),
        ];
        for answer in refusals {
            let gate = Gate::new();
            stage.rails.on_connect(answer.behind(&gate));
            drop(connecting(&stage, "refused"));
            until("the server to notice", || (stage.server.sessions_open() == 0).then_some(()));
            gate.open();
            until("the call to end", || (stage.rails.calls_running() == 0).then_some(()));
            // A retry goes to an app that refuses in words.
            stage.rails.on_connect(Answer::unauthorized());
        }
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        assert!(stage.rails.calls_to("disconnect").is_empty());
    }

    fn mode_never_asks_for_nothing_after_a_departure(driver: Driver) {
        let stage = patient(driver, &["--disconnect_mode=never"]);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[WELCOME]).behind(&gate));
        drop(connecting(&stage, "gone"));
        until("the server to notice", || (stage.server.sessions_open() == 0).then_some(()));
        gate.open();
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        assert!(stage.rails.calls_to("disconnect").is_empty());
    }

    fn stop_during_connect_waits_for_the_answer_and_reports(driver: Driver) {
        let stage = patient(driver, &[]);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[WELCOME]).behind(&gate));
        let mut clients: Vec<Raw> = (0..5).map(|number| connecting(&stage, &number.to_string())).collect();
        stage.server.terminate();
        for raw in &mut clients {
            assert!(raw.next_text().contains("server_restart"));
            raw.expect_close(1001, "Server restart");
        }
        gate.open();
        assert!(stage.server.wait_exit().success());
        assert_eq!(stage.rails.calls_to("disconnect").len(), 5);
    }

    fn stop_waits_for_no_connect_call_longer_than_it_may(driver: Driver) {
        let stage = patient(driver, &["--shutdown_timeout=1"]);
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[WELCOME]).behind(&Gate::new()));
        let _client = connecting(&stage, "stuck");
        let started = Instant::now();
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        assert!(started.elapsed() < Duration::from_millis(2700), "{:?}", started.elapsed());
    }

    fn subscribe_under_way_is_in_the_disconnect_call_whoever_ends_the_session(driver: Driver) {
        let ends: [(&str, End); 4] = [
            ("fin", |_, raw| { drop(raw); None }),
            ("reset", |_, raw| { reset(&raw); None }),
            ("remote", |stage, raw| { remote_disconnect(stage); Some(raw) }),
            ("stop", |stage, raw| { stage.server.terminate(); Some(raw) }),
        ];
        for (name, end) in ends {
            let stage = patient(driver, &[]);
            let gate = Gate::new();
            let answer = json!({
                "status": 1, "streams": ["s"], "env": { "istate": { "k": "v" }, "cstate": { "c": "1" } },
            });
            stage.rails.on_command("subscribe", "late", Answer::json(&answer).behind(&gate));
            let mut raw = stage.raw();
            raw.subscribe("early");
            raw.command("subscribe", "late");
            stage.rails.wait_for_command("subscribe", "late");
            let left = end(&stage, raw);
            if let Some(mut raw) = left {
                assert!(raw.next_text().contains(r#""type":"disconnect""#), "{name}");
            }
            gate.open();
            let call = &stage.rails.wait_for_calls("disconnect", 1)[0];
            assert_eq!(subscriptions(&call.body), ["early", "late"], "{name}");
            assert_eq!(call.body["env"]["istate"], json!({ "late": r#"{"k":"v"}"# }), "{name}");
            assert_eq!(call.body["env"]["cstate"], json!({ "c": "1" }), "{name}");
            stage.server.terminate();
            assert!(stage.server.wait_exit().success());
            assert_eq!(stage.rails.calls_to("disconnect").len(), 1, "{name}");
        }
    }

    fn subscribe_that_fails_after_the_end_is_not_in_the_disconnect_call(driver: Driver) {
        let answers = [Answer::reject("late"), Answer::json(&json!({ "error_msg": "no" })), Answer::status(500, "")];
        for answer in answers {
            let stage = patient(driver, &[]);
            let gate = Gate::new();
            stage.rails.on_command("subscribe", "late", answer.behind(&gate));
            let mut raw = stage.raw();
            raw.subscribe("early");
            raw.command("subscribe", "late");
            stage.rails.wait_for_command("subscribe", "late");
            remote_disconnect(&stage);
            assert!(raw.next_text().contains("remote"));
            gate.open();
            let call = &stage.rails.wait_for_calls("disconnect", 1)[0];
            assert_eq!(subscriptions(&call.body), ["early"]);
        }
    }

    fn call_that_was_not_sent_yet_is_dropped_with_its_client(driver: Driver) {
        let stage = patient(driver, &[]);
        stage.rails.stop();
        let raw = Raw::upgrade(stage.server.address(), "/cable?pi=0");
        until("a retry", || (stage.server.metric("rpc_retries_total") >= 1).then_some(()));
        drop(raw);
        stage.server.wait_for_metric("rpc_canceled_total", 1);
        stage.rails.restart();
        until("connections to be accepted", || {
            TcpStream::connect(stage.rails.url().trim_start_matches("http://").trim_end_matches("/_anycable")).ok()
        });
        stage.client();
        assert_eq!(stage.rails.summaries(), ["connect"]);
    }
}
