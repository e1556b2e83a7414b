//! Tables of the broker: entries in slabs, found by the hash of a key that the entry itself has.

use hashbrown::HashTable;
use slab::Slab;

/// Memory of an entry's place in an [`Index`]: five bytes, and what is free in a table that has just grown.
pub const INDEX_BYTES: usize = 12;

/// An index with more room than this is shrunk when it is three quarters empty.
const KEPT_ENTRIES: usize = 64;

/// The indices of slab entries by the hashes of their keys. The keys are not stored again; a closure finds them by index.
#[derive(Default)]
pub struct Index {
    table: HashTable<u32>,
}

impl Index {
    pub fn find(&self, hash: u64, is_wanted: impl Fn(u32) -> bool) -> Option<u32> {
        self.table.find(hash, |&entry| is_wanted(entry)).copied()
    }

    /// Adds an entry that is not there yet.
    pub fn insert(&mut self, hash: u64, entry: u32, hash_of: impl Fn(u32) -> u64) {
        self.table
            .insert_unique(hash, entry, |&other| hash_of(other));
    }

    pub fn remove(&mut self, hash: u64, entry: u32) {
        if let Ok(found) = self.table.find_entry(hash, |&other| other == entry) {
            found.remove();
        }
    }

    /// Frees memory after many entries have been removed.
    pub fn shrink(&mut self, hash_of: impl Fn(u32) -> u64) {
        if self.table.capacity() > 4 * self.table.len().max(KEPT_ENTRIES) {
            self.table.shrink_to_fit(|&other| hash_of(other));
        } else if self.table.is_empty() {
            self.table = HashTable::new();
        }
    }
}

/// Memory of an entry of type `T`: the slab, a fifth of which may be free, and the index.
pub const fn entry_bytes<T>() -> usize {
    size_of::<T>() * 5 / 4 + INDEX_BYTES
}

/// Adds an entry to a slab that grows by a quarter. Doubling would leave up to half of it unused, and these tables hold
/// most of the broker's memory beside its texts.
pub fn insert<T>(slab: &mut Slab<T>, entry: T) -> u32 {
    if slab.len() == slab.capacity() {
        slab.reserve_exact((slab.len() / 4).max(8));
    }
    slab.insert(entry) as u32
}
