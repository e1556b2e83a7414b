//! Whether a request over plain HTTP is decided. Its lines are the client's commands, and each of them subscribes.

use super::Sessions;
use super::closing::Cause;
use crate::protocol::disconnect::Close;
use crate::session::Question;

impl Sessions {
    /// The identifier that the client has asked for in its unanswered request, if this is that question to the app.
    pub(super) fn asked_in_request(&self, slot: u32, question: &Question) -> Option<Box<str>> {
        match question {
            Question::Subscribe { identifier, .. }
                if self.table.connections[slot as usize].is_opening() =>
            {
                Some(identifier.clone())
            }
            _ => None,
        }
    }

    /// Refuses the request when one of its subscriptions is decided and not there.
    pub(super) fn refuse_if_rejected(&mut self, slot: u32, identifier: &str) {
        let connection = self.table.connections.get(slot as usize);
        let is_decided = connection.is_some_and(|it| it.is_opening() && !it.has_call());
        if is_decided && !self.hub.is_subscribed(slot, identifier) {
            self.refuse_request(slot);
        }
    }

    pub(super) fn refuse_request(&mut self, slot: u32) {
        self.begin_close(slot, Some(Close::COMMAND_FAILED), Cause::Error);
    }

    /// Answers the request when everything in it is decided: the client is authenticated, and all its subscriptions are
    /// there.
    pub(super) fn answer_if_decided(&mut self, slot: u32) {
        let connection = self.table.connections.get(slot as usize);
        let is_decided = connection.is_some_and(|connection| {
            connection.is_opening()
                && connection.session.is_authenticated()
                && !connection.waits()
                && !connection.has_unread()
        });
        if is_decided && self.table.reading(slot).is_some() {
            self.begin_reading(slot);
        } else if is_decided {
            self.accept_request(slot);
        }
    }
}
