//! Everything that the server says to a client, as values, and the JSON text of these values.
//!
//! The order of keys and the escaping are defined here. `session` makes replies, and `shard::sessions` encodes them before
//! it sends them. A delivery is encoded once for all its receivers.
//!
//! Source: `contract/websocket.md` §5 and §7, `contract/extended.md` §2.

use std::borrow::Cow;

use bytes::Bytes;

use super::disconnect::DisconnectReason;
use super::json::escape_into;
use super::position::{EPOCH_LENGTH, Position};
use super::presence;

/// A JSON value that can be inserted as it is; [`crate::protocol::publication::encode_message`] makes it.
pub type MessageJson = [u8];

/// What the server says to one client, before a format turns it into bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The welcome of a session that the server itself has authenticated (token, `--noauth`). With RPC the app sends its
    /// own.
    Welcome { sid: Box<str> },
    /// The welcome of a session that continues an earlier one, under a new sid.
    RestoredWelcome {
        sid: Box<str>,
        /// Its subscriptions.
        identifiers: Vec<Box<str>>,
    },
    /// Unix time in the precision that the client asked for.
    Ping { timestamp: i128 },
    /// Answer to a client's `ping` command.
    Pong,
    /// The notice before the server closes; `reconnect` tells the client whether to reconnect.
    Disconnect {
        reason: DisconnectReason,
        reconnect: bool,
    },
    /// A subscription that the server confirmed without asking the app.
    ConfirmSubscription { identifier: Box<str> },
    /// A subscription that the server rejected without asking the app.
    RejectSubscription { identifier: Box<str> },
    /// The client asked for history, and nothing had to be fetched.
    ConfirmHistory { identifier: Box<str> },
    /// The client asked for history, which this server does not keep.
    RejectHistory { identifier: Box<str> },
    /// The client asked who is present.
    PresenceInfo {
        identifier: Box<str>,
        /// From [`presence::info_message`].
        info: Bytes,
    },
    /// The client asked for presence, which this server does not keep.
    PresenceError { identifier: Box<str> },
    /// JSON text of the app for the client, sent unchanged.
    Transmission(String),
}

impl Reply {
    /// The text for the base and the extended protocol. Transmissions are not copied.
    pub fn json(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Welcome { sid } => welcome(sid).into(),
            Self::RestoredWelcome { sid, identifiers } => restored_welcome(sid, identifiers).into(),
            Self::Ping { timestamp } => ping(*timestamp).into(),
            Self::Pong => Cow::Borrowed(br#"{"type":"pong"}"#),
            Self::Disconnect { reason, reconnect } => disconnect(*reason, *reconnect).into(),
            Self::ConfirmSubscription { identifier } => {
                about_identifier("confirm_subscription", identifier).into()
            }
            Self::RejectSubscription { identifier } => {
                about_identifier("reject_subscription", identifier).into()
            }
            Self::ConfirmHistory { identifier } => {
                about_identifier("confirm_history", identifier).into()
            }
            Self::RejectHistory { identifier } => {
                about_identifier("reject_history", identifier).into()
            }
            Self::PresenceInfo { identifier, info } => about_presence(identifier, info).into(),
            Self::PresenceError { identifier } => {
                about_presence(identifier, presence::ERROR_MESSAGE).into()
            }
            Self::Transmission(text) => Cow::Borrowed(text.as_bytes()),
        }
    }
}

/// Unlike in the reference, the sid is escaped: it may come from a request header and contain a quote.
fn welcome(sid: &str) -> Vec<u8> {
    let mut out = br#"{"type":"welcome","sid":"#.to_vec();
    escape_into(&mut out, sid);
    out.push(b'}');
    out
}

