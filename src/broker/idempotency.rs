//! Which publications with an idempotency key have been seen, so that a repeated broadcast is delivered once.
//!
//! A key counts within its stream. It is remembered for [`KEY_WINDOW`] as a hash of 128 bits with a secret of the process,
//! so a key of any length takes the same memory. The home shard of the stream asks before it gives the publication its
//! position.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ahash::RandomState;
use hashbrown::HashTable;

use super::Budget;

/// How long a key is remembered.
pub const KEY_WINDOW: Duration = Duration::from_secs(300);
/// Keys that one shard remembers: 870 keyed publications a second for the whole window.
pub const KEYS_MAX: usize = 262_144;
/// Bytes charged for a key: its hash and time in a queue, its place in the table, and what is free in both.
pub const KEY_BYTES: usize = 64;

/// Keys whose time is over that one question removes. A sweep removes the others.
const REMOVED_PER_QUESTION_MAX: usize = 4;
/// A table with more room than this is shrunk when it is three quarters empty.
const KEPT_KEYS: usize = 64;

/// Whether a key has been seen within the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Not yet; it is remembered now.
    New,
    /// The publication is a repetition and must not be delivered.
    Again,
}

/// A key that is remembered.
struct Key {
    /// Two hashes of stream and key. The first one is also that of the table.
    hashes: [u64; 2],
    seen_at: Instant,
}

/// The keys that one shard remembers.
pub struct SeenKeys<B> {
    budget: B,
    keys_max: usize,
    hashers: [RandomState; 2],
    /// In the order in which they were seen.
    keys: VecDeque<Key>,
    /// Keys by hash, as numbers that count from the first key of the shard. They wrap around.
    index: HashTable<u32>,
    /// The number of the oldest key.
    oldest: u32,
    forgotten: u64,
}

impl<B: Budget> SeenKeys<B> {
    /// Nothing is remembered yet. Every key will be charged to `budget`.
    pub fn new(budget: B) -> Self {
        Self::with_max(budget, KEYS_MAX)
    }

    fn with_max(budget: B, keys_max: usize) -> Self {
        Self {
            budget,
            keys_max,
            hashers: [RandomState::new(), RandomState::new()],
            keys: VecDeque::new(),
            index: HashTable::new(),
            oldest: 0,
            forgotten: 0,
        }
    }

    /// Asks whether `key` was seen in `stream` within the window, and remembers it if not. At the bound the oldest keys are
    /// forgotten first.
    pub fn see(&mut self, stream: &str, key: &str, now: Instant) -> Seen {
        self.remove_old(now, REMOVED_PER_QUESTION_MAX);
        let hashes = [0, 1].map(|it: usize| self.hashers[it].hash_one((stream, key)));
        if let Some(number) = self.find(hashes) {
            if self.is_young(self.key(number), now) {
                return Seen::Again;
            }
            // It will be remembered under a new number, and the old one goes when its turn comes.
            self.remove_from_index(hashes, number);
        }
        if self.make_room() {
            self.remember(hashes, now);
        } else {
            self.forgotten += 1;
        }
        Seen::New
    }

    /// Forgets the keys whose time is over, `keys_max` at most. True: there are more.
    pub fn sweep(&mut self, now: Instant, keys_max: usize) -> bool {
        let more = self.remove_old(now, keys_max);
        if !more {
            self.shrink();
        }
        more
    }

