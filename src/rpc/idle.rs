//! Which idle connections to the app may be used, for all shards together.
//!
//! If the app vanishes without closing its connections (a frozen process, a lost node, a name that points elsewhere now),
//! all idle connections are dead at once, and the kernel does not report it. So each connection has an *age*, and all
//! connections of one age are treated alike. When a call fails on a connection, all connections of the same age or older are
//! closed. While a call on an idle connection waits too long for an answer, the other calls leave the idle connections alone
//! and open new connections, of the next age, until an answer shows that the old ones still work.
//!
//! Pure: time is an argument. One lock, held for a few comparisons; each call takes it twice.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// A number for connections that were opened at about the same time. It grows.
pub(super) type Age = u64;

/// How long other calls use idle connections while one call waits on such a connection and no answer has come since.
const PATIENCE: Duration = Duration::from_millis(200);
/// If no answer has come for this long, only one call tries an idle connection.
const QUIET: Duration = Duration::from_secs(1);
/// Idle connections over all shards: two for each call that may run, and one more for each shard.
const IDLE_CONNECTIONS_PER_SLOT: usize = 2;

/// What all shards know about idle connections.
#[derive(Debug)]
pub(super) struct IdlePolicy {
    state: Mutex<State>,
    /// How many more connections may be kept.
    places: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Of the connections that are opened now.
    age: Age,
    /// Connections of this age or younger may be used.
    usable_from: Age,
    /// Connections of a lower age are lost.
    lost_before: Age,
    /// When an idle connection was used for the first time since the last answer.
    asked_at: Option<Instant>,
    answered_at: Option<Instant>,
}

/// What to do with an idle connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IdleChoice {
    Use,
    /// It is not known whether the app still answers on it: open a new one.
    Leave,
    /// It is lost: close it.
    Close,
}

/// The right to keep one connection; dropping it gives the right back.
#[derive(Debug)]
pub(super) struct Place(Arc<IdlePolicy>);

impl IdlePolicy {
    /// `slots`: calls that may run at a time. Shards are added when they start.
    pub fn new(slots: usize) -> Arc<IdlePolicy> {
        Arc::new(IdlePolicy {
            state: Mutex::default(),
            places: AtomicUsize::new(idle_connections_max(slots, 0)),
        })
    }

    /// Adds the room of one more shard.
    pub fn add_shard(&self) {
        self.places.fetch_add(1, Ordering::Relaxed);
    }

    /// The age of a connection that is opened now.
    pub fn age(&self) -> Age {
        self.lock().age
    }

    /// Asks whether an idle connection may be used. A used connection must be reported by [`Self::answered`] or
    /// [`Self::failed`], unless its call is cancelled.
    pub fn judge(&self, age: Age, now: Instant) -> IdleChoice {
        self.lock().judge(age, now)
    }

    /// The app has answered on a connection of this age.
    pub fn answered(&self, age: Age, now: Instant) {
        self.lock().answered(age, now);
    }

    /// A call on a connection of this age has failed: no answer came in time, or the connection broke.
    pub fn failed(&self, age: Age) {
        self.lock().failed(age);
    }

    /// Whether connections of this age must be closed.
    pub fn is_lost(&self, age: Age) -> bool {
        age < self.lock().lost_before
    }

