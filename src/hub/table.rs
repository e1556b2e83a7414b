//! The table itself: sessions' edges on one side, streams' groups of members on the other, both kept in step.

use std::collections::HashSet;

use ahash::RandomState;
use hashbrown::HashTable;
use slab::Slab;

use super::intern::{Interner, TextId};

/// "No group": the edge of a subscription without a stream, and the end of a list of groups.
const NONE: u32 = u32::MAX;

/// Bytes that one (subscription, stream) pair takes in its session's row.
pub const EDGE_BYTES: usize = 12;

/// One subscription of a session on one stream. A subscription without streams has one edge with no group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Edge {
    identifier: TextId,
    group: u32,
    /// Where the session stands in the group's members.
    index: u32,
}

const _: () = assert!(size_of::<Edge>() == EDGE_BYTES);

/// The members of one stream under one identifier.
struct Group {
    stream: TextId,
    identifier: TextId,
    /// Neighbours among the groups of the same stream.
    previous: u32,
    next: u32,
    members: Members,
}

/// Slots of sessions. Most streams of a chat have one listener: that one needs no allocation.
enum Members {
    One(u32),
    Many(Vec<u32>),
}

impl Members {
    fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(slot) => std::slice::from_ref(slot),
            Self::Many(slots) => slots,
        }
    }

    /// Adds a slot and returns its index.
    fn push(&mut self, slot: u32) -> u32 {
        match self {
            Self::One(first) => *self = Self::Many(vec![*first, slot]),
            Self::Many(slots) => slots.push(slot),
        }
        self.as_slice().len() as u32 - 1
    }

    /// Takes the slot at `index` away; the last one moves into its place. Call only when more than one is there.
    fn swap_remove(&mut self, index: u32) {
        let Self::Many(slots) = self else {
            unreachable!("the group of a last member is removed whole")
        };
        slots.swap_remove(index as usize);
        match slots.len() {
            1 => *self = Self::One(slots[0]),
            len if slots.capacity() > 64 && slots.capacity() > 4 * len => slots.shrink_to(2 * len),
            _ => {}
        }
    }
}

/// Subscriptions of one shard. Sessions are named by their slot in the shard's table.
#[derive(Default)]
pub struct Hub {
    identifiers: Interner,
    streams: Interner,
    /// First group of each stream, by the stream's index.
    first_groups: Vec<u32>,
    groups: Slab<Group>,
    /// Groups by (stream, identifier): a stream may have as many groups as clients when each sends an identifier of its
    /// own, so they are not searched one by one.
    group_index: HashTable<u32>,
    hasher: RandomState,
    /// Each session's edges, by slot.
    rows: Vec<Box<[Edge]>>,
}

impl Hub {
    /// Streams with at least one subscriber here.
    pub fn streams_len(&self) -> usize {
        self.streams.len()
    }

    /// The names of the streams with a subscriber here.
    pub fn streams(&self) -> impl Iterator<Item = &str> {
        self.streams.texts()
    }

    /// True when `slot` has subscribed to `identifier`.
    pub fn is_subscribed(&self, slot: u32, identifier: &str) -> bool {
        self.identifiers
            .find(identifier)
            .is_some_and(|id| self.row(slot).iter().any(|edge| edge.identifier == id))
    }

    /// Records a subscription that has no stream yet. A second call changes nothing.
    pub fn subscribe(&mut self, slot: u32, identifier: &str) {
        if self.is_subscribed(slot, identifier) {
            return;
        }
        let (identifier, _) = self.identifiers.acquire(identifier);
        self.push_edge(
            slot,
            Edge {
                identifier,
                group: NONE,
                index: 0,
            },
        );
    }

    /// Lets a subscription listen to `stream`. A stream that it listens to already is not added twice.
    ///
    /// # Panics
    /// When `slot` has not subscribed to `identifier`: the caller subscribes first.
    pub fn attach(&mut self, slot: u32, identifier: &str, stream: &str) {
        let identifier = self
            .identifiers
            .find(identifier)
            .expect("subscribed before attach");
        let position = self
            .position(slot, identifier)
            .expect("subscribed before attach");
        if let Some(stream) = self.streams.find(stream) {
            let attached = self
                .row(slot)
                .iter()
                .any(|edge| edge.identifier == identifier && self.stream_of(edge) == Some(stream));
            if attached {
                return;
            }
        }
        let (group, index) = self.join(slot, identifier, stream);
        let row = &mut self.rows[slot as usize];
        if row[position].group == NONE {
            row[position] = Edge {
                identifier,
                group,
                index,
            };
            return;
        }
        self.identifiers.acquire_again(identifier);
        self.push_edge(
            slot,
            Edge {
                identifier,
                group,
                index,
            },
        );
    }

