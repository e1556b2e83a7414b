use proptest::prelude::*;

use super::*;

const USER: &str = r#"{"current_user":"Z2lkOi8vY2FtcGZpcmUvVXNlci8x"}"#;
const ROOM: &str = r#"{"channel":"RoomChannel","room_id":1}"#;
const TYPING: &str = r#"{"channel":"TypingChannel","room_id":1}"#;

/// The recorded session: `Cookie: session_token=abc`, `Origin: http://localhost:3000`.
fn recorded_env() -> Box<str> {
    let mut headers = [
        ("origin", "http://localhost:3000".into()),
        ("cookie", "session_token=abc".into()),
        ("REMOTE_ADDR", "127.0.0.1".into()),
    ];
    encode_env_prefix("http://localhost:18080/cable", &mut headers)
}

fn connect_body(env: &str) -> Vec<u8> {
    RpcRequest::Connect { env }.json()
}

fn command_body(
    command: &str,
    identifier: &str,
    connection_identifiers: &str,
    data: Option<&str>,
    env: &str,
    cstate: &State,
    istate: Option<&State>,
) -> Vec<u8> {
    RpcRequest::Command {
        command,
        identifier,
        connection_identifiers,
        data,
        env,
        cstate,
        istate: istate.map(Cow::Borrowed),
    }
    .json()
}

fn disconnect_body(
    identifiers: &str,
    subscriptions: &[u8],
    env: &str,
    cstate: &State,
    istates: &[(&str, &State)],
) -> Vec<u8> {
    RpcRequest::Disconnect {
        identifiers,
        subscriptions,
        env,
        cstate,
        istates: istates.to_vec(),
    }
    .json()
}

fn state(entries: &[(&str, &str)]) -> State {
    entries.iter().copied().collect()
}

