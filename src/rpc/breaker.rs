//! The circuit breaker: stops calls to an app that does not answer, and finds out when it answers again.
//!
//! Pure: time is an argument. All shards share it, so one lock guards a few integers. The client asks before every attempt
//! and reports the outcome. It also logs the changes.
//!
//! Source: `contract/rpc.md` §7.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Length of one counting window while closed.
const WINDOW: Duration = Duration::from_secs(10);
/// With fewer requests in a window it never opens.
const WINDOW_REQUESTS_MIN: u32 = 10;
/// Share of failed requests that opens it, in percent.
const FAILURES_PERCENT_MIN: u32 = 80;
/// How long it stays open before it lets test requests through.
const OPEN_FOR: Duration = Duration::from_secs(5);
/// Requests let through while half-open; as many successes in a row close it.
const HALF_OPEN_REQUESTS_MAX: u32 = 5;

/// A circuit breaker. Each [`Admission`] must be reported by [`Breaker::succeeded`], [`Breaker::failed`] or
/// [`Breaker::abandoned`].
#[derive(Debug)]
pub struct Breaker {
    counts: Mutex<Counts>,
}

/// The right to make one request, and the period in which it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an admission must be reported back"]
pub struct Admission {
    generation: u64,
}

/// The request must not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerRefusal;

/// The state of the breaker, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerStatus {
    /// Requests are refused now.
    pub open: bool,
    /// Times it has opened.
    pub opened: u64,
}

/// What a report changed, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerChange {
    /// From now on requests are refused.
    Opened,
    /// From now on requests pass again.
    Closed,
}

#[derive(Debug)]
struct Counts {
    state: State,
    /// Grows with every new window and every change of state: reports from an older period are ignored.
    generation: u64,
    requests: u32,
    failures: u32,
    successes: u32,
    /// Times it has opened, ever.
    opened: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed { window_ends: Instant },
    Open { until: Instant },
    HalfOpen,
}

impl Breaker {
    /// A closed breaker whose first window starts at `now`.
    pub fn new(now: Instant) -> Breaker {
        let state = State::Closed {
            window_ends: now + WINDOW,
        };
        Breaker {
            counts: Mutex::new(Counts {
                state,
                generation: 0,
                requests: 0,
                failures: 0,
                successes: 0,
                opened: 0,
            }),
        }
    }

    /// Asks for one request.
    ///
    /// # Errors
    /// [`BreakerRefusal`] while open; also while half-open when all test requests are under way.
    pub fn admit(&self, now: Instant) -> Result<Admission, BreakerRefusal> {
        let mut counts = self.lock();
        counts.advance(now);
        match counts.state {
            State::Open { .. } => return Err(BreakerRefusal),
            State::HalfOpen if counts.requests >= HALF_OPEN_REQUESTS_MAX => {
                return Err(BreakerRefusal);
            }
            State::HalfOpen | State::Closed { .. } => {}
        }
        counts.requests = counts.requests.saturating_add(1);
        Ok(Admission {
            generation: counts.generation,
        })
    }

    /// An HTTP response came, with any status.
    pub fn succeeded(&self, admission: Admission, now: Instant) -> Option<BreakerChange> {
        let mut counts = self.lock();
        counts.advance(now);
        if counts.generation != admission.generation {
            return None;
        }
        counts.successes = counts.successes.saturating_add(1);
        if counts.state != State::HalfOpen || counts.successes < HALF_OPEN_REQUESTS_MAX {
            return None;
        }
        counts.enter(State::Closed {
            window_ends: now + WINDOW,
        });
        Some(BreakerChange::Closed)
    }

    /// No HTTP response came in time.
    pub fn failed(&self, admission: Admission, now: Instant) -> Option<BreakerChange> {
        let mut counts = self.lock();
        counts.advance(now);
        if counts.generation != admission.generation {
            return None;
        }
        counts.failures = counts.failures.saturating_add(1);
        if counts.state != State::HalfOpen && !counts.trips() {
            return None;
        }
        counts.enter(State::Open {
            until: now + OPEN_FOR,
        });
        Some(BreakerChange::Opened)
    }

    /// The request was given up for a reason that says nothing about the app. Without this call, a test request of a session
    /// that ended would leave the breaker half-open for ever.
    pub fn abandoned(&self, admission: Admission) {
        let mut counts = self.lock();
        if counts.generation == admission.generation {
            counts.requests = counts.requests.saturating_sub(1);
        }
    }

