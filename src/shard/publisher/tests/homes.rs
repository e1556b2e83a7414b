//! Publishers with a broker: by way of the homes, in one order.

use std::cell::RefCell;

use super::*;
use crate::mesh::SessionRef;
use crate::session::HistoryStart;
use crate::shard::message::{BrokerAnswer, HomeQuestion};
use crate::shard::publisher::home::tests::home_within;

/// The publishers of two shards, and their inboxes.
struct Homes {
    publishers: Vec<Publisher>,
    inboxes: Vec<ShardInbox>,
}

impl Homes {
    /// Both shards listen to these streams.
    fn new(streams: &[&str]) -> Self {
        let (mesh, inboxes) = ShardMesh::new(2);
        let interest = Arc::new(Interest::new(2, RandomState::with_seeds(1, 2, 3, 4)));
        let metrics = Arc::new(Metrics::new(2));
        let publisher = |shard| {
            let home = home_within(std::time::Duration::from_secs(300), [None; 2]);
            let broker = Broker::Memory(Box::new(RefCell::new(home)));
            Publisher::new(
                shard,
                mesh.clone(),
                Arc::clone(&interest),
                Arc::clone(&metrics),
                broker,
            )
        };
        let publishers: Vec<_> = (0..2).map(publisher).collect();
        listen(&publishers[0], streams.iter().copied());
        Self {
            publishers,
            inboxes,
        }
    }

    /// A stream that is at home on this shard.
    fn stream_of(&self, home: ShardId) -> &'static str {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let of_home = names
            .into_iter()
            .find(|it| self.publishers[0].home_of(it) == home);
        of_home.expect("one of eight names")
    }

    /// Lets a shard take what is in its inbox for its streams. Returns the rest, as streams and offsets.
    fn take(&self, shard: ShardId) -> Vec<(String, Option<u64>)> {
        let mut got = Vec::new();
        while let Some((_, message)) = self.inboxes[shard].pop() {
            match message {
                ShardMessage::Home(message) => self.publishers[shard].take_home(*message),
                ShardMessage::Publish(PublishMessage::Deliver(publications)) => {
                    let offset = |it: &Publication| it.position.map(|it| it.offset);
                    got.extend(
                        publications
                            .iter()
                            .map(|it| (it.stream.to_string(), offset(it))),
                    );
                }
                ShardMessage::Answer(answer) => match answer.1 {
                    BrokerAnswer::History { part, .. } => {
                        let last = part.and_then(|part| part.last()).map(|last| last.offset);
                        got.push(("answer".to_owned(), last));
                    }
                    other => panic!("{other:?}"),
                },
                ShardMessage::Control(ControlMessage::CheckRpc) => {}
                other => panic!("nobody has sent {other:?}"),
            }
        }
        got
    }

    fn ask(&self, shard: ShardId, stream: &str) {
        let message = HomeMessage::Ask {
            session: SessionRef {
                shard,
                slot: 0,
                generation: 1,
            },
            stream: stream.into(),
            question: HomeQuestion::History {
                place: 0,
                start: HistoryStart::Since(1),
            },
        };
        self.publishers[shard].tell_home(stream, message);
    }

    fn dropped(&self, shard: ShardId) -> u64 {
        self.publishers[shard]
            .counters()
            .whispers_dropped_total
            .value()
    }
}

