//! The messages that one stream keeps.

use std::collections::VecDeque;

use super::Millis;
use crate::protocol::publication::Message;

/// A message, and when it was stored.
pub(super) struct Entry {
    pub message: Message,
    pub stored_at: Millis,
}

/// Bytes of an entry. The offset is implied by its place.
const ENTRY_BYTES: usize = 24;
const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES);

/// Up to this number of messages a ring has room for exactly those that it has; a larger one grows by a quarter. Most
/// streams have few messages.
const EXACT_MESSAGES: usize = 4;

/// Messages without a gap, the oldest first.
#[derive(Default)]
pub(super) struct Ring {
    entries: VecDeque<Entry>,
}

impl Ring {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn oldest(&self) -> Option<&Entry> {
        self.entries.front()
    }

    /// Adds the newest message. `messages_max` is the most that the ring will have.
    pub fn add(&mut self, entry: Entry, messages_max: usize) {
        let len = self.entries.len();
        if len == self.entries.capacity() {
            let more = if len < EXACT_MESSAGES { 1 } else { len / 4 };
            let room = messages_max.saturating_sub(len).max(1);
            self.entries.reserve_exact(more.min(room));
        }
        self.entries.push_back(entry);
    }

    /// Removes the oldest message, of which the place is used at once for a new one.
    pub fn replace_oldest(&mut self) -> Option<Entry> {
        self.entries.pop_front()
    }

    /// Removes the oldest message, and the memory of its place when there is much that is not used.
    pub fn remove_oldest(&mut self) -> Option<Entry> {
        let oldest = self.entries.pop_front();
        let len = self.entries.len();
        if len == 0 {
            self.entries = VecDeque::new();
        } else if 2 * len < self.entries.capacity() {
            self.entries.shrink_to(len + len / 4);
        }
        oldest
    }

    /// All, the oldest first.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The newest `count` messages, the oldest first.
    pub fn newest(&self, count: usize) -> impl Iterator<Item = &Message> {
        let skipped = self.entries.len().saturating_sub(count);
        self.entries.range(skipped..).map(|entry| &entry.message)
    }

    /// How many messages were stored at `time` or later.
    pub fn count_since(&self, time: Millis) -> usize {
        let older = self.entries.partition_point(|entry| entry.stored_at < time);
        self.entries.len() - older
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stored_at: Millis) -> Entry {
        Entry {
            message: Message::from(*b"message"),
            stored_at,
        }
    }

    /// Rooms of a ring that gets `messages` of at most `messages_max`.
    fn rooms(messages: usize, messages_max: usize) -> Vec<usize> {
        let mut ring = Ring::default();
        (0..messages)
            .map(|it| {
                ring.add(entry(it as u64), messages_max);
                ring.entries.capacity()
            })
            .collect()
    }

    #[test]
    fn a_ring_grows_in_small_steps_and_not_beyond_its_limit() {
        assert_eq!(rooms(8, 100), [1, 2, 3, 4, 5, 6, 7, 8]);
        for (at, room) in (1..).zip(rooms(100, 100)) {
            assert!(room <= at.max(at * 5 / 4), "{room} for {at}");
            assert!(room <= 100);
        }
        assert_eq!(rooms(100, 100).last(), Some(&100));
        assert_eq!(rooms(3, 2), [1, 2, 3]);
    }

    #[test]
    fn a_full_ring_takes_a_new_message_without_more_memory() {
        let mut ring = Ring::default();
        for time in 0..50 {
            if ring.len() == 10 {
                ring.replace_oldest();
            }
            ring.add(entry(time), 10);
        }
        assert_eq!((ring.len(), ring.entries.capacity()), (10, 10));
        assert_eq!(ring.oldest().map(|entry| entry.stored_at), Some(40));
    }

    #[test]
    fn memory_of_removed_messages_is_given_back() {
        let mut ring = Ring::default();
        (0..100).for_each(|time| ring.add(entry(time), 100));
        for left in (0..100).rev() {
            ring.remove_oldest();
            let room = ring.entries.capacity();
            assert!(room <= 2 * left, "room for {room} with {left}");
        }
        assert!(ring.remove_oldest().is_none());
    }

    #[test]
    fn messages_are_counted_by_the_time_at_which_they_were_stored() {
        let mut ring = Ring::default();
        for time in [10, 20, 20, 30] {
            ring.add(entry(time), 10);
        }
        let check = |time: Millis, expected: usize| {
            assert_eq!(ring.count_since(time), expected, "since {time}");
            assert_eq!(ring.newest(expected).count(), expected);
        };
        check(0, 4);
        check(10, 4);
        check(11, 3);
        check(20, 3);
        check(21, 1);
        check(31, 0);
        assert_eq!(ring.newest(9).count(), 4);
    }
}
