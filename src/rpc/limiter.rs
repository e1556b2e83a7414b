//! The concurrency limit over all shards: which calls to the app may run, and which is next.
//!
//! The limit is exact, and no slot is idle while a call waits: a slot that is given back goes straight to the next waiter,
//! on whatever shard it is, so no new call can take it in between. Within a class the order is first come, first served.
//! Live calls go before disconnect calls, but cannot starve them. One lock guards the state. It is held for a few map
//! operations, and never while a waker runs.
//!
//! Source: `contract/rpc.md` §7; the classes are ours.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::Priority;

/// A disconnect call that has waited this long goes before live calls.
const DISCONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// The limit, shared by all shards.
#[derive(Debug)]
pub struct Limiter {
    queue: Mutex<Queue>,
}

/// One slot. Dropping it gives the slot back.
#[derive(Debug)]
#[must_use = "the slot is free again as soon as this is dropped"]
pub struct Permit {
    limiter: Arc<Limiter>,
    priority: Priority,
}

/// A place in the queue; the future resolves to the slot.
///
/// # Cancel safety
/// Dropping it leaves the queue; a slot that it was already granted goes to the next waiter.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Waiting {
    limiter: Arc<Limiter>,
    priority: Priority,
    /// `None` after the slot was handed out as a [`Permit`].
    ticket: Option<u64>,
}

impl Limiter {
    /// A limit of `slots` calls at a time, at least 1.
    pub fn new(slots: usize) -> Arc<Limiter> {
        Arc::new(Limiter {
            queue: Mutex::new(Queue::new(slots.max(1))),
        })
    }

    /// Takes a slot if one is free. It overtakes no waiter: while a slot is free the queue is empty.
    pub fn try_acquire(self: &Arc<Self>, priority: Priority) -> Option<Permit> {
        let taken = self.lock().try_take(priority);
        taken.then(|| Permit {
            limiter: Arc::clone(self),
            priority,
        })
    }

    /// Joins the queue at its end. The place is taken by this call, not by the first poll.
    pub fn wait(self: &Arc<Self>, priority: Priority) -> Waiting {
        let ticket = self.lock().join(priority, Instant::now());
        Waiting {
            limiter: Arc::clone(self),
            priority,
            ticket: Some(ticket),
        }
    }

    /// Slots that are taken now.
    pub fn running(&self) -> usize {
        self.lock().running
    }

    /// Gives a slot back and wakes the waiter that has it now.
    fn release(&self, priority: Priority) {
        let next = self.lock().release(priority, Instant::now());
        // Outside the lock, because waking another shard takes locks of its own.
        if let Some(waker) = next {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that runs under the lock can panic half-way, so a poisoned lock is still usable.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limiter.release(self.priority);
    }
}

impl Future for Waiting {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit> {
        let ticket = self
            .ticket
            .expect("a place in the queue is not polled after it gave its slot");
        let (waits, replaced) =
            self.limiter
                .lock()
                .wait_with(ticket, self.priority, context.waker());
        // A waker can own the last reference to a task, and dropping that task may call the limiter: so drop it outside the
        // lock.
        drop(replaced);
        if waits {
            return Poll::Pending;
        }
        self.ticket = None;
        Poll::Ready(Permit {
            limiter: Arc::clone(&self.limiter),
            priority: self.priority,
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let left = self.limiter.lock().leave(ticket, self.priority);
        if left.is_none() {
            self.limiter.release(self.priority);
        }
    }
}

/// The state behind the lock. Pure: time is an argument.
///
/// A ticket is in `live` or `disconnect` while it waits; granting it a slot removes it.
#[derive(Debug)]
struct Queue {
    slots: usize,
    running: usize,
    running_disconnect: usize,
    next_ticket: u64,
    live: BTreeMap<u64, Option<Waker>>,
    disconnect: BTreeMap<u64, DisconnectWaiter>,
    /// The last slot went to a disconnect call while live calls waited, so the next one goes to a live call.
    live_was_passed: bool,
}

#[derive(Debug)]
struct DisconnectWaiter {
    since: Instant,
    waker: Option<Waker>,
}

impl Queue {
    fn new(slots: usize) -> Queue {
        Queue {
            slots,
            running: 0,
            running_disconnect: 0,
            next_ticket: 0,
            live: BTreeMap::new(),
            disconnect: BTreeMap::new(),
            live_was_passed: false,
        }
    }

    fn try_take(&mut self, priority: Priority) -> bool {
        if self.running >= self.slots {
            return false;
        }
        debug_assert!(
            self.live.is_empty() && self.disconnect.is_empty(),
            "a free slot means an empty queue"
        );
        self.count_in(priority);
        true
    }

