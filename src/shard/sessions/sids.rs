//! The extended sessions of this shard by session id, for clients that come back while their old connection is still there.

use ahash::RandomState;
use hashbrown::HashTable;

/// Slots by sid. The texts are in the sessions. A sid that a proxy chooses may be that of several sessions.
#[derive(Default)]
pub(super) struct Sids {
    slots: HashTable<u32>,
    hasher: RandomState,
}

impl Sids {
    pub fn add<'a>(&mut self, slot: u32, sid_of: impl Fn(u32) -> &'a str) {
        let hasher = &self.hasher;
        let hash = hasher.hash_one(sid_of(slot));
        self.slots
            .insert_unique(hash, slot, |&other| hasher.hash_one(sid_of(other)));
    }

    /// A session with this sid.
    pub fn find<'a>(&self, sid: &str, sid_of: impl Fn(u32) -> &'a str) -> Option<u32> {
        let hash = self.hasher.hash_one(sid);
        self.slots.find(hash, |&slot| sid_of(slot) == sid).copied()
    }

    /// The session in this slot, which has this sid, has ended. Nothing happens if it was not added.
    pub fn remove(&mut self, slot: u32, sid: &str) {
        let hash = self.hasher.hash_one(sid);
        if let Ok(entry) = self.slots.find_entry(hash, |&other| other == slot) {
            entry.remove();
        }
        if self.slots.is_empty() {
            self.slots = HashTable::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_with_one_sid_are_found_until_the_last_has_ended() {
        let texts = ["a", "b", "a"];
        let sid_of = |slot: u32| texts[slot as usize];
        let mut sids = Sids::default();
        (0..3).for_each(|slot| sids.add(slot, sid_of));
        assert_eq!(sids.find("b", sid_of), Some(1));
        sids.remove(0, "a");
        assert_eq!(sids.find("a", sid_of), Some(2));
        // Not there any more, and never added.
        sids.remove(0, "a");
        sids.remove(7, "c");
        sids.remove(2, "a");
        assert_eq!(
            (sids.find("a", sid_of), sids.find("c", sid_of)),
            (None, None)
        );
        sids.remove(1, "b");
        assert_eq!(sids.slots.capacity(), 0);
    }
}
