//! From the body of a broadcast request to the inbox of every shard.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use crate::log::cut;
use crate::mesh::ShardMessage;
use crate::protocol::publication::{Broadcast, Publication, decode_broadcast};
use crate::shard::Shard;
use crate::shard::signal::Signal;

/// Parses a broadcast and hands it to every shard. When this returns, every shard has it in its inbox; what cannot be
/// parsed is logged and counted, the app is not told. Source: contract/broadcast.md §3, §4, §9.
pub async fn publish_body(shard: &Rc<Shard>, body: &[u8]) {
    tracing::debug!(
        context = "node",
        shard = shard.id,
        payload = %cut(&String::from_utf8_lossy(body)),
        "handle broadcast message"
    );
    let counters = shard.counters();
    let broadcast = match decode_broadcast(body) {
        Ok(broadcast) => broadcast,
        Err(error) => {
            counters.failed_broadcast_msg_total.add(1);
            tracing::warn!(
                context = "node",
                shard = shard.id,
                data = %cut(&String::from_utf8_lossy(body)),
                %error,
                "failed to parse pubsub message"
            );
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
                ShardMessage::RemoteDisconnect(Arc::clone(&command))
            })
            .await;
        }
        Broadcast::UnknownCommand(_) | Broadcast::InvalidCommand(_) => {
            counters.remote_commands_total.add(1);
            tracing::warn!(
                context = "node",
                shard = shard.id,
                data = %cut(&String::from_utf8_lossy(body)),
                "unknown or malformed remote command, ignored"
            );
        }
    }
}

/// Whispers of this shard's clients that wait while an inbox is full. Beyond this a whisper is dropped and counted: it is
/// a hint between clients that nobody stores, and a client must not be able to fill the memory with it.
pub const WHISPERS_WAITING_MAX: usize = 1024;

/// Whispers on their way to the shards, in order.
#[derive(Default)]
pub struct Whispers {
    waiting: RefCell<VecDeque<Publication>>,
    queued: Signal,
}

impl Whispers {
    /// Queues a whisper, or drops it at [`WHISPERS_WAITING_MAX`].
    pub fn push(&self, shard: &Shard, whisper: Publication) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= WHISPERS_WAITING_MAX {
            shard.counters().whispers_dropped_total.add(1);
            return;
        }
        waiting.push_back(whisper);
        self.queued.notify();
    }

    fn pop(&self) -> Option<Publication> {
        self.waiting.borrow_mut().pop_front()
    }
}

/// Publishes whispers, for the life of the shard.
pub async fn run_whispers(shard: Rc<Shard>) {
    loop {
        shard.whispers.queued.notified().await;
        while let Some(whisper) = shard.whispers.pop() {
            publish(&shard, vec![whisper]).await;
        }
    }
}

/// Hands publications to every shard, in order; waits where an inbox is full.
pub async fn publish(shard: &Rc<Shard>, publications: Vec<Publication>) {
    shard
        .counters()
        .broadcast_msg_total
        .add(publications.len() as u64);
    let publications: Arc<[Publication]> = publications.into();
    send_to_all(shard, || ShardMessage::Deliver(Arc::clone(&publications))).await;
}

async fn send_to_all(shard: &Rc<Shard>, message: impl Fn() -> ShardMessage) {
    let mut waited = 0;
    for mailbox in shard.mesh.mailboxes() {
        waited += u64::from(mailbox.send(message()).await);
    }
    if waited > 0 {
        shard.counters().inbox_waits_total.add(waited);
        shard.counters().publications_waited_total.add(1);
    }
}