/// The recorded connection state from E4 on.
fn recorded_cstate() -> State {
    state(&[("__ltags__", r#"["x"]"#)])
}

/// Compares with a recorded body; `bytes` is the recorded Content-Length.
fn check_body(body: Vec<u8>, bytes: usize, expected: &str) {
    assert_eq!(str::from_utf8(&body).unwrap(), expected);
    assert_eq!(body.len(), bytes);
}

#[test]
fn connect_is_encoded_as_recorded() {
    // E1, also E10 to E12, E14 and E15.
    check_body(
        connect_body(&recorded_env()),
        146,
        r#"{"env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"}}}"#,
    );
}

#[test]
fn subscribe_is_encoded_as_recorded() {
    fn check(identifier: &str, cstate: State, bytes: usize, expected: &str) {
        for istate in [None, Some(&State::default())] {
            let body = command_body(
                "subscribe",
                identifier,
                USER,
                None,
                &recorded_env(),
                &cstate,
                istate,
            );
            check_body(body, bytes, expected);
        }
    }
    // E2 to E5.
    check(
        ROOM,
        State::default(),
        306,
        r#"{"command":"subscribe","identifier":"{\"channel\":\"RoomChannel\",\"room_id\":1}","connection_identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"}}}"#,
    );
    check(
        TYPING,
        State::default(),
        308,
        r#"{"command":"subscribe","identifier":"{\"channel\":\"TypingChannel\",\"room_id\":1}","connection_identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"}}}"#,
    );
    check(
        r#"{"channel":"RoomChannel","room_id":404}"#,
        recorded_cstate(),
        341,
        r#"{"command":"subscribe","identifier":"{\"channel\":\"RoomChannel\",\"room_id\":404}","connection_identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"},"cstate":{"__ltags__":"[\"x\"]"}}}"#,
    );
    check(
        r#"{"channel":"Nope"}"#,
        recorded_cstate(),
        318,
        r#"{"command":"subscribe","identifier":"{\"channel\":\"Nope\"}","connection_identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"},"cstate":{"__ltags__":"[\"x\"]"}}}"#,
    );
}

#[test]
fn message_is_encoded_as_recorded() {
    fn check(
        identifier: &str,
        data: &str,
        cstate: State,
        istate: State,
        bytes: usize,
        expected: &str,
    ) {
        let env = recorded_env();
        let body = command_body(
            "message",
            identifier,
            USER,
            Some(data),
            &env,
            &cstate,
            Some(&istate),
        );
        check_body(body, bytes, expected);
    }
    // E6, E7 (the state of E6's answer is merged) and E13.
    let mut istate = state(&[("user", "\"Ann\""), ("$w", "typing:1")]);
    check(
        TYPING,
        r#"{"action":"start","body":"<b>"}"#,
        recorded_cstate(),
        istate.clone(),
        442,
        r#"{"command":"message","identifier":"{\"channel\":\"TypingChannel\",\"room_id\":1}","connection_identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","data":"{\"action\":\"start\",\"body\":\"\u003cb\u003e\"}","env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"},"cstate":{"__ltags__":"[\"x\"]"},"istate":{"$w":"typing:1","user":"\"Ann\""}}}"#,
    );
    let answer =
        br#"{"status":1,"streams":["typing:1:extra"],"env":{"istate":{"count":"2","user":""}}}"#;
    istate.merge(&decode_answer(answer).unwrap().istate);
    check(
        TYPING,
        r#"{"action":"boom"}"#,
        recorded_cstate(),
        istate,
        409,
        r#"{"command":"message","identifier":"{\"channel\":\"TypingChannel\",\"room_id\":1}","connection_identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","data":"{\"action\":\"boom\"}","env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"},"cstate":{"__ltags__":"[\"x\"]"},"istate":{"$w":"typing:1","count":"2"}}}"#,
    );
    check(
        ROOM,
        r#"{"action":"kick"}"#,
        State::default(),
        State::default(),
        335,
        r#"{"command":"message","identifier":"{\"channel\":\"RoomChannel\",\"room_id\":1}","connection_identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","data":"{\"action\":\"kick\"}","env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"}}}"#,
    );
}

#[test]
fn unsubscribe_is_encoded_as_recorded() {
    // E8.
    check_body(
        command_body(
            "unsubscribe",
            ROOM,
            USER,
            None,
            &recorded_env(),
            &recorded_cstate(),
            None,
        ),
        341,
        r#"{"command":"unsubscribe","identifier":"{\"channel\":\"RoomChannel\",\"room_id\":1}","connection_identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"},"cstate":{"__ltags__":"[\"x\"]"}}}"#,
    );
}

#[test]
fn disconnect_is_encoded_as_recorded() {
    // E9 and E13.
    let istate = state(&[("count", "2"), ("$w", "typing:1")]);
    check_body(
        disconnect_body(
            USER,
            &encode_subscriptions(&[TYPING]),
            &recorded_env(),
            &recorded_cstate(),
            &[(TYPING, &istate)],
        ),
        412,
        r#"{"identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","subscriptions":["{\"channel\":\"TypingChannel\",\"room_id\":1}"],"env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"},"cstate":{"__ltags__":"[\"x\"]"},"istate":{"{\"channel\":\"TypingChannel\",\"room_id\":1}":"{\"$w\":\"typing:1\",\"count\":\"2\"}"}}}"#,
    );
    check_body(
        disconnect_body(
            USER,
            &encode_subscriptions(&[ROOM]),
            &recorded_env(),
            &State::default(),
            &[],
        ),
        278,
        r#"{"identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","subscriptions":["{\"channel\":\"RoomChannel\",\"room_id\":1}"],"env":{"url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"}}}"#,
    );
}

#[test]
fn e16_the_url_is_escaped() {
    let env = encode_env_prefix(
        "http://h/cable?a=1&b=<x>",
        &mut [("REMOTE_ADDR", "::1".into())],
    );
    assert_eq!(
        &*env,
        r#""url":"http://h/cable?a=1\u0026b=\u003cx\u003e","headers":{"REMOTE_ADDR":"::1"}"#
    );
}

#[test]
fn empty_members_are_left_out_of_requests() {
    fn check(body: Vec<u8>, expected: &str) {
        check_body(body, expected.len(), expected);
    }
    let env = r#""url":"u""#;
    let none = State::default();
    let one = state(&[("k", "<")]);
    check(
        command_body("subscribe", "", "", Some(""), env, &none, Some(&none)),
        r#"{"command":"subscribe","env":{"url":"u"}}"#,
    );
    check(
        disconnect_body("", &encode_subscriptions(&[]), env, &none, &[]),
        r#"{"env":{"url":"u"}}"#,
    );
    check(
        disconnect_body(
            "u",
            &encode_subscriptions(&["B", "A"]),
            env,
            &none,
            &[("B", &none), ("A", &one)],
        ),
        r#"{"identifiers":"u","subscriptions":["B","A"],"env":{"url":"u","istate":{"A":"{\"k\":\"\\u003c\"}","B":"{}"}}}"#,
    );
}

#[test]
fn of_repeated_headers_the_last_counts() {
    let mut headers = [("b", "1".into()), ("a", "1".into()), ("b", "2".into())];
    assert_eq!(
        &*encode_env_prefix("u", &mut headers),
        r#""url":"u","headers":{"a":"1","b":"2"}"#
    );
}

#[test]
fn recorded_connect_answers_are_understood() {
    fn check(body: &str, expected: RpcAnswer) {
        assert_eq!(decode_answer(body.as_bytes()), Ok(expected), "{body}");
    }
    check(
        r#"{"status":1,"identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","transmissions":["{\"type\":\"welcome\"}"],"env":{}}"#,
        RpcAnswer {
            status: RpcStatus::Success,
            identifiers: USER.to_owned(),
            transmissions: vec![r#"{"type":"welcome"}"#.to_owned()],
            ..Default::default()
        },
    );
    let refusal = r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#.to_owned();
    check(
        r#"{"status":2,"transmissions":["{\"type\":\"disconnect\",\"reason\":\"unauthorized\",\"reconnect\":false}"]}"#,
        RpcAnswer {
            status: RpcStatus::Failure,
            transmissions: vec![refusal],
            ..Default::default()
        },
    );
    check(
        r#"{"error_msg":"undefined method `user' for nil"}"#,
        RpcAnswer {
            error_msg: "undefined method `user' for nil".to_owned(),
            ..Default::default()
        },
    );
    check(
        r#"{"status":1,"env":{"cstate":{"a":"1","b":null},"istate":{"c":"2"},"url":"x"}}"#,
        RpcAnswer {
            status: RpcStatus::Success,
            cstate: vec![
                ("a".to_owned(), "1".to_owned()),
                ("b".to_owned(), String::new()),
            ],
            // It has no meaning for a connect call, which ignores it.
            istate: vec![("c".to_owned(), "2".to_owned())],
            ..Default::default()
        },
    );
}

#[test]
fn recorded_command_answers_are_understood() {
    fn check(body: &str, expected: RpcAnswer) {
        assert_eq!(decode_answer(body.as_bytes()), Ok(expected), "{body}");
    }
    let success = || RpcAnswer {
        status: RpcStatus::Success,
        ..Default::default()
    };
    check(
        r#"{"status":1,"streams":["typing:1:extra"],"transmissions":["{\"ok\":true}"],"env":{"istate":{"count":"2","user":""},"cstate":{"k":"v"}},"stopped_streams":["typing:1"]}"#,
        RpcAnswer {
            streams: vec!["typing:1:extra".to_owned()],
            stopped_streams: vec!["typing:1".to_owned()],
            transmissions: vec![r#"{"ok":true}"#.to_owned()],
            istate: vec![
                ("count".to_owned(), "2".to_owned()),
                ("user".to_owned(), String::new()),
            ],
            cstate: vec![("k".to_owned(), "v".to_owned())],
            ..success()
        },
    );
    check(
        r#"{"status":1,"disconnect":true,"stop_streams":true,"env":{}}"#,
        RpcAnswer {
            disconnect: true,
            stop_streams: true,
            ..success()
        },
    );
    check(r#"{"status":1,"stopStreams":true}"#, success());
    check(
        r#"{"STATUS":1,"Streams":null,"new":{"deep":[[]]}}"#,
        success(),
    );
}

#[test]
fn a_status_is_a_number_or_a_name() {
    fn check(status: &str, expected: Option<RpcStatus>) {
        let body = format!(r#"{{"status":{status}}}"#);
        let decoded = decode_answer(body.as_bytes()).map(|answer| answer.status);
        assert_eq!(decoded.ok(), expected, "{status}");
    }
    check("1", Some(RpcStatus::Success));
    check("2", Some(RpcStatus::Failure));
    check("0", Some(RpcStatus::Error));
    check("3", Some(RpcStatus::Error));
    check("-1", Some(RpcStatus::Error));
    check("null", Some(RpcStatus::Error));
    check(r#""SUCCESS""#, Some(RpcStatus::Success));
    check(r#""FAILURE""#, Some(RpcStatus::Failure));
    check(r#""ERROR""#, Some(RpcStatus::Error));
    check(r#""success""#, None);
    check("1.5", None);
    check("true", None);
    assert_eq!(
        decode_answer(b"{}").map(|answer| answer.status),
        Ok(RpcStatus::Error)
    );
}

#[test]
fn bodies_that_are_no_answer_are_errors() {
    for body in [
        "",
        "x",
        "[]",
        "5",
        "{\"status\":1",
        "{\"status\":1} x",
        r#"{"transmissions":"x"}"#,
        r#"{"transmissions":[5]}"#,
        r#"{"streams":{}}"#,
        r#"{"disconnect":1}"#,
        r#"{"env":[]}"#,
        r#"{"env":{"cstate":{"a":1}}}"#,
        r#"{"identifiers":{}}"#,
        r#"{"presence":true}"#,
    ] {
        assert!(decode_answer(body.as_bytes()).is_err(), "{body}");
    }
}

#[test]
fn the_app_changes_the_presence_of_a_client() {
    #[track_caller]
    fn check(presence: &str, expected: Option<PresenceChange>) {
        let body = format!(r#"{{"status":1,"presence":{presence}}}"#);
        let answer = decode_answer(body.as_bytes()).expect("an answer");
        assert_eq!(answer.presence, expected, "{presence}");
    }
    let join = |id: &str, info: Option<&str>| {
        Some(PresenceChange::Join(PresencePayload {
            id: id.into(),
            info: info.map(Into::into),
        }))
    };
    check(r#"{"type":"join","id":"1"}"#, join("1", None));
    check(r#"{"TYPE":"join","Id":"1","info":null}"#, join("1", None));
    check(
        r#"{"type":"join","id":"1","info":"{\"name\":\"Ada\"}"}"#,
        join("1", Some(r#"{"name":"Ada"}"#)),
    );
    check(
        r#"{"type":"join","id":"1","info":"Ada"}"#,
        join("1", Some(r#""Ada""#)),
    );
    check(
        r#"{"type":"join","id":"1","info":{"a": [1]}}"#,
        join("1", Some(r#"{"a": [1]}"#)),
    );
    check(r#"{"type":"leave","id":"1"}"#, Some(PresenceChange::Leave));
    check(r#"{"type":"stay","id":"1"}"#, None);
    check("{}", None);
    check("null", None);
}

proptest! {
    #[test]
    fn garbage_and_cut_answers_never_panic(body in any::<Vec<u8>>(), cut in 0usize..120) {
        let _ = decode_answer(&body);
        let answer = br#"{"status":1,"streams":["a"],"env":{"istate":{"k":"\u00e9"}},"transmissions":["{\"a\":1}"],"presence":{"id":"1"}}"#;
        let cut = cut.min(answer.len() - 1);
        prop_assert!(decode_answer(&answer[..cut]).is_err());
        let _ = decode_answer(&[&answer[..cut], &body].concat());
    }

    #[test]
    fn requests_parse_to_what_went_in(identifier in ".+", data in ".+", key in any::<String>(), value in ".+") {
        let env = encode_env_prefix("u", &mut [("REMOTE_ADDR", value.as_str().into())]);
        let istate = state(&[(&key, &value)]);
        let body = command_body("message", &identifier, "me", Some(&data), &env, &istate, Some(&istate));
        let parsed: serde_json::Value = serde_json::from_slice(&body).unwrap();
        prop_assert_eq!(parsed, serde_json::json!({
            "command": "message", "identifier": identifier, "connection_identifiers": "me", "data": data,
            "env": { "url": "u", "headers": { "REMOTE_ADDR": value }, "cstate": { &key: value }, "istate": { &key: value } },
        }));
    }
}
