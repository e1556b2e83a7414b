//! Every interleaving of senders and a receiver of one inbox, by loom: no message is slept through, no wake-up is made
//! twice, and the numbers of the messages are those that `shard` relies on.
//!
//! `src/mesh/mailbox.rs` is built here with loom's atomics and locks. Only its queue is replaced: crossbeam's does not know
//! loom. The queue below promises what the mailbox needs and nothing more: a message has its place before it is written, and
//! places are visible to other threads no earlier than the memory model says.

type ShardId = usize;

mod sync {
    use std::sync::Mutex as Untracked;

    use loom::sync::atomic::{AtomicBool, AtomicUsize};
    pub use loom::sync::atomic::{AtomicU64, Ordering};
    pub use loom::sync::{Mutex, MutexGuard};
    use loom::thread;
    pub use loom::thread_local;
    pub use std::sync::PoisonError;

    const PLACES: usize = 4;

    pub struct SegQueue<T> {
        claimed: AtomicUsize,
        taken: AtomicUsize,
        slots: [Slot<T>; PLACES],
    }

    struct Slot<T> {
        written: AtomicBool,
        message: Untracked<Option<T>>,
    }

    impl<T> SegQueue<T> {
        pub fn new() -> Self {
            let slot = |_| Slot {
                written: AtomicBool::new(false),
                message: Untracked::new(None),
            };
            Self {
                claimed: AtomicUsize::new(0),
                taken: AtomicUsize::new(0),
                slots: std::array::from_fn(slot),
            }
        }

        pub fn push(&self, message: T) {
            let slot = &self.slots[self.claimed.fetch_add(1, Ordering::Relaxed)];
            *slot.message.lock().expect("one thread at a time") = Some(message);
            slot.written.store(true, Ordering::Release);
        }

        pub fn pop(&self) -> Option<T> {
            let taken = self.taken.load(Ordering::Relaxed);
            if taken == self.claimed.load(Ordering::Relaxed) {
                return None;
            }
            let slot = &self.slots[taken];
            while !slot.written.load(Ordering::Acquire) {
                thread::yield_now();
            }
            self.taken.store(taken + 1, Ordering::Relaxed);
            slot.message.lock().expect("one thread at a time").take()
        }

        pub fn len(&self) -> usize {
            self.claimed.load(Ordering::Relaxed) - self.taken.load(Ordering::Relaxed)
        }
    }
}

#[allow(dead_code, reason = "the models do not call all of it")]
#[path = "../src/mesh/mailbox.rs"]
mod mailbox;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Untracked, Ordering::Relaxed};
use std::task::{Context, Poll, Wake};

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use mailbox::{INBOX_BYTES_MAX, Inbox, Mesh, Weigh};

struct Job {
    name: char,
    bytes: usize,
}

impl Weigh for Job {
    fn weight_bytes(&self) -> usize {
        self.bytes
    }
}

fn job(name: char) -> Job {
    Job { name, bytes: 1 }
}

/// What a thread sleeps on.
#[derive(Default)]
struct Bed {
    woken: Mutex<bool>,
    changed: Condvar,
    /// Times its thread fell asleep, and times somebody else has woken it.
    sleeps: Untracked,
    wakeups: Untracked,
}

impl Wake for Bed {
    fn wake(self: Arc<Self>) {
        self.wakeups.fetch_add(1, Relaxed);
        *self.woken.lock().expect("not poisoned") = true;
        self.changed.notify_one();
    }
}

impl Bed {
    /// Sleeps until it is woken; for ever is a deadlock, which loom reports.
    fn sleep(&self) {
        self.sleeps.fetch_add(1, Relaxed);
        let mut woken = self.woken.lock().expect("not poisoned");
        while !*woken {
            woken = self.changed.wait(woken).expect("not poisoned");
        }
        *woken = false;
    }
}

fn block_on<F: Future>(bed: &Arc<Bed>, future: F) -> F::Output {
    let waker = Arc::clone(bed).into();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => bed.sleep(),
        }
    }
}

fn inbox() -> (Mesh<Job>, Inbox<Job>) {
    let (mesh, mut inboxes) = Mesh::new(1);
    (mesh, inboxes.remove(0))
}

fn send(mesh: &Mesh<Job>, name: char) {
    assert!(mesh.mailbox(0).try_send(job(name)).is_ok(), "there is room");
}

