//! Time limits for the waits of a shard: all of them share one timer of the driver.
//!
//! A timer of monoio costs 640 bytes as long as it exists. Most work with a limit ends long before the limit, often without
//! any wait. So a limit costs nothing here until its work has to wait, and then it costs one entry in a map. Called by `rpc`
//! and `shard`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, pending, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The driver's timers count in milliseconds, so a shorter sleep would not sleep at all.
const SLEEP_MIN: Duration = Duration::from_millis(1);

/// The time limits of one shard.
#[derive(Default)]
pub struct Timeouts {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// The wakers of the waits, by deadline. An entry exists until its deadline has passed or its work has ended.
    waits: BTreeMap<Deadline, Waker>,
    last_number: u64,
    /// When the timer fires; `None` while nothing waits.
    timer_at: Option<Instant>,
    /// The waker of the sleeping task; taken to make it look at the deadlines again.
    task: Option<Waker>,
}

/// A point in time, and a number that makes it unique.
type Deadline = (Instant, u64);

impl Timeouts {
    /// Starts the task that wakes what has reached its deadline. Call inside the shard's runtime.
    pub fn start() -> Rc<Timeouts> {
        let timeouts = Rc::new(Timeouts::default());
        monoio::spawn(run(Rc::clone(&timeouts)));
        timeouts
    }

    /// The result of `work`; `None` when `limit` has passed first. The time counts from the first wait. `work` is polled
    /// once more when the time is over.
    ///
    /// # Cancel safety
    /// As safe as `work` is.
    pub async fn within<T>(
        &self,
        limit: Duration,
        mut work: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        let mut wait = Wait {
            timeouts: self,
            deadline: None,
        };
        poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending => wait.poll(limit, context).map(|()| None),
        })
        .await
    }

    /// As [`Self::within`], but `limit` is a function: it is called at the first wait, and again each time its time has
    /// passed; `None` ends the wait. The future is small, because every connection in its HTTP phase has one.
    ///
    /// # Cancel safety
    /// As safe as `work` is.
    pub fn while_some<'a, T: 'a>(
        &'a self,
        mut limit: impl FnMut() -> Option<Duration> + 'a,
        mut work: Pin<&'a mut impl Future<Output = T>>,
    ) -> impl Future<Output = Option<T>> + 'a {
        let mut wait = Wait {
            timeouts: self,
            deadline: None,
        };
        poll_fn(move |context| {
            if let Poll::Ready(result) = work.as_mut().poll(context) {
                return Poll::Ready(Some(result));
            }
            if wait.deadline.is_none() || wait.poll(Duration::ZERO, context).is_ready() {
                let Some(limit) = limit() else {
                    return Poll::Ready(None);
                };
                wait.deadline = None;
                return wait.poll(limit, context).map(|()| None);
            }
            Poll::Pending
        })
    }

    /// Waits for `duration`.
    pub async fn sleep(&self, duration: Duration) {
        self.within(duration, pin!(pending::<()>())).await;
    }

    fn add(&self, at: Instant, waker: Waker) -> Deadline {
        let mut state = self.state.borrow_mut();
        state.last_number += 1;
        let deadline = (at, state.last_number);
        state.waits.insert(deadline, waker);
        if state.timer_at.is_none_or(|timer_at| at < timer_at)
            && let Some(task) = state.task.take()
        {
            task.wake();
        }
        deadline
    }

    /// Wakes the waits whose deadline has passed; returns the next deadline.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state.borrow_mut();
        while let Some(entry) = state.waits.first_entry()
            && entry.key().0 <= now
        {
            entry.remove().wake();
        }
        let next = state.waits.first_key_value().map(|((at, _), _)| *at);
        state.timer_at = next;
        next
    }

    /// Waits until there is a deadline earlier than the timer.
    async fn changed(&self) {
        let mut asked = false;
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            // `add` takes the waker when it has an earlier deadline, so a missing waker is the signal.
            if asked && state.task.is_none() {
                return Poll::Ready(());
            }
            asked = true;
            state.task = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

async fn run(timeouts: Rc<Timeouts>) {
    loop {
        let Some(next) = timeouts.expire(Instant::now()) else {
            timeouts.changed().await;
            continue;
        };
        let left = next.saturating_duration_since(Instant::now());
        let mut timer = pin!(monoio::time::sleep(left.max(SLEEP_MIN)));
        let mut changed = pin!(timeouts.changed());
        poll_fn(|context| match timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => changed.as_mut().poll(context),
        })
        .await;
    }
}

