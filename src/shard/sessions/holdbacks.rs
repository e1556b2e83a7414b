//! Live publications that a subscription holds back until the messages before them have been replayed.
//!
//! A subscription holds back from the moment its history is asked for, or from the moment it is restored, until the answer
//! has been replayed. Only publications with a position are held back. What the home shard has put into the inbox of this
//! shard before its answer is part of the answer, and what it has put in after it is newer. So after the replay exactly
//! those are delivered whose offset is greater than the last one of the answer: nothing is missing, nothing comes twice, and
//! the order is that of the offsets.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ahash::RandomState;

use crate::mesh::SessionRef;
use crate::protocol::publication::Publication;
use crate::session::Tick;

/// A publication that is held back: one of the publications of an inbox message.
#[derive(Debug, Clone)]
pub(super) struct HeldBack {
    publications: Arc<[Publication]>,
    index: usize,
}

impl HeldBack {
    pub fn publication(&self) -> &Publication {
        &self.publications[self.index]
    }
}

/// What one subscription holds back.
#[derive(Debug)]
pub(super) struct Holdback {
    identifier: Box<str>,
    pub publications: Vec<HeldBack>,
    /// Charged for them.
    pub bytes: usize,
}

impl Holdback {
    fn new(identifier: &str) -> Self {
        Self {
            identifier: identifier.into(),
            publications: Vec::new(),
            bytes: 0,
        }
    }
}

/// Memory of one publication that is held back, besides its message.
const HELD_BACK_BYTES: usize = 64;

/// The subscriptions of this shard that hold something back, by the slot of their session. Empty most of the time.
#[derive(Default)]
pub(super) struct Holdbacks {
    by_slot: HashMap<u32, Vec<Holdback>, RandomState>,
    /// Restored sessions, with the time at which their subscriptions stop to wait for the client. In order of time.
    restored: VecDeque<(Tick, SessionRef)>,
}

impl Holdbacks {
    /// The subscription holds back from now on. It may do so already.
    pub fn begin(&mut self, slot: u32, identifier: &str) {
        let holdbacks = self.by_slot.entry(slot).or_default();
        if holdbacks.iter().all(|it| &*it.identifier != identifier) {
            holdbacks.push(Holdback::new(identifier));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    /// Notes that nothing of this session need be held back for its client's sake after `until`, which never decreases from
    /// call to call.
    pub fn expire_at(&mut self, until: Tick, session: SessionRef) {
        self.restored.push_back((until, session));
    }

    /// True while restored sessions wait for their clients.
    pub fn expire_soon(&self) -> bool {
        !self.restored.is_empty()
    }

    /// The sessions whose time is over.
    pub fn take_expired(&mut self, now: Tick) -> Vec<SessionRef> {
        let expired = self.restored.iter().take_while(|(until, _)| *until <= now);
        let count = expired.count();
        self.restored
            .drain(..count)
            .map(|(_, session)| session)
            .collect()
    }

    /// Keeps a publication. Returns the bytes to be charged for it.
    pub fn keep(
        &mut self,
        slot: u32,
        identifier: &str,
        publications: &Arc<[Publication]>,
        index: usize,
    ) -> usize {
        let mut holdbacks = self.by_slot.get_mut(&slot).into_iter().flatten();
        let Some(holdback) = holdbacks.find(|it| &*it.identifier == identifier) else {
            return 0;
        };
        let bytes = HELD_BACK_BYTES + publications[index].message.len();
        holdback.bytes += bytes;
        holdback.publications.push(HeldBack {
            publications: Arc::clone(publications),
            index,
        });
        bytes
    }

    /// Bytes charged for everything that a session holds back.
    pub fn bytes(&self, slot: u32) -> usize {
        let holdbacks = self.by_slot.get(&slot).into_iter().flatten();
        holdbacks.map(|it| it.bytes).sum()
    }

    /// The subscription does not hold back any more. Returns what it has held back, in order.
    pub fn end(&mut self, slot: u32, identifier: &str) -> Option<Holdback> {
        let holdbacks = self.by_slot.get_mut(&slot)?;
        let position = holdbacks
            .iter()
            .position(|it| &*it.identifier == identifier)?;
        let ended = holdbacks.remove(position);
        if holdbacks.is_empty() {
            self.by_slot.remove(&slot);
        }
        Some(ended)
    }

    /// The identifiers of the subscriptions of a session that hold back.
    pub fn identifiers(&self, slot: u32) -> Vec<Box<str>> {
        let holdbacks = self.by_slot.get(&slot);
        holdbacks.map_or_else(Vec::new, |holdbacks| {
            holdbacks.iter().map(|it| it.identifier.clone()).collect()
        })
    }

    /// The session has ended. Returns the bytes that were charged.
    pub fn forget(&mut self, slot: u32) -> usize {
        let holdbacks = self.by_slot.remove(&slot).into_iter().flatten();
        holdbacks.map(|it| it.bytes).sum()
    }
}
