//! What is kept of a session, and a session that continues it. Source: contract/extended.md §5.

use super::*;
use crate::broker::sessions::SessionSnapshot;

/// A session with all that a restore gives back.
fn earlier() -> Scene {
    let mut scene = Scene::connected(&["--public_streams", "--broker=memory"]);
    scene.command("subscribe", "A");
    scene.answer(&json!({
        "status": 1,
        "streams": ["x", "y"],
        "env": { "istate": { "$w": "w", "$p": "p", "k": "v" }, "cstate": { "c": "1" } },
    }));
    scene.command("subscribe", PUBLIC);
    scene.command("subscribe", "ended");
    scene.answer(&json!({ "status": 1, "streams": ["x"] }));
    scene.command("unsubscribe", "ended");
    scene.answer(&json!({ "status": 1 }));
    scene
}

fn snapshot(scene: &Scene) -> SessionSnapshot {
    scene.session.snapshot(&scene.hub, SLOT)
}

/// A new session that continues an earlier one, and its steps.
fn restored(args: &[&str], snapshot: SessionSnapshot) -> (Scene, Vec<String>) {
    let mut scene = Scene::new(args);
    let (_, steps) =
        scene.step(|session, context, steps| session.restore(context, snapshot, steps));
    (scene, steps)
}

const WITH_BROKER: &[&str] = &[
    "--rpc_host=http://localhost:13000/_anycable",
    "--public_streams",
    "--broker=memory",
];

#[test]
fn a_restored_session_is_what_the_earlier_one_was() {
    let earlier = earlier();
    let (mut scene, steps) = restored(WITH_BROKER, snapshot(&earlier));
    let welcome: Value =
        serde_json::from_str(steps[1].strip_prefix("send ").expect("a reply")).expect("JSON");
    assert_eq!((&*steps[0], steps.len()), ("register", 2));
    assert_eq!(
        (&welcome["type"], &welcome["sid"], &welcome["restored"]),
        (&json!("welcome"), &json!(SID), &json!(true))
    );
    let mut identifiers: Vec<&Value> = welcome["restored_ids"]
        .as_array()
        .expect("a list")
        .iter()
        .collect();
    identifiers.sort_by_key(|it| it.to_string());
    assert_eq!(identifiers, [&json!("A"), &json!(PUBLIC)]);

    assert_eq!(snapshot(&scene), snapshot(&earlier));
    assert_eq!(
        scene.session.subscribed_bytes(),
        earlier.session.subscribed_bytes()
    );
    assert!(scene.session.is_authenticated());
    assert_eq!(scene.session.env(), ENV, "calls to the app need it");
    assert_eq!(scene.disconnect_json(), earlier.disconnect_json());
    for identifier in ["A", PUBLIC] {
        assert_eq!(scene.streams(identifier), earlier.streams(identifier));
        let whisper = json!({ "command": "whisper", "identifier": identifier, "data": 1 });
        let join = json!({ "command": "join", "identifier": identifier, "presence": {} });
        let stream = if identifier == "A" {
            ["w", "p"]
        } else {
            ["lobby"; 2]
        };
        let published = format!("publish 1 on {} except {SID}", stream[0]);
        assert_eq!(scene.say(&whisper).expect("accepted"), [published]);
        let asked = scene.say(&join).expect("accepted");
        assert!(
            asked[0].contains(&format!("stream: {:?}", stream[1])),
            "{asked:?}"
        );
    }
    let call = scene.message("A", "d");
    assert!(
        call[0].contains(r#""k\":\"v"#) || call[0].contains(r#""k":"v""#),
        "{call:?}"
    );
}

#[test]
fn without_rpc_a_restored_session_keeps_no_env() {
    let args = ["--norpc", "--noauth", "--public_streams", "--broker=memory"];
    let (scene, _) = restored(&args, snapshot(&earlier()));
    assert_eq!(scene.session.env(), "");
}

#[test]
fn a_session_without_subscriptions_is_restored_to_one_without() {
    let scene = Scene::connected(&["--broker=memory"]);
    let (again, steps) = restored(WITH_BROKER, snapshot(&scene));
    let welcome = format!(r#"send {{"type":"welcome","sid":"{SID}","restored":true}}"#);
    assert_eq!(steps, ["register".to_owned(), welcome]);
    assert_eq!(snapshot(&again), snapshot(&scene));
}

#[test]
fn a_snapshot_counts_its_texts() {
    let empty = SessionSnapshot::default().held_bytes();
    let mut snapshot = snapshot(&earlier());
    let before = snapshot.held_bytes();
    assert!(before > empty);
    let long: Box<str> = "x".repeat(1000).into();
    snapshot.identifiers = long.clone();
    snapshot.subscriptions[0].identifier = long.clone();
    snapshot.subscriptions[0].streams[0].0 = long.clone();
    snapshot.istates[0].0 = long.clone();
    snapshot.cstate = [("c", &*long)].into_iter().collect();
    let bytes = snapshot.held_bytes() - before;
    assert!(
        (4_500..5_000).contains(&bytes),
        "{bytes} for five texts of 1,000"
    );
}
