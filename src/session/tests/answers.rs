//! Answers of the app.

use super::*;

#[test]
fn a_rejected_subscribe_leaks_nothing_but_connection_state() {
    let mut scene = Scene::connected(&[]);
    scene.command("subscribe", "A");
    let steps = scene.answer(&json!({
        "status": 2,
        "streams": ["x"],
        "stop_streams": true,
        "transmissions": ["reject"],
        "env": { "istate": { "$w": "x", "k": "v" }, "cstate": { "c": "1" } },
    }));
    assert_eq!(steps, ["send reject"]);
    assert!(scene.hub.identifiers(SLOT).is_empty() && scene.hub.streams_len() == 0);
    let body = scene.disconnect_json();
    assert_eq!(body["env"]["cstate"], json!({ "c": "1" }));
    assert!(body["env"].get("istate").is_none() && body.get("subscriptions").is_none());
    let whisper = json!({ "command": "whisper", "identifier": "A", "data": 1 });
    assert!(scene.say(&whisper).expect("accepted").is_empty());
}

#[test]
fn an_error_changes_nothing_and_says_nothing() {
    for (command, data) in [
        ("subscribe", None),
        ("unsubscribe", Some("A")),
        ("message", Some("A")),
    ] {
        let mut scene = Scene::subscribed(&[], "A", &["x"]);
        let identifier = data.unwrap_or("B");
        let command = json!({ "command": command, "identifier": identifier, "data": "x" });
        let before = scene.disconnect_body();
        scene.say(&command).expect("accepted");
        let steps = scene.answer(&json!({
            "status": 0,
            "disconnect": true,
            "stop_streams": true,
            "streams": ["y"],
            "transmissions": ["no"],
            "env": { "istate": { "k": "v" }, "cstate": { "k": "v" } },
        }));
        assert!(steps.is_empty(), "{command}: {steps:?}");
        assert_eq!(scene.streams("A"), set(&["x"]), "{command}");
        assert_eq!(scene.hub.identifiers(SLOT), ["A"], "{command}");
        assert_eq!(scene.disconnect_body(), before, "{command}");
    }
}

/// Source: contract/rpc.md §6.2.
#[test]
fn answers_to_a_message_change_streams_stop_first() {
    fn check(answer: Value, expected: &[&str]) {
        for status in [1, 2] {
            let mut scene = Scene::subscribed(&[], "A", &["x", "y"]);
            scene.message("A", "m");
            let mut answer = answer.clone();
            answer["status"] = json!(status);
            scene.answer(&answer);
            assert_eq!(scene.streams("A"), set(expected), "{answer}");
            assert!(scene.hub.is_subscribed(SLOT, "A"));
        }
    }
    check(json!({}), &["x", "y"]);
    check(json!({ "streams": ["z", "z", "x"] }), &["x", "y", "z"]);
    check(json!({ "stopped_streams": ["x", "w"] }), &["y"]);
    check(
        json!({ "stopped_streams": ["x"], "streams": ["x"] }),
        &["x", "y"],
    );
    check(json!({ "stop_streams": true }), &[]);
    check(json!({ "stop_streams": true, "streams": ["z"] }), &["z"]);
    check(
        json!({ "stop_streams": true, "stopped_streams": ["x"], "streams": ["y"] }),
        &["y"],
    );
}

#[test]
fn streams_of_other_subscriptions_are_not_touched() {
    let mut scene = Scene::subscribed(&[], "A", &["x"]);
    scene.command("subscribe", "B");
    scene.answer(&json!({ "status": 1, "streams": ["x", "y"] }));
    scene.message("A", "m");
    scene.answer(&json!({ "status": 1, "stop_streams": true }));
    assert_eq!(
        (scene.streams("A"), scene.streams("B")),
        (set(&[]), set(&["x", "y"]))
    );
    scene.command("unsubscribe", "A");
    scene.answer(&json!({ "status": 1 }));
    assert_eq!(scene.hub.identifiers(SLOT), ["B"]);
}

#[test]
fn an_answered_unsubscribe_forgets_the_subscription_whatever_the_verdict() {
    for status in [1, 2] {
        let mut scene = Scene::connected(&[]);
        scene.command("subscribe", "A");
        scene.answer(&json!({ "status": 1, "streams": ["x"], "env": { "istate": { "k": "v" } } }));
        scene.command("unsubscribe", "A");
        let steps = scene.answer(&json!({
            "status": status,
            "streams": ["y"],
            "transmissions": ["bye"],
            "env": { "cstate": { "c": "1" }, "istate": { "k": "w" } },
        }));
        assert_eq!(steps, ["send bye"]);
        assert_eq!(scene.hub.streams_len(), 0);
        let env = &scene.disconnect_json()["env"];
        assert_eq!(env["cstate"], json!({ "c": "1" }));
        assert!(env.get("istate").is_none());
        let call = scene.command("subscribe", "A");
        assert!(
            !call[0].contains("istate"),
            "a new life starts without state"
        );
    }
}

#[test]
fn states_are_merged_key_by_key_and_an_empty_value_deletes() {
    let mut scene = Scene::connected(&[]);
    scene.command("subscribe", "A");
    let state = json!({ "a": "1", "b": "2" });
    scene.answer(&json!({ "status": 1, "env": { "istate": state, "cstate": state } }));
    scene.message("A", "m");
    let changes = json!({ "a": "", "b": "3", "c": "4" });
    scene.answer(&json!({ "status": 1, "env": { "istate": changes, "cstate": changes } }));
    let merged = r#""cstate":{"b":"3","c":"4"},"istate":{"b":"3","c":"4"}}}"#;
    let call = scene.message("A", "m");
    assert!(call[0].ends_with(merged), "{call:?}");
    let nothing = json!({ "b": "", "c": "" });
    scene.answer(&json!({ "status": 1, "env": { "istate": nothing, "cstate": nothing } }));
    let call = scene.message("A", "m");
    assert!(
        !call[0].contains("istate") && !call[0].contains("cstate"),
        "{call:?}"
    );
    let env = &scene.disconnect_json()["env"];
    assert_eq!(
        env["istate"],
        json!({ "A": "{}" }),
        "a subscription that once had state"
    );
    assert!(env.get("cstate").is_none());
}

#[test]
fn state_of_one_subscription_is_not_sent_with_another() {
    let mut scene = Scene::connected(&[]);
    scene.command("subscribe", "A");
    scene.answer(&json!({ "status": 1, "env": { "istate": { "k": "v" } } }));
    let call = scene.command("subscribe", "B");
    assert!(!call[0].contains("istate"), "{call:?}");
}

#[test]
fn connection_state_of_connect_is_sent_with_every_command() {
    let mut scene = Scene::new(WITH_RPC);
    scene.authenticate(&Credentials::default());
    scene.connect_answer(&json!({
        "status": 1,
        "env": { "cstate": { "c": "1" }, "istate": { "ignored": "1" } },
    }));
    let call = scene.command("subscribe", "A");
    assert!(call[0].ends_with(r#""cstate":{"c":"1"}}}"#), "{call:?}");
    assert!(
        !call[0].contains("connection_identifiers"),
        "an empty one is left out"
    );
}
