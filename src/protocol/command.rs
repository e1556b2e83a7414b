//! The client's side of the protocol: one WebSocket message to one command.
//!
//! This file defines the form of client commands and what is tolerated in it. It does not judge whether a command makes
//! sense for the session: `session` does that, and calls this.
//!
//! Source: `contract/websocket.md` §6, `contract/extended.md` §3.

use std::borrow::Cow;

use thiserror::Error;

use super::json::{JsonError, JsonKind, Reader, lossy_text};
use super::position::{Epoch, Position};

/// Streams that one history request may name. A session cannot listen to more, so a client that names more is not one that
/// has received their messages.
pub const HISTORY_STREAMS_MAX: usize = 4096;

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

impl Data<'_> {
    /// Of a `presence` command: false when the client wants to know how many are present, but not who.
    pub fn wants_records(&self) -> bool {
        let Self::Json(json) = self else {
            return true;
        };
        let mut wants_records = true;
        // Another value, or one of another type, says nothing. The text itself is JSON: it was part of the command.
        let _ = Reader::new(json.as_bytes()).object(|reader, name| {
            if name.eq_ignore_ascii_case("return_records") && reader.kind()? == JsonKind::Boolean {
                wants_records = reader.boolean()?;
            } else {
                reader.skip_value()?;
            }
            Ok::<_, JsonError>(())
        });
        wants_records
    }
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
    pub presence: Option<PresencePayload>,
}

/// The `history` of a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistoryRequest {
    /// Unix seconds; 0 = not given.
    pub since: i64,
    /// `None` when there is no `streams` member, which differs from an empty one.
    pub streams: Option<Positions>,
}

impl HistoryRequest {
    /// Whether it asks for anything beside a subscribe. A `history` command is answered for any time but 0.
    ///
    /// Source: contract/extended.md §3.1 and §3.4.
    pub fn asks_beside_subscribe(&self) -> bool {
        self.since > 0 || self.streams.is_some()
    }

    /// Bytes that it takes.
    pub fn held_bytes(&self) -> usize {
        size_of::<Self>() + self.streams.as_ref().map_or(0, Positions::held_bytes)
    }
}

/// What a client has received last from each stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// Sorted by stream, each stream once.
    streams: Box<[(Box<str>, Position)]>,
}

impl Positions {
    /// Of a stream named twice, the last position counts.
    fn new(mut streams: Vec<(Box<str>, Position)>) -> Self {
        streams.reverse();
        streams.sort_by(|(one, _), (other, _)| one.cmp(other));
        streams.dedup_by(|(one, _), (other, _)| one == other);
        Self {
            streams: streams.into(),
        }
    }

    /// The position in this stream. Its epoch is [`Epoch::FOREIGN`] when the client sent none, or one that no stream has.
    pub fn of(&self, stream: &str) -> Option<Position> {
        let found = self
            .streams
            .binary_search_by(|(other, _)| (**other).cmp(stream));
        found.ok().map(|at| self.streams[at].1)
    }

    fn held_bytes(&self) -> usize {
        let names = self.streams.iter().map(|(stream, _)| stream.len());
        size_of_val(&*self.streams) + names.sum::<usize>()
    }
}

/// The `presence` of a command: who is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PresencePayload {
    /// Empty when missing.
    pub id: Box<str>,
    /// The JSON text of any value but `null`, as the client wrote it.
    pub info: Option<Box<str>>,
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
    #[error("`history` of a command names more than {HISTORY_STREAMS_MAX} streams")]
    TooManyStreams,
}

/// Decodes the payload of one text or binary message.
///
/// Returns `Ok(None)` for the JSON text `null`, which is ignored and is not an error. Member names match in any ASCII case,
/// and unknown members are skipped. The last value of a repeated member counts. `null` means the same as absent. Invalid
/// UTF-8 in strings is replaced.
///
/// # Errors
/// [`CommandError`] when the payload is not a JSON object or a known member has the wrong type or names too
/// many streams.
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
        presence: None,
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
        command.history = Some(read_history(reader)?);
    } else if is("presence") {
        command.presence = Some(read_presence(reader).map_err(in_member("presence"))?);
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
        JsonKind::String => Data::Text(reader.string()?),
        _ => Data::Json(lossy_text(reader.raw_value()?)),
    })
}

