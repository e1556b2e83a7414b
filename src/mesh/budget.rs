//! How much memory the process may hold for clients and requests: one budget for all shards, leased to each in chunks.
//!
//! Code that keeps bytes for a client or a request (a session's texts, an unsent frame, a body, a queued call) charges them
//! here as long as it keeps them. At the bound, new work is refused, each kind with an answer of its own, and existing work
//! goes on. Without the bound an allocation could fail, and that would end the process with all its clients.
//!
//! A shard charges its own [`ShardBudget`], which is a few cells; the atomic of the [`ProcessBudget`] is used once per
//! chunk.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::log::Sparse;
use crate::mesh::ShardId;
use crate::metrics::{Metrics, ShardMetrics};

/// A shard leases this much at a time, and keeps up to twice as much that it does not use.
const LEASE_BYTES_MAX: usize = 256 << 10;
const LEASE_BYTES_MIN: usize = 4 << 10;
/// The share of a shard is divided into this many leases, so that the unused leases of all shards are a small part of the
/// whole.
const LEASES_PER_SHARD: usize = 64;

/// Small requests may exceed the bound by one part in this number. So when sessions have used the memory up, the app can
/// still publish, and a health check does not fail and cause a restart.
const REQUESTS_PART: usize = 16;

/// The bytes that all shards together may hold for clients and requests.
#[derive(Debug)]
pub struct ProcessBudget {
    bytes_max: usize,
    lease_bytes: usize,
    leased: AtomicUsize,
}

impl ProcessBudget {
    /// At most `bytes_max` for `shards` shards. `None` = no bound, but the bytes are still counted.
    pub fn new(bytes_max: Option<usize>, shards: usize) -> Arc<Self> {
        let bytes_max = bytes_max.unwrap_or(usize::MAX);
        let lease_bytes = bytes_max / (LEASES_PER_SHARD * shards.max(1));
        Arc::new(Self {
            bytes_max,
            lease_bytes: lease_bytes.clamp(LEASE_BYTES_MIN, LEASE_BYTES_MAX),
            leased: AtomicUsize::new(0),
        })
    }

    /// The bound; `None` if there is none.
    pub fn bytes_max(&self) -> Option<usize> {
        (self.bytes_max < usize::MAX).then_some(self.bytes_max)
    }

    /// Bytes leased to the shards. Only charges that could not be refused can make them exceed the bound.
    pub fn leased_bytes(&self) -> usize {
        self.leased.load(Ordering::Relaxed)
    }

    /// The bound for a small request.
    fn bytes_max_of_requests(&self) -> usize {
        self.bytes_max
            .saturating_add(self.bytes_max / REQUESTS_PART)
    }

