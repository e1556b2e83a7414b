//! The RPC bodies: what the app is asked and what it answers.
//!
//! Owns their JSON only; URLs, headers, status codes, retries and time belong to `crate::rpc`, what an answer does to a
//! session belongs to `session`. The Ruby side rejects unknown keys, so nothing may be added to a request.
//!
//! Source: `contract/rpc.md` §4 and §6.

use std::borrow::Cow;

use thiserror::Error;

use super::json::{JsonError, Kind, Reader, escape_into};
use super::state::State;

/// Encodes the part of `env` that never changes during a session, `"url":…,"headers":{…}`, for the `*_body` functions.
///
/// `headers` are sorted bytewise in place; of equal names the last one given counts. Empty members are left out, which
/// `url` and headers with `REMOTE_ADDR` in them never are.
pub fn encode_env_prefix(url: &str, headers: &mut [(&str, Cow<'_, str>)]) -> Box<str> {
    headers.sort_by(|left, right| left.0.as_bytes().cmp(right.0.as_bytes()));
    let mut out = Vec::with_capacity(256);
    let mut env = Members::starting(&mut out);
    env.text("url", url);
    if !headers.is_empty() {
        env.object("headers", |map| {
            for (at, (name, value)) in headers.iter().enumerate() {
                if headers.get(at + 1).is_none_or(|next| next.0 != *name) {
                    map.entry(name, value);
                }
            }
        });
    }
    into_text(out).into_boxed_str()
}

/// The body of a connect call.
pub fn connect_body(env_prefix: &str) -> Vec<u8> {
    encode_body(|body| body.env(env_prefix, &State::default(), |_| ()))
}

/// The body of a command call. `command` is `subscribe`, `unsubscribe` or `message`; `data` goes with `message` only.
pub fn command_body(
    command: &str,
    identifier: &str,
    connection_identifiers: &str,
    data: Option<&str>,
    env_prefix: &str,
    cstate: &State,
    istate: Option<&State>,
) -> Vec<u8> {
    encode_body(|body| {
        body.text("command", command);
        body.text("identifier", identifier);
        body.text("connection_identifiers", connection_identifiers);
        body.text("data", data.unwrap_or_default());
        body.env(env_prefix, cstate, |env| {
            if let Some(istate) = istate {
                env.state("istate", istate);
            }
        });
    })
}

/// The identifiers of a session's subscriptions for [`disconnect_body`]; nothing when there are none.
pub fn encode_subscriptions(identifiers: &[&str]) -> Box<[u8]> {
    let mut out = Vec::new();
    for identifier in identifiers {
        out.push(if out.is_empty() { b'[' } else { b',' });
        escape_into(&mut out, identifier);
    }
    if !out.is_empty() {
        out.push(b']');
    }
    out.into()
}

/// The body of a disconnect call.
///
/// `istates` names every subscription that ever had state, also those whose state is empty now. Here, unlike in a
/// command, the value of each is JSON *text*.
///
/// `subscriptions` comes from [`encode_subscriptions`].
pub fn disconnect_body(
    identifiers: &str,
    subscriptions: &[u8],
    env_prefix: &str,
    cstate: &State,
    istates: &[(&str, &State)],
) -> Vec<u8> {
    let istates: State = istates
        .iter()
        .map(|(identifier, state)| (*identifier, state_text(state)))
        .collect();
    encode_body(|body| {
        body.text("identifiers", identifiers);
        body.encoded("subscriptions", subscriptions);
        body.env(env_prefix, cstate, |env| env.state("istate", &istates));
    })
}

/// The app's verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RpcStatus {
    Success,
    Failure,
    /// Said so, or said nothing: a missing status is an error too.
    #[default]
    Error,
}

/// The answer to a connect call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectResponse {
    pub status: RpcStatus,
    pub identifiers: String,
    pub transmissions: Vec<String>,
    pub error_msg: String,
    /// Changes for [`State::merge`].
    pub cstate: Vec<(String, String)>,
}

/// The answer to a command call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandResponse {
    pub status: RpcStatus,
    pub disconnect: bool,
    pub stop_streams: bool,
    pub streams: Vec<String>,
    pub stopped_streams: Vec<String>,
    pub transmissions: Vec<String>,
    pub error_msg: String,
    /// Changes for [`State::merge`].
    pub cstate: Vec<(String, String)>,
    /// Changes for [`State::merge`].
    pub istate: Vec<(String, String)>,
    /// Whether a `presence` object is there.
    pub presence: bool,
}

