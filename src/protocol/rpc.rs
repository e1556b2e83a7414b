//! The RPC bodies: what the app is asked and what it answers.
//!
//! Only their JSON is here. `crate::rpc` handles URLs, headers, status codes, retries and time; `session` decides what an
//! answer changes. The Ruby side rejects unknown keys, so nothing may be added to a request.
//!
//! Source: `contract/rpc.md` §4 and §6.

use std::borrow::Cow;

use thiserror::Error;

use super::command::PresencePayload;
use super::json::{JsonError, JsonKind, Reader, escape_into, lossy_text};
use super::publication::encode_message;
use super::state::State;

/// Encodes the part of `env` that does not change during a session, `"url":…,"headers":{…}`, for an [`RpcRequest`].
///
/// `headers` are sorted bytewise in place; of equal names the last one counts. Empty members are left out. `url` is never
/// empty, and neither are the headers, which contain `REMOTE_ADDR`.
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

/// What the app is asked. A codec turns it into bytes; `env` comes from [`encode_env_prefix`].
#[derive(Debug)]
pub enum RpcRequest<'a> {
    Connect {
        env: &'a str,
    },
    Command {
        /// `subscribe`, `unsubscribe` or `message`.
        command: &'a str,
        identifier: &'a str,
        connection_identifiers: &'a str,
        /// Only for `message`.
        data: Option<&'a str>,
        env: &'a str,
        cstate: &'a State,
        istate: Option<Cow<'a, State>>,
    },
    Disconnect {
        identifiers: &'a str,
        /// From [`encode_subscriptions`].
        subscriptions: &'a [u8],
        env: &'a str,
        cstate: &'a State,
        /// Each subscription that ever had state, also if its state is empty now. Here, unlike in a command, the value of
        /// each is JSON *text*.
        istates: Vec<(&'a str, &'a State)>,
    },
}

impl RpcRequest<'_> {
    /// The body of an HTTP call.
    pub fn json(&self) -> Vec<u8> {
        match self {
            Self::Connect { env } => encode_body(|body| body.env(env, &State::default(), |_| ())),
            Self::Command {
                command,
                identifier,
                connection_identifiers,
                data,
                env,
                cstate,
                istate,
            } => encode_body(|body| {
                body.text("command", command);
                body.text("identifier", identifier);
                body.text("connection_identifiers", connection_identifiers);
                body.text("data", data.unwrap_or_default());
                body.env(env, cstate, |env| {
                    if let Some(istate) = istate {
                        env.state("istate", istate);
                    }
                });
            }),
            Self::Disconnect {
                identifiers,
                subscriptions,
                env,
                cstate,
                istates,
            } => {
                let istates: State = istates
                    .iter()
                    .map(|(identifier, state)| (*identifier, state_text(state)))
                    .collect();
                encode_body(|body| {
                    body.text("identifiers", identifiers);
                    body.encoded("subscriptions", subscriptions);
                    body.env(env, cstate, |env| env.state("istate", &istates));
                })
            }
        }
    }
}

/// The identifiers of a session's subscriptions for [`RpcRequest::Disconnect`]; empty when there are none.
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

/// The app's verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RpcStatus {
    Success,
    Failure,
    /// The app said so, or said nothing: a missing status is an error too.
    #[default]
    Error,
}

/// What the app answers. Members that have no meaning for the current call are checked too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RpcAnswer {
    pub status: RpcStatus,
    /// Only for Connect: who the client is.
    pub identifiers: String,
    pub disconnect: bool,
    pub stop_streams: bool,
    pub streams: Vec<String>,
    pub stopped_streams: Vec<String>,
    pub transmissions: Vec<String>,
    pub error_msg: String,
    /// Changes for [`State::merge`].
    pub cstate: Vec<(String, String)>,
    /// Changes for [`State::merge`]; only for a command.
    pub istate: Vec<(String, String)>,
    /// What the app does about the client's presence.
    pub presence: Option<PresenceChange>,
}

/// A change of a client's presence that the app makes. Source: `contract/extended.md` §7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceChange {
    Join(PresencePayload),
    Leave,
}

/// Why the body of a 200 is not an answer.
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

/// Decodes the answer to any call.
///
/// Member names match in any ASCII case, unknown members are skipped, and `null` means the same as absent.
///
/// # Errors
/// [`RpcDecodeError`] when the body is not a JSON object or a known member has the wrong type.
pub fn decode_answer(body: &[u8]) -> Result<RpcAnswer, RpcDecodeError> {
    let mut reader = Reader::new(body);
    let mut answer = RpcAnswer::default();
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
    answer: &mut RpcAnswer,
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
        _ => answer.presence = read_presence(reader)?,
    }
    Ok(())
}

/// The `info` of the app is a string with JSON in it; any other text becomes a JSON string. A `type` other than `join` and
/// `leave` is no change.
fn read_presence(reader: &mut Reader<'_>) -> Result<Option<PresenceChange>, JsonError> {
    let (mut kind, mut presence) = (Cow::Borrowed(""), PresencePayload::default());
    reader.object(|reader, name| {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if reader.take_null()? {
            return Ok(());
        }
        if is("type") {
            kind = reader.string()?;
        } else if is("id") {
            presence.id = reader.string()?.into();
        } else if is("info") {
            presence.info = Some(read_info(reader)?);
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(match &*kind {
        "join" => Some(PresenceChange::Join(presence)),
        "leave" => Some(PresenceChange::Leave),
        _ => None,
    })
}

fn read_info(reader: &mut Reader<'_>) -> Result<Box<str>, JsonError> {
    if reader.kind()? != JsonKind::String {
        return Ok(lossy_text(reader.raw_value()?).into());
    }
    let info = encode_message(reader.string()?);
    Ok(String::from_utf8_lossy(&info).into())
}

/// The status as a number, or as the name that older protobuf libraries print. An unknown number is an error status, but not
/// an invalid body.
fn read_status(reader: &mut Reader<'_>) -> Result<RpcStatus, RpcDecodeError> {
    let in_status = |cause| RpcDecodeError::Member {
        member: "status",
        cause,
    };
    if reader.kind()? != JsonKind::String {
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

fn read_env(reader: &mut Reader<'_>, answer: &mut RpcAnswer) -> Result<(), JsonError> {
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

/// State changes in the order given. Here `null` means an empty value, which deletes.
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

/// Writes the members of one JSON object with the commas between them.
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

    /// A text member, written even if it is empty.
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

    /// A member whose value is JSON already; left out when it is empty.
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
mod tests;
