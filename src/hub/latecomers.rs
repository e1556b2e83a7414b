//! Subscriptions that are younger than publications which still wait in the shard's inbox.
//!
//! A publication made before a client's command must not reach a subscription which that command makes. The inbox is taken
//! in pieces, so a subscription may be made while older publications wait. It is then noted here with the number of messages
//! that had arrived, and it does not receive messages up to this number. Nothing is noted while no message waits, and
//! everything is forgotten when the last of those messages has been handled.
//!
//! The same table notes the subscriptions that hold back what has a position, until the messages before it are replayed.

use std::collections::{HashMap, HashSet};

use ahash::RandomState;

/// Messages of an inbox are numbered from 1 in the order of their arrival.
#[derive(Default)]
pub(super) struct Latecomers {
    /// Messages that had arrived when the running command was taken up.
    arrived: u64,
    /// Messages that have been handled.
    handled: u64,
    /// The largest number in `members`.
    newest: u64,
    /// By (group, slot): the number of messages that had arrived when the slot joined.
    members: HashMap<(u32, u32), u64, RandomState>,
    /// The subscriptions that hold back, by (group, slot).
    holding_back: HashSet<(u32, u32), RandomState>,
    /// At this number of members, those are removed that no waiting message concerns any more.
    look_at: usize,
}

/// With fewer members than this, a search for old ones is not worth its time.
const LOOK_AT_MIN: usize = 1024;

impl Latecomers {
    pub(super) fn set_arrived(&mut self, arrived: u64) {
        self.arrived = arrived;
    }

    /// Notes that every message up to `number` has been handled.
    pub(super) fn set_handled(&mut self, number: u64) {
        self.handled = number;
        if number >= self.newest && !self.members.is_empty() {
            self.members = HashMap::default();
            self.look_at = 0;
        }
    }

    /// `slot` has joined `group` now.
    pub(super) fn joined(&mut self, group: u32, slot: u32) {
        if self.arrived > self.handled {
            self.newest = self.arrived;
            self.members.insert((group, slot), self.arrived);
            if self.members.len() >= self.look_at.max(LOOK_AT_MIN) {
                let handled = self.handled;
                self.members.retain(|_, arrived| *arrived > handled);
                self.look_at = 2 * self.members.len();
            }
        }
    }

    /// `slot` has left `group`.
    pub(super) fn left(&mut self, group: u32, slot: u32) {
        if !self.members.is_empty() {
            self.members.remove(&(group, slot));
        }
        self.end_hold_back(group, slot);
    }

    /// `slot` holds back what comes for `group`.
    pub(super) fn hold_back(&mut self, group: u32, slot: u32) {
        self.holding_back.insert((group, slot));
    }

    /// `slot` holds nothing back any more.
    pub(super) fn end_hold_back(&mut self, group: u32, slot: u32) {
        if self.holding_back.remove(&(group, slot)) && self.holding_back.is_empty() {
            self.holding_back = HashSet::default();
        }
    }

    pub(super) fn holds_back(&self, group: u32, slot: u32) -> bool {
        self.holding_back.contains(&(group, slot))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.holding_back.is_empty()
    }

    /// True when message `number` had arrived before `slot` joined `group`.
    pub(super) fn is_late_for(&self, group: u32, slot: u32, number: u64) -> bool {
        self.members
            .get(&(group, slot))
            .is_some_and(|&arrived| number <= arrived)
    }
}
