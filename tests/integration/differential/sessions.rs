//! Sessions that are restored, those that are not, and how sessions end.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Difference;
use super::side::{BASE, EXTENDED, Side, bare, command};
use crate::support::{Answer, Cable};

const ANSWERED: &[&str] = &["confirm_history", "reject_history"];

/// The first message of a client that comes back, with identifiers in an order of their own.
fn come_back(side: &mut Side, step: &str, target: &str, headers: &[(&str, &str)]) -> Cable {
    let all = [&[("Sec-WebSocket-Protocol", EXTENDED)], headers].concat();
    let (client, mut welcome) = side.open_with(target, &all);
    if let Some(ids) = welcome
        .get_mut("restored_ids")
        .and_then(Value::as_array_mut)
    {
        ids.sort_by_key(Value::to_string);
    }
    side.note(step, &welcome.to_string());
    client
}

pub fn restored(side: &mut Side) {
    let (mut client, sid) = side.subscribed();
    for identifier in ["B", "C"] {
        side.say(
            &format!("subscribe {identifier}"),
            &mut client,
            &bare("subscribe", identifier),
        );
    }
    let position = side.publish_to(&mut client, 1..=2);
    side.end(client);
    side.stage.publish("stream:A", "3");
    side.note_calls("calls before", 4);
    let mut client = come_back(
        side,
        "back by a parameter",
        &format!("/cable?sid={sid}"),
        &[],
    );
    let at = json!({ "streams": { "stream:A": { "epoch": position["epoch"], "offset": position["offset"] } } });
    for identifier in ["B", "C"] {
        let ask = json!({ "command": "history", "identifier": identifier, "history": at });
        side.ask(
            &format!("history of {identifier}"),
            &mut client,
            &ask,
            ANSWERED,
        );
    }
    side.ask(
        "history",
        &mut client,
        &command("history", "history", at),
        ANSWERED,
    );
    side.say("subscribe again", &mut client, &bare("subscribe", "A"));
    go_on(side, client, &sid);
}