/// Takes what is there. A place that is not yet in the queue is asked for again, as a shard does.
fn take(inbox: &Inbox<Job>, taken: &mut usize) {
    match inbox.pop() {
        Some(_) => *taken += 1,
        None => thread::yield_now(),
    }
}

fn model(preemptions: usize, check: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(check);
}

#[test]
fn a_receiver_sleeps_through_no_message_and_is_woken_once_for_each_sleep() {
    model(2, || {
        let (mesh, inbox) = inbox();
        let bed = Arc::new(Bed::default());
        inbox.hang_bell(Arc::clone(&bed).into());
        let senders = ['a', 'b'].map(|name| {
            let mesh = mesh.clone();
            thread::spawn(move || send(&mesh, name))
        });
        let mut taken = 0;
        while taken < 2 {
            block_on(&bed, inbox.ready());
            take(&inbox, &mut taken);
        }
        for sender in senders {
            sender.join().expect("ends well");
        }
        let (sleeps, wakeups) = (bed.sleeps.load(Relaxed), bed.wakeups.load(Relaxed));
        assert!(wakeups <= sleeps, "{wakeups} for {sleeps}");
        assert_eq!(mesh.mailbox(0).wakeups(), wakeups as u64);
        assert_eq!(inbox.depth(), 0);
    });
}

/// As a shard that wakes for another reason: one of its other tasks takes the messages while one waits for them.
#[test]
fn a_turn_of_another_task_leaves_no_message_behind() {
    model(3, || {
        let (mesh, inbox) = inbox();
        let bed = Arc::new(Bed::default());
        inbox.hang_bell(Arc::clone(&bed).into());
        let sender = thread::spawn(move || send(&mesh, 'a'));
        let mut taken = 0;
        let waker = Arc::clone(&bed).into();
        let mut context = Context::from_waker(&waker);
        let mut ready = Box::pin(inbox.ready());
        if ready.as_mut().poll(&mut context).is_pending() {
            inbox.stay_awake();
            take(&inbox, &mut taken);
            if inbox.rest() {
                // Nothing else has come up: the thread sleeps, and a message must wake it.
                while taken < 1 && ready.as_mut().poll(&mut context).is_pending() {
                    bed.sleep();
                }
            }
        }
        drop(ready);
        while taken < 1 {
            block_on(&bed, inbox.ready());
            take(&inbox, &mut taken);
        }
        sender.join().expect("ends well");
    });
}

#[test]
fn what_was_sent_before_has_arrived_and_what_is_sent_after_has_a_higher_number() {
    model(3, || {
        let (mesh, inbox) = inbox();
        let (sent, counted) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let earlier = thread::spawn({
            let (mesh, sent) = (mesh.clone(), Arc::clone(&sent));
            move || {
                send(&mesh, 'a');
                sent.store(true, Ordering::Release);
            }
        });
        let later = thread::spawn({
            let (mesh, counted) = (mesh.clone(), Arc::clone(&counted));
            move || {
                let after = counted.load(Ordering::Acquire);
                send(&mesh, if after { 'c' } else { 'b' });
            }
        });
        let was_sent = sent.load(Ordering::Acquire);
        let arrived = inbox.arrived();
        counted.store(true, Ordering::Release);
        earlier.join().expect("ends well");
        later.join().expect("ends well");
        for _ in 0..2 {
            let (number, job) = inbox.pop().expect("both were sent");
            match job.name {
                'a' if was_sent => assert!(number <= arrived, "it had been sent"),
                'c' => assert!(number > arrived, "it was sent later"),
                _ => {}
            }
        }
        assert_eq!(inbox.arrived(), 2);
    });
}

#[test]
fn a_sender_that_waits_for_room_gets_it() {
    model(3, || {
        let (mesh, inbox) = inbox();
        let large = || Job {
            name: 'a',
            bytes: INBOX_BYTES_MAX,
        };
        assert!(mesh.mailbox(0).try_send(large()).is_ok());
        let sender = thread::spawn({
            let mesh = mesh.clone();
            move || block_on(&Arc::new(Bed::default()), mesh.mailbox(0).send(large()))
        });
        assert!(inbox.pop().is_some(), "the first one");
        sender.join().expect("it got in");
        assert!(inbox.pop().is_some(), "the second one");
        assert_eq!(inbox.depth(), 0);
    });
}