    /// Takes a place; takes a slot at once if one is free.
    fn join(&mut self, priority: Priority, now: Instant) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if self.try_take(priority) {
            return ticket;
        }
        match priority {
            Priority::Live => {
                self.live.insert(ticket, None);
            }
            Priority::Disconnect => {
                self.disconnect.insert(
                    ticket,
                    DisconnectWaiter {
                        since: now,
                        waker: None,
                    },
                );
            }
        }
        ticket
    }

    /// Whether the ticket still waits, and the old waker that `waker` has replaced.
    fn wait_with(
        &mut self,
        ticket: u64,
        priority: Priority,
        waker: &Waker,
    ) -> (bool, Option<Waker>) {
        let place = match priority {
            Priority::Live => self.live.get_mut(&ticket),
            Priority::Disconnect => self
                .disconnect
                .get_mut(&ticket)
                .map(|waiter| &mut waiter.waker),
        };
        match place {
            None => (false, None),
            Some(Some(current)) if current.will_wake(waker) => (true, None),
            Some(place) => (true, place.replace(waker.clone())),
        }
    }

    /// Leaves the queue. `None`: the ticket had a slot already, and the caller must give that slot back.
    fn leave(&mut self, ticket: u64, priority: Priority) -> Option<Option<Waker>> {
        match priority {
            Priority::Live => self.live.remove(&ticket),
            Priority::Disconnect => self.disconnect.remove(&ticket).map(|waiter| waiter.waker),
        }
    }

    /// Frees a slot and hands it to the next waiter, whose waker is returned.
    fn release(&mut self, priority: Priority, now: Instant) -> Option<Waker> {
        self.running -= 1;
        if priority == Priority::Disconnect {
            self.running_disconnect -= 1;
        }
        let next = self.next(now)?;
        self.count_in(next);
        match next {
            Priority::Live => {
                self.live_was_passed = false;
                self.live.pop_first().and_then(|(_, waker)| waker)
            }
            Priority::Disconnect => {
                self.live_was_passed = !self.live.is_empty();
                self.disconnect
                    .pop_first()
                    .and_then(|(_, waiter)| waiter.waker)
            }
        }
    }

    /// The class that gets the next slot. While live calls wait, disconnect calls get a slot only if they have waited long,
    /// get every other slot at most, and never more than half of all.
    fn next(&self, now: Instant) -> Option<Priority> {
        let oldest = self
            .disconnect
            .first_key_value()
            .map(|(_, waiter)| waiter.since);
        match (self.live.is_empty(), oldest) {
            (true, None) => None,
            (true, Some(_)) => Some(Priority::Disconnect),
            (false, None) => Some(Priority::Live),
            (false, Some(since)) => {
                let impatient = now.saturating_duration_since(since) > DISCONNECT_PATIENCE;
                let room = self.running_disconnect < (self.slots / 2).max(1);
                Some(if impatient && room && !self.live_was_passed {
                    Priority::Disconnect
                } else {
                    Priority::Live
                })
            }
        }
    }