    /// Stops listening to one stream; the subscription stays.
    pub fn detach(&mut self, slot: u32, identifier: &str, stream: &str) {
        let (Some(identifier), Some(stream)) =
            (self.identifiers.find(identifier), self.streams.find(stream))
        else {
            return;
        };
        let position = self
            .row(slot)
            .iter()
            .position(|edge| edge.identifier == identifier && self.stream_of(edge) == Some(stream));
        if let Some(position) = position {
            self.detach_at(slot, position);
        }
    }

    /// Stops listening to every stream of a subscription; the subscription stays.
    pub fn detach_all(&mut self, slot: u32, identifier: &str) {
        let Some(identifier) = self.identifiers.find(identifier) else {
            return;
        };
        while let Some(position) = self
            .row(slot)
            .iter()
            .position(|edge| edge.identifier == identifier && edge.group != NONE)
        {
            self.detach_at(slot, position);
        }
    }

    /// Removes a subscription with all its streams.
    pub fn unsubscribe(&mut self, slot: u32, identifier: &str) {
        self.detach_all(slot, identifier);
        let Some(id) = self.identifiers.find(identifier) else {
            return;
        };
        if let Some(position) = self.position(slot, id) {
            self.remove_edge(slot, position);
            self.identifiers.release(id);
        }
    }

    /// Removes everything of a session.
    pub fn remove_session(&mut self, slot: u32) {
        let Some(row) = self.rows.get_mut(slot as usize) else {
            return;
        };
        for edge in std::mem::take(row) {
            self.leave(edge);
            self.identifiers.release(edge.identifier);
        }
        self.streams.shrink();
        self.identifiers.shrink();
    }

    /// The identifiers of a session's subscriptions, each once, in the order of subscribing.
    pub fn identifiers(&self, slot: u32) -> Vec<&str> {
        let mut seen = HashSet::with_hasher(self.hasher.clone());
        self.row(slot)
            .iter()
            .filter(|edge| seen.insert(edge.identifier))
            .map(|edge| self.identifiers.text(edge.identifier))
            .collect()
    }

    /// Subscriptions of a session, each counted once for every stream it listens to.
    pub fn edges_len(&self, slot: u32) -> usize {
        self.row(slot).len()
    }

    /// The streams of one subscription.
    pub fn streams_of(&self, slot: u32, identifier: &str) -> Vec<&str> {
        let Some(id) = self.identifiers.find(identifier) else {
            return Vec::new();
        };
        self.row(slot)
            .iter()
            .filter(|edge| edge.identifier == id)
            .filter_map(|edge| self.stream_of(edge))
            .map(|stream| self.streams.text(stream))
            .collect()
    }

    /// Who listens to `stream`: for each identifier its text and the slots of its sessions.
    pub fn receivers(&self, stream: &str) -> impl Iterator<Item = (&str, &[u32])> {
        let mut next = self
            .streams
            .find(stream)
            .map_or(NONE, |id| self.first_groups[id as usize]);
        std::iter::from_fn(move || {
            let group = self.groups.get(next as usize)?;
            next = group.next;
            Some((
                self.identifiers.text(group.identifier),
                group.members.as_slice(),
            ))
        })
    }

    fn row(&self, slot: u32) -> &[Edge] {
        self.rows.get(slot as usize).map_or(&[], |row| row)
    }

    fn position(&self, slot: u32, identifier: TextId) -> Option<usize> {
        self.row(slot)
            .iter()
            .position(|edge| edge.identifier == identifier)
    }

    fn stream_of(&self, edge: &Edge) -> Option<TextId> {
        self.groups
            .get(edge.group as usize)
            .map(|group| group.stream)
    }

    /// Rows are rebuilt at their exact size: they change rarely and rest for hours.
    fn push_edge(&mut self, slot: u32, edge: Edge) {
        let slot = slot as usize;
        if self.rows.len() <= slot {
            self.rows.resize_with(slot + 1, Box::default);
        }
        let mut row = Vec::with_capacity(self.rows[slot].len() + 1);
        row.extend_from_slice(&self.rows[slot]);
        row.push(edge);
        self.rows[slot] = row.into_boxed_slice();
    }

    fn remove_edge(&mut self, slot: u32, position: usize) {
        let mut row = std::mem::take(&mut self.rows[slot as usize]).into_vec();
        row.remove(position);
        self.rows[slot as usize] = row.into_boxed_slice();
    }

