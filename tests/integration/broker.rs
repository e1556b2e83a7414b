//! History, resumed sessions and presence with the memory broker, as clients see them. Source: `contract/extended.md`.

use serde_json::{Value, json};

use crate::support::http::request;
use crate::support::rails::confirmation;
use crate::support::{Answer, Cable, Driver, Stage, keys, wait};

const EXTENDED: &str = "actioncable-v1-ext-json";

/// The server welcomes its clients itself, so the welcome has the sid. The app answers subscribes: `A` listens to
/// `stream:A`, may whisper and has presence there.
fn stage(driver: Driver, args: &[&str]) -> Stage {
    let all = [
        &[
            "--broker=memory",
            "--noauth",
            "--cores=2",
            "--ping_interval=0",
        ],
        args,
    ]
    .concat();
    let stage = Stage::with(driver, &all);
    let confirmed = json!({
        "status": 1,
        "streams": ["stream:A"],
        "transmissions": [confirmation("A")],
        "env": { "istate": { "$p": "stream:A", "$w": "stream:A" } },
    });
    stage
        .rails
        .on_command("subscribe", "A", Answer::json(&confirmed));
    stage
}

/// A client of the extended protocol, and its sid.
fn open(stage: &Stage, target: &str) -> (Cable, Value) {
    let mut client = Cable::at(&stage.server, target)
        .subprotocols(EXTENDED)
        .open();
    let welcome = client.next_json();
    assert_eq!(welcome["type"], "welcome", "{welcome}");
    (client, welcome)
}

fn subscribed(stage: &Stage) -> Cable {
    let (mut client, _) = open(stage, "/cable");
    client.subscribe("A");
    client
}

fn sid(welcome: &Value) -> &str {
    welcome["sid"].as_str().expect("a sid")
}

fn post(stage: &Stage, stream: &str, data: &str, meta: Value) {
    let body = json!({ "stream": stream, "data": data, "meta": meta });
    stage.broadcaster().post(&body.to_string());
}

/// Publishes the numbers, one after the other, and waits until the client has them. Returns their epoch.
fn publish_to(stage: &Stage, client: &mut Cable, numbers: std::ops::RangeInclusive<u64>) -> String {
    let mut epoch = String::new();
    for number in numbers {
        stage.publish("stream:A", &number.to_string());
        let got = client.next_json();
        assert_eq!(got["message"], number, "{got}");
        epoch = got["epoch"].as_str().expect("an epoch").to_owned();
    }
    epoch
}

fn history(request: Value) -> String {
    json!({ "command": "history", "identifier": "A", "history": request }).to_string()
}

/// The messages up to the end of a replay, and the kind of that end.
fn replay(client: &mut Cable) -> (Vec<Value>, String) {
    let mut messages = Vec::new();
    loop {
        let got = client.next_json();
        match got["type"].as_str() {
            None => messages.push(got["message"].clone()),
            Some(kind) => return (messages, kind.to_owned()),
        }
    }
}

fn command(name: &str, presence: Value) -> String {
    json!({ "command": name, "identifier": "A", "presence": presence }).to_string()
}

fn event(message: Value) -> Value {
    json!({ "type": "presence", "identifier": "A", "message": message })
}

