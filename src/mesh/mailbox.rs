//! One shard's inbox: many senders, one receiver, bounded in messages and in bytes.

use std::cell::Cell;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

use super::ShardId;

/// Messages that one inbox holds. When it is full, senders wait.
pub const INBOX_MESSAGES_MAX: usize = 4096;
/// Payload bytes that one inbox holds. When they are used up, senders wait. A single message of any size fits into an empty
/// inbox. Senders that come at the same moment may exceed the limit by one message each.
pub const INBOX_BYTES_MAX: usize = 64 << 20;

/// With more messages than this in its inbox a shard counts as behind. A client that publishes many messages waits between
/// two publications while a shard is behind, so that a publication of another client finds room at once.
pub const MESSAGES_AHEAD_MAX: usize = 64;

/// What can be in an inbox.
pub trait Weigh {
    /// Bytes that the message keeps alive while it waits; they count towards the byte limit of the inbox. Every call returns
    /// the same number.
    fn weight_bytes(&self) -> usize;
}

/// The sending side of a shard's inbox.
pub struct Mailbox<M> {
    queue: ArrayQueue<M>,
    queued_bytes: AtomicUsize,
    /// The receiver sleeps and has left its waker in `receiver`.
    asleep: AtomicBool,
    receiver: Mutex<Option<Waker>>,
    /// Senders wait for room and have left their wakers in `blocked`.
    has_blocked: AtomicBool,
    blocked: Mutex<Vec<Waker>>,
}

impl<M: Weigh> Mailbox<M> {
    fn new() -> Self {
        Self {
            queue: ArrayQueue::new(INBOX_MESSAGES_MAX),
            queued_bytes: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            receiver: Mutex::new(None),
            has_blocked: AtomicBool::new(false),
            blocked: Mutex::new(Vec::new()),
        }
    }

    /// Messages that wait now.
    pub fn depth(&self) -> usize {
        self.queue.len()
    }

    /// Puts a message in, or returns it when the inbox is full.
    pub fn try_send(&self, message: M) -> Result<(), M> {
        let bytes = message.weight_bytes();
        let queued = self.queued_bytes.load(Ordering::Relaxed);
        if queued > 0 && queued + bytes > INBOX_BYTES_MAX {
            return Err(message);
        }
        self.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Err(message) = self.queue.push(message) {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Err(message);
        }
        // In the total order the push comes before this swap, and the receiver's store to `asleep` comes before its look at
        // the queue. So either the sender sees `asleep`, or the receiver sees the message.
        if self.asleep.swap(false, Ordering::SeqCst)
            && let Some(waker) = lock(&self.receiver).take()
        {
            waker.wake();
        }
        Ok(())
    }

    /// Puts a message in; waits for room if necessary. `true`: it had to wait.
    pub async fn send(&self, message: M) -> bool {
        let mut message = Some(message);
        let mut waited = false;
        poll_fn(|context| self.poll_send(context, &mut message, &mut waited)).await;
        waited
    }

