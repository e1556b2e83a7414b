//! Commands, and the conversation that was recorded from the reference.

use super::*;
use crate::session::step::SUBSCRIPTIONS_MAX;

// ---- the recorded conversation -------------------------------------------------------------------------------------

/// Source: contract/rpc.md §11, E1 to E9.
#[test]
fn the_recorded_conversation_comes_out_byte_for_byte() {
    let mut scene = Scene::new(WITH_RPC);
    scene.authenticate(&Credentials::default());
    scene.connect_answer(&json!({ "status": 1, "identifiers": USER, "env": {} }));

    let subscribe = scene.command("subscribe", ROOM);
    assert_eq!(
        subscribe,
        [format!(
            r#"call {{"command":"subscribe","identifier":"{{\"channel\":\"RoomChannel\",\"room_id\":1}}","connection_identifiers":"{{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}}","env":{{{ENV}}}}}"#
        )]
    );
    let confirmation = r#"{"identifier":"{\"channel\":\"RoomChannel\",\"room_id\":1}","type":"confirm_subscription"}"#;
    let answer = json!({ "status": 1, "streams": ["room:Z2lk:1"], "transmissions": [confirmation], "env": {} });
    assert_eq!(scene.answer(&answer), [format!("send {confirmation}")]);

    scene.command("subscribe", TYPING);
    scene.answer(&json!({
        "status": 1,
        "streams": ["typing:1"],
        "env": { "istate": { "user": "\"Ann\"", "$w": "typing:1" }, "cstate": { "__ltags__": "[\"x\"]" } },
    }));

    let gone = r#"{"channel":"RoomChannel","room_id":404}"#;
    assert_eq!(
        scene.command("subscribe", gone),
        [format!(
            r#"call {{"command":"subscribe","identifier":"{{\"channel\":\"RoomChannel\",\"room_id\":404}}","connection_identifiers":"{{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}}","env":{{{ENV},"cstate":{{"__ltags__":"[\"x\"]"}}}}}}"#
        )]
    );
    scene.answer(&json!({ "status": 2, "stop_streams": true, "env": {} }));

    assert_eq!(scene.command("subscribe", r#"{"channel":"Nope"}"#).len(), 1);
    let error = json!({ "error_msg": "Channel not found: Nope" });
    assert!(
        scene.answer(&error).is_empty(),
        "the client is told nothing"
    );

    assert_eq!(
        scene.message(TYPING, r#"{"action":"start","body":"<b>"}"#),
        [format!(
            r#"call {{"command":"message","identifier":"{{\"channel\":\"TypingChannel\",\"room_id\":1}}","connection_identifiers":"{{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}}","data":"{{\"action\":\"start\",\"body\":\"\u003cb\u003e\"}}","env":{{{ENV},"cstate":{{"__ltags__":"[\"x\"]"}},"istate":{{"$w":"typing:1","user":"\"Ann\""}}}}}}"#
        )]
    );
    scene.answer(&json!({
        "status": 1,
        "streams": ["typing:1:extra"],
        "stopped_streams": ["typing:1"],
        "env": { "istate": { "count": "2", "user": "" } },
    }));
    assert_eq!(scene.streams(TYPING), set(&["typing:1:extra"]));
    let next = scene.message(TYPING, r#"{"action":"boom"}"#);
    assert!(next[0].ends_with(r#""istate":{"$w":"typing:1","count":"2"}}}"#));
    scene.call = None;

    assert_eq!(
        scene.command("unsubscribe", ROOM),
        [format!(
            r#"call {{"command":"unsubscribe","identifier":"{{\"channel\":\"RoomChannel\",\"room_id\":1}}","connection_identifiers":"{{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}}","env":{{{ENV},"cstate":{{"__ltags__":"[\"x\"]"}}}}}}"#
        )]
    );
    assert!(
        scene
            .answer(&json!({ "status": 1, "stop_streams": true, "env": {} }))
            .is_empty()
    );

    assert_eq!(
        scene.disconnect_body().as_deref(),
        Some(&*format!(
            r#"{{"identifiers":"{{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}}","subscriptions":["{{\"channel\":\"TypingChannel\",\"room_id\":1}}"],"env":{{{ENV},"cstate":{{"__ltags__":"[\"x\"]"}},"istate":{{"{{\"channel\":\"TypingChannel\",\"room_id\":1}}":"{{\"$w\":\"typing:1\",\"count\":\"2\"}}"}}}}}}"#
        ))
    );
}

/// Source: contract/rpc.md §11, E13.
#[test]
fn an_answer_that_disconnects_closes_and_the_subscription_is_still_named() {
    let mut scene = Scene::subscribed(&[], ROOM, &["room:1"]);
    scene.message(ROOM, r#"{"action":"kick"}"#);
    let answer = json!({ "status": 1, "disconnect": true, "stop_streams": true, "transmissions": ["bye"], "env": {} });
    assert_eq!(
        scene.answer(&answer),
        ["send bye", "close 1006 Command Failed"]
    );
    assert_eq!(scene.streams(ROOM), set(&[]));
    assert_eq!(
        scene.disconnect_body().as_deref(),
        Some(&*format!(
            r#"{{"identifiers":"{{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}}","subscriptions":["{{\"channel\":\"RoomChannel\",\"room_id\":1}}"],"env":{{{ENV}}}}}"#
        ))
    );
}

// ---- commands ------------------------------------------------------------------------------------------------------

/// Source: contract/websocket.md §6.
#[test]
fn commands_that_make_no_sense_are_refused_without_a_step() {
    fn check(scene: &mut Scene, command: Value, expected: CommandRefusal) {
        assert_eq!(scene.say(&command), Err(expected), "{command}");
        assert!(scene.call.is_none(), "{command}");
    }
    let mut scene = Scene::subscribed(&[], "A", &["x"]);
    check(
        &mut scene,
        json!({ "command": "subscribe", "identifier": "A" }),
        CommandRefusal::AlreadySubscribed("A".into()),
    );
    for command in [
        "unsubscribe",
        "message",
        "history",
        "presence",
        "join",
        "leave",
    ] {
        check(
            &mut scene,
            json!({ "command": command, "identifier": "B", "data": "x" }),
            CommandRefusal::UnknownSubscription("B".into()),
        );
    }
    for data in [json!({ "a": 1 }), json!(5), json!(null)] {
        check(
            &mut scene,
            json!({ "command": "message", "identifier": "A", "data": data }),
            CommandRefusal::DataNotText,
        );
    }
    for name in ["", "SUBSCRIBE", "dance"] {
        check(
            &mut scene,
            json!({ "command": name, "identifier": "A" }),
            CommandRefusal::UnknownCommand(name.into()),
        );
    }
    assert_eq!(scene.streams("A"), set(&["x"]));
}

#[test]
fn small_commands_are_answered_on_the_spot() {
    fn check(command: Value, expected: &[&str]) {
        let mut scene = Scene::subscribed(&[], "A", &["x"]);
        assert_eq!(
            scene.say(&command).expect("accepted"),
            expected,
            "{command}"
        );
    }
    check(json!({ "command": "ping" }), &[r#"send {"type":"pong"}"#]);
    check(json!({ "command": "pong" }), &[]);
    for command in ["presence", "join", "leave", "whisper"] {
        let command = json!({ "command": command, "identifier": "A", "data": "x" });
        check(command, &[]);
    }
    check(json!({ "command": "whisper", "identifier": "B" }), &[]);
}

#[test]
fn an_empty_text_is_data_and_is_left_out_of_the_call() {
    let mut scene = Scene::subscribed(&[], "A", &[]);
    let call = scene.message("A", "");
    assert!(call[0].starts_with(r#"call {"command":"message""#) && !call[0].contains("data"));
}

/// Source: contract/websocket.md §7.
#[test]
fn history_is_rejected_when_there_would_be_something_to_fetch() {
    const REJECT: &[&str] = &[r#"send {"type":"reject_history","identifier":"A"}"#];
    const CONFIRM: &[&str] = &[r#"send {"type":"confirm_history","identifier":"A"}"#];
    fn check(streams: &[&str], history: Value, expected: &[&str]) {
        let mut scene = Scene::subscribed(&[], "A", streams);
        let command = json!({ "command": "history", "identifier": "A", "history": history });
        assert_eq!(
            scene.say(&command).expect("accepted"),
            expected,
            "{command}"
        );
        let mut scene = Scene::connected(&[]);
        let command = json!({ "command": "subscribe", "identifier": "A", "history": history });
        scene.say(&command).expect("accepted");
        let answer = json!({ "status": 1, "streams": streams, "transmissions": ["confirm"] });
        let steps = scene.answer(&answer);
        assert_eq!(steps, [&["send confirm"], expected].concat(), "{command}");
    }
    let position = json!({ "epoch": "e", "offset": 1 });
    check(&["x"], json!({ "since": 5 }), REJECT);
    check(&["x"], json!({ "streams": { "x": position } }), REJECT);
    check(
        &["x"],
        json!({ "streams": { "y": position, "x": position } }),
        REJECT,
    );
    check(&["x"], json!({ "streams": { "y": position } }), CONFIRM);
    check(&["x"], json!({ "streams": {} }), CONFIRM);
    check(&[], json!({ "since": 5 }), CONFIRM);
    check(&[], json!({ "streams": { "x": position } }), CONFIRM);
    check(&["x"], json!({}), &[]);
    check(&["x"], json!(null), &[]);
}

#[test]
fn a_rejected_subscribe_answers_no_history() {
    let mut scene = Scene::connected(&[]);
    let command = json!({ "command": "subscribe", "identifier": "A", "history": { "since": 5 } });
    scene.say(&command).expect("accepted");
    let steps = scene.answer(&json!({ "status": 2, "transmissions": ["reject"] }));
    assert_eq!(steps, ["send reject"]);
}

#[test]
fn a_question_counts_all_that_it_holds() {
    let mut scene = Scene::connected(&[]);
    let mut held = |history: Value| {
        scene
            .say(&json!({ "command": "subscribe", "identifier": "A", "history": history }))
            .expect("accepted");
        let question = scene.call.take().expect("a call waits");
        question.held_bytes()
    };
    let name = "x".repeat(1000);
    let without = held(json!(null));
    let with_one = held(json!({ "streams": { name: { "epoch": "ABCDEFGH", "offset": 1 } } }));
    let with_many = held(
        json!({ "streams": (0..100).map(|at| (at.to_string(), json!({}))).collect::<serde_json::Map<_, _>>() }),
    );
    assert!(with_one > without + 1000 && with_one < without + 1200);
    assert!(with_many > without + 100 * 33 && with_many < without + 100 * 36);
}

/// Source: contract/websocket.md §6 (whisper), contract/auth_streams.md §6.
#[test]
fn whispers_go_to_the_stream_in_the_channel_state() {
    fn check(data: Value, message: &str) {
        let mut scene = Scene::connected(&[]);
        scene.command("subscribe", "A");
        scene.answer(&json!({ "status": 1, "env": { "istate": { "$w": "x" } } }));
        let command = json!({ "command": "whisper", "identifier": "A", "data": data });
        assert_eq!(
            scene.say(&command).expect("accepted"),
            [format!("publish {message} on x except req-1")]
        );
        scene.command("unsubscribe", "A");
        scene.answer(&json!({ "status": 1 }));
        assert!(scene.say(&command).expect("accepted").is_empty());
    }
    check(json!({ "b": 1 }), r#"{"b":1}"#);
    check(json!("text"), r#""text""#);
    check(json!(5), "5");
    check(json!(null), r#""null""#);
}

#[test]
fn presence_is_an_error_only_where_the_state_allows_it() {
    let mut scene = Scene::connected(&[]);
    scene.command("subscribe", "A");
    scene.answer(&json!({ "status": 1, "env": { "istate": { "$p": "x" } } }));
    assert_eq!(
        scene.command("presence", "A"),
        [r#"send {"type":"presence","identifier":"A","message":{"type":"error","total":0}}"#]
    );
    assert!(scene.command("join", "A").is_empty() && scene.command("leave", "A").is_empty());
}

#[test]
fn subscriptions_run_out_and_come_back() {
    let mut scene = Scene::connected(&[]);
    for number in 0..SUBSCRIPTIONS_MAX - 1 {
        scene.hub.subscribe(SLOT, &number.to_string());
    }
    assert_eq!(scene.command("subscribe", "last").len(), 1);
    scene.answer(&json!({ "status": 1 }));
    let more = json!({ "command": "subscribe", "identifier": "more" });
    assert_eq!(
        scene.refused_subscription("more"),
        CommandRefusal::TooManySubscriptions
    );
    let again = json!({ "command": "subscribe", "identifier": "last" });
    assert_eq!(
        scene.say(&again),
        Err(CommandRefusal::AlreadySubscribed("last".into()))
    );
    scene.command("unsubscribe", "last");
    scene.answer(&json!({ "status": 1 }));
    assert_eq!(scene.say(&more).expect("accepted").len(), 1);
}

#[test]
fn a_subscription_that_does_not_fit_is_rejected() {
    let mut scene = Scene::connected(&[]);
    scene.room_bytes = 1000;
    let large = "x".repeat(1000);
    assert_eq!(
        scene.refused_subscription(&large),
        CommandRefusal::NoRoomInSession
    );
    let quotes = "\"".repeat(500);
    assert_eq!(
        scene.refused_subscription(&quotes),
        CommandRefusal::NoRoomInSession,
        "an identifier is as long as it is in JSON"
    );
    assert_eq!(scene.command("subscribe", &"x".repeat(500)).len(), 1);
}

#[test]
fn without_memory_nothing_large_is_begun_and_the_rest_goes_on() {
    let mut scene = Scene::subscribed(&[], "A", &["x"]);
    scene.memory_is_full = true;
    assert_eq!(scene.refused_subscription("B"), CommandRefusal::NoMemory);
    let message = |bytes: usize| json!({ "command": "message", "identifier": "A", "data": "x".repeat(bytes) });
    assert_eq!(scene.say(&message(5000)), Err(CommandRefusal::NoMemory));
    assert_eq!(scene.say(&message(4000)).expect("performed").len(), 1);
    scene.answer(&json!({ "status": 1 }));
    scene.command("unsubscribe", "A");
    scene.answer(&json!({ "status": 1 }));
    assert_eq!(scene.session.subscribed_bytes(), 0);
}

/// What a session is charged for is what it holds, whatever the app does with it.
#[test]
fn the_bytes_of_a_session_go_up_and_down_with_what_it_holds() {
    let mut scene = Scene::connected(&[]);
    let at_first = scene.session.held_bytes();
    scene.command("subscribe", "A");
    scene.answer(
        &json!({ "status": 1, "streams": ["x", "y"], "env": { "istate": { "k": "v".repeat(1000) } } }),
    );
    let first = scene.session.subscribed_bytes();
    assert_eq!(first, scene.hub.subscription_bytes(SLOT, "A"));
    assert!(first > 2 * 160 && scene.session.held_bytes() > at_first + first + 1000);
    scene.command("subscribe", "B");
    scene.answer(
        &json!({ "status": 1, "streams": ["x"], "env": { "cstate": { "c": "v".repeat(500) } } }),
    );
    scene.message("A", "data");
    scene.answer(
        &json!({ "status": 1, "streams": ["z"], "stopped_streams": ["x"], "env": { "istate": { "k": "" } } }),
    );
    let both = scene.hub.subscription_bytes(SLOT, "A") + scene.hub.subscription_bytes(SLOT, "B");
    assert_eq!(scene.session.subscribed_bytes(), both);
    scene.command("unsubscribe", "A");
    scene.answer(&json!({ "status": 1, "env": { "cstate": { "c": "" } } }));
    scene.command("unsubscribe", "B");
    scene.answer(&json!({ "status": 1 }));
    assert_eq!(scene.session.held_bytes(), at_first);
    assert_eq!(scene.hub.held_bytes(), 0);
}
