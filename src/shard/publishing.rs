//! From the body of a broadcast request to the inbox of every shard.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use crate::log::cut_bytes;
use crate::mesh::ShardId;
use crate::protocol::publication::{Broadcast, Publication, PublishError, decode_broadcast};
use crate::shard::http::body::Body;
use crate::shard::message::PublishMessage;
use crate::shard::notices::Notice;
use crate::shard::signal::Signal;
use crate::shard::{Shard, Stage};

/// Publications that arrive, as the end of the server needs to know them: what is answered 201 has reached the inbox of
/// every shard before the sessions are told to go.
#[derive(Default)]
pub struct Publications {
    /// What has begun comes to its end, nothing new is taken.
    closed: Cell<bool>,
    /// Requests whose head has been accepted and that are not in every inbox yet.
    under_way: Cell<usize>,
    /// Whoever waits for the last of them.
    done: RefCell<Option<mpsc::Sender<ShardId>>>,
}

/// From which on what is published may reach nobody. Shared by all shards and the control thread.
#[derive(Clone, Default)]
pub struct PublicationsEnd(Arc<AtomicBool>);

impl PublicationsEnd {
    /// From the control thread, before it has the sessions closed.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// False after a publication was put into every inbox: it is in front of the order to close, everywhere.
    fn has_come(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A publication under way, until it is in every inbox.
pub struct PublicationGuard {
    shard: Rc<Shard>,
}

impl Publications {
    /// Takes nothing new from now on; answers on `done` when what has begun is in every inbox.
    pub fn finish(&self, shard: ShardId, done: mpsc::Sender<ShardId>) {
        self.closed.set(true);
        *self.done.borrow_mut() = Some(done);
        self.report(shard);
    }

    /// A publication begins; `None` when it comes too late.
    pub fn begin(shard: &Rc<Shard>) -> Option<PublicationGuard> {
        let publications = &shard.publications;
        if publications.closed.get() || reaches_nobody(shard) {
            return None;
        }
        publications.under_way.set(publications.under_way.get() + 1);
        Some(PublicationGuard {
            shard: Rc::clone(shard),
        })
    }

    /// Whether no new publication is taken.
    pub fn are_closed(&self) -> bool {
        self.closed.get()
    }

    fn report(&self, shard: ShardId) {
        if self.under_way.get() == 0
            && let Some(done) = self.done.take()
        {
            // The control thread may have given up waiting.
            let _ = done.send(shard);
        }
    }
}

impl PublicationGuard {
    /// Whether the publication came too late after all.
    pub fn is_late(&self) -> bool {
        reaches_nobody(&self.shard)
    }
}

impl Drop for PublicationGuard {
    fn drop(&mut self) {
        let publications = &self.shard.publications;
        publications.under_way.set(publications.under_way.get() - 1);
        publications.report(self.shard.id);
    }
}

/// Whether what is published now may find the sessions told to go. In a slow drain some are left for a while.
fn reaches_nobody(shard: &Shard) -> bool {
    let clients = || shard.metrics.shards.iter().map(|it| it.clients_num.value());
    shard.publications_end.has_come()
        || shard.stage.get() == Stage::Draining && clients().sum::<i64>() <= 0
}

/// Bodies beyond this are put together and decoded off the shard, which goes on with its other clients meanwhile.
pub const DECODED_HERE_BYTES_MAX: usize = 256 << 10;
/// Copies of a long body that there are at most while it is decoded: what has come, put together; `data` without its
/// escapes; the message.
pub const DECODING_COPIES_MAX: usize = 3;

/// Parses a broadcast and hands it to every shard. When this returns, every shard has it in its inbox; what cannot be
/// parsed is logged and counted, the app is not told. Source: contract/broadcast.md §3, §4, §9.
pub async fn publish_body(shard: &Rc<Shard>, body: &[u8]) {
    note_arrival(shard, || cut_bytes(body));
    carry_out(shard, decode_broadcast(body), || cut_bytes(body)).await;
}

/// The same for a body beyond [`DECODED_HERE_BYTES_MAX`]. False: no thread could be started to decode it.
pub async fn publish_long_body(shard: &Rc<Shard>, body: Body) -> bool {
    let decoded = shard.long_work.run(move || {
        let body = body.into_bytes();
        (cut_bytes(&body), decode_broadcast(&body))
    });
    let Ok((shown, broadcast)) = decoded.await else {
        return false;
    };
    note_arrival(shard, || shown.clone());
    carry_out(shard, broadcast, || shown.clone()).await;
    true
}

fn note_arrival(shard: &Shard, shown: impl Fn() -> String) {
    tracing::debug!(
        context = "node",
        shard = shard.id,
        payload = %shown(),
        "handle broadcast message"
    );
}

/// `shown` is the body as the log shows it.
async fn carry_out(
    shard: &Rc<Shard>,
    broadcast: Result<Broadcast, PublishError>,
    shown: impl Fn() -> String,
) {
    let counters = shard.counters();
    let broadcast = match broadcast {
        Ok(broadcast) => broadcast,
        Err(error) => {
            counters.failed_broadcast_msg_total.add(1);
            if let Some(admitted) = shard.notices.admit(Notice::PublicationUnreadable) {
                tracing::warn!(
                    context = "node",
                    shard = shard.id,
                    data = %shown(),
                    %error,
                    left_out = admitted.left_out(),
                    "failed to parse pubsub message"
                );
            }
            return;
        }
    };
    counters.publications_total.add(1);
    match broadcast {
        Broadcast::Publications(publications) => publish(shard, publications).await,
        Broadcast::Disconnect(command) => {
            counters.remote_commands_total.add(1);
            counters.broadcast_msg_total.add(1);
            let command = Arc::new(command);
            send_to_all(shard, || {
                PublishMessage::RemoteDisconnect(Arc::clone(&command))
            })
            .await;
        }
        Broadcast::UnknownCommand(_) | Broadcast::InvalidCommand(_) => {
            counters.remote_commands_total.add(1);
            if let Some(admitted) = shard.notices.admit(Notice::RemoteCommandUnknown) {
                tracing::warn!(
                    context = "node",
                    shard = shard.id,
                    data = %shown(),
                    left_out = admitted.left_out(),
                    "unknown or malformed remote command, ignored"
                );
            }
        }
    }
}

/// Whispers of this shard's clients that wait while an inbox is full. Beyond this a whisper is dropped and counted: it is
/// a hint between clients that nobody stores, and a client must not be able to fill the memory with it.
pub const WHISPERS_WAITING_MAX: usize = 1024;

/// Whispers on their way to the shards, in order.
#[derive(Default)]
pub struct Whispers {
    waiting: RefCell<VecDeque<Whisper>>,
    queued: Signal,
}

struct Whisper {
    publication: Arc<[Publication]>,
    /// The first shard that has not got it yet.
    next: ShardId,
}

impl Whispers {
    /// Puts a whisper into every inbox at once if there is room and none waits before it. Else it waits, or is dropped at
    /// [`WHISPERS_WAITING_MAX`].
    pub fn send(&self, shard: &Shard, publication: Publication) {
        shard.counters().broadcast_msg_total.add(1);
        let mut whisper = Whisper {
            publication: Arc::from([publication]),
            next: 0,
        };
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() && whisper.try_send(shard) {
            return;
        }
        if waiting.len() >= WHISPERS_WAITING_MAX {
            shard.counters().whispers_dropped_total.add(1);
            return;
        }
        waiting.push_back(whisper);
        self.queued.notify();
    }
}

impl Whisper {
    fn message(&self) -> PublishMessage {
        PublishMessage::Deliver(Arc::clone(&self.publication))
    }

    /// False: an inbox is full, the whisper is in those before it.
    fn try_send(&mut self, shard: &Shard) -> bool {
        while self.next < shard.mesh.shards() {
            if shard
                .mesh
                .mailbox(self.next)
                .try_send(self.message().into())
                .is_err()
            {
                return false;
            }
            self.next += 1;
        }
        true
    }
}

/// Sends the whispers that had to wait, for the life of the shard.
pub async fn run_whispers(shard: Rc<Shard>) {
    let whispers = &shard.whispers;
    loop {
        whispers.queued.notified().await;
        // The first stays in the queue while it is sent, so that none overtakes it.
        while let Some((shard_id, message)) = next_waiting(whispers) {
            shard.counters().inbox_waits_total.add(1);
            shard.mesh.mailbox(shard_id).send(message.into()).await;
            let mut waiting = whispers.waiting.borrow_mut();
            if let Some(first) = waiting.front_mut() {
                first.next += 1;
                if first.try_send(&shard) {
                    waiting.pop_front();
                }
            }
        }
    }
}

fn next_waiting(whispers: &Whispers) -> Option<(ShardId, PublishMessage)> {
    let waiting = whispers.waiting.borrow();
    let first = waiting.front()?;
    Some((first.next, first.message()))
}

/// Hands publications to every shard, in order; waits where an inbox is full.
pub async fn publish(shard: &Rc<Shard>, publications: Vec<Publication>) {
    shard
        .counters()
        .broadcast_msg_total
        .add(publications.len() as u64);
    let publications: Arc<[Publication]> = publications.into();
    send_to_all(shard, || PublishMessage::Deliver(Arc::clone(&publications))).await;
}

async fn send_to_all(shard: &Rc<Shard>, message: impl Fn() -> PublishMessage) {
    let mut waited = 0;
    for mailbox in shard.mesh.mailboxes() {
        waited += u64::from(mailbox.send(message().into()).await);
    }
    if waited > 0 {
        shard.counters().inbox_waits_total.add(waited);
        shard.counters().publications_waited_total.add(1);
    }
}