fn read_history(reader: &mut Reader<'_>) -> Result<HistoryRequest, CommandError> {
    let mut since = 0;
    let mut streams = None;
    let read = reader.object(|reader, name| {
        if reader.take_null()? {
            return Ok(());
        }
        if name.eq_ignore_ascii_case("since") {
            // What @anycable/core sends when its option `historyTimestamp` is false.
            since = if reader.take_false()? {
                0
            } else {
                reader.signed()?
            };
        } else if name.eq_ignore_ascii_case("streams") {
            streams = Some(read_positions(reader)?);
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    });
    read.map_err(in_member("history"))?;
    if streams
        .as_ref()
        .is_some_and(|streams| streams.len() > HISTORY_STREAMS_MAX)
    {
        return Err(CommandError::TooManyStreams);
    }
    Ok(HistoryRequest {
        since,
        streams: streams.map(Positions::new),
    })
}

/// The positions in `streams`: all of them, or one more than a request may have.
fn read_positions(reader: &mut Reader<'_>) -> Result<Vec<(Box<str>, Position)>, JsonError> {
    let mut streams = Vec::new();
    reader.object(|reader, stream| {
        let position = read_position(reader)?;
        if streams.len() <= HISTORY_STREAMS_MAX {
            streams.push((stream.into(), position));
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(streams)
}

/// `null`, or a position without an epoch, is one that no stream has, as in the reference.
fn read_position(reader: &mut Reader<'_>) -> Result<Position, JsonError> {
    let mut position = Position {
        epoch: Epoch::FOREIGN,
        offset: 0,
    };
    if reader.take_null()? {
        return Ok(position);
    }
    reader.object(|reader, name| {
        if reader.take_null()? {
            return Ok(());
        }
        if name.eq_ignore_ascii_case("epoch") {
            position.epoch = Epoch::decode(&reader.string()?);
        } else if name.eq_ignore_ascii_case("offset") {
            position.offset = reader.unsigned()?;
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(position)
}

/// The `type` of a `presence` object is only checked: the command says what happens.
fn read_presence(reader: &mut Reader<'_>) -> Result<PresencePayload, JsonError> {
    let mut presence = PresencePayload::default();
    reader.object(|reader, name| {
        if reader.take_null()? {
            return Ok(());
        }
        if name.eq_ignore_ascii_case("id") {
            presence.id = reader.string()?.into();
        } else if name.eq_ignore_ascii_case("info") {
            presence.info = Some(lossy_text(reader.raw_value()?).into());
        } else if name.eq_ignore_ascii_case("type") {
            reader.string()?;
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(presence)
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

    fn position(epoch: &str, offset: u64) -> Position {
        let epoch = Epoch::decode(epoch);
        Position { epoch, offset }
    }

    #[test]
    fn history_is_read_with_its_positions() {
        type Read<'a> = (i64, Option<&'a [(&'a str, Position)]>);
        fn check(history: &str, expected: Option<Read<'_>>) {
            let payload = format!(r#"{{"history":{history}}}"#);
            let positions = |streams: &[(&str, Position)]| Positions {
                streams: streams
                    .iter()
                    .map(|&(stream, position)| (stream.into(), position))
                    .collect(),
            };
            let expected = expected.map(|(since, streams)| HistoryRequest {
                since,
                streams: streams.map(positions),
            });
            assert_eq!(decode(&payload).history, expected, "{payload}");
        }
        let nowhere = position("", 0);
        check("null", None);
        check("{}", Some((0, None)));
        check(r#"{"since":-5,"streams":null}"#, Some((-5, None)));
        check(r#"{"streams":{}}"#, Some((0, Some(&[]))));
        check(r#"{"since":false,"streams":{}}"#, Some((0, Some(&[]))));
        check(
            r#"{"since":1700000000,"streams":{"y":{"offset":3,"new":[],"epoch":"Abcdef-_"},"x":{"EPOCH":"ABCDEFGH"}}}"#,
            Some((
                1_700_000_000,
                Some(&[
                    ("x", position("ABCDEFGH", 0)),
                    ("y", position("Abcdef-_", 3)),
                ]),
            )),
        );
        check(
            r#"{"streams":{"":null,"a":{},"b":{"epoch":"abcd","offset":18446744073709551615},"c":{"epoch":null,"offset":null}}}"#,
            Some((
                0,
                Some(&[
                    ("", nowhere),
                    ("a", nowhere),
                    ("b", position("", u64::MAX)),
                    ("c", nowhere),
                ]),
            )),
        );
        check(
            r#"{"streams":{"x":{"epoch":"ABCDEFGH","offset":1},"a":null,"x":{"epoch":"ABCDEFGH","offset":2}}}"#,
            Some((0, Some(&[("a", nowhere), ("x", position("ABCDEFGH", 2))]))),
        );
    }

    #[test]
    fn a_position_is_found_by_the_exact_name_of_its_stream() {
        let command =
            decode(r#"{"history":{"streams":{"b":{"offset":2},"a":{"offset":1},"B":null}}}"#);
        let positions = command.history.unwrap().streams.unwrap();
        let offset = |stream: &str| positions.of(stream).map(|position| position.offset);
        assert_eq!(
            ["a", "b", "B", "A", "", "c"].map(offset),
            [Some(1), Some(2), Some(0), None, None, None]
        );
    }

    #[test]
    fn a_history_request_names_a_limited_number_of_streams() {
        let request = |streams: usize| {
            let streams: Vec<String> = (0..streams)
                .map(|number| format!("\"{number}\":null"))
                .collect();
            format!(r#"{{"history":{{"streams":{{{}}}}}}}"#, streams.join(","))
        };
        let most = request(HISTORY_STREAMS_MAX);
        let history = decode(&most).history.unwrap();
        assert!(history.held_bytes() > HISTORY_STREAMS_MAX * (size_of::<Position>() + 3));
        let positions = history.streams.unwrap();
        assert!(positions.of("0").is_some() && positions.of("4095").is_some());
        for streams in [HISTORY_STREAMS_MAX + 1, 3 * HISTORY_STREAMS_MAX] {
            let error = decode_command(request(streams).as_bytes()).unwrap_err();
            assert_eq!(error, CommandError::TooManyStreams);
            let expected = "`history` of a command names more than 4096 streams";
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn presence_is_read_with_its_info_as_it_was_written() {
        fn check(presence: &str, expected: Option<(&str, Option<&str>)>) {
            let payload = format!(r#"{{"presence":{presence}}}"#);
            let expected = expected.map(|(id, info)| PresencePayload {
                id: id.into(),
                info: info.map(Box::from),
            });
            assert_eq!(decode(&payload).presence, expected, "{payload}");
        }
        check("null", None);
        check("{}", Some(("", None)));
        check(r#"{"id":null,"info":null,"type":null}"#, Some(("", None)));
        check(
            r#"{"id":"5","info":{"a": [1.50, "\u00e9"]},"type":"join"}"#,
            Some(("5", Some(r#"{"a": [1.50, "\u00e9"]}"#))),
        );
        check(r#"{"ID":"é\n","Info":"x"}"#, Some(("é\n", Some(r#""x""#))));
        check(r#"{"info": false ,"new":{}}"#, Some(("", Some("false"))));
        let broken = decode_command(b"{\"presence\":{\"info\":[\"\xff\"]}}")
            .unwrap()
            .unwrap();
        assert_eq!(
            broken.presence.unwrap().info.as_deref(),
            Some("[\"\u{fffd}\"]")
        );
    }

    #[test]
    fn records_are_wanted_unless_the_client_says_no() {
        fn check(data: &str, expected: bool) {
            let payload = format!(r#"{{"command":"presence","data":{data}}}"#);
            assert_eq!(decode(&payload).data.wants_records(), expected, "{data}");
        }
        assert!(decode("{}").data.wants_records());
        check("null", true);
        check("{}", true);
        check(r#"{"return_records":true}"#, true);
        check(r#"{"return_records":false}"#, false);
        check(r#"{"new":[{}],"Return_Records":false}"#, false);
        check(r#"{"return_records":false,"return_records":true}"#, true);
        check(r#"{"return_records":"false"}"#, true);
        check(r#"{"return_records":0}"#, true);
        check(r#"{"return_records":null}"#, true);
        check("[false]", true);
        check("5", true);
        check(r#""{\"return_records\":false}""#, true);
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
            r#"{"history":{"since":true}}"#,
            r#"{"history":{"streams":[]}}"#,
            r#"{"history":{"streams":{"x":{"offset":-1}}}}"#,
            r#"{"history":{"streams":{"x":{"offset":1.5}}}}"#,
            r#"{"history":{"streams":{"x":{"epoch":1}}}}"#,
            r#"{"presence":5}"#,
            r#"{"history":{"streams":{"x":{"offset":18446744073709551616}}}}"#,
            r#"{"history":{"streams":{"x":5}}}"#,
            r#"{"presence":[]}"#,
            r#"{"presence":{"id":5}}"#,
            r#"{"presence":{"type":5}}"#,
            r#"{"presence":{"info":01}}"#,
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
