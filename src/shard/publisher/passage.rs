//! One message on its way into inboxes.

use crate::hub::ShardSet;
use crate::mesh::{Reply, ShardId};
use crate::metrics::ShardMetrics;
use crate::shard::message::{PublishMessage, ShardMesh, ShardMessage};

/// A message and the inboxes that do not have it yet.
pub(super) struct Passage {
    cargo: Cargo,
    missing: ShardSet,
    /// Dropped with the passage: then every inbox has the message.
    arrived: Option<Reply<()>>,
}

enum Cargo {
    /// For all shards that may have a receiver.
    Publication(PublishMessage),
    /// For one shard; `None` while it is being sent.
    Message(Option<ShardMessage>),
}

impl Passage {
    /// Something published, for these shards.
    pub fn of_publication(message: PublishMessage, shards: ShardSet) -> Self {
        Self {
            cargo: Cargo::Publication(message),
            missing: shards,
            arrived: None,
        }
    }

    /// Somebody waits until every inbox has the message.
    pub fn report_to(&mut self, arrived: Option<Reply<()>>) {
        self.arrived = arrived;
    }

    /// True when somebody waits until it has arrived.
    pub fn is_awaited(&self) -> bool {
        self.arrived.is_some()
    }

    /// A message for one shard.
    pub fn to_shard(shard: ShardId, shards: usize, message: ShardMessage) -> Self {
        Self {
            cargo: Cargo::Message(Some(message)),
            missing: ShardSet::one(shard, shards),
            arrived: None,
        }
    }

    /// Puts the message into one inbox after the other. Returns false when the next one is full.
    pub fn advance(&mut self, mesh: &ShardMesh, counters: &ShardMetrics) -> bool {
        while let Some((shard, message)) = self.take_next() {
            match mesh.mailbox(shard).try_send(message) {
                Ok(()) => self.note_sent(shard, counters),
                Err(message) => {
                    self.put_back(message);
                    return false;
                }
            }
        }
        true
    }

    /// The next inbox, and the message for it.
    pub fn take_next(&mut self) -> Option<(ShardId, ShardMessage)> {
        let shard = self.missing.first()?;
        match &mut self.cargo {
            Cargo::Publication(message) => Some((shard, message.clone().into())),
            Cargo::Message(message) => Some((shard, message.take()?)),
        }
    }

    fn put_back(&mut self, refused: ShardMessage) {
        if let Cargo::Message(message) = &mut self.cargo {
            *message = Some(refused);
        }
    }

    /// The inbox of this shard has the message.
    pub fn note_sent(&mut self, shard: ShardId, counters: &ShardMetrics) {
        if matches!(self.cargo, Cargo::Publication(_)) {
            counters.publications_handed_total.add(1);
        }
        self.missing.remove(shard);
    }

    /// True when no inbox is to get it.
    pub fn is_done(&self) -> bool {
        self.missing.is_empty()
    }
}
