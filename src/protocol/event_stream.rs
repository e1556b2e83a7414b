//! What the server says as server-sent events: the text of an `EventSource` stream.
//!
//! This file turns replies and publications into events, for clients of each [`View`]. It knows no HTTP: `shard::sessions`
//! puts the text into the body of an answer.
//!
//! Source: `contract/http_transports.md` §1.4, HTML Living Standard §9.2.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use super::json::{JsonError, JsonKind, Reader, decode_string};
use super::position::Position;
use super::reply::{self, Reply};

/// Keeps a connection alive without an event. An `EventSource` ignores comments.
pub const COMMENT: &[u8] = b":\n\n";

/// The longest time for which a client can be told to wait, in milliseconds: clients keep it in 31 bits. The reference sends
/// a year, which is more, and some clients then wait not at all.
const RETRY_MILLIS: &[u8] = b"2147483647";

/// What a client wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct View {
    /// Of an event without a type only the message, instead of the whole reply around it.
    pub unwrap: bool,
    /// No events with a type.
    pub raw: bool,
}

impl View {
    /// Whether the client gets events of this type; empty: without one.
    pub fn shows(self, kind: &str) -> bool {
        !self.raw || kind.is_empty()
    }
}

/// Appends the event of a reply. False, and nothing is appended, when the client does not get it.
pub fn reply_event(reply: &Reply, view: View, out: &mut Vec<u8>) -> bool {
    let (kind, message) = match reply {
        Reply::Transmission(text) => match transmission(text) {
            Ok(Transmission { kind, message }) => (kind, message),
            // A client could not tell it from a message.
            Err(_) => return false,
        },
        reply => (Cow::Borrowed(kind_of(reply)), None),
    };
    if !view.shows(&kind) {
        return false;
    }
    begin(&kind, out);
    match message.filter(|_| view.unwrap && kind.is_empty()) {
        Some(message) => message_lines(message, out),
        None => lines(&reply.json(), out),
    }
    if let Reply::Disconnect {
        reconnect: false, ..
    } = reply
    {
        out.extend_from_slice(b"\nretry: ");
        out.extend_from_slice(RETRY_MILLIS);
    }
    out.extend_from_slice(b"\n\n");
    true
}

fn kind_of(reply: &Reply) -> &'static str {
    match reply {
        Reply::Welcome { .. } | Reply::RestoredWelcome { .. } => "welcome",
        Reply::Ping { .. } => "ping",
        Reply::Pong => "pong",
        Reply::Disconnect { .. } => "disconnect",
        Reply::ConfirmSubscription { .. } => "confirm_subscription",
        Reply::RejectSubscription { .. } => "reject_subscription",
        Reply::ConfirmHistory { .. } => "confirm_history",
        Reply::RejectHistory { .. } => "reject_history",
        Reply::PresenceInfo { .. } | Reply::PresenceError { .. } => "presence",
        Reply::Transmission(_) => "",
    }
}

/// What the event of a transmission is made of.
struct Transmission<'a> {
    kind: Cow<'a, str>,
    /// JSON.
    message: Option<&'a [u8]>,
}

fn transmission(text: &str) -> Result<Transmission<'_>, JsonError> {
    let mut reader = Reader::new(text.as_bytes());
    let mut found = Transmission {
        kind: Cow::Borrowed(""),
        message: None,
    };
    reader.object(|reader, name| {
        if name.eq_ignore_ascii_case("type") && reader.kind()? == JsonKind::String {
            found.kind = reader.string()?;
        } else if name.eq_ignore_ascii_case("message") {
            found.message = Some(reader.raw_value()?);
        } else {
            reader.skip_value()?;
        }
        Ok::<_, JsonError>(())
    })?;
    reader.finish()?;
    Ok(found)
}

/// The parts of the event of a publication: the message stands between them as it is, so that it need not be copied.
#[derive(Debug, PartialEq, Eq)]
pub struct Around {
    pub before: Vec<u8>,
    pub after: Vec<u8>,
}

/// What a client gets of one publication.
#[derive(Debug, Clone, Copy)]
pub struct PublicationEvent<'a> {
    pub identifier: &'a str,
    pub stream: &'a str,
    /// JSON.
    pub message: &'a [u8],
    /// Empty: none.
    pub kind: &'a str,
    pub position: Option<Position>,
    /// See [`View::unwrap`].
    pub unwrap: bool,
}