    /// Keys that are remembered.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keys that were forgotten within their window, because the number of keys or the memory was at its bound.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn key(&self, number: u32) -> &Key {
        &self.keys[number.wrapping_sub(self.oldest) as usize]
    }

    fn find(&self, hashes: [u64; 2]) -> Option<u32> {
        let is_wanted = |&number: &u32| self.key(number).hashes == hashes;
        self.index.find(hashes[0], is_wanted).copied()
    }

    fn is_young(&self, key: &Key, now: Instant) -> bool {
        now.saturating_duration_since(key.seen_at) < KEY_WINDOW
    }

    /// Charges a key, and forgets older ones for it if necessary. False: the memory is used for other things.
    fn make_room(&mut self) -> bool {
        if self.keys.len() >= self.keys_max {
            self.forget_oldest();
        }
        while !self.budget.try_charge(KEY_BYTES) {
            if self.keys.is_empty() {
                return false;
            }
            self.forget_oldest();
        }
        true
    }

    fn forget_oldest(&mut self) {
        self.remove_oldest();
        self.forgotten += 1;
    }

    fn remember(&mut self, hashes: [u64; 2], now: Instant) {
        let number = self.oldest.wrapping_add(self.keys.len() as u32);
        if self.keys.len() == self.keys.capacity() {
            // Doubling would leave up to half of the queue unused.
            self.keys.reserve_exact((self.keys.len() / 4).max(8));
        }
        self.keys.push_back(Key {
            hashes,
            seen_at: now,
        });
        let (keys, oldest) = (&self.keys, self.oldest);
        let hash_of = |&number: &u32| keys[number.wrapping_sub(oldest) as usize].hashes[0];
        self.index.insert_unique(hashes[0], number, hash_of);
    }

    /// Removes keys whose time is over, `keys_max` at most. True: there are more.
    fn remove_old(&mut self, now: Instant, keys_max: usize) -> bool {
        for _ in 0..keys_max {
            match self.keys.front() {
                Some(key) if !self.is_young(key, now) => self.remove_oldest(),
                _ => return false,
            }
        }
        let oldest = self.keys.front();
        oldest.is_some_and(|key| !self.is_young(key, now))
    }

    fn remove_oldest(&mut self) {
        let Some(hashes) = self.keys.front().map(|key| key.hashes) else {
            return;
        };
        self.remove_from_index(hashes, self.oldest);
        self.keys.pop_front();
        self.oldest = self.oldest.wrapping_add(1);
        self.budget.release(KEY_BYTES);
    }

    /// Removes a number, which may be missing because the same key was seen again later.
    fn remove_from_index(&mut self, hashes: [u64; 2], number: u32) {
        if let Ok(entry) = self.index.find_entry(hashes[0], |&other| other == number) {
            entry.remove();
        }
    }

    fn shrink(&mut self) {
        let wanted = self.keys.len().max(KEPT_KEYS);
        if self.keys.capacity() > 4 * wanted {
            self.keys.shrink_to(wanted);
        }
        if self.index.capacity() > 4 * wanted {
            let (keys, oldest) = (&self.keys, self.oldest);
            let hash_of = |&number: &u32| keys[number.wrapping_sub(oldest) as usize].hashes[0];
            self.index.shrink_to(wanted, hash_of);
        }
    }
}

