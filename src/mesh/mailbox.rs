//! One shard's inbox: many senders, one receiver, bounded in messages and in bytes.
//!
//! Everything that a sender must know to put a message in, or that the receiver must know to fall asleep, is in one atomic
//! word. So each of them sees what the other has done before, and no wake-up is lost; `tests/mailbox_model.rs` tries the
//! interleavings. A mutex is taken only by who waits, and by who wakes somebody.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::ShardId;
use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, SegQueue, thread_local};

/// Messages that one inbox holds. When it is full, senders wait.
pub const INBOX_MESSAGES_MAX: usize = 4096;
/// Payload bytes that one inbox holds. When they are used up, senders wait. A single message of any size fits into an empty
/// inbox.
pub const INBOX_BYTES_MAX: usize = 64 << 20;

/// With more messages than this in its inbox a shard counts as behind. A client that publishes many messages waits between
/// two publications while a shard is behind, so that a publication of another client finds room at once.
pub const MESSAGES_AHEAD_MAX: usize = 64;

/// What can be in an inbox.
pub trait Weigh {
    /// Bytes that the message keeps alive while it waits; they count towards the byte limit of the inbox. Every call returns
    /// the same number.
    fn weight_bytes(&self) -> usize;

    /// The message overtakes those that do not go first. Such messages keep their order among themselves.
    fn goes_first(&self) -> bool {
        false
    }
}

/// Bit of [`Mailbox::state`]: the receiver sleeps. The sender that takes it away wakes the receiver.
const ASLEEP: u64 = 1 << 63;
/// Bit of the state: senders wait for room and have left their wakers in `blocked`.
const BLOCKED: u64 = 1 << 62;
/// One message in the state. Below it are the bytes of all messages.
const MESSAGE: u64 = 1 << 48;

fn messages(state: u64) -> usize {
    ((state & !(ASLEEP | BLOCKED)) / MESSAGE) as usize
}

/// The state with one more message of this size, and the receiver awake; `None` when there is no room.
fn with_message(state: u64, bytes: u64) -> Option<u64> {
    let held = state % MESSAGE;
    let fits = held == 0 || held + bytes <= INBOX_BYTES_MAX as u64;
    (fits && messages(state) < INBOX_MESSAGES_MAX).then_some((state & !ASLEEP) + MESSAGE + bytes)
}

thread_local! {
    /// The mailbox of the shard that this thread runs, as an address; 0 on other threads.
    #[allow(clippy::missing_const_for_thread_local, reason = "loom's macro knows no constants")]
    static OWN_MAILBOX: Cell<usize> = Cell::new(0);
}

/// The sending side of a shard's inbox.
pub struct Mailbox<M> {
    /// Messages that go first.
    first: SegQueue<M>,
    queue: SegQueue<M>,
    /// Messages and their bytes, from before a message is put in until after it was taken out, with [`ASLEEP`] and
    /// [`BLOCKED`].
    state: AtomicU64,
    /// The task that waits for messages.
    receiver: Mutex<Option<Waker>>,
    /// Wakes the receiver's thread from another one.
    bell: OnceLock<Waker>,
    /// Times another thread has woken the receiver.
    wakeups: AtomicU64,
    blocked: Mutex<Vec<Waker>>,
}

impl<M: Weigh> Mailbox<M> {
    fn new() -> Self {
        Self {
            first: SegQueue::new(),
            queue: SegQueue::new(),
            state: AtomicU64::new(0),
            receiver: Mutex::new(None),
            bell: OnceLock::new(),
            wakeups: AtomicU64::new(0),
            blocked: Mutex::new(Vec::new()),
        }
    }

    /// Messages that wait now, with those that are just being put in.
    pub fn depth(&self) -> usize {
        messages(self.state.load(Ordering::Acquire))
    }

    /// Times another thread has woken the shard for its inbox so far.
    pub fn wakeups(&self) -> u64 {
        self.wakeups.load(Ordering::Relaxed)
    }

