//! How long a task of the HTTP phase waits, and how long it runs before other tasks of the shard run.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use crate::mesh::Permit;
use crate::shard::{RequestGuard, Shard};

/// How long a client that sends faster than it is served may keep its task running.
const TURN_TIME_MAX: Duration = Duration::from_micros(100);
/// Longest sleep within a wait. After it the task checks for a drain and for a client that waits for its place.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Time left to a request that has begun when sessions are being closed: the end of the process waits for it.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// Limits one client's task: its waits end at deadlines and drains, and its turns end after a share of time.
pub struct TaskTime {
    /// When the task last let the others run.
    turn_started: Instant,
    /// The task has waited since then, so other tasks have run.
    waits: bool,
    /// Set from the first byte of a request until it is answered or its session is in the table. The drain waits for it.
    under_way: Option<RequestGuard>,
    /// When a drain ends this client's request; `None` until the client has noticed a drain.
    drain_deadline: Option<Instant>,
}

impl TaskTime {
    pub fn new() -> Self {
        Self {
            turn_started: Instant::now(),
            waits: false,
            under_way: None,
            drain_deadline: None,
        }
    }

    /// Notes that a request has begun.
    pub fn begin(&mut self, request: RequestGuard) {
        self.under_way = Some(request);
    }

    /// Notes that the request has been answered.
    pub fn rest(&mut self) {
        self.under_way = None;
    }

    /// Returns the result of `work`. Returns `None` when `deadline` or the time that a drain leaves to a request has passed
    /// first, or when another client waits for the `place` of this idle one (`--max-conn`).
    ///
    /// # Cancel safety
    /// As safe as `work` is.
    pub fn wait<'a, T: 'a>(
        &'a mut self,
        shard: &'a Shard,
        place: Option<&'a Permit>,
        deadline: Instant,
        work: Pin<&'a mut impl Future<Output = T>>,
    ) -> impl Future<Output = Option<T>> + 'a {
        let mut has_waited = false;
        let limit = move || {
            let now = Instant::now();
            self.waits = true;
            let deadline = self.latest(shard, deadline, now);
            let left = deadline.saturating_duration_since(now);
            let gives_way = place.is_some_and(|place| has_waited && place.is_wanted());
            if has_waited && (left.is_zero() || gives_way) {
                return None;
            }
            has_waited = true;
            // An idle client whose place cannot be taken has nothing to check for, so it sleeps until its deadline.
            let looks = self.under_way.is_some() || place.is_some();
            Some(if looks { left.min(LOOK_INTERVAL) } else { left })
        };
        shard.timeouts.while_some(limit, work)
    }

    /// Lets the other tasks of the shard run if this one has used up its share of time.
    pub async fn let_others_run(&mut self, shard: &Shard) {
        let has_waited = std::mem::take(&mut self.waits);
        if !has_waited {
            if self.turn_started.elapsed() < TURN_TIME_MAX {
                return;
            }
            shard.yields.yield_now().await;
        }
        self.turn_started = Instant::now();
    }

    fn latest(&mut self, shard: &Shard, deadline: Instant, now: Instant) -> Instant {
        if self.under_way.is_none() || !shard.shutdown.is_draining() {
            return deadline;
        }
        self.latest_in_drain(deadline, now)
    }

    /// All waits of a client share the time that a drain leaves, counted from the first wait that notices the drain.
    fn latest_in_drain(&mut self, deadline: Instant, now: Instant) -> Instant {
        deadline.min(*self.drain_deadline.get_or_insert(now + DRAIN_PATIENCE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_leaves_one_patience_to_all_waits_of_a_client() {
        let mut time = TaskTime::new();
        let seen = Instant::now();
        let far = seen + 10 * DRAIN_PATIENCE;
        assert_eq!(time.latest_in_drain(far, seen), seen + DRAIN_PATIENCE);
        let later = seen + DRAIN_PATIENCE / 2;
        assert_eq!(time.latest_in_drain(far, later), seen + DRAIN_PATIENCE);
        assert_eq!(time.latest_in_drain(later, later), later);
    }
}
