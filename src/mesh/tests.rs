//! The inbox under many senders, at its bounds, and asleep.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use super::mailbox::{INBOX_BYTES_MAX, INBOX_MESSAGES_MAX, MESSAGES_AHEAD_MAX, Mesh, Weigh};

struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Arc::new(Unpark(thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

struct Job {
    number: u32,
    bytes: usize,
}

impl Weigh for Job {
    fn weight_bytes(&self) -> usize {
        self.bytes
    }
}

fn job(number: u32, bytes: usize) -> Job {
    Job { number, bytes }
}

#[test]
fn messages_of_many_senders_arrive_whole_and_in_each_senders_order() {
    const SENDERS: u32 = 4;
    const EACH: u32 = 20_000;
    let (mesh, mut inboxes) = Mesh::new(1);
    let inbox = inboxes.remove(0);
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let mesh = mesh.clone();
            thread::spawn(move || {
                for index in 0..EACH {
                    block_on(mesh.mailbox(0).send(job(sender * EACH + index, 0)));
                }
            })
        })
        .collect();
    let mut next = [0; SENDERS as usize];
    while next.iter().sum::<u32>() < SENDERS * EACH {
        block_on(inbox.ready());
        let Some((_, Job { number: value, .. })) = inbox.pop() else {
            // A sender was interrupted between its place and its message.
            thread::yield_now();
            continue;
        };
        let expected = &mut next[(value / EACH) as usize];
        assert_eq!(value % EACH, *expected);
        *expected += 1;
    }
    for sender in senders {
        sender.join().expect("the sender ends well");
    }
    assert_eq!(inbox.depth(), 0);
}

#[test]
fn a_full_inbox_refuses_and_a_waiting_sender_goes_on_when_there_is_room() {
    let (mesh, mut inboxes) = Mesh::new(1);
    let inbox = inboxes.remove(0);
    for index in 0..INBOX_MESSAGES_MAX as u32 {
        assert!(mesh.mailbox(0).try_send(job(index, 0)).is_ok());
    }
    assert!(mesh.mailbox(0).try_send(job(0, 0)).is_err());
    let (done, waited) = mpsc::channel();
    let sender = thread::spawn({
        let mesh = mesh.clone();
        move || done.send(block_on(mesh.mailbox(0).send(job(u32::MAX, 0))))
    });
    assert!(waited.try_recv().is_err(), "there is no room yet");
    assert_eq!(inbox.pop().expect("full").1.number, 0);
    // Whether it had to wait depends on which thread was first; the message gets in on either way.
    waited.recv().expect("the sender got in");
    sender
        .join()
        .expect("ends well")
        .expect("the result was read");
    let last = std::iter::from_fn(|| inbox.pop())
        .last()
        .expect("not empty");
    assert_eq!(last.1.number, u32::MAX);
}

#[test]
fn bytes_are_bounded_but_one_message_of_any_size_fits_an_empty_inbox() {
    let (mesh, mut inboxes) = Mesh::new(1);
    let inbox = inboxes.remove(0);
    assert!(
        mesh.mailbox(0)
            .try_send(job(1, INBOX_BYTES_MAX + 1))
            .is_ok()
    );
    assert!(mesh.mailbox(0).try_send(job(2, 1)).is_err());
    assert_eq!(inbox.pop().expect("the large one").1.number, 1);
    assert!(mesh.mailbox(0).try_send(job(3, 1)).is_ok());
}

/// Negative numbers go first.
struct Ranked(i32);

impl Weigh for Ranked {
    fn weight_bytes(&self) -> usize {
        1
    }

    fn goes_first(&self) -> bool {
        self.0 < 0
    }
}

#[test]
fn messages_that_go_first_overtake_the_others_and_are_not_numbered() {
    let (mesh, mut inboxes) = Mesh::new(1);
    let inbox = inboxes.remove(0);
    for number in [1, 2, -1, 3, -2] {
        assert!(mesh.mailbox(0).try_send(Ranked(number)).is_ok());
    }
    assert_eq!((inbox.depth(), inbox.arrived()), (5, 3));
    assert_eq!(inbox.pop_first().map(|it| it.0), Some(-1));
    let all = std::iter::from_fn(|| inbox.pop());
    let all: Vec<(u64, i32)> = all.map(|(number, it)| (number, it.0)).collect();
    assert_eq!(all, [(0, -2), (1, 1), (2, 2), (3, 3)]);
    assert!(inbox.pop_first().is_none());
    assert_eq!((inbox.depth(), inbox.arrived()), (0, 3));
}

