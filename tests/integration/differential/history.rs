//! History, commands in all orders, and what is no command.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Difference;
use super::side::{BASE, EXTENDED, Side, bare, command, until_pong};
use crate::broker_abuse::UNDECODABLE as FRAMES;
use crate::support::Cable;

const ANSWERED: &[&str] = &["confirm_history", "reject_history"];

fn ask_at(side: &mut Side, client: &mut Cable, step: &str, request: Value) {
    side.ask(
        step,
        client,
        &command("history", "history", request),
        ANSWERED,
    );
}

/// Ten messages of which three are kept.
pub fn positions(side: &mut Side) {
    let (mut client, _) = side.subscribed();
    let last = side.publish_to(&mut client, 1..=10);
    let epoch = last["epoch"].clone();
    let at = |offset: u64| json!({ "stream:A": { "epoch": epoch, "offset": offset } });
    for offset in [10, 9, 8, 7, 6, 1, 0, 11, u64::MAX] {
        ask_at(
            side,
            &mut client,
            &format!("after {offset}"),
            json!({ "streams": at(offset) }),
        );
    }
    odd_questions(side, &mut client, &epoch);
    questions_for_nothing(side, &mut client);
}

fn odd_questions(side: &mut Side, client: &mut Cable, epoch: &Value) {
    let at = |offset: u64| json!({ "stream:A": { "epoch": epoch, "offset": offset } });
    let table = [
        (
            "another epoch",
            json!({ "streams": { "stream:A": { "epoch": "abcd", "offset": 10 } } }),
        ),
        (
            "an empty epoch",
            json!({ "streams": { "stream:A": { "epoch": "", "offset": 10 } } }),
        ),
        (
            "no epoch",
            json!({ "streams": { "stream:A": { "offset": 10 } } }),
        ),
        (
            "no offset",
            json!({ "streams": { "stream:A": { "epoch": epoch } } }),
        ),
        (
            "an empty position",
            json!({ "streams": { "stream:A": {} } }),
        ),
        (
            "a null position",
            json!({ "streams": { "stream:A": null } }),
        ),
        ("since the beginning", json!({ "since": 1 })),
        (
            "since a time to come",
            json!({ "since": 4_000_000_000_u64 }),
        ),
        ("since a time before 1970", json!({ "since": -5 })),
        (
            "a bad position and since",
            json!({ "since": 1, "streams": at(1) }),
        ),
        (
            "a good position and since",
            json!({ "since": 1, "streams": at(9) }),
        ),
        (
            "a position of a stream that is not listened to",
            json!({ "streams": { "stream:B": { "epoch": epoch, "offset": 1 } } }),
        ),
        (
            "such a position and since",
            json!({ "since": 1, "streams": { "stream:B": { "epoch": epoch, "offset": 1 } } }),
        ),
        ("no positions", json!({ "streams": {} })),
    ];
    for (step, request) in table {
        ask_at(side, client, step, request);
    }
}

fn questions_for_nothing(side: &mut Side, client: &mut Cable) {
    for (step, request) in [
        ("nothing", json!({})),
        ("null", json!(null)),
        ("since 0", json!({ "since": 0 })),
        ("null streams", json!({ "streams": null })),
        ("null since", json!({ "since": null })),
    ] {
        side.say(step, client, &command("history", "history", request));
    }
    side.say("no request", client, &bare("history", "A"));
    for (identifier, history) in [
        ("D", json!({ "since": -5 })),
        ("E", json!({ "streams": {} })),
        ("F", json!({ "since": 0 })),
    ] {
        let request =
            json!({ "command": "subscribe", "identifier": identifier, "history": history });
        side.say(&format!("subscribe with {history}"), client, &request);
    }
}

