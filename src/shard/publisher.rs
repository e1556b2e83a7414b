//! The one path of everything that is published, into the inbox of every shard: publications and remote commands of the app,
//! test messages of the console, whispers of clients.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::mesh::ShardId;
use crate::metrics::{Metrics, ShardMetrics};
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
    /// The first shard whose inbox does not have it yet.
    next: ShardId,
}

impl Publisher {
    pub fn new(shard: ShardId, mesh: ShardMesh, metrics: Arc<Metrics>) -> Self {
        Self {
            shard,
            mesh,
            metrics,
            broker: Broker::None,
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
            passage: self.route(message),
        }
    }

    /// Chooses the way of a publication: to the broker, then to the engine, then into the inboxes of this process.
    fn route(&self, message: PublishMessage) -> Passage {
        match (self.broker, self.engine) {
            (Broker::None, Engine::None) => Passage { message, next: 0 },
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
                    first.next += 1;
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
        Some((first.next, first.message.clone()))
    }

    /// Puts the message into one inbox after the other. Returns false when the next one is full.
    fn advance(&self, passage: &mut Passage) -> bool {
        while passage.next < self.mesh.shards() {
            let message = passage.message.clone().into();
            if self.mesh.mailbox(passage.next).try_send(message).is_err() {
                return false;
            }
            self.counters().publications_handed_total.add(1);
            passage.next += 1;
        }
        true
    }

    fn counters(&self) -> &ShardMetrics {
        &self.metrics.shards[self.shard]
    }
}

impl Published<'_> {
    /// For what must not be lost: waits while an inbox is full. When this returns, every shard has it in its inbox.
    pub async fn into_every_inbox(self) {
        let Self {
            publisher,
            mut passage,
        } = self;
        let mut waited = 0;
        while !publisher.advance(&mut passage) {
            waited += 1;
            let message = passage.message.clone();
            let mailbox = publisher.mesh.mailbox(passage.next);
            mailbox.send(message.into()).await;
            publisher.counters().publications_handed_total.add(1);
            passage.next += 1;
        }
        if waited > 0 {
            let counters = publisher.counters();
            counters.inbox_waits_total.add(waited);
            counters.publications_waited_total.add(1);
        }
    }

    /// For a whisper: its client must not wait. The whisper goes into every inbox at once if all have room and no other
    /// whisper waits. Otherwise it is queued, or dropped at [`WHISPERS_WAITING_MAX`].
    pub fn or_queued(self) {
        let Self {
            publisher,
            mut passage,
        } = self;
        let mut waiting = publisher.waiting.borrow_mut();
        if waiting.is_empty() && publisher.advance(&mut passage) {
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
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;

    use super::*;
    use crate::protocol::publication::{Publication, RemoteDisconnect};
    use crate::shard::message::{ControlMessage, ShardInbox, ShardMessage};

    fn publisher() -> (Publisher, Vec<ShardInbox>) {
        let (mesh, inboxes) = ShardMesh::new(2);
        let metrics = Arc::new(Metrics::new(2));
        (Publisher::new(0, mesh, metrics), inboxes)
    }

    /// One publication for each of these streams.
    fn publications(streams: &[&str]) -> PublishMessage {
        let publication = |stream: &&str| Publication {
            stream: (*stream).into(),
            message: Bytes::from_static(b"1"),
            ..Publication::default()
        };
        PublishMessage::Deliver(streams.iter().map(publication).collect())
    }

    fn whisper(publisher: &Publisher, stream: &str) {
        publisher.publish(publications(&[stream])).or_queued();
    }

    fn fill(publisher: &Publisher, shard: ShardId) {
        let mailbox = publisher.mesh.mailbox(shard);
        while mailbox.try_send(ControlMessage::CheckRpc.into()).is_ok() {}
    }

    /// The streams of the messages in an inbox.
    fn streams(inbox: &ShardInbox) -> Vec<String> {
        let mut streams = Vec::new();
        while let Some((_, message)) = inbox.pop() {
            match message {
                ShardMessage::Publish(PublishMessage::Deliver(publications)) => {
                    streams.extend(publications.iter().map(|it| it.stream.to_string()));
                }
                ShardMessage::Control(ControlMessage::CheckRpc) => {}
                other => panic!("nobody has sent {other:?}"),
            }
        }
        streams
    }

    fn poll(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> Poll<()> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn everything_is_counted_once_and_arrives_in_every_inbox() {
        let (publisher, inboxes) = publisher();
        whisper(&publisher, "a");
        let batch = publisher.publish(publications(&["b", "c"]));
        assert!(poll(pin!(batch.into_every_inbox())).is_ready());
        assert_eq!(publisher.counters().broadcast_msg_total.value(), 3);
        for inbox in &inboxes {
            assert_eq!(streams(inbox), ["a", "b", "c"]);
        }
        let command = RemoteDisconnect {
            identifiers: "{}".into(),
            reconnect: false,
        };
        let command = publisher.publish(PublishMessage::RemoteDisconnect(Arc::new(command)));
        assert!(poll(pin!(command.into_every_inbox())).is_ready());
        assert_eq!(publisher.counters().broadcast_msg_total.value(), 4);
        assert_eq!(publisher.counters().publications_handed_total.value(), 6);
        assert!(inboxes.iter().all(|inbox| inbox.depth() == 1));
        assert_eq!(publisher.counters().inbox_waits_total.value(), 0);
    }

    #[test]
    fn what_must_not_be_lost_waits_until_the_last_inbox_has_room() {
        let (publisher, inboxes) = publisher();
        fill(&publisher, 1);
        let mut publishing = pin!(publisher.publish(publications(&["a"])).into_every_inbox());
        assert!(poll(publishing.as_mut()).is_pending());
        assert_eq!(streams(&inboxes[0]), ["a"], "there was room");
        inboxes[1].pop().expect("it is full");
        assert!(poll(publishing.as_mut()).is_ready());
        assert_eq!(streams(&inboxes[1]), ["a"]);
        let counters = publisher.counters();
        assert_eq!(counters.inbox_waits_total.value(), 1);
        assert_eq!(counters.publications_waited_total.value(), 1);
        assert_eq!(counters.publications_handed_total.value(), 2);
    }

    #[test]
    fn whispers_that_find_no_room_keep_their_order_and_are_bounded() {
        let (publisher, inboxes) = publisher();
        fill(&publisher, 1);
        let full = inboxes[1].depth();
        let names: Vec<String> = (0..=WHISPERS_WAITING_MAX)
            .map(|it| it.to_string())
            .collect();
        for name in &names {
            whisper(&publisher, name);
        }
        let counters = publisher.counters();
        assert_eq!(counters.whispers_dropped_total.value(), 1);
        assert_eq!(counters.broadcast_msg_total.value(), names.len() as u64);
        assert_eq!(inboxes[0].depth(), 1, "the second waits behind the first");

        let mut sending = pin!(publisher.send_waiting());
        assert!(poll(sending.as_mut()).is_pending());
        assert_eq!(inboxes[1].depth(), full);
        assert!(streams(&inboxes[1]).is_empty(), "nothing has got in yet");
        assert!(poll(sending.as_mut()).is_pending());
        whisper(&publisher, "later");
        let mut expected = names[..WHISPERS_WAITING_MAX].to_vec();
        expected.push("later".to_owned());
        for inbox in &inboxes {
            assert!(streams(inbox) == expected, "each once, in order");
        }
        assert_eq!(counters.whispers_dropped_total.value(), 1);
        assert_eq!(counters.publications_waited_total.value(), 0);
    }
}
