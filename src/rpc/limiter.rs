//! The concurrency limit over all shards: which calls to the app may run, and which is next.
//!
//! The limit is exact, and no slot is idle while a call waits: a slot that is given back goes straight to the next waiter,
//! so no new call can take it in between. Live calls go before disconnect calls, but cannot starve them. One lock guards the
//! state. It is held for a few map operations, and never while a waker runs.
//!
//! On one shard calls are served in order; shards with waiting calls are served in turn. A shard keeps its share of the
//! slots for a few calls ([`KEPT_IN_ROW`]) before it passes one on: a slot for another shard costs a wake-up of that shard,
//! and often a new connection to the app, while a connection of this shard has just become free. If slots went to the
//! oldest call of all, one shard after the other would have all of them, because a shard asks for many in one turn.
//!
//! Source: `contract/rpc.md` §7; the classes are ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::Priority;
use crate::mesh::ShardId;

/// A disconnect call that has waited this long goes before live calls.
const DISCONNECT_PATIENCE: Duration = Duration::from_secs(1);

/// So many times in a row a shard keeps a slot for its own next call while other shards wait.
const KEPT_IN_ROW: usize = 4;

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
    shard: ShardId,
    priority: Priority,
    given_back: bool,
}

/// A place in the queue; the future resolves to the slot.
///
/// # Cancel safety
/// Dropping it leaves the queue; a slot that it was already granted goes to the next waiter.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Waiting {
    limiter: Arc<Limiter>,
    shard: ShardId,
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
    pub fn try_acquire(self: &Arc<Self>, shard: ShardId, priority: Priority) -> Option<Permit> {
        let taken = self.lock().try_take(shard, priority);
        taken.then(|| Permit {
            limiter: Arc::clone(self),
            shard,
            priority,
            given_back: false,
        })
    }

    /// Joins the queue at its end. The place is taken by this call, not by the first poll.
    pub fn wait(self: &Arc<Self>, shard: ShardId, priority: Priority) -> Waiting {
        let ticket = self.lock().join(shard, priority, Instant::now());
        Waiting {
            limiter: Arc::clone(self),
            shard,
            priority,
            ticket: Some(ticket),
        }
    }

    /// Slots that are taken now.
    pub fn running(&self) -> usize {
        self.lock().running
    }

    /// Gives a slot back and wakes the waiter that has it now. Returns how many slots the shard has now.
    fn release(&self, shard: ShardId, priority: Priority) -> usize {
        let mut queue = self.lock();
        let next = queue.release(shard, priority, Instant::now());
        let held = queue.shards[shard].held;
        drop(queue);
        // Outside the lock, because waking another shard takes locks of its own.
        if let Some(waker) = next {
            waker.wake();
        }
        held
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing that runs under the lock can panic half-way, so a poisoned lock is still usable.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// Gives the slot back. Returns how many slots its shard has now, those included that wait for their calls to go on.
    pub fn give_back(mut self) -> usize {
        self.given_back = true;
        self.limiter.release(self.shard, self.priority)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.given_back {
            self.limiter.release(self.shard, self.priority);
        }
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
                .wait_with(ticket, self.shard, self.priority, context.waker());
        // A waker can own the last reference to a task, and dropping that task may call the limiter: so drop it outside the
        // lock.
        drop(replaced);
        if waits {
            return Poll::Pending;
        }
        self.ticket = None;
        Poll::Ready(Permit {
            limiter: Arc::clone(&self.limiter),
            shard: self.shard,
            priority: self.priority,
            given_back: false,
        })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let left = self.limiter.lock().leave(ticket, self.shard, self.priority);
        if left.is_none() {
            self.limiter.release(self.shard, self.priority);
        }
    }
}

/// The state behind the lock. Pure: time is an argument.
///
/// A ticket is in `waiting` of its shard or in `disconnect` while it waits; granting it a slot removes it.
#[derive(Debug)]
struct Queue {
    slots: usize,
    running: usize,
    running_disconnect: usize,
    next_ticket: u64,
    /// Up to the last shard that has called.
    shards: Vec<OfShard>,
    /// The shards that have live calls in `waiting`.
    waiting_shards: BTreeSet<ShardId>,
    /// The shard that was last in turn.
    last_in_turn: ShardId,
    disconnect: BTreeMap<u64, DisconnectWaiter>,
    /// The last slot went to a disconnect call while live calls waited, so the next one goes to a live call.
    live_was_passed: bool,
}

#[derive(Debug, Default)]
struct OfShard {
    /// Slots that it has.
    held: usize,
    /// Times in a row that it has kept a slot.
    kept: usize,
    /// Live calls.
    waiting: BTreeMap<u64, Option<Waker>>,
}

