//! A session and its hub without any I/O: what comes in, which steps come out, what the table contains afterwards.
//!
//! Expected bytes come from contract/rpc.md §11, contract/websocket.md §5 to §7 and contract/auth_streams.md §9.

mod answers;
mod any_order;
mod authentication;
mod broker;
mod commands;
mod departures;
mod local_channels;
mod resume;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;
use crate::config::{Config, Startup, load};
use crate::hub::Hub;
use crate::protocol::command::decode_command;
use crate::protocol::reply::Reply;
use crate::protocol::rpc::decode_answer;

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
    let identifier = identifier.into();
    let reply = Reply::RejectSubscription { identifier };
    str::from_utf8(&reply.json()).expect("UTF-8").to_owned()
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
    call: Option<Question>,
    room_bytes: usize,
    memory_is_full: bool,
}

impl Scene {
    fn new(args: &[&str]) -> Self {
        let settings = SessionSettings {
            sid: SID,
            env: ENV,
            deadlines: Deadlines::new(1, 0, 0, 0),
            extended: false,
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

    /// Lets the session decide. Returns its steps as text. A call to the app is stored until it is answered.
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
            has_broker: self.config.broker.adapter != crate::config::BrokerAdapter::None,
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
            Step::Send(reply) => format!("send {}", text(&reply.json())),
            Step::Register => "register".into(),
            Step::AskBroker(question) => format!("ask {question:?}"),
            Step::Close(close) => format!("close {} {}", close.code, close.reason),
            Step::Publish(whisper) => {
                let excluded = whisper.exclude_socket.as_deref().unwrap_or("nobody");
                let (stream, message) = (&whisper.stream, text(&whisper.message));
                format!("publish {message} on {stream} except {excluded}")
            }
            Step::Ask(purpose) => {
                let body = self.session.request(&self.hub, SLOT, &purpose).json();
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
        assert!(matches!(self.call.take(), Some(Question::Connect)));
        let response = decode_answer(answer.to_string().as_bytes()).expect("an answer");
        self.step(|session, context, steps| session.on_connect_answer(context, response, steps))
            .1
    }

    fn answer(&mut self, answer: &Value) -> Vec<String> {
        let purpose = self.call.take().expect("a call waits");
        let response = decode_answer(answer.to_string().as_bytes()).expect("an answer");
        self.step(|session, context, steps| {
            session.on_command_answer(context, purpose, response, steps);
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

    /// Makes a subscribe for which there is no room. Returns why, and checks that the client is told.
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
        let disconnect_call = self.session.clone().take_disconnect_call(&self.hub, SLOT)?;
        assert_eq!(disconnect_call.sid(), SID);
        Some(String::from_utf8(disconnect_call.request().json()).expect("UTF-8"))
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
