//! Subscriptions that hold back what has a position, until the messages before it have been replayed.

use std::collections::HashSet;

use super::{Hub, NONE};

impl Hub {
    /// A subscription holds back what comes for its streams from now on, see [`Self::holds_back`].
    pub fn hold_back(&mut self, slot: u32, identifier: &str) {
        for group in self.groups_of(slot, identifier) {
            self.latecomers.hold_back(group, slot);
        }
    }

    /// A subscription holds nothing back any more.
    pub fn end_hold_back(&mut self, slot: u32, identifier: &str) {
        for group in self.groups_of(slot, identifier) {
            self.latecomers.end_hold_back(group, slot);
        }
    }

    /// True when the subscription of `slot` in `group` holds back.
    pub fn holds_back(&self, group: u32, slot: u32) -> bool {
        self.latecomers.holds_back(group, slot)
    }

    /// True when the subscription holds back what comes for one of its streams.
    pub fn holds_something_back(&self, slot: u32, identifier: &str) -> bool {
        let groups = self.groups_of(slot, identifier);
        groups.into_iter().any(|group| self.holds_back(group, slot))
    }

    /// The streams of the subscription whose publications it holds back.
    pub fn held_back_streams(&self, slot: u32, identifier: &str) -> HashSet<Box<str>> {
        let Some(id) = self.identifiers.find(identifier) else {
            return HashSet::new();
        };
        let edges = self.row(slot).iter();
        let held = edges.filter(|edge| {
            edge.identifier() == id && edge.group != NONE && self.holds_back(edge.group, slot)
        });
        held.filter_map(|edge| self.stream_of(edge))
            .map(|stream| self.streams.text(stream).into())
            .collect()
    }

    fn groups_of(&self, slot: u32, identifier: &str) -> Vec<u32> {
        let Some(id) = self.identifiers.find(identifier) else {
            return Vec::new();
        };
        let edges = self.row(slot).iter();
        let groups = edges.filter(|edge| edge.identifier() == id && edge.group != NONE);
        groups.map(|edge| edge.group).collect()
    }
}