    /// The state at `now`.
    pub fn status(&self, now: Instant) -> BreakerStatus {
        let mut counts = self.lock();
        counts.advance(now);
        BreakerStatus {
            open: matches!(counts.state, State::Open { .. }),
            opened: counts.opened,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // The values are plain integers: a panic cannot leave them half-written, so a poisoned lock is still usable.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    /// Applies the time that has passed: windows end, an open breaker becomes half-open.
    fn advance(&mut self, now: Instant) {
        match self.state {
            State::Closed { window_ends } if window_ends < now => {
                self.enter(State::Closed {
                    window_ends: now + WINDOW,
                });
            }
            State::Open { until } if until < now => self.enter(State::HalfOpen),
            State::Closed { .. } | State::Open { .. } | State::HalfOpen => {}
        }
    }

    fn enter(&mut self, state: State) {
        *self = Counts {
            state,
            generation: self.generation + 1,
            requests: 0,
            failures: 0,
            successes: 0,
            opened: self.opened + u64::from(matches!(state, State::Open { .. })),
        };
    }

    fn trips(&self) -> bool {
        let failures = u64::from(self.failures) * 100;
        self.requests >= WINDOW_REQUESTS_MIN
            && failures >= u64::from(self.requests) * u64::from(FAILURES_PERCENT_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line of a scenario, at a number of milliseconds after the start.
    enum Event {
        /// A request that succeeds.
        Good,
        /// A request that fails and changes the state to this.
        Bad(Option<BreakerChange>),
        /// A request that succeeds and changes the state to this.
        Heals(BreakerChange),
        /// A request that must be refused.
        Refused,
        /// A request that is given up.
        Dropped,
    }
    use Event::*;

    fn check(events: &[(u64, usize, Event)]) {
        let start = Instant::now();
        let breaker = Breaker::new(start);
        for (line, (millis, times, event)) in events.iter().enumerate() {
            let now = start + Duration::from_millis(*millis);
            for turn in 0..*times {
                let admission = breaker.admit(now);
                let at = format!("line {line}, turn {turn}");
                match event {
                    Refused => assert_eq!(admission, Err(BreakerRefusal), "{at}"),
                    Good => assert_eq!(breaker.succeeded(admission.expect(&at), now), None, "{at}"),
                    Heals(change) => {
                        assert_eq!(
                            breaker.succeeded(admission.expect(&at), now),
                            Some(*change),
                            "{at}"
                        )
                    }
                    Bad(change) => {
                        assert_eq!(breaker.failed(admission.expect(&at), now), *change, "{at}")
                    }
                    Dropped => breaker.abandoned(admission.expect(&at)),
                }
            }
        }
    }

    #[test]
    fn nine_failures_do_not_open_it_and_the_tenth_does() {
        check(&[
            (0, 9, Bad(None)),
            (1, 1, Bad(Some(BreakerChange::Opened))),
            (2, 3, Refused),
        ]);
    }

    #[test]
    fn four_failures_in_five_open_it_and_fewer_do_not() {
        check(&[
            (0, 2, Good),
            (0, 7, Bad(None)),
            (0, 1, Bad(Some(BreakerChange::Opened))),
        ]);
        check(&[
            (0, 3, Good),
            (0, 11, Bad(None)),
            (0, 1, Bad(Some(BreakerChange::Opened))),
        ]);
    }

    #[test]
    fn only_a_failure_opens_it() {
        check(&[(0, 8, Bad(None)), (0, 5, Good)]);
    }

    #[test]
    fn a_new_window_forgets_the_failures_of_the_last() {
        check(&[
            (0, 9, Bad(None)),
            (10_001, 9, Bad(None)),
            (10_002, 1, Bad(Some(BreakerChange::Opened))),
        ]);
    }

    #[test]
    fn after_five_seconds_five_successes_close_it() {
        check(&[
            (0, 9, Bad(None)),
            (0, 1, Bad(Some(BreakerChange::Opened))),
            (5_000, 1, Refused),
            (5_001, 4, Good),
            (5_002, 1, Heals(BreakerChange::Closed)),
            (5_003, 9, Bad(None)),
        ]);
    }

    #[test]
    fn one_failure_while_half_open_opens_it_again() {
        check(&[
            (0, 9, Bad(None)),
            (0, 1, Bad(Some(BreakerChange::Opened))),
            (5_001, 4, Good),
            (5_002, 1, Bad(Some(BreakerChange::Opened))),
            (10_002, 1, Refused),
            (10_003, 5, Dropped),
            (10_003, 4, Good),
            (10_004, 1, Heals(BreakerChange::Closed)),
        ]);
    }

    #[test]
    fn half_open_lets_five_requests_through_at_a_time() {
        let start = Instant::now();
        let breaker = opened(start);
        let later = start + Duration::from_secs(6);
        let admissions: Vec<_> = (0..5)
            .map(|_| breaker.admit(later).expect("five pass"))
            .collect();
        assert_eq!(breaker.admit(later), Err(BreakerRefusal));
        let changes: Vec<_> = admissions
            .into_iter()
            .map(|one| breaker.succeeded(one, later))
            .collect();
        assert_eq!(
            changes,
            [None, None, None, None, Some(BreakerChange::Closed)]
        );
    }

    #[test]
    fn a_report_from_an_earlier_period_does_not_count() {
        let start = Instant::now();
        let breaker = Breaker::new(start);
        let late = breaker.admit(start).expect("closed");
        for turn in 0..9 {
            let admission = breaker.admit(start).expect("closed");
            let expected = (turn == 8).then_some(BreakerChange::Opened);
            assert_eq!(breaker.failed(admission, start), expected, "turn {turn}");
        }
        let half_open = start + Duration::from_secs(6);
        assert_eq!(breaker.failed(late, half_open), None);
        assert!(breaker.admit(half_open).is_ok());
    }

    fn opened(now: Instant) -> Breaker {
        let breaker = Breaker::new(now);
        for _ in 0..WINDOW_REQUESTS_MIN {
            let admission = breaker.admit(now).expect("closed");
            breaker.failed(admission, now);
        }
        breaker
    }
}
