//! The client's side of the protocol: one WebSocket message to one command.
//!
//! This file defines the form of client commands and what is tolerated in it. It does not judge whether a command makes
//! sense for the session: `session` does that, and calls this.
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
    /// Any other word, or no `command`. The message can be decoded, so it counts as a sign of life.
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
    /// A string, unescaped. A perform must have this form.
    Text(Cow<'a, str>),
    /// The JSON text of any other value, as the client wrote it.
    Json(Cow<'a, str>),
}

/// A decoded command. It borrows from the payload where nothing had to be unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCommand<'a> {
    pub kind: CommandKind,
    /// `command` as sent, for the log; empty when missing.
    pub name: Cow<'a, str>,
    /// Opaque, compared as bytes; empty when missing.
    pub identifier: Cow<'a, str>,
    pub data: Data<'a>,
    pub history: Option<HistoryRequest>,
    /// True when a `presence` object is there.
    pub presence: bool,
}

/// The `history` of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryRequest {
    /// Unix seconds; 0 = not given.
    pub since: i64,
    /// Names of the requested streams. `None` when there is no `streams` member, which differs from an empty one.
    pub streams: Option<Vec<String>>,
}

/// Why a payload is not a command.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CommandError {
    /// Not a JSON object.
    #[error("not a command: {0}")]
    Payload(#[from] JsonError),
    /// A known member has a value of the wrong type.
    #[error("`{member}` of a command: {cause}")]
    Member {
        member: &'static str,
        cause: JsonError,
    },
}

/// Decodes the payload of one text or binary message.
///
/// Returns `Ok(None)` for the JSON text `null`, which is ignored and is not an error. Member names match in any ASCII case,
/// and unknown members are skipped. The last value of a repeated member counts. `null` means the same as absent. Invalid
/// UTF-8 in strings is replaced.
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

