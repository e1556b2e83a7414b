//! Who is in a room: commands, events, several sessions of one member, times, the app, and streams without the app.

use serde_json::{Value, json};

use super::Difference;
use super::side::{BASE, EXTENDED, Side, bare, command, sorted_records, until_pong};
use crate::support::rails::confirmation;
use crate::support::{Answer, Cable, keys};

fn join(presence: Value) -> String {
    command("join", "presence", presence).to_string()
}

fn note_members(side: &mut Side, step: &str, client: &mut Cable, data: Value) {
    client.send(&command("presence", "data", data).to_string());
    let seen = side.up_to(client, &["info", "error"]);
    let answer = sorted_records(seen.last().expect("an answer"));
    side.note(&format!("{step}: members"), &answer);
    assert_eq!(seen.len(), 1, "{seen:?}");
}

/// What it is, who does it, and how.
const ACTS: &[(&str, usize, &str, &str)] = &[
    ("a leave of nobody", 0, "leave", "{}"),
    (
        "a join",
        0,
        "join",
        r#"{"id":"1","info":{"a":[1,"b",null]}}"#,
    ),
    (
        "the same join",
        0,
        "join",
        r#"{"id":"1","info":{"a":[1,"b",null]}}"#,
    ),
    (
        "a join with another info",
        0,
        "join",
        r#"{"id":"1","info":"new"}"#,
    ),
    ("a join with another id", 0, "join", r#"{"id":"2"}"#),
    (
        "a join of another session",
        1,
        "join",
        r#"{"id":"1","info":"two"}"#,
    ),
    ("the first one leaves", 0, "leave", "{}"),
    ("it leaves again", 0, "leave", "{}"),
    ("the second one leaves", 1, "leave", r#"{"id":"other"}"#),
    ("a join with null", 0, "join", "null"),
    ("a join without id", 0, "join", "{}"),
    ("its leave, with null", 0, "leave", "null"),
    (
        "a join with a null info",
        0,
        "join",
        r#"{"id":"3","info":null}"#,
    ),
    (
        "a join with an info of 0",
        1,
        "join",
        r#"{"id":"4","info":0}"#,
    ),
    (
        "a join of a type",
        1,
        "join",
        r#"{"id":"4","info":false,"type":"leave"}"#,
    ),
    ("another leave", 0, "leave", "{}"),
    (
        "an id with a quote",
        0,
        "join",
        r#"{"id":"\"<é>\n","info":""}"#,
    ),
];

pub fn members(side: &mut Side) {
    let (mut one, _) = side.subscribed();
    let (mut two, _) = side.subscribed();
    for (step, who, name, presence) in ACTS {
        let client = if *who == 0 { &mut one } else { &mut two };
        client.send(&format!(
            r#"{{"command":"{name}","identifier":"A","presence":{presence}}}"#
        ));
        side.settle(step, "stream:A", [&mut one, &mut two]);
        note_members(side, step, &mut two, json!({}));
    }
    side.say("a join without presence", &mut one, &bare("join", "A"));
    one.command("leave", "A");
    side.settle("a leave without presence", "stream:A", [&mut one, &mut two]);
    one.send(&join(json!({ "id": "5" })));
    one.command("unsubscribe", "A");
    until_pong(&mut one);
    side.settle("unsubscribe", "stream:A", [&mut two]);
    for data in [
        json!({ "return_records": false }),
        json!({ "return_records": true }),
        json!("{}"),
        json!(null),
        json!(5),
    ] {
        note_members(side, &data.to_string(), &mut two, data.clone());
    }
}

pub const MEMBERS: &[Difference] = &[Difference {
    step: r#"{"return_records":false}: members"#,
    reference: r#"{"identifier":"A","message":{"records":[{"id":"4","info":false}],"total":1,"type":"info"},"type":"presence"}"#,
    ringcable: r#"{"identifier":"A","message":{"total":1,"type":"info"},"type":"presence"}"#,
    row: "`return_records: false` in a question for presence",
}];

/// With a `presence_ttl` of two seconds.
pub fn gone(side: &mut Side) {
    let (mut watches, _) = side.subscribed();
    let (mut extended, sid) = side.subscribed();
    extended.send(&join(json!({ "id": "1", "info": 1 })));
    side.settle("a join", "stream:A", [&mut watches, &mut extended]);
    drop(extended);
    side.note("it is gone", &watches.next_text());

    // Who is back in time, and joins under the same id, was never away.
    let (mut client, _) = side.open(&format!("/cable?sid={sid}"), EXTENDED);
    client.send(&join(json!({ "id": "2" })));
    until_pong(&mut client);
    side.settle("a join of the restored one", "stream:A", [&mut watches]);
    drop(client);
    let (mut client, _) = side.open(&format!("/cable?sid={sid}"), EXTENDED);
    client.send(&join(json!({ "id": "2" })));
    until_pong(&mut client);
    side.settle("it is back", "stream:A", [&mut watches]);

    // A client of the base protocol goes, though it is still connected.
    let (mut base, _) = side.open("/cable", BASE);
    base.subscribe("A");
    base.send(&join(json!({ "id": "3" })));
    side.note("a join by the base protocol", &watches.next_text());
    side.note("its end", &watches.next_text());
    note_members(side, "at the end", &mut watches, json!({}));
}

pub const GONE: &[Difference] = &[];

/// Its identifiers, and what the app says to a subscribe and to a message of each.
fn teach(side: &Side) {
    let table = [
        (
            "object",
            json!({ "type": "join", "id": "1", "info": r#"{"a":1}"# }),
            json!({ "type": "leave", "id": "x" }),
        ),
        (
            "text",
            json!({ "type": "join", "id": "2", "info": "not JSON" }),
            json!({ "type": "unknown", "id": "x" }),
        ),
        ("bare", json!({ "type": "join", "id": "3" }), json!(null)),
    ];
    for (identifier, join, change) in table {
        let confirmed = json!({
            "status": 1, "streams": ["stream:A"], "transmissions": [confirmation(identifier)], "presence": join,
            "env": { "istate": { "$p": "stream:A" } },
        });
        let changed = json!({ "status": 1, "presence": change, "env": {} });
        let rails = &side.stage.rails;
        rails.on_command("subscribe", identifier, Answer::json(&confirmed));
        rails.on_command("message", identifier, Answer::json(&changed));
    }
}

/// The app joins and leaves for its clients.
pub fn by_the_app(side: &mut Side) {
    teach(side);
    let (mut watches, _) = side.subscribed();
    let (mut client, _) = side.open("/cable", EXTENDED);
    for identifier in ["object", "text", "bare"] {
        let step = format!("subscribe {identifier}");
        client.command("subscribe", identifier);
        let seen = side.up_to(&mut client, &["confirm_subscription"]);
        until_pong(&mut client);
        // Events for its other subscriptions may come before.
        side.note(&step, seen.last().expect("a confirmation"));
        side.settle(&step, "stream:A", [&mut watches]);
        note_members(side, &step, &mut watches, json!({}));
    }
    for identifier in ["object", "text", "bare"] {
        client.perform(identifier, "{}");
        // The command is done when the next one is answered.
        until_pong(&mut client);
        side.settle(&format!("perform {identifier}"), "stream:A", [&mut watches]);
        note_members(side, identifier, &mut watches, json!({}));
    }
}

pub const BY_THE_APP: &[Difference] = &[];

/// `$pubsub`, Turbo and CableReady: who may whisper, be present, and have history.
pub fn local_streams(side: &mut Side) {
    let signed = keys::signed_stream_name(keys::SECRET, "room");
    let identifiers = [
        (
            "public",
            json!({ "channel": "$pubsub", "stream_name": "room" }),
        ),
        (
            "signed",
            json!({ "channel": "$pubsub", "signed_stream_name": signed }),
        ),
        (
            "Turbo",
            json!({ "channel": "Turbo::StreamsChannel", "signed_stream_name": signed }),
        ),
        (
            "CableReady",
            json!({ "channel": "CableReady::Stream", "identifier": signed }),
        ),
    ];
    let (mut watches, _) = side.open("/cable", EXTENDED);
    let public = identifiers[0].1.to_string();
    watches.command("subscribe", &public);
    side.note("watches", &watches.next_text());
    side.publish("room", "1", json!({}));
    side.settle("a message", "room", [&mut watches]);
    for (step, identifier) in identifiers {
        let (mut client, _) = side.open("/cable", EXTENDED);
        let identifier = identifier.to_string();
        let of = |name: &str, key: &str, value: Value| json!({ "command": name, "identifier": identifier, key: value });
        side.ask(
            step,
            &mut client,
            &of("subscribe", "history", json!({ "since": 1 })),
            &["confirm_history", "reject_history", "reject_subscription"],
        );
        client.send(&of("join", "presence", json!({ "id": step })).to_string());
        side.settle(
            &format!("{step} joins"),
            "room",
            [&mut watches, &mut client],
        );
        client.send(&of("presence", "data", json!({})).to_string());
        client.send(&of("whisper", "data", json!(step)).to_string());
        side.settle(
            &format!("{step} asks and whispers"),
            "room",
            [&mut watches, &mut client],
        );
        client.send(&of("unsubscribe", "data", json!({})).to_string());
        client.expect_nothing_before_pong();
        side.settle(&format!("{step} unsubscribes"), "room", [&mut watches]);
    }
}

pub const LOCAL_STREAMS: &[Difference] = &[];
