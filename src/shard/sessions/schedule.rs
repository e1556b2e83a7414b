//! Which session is served next: those with something new, then those that had used up their share.

use std::collections::VecDeque;

use crate::reactor::Token;

/// Where a session is in the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It has nothing to do.
    Resting,
    /// It has nothing to do, but used up its last share. A new event puts it into the queue of the unfinished, not of the
    /// fresh.
    Greedy,
    /// In one of the queues.
    Scheduled,
}

/// Each session is in one of the two queues at most, and only once: its connection notes whether it is.
#[derive(Default)]
pub(super) struct Schedule {
    fresh: VecDeque<Token>,
    unfinished: VecDeque<Token>,
}

/// Entries for which an empty queue keeps its memory.
const ROOM_KEPT: usize = 1024;

impl Schedule {
    pub(super) fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.unfinished.is_empty()
    }

    pub(super) fn push_fresh(&mut self, token: Token) {
        self.fresh.push_back(token);
    }

    pub(super) fn push_unfinished(&mut self, token: Token) {
        self.unfinished.push_back(token);
    }

    pub(super) fn unfinished_len(&self) -> usize {
        self.unfinished.len()
    }

    pub(super) fn pop_fresh(&mut self) -> Option<Token> {
        pop(&mut self.fresh)
    }

    pub(super) fn pop_unfinished(&mut self) -> Option<Token> {
        pop(&mut self.unfinished)
    }
}

fn pop(queue: &mut VecDeque<Token>) -> Option<Token> {
    let token = queue.pop_front();
    if queue.is_empty() && queue.capacity() > ROOM_KEPT {
        queue.shrink_to(ROOM_KEPT);
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(slot: u32) -> Token {
        Token {
            slot,
            generation: 1,
        }
    }

    #[test]
    fn each_queue_is_in_the_order_of_arrival() {
        let mut schedule = Schedule::default();
        for slot in [3, 1, 2] {
            schedule.push_fresh(token(slot));
            schedule.push_unfinished(token(slot + 10));
        }
        assert_eq!(schedule.unfinished_len(), 3);
        for slot in [3, 1, 2] {
            assert!(!schedule.is_empty());
            assert_eq!(schedule.pop_unfinished(), Some(token(slot + 10)));
            assert_eq!(schedule.pop_fresh(), Some(token(slot)));
        }
        assert!(schedule.is_empty());
        assert_eq!(
            (schedule.pop_fresh(), schedule.pop_unfinished()),
            (None, None)
        );
    }

    #[test]
    fn memory_of_a_crowd_is_given_back_when_it_has_been_served() {
        let mut schedule = Schedule::default();
        let crowd = 10 * ROOM_KEPT as u32;
        (0..crowd).for_each(|slot| schedule.push_fresh(token(slot)));
        (0..crowd).for_each(|slot| assert_eq!(schedule.pop_fresh(), Some(token(slot))));
        assert!(schedule.fresh.capacity() <= 2 * ROOM_KEPT);
    }
}