    /// Waits while the shard is behind ([`MESSAGES_AHEAD_MAX`]).
    pub async fn caught_up(&self) {
        poll_fn(|context| {
            if self.depth() <= MESSAGES_AHEAD_MAX {
                return Poll::Ready(());
            }
            self.block(context);
            // The shard may have caught up after the first look and before the registration.
            match self.depth() {
                0..=MESSAGES_AHEAD_MAX => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
    }

    /// Registers the task: it is woken when the next message is taken out.
    fn block(&self, context: &Context<'_>) {
        lock(&self.blocked).push(context.waker().clone());
        self.has_blocked.store(true, Ordering::SeqCst);
    }

    fn poll_send(
        &self,
        context: &Context<'_>,
        message: &mut Option<M>,
        waited: &mut bool,
    ) -> Poll<()> {
        let Some(first_try) = message.take() else {
            return Poll::Ready(());
        };
        let Err(refused) = self.try_send(first_try) else {
            return Poll::Ready(());
        };
        *waited = true;
        self.block(context);
        // Room may have become free after the refusal and before the registration.
        match self.try_send(refused) {
            Ok(()) => Poll::Ready(()),
            Err(refused) => {
                *message = Some(refused);
                Poll::Pending
            }
        }
    }

    /// For the control thread, which has no executor: tries again until there is room.
    pub fn send_blocking(&self, message: M) {
        const RETRY: Duration = Duration::from_millis(1);
        let mut message = message;
        while let Err(refused) = self.try_send(message) {
            message = refused;
            std::thread::park_timeout(RETRY);
        }
    }

    fn pop(&self) -> Option<M> {
        let message = self.queue.pop()?;
        self.queued_bytes
            .fetch_sub(message.weight_bytes(), Ordering::Relaxed);
        if self.has_blocked.swap(false, Ordering::SeqCst) {
            for waker in lock(&self.blocked).drain(..) {
                waker.wake();
            }
        }
        Some(message)
    }

    fn poll_ready(&self, context: &Context<'_>) -> Poll<()> {
        if !self.queue.is_empty() {
            return Poll::Ready(());
        }
        *lock(&self.receiver) = Some(context.waker().clone());
        self.asleep.store(true, Ordering::SeqCst);
        if self.queue.is_empty() {
            return Poll::Pending;
        }
        self.asleep.store(false, Ordering::SeqCst);
        Poll::Ready(())
    }
}

/// Nothing is left half-written under the lock, so a poisoned lock still guards a usable list of wakers.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The receiving side. Each shard has one, and only its thread uses it.
pub struct Inbox<M> {
    mailbox: Arc<Mailbox<M>>,
    taken: Cell<u64>,
}

impl<M: Weigh> Inbox<M> {
    /// The next message and its number, counted from 1, without waiting.
    pub fn pop(&self) -> Option<(u64, M)> {
        let message = self.mailbox.pop()?;
        self.taken.set(self.taken.get() + 1);
        Some((self.taken.get(), message))
    }

    /// Messages that have arrived so far, including all that a sender has put in before this call.
    pub fn arrived(&self) -> u64 {
        self.taken.get() + self.depth() as u64
    }

    /// Waits until a message is there.
    ///
    /// # Cancel safety
    /// Takes nothing out: dropping the future loses nothing.
    pub async fn ready(&self) {
        poll_fn(|context| self.mailbox.poll_ready(context)).await;
    }

    /// Messages that wait now.
    pub fn depth(&self) -> usize {
        self.mailbox.depth()
    }
}

/// All mailboxes, by shard. A clone is cheap.
pub struct Mesh<M> {
    mailboxes: Arc<[Arc<Mailbox<M>>]>,
}

impl<M> Clone for Mesh<M> {
    fn clone(&self) -> Self {
        Self {
            mailboxes: Arc::clone(&self.mailboxes),
        }
    }
}

impl<M: Weigh> Mesh<M> {
    /// A mesh of `shards` inboxes; each shard takes its own.
    pub fn new(shards: usize) -> (Self, Vec<Inbox<M>>) {
        let mailboxes: Arc<[Arc<Mailbox<M>>]> =
            (0..shards).map(|_| Arc::new(Mailbox::new())).collect();
        let inboxes = mailboxes
            .iter()
            .map(|mailbox| Inbox {
                mailbox: Arc::clone(mailbox),
                taken: Cell::new(0),
            })
            .collect();
        (Self { mailboxes }, inboxes)
    }

    /// The mailbox of one shard.
    pub fn mailbox(&self, shard: ShardId) -> &Mailbox<M> {
        &self.mailboxes[shard]
    }

    /// Every mailbox, in order of shards.
    pub fn mailboxes(&self) -> impl Iterator<Item = &Mailbox<M>> {
        self.mailboxes.iter().map(|mailbox| &**mailbox)
    }

    /// Waits while a shard is behind ([`MESSAGES_AHEAD_MAX`]).
    pub async fn caught_up(&self) {
        for mailbox in self.mailboxes() {
            mailbox.caught_up().await;
        }
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.mailboxes.len()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::Wake;
    use std::thread;

    use super::*;

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
        for _ in 0..SENDERS * EACH {
            block_on(inbox.ready());
            let value = inbox.pop().expect("ready means there is one").1.number;
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
}
