//! What one shard keeps beyond the moment: the history of streams, the keys of broadcasts that may be repeated, presence,
//! and sessions that may come back. Pure state: time comes in as an argument, and every byte is charged to a [`Budget`]
//! from outside.
//!
//! A stream has one home among the shards, and a session is kept by the shard on which it has ended, so nothing here is
//! shared.

mod budget;
mod expiry;
pub mod history;
pub mod idempotency;
mod index;
pub mod presence;
pub mod sessions;

pub use budget::Budget;

/// A stream by its name. The hash is that of the hasher that the whole process has for streams: it also chooses the home
/// shard of the stream, so a name is hashed once.
#[derive(Debug, Clone, Copy)]
pub struct StreamKey<'a> {
    pub name: &'a str,
    pub hash: u64,
}

impl StreamKey<'_> {
    /// The hash for a table of this shard. The hashes of all streams at home here may have the same low bits, because these
    /// have chosen the shard, and a table finds the place of an entry by the low bits. So the halves change places.
    fn table_hash(&self) -> u64 {
        self.hash.rotate_right(u64::BITS / 2)
    }
}
