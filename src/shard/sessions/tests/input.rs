//! Commands and their answers, in any pieces and in any order of arrival.

use super::*;

/// Source: contract/websocket.md §14.
#[test]
fn commands_that_arrive_before_the_welcome_wait_and_keep_their_order() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.open(|new| {
            new.early_input = masked(0x81, br#"{"command":"subscribe","identifier":"A"}"#);
        });
        let connect = bench.call();
        let commands = [
            ("subscribe", "A"),
            ("message", "A"),
            ("unsubscribe", "A"),
            ("message", "A"),
            ("subscribe", "B"),
            ("ping", ""),
        ];
        for (command, identifier) in commands {
            client.command(command, identifier);
        }
        bench.harvest();
        assert!(client.got_nothing() && bench.actions.is_empty());
        bench.answer(
            connect,
            json!({ "status": 1, "transmissions": ["welcome"] }),
        );
        for (command, identifier) in [
            ("subscribe", "A"),
            ("message", "A"),
            ("unsubscribe", "A"),
            ("subscribe", "B"),
        ] {
            let call = bench.call();
            assert_eq!(
                (&call.body["command"], &call.body["identifier"]),
                (&json!(command), &json!(identifier))
            );
            bench.harvest();
            assert!(bench.actions.is_empty(), "one call of a session at a time");
            bench.answer(
                call,
                json!({ "status": 1, "transmissions": [format!("{command} {identifier}")] }),
            );
        }
        for frame in [
            "welcome",
            "subscribe A",
            "message A",
            "unsubscribe A",
            "subscribe B",
            r#"{"type":"pong"}"#,
        ] {
            assert_eq!(client.next(), frame, "{}", bench.driver);
        }
        assert_eq!(bench.counters().client_msg_total.value(), 7);
        assert_eq!(bench.counters().failed_client_msg_total.value(), 2);
        assert_eq!(bench.counters().rpc_call_total.value(), 5);
        client.send(&masked(0x88, b"\x0f\xa1bye"));
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert_eq!(client.rest(), ["close 4001 ", "end"]);
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
    });
}

#[test]
fn what_a_command_asks_for_is_performed_before_anything_is_written() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        client.command("subscribe", "A");
        let call = bench.call();
        client.command("subscribe", "B");
        let answer = json!({ "status": 1, "transmissions": ["A"] }).to_string();
        let written = |metrics: &Metrics| metrics.shards[0].server_msg_total.value();
        let before = written(&bench.metrics);
        let mut performed = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        bench.sessions.turn(
            bench.now,
            |sessions| {
                sessions.on_call_result(call.session, call.question, answered(answer.as_bytes()));
                while sessions.actions.is_empty() {
                    assert!(Instant::now() < deadline, "the command does not arrive");
                    sessions.harvest().expect("a healthy reactor");
                }
            },
            |_| performed.push(written(&bench.metrics)),
        );
        assert_eq!(performed, [before], "{}", bench.driver);
        assert_eq!(written(&bench.metrics), before + 1);
        assert_eq!(client.next(), "A");
    });
}

#[test]
fn a_command_may_arrive_in_any_two_pieces() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.open(|_| ());
        client.next();
        let frame = masked(0x81, br#"{"command":"ping"}"#);
        for cut in 1..frame.len() {
            client.send(&frame[..cut]);
            bench.harvest();
            client.send(&frame[cut..]);
            bench.until_count(|counters| &counters.server_msg_total, 1 + cut as u64);
            assert_eq!(client.next(), r#"{"type":"pong"}"#);
        }
    });
}

#[test]
fn more_input_than_one_turn_may_read_is_served_to_the_last_byte() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.open(|_| ());
        client.next();
        let ignored = masked(0x81, format!("null{}", " ".repeat(60_000)).as_bytes());
        let mut writer = client.socket.try_clone().expect("dup");
        let flood = std::thread::spawn(move || {
            for _ in 0..20 {
                writer.write_all(&ignored).expect("the server reads");
            }
            writer
                .write_all(&masked(0x81, br#"{"command":"ping"}"#))
                .expect("the server reads");
        });
        bench.until_count(|counters| &counters.server_msg_total, 2);
        flood.join().expect("writer");
        assert_eq!(client.next(), r#"{"type":"pong"}"#);
        assert_eq!(bench.counters().data_rcvd_total.value(), 20 * 60_004 + 18);
        assert_eq!(bench.counters().failed_client_msg_total.value(), 0);
    });
}

#[test]
fn a_message_that_is_no_command_is_counted_and_the_session_lives() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.open(|_| ());
        client.next();
        for text in [
            "",
            "[]",
            "nope",
            r#"{"command":5}"#,
            "null",
            r#"{"command":"dance"}"#,
            r#"{"command":"ping"}"#,
        ] {
            client.say(text);
        }
        bench.until_count(|counters| &counters.server_msg_total, 2);
        assert_eq!(client.next(), r#"{"type":"pong"}"#);
        assert_eq!(bench.counters().failed_client_msg_total.value(), 5);
        assert_eq!(bench.counters().client_msg_total.value(), 2);
    });
}

