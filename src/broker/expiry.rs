//! Entries of a slab in the order of their deadlines.
//!
//! All deadlines of a list are the same time after the moment in which they are set, so a new one is always the last: the
//! list needs no search, and a sweep touches only entries that are due.

use std::time::{Duration, Instant};

use slab::Slab;

/// "No entry".
const NONE: u32 = u32::MAX;
/// The deadline of an entry that is not in the list.
const NEVER: u64 = u64::MAX;

/// An entry's place in the list of deadlines.
#[derive(Debug, Clone, Copy)]
pub struct Links {
    /// Milliseconds since the list was made; [`NEVER`] outside the list.
    deadline: u64,
    older: u32,
    newer: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            deadline: NEVER,
            older: NONE,
            newer: NONE,
        }
    }
}

impl Links {
    pub fn has_deadline(&self) -> bool {
        self.deadline != NEVER
    }
}

/// What can have a deadline.
pub trait Expiring {
    fn links(&self) -> &Links;
    fn links_mut(&mut self) -> &mut Links;
}

/// The list of deadlines. Its links are in the entries, so every call gets their slab.
#[derive(Debug)]
pub struct Expiry {
    start: Instant,
    ttl: Duration,
    oldest: u32,
    newest: u32,
}

impl Expiry {
    /// Deadlines will be `ttl` after the time at which they are set. `start` is the earliest such time.
    pub fn new(ttl: Duration, start: Instant) -> Self {
        Self {
            start,
            ttl,
            oldest: NONE,
            newest: NONE,
        }
    }

    fn millis(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.start).as_millis() as u64
    }

    /// Gives an entry a deadline, or a new one.
    pub fn set<T: Expiring>(&mut self, slab: &mut Slab<T>, entry: u32, now: Instant) {
        self.clear(slab, entry);
        let mut deadline = self.millis(now) + self.ttl.as_millis() as u64;
        if let Some(newest) = slab.get_mut(self.newest as usize) {
            let links = newest.links_mut();
            links.newer = entry;
            // Times of one turn may come in any order; the list stays sorted.
            deadline = deadline.max(links.deadline);
        } else {
            self.oldest = entry;
        }
        *slab[entry as usize].links_mut() = Links {
            deadline,
            older: std::mem::replace(&mut self.newest, entry),
            newer: NONE,
        };
    }

    /// Takes the deadline of an entry away. It need not have one.
    pub fn clear<T: Expiring>(&mut self, slab: &mut Slab<T>, entry: u32) {
        let links = std::mem::take(slab[entry as usize].links_mut());
        if !links.has_deadline() {
            return;
        }
        match slab.get_mut(links.older as usize) {
            Some(older) => older.links_mut().newer = links.newer,
            None => self.oldest = links.newer,
        }
        match slab.get_mut(links.newer as usize) {
            Some(newer) => newer.links_mut().older = links.older,
            None => self.newest = links.older,
        }
    }

    /// True when the entry's deadline has been reached.
    pub fn is_due(&self, entry: &impl Expiring, now: Instant) -> bool {
        entry.links().deadline <= self.millis(now)
    }

    /// The entry with the earliest deadline.
    pub fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// The entry with the earliest deadline, if that has been reached.
    pub fn due<T: Expiring>(&self, slab: &Slab<T>, now: Instant) -> Option<u32> {
        self.oldest()
            .filter(|&oldest| self.is_due(&slab[oldest as usize], now))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Entry(Links);

    impl Expiring for Entry {
        fn links(&self) -> &Links {
            &self.0
        }

        fn links_mut(&mut self) -> &mut Links {
            &mut self.0
        }
    }

    #[test]
    fn an_entry_is_due_when_its_deadline_is_reached_and_not_before() {
        let start = Instant::now();
        let mut expiry = Expiry::new(Duration::from_secs(15), start);
        let mut slab = Slab::new();
        let entry = slab.insert(Entry::default()) as u32;
        assert_eq!((expiry.oldest(), expiry.due(&slab, start)), (None, None));
        expiry.set(&mut slab, entry, start + Duration::from_secs(1));
        assert_eq!(expiry.oldest(), Some(entry));
        let due_at = |millis| expiry.due(&slab, start + Duration::from_millis(millis));
        assert_eq!((due_at(15_999), due_at(16_000)), (None, Some(entry)));
    }

    proptest! {
        #[test]
        fn the_list_is_a_queue_from_which_entries_are_taken_anywhere(
            acts in prop::collection::vec((0u32..8, any::<bool>(), 0u64..20), 1..200),
        ) {
            let start = Instant::now();
            let ttl = Duration::from_millis(50);
            let mut expiry = Expiry::new(ttl, start);
            let mut slab: Slab<Entry> = (0..8).map(|key| (key, Entry::default())).collect();
            let mut model: VecDeque<(u32, Instant)> = VecDeque::new();
            let mut now = start;
            for (entry, set, passed) in acts {
                now += Duration::from_millis(passed);
                model.retain(|&(other, _)| other != entry);
                if set {
                    expiry.set(&mut slab, entry, now);
                    model.push_back((entry, now + ttl));
                } else {
                    expiry.clear(&mut slab, entry);
                }
                while let Some(&(oldest, deadline)) = model.front() {
                    prop_assert_eq!(expiry.oldest(), Some(oldest));
                    let due = expiry.due(&slab, now);
                    prop_assert_eq!(due, (deadline <= now).then_some(oldest));
                    let Some(due) = due else { break };
                    expiry.clear(&mut slab, due);
                    model.pop_front();
                }
                prop_assert_eq!(expiry.oldest().is_none(), model.is_empty());
            }
        }
    }
}
