//! Session ids.
//!
//! Their alphabet and length are defined here. `session` calls this when the request has no `X-Request-ID`.
//!
//! Source: `contract/websocket.md` §3.3.

/// Characters of a session id.
pub const SID_LENGTH: usize = 21;

/// Longest session id that a client or a proxy may choose by `X-Request-ID`. It is written in every log line of the session
/// and goes to the app with each call. A UUID has 36 bytes.
pub const SID_BYTES_MAX: usize = 128;

/// Exactly 64 symbols, so that six random bits choose one without bias.
pub(super) const ALPHABET: &[u8; 64] =
    b"_-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The six bits that a character of the alphabet stands for.
pub(super) fn digit(character: u8) -> Option<u64> {
    let at = ALPHABET.iter().position(|&other| other == character);
    at.map(|at| at as u64)
}

/// A new session id: 126 of these random bits, written as [`SID_LENGTH`] characters of `_-0-9a-zA-Z`.
pub fn encode_sid(entropy: [u8; SID_LENGTH]) -> String {
    entropy
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte & 63)]))
        .collect()
}

/// Characters at the end of a session id that name a shard, six bits each.
const SHARD_LENGTH: usize = 2;

/// A new session id that names the shard which knows the session, so that a client that comes back is found at once.
pub fn encode_sid_of_shard(entropy: [u8; SID_LENGTH], shard: usize) -> String {
    let mut sid = encode_sid(entropy);
    for at in 0..SHARD_LENGTH {
        sid.push(char::from(ALPHABET[(shard >> (6 * at)) & 63]));
    }
    sid
}

/// The shard that a session id names; `None` when it was made elsewhere.
pub fn shard_of(sid: &str) -> Option<usize> {
    let sid = sid.as_bytes();
    if sid.len() != SID_LENGTH + SHARD_LENGTH {
        return None;
    }
    let digits = sid[SID_LENGTH..].iter().rev();
    digits
        .map(|&character| digit(character))
        .try_fold(0, |shard, digit| Some((shard << 6) | digit? as usize))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::os::random;

    #[test]
    fn sids_are_distinct_and_use_the_whole_alphabet_and_nothing_else() {
        let sids: HashSet<String> = (0..1000).map(|_| encode_sid(random::bytes())).collect();
        assert_eq!(sids.len(), 1000);
        assert!(sids.iter().all(|sid| sid.len() == SID_LENGTH));
        let seen: HashSet<u8> = sids.iter().flat_map(|sid| sid.bytes()).collect();
        assert_eq!(seen, ALPHABET.iter().copied().collect());
    }
}