#[derive(Debug)]
struct DisconnectWaiter {
    shard: ShardId,
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
            shards: Vec::new(),
            waiting_shards: BTreeSet::new(),
            last_in_turn: 0,
            disconnect: BTreeMap::new(),
            live_was_passed: false,
        }
    }

    fn try_take(&mut self, shard: ShardId, priority: Priority) -> bool {
        if self.shards.len() <= shard {
            self.shards.resize_with(shard + 1, OfShard::default);
        }
        if self.running >= self.slots {
            return false;
        }
        debug_assert!(
            self.waiting_shards.is_empty() && self.disconnect.is_empty(),
            "a free slot means an empty queue"
        );
        self.count_in(shard, priority);
        true
    }

    /// Takes a place; takes a slot at once if one is free.
    fn join(&mut self, shard: ShardId, priority: Priority, now: Instant) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if self.try_take(shard, priority) {
            return ticket;
        }
        match priority {
            Priority::Live => {
                self.shards[shard].waiting.insert(ticket, None);
                self.waiting_shards.insert(shard);
            }
            Priority::Disconnect => {
                let waiter = DisconnectWaiter {
                    shard,
                    since: now,
                    waker: None,
                };
                self.disconnect.insert(ticket, waiter);
            }
        }
        ticket
    }

    /// Whether the ticket still waits, and the old waker that `waker` has replaced.
    fn wait_with(
        &mut self,
        ticket: u64,
        shard: ShardId,
        priority: Priority,
        waker: &Waker,
    ) -> (bool, Option<Waker>) {
        let place = match priority {
            Priority::Live => self.shards[shard].waiting.get_mut(&ticket),
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
    fn leave(&mut self, ticket: u64, shard: ShardId, priority: Priority) -> Option<Option<Waker>> {
        match priority {
            Priority::Live => {
                let waiting = &mut self.shards[shard].waiting;
                let waker = waiting.remove(&ticket)?;
                if waiting.is_empty() {
                    self.waiting_shards.remove(&shard);
                }
                Some(waker)
            }
            Priority::Disconnect => self.disconnect.remove(&ticket).map(|waiter| waiter.waker),
        }
    }

    /// Frees a slot of this shard and hands it to the next waiter, whose waker is returned.
    fn release(&mut self, shard: ShardId, priority: Priority, now: Instant) -> Option<Waker> {
        self.running -= 1;
        self.shards[shard].held -= 1;
        if priority == Priority::Disconnect {
            self.running_disconnect -= 1;
        }
        let next = self.next(now)?;
        let (shard, ticket) = match next {
            Priority::Live => {
                self.live_was_passed = false;
                let shard = self.next_shard(shard)?;
                (shard, *self.shards[shard].waiting.first_key_value()?.0)
            }
            Priority::Disconnect => {
                self.live_was_passed = !self.waiting_shards.is_empty();
                let (ticket, waiter) = self.disconnect.first_key_value()?;
                (waiter.shard, *ticket)
            }
        };
        self.count_in(shard, next);
        self.leave(ticket, shard, next).flatten()
    }

    /// The shard whose live call gets a slot of this shard.
    fn next_shard(&mut self, shard: ShardId) -> Option<ShardId> {
        let share = self.slots.div_ceil(self.waiting_shards.len().max(1));
        let own = &mut self.shards[shard];
        if !own.waiting.is_empty() && own.held < share && own.kept < KEPT_IN_ROW {
            own.kept += 1;
            return Some(shard);
        }
        own.kept = 0;
        let mut later = self.waiting_shards.range(self.last_in_turn + 1..);
        let next = *later.next().or(self.waiting_shards.first())?;
        self.last_in_turn = next;
        Some(next)
    }

    /// The class that gets the next slot. While live calls wait, disconnect calls get a slot only if they have waited long,
    /// get every other slot at most, and never more than half of all.
    fn next(&self, now: Instant) -> Option<Priority> {
        let oldest = self
            .disconnect
            .first_key_value()
            .map(|(_, waiter)| waiter.since);
        match (self.waiting_shards.is_empty(), oldest) {
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

    fn count_in(&mut self, shard: ShardId, priority: Priority) {
        self.running += 1;
        self.shards[shard].held += 1;
        if priority == Priority::Disconnect {
            self.running_disconnect += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
        thread,
    };

    use super::*;

    /// A queue in which live calls of shard 0 have taken all slots.
    fn full(slots: usize) -> Queue {
        let mut queue = Queue::new(slots);
        for _ in 0..slots {
            assert!(queue.try_take(0, Priority::Live));
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
                    queue.join(0, *priority, start + Duration::from_millis(*millis)),
                )
            })
            .collect();
        let mut order = Vec::new();
        let mut freed = Priority::Live;
        for _ in expected {
            queue.release(0, freed, start + Duration::from_millis(at));
            assert!(queue.running <= slots);
            let granted = tickets.iter().position(|(priority, ticket)| {
                let waits = match priority {
                    Priority::Live => queue.shards[0].waiting.contains_key(ticket),
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
            queue.join(0, D, start);
            queue.join(0, L, start);
        }
        for _ in 0..8 {
            queue.release(0, L, start + Duration::from_secs(2));
            assert!(queue.running_disconnect <= 2);
            assert_eq!(queue.running, 4);
        }
        assert_eq!(queue.running_disconnect, 2);
    }

    /// All slots are of shard 0, and each of the others has as many calls that wait. Returns which shards get the slots that
    /// are freed one after the other, each of the shard that has it longest.
    fn served(slots: usize, shards: usize, count: usize) -> Vec<ShardId> {
        let now = Instant::now();
        let mut queue = full(slots);
        let mut running = VecDeque::from(vec![0; slots]);
        for shard in 0..shards {
            for _ in 0..slots {
                queue.join(shard, L, now);
            }
        }
        let mut served = Vec::new();
        while served.len() < count {
            let held = |queue: &Queue| Vec::from_iter(queue.shards.iter().map(|it| it.held));
            let freed = running.pop_front().expect("all slots are taken");
            let mut before = held(&queue);
            before[freed] -= 1;
            queue.release(freed, L, now);
            let got = (0..shards).find(|&shard| held(&queue)[shard] > before[shard]);
            let got = got.expect("a freed slot is handed on while somebody waits");
            queue.join(got, L, now);
            running.push_back(got);
            served.push(got);
        }
        served
    }

    #[test]
    fn shards_share_the_slots_although_one_of_them_has_asked_first() {
        for (slots, shards) in [(4, 2), (28, 16), (28, 64), (3, 5)] {
            let served = served(slots, shards, 20_000);
            let count = |shard| served[10_000..].iter().filter(|it| **it == shard).count();
            let counts = Vec::from_iter((0..shards).map(count));
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(
                most - least <= least / 4 + 2,
                "{slots} {shards}: {counts:?}"
            );
        }
    }

    #[test]
    fn a_shard_keeps_a_slot_for_some_calls_and_then_passes_it_on() {
        let run = [&[0; KEPT_IN_ROW + 1][..], &[1; KEPT_IN_ROW + 1]].concat();
        let served = served(1, 2, 100);
        // The first run began before the others joined.
        let from = served
            .iter()
            .position(|shard| *shard == 1)
            .expect("it has its turn")
            + KEPT_IN_ROW
            + 1;
        assert_eq!(from, KEPT_IN_ROW + KEPT_IN_ROW + 1);
        assert_eq!(served[from..][..run.len()], run);
    }

    #[test]
    fn with_nobody_else_waiting_a_shard_keeps_all_slots() {
        assert_eq!(served(3, 1, 50), [0; 50]);
    }

    #[test]
    fn who_gives_a_slot_back_learns_how_many_its_shard_has_left() {
        let limiter = Limiter::new(2);
        let [first, second] = [0, 0].map(|shard| limiter.try_acquire(shard, L).expect("free"));
        let mut own = limiter.wait(0, L);
        let mut others = limiter.wait(1, L);
        assert_eq!(first.give_back(), 1, "its share is one of two");
        assert_eq!(second.give_back(), 1, "it is for the call that waits");
        let [own, others] = [&mut own, &mut others].map(|it| poll(it).expect("granted"));
        assert_eq!((own.give_back(), others.give_back()), (0, 0));
        assert_eq!(limiter.running(), 0);
    }

    #[test]
    fn a_place_that_was_left_is_skipped() {
        let limiter = Limiter::new(1);
        let held = limiter.try_acquire(0, L).expect("free");
        let first = limiter.wait(0, L);
        let mut second = limiter.wait(0, L);
        drop(first);
        drop(held);
        assert!(poll(&mut second).is_some());
    }

    #[test]
    fn a_slot_granted_to_a_dropped_waiter_goes_to_the_next() {
        let limiter = Limiter::new(1);
        let held = limiter.try_acquire(0, L).expect("free");
        let first = limiter.wait(0, L);
        let mut second = limiter.wait(0, D);
        assert!(poll(&mut second).is_none());
        drop(held);
        assert!(
            limiter.try_acquire(0, L).is_none(),
            "the slot is the first waiter's"
        );
        drop(first);
        let permit = poll(&mut second).expect("granted");
        assert!(limiter.try_acquire(0, L).is_none());
        drop(permit);
        assert!(limiter.try_acquire(0, L).is_some());
    }

    #[test]
    fn waiting_for_a_free_slot_gets_it_at_the_first_poll() {
        let limiter = Limiter::new(1);
        assert!(poll(&mut limiter.wait(0, L)).is_some());
        drop(limiter.wait(0, L));
        assert!(limiter.try_acquire(0, L).is_some());
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
                        let mut waiting = limiter.wait(number, priority);
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
        assert!(queue.waiting_shards.is_empty() && queue.disconnect.is_empty());
        assert!(queue.shards.iter().all(|shard| shard.held == 0));
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
