//! What a session asks the broker. Source: contract/extended.md §3, §4 and §7.

use super::*;
use crate::protocol::position::{Epoch, Position};

const BROKER: &[&str] = &["--broker=memory"];

/// A session with a broker that listens to these streams. It is present in `p`.
fn listening(streams: &[&str]) -> Scene {
    let mut scene = Scene::connected(BROKER);
    scene.command("subscribe", "A");
    scene.answer(&json!({ "status": 1, "streams": streams, "env": { "istate": { "$p": "p" } } }));
    scene
}

fn history(command: &str, request: Value) -> Value {
    json!({ "command": command, "identifier": "A", "history": request })
}

/// A question for these streams, as the scene shows it.
fn asked(streams: &[(&str, HistoryStart)]) -> String {
    let streams = streams.iter().map(|(stream, start)| StreamHistory {
        stream: (*stream).into(),
        start: *start,
    });
    let question = BrokerQuestion::History {
        identifier: "A".into(),
        streams: streams.collect(),
    };
    format!("ask {question:?}")
}

#[test]
fn a_question_for_history_names_the_streams_of_the_subscription_and_no_others() {
    let check = |streams: &[&str], request: Value, expected: &[(&str, HistoryStart)]| {
        let mut scene = listening(streams);
        let steps = scene.say(&history("history", request.clone()));
        assert_eq!(steps.expect("accepted"), [asked(expected)], "{request}");
    };
    let since = HistoryStart::Since;
    let after = |epoch, offset| HistoryStart::After(Position { epoch, offset });
    let (epoch, text) = (Epoch::from_bits(1), Epoch::from_bits(1).to_string());
    let position = json!({ "epoch": text, "offset": 7 });
    check(&["x"], json!({ "since": 5 }), &[("x", since(5))]);
    check(
        &["x", "y"],
        json!({ "since": 5 }),
        &[("x", since(5)), ("y", since(5))],
    );
    check(
        &["x", "y"],
        json!({ "streams": { "y": position } }),
        &[("y", after(epoch, 7))],
    );
    check(
        &["x", "y"],
        json!({ "since": 5, "streams": { "y": position, "z": position } }),
        &[("x", since(5)), ("y", after(epoch, 7))],
    );
    check(
        &["x"],
        json!({ "since": -1, "streams": { "x": position } }),
        &[("x", after(epoch, 7))],
    );
    check(
        &["x"],
        json!({ "streams": { "x": null } }),
        &[("x", after(Epoch::FOREIGN, 0))],
    );
}

/// As in the reference, where only a time of 0 counts as none for the command, and any up to 0 for a subscribe.
#[test]
fn a_time_before_1970_asks_for_nothing() {
    for rpc in [BROKER, &[]] {
        let mut scene = Scene::subscribed(rpc, "A", &["x"]);
        for since in [-1, i64::MIN] {
            let steps = scene.say(&history("history", json!({ "since": since })));
            let confirmed = r#"send {"type":"confirm_history","identifier":"A"}"#;
            assert_eq!(steps.expect("accepted"), [confirmed], "{since}");
        }
        let steps = scene.say(&history("history", json!({ "since": 0 })));
        assert_eq!(steps.expect("accepted"), [""; 0]);

        let mut scene = Scene::connected(rpc);
        scene
            .say(&history("subscribe", json!({ "since": -1 })))
            .expect("accepted");
        assert_eq!(
            scene.answer(&json!({ "status": 1, "streams": ["x"] })),
            [""; 0]
        );
    }
}

#[test]
fn a_subscribe_asks_for_history_first_and_joins_then() {
    let mut scene = Scene::connected(BROKER);
    let mut command = history("subscribe", json!({ "since": 5 }));
    command["presence"] = json!({ "id": "5", "info": [1] });
    scene.say(&command).expect("accepted");
    let answer = json!({
        "status": 1, "streams": ["x"], "transmissions": ["confirm"], "env": { "istate": { "$p": "p" } },
    });
    let joined = BrokerQuestion::Join {
        stream: "p".into(),
        id: "5".into(),
        info: Some("[1]".into()),
    };
    let expected = [
        "send confirm".to_owned(),
        asked(&[("x", HistoryStart::Since(5))]),
        format!("ask {joined:?}"),
    ];
    assert_eq!(scene.answer(&answer), expected);
}

#[test]
fn presence_needs_a_stream_in_the_channel_state_and_a_broker() {
    let join = json!({ "command": "join", "identifier": "A", "presence": { "id": "5" } });
    let leave = json!({ "command": "leave", "identifier": "A" });
    let count =
        json!({ "command": "presence", "identifier": "A", "data": { "return_records": false } });
    let mut scene = listening(&["x"]);
    let mut check = |command: &Value, question: BrokerQuestion| {
        let steps = scene.say(command).expect("accepted");
        assert_eq!(steps, [format!("ask {question:?}")], "{command}");
    };
    check(
        &join,
        BrokerQuestion::Join {
            stream: "p".into(),
            id: "5".into(),
            info: None,
        },
    );
    check(&leave, BrokerQuestion::Leave { stream: "p".into() });
    check(
        &count,
        BrokerQuestion::Members {
            identifier: "A".into(),
            stream: "p".into(),
            with_records: false,
        },
    );
    let mut without_stream = Scene::subscribed(BROKER, "A", &["x"]);
    let mut without_broker = Scene::connected(&[]);
    without_broker.command("subscribe", "A");
    without_broker.answer(&json!({ "status": 1, "env": { "istate": { "$p": "p" } } }));
    for command in [&join, &leave, &count] {
        assert_eq!(
            without_stream.say(command).expect("accepted"),
            [""; 0],
            "{command}"
        );
    }
    assert_eq!(without_broker.say(&join).expect("accepted"), [""; 0]);
    assert_eq!(without_broker.say(&leave).expect("accepted"), [""; 0]);
    let error = r#"send {"type":"presence","identifier":"A","message":{"type":"error","total":0}}"#;
    assert_eq!(without_broker.say(&count).expect("accepted"), [error]);
    // Who is present in which stream is asked before the subscription is forgotten.
    scene.command("unsubscribe", "A");
    let left = BrokerQuestion::Leave { stream: "p".into() };
    assert_eq!(
        scene.answer(&json!({ "status": 1 })),
        [format!("ask {left:?}")]
    );
    assert!(matches!(
        scene.say(&join),
        Err(CommandRefusal::UnknownSubscription(_))
    ));
}

#[test]
fn a_question_counts_its_texts() {
    let text = || "x".repeat(1000).into();
    let check = |question: BrokerQuestion, texts: usize| {
        let bytes = question.held_bytes();
        let least = size_of::<BrokerQuestion>() + 1000 * texts;
        assert!(
            (least..least + 200).contains(&bytes),
            "{bytes} for {question:?}"
        );
    };
    let streams = (0..3).map(|_| StreamHistory {
        stream: text(),
        start: HistoryStart::Since(1),
    });
    check(
        BrokerQuestion::History {
            identifier: text(),
            streams: streams.collect(),
        },
        4,
    );
    check(
        BrokerQuestion::Join {
            stream: text(),
            id: text(),
            info: Some(text()),
        },
        3,
    );
    check(BrokerQuestion::Leave { stream: text() }, 1);
    check(
        BrokerQuestion::Members {
            identifier: text(),
            stream: text(),
            with_records: true,
        },
        2,
    );
}
