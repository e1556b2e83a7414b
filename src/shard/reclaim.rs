//! Decides when a shard returns unused memory to the operating system after a busy time.
//!
//! The allocator keeps freed memory for reuse, and examines it only after many more allocations. A shard that has become
//! quiet allocates nothing, so it has to trigger this itself.

use std::time::{Duration, Instant};

use crate::metrics::ShardMetrics;

/// How often a shard checks whether memory may have been freed.
pub const RECLAIM_INTERVAL: Duration = Duration::from_secs(2);
/// Passes after the last event: the first marks the free memory, the second returns it.
const LOOKS: u32 = 2;

/// Remembers the event count at the last check.
pub struct Reclaim {
    due_at: Instant,
    events_seen: u64,
    looks_left: u32,
}

impl Reclaim {
    pub fn new(now: Instant) -> Self {
        Self {
            due_at: now + RECLAIM_INTERVAL,
            events_seen: 0,
            looks_left: 0,
        }
    }

    /// When to ask again.
    pub fn due_at(&self) -> Instant {
        self.due_at
    }

    /// True when the interval has passed and there were recent events that take memory and free it again.
    pub fn is_due(&mut self, now: Instant, counters: &ShardMetrics) -> bool {
        if now < self.due_at {
            return false;
        }
        self.due_at = now + RECLAIM_INTERVAL;
        let events = [
            &counters.accepted_total,
            &counters.closed_client_total,
            &counters.rpc_call_total,
            &counters.deliveries_total,
        ];
        let events = events.iter().map(|counter| counter.value()).sum();
        if std::mem::replace(&mut self.events_seen, events) != events {
            self.looks_left = LOOKS;
        }
        let due = self.looks_left > 0;
        self.looks_left = self.looks_left.saturating_sub(1);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_after_work_and_only_then() {
        let start = Instant::now();
        let counters = ShardMetrics::default();
        let mut reclaim = Reclaim::new(start);
        let mut due =
            |intervals: u32| reclaim.is_due(start + RECLAIM_INTERVAL * intervals, &counters);
        assert!(!due(1), "nothing has happened");
        counters.accepted_total.add(1);
        assert!(!due(1), "not yet again");
        assert!(due(2) && due(3), "marked, then given back");
        assert!(!due(4));
        counters.closed_client_total.add(1);
        assert!(due(5));
        counters.closed_client_total.add(1);
        assert!(due(6) && due(7) && !due(8));
    }
}