impl PublicationEvent<'_> {
    fn is_unwrapped(&self) -> bool {
        self.unwrap && self.kind.is_empty()
    }

    /// Appends the event.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.before(out);
        if self.is_unwrapped() {
            message_rest_of_lines(self.message, out);
        } else {
            rest_of_lines(self.message, out);
        }
        self.after(out);
    }

    /// The event around its message. `None` when the message has to be changed to be part of an event.
    pub fn around(&self) -> Option<Around> {
        let is_text = self.is_unwrapped() && self.message.first() == Some(&b'"');
        if is_text || memchr2(b'\n', b'\r', self.message).is_some() {
            return None;
        }
        let (mut before, mut after) = (Vec::new(), Vec::new());
        self.before(&mut before);
        self.after(&mut after);
        Some(Around { before, after })
    }

    fn before(&self, out: &mut Vec<u8>) {
        begin(self.kind, out);
        out.extend_from_slice(b"data: ");
        if !self.is_unwrapped() {
            let kind = Some(self.kind).filter(|kind| !kind.is_empty());
            reply::begin_data_message(self.identifier, kind, out);
        }
    }

    fn after(&self, out: &mut Vec<u8>) {
        if !self.is_unwrapped() {
            reply::end_data_message(self.stream, self.position, out);
        }
        if let Some(position) = self.position {
            id(self.stream, position, out);
        }
        out.extend_from_slice(b"\n\n");
    }
}

/// Appends the type of an event; nothing when it has none. The type of a publication comes from the app and may be any text,
/// but a line break would end the line.
fn begin(kind: &str, out: &mut Vec<u8>) {
    if kind.is_empty() {
        return;
    }
    out.extend_from_slice(b"event: ");
    let line = kind.bytes().map(|byte| match byte {
        b'\n' | b'\r' => b' ',
        byte => byte,
    });
    out.extend(line);
    out.push(b'\n');
}

/// Appends the id by which a client continues the stream. A stream whose name cannot be part of an id has none.
fn id(stream: &str, position: Position, out: &mut Vec<u8>) {
    let breaks = memchr2(b'\n', b'\r', stream.as_bytes());
    if breaks.or(memchr(0, stream.as_bytes())).is_some() {
        return;
    }
    out.extend_from_slice(b"\nid: ");
    out.extend_from_slice(itoa::Buffer::new().format(position.offset).as_bytes());
    out.push(b'/');
    out.extend_from_slice(&position.epoch.encode());
    out.push(b'/');
    out.extend_from_slice(stream.as_bytes());
}

/// Appends the data of an event, without the last line break.
fn lines(payload: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    rest_of_lines(payload, out);
}

/// The same for a message: a string is its text, any other value its JSON.
fn message_lines(message: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: ");
    message_rest_of_lines(message, out);
}

fn message_rest_of_lines(message: &[u8], out: &mut Vec<u8>) {
    match decode_string(message) {
        Some(text) => rest_of_lines(text.as_bytes(), out),
        None => rest_of_lines(message, out),
    }
}

/// Appends data whose first line has begun. Each line break in it begins a new line of the event: CRLF, CR or LF, as an
/// `EventSource` ends lines.
pub fn rest_of_lines(payload: &[u8], out: &mut Vec<u8>) {
    let mut rest = payload;
    while let Some(at) = memchr2(b'\n', b'\r', rest) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(b"\ndata: ");
        let is_pair = rest[at..].starts_with(b"\r\n");
        rest = &rest[at + 1 + usize::from(is_pair)..];
    }
    out.extend_from_slice(rest);
}

/// One event as an `EventSource` reads it.
#[cfg(any(test, feature = "fuzzing"))]
#[derive(Debug, PartialEq, Eq)]
pub struct ReadEvent {
    pub kind: String,
    pub data: String,
    /// The last id so far.
    pub id: String,
}

