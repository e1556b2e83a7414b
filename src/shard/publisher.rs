//! The one path of everything that is published, into the inboxes of the shards that may have a listener: publications and
//! remote commands of the app, test messages of the console, whispers of clients, and presence.
//!
//! With a broker, publications go through the homes of their streams. The home of a stream gives them their places, keeps
//! them and sends them to the shards. What one home sends to one shard arrives in the order in which it was sent, whether it
//! is a publication or an answer: all of it goes through one queue when an inbox is full.

mod home;
mod passage;

use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

pub use self::home::{BrokerLeases, Home};
use self::passage::Passage;
use crate::broker::presence::LongAnswer;
use crate::hub::{Interest, ShardSet};
use crate::mesh::{Gather, ShardId};
use crate::metrics::{Metrics, ShardMetrics};
use crate::protocol::publication::Publication;
use crate::shard::message::{HomeMessage, PublishMessage, ShardMesh, ShardMessage};
use crate::shard::signal::Signal;

/// Whispers of this shard's clients that wait while an inbox is full. One more whisper is dropped and counted: a whisper is
/// a hint between clients that is stored nowhere, and a client must not be able to fill the memory with whispers.
pub const WHISPERS_WAITING_MAX: usize = 1024;

/// Gives a publication its place in its stream, and stores it.
pub enum Broker {
    /// Nothing is stored. The order in which an inbox takes publications is their order.
    None,
    /// Each stream is stored in the memory of its home shard.
    Memory(Box<RefCell<Home>>),
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
    /// What waits for room in an inbox, in order.
    waiting: RefCell<VecDeque<Passage>>,
    queued: Signal,
}

/// Something published that is on its way. The caller chooses whether it waits until it has arrived.
#[must_use = "nothing has been sent yet"]
pub struct Published<'a> {
    publisher: &'a Publisher,
    message: PublishMessage,
}

impl Publisher {
    pub fn new(
        shard: ShardId,
        mesh: ShardMesh,
        interest: Arc<Interest>,
        metrics: Arc<Metrics>,
        broker: Broker,
    ) -> Self {
        Self {
            shard,
            mesh,
            interest,
            metrics,
            broker,
            engine: Engine::None,
            waiting: RefCell::default(),
            queued: Signal::default(),
        }
    }

