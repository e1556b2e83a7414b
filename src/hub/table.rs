//! The table itself: the edges of sessions on one side, the groups of streams on the other. Every change updates both.

use std::collections::HashSet;

use ahash::RandomState;
use hashbrown::HashTable;
use slab::Slab;

use super::edge::{EDGE_BYTES, Edge, Marks, NONE};
use super::interest::LocalInterest;
use super::intern::{Interner, TextId};
use super::latecomers::Latecomers;
use crate::protocol::json;

/// Memory of one (subscription, stream) pair without the texts: an edge, a group with its index, a place among the members,
/// and the entries of two interned texts.
const SUBSCRIPTION_BYTES: usize = 160;

/// The bytes that an identifier counts in the budget of its session: its length in JSON, which is what the app and the
/// client get, and the tables' memory for it.
pub fn identifier_bytes(identifier: &str) -> usize {
    json::escaped_bytes(identifier) + SUBSCRIPTION_BYTES
}

/// The subscriptions to one stream under one identifier.
struct Group {
    stream: TextId,
    identifier: TextId,
    /// The previous and the next group of the same stream.
    previous: u32,
    next: u32,
    members: Members,
}

/// Bytes that a group takes in the table, without the vector of a crowd.
const GROUP_BYTES: usize = 24;
const _: () = assert!(size_of::<Group>() == GROUP_BYTES);

/// Further memory of a group: its place in the index and among the first groups, and its share of a crowd.
const GROUP_INDEX_BYTES: usize = 24;

/// Slots of sessions. Most streams of a chat have one listener, which needs no allocation.
#[derive(Clone, Copy)]
enum Members {
    One(u32),
    /// Index into [`Hub::crowds`].
    Many(u32),
}

/// A member that has moved to another index of its group.
struct Move {
    slot: u32,
    group: u32,
    index: u32,
}

/// A crowd's vector is shrunk when it is three quarters empty and larger than this.
const CROWD_SLOTS_KEPT: usize = 64;

/// Subscriptions of one shard. A session is identified by its slot in the shard's table.
pub struct Hub {
    identifiers: Interner,
    streams: Interner,
    /// First group of each stream, by the stream's index.
    first_groups: Vec<u32>,
    groups: Slab<Group>,
    /// The members of groups that have more than one.
    crowds: Slab<Vec<u32>>,
    /// Groups by (stream, identifier), except the first group of each stream. The index is needed because a stream has as
    /// many groups as clients when each client sends an identifier of its own. The first group is left out because most
    /// streams have only one.
    group_index: HashTable<u32>,
    hasher: RandomState,
    /// Each session's edges, by slot.
    rows: Vec<Box<[Edge]>>,
    /// Number of all edges.
    edges: usize,
    latecomers: Latecomers,
    /// The group that [`Self::next_group`] returns next.
    next_group: u32,
    /// Tells the publishers of all shards which streams have a listener here.
    interest: LocalInterest,
}

/// A hub without other shards.
impl Default for Hub {
    fn default() -> Self {
        Self::new(LocalInterest::default())
    }
}

impl Hub {
    pub fn new(interest: LocalInterest) -> Self {
        Self {
            identifiers: Interner::default(),
            streams: Interner::with_hasher(interest.hasher().clone()),
            first_groups: Vec::new(),
            groups: Slab::new(),
            crowds: Slab::new(),
            group_index: HashTable::new(),
            hasher: RandomState::default(),
            rows: Vec::new(),
            edges: 0,
            latecomers: Latecomers::default(),
            next_group: NONE,
            interest,
        }
    }

    /// Takes part in the growth of the table of interest. Call this in every turn.
    pub fn keep_up_interest(&mut self) {
        let streams = &self.streams;
        let end = self.first_groups.len() as u32;
        self.interest.keep_up(end, |id| streams.hash_of(id));
    }

