//! What the app posts: the body of a broadcast request to publications or a remote command.
//!
//! This file recognizes the body and encodes `data` into the `message` of a delivery, once per publication. It does not know
//! the listeners. Called by `endpoints::broadcast`, and by `session` for whispers.
//!
//! Source: `contract/broadcast.md` §4, §5 and §7, `contract/extended.md` §3.5.

use std::borrow::Cow;
use std::sync::Arc;

use thiserror::Error;

use super::command::Data;
use super::json::{JsonError, JsonKind, Reader, escape_into, is_valid_json};
use super::position::Position;

/// The message of a publication: a JSON value that can be inserted as it is, see [`encode_message`]. All shards, the history
/// and the frames of long messages share the bytes.
///
/// It is one allocation with the count of its users, and so takes half of what a `Bytes` would take beside the text.
pub type Message = Arc<[u8]>;

/// One message for one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publication {
    /// Empty only inside a batch; then no session listens to it.
    pub stream: Box<str>,
    pub message: Message,
    /// The sid of the session that does not get this publication.
    pub exclude_socket: Option<Box<str>>,
    /// The `type` of the deliveries.
    pub broadcast_type: Option<Box<str>>,
    /// Where it stands in its stream; `None` before the broker has stored it, and if it is not stored.
    pub position: Option<Position>,
    /// Not to be stored.
    pub transient: bool,
    /// A second publication with this key is the first one, sent again.
    pub idempotency_key: Option<Box<str>>,
}

/// One is made for each message of the app.
const _: () = assert!(size_of::<Publication>() <= 112);

/// The content of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broadcast {
    /// At least one publication, in the order given.
    Publications(Vec<Publication>),
    Disconnect(RemoteDisconnect),
    /// A remote command that this server does not know; accepted, counted, ignored.
    UnknownCommand(String),
    /// A known remote command with an unusable payload; accepted, counted, ignored.
    InvalidCommand(InvalidCommand),
}

/// Close the sessions of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteDisconnect {
    /// Connection identifiers, compared as bytes.
    pub identifiers: Box<str>,
    /// Whether the disconnect message tells the clients to reconnect.
    pub reconnect: bool,
}

/// Why the payload of a known remote command cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("payload of `{command}`: {cause}")]
pub struct InvalidCommand {
    pub command: &'static str,
    pub cause: PayloadError,
}

/// See [`InvalidCommand`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PayloadError {
    #[error("expected an object, found nothing")]
    Missing,
    #[error(transparent)]
    Json(#[from] JsonError),
}

/// Why a body is not a broadcast.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PublishError {
    #[error("not a publication, a batch or a command: {0}")]
    Body(#[from] JsonError),
    #[error(
        "expected a publication with a stream, a batch that starts with one, or a command; found none of their members"
    )]
    Unrecognized,
}

/// Recognizes the body of a broadcast request: a publication, else a batch, else a remote command.
///
/// `null` elements of a batch are skipped (the reference crashes on them).
///
/// # Errors
/// [`PublishError`] when the body is none of the three. The HTTP answer is 201 in this case too.
pub fn decode_broadcast(body: &[u8]) -> Result<Broadcast, PublishError> {
    if Reader::new(body).kind()? == JsonKind::Array {
        return decode_batch(body);
    }
    // If a body is both a publication with a stream and a command, it counts as a publication. If it fails as a publication,
    // it may still be a command.
    if let Ok(publication) = decode_publication(body)
        && !publication.stream.is_empty()
    {
        return Ok(Broadcast::Publications(vec![publication]));
    }
    decode_remote_command(body)
}

/// Gives publications the key of their request and their place in it, unless they have keys of their own.
pub fn give_keys(publications: &mut [Publication], key: &str) {
    for (place, publication) in publications.iter_mut().enumerate() {
        let own = &mut publication.idempotency_key;
        own.get_or_insert_with(|| format!("{key} {place}").into());
    }
}