    fn count_in(&mut self, priority: Priority) {
        self.running += 1;
        if priority == Priority::Disconnect {
            self.running_disconnect += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
        thread,
    };

    use super::*;

    /// A queue in which live calls have taken all slots.
    fn full(slots: usize) -> Queue {
        let mut queue = Queue::new(slots);
        for _ in 0..slots {
            assert!(queue.try_take(Priority::Live));
        }
        queue
    }

    /// Adds the waiters (class, milliseconds), then frees slots one by one at `at` and compares which waiters get them.
    fn check(slots: usize, joins: &[(Priority, u64)], at: u64, expected: &[usize]) {
        let start = Instant::now();
        let mut queue = full(slots);
        let tickets: Vec<_> = joins
            .iter()
            .map(|(priority, millis)| {
                (
                    *priority,
                    queue.join(*priority, start + Duration::from_millis(*millis)),
                )
            })
            .collect();
        let mut order = Vec::new();
        let mut freed = Priority::Live;
        for _ in expected {
            queue.release(freed, start + Duration::from_millis(at));
            assert!(queue.running <= slots);
            let granted = tickets.iter().position(|(priority, ticket)| {
                let waits = match priority {
                    Priority::Live => queue.live.contains_key(ticket),
                    Priority::Disconnect => queue.disconnect.contains_key(ticket),
                };
                !waits
                    && !order
                        .contains(&tickets.iter().position(|other| other.1 == *ticket).unwrap())
            });
            let granted = granted.expect("a freed slot is handed on while somebody waits");
            freed = tickets[granted].0;
            order.push(granted);
        }
        assert_eq!(order, expected);
    }

    use Priority::{Disconnect as D, Live as L};

    #[test]
    fn waiters_of_a_class_are_served_in_order() {
        check(1, &[(L, 0), (L, 1), (L, 2)], 10, &[0, 1, 2]);
        check(1, &[(D, 0), (D, 1), (D, 2)], 10, &[0, 1, 2]);
    }

    #[test]
    fn live_calls_go_before_disconnect_calls() {
        check(1, &[(D, 0), (L, 1), (D, 2), (L, 3)], 10, &[1, 3, 0, 2]);
    }

    #[test]
    fn a_disconnect_call_that_waited_a_second_goes_first_and_then_takes_turns() {
        check(
            1,
            &[(D, 0), (D, 0), (L, 1), (L, 1), (L, 1)],
            1_001,
            &[0, 2, 1, 3, 4],
        );
        check(1, &[(D, 0), (L, 1)], 1_000, &[1, 0]);
    }

    #[test]
    fn impatient_disconnect_calls_never_hold_more_than_half_while_live_calls_wait() {
        let start = Instant::now();
        let mut queue = full(4);
        for _ in 0..10 {
            queue.join(D, start);
            queue.join(L, start);
        }
        for _ in 0..8 {
            queue.release(L, start + Duration::from_secs(2));
            assert!(queue.running_disconnect <= 2);
            assert_eq!(queue.running, 4);
        }
        assert_eq!(queue.running_disconnect, 2);
    }

    #[test]
    fn a_place_that_was_left_is_skipped() {
        let limiter = Limiter::new(1);
        let held = limiter.try_acquire(L).expect("free");
        let first = limiter.wait(L);
        let mut second = limiter.wait(L);
        drop(first);
        drop(held);
        assert!(poll(&mut second).is_some());
    }

    #[test]
    fn a_slot_granted_to_a_dropped_waiter_goes_to_the_next() {
        let limiter = Limiter::new(1);
        let held = limiter.try_acquire(L).expect("free");
        let first = limiter.wait(L);
        let mut second = limiter.wait(D);
        assert!(poll(&mut second).is_none());
        drop(held);
        assert!(
            limiter.try_acquire(L).is_none(),
            "the slot is the first waiter's"
        );
        drop(first);
        let permit = poll(&mut second).expect("granted");
        assert!(limiter.try_acquire(L).is_none());
        drop(permit);
        assert!(limiter.try_acquire(L).is_some());
    }

    #[test]
    fn waiting_for_a_free_slot_gets_it_at_the_first_poll() {
        let limiter = Limiter::new(1);
        assert!(poll(&mut limiter.wait(L)).is_some());
        drop(limiter.wait(L));
        assert!(limiter.try_acquire(L).is_some());
    }

    #[test]
    fn under_stress_the_limit_holds_and_nobody_is_forgotten() {
        const SLOTS: usize = 3;
        const THREADS: usize = 8;
        const CALLS: usize = 2_000;
        let limiter = Limiter::new(SLOTS);
        let running = AtomicUsize::new(0);
        let served = AtomicUsize::new(0);
        let given_up = AtomicUsize::new(0);
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (limiter, running, served, given_up) = (&limiter, &running, &served, &given_up);
                scope.spawn(move || {
                    for turn in 0..CALLS {
                        let priority = if (number + turn) % 3 == 0 { D } else { L };
                        let mut waiting = limiter.wait(priority);
                        if turn % 7 == 0 && poll(&mut waiting).is_none() {
                            given_up.fetch_add(1, Ordering::Relaxed);
                            continue;
                        } else if waiting.ticket.is_none() {
                            served.fetch_add(1, Ordering::Relaxed);
                            continue;
                        }
                        let permit = block_on(waiting);
                        assert!(running.fetch_add(1, Ordering::SeqCst) < SLOTS);
                        thread::yield_now();
                        running.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(served.into_inner() + given_up.into_inner(), THREADS * CALLS);
        let queue = limiter.lock();
        assert_eq!((queue.running, queue.running_disconnect), (0, 0));
        assert!(queue.live.is_empty() && queue.disconnect.is_empty());
    }

    fn poll(waiting: &mut Waiting) -> Option<Permit> {
        match Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn block_on(mut waiting: Waiting) -> Permit {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            if let Poll::Ready(permit) =
                Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker))
            {
                return permit;
            }
            thread::park_timeout(Duration::from_secs(20));
        }
    }
}