    /// Streams with at least one subscriber here.
    #[cfg(test)]
    pub fn streams_len(&self) -> usize {
        self.streams.len()
    }

    /// The names of the streams with a subscriber here.
    pub fn streams(&self) -> impl Iterator<Item = &str> {
        self.streams.texts()
    }

    /// Places of streams with a subscriber here, from 0 on. Some are empty.
    pub fn stream_places(&self) -> usize {
        self.streams.places()
    }

    /// The stream at a place.
    pub fn stream_at(&self, place: usize) -> Option<&str> {
        self.streams.text_at(place)
    }

    /// True when `slot` has subscribed to `identifier`.
    pub fn is_subscribed(&self, slot: u32, identifier: &str) -> bool {
        self.identifiers
            .find(identifier)
            .is_some_and(|id| self.row(slot).iter().any(|edge| edge.identifier() == id))
    }

    /// Records a subscription that has no stream yet. A second call changes nothing.
    pub fn subscribe(&mut self, slot: u32, identifier: &str) {
        if self.is_subscribed(slot, identifier) {
            return;
        }
        let (identifier, _) = self.identifiers.acquire(identifier);
        self.push_edge(slot, Edge::new(identifier, NONE, 0));
    }

    /// Makes a subscription listen to `stream`. If it listens to that stream already, nothing changes.
    ///
    /// # Panics
    /// When `slot` has not subscribed to `identifier`: call [`Self::subscribe`] first.
    pub fn attach(&mut self, slot: u32, identifier: &str, stream: &str) {
        let identifier = self
            .identifiers
            .find(identifier)
            .expect("subscribed before attach");
        let position = self
            .position(slot, identifier)
            .expect("subscribed before attach");
        if let Some(stream) = self.streams.find(stream) {
            let attached = self.row(slot).iter().any(|edge| {
                edge.identifier() == identifier && self.stream_of(edge) == Some(stream)
            });
            if attached {
                return;
            }
        }
        let (group, index) = self.join(slot, identifier, stream);
        self.latecomers.joined(group, slot);
        let row = &mut self.rows[slot as usize];
        if row[position].group == NONE {
            row[position].group = group;
            row[position].index = index;
            return;
        }
        self.identifiers.acquire_again(identifier);
        self.push_edge(slot, Edge::new(identifier, group, index));
    }

    /// Stops listening to one stream. The subscription stays.
    pub fn detach(&mut self, slot: u32, identifier: &str, stream: &str) {
        let (Some(identifier), Some(stream)) =
            (self.identifiers.find(identifier), self.streams.find(stream))
        else {
            return;
        };
        let position = self.row(slot).iter().position(|edge| {
            edge.identifier() == identifier && self.stream_of(edge) == Some(stream)
        });
        if let Some(position) = position {
            self.detach_at(slot, position);
        }
    }

