//! How many client sockets may exist: on one listener (`--max-conn`), and in the whole process (its limit on open files).
//!
//! Clients must not use up all descriptors: calls to the app, name lookups and files always need some. So no connection is
//! accepted while fewer descriptors than the reserve are free, and clients wait in the kernel's queue.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Counts the sockets of all listeners of the process.
#[derive(Default)]
pub struct ClientSockets {
    used: AtomicUsize,
    /// A shard waits for a permit. Most sockets are closed while none waits, and then no lock is taken.
    has_waiting: AtomicBool,
    waiting: Mutex<Waiting>,
}

/// The shards that wait for a permit: one queue for each listener, because all that wait in one queue wait for the same. So
/// a socket that is closed wakes the first shard of each queue, and not every shard.
#[derive(Default)]
struct Waiting {
    next_ticket: u64,
    queues: Vec<VecDeque<(u64, Waker)>>,
}

/// Counts the sockets of one listener over all shards.
///
/// A shard asks for a permit only when a connection waits in its own queue, so no shard holds a permit that it does not use.
pub struct ConnectionLimit {
    /// Of this listener.
    max: usize,
    used: AtomicUsize,
    process: Arc<ClientSockets>,
    /// Of the process, as far as this listener may use them.
    process_max: usize,
    /// Its queue in [`Waiting`].
    queue: usize,
}

/// Why there is no permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// `--max-conn` is reached.
    Listener,
    /// The descriptors for clients are used up.
    Process,
}

impl ClientSockets {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permit came back: any listener may use it.
    fn wake_first_of_each(&self) {
        if !self.has_waiting.load(Ordering::SeqCst) {
            return;
        }
        let queues = self.waiting().queues.len();
        for queue in 0..queues {
            self.wake_first(queue);
        }
    }

    fn wake_first(&self, queue: usize) {
        let mut waiting = self.waiting();
        let first = waiting.queues[queue].pop_front();
        self.note(&waiting);
        drop(waiting);
        if let Some((_, waker)) = first {
            waker.wake();
        }
    }

    /// Keeps `has_waiting` true to the queues.
    fn note(&self, waiting: &Waiting) {
        let any = waiting.queues.iter().any(|queue| !queue.is_empty());
        self.has_waiting.store(any, Ordering::SeqCst);
    }
}

impl ConnectionLimit {
    /// At most `max` sockets at a time (0 = no limit), and none while the process has `process_max`.
    pub fn new(max: usize, process: Arc<ClientSockets>, process_max: usize) -> Arc<Self> {
        let mut waiting = process.waiting();
        let queue = waiting.queues.len();
        waiting.queues.push(VecDeque::new());
        drop(waiting);
        Arc::new(Self {
            max: if max == 0 { usize::MAX } else { max },
            used: AtomicUsize::new(0),
            process,
            process_max,
            queue,
        })
    }

    /// Takes a permit.
    ///
    /// # Errors
    /// The limit that is reached.
    pub fn try_acquire(self: &Arc<Self>) -> Result<Permit, Full> {
        if !take(&self.used, self.max) {
            return Err(Full::Listener);
        }
        if !take(&self.process.used, self.process_max) {
            self.used.fetch_sub(1, Ordering::SeqCst);
            return Err(Full::Process);
        }
        Ok(Permit {
            limit: Arc::clone(self),
        })
    }

    /// Waits for a permit. Who waits first gets it first, unless somebody who does not wait is quicker.
    ///
    /// # Cancel safety
    /// A permit is taken only by the poll that returns it.
    pub async fn acquire(self: &Arc<Self>) -> Permit {
        let mut place = Place {
            limit: self,
            ticket: None,
        };
        poll_fn(|context| place.poll(context)).await
    }

    fn has_room(&self) -> bool {
        self.used.load(Ordering::SeqCst) < self.max
            && self.process.used.load(Ordering::SeqCst) < self.process_max
    }
}

/// A place in a queue of [`Waiting`].
struct Place<'a> {
    limit: &'a Arc<ConnectionLimit>,
    /// It is in the queue until somebody wakes it.
    ticket: Option<u64>,
}

