//! The table that all shards share: for each bucket of streams the shards that may have a listener.
//!
//! A stream has two buckets, and a shard that has it sets its bit in both. A publisher sends to the shards whose bits are
//! set in both. With one bucket, needless messages would cost more than the second look does.
//!
//! **Why no bit is missing.** What has to hold: when a publication begins after the confirmation of a subscription was sent,
//! [`Interest::listeners`] returns the shard of this subscription. A publication that begins earlier may miss it.
//!
//! - *In one level.* Only the shard itself writes its bits. It sets the bit before it queues the confirmation, and clears it
//!   after its last stream of the bucket has gone. A publication that begins after the confirmation follows from it: the
//!   news of the confirmation has come from that shard, by the network or by an inbox. Each of these ways orders memory, so
//!   the publisher sees the bit.
//! - *While the table grows.* A level is a table of its own, four times as large as the one before it. Readers use the level
//!   `read`. A shard that sees a larger `wanted` announces its streams in that level, piece by piece, and keeps both levels
//!   up to date. When all are announced, it counts itself in. The last shard to do so moves the readers to the new level. Up
//!   to that moment every shard keeps the old level complete, and from that moment on every shard keeps the new level
//!   complete.
//! - *The old level* is no longer kept up to date by a shard that has seen readers moved. What this shard confirms from then
//!   on is missing in the old level. A publication that begins after such a confirmation cannot read the old level: the
//!   shard saw the new value of `read` before it confirmed, so the publisher, which comes after the confirmation, sees it
//!   too.
//! - *A slow shard* delays the move and nothing else. It takes part in every turn and with every tick of its clock.
//!
//! Levels are never freed and the table never shrinks: a publisher may use an old level for as long as it is suspended, and
//! all old levels together have a third of the size of the newest.

use ahash::RandomState;

use super::atomics::{AtomicU64, AtomicUsize, OnceLock, Ordering};
use super::shard_set::{ShardSet, WORD_BITS};

/// Streams that one shard may have before the table grows for the first time. Each level has room for [`GROWTH`] times as
/// many.
const STREAMS_AT_FIRST: usize = 2048;
const GROWTH: usize = 4;
/// More than a table of one shard needs to reach [`INTEREST_BYTES_MAX`].
const LEVELS: usize = 8;

/// Bytes of the largest level. From there on the table does not grow, and more publications reach shards without a listener.
pub const INTEREST_BYTES_MAX: usize = 32 << 20;

/// A level has at least as many buckets as for this number of shards, because its bits are few with fewer shards.
const SHARDS_SIZED_FOR_MIN: usize = 16;

type Words = Box<[AtomicU64]>;

/// For each bucket of streams the shards that may have a listener. Shared by all shards.
pub struct Interest {
    /// The same on all shards, so that a stream is in the same bucket for all.
    hasher: RandomState,
    shards: usize,
    streams_at_first: usize,
    levels: [OnceLock<Words>; LEVELS],
    /// By level: the shards that have announced their streams in it.
    announced: [AtomicUsize; LEVELS],
    /// The level in which every shard has to announce its streams.
    wanted: AtomicUsize,
    /// The level that publishers read. `wanted` is the same or one more.
    read: AtomicUsize,
}

impl Interest {
    /// A table for `shards` shards, all of which have to take part.
    pub fn new(shards: usize, hasher: RandomState) -> Self {
        Self::with_streams(shards, hasher, STREAMS_AT_FIRST)
    }

    /// A table that grows when a shard has more than `streams_at_first` streams.
    pub fn with_streams(shards: usize, hasher: RandomState, streams_at_first: usize) -> Self {
        let interest = Self {
            hasher,
            shards,
            streams_at_first,
            levels: Default::default(),
            announced: Default::default(),
            wanted: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
        };
        interest.make_level(0);
        interest
    }

    /// The hash of a stream's name or of connection identifiers, the same on all shards.
    pub fn hasher(&self) -> &RandomState {
        &self.hasher
    }

    /// The number of shards.
    pub fn shards(&self) -> usize {
        self.shards
    }

