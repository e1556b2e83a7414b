//! A wake-up between tasks of one shard.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Poll, Waker};

/// Stores one notification until a task waits for it. For one waiter at a time.
#[derive(Default)]
pub struct Signal {
    notified: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Wakes the waiter, or lets the next wait return at once.
    pub fn notify(&self) {
        self.notified.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Waits for a notification and takes it.
    ///
    /// # Cancel safety
    /// A notification is taken only by the poll that returns.
    pub async fn notified(&self) {
        poll_fn(|context| {
            if self.notified.take() {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Tells many tasks once to stop.
#[derive(Default)]
pub struct Stop {
    stopped: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
}

impl Stop {
    pub fn stop(&self) {
        self.stopped.set(true);
        for waker in self.wakers.borrow_mut().drain(..) {
            waker.wake();
        }
    }

    /// Waits for [`Self::stop`]. Each task has one place in the list: a task that also waits for something else polls this
    /// at each of its wake-ups, for months, and must not add an entry each time.
    pub async fn wait(&self) {
        let mut place = None;
        poll_fn(|context| {
            if self.stopped.get() {
                return Poll::Ready(());
            }
            let mut wakers = self.wakers.borrow_mut();
            match place {
                Some(place) => wakers[place] = context.waker().clone(),
                None => {
                    place = Some(wakers.len());
                    wakers.push(context.waker().clone());
                }
            }
            Poll::Pending
        })
        .await;
    }
}

/// Runs `work` until it is done or `stop` is. Returns `None` when `stop` came first; the work may then be dropped
/// unfinished.
///
/// The caller pins both: a future that is moved into an `async fn` takes its room twice.
pub async fn unless<T>(
    mut stop: Pin<&mut impl Future<Output = ()>>,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    poll_fn(|context| match stop.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => work.as_mut().poll(context).map(Some),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    #[test]
    fn a_task_that_waits_to_be_stopped_is_noted_once() {
        let stop = Stop::default();
        let mut waiting = pin!(stop.wait());
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..100 {
            assert!(waiting.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(stop.wakers.borrow().len(), 1);
        stop.stop();
        assert!(waiting.as_mut().poll(&mut context).is_ready());
    }
}