/// The answer to a disconnect call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DisconnectResponse {
    pub status: RpcStatus,
    pub error_msg: String,
}

/// Why the body of a 200 is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RpcDecodeError {
    #[error("unreadable RPC answer: {0}")]
    Body(#[from] JsonError),
    #[error("unreadable RPC answer: `{member}`: {cause}")]
    Member {
        member: &'static str,
        cause: JsonError,
    },
    #[error(
        "unreadable RPC answer: `status`: expected SUCCESS, FAILURE, ERROR or a number, found {found:?}"
    )]
    Status { found: String },
}

/// Decodes the answer to a connect call. `env.istate` is ignored.
///
/// Member names match in any ASCII case, unknown ones are skipped, `null` is as good as absent.
///
/// # Errors
/// [`RpcDecodeError`] when the body is not a JSON object or a known member has the wrong type.
pub fn decode_connect_response(body: &[u8]) -> Result<ConnectResponse, RpcDecodeError> {
    let answer = decode_answer(body)?;
    Ok(ConnectResponse {
        status: answer.status,
        identifiers: answer.identifiers,
        transmissions: answer.transmissions,
        error_msg: answer.error_msg,
        cstate: answer.cstate,
    })
}

/// Decodes the answer to a command call; as lenient as [`decode_connect_response`].
///
/// # Errors
/// As [`decode_connect_response`].
pub fn decode_command_response(body: &[u8]) -> Result<CommandResponse, RpcDecodeError> {
    let answer = decode_answer(body)?;
    Ok(CommandResponse {
        status: answer.status,
        disconnect: answer.disconnect,
        stop_streams: answer.stop_streams,
        streams: answer.streams,
        stopped_streams: answer.stopped_streams,
        transmissions: answer.transmissions,
        error_msg: answer.error_msg,
        cstate: answer.cstate,
        istate: answer.istate,
        presence: answer.presence,
    })
}

/// Decodes the answer to a disconnect call; as lenient as [`decode_connect_response`].
///
/// # Errors
/// As [`decode_connect_response`].
pub fn decode_disconnect_response(body: &[u8]) -> Result<DisconnectResponse, RpcDecodeError> {
    let answer = decode_answer(body)?;
    Ok(DisconnectResponse {
        status: answer.status,
        error_msg: answer.error_msg,
    })
}

/// The members of all three answers. A member that the call at hand does not know is checked all the same.
#[derive(Default)]
struct Answer {
    status: RpcStatus,
    identifiers: String,
    disconnect: bool,
    stop_streams: bool,
    streams: Vec<String>,
    stopped_streams: Vec<String>,
    transmissions: Vec<String>,
    error_msg: String,
    cstate: Vec<(String, String)>,
    istate: Vec<(String, String)>,
    presence: bool,
}

const MEMBERS: [&str; 10] = [
    "status",
    "identifiers",
    "disconnect",
    "stop_streams",
    "streams",
    "stopped_streams",
    "transmissions",
    "error_msg",
    "env",
    "presence",
];

fn decode_answer(body: &[u8]) -> Result<Answer, RpcDecodeError> {
    let mut reader = Reader::new(body);
    let mut answer = Answer::default();
    if !reader.take_null()? {
        reader.object(|reader, name| {
            let known = MEMBERS
                .into_iter()
                .find(|member| name.eq_ignore_ascii_case(member));
            match known {
                _ if reader.take_null()? => Ok(()),
                Some("status") => read_status(reader).map(|status| answer.status = status),
                Some(member) => read_member(reader, member, &mut answer)
                    .map_err(|cause| RpcDecodeError::Member { member, cause }),
                None => Ok(reader.skip_value()?),
            }
        })?;
    }
    reader.finish()?;
    Ok(answer)
}

