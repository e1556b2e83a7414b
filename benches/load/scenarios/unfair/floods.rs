//! The data that attackers send: one entry for each kind of flood.

use std::io::Write as _;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use flate2::Compression;
use ring::hmac;
use serde_json::json;

use crate::fleet::client_frame;
use crate::websocket::{COMPRESSED, OPCODE_PING, OPCODE_PONG, OPCODE_TEXT, command, deflated};

/// The unit of a flood is repeated up to this size, so that one write carries many units.
const BLOCK_BYTES: usize = 64 * 1024;
/// A little less than the default of `--max_message_size`.
const MESSAGE_BYTES: usize = 65_000;
/// A little less than the most that any server of this project has inflated.
const BOMB_BYTES: usize = 16 * 1024 * 1024 - 1_000;
/// Fragments of one byte that make a message.
const FRAGMENTS: usize = 60_000;
/// Identifiers of all attackers together that one publication is delivered for, with one attacker and with many.
const IDENTIFIERS: usize = 4_000;
const IDENTIFIERS_OF_MANY: usize = 400;
/// Bytes of a huge publication, with one attacker and with many.
const HUGE_BYTES: usize = 16 * 1024 * 1024;
const HUGE_BYTES_TO_MANY: usize = 1024 * 1024;
/// Clients that receive the whispers and send nothing.
const WHISPER_LISTENERS: usize = 4;
const STREAMS_SECRET: &str = "a secret of nobody";
const FIN: u8 = 0x80;

/// The features that a server must have for a flood.
#[derive(Clone, Copy, Default)]
pub struct Needs {
    pub app: bool,
    pub compression: bool,
    pub tls: bool,
}

impl Needs {
    /// Flags in addition to those for public streams.
    pub fn flags(self) -> Vec<String> {
        let mut flags = vec![format!("--streams_secret={STREAMS_SECRET}")];
        if self.compression {
            flags.push("--enable_ws_compression".to_owned());
        }
        flags
    }
}

/// One kind of flood.
pub struct Flood {
    pub name: &'static str,
    pub needs: Needs,
    /// The connections of this many attackers.
    pub parts: fn(usize) -> Vec<Part>,
}

/// One connection of an attack.
#[derive(Clone)]
pub struct Part {
    pub entry: Entry,
    /// Sent again and again, always as a whole; empty: nothing is sent.
    pub block: Arc<[u8]>,
    /// Number of messages, requests or records in the block.
    pub messages: usize,
    /// True: what the server sends is read and discarded. False: it is never read.
    pub reads: bool,
}

/// How a connection begins.
#[derive(Clone)]
pub enum Entry {
    /// It becomes a session with these subscriptions.
    Session {
        identifiers: Vec<String>,
        compression: bool,
    },
    /// The same over TLS; after that each record has one byte of text.
    OneByteRecords,
    /// It sends requests to the client port.
    Requests,
    /// It sends requests to the broadcast port.
    Broadcasts,
}

const PLAIN: Needs = Needs {
    app: false,
    compression: false,
    tls: false,
};
const WITH_APP: Needs = Needs { app: true, ..PLAIN };
const WITH_COMPRESSION: Needs = Needs {
    compression: true,
    ..PLAIN
};
const WITH_TLS: Needs = Needs { tls: true, ..PLAIN };

const fn flood(name: &'static str, needs: Needs, parts: fn(usize) -> Vec<Part>) -> Flood {
    Flood { name, needs, parts }
}

pub const FLOODS: &[Flood] = &[
    flood("pongs", PLAIN, |count| {
        sessions(count, &[], &frame(OPCODE_PONG, b""), true)
    }),
    flood("pings", PLAIN, |count| {
        sessions(count, &[], &frame(OPCODE_PING, b""), true)
    }),
    flood("pings, pongs unread", PLAIN, |count| {
        sessions(count, &[], &frame(OPCODE_PING, b""), false)
    }),
    flood("garbage", PLAIN, |count| {
        sessions(count, &[], &frame(OPCODE_TEXT, b"x"), true)
    }),
    flood("performs", WITH_APP, performs),
    flood("subscribes, public", PLAIN, |count| {
        come_and_go(count, &public_identifier("come and go", 0))
    }),
    flood("subscribes, signed", PLAIN, |count| {
        come_and_go(count, &signed_identifier("come and go"))
    }),
    flood("subscribes, app", WITH_APP, |count| {
        come_and_go(count, r#"{"channel":"ComeAndGoChannel"}"#)
    }),
    flood("whispers", PLAIN, whispers),
    flood("compressed, 65 kB", WITH_COMPRESSION, |count| {
        compressed(count, MESSAGE_BYTES)
    }),
    flood("compressed, 16 MB", WITH_COMPRESSION, |count| {
        compressed(count, BOMB_BYTES)
    }),
    flood("fragments of a byte", PLAIN, fragments),
    flood("publications to it", PLAIN, publications),
    flood("huge publications", PLAIN, huge_publications),
    flood("TLS records of a byte", WITH_TLS, one_byte_records),
    flood("pipelined requests", PLAIN, pipelined),
];

/// A frame as clients send it.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    client_frame(opcode, payload, &mut frame);
    frame
}

fn text(text: &str) -> Vec<u8> {
    frame(OPCODE_TEXT, text.as_bytes())
}

