//! The connection identifiers of the sessions, by hash: a remote disconnect searches here.

use ahash::RandomState;

/// A hash for each slot of the table; 0 = not registered. The texts are in the sessions.
pub(super) struct Identities {
    hasher: RandomState,
    hashes: Vec<u64>,
}

impl Identities {
    pub fn new(hasher: RandomState) -> Self {
        Self {
            hasher,
            hashes: Vec::new(),
        }
    }

    /// The number of slots that have been used, including free ones.
    pub fn slots(&self) -> usize {
        self.hashes.len()
    }

    /// Prepares the entry for `slot`, which a connection gets now.
    pub fn make_room(&mut self, slot: u32) {
        if self.hashes.len() <= slot as usize {
            self.hashes.resize(slot as usize + 1, 0);
        }
    }

    pub fn register(&mut self, slot: u32, identifiers: &str) {
        self.hashes[slot as usize] = self.identity_hash(identifiers);
    }

    pub fn forget(&mut self, slot: u32) {
        self.hashes[slot as usize] = 0;
    }

    pub fn contains(&self, slot: u32) -> bool {
        self.hashes[slot as usize] != 0
    }

    /// Slots whose session has these identifiers, or others with the same hash.
    pub fn candidates(&self, identifiers: &str) -> Vec<u32> {
        let hash = self.identity_hash(identifiers);
        let slots = 0..self.hashes.len() as u32;
        slots
            .filter(|&slot| self.hashes[slot as usize] == hash)
            .collect()
    }

    /// The hash of each registered session.
    pub fn hashes(&self) -> impl Iterator<Item = u64> {
        self.hashes.iter().copied().filter(|&hash| hash != 0)
    }

    /// The hash of a text, the same on all shards.
    pub fn hash(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }

    /// Frees the memory. Call when no connection is left.
    pub fn clear(&mut self) {
        self.hashes = Vec::new();
    }

    /// Never 0, which means "not registered".
    fn identity_hash(&self, identifiers: &str) -> u64 {
        self.hash(identifiers) | 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_are_registered_are_found_by_their_identifiers() {
        let mut identities = Identities::new(RandomState::new());
        for slot in 0..4 {
            identities.make_room(slot);
        }
        identities.register(1, "u");
        identities.register(2, "other");
        identities.register(3, "u");
        assert_eq!(identities.candidates("u"), [1, 3]);
        assert!(!identities.contains(0) && identities.contains(1));
        identities.forget(1);
        assert_eq!(identities.candidates("u"), [3]);
        assert_eq!((identities.slots(), identities.hashes().count()), (4, 2));
    }
}
