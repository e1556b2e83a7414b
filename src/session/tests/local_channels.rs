//! Channels that the server itself answers.

use super::*;

/// Source: contract/auth_streams.md §5 and §6.
#[test]
fn local_channels_are_answered_without_the_app() {
    fn check(args: &[&str], identifier: &str, stream: Option<&str>, whisper: bool, presence: bool) {
        let mut scene = Scene::connected(&[args, &["--streams_secret=s3Krit"]].concat());
        let kind = if stream.is_some() {
            "confirm"
        } else {
            "reject"
        };
        let quoted = json!(identifier);
        let expected = format!(r#"send {{"type":"{kind}_subscription","identifier":{quoted}}}"#);
        assert_eq!(
            scene.command("subscribe", identifier),
            [expected],
            "{args:?}"
        );
        assert_eq!(
            scene.streams(identifier),
            stream.iter().map(|name| name.to_string()).collect()
        );
        let command = json!({ "command": "whisper", "identifier": identifier, "data": 1 });
        let whispered = scene.say(&command).expect("accepted");
        assert_eq!(
            whispered.len(),
            usize::from(whisper),
            "{args:?} {identifier}"
        );
        if stream.is_some() {
            let presence_steps = scene.command("presence", identifier);
            assert_eq!(
                presence_steps.len(),
                usize::from(presence),
                "{args:?} {identifier}"
            );
            assert!(scene.command("unsubscribe", identifier).is_empty());
        }
        assert!(scene.hub.identifiers(SLOT).is_empty() && scene.hub.streams_len() == 0);
        assert!(scene.session.app_state.is_none(), "no state stays behind");
    }
    let chat = Some("chat/2023");
    check(&[], SIGNED, chat, false, true);
    check(&["--streams_whisper"], SIGNED, chat, true, true);
    check(&["--streams_presence=false"], SIGNED, chat, false, false);
    check(&["--public_streams"], PUBLIC, Some("lobby"), true, true);
    check(&["--public_streams"], BADLY_SIGNED, None, false, false);
    check(&[], PUBLIC, None, false, false);
    check(&[], BADLY_SIGNED, None, false, false);
}

#[test]
fn a_message_to_a_local_channel_goes_to_the_app() {
    let mut scene = Scene::connected(&["--streams_secret=s3Krit", "--streams_whisper"]);
    scene.command("subscribe", SIGNED);
    let call = scene.message(SIGNED, "x");
    assert!(
        call[0].ends_with(r#""istate":{"$p":"chat/2023","$w":"chat/2023"}}}"#),
        "{call:?}"
    );
}

/// What a local subscription may do is stored as marks until the app sets its state. After that it is ordinary state.
#[test]
fn the_app_can_change_the_state_of_a_local_channel() {
    let mut scene = Scene::connected(&["--streams_secret=s3Krit", "--streams_whisper"]);
    scene.command("subscribe", SIGNED);
    assert!(scene.session.app_state.is_none(), "marks take no memory");
    let body = scene.disconnect_json();
    assert_eq!(
        body["env"]["istate"][SIGNED],
        r#"{"$p":"chat/2023","$w":"chat/2023"}"#
    );
    scene.message(SIGNED, "x");
    scene.answer(&json!({ "status": 1, "stop_streams": true, "env": { "istate": { "$w": "" } } }));
    let whisper = json!({ "command": "whisper", "identifier": SIGNED, "data": 1 });
    assert!(scene.say(&whisper).expect("accepted").is_empty());
    assert_eq!(scene.command("presence", SIGNED).len(), 1);
    let call = scene.message(SIGNED, "x");
    assert!(
        call[0].ends_with(r#""istate":{"$p":"chat/2023"}}}"#),
        "{call:?}"
    );
}

#[test]
fn without_rpc_the_env_is_not_kept() {
    let mut scene = Scene::new(&["--norpc", "--noauth", "--public_streams"]);
    scene.authenticate(&Credentials::default());
    assert_eq!(scene.session.env(), "");
    assert_eq!(scene.session.sid(), SID);
    let scene = Scene::connected(&[]);
    assert_eq!(scene.session.env(), ENV);
}

#[test]
fn a_local_confirmation_comes_before_its_history() {
    let mut scene = Scene::connected(&["--public_streams"]);
    let command =
        json!({ "command": "subscribe", "identifier": PUBLIC, "history": { "since": 5 } });
    let steps = scene.say(&command).expect("accepted");
    assert!(steps[0].contains("confirm_subscription") && steps[1].contains("reject_history"));
    assert_eq!(steps.len(), 2);
}

/// Source: contract/auth_streams.md §1, the null controller.
#[test]
fn without_rpc_channels_of_the_app_are_rejected_and_performs_refused() {
    let mut scene = Scene::new(&["--norpc", "--noauth", "--public_streams"]);
    scene.authenticate(&Credentials::default());
    let rejected = r#"send {"type":"reject_subscription","identifier":"A"}"#;
    assert_eq!(scene.command("subscribe", "A"), [rejected]);
    scene.command("subscribe", PUBLIC);
    let message = json!({ "command": "message", "identifier": PUBLIC, "data": "x" });
    assert_eq!(scene.say(&message), Err(CommandRefusal::NoRpc));
    assert_eq!(scene.disconnect_body(), None);
}