    /// The shards that may have a listener of one of these streams now.
    pub fn listeners<'a>(&self, streams: impl Iterator<Item = &'a str>) -> ShardSet {
        let mut shards = ShardSet::none(self.shards);
        let bucket_words = self.shards.div_ceil(WORD_BITS);
        let mask = u64::MAX >> (WORD_BITS - self.bucket_bits().min(WORD_BITS));
        // The last shard to announce its streams has stored this level after all bits were set.
        let words = self.words(self.read.load(Ordering::Acquire));
        for stream in streams {
            let buckets = buckets_of(self.hasher.hash_one(stream), self.buckets(words));
            for index in 0..bucket_words {
                let bits = buckets.map(|bucket| {
                    let (first, shift) = self.place(bucket as usize, 0);
                    words[first + index].load(Ordering::Relaxed) >> shift
                });
                shards.add(index, bits[0] & bits[1] & mask);
            }
        }
        shards
    }

    /// How many bits of the level that publishers read are set.
    #[cfg(test)]
    pub fn bits_set(&self) -> u32 {
        let words = self.words(self.read.load(Ordering::Acquire)).iter();
        words
            .map(|word| word.load(Ordering::Relaxed).count_ones())
            .sum()
    }

    /// Bytes of all levels.
    pub fn held_bytes(&self) -> usize {
        let levels = self.levels.iter().filter_map(OnceLock::get);
        levels.map(|words| size_of_val(&**words)).sum()
    }

    /// The level in which every shard has to announce its streams.
    pub(super) fn wanted(&self) -> usize {
        self.wanted.load(Ordering::Acquire)
    }

    /// Whether publishers read `level` or a newer one.
    pub(super) fn is_read(&self, level: usize) -> bool {
        self.read.load(Ordering::Acquire) >= level
    }

    /// The streams that one shard may have before it asks for the next level.
    pub(super) fn streams_max(&self, level: usize) -> usize {
        if level + 1 == LEVELS || self.level_bytes(level) == INTEREST_BYTES_MAX {
            return usize::MAX;
        }
        self.streams_at_first * GROWTH.pow(level as u32)
    }

    /// Asks all shards to announce their streams in the level after `level`, which every shard has announced.
    pub(super) fn want_more_than(&self, level: usize) {
        if self.wanted() != level {
            return;
        }
        self.make_level(level + 1);
        // If another shard was faster, nothing changes.
        let _ = self
            .wanted
            .compare_exchange(level, level + 1, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// A shard has announced all its streams in `level`, which is `wanted`. The last shard moves the readers.
    pub(super) fn count_in(&self, level: usize) {
        let before = self.announced[level].fetch_add(1, Ordering::AcqRel);
        if before + 1 == self.shards {
            self.read.store(level, Ordering::Release);
        }
    }

    /// The buckets of a stream in a level. They may be one and the same.
    pub(super) fn buckets_of(&self, level: usize, hash: u64) -> [u32; 2] {
        buckets_of(hash, self.buckets(self.words(level)))
    }

    /// Sets the bit of a shard; only this shard may call it. Returns false when it was set already.
    pub(super) fn set(&self, level: usize, bucket: u32, shard: usize) -> bool {
        let (word, shift) = self.place(bucket as usize, shard);
        let bit = 1 << shift;
        let word = &self.words(level)[word];
        word.load(Ordering::Relaxed) & bit == 0 && {
            word.fetch_or(bit, Ordering::Relaxed);
            true
        }
    }

    /// Clears the bit of a shard; only this shard may call it.
    pub(super) fn clear(&self, level: usize, bucket: u32, shard: usize) {
        let (word, shift) = self.place(bucket as usize, shard);
        self.words(level)[word].fetch_and(!(1 << shift), Ordering::Relaxed);
    }

    fn words(&self, level: usize) -> &[AtomicU64] {
        self.levels[level]
            .get()
            .expect("a level is made before it is wanted")
    }

    /// The new level is filled before the cell is locked, so that nobody waits for it. A level made twice is dropped.
    fn make_level(&self, level: usize) {
        let words = self.level_bytes(level) / size_of::<u64>();
        let _ = self.levels[level].set((0..words).map(|_| AtomicU64::new(0)).collect());
    }

    /// Bytes of a level. When the level is full there are eight buckets or more for each stream of one shard, so that at
    /// most 22 % of the bits of this shard are set. It gets a publication for which it has no listener in at most 5 % of
    /// the cases (with 32 shards 1.4 %, with 64 shards 0.4 %).
    fn level_bytes(&self, level: usize) -> usize {
        let streams = self.streams_at_first * GROWTH.pow(level as u32);
        let shards = self.shards.next_power_of_two().max(SHARDS_SIZED_FOR_MIN);
        let bits = streams * shards / 2 * self.bucket_bits();
        (bits / 8).clamp(size_of::<u64>(), INTEREST_BYTES_MAX)
    }

    /// Bits of a bucket: a power of two, so that a bucket of up to 64 shards lies in one word.
    fn bucket_bits(&self) -> usize {
        self.shards.next_power_of_two()
    }

    fn buckets(&self, words: &[AtomicU64]) -> usize {
        words.len() * WORD_BITS / self.bucket_bits()
    }

    /// The word and the position in it of a shard's bit.
    fn place(&self, bucket: usize, shard: usize) -> (usize, usize) {
        let bit = bucket * self.bucket_bits() + shard;
        (bit / WORD_BITS, bit % WORD_BITS)
    }
}

/// From the two halves of the hash. `buckets` is a power of two, and at most 2³².
fn buckets_of(hash: u64, buckets: usize) -> [u32; 2] {
    let mask = (buckets - 1) as u32;
    [hash as u32 & mask, (hash >> 32) as u32 & mask]
}
