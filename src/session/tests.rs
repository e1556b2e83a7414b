//! A session and its hub without any I/O: what comes in, which steps come out, what the table holds afterwards.
//!
//! Expected bytes come from contract/rpc.md §11, contract/websocket.md §5 to §7 and contract/auth_streams.md §9.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::config::{Config, Startup, load};
use crate::hub::Hub;
use crate::protocol::command::decode_command;
use crate::protocol::rpc::{decode_command_response, decode_connect_response};

const SLOT: u32 = 3;
const SID: &str = "req-1";
const NOW_UNIX_SECS: f64 = 1_700_000_000.0;

/// Env, connection identifiers and identifiers of the recorded conversation.
const ENV: &str = r#""url":"http://localhost:18080/cable","headers":{"REMOTE_ADDR":"127.0.0.1","cookie":"session_token=abc","origin":"http://localhost:3000"}"#;
const USER: &str = r#"{"current_user":"Z2lkOi8vY2FtcGZpcmUvVXNlci8x"}"#;
const ROOM: &str = r#"{"channel":"RoomChannel","room_id":1}"#;
const TYPING: &str = r#"{"channel":"TypingChannel","room_id":1}"#;

const WITH_RPC: &[&str] = &["--rpc_host=http://localhost:13000/_anycable"];
const WELCOME: &str = r#"send {"type":"welcome","sid":"req-1"}"#;
const UNAUTHORIZED: &[&str] = &[
    r#"send {"type":"disconnect","reason":"unauthorized","reconnect":false}"#,
    "close 1000 Auth Failed",
];

/// Secret `s3Krit`: J2, J5, J7, J17 and the signed name S1 of the contract.
const GOOD_TOKEN: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ.-TcgDHbNTFGwcSMcFEHvmNtgJjatYZ6iGw-QYUaIJrg";
const EXPIRED_TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjoxMDAwMDAwMDAwfQ.RK1sfmRVVWzNcucJpP3-xJlFOdUbT0sZ5A-8eIJU-7M";
const BAD_TOKEN: &str = "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ._s1k_CMdPZDzRlhZguoceOr6RLAbygvHp2tbz_CV5LQ";
const TOKEN_WITHOUT_EXT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxNSIsImV4cCI6NDEwMjQ0NDgwMH0.AfYrt7j54MoBPoaZm0sNV5ln7qiwSrmWOoGNV-mh7_g";
const SIGNED: &str = r#"{"channel":"$pubsub","signed_stream_name":"ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e8320c"}"#;
const BADLY_SIGNED: &str = r#"{"channel":"$pubsub","signed_stream_name":"ImNoYXQvMjAyMyI=--2b2e"}"#;
const PUBLIC: &str = r#"{"channel":"$pubsub","stream_name":"lobby"}"#;

fn rejection_text(identifier: &str) -> String {
    let text = crate::protocol::reply::reject_subscription(identifier);
    String::from_utf8(text).expect("UTF-8")
}

fn config(args: &[&str]) -> Config {
    let args: Vec<String> = args.iter().map(|arg| arg.to_string()).collect();
    match load(&args, &[]) {
        Ok(Startup::Run(config)) => *config,
        other => panic!("{args:?} should start the server: {other:?}"),
    }
}

/// A session, its hub, and the call that waits for an answer.
struct Scene {
    config: Config,
    hub: Hub,
    session: Session,
    call: Option<CallPurpose>,
    room_bytes: usize,
    memory_is_full: bool,
}

impl Scene {
    fn new(args: &[&str]) -> Self {
        let settings = SessionSettings {
            sid: SID,
            env: ENV,
            deadlines: Deadlines::new(1, 0, 0, 0),
        };
        Self {
            config: config(args),
            hub: Hub::default(),
            session: Session::new(&settings),
            call: None,
            room_bytes: usize::MAX,
            memory_is_full: false,
        }
    }

    /// A session that the app has welcomed.
    fn connected(args: &[&str]) -> Self {
        let mut scene = Self::new(&[WITH_RPC, args].concat());
        scene.authenticate(&Credentials::default());
        scene.connect_answer(&json!({ "status": 1, "identifiers": USER }));
        scene
    }