    /// Stops listening to every stream of a subscription. The subscription stays.
    pub fn detach_all(&mut self, slot: u32, identifier: &str) {
        let Some(identifier) = self.identifiers.find(identifier) else {
            return;
        };
        while let Some(position) = self
            .row(slot)
            .iter()
            .position(|edge| edge.identifier() == identifier && edge.group != NONE)
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

    /// Removes all subscriptions of a session.
    pub fn remove_session(&mut self, slot: u32) {
        let Some(row) = self.rows.get_mut(slot as usize) else {
            return;
        };
        let mut moves = Vec::new();
        for edge in std::mem::take(row) {
            self.edges -= 1;
            moves.extend(self.leave(slot, edge));
            self.identifiers.release(edge.identifier());
        }
        self.note_moves(&mut moves);
        self.shrink();
    }

    /// Frees memory after many subscriptions have been removed.
    fn shrink(&mut self) {
        self.streams.shrink();
        self.interest.shrink();
        self.identifiers.shrink();
        if self.group_index.capacity() > 4 * self.group_index.len().max(CROWD_SLOTS_KEPT) {
            let (groups, hasher) = (&self.groups, &self.hasher);
            self.group_index
                .shrink_to_fit(|&id| hash_of(hasher, &groups[id as usize]));
        }
        if self.groups.is_empty() {
            self.groups.shrink_to_fit();
            self.crowds.shrink_to_fit();
            self.first_groups = Vec::new();
        }
    }

    /// Frees the rows of the sessions. Call when no session is left.
    ///
    /// # Panics
    /// When a session still has a subscription.
    pub fn forget_slots(&mut self) {
        assert!(
            self.rows.iter().all(|row| row.is_empty()),
            "no session is left"
        );
        self.rows = Vec::new();
    }

    /// Allows a subscription to whisper on its stream or to be present in it.
    ///
    /// # Panics
    /// When `slot` has not subscribed to `identifier`: call [`Self::subscribe`] first.
    pub fn mark(&mut self, slot: u32, identifier: &str, marks: Marks) {
        let identifier = self.identifiers.find(identifier);
        let position = identifier
            .and_then(|identifier| self.position(slot, identifier))
            .expect("subscribed before mark");
        self.rows[slot as usize][position].set_marks(marks);
    }

    /// The marks of a subscription and the stream they apply to; `None` without marks.
    pub fn marks(&self, slot: u32, identifier: &str) -> Option<(Marks, &str)> {
        let identifier = self.identifiers.find(identifier)?;
        self.marked_edges(slot)
            .find(|edge| edge.identifier() == identifier)
            .and_then(|edge| self.marks_of(edge))
    }

    /// Returns [`Self::marks`] and removes them.
    pub fn take_marks(&mut self, slot: u32, identifier: &str) -> Option<(Marks, String)> {
        let (marks, stream) = self.marks(slot, identifier)?;
        let taken = (marks, stream.to_string());
        self.mark(slot, identifier, Marks::default());
        Some(taken)
    }

    /// The subscriptions of a session that have marks: identifier, marks, stream.
    pub fn marked(&self, slot: u32) -> impl Iterator<Item = (&str, Marks, &str)> {
        self.marked_edges(slot).filter_map(|edge| {
            let (marks, stream) = self.marks_of(edge)?;
            Some((self.identifiers.text(edge.identifier()), marks, stream))
        })
    }

    fn marked_edges(&self, slot: u32) -> impl Iterator<Item = &Edge> {
        self.row(slot)
            .iter()
            .filter(|edge| edge.marks() != Marks::default())
    }

    fn marks_of(&self, edge: &Edge) -> Option<(Marks, &str)> {
        Some((edge.marks(), self.streams.text(self.stream_of(edge)?)))
    }

    /// The identifiers of a session's subscriptions, each once, in the order of subscribing.
    pub fn identifiers(&self, slot: u32) -> Vec<&str> {
        let mut seen = HashSet::with_hasher(self.hasher.clone());
        self.row(slot)
            .iter()
            .filter(|edge| seen.insert(edge.identifier()))
            .map(|edge| self.identifiers.text(edge.identifier()))
            .collect()
    }

    /// Subscriptions of a session, each counted once for every stream it listens to.
    pub fn edges_len(&self, slot: u32) -> usize {
        self.row(slot).len()
    }

    /// The bytes that one subscription counts in the budget of its session, including its streams; 0 when there is none.
    pub fn subscription_bytes(&self, slot: u32, identifier: &str) -> usize {
        let Some(id) = self.identifiers.find(identifier) else {
            return 0;
        };
        let edges = self.row(slot).iter();
        let mut bytes = 0;
        for edge in edges.filter(|edge| edge.identifier() == id) {
            bytes += match bytes {
                0 => identifier_bytes(identifier),
                _ => SUBSCRIPTION_BYTES,
            };
            let stream = self.stream_of(edge);
            bytes += stream.map_or(0, |stream| self.streams.text(stream).len());
        }
        bytes
    }

    /// Bytes of all subscriptions. A text that several share is counted once.
    pub fn held_bytes(&self) -> usize {
        let texts = self.identifiers.held_bytes() + self.streams.held_bytes();
        let interest = self.interest.held_bytes();
        texts
            + interest
            + self.edges * EDGE_BYTES
            + self.groups.len() * (GROUP_BYTES + GROUP_INDEX_BYTES)
    }

    /// The streams of one subscription.
    pub fn streams_of(&self, slot: u32, identifier: &str) -> Vec<&str> {
        let Some(id) = self.identifiers.find(identifier) else {
            return Vec::new();
        };
        self.row(slot)
            .iter()
            .filter(|edge| edge.identifier() == id)
            .filter_map(|edge| self.stream_of(edge))
            .map(|stream| self.streams.text(stream))
            .collect()
    }

    /// The receivers of `stream`: for each identifier its text and the slots of its sessions. Does not touch the walk.
    pub fn receivers(&self, stream: &str) -> impl Iterator<Item = (&str, &[u32])> {
        let first = Some(self.first_group(stream));
        let groups = std::iter::successors(first, |&group| self.group_behind(group));
        groups
            .take_while(|&group| group != NONE)
            .map(|group| self.group(group))
    }

    /// Starts a walk over the groups that listen to `stream` now, for [`Self::next_group`]. There is one walk at a time.
    pub fn walk(&mut self, stream: &str) {
        self.next_group = self.first_group(stream);
    }

    /// The next group of the walk. The table may change between two steps: a group that is removed is skipped, and one that
    /// is added may be visited, but its members are [latecomers](Self::is_late_for).
    pub fn next_group(&mut self) -> Option<u32> {
        let group = self.next_group;
        self.next_group = self.group_behind(group)?;
        Some(group)
    }

    fn first_group(&self, stream: &str) -> u32 {
        self.streams
            .find(stream)
            .map_or(NONE, |id| self.first_groups[id as usize])
    }

    /// The group after this one in the list of its stream; `None` when `group` does not exist.
    fn group_behind(&self, group: u32) -> Option<u32> {
        Some(self.groups.get(group as usize)?.next)
    }

    /// The identifier of a group and the slots of its sessions.
    ///
    /// # Panics
    /// When the group does not exist.
    pub fn group(&self, group: u32) -> (&str, &[u32]) {
        let group = &self.groups[group as usize];
        (
            self.identifiers.text(group.identifier),
            self.members_of(&group.members),
        )
    }

    /// Notes how many messages have arrived for this shard. Subscriptions made from now on are younger than these messages.
    pub fn set_arrived(&mut self, messages: u64) {
        self.latecomers.set_arrived(messages);
    }

    /// Notes that the message of this number, and with it all before, has been handled.
    pub fn set_handled(&mut self, number: u64) {
        self.latecomers.set_handled(number);
    }

    /// True when some subscription does not get everything: check [`Self::is_late_for`] and [`Self::holds_back`] then.
    pub fn has_latecomers(&self) -> bool {
        !self.latecomers.is_empty()
    }

    /// True when message `number` had arrived before `slot` joined `group`, so that session must not get it.
    pub fn is_late_for(&self, group: u32, slot: u32, number: u64) -> bool {
        self.latecomers.is_late_for(group, slot, number)
    }

    fn row(&self, slot: u32) -> &[Edge] {
        self.rows.get(slot as usize).map_or(&[], |row| row)
    }

    fn position(&self, slot: u32, identifier: TextId) -> Option<usize> {
        self.row(slot)
            .iter()
            .position(|edge| edge.identifier() == identifier)
    }

    fn stream_of(&self, edge: &Edge) -> Option<TextId> {
        self.groups
            .get(edge.group as usize)
            .map(|group| group.stream)
    }

    /// Rows are rebuilt at their exact size, because they change rarely and stay unchanged for hours.
    fn push_edge(&mut self, slot: u32, edge: Edge) {
        let slot = slot as usize;
        if self.rows.len() <= slot {
            self.rows.resize_with(slot + 1, Box::default);
        }
        let mut row = Vec::with_capacity(self.rows[slot].len() + 1);
        row.extend_from_slice(&self.rows[slot]);
        row.push(edge);
        self.rows[slot] = row.into_boxed_slice();
        self.edges += 1;
    }

    fn remove_edge(&mut self, slot: u32, position: usize) {
        let mut row = std::mem::take(&mut self.rows[slot as usize]).into_vec();
        row.remove(position);
        self.rows[slot as usize] = row.into_boxed_slice();
        self.edges -= 1;
    }

    /// Removes one edge from its group. The last edge of a subscription stays, without a group.
    fn detach_at(&mut self, slot: u32, position: usize) {
        let edge = self.rows[slot as usize][position];
        let mut moved = self.leave(slot, edge);
        self.note_moves(moved.as_mut_slice());
        let edges = self
            .row(slot)
            .iter()
            .filter(|other| other.identifier() == edge.identifier())
            .count();
        if edges > 1 {
            self.remove_edge(slot, position);
            self.identifiers.release(edge.identifier());
        } else {
            self.rows[slot as usize][position].group = NONE;
        }
    }

    /// Joins the group of (stream, identifier), creating both when they are new. Returns the group and the index in it.
    fn join(&mut self, slot: u32, identifier: TextId, stream: &str) -> (u32, u32) {
        let (stream, new) = self.streams.acquire(stream);
        if let Some(hash) = new {
            self.interest.add(stream, hash);
            if self.first_groups.len() <= stream as usize {
                self.first_groups.resize(stream as usize + 1, NONE);
            }
            self.first_groups[stream as usize] = NONE;
        }
        if let Some(group) = self.find_group(stream, identifier) {
            return (group, self.push_member(group, slot));
        }
        self.identifiers.acquire_again(identifier);
        let first = self.first_groups[stream as usize];
        let group = self.groups.insert(Group {
            stream,
            identifier,
            previous: first,
            next: NONE,
            members: Members::One(slot),
        }) as u32;
        if first == NONE {
            self.first_groups[stream as usize] = group;
        } else {
            // Inserted after the first group, so that the first stays the one that is not in the index.
            let next = std::mem::replace(&mut self.groups[first as usize].next, group);
            self.groups[group as usize].next = next;
            if let Some(next) = self.groups.get_mut(next as usize) {
                next.previous = group;
            }
            self.index_group(group);
        }
        (group, 0)
    }

    fn find_group(&self, stream: TextId, identifier: TextId) -> Option<u32> {
        let first = self.first_groups[stream as usize];
        if self.groups.get(first as usize)?.identifier == identifier {
            return Some(first);
        }
        let hash = self.hasher.hash_one((stream, identifier));
        let is_wanted = |&id: &u32| {
            let group = &self.groups[id as usize];
            (group.stream, group.identifier) == (stream, identifier)
        };
        self.group_index.find(hash, is_wanted).copied()
    }

    fn index_group(&mut self, id: u32) {
        let (groups, hasher) = (&self.groups, &self.hasher);
        let hash = hash_of(hasher, &groups[id as usize]);
        self.group_index
            .insert_unique(hash, id, |&other| hash_of(hasher, &groups[other as usize]));
    }

    fn unindex_group(&mut self, id: u32) {
        let hash = hash_of(&self.hasher, &self.groups[id as usize]);
        if let Ok(entry) = self.group_index.find_entry(hash, |&other| other == id) {
            entry.remove();
        }
    }

    fn members_of<'a>(&'a self, members: &'a Members) -> &'a [u32] {
        match members {
            Members::One(slot) => std::slice::from_ref(slot),
            Members::Many(crowd) => &self.crowds[*crowd as usize],
        }
    }

    /// Adds a slot to a group and returns its index.
    fn push_member(&mut self, group: u32, slot: u32) -> u32 {
        let members = &mut self.groups[group as usize].members;
        match *members {
            Members::One(first) => {
                *members = Members::Many(self.crowds.insert(vec![first, slot]) as u32);
                1
            }
            Members::Many(crowd) => {
                let crowd = &mut self.crowds[crowd as usize];
                crowd.push(slot);
                crowd.len() as u32 - 1
            }
        }
    }

    /// Removes the member at `index` of a group; the last member moves into its place. Returns false when it was the only
    /// member: then the caller must remove the group.
    fn swap_remove_member(&mut self, group: u32, index: u32) -> bool {
        let Members::Many(crowd_id) = self.groups[group as usize].members else {
            return false;
        };
        let crowd = &mut self.crowds[crowd_id as usize];
        crowd.swap_remove(index as usize);
        match crowd.len() {
            1 => {
                let last = crowd[0];
                self.crowds.remove(crowd_id as usize);
                self.groups[group as usize].members = Members::One(last);
            }
            len if crowd.capacity() > CROWD_SLOTS_KEPT.max(4 * len) => crowd.shrink_to(2 * len),
            _ => {}
        }
        true
    }

    /// Removes an edge's session from its group. Returns the member that has moved into its place, for
    /// [`Self::note_moves`].
    #[must_use]
    fn leave(&mut self, slot: u32, edge: Edge) -> Option<Move> {
        self.latecomers.left(edge.group, slot);
        let stream = self.groups.get(edge.group as usize)?.stream;
        let mut moved = None;
        if self.swap_remove_member(edge.group, edge.index) {
            let members = self.members_of(&self.groups[edge.group as usize].members);
            moved = members.get(edge.index as usize).map(|&slot| Move {
                slot,
                group: edge.group,
                index: edge.index,
            });
        } else {
            self.remove_group(edge.group);
        }
        if let Some(hash) = self.streams.release(stream) {
            self.interest.remove(stream, hash);
        }
        moved
    }

    /// Writes the new indices into the edges of the members that have moved. Each of their rows is read once, no matter how
    /// many moves it has: a session may leave thousands of crowds, and another one may be the last member of all of them.
    fn note_moves(&mut self, moves: &mut [Move]) {
        moves.sort_unstable_by_key(|moved| (moved.slot, moved.group));
        for moves in moves.chunk_by(|one, other| one.slot == other.slot) {
            let moved_to = |edge: &Edge| {
                let found = moves.binary_search_by_key(&edge.group, |moved| moved.group);
                found.ok().map(|found| moves[found].index)
            };
            let mut left = moves.len();
            for edge in &mut self.rows[moves[0].slot as usize] {
                if let Some(index) = moved_to(edge) {
                    edge.index = index;
                    left -= 1;
                    if left == 0 {
                        break;
                    }
                }
            }
            debug_assert_eq!(left, 0, "a member has an edge to its group");
        }
    }

    fn remove_group(&mut self, id: u32) {
        let Group { previous, next, .. } = self.groups[id as usize];
        if self.next_group == id {
            self.next_group = next;
        }
        if previous == NONE {
            // The next group becomes the first, which is not in the index.
            if next != NONE {
                self.unindex_group(next);
            }
        } else {
            self.unindex_group(id);
        }
        let group = self.groups.remove(id as usize);
        match self.groups.get_mut(previous as usize) {
            Some(before) => before.next = next,
            None => self.first_groups[group.stream as usize] = next,
        }
        if let Some(after) = self.groups.get_mut(next as usize) {
            after.previous = previous;
        }
        self.identifiers.release(group.identifier);
    }
}

fn hash_of(hasher: &RandomState, group: &Group) -> u64 {
    hasher.hash_one((group.stream, group.identifier))
}

mod holding;
#[cfg(test)]
mod tests;
