//! Subscriptions that hold back what has a position, until the messages before it have been replayed.

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

    fn groups_of(&self, slot: u32, identifier: &str) -> Vec<u32> {
        let Some(id) = self.identifiers.find(identifier) else {
            return Vec::new();
        };
        let edges = self.row(slot).iter();
        let groups = edges.filter(|edge| edge.identifier() == id && edge.group != NONE);
        groups.map(|edge| edge.group).collect()
    }
}
