//! Which of the connections that are kept between calls may be used, for all shards together.
//!
//! An app that is lost without a word (a frozen process, a node that is gone, a name that points elsewhere now) takes all
//! kept connections with it at once, and nothing tells. So connections have an *age*: all of one age are lost together.
//! When a call fails on one, all that are as old or older are closed. While one is asked and nothing answers, the others of
//! its age are left alone: calls open new connections, of the next age, until an answer shows that the old ones are good.
//!
//! Pure: time is an argument. One lock, held for a few comparisons, taken twice per call.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Which connections were opened at about the same time; grows.
pub(super) type Age = u64;

/// How long kept connections are used while one of them is asked and nothing has answered since.
const PATIENCE: Duration = Duration::from_millis(200);
/// When nothing has answered for so long before, one call alone tries a kept connection.
const QUIET: Duration = Duration::from_secs(1);
/// Kept connections over all shards: two for each call that may run, and one per shard beside.
const KEPT_PER_SLOT: usize = 2;

/// What all shards know about kept connections.
#[derive(Debug)]
pub(super) struct Kept {
    state: Mutex<State>,
    /// How many more may be kept.
    places: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Of connections that are opened now.
    age: Age,
    /// Younger ones and this may be used.
    usable_from: Age,
    /// Older ones are lost.
    lost_before: Age,
    /// When a kept connection was asked for the first time since the last answer.
    asked_at: Option<Instant>,
    answered_at: Option<Instant>,
}

/// What to do with a kept connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Use,
    /// Nobody knows whether the app is there: open a new one.
    Leave,
    /// It is as good as closed.
    Close,
}

/// The right to keep one connection; dropping it gives the right back.
#[derive(Debug)]
pub(super) struct Place(Arc<Kept>);

impl Kept {
    /// For so many calls at a time. Shards are added as they start.
    pub fn new(slots: usize) -> Arc<Kept> {
        Arc::new(Kept {
            state: Mutex::default(),
            places: AtomicUsize::new(kept_max(slots, 0)),
        })
    }

    /// One more shard keeps connections.
    pub fn add_shard(&self) {
        self.places.fetch_add(1, Ordering::Relaxed);
    }

    /// The age of a connection that is opened now.
    pub fn age(&self) -> Age {
        self.lock().age
    }

    /// Asks for the use of a kept connection. What is used must come back through [`Self::answered`] or [`Self::failed`],
    /// unless its call is given up.
    pub fn judge(&self, age: Age, now: Instant) -> Verdict {
        self.lock().judge(age, now)
    }

    /// An app has answered on a connection of this age.
    pub fn answered(&self, age: Age, now: Instant) {
        self.lock().answered(age, now);
    }

    /// A call on a connection of this age has failed: no answer in time, or it broke.
    pub fn failed(&self, age: Age) {
        self.lock().failed(age);
    }

    /// Whether connections of this age are to be closed.
    pub fn is_lost(&self, age: Age) -> bool {
        age < self.lock().lost_before
    }

    /// A place for one more kept connection, if there is one.
    pub fn place(self: &Arc<Self>) -> Option<Place> {
        let taken = self
            .places
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                free.checked_sub(1)
            });
        taken.ok().map(|_| Place(Arc::clone(self)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values cannot be left half-written, so a poisoned lock is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The most connections that are kept over all shards.
pub fn kept_max(slots: usize, shards: usize) -> usize {
    slots.saturating_mul(KEPT_PER_SLOT).saturating_add(shards)
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.fetch_add(1, Ordering::Relaxed);
    }
}

impl State {
    fn judge(&mut self, age: Age, now: Instant) -> Verdict {
        if age < self.lost_before {
            return Verdict::Close;
        }
        if age < self.usable_from {
            return Verdict::Leave;
        }
        let Some(asked_at) = self.asked_at else {
            self.asked_at = Some(now);
            return Verdict::Use;
        };
        if now.saturating_duration_since(asked_at) < self.patience(asked_at) {
            return Verdict::Use;
        }
        // What is opened from now on can be told from what is in doubt.
        self.age += 1;
        self.usable_from = self.age;
        self.asked_at = None;
        Verdict::Leave
    }

    fn patience(&self, asked_at: Instant) -> Duration {
        let lately = self
            .answered_at
            .is_some_and(|answered| asked_at.saturating_duration_since(answered) < QUIET);
        if lately { PATIENCE } else { Duration::ZERO }
    }

    fn answered(&mut self, age: Age, now: Instant) {
        // A late answer on a connection that was given up saves none of the others: they are closed by now, or will be.
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
    use super::{Verdict::*, *};

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

        fn judge(&mut self, millis: u64, age: Age) -> Verdict {
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
        // Others that were under way fail later, and take nothing younger along.
        scene.state.failed(0);
        assert_eq!((scene.judge(3011, 1), scene.state.age), (Use, 1));
    }

    #[test]
    fn while_nothing_answers_calls_leave_the_kept_ones_alone() {
        let mut scene = Scene::new();
        scene.answered(0, 0);
        assert_eq!(scene.judge(10, 0), Use);
        assert_eq!(scene.judge(209, 0), Use);
        assert_eq!(scene.judge(210, 0), Leave);
        assert_eq!((scene.judge(211, 0), scene.state.age), (Leave, 1));
        // The new ones answer: the old ones are not better known for that.
        scene.answered(220, 1);
        assert_eq!((scene.judge(230, 0), scene.judge(230, 1)), (Leave, Use));
        // It was only slow.
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
        let kept = Kept::new(1);
        (0..2).for_each(|_| kept.add_shard());
        let places: Vec<Place> = (0..kept_max(1, 2))
            .map(|_| kept.place().expect("free"))
            .collect();
        assert!(kept.place().is_none());
        drop(places);
        assert!(kept.place().is_some());
    }
}
