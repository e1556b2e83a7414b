//! Many shards with their hubs, inboxes and publishers, and one table of interest that grows, against a simple model of who
//! must get what.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::hub::Hub;

const SHARDS: usize = 5;
const SLOTS: u32 = 3;
/// Streams and identifiers.
const NAMES: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];

#[derive(Debug, Clone)]
enum Act {
    Subscribe(Subscription),
    Detach(Subscription),
    Unsubscribe(Subscription),
    EndSession(ShardId, u32),
    /// The streams of a batch.
    Publish(ShardId, Vec<usize>),
    Whisper(ShardId, usize),
    /// Delivers to this many groups and takes part in the growth of the table.
    Turn(ShardId, usize),
}

/// A subscription on one stream. The names are indexes into [`NAMES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Subscription {
    shard: ShardId,
    slot: u32,
    identifier: usize,
    stream: usize,
}

fn subscription() -> impl Strategy<Value = Subscription> {
    (0..SHARDS, 0..SLOTS, 0..2usize, 0..NAMES.len()).prop_map(
        |(shard, slot, identifier, stream)| Subscription {
            shard,
            slot,
            identifier,
            stream,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    let stream = 0..NAMES.len();
    prop_oneof![
        4 => subscription().prop_map(Act::Subscribe),
        1 => subscription().prop_map(Act::Detach),
        1 => subscription().prop_map(Act::Unsubscribe),
        1 => (0..SHARDS, 0..SLOTS).prop_map(|(shard, slot)| Act::EndSession(shard, slot)),
        3 => (0..SHARDS, prop::collection::vec(stream.clone(), 1..4))
            .prop_map(|(shard, streams)| Act::Publish(shard, streams)),
        1 => (0..SHARDS, stream).prop_map(|(shard, stream)| Act::Whisper(shard, stream)),
        4 => (0..SHARDS, 0..5usize).prop_map(|(shard, groups)| Act::Turn(shard, groups)),
    ]
}

struct OneShard {
    hub: Hub,
    inbox: ShardInbox,
    publisher: Publisher,
    /// The message that is being delivered, its number, and the publication in it.
    under_way: Option<(Arc<[Publication]>, u64, usize)>,
}

struct Scene {
    interest: Arc<Interest>,
    shards: Vec<OneShard>,
    /// Publications so far; each has its number as its message, and the shard that published it.
    publishers: Vec<ShardId>,
    /// By subscription: the publications before it.
    since: BTreeMap<Subscription, usize>,
    /// By publication: the subscriptions that must get it, which are those that were there and have not left.
    owed: Vec<BTreeSet<Subscription>>,
    got: BTreeMap<Subscription, Vec<usize>>,
}

impl Scene {
    fn new() -> Self {
        let (mesh, inboxes) = ShardMesh::new(SHARDS);
        let interest = Arc::new(Interest::with_streams(SHARDS, RandomState::new(), 1));
        let metrics = Arc::new(Metrics::new(SHARDS));
        let shards = inboxes.into_iter().enumerate().map(|(shard, inbox)| {
            let (mesh, metrics) = (mesh.clone(), Arc::clone(&metrics));
            OneShard {
                hub: Hub::new(LocalInterest::new(Arc::clone(&interest), shard)),
                inbox,
                publisher: Publisher::new(
                    shard,
                    mesh,
                    Arc::clone(&interest),
                    metrics,
                    Broker::None,
                ),
                under_way: None,
            }
        });
        Self {
            shards: shards.collect(),
            interest,
            publishers: Vec::new(),
            since: BTreeMap::new(),
            owed: Vec::new(),
            got: BTreeMap::new(),
        }
    }

    fn happen(&mut self, act: Act) {
        match act {
            Act::Subscribe(it) => self.subscribe(it),
            Act::Detach(it) => {
                let (identifier, stream) = (NAMES[it.identifier], NAMES[it.stream]);
                self.shards[it.shard]
                    .hub
                    .detach(it.slot, identifier, stream);
                self.forget(|other| *other == it);
            }
            Act::Unsubscribe(it) => {
                let hub = &mut self.shards[it.shard].hub;
                hub.unsubscribe(it.slot, NAMES[it.identifier]);
                let of = |it: &Subscription| (it.shard, it.slot, it.identifier);
                self.forget(|other| of(other) == of(&it));
            }
            Act::EndSession(shard, slot) => {
                self.shards[shard].hub.remove_session(slot);
                self.forget(|other| (other.shard, other.slot) == (shard, slot));
            }
            Act::Publish(shard, streams) => {
                let message = self.message(shard, &streams);
                let published = self.shards[shard].publisher.publish(message);
                assert!(
                    poll(pin!(published.into_inboxes())).is_ready(),
                    "there is room"
                );
            }
            Act::Whisper(shard, stream) => {
                let message = self.message(shard, &[stream]);
                self.shards[shard].publisher.publish(message).or_queued();
            }
            Act::Turn(shard, groups) => {
                for _ in 0..groups {
                    self.deliver(shard);
                }
                self.shards[shard].hub.keep_up_interest();
            }
        }
    }

    fn subscribe(&mut self, it: Subscription) {
        let OneShard { hub, inbox, .. } = &mut self.shards[it.shard];
        hub.set_arrived(inbox.arrived());
        hub.subscribe(it.slot, NAMES[it.identifier]);
        hub.attach(it.slot, NAMES[it.identifier], NAMES[it.stream]);
        self.since.entry(it).or_insert(self.publishers.len());
    }

    fn forget(&mut self, has_left: impl Fn(&Subscription) -> bool) {
        self.since.retain(|it, _| !has_left(it));
        for owed in &mut self.owed {
            owed.retain(|it| !has_left(it));
        }
    }

    /// The next publications, for these streams, and who must get them.
    fn message(&mut self, shard: ShardId, streams: &[usize]) -> PublishMessage {
        let mut publications = Vec::new();
        for &stream in streams {
            publications.push(Publication {
                stream: NAMES[stream].into(),
                message: self.publishers.len().to_string().into_bytes().into(),
                ..Publication::default()
            });
            self.publishers.push(shard);
            let listening = self.since.keys().filter(|it| it.stream == stream);
            self.owed.push(listening.copied().collect());
        }
        PublishMessage::Deliver(publications.into())
    }

    /// Goes on with the delivery of a shard, by one group. Returns false when there is nothing to do.
    fn deliver(&mut self, shard: ShardId) -> bool {
        let at = &mut self.shards[shard];
        let Some((publications, number, next)) = at.under_way.take() else {
            let Some((number, message)) = at.inbox.pop() else {
                return false;
            };
            let ShardMessage::Publish(PublishMessage::Deliver(publications)) = message else {
                panic!("only publications are sent");
            };
            at.hub.walk(&publications[0].stream);
            at.under_way = Some((publications, number, 0));
            return true;
        };
        if let Some(group) = at.hub.next_group() {
            self.deliver_to(shard, group, &publications[next], number);
            self.shards[shard].under_way = Some((publications, number, next));
        } else if let Some(publication) = publications.get(next + 1) {
            at.hub.walk(&publication.stream);
            at.under_way = Some((publications, number, next + 1));
        } else {
            at.hub.set_handled(number);
        }
        true
    }

    fn deliver_to(&mut self, shard: ShardId, group: u32, publication: &Publication, number: u64) {
        let name = |wanted: &str| NAMES.iter().position(|name| *name == wanted);
        let hub = &self.shards[shard].hub;
        let (identifier, slots) = hub.group(group);
        for &slot in slots {
            if hub.is_late_for(group, slot, number) {
                continue;
            }
            let to = Subscription {
                shard,
                slot,
                identifier: name(identifier).expect("one of the names"),
                stream: name(&publication.stream).expect("one of the names"),
            };
            let text = std::str::from_utf8(&publication.message).expect("a number");
            let publication = text.parse().expect("a number");
            assert!(
                self.since[&to] <= publication,
                "older than the subscription"
            );
            self.owed[publication].remove(&to);
            self.got.entry(to).or_default().push(publication);
        }
    }

    /// Delivers everything and ends all sessions.
    fn finish(mut self) {
        for shard in 0..SHARDS {
            while self.deliver(shard) {}
        }
        assert!(self.owed.iter().all(BTreeSet::is_empty), "{:?}", self.owed);
        for got in self.got.values() {
            for publisher in 0..SHARDS {
                let own = got.iter().filter(|it| self.publishers[**it] == publisher);
                assert!(own.is_sorted_by(|one, next| one < next), "{got:?}");
            }
        }
        for shard in &mut self.shards {
            (0..SLOTS).for_each(|slot| shard.hub.remove_session(slot));
            assert_eq!(shard.hub.held_bytes(), 0);
        }
        assert_eq!(self.interest.bits_set(), 0);
        let nobody = Act::Publish(0, (0..NAMES.len()).collect());
        self.happen(nobody);
        assert!(self.shards.iter().all(|shard| shard.inbox.depth() == 0));
    }
}

proptest! {
    #[test]
    fn listeners_get_what_is_published_after_their_subscription_and_nothing_older(
        acts in prop::collection::vec(act(), 1..300),
    ) {
        let mut scene = Scene::new();
        acts.into_iter().for_each(|act| scene.happen(act));
        scene.finish();
    }
}