#[test]
fn a_batch_is_published_when_all_homes_have_brought_it_to_all_listeners() {
    let homes = Homes::new(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    let (here, there) = (homes.stream_of(0), homes.stream_of(1));
    let batch = homes.publishers[0].publish(publications(&[here, there, here]));
    let mut publishing = pin!(batch.into_inboxes());
    assert!(
        poll(publishing.as_mut()).is_pending(),
        "the other home has not taken it"
    );
    let expected = [(here, 1), (here, 2), (there, 1)];
    let expected: Vec<_> = expected
        .map(|(it, offset)| (it.to_owned(), Some(offset)))
        .into();
    assert_eq!(homes.take(1), expected, "in the order of the batch");
    assert!(poll(publishing.as_mut()).is_ready());
    assert_eq!(homes.take(0), expected);
}

/// The replay of missed messages depends on it.
#[test]
fn what_a_home_sends_to_a_full_inbox_keeps_its_order_whatever_it_is() {
    let homes = Homes::new(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    let stream = homes.stream_of(0);
    let publisher = &homes.publishers[0];
    let publish = || publisher.publish(publications(&[stream])).into_inboxes();
    fill(publisher, 1);
    let (mut first, mut second) = (pin!(publish()), pin!(publish()));
    assert!(poll(first.as_mut()).is_pending());
    homes.ask(1, stream);
    assert!(poll(second.as_mut()).is_pending());
    // The home takes the question now. Its answer waits behind the second publication, and covers it.
    assert_eq!(homes.take(0), [(stream.to_owned(), Some(1))]);
    let mut sending = pin!(publisher.send_waiting());
    assert!(poll(sending.as_mut()).is_pending());
    assert!(homes.take(1).is_empty());
    assert!(poll(sending.as_mut()).is_pending());
    assert!(poll(first.as_mut()).is_ready() && poll(second.as_mut()).is_ready());
    let expected = [(stream, 1), (stream, 2), ("answer", 2)];
    let expected: Vec<_> = expected
        .map(|(it, offset)| (it.to_owned(), Some(offset)))
        .into();
    assert_eq!(homes.take(1), expected);
    assert_eq!(homes.take(0), [(stream.to_owned(), Some(2))]);
}

#[test]
fn whispers_under_way_to_a_home_or_from_it_are_bounded_and_publications_are_not_lost() {
    let homes = Homes::new(&["a", "b", "c", "d", "e", "f", "g", "h"]);
    let (here, there) = (homes.stream_of(0), homes.stream_of(1));
    fill(&homes.publishers[0], 1);
    for _ in 0..WHISPERS_WAITING_MAX + 10 {
        whisper(&homes.publishers[0], there);
    }
    assert_eq!(homes.dropped(0), 10, "on the way to their home");
    for _ in 0..5 {
        whisper(&homes.publishers[0], here);
    }
    assert_eq!(homes.dropped(0), 15, "on the way from their home");
    let mut published = pin!(
        homes.publishers[0]
            .publish(publications(&[here]))
            .into_inboxes()
    );
    assert!(
        poll(published.as_mut()).is_pending(),
        "it waits behind them"
    );
    let mut sending = pin!(homes.publishers[0].send_waiting());
    while poll(published.as_mut()).is_pending() {
        homes.take(1);
        assert!(poll(sending.as_mut()).is_pending());
    }
    homes.take(1);
    assert_eq!(homes.dropped(0), 15);
    assert!(homes.publishers[0].waiting.borrow().is_empty());
}

#[test]
fn without_a_broker_nobody_knows_who_is_present() {
    let (publisher, inboxes) = publisher();
    let mut asking = pin!(publisher.members("a"));
    let answer = asking
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(answer, Poll::Ready(None)));
    publisher.take_home(HomeMessage::Ended { sid: "s".into() });
    assert!(!publisher.sweep(std::time::Instant::now()));
    assert!(inboxes.iter().all(|inbox| inbox.depth() == 0));
}

#[test]
fn a_question_for_members_is_answered_by_the_home() {
    let homes = Homes::new(&[]);
    for home in 0..2 {
        let mut asking = pin!(homes.publishers[0].members(homes.stream_of(home)));
        let mut ask = || {
            asking
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
        };
        if home == 1 {
            assert!(ask().is_pending(), "the other shard has not answered");
            homes.take(1);
        }
        let Poll::Ready(Some(Ok(members))) = ask() else {
            panic!("no answer");
        };
        assert_eq!(members, r#"{"type":"info","total":0}"#);
    }
}