/// One time limit of one piece of work.
struct Wait<'a> {
    timeouts: &'a Timeouts,
    /// `None` until the first wait.
    deadline: Option<Deadline>,
}

impl Wait<'_> {
    /// Ready when the time is over.
    fn poll(&mut self, limit: Duration, context: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = &self.deadline else {
            // A limit that the clock cannot represent is no limit.
            if let Some(at) = Instant::now().checked_add(limit) {
                self.deadline = Some(self.timeouts.add(at, context.waker().clone()));
            }
            return Poll::Pending;
        };
        match self.timeouts.state.borrow_mut().waits.get_mut(deadline) {
            None => Poll::Ready(()),
            Some(waker) => {
                waker.clone_from(context.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(deadline) = &self.deadline {
            let left = self.timeouts.state.borrow_mut().waits.remove(deadline);
            // Outside the borrow, because a waker may own the last reference to a task, whose drop may come back here.
            drop(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use monoio::{LegacyDriver, RuntimeBuilder};

    use super::*;

    fn on_a_runtime(test: impl AsyncFnOnce(Rc<Timeouts>)) {
        RuntimeBuilder::<LegacyDriver>::new()
            .enable_timer()
            .build()
            .expect("epoll is always there")
            .block_on(async { test(Timeouts::start()).await });
    }

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn work_that_never_waits_leaves_no_trace() {
        on_a_runtime(async |timeouts| {
            let done = timeouts.within(Duration::ZERO, pin!(async { 7 })).await;
            assert_eq!(done, Some(7));
            assert_eq!(timeouts.state.borrow().last_number, 0);
        });
    }

    #[test]
    fn a_limit_ends_work_that_waits_for_ever() {
        on_a_runtime(async |timeouts| {
            let started = Instant::now();
            let late = timeouts.within(SHORT, pin!(pending::<()>())).await;
            assert_eq!(late, None);
            assert!(started.elapsed() >= SHORT);
            assert!(timeouts.state.borrow().waits.is_empty());
        });
    }

    #[test]
    fn an_earlier_deadline_overtakes_those_that_wait() {
        on_a_runtime(async |timeouts| {
            let order = Rc::new(RefCell::new(Vec::new()));
            let long = Rc::clone(&timeouts);
            monoio::spawn(async move { long.sleep(LONG).await });
            for millis in [30, 10, 20] {
                let (timeouts, order) = (Rc::clone(&timeouts), Rc::clone(&order));
                monoio::spawn(async move {
                    timeouts.sleep(Duration::from_millis(millis)).await;
                    order.borrow_mut().push(millis);
                });
            }
            timeouts.sleep(Duration::from_millis(60)).await;
            assert_eq!(*order.borrow(), [10, 20, 30]);
        });
    }

    #[test]
    fn work_that_ends_in_time_takes_its_limit_away() {
        on_a_runtime(async |timeouts| {
            let ended = Cell::new(false);
            let work = async {
                timeouts.sleep(SHORT).await;
                ended.set(true);
            };
            assert_eq!(timeouts.within(LONG, pin!(work)).await, Some(()));
            assert!(ended.get() && timeouts.state.borrow().waits.is_empty());
            drop(timeouts.within(LONG, pin!(pending::<()>())));
            assert!(timeouts.state.borrow().waits.is_empty());
        });
    }

    #[test]
    fn a_limit_may_be_prolonged_while_it_is_waited_for() {
        on_a_runtime(async |timeouts| {
            let mut parts = 3;
            let started = Instant::now();
            let limit = || {
                parts -= 1;
                (parts >= 0).then_some(SHORT)
            };
            let late = timeouts.while_some(limit, pin!(pending::<()>())).await;
            assert_eq!((late, parts), (None, -1));
            assert!(started.elapsed() >= 3 * SHORT);
            let work = timeouts.sleep(2 * SHORT);
            assert_eq!(
                timeouts.while_some(|| Some(SHORT), pin!(work)).await,
                Some(())
            );
            assert_eq!(
                timeouts.while_some(|| None, pin!(async { 7 })).await,
                Some(7)
            );
            assert!(timeouts.state.borrow().waits.is_empty());
        });
    }

    #[test]
    fn a_limit_beyond_the_clock_is_none() {
        on_a_runtime(async |timeouts| {
            let work = timeouts.sleep(SHORT);
            assert_eq!(timeouts.within(Duration::MAX, pin!(work)).await, Some(()));
        });
    }
}