fn read_member(
    reader: &mut Reader<'_>,
    member: &str,
    answer: &mut Answer,
) -> Result<(), JsonError> {
    match member {
        "identifiers" => answer.identifiers = reader.string()?.into_owned(),
        "disconnect" => answer.disconnect = reader.boolean()?,
        "stop_streams" => answer.stop_streams = reader.boolean()?,
        "streams" => answer.streams = read_texts(reader)?,
        "stopped_streams" => answer.stopped_streams = read_texts(reader)?,
        "transmissions" => answer.transmissions = read_texts(reader)?,
        "error_msg" => answer.error_msg = reader.string()?.into_owned(),
        "env" => read_env(reader, answer)?,
        _ => {
            reader.object(|reader, _| reader.skip_value())?;
            answer.presence = true;
        }
    }
    Ok(())
}

/// The number, or the name that older protobuf libraries print. Any unknown number is an error status, not a bad body.
fn read_status(reader: &mut Reader<'_>) -> Result<RpcStatus, RpcDecodeError> {
    let in_status = |cause| RpcDecodeError::Member {
        member: "status",
        cause,
    };
    if reader.kind()? != Kind::String {
        return Ok(match reader.signed().map_err(in_status)? {
            1 => RpcStatus::Success,
            2 => RpcStatus::Failure,
            _ => RpcStatus::Error,
        });
    }
    match &*reader.string()? {
        "SUCCESS" => Ok(RpcStatus::Success),
        "FAILURE" => Ok(RpcStatus::Failure),
        "ERROR" => Ok(RpcStatus::Error),
        found => Err(RpcDecodeError::Status {
            found: found.to_owned(),
        }),
    }
}