#[test]
fn who_publishes_on_waits_until_the_shard_has_caught_up() {
    let (mesh, mut inboxes) = Mesh::new(1);
    let inbox = inboxes.remove(0);
    for number in 0..=MESSAGES_AHEAD_MAX as u32 {
        let sent = mesh.mailbox(0).try_send(job(number, 0));
        assert!(sent.is_ok(), "others still find room");
    }
    let waker = Waker::noop();
    let mut context = Context::from_waker(waker);
    let mut caught_up = pin!(mesh.caught_up());
    assert!(caught_up.as_mut().poll(&mut context).is_pending());
    inbox.pop().expect("a message");
    assert!(caught_up.as_mut().poll(&mut context).is_ready());
}

/// Counts how often it is rung.
#[derive(Default)]
struct Rings(AtomicUsize);

impl Wake for Rings {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Rings {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sends from another thread.
fn send(mesh: &Mesh<Job>, number: u32) {
    thread::scope(|scope| {
        scope.spawn(|| assert!(mesh.mailbox(0).try_send(job(number, 0)).is_ok()));
    });
}

#[test]
fn a_sleeping_receiver_is_woken_once_for_many_messages_and_a_waking_one_never() {
    let (mesh, mut inboxes) = Mesh::new(1);
    let inbox = inboxes.remove(0);
    let (bell, task) = (Arc::new(Rings::default()), Arc::new(Rings::default()));
    inbox.hang_bell(Arc::clone(&bell).into());
    send(&mesh, 0);
    assert_eq!(bell.count(), 0, "nobody sleeps");
    let waker = Arc::clone(&task).into();
    let mut context = Context::from_waker(&waker);
    let mut ready = pin!(inbox.ready());
    assert!(ready.as_mut().poll(&mut context).is_ready());
    inbox.pop().expect("the first message");
    assert!(ready.as_mut().poll(&mut context).is_pending());
    inbox.stay_awake();
    send(&mesh, 1);
    assert_eq!(bell.count(), 0, "another task of the thread takes it out");
    assert!(!inbox.rest(), "it must not sleep while a message is there");
    inbox.pop().expect("the second message");
    assert!(inbox.rest());
    send(&mesh, 2);
    send(&mesh, 3);
    assert_eq!((bell.count(), task.count()), (1, 0));
    assert_eq!(mesh.mailbox(0).wakeups(), 1);
    assert!(ready.as_mut().poll(&mut context).is_ready());
    assert_eq!(inbox.arrived(), 4);
}

#[test]
fn a_message_to_oneself_wakes_the_task_and_rings_no_bell() {
    let (mesh, mut inboxes) = Mesh::new(1);
    let inbox = inboxes.remove(0);
    let (bell, task) = (Arc::new(Rings::default()), Arc::new(Rings::default()));
    inbox.hang_bell(Arc::clone(&bell).into());
    let waker = Arc::clone(&task).into();
    let mut context = Context::from_waker(&waker);
    let mut ready = pin!(inbox.ready());
    assert!(ready.as_mut().poll(&mut context).is_pending());
    assert!(mesh.mailbox(0).try_send(job(1, 0)).is_ok());
    assert_eq!((bell.count(), task.count()), (0, 1));
    assert_eq!(mesh.mailbox(0).wakeups(), 0);
}

#[test]
fn a_wait_that_is_dropped_leaves_nobody_to_wake() {
    let (mesh, mut inboxes) = Mesh::new(1);
    let inbox = inboxes.remove(0);
    let task = Arc::new(Rings::default());
    let waker = Arc::clone(&task).into();
    let mut ready = Box::pin(inbox.ready());
    assert!(
        ready
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop(ready);
    send(&mesh, 1);
    assert_eq!(task.count(), 0);
    assert!(inbox.rest(), "no task waits that could be forgotten");
}