/// An identifier of a public stream. Different numbers give different identifiers of the same stream.
pub fn public_identifier(stream: &str, number: usize) -> String {
    json!({ "channel": "$pubsub", "stream_name": stream, "number": number }).to_string()
}

fn signed_identifier(stream: &str) -> String {
    let name = BASE64_STANDARD.encode(json!(stream).to_string());
    let key = hmac::Key::new(hmac::HMAC_SHA256, STREAMS_SECRET.as_bytes());
    let digest = hmac::sign(&key, name.as_bytes());
    let digest: String = digest
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    json!({ "channel": "$pubsub", "signed_stream_name": format!("{name}--{digest}") }).to_string()
}

/// A part that sends `unit`, which holds `messages` messages, again and again.
fn part(entry: Entry, unit: &[u8], messages: usize, reads: bool) -> Part {
    let times = BLOCK_BYTES.div_ceil(unit.len().max(1));
    let times = if unit.is_empty() { 0 } else { times };
    Part {
        entry,
        block: unit.repeat(times).into(),
        messages: messages * times,
        reads,
    }
}

fn session(identifiers: &[String]) -> Entry {
    Entry::Session {
        identifiers: identifiers.to_vec(),
        compression: false,
    }
}

fn sessions(count: usize, identifiers: &[String], message: &[u8], reads: bool) -> Vec<Part> {
    vec![part(session(identifiers), message, 1, reads); count]
}

fn performs(count: usize) -> Vec<Part> {
    let identifier = r#"{"channel":"BenchChannel"}"#;
    let perform = json!({
        "command": "message", "identifier": identifier, "data": r#"{"action":"echo"}"#
    });
    sessions(
        count,
        &[identifier.to_owned()],
        &text(&perform.to_string()),
        true,
    )
}

/// Subscribes and unsubscribes in alternation.
fn come_and_go(count: usize, identifier: &str) -> Vec<Part> {
    let pair = [
        text(&command("subscribe", identifier)),
        text(&command("unsubscribe", identifier)),
    ];
    vec![part(session(&[]), &pair.concat(), 2, true); count]
}

fn whispers(count: usize) -> Vec<Part> {
    let identifiers = [public_identifier("whispers", 0)];
    let whisper = json!({
        "command": "whisper", "identifier": identifiers[0], "data": { "event": "typing" }
    });
    let mut parts = sessions(count, &identifiers, &text(&whisper.to_string()), true);
    parts.extend(vec![
        part(session(&identifiers), b"", 0, true);
        WHISPER_LISTENERS
    ]);
    parts
}

/// Messages that are small on the wire and large when inflated. Each is a pong command with a long text: the server reads it
/// whole and does nothing else.
fn compressed(count: usize, bytes: usize) -> Vec<Part> {
    let message = command("pong", &"a".repeat(bytes));
    let entry = Entry::Session {
        identifiers: Vec::new(),
        compression: true,
    };
    let mut frame = frame(
        OPCODE_TEXT,
        &deflated(message.as_bytes(), Compression::best()),
    );
    frame[0] |= COMPRESSED;
    vec![part(entry, &frame, 1, true); count]
}

/// One message after another, each in many frames.
fn fragments(count: usize) -> Vec<Part> {
    let padding = "a".repeat(FRAGMENTS - command("pong", "").len());
    let message = command("pong", &padding);
    let mut unit = Vec::new();
    for (at, byte) in message.bytes().enumerate() {
        let start = unit.len();
        client_frame(if at == 0 { OPCODE_TEXT } else { 0 }, &[byte], &mut unit);
        if at + 1 < message.len() {
            unit[start] &= !FIN;
        }
    }
    vec![part(session(&[]), &unit, message.len(), true); count]
}

/// All attackers subscribe to one stream with many identifiers, and one connection publishes to it.
fn publications(count: usize) -> Vec<Part> {
    let each = if count == 1 {
        IDENTIFIERS
    } else {
        IDENTIFIERS_OF_MANY
    };
    let identifiers: Vec<String> = (0..each)
        .map(|number| public_identifier("much", number))
        .collect();
    let mut parts = sessions(count, &identifiers, b"", true);
    parts.push(publisher("much", r#""0123456789""#));
    parts
}

/// All attackers subscribe to one stream, and one connection publishes megabytes to it.
fn huge_publications(count: usize) -> Vec<Part> {
    let bytes = if count == 1 {
        HUGE_BYTES
    } else {
        HUGE_BYTES_TO_MANY
    };
    // Every second character must be escaped, as in JSON inside of JSON.
    let data = json!({ "text": "\"a".repeat(bytes / 4) }).to_string();
    let mut parts = sessions(count, &[public_identifier("huge", 0)], b"", true);
    parts.push(publisher("huge", &data));
    parts
}

/// Publishes to a stream again and again.
fn publisher(stream: &str, data: &str) -> Part {
    let body = json!({ "stream": stream, "data": data }).to_string();
    let mut request = Vec::new();
    write!(
        request,
        "POST /_broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("a vector takes everything");
    part(Entry::Broadcasts, &request, 1, true)
}

/// The bytes are those of pong frames.
fn one_byte_records(count: usize) -> Vec<Part> {
    let pong = frame(OPCODE_PONG, b"");
    let records = pong.len();
    vec![part(Entry::OneByteRecords, &pong, records, true); count]
}

fn pipelined(count: usize) -> Vec<Part> {
    let request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    vec![part(Entry::Requests, request, 1, true); count]
}