impl Place<'_> {
    fn poll(&mut self, context: &Context<'_>) -> Poll<Permit> {
        loop {
            if let Ok(permit) = self.limit.try_acquire() {
                self.leave();
                // If two permits came back before this poll, only this shard may have been woken for both.
                if self.limit.has_room() {
                    self.limit.process.wake_first(self.limit.queue);
                }
                return Poll::Ready(permit);
            }
            if !self.join(context.waker()) {
                return Poll::Pending;
            }
            // A permit may have come back after the try and before the place was taken.
        }
    }

    /// Takes a place, or keeps the one that it has; true if it had none.
    fn join(&mut self, waker: &Waker) -> bool {
        let process = &self.limit.process;
        let mut waiting = process.waiting();
        let was_woken = self.ticket.is_some();
        let ticket = *self.ticket.get_or_insert_with(|| {
            waiting.next_ticket += 1;
            waiting.next_ticket
        });
        let queue = &mut waiting.queues[self.limit.queue];
        if let Some(place) = queue.iter_mut().find(|(other, _)| *other == ticket) {
            place.1.clone_from(waker);
            return false;
        }
        // Who was woken and found no permit keeps the first place.
        match was_woken {
            true => queue.push_front((ticket, waker.clone())),
            false => queue.push_back((ticket, waker.clone())),
        }
        process.note(&waiting);
        true
    }

    /// Gives the place up; false: it had none, or was woken.
    fn leave(&mut self) -> bool {
        let Some(ticket) = self.ticket.take() else {
            return false;
        };
        let process = &self.limit.process;
        let mut waiting = process.waiting();
        let queue = &mut waiting.queues[self.limit.queue];
        let before = queue.len();
        queue.retain(|(other, _)| *other != ticket);
        let left = queue.len() < before;
        process.note(&waiting);
        left
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // It may have been woken for a permit that it does not take: another one may.
        if self.ticket.is_some() && !self.leave() {
            self.limit.process.wake_first(self.limit.queue);
        }
    }
}

fn take(used: &AtomicUsize, max: usize) -> bool {
    used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
        (used < max).then_some(used + 1)
    })
    .is_ok()
}

/// The right to hold one socket; dropping it gives the right back.
pub struct Permit {
    limit: Arc<ConnectionLimit>,
}