    /// Counts what is published and prepares to send it.
    pub fn publish(&self, message: PublishMessage) -> Published<'_> {
        let count = match &message {
            PublishMessage::Deliver(publications) => publications.len(),
            PublishMessage::RemoteDisconnect(_) => 1,
        };
        self.counters().broadcast_msg_total.add(count as u64);
        Published {
            publisher: self,
            message,
        }
    }

    /// The way into the inboxes, without a broker or behind it. Chooses the shards by their listeners now, so who subscribes
    /// later gets nothing of it.
    ///
    /// There is one exception. While the inbox of a chosen shard is full, the message waits outside of it, and that shard
    /// cannot tell it from a later one. A subscription that begins there meanwhile gets it, although it may not get the
    /// messages behind it: these had no listener there. So the offsets of a subscription may have a gap, before the first
    /// message that was published after its confirmation. A subscription with history has none: it holds the message back,
    /// and the answer covers it.
    fn route(&self, message: PublishMessage) -> Passage {
        match self.engine {
            Engine::None => {
                let shards = self.shards_for(&message);
                Passage::of_publication(message, shards)
            }
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

    /// Sends what waits for room, for the life of the shard.
    pub async fn send_waiting(&self) {
        loop {
            self.queued.notified().await;
            // The first passage stays in the queue while it is sent, so that nothing later overtakes it.
            while let Some((shard, message)) = self.next_waiting() {
                self.counters().inbox_waits_total.add(1);
                self.mesh.mailbox(shard).send(message).await;
                if let Some(first) = self.waiting.borrow_mut().front_mut() {
                    first.note_sent(shard, self.counters());
                    first.advance(&self.mesh, self.counters());
                }
            }
        }
    }

    /// Drops what has arrived. Returns the next inbox that is waited for, and the message for it.
    fn next_waiting(&self) -> Option<(ShardId, ShardMessage)> {
        let mut waiting = self.waiting.borrow_mut();
        while waiting.front().is_some_and(Passage::is_done) {
            waiting.pop_front();
        }
        waiting.front_mut()?.take_next()
    }

    /// Sends a message behind everything that waits; queues it when there is no room.
    ///
    /// Somebody who waits for its arrival waits for all before it too, even if no inbox is to get it: a repeated publication
    /// goes to none, and its answer means that the first one has arrived.
    fn send(&self, mut passage: Passage) {
        let mut waiting = self.waiting.borrow_mut();
        let is_needless = passage.is_done() && !passage.is_awaited();
        let is_done = waiting.is_empty() && passage.advance(&self.mesh, self.counters());
        if !is_needless && !is_done {
            waiting.push_back(passage);
            self.queued.notify();
        }
    }

    /// As [`Self::send`], for what may be lost: it is dropped at [`WHISPERS_WAITING_MAX`].
    fn send_or_drop(&self, passage: Passage) {
        if self.waiting.borrow().len() < WHISPERS_WAITING_MAX {
            self.send(passage);
        } else {
            self.counters().whispers_dropped_total.add(1);
        }
    }

    fn counters(&self) -> &ShardMetrics {
        &self.metrics.shards[self.shard]
    }
}

impl Published<'_> {
    /// For what must not be lost: waits while an inbox is full. When this returns, every shard that may have a receiver has
    /// it in its inbox.
    pub async fn into_inboxes(self) {
        let Self { publisher, message } = self;
        match (&publisher.broker, message) {
            (Broker::Memory(_), PublishMessage::Deliver(publications)) => {
                publisher.through_homes(publications).await;
            }
            (_, message) => publisher.bring(publisher.route(message)).await,
        }
    }

    /// For a whisper: its client must not wait. The whisper goes into the inboxes at once if all have room and nothing else
    /// waits. Otherwise it is queued, or dropped at [`WHISPERS_WAITING_MAX`].
    pub fn or_queued(self) {
        let Self { publisher, message } = self;
        match (&publisher.broker, message) {
            (Broker::Memory(_), PublishMessage::Deliver(publications)) => {
                publisher.whisper_through_homes(publications);
            }
            (_, message) => publisher.send_or_drop(publisher.route(message)),
        }
    }
}

impl Publisher {
    /// Puts the message into the inboxes, and waits where there is no room.
    async fn bring(&self, mut passage: Passage) {
        let mut waited = 0;
        while !passage.advance(&self.mesh, self.counters())
            && let Some((shard, message)) = passage.take_next()
        {
            waited += 1;
            self.mesh.mailbox(shard).send(message).await;
            passage.note_sent(shard, self.counters());
        }
        if waited > 0 {
            self.counters().inbox_waits_total.add(waited);
            self.counters().publications_waited_total.add(1);
        }
    }
}

/// With a broker.
impl Publisher {
    /// The home of a stream.
    pub fn home_of(&self, stream: &str) -> ShardId {
        let hash = self.interest.hasher().hash_one(stream);
        (hash % self.mesh.shards() as u64) as ShardId
    }

    /// Sends a message to a shard, which may be this one, behind everything that waits.
    pub fn tell(&self, shard: ShardId, message: ShardMessage) {
        self.send(Passage::to_shard(shard, self.mesh.shards(), message));
    }

    /// Sends a message to the home of a stream, behind what this shard has told it before.
    pub fn tell_home(&self, stream: &str, message: HomeMessage) {
        let home = self.home_of(stream);
        if let Some(message) = self.take_if_here(home, message) {
            self.tell(home, message);
        }
    }

    /// Waits until publications are in the inboxes of all shards that may have a listener, by way of their homes.
    async fn through_homes(&self, publications: Arc<[Publication]>) {
        let parts = self.by_home(publications);
        let (gather, mut replies) = Gather::new(parts.len());
        for (home, publications) in parts {
            let message = HomeMessage::Publish {
                publications,
                arrived: replies.pop(),
            };
            if let Some(message) = self.take_if_here(home, message) {
                let waited = self.mesh.mailbox(home).send(message).await;
                self.counters().inbox_waits_total.add(u64::from(waited));
            }
        }
        gather.all().await;
    }

