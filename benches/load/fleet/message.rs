//! The form of a measured message, for the publisher that writes it and the clients that check it.
//!
//! The app's data is a JSON string that starts with a mark of fixed width: stream, sequence in the stream, time of
//! publication, length. Servers pass it on unchanged, behind the identifier.

use std::fmt::Write as _;
use std::sync::LazyLock;

use memchr::memmem::Finder;

/// Bytes of a mark with the quote in front of it.
const MARK_BYTES: usize = 1 + 8 + 8 + 16 + 8;

/// The shortest message that can carry a mark.
const MESSAGE_BYTES_MIN: usize = MARK_BYTES + 1;

/// The beginning of every delivery; the identifier as a JSON string follows.
const DELIVERY_PREFIX: &[u8] = br#"{"identifier":""#;

/// Follows the message when the server keeps a history: the name of the stream, the epoch, the offset.
const POSITION_PREFIX: &[u8] = br#","stream_id":"#;
const POSITION_BYTES_MAX: usize = 128;

/// Ends the identifier. It cannot occur inside of it, because quotes are escaped there.
static BEHIND_IDENTIFIER: LazyLock<Finder> = LazyLock::new(|| Finder::new(br#"","message":"#));
static CONFIRMATION: LazyLock<Finder> = LazyLock::new(|| Finder::new(b"confirm_subscription"));
static REJECTION: LazyLock<Finder> = LazyLock::new(|| Finder::new(b"reject_subscription"));

/// The mark of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub stream: u32,
    /// Counts the messages of the stream from 0.
    pub sequence: u32,
    /// Time of publication, CLOCK_MONOTONIC.
    pub nanos: u64,
    /// Bytes of the whole message, with its quotes.
    pub bytes: u32,
}

impl Mark {
    /// The message: a JSON string of exactly `bytes` bytes. Its tail looks like HTML but contains nothing to escape.
    pub fn write_message(self, text: &mut String) {
        assert!(
            self.bytes as usize >= MESSAGE_BYTES_MIN,
            "no room for the mark"
        );
        let Self {
            stream,
            sequence,
            nanos,
            bytes,
        } = self;
        let _ = write!(text, "\"{stream:08x}{sequence:08x}{nanos:016x}{bytes:08x}");
        let tail = bytes as usize - MARK_BYTES - 1;
        text.extend((0..tail).map(|at| char::from(b'a' + (at % 26) as u8)));
        text.push('"');
    }

    /// Reads the mark at the start of a message.
    fn read(message: &[u8]) -> Option<Self> {
        let digits = message.get(1..MARK_BYTES)?;
        Some(Self {
            stream: hex(&digits[..8])? as u32,
            sequence: hex(&digits[8..16])? as u32,
            nanos: hex(&digits[16..32])?,
            bytes: hex(&digits[32..40])? as u32,
        })
    }
}

fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |value: u64, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u64::from(digit))
    })
}

/// What a server sent, as far as a measuring client needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Welcome,
    Ping,
    Confirmation,
    Rejection,
    Disconnect,
    Delivery(Mark),
    /// A delivery from another publisher, such as the app: it has no mark, or a wrong length.
    Unmarked,
    Unknown,
}

impl Message {
    /// Classifies a payload of `payload_bytes` by its first bytes.
    pub fn read(head: &[u8], payload_bytes: usize) -> Self {
        if head.starts_with(DELIVERY_PREFIX) {
            return match BEHIND_IDENTIFIER.find(head) {
                Some(at) => {
                    Self::delivery(head, at + BEHIND_IDENTIFIER.needle().len(), payload_bytes)
                }
                // Rails writes the identifier before the type.
                None => Self::answer(head),
            };
        }
        match head.strip_prefix(br#"{"type":""#) {
            Some(b) if b.starts_with(b"ping") => Self::Ping,
            Some(b) if b.starts_with(b"welcome") => Self::Welcome,
            Some(b) if b.starts_with(b"disconnect") => Self::Disconnect,
            Some(_) => Self::answer(head),
            None => Self::Unknown,
        }
    }

    fn delivery(head: &[u8], message_at: usize, payload_bytes: usize) -> Self {
        let Some(mark) = Mark::read(&head[message_at..]) else {
            return Self::Unmarked;
        };
        // Only the closing brace may follow the message, or its position in the stream.
        let end = message_at + mark.bytes as usize;
        let has_position = || {
            let rest = head.get(end..).unwrap_or_default();
            let length = end + POSITION_PREFIX.len()..end + POSITION_BYTES_MAX;
            length.contains(&payload_bytes)
                && POSITION_PREFIX.starts_with(&rest[..rest.len().min(POSITION_PREFIX.len())])
        };
        match end + 1 == payload_bytes || has_position() {
            true => Self::Delivery(mark),
            false => Self::Unmarked,
        }
    }

    fn answer(head: &[u8]) -> Self {
        if CONFIRMATION.find(head).is_some() {
            Self::Confirmation
        } else if REJECTION.find(head).is_some() {
            Self::Rejection
        } else {
            Self::Unknown
        }
    }
}