    fn subscribed(args: &[&str], identifier: &str, streams: &[&str]) -> Self {
        let mut scene = Self::connected(args);
        scene.command("subscribe", identifier);
        scene.answer(&json!({ "status": 1, "streams": streams }));
        scene
    }

    /// Lets the session decide; returns its steps as text. An app call is remembered until it is answered.
    fn step<R>(
        &mut self,
        decide: impl FnOnce(&mut Session, &mut Context<'_>, &mut Vec<Step>) -> R,
    ) -> (R, Vec<String>) {
        let mut context = Context {
            auth: &self.config.auth,
            hub: &mut self.hub,
            slot: SLOT,
            disconnect_mode: self.config.disconnect.mode,
            has_rpc: self.config.rpc.endpoint != crate::config::RpcEndpoint::None,
            room_bytes: self.room_bytes,
            memory_is_full: self.memory_is_full,
        };
        let mut steps = Vec::new();
        let result = decide(&mut self.session, &mut context, &mut steps);
        let shown = steps.into_iter().map(|step| self.shown(step)).collect();
        (result, shown)
    }

    fn shown(&mut self, step: Step) -> String {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        match step {
            Step::Send(bytes) => format!("send {}", text(&bytes)),
            Step::Register => "register".into(),
            Step::Close(close) => format!("close {} {}", close.code, close.reason),
            Step::Publish(whisper) => {
                let excluded = whisper.exclude_socket.as_deref().unwrap_or("nobody");
                let (stream, message) = (&whisper.stream, text(&whisper.message));
                format!("publish {message} on {stream} except {excluded}")
            }
            Step::Call(purpose) => {
                let body = self.session.call_body(&self.hub, SLOT, &purpose);
                assert!(self.call.replace(purpose).is_none(), "one call at a time");
                format!("call {}", text(&body))
            }
        }
    }

    fn authenticate(&mut self, credentials: &Credentials) -> Vec<String> {
        self.try_authenticate(credentials).1
    }

    fn try_authenticate(
        &mut self,
        credentials: &Credentials,
    ) -> (Result<(), AuthRefusal>, Vec<String>) {
        self.step(|session, context, steps| {
            session.authenticate(context, credentials, NOW_UNIX_SECS, steps)
        })
    }

    fn connect_answer(&mut self, answer: &Value) -> Vec<String> {
        assert!(matches!(self.call.take(), Some(CallPurpose::Connect)));
        let response = decode_connect_response(answer.to_string().as_bytes()).expect("an answer");
        self.step(|session, context, steps| session.on_connect_response(context, response, steps))
            .1
    }

    fn answer(&mut self, answer: &Value) -> Vec<String> {
        let purpose = self.call.take().expect("a call waits");
        let response = decode_command_response(answer.to_string().as_bytes()).expect("an answer");
        self.step(|session, context, steps| {
            session.on_command_response(context, purpose, response, steps);
        })
        .1
    }

    fn say(&mut self, command: &Value) -> Result<Vec<String>, CommandRefusal> {
        let text = command.to_string();
        let command = decode_command(text.as_bytes())
            .expect("decodable")
            .expect("not null");
        let (result, steps) =
            self.step(|session, context, steps| session.on_command(context, command, steps));
        assert!(result.is_ok() || steps.is_empty(), "a refusal has no steps");
        result.map(|()| steps)
    }

    /// A subscription for which there is no room: why, and that the client is told.
    fn refused_subscription(&mut self, identifier: &str) -> CommandRefusal {
        let text = json!({ "command": "subscribe", "identifier": identifier }).to_string();
        let command = decode_command(text.as_bytes())
            .expect("decodable")
            .expect("not null");
        let (result, steps) =
            self.step(|session, context, steps| session.on_command(context, command, steps));
        let [step] = steps.as_slice() else {
            panic!("{steps:?}")
        };
        assert!(step.ends_with(&rejection_text(identifier)), "{step}");
        assert!(self.call.is_none(), "the app is not asked");
        result.expect_err("a refusal")
    }

    fn command(&mut self, command: &str, identifier: &str) -> Vec<String> {
        self.say(&json!({ "command": command, "identifier": identifier }))
            .expect("accepted")
    }

    fn message(&mut self, identifier: &str, data: &str) -> Vec<String> {
        self.say(&json!({ "command": "message", "identifier": identifier, "data": data }))
            .expect("accepted")
    }

    fn streams(&self, identifier: &str) -> BTreeSet<String> {
        let streams = self.hub.streams_of(SLOT, identifier);
        streams.into_iter().map(str::to_string).collect()
    }

    fn disconnect_body(&self) -> Option<String> {
        let farewell = self.session.clone().take_farewell(&self.hub, SLOT)?;
        assert_eq!(farewell.sid(), SID);
        Some(String::from_utf8(farewell.body()).expect("UTF-8"))
    }

    fn disconnect_json(&self) -> Value {
        serde_json::from_str(&self.disconnect_body().expect("a call is owed")).expect("JSON")
    }
}

fn token(token: &str) -> Credentials {
    Credentials {
        token: Some(token.to_string()),
        bad_query: false,
    }
}

fn set(streams: &[&str]) -> BTreeSet<String> {
    streams.iter().map(|stream| stream.to_string()).collect()
}

// ---- who the client is ---------------------------------------------------------------------------------------------

/// Source: contract/auth_streams.md §4, row by row: no token, a valid one, a bad one.
#[test]
fn the_table_of_authentication_holds() {
    const SECRET: &str = "--jwt_secret=s3Krit";
    const CALL: &[&str] = &["call"];
    const PUBLIC: &[&str] = &["register {\"sid\":\"req-1\"}", WELCOME];
    const JWT: &[&str] = &["register {\"user_id\":15}", WELCOME];
    fn check(args: &[&str], credentials: &Credentials, expected: &[&str]) {
        let mut scene = Scene::new(args);
        let mut steps = scene.authenticate(credentials);
        for step in &mut steps {
            if step.starts_with("call") {
                assert_eq!(*step, format!("call {{\"env\":{{{ENV}}}}}"));
                *step = "call".into();
            } else if step == "register" {
                *step = format!("register {}", scene.session.identifiers());
            }
        }
        assert_eq!(steps, expected, "{args:?} {credentials:?}");
        let welcomed = expected.contains(&WELCOME);
        assert_eq!(scene.session.is_authenticated(), welcomed, "{args:?}");
    }
    fn row(args: &[&str], none: &[&str], valid: &[&str], bad: &[&str]) {
        check(args, &Credentials::default(), none);
        check(args, &token(GOOD_TOKEN), valid);
        check(args, &token(BAD_TOKEN), bad);
    }
    let rpc = WITH_RPC[0];
    row(&[rpc], CALL, CALL, CALL);
    row(&["--norpc"], UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED);
    row(&["--noauth", rpc], PUBLIC, PUBLIC, PUBLIC);
    row(&["--noauth", "--norpc"], PUBLIC, PUBLIC, PUBLIC);
    row(&[SECRET, rpc], CALL, JWT, UNAUTHORIZED);
    for other in [rpc, "--norpc"] {
        let enforced = [SECRET, "--enforce_jwt", other];
        row(&enforced, UNAUTHORIZED, JWT, UNAUTHORIZED);
        let enforced = [SECRET, "--enforce_jwt", "--noauth", other];
        row(&enforced, UNAUTHORIZED, JWT, UNAUTHORIZED);
        row(&[SECRET, "--noauth", other], PUBLIC, JWT, UNAUTHORIZED);
    }
    row(&[SECRET, "--norpc"], UNAUTHORIZED, JWT, UNAUTHORIZED);
}

#[test]
fn an_expired_token_says_so_and_one_without_identity_is_an_error() {
    fn check(credentials: &Credentials, expected: &[&str]) {
        let mut scene = Scene::new(&["--jwt_secret=s3Krit", "--noauth", "--norpc"]);
        assert_eq!(scene.authenticate(credentials), expected);
        assert!(!scene.session.is_authenticated());
    }
    let expired = r#"send {"type":"disconnect","reason":"token_expired","reconnect":false}"#;
    check(&token(EXPIRED_TOKEN), &[expired, "close 1000 Auth Failed"]);
    check(&token(TOKEN_WITHOUT_EXT), &["close 1011 Auth Error"]);
    let bad_query = Credentials {
        token: None,
        bad_query: true,
    };
    check(&bad_query, &["close 1011 Auth Error"]);
}

#[test]
fn whoever_is_refused_here_is_refused_for_a_reason_that_the_log_can_tell() {
    const SECRET: &str = "--jwt_secret=s3Krit";
    fn check(args: &[&str], credentials: &Credentials, expected: Result<(), AuthRefusal>) {
        let (result, _) = Scene::new(args).try_authenticate(credentials);
        assert_eq!(result, expected, "{args:?} {credentials:?}");
    }
    let jwt = &[SECRET, "--norpc"];
    check(jwt, &token(GOOD_TOKEN), Ok(()));
    check(jwt, &token(BAD_TOKEN), Err(AuthRefusal::TokenInvalid));
    check(jwt, &token("no token"), Err(AuthRefusal::TokenInvalid));
    check(jwt, &token(EXPIRED_TOKEN), Err(AuthRefusal::TokenExpired));
    check(
        jwt,
        &token(TOKEN_WITHOUT_EXT),
        Err(AuthRefusal::TokenWithoutIdentifiers),
    );
    let nobody = Credentials::default();
    check(jwt, &nobody, Err(AuthRefusal::NobodyToAsk));
    check(
        &[SECRET, "--enforce_jwt", "--norpc"],
        &nobody,
        Err(AuthRefusal::TokenMissing),
    );
    check(&["--noauth", "--norpc"], &nobody, Ok(()));
    check(WITH_RPC, &nobody, Ok(()));
}

/// Source: contract/rpc.md §6.1, E1, E10 and E11.
#[test]
fn answers_to_connect_decide_what_the_client_sees() {
    fn check(answer: Value, expected: &[&str], identifiers: &str) {
        let mut scene = Scene::new(WITH_RPC);
        scene.authenticate(&Credentials::default());
        assert_eq!(scene.connect_answer(&answer), expected);
        assert_eq!(scene.session.identifiers(), identifiers);
        assert_eq!(
            scene.session.is_authenticated(),
            expected.contains(&"register")
        );
        assert_eq!((scene.session.sid(), scene.session.env()), (SID, ENV));
        assert_eq!(
            scene.disconnect_body().is_some(),
            scene.session.is_authenticated(),
            "a Disconnect call follows success only"
        );
    }
    let welcome = r#"{"type":"welcome"}"#;
    check(
        json!({ "status": 1, "identifiers": USER, "transmissions": [welcome], "env": {} }),
        &["register", r#"send {"type":"welcome"}"#],
        USER,
    );
    check(json!({ "status": 1, "identifiers": "" }), &["register"], "");
    let refusal = r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#;
    check(
        json!({ "status": 2, "identifiers": USER, "transmissions": [refusal] }),
        UNAUTHORIZED,
        "",
    );
    for status in [json!(0), json!(7), json!(null)] {
        check(
            json!({ "status": status, "identifiers": USER, "transmissions": [welcome] }),
            &["close 1011 Auth Error"],
            "",
        );
    }
}

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

// ---- channels that the server answers itself -----------------------------------------------------------------------

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

/// What a local subscription may do is kept as marks until the app speaks about it; then it is state like any other.
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

// ---- answers of the app --------------------------------------------------------------------------------------------

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

// ---- the Disconnect call -------------------------------------------------------------------------------------------

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

// ---- any order of anything -----------------------------------------------------------------------------------------

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
    // Subscriptions come and go in most steps, so that the other commands find some.
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

/// What the hub has to hold: the streams of each subscription.
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
                // The call has failed: the session is not asked.
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