/// Encodes `data` as the `message` of a delivery.
///
/// A complete JSON text is inserted as written, without the whitespace around it, so numbers keep all their digits. Any
/// other text becomes a JSON string. As in the reference, so do `null` and a lone number that does not fit into a double.
pub fn encode_message<'a>(data: impl Into<Cow<'a, str>>) -> Message {
    let data = data.into();
    let value = data.trim_matches([' ', '\t', '\n', '\r']);
    if value == "null" || !is_valid_json(value) || is_too_big_number(value) {
        let quoted = quoted(&data);
        // So that a huge text does not exist once more while the message is made.
        drop(data);
        return quoted.into();
    }
    value.as_bytes().into()
}

/// A client's whisper: `data` for all sessions that listen to `stream`, except `sid`. It is not stored.
pub fn whisper(stream: &str, data: &Data<'_>, sid: &str) -> Publication {
    let message = match data {
        Data::Absent => quoted("null").into(),
        Data::Text(text) => quoted(text).into(),
        Data::Json(json) => json.as_bytes().into(),
    };
    Publication {
        stream: stream.into(),
        message,
        exclude_socket: Some(sid.into()),
        transient: true,
        ..Publication::default()
    }
}

fn quoted(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    escape_into(&mut out, text);
    out
}

fn is_too_big_number(value: &str) -> bool {
    // Words such as `inf` are not JSON and are refused before this, so only digits can overflow.
    value.parse::<f64>().is_ok_and(f64::is_infinite)
}

fn decode_publication(body: &[u8]) -> Result<Publication, JsonError> {
    let mut reader = Reader::new(body);
    let publication = read_publication(&mut reader)?;
    reader.finish()?;
    Ok(publication)
}

fn decode_batch(body: &[u8]) -> Result<Broadcast, PublishError> {
    let mut reader = Reader::new(body);
    let mut batch = Vec::new();
    reader.array(|reader| {
        if !reader.take_null()? {
            batch.push(read_publication(reader)?);
        }
        Ok::<_, JsonError>(())
    })?;
    reader.finish()?;
    match batch.first() {
        Some(first) if !first.stream.is_empty() => Ok(Broadcast::Publications(batch)),
        _ => Err(PublishError::Unrecognized),
    }
}