/// The key of one publication of a request, whose key is for all of them together.
pub fn key_of_part(request_key: &str, index: usize) -> Box<str> {
    format!("{request_key}#{index}").into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::broker::budget::FixedBudget;

    fn keys(keys_max: usize) -> SeenKeys<FixedBudget> {
        SeenKeys::with_max(FixedBudget::new(usize::MAX), keys_max)
    }

    #[test]
    fn a_key_counts_once_within_its_stream_and_its_window() {
        let start = Instant::now();
        let mut keys = keys(KEYS_MAX);
        let mut check = |stream: &str, key: &str, after: Duration, expected: Seen| {
            let seen = keys.see(stream, key, start + after);
            assert_eq!(seen, expected, "{key} in {stream} after {after:?}");
        };
        let late = KEY_WINDOW - Duration::from_millis(1);
        check("a", "k", Duration::ZERO, Seen::New);
        check("a", "k", Duration::ZERO, Seen::Again);
        check("b", "k", Duration::ZERO, Seen::New);
        check("a", "", Duration::ZERO, Seen::New);
        check("", "ak", Duration::ZERO, Seen::New);
        check("a", "k", late, Seen::Again);
        // A repetition does not make the window longer.
        check("a", "k", KEY_WINDOW, Seen::New);
        check("a", "k", KEY_WINDOW + late, Seen::Again);
    }

    #[test]
    fn at_the_bound_the_oldest_key_is_forgotten_and_counted() {
        let now = Instant::now();
        let mut keys = keys(2);
        for key in ["1", "2", "3"] {
            assert_eq!(keys.see("a", key, now), Seen::New);
        }
        assert_eq!((keys.len(), keys.forgotten()), (2, 1));
        assert_eq!(keys.see("a", "3", now), Seen::Again);
        assert_eq!(keys.see("a", "2", now), Seen::Again);
        assert_eq!(keys.see("a", "1", now), Seen::New);
    }

    #[test]
    fn the_bound_of_a_shard_is_kept() {
        let now = Instant::now();
        let mut keys = SeenKeys::new(FixedBudget::new(usize::MAX));
        for key in 0..=KEYS_MAX {
            keys.see("a", &key.to_string(), now);
        }
        assert_eq!((keys.len(), keys.forgotten()), (KEYS_MAX, 1));
    }

    #[test]
    fn without_memory_older_keys_go_and_without_older_keys_nothing_is_remembered() {
        let now = Instant::now();
        let mut keys = keys(KEYS_MAX);
        keys.budget.set_max(2 * KEY_BYTES);
        for key in ["1", "2", "3"] {
            keys.see("a", key, now);
        }
        assert_eq!((keys.len(), keys.forgotten()), (2, 1));
        keys.budget.set_max(0);
        assert_eq!(keys.see("a", "4", now), Seen::New);
        assert_eq!((keys.len(), keys.forgotten()), (0, 4));
        assert_eq!(keys.see("a", "4", now), Seen::New);
        assert_eq!(keys.budget.used(), 0);
    }

    #[test]
    fn a_question_removes_a_few_old_keys_and_a_sweep_as_many_as_it_may() {
        let start = Instant::now();
        let mut keys = keys(KEYS_MAX);
        for key in 0..100 {
            keys.see("a", &key.to_string(), start);
        }
        let later = start + KEY_WINDOW;
        keys.see("a", "new", later);
        assert_eq!(keys.len(), 100 - REMOVED_PER_QUESTION_MAX + 1);
        assert!(keys.sweep(later, 50));
        assert!(!keys.sweep(later, 50));
        assert_eq!(keys.len(), 1);
        assert_eq!(keys.see("a", "new", later), Seen::Again);
        assert_eq!(keys.forgotten(), 0);
    }

    #[test]
    fn the_parts_of_a_request_have_different_keys() {
        assert_eq!(&*key_of_part("k", 0), "k#0");
        assert_ne!(key_of_part("k", 1), key_of_part("k#1", 0));
    }

    proptest! {
        /// Against a map of the times at which keys were seen.
        #[test]
        fn keys_are_seen_as_by_a_map(
            steps in prop::collection::vec((0..40_u32, 0..20_000_u64, any::<bool>()), 1..400),
            first in prop::sample::select(vec![0, u32::MAX - 20]),
        ) {
            let mut now = Instant::now();
            let mut keys = keys(KEYS_MAX);
            keys.oldest = first;
            let mut model: HashMap<u32, Instant> = HashMap::new();
            for (key, millis, sweeps) in steps {
                now += Duration::from_millis(millis);
                let known = model.get(&key).is_some_and(|at| now - *at < KEY_WINDOW);
                let expected = if known { Seen::Again } else { Seen::New };
                prop_assert_eq!(keys.see("stream", &key.to_string(), now), expected);
                if !known {
                    model.insert(key, now);
                }
                if sweeps {
                    while keys.sweep(now, 3) {}
                    let young = model.values().filter(|at| now - **at < KEY_WINDOW).count();
                    prop_assert_eq!((keys.len(), keys.index.len()), (young, young));
                }
                prop_assert_eq!(keys.budget.used(), keys.len() * KEY_BYTES);
            }
            now += KEY_WINDOW;
            while keys.sweep(now, 100) {}
            prop_assert_eq!((keys.len(), keys.index.len(), keys.budget.used()), (0, 0, 0));
        }
    }
}