/// What the restored session may do, and what comes of the sid that it had before.
fn go_on(side: &mut Side, mut client: Cable, sid: &str) {
    let (mut other, _) = side.subscribed();
    client.send(&command("whisper", "data", json!(1)).to_string());
    client.send(&command("join", "presence", json!({ "id": "1" })).to_string());
    side.settle("whisper and join", "stream:A", [&mut client, &mut other]);
    client.perform("A", r#"{"action":"a"}"#);
    side.note("an answer of the app", &client.next_text());
    side.note_calls("calls of the restored one", 2);
    // The old sid can be restored again, beside the session that came of it and beside its end.
    let mut twice = come_back(
        side,
        "back again by a header",
        "/cable?sid=x",
        &[("X-AnyCable-Restore-Sid", sid)],
    );
    for identifier in ["A", "C"] {
        side.say(
            &format!("unsubscribe {identifier}"),
            &mut twice,
            &bare("unsubscribe", identifier),
        );
    }
    side.note_calls("calls after two unsubscribes", 2);
    side.end(twice);
    side.note_calls("calls after its end", 1);
    side.end(client);
    side.note_calls("calls after the end of the first", 1);
}

pub const RESTORED: &[Difference] = &[];

pub fn not_restored(side: &mut Side) {
    let (mut client, sid) = side.subscribed();
    // The reference saves a session after it has answered.
    client.expect_nothing_before_pong();
    let target = format!("/cable?sid={sid}");
    come_back(side, "beside the open connection", &target, &[]);
    come_back(side, "prev_sid", &format!("/cable?prev_sid={sid}"), &[]);
    come_back(
        side,
        "an unknown sid in the header",
        &target,
        &[("X-AnyCable-Restore-Sid", "x")],
    );
    come_back(side, "an empty sid", "/cable?sid=", &[]);
    come_back(
        side,
        "the last of two",
        &format!("/cable?sid=x&sid={sid}"),
        &[],
    );
    come_back(
        side,
        "the first of two",
        &format!("/cable?sid={sid}&sid=x"),
        &[],
    );
    let (_base, welcome) = side.open(&target, BASE);
    side.note("by the base protocol", &welcome.to_string());
    let (base, welcome) = side.open("/cable", BASE);
    let base_sid = welcome["sid"].as_str().expect("a sid").to_owned();
    come_back(
        side,
        "a session of the base protocol",
        &format!("/cable?sid={base_sid}"),
        &[],
    );
    side.end(base);
    come_back(
        side,
        "such a session that has ended",
        &format!("/cable?sid={base_sid}"),
        &[],
    );

    side.end(client);
    come_back(side, "a session that has just ended", &target, &[]);
    let ended = Instant::now();
    while ended.elapsed() < Duration::from_secs(4) {
        thread::sleep(Duration::from_millis(50));
    }
    come_back(side, "a session that has ended some time ago", &target, &[]);

    disconnected(side);
}

fn disconnected(side: &mut Side) {
    let (mut banned, sid) = side.subscribed();
    disconnect(side, &sid, false);
    side.note("a ban", &banned.next_text());
    side.note_close("its end", &mut banned);
    come_back(side, "a banned session", &format!("/cable?sid={sid}"), &[]);
    let (mut sent_away, sid) = side.subscribed();
    disconnect(side, &sid, true);
    side.note("a remote disconnect", &sent_away.next_text());
    side.note_close("its end as well", &mut sent_away);
    come_back(
        side,
        "a session that was sent away",
        &format!("/cable?sid={sid}"),
        &[],
    );
}

fn disconnect(side: &Side, sid: &str, reconnect: bool) {
    let identifier = json!({ "sid": sid }).to_string();
    let body = json!({ "command": "disconnect", "payload": { "identifier": identifier, "reconnect": reconnect } });
    side.stage.broadcaster().post(&body.to_string());
}

pub const NOT_RESTORED: &[Difference] = &[
    Difference {
        step: "a banned session",
        reference: r#"{"restored":true,"restored_ids":["A"],"sid":"","type":"welcome"}"#,
        ringcable: r#"{"sid":"","type":"welcome"}"#,
        row: "remote disconnect",
    },
    Difference {
        step: "a session that was sent away",
        reference: r#"{"restored":true,"restored_ids":["A"],"sid":"","type":"welcome"}"#,
        ringcable: r#"{"sid":"","type":"welcome"}"#,
        row: "remote disconnect",
    },
];

/// The app authenticates; the sid is that of the request.
pub fn authenticated(side: &mut Side) {
    side.stage.rails.on(|call| {
        (call.method == "connect" && call.sid.starts_with("bad")).then(Answer::unauthorized)
    });
    let connect_states = json!({
        "status": 1, "identifiers": "ada", "transmissions": [r#"{"type":"welcome"}"#],
        "env": { "cstate": { "a": "1" } }, "disconnect": false,
    });
    side.stage.rails.on(move |call| {
        (call.method == "connect" && call.sid.starts_with("ada"))
            .then(|| Answer::json(&connect_states))
    });
    let mut client = come_back(side, "welcome", "/cable", &[("X-Request-ID", "ada1")]);
    client.subscribe("A");
    side.note_calls("calls", 2);
    side.end(client);
    side.note_calls("calls at the end", 1);
    let mut client = come_back(
        side,
        "back",
        "/cable?sid=ada1&other=1",
        &[("X-Request-ID", "ada2"), ("Cookie", "a=b")],
    );
    side.ask(
        "a question for nothing",
        &mut client,
        &command("history", "history", json!({ "streams": {} })),
        ANSWERED,
    );
    side.publish("stream:A", "1", json!({ "exclude_socket": "ada1" }));
    side.publish("stream:A", "2", json!({ "exclude_socket": "ada2" }));
    side.settle("who is excluded", "stream:A", [&mut client]);
    client.perform("A", "{}");
    side.note("an answer", &client.next_text());
    side.end(client);
    side.note_calls("calls of the restored one", 2);

    for (step, target, sid) in [
        ("refused", "/cable", "bad1"),
        ("back after a refusal", "/cable?sid=bad1", "bad2"),
    ] {
        let (mut client, first) = side.open_with(
            target,
            &[("Sec-WebSocket-Protocol", EXTENDED), ("X-Request-ID", sid)],
        );
        let end = if first["type"] == "disconnect" {
            Side::close_of(&mut client)
        } else {
            String::new()
        };
        side.note(step, &format!("{first} {end}"));
    }
}

pub const AUTHENTICATED: &[Difference] = &[Difference {
    step: "back after a refusal",
    reference: r#"{"restored":true,"sid":"","type":"welcome"} "#,
    ringcable: r#"{"reason":"unauthorized","reconnect":false,"type":"disconnect"} 1000 Auth Failed"#,
    row: "a client whose authentication failed",
}];

/// Which messages and close codes clients see.
pub fn ends(side: &mut Side) {
    let (mut silent, _) = side.open("/cable", EXTENDED);
    let (mut base, _) = side.open("/cable", BASE);
    let seen = side.up_to(&mut silent, &["disconnect"]);
    side.note_all("no pong", &seen);
    side.note_close("its close frame", &mut silent);
    assert!(
        side.answers_ping(&mut base),
        "a client of the base protocol need not answer"
    );

    // Any command counts as a pong.
    let (mut active, _) = side.open("/cable", EXTENDED);
    let opened = Instant::now();
    while opened.elapsed() < Duration::from_secs(4) {
        active.send(r#"{"command":"pong"}"#);
        thread::sleep(Duration::from_millis(100));
    }
    side.say(
        "a client that sends pongs",
        &mut active,
        &json!({ "command": "pong" }),
    );
    // How the reference stops is not compared: it may exit before it has told its clients.
}

pub const ENDS: &[Difference] = &[];
