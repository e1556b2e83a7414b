//! Broadcasts of the app as they arrive: until when they are taken, and what is in their bodies. What they publish goes
//! through [`Publisher`](crate::shard::publisher::Publisher).

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