fn read_env(reader: &mut Reader<'_>, answer: &mut Answer) -> Result<(), JsonError> {
    reader.object(|reader, name| {
        if reader.take_null()? {
            return Ok(());
        }
        if name.eq_ignore_ascii_case("cstate") {
            answer.cstate = read_changes(reader)?;
        } else if name.eq_ignore_ascii_case("istate") {
            answer.istate = read_changes(reader)?;
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })
}

fn read_texts(reader: &mut Reader<'_>) -> Result<Vec<String>, JsonError> {
    let mut texts = Vec::new();
    reader.array(|reader| {
        if !reader.take_null()? {
            texts.push(reader.string()?.into_owned());
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(texts)
}

/// State changes in the order given. Here `null` is an empty value: it deletes.
fn read_changes(reader: &mut Reader<'_>) -> Result<Vec<(String, String)>, JsonError> {
    let mut changes = Vec::new();
    reader.object(|reader, key| {
        let value = if reader.take_null()? {
            Cow::Borrowed("")
        } else {
            reader.string()?
        };
        changes.push((key.to_owned(), value.into_owned()));
        Ok::<_, JsonError>(())
    })?;
    Ok(changes)
}

fn encode_body(members: impl FnOnce(&mut Members<'_>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    push_object(&mut out, members);
    out
}

fn push_object(out: &mut Vec<u8>, members: impl FnOnce(&mut Members<'_>)) {
    out.push(b'{');
    members(&mut Members::starting(out));
    out.push(b'}');
}

fn push_map(out: &mut Vec<u8>, map: &State) {
    push_object(out, |members| {
        map.iter()
            .for_each(|(key, value)| members.entry(key, value))
    });
}

fn state_text(state: &State) -> String {
    let mut out = Vec::new();
    push_map(&mut out, state);
    into_text(out)
}

/// Writes the members of one JSON object and the commas between them.
struct Members<'a> {
    out: &'a mut Vec<u8>,
    is_first: bool,
}

impl<'a> Members<'a> {
    fn starting(out: &'a mut Vec<u8>) -> Self {
        Self {
            out,
            is_first: true,
        }
    }

    /// A text member, even when it is empty.
    fn entry(&mut self, name: &str, value: &str) {
        self.name(name);
        escape_into(self.out, value);
    }

    /// A text member, left out when it is empty.
    fn text(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.entry(name, value);
        }
    }

    /// A member that is JSON already, left out when it is empty.
    fn encoded(&mut self, name: &str, json: &[u8]) {
        if !json.is_empty() {
            self.name(name);
            self.out.extend_from_slice(json);
        }
    }

    /// A map, left out when it is empty.
    fn state(&mut self, name: &str, state: &State) {
        if !state.is_empty() {
            self.name(name);
            push_map(self.out, state);
        }
    }

    fn object(&mut self, name: &str, members: impl FnOnce(&mut Members<'_>)) {
        self.name(name);
        push_object(self.out, members);
    }

    fn env(&mut self, prefix: &str, cstate: &State, istate: impl FnOnce(&mut Members<'_>)) {
        self.object("env", |env| {
            env.out.extend_from_slice(prefix.as_bytes());
            env.is_first = prefix.is_empty();
            env.state("cstate", cstate);
            istate(env);
        });
    }

    fn name(&mut self, name: &str) {
        if !self.is_first {
            self.out.push(b',');
        }
        self.is_first = false;
        escape_into(self.out, name);
        self.out.push(b':');
    }
}

fn into_text(json: Vec<u8>) -> String {
    String::from_utf8(json).expect("built from text and ASCII only")
}

#[cfg(test)]
mod tests {
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
        let answer = br#"{"status":1,"streams":["typing:1:extra"],"env":{"istate":{"count":"2","user":""}}}"#;
        istate.merge(&decode_command_response(answer).unwrap().istate);
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
        fn check(body: &str, expected: ConnectResponse) {
            assert_eq!(
                decode_connect_response(body.as_bytes()),
                Ok(expected),
                "{body}"
            );
        }
        check(
            r#"{"status":1,"identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","transmissions":["{\"type\":\"welcome\"}"],"env":{}}"#,
            ConnectResponse {
                status: RpcStatus::Success,
                identifiers: USER.to_owned(),
                transmissions: vec![r#"{"type":"welcome"}"#.to_owned()],
                ..Default::default()
            },
        );
        let refusal =
            r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#.to_owned();
        check(
            r#"{"status":2,"transmissions":["{\"type\":\"disconnect\",\"reason\":\"unauthorized\",\"reconnect\":false}"]}"#,
            ConnectResponse {
                status: RpcStatus::Failure,
                transmissions: vec![refusal],
                ..Default::default()
            },
        );
        check(
            r#"{"error_msg":"undefined method `user' for nil"}"#,
            ConnectResponse {
                error_msg: "undefined method `user' for nil".to_owned(),
                ..Default::default()
            },
        );
        check(
            r#"{"status":1,"env":{"cstate":{"a":"1","b":null},"istate":{"c":"2"},"url":"x"}}"#,
            ConnectResponse {
                status: RpcStatus::Success,
                cstate: vec![
                    ("a".to_owned(), "1".to_owned()),
                    ("b".to_owned(), String::new()),
                ],
                ..Default::default()
            },
        );
    }

    #[test]
    fn recorded_command_answers_are_understood() {
        fn check(body: &str, expected: CommandResponse) {
            assert_eq!(
                decode_command_response(body.as_bytes()),
                Ok(expected),
                "{body}"
            );
        }
        let success = || CommandResponse {
            status: RpcStatus::Success,
            ..Default::default()
        };
        check(
            r#"{"status":1,"streams":["typing:1:extra"],"transmissions":["{\"ok\":true}"],"env":{"istate":{"count":"2","user":""},"cstate":{"k":"v"}},"stopped_streams":["typing:1"]}"#,
            CommandResponse {
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
            CommandResponse {
                disconnect: true,
                stop_streams: true,
                ..success()
            },
        );
        check(
            r#"{"status":1,"presence":{"type":"join","id":"1","info":{}},"stopStreams":true}"#,
            CommandResponse {
                presence: true,
                ..success()
            },
        );
        check(
            r#"{"STATUS":1,"Streams":null,"new":{"deep":[[]]}}"#,
            success(),
        );
    }

    #[test]
    fn a_status_is_a_number_or_a_name() {
        fn check(status: &str, expected: Option<RpcStatus>) {
            let body = format!(r#"{{"status":{status}}}"#);
            let decoded = decode_disconnect_response(body.as_bytes()).map(|answer| answer.status);
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
            decode_disconnect_response(b"{}").map(|answer| answer.status),
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
            assert!(decode_command_response(body.as_bytes()).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn garbage_and_cut_answers_never_panic(body in any::<Vec<u8>>(), cut in 0usize..120) {
            let _ = decode_command_response(&body);
            let answer = br#"{"status":1,"streams":["a"],"env":{"istate":{"k":"\u00e9"}},"transmissions":["{\"a\":1}"],"presence":{"id":"1"}}"#;
            let cut = cut.min(answer.len() - 1);
            prop_assert!(decode_connect_response(&answer[..cut]).is_err());
            let _ = decode_connect_response(&[&answer[..cut], &body].concat());
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
}
