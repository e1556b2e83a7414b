//! How long a task of the HTTP phase waits, and how long it runs before the others have their turn.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use crate::mesh::Permit;
use crate::shard::{RequestGuard, Shard, Stage};

/// How long a client may keep its task busy by sending faster than it is served.
const TURN_TIME_MAX: Duration = Duration::from_micros(100);
/// Longest sleep of a wait, so that a drain, or a client that waits for a place, is seen.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What a request that is under way when sessions are being closed may take for the rest of its way: the end of the process
/// waits for it.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// When one client's task gives way: to the clock, to a drain, to the other tasks of its shard.
pub struct TaskPace {
    /// When the task last let the others run.
    turn_started: Instant,
    /// It has had to wait since then, so the others have had their turn.
    waits: bool,
    /// From the first byte of a request until it is answered, or the session is in the table: the drain waits for it.
    under_way: Option<RequestGuard>,
    /// When a drain ends this client's request; `None` before the client has seen one.
    drain_deadline: Option<Instant>,
}

impl TaskPace {
    pub fn new() -> Self {
        Self {
            turn_started: Instant::now(),
            waits: false,
            under_way: None,
            drain_deadline: None,
        }
    }

    /// A request has begun.
    pub fn begin(&mut self, request: RequestGuard) {
        self.under_way = Some(request);
    }

    /// It has been answered.
    pub fn rest(&mut self) {
        self.under_way = None;
    }

    /// The result of `work`; `None` when `deadline`, or the time that a drain leaves to a request, has passed first, or a
    /// client waits for the `place` of one that rests (`--max-conn`).
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
            // A client that rests, and whose place nobody wants, need not look.
            let looks = self.under_way.is_some() || place.is_some();
            Some(if looks { left.min(LOOK_INTERVAL) } else { left })
        };
        shard.timeouts.while_some(limit, work)
    }

    /// Lets the other tasks of the shard run if this one has been running for its share.
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
        if self.under_way.is_none() || shard.stage.get() != Stage::Draining {
            return deadline;
        }
        self.latest_in_drain(deadline, now)
    }

    /// All waits of a client share the time that a drain leaves, counted from the first that sees the drain.
    fn latest_in_drain(&mut self, deadline: Instant, now: Instant) -> Instant {
        deadline.min(*self.drain_deadline.get_or_insert(now + DRAIN_PATIENCE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_leaves_one_patience_to_all_waits_of_a_client() {
        let mut pace = TaskPace::new();
        let seen = Instant::now();
        let far = seen + 10 * DRAIN_PATIENCE;
        assert_eq!(pace.latest_in_drain(far, seen), seen + DRAIN_PATIENCE);
        let later = seen + DRAIN_PATIENCE / 2;
        assert_eq!(pace.latest_in_drain(far, later), seen + DRAIN_PATIENCE);
        assert_eq!(pace.latest_in_drain(later, later), later);
    }
}
