//! Messages that are not kept any more, and that somebody else still has: an answer that a slow client has not taken yet, or
//! a delivery that is under way. They take memory until then, so they stay charged.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::protocol::publication::Message;

/// Memory for this many is kept when there are fewer.
const KEPT_MESSAGES: usize = 64;

/// Looked at in turns, because nobody tells when a message is given back.
#[derive(Default)]
pub(super) struct Lent {
    messages: VecDeque<Message>,
}

impl Lent {
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Adds a message that somebody else has. Returns one that nobody has.
    pub fn add_if_used(&mut self, message: Message) -> Option<Message> {
        if Arc::strong_count(&message) == 1 {
            return Some(message);
        }
        self.messages.push_back(message);
        None
    }

    /// Looks at the next message. Returns it if nobody else has it any more.
    pub fn take_unused(&mut self) -> Option<Message> {
        let next = self.messages.pop_front()?;
        self.add_if_used(next)
    }

    /// Frees memory after many have been given back.
    pub fn shrink(&mut self) {
        if self.messages.capacity() > 4 * self.messages.len().max(KEPT_MESSAGES) {
            self.messages.shrink_to_fit();
        }
    }
}