    /// Takes one edge out of its group. The last edge of a subscription stays, without a group.
    fn detach_at(&mut self, slot: u32, position: usize) {
        let edge = self.rows[slot as usize][position];
        self.leave(edge);
        let edges = self
            .row(slot)
            .iter()
            .filter(|other| other.identifier == edge.identifier)
            .count();
        if edges > 1 {
            self.remove_edge(slot, position);
            self.identifiers.release(edge.identifier);
        } else {
            self.rows[slot as usize][position].group = NONE;
        }
    }

    /// Enters the group of (stream, identifier), making both when they are new. Returns the group and the place in it.
    fn join(&mut self, slot: u32, identifier: TextId, stream: &str) -> (u32, u32) {
        let (stream, new) = self.streams.acquire(stream);
        if new {
            if self.first_groups.len() <= stream as usize {
                self.first_groups.resize(stream as usize + 1, NONE);
            }
            self.first_groups[stream as usize] = NONE;
        }
        let hash = self.hasher.hash_one((stream, identifier));
        let is_wanted = |&id: &u32| {
            let group = &self.groups[id as usize];
            (group.stream, group.identifier) == (stream, identifier)
        };
        if let Some(&id) = self.group_index.find(hash, is_wanted) {
            return (id, self.groups[id as usize].members.push(slot));
        }
        self.identifiers.acquire_again(identifier);
        let next = self.first_groups[stream as usize];
        let group = self.groups.insert(Group {
            stream,
            identifier,
            previous: NONE,
            next,
            members: Members::One(slot),
        }) as u32;
        if let Some(next) = self.groups.get_mut(next as usize) {
            next.previous = group;
        }
        let (groups, hasher) = (&self.groups, &self.hasher);
        self.group_index
            .insert_unique(hash, group, |&id| hash_of(hasher, &groups[id as usize]));
        self.first_groups[stream as usize] = group;
        (group, 0)
    }

    /// Takes an edge's session out of its group; the session that moves into its place learns its new index.
    fn leave(&mut self, edge: Edge) {
        let Some(group) = self.groups.get_mut(edge.group as usize) else {
            return;
        };
        let stream = group.stream;
        if group.members.as_slice().len() == 1 {
            self.remove_group(edge.group);
        } else {
            group.members.swap_remove(edge.index);
            if let Some(&moved) = group.members.as_slice().get(edge.index as usize) {
                let row = &mut self.rows[moved as usize];
                let moved_edge = row.iter_mut().find(|other| other.group == edge.group);
                moved_edge.expect("a member has an edge to its group").index = edge.index;
            }
        }
        self.streams.release(stream);
    }

    fn remove_group(&mut self, id: u32) {
        let hash = hash_of(&self.hasher, &self.groups[id as usize]);
        if let Ok(entry) = self.group_index.find_entry(hash, |&other| other == id) {
            entry.remove();
        }
        let group = self.groups.remove(id as usize);
        match self.groups.get_mut(group.previous as usize) {
            Some(previous) => previous.next = group.next,
            None => self.first_groups[group.stream as usize] = group.next,
        }
        if let Some(next) = self.groups.get_mut(group.next as usize) {
            next.previous = group.previous;
        }
        self.identifiers.release(group.identifier);
    }
}