impl Permit {
    /// True when all permits are taken, so that clients may wait for this one.
    pub fn is_wanted(&self) -> bool {
        let limit = &self.limit;
        limit.used.load(Ordering::SeqCst) >= limit.max
            || limit.process.used.load(Ordering::SeqCst) >= limit.process_max
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let process = &self.limit.process;
        self.limit.used.fetch_sub(1, Ordering::SeqCst);
        process.used.fetch_sub(1, Ordering::SeqCst);
        process.wake_first_of_each();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn permits_run_out_and_come_back() {
        let limit = ConnectionLimit::new(2, Arc::default(), 100);
        let first = limit.try_acquire().expect("free");
        assert!(!first.is_wanted());
        let second = limit.try_acquire().expect("free");
        assert!(first.is_wanted() && second.is_wanted());
        assert_eq!(limit.try_acquire().err(), Some(Full::Listener));
        drop(first);
        let third = limit.try_acquire().expect("came back");
        assert_eq!(limit.try_acquire().err(), Some(Full::Listener));
        drop((second, third));
        assert_eq!(limit.used.load(Ordering::SeqCst), 0);
        assert_eq!(limit.process.used.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn listeners_share_what_the_process_has() {
        let process = Arc::new(ClientSockets::default());
        let clients = ConnectionLimit::new(0, Arc::clone(&process), 2);
        let requests = ConnectionLimit::new(0, Arc::clone(&process), 3);
        let held = [clients.try_acquire(), clients.try_acquire()];
        assert_eq!(clients.try_acquire().err(), Some(Full::Process));
        let request = requests.try_acquire().expect("its share is larger");
        assert_eq!(requests.try_acquire().err(), Some(Full::Process));
        drop((request, held));
        assert!(clients.try_acquire().is_ok());
        assert_eq!(clients.used.load(Ordering::SeqCst), 0);
    }

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counted() -> (Arc<Count>, Waker) {
        let count = Arc::new(Count::default());
        (Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_socket_that_goes_wakes_one_of_those_that_wait_for_the_same() {
        let limit = ConnectionLimit::new(2, Arc::default(), 100);
        let held = [limit.try_acquire(), limit.try_acquire()];
        let wakes: Vec<_> = (0..3).map(|_| counted()).collect();
        let mut all: Vec<_> = wakes.iter().map(|_| Box::pin(limit.acquire())).collect();
        let mut poll = |at: usize| {
            let mut context = Context::from_waker(&wakes[at].1);
            all[at].as_mut().poll(&mut context)
        };
        let woken = || -> Vec<u32> {
            let count = |(count, _): &(Arc<Count>, _)| count.0.load(Ordering::SeqCst);
            wakes.iter().map(count).collect()
        };
        for at in [0, 1, 2, 1] {
            assert!(poll(at).is_pending());
        }
        let [first, second] = held;
        drop(first);
        assert_eq!(woken(), [1, 0, 0]);
        // Somebody who did not wait was quicker: the place is still the first.
        let quick = limit.try_acquire();
        assert!(poll(0).is_pending());
        drop(quick);
        assert_eq!(woken(), [2, 0, 0]);
        // A second permit comes before the first one is taken.
        drop(second);
        assert_eq!(woken(), [2, 1, 0]);
        let taken = [poll(0), poll(1)];
        assert!(taken.iter().all(Poll::is_ready) && poll(2).is_pending());
        drop(all);
        assert!(!limit.process.has_waiting.load(Ordering::SeqCst));
    }

    #[test]
    fn who_gives_up_after_it_was_woken_lets_the_next_one_know() {
        let limit = ConnectionLimit::new(1, Arc::default(), 100);
        let held = limit.try_acquire();
        let (wakes, waker) = counted();
        let mut context = Context::from_waker(&waker);
        let mut first = Box::pin(limit.acquire());
        assert!(
            first
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_pending()
        );
        let mut second = pin!(limit.acquire());
        assert!(second.as_mut().poll(&mut context).is_pending());
        drop(held);
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
        drop(first);
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
        assert!(second.as_mut().poll(&mut context).is_ready());
    }

    /// Wakes the thread that waits in [`block_on`].
    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Panics when the future waits for longer than any of these tests takes.
    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut future = pin!(future);
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return value;
            }
            thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
            assert!(Instant::now() < deadline, "nobody has woken this thread");
        }
    }

    #[test]
    fn nobody_waits_for_ever_while_permits_come_and_go_on_many_threads() {
        const THREADS: usize = 8;
        let process = Arc::new(ClientSockets::default());
        let limits = [
            ConnectionLimit::new(2, Arc::clone(&process), 3),
            ConnectionLimit::new(0, Arc::clone(&process), 4),
        ];
        thread::scope(|scope| {
            for number in 0..THREADS {
                let limit = &limits[number % 2];
                let process = &process;
                scope.spawn(move || {
                    for turn in 0..5_000 {
                        // Some give up after their first try.
                        if turn % 7 == number {
                            let mut waiting = pin!(limit.acquire());
                            let _ = waiting
                                .as_mut()
                                .poll(&mut Context::from_waker(Waker::noop()));
                        }
                        let permit = block_on(limit.acquire());
                        assert!(process.used.load(Ordering::SeqCst) <= 4);
                        drop(permit);
                    }
                });
            }
        });
        assert_eq!(process.used.load(Ordering::SeqCst), 0);
        assert!(!process.has_waiting.load(Ordering::SeqCst));
    }

    #[test]
    fn who_waits_for_either_limit_is_woken_by_any_socket_that_goes() {
        let process = Arc::new(ClientSockets::default());
        let small = ConnectionLimit::new(1, Arc::clone(&process), 2);
        let other = ConnectionLimit::new(0, Arc::clone(&process), 2);
        let (mine, theirs) = (small.try_acquire(), other.try_acquire());
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut context = Context::from_waker(&waker);
        let mut waiting = pin!(small.acquire());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop(theirs);
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(
            waiting.as_mut().poll(&mut context).is_pending(),
            "its own limit"
        );
        drop(mine);
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        assert!(waiting.as_mut().poll(&mut context).is_ready());
        assert_eq!(process.used.load(Ordering::SeqCst), 0, "dropped at once");
    }
}
