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

    /// True when a subscription of this session holds back.
    pub fn contains(&self, slot: u32) -> bool {
        self.by_slot.contains_key(&slot)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn session(slot: u32) -> SessionRef {
        SessionRef {
            shard: 0,
            slot,
            generation: 1,
        }
    }

    fn publications() -> Arc<[Publication]> {
        let publication = |message: &'static str| Publication {
            stream: "s".into(),
            message: message.as_bytes().into(),
            ..Publication::default()
        };
        [publication("12"), publication("345")].into()
    }

    #[test]
    fn what_is_kept_comes_back_in_order_and_its_bytes_are_known() {
        let mut holdbacks = Holdbacks::default();
        holdbacks.begin(1, "A");
        let publications = publications();
        let charged = holdbacks.keep(1, "A", &publications, 1);
        assert_eq!(charged, HELD_BACK_BYTES + 3);
        // It does so already, and loses nothing.
        holdbacks.begin(1, "A");
        let charged = charged + holdbacks.keep(1, "A", &publications, 0);
        holdbacks.begin(1, "B");
        let others = holdbacks.keep(1, "B", &publications, 0);
        assert_eq!(holdbacks.bytes(1), charged + others);
        let ended = holdbacks.end(1, "A").expect("it holds back");
        let messages = ended.publications.iter();
        let messages: Vec<&[u8]> = messages.map(|it| &it.publication().message[..]).collect();
        assert_eq!((messages, ended.bytes), (vec![&b"345"[..], b"12"], charged));
        assert_eq!(holdbacks.identifiers(1), ["B".into()]);
        assert_eq!(holdbacks.forget(1), others);
        assert!(holdbacks.is_empty());
    }

    #[test]
    fn nothing_is_kept_for_who_does_not_hold_back() {
        let mut holdbacks = Holdbacks::default();
        assert_eq!(holdbacks.keep(1, "A", &publications(), 0), 0);
        holdbacks.begin(1, "A");
        assert_eq!(holdbacks.keep(1, "B", &publications(), 0), 0);
        assert_eq!(holdbacks.keep(2, "A", &publications(), 0), 0);
        assert!(holdbacks.end(1, "B").is_none() && holdbacks.end(2, "A").is_none());
        assert!(holdbacks.end(1, "A").is_some() && holdbacks.end(1, "A").is_none());
        assert_eq!((holdbacks.bytes(1), holdbacks.forget(1)), (0, 0));
        assert!(holdbacks.is_empty());
    }

    #[test]
    fn sessions_expire_in_the_order_of_time() {
        let mut holdbacks = Holdbacks::default();
        for (until, slot) in [(3, 1), (3, 2), (5, 3)] {
            holdbacks.expire_at(until, session(slot));
        }
        assert_eq!(holdbacks.take_expired(2), []);
        assert_eq!(holdbacks.take_expired(3), [session(1), session(2)]);
        assert!(holdbacks.expire_soon());
        assert_eq!(holdbacks.take_expired(9), [session(3)]);
        assert!(!holdbacks.expire_soon());
    }
}
