//! Who is served next: sessions that have something new, and those that had more than their share.

use std::collections::VecDeque;

use crate::reactor::Token;

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing is to be done.
    Resting,
    /// The same, but it used up its last share: it has more to come, whatever is new about it.
    Greedy,
    /// In one of the queues.
    Scheduled,
}

/// A session is in one of the two queues, once at most: its connection knows whether it is.
#[derive(Default)]
pub(super) struct Schedule {
    fresh: VecDeque<Token>,
    unfinished: VecDeque<Token>,
}

/// Room that a queue keeps when it is empty, in entries.
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
