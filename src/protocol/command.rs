//! What a client says: one WebSocket message to one command.
//!
//! Owns the shape of client commands and its leniency. Must not judge whether a command makes sense for the session:
//! that is `session`'s work, which calls this.
//!
//! Source: `contract/websocket.md` §6, `contract/extended.md` §3.

use std::borrow::Cow;

use thiserror::Error;

use super::json::{JsonError, Kind, Reader, lossy_text};

/// The verb of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandKind {
    Subscribe,
    Unsubscribe,
    Message,
    Ping,
    Pong,
    History,
    Presence,
    Join,
    Leave,
    Whisper,
    /// Anything else, also a missing `command`. Decodable, so it counts as a sign of life.
    Unknown,
}

impl CommandKind {
    fn from_name(name: &str) -> Self {
        match name {
            "subscribe" => CommandKind::Subscribe,
            "unsubscribe" => CommandKind::Unsubscribe,
            "message" => CommandKind::Message,
            "ping" => CommandKind::Ping,
            "pong" => CommandKind::Pong,
            "history" => CommandKind::History,
            "presence" => CommandKind::Presence,
            "join" => CommandKind::Join,
            "leave" => CommandKind::Leave,
            "whisper" => CommandKind::Whisper,
            _ => CommandKind::Unknown,
        }
    }
}

/// The `data` of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data<'a> {
    /// Missing or `null`.
    Absent,
    /// A string, unescaped. The only form a perform may have.
    Text(Cow<'a, str>),
    /// The JSON text of any other value, as the client wrote it.
    Json(Cow<'a, str>),
}

/// A decoded command. Borrows from the payload where nothing had to be unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCommand<'a> {
    pub kind: CommandKind,
    /// `command` as sent, for the log; empty when missing.
    pub name: Cow<'a, str>,
    /// Opaque, compared as bytes; empty when missing.
    pub identifier: Cow<'a, str>,
    pub data: Data<'a>,
    pub history: Option<HistoryRequest>,
    /// Whether a `presence` object is there.
    pub presence: bool,
}

/// The `history` of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryRequest {
    /// Unix seconds; zero = not given.
    pub since: i64,
    /// Names of the streams asked for; `None` when there is no `streams` member, which is not the same as an empty one.
    pub streams: Option<Vec<String>>,
}

/// Why a payload is not a command.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    /// Not a JSON object.
    #[error("not a command: {0}")]
    Payload(#[from] JsonError),
    /// A known member holds another type than it must.
    #[error("`{member}` of a command: {cause}")]
    Member {
        member: &'static str,
        cause: JsonError,
    },
}

/// Decodes the payload of one text or binary message.
///
/// Returns `Ok(None)` for the JSON text `null`, which is ignored without being an error. Member names match in any ASCII
/// case, unknown ones are skipped, the last of a repeated one counts, `null` is as good as absent, and broken UTF-8 in
/// strings is replaced.
///
/// # Errors
/// [`CommandError`] when the payload is not a JSON object or a known member has the wrong type.
pub fn decode_command(payload: &[u8]) -> Result<Option<ClientCommand<'_>>, CommandError> {
    let mut reader = Reader::new(payload);
    if reader.take_null()? {
        reader.finish()?;
        return Ok(None);
    }
    let mut command = ClientCommand {
        kind: CommandKind::Unknown,
        name: Cow::Borrowed(""),
        identifier: Cow::Borrowed(""),
        data: Data::Absent,
        history: None,
        presence: false,
    };
    reader.object(|reader, name| read_member(reader, name, &mut command))?;
    reader.finish()?;
    command.kind = CommandKind::from_name(&command.name);
    Ok(Some(command))
}

fn read_member<'a>(
    reader: &mut Reader<'a>,
    name: &str,
    command: &mut ClientCommand<'a>,
) -> Result<(), CommandError> {
    let is = |known: &str| name.eq_ignore_ascii_case(known);
    if reader.take_null()? {
        return Ok(());
    }
    if is("command") {
        command.name = reader.string().map_err(in_member("command"))?;
    } else if is("identifier") {
        command.identifier = reader.string().map_err(in_member("identifier"))?;
    } else if is("data") {
        command.data = read_data(reader)?;
    } else if is("history") {
        command.history = Some(read_history(reader).map_err(in_member("history"))?);
    } else if is("presence") {
        read_presence(reader).map_err(in_member("presence"))?;
        command.presence = true;
    } else {
        reader.skip_value()?;
    }
    Ok(())
}

fn in_member(member: &'static str) -> impl FnOnce(JsonError) -> CommandError {
    move |cause| CommandError::Member { member, cause }
}

fn read_data<'a>(reader: &mut Reader<'a>) -> Result<Data<'a>, JsonError> {
    Ok(match reader.kind()? {
        Kind::String => Data::Text(reader.string()?),
        _ => Data::Json(lossy_text(reader.raw_value()?)),
    })
}

fn read_history(reader: &mut Reader<'_>) -> Result<HistoryRequest, JsonError> {
    let mut history = HistoryRequest::default();
    reader.object(|reader, name| {
        if reader.take_null()? {
            return Ok(());
        }
        if name.eq_ignore_ascii_case("since") {
            history.since = reader.signed()?;
        } else if name.eq_ignore_ascii_case("streams") {
            history.streams = Some(read_history_streams(reader)?);
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(history)
}

/// The names in `streams`. Positions are only checked: nothing is kept that they could point into.
fn read_history_streams(reader: &mut Reader<'_>) -> Result<Vec<String>, JsonError> {
    let mut streams = Vec::new();
    reader.object(|reader, stream| {
        streams.push(stream.to_owned());
        if reader.take_null()? {
            return Ok(());
        }
        reader.object(|reader, name| {
            if reader.take_null()? {
                return Ok(());
            }
            if name.eq_ignore_ascii_case("epoch") {
                reader.string().map(drop)
            } else if name.eq_ignore_ascii_case("offset") {
                reader.unsigned().map(drop)
            } else {
                reader.skip_value()
            }
        })
    })?;
    Ok(streams)
}

/// Checks a `presence` object; `info` may be anything.
fn read_presence(reader: &mut Reader<'_>) -> Result<(), JsonError> {
    reader.object(|reader, name| {
        if reader.take_null()? {
            return Ok(());
        }
        if name.eq_ignore_ascii_case("id") || name.eq_ignore_ascii_case("type") {
            reader.string().map(drop)
        } else {
            reader.skip_value()
        }
    })
}