/// Like other empty values, an empty list is left out.
fn restored_welcome(sid: &str, identifiers: &[Box<str>]) -> Vec<u8> {
    let mut out = br#"{"type":"welcome","sid":"#.to_vec();
    escape_into(&mut out, sid);
    out.extend_from_slice(br#","restored":true"#);
    let mut before = &br#","restored_ids":["#[..];
    for identifier in identifiers {
        out.extend_from_slice(before);
        escape_into(&mut out, identifier);
        before = b",";
    }
    out.extend_from_slice(if identifiers.is_empty() { b"}" } else { b"]}" });
    out
}

fn ping(timestamp: i128) -> Vec<u8> {
    let mut out = br#"{"type":"ping","message":"#.to_vec();
    out.extend_from_slice(itoa::Buffer::new().format(timestamp).as_bytes());
    out.push(b'}');
    out
}

fn disconnect(reason: DisconnectReason, reconnect: bool) -> Vec<u8> {
    let mut out = br#"{"type":"disconnect","reason":"#.to_vec();
    escape_into(&mut out, reason.as_str());
    out.extend_from_slice(if reconnect {
        br#","reconnect":true}"#
    } else {
        br#","reconnect":false}"#
    });
    out
}

fn about_presence(identifier: &str, message: &MessageJson) -> Vec<u8> {
    let mut out = Vec::new();
    data_message(
        identifier,
        message,
        Some(presence::BROADCAST_TYPE),
        &mut out,
    );
    out
}

/// The connection identifiers of a client that no token and no app has identified: `{"sid":"…"}`.
///
/// Source: `contract/auth_streams.md` §4.
pub fn sid_identifiers(sid: &str) -> String {
    let mut out = br#"{"sid":"#.to_vec();
    escape_into(&mut out, sid);
    out.push(b'}');
    String::from_utf8(out).expect("escaped text is UTF-8")
}

/// Appends a delivery to `out`: `{"identifier":…,"message":…}`, with a leading `"type"` when the publication has one.
///
/// Called once per publication and identifier on each shard; all receivers share the bytes.
pub fn data_message(
    identifier: &str,
    message: &MessageJson,
    broadcast_type: Option<&str>,
    out: &mut Vec<u8>,
) {
    // The keys and quotes take 30 bytes. An identifier is JSON text, and each of its quotes needs a backslash.
    out.reserve(48 + identifier.len() + identifier.len() / 2 + message.len());
    begin_data_message(identifier, broadcast_type, out);
    out.extend_from_slice(message);
    end_data_message("", None, out);
}

/// Appends a delivery up to its message; [`end_data_message`] follows that message.
pub fn begin_data_message(identifier: &str, broadcast_type: Option<&str>, out: &mut Vec<u8>) {
    out.push(b'{');
    if let Some(broadcast_type) = broadcast_type {
        text_member(out, "type", broadcast_type);
    }
    text_member(out, "identifier", identifier);
    out.extend_from_slice(br#""message":"#);
}

/// Appends what follows the message of a delivery: its position in `stream`, if the publication has one, and the end.
pub fn end_data_message(stream: &str, position: Option<Position>, out: &mut Vec<u8>) {
    if let Some(position) = position {
        // The keys and quotes take 40 bytes, the longest offset 20.
        out.reserve(64 + EPOCH_LENGTH + stream.len());
        out.extend_from_slice(br#","stream_id":"#);
        escape_into(out, stream);
        out.extend_from_slice(br#","epoch":""#);
        out.extend_from_slice(&position.epoch.encode());
        out.extend_from_slice(br#"","offset":"#);
        out.extend_from_slice(itoa::Buffer::new().format(position.offset).as_bytes());
    }
    out.push(b'}');
}

fn about_identifier(kind: &str, identifier: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + identifier.len() * 2);
    out.push(b'{');
    text_member(&mut out, "type", kind);
    text_member(&mut out, "identifier", identifier);
    // Each member ends with a comma; the last comma is replaced by the end of the object.
    if let Some(last) = out.last_mut() {
        *last = b'}';
    }
    out
}

/// Appends `"name":"value",`, or nothing when the value is empty, as the reference does.
fn text_member(out: &mut Vec<u8>, name: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    escape_into(out, value);
    out.push(b',');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::position::Epoch;

    #[test]
    fn replies_are_the_bytes_of_the_contract() {
        fn check(reply: Reply, expected: &str) {
            assert_eq!(str::from_utf8(&reply.json()).unwrap(), expected);
        }
        check(Reply::Pong, r#"{"type":"pong"}"#);
        check(
            Reply::Welcome {
                sid: "Ab-_9".into(),
            },
            r#"{"type":"welcome","sid":"Ab-_9"}"#,
        );
        check(
            Reply::Welcome { sid: "a\"b".into() },
            r#"{"type":"welcome","sid":"a\"b"}"#,
        );
        let restored = |identifiers: &[&str]| Reply::RestoredWelcome {
            sid: "b\"".into(),
            identifiers: identifiers.iter().map(|&it| it.into()).collect(),
        };
        check(
            restored(&[]),
            r#"{"type":"welcome","sid":"b\"","restored":true}"#,
        );
        check(
            restored(&["A"]),
            r#"{"type":"welcome","sid":"b\"","restored":true,"restored_ids":["A"]}"#,
        );
        check(
            restored(&[r#"{"channel":"A"}"#, ""]),
            r#"{"type":"welcome","sid":"b\"","restored":true,"restored_ids":["{\"channel\":\"A\"}",""]}"#,
        );
        check(
            Reply::Ping {
                timestamp: 1_700_000_000,
            },
            r#"{"type":"ping","message":1700000000}"#,
        );
        check(
            Reply::Ping {
                timestamp: 1_700_000_000_123_456_789,
            },
            r#"{"type":"ping","message":1700000000123456789}"#,
        );
        check(
            Reply::Disconnect {
                reason: DisconnectReason::Unauthorized,
                reconnect: false,
            },
            r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#,
        );
        check(
            Reply::Disconnect {
                reason: DisconnectReason::ServerRestart,
                reconnect: true,
            },
            r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#,
        );
        let identifier = r#"{"channel":"A"}"#;
        check(
            Reply::ConfirmSubscription {
                identifier: identifier.into(),
            },
            r#"{"type":"confirm_subscription","identifier":"{\"channel\":\"A\"}"}"#,
        );
        check(
            Reply::RejectSubscription {
                identifier: identifier.into(),
            },
            r#"{"type":"reject_subscription","identifier":"{\"channel\":\"A\"}"}"#,
        );
        check(
            Reply::ConfirmHistory {
                identifier: "<A>".into(),
            },
            r#"{"type":"confirm_history","identifier":"\u003cA\u003e"}"#,
        );
        check(
            Reply::RejectHistory {
                identifier: "".into(),
            },
            r#"{"type":"reject_history"}"#,
        );
        let info = r#"{"type":"info","total":1,"records":[{"info":[1.50],"id":"5"}]}"#;
        check(
            Reply::PresenceInfo {
                identifier: "A".into(),
                info: info.into(),
            },
            &format!(r#"{{"type":"presence","identifier":"A","message":{info}}}"#),
        );
        check(
            Reply::PresenceError {
                identifier: "A".into(),
            },
            r#"{"type":"presence","identifier":"A","message":{"type":"error","total":0}}"#,
        );
    }

    #[test]
    fn deliveries_splice_the_message_as_it_is() {
        fn check(identifier: &str, message: &str, broadcast_type: Option<&str>, expected: &str) {
            let mut out = b"before ".to_vec();
            data_message(identifier, message.as_bytes(), broadcast_type, &mut out);
            assert_eq!(str::from_utf8(&out).unwrap(), format!("before {expected}"));
        }
        check("A", "1", None, r#"{"identifier":"A","message":1}"#);
        check("A", r#""""#, None, r#"{"identifier":"A","message":""}"#);
        check(
            "A",
            "4",
            Some("whisper"),
            r#"{"type":"whisper","identifier":"A","message":4}"#,
        );
        check("A", "4", Some(""), r#"{"identifier":"A","message":4}"#);
        check("", "4", None, r#"{"message":4}"#);
        check(
            r#"{"channel":"RoomChannel","room_id":1}"#,
            "{\"b\": 1.50,\n\"a\":12345678901234567890}",
            None,
            "{\"identifier\":\"{\\\"channel\\\":\\\"RoomChannel\\\",\\\"room_id\\\":1}\",\
             \"message\":{\"b\": 1.50,\n\"a\":12345678901234567890}}",
        );
    }

    #[test]
    fn a_position_follows_the_message() {
        fn check(stream: &str, epoch: u64, offset: u64, expected: &str) {
            let mut out = Vec::new();
            begin_data_message("A", Some("t"), &mut out);
            out.extend_from_slice(b"1");
            let epoch = Epoch::from_bits(epoch);
            end_data_message(stream, Some(Position { epoch, offset }), &mut out);
            assert_eq!(str::from_utf8(&out).unwrap(), expected);
        }
        check(
            "room:1",
            0,
            1,
            r#"{"type":"t","identifier":"A","message":1,"stream_id":"room:1","epoch":"________","offset":1}"#,
        );
        check(
            "\"é<\n",
            u64::MAX,
            u64::MAX,
            r#"{"type":"t","identifier":"A","message":1,"stream_id":"\"é\u003c\n","epoch":"ZZZZZZZZ","offset":18446744073709551615}"#,
        );
    }

    proptest! {
        #[test]
        fn a_delivery_parses_to_what_went_in(identifier in ".+", text in any::<String>(), number in any::<i64>()) {
            let message = serde_json::json!({ "text": text, "number": number });
            let mut out = Vec::new();
            data_message(&identifier, message.to_string().as_bytes(), None, &mut out);
            let parsed: serde_json::Value = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(parsed, serde_json::json!({ "identifier": identifier, "message": message }));
        }
    }
}