fn hash_of(hasher: &RandomState, group: &Group) -> u64 {
    hasher.hash_one((group.stream, group.identifier))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn receivers(hub: &Hub, stream: &str) -> Vec<(String, Vec<u32>)> {
        let mut found: Vec<_> = hub
            .receivers(stream)
            .map(|(identifier, slots)| {
                let mut slots = slots.to_vec();
                slots.sort_unstable();
                (identifier.to_string(), slots)
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn two_identifiers_on_one_stream_are_two_groups() {
        let mut hub = Hub::default();
        for (slot, identifier) in [(1, "A"), (1, "B"), (2, "A")] {
            hub.subscribe(slot, identifier);
            hub.attach(slot, identifier, "x");
        }
        assert_eq!(
            receivers(&hub, "x"),
            [("A".into(), vec![1, 2]), ("B".into(), vec![1])]
        );
        assert_eq!(receivers(&hub, "y"), []);
    }

    #[test]
    fn a_stream_attached_twice_to_one_subscription_delivers_once() {
        let mut hub = Hub::default();
        hub.subscribe(1, "A");
        hub.attach(1, "A", "x");
        hub.attach(1, "A", "x");
        assert_eq!(receivers(&hub, "x"), [("A".into(), vec![1])]);
    }

    #[test]
    fn a_subscription_outlives_its_streams() {
        let mut hub = Hub::default();
        hub.subscribe(3, "A");
        hub.attach(3, "A", "x");
        hub.attach(3, "A", "y");
        hub.detach_all(3, "A");
        assert!(hub.is_subscribed(3, "A"));
        assert_eq!((hub.streams_len(), hub.streams_of(3, "A").len()), (0, 0));
        hub.attach(3, "A", "z");
        assert_eq!(hub.streams_of(3, "A"), ["z"]);
        hub.unsubscribe(3, "A");
        assert!(!hub.is_subscribed(3, "A"));
        assert_eq!(receivers(&hub, "z"), []);
    }

    #[test]
    fn identifiers_are_listed_once_and_in_order() {
        let mut hub = Hub::default();
        hub.subscribe(1, "A");
        hub.subscribe(1, "B");
        hub.attach(1, "A", "x");
        hub.attach(1, "A", "y");
        assert_eq!(hub.identifiers(1), ["A", "B"]);
        assert_eq!(hub.identifiers(99), Vec::<&str>::new());
    }

    #[derive(Debug, Clone)]
    enum Act {
        Subscribe(u32, usize),
        Attach(u32, usize, usize),
        Detach(u32, usize, usize),
        DetachAll(u32, usize),
        Unsubscribe(u32, usize),
        Remove(u32),
    }

    fn act() -> impl Strategy<Value = Act> {
        let (slot, identifier, stream) = (0u32..6, 0usize..4, 0usize..4);
        prop_oneof![
            (slot.clone(), identifier.clone()).prop_map(|(s, i)| Act::Subscribe(s, i)),
            (slot.clone(), identifier.clone(), stream.clone())
                .prop_map(|(s, i, t)| Act::Attach(s, i, t)),
            (slot.clone(), identifier.clone(), stream.clone())
                .prop_map(|(s, i, t)| Act::Detach(s, i, t)),
            (slot.clone(), identifier.clone()).prop_map(|(s, i)| Act::DetachAll(s, i)),
            (slot.clone(), identifier.clone()).prop_map(|(s, i)| Act::Unsubscribe(s, i)),
            slot.prop_map(Act::Remove),
        ]
    }

    /// The obvious model: subscription → set of streams.
    type Model = BTreeMap<(u32, usize), BTreeSet<usize>>;

    const NAMES: [&str; 4] = ["a", "b", "c", "d"];

    fn apply(hub: &mut Hub, model: &mut Model, act: Act) {
        match act {
            Act::Subscribe(slot, id) => {
                hub.subscribe(slot, NAMES[id]);
                model.entry((slot, id)).or_default();
            }
            Act::Attach(slot, id, stream) => {
                if let Some(streams) = model.get_mut(&(slot, id)) {
                    streams.insert(stream);
                    hub.attach(slot, NAMES[id], NAMES[stream]);
                }
            }
            Act::Detach(slot, id, stream) => {
                hub.detach(slot, NAMES[id], NAMES[stream]);
                model
                    .get_mut(&(slot, id))
                    .map(|streams| streams.remove(&stream));
            }
            Act::DetachAll(slot, id) => {
                hub.detach_all(slot, NAMES[id]);
                model.entry((slot, id)).and_modify(BTreeSet::clear);
            }
            Act::Unsubscribe(slot, id) => {
                hub.unsubscribe(slot, NAMES[id]);
                model.remove(&(slot, id));
            }
            Act::Remove(slot) => {
                hub.remove_session(slot);
                model.retain(|&(owner, _), _| owner != slot);
            }
        }
    }

    fn compare(hub: &Hub, model: &Model) {
        for (stream, name) in NAMES.iter().enumerate() {
            let mut expected: BTreeMap<String, Vec<u32>> = BTreeMap::new();
            for (&(slot, id), streams) in model {
                if streams.contains(&stream) {
                    expected.entry(NAMES[id].into()).or_default().push(slot);
                }
            }
            assert_eq!(
                receivers(hub, name),
                expected.into_iter().collect::<Vec<_>>()
            );
        }
        for slot in 0..6 {
            for (id, name) in NAMES.iter().enumerate() {
                assert_eq!(
                    hub.is_subscribed(slot, name),
                    model.contains_key(&(slot, id))
                );
            }
        }
        let streams: BTreeSet<_> = model.values().flatten().collect();
        assert_eq!(hub.streams_len(), streams.len());
        if model.is_empty() {
            assert_eq!((hub.identifiers.len(), hub.groups.len()), (0, 0));
        }
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_simple_model(acts in prop::collection::vec(act(), 1..120)) {
            let (mut hub, mut model) = (Hub::default(), Model::default());
            for act in acts {
                apply(&mut hub, &mut model, act);
                compare(&hub, &model);
            }
            for slot in 0..6 {
                apply(&mut hub, &mut model, Act::Remove(slot));
            }
            compare(&hub, &model);
        }
    }
}