on_both_drivers! {
    fn stored_messages_have_positions_in_the_order_of_keys(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut client = subscribed(&stage);
        let epoch = publish_to(&stage, &mut client, 1..=3);
        assert_eq!(epoch.len(), 8);
        post(&stage, "stream:A", "4", json!({ "broadcast_type": "t" }));
        assert_eq!(
            client.next_text(),
            format!(r#"{{"type":"t","identifier":"A","message":4,"stream_id":"stream:A","epoch":"{epoch}","offset":4}}"#)
        );
        post(&stage, "stream:A", "5", json!({ "transient": true }));
        assert_eq!(client.next_text(), r#"{"identifier":"A","message":5}"#);
        stage.publish("stream:A", "6");
        let got = client.next_json();
        assert_eq!((&got["message"], &got["offset"], &got["epoch"]), (&json!(6), &json!(5), &json!(epoch)));
    }

    fn whispers_have_no_position_and_are_not_replayed(driver: Driver) {
        let stage = stage(driver, &[]);
        let (mut one, mut other) = (subscribed(&stage), subscribed(&stage));
        one.send(r#"{"command":"whisper","identifier":"A","data":{"a":1}}"#);
        assert_eq!(other.next_text(), r#"{"identifier":"A","message":{"a":1}}"#);
        other.send(&history(json!({ "since": 1 })));
        assert_eq!(replay(&mut other), (vec![], "confirm_history".to_owned()));
    }

    fn history_is_replayed_in_full_or_refused(driver: Driver) {
        let stage = stage(driver, &["--history_limit=3"]);
        let mut client = subscribed(&stage);
        let epoch = publish_to(&stage, &mut client, 1..=10);
        let at = |offset: u64| json!({ "stream:A": { "epoch": epoch, "offset": offset } });
        let future = 4_000_000_000_u64;
        let refused: Option<&[u64]> = None;
        let table = [
            (json!({ "streams": at(10) }), Some(&[][..])),
            (json!({ "streams": at(9) }), Some(&[10])),
            (json!({ "streams": at(8) }), Some(&[9, 10])),
            // The reference refuses this one, although nothing is missing.
            (json!({ "streams": at(7) }), Some(&[8, 9, 10])),
            (json!({ "streams": at(6) }), refused),
            (json!({ "streams": at(0) }), refused),
            (json!({ "streams": at(11) }), refused),
            (json!({ "streams": at(u64::MAX) }), refused),
            (json!({ "streams": { "stream:A": { "epoch": "abcd", "offset": 10 } } }), refused),
            (json!({ "streams": { "stream:A": { "epoch": "ABCDEFGH", "offset": 10 } } }), refused),
            (json!({ "streams": { "stream:A": { "offset": 10 } } }), refused),
            (json!({ "streams": { "stream:A": null } }), refused),
            (json!({ "since": 1, "streams": at(6) }), refused),
            (json!({ "since": 1, "streams": at(9) }), Some(&[10])),
            (json!({ "since": 1 }), Some(&[8, 9, 10])),
            (json!({ "since": 1, "streams": { "stream:B": null } }), Some(&[8, 9, 10])),
            (json!({ "since": future }), Some(&[])),
            (json!({ "streams": {} }), Some(&[])),
            (json!({ "streams": { "stream:B": { "epoch": epoch, "offset": 1 } } }), Some(&[])),
        ];
        for (request, expected) in table {
            client.send(&history(request.clone()));
            let expected = match expected {
                Some(numbers) => (numbers.iter().map(|&it| json!(it)).collect(), "confirm_history".to_owned()),
                None => (vec![], "reject_history".to_owned()),
            };
            assert_eq!(replay(&mut client), expected, "{request}");
        }
        for request in [json!({}), json!(null), json!({ "since": 0 }), json!({ "streams": null })] {
            client.send(&history(request));
            client.expect_nothing_before_pong();
        }
    }

    fn a_replay_has_positions_and_neither_type_nor_exclusion(driver: Driver) {
        let stage = stage(driver, &[]);
        let (mut client, welcome) = open(&stage, "/cable");
        client.subscribe("A");
        post(&stage, "stream:A", "1", json!({ "broadcast_type": "t", "exclude_socket": sid(&welcome) }));
        client.expect_nothing_before_pong();
        client.send(&history(json!({ "since": 1 })));
        let got = client.next_json();
        let expected = json!({
            "identifier": "A", "message": 1, "stream_id": "stream:A", "epoch": got["epoch"], "offset": 1,
        });
        assert_eq!(got, expected);
        assert_eq!(client.next_text(), r#"{"type":"confirm_history","identifier":"A"}"#);
    }

    fn a_subscribe_with_history_and_presence_is_answered_in_order(driver: Driver) {
        let stage = stage(driver, &[]);
        publish_to(&stage, &mut subscribed(&stage), 1..=2);
        for subprotocol in [EXTENDED, "actioncable-v1-json"] {
            let mut client = Cable::to(&stage.server).subprotocols(subprotocol).welcomed();
            let id = subprotocol;
            let subscribe = json!({
                "command": "subscribe", "identifier": "A", "history": { "since": 1 }, "presence": { "id": id, "info": [1] },
            });
            client.send(&subscribe.to_string());
            assert_eq!(client.next_text(), confirmation("A"));
            assert_eq!(replay(&mut client), (vec![json!(1), json!(2)], "confirm_history".to_owned()));
            assert_eq!(client.next_json(), event(json!({ "id": id, "info": [1], "type": "join" })));
        }
    }

    fn a_session_is_restored_without_the_app(driver: Driver) {
        let stage = stage(driver, &[]);
        let (mut client, welcome) = open(&stage, "/cable");
        client.subscribe("A");
        let epoch = publish_to(&stage, &mut client, 1..=1);
        drop(client);
        wait::until("the end of the session", || (stage.server.sessions_open() == 0).then_some(()));
        stage.publish("stream:A", "2");
        let calls = || ["command", "connect"].map(|call| stage.rails.calls_to(call).len());
        let calls_before = calls();
        let (mut client, restored) = open(&stage, &format!("/cable?sid={}", sid(&welcome)));
        assert_eq!(restored["restored"], true, "{restored}");
        assert_eq!(restored["restored_ids"], json!(["A"]));
        assert_ne!(sid(&restored), sid(&welcome));
        client.send(&history(json!({ "streams": { "stream:A": { "epoch": epoch, "offset": 1 } } })));
        assert_eq!(replay(&mut client), (vec![json!(2)], "confirm_history".to_owned()));
        publish_to(&stage, &mut client, 3..=3);
        client.send(r#"{"command":"whisper","identifier":"A","data":1}"#);
        client.send(r#"{"command":"join","identifier":"A","presence":{"id":"5"}}"#);
        assert_eq!(client.next_json(), event(json!({ "id": "5", "type": "join" })));
        assert_eq!(calls(), calls_before);
    }

    fn what_cannot_be_restored_begins_anew(driver: Driver) {
        let stage = stage(driver, &[]);
        let fresh = |target: &str, subprotocol: &str| {
            let mut client = Cable::at(&stage.server, target).subprotocols(subprotocol).open();
            let welcome = client.next_json();
            assert_eq!((&welcome["type"], &welcome["restored"]), (&json!("welcome"), &json!(null)), "{target}");
        };
        fresh("/cable?sid=unknown", EXTENDED);
        fresh(&format!("/cable?sid={}", "x".repeat(1000)), EXTENDED);
        let (_client, welcome) = open(&stage, "/cable");
        fresh(&format!("/cable?prev_sid={}", sid(&welcome)), EXTENDED);
        fresh(&format!("/cable?sid={}", sid(&welcome)), "actioncable-v1-json");
        let (_client, restored) = open(&stage, &format!("/cable?sid={}", sid(&welcome)));
        assert_eq!((&restored["restored"], &restored["restored_ids"]), (&json!(true), &json!(null)));
        let (mut gone, welcome) = open(&stage, "/cable");
        let identifiers = json!({ "sid": sid(&welcome) }).to_string();
        let disconnect = json!({ "command": "disconnect", "payload": { "identifier": identifiers, "reconnect": false } });
        stage.broadcaster().post(&disconnect.to_string());
        assert_eq!(gone.next_text(), r#"{"type":"disconnect","reason":"remote","reconnect":false}"#);
        gone.expect_close(1000, "Closed remotely");
        fresh(&format!("/cable?sid={}", sid(&welcome)), EXTENDED);
        let mut plain = Cable::to(&stage.server).open();
        let welcome = plain.next_json();
        drop(plain);
        fresh(&format!("/cable?sid={}", sid(&welcome)), EXTENDED);
    }

    fn an_ended_subscription_is_not_restored(driver: Driver) {
        let stage = stage(driver, &[]);
        let (mut client, welcome) = open(&stage, "/cable");
        client.subscribe("A");
        client.subscribe("B");
        client.command("unsubscribe", "A");
        stage.rails.wait_for_command("unsubscribe", "A");
        client.expect_nothing_before_pong();
        let mut again = Cable::to(&stage.server)
            .subprotocols(EXTENDED)
            .header("x-anycable-restore-sid", sid(&welcome))
            .open();
        assert_eq!(again.next_json()["restored_ids"], json!(["B"]));
    }

    fn members_come_and_go_once(driver: Driver) {
        let stage = stage(driver, &[]);
        let (mut one, mut two) = (subscribed(&stage), subscribed(&stage));
        one.send(&command("join", json!({ "id": "5", "info": { "name": "é", "n": 1.50 } })));
        let joined = event(json!({ "id": "5", "info": { "name": "é", "n": 1.50 }, "type": "join" }));
        assert_eq!((one.next_json(), two.next_json()), (joined.clone(), joined));
        // A second session of the same member: nobody is told, and the info is replaced.
        two.send(&command("join", json!({ "id": "5", "info": "new" })));
        two.expect_nothing_before_pong();
        two.send(r#"{"command":"presence","identifier":"A"}"#);
        let records = json!([{ "info": "new", "id": "5" }]);
        assert_eq!(two.next_json(), event(json!({ "type": "info", "total": 1, "records": records })));
        two.send(r#"{"command":"presence","identifier":"A","data":{"return_records":false}}"#);
        assert_eq!(two.next_json(), event(json!({ "type": "info", "total": 1 })));
        // Another id of a session that is present already is refused without a word.
        two.send(&command("join", json!({ "id": "6" })));
        two.expect_nothing_before_pong();
        one.send(&command("leave", json!({ "id": "ignored" })));
        one.expect_nothing_before_pong();
        two.command("unsubscribe", "A");
        assert_eq!(one.next_json(), event(json!({ "id": "5", "type": "leave" })));
        two.expect_nothing_before_pong();
    }

    fn presence_commands_that_mean_nothing_have_no_answer(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut client = subscribed(&stage);
        client.subscribe("B");
        for nothing in [
            r#"{"command":"join","identifier":"A"}"#,
            r#"{"command":"join","identifier":"A","presence":null}"#,
            r#"{"command":"join","identifier":"A","presence":{"id":5}}"#,
            r#"{"command":"leave","identifier":"A"}"#,
            r#"{"command":"join","identifier":"B","presence":{"id":"5"}}"#,
            r#"{"command":"presence","identifier":"B"}"#,
            r#"{"command":"presence","identifier":"C"}"#,
            r#"{"command":"history","identifier":"A","history":{"since":"1"}}"#,
            r#"{"command":"history","identifier":"A","history":{"streams":{"stream:A":{"offset":-1}}}}"#,
        ] {
            client.send(nothing);
            client.expect_nothing_before_pong();
        }
        client.send(&command("join", json!({})));
        assert_eq!(client.next_json(), event(json!({ "id": "", "type": "join" })));
    }

    fn a_member_whose_connection_is_gone_leaves_after_a_time(driver: Driver) {
        let stage = stage(driver, &["--presence_ttl=1"]);
        let (mut one, mut two) = (subscribed(&stage), subscribed(&stage));
        one.send(&command("join", json!({ "id": "5" })));
        assert_eq!(two.next_json()["message"]["type"], "join");
        drop(one);
        assert_eq!(two.next_json(), event(json!({ "id": "5", "type": "leave" })));
        two.send(r#"{"command":"presence","identifier":"A"}"#);
        assert_eq!(two.next_json(), event(json!({ "type": "info", "total": 0 })));
    }

    fn a_repeated_broadcast_is_delivered_once(driver: Driver) {
        let stage = stage(driver, &[]);
        let mut client = subscribed(&stage);
        let authorization = format!("Bearer {}", keys::broadcast_token(keys::SECRET));
        let post_with_key = |key: &str, body: &Value| {
            let headers = [("Authorization", authorization.as_str()), ("Idempotency-Key", key)];
            let body = body.to_string();
            let response = request(stage.server.address(), "POST", "/_broadcast", &headers, body.as_bytes());
            assert_eq!(response.expect("an answer").status, 201);
        };
        let batch = json!([{ "stream": "stream:A", "data": "1" }, { "stream": "stream:A", "data": "2" }]);
        for _ in 0..3 {
            post_with_key("one", &batch);
        }
        post_with_key("two", &json!({ "stream": "stream:A", "data": "3" }));
        for _ in 0..2 {
            post(&stage, "stream:A", "4", json!({ "idempotency_key": "three" }));
        }
        let publications: Vec<Value> = (0..4).map(|_| client.next_json()).collect();
        let column = |name: &str| -> Vec<Value> { publications.iter().map(|it| it[name].clone()).collect() };
        assert_eq!(column("message"), [1, 2, 3, 4]);
        assert_eq!(column("offset"), [1, 2, 3, 4]);
        client.expect_nothing_before_pong();
    }
}
