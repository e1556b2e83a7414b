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