/// All events of a stream. Source: HTML Living Standard §9.2.6.
#[cfg(any(test, feature = "fuzzing"))]
pub fn read(text: &str) -> Vec<ReadEvent> {
    let mut events = Vec::new();
    let (mut kind, mut data, mut id) = (String::new(), String::new(), String::new());
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    // The last line has no end and does not count.
    let lines = text.split('\n').take(text.matches('\n').count());
    for line in lines {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" if line.is_empty() && data.is_empty() => kind.clear(),
            "" if line.is_empty() => {
                data.pop();
                events.push(ReadEvent {
                    kind: std::mem::take(&mut kind),
                    data: std::mem::take(&mut data),
                    id: id.clone(),
                });
            }
            "data" => {
                data.push_str(value);
                data.push('\n');
            }
            "event" => kind = value.to_owned(),
            "id" if !value.contains('\0') => id = value.to_owned(),
            _ => {}
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::disconnect::DisconnectReason;
    use crate::protocol::position::Epoch;

    const WHOLE: View = View {
        unwrap: false,
        raw: false,
    };
    const UNWRAPPED: View = View {
        unwrap: true,
        raw: false,
    };
    const RAW: View = View {
        unwrap: true,
        raw: true,
    };

    #[track_caller]
    fn check_reply(reply: &Reply, view: View, expected: &str) {
        let mut out = Vec::new();
        let shown = reply_event(reply, view, &mut out);
        assert_eq!(str::from_utf8(&out).expect("UTF-8"), expected);
        assert_eq!(shown, !expected.is_empty());
    }

    #[test]
    fn what_has_a_type_is_the_whole_reply_and_not_for_raw_clients() {
        let check = |reply: Reply, expected: &str| {
            check_reply(&reply, WHOLE, expected);
            check_reply(&reply, UNWRAPPED, expected);
            check_reply(&reply, RAW, "");
        };
        check(
            Reply::Welcome { sid: "s".into() },
            "event: welcome\ndata: {\"type\":\"welcome\",\"sid\":\"s\"}\n\n",
        );
        check(
            Reply::Ping { timestamp: 7 },
            "event: ping\ndata: {\"type\":\"ping\",\"message\":7}\n\n",
        );
        let identifier = || Box::from("A");
        check(
            Reply::ConfirmSubscription {
                identifier: identifier(),
            },
            "event: confirm_subscription\ndata: {\"type\":\"confirm_subscription\",\"identifier\":\"A\"}\n\n",
        );
        check(
            Reply::ConfirmHistory {
                identifier: identifier(),
            },
            "event: confirm_history\ndata: {\"type\":\"confirm_history\",\"identifier\":\"A\"}\n\n",
        );
        check(
            Reply::RejectHistory {
                identifier: identifier(),
            },
            "event: reject_history\ndata: {\"type\":\"reject_history\",\"identifier\":\"A\"}\n\n",
        );
        check(
            Reply::Disconnect {
                reason: DisconnectReason::ServerRestart,
                reconnect: true,
            },
            "event: disconnect\ndata: {\"type\":\"disconnect\",\"reason\":\"server_restart\",\"reconnect\":true}\n\n",
        );
        check(
            Reply::Disconnect {
                reason: DisconnectReason::Remote,
                reconnect: false,
            },
            "event: disconnect\ndata: {\"type\":\"disconnect\",\"reason\":\"remote\",\"reconnect\":false}\n\
             retry: 2147483647\n\n",
        );
    }

    #[test]
    fn a_transmission_is_an_event_of_its_type() {
        let check = |text: &str, whole: &str, unwrapped: &str, raw: &str| {
            let reply = Reply::Transmission(text.to_owned());
            check_reply(&reply, WHOLE, whole);
            check_reply(&reply, UNWRAPPED, unwrapped);
            check_reply(&reply, RAW, raw);
        };
        let welcome = "event: welcome\ndata: {\"type\":\"welcome\"}\n\n";
        check(r#"{"type":"welcome"}"#, welcome, welcome, "");
        check(
            r#"{"identifier":"A","message":"a\nb"}"#,
            "data: {\"identifier\":\"A\",\"message\":\"a\\nb\"}\n\n",
            "data: a\ndata: b\n\n",
            "data: a\ndata: b\n\n",
        );
        let untyped = "data: {\"message\":{\"a\": 1}}\n\n";
        check(
            r#"{"message":{"a": 1}}"#,
            untyped,
            "data: {\"a\": 1}\n\n",
            "data: {\"a\": 1}\n\n",
        );
        let other = "data: {\"x\":1}\n\n";
        check(r#"{"x":1}"#, other, other, other);
        check(
            "{\"type\":5,\n\"x\":1}",
            "data: {\"type\":5,\ndata: \"x\":1}\n\n",
            "data: {\"type\":5,\ndata: \"x\":1}\n\n",
            "data: {\"type\":5,\ndata: \"x\":1}\n\n",
        );
        for text in ["", "confirm", "5", "[]", "null", "{", "{} x"] {
            check(text, "", "", "");
        }
    }

    fn event<'a>(message: &'a str, kind: &'a str, stream: &'a str) -> PublicationEvent<'a> {
        PublicationEvent {
            identifier: "A",
            stream,
            message: message.as_bytes(),
            kind,
            position: None,
            unwrap: true,
        }
    }

    #[track_caller]
    fn check_event(event: PublicationEvent<'_>, expected: &str) {
        let mut out = Vec::new();
        event.encode(&mut out);
        assert_eq!(str::from_utf8(&out).expect("UTF-8"), expected);
        if let Some(around) = event.around() {
            let joined = [&around.before[..], event.message, &around.after].concat();
            assert_eq!(joined, out);
        }
    }

    #[test]
    fn a_publication_is_its_message_or_the_whole_reply() {
        let whole = |event| PublicationEvent {
            unwrap: false,
            ..event
        };
        let position = Some(Position {
            epoch: Epoch::from_bits(0),
            offset: 5,
        });
        let placed = |event| PublicationEvent { position, ..event };
        check_event(event("1", "", "s"), "data: 1\n\n");
        check_event(event(r#""""#, "", "s"), "data: \n\n");
        check_event(event(r#""<b> \"é\"""#, "", "s"), "data: <b> \"é\"\n\n");
        check_event(
            event(r#""1\r2\r\n3\n\n4\r""#, "", "s"),
            "data: 1\ndata: 2\ndata: 3\ndata: \ndata: 4\ndata: \n\n",
        );
        check_event(
            event("{\"a\":\r\n1}", "", "s"),
            "data: {\"a\":\ndata: 1}\n\n",
        );
        check_event(
            whole(event("\"x\"", "", "s")),
            "data: {\"identifier\":\"A\",\"message\":\"x\"}\n\n",
        );
        check_event(
            event("4", "whisper", "s"),
            "event: whisper\ndata: {\"type\":\"whisper\",\"identifier\":\"A\",\"message\":4}\n\n",
        );
        check_event(
            event("4", "a\r\nb", "s"),
            "event: a  b\ndata: {\"type\":\"a\\r\\nb\",\"identifier\":\"A\",\"message\":4}\n\n",
        );
        check_event(
            placed(event("4", "", "a/b")),
            "data: 4\nid: 5/________/a/b\n\n",
        );
        check_event(
            placed(whole(event("4", "", "s"))),
            "data: {\"identifier\":\"A\",\"message\":4,\"stream_id\":\"s\",\"epoch\":\"________\",\"offset\":5}\n\
             id: 5/________/s\n\n",
        );
        for stream in ["a\nb", "a\rb", "a\0b"] {
            check_event(placed(event("4", "", stream)), "data: 4\n\n");
        }
    }

    #[test]
    fn only_a_message_of_one_line_need_not_be_changed() {
        let is_around = |event: PublicationEvent<'_>| event.around().is_some();
        assert!(is_around(event("[1]", "", "s")));
        assert!(!is_around(event("[1,\n2]", "", "s")));
        assert!(!is_around(event("\"x\"", "", "s")));
        assert!(is_around(event("\"x\"", "t", "s")));
    }

    proptest! {
        #[test]
        fn an_event_source_reads_one_event_with_the_text_that_was_sent(
            text in "([a: \r\n]|.){0,30}",
            kind in "([a: \r\n]|.){0,8}",
            stream in "([a/\r\n\0]|.){0,8}",
            offset: u64,
            epoch: u64,
        ) {
            let message = serde_json::Value::from(text.as_str()).to_string();
            let position = Some(Position { epoch: Epoch::from_bits(epoch), offset });
            let event = PublicationEvent { position, ..event(&message, &kind, &stream) };
            let mut out = Vec::new();
            event.encode(&mut out);
            let events = read(str::from_utf8(&out).expect("UTF-8"));
            prop_assert_eq!(events.len(), 1, "{:?}", out);
            let ReadEvent { data, kind: read_kind, id } = &events[0];
            prop_assert_eq!(read_kind, &kind.replace(['\r', '\n'], " "));
            if kind.is_empty() {
                prop_assert_eq!(data, &text.replace("\r\n", "\n").replace('\r', "\n"));
            } else {
                let data: serde_json::Value = serde_json::from_str(data).expect("JSON");
                prop_assert_eq!(&data["message"], text.as_str());
            }
            let has_id = !stream.contains(['\r', '\n', '\0']);
            let expected = format!("{offset}/{}/{stream}", Epoch::from_bits(epoch));
            prop_assert_eq!(id, if has_id { &expected } else { "" });
        }

        #[test]
        fn any_transmission_is_one_event_or_none(text in any::<String>(), unwrap: bool, raw: bool) {
            for text in [text.clone(), serde_json::json!({ "type": text, "message": [text] }).to_string()] {
                let mut out = Vec::new();
                let shown = reply_event(&Reply::Transmission(text), View { unwrap, raw }, &mut out);
                let events = read(str::from_utf8(&out).expect("UTF-8"));
                prop_assert_eq!(events.len(), usize::from(shown));
            }
        }
    }
}