    /// Puts a message in, or returns it when the inbox is full.
    pub fn try_send(&self, message: M) -> Result<(), M> {
        let bytes = message.weight_bytes() as u64;
        let Ok(before) = self.update(|state| with_message(state, bytes)) else {
            return Err(message);
        };
        // The receiver does not fall asleep between the place and the message: it does so only when no place is taken.
        match message.goes_first() {
            true => self.first.push(message),
            false => self.queue.push(message),
        }
        if before & ASLEEP != 0 {
            self.wake_receiver();
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
        self.state.fetch_or(BLOCKED, Ordering::AcqRel);
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

    /// The receiver's own thread runs, so its task only has to be put into the list of those to run next.
    fn wake_receiver(&self) {
        let own = OWN_MAILBOX.with(Cell::get) == self.address();
        if !own {
            self.wakeups.fetch_add(1, Ordering::Relaxed);
        }
        match self.bell.get() {
            Some(bell) if !own => bell.wake_by_ref(),
            _ => {
                if let Some(task) = &*lock(&self.receiver) {
                    task.wake_by_ref();
                }
            }
        }
    }

    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn pop(&self, queue: &SegQueue<M>) -> Option<M> {
        let message = queue.pop()?;
        let place = MESSAGE + message.weight_bytes() as u64;
        if self.state.fetch_sub(place, Ordering::AcqRel) & BLOCKED != 0 {
            self.state.fetch_and(!BLOCKED, Ordering::AcqRel);
            for waker in lock(&self.blocked).drain(..) {
                waker.wake();
            }
        }
        Some(message)
    }

    /// True: the next sender wakes the receiver. False: there are messages, or one is just being put in.
    fn fall_asleep(&self) -> bool {
        self.update(|state| (messages(state) == 0).then_some(state | ASLEEP))
            .is_ok()
    }

    /// Changes the state unless `change` refuses; returns the state before.
    fn update(&self, change: impl FnMut(u64) -> Option<u64>) -> Result<u64, u64> {
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change)
    }

    fn stay_awake(&self) {
        if self.state.load(Ordering::Relaxed) & ASLEEP != 0 {
            self.state.fetch_and(!ASLEEP, Ordering::AcqRel);
        }
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
    /// A task waits in [`Self::ready`].
    waiting: Cell<bool>,
}

impl<M: Weigh> Inbox<M> {
    /// Makes this thread the receiver's, and `bell` what other threads wake it with. Then whatever `bell` does must let the
    /// task in [`Self::ready`] be polled. Without this call, senders wake the task itself.
    pub fn hang_bell(&self, bell: Waker) {
        OWN_MAILBOX.with(|own| own.set(self.mailbox.address()));
        // There is one shard per inbox, and it starts once.
        let _ = self.mailbox.bell.set(bell);
    }

    /// The next message and its number, counted from 1, without waiting. A message that goes first has the number of the one
    /// that was taken before it.
    pub fn pop(&self) -> Option<(u64, M)> {
        if let Some(message) = self.pop_first() {
            return Some((self.taken.get(), message));
        }
        let message = self.mailbox.pop(&self.mailbox.queue)?;
        self.taken.set(self.taken.get() + 1);
        Some((self.taken.get(), message))
    }

    /// The next message that goes first, without waiting.
    pub fn pop_first(&self) -> Option<M> {
        self.mailbox.pop(&self.mailbox.first)
    }

    /// Messages that have arrived so far, without those that go first, and with all that were put in before this call. It
    /// counts places of the queue and not the state: a message that has its place in the state only may yet be overtaken by
    /// later ones.
    pub fn arrived(&self) -> u64 {
        self.taken.get() + self.mailbox.queue.len() as u64
    }

    /// Waits until a message is there, or is just being put in: [`Self::pop`] may still find nothing then.
    ///
    /// # Cancel safety
    /// Takes nothing out: dropping the future loses nothing.
    pub fn ready(&self) -> Ready<'_, M> {
        Ready { inbox: self }
    }

    /// The thread begins with work that takes the messages out: until [`Self::rest`], senders need not wake it.
    pub fn stay_awake(&self) {
        if self.waiting.get() {
            self.mailbox.stay_awake();
        }
    }

    /// The thread may fall asleep from now on. False: it may not, there are messages again and no sender has woken the task
    /// that waits for them.
    pub fn rest(&self) -> bool {
        !self.waiting.get() || self.mailbox.fall_asleep()
    }

    /// Messages that wait now.
    pub fn depth(&self) -> usize {
        self.mailbox.depth()
    }
}

/// The future of [`Inbox::ready`].
pub struct Ready<'a, M: Weigh> {
    inbox: &'a Inbox<M>,
}

impl<M: Weigh> Future for Ready<'_, M> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let inbox = self.inbox;
        if inbox.depth() > 0 {
            return Poll::Ready(());
        }
        let mut receiver = lock(&inbox.mailbox.receiver);
        match &mut *receiver {
            Some(task) => task.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        drop(receiver);
        inbox.waiting.set(true);
        if inbox.mailbox.fall_asleep() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

impl<M: Weigh> Drop for Ready<'_, M> {
    fn drop(&mut self) {
        self.inbox.stay_awake();
        self.inbox.waiting.set(false);
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
                waiting: Cell::new(false),
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
