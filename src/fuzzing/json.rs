//! JSON that clients and the app write: commands, identifiers, bodies of broadcasts.

use serde_json::Value;

use super::serde_values::{Members, is_grammatical};
use crate::protocol::command::{
    CommandError, Data, HistoryRequest, PresencePayload, decode_command,
};
use crate::protocol::json::{NESTING_MAX, decode_string, escape_into, is_valid_json};
use crate::protocol::position::{Epoch, Position};
use crate::protocol::publication::{Broadcast, Publication, decode_broadcast, encode_message};
use crate::protocol::reply::{begin_data_message, end_data_message};

/// The whole input is one text. Our grammar must agree with `serde_json`, and so must the meaning of a command and of a
/// publication. What we write must be read back unchanged.
pub fn json(data: &[u8]) {
    if data.len() > NESTING_MAX {
        return;
    }
    assert_eq!(is_valid_json(data), is_grammatical(data), "the grammar");
    check_string(data);
    check_command(data);
    check_broadcast(data);
}

/// Any text that we escape must be read back unchanged, by us and by `serde_json`.
fn check_string(data: &[u8]) {
    if let Ok(expected) = serde_json::from_slice::<String>(data) {
        assert_eq!(decode_string(data), Some(expected));
    }
    let text = String::from_utf8_lossy(data);
    let mut escaped = Vec::new();
    escape_into(&mut escaped, &text);
    assert_eq!(decode_string(&escaped).as_deref(), Some(&*text));
    let theirs: String = serde_json::from_slice(&escaped).expect("a JSON string");
    assert_eq!(theirs, text);
    check_message(&text, &encode_message(&*text));
}

fn check_command(data: &[u8]) {
    let ours = decode_command(data);
    if ours.is_ok() {
        assert!(is_grammatical(data));
    }
    // What serde_json refuses, such as half of a surrogate pair, cannot be compared.
    let Ok(members) = serde_json::from_slice::<Members>(data) else {
        return;
    };
    match ours {
        Ok(None) => panic!("an object was taken for null"),
        Ok(Some(command)) => {
            assert_eq!(command.name, members.last_text("command"));
            assert_eq!(command.identifier, members.last_text("identifier"));
            check_presence(command.presence.as_ref(), members.last("presence"));
            check_history(command.history.as_ref(), members.last("history"));
            let wants_records = members
                .last("data")
                .and_then(|data| only(data, "return_records"));
            if let Some(Value::Bool(expected)) = wants_records {
                assert_eq!(command.data.wants_records(), *expected);
            }
            match (&command.data, members.last("data")) {
                (Data::Absent, None) => {}
                (Data::Text(ours), Some(Value::String(theirs))) => assert_eq!(ours, theirs),
                (Data::Json(ours), Some(theirs)) => {
                    let ours: Value = serde_json::from_str(ours).expect("JSON as it was written");
                    assert_eq!(&ours, theirs);
                }
                (ours, theirs) => panic!("data: {ours:?}, expected {theirs:?}"),
            }
        }
        Err(CommandError::Member { member, .. }) => {
            let wrong = |value: &Value| match member {
                "command" | "identifier" => !value.is_string(),
                // These members have members of their own, one of which may have the wrong type.
                _ => true,
            };
            assert!(members.all(member).any(wrong), "{member} is as it must be");
        }
        Err(CommandError::TooManyStreams) => panic!("the text is too short for that many"),
        Err(CommandError::Payload(error)) => panic!("an object was refused: {error}"),
    }
}

fn check_presence(ours: Option<&PresencePayload>, theirs: Option<&Value>) {
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        assert!(ours.is_none() && theirs.is_none(), "{ours:?}, {theirs:?}");
        return;
    };
    if let Some(id) = only(theirs, "id") {
        assert_eq!(id, &*ours.id);
    }
    if let Some(expected) = only(theirs, "info") {
        let info = ours.info.as_ref().expect("info is there");
        let info: Value = serde_json::from_str(info).expect("JSON as it was written");
        assert_eq!(&info, expected);
    }
}

