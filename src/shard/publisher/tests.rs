mod homes;
mod many_shards;
mod passages;

use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ahash::RandomState;

use super::*;
use crate::broker::history::Epochs;
use crate::config::{BrokerAdapter, BrokerConfig, HistoryLimits, MemoryBound};
use crate::hub::LocalInterest;
use crate::mesh::{Lease, ProcessBudget};
use crate::protocol::publication::{Publication, RemoteDisconnect};
use crate::shard::message::{ControlMessage, ShardInbox, ShardMessage};

fn publisher() -> (Publisher, Vec<ShardInbox>) {
    publisher_with(|_| Broker::None)
}

fn publisher_with(broker: impl FnOnce(&Arc<Interest>) -> Broker) -> (Publisher, Vec<ShardInbox>) {
    let (mesh, inboxes) = ShardMesh::new(2);
    let interest = Arc::new(Interest::new(2, RandomState::new()));
    let metrics = Arc::new(Metrics::new(2));
    let broker = broker(&interest);
    (Publisher::new(0, mesh, interest, metrics, broker), inboxes)
}

/// What shard 0 keeps.
fn memory(interest: &Arc<Interest>) -> Broker {
    let config = BrokerConfig {
        adapter: BrokerAdapter::Memory,
        history: HistoryLimits {
            messages: 10,
            ttl: Duration::from_secs(300),
        },
        history_by_prefix: Vec::new(),
        sessions_ttl: Duration::from_secs(300),
        presence_ttl: Duration::from_secs(15),
        memory: MemoryBound::Bytes(0),
    };
    let lease = || Rc::new(Lease::new(ProcessBudget::new(None, 2)));
    let leases = BrokerLeases {
        history: lease(),
        others: lease(),
    };
    let home = Home::new(&config, Arc::clone(interest), leases, Epochs::new(7, 0, 2));
    Broker::Memory(Box::new(RefCell::new(home)))
}

/// Both shards have listeners of these streams.
fn listen<'a>(publisher: &Publisher, streams: impl IntoIterator<Item = &'a str> + Clone) {
    (0..2).for_each(|shard| listen_on(publisher, shard, streams.clone()));
}

fn listen_on<'a>(
    publisher: &Publisher,
    shard: ShardId,
    streams: impl IntoIterator<Item = &'a str>,
) {
    let mut local = LocalInterest::new(Arc::clone(&publisher.interest), shard);
    for (number, stream) in (0..).zip(streams) {
        local.add(number, local.hasher().hash_one(stream));
    }
}

/// One publication for each of these streams.
fn publications(streams: &[&str]) -> PublishMessage {
    let publication = |stream: &&str| Publication {
        stream: (*stream).into(),
        message: (*b"1").into(),
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
fn everything_is_counted_once_and_arrives_in_the_inboxes_of_its_listeners() {
    let (publisher, inboxes) = publisher();
    listen(&publisher, ["a", "b"]);
    whisper(&publisher, "a");
    let batch = publisher.publish(publications(&["b", "c"]));
    assert!(poll(pin!(batch.into_inboxes())).is_ready());
    assert_eq!(publisher.counters().broadcast_msg_total.value(), 3);
    for inbox in &inboxes {
        assert_eq!(streams(inbox), ["a", "b", "c"]);
    }
    let command = RemoteDisconnect {
        identifiers: "{}".into(),
        reconnect: false,
    };
    let command = publisher.publish(PublishMessage::RemoteDisconnect(Arc::new(command)));
    assert!(poll(pin!(command.into_inboxes())).is_ready());
    assert_eq!(publisher.counters().broadcast_msg_total.value(), 4);
    assert_eq!(publisher.counters().publications_handed_total.value(), 6);
    assert!(inboxes.iter().all(|inbox| inbox.depth() == 1));
    assert_eq!(publisher.counters().inbox_waits_total.value(), 0);
}

#[test]
fn what_must_not_be_lost_waits_until_the_last_inbox_has_room() {
    let (publisher, inboxes) = publisher();
    listen(&publisher, ["a"]);
    fill(&publisher, 1);
    let mut publishing = pin!(publisher.publish(publications(&["a"])).into_inboxes());
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
    listen(
        &publisher,
        names.iter().map(String::as_str).chain(["later"]),
    );
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

#[test]
fn a_repetition_is_answered_when_the_first_one_has_arrived() {
    let (publisher, inboxes) = publisher_with(memory);
    let mut names = (0..).map(|it: u32| it.to_string());
    let at_home = names.find(|name| publisher.home_of(name) == 0);
    let stream = at_home.expect("some name");
    listen_on(&publisher, 1, [stream.as_str()]);
    fill(&publisher, 1);
    let keyed = || {
        let publication = Publication {
            stream: stream.as_str().into(),
            message: (*b"1").into(),
            idempotency_key: Some("key".into()),
            ..Publication::default()
        };
        let message = PublishMessage::Deliver([publication].into());
        publisher.publish(message).into_inboxes()
    };
    let (mut first, mut second) = (pin!(keyed()), pin!(keyed()));
    let mut sending = pin!(publisher.send_waiting());
    for _ in 0..2 {
        assert!(poll(first.as_mut()).is_pending());
        assert!(poll(second.as_mut()).is_pending());
        assert!(poll(sending.as_mut()).is_pending());
    }
    let counters = publisher.counters();
    assert_eq!(counters.publications_repeated_total.value(), 1);
    inboxes[1].pop().expect("it is full");
    assert!(poll(sending.as_mut()).is_pending());
    assert!(poll(first.as_mut()).is_ready());
    assert!(poll(second.as_mut()).is_ready());
    assert_eq!(streams(&inboxes[1]), [stream.as_str()]);
    // Nothing waits any more.
    assert!(poll(pin!(keyed())).is_ready());
}