#[test]
fn a_failed_call_is_counted_and_the_next_command_runs() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        type Failure = fn() -> Result<RpcAnswer, RpcError>;
        let failures: [Failure; 3] = [
            || Err(RpcError::Status { status: 500 }),
            || answered(b"nope"),
            || answered(br#"{"error_msg":"no"}"#),
        ];
        for failure in failures {
            client.command("subscribe", "A");
            let call = bench.call();
            bench.result(call, failure());
        }
        bench.subscribe(&mut client, "A", &["x"]);
        assert_eq!(bench.counters().failed_client_msg_total.value(), 3);
        assert_eq!(bench.counters().rpc_call_total.value(), 5);
        assert_eq!(
            bench.counters().rpc_error_total.value(),
            1,
            "the unreadable one"
        );
    });
}

#[test]
fn what_an_answer_says_comes_before_the_close_it_asks_for() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        bench.subscribe(&mut client, "A", &["x"]);
        client.command("message", "A");
        client.command("ping", "");
        let call = bench.call();
        bench.answer(
            call,
            json!({ "status": 1, "disconnect": true, "transmissions": ["bye"] }),
        );
        assert_eq!(client.rest(), ["bye", "close 1006 Command Failed", "end"]);
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert_eq!((bench.clients(), bench.survey().streams.len()), (0, 0));
    });
}

#[test]
fn native_pings_are_echoed_and_violations_close_the_connection() {
    fn check(bytes: &[u8], expected: &str) {
        on_both(PUBLIC, |bench| {
            let mut client = bench.open(|_| ());
            client.next();
            client.send(&masked(0x89, b"hi"));
            client.send(bytes);
            bench.until_count(|counters| &counters.closed_protocol_error_total, 1);
            assert_eq!(
                client.rest(),
                ["pong hi", expected, "end"],
                "{}",
                bench.driver
            );
            assert_eq!(bench.clients(), 0);
        });
    }
    check(b"\x81\x02{}", "close 1002 bad MASK");
    check(&masked(0x83, b""), "close 1002 bad opcode 3");
    check(
        b"\x81\xff\x00\x00\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00",
        "close 1009 ",
    );
}

#[test]
fn a_late_answer_for_a_slot_that_was_used_again_falls_on_the_floor() {
    on_both(WITH_RPC, |bench| {
        drop(bench.open(|_| ()));
        let late = bench.call();
        assert!(!late.is_canceled());
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert!(late.is_canceled());
        let mut client = bench.open(|_| ());
        let call = bench.call();
        assert_eq!(call.session.slot, late.session.slot);
        assert_ne!(call.session.generation, late.session.generation);
        bench.answer(
            late,
            json!({ "status": 1, "identifiers": "other", "transmissions": ["not yours"] }),
        );
        assert_eq!(bench.counters().late_results_total.value(), 1);
        assert_eq!((bench.clients(), client.got_nothing()), (0, true));
        bench.answer(
            call,
            json!({ "status": 1, "identifiers": "u", "transmissions": ["yours"] }),
        );
        assert_eq!(client.next(), "yours");
        assert!(
            bench.disconnect_jobs().is_empty(),
            "the first was never authenticated"
        );
    });
}

#[test]
fn an_answer_for_a_session_that_is_closing_falls_on_the_floor() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        client.command("subscribe", "A");
        let call = bench.call();
        bench.disconnect_remotely("u", false);
        assert!(call.is_canceled());
        bench.answer(
            call,
            json!({ "status": 1, "streams": ["x"], "transmissions": ["late"] }),
        );
        assert_eq!(client.rest().len(), 3, "notice, close and end");
        assert_eq!(bench.counters().late_results_total.value(), 1);
        assert_eq!(bench.survey().streams.len(), 0);
    });
}

#[test]
fn a_stale_event_does_nothing_to_the_next_session_in_the_slot() {
    on_both(PUBLIC, |bench| {
        let mut first = bench.open(|_| ());
        first.next();
        // When the session ends, the event is already in the completion queue.
        first.say(r#"{"command":"ping"}"#);
        bench.disconnect_remotely(r#"{"sid":"s1"}"#, false);
        let mut second = bench.open(|_| ());
        bench.harvest();
        if bench.driver == "io_uring" {
            assert!(bench.counters().stale_events_total.value() > 0);
        }
        assert!(second.next().contains("welcome"));
        assert_eq!(bench.counters().client_msg_total.value(), 0);
        second.say(r#"{"command":"ping"}"#);
        bench.until_count(|counters| &counters.client_msg_total, 1);
        assert_eq!(second.next(), r#"{"type":"pong"}"#);
        assert!(
            first
                .rest()
                .contains(&"close 1000 Closed remotely".to_string())
        );
    });
}