pub const POSITIONS: &[Difference] = &[Difference {
    step: "after 7",
    reference: r#"{"type":"reject_history","identifier":"A"}"#,
    ringcable: concat!(
        r#"{"identifier":"A","message":8,"stream_id":"stream:A","epoch":"","offset":8} "#,
        r#"{"identifier":"A","message":9,"stream_id":"stream:A","epoch":"","offset":9} "#,
        r#"{"identifier":"A","message":10,"stream_id":"stream:A","epoch":"","offset":10} "#,
        r#"{"type":"confirm_history","identifier":"A"}"#
    ),
    row: "position before the oldest kept message",
}];

/// Commands for subscriptions that are there, are not, were, and were rejected.
pub fn commands(side: &mut Side) {
    for subprotocol in [EXTENDED, BASE] {
        let (mut client, _) = side.open("/cable", subprotocol);
        let of = |step: &str| format!("{subprotocol}: {step}");
        for identifier in ["A", "B", "C", "R", "A", ""] {
            let step = of(&format!("subscribe {identifier:?}"));
            side.say(&step, &mut client, &bare("subscribe", identifier));
        }
        for identifier in ["A", "B", "C", "R", "X"] {
            for (name, key, value) in [
                ("history", "history", json!({ "since": 1 })),
                ("join", "presence", json!({ "id": "1" })),
                ("presence", "data", json!({})),
                ("leave", "presence", json!({})),
                ("whisper", "data", json!(1)),
                ("message", "data", json!("{}")),
                ("message", "data", json!({})),
                ("message", "unknown", json!(1)),
                ("unknown", "data", json!(1)),
                ("", "data", json!(1)),
            ] {
                let step = of(&format!("{name} {key} {value} {identifier}"));
                let sent = json!({ "command": name, "identifier": identifier, key: value });
                client.send(&sent.to_string());
                // The answer to a question for history or presence may come after that to a ping.
                side.settle(&step, "stream:A", [&mut client]);
            }
        }
        unsubscribes(side, &mut client, of);
    }
}

fn unsubscribes(side: &mut Side, client: &mut Cable, of: impl Fn(&str) -> String) {
    for identifier in ["C", "R", "X", "A"] {
        side.say(
            &of(&format!("unsubscribe {identifier}")),
            client,
            &bare("unsubscribe", identifier),
        );
    }
    let all = command("history", "history", json!({ "since": 1 }));
    side.say(&of("history after unsubscribe"), client, &all);
    side.stage.publish("stream:A", "1");
    side.settle(&of("a message after unsubscribe"), "stream:B", [client]);
    side.say(&of("pong"), client, &json!({ "command": "pong" }));
    let request = json!({ "command": "subscribe", "identifier": "B", "history": { "since": 1 }, "presence": { "id": "1" } });
    client.command("unsubscribe", "B");
    until_pong(client);
    side.stage.publish("stream:B", "1");
    side.say(
        &of("a subscribe with history, and a ping at once"),
        client,
        &request,
    );
    side.say(&of("subscribe again"), client, &bare("subscribe", "A"));
    side.publish("stream:A", "2", json!({}));
    side.settle(&of("a message"), "stream:A", [client]);
}

pub const COMMANDS: &[Difference] = &[];

