//! Where a message stands in the history of its stream.
//!
//! Epoch and offset are one value, [`Position`], wherever they go: an offset says nothing without the epoch that it was
//! counted in. `broker` makes positions, `command` reads those of clients, `reply` writes them.
//!
//! Source: `contract/extended.md` §2, §4, §6.3. The reference has 4 characters in an epoch.

use std::fmt;

use super::sid;

/// Characters of an epoch, six bits each.
pub const EPOCH_LENGTH: usize = 8;

/// The bits of an epoch that a stream has.
const EPOCH_BITS: u32 = 6 * EPOCH_LENGTH as u32;

/// Which life of a stream an offset was counted in. Opaque to clients, and compared exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

impl Epoch {
    /// What a client gets that sends a text which no stream can have as its epoch. Equal to no epoch of a stream.
    pub const FOREIGN: Self = Self(u64::MAX);

    /// The epoch with the low 48 of these bits.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits & ((1 << EPOCH_BITS) - 1))
    }

    /// The epoch that [`Self::encode`] writes as `text`, or [`Self::FOREIGN`].
    pub fn decode(text: &str) -> Self {
        if text.len() != EPOCH_LENGTH {
            return Self::FOREIGN;
        }
        let digits = text.bytes().map(sid::digit);
        let bits = digits
            .rev()
            .try_fold(0, |bits, digit| Some((bits << 6) | digit?));
        bits.map_or(Self::FOREIGN, Self)
    }

    /// Its text, for clients: characters of a session id, which need no escape in JSON or in a URL.
    pub fn encode(self) -> [u8; EPOCH_LENGTH] {
        std::array::from_fn(|at| sid::ALPHABET[(self.0 >> (6 * at)) as usize & 63])
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.encode()
            .into_iter()
            .try_for_each(|byte| fmt::Write::write_char(formatter, char::from(byte)))
    }
}

/// The place of a message in the history of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The life of the stream in which the offset was counted.
    pub epoch: Epoch,
    /// The first message of an epoch has 1, the next one 2, and so on.
    pub offset: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_epoch_is_eight_characters_and_the_lowest_bits_come_first() {
        let check = |bits: u64, expected: &str| {
            let epoch = Epoch::from_bits(bits);
            assert_eq!(epoch.encode(), expected.as_bytes(), "{bits:#x}");
            assert_eq!(epoch.to_string(), expected);
        };
        check(0, "________");
        check(1, "-_______");
        check(63, "Z_______");
        check(64, "_-______");
        check(63 << 42, "_______Z");
        check(u64::MAX, "ZZZZZZZZ");
        check(1 << 48, "________");
    }

    #[test]
    fn any_other_text_is_foreign_and_equal_to_no_epoch_of_a_stream() {
        for text in [
            "",
            "_",
            "_______",
            "_________",
            "______ _",
            "_______!",
            "______é",
            "\0\0\0\0\0\0\0\0",
            "ABCD",
        ] {
            assert_eq!(Epoch::decode(text), Epoch::FOREIGN, "{text:?}");
        }
        assert_ne!(Epoch::decode("ZZZZZZZZ"), Epoch::FOREIGN);
        assert_ne!(Epoch::from_bits(u64::MAX), Epoch::FOREIGN);
    }

    proptest! {
        #[test]
        fn an_epoch_survives_its_text(bits: u64) {
            let epoch = Epoch::from_bits(bits);
            prop_assert_eq!(Epoch::decode(&epoch.to_string()), epoch);
        }

        #[test]
        fn a_text_that_is_read_is_the_one_that_is_written(text in "[-_0-9a-zA-Z]{8}|.{0,9}") {
            let epoch = Epoch::decode(&text);
            prop_assert!(epoch == Epoch::FOREIGN || epoch.to_string() == text);
        }
    }
}
