//! What is said to readers of durable streams: offsets, cursors, arrays of messages, and the events of the live mode.
//!
//! An offset of the protocol is one token for a [`Position`]; clients send it back as it is, and may compare it as text.
//! A cursor is a number that grows with time, so that a cache in front does not give a client the same answer for ever.
//!
//! Source: `contract/http_transports.md` §4, and sections 6 to 8 of the protocol
//! (github.com/durable-streams/durable-streams, PROTOCOL.md).

use super::position::{Epoch, Position};
use super::sid;

/// Between the number and the epoch of an offset.
const SEPARATOR: &str = "::";

/// Digits of the number in an offset. With leading zeros the order of the texts is the order of the numbers. A stream with a
/// million messages a second needs three hundred years for more digits.
const DIGITS: usize = 16;

/// The offset in front of the first message of a stream that nothing is known of.
const BEGINNING: &str = "0";

/// Where cursors begin: 2024-10-09T00:00:00Z, in seconds since 1970.
const CURSORS_BEGIN_UNIX_SECS: u64 = 1_728_432_000;

/// A cursor is the number of whole intervals of this length since then.
const CURSOR_INTERVAL_SECS: u64 = 20;

/// A client that comes back within an interval gets a cursor that is greater by 1 and up to so much more.
const CURSOR_JITTER: u64 = 60;

/// Larger numbers are no cursors of this server.
const LAST_CURSOR: u64 = 999_999_999_999_999;

/// A cursor, see the head of this file.
pub type Cursor = u64;

/// Where a client wants to read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offset {
    /// `-1` or `0`: the oldest message that is kept.
    Beginning,
    /// `now`: what comes from now on.
    Now,
    /// The message after this one.
    After(Position),
}

/// A text that is no offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadOffset;

impl Offset {
    /// A number without an epoch, and an epoch of another server, are positions that no stream has.
    ///
    /// # Errors
    /// [`BadOffset`] for what could not be an offset of any server of this kind.
    pub fn decode(text: &str) -> Result<Self, BadOffset> {
        match text {
            "-1" | BEGINNING => return Ok(Self::Beginning),
            "now" => return Ok(Self::Now),
            _ => {}
        }
        let (number, epoch) = text.split_once(SEPARATOR).unwrap_or((text, ""));
        let is_number = !number.is_empty() && number.bytes().all(|it| it.is_ascii_digit());
        let is_epoch = epoch.bytes().all(|it| sid::digit(it).is_some());
        if !is_number || !is_epoch {
            return Err(BadOffset);
        }
        Ok(Self::After(Position {
            epoch: Epoch::decode(epoch),
            offset: number.parse().map_err(|_| BadOffset)?,
        }))
    }
}

/// The offset behind the last message of a stream; `None`: nothing is known of the stream.
pub fn offset_text(last: Option<Position>) -> String {
    match last {
        Some(Position { epoch, offset }) => format!("{offset:0DIGITS$}{SEPARATOR}{epoch}"),
        None => BEGINNING.to_owned(),
    }
}

/// The cursor that a client has sent back; a text that is none counts as no cursor.
pub fn read_cursor(text: &str) -> Option<Cursor> {
    let is_number = text.bytes().all(|it| it.is_ascii_digit());
    let cursor = text.parse().ok().filter(|_| is_number)?;
    (cursor <= LAST_CURSOR).then_some(cursor)
}

/// The cursor of an answer. It is greater than that of the client; `random` says by how much, if the time alone does not.
pub fn next_cursor(unix_secs: u64, of_client: Option<Cursor>, random: u32) -> Cursor {
    let now = unix_secs.saturating_sub(CURSORS_BEGIN_UNIX_SECS) / CURSOR_INTERVAL_SECS;
    match of_client {
        Some(cursor) if cursor >= now => cursor + 1 + u64::from(random) % CURSOR_JITTER,
        _ => now,
    }
}

/// The event behind messages, up to and with the empty line that ends it.
pub fn control_event(last: Option<Position>, cursor: Cursor, out: &mut Vec<u8>) {
    out.reserve(128);
    out.extend_from_slice(b"event: control\ndata:{\"streamCursor\":\"");
    out.extend_from_slice(cursor.to_string().as_bytes());
    out.extend_from_slice(b"\",\"streamNextOffset\":\"");
    out.extend_from_slice(offset_text(last).as_bytes());
    out.extend_from_slice(b"\",\"upToDate\":true}\n\n");
}

/// How many messages form one JSON array.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArrayStyle {
    /// The body of an answer.
    Body,
    /// The data of an event. Line breaks inside of messages, which JSON allows between its tokens, begin another `data:`.
    Event,
}

