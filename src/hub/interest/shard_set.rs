//! A set of shards.

/// A set of shards, by their numbers. Up to 64 shards need no allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSet {
    first: u64,
    /// The bits from shard 64 on.
    more: Box<[u64]>,
}

/// Bits of one word.
pub(super) const WORD_BITS: usize = u64::BITS as usize;

impl ShardSet {
    /// No shard of `shards`.
    pub fn none(shards: usize) -> Self {
        let more = shards.div_ceil(WORD_BITS).saturating_sub(1);
        Self {
            first: 0,
            more: vec![0; more].into_boxed_slice(),
        }
    }

    /// Only this shard of `shards`.
    pub fn one(shard: usize, shards: usize) -> Self {
        let mut one = Self::none(shards);
        *one.word_mut(shard / WORD_BITS) |= 1 << (shard % WORD_BITS);
        one
    }

    /// All of `shards`.
    pub fn all(shards: usize) -> Self {
        let mut all = Self::none(shards);
        for shard in 0..shards {
            *all.word_mut(shard / WORD_BITS) |= 1 << (shard % WORD_BITS);
        }
        all
    }

    /// Adds the shards from `64 * word` on whose bits are set.
    pub(super) fn add(&mut self, word: usize, bits: u64) {
        *self.word_mut(word) |= bits;
    }

    pub fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    /// The smallest shard of the set.
    pub fn first(&self) -> Option<usize> {
        let mut words = std::iter::once(&self.first).chain(&self.more).enumerate();
        let (index, word) = words.find(|(_, word)| **word != 0)?;
        Some(index * WORD_BITS + word.trailing_zeros() as usize)
    }

    pub fn remove(&mut self, shard: usize) {
        *self.word_mut(shard / WORD_BITS) &= !(1 << (shard % WORD_BITS));
    }

    fn word_mut(&mut self, index: usize) -> &mut u64 {
        match index {
            0 => &mut self.first,
            _ => &mut self.more[index - 1],
        }
    }
}
