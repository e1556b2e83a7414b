//! The counts of a fleet, per worker and merged; and the progress for which scenarios wait.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::histogram::Histogram;
use crate::sys::Cpu;

/// Counts since the last report.
#[derive(Clone, Default)]
pub struct Figures {
    /// Connections that failed, and upgrades whose answer was not 101.
    pub refused: u64,
    pub rejected: u64,
    /// Connections that the server closed.
    pub closed: u64,
    /// Times of the disconnect messages, in microseconds since the fleet began.
    pub told_micros: Vec<u64>,
    /// Clients that got a disconnect message and then a close frame with code 1001.
    pub sent_away: u64,
    pub pings: u64,
    /// Whole deliveries with a mark, and their bytes with the payload of the frame.
    pub deliveries: u64,
    pub delivered_bytes: u64,
    /// Sequence numbers that have not come, came twice, or came late.
    pub lost: u64,
    pub duplicates: u64,
    pub reordered: u64,
    /// Deliveries of a stream to which the client is not subscribed.
    pub misdirected: u64,
    /// Deliveries without a mark, or whose length differs from the mark's.
    pub unmarked: u64,
    /// Messages of an unknown type.
    pub unknown: u64,
    /// Microseconds from the connect to the 101, to the welcome, to the last confirmation.
    pub upgrade: Histogram,
    pub welcome: Histogram,
    pub ready: Histogram,
    /// Nanoseconds from publication to the end of the read that completed the delivery.
    pub latency: Histogram,
    /// CPU of the clients themselves.
    pub cpu: Cpu,
}

impl Figures {
    pub fn merge(&mut self, other: &Self) {
        self.refused += other.refused;
        self.rejected += other.rejected;
        self.closed += other.closed;
        self.told_micros.extend(&other.told_micros);
        self.sent_away += other.sent_away;
        self.pings += other.pings;
        self.deliveries += other.deliveries;
        self.delivered_bytes += other.delivered_bytes;
        self.lost += other.lost;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.misdirected += other.misdirected;
        self.unmarked += other.unmarked;
        self.unknown += other.unknown;
        self.upgrade.merge(&other.upgrade);
        self.welcome.merge(&other.welcome);
        self.ready.merge(&other.ready);
        self.latency.merge(&other.latency);
        self.cpu += other.cpu;
    }

    /// Everything that a correct server never does to a client: 0 when all is well.
    pub fn faults(&self) -> u64 {
        self.lost + self.duplicates + self.misdirected + self.unmarked + self.unknown
    }
}

/// The state for which scenarios wait, shared by all workers. A worker adds to it once per turn.
#[derive(Default)]
pub struct Progress {
    /// Sockets that are open or being opened.
    pub open: AtomicU64,
    /// Clients with all their confirmations.
    pub ready: AtomicU64,
    pub delivered: AtomicU64,
    pub refused: AtomicU64,
    pub pings: AtomicU64,
    /// No scenario waits for fewer deliveries than this, so below it a worker wakes none.
    goal: AtomicU64,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Progress {
    pub fn new() -> Self {
        let progress = Self::default();
        progress.goal.store(u64::MAX, SeqCst);
        progress
    }

    pub fn add_delivered(&self, count: u64) {
        let delivered = self.delivered.fetch_add(count, SeqCst) + count;
        if delivered >= self.goal.load(SeqCst) {
            self.wake();
        }
    }

    /// Wakes the waiting scenario, after a change that is no delivery.
    pub fn wake(&self) {
        let _held = self.lock.lock().expect("no holder panics");
        self.changed.notify_all();
    }

    /// Waits until this many deliveries have come since the fleet began; false when the time is over.
    pub fn wait_delivered(&self, count: u64, patience: Duration) -> bool {
        if self.delivered.load(SeqCst) >= count {
            return true;
        }
        self.goal.store(count, SeqCst);
        let reached = self.wait(patience, || self.delivered.load(SeqCst) >= count);
        self.goal.store(u64::MAX, SeqCst);
        reached
    }

    /// Waits until `reached` is true; false when the time is over.
    pub fn wait(&self, patience: Duration, reached: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + patience;
        let mut held = self.lock.lock().expect("no holder panics");
        while !reached() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            held = self
                .changed
                .wait_timeout(held, left)
                .expect("no holder panics")
                .0;
        }
        true
    }
}
