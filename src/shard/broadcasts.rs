//! Broadcasts of the app as they arrive: how long the shard accepts them, and what their bodies contain. What they publish
//! goes through [`Publisher`](crate::shard::publisher::Publisher).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use crate::log::cut_bytes;
use crate::mesh::ShardId;
use crate::protocol::publication::{Broadcast, PublishError, decode_broadcast};
use crate::shard::http::body::Body;
use crate::shard::message::PublishMessage;
use crate::shard::notices::Notice;
use crate::shard::{Shard, Stage};

/// Counts publications that have arrived and are not in every inbox yet. The shutdown needs this: a publication that was
/// answered with 201 must reach every shard's inbox before the sessions are closed.
#[derive(Default)]
pub struct Publications {
    /// Publications that have begun are finished; new ones are refused.
    closed: Cell<bool>,
    /// Requests whose head has been accepted and that are not in every inbox yet.
    under_way: Cell<usize>,
    /// The control thread, when it waits for the last of them.
    done: RefCell<Option<mpsc::Sender<ShardId>>>,
}

/// Set when a new publication may reach no session any more. Shared by all shards and the control thread.
#[derive(Clone, Default)]
pub struct PublicationsEnd(Arc<AtomicBool>);

impl PublicationsEnd {
    /// The control thread calls this before it tells the shards to close sessions.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// If this is false after a publication was put into every inbox, the publication stands before the order to close in
    /// each of them.
    fn has_come(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A publication under way, until it is in every inbox.
pub struct PublicationGuard {
    shard: Rc<Shard>,
}

impl Publications {
    /// Refuses new publications from now on. Answers on `done` when those that have begun are in every inbox.
    pub fn finish(&self, shard: ShardId, done: mpsc::Sender<ShardId>) {
        self.closed.set(true);
        *self.done.borrow_mut() = Some(done);
        self.report(shard);
    }

    /// Begins a publication; `None` when it comes too late.
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
    /// Whether the shutdown overtook this publication, so that some sessions may not get it.
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

/// Whether a publication made now may reach no session. In a slow drain some sessions stay open for a while and still get
/// it.
fn reaches_nobody(shard: &Shard) -> bool {
    let clients = || shard.metrics.shards.iter().map(|it| it.clients_num.value());
    shard.publications_end.has_come()
        || shard.stage.get() == Stage::Draining && clients().sum::<i64>() <= 0
}

/// A longer body is joined and decoded by another thread, so that the shard can serve its other clients meanwhile.
pub const DECODED_HERE_BYTES_MAX: usize = 256 << 10;
/// Copies of a long body that exist at most while it is decoded: the joined body, `data` without its escapes, and the
/// message.
pub const DECODING_COPIES_MAX: usize = 3;

/// Parses a broadcast and hands it to every shard. When this returns, every shard has it in its inbox. A body that cannot be
/// parsed is logged and counted; the app is not told. Source: contract/broadcast.md §3, §4, §9.
pub async fn publish_body(shard: &Rc<Shard>, body: &[u8]) {
    note_arrival(shard, || cut_bytes(body));
    carry_out(shard, decode_broadcast(body), || cut_bytes(body)).await;
}

/// The same for a body longer than [`DECODED_HERE_BYTES_MAX`]. Returns false when no thread could be started to decode it.
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

/// `shown` gives the body as the log shows it.
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
        Broadcast::Publications(publications) => {
            let message = PublishMessage::Deliver(publications.into());
            shard.publisher.publish(message).into_every_inbox().await;
        }
        Broadcast::Disconnect(command) => {
            counters.remote_commands_total.add(1);
            let message = PublishMessage::RemoteDisconnect(Arc::new(command));
            shard.publisher.publish(message).into_every_inbox().await;
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
