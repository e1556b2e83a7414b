//! One question to several shards, and their answers.
//!
//! Only for rare questions, those of the console: the answers are collected under a mutex.

use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// The asking side.
pub struct Gather<T> {
    state: Arc<Mutex<State<T>>>,
}

/// The right of one shard to answer once. If it is dropped without an answer, it counts as no answer.
pub struct Reply<T> {
    state: Arc<Mutex<State<T>>>,
}

struct State<T> {
    answers: Vec<T>,
    /// Replies that have neither answered nor been dropped.
    missing: usize,
    /// The asker does not wait any more.
    abandoned: bool,
    asker: Option<Waker>,
}

impl<T> Gather<T> {
    /// A question to `count` shards.
    pub fn new(count: usize) -> (Self, Vec<Reply<T>>) {
        let state = Arc::new(Mutex::new(State {
            answers: Vec::new(),
            missing: count,
            abandoned: false,
            asker: None,
        }));
        let reply = || Reply {
            state: Arc::clone(&state),
        };
        let replies = (0..count).map(|_| reply()).collect();
        (Self { state }, replies)
    }

    /// Waits until every reply has answered or was dropped.
    ///
    /// # Cancel safety
    /// Takes nothing out: after a time limit, [`Self::take`] returns the answers so far.
    pub async fn all(&self) {
        poll_fn(|context| {
            let mut state = lock(&self.state);
            if state.missing == 0 {
                return Poll::Ready(());
            }
            state.asker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The answers so far, in the order in which they came, and whether each shard has given one.
    pub fn take(&self, shards: usize) -> (Vec<T>, bool) {
        let answers = std::mem::take(&mut lock(&self.state).answers);
        let complete = answers.len() == shards;
        (answers, complete)
    }
}

impl<T> Drop for Gather<T> {
    fn drop(&mut self) {
        lock(&self.state).abandoned = true;
    }
}

impl<T> Reply<T> {
    /// True when the asker has gone: then no answer is needed.
    pub fn is_abandoned(&self) -> bool {
        lock(&self.state).abandoned
    }

    pub fn send(self, answer: T) {
        lock(&self.state).answers.push(answer);
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.missing -= 1;
        if state.missing == 0
            && let Some(asker) = state.asker.take()
        {
            drop(state);
            asker.wake();
        }
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// A panic cannot leave an answer half-written, so a poisoned lock is still usable.
fn lock<T>(state: &Mutex<State<T>>) -> MutexGuard<'_, State<T>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_asker_is_woken_by_the_last_one_only() {
        let (gather, mut replies) = Gather::new(3);
        let wakes = Arc::new(Wakes::default());
        let waker = Arc::clone(&wakes).into();
        let mut context = Context::from_waker(&waker);
        let mut all = pin!(gather.all());
        assert!(all.as_mut().poll(&mut context).is_pending());
        replies.remove(0).send("a");
        drop(replies.remove(0));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        replies.remove(0).send("c");
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(all.as_mut().poll(&mut context).is_ready());
        assert_eq!(gather.take(3), (vec!["a", "c"], false));
    }

    #[test]
    fn answers_are_there_before_the_question_is_over() {
        let (gather, mut replies) = Gather::new(2);
        replies.remove(0).send(1);
        assert_eq!(gather.take(2), (vec![1], false));
        assert!(!replies[0].is_abandoned());
        assert_eq!(gather.take(2), (vec![], false));
        drop(gather);
        assert!(replies[0].is_abandoned());
    }
}