    fn try_take(&self, bytes: usize, bytes_max: usize) -> bool {
        self.leased
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |leased| {
                leased
                    .checked_add(bytes)
                    .filter(|&leased| leased <= bytes_max)
            })
            .is_ok()
    }

    fn take(&self, bytes: usize) {
        self.leased.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give(&self, bytes: usize) {
        self.leased.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one shard has leased of a [`ProcessBudget`], and how much of that it uses.
pub struct Lease {
    process: Arc<ProcessBudget>,
    used: Cell<usize>,
    /// Leased from the process; never less than `used`.
    leased: Cell<usize>,
}

impl Lease {
    pub fn new(process: Arc<ProcessBudget>) -> Self {
        Self {
            process,
            used: Cell::new(0),
            leased: Cell::new(0),
        }
    }

    /// Bytes charged now.
    pub fn used_bytes(&self) -> usize {
        self.used.get()
    }

    /// Charges `bytes`, to be released by [`Self::release`]. False: the process is at its bound, and nothing has changed.
    #[must_use]
    pub fn try_charge(&self, bytes: usize) -> bool {
        let charged = self.reserve(bytes, self.process.bytes_max);
        if charged {
            self.used.set(self.used.get() + bytes);
        }
        charged
    }

    /// Charges bytes that cannot be refused any more.
    fn charge(&self, bytes: usize) {
        if !self.reserve(bytes, self.process.bytes_max) {
            let missing = (self.used.get() + bytes).saturating_sub(self.leased.get());
            self.process.take(missing);
            self.leased.set(self.leased.get() + missing);
        }
        self.used.set(self.used.get() + bytes);
    }

    /// Gives charged bytes back.
    pub fn release(&self, bytes: usize) {
        debug_assert!(bytes <= self.used.get(), "only what was charged");
        self.used.set(self.used.get().saturating_sub(bytes));
        let spare = self.leased.get() - self.used.get();
        let lease_bytes = self.process.lease_bytes;
        if spare > 2 * lease_bytes {
            let back = spare - lease_bytes;
            self.leased.set(self.leased.get() - back);
            self.process.give(back);
        }
    }

    /// Makes sure that `bytes` more are leased. False: the process would lease more than `bytes_max`.
    fn reserve(&self, bytes: usize, bytes_max: usize) -> bool {
        let Some(wanted) = self.used.get().checked_add(bytes) else {
            return false;
        };
        let missing = wanted.saturating_sub(self.leased.get());
        if missing == 0 {
            return true;
        }
        let chunks = missing.checked_next_multiple_of(self.process.lease_bytes);
        // Near the bound there may be room for these bytes but not for a chunk.
        for wish in [chunks.unwrap_or(missing), missing] {
            if self.process.try_take(wish, bytes_max) {
                self.leased.set(self.leased.get() + wish);
                return true;
            }
        }
        false
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.process.give(self.leased.get());
    }
}

/// One shard's part of the [`ProcessBudget`] for clients and requests, with its metrics and its log.
pub struct ShardBudget {
    lease: Lease,
    metrics: Arc<Metrics>,
    shard: ShardId,
    refusals: RefCell<Sparse>,
}

impl ShardBudget {
    pub fn new(process: Arc<ProcessBudget>, metrics: Arc<Metrics>, shard: ShardId) -> Rc<Self> {
        Rc::new(Self {
            lease: Lease::new(process),
            metrics,
            shard,
            refusals: RefCell::default(),
        })
    }

    /// The metrics that it counts in.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Bytes charged now.
    #[cfg(test)]
    pub fn used_bytes(&self) -> usize {
        self.lease.used_bytes()
    }

    fn process(&self) -> &ProcessBudget {
        &self.lease.process
    }

    /// Charges `bytes`, to be released by [`Self::release`]. False: the process is at its bound. The caller must refuse the
    /// work; this function has counted and logged the refusal.
    #[must_use]
    pub fn try_charge(&self, bytes: usize) -> bool {
        self.try_charge_within(bytes, self.process().bytes_max)
    }

    fn try_charge_within(&self, bytes: usize, bytes_max: usize) -> bool {
        let charged = self.has_room_within(bytes, bytes_max);
        if charged {
            self.charge(bytes);
        }
        charged
    }

    /// True when the process is at its bound. Nothing is counted.
    pub fn is_full(&self) -> bool {
        self.process().leased_bytes() >= self.process().bytes_max
    }

    /// True when new work that begins with `bytes` may start. A refusal is counted as by [`Self::try_charge`]. While the
    /// process is at its bound, the unused lease of the shard is only for existing work.
    #[must_use]
    pub fn admits(&self, bytes: usize) -> bool {
        let full = self.is_full();
        if full {
            self.note_refusal(bytes);
        }
        !full && self.has_room_within(bytes, self.process().bytes_max)
    }

    /// True when `bytes` more could be charged now. A refusal is counted.
    fn has_room_within(&self, bytes: usize, bytes_max: usize) -> bool {
        let room = self.lease.reserve(bytes, bytes_max);
        if !room {
            self.note_refusal(bytes);
        }
        room
    }

    /// Charges bytes that cannot be refused any more. They are few, or they replace others.
    pub fn charge(&self, bytes: usize) {
        self.lease.charge(bytes);
        self.show();
    }

    /// Gives charged bytes back.
    pub fn release(&self, bytes: usize) {
        self.lease.release(bytes);
        self.show();
    }

    /// As [`Self::try_charge`]; dropping the guard releases the bytes.
    pub fn hold(self: &Rc<Self>, bytes: usize) -> Option<Charge> {
        self.hold_within(bytes, self.process().bytes_max)
    }

    /// As [`Self::hold`], for a small request, which may also use the memory that is reserved for small requests.
    pub fn hold_for_request(self: &Rc<Self>, bytes: usize) -> Option<Charge> {
        self.hold_within(bytes, self.process().bytes_max_of_requests())
    }

    fn hold_within(self: &Rc<Self>, bytes: usize, bytes_max: usize) -> Option<Charge> {
        self.try_charge_within(bytes, bytes_max).then(|| Charge {
            budget: Rc::clone(self),
            bytes,
        })
    }

    /// As [`Self::charge`]; dropping the guard releases the bytes.
    pub fn hold_anyway(self: &Rc<Self>, bytes: usize) -> Charge {
        self.charge(bytes);
        Charge {
            budget: Rc::clone(self),
            bytes,
        }
    }

    fn show(&self) {
        let used_bytes = self.lease.used_bytes();
        self.counters().memory_bytes.set(used_bytes as i64);
    }

    fn counters(&self) -> &ShardMetrics {
        &self.metrics.shards[self.shard]
    }

    /// Counts and logs that work of about `bytes` was refused because [`Self::is_full`] was true.
    pub fn note_refusal(&self, bytes: usize) {
        self.counters().memory_refusals_total.add(1);
        if let Some(admitted) = self.refusals.borrow_mut().admit(Instant::now()) {
            tracing::warn!(
                shard = self.shard,
                bytes,
                max = self.process().bytes_max,
                left_out = admitted.left_out(),
                "the memory for clients and requests is used up (memory_bytes_max), new work is refused"
            );
        }
    }
}

/// Bytes charged to a shard's budget; dropping it releases them.
pub struct Charge {
    budget: Rc<ShardBudget>,
    bytes: usize,
}

impl Charge {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Charges `bytes` more. False: refused, and nothing has changed.
    #[must_use]
    pub fn grow(&mut self, bytes: usize) -> bool {
        self.grow_within(bytes, self.budget.process().bytes_max)
    }

    /// As [`Self::grow`], for a request that holds little; see [`ShardBudget::hold_for_request`].
    #[must_use]
    pub fn grow_for_request(&mut self, bytes: usize) -> bool {
        self.grow_within(bytes, self.budget.process().bytes_max_of_requests())
    }

    fn grow_within(&mut self, bytes: usize, bytes_max: usize) -> bool {
        let grown = self.budget.try_charge_within(bytes, bytes_max);
        if grown {
            self.bytes += bytes;
        }
        grown
    }
}

impl std::fmt::Debug for Charge {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Charge({})", self.bytes)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn shard(process: &Arc<ProcessBudget>) -> Rc<ShardBudget> {
        ShardBudget::new(Arc::clone(process), Arc::new(Metrics::new(1)), 0)
    }

    #[test]
    fn small_requests_have_room_when_everybody_else_has_none() {
        let process = ProcessBudget::new(Some(160_000), 1);
        let budget = shard(&process);
        assert!(budget.try_charge(160_000));
        assert!(budget.hold(1).is_none() && budget.is_full());
        let mut request = budget.hold_for_request(9_000).expect("kept for requests");
        assert!(request.grow_for_request(1_000));
        assert!(!request.grow_for_request(1) && !request.grow(1));
        drop(request);
        assert!(budget.hold_for_request(10_000).is_some());
    }

    #[test]
    fn the_last_byte_can_be_charged_and_one_more_cannot() {
        let process = ProcessBudget::new(Some(100_000), 1);
        let budget = shard(&process);
        assert!(budget.try_charge(99_999));
        assert!(budget.try_charge(1));
        assert!(!budget.try_charge(1));
        let counters = budget.counters();
        assert_eq!(
            (
                counters.memory_bytes.value(),
                counters.memory_refusals_total.value()
            ),
            (100_000, 1)
        );
        budget.release(2);
        assert!(budget.try_charge(2));
    }

    #[test]
    fn nothing_new_begins_when_the_process_has_no_more_to_lease() {
        let process = ProcessBudget::new(Some(1 << 20), 1);
        let budget = shard(&process);
        assert!(budget.admits(1) && !budget.is_full());
        assert!(budget.try_charge((1 << 20) - 1));
        assert!(
            budget.is_full() && !budget.admits(1),
            "one byte is left for what is there"
        );
        assert_eq!(budget.counters().memory_refusals_total.value(), 1);
        assert!(budget.try_charge(1));
        budget.release(1 << 20);
        assert!(budget.admits(1));
    }

    #[test]
    fn what_cannot_be_refused_is_counted_beyond_the_bound() {
        let process = ProcessBudget::new(Some(10_000), 1);
        let budget = shard(&process);
        budget.charge(15_000);
        assert_eq!(
            (budget.used_bytes(), process.leased_bytes()),
            (15_000, 15_000)
        );
        assert!(!budget.try_charge(1));
        budget.release(15_000);
        assert!(budget.try_charge(10_000));
    }

    #[test]
    fn without_a_bound_nothing_is_refused() {
        let process = ProcessBudget::new(None, 1);
        let budget = shard(&process);
        assert_eq!(process.bytes_max(), None);
        assert!(budget.try_charge(1 << 40) && budget.try_charge(1 << 40));
        assert!(!budget.try_charge(usize::MAX), "no overflow either");
    }

    #[test]
    fn one_shard_can_use_what_the_others_do_not() {
        let process = ProcessBudget::new(Some(1 << 20), 4);
        let (first, second) = (shard(&process), shard(&process));
        assert!(second.try_charge(1));
        assert!(first.try_charge((1 << 20) - process.lease_bytes));
        assert!(!first.try_charge(1), "the other shard has the rest");
        drop(second);
        assert!(first.try_charge(1));
    }

    #[test]
    fn a_charge_is_released_when_it_is_dropped() {
        let process = ProcessBudget::new(Some(1000), 1);
        let budget = shard(&process);
        let mut charge = budget.hold(600).expect("there is room");
        assert!(budget.hold(600).is_none());
        assert!(charge.grow(400) && !charge.grow(1));
        assert_eq!((charge.bytes(), budget.used_bytes()), (1000, 1000));
        drop(charge);
        assert_eq!(budget.used_bytes(), 0);
        drop(budget);
        assert_eq!(process.leased_bytes(), 0);
    }

    #[test]
    fn a_lease_charges_exactly_and_gives_everything_back() {
        const CHUNK: usize = LEASE_BYTES_MIN;
        let process = ProcessBudget::new(Some(25 * CHUNK), 2);
        let lease = || Lease::new(Arc::clone(&process));
        let (one, other) = (lease(), lease());
        assert!(one.try_charge(15 * CHUNK) && other.try_charge(10 * CHUNK - 1));
        assert!(!one.try_charge(1), "the last byte is leased to the other");
        assert!(!other.try_charge(2) && !other.try_charge(usize::MAX));
        assert_eq!(
            (one.used_bytes(), other.used_bytes()),
            (15 * CHUNK, 10 * CHUNK - 1)
        );
        assert!(other.try_charge(1) && !other.try_charge(1));
        // What is freed goes to the others, but for a chunk that is kept for the next charge.
        one.release(15 * CHUNK);
        assert_eq!(one.used_bytes(), 0);
        assert!(other.try_charge(14 * CHUNK) && !other.try_charge(1));
        drop((one, other));
        assert_eq!(process.leased_bytes(), 0);
    }

    proptest! {
        #[test]
        fn used_is_the_sum_of_the_charges_and_never_more_than_the_bound(
            bytes_max in 1usize..2_000_000,
            acts in prop::collection::vec((0usize..3, 0usize..300_000, any::<bool>()), 1..200),
        ) {
            let process = ProcessBudget::new(Some(bytes_max), 3);
            let shards: Vec<_> = (0..3).map(|_| shard(&process)).collect();
            let mut held: Vec<(usize, Charge)> = Vec::new();
            for (shard, bytes, take) in acts {
                if take {
                    held.extend(shards[shard].hold(bytes).map(|charge| (shard, charge)));
                } else if !held.is_empty() {
                    let position = bytes % held.len();
                    held.swap_remove(position);
                }
                for (id, budget) in shards.iter().enumerate() {
                    let of_shard = held.iter().filter(|(other, _)| *other == id);
                    let sum: usize = of_shard.map(|(_, charge)| charge.bytes()).sum();
                    prop_assert_eq!(budget.used_bytes(), sum);
                    prop_assert!(budget.lease.leased.get() >= sum);
                }
                prop_assert!(process.leased_bytes() <= bytes_max);
            }
            drop((held, shards));
            prop_assert_eq!(process.leased_bytes(), 0);
        }
    }

    #[test]
    fn shards_on_many_threads_stay_within_the_bound() {
        const BYTES_MAX: usize = 1 << 20;
        let process = ProcessBudget::new(Some(BYTES_MAX), 4);
        let threads: Vec<_> = (1..=4)
            .map(|seed: usize| {
                let process = Arc::clone(&process);
                thread::spawn(move || {
                    let budget = shard(&process);
                    let (mut random, mut held, mut refused) = (seed, Vec::new(), 0);
                    for _ in 0..50_000 {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        match budget.hold((random >> 33) % 40_000) {
                            Some(charge) => held.push(charge),
                            None => {
                                refused += 1;
                                held.truncate(held.len() / 2);
                            }
                        }
                        assert!(process.leased_bytes() <= BYTES_MAX);
                    }
                    refused
                })
            })
            .collect();
        for thread in threads {
            let refused = thread.join().expect("within the bound");
            assert!(refused > 0, "the bound was never reached");
        }
        assert_eq!(process.leased_bytes(), 0);
    }
}
