//! Client commands: what reaches the app, what comes back, what is silently ignored. Source: `contract/websocket.md` §6 to
//! §8 and §14, `contract/rpc.md` §6.

use std::time::Duration;

use serde_json::json;

use crate::support::rails::{confirmation, echo, rejection};
use crate::support::raw::{BINARY, CLOSE, close_frame, frame};
use crate::support::{Answer, Cable, Gate, Stage};

/// A successful answer of a command with these extra fields.
fn answer(fields: serde_json::Value) -> Answer {
    let mut body = json!({ "status": 1, "env": {} });
    for (key, value) in fields.as_object().expect("fields are an object") {
        body[key] = value.clone();
    }
    Answer::json(&body)
}

on_both_drivers! {
    fn seven_commands_at_once_run_one_after_the_other(driver: Driver) {
        let stage = Stage::new(driver);
        let slow = Duration::from_millis(300);
        stage.rails.on_command("subscribe", "A", Answer::confirm("A", &["a"]).after(slow));
        stage.rails.on_command("message", "A", Answer::transmit(&[echo("A", "x")]).after(slow));
        stage.rails.on_command("unsubscribe", "A", answer(json!({ "stop_streams": true })).after(slow));
        stage.rails.on_command("subscribe", "B", Answer::confirm("B", &["b"]).after(slow));
        let mut raw = stage.raw();
        let mut bytes = Vec::new();
        for text in [
            r#"{"command":"subscribe","identifier":"A"}"#,
            r#"{"command":"subscribe","identifier":"A"}"#,
            r#"{"command":"message","identifier":"A","data":"x"}"#,
            r#"{"command":"unsubscribe","identifier":"A"}"#,
            r#"{"command":"message","identifier":"A","data":"x"}"#,
            r#"{"command":"subscribe","identifier":"B"}"#,
            r#"{"command":"ping"}"#,
        ] {
            bytes.extend(frame(1, text.as_bytes()));
        }
        raw.send(&bytes);
        assert_eq!(raw.next_text(), confirmation("A"));
        assert_eq!(raw.next_text(), echo("A", "x"));
        assert_eq!(raw.next_text(), confirmation("B"));
        assert_eq!(raw.next_text(), r#"{"type":"pong"}"#);
        assert_eq!(stage.rails.summaries(), ["connect", "subscribe A", "message A", "unsubscribe A", "subscribe B"]);
        assert_eq!(stage.rails.parallel_calls_max(), 1);
        raw.send(&close_frame(4001, "bye"));
        let close = raw.next_frame();
        assert_eq!((close.opcode, close.close()), (CLOSE, (Some(4001), String::new())));
        raw.expect_end();
    }

    fn second_subscribe_to_same_identifier_is_ignored(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        client.command("subscribe", "A");
        client.expect_nothing_before_pong();
        assert_eq!(stage.rails.summaries(), ["connect", "subscribe A"]);
        assert_eq!(stage.server.metric("failed_client_msg_total"), 1);
        stage.publish("stream:A", "1");
        assert_eq!(client.next_text(), r#"{"identifier":"A","message":1}"#);
        client.expect_nothing_before_pong();
    }

    fn subscribes_repeated_against_a_slow_app_make_one_call_and_one_delivery(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_command("subscribe", "A", Answer::confirm("A", &["a"]).behind(&gate));
        let mut client = stage.client();
        for _ in 0..4 {
            client.command("subscribe", "A");
        }
        stage.rails.wait_for_command("subscribe", "A");
        gate.open();
        assert_eq!(client.next_text(), confirmation("A"));
        client.expect_nothing_before_pong();
        stage.publish("a", "1");
        assert_eq!(client.next_text(), r#"{"identifier":"A","message":1}"#);
        client.expect_nothing_before_pong();
        assert_eq!(stage.rails.summaries(), ["connect", "subscribe A"]);
    }

    fn commands_for_unknown_subscriptions_are_ignored(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.command("unsubscribe", "A");
        client.perform("A", "x");
        client.send(r#"{"command":"history","identifier":"A","history":{"since":1}}"#);
        client.expect_nothing_before_pong();
        assert_eq!(stage.rails.summaries(), ["connect"]);
    }

    fn data_of_a_message_must_be_a_string(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        for data in [r#""data":{"action":"x"},"#, r#""data":5,"#, r#""data":null,"#, ""] {
            client.send(&format!(r#"{{"command":"message",{data}"identifier":"A"}}"#));
        }
        client.expect_nothing_before_pong();
        client.perform("A", "");
        assert_eq!(client.next_text(), echo("A", ""));
        let calls = stage.rails.calls_to("command");
        assert_eq!(calls.len(), 2);
        assert!(calls[1].body.get("data").is_none(), "empty data is left out: {}", calls[1].raw);
    }

    fn undecodable_message_is_dropped_and_the_session_lives_on(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        let bad = [
            "nope", "", "[]", r#""x""#, "5", "true", r#"{"command":5}"#, r#"{"command":"subscribe","identifier":{}}"#,
            r#"{"command":"ping"} x"#, r#"{"command":"history","identifier":"A","history":"x"}"#,
            r#"{"command":"presence","identifier":"A","presence":5}"#, "{", "\u{feff}{}",
        ];
        for text in bad {
            client.send(text);
        }
        client.expect_nothing_before_pong();
        assert_eq!(stage.server.metric("failed_client_msg_total"), bad.len() as i64);
        assert_eq!(stage.server.metric("client_msg_total"), 1, "only the ping decodes");
        client.subscribe("A");
    }

    fn unknown_command_and_null_send_nothing(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        for text in ["null", "{}", r#"{"command":"dance"}"#, r#"{"command":""}"#] {
            client.send(text);
        }
        client.expect_nothing_before_pong();
        assert_eq!(stage.server.metric("failed_client_msg_total"), 3, "null is not a message");
        assert_eq!(stage.server.metric("client_msg_total"), 4);
    }

    fn binary_frames_carry_commands_too(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        raw.send(&frame(BINARY, br#"{"command":"subscribe","identifier":"A"}"#));
        assert_eq!(raw.next_text(), confirmation("A"));
    }

    fn field_names_ignore_case_and_the_last_duplicate_counts(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.send(r#"{"COMMAND":"subscribe","identifier":"X","Identifier":"A","extra":[1,{"b":null}]}"#);
        assert_eq!(client.next_text(), confirmation("A"));
    }

    fn identifiers_are_opaque_and_come_back_byte_for_byte(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        let identifiers = [
            r#"{"channel":"PresenceChannel", "room_id":1}"#, r#"{"channel":"PresenceChannel","room_id":1}"#,
            "plain", "<b>&amp;</b>", "é \u{2028} 🚃", "a\"b\\c\n", " ",
        ];
        for identifier in identifiers {
            client.command("subscribe", identifier);
            assert_eq!(client.next_json()["identifier"], identifier);
        }
        for identifier in identifiers {
            stage.publish(&format!("stream:{identifier}"), "1");
            assert_eq!(client.next_json(), json!({ "identifier": identifier, "message": 1 }));
        }
        assert_eq!(stage.rails.calls_to("command").len(), identifiers.len());
    }

    fn unsubscribe_stops_deliveries_and_is_not_confirmed(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        client.command("unsubscribe", "A");
        client.expect_nothing_before_pong();
        stage.publish("stream:A", "1");
        client.expect_nothing_before_pong();
        client.subscribe("A");
        stage.publish("stream:A", "2");
        assert_eq!(client.next_text(), r#"{"identifier":"A","message":2}"#);
    }

    fn rapid_switching_confirms_every_subscribe_and_ends_where_the_last_command_says(driver: Driver) {
        const ROUNDS: usize = 50;
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        let toggle = [
            frame(1, br#"{"command":"subscribe","identifier":"A"}"#),
            frame(1, br#"{"command":"unsubscribe","identifier":"A"}"#),
        ]
        .concat();
        raw.send(&toggle.repeat(ROUNDS));
        raw.command("subscribe", "A");
        for _ in 0..=ROUNDS {
            assert_eq!(raw.next_text(), confirmation("A"));
        }
        stage.publish("stream:A", "1");
        assert_eq!(raw.next_text(), r#"{"identifier":"A","message":1}"#);
        raw.expect_nothing_before_pong();
        assert_eq!(stage.rails.calls_to("command").len(), 2 * ROUNDS + 1);
    }

    fn failed_subscribe_changes_nothing_and_can_be_repeated(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        let failures = [Answer::status(500, "boom"), Answer::json(&json!({ "error_msg": "no" })), Answer::status(200, "")];
        for failure in failures {
            stage.rails.on_command("subscribe", "A", failure);
            client.command("subscribe", "A");
            client.expect_nothing_before_pong();
        }
        stage.rails.streams("A", &["a"]);
        client.subscribe("A");
        assert_eq!(stage.rails.calls_to("command").len(), 4);
    }

    fn failed_unsubscribe_leaves_the_subscription_active(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        stage.rails.on_command("unsubscribe", "A", Answer::status(500, ""));
        client.command("unsubscribe", "A");
        client.expect_nothing_before_pong();
        stage.publish("stream:A", "1");
        assert_eq!(client.next_text(), r#"{"identifier":"A","message":1}"#);
    }

    fn unsubscribe_answered_with_failure_removes_the_subscription(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        stage.rails.on_command("unsubscribe", "A", Answer::json(&json!({ "status": 2 })));
        client.command("unsubscribe", "A");
        client.expect_nothing_before_pong();
        stage.publish("stream:A", "1");
        client.expect_nothing_before_pong();
    }

    fn rejected_subscription_gets_no_streams(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        let leaky = json!({
            "status": 2, "stop_streams": true, "streams": ["secret"], "transmissions": [rejection("A")],
            "env": { "istate": { "a": "1" } },
        });
        stage.rails.on_command("subscribe", "A", Answer::json(&leaky));
        client.command("subscribe", "A");
        assert_eq!(client.next_text(), rejection("A"));
        stage.publish("secret", "1");
        client.perform("A", "x");
        client.expect_nothing_before_pong();
        assert_eq!(stage.rails.summaries(), ["connect", "subscribe A"]);
    }

    fn streams_can_be_stopped_and_swapped_by_any_command(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.streams("A", &["one", "two"]);
        let swap = json!({ "stopped_streams": ["one"], "streams": ["three", "three"] });
        stage.rails.on(move |call| (call.data() == "swap").then(|| answer(swap.clone())));
        let replace = json!({ "stop_streams": true, "streams": ["four"] });
        stage.rails.on(move |call| (call.data() == "replace").then(|| answer(replace.clone())));
        let mut client = stage.client();
        client.subscribe("A");
        client.perform("A", "swap");
        client.expect_nothing_before_pong();
        for stream in ["one", "two", "three", "four"] {
            stage.publish(stream, &format!("\"{stream}\""));
        }
        assert_eq!(client.next_json()["message"], "two");
        assert_eq!(client.next_json()["message"], "three");
        client.perform("A", "replace");
        client.expect_nothing_before_pong();
        for stream in ["one", "two", "three", "four"] {
            stage.publish(stream, &format!("\"{stream}\""));
        }
        assert_eq!(client.next_json()["message"], "four");
        client.expect_nothing_before_pong();
    }

    fn failure_of_a_message_is_handled_like_success(driver: Driver) {
        let stage = Stage::new(driver);
        let failure = json!({ "status": 2, "streams": ["extra"], "transmissions": ["{\"sorry\":1}"] });
        stage.rails.on_command("message", "A", Answer::json(&failure));
        let mut client = stage.client();
        client.subscribe("A");
        client.perform("A", "x");
        assert_eq!(client.next_text(), r#"{"sorry":1}"#);
        stage.publish("extra", "1");
        assert_eq!(client.next_text(), r#"{"identifier":"A","message":1}"#);
    }

    fn command_can_close_the_connection_after_its_transmissions(driver: Driver) {
        let stage = Stage::new(driver);
        let kick = json!({ "disconnect": true, "stop_streams": true, "transmissions": ["{\"bye\":1}"] });
        stage.rails.on_command("message", "A", answer(kick));
        let mut raw = stage.raw();
        raw.subscribe("A");
        raw.send_text(r#"{"command":"message","identifier":"A","data":"kick"}"#);
        assert_eq!(raw.next_text(), r#"{"bye":1}"#);
        raw.expect_close(1006, "Command Failed");
        let disconnect = &stage.rails.wait_for_calls("disconnect", 1)[0];
        assert_eq!(disconnect.body["subscriptions"], json!(["A"]));
    }

    fn publication_during_the_subscribe_call_of_another_session_is_delivered(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_command("subscribe", "B", Answer::confirm("B", &["b"]).behind(&gate));
        let (mut busy, mut idle) = (stage.client(), stage.client());
        idle.subscribe("A");
        busy.subscribe("A");
        busy.command("subscribe", "B");
        stage.rails.wait_for_command("subscribe", "B");
        stage.publish("stream:A", "1");
        assert_eq!(idle.next_text(), r#"{"identifier":"A","message":1}"#);
        assert_eq!(busy.next_text(), r#"{"identifier":"A","message":1}"#);
        gate.open();
        assert_eq!(busy.next_text(), confirmation("B"));
    }

    fn history_without_a_broker_is_refused_or_empty(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.streams("with", &["s"]);
        stage.rails.streams("without", &[]);
        let mut client = stage.client();
        client.subscribe("with");
        client.subscribe("without");
        let table = [
            (r#"{"command":"history","identifier":"with","history":{"since":1700000000}}"#, Some("reject_history")),
            (r#"{"command":"history","identifier":"with","history":{"streams":{"s":{"epoch":"e","offset":1}}}}"#, Some("reject_history")),
            (r#"{"command":"history","identifier":"with","history":{"streams":{"t":{"epoch":"e","offset":1}}}}"#, Some("confirm_history")),
            (r#"{"command":"history","identifier":"with","history":{"streams":{}}}"#, Some("confirm_history")),
            (r#"{"command":"history","identifier":"without","history":{"since":1}}"#, Some("confirm_history")),
            (r#"{"command":"history","identifier":"with","history":{}}"#, None),
        ];
        for (command, expected) in table {
            client.send(command);
            match expected {
                Some(kind) => assert_eq!(client.next_json()["type"], kind, "{command}"),
                None => client.expect_nothing_before_pong(),
            }
        }
    }

    fn history_asked_with_a_subscribe_is_answered_after_the_confirmation(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.send(r#"{"command":"subscribe","identifier":"A","history":{"since":1}}"#);
        assert_eq!(client.next_text(), confirmation("A"));
        assert_eq!(client.next_text(), r#"{"type":"reject_history","identifier":"A"}"#);
    }

    fn presence_without_a_broker_is_an_error_for_who_may_ask(driver: Driver) {
        let stage = Stage::new(driver);
        let confirmed = json!({ "transmissions": [confirmation("A")], "env": { "istate": { "$p": "s" } } });
        stage.rails.on_command("subscribe", "A", answer(confirmed));
        let mut client = stage.client();
        client.subscribe("A");
        client.subscribe("B");
        client.send(r#"{"command":"join","identifier":"A","presence":{"id":"1"}}"#);
        client.send(r#"{"command":"leave","identifier":"A"}"#);
        client.send(r#"{"command":"presence","identifier":"B"}"#);
        client.expect_nothing_before_pong();
        client.send(r#"{"command":"presence","identifier":"A"}"#);
        let expected = r#"{"type":"presence","identifier":"A","message":{"type":"error","total":0}}"#;
        assert_eq!(client.next_text(), expected);
    }

    fn whisper_reaches_everybody_but_the_sender(driver: Driver) {
        let stage = Stage::new(driver);
        let confirmed = json!({
            "transmissions": [confirmation("A")], "streams": ["w"], "env": { "istate": { "$w": "w" } },
        });
        stage.rails.on_command("subscribe", "A", answer(confirmed));
        let mut clients: Vec<Cable> = (0..6).map(|_| stage.client()).collect();
        for client in &mut clients {
            client.subscribe("A");
        }
        clients[0].send(r#"{"command":"whisper","identifier":"A","data":{"typing":[1,"é"]}}"#);
        clients[0].expect_nothing_before_pong();
        for client in &mut clients[1..] {
            assert_eq!(client.next_json(), json!({ "identifier": "A", "message": { "typing": [1, "é"] } }));
        }
        clients[1].subscribe("B");
        clients[1].send(r#"{"command":"whisper","identifier":"B","data":1}"#);
        clients[1].expect_nothing_before_pong();
        clients[0].expect_nothing_before_pong();
        assert!(stage.rails.calls_to("command").iter().all(|call| call.command() == "subscribe"));
    }
}