impl ArrayStyle {
    /// What stands in front of the first message.
    pub fn beginning(self) -> &'static [u8] {
        match self {
            Self::Body => b"[",
            Self::Event => b"event: data\ndata:[",
        }
    }

    /// What stands between two messages.
    pub fn separator(self) -> &'static [u8] {
        match self {
            Self::Body => b",",
            Self::Event => b",\ndata:",
        }
    }

    /// What follows the last message.
    pub fn ending(self) -> &'static [u8] {
        match self {
            Self::Body => b"]",
            Self::Event => b"]\n\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(offset: u64) -> Position {
        Position {
            epoch: Epoch::from_bits(0x1234_5678_9abc),
            offset,
        }
    }

    #[test]
    fn an_offset_is_a_word_or_a_number_with_an_epoch() {
        fn check(text: &str, expected: Result<Offset, BadOffset>) {
            assert_eq!(Offset::decode(text), expected, "{text:?}");
        }
        check("-1", Ok(Offset::Beginning));
        check("0", Ok(Offset::Beginning));
        check("now", Ok(Offset::Now));
        let epoch = position(0).epoch;
        for text in ["7", "007", "0000000000000007"] {
            let after = Offset::After(position(7));
            check(&format!("{text}::{epoch}"), Ok(after));
        }
        let nowhere = |offset| {
            Ok(Offset::After(Position {
                epoch: Epoch::FOREIGN,
                offset,
            }))
        };
        check("7", nowhere(7));
        check("7::", nowhere(7));
        check("0::", nowhere(0));
        check("7::Abcd", nowhere(7));
        check("18446744073709551615::Abcd", nowhere(u64::MAX));
        for text in [
            "",
            "-2",
            "+1",
            "0,1",
            "0 1",
            "1.0",
            "Now",
            "x",
            "::",
            "::Abcd",
            "7:Abcd",
            "7::a,b",
            "7::a::b",
            "7::é",
            "18446744073709551616::Abcd",
            " 7",
        ] {
            check(text, Err(BadOffset));
        }
    }

    #[test]
    fn the_next_offset_is_the_position_of_the_last_message() {
        assert_eq!(offset_text(None), "0");
        let epoch = position(0).epoch;
        assert_eq!(
            offset_text(Some(position(42))),
            format!("0000000000000042::{epoch}")
        );
        let longest = offset_text(Some(position(u64::MAX)));
        assert_eq!(longest.len(), 30);
    }

    #[test]
    fn cursors_follow_the_clock_and_pass_the_client() {
        let secs = |intervals: u64| CURSORS_BEGIN_UNIX_SECS + 20 * intervals;
        fn check(unix_secs: u64, of_client: Option<Cursor>, random: u32, expected: Cursor) {
            let cursor = next_cursor(unix_secs, of_client, random);
            assert_eq!(cursor, expected, "{unix_secs} {of_client:?} {random}");
        }
        check(0, None, 0, 0);
        check(secs(1000), None, 5, 1000);
        check(secs(1000) + 19, None, 5, 1000);
        check(secs(1001), Some(1000), 5, 1001);
        check(secs(1000), Some(1000), 0, 1001);
        check(secs(1000), Some(1000), 59, 1060);
        check(secs(1000), Some(1000), 60, 1001);
        check(
            secs(1000),
            Some(5000),
            u32::MAX,
            5001 + u64::from(u32::MAX) % 60,
        );
        check(secs(1000), Some(LAST_CURSOR), 59, LAST_CURSOR + 60);
    }

    #[test]
    fn a_cursor_of_a_client_is_a_number_of_this_server() {
        fn check(text: &str, expected: Option<Cursor>) {
            assert_eq!(read_cursor(text), expected, "{text:?}");
        }
        check("0", Some(0));
        check("3371234", Some(3_371_234));
        check("999999999999999", Some(LAST_CURSOR));
        for text in [
            "",
            "1000000000000000",
            "-1",
            "+1",
            "1.0",
            "x",
            "99999999999999999999",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn a_control_event_says_where_to_read_on() {
        let mut out = Vec::new();
        control_event(Some(position(3)), 77, &mut out);
        let epoch = position(0).epoch;
        let expected = format!(
            "event: control\ndata:{{\"streamCursor\":\"77\",\"streamNextOffset\":\"0000000000000003::{epoch}\",\"upToDate\":true}}\n\n"
        );
        assert_eq!(String::from_utf8(out).as_deref(), Ok(expected.as_str()));
    }

    proptest! {
        #[test]
        fn an_offset_is_read_as_it_was_written(bits: u64, offset: u64) {
            let position = Position { epoch: Epoch::from_bits(bits), offset };
            let text = offset_text(Some(position));
            prop_assert_eq!(Offset::decode(&text), Ok(Offset::After(position)));
        }

        #[test]
        fn offsets_of_a_stream_are_ordered_as_texts(one in 0..10_u64.pow(16), other in 0..10_u64.pow(16)) {
            let text = |offset| offset_text(Some(position(offset)));
            prop_assert_eq!(text(one).cmp(&text(other)), one.cmp(&other));
            prop_assert!(*text(one) > *BEGINNING);
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = Offset::decode(&text);
            let _ = read_cursor(&text);
        }

        #[test]
        fn a_cursor_is_greater_than_that_of_the_client(unix_secs: u32, of_client in 0..=LAST_CURSOR, random: u32) {
            prop_assert!(next_cursor(unix_secs.into(), Some(of_client), random) > of_client);
        }
    }
}
