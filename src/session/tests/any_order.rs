//! Random events in random order.

use proptest::prelude::*;

use super::*;

const NAMES: [&str; 3] = ["x", "y", "z"];
const IDENTIFIERS: [&str; 5] = ["A", "B", PUBLIC, BADLY_SIGNED, ""];
const COMMANDS: [&str; 11] = [
    "subscribe",
    "unsubscribe",
    "message",
    "whisper",
    "ping",
    "pong",
    "history",
    "presence",
    "join",
    "leave",
    "other",
];

fn any_streams() -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(&NAMES[..]), 0..3)
}

fn any_state() -> impl Strategy<Value = BTreeMap<&'static str, &'static str>> {
    let keys = prop::sample::select(&["$w", "$p", "k"][..]);
    prop::collection::btree_map(keys, prop::sample::select(&["", "x", "y"][..]), 0..3)
}

fn any_answer() -> impl Strategy<Value = Value> {
    let streams = (any::<bool>(), any_streams(), any_streams());
    (0..3u8, streams, any_state(), any_state(), any::<bool>()).prop_map(
        |(status, (stop, streams, stopped), istate, cstate, disconnect)| {
            json!({
                "status": status,
                "stop_streams": stop,
                "streams": streams,
                "stopped_streams": stopped,
                "disconnect": disconnect,
                "transmissions": ["t"],
                "env": { "istate": istate, "cstate": cstate },
            })
        },
    )
}

fn any_command() -> impl Strategy<Value = Value> {
    let data = prop::sample::select(vec![json!("x"), json!({ "a": 1 }), json!(null)]);
    let history = prop::sample::select(vec![
        json!(null),
        json!({ "since": 1 }),
        json!({ "streams": { "x": {} } }),
    ]);
    let names = prop::sample::select(&COMMANDS[..]);
    // Most steps subscribe or unsubscribe, so that the other commands find subscriptions.
    let name = prop_oneof![
        Just("subscribe"),
        Just("unsubscribe"),
        Just("message"),
        names
    ];
    (name, prop::sample::select(&IDENTIFIERS[..]), data, history).prop_map(
        |(command, identifier, data, history)| {
            json!({ "command": command, "identifier": identifier, "data": data, "history": history })
        },
    )
}

/// What the hub must contain: the streams of each subscription.
#[derive(Default)]
struct Model(BTreeMap<String, BTreeSet<String>>);

impl Model {
    /// Applies an answer of the app as contract/rpc.md §6.2 words it.
    fn answered(&mut self, command: &Value, answer: &Value) {
        let identifier = command["identifier"].as_str().expect("text").to_string();
        let listed = |key: &str| -> BTreeSet<String> {
            let list = answer[key].as_array().expect("a list");
            list.iter()
                .map(|name| name.as_str().expect("text").to_string())
                .collect()
        };
        let kind = command["command"].as_str().expect("text");
        match (kind, answer["status"].as_u64()) {
            (_, Some(0)) | ("subscribe", Some(2)) => return,
            ("unsubscribe", _) => {
                self.0.remove(&identifier);
                return;
            }
            _ => {}
        }
        let streams = self.0.entry(identifier).or_default();
        if answer["stop_streams"] == json!(true) {
            streams.clear();
        } else {
            streams.retain(|name| !listed("stopped_streams").contains(name));
        }
        streams.extend(listed("streams"));
    }

    fn answered_locally(&mut self, command: &Value) {
        if command["identifier"] == json!(PUBLIC) {
            match command["command"].as_str() {
                Some("subscribe") => {
                    self.0
                        .entry(PUBLIC.into())
                        .or_insert_with(|| set(&["lobby"]));
                }
                Some("unsubscribe") => {
                    self.0.remove(PUBLIC);
                }
                _ => {}
            }
        }
    }

    fn compare(&self, scene: &Scene) {
        let held: BTreeMap<String, BTreeSet<String>> = scene
            .hub
            .identifiers(SLOT)
            .into_iter()
            .map(|identifier| (identifier.to_string(), scene.streams(identifier)))
            .collect();
        assert_eq!(held, self.0);
        let expected: BTreeSet<&str> = self.0.values().flatten().map(String::as_str).collect();
        assert_eq!(scene.hub.streams().collect::<BTreeSet<_>>(), expected);
        for stream in expected {
            for (identifier, members) in scene.hub.receivers(stream) {
                assert!(
                    self.0[identifier].contains(stream),
                    "{identifier} left {stream}"
                );
                assert_eq!(members, [SLOT]);
            }
        }
        let body = scene.disconnect_json();
        for identifier in body["env"]["istate"]
            .as_object()
            .into_iter()
            .flat_map(|map| map.keys())
        {
            assert!(
                self.0.contains_key(identifier),
                "state of {identifier} stays behind"
            );
        }
    }
}

proptest! {
    #[test]
    fn no_order_of_commands_and_answers_leaves_anything_behind(
        conversation in prop::collection::vec((any_command(), prop::option::of(any_answer())), 0..40)
    ) {
        let mut scene = Scene::connected(&["--public_streams"]);
        let mut model = Model::default();
        for (command, answer) in conversation {
            if scene.say(&command).is_err() {
                model.compare(&scene);
                continue;
            }
            match (scene.call.is_some(), answer) {
                (true, Some(answer)) => {
                    let steps = scene.answer(&answer);
                    let closes = steps.iter().filter(|step| step.starts_with("close")).count();
                    prop_assert!(closes <= 1 && (closes == 0 || steps.last().is_some_and(|step| step.starts_with("close"))));
                    model.answered(&command, &answer);
                }
                // The call has failed, so the session is not asked.
                (true, None) => scene.call = None,
                (false, _) => model.answered_locally(&command),
            }
            model.compare(&scene);
        }
        scene.hub.remove_session(SLOT);
        prop_assert_eq!(scene.hub.streams_len(), 0);
        prop_assert!(scene.hub.identifiers(SLOT).is_empty());
    }
}