fn check_history(ours: Option<&HistoryRequest>, theirs: Option<&Value>) {
    let (Some(ours), Some(theirs)) = (ours, theirs) else {
        assert!(ours.is_none() && theirs.is_none(), "{ours:?}, {theirs:?}");
        return;
    };
    if let Some(since) = only(theirs, "since") {
        let none = since == false;
        assert_eq!(since.as_i64().or(none.then_some(0)), Some(ours.since));
    }
    let Some(Value::Object(streams)) = only(theirs, "streams") else {
        return;
    };
    let positions = ours.streams.as_ref().expect("streams are there");
    for (stream, theirs) in streams {
        let position = positions.of(stream).expect("every stream is there");
        if let Some(Value::String(epoch)) = only(theirs, "epoch") {
            assert_eq!(position.epoch, Epoch::decode(epoch));
        }
        if let Some(offset) = only(theirs, "offset") {
            assert_eq!(offset.as_u64(), Some(position.offset));
        }
    }
}

/// The value of that name in any case. None if it is null, if there is none, or if there are several: `serde_json` does not
/// tell which of them was the last.
fn only<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let mut named = object
        .as_object()?
        .iter()
        .filter(|(key, _)| key.eq_ignore_ascii_case(name));
    match (named.next(), named.next()) {
        (Some((_, value)), None) if !value.is_null() => Some(value),
        _ => None,
    }
}

fn check_broadcast(data: &[u8]) {
    let Ok(broadcast) = decode_broadcast(data) else {
        return;
    };
    assert!(is_grammatical(data));
    let Broadcast::Publications(publications) = broadcast else {
        return;
    };
    for publication in &publications {
        check_delivery(publication);
    }
    let theirs: Vec<Members> = if let Ok(one) = serde_json::from_slice(data) {
        vec![one]
    } else if let Ok(batch) = serde_json::from_slice::<Vec<Option<Members>>>(data) {
        batch.into_iter().flatten().collect()
    } else {
        return;
    };
    assert_eq!(publications.len(), theirs.len());
    for (ours, theirs) in publications.iter().zip(&theirs) {
        assert_eq!(&*ours.stream, theirs.last_text("stream"));
        check_message(theirs.last_text("data"), &ours.message);
        let Some(meta) = theirs.last("meta") else {
            continue;
        };
        if let Some(transient) = only(meta, "transient") {
            assert_eq!(transient, &Value::Bool(ours.transient));
        }
        if let Some(key) = only(meta, "idempotency_key") {
            assert_eq!(key, ours.idempotency_key.as_deref().unwrap_or(""));
        }
    }
}

/// `message` is the JSON text in `data`, or a string that holds `data`.
fn check_message(data: &str, message: &[u8]) {
    let value = data.trim_matches([' ', '\t', '\n', '\r']);
    if message == value.as_bytes() && is_grammatical(message) {
        assert_ne!(value, "null");
        return;
    }
    let quoted: String = serde_json::from_slice(message).expect("a JSON string");
    assert_eq!(quoted, data);
    let theirs = serde_json::from_str::<Value>(value);
    assert!(
        !theirs.is_ok_and(|value| !value.is_null()),
        "{value} is JSON and must not be quoted"
    );
}

/// A delivery is JSON with the publication's message in it, and with its position.
fn check_delivery(publication: &Publication) {
    const IDENTIFIER: &str = r#"{"channel":"A"}"#;
    let mut delivery = Vec::new();
    let broadcast_type = publication.broadcast_type.as_deref();
    begin_data_message(IDENTIFIER, broadcast_type, &mut delivery);
    delivery.extend_from_slice(&publication.message);
    let position = Position {
        epoch: Epoch::from_bits(5),
        offset: 7,
    };
    end_data_message(&publication.stream, Some(position), &mut delivery);
    assert!(is_grammatical(&delivery));
    if let Ok(delivery) = serde_json::from_slice::<Value>(&delivery) {
        assert_eq!(delivery["identifier"], IDENTIFIER);
        let message: Value = serde_json::from_slice(&publication.message).expect("a part of it");
        assert_eq!(delivery["message"], message);
        assert_eq!(delivery["stream_id"], *publication.stream);
        assert_eq!(delivery["offset"], position.offset);
    }
}