    fn whisper_through_homes(&self, publications: Arc<[Publication]>) {
        for (home, publications) in self.by_home(publications) {
            let message = HomeMessage::Publish {
                publications,
                arrived: None,
            };
            if let Some(message) = self.take_if_here(home, message) {
                self.send_or_drop(Passage::to_shard(home, self.mesh.shards(), message));
            }
        }
    }

    /// Does at once what is for this shard. Returns what is for another one, as the message for its inbox.
    fn take_if_here(&self, home: ShardId, message: HomeMessage) -> Option<ShardMessage> {
        if home == self.shard {
            self.take_home(message);
            return None;
        }
        Some(ShardMessage::Home(Box::new(message)))
    }

    /// The publications by the homes of their streams, each in their order.
    fn by_home(&self, publications: Arc<[Publication]>) -> Vec<(ShardId, Arc<[Publication]>)> {
        let mut homes = publications.iter().map(|it| self.home_of(&it.stream));
        let Some(first) = homes.next() else {
            return Vec::new();
        };
        if homes.all(|home| home == first) {
            return vec![(first, publications)];
        }
        let mut parts: Vec<(ShardId, Vec<Publication>)> = Vec::new();
        for publication in publications.iter() {
            let home = self.home_of(&publication.stream);
            match parts.iter_mut().find(|(other, _)| *other == home) {
                Some((_, part)) => part.push(publication.clone()),
                None => parts.push((home, vec![publication.clone()])),
            }
        }
        let parts = parts.into_iter();
        parts.map(|(home, part)| (home, part.into())).collect()
    }

    /// Does what another shard, or this one, wants of streams that are at home here.
    pub fn take_home(&self, message: HomeMessage) {
        let Broker::Memory(home) = &self.broker else {
            return;
        };
        match message {
            HomeMessage::Publish {
                publications,
                arrived,
            } => {
                let count = publications.len();
                let publications = home.borrow_mut().sequence(publications);
                let repeated = count - publications.len();
                self.counters()
                    .publications_repeated_total
                    .add(repeated as u64);
                let may_be_lost = arrived.is_none();
                let mut passage = self.route(PublishMessage::Deliver(publications));
                passage.report_to(arrived);
                match may_be_lost {
                    true => self.send_or_drop(passage),
                    false => self.send(passage),
                }
            }
            HomeMessage::Ask {
                session,
                stream,
                question,
            } => {
                let mut events = Vec::new();
                let answer = home.borrow_mut().answer(&stream, question, &mut events);
                self.publish_events(events);
                let answer = ShardMessage::Answer(Box::new((session, answer)));
                self.tell(session.shard, answer);
            }
            HomeMessage::Ended { sid } => home.borrow_mut().ended(&sid),
            HomeMessage::Members { stream, reply } => {
                reply.send(home.borrow().members(&stream, true));
            }
        }
    }

    fn publish_events(&self, events: Vec<Publication>) {
        for event in events {
            let message = PublishMessage::Deliver(Arc::new([event]));
            self.send(self.route(message));
        }
    }

    /// Who is present in a stream; `None` without a broker.
    pub async fn members(&self, stream: &str) -> Option<Result<Bytes, LongAnswer>> {
        let Broker::Memory(_) = &self.broker else {
            return None;
        };
        let (gather, mut replies) = Gather::new(1);
        let message = HomeMessage::Members {
            stream: stream.into(),
            reply: replies.pop()?,
        };
        self.tell_home(stream, message);
        gather.all().await;
        gather.take(1).0.pop()
    }

    /// What this shard keeps; `None` without a broker.
    pub fn home(&self) -> Option<Ref<'_, Home>> {
        match &self.broker {
            Broker::None => None,
            Broker::Memory(home) => Some(home.borrow()),
        }
    }

    /// Removes what the broker has kept long enough. True: there is more to do at once.
    pub fn sweep(&self, now: Instant) -> bool {
        let Broker::Memory(home) = &self.broker else {
            return false;
        };
        let mut events = Vec::new();
        let more = home.borrow_mut().sweep(now, &mut events);
        self.publish_events(events);
        home.borrow().report(self.counters());
        more
    }
}

#[cfg(test)]
mod tests;
