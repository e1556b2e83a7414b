//! The one path of everything that is published, into the inboxes of the shards that may have a listener: publications and
//! remote commands of the app, test messages of the console, whispers of clients.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::hub::{Interest, ShardSet};
use crate::mesh::ShardId;
use crate::metrics::{Metrics, ShardMetrics};
use crate::protocol::publication::Publication;
use crate::shard::message::{PublishMessage, ShardMesh};
use crate::shard::signal::Signal;

/// Whispers of this shard's clients that wait while an inbox is full. One more whisper is dropped and counted: a whisper is
/// a hint between clients that is stored nowhere, and a client must not be able to fill the memory with whispers.
pub const WHISPERS_WAITING_MAX: usize = 1024;

/// Gives a publication its place in its stream, and stores it.
#[derive(Debug, Clone, Copy)]
pub enum Broker {
    /// Nothing is stored. The order in which an inbox takes publications is their order.
    None,
}

/// Brings a publication to the other nodes.
#[derive(Debug, Clone, Copy)]
pub enum Engine {
    /// There are no other nodes.
    None,
}

/// Sends what this shard publishes.
pub struct Publisher {
    shard: ShardId,
    mesh: ShardMesh,
    interest: Arc<Interest>,
    metrics: Arc<Metrics>,
    broker: Broker,
    engine: Engine,
    /// Whispers for which an inbox had no room, in order.
    waiting: RefCell<VecDeque<Passage>>,
    queued: Signal,
}

/// Something published that is not in the inboxes yet. The caller chooses whether it waits until it has arrived.
#[must_use = "nothing has been sent yet"]
pub struct Published<'a> {
    publisher: &'a Publisher,
    passage: Passage,
}

struct Passage {
    message: PublishMessage,
    /// The shards that may have had a listener when this was published, and whose inboxes do not have it yet.
    missing: ShardSet,
}

impl Publisher {
    pub fn new(
        shard: ShardId,
        mesh: ShardMesh,
        interest: Arc<Interest>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            shard,
            mesh,
            interest,
            metrics,
            broker: Broker::None,
            engine: Engine::None,
            waiting: RefCell::default(),
            queued: Signal::default(),
        }
    }

    /// Counts what is published and chooses the shards that get it, by their listeners now. A shard whose first listener
    /// comes later does not get it, even if the message has to wait for room in an inbox.
    pub fn publish(&self, message: PublishMessage) -> Published<'_> {
        let count = match &message {
            PublishMessage::Deliver(publications) => publications.len(),
            PublishMessage::RemoteDisconnect(_) => 1,
        };
        self.counters().broadcast_msg_total.add(count as u64);
        Published {
            publisher: self,
            passage: self.route(message),
        }
    }

    /// Chooses the way of a publication: to the broker, then to the engine, then into the inboxes of this process.
    fn route(&self, message: PublishMessage) -> Passage {
        match (self.broker, self.engine) {
            (Broker::None, Engine::None) => Passage {
                missing: self.shards_for(&message),
                message,
            },
        }
    }

    /// The shards that may have a receiver. A remote disconnect goes to all: it is rare, and a table of the sessions'
    /// identifiers would cost every session of every client at its start and its end.
    fn shards_for(&self, message: &PublishMessage) -> ShardSet {
        let PublishMessage::Deliver(publications) = message else {
            return ShardSet::all(self.mesh.shards());
        };
        let streams = publications.iter().map(|publication| &*publication.stream);
        let shards = self.interest.listeners(streams);
        if shards.is_empty() {
            self.note_no_listener(publications);
        }
        shards
    }

    fn note_no_listener(&self, publications: &[Publication]) {
        for publication in publications {
            tracing::debug!(
                component = "hub",
                shard = self.shard,
                stream = &*publication.stream,
                "no sessions"
            );
        }
    }

    /// Sends the whispers that wait, for the life of the shard.
    pub async fn send_waiting(&self) {
        loop {
            self.queued.notified().await;
            // The first whisper stays in the queue while it is sent, so that no later one overtakes it.
            while let Some((shard, message)) = self.first_waiting() {
                self.counters().inbox_waits_total.add(1);
                self.mesh.mailbox(shard).send(message.into()).await;
                self.counters().publications_handed_total.add(1);
                let mut waiting = self.waiting.borrow_mut();
                if let Some(first) = waiting.front_mut() {
                    first.missing.remove(shard);
                    if self.advance(first) {
                        waiting.pop_front();
                    }
                }
            }
        }
    }

    fn first_waiting(&self) -> Option<(ShardId, PublishMessage)> {
        let waiting = self.waiting.borrow();
        let first = waiting.front()?;
        Some((first.missing.first()?, first.message.clone()))
    }

    /// Puts the message into one inbox after the other. Returns false when the next one is full.
    fn advance(&self, passage: &mut Passage) -> bool {
        while let Some(shard) = passage.missing.first() {
            let message = passage.message.clone().into();
            if self.mesh.mailbox(shard).try_send(message).is_err() {
                return false;
            }
            self.counters().publications_handed_total.add(1);
            passage.missing.remove(shard);
        }
        true
    }

    fn counters(&self) -> &ShardMetrics {
        &self.metrics.shards[self.shard]
    }
}

impl Published<'_> {
    /// For what must not be lost: waits while an inbox is full. When this returns, every shard that may have a receiver has
    /// it in its inbox.
    pub async fn into_inboxes(self) {
        let Self {
            publisher,
            mut passage,
        } = self;
        let mut waited = 0;
        while !publisher.advance(&mut passage)
            && let Some(shard) = passage.missing.first()
        {
            waited += 1;
            let message = passage.message.clone();
            publisher.mesh.mailbox(shard).send(message.into()).await;
            publisher.counters().publications_handed_total.add(1);
            passage.missing.remove(shard);
        }
        if waited > 0 {
            let counters = publisher.counters();
            counters.inbox_waits_total.add(waited);
            counters.publications_waited_total.add(1);
        }
    }

    /// For a whisper: its client must not wait. The whisper goes into the inboxes at once if all have room and no other
    /// whisper waits. Otherwise it is queued, or dropped at [`WHISPERS_WAITING_MAX`].
    pub fn or_queued(self) {
        let Self {
            publisher,
            mut passage,
        } = self;
        let mut waiting = publisher.waiting.borrow_mut();
        if passage.missing.is_empty() || waiting.is_empty() && publisher.advance(&mut passage) {
            return;
        }
        if waiting.len() >= WHISPERS_WAITING_MAX {
            publisher.counters().whispers_dropped_total.add(1);
            return;
        }
        waiting.push_back(passage);
        publisher.queued.notify();
    }
}

#[cfg(test)]
mod tests;
