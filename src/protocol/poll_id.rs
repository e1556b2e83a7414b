//! The id of a polling session: what its client sends with every poll instead of keeping a connection.
//!
//! Who knows it gets the messages of the session and gives it commands, so it holds a secret. It also says where the session
//! is, so that the request is passed to the right shard and no table of ids is needed.

use super::sid::{ALPHABET, digit};

/// Characters of an id: the shard, the slot, the generation and the secret, six bits each.
const LENGTHS: [usize; 4] = [2, 6, 5, 22];
/// Characters of an id.
pub const POLL_ID_LENGTH: usize = LENGTHS[0] + LENGTHS[1] + LENGTHS[2] + LENGTHS[3];

/// A decoded id. The session may have ended, and the secret may be another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollId {
    pub shard: usize,
    pub slot: u32,
    /// At most 30 bits.
    pub generation: u32,
    /// Random bits.
    pub secret: u128,
}

impl PollId {
    /// # Panics
    /// When the shard or the generation is larger than any that the server has.
    pub fn encode(&self) -> String {
        let fields = [
            self.shard as u128,
            u128::from(self.slot),
            u128::from(self.generation),
            self.secret,
        ];
        let mut id = String::with_capacity(POLL_ID_LENGTH);
        for (mut field, length) in fields.into_iter().zip(LENGTHS) {
            for _ in 0..length {
                id.push(char::from(ALPHABET[(field & 63) as usize]));
                field >>= 6;
            }
            assert_eq!(field, 0, "every field fits");
        }
        id
    }

    /// `None` for a text that is no id.
    pub fn decode(id: &str) -> Option<Self> {
        let mut rest = id.as_bytes();
        if rest.len() != POLL_ID_LENGTH {
            return None;
        }
        let mut fields = [0; LENGTHS.len()];
        for (field, length) in fields.iter_mut().zip(LENGTHS) {
            let (characters, after) = rest.split_at(length);
            *field = number(characters)?;
            rest = after;
        }
        let [shard, slot, generation, secret] = fields;
        Some(Self {
            shard: shard as usize,
            slot: u32::try_from(slot).ok()?,
            generation: generation as u32,
            secret,
        })
    }
}

/// The number that these characters stand for, the lowest bits first; `None` when it does not fit or a character is foreign.
fn number(characters: &[u8]) -> Option<u128> {
    characters.iter().rev().try_fold(0_u128, |number, &next| {
        let shifted = number.checked_mul(64)?;
        Some(shifted | u128::from(digit(next)?))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: PollId = PollId {
        shard: 3,
        slot: 1_000_000,
        generation: (1 << 30) - 1,
        secret: u128::MAX,
    };

    #[test]
    fn what_is_no_id_is_none() {
        let id = ID.encode();
        let with = |at: usize, character: &str| {
            let mut other = id.clone();
            other.replace_range(at..=at, character);
            other
        };
        assert_eq!(PollId::decode(&id), Some(ID));
        for other in [
            String::new(),
            "x".repeat(1 << 20),
            id[1..].to_owned(),
            format!("{id}a"),
            with(0, "!"),
            with(7, " "),
            // Two bits more than a slot or a secret has.
            with(7, "Z"),
            with(34, "Z"),
            // As many bytes, but not of the alphabet.
            format!("{}é", &id[2..]),
        ] {
            assert_eq!(PollId::decode(&other), None, "{other:.40}");
        }
    }

    proptest! {
        #[test]
        fn an_id_reads_back_to_the_same(
            shard in 0..4096_usize, slot: u32, generation in 0..1_u32 << 30, secret: u128,
        ) {
            let id = PollId { shard, slot, generation, secret };
            let text = id.encode();
            prop_assert_eq!(text.len(), POLL_ID_LENGTH);
            prop_assert_eq!(PollId::decode(&text), Some(id));
        }

        #[test]
        fn two_texts_are_never_one_id(text in "[-_0-9a-zA-Z]{35}") {
            if let Some(id) = PollId::decode(&text) {
                prop_assert_eq!(id.encode(), text);
            }
        }
    }
}