/// What a publication looks like, live and later.
pub fn messages(side: &mut Side) {
    let (mut one, sid) = side.subscribed();
    let (mut two, _) = side.subscribed();
    let table = [
        (r#"{"a":1}"#, json!({})),
        ("not JSON", json!({})),
        ("null", json!({})),
        (r#""text""#, json!({})),
        ("", json!({})),
        ("1", json!({ "broadcast_type": "typed" })),
        ("2", json!({ "exclude_socket": sid })),
        ("3", json!({ "exclude_socket": "nobody" })),
        ("4", json!({ "transient": true })),
        (
            "5",
            json!({ "transient": true, "broadcast_type": "typed", "exclude_socket": sid }),
        ),
        ("6", json!(null)),
        ("[7]", json!({ "unknown": 1 })),
    ];
    for (data, meta) in table {
        let step = format!("{data} {meta}");
        side.publish("stream:A", data, meta);
        side.settle(&step, "stream:A", [&mut one, &mut two]);
    }
    for (step, body) in [
        (
            "an epoch and an offset",
            json!({ "stream": "stream:A", "data": "8", "epoch": "mine", "offset": 77 }),
        ),
        (
            "such a transient one",
            json!({ "stream": "stream:A", "data": "9", "epoch": "mine", "offset": 77, "meta": { "transient": true } }),
        ),
        ("no data", json!({ "stream": "stream:A" })),
        (
            "an object as data",
            json!({ "stream": "stream:A", "data": { "a": 1 } }),
        ),
        (
            "a batch",
            json!([{ "stream": "stream:A", "data": "10" }, { "stream": "stream:A", "data": "11" }]),
        ),
    ] {
        side.stage.broadcaster().post(&body.to_string());
        side.settle(step, "stream:A", [&mut one, &mut two]);
    }
    replays_and_whispers(side, &mut one, &mut two);
}

fn replays_and_whispers(side: &mut Side, one: &mut Cable, two: &mut Cable) {
    ask_at(side, one, "replay of all", json!({ "since": 1 }));
    let (mut late, _) = side.open("/cable", EXTENDED);
    let request = json!({ "command": "subscribe", "identifier": "A", "history": { "since": 1 }, "presence": { "id": "1", "info": [1] } });
    side.ask(
        "subscribe with history and presence",
        &mut late,
        &request,
        &["join"],
    );
    for client in [&mut *one, &mut *two] {
        client.send(r#"{"command":"whisper","identifier":"A","data":{"a":[1,"b"]}}"#);
    }
    side.settle("whispers", "stream:A", [&mut *one, &mut *two, &mut late]);
    one.send(r#"{"command":"whisper","identifier":"A"}"#);
    side.settle("a whisper of nothing", "stream:A", [&mut *one, two]);
    for data in [
        r#"{"b":1,"a":"<&>"}"#,
        "12345678901234567890",
        r#"[1.50, 2]"#,
    ] {
        side.publish("stream:A", data, json!({ "transient": true }));
        side.settle(data, "stream:A", [&mut *one]);
    }
}

pub const MESSAGES: &[Difference] = &[
    Difference {
        step: "such a transient one",
        reference: r#"{"identifier":"A","message":9,"stream_id":"stream:A","epoch":"","offset":77}"#,
        ringcable: r#"{"identifier":"A","message":9}"#,
        row: "`epoch` and `offset` in a publication",
    },
    Difference {
        step: r#"{"b":1,"a":"<&>"}"#,
        reference: r#"{"identifier":"A","message":{"a":"\u003c\u0026\u003e","b":1}}"#,
        ringcable: r#"{"identifier":"A","message":{"b":1,"a":"<&>"}}"#,
        row: "JSON in `data`",
    },
    Difference {
        step: "12345678901234567890",
        reference: r#"{"identifier":"A","message":12345678901234567000}"#,
        ringcable: r#"{"identifier":"A","message":12345678901234567890}"#,
        row: "JSON in `data`",
    },
    Difference {
        step: "[1.50, 2]",
        reference: r#"{"identifier":"A","message":[1.5,2]}"#,
        ringcable: r#"{"identifier":"A","message":[1.50, 2]}"#,
        row: "JSON in `data`",
    },
];

/// Each on a connection of its own, because the reference does not read on.
pub fn undecodable(side: &mut Side) {
    for frame in FRAMES {
        let (mut client, _) = side.subscribed();
        client.send(frame);
        let answers = side.answers_ping(&mut client);
        side.note(
            &format!("frame {frame}"),
            if answers { "answers pings" } else { "is deaf" },
        );
    }
    // These are well-formed: a wrong type is none where nobody looks.
    for frame in [
        r#"{"command":"join","identifier":"A","presence":{"id":"5","info":5,"other":[]},"data":5,"other":{}}"#,
        r#"{"command":"leave","identifier":"A","presence":null,"history":null}"#,
        r#"{"command":"whisper","identifier":"A","data":null}"#,
        r#"{"command":null,"identifier":null}"#,
        r#"{}"#,
        r#"null"#,
    ] {
        let (mut client, _) = side.subscribed();
        client.send(frame);
        side.settle(&format!("well-formed {frame}"), "stream:A", [&mut client]);
    }
}

pub const UNDECODABLE: &[Difference] = &[Difference {
    step: "frame ",
    reference: "is deaf",
    ringcable: "answers pings",
    row: "a frame that cannot be decoded, such as a number as presence id",
}];

pub fn no_broker(side: &mut Side) {
    let (mut one, _) = side.subscribed();
    let (mut two, _) = side.subscribed();
    side.publish("stream:A", "1", json!({}));
    side.settle("a message", "stream:A", [&mut one, &mut two]);
    for request in [
        json!({ "since": 1 }),
        json!({ "streams": {} }),
        json!({ "streams": { "stream:A": { "epoch": "a", "offset": 1 } } }),
    ] {
        ask_at(side, &mut one, &format!("history {request}"), request);
    }
    side.say(
        "an empty question",
        &mut one,
        &command("history", "history", json!({})),
    );
    side.ask(
        "presence",
        &mut one,
        &bare("presence", "A"),
        &["error", "info"],
    );
    one.send(&command("join", "presence", json!({ "id": "1" })).to_string());
    one.send(&command("leave", "presence", json!({ "id": "1" })).to_string());
    one.send(&command("whisper", "data", json!(1)).to_string());
    side.settle(
        "a join, a leave, and a whisper",
        "stream:A",
        [&mut one, &mut two],
    );
    let (mut late, _) = side.open("/cable", EXTENDED);
    let request = json!({ "command": "subscribe", "identifier": "A", "history": { "since": 1 }, "presence": { "id": "1" } });
    side.ask(
        "subscribe with history and presence",
        &mut late,
        &request,
        ANSWERED,
    );
    side.settle("the others", "stream:A", [&mut one, &mut two, &mut late]);
}

/// All messages are older than `history_ttl`.
pub fn expired(side: &mut Side) {
    let (mut client, _) = side.subscribed();
    let last = side.publish_to(&mut client, 1..=3);
    let published = Instant::now();
    // Two seconds beyond, because time is counted in whole seconds.
    while published.elapsed() < Duration::from_secs(4) {
        thread::sleep(Duration::from_millis(50));
    }
    let at = |offset: u64| json!({ "streams": { "stream:A": { "epoch": last["epoch"], "offset": offset } } });
    for offset in [3, 2, 1, 4] {
        ask_at(side, &mut client, &format!("after {offset}"), at(offset));
    }
    ask_at(
        side,
        &mut client,
        "since the beginning",
        json!({ "since": 1 }),
    );
    side.publish_to(&mut client, 4..=4);
    for offset in [4, 3, 2] {
        ask_at(
            side,
            &mut client,
            &format!("one more, after {offset}"),
            at(offset),
        );
    }
}

pub const EXPIRED: &[Difference] = &[
    Difference {
        step: "after 3",
        reference: r#"{"type":"reject_history","identifier":"A"}"#,
        ringcable: r#"{"type":"confirm_history","identifier":"A"}"#,
        row: "an up-to-date client of a stream whose messages have all expired",
    },
    Difference {
        step: "one more, after 3",
        reference: r#"{"type":"reject_history","identifier":"A"}"#,
        ringcable: concat!(
            r#"{"identifier":"A","message":4,"stream_id":"stream:A","epoch":"","offset":4} "#,
            r#"{"type":"confirm_history","identifier":"A"}"#
        ),
        row: "position before the oldest kept message",
    },
];