    /// The right to keep one more connection; `None` when all are taken.
    pub fn place(self: &Arc<Self>) -> Option<Place> {
        let taken = self
            .places
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                free.checked_sub(1)
            });
        taken.ok().map(|_| Place(Arc::clone(self)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The values are plain: a panic cannot leave them half-written, so a poisoned lock is still usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The most idle connections over all shards.
pub fn idle_connections_max(slots: usize, shards: usize) -> usize {
    slots
        .saturating_mul(IDLE_CONNECTIONS_PER_SLOT)
        .saturating_add(shards)
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.fetch_add(1, Ordering::Relaxed);
    }
}

impl State {
    fn judge(&mut self, age: Age, now: Instant) -> IdleChoice {
        if age < self.lost_before {
            return IdleChoice::Close;
        }
        if age < self.usable_from {
            return IdleChoice::Leave;
        }
        let Some(asked_at) = self.asked_at else {
            self.asked_at = Some(now);
            return IdleChoice::Use;
        };
        if now.saturating_duration_since(asked_at) < self.patience(asked_at) {
            return IdleChoice::Use;
        }
        // Connections that are opened from now on get the next age, so that they can be told from the doubtful ones.
        self.age += 1;
        self.usable_from = self.age;
        self.asked_at = None;
        IdleChoice::Leave
    }

    fn patience(&self, asked_at: Instant) -> Duration {
        let lately = self
            .answered_at
            .is_some_and(|answered| asked_at.saturating_duration_since(answered) < QUIET);
        if lately { PATIENCE } else { Duration::ZERO }
    }

    fn answered(&mut self, age: Age, now: Instant) {
        // A late answer on a connection that was given up does not save the others of its age: they are closed already, or
        // will be.
        if age < self.lost_before {
            return;
        }
        self.usable_from = self.usable_from.min(age);
        self.asked_at = None;
        self.answered_at = Some(now);
    }

    fn failed(&mut self, age: Age) {
        self.lost_before = self.lost_before.max(age + 1);
        self.usable_from = self.usable_from.max(self.lost_before);
        self.age = self.age.max(self.lost_before);
        self.asked_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{IdleChoice::*, *};

    /// Times in milliseconds after the start.
    struct Scene {
        state: State,
        start: Instant,
    }

    impl Scene {
        fn new() -> Scene {
            Scene {
                state: State::default(),
                start: Instant::now(),
            }
        }

        fn at(&self, millis: u64) -> Instant {
            self.start + Duration::from_millis(millis)
        }

        fn judge(&mut self, millis: u64, age: Age) -> IdleChoice {
            let now = self.at(millis);
            self.state.judge(age, now)
        }

        fn answered(&mut self, millis: u64, age: Age) {
            let now = self.at(millis);
            self.state.answered(age, now);
        }
    }

    #[test]
    fn connections_of_an_app_that_answers_are_used_by_any_number_of_calls() {
        let mut scene = Scene::new();
        scene.answered(0, 0);
        for call in 0..100 {
            assert_eq!(scene.judge(10, 0), Use, "call {call}");
        }
        scene.answered(150, 0);
        assert_eq!(scene.judge(300, 0), Use);
        assert_eq!(scene.state.age, 0);
    }

    #[test]
    fn one_call_that_fails_closes_all_that_are_as_old() {
        let mut scene = Scene::new();
        scene.answered(0, 0);
        assert_eq!(scene.judge(10, 0), Use);
        scene.state.failed(0);
        assert_eq!(scene.judge(3010, 0), Close);
        assert_eq!(scene.state.age, 1);
        assert_eq!(scene.judge(3010, 1), Use);
        // Other calls that were under way fail later. That must not close younger connections.
        scene.state.failed(0);
        assert_eq!((scene.judge(3011, 1), scene.state.age), (Use, 1));
    }

    #[test]
    fn while_nothing_answers_calls_leave_the_idle_ones_alone() {
        let mut scene = Scene::new();
        scene.answered(0, 0);
        assert_eq!(scene.judge(10, 0), Use);
        assert_eq!(scene.judge(209, 0), Use);
        assert_eq!(scene.judge(210, 0), Leave);
        assert_eq!((scene.judge(211, 0), scene.state.age), (Leave, 1));
        // The new connections answer: that says nothing about the old ones.
        scene.answered(220, 1);
        assert_eq!((scene.judge(230, 0), scene.judge(230, 1)), (Leave, Use));
        // The app was only slow.
        scene.answered(600, 0);
        assert_eq!((scene.judge(610, 0), scene.judge(610, 1)), (Use, Use));
    }

    #[test]
    fn after_a_quiet_time_one_call_alone_tries() {
        let mut scene = Scene::new();
        scene.answered(0, 0);
        assert_eq!(scene.judge(1000, 0), Use);
        assert_eq!(scene.judge(1000, 0), Leave);
        scene.answered(1005, 0);
        assert_eq!((scene.judge(1006, 0), scene.judge(1006, 0)), (Use, Use));
    }

    #[test]
    fn a_late_answer_of_a_lost_one_changes_nothing() {
        let mut scene = Scene::new();
        scene.state.failed(0);
        scene.answered(10, 0);
        assert_eq!((scene.judge(11, 0), scene.judge(11, 1)), (Close, Use));
    }

    #[test]
    fn places_run_out_and_come_back() {
        let policy = IdlePolicy::new(1);
        (0..2).for_each(|_| policy.add_shard());
        let places: Vec<Place> = (0..idle_connections_max(1, 2))
            .map(|_| policy.place().expect("free"))
            .collect();
        assert!(policy.place().is_none());
        drop(places);
        assert!(policy.place().is_some());
    }
}
