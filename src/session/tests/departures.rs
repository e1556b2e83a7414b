//! The Disconnect call.

use super::*;

/// Source: contract/rpc.md §8, contract/auth_streams.md §8.
#[test]
fn the_mode_decides_who_owes_a_disconnect_call() {
    fn check(what: &str, expected: [bool; 3], play: impl Fn(&mut Scene)) {
        for (mode, expected) in ["auto", "always", "never"].into_iter().zip(expected) {
            let mode = format!("--disconnect_mode={mode}");
            let args = ["--secret=s3Krit", "--public_streams", WITH_RPC[0], &mode];
            let mut scene = Scene::new(&args);
            play(&mut scene);
            assert_eq!(
                scene.disconnect_body().is_some(),
                expected,
                "{what}, {mode}"
            );
        }
    }
    fn with_token(scene: &mut Scene) {
        scene.authenticate(&token(GOOD_TOKEN));
    }
    fn subscribe(scene: &mut Scene, status: u64) {
        with_token(scene);
        scene.command("subscribe", "A");
        scene.answer(&json!({ "status": status }));
    }
    check("connect by RPC", [true, true, false], |scene| {
        scene.authenticate(&Credentials::default());
        scene.connect_answer(&json!({ "status": 1 }));
    });
    check("connect refused", [false; 3], |scene| {
        scene.authenticate(&Credentials::default());
        scene.connect_answer(&json!({ "status": 2 }));
    });
    check("connect failed", [false; 3], |scene| {
        scene.authenticate(&Credentials::default());
        scene.connect_answer(&json!({ "status": 0 }));
    });
    check("connect not answered", [false; 3], |scene| {
        scene.authenticate(&Credentials::default());
    });
    check("token refused", [false; 3], |scene| {
        scene.authenticate(&token(BAD_TOKEN));
    });
    check("token only", [false, true, false], with_token);
    check("token and signed streams", [false, true, false], |scene| {
        with_token(scene);
        scene.command("subscribe", SIGNED);
        scene.command("subscribe", BADLY_SIGNED);
        scene.command("unsubscribe", SIGNED);
    });
    let by_app = [true, true, false];
    check("token and a confirmed channel", by_app, |scene| {
        subscribe(scene, 1)
    });
    check("token and a rejected channel", by_app, |scene| {
        subscribe(scene, 2)
    });
    check(
        "token and a failed channel",
        [false, true, false],
        |scene| subscribe(scene, 0),
    );
    check("the mark is sticky", by_app, |scene| {
        subscribe(scene, 1);
        scene.command("unsubscribe", "A");
        scene.answer(&json!({ "status": 1 }));
    });
}

#[test]
fn a_disconnect_call_names_local_subscriptions_too() {
    let mut scene = Scene::connected(&["--public_streams"]);
    scene.command("subscribe", PUBLIC);
    scene.command("subscribe", "A");
    scene.answer(&json!({ "status": 1, "streams": ["x", "y"] }));
    assert_eq!(
        scene.disconnect_json()["subscriptions"],
        json!([PUBLIC, "A"])
    );
}

#[test]
fn a_session_with_a_token_calls_with_its_identity_and_without_state() {
    let mut scene = Scene::new(&["--jwt_secret=s3Krit", WITH_RPC[0]]);
    scene.authenticate(&token(GOOD_TOKEN));
    assert_eq!(
        scene.command("subscribe", "A"),
        [format!(
            r#"call {{"command":"subscribe","identifier":"A","connection_identifiers":"{{\"user_id\":15}}","env":{{{ENV}}}}}"#
        )]
    );
}