/// The names in `streams`. Positions are only checked, because there is no history that they could refer to.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(payload: &str) -> ClientCommand<'_> {
        decode_command(payload.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn every_verb_is_known_by_its_exact_name() {
        fn check(name: &str, kind: CommandKind) {
            let payload = format!(r#"{{"command":"{name}","identifier":"A"}}"#);
            let command = decode(&payload);
            assert_eq!(
                (command.kind, &*command.name, &*command.identifier),
                (kind, name, "A")
            );
        }
        check("subscribe", CommandKind::Subscribe);
        check("unsubscribe", CommandKind::Unsubscribe);
        check("message", CommandKind::Message);
        check("ping", CommandKind::Ping);
        check("pong", CommandKind::Pong);
        check("history", CommandKind::History);
        check("presence", CommandKind::Presence);
        check("join", CommandKind::Join);
        check("leave", CommandKind::Leave);
        check("whisper", CommandKind::Whisper);
        check("Subscribe", CommandKind::Unknown);
        check("pusher:ping", CommandKind::Unknown);
        check("", CommandKind::Unknown);
    }

    #[test]
    fn identifiers_are_unescaped_and_otherwise_untouched() {
        fn check(payload: &str, identifier: &str) {
            assert_eq!(decode(payload).identifier, identifier);
        }
        check(
            r#"{"identifier":"{\"channel\":\"PresenceChannel\", \"room_id\":1}"}"#,
            r#"{"channel":"PresenceChannel", "room_id":1}"#,
        );
        check(r#"{"IDENTIFIER":"A","COMMAND":"ping"}"#, "A");
        check(r#"{"identifier":"A","identifier":"B"}"#, "B");
        check(r#"{"identifier":null}"#, "");
        check(
            " \n{ \"other\" : [1,{\"a\":null}] , \"identifier\" : \"A\" }\n",
            "A",
        );
        let broken = decode_command(b"{\"identifier\":\"a\xffb\"}")
            .unwrap()
            .unwrap();
        assert_eq!(broken.identifier, "a\u{fffd}b");
    }

    #[test]
    fn data_may_be_anything() {
        fn check(payload: &str, data: Data<'_>) {
            assert_eq!(decode(payload).data, data);
        }
        check(r#"{}"#, Data::Absent);
        check(r#"{"data":null}"#, Data::Absent);
        check(r#"{"data":""}"#, Data::Text("".into()));
        check(
            r#"{"data":"{\"action\":\"start\"}"}"#,
            Data::Text(r#"{"action":"start"}"#.into()),
        );
        check(
            r#"{"data": {"b": 1.50} }"#,
            Data::Json(r#"{"b": 1.50}"#.into()),
        );
        check(r#"{"data":5}"#, Data::Json("5".into()));
        check(r#"{"data":false}"#, Data::Json("false".into()));
        let broken = decode_command(b"{\"data\":[\"\xff\"]}").unwrap().unwrap();
        assert_eq!(broken.data, Data::Json("[\"\u{fffd}\"]".into()));
    }

    #[test]
    fn history_and_presence_are_read_as_far_as_they_are_needed() {
        fn check(payload: &str, history: Option<(i64, Option<&[&str]>)>, presence: bool) {
            let command = decode(payload);
            let history = history.map(|(since, streams)| HistoryRequest {
                since,
                streams: streams.map(|names| names.iter().map(|name| name.to_string()).collect()),
            });
            assert_eq!(
                (command.history, command.presence),
                (history, presence),
                "{payload}"
            );
        }
        check(r#"{"history":null,"presence":null}"#, None, false);
        check(r#"{"history":{}}"#, Some((0, None)), false);
        check(
            r#"{"history":{"since":-5,"streams":null}}"#,
            Some((-5, None)),
            false,
        );
        check(r#"{"history":{"streams":{}}}"#, Some((0, Some(&[]))), false);
        check(
            r#"{"history":{"since":1700000000,"streams":{"x":{"epoch":"e","offset":3},"y":null}}}"#,
            Some((1_700_000_000, Some(&["x", "y"]))),
            false,
        );
        check(r#"{"presence":{}}"#, None, true);
        check(
            r#"{"presence":{"id":"5","info":{"a":[1]},"type":"join"}}"#,
            None,
            true,
        );
    }

    #[test]
    fn null_is_no_command_and_no_error() {
        assert_eq!(decode_command(b" null\n"), Ok(None));
    }

    #[test]
    fn undecodable_payloads_are_errors() {
        fn check(payload: impl AsRef<[u8]>) {
            let payload = payload.as_ref();
            assert!(
                decode_command(payload).is_err(),
                "{}",
                payload.escape_ascii()
            );
        }
        for payload in [
            "",
            "x",
            "[]",
            "\"x\"",
            "5",
            "true",
            "{",
            "{} x",
            "null null",
            "\u{feff}{}",
        ] {
            check(payload);
        }
        for payload in [
            r#"{"command":5}"#,
            r#"{"identifier":{}}"#,
            r#"{"history":"x"}"#,
            r#"{"history":{"since":"5"}}"#,
            r#"{"history":{"since":1.5}}"#,
            r#"{"history":{"streams":[]}}"#,
            r#"{"history":{"streams":{"x":{"offset":-1}}}}"#,
            r#"{"history":{"streams":{"x":{"offset":1.5}}}}"#,
            r#"{"history":{"streams":{"x":{"epoch":1}}}}"#,
            r#"{"presence":5}"#,
            r#"{"presence":{"id":5}}"#,
            r#"{"other":01}"#,
        ] {
            check(payload);
        }
        check(b"\xff");
        check("{\"a\":".to_owned() + &"[".repeat(1_000_000));
    }

    #[test]
    fn an_error_names_the_member_and_what_was_expected() {
        let error = decode_command(br#"{"command":5}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`command` of a command: expected a string, found a number at byte 11"
        );
        let error = decode_command(b"[]").unwrap_err();
        assert_eq!(
            error.to_string(),
            "not a command: expected an object, found an array at byte 0"
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(payload in any::<Vec<u8>>()) {
            let _ = decode_command(&payload);
        }

        #[test]
        fn cut_and_damaged_commands_never_panic(cut in 0usize..200, at in 0usize..200, byte in any::<u8>()) {
            let mut payload = br#"{"command":"subscribe","identifier":"{\"channel\":\"\ud83c\udf89\"}","data":{"a":[1,-2.5e3,true,null]},"history":{"since":5,"streams":{"x":{"epoch":"e","offset":3}}},"presence":{"id":"5"}}"#.to_vec();
            prop_assert!(decode_command(&payload).is_ok());
            let cut = cut.min(payload.len() - 1);
            prop_assert!(decode_command(&payload[..cut]).is_err());
            let at = at.min(payload.len() - 1);
            payload[at] = byte;
            let _ = decode_command(&payload);
        }

        #[test]
        fn whatever_a_client_encodes_comes_back(identifier in any::<String>(), data in any::<String>()) {
            let payload = serde_json::json!({ "command": "message", "identifier": identifier, "data": data }).to_string();
            let command = decode(&payload);
            prop_assert_eq!(&*command.identifier, identifier.as_str());
            prop_assert_eq!(command.data, Data::Text(data.into()));
        }
    }
}
