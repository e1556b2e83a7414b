//! One shard's part in the table: it sets its bits for the streams that its sessions listen to.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;

use super::table::Interest;

/// Streams that one turn announces while the table grows: a fraction of a millisecond.
const ANNOUNCED_PER_TURN_MAX: u32 = 4096;

/// Bytes of an entry for a bucket with more than one stream.
const SHARED_BUCKET_BYTES: usize = 16;

/// The bits of one shard. It is told of every stream that gets its first listener here or loses its last one. Streams have
/// small numbers, which may be used again.
pub struct LocalInterest {
    table: Arc<Interest>,
    shard: usize,
    /// Streams with a listener.
    streams: usize,
    /// The level that publishers read, or read before.
    kept: Level,
    /// The next level, while the table grows.
    next: Option<Announcement>,
}

/// One level that is kept up to date.
#[derive(Default)]
struct Level {
    level: usize,
    /// Buckets with more than one stream of this shard, and how many streams they have beside the first; a stream whose two
    /// buckets are the same counts twice. There are few, so that a stream needs no memory of its own.
    shared: HashMap<u32, u32, RandomState>,
}

struct Announcement {
    to: Level,
    /// The streams with smaller numbers are announced.
    announced: u32,
    /// All are announced, and the table knows.
    is_complete: bool,
}

/// The part of the only shard.
impl Default for LocalInterest {
    fn default() -> Self {
        Self::new(Arc::new(Interest::new(1, RandomState::new())), 0)
    }
}

impl LocalInterest {
    /// The part of `shard`, which has no stream yet. The table waits for every shard when it grows, so each must have one
    /// and call [`Self::keep_up`] from time to time.
    pub fn new(table: Arc<Interest>, shard: usize) -> Self {
        Self {
            table,
            shard,
            streams: 0,
            kept: Level::default(),
            next: None,
        }
    }

    /// For the hash of a stream.
    pub fn hasher(&self) -> &RandomState {
        self.table.hasher()
    }

    /// A stream has its first listener. Call this before the listener's confirmation can be sent.
    pub fn add(&mut self, stream: u32, hash: u64) {
        self.streams += 1;
        self.kept.add(&self.table, self.shard, hash);
        if let Some(next) = &mut self.next
            && stream < next.announced
        {
            next.to.add(&self.table, self.shard, hash);
        }
    }

    /// A stream has lost its last listener.
    pub fn remove(&mut self, stream: u32, hash: u64) {
        self.streams -= 1;
        self.kept.remove(&self.table, self.shard, hash);
        if let Some(next) = &mut self.next
            && stream < next.announced
        {
            next.to.remove(&self.table, self.shard, hash);
        }
    }

    /// Takes part in the growth of the table, and asks for it. Call this in every turn; usually it only looks at one shared
    /// number. All streams have numbers below `streams_end`; `hash_of` returns the hash of those that exist.
    pub fn keep_up(&mut self, streams_end: u32, hash_of: impl Fn(u32) -> Option<u64>) {
        if self.streams > self.table.streams_max(self.kept.level) {
            self.table.want_more_than(self.kept.level);
        }
        if self.table.wanted() != self.kept.level {
            self.announce(streams_end, hash_of);
        }
    }

    /// Announces some more streams in the next level. Forgets the old level when publishers read the new one.
    fn announce(&mut self, streams_end: u32, hash_of: impl Fn(u32) -> Option<u64>) {
        let mut next = self.next.take().unwrap_or_else(|| Announcement {
            to: Level {
                level: self.kept.level + 1,
                shared: HashMap::default(),
            },
            announced: 0,
            is_complete: false,
        });
        if !next.is_complete {
            let piece_end = streams_end.min(next.announced.saturating_add(ANNOUNCED_PER_TURN_MAX));
            for hash in (next.announced..piece_end).filter_map(hash_of) {
                next.to.add(&self.table, self.shard, hash);
            }
            next.announced = next.announced.max(piece_end);
            if next.announced >= streams_end {
                next.announced = u32::MAX;
                next.is_complete = true;
                self.table.count_in(next.to.level);
            }
        }
        if next.is_complete && self.table.is_read(next.to.level) {
            self.kept = next.to;
        } else {
            self.next = Some(next);
        }
    }

    /// Whether all streams are announced in the next level.
    #[cfg(test)]
    pub(super) fn has_announced(&self) -> bool {
        self.next.as_ref().is_some_and(|next| next.is_complete)
    }

    /// Memory that the streams of this shard take here, without the table that all shards share.
    pub fn held_bytes(&self) -> usize {
        let levels = std::iter::once(&self.kept).chain(self.next.as_ref().map(|next| &next.to));
        let buckets: usize = levels.map(|level| level.shared.len()).sum();
        buckets * SHARED_BUCKET_BYTES
    }

    /// Frees memory after many streams have gone.
    pub fn shrink(&mut self) {
        let shared = &mut self.kept.shared;
        if shared.capacity() > 4 * shared.len().max(64) {
            shared.shrink_to_fit();
        }
    }
}

impl Level {
    fn add(&mut self, table: &Interest, shard: usize, hash: u64) {
        for bucket in table.buckets_of(self.level, hash) {
            if !table.set(self.level, bucket, shard) {
                *self.shared.entry(bucket).or_default() += 1;
            }
        }
    }

    fn remove(&mut self, table: &Interest, shard: usize, hash: u64) {
        for bucket in table.buckets_of(self.level, hash) {
            match self.shared.get_mut(&bucket) {
                None => table.clear(self.level, bucket, shard),
                Some(1) => drop(self.shared.remove(&bucket)),
                Some(others) => *others -= 1,
            }
        }
    }
}
