//! What the log says about calls in general: one line when they begin to fail, a few while they fail, and one when they work
//! again. One instance per process. Pure except for its lock: time is an argument.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::diagnosis::{TROUBLES, Trouble};
use crate::log::{Admitted, Sparse};

/// Whether calls fail now, and which lines the log got about it.
#[derive(Debug, Default)]
pub struct Health {
    troubled: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rates: [Sparse; TROUBLES],
    since: Option<Instant>,
    failed_calls: u64,
}

/// The end of a series of failures.
#[derive(Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Calls that failed since it began; 0 when only the check at the start failed.
    pub failed_calls: u64,
    pub lasted: Duration,
}

impl Health {
    /// Call this when the check at the start has failed. The caller always logs that.
    pub fn check_failed(&self, trouble: Trouble, now: Instant) {
        let mut state = self.lock();
        // A client's call that fails in the next seconds would repeat what the check has said.
        let _logged_by_the_caller = state.rates[trouble as usize].admit(now);
        self.begin(&mut state, now);
    }

    /// A call has failed. `Some`: the caller must log it.
    pub fn call_failed(&self, trouble: Trouble, now: Instant) -> Option<Admitted> {
        let mut state = self.lock();
        let admitted = state.rates[trouble as usize].admit(now);
        if admitted.is_some() {
            self.begin(&mut state, now);
        }
        // Only a series of failures that ends with a line is counted here. The metrics count calls that fail now and then.
        if state.since.is_some() {
            state.failed_calls = state.failed_calls.saturating_add(1);
        }
        admitted
    }

    /// An attempt failed because this server lacks a resource; its call goes on. `Some`: the caller must log it.
    pub fn shortage(&self, now: Instant) -> Option<Admitted> {
        self.lock().rates[Trouble::Shortage as usize].admit(now)
    }

    /// True when the log has a line about a failure and none about its end. A successful call reads only this.
    pub fn is_troubled(&self) -> bool {
        self.troubled.load(Ordering::Relaxed)
    }

    /// A call has succeeded. `Some`: it is the first one after a failure, and the caller must log it.
    pub fn call_succeeded(&self, now: Instant) -> Option<Recovery> {
        let mut state = self.lock();
        self.troubled.store(false, Ordering::Relaxed);
        let since = state.since.take()?;
        Some(Recovery {
            failed_calls: std::mem::take(&mut state.failed_calls),
            lasted: now.saturating_duration_since(since),
        })
    }

    fn begin(&self, state: &mut State, now: Instant) {
        state.since.get_or_insert(now);
        self.troubled.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // The values are plain: a panic cannot leave them half-written, so a poisoned lock is still usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovery(failed_calls: u64, millis: u64) -> Option<Recovery> {
        Some(Recovery {
            failed_calls,
            lasted: Duration::from_millis(millis),
        })
    }

    #[test]
    fn trouble_is_logged_at_its_beginning_and_at_its_end() {
        let (health, start) = (Health::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert!(!health.is_troubled());
        assert_eq!(health.call_succeeded(at(0)), None);
        assert!(
            health
                .call_failed(Trouble::Unreachable, at(1_000))
                .is_some()
        );
        for millis in 1_001..1_010 {
            assert_eq!(health.call_failed(Trouble::Unreachable, at(millis)), None);
        }
        assert!(health.is_troubled());
        assert_eq!(health.call_succeeded(at(3_000)), recovery(10, 2_000));
        assert!(!health.is_troubled());
        assert_eq!(health.call_succeeded(at(3_001)), None);
    }

    #[test]
    fn each_kind_of_trouble_has_a_rate_of_its_own_and_their_end_is_one() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(health.call_failed(Trouble::Unreachable, now).is_some());
        assert!(health.call_failed(Trouble::Unauthorized, now).is_some());
        assert_eq!(health.call_succeeded(now), recovery(2, 0));
        assert_eq!(health.call_succeeded(now), None);
    }

    #[test]
    fn an_app_that_fails_now_and_then_does_not_fill_the_log() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(health.call_failed(Trouble::Timeout, now).is_some());
        assert!(health.call_succeeded(now).is_some());
        for _ in 0..100 {
            assert_eq!(health.call_failed(Trouble::Timeout, now), None);
            assert_eq!(health.call_succeeded(now), None);
        }
    }

    #[test]
    fn the_first_success_after_a_failed_check_is_logged() {
        let (health, now) = (Health::default(), Instant::now());
        health.check_failed(Trouble::Unauthorized, now);
        assert_eq!(
            health.call_failed(Trouble::Unauthorized, now),
            None,
            "the check has said it"
        );
        assert_eq!(health.call_succeeded(now), recovery(1, 0));
    }
}