fn decode_remote_command(body: &[u8]) -> Result<Broadcast, PublishError> {
    let mut reader = Reader::new(body);
    if reader.take_null()? {
        return Err(PublishError::Unrecognized);
    }
    let mut command = Cow::Borrowed("");
    let mut payload = None;
    reader.object(|reader, name| {
        if reader.take_null()? {
            return Ok(());
        }
        if name.eq_ignore_ascii_case("command") {
            command = reader.string()?;
        } else if name.eq_ignore_ascii_case("payload") {
            payload = Some(reader.raw_value()?);
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    reader.finish()?;
    Ok(match &*command {
        "" => return Err(PublishError::Unrecognized),
        "disconnect" => match decode_disconnect(payload) {
            Ok(disconnect) => Broadcast::Disconnect(disconnect),
            Err(cause) => Broadcast::InvalidCommand(InvalidCommand {
                command: "disconnect",
                cause,
            }),
        },
        _ => Broadcast::UnknownCommand(command.into_owned()),
    })
}

fn decode_disconnect(payload: Option<&[u8]>) -> Result<RemoteDisconnect, PayloadError> {
    let mut identifiers = Cow::Borrowed("");
    let mut reconnect = false;
    Reader::new(payload.ok_or(PayloadError::Missing)?).object(|reader, name| {
        if reader.take_null()? {
            return Ok(());
        }
        if name.eq_ignore_ascii_case("identifier") {
            identifiers = reader.string()?;
        } else if name.eq_ignore_ascii_case("reconnect") {
            reconnect = reader.boolean()?;
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(RemoteDisconnect {
        identifiers: identifiers.into(),
        reconnect,
    })
}

fn read_publication(reader: &mut Reader<'_>) -> Result<Publication, JsonError> {
    let mut stream = Cow::Borrowed("");
    let mut data = Cow::Borrowed("");
    let mut meta = Meta::default();
    reader.object(|reader, name| {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if reader.take_null()? {
            return Ok(());
        }
        if is("stream") {
            stream = reader.string()?;
        } else if is("data") {
            data = reader.string()?;
        } else if is("meta") {
            meta = read_meta(reader)?;
        } else if is("epoch") {
            // Positions come from the broker alone, so the type is checked and the value is ignored.
            reader.string()?;
        } else if is("offset") {
            reader.unsigned()?;
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(Publication {
        stream: stream.into(),
        message: encode_message(data),
        exclude_socket: meta.exclude_socket,
        broadcast_type: meta.broadcast_type,
        position: None,
        transient: meta.transient,
        idempotency_key: meta.idempotency_key,
    })
}

#[derive(Default)]
struct Meta {
    exclude_socket: Option<Box<str>>,
    broadcast_type: Option<Box<str>>,
    transient: bool,
    idempotency_key: Option<Box<str>>,
}

fn read_meta(reader: &mut Reader<'_>) -> Result<Meta, JsonError> {
    let mut meta = Meta::default();
    reader.object(|reader, name| {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if reader.take_null()? {
            return Ok(());
        }
        if is("exclude_socket") {
            meta.exclude_socket = filled(reader.string()?);
        } else if is("broadcast_type") {
            meta.broadcast_type = filled(reader.string()?);
        } else if is("transient") {
            meta.transient = reader.boolean()?;
        } else if is("idempotency_key") {
            meta.idempotency_key = filled(reader.string()?);
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    Ok(meta)
}

fn filled(text: Cow<'_, str>) -> Option<Box<str>> {
    if text.is_empty() {
        None
    } else {
        Some(text.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn publication(stream: &str, message: &str) -> Publication {
        Publication {
            stream: stream.into(),
            message: message.as_bytes().into(),
            ..Publication::default()
        }
    }

    #[test]
    fn publications_are_recognized_as_in_the_contract() {
        fn check(body: &str, expected: &[(&str, &str)]) {
            let expected = expected
                .iter()
                .map(|(stream, message)| publication(stream, message))
                .collect();
            assert_eq!(
                decode_broadcast(body.as_bytes()),
                Ok(Broadcast::Publications(expected)),
                "{body}"
            );
        }
        check(
            r#"{"stream":"room:1","data":"{\"text\":\"hi\"}"}"#,
            &[("room:1", r#"{"text":"hi"}"#)],
        );
        check(r#"{"stream":"x"}"#, &[("x", r#""""#)]);
        check(r#"{"stream":"x","data":null}"#, &[("x", r#""""#)]);
        check(r#"{"Stream":"x","DATA":"1"}"#, &[("x", "1")]);
        check(
            r#"{"stream":"x","data":"1","data":"2","new":[{}]}"#,
            &[("x", "2")],
        );
        check(
            r#"{"stream":"x","data":"1","command":"disconnect","payload":5}"#,
            &[("x", "1")],
        );
        check(
            r#"{"stream":"x","data":"1","epoch":"e","offset":5}"#,
            &[("x", "1")],
        );
        check(r#"{"stream":"x","data":"1","meta":null}"#, &[("x", "1")]);
        check(
            r#" [{"stream":"x","data":"13"},{"stream":"y","data":"14"}] "#,
            &[("x", "13"), ("y", "14")],
        );
        check(
            r#"[{"stream":"x","data":"1"},{"command":"disconnect"}]"#,
            &[("x", "1"), ("", r#""""#)],
        );
        check(r#"[{"stream":"x","data":"1"},null]"#, &[("x", "1")]);
        check(r#"[null,{"stream":"x","data":"1"}]"#, &[("x", "1")]);
    }

    #[test]
    fn unrecognized_bodies_are_errors() {
        for body in [
            "",
            "nope",
            "{}",
            "[]",
            "null",
            "[null]",
            "5",
            r#"{"stream":"x","data":{"a":1}}"#,
            r#"{"stream":"x","data":5}"#,
            r#"{"stream":"","data":"1"}"#,
            r#"{"stream":"x","data":"1","meta":"zz"}"#,
            r#"{"stream":"x","data":"1","meta":{"transient":1}}"#,
            r#"{"stream":"x","data":"1","meta":{"idempotency_key":5}}"#,
            r#"{"stream":"x","data":"1","offset":-1}"#,
            r#"{"stream":"x","data":"1"} x"#,
            r#"[{"stream":"x","data":"1"},{"stream":"y","data":2}]"#,
            r#"[{"data":"1"},{"stream":"x","data":"1"}]"#,
            r#"[{"stream":"x","data":"1"},5]"#,
            r#"[{"command":"disconnect","payload":{"identifier":"i"}}]"#,
            r#"{"command":""}"#,
            r#"{"command":5}"#,
        ] {
            assert!(decode_broadcast(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn meta_is_kept_where_it_matters() {
        fn check(meta: &str, expected: Publication) {
            let body = format!(r#"{{"stream":"x","data":"1","meta":{meta}}}"#);
            let decoded = decode_broadcast(body.as_bytes());
            assert_eq!(
                decoded,
                Ok(Broadcast::Publications(vec![expected])),
                "{meta}"
            );
        }
        let plain = || publication("x", "1");
        check("{}", plain());
        check(
            r#"{"exclude_socket":"sidA","new":1}"#,
            Publication {
                exclude_socket: Some("sidA".into()),
                ..plain()
            },
        );
        check(
            r#"{"broadcast_type":"whisper","transient":true}"#,
            Publication {
                broadcast_type: Some("whisper".into()),
                transient: true,
                ..plain()
            },
        );
        check(
            r#"{"Idempotency_Key":"order 5","transient":false}"#,
            Publication {
                idempotency_key: Some("order 5".into()),
                ..plain()
            },
        );
        check(
            r#"{"exclude_socket":"","broadcast_type":null,"transient":null,"idempotency_key":""}"#,
            plain(),
        );
    }

    #[test]
    fn remote_commands_are_recognized() {
        fn check(body: &str, identifiers: &str, reconnect: bool) {
            let expected = RemoteDisconnect {
                identifiers: identifiers.into(),
                reconnect,
            };
            assert_eq!(
                decode_broadcast(body.as_bytes()),
                Ok(Broadcast::Disconnect(expected)),
                "{body}"
            );
        }
        check(
            r#"{"command":"disconnect","payload":{"identifier":"{\"current_user\":\"Z2lk\"}","reconnect":false}}"#,
            r#"{"current_user":"Z2lk"}"#,
            false,
        );
        check(
            r#"{"command":"disconnect","payload":{"identifier":"i","reconnect":true,"new":1}}"#,
            "i",
            true,
        );
        check(
            r#"{"COMMAND":"disconnect","Payload":{"Identifier":"i"}}"#,
            "i",
            false,
        );
        check(
            r#"{"command":"disconnect","payload":{"identifier":"i"},"data":5}"#,
            "i",
            false,
        );
        check(
            r#"{"command":"disconnect","payload":{"identifier":"i"},"new":null}"#,
            "i",
            false,
        );
    }

    #[test]
    fn useless_remote_commands_are_told_apart() {
        for payload in [
            "",
            r#","payload":null"#,
            r#","payload":"i""#,
            r#","payload":{"identifier":5}"#,
            r#","payload":{"reconnect":"y"}"#,
        ] {
            let body = format!(r#"{{"command":"disconnect"{payload}}}"#);
            let decoded = decode_broadcast(body.as_bytes());
            assert!(
                matches!(decoded, Ok(Broadcast::InvalidCommand(_))),
                "{body} {decoded:?}"
            );
        }
        let decoded = decode_broadcast(br#"{"command":"subscribe","payload":{"identifier":"i"}}"#);
        assert_eq!(
            decoded,
            Ok(Broadcast::UnknownCommand("subscribe".to_owned()))
        );
    }

    #[test]
    fn data_becomes_a_message_as_in_the_contract() {
        fn check(data: &str, expected: &str) {
            assert_eq!(
                str::from_utf8(&encode_message(data)).unwrap(),
                expected,
                "{data:?}"
            );
        }
        check(r#"{"b":1,"a":2}"#, r#"{"b":1,"a":2}"#);
        check(r#""str""#, r#""str""#);
        check("12", "12");
        check("false", "false");
        check("0", "0");
        check("[]", "[]");
        check("{}", "{}");
        check(" {\"a\" : 1}\n", "{\"a\" : 1}");
        check("12345678901234567890", "12345678901234567890");
        check("1.50", "1.50");
        check("null", r#""null""#);
        check(" null ", r#"" null ""#);
        check("", r#""""#);
        check("plain", r#""plain""#);
        check("<b>", r#""\u003cb\u003e""#);
        check(r#"{"a":1} x"#, r#""{\"a\":1} x""#);
        check(r#"{"a":1,}"#, r#""{\"a\":1,}""#);
        check("01", r#""01""#);
        check("NaN", r#""NaN""#);
        check("1e400", r#""1e400""#);
        check("-1e400", r#""-1e400""#);
        check("\u{feff}1", "\"\u{feff}1\"");
        check("[1e400]", "[1e400]");
    }

    #[test]
    fn broken_text_in_data_is_replaced() {
        let decoded = decode_broadcast(b"{\"stream\":\"x\",\"data\":\"a\xffb\"}");
        let expected = publication("x", "\"a\u{fffd}b\"");
        assert_eq!(decoded, Ok(Broadcast::Publications(vec![expected])));
    }

    #[test]
    fn whispers_exclude_their_sender() {
        fn check(data: Data<'_>, message: &str) {
            let expected = Publication {
                exclude_socket: Some("sidA".into()),
                transient: true,
                ..publication("x", message)
            };
            assert_eq!(whisper("x", &data, "sidA"), expected);
        }
        check(Data::Absent, r#""null""#);
        check(Data::Text("12".into()), r#""12""#);
        check(Data::Text("<b>".into()), r#""\u003cb\u003e""#);
        check(Data::Json(r#"{"a": [1]}"#.into()), r#"{"a": [1]}"#);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(body in any::<Vec<u8>>()) {
            let _ = decode_broadcast(&body);
        }

        #[test]
        fn cut_and_damaged_bodies_never_panic(cut in 0usize..200, at in 0usize..200, byte in any::<u8>()) {
            let mut body = br#"[{"stream":"x","data":"{\"a\":[1,\"\\ud83c\"]}","meta":{"exclude_socket":"s","broadcast_type":"t","transient":true,"idempotency_key":"k"}},null,{"command":"disconnect","payload":{"identifier":"i","reconnect":true}}]"#.to_vec();
            prop_assert!(decode_broadcast(&body).is_ok());
            let cut = cut.min(body.len() - 1);
            prop_assert!(decode_broadcast(&body[..cut]).is_err());
            let _ = decode_broadcast(&body[1..cut.max(1)]);
            let at = at.min(body.len() - 1);
            body[at] = byte;
            let _ = decode_broadcast(&body);
        }

        #[test]
        fn a_message_is_always_one_valid_value(data in any::<String>()) {
            let message = encode_message(&data);
            let value: serde_json::Value = serde_json::from_slice(&message).unwrap();
            prop_assert!(!value.is_null());
        }
    }
}
