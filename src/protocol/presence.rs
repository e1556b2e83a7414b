//! The messages about presence: the events of a presence stream, and the answers about who is there.
//!
//! Each is the `message` of a delivery whose `type` is [`BROADCAST_TYPE`]. Called by `broker`, `session` and `endpoints`.
//!
//! Source: `contract/extended.md` §2 and §7, `contract/http_transports.md` §2.

use bytes::Bytes;

use super::json::escape_into;
use super::publication::{Message, Publication};

/// The `type` of deliveries about presence.
pub const BROADCAST_TYPE: &str = "presence";

/// The answer about a stream whose presence is not known: the server keeps none, or the answer would be too long.
pub const ERROR_MESSAGE: &[u8] = br#"{"type":"error","total":0}"#;

/// Memory in which a record of an answer fits beside its texts, unless the id has to be escaped.
pub const RECORD_BYTES: usize = 20;

/// A member of a presence stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PresenceRecord<'a> {
    /// Chosen by the client or the app; may be empty.
    pub id: &'a str,
    /// A JSON value that can be inserted as it is. `None` when none was given, or `null`.
    pub info: Option<&'a str>,
}

/// What the listeners of a presence stream are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresenceEvent<'a> {
    Join(PresenceRecord<'a>),
    Leave { id: &'a str },
}

impl PresenceEvent<'_> {
    /// The event for all that listen to the presence stream. It is not stored.
    pub fn publication(&self, stream: &str) -> Publication {
        Publication {
            stream: stream.into(),
            message: self.message(),
            broadcast_type: Some(BROADCAST_TYPE.into()),
            transient: true,
            ..Publication::default()
        }
    }

    /// The `message` of the event.
    pub fn message(&self) -> Message {
        match self {
            Self::Join(record) => {
                let mut out = b"{\"id\":".to_vec();
                escape_into(&mut out, record.id);
                if let Some(info) = record.info {
                    out.extend_from_slice(b",\"info\":");
                    out.extend_from_slice(info.as_bytes());
                }
                out.extend_from_slice(br#","type":"join"}"#);
                out.into()
            }
            Self::Leave { id } => {
                let mut out = b"{\"id\":".to_vec();
                escape_into(&mut out, id);
                out.extend_from_slice(br#","type":"leave"}"#);
                out.into()
            }
        }
    }
}

/// The answer about a stream with `total` members: all of them, or none of them if only the number was asked for.
///
/// `text_bytes` is about what the records' texts take.
pub fn info_message<'a>(
    total: usize,
    records: impl Iterator<Item = PresenceRecord<'a>>,
    text_bytes: usize,
) -> Bytes {
    let mut out = Vec::with_capacity(64 + text_bytes + total * RECORD_BYTES);
    out.extend_from_slice(br#"{"type":"info","total":"#);
    out.extend_from_slice(itoa::Buffer::new().format(total).as_bytes());
    let mut before = &b",\"records\":["[..];
    for record in records {
        out.extend_from_slice(before);
        out.push(b'{');
        if let Some(info) = record.info {
            out.extend_from_slice(b"\"info\":");
            out.extend_from_slice(info.as_bytes());
            out.push(b',');
        }
        out.extend_from_slice(b"\"id\":");
        escape_into(&mut out, record.id);
        out.push(b'}');
        before = b",";
    }
    let has_records = before == b",";
    out.extend_from_slice(if has_records { b"]}" } else { b"}" });
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::reply::data_message;

    fn record<'a>(id: &'a str, info: impl Into<Option<&'a str>>) -> PresenceRecord<'a> {
        PresenceRecord {
            id,
            info: info.into(),
        }
    }

    #[test]
    fn events_have_their_keys_in_order() {
        fn check(event: PresenceEvent<'_>, expected: &str) {
            assert_eq!(str::from_utf8(&event.message()).unwrap(), expected);
        }
        check(
            PresenceEvent::Join(record("1", r#"{"name":"Ada"}"#)),
            r#"{"id":"1","info":{"name":"Ada"},"type":"join"}"#,
        );
        check(
            PresenceEvent::Join(record("", None)),
            r#"{"id":"","type":"join"}"#,
        );
        check(
            PresenceEvent::Leave { id: "a\"b" },
            r#"{"id":"a\"b","type":"leave"}"#,
        );
    }

    #[test]
    fn an_event_is_a_delivery_of_its_type() {
        let publication = PresenceEvent::Leave { id: "1" }.publication("room");
        assert_eq!(
            (&*publication.stream, publication.transient),
            ("room", true)
        );
        let mut out = Vec::new();
        let broadcast_type = publication.broadcast_type.as_deref();
        data_message("A", &publication.message, broadcast_type, &mut out);
        assert_eq!(
            str::from_utf8(&out).unwrap(),
            r#"{"type":"presence","identifier":"A","message":{"id":"1","type":"leave"}}"#
        );
    }

    #[test]
    fn answers_have_their_keys_in_order() {
        fn check(total: usize, records: &[PresenceRecord<'_>], expected: &str) {
            let message = info_message(total, records.iter().copied(), 0);
            assert_eq!(str::from_utf8(&message).unwrap(), expected);
        }
        check(0, &[], r#"{"type":"info","total":0}"#);
        check(7, &[], r#"{"type":"info","total":7}"#);
        check(
            1,
            &[record("a", None)],
            r#"{"type":"info","total":1,"records":[{"id":"a"}]}"#,
        );
        check(
            2,
            &[record("a\n", "[1, 2.50]"), record("", "\"x\"")],
            r#"{"type":"info","total":2,"records":[{"info":[1, 2.50],"id":"a\n"},{"info":"x","id":""}]}"#,
        );
    }

    proptest! {
        #[test]
        fn answers_parse_to_what_went_in(members in prop::collection::vec((any::<String>(), any::<Option<i64>>()), 0..9)) {
            let infos: Vec<_> = members.iter().map(|(_, info)| info.map(|it| it.to_string())).collect();
            let records = members.iter().zip(&infos).map(|((id, _), info)| PresenceRecord { id, info: info.as_deref() });
            let parsed: serde_json::Value = serde_json::from_slice(&info_message(members.len(), records, 0)).unwrap();
            prop_assert_eq!(&parsed["total"], members.len());
            let empty = Vec::new();
            let parsed = parsed["records"].as_array().unwrap_or(&empty);
            prop_assert_eq!(parsed.len(), members.len());
            for (record, (id, info)) in parsed.iter().zip(&members) {
                prop_assert_eq!(&record["id"], id);
                prop_assert_eq!(record["info"].as_i64(), *info);
            }
        }
    }
}
