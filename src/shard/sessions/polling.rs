//! Sessions over long polling: when the poll that waits is answered, and with what.
//!
//! Such a session is in the table like any other, but its connection has no socket: there is one only while a poll waits.
//! Its messages wait in its outbox, and stay there until a socket has taken the whole answer that has them. The answer is
//! written by the HTTP phase ([`Action::AnswerPoll`]), which then goes on with the connection.
//! Source: contract/http_transports.md §3.

use std::io::{ErrorKind, Read};

use super::closing::Cause;
use super::polls::Stage;
use super::reader::Reader;
use super::share::Share;
use super::{Action, Sessions};
use crate::mesh::SessionRef;
use crate::protocol::poll_id::PollId;
use crate::reactor::Token;
use crate::shard::polls::{Poll, PollAnswer, PollContent, PollMessages};

/// Bytes of messages in one answer, or one message if it is longer. The others go out with the next one.
pub const POLL_ANSWER_BYTES_MAX: usize = 1 << 20;
/// Bytes that a client may send behind a poll before it has the answer.
pub const POLL_UNREAD_BYTES_MAX: usize = 16 << 10;

impl Sessions {
    /// The first request of a new session waits.
    pub(super) fn begin_polling(&mut self, slot: u32, poll: Poll) {
        self.table.polls.add(slot, poll);
        self.common.counters().long_poll_clients_num.add(1);
    }

    /// Takes out the poll that waits.
    pub(super) fn detach(&mut self, slot: u32) -> Option<Poll> {
        self.table.unwatch_poll(slot);
        let now = self.table.now;
        self.table.polls.detach(slot, now)
    }

    /// The client has given up the poll that waits. It may poll again, unless it does not know its session.
    pub(super) fn abandon(&mut self, slot: u32) {
        drop(self.detach(slot));
        let polling = self.table.polls.find(slot);
        match polling.map(|polling| polling.stage) {
            Some(Stage::New) => self.begin_close(slot, None, Cause::Client),
            _ if self.is_over(slot) => self.release(slot),
            _ => self.table.set_timer(slot),
        }
    }

    /// Reads what a client sends behind its poll: the next request, or the end.
    pub(super) fn read_behind_poll(&mut self, slot: u32, reader: &mut Reader, share: &mut Share) {
        let connection = self.table.connections.get_mut(slot as usize);
        let Some(connection) = connection.filter(|connection| connection.socket.is_none()) else {
            return;
        };
        let is_reported = std::mem::take(&mut connection.input_waiting);
        let Some(polling) = self.table.polls.find_mut(slot).filter(|_| is_reported) else {
            return;
        };
        let Some(poll) = &mut polling.waiting else {
            return;
        };
        let goes_on = loop {
            if poll.unread_bytes() > POLL_UNREAD_BYTES_MAX {
                break false;
            }
            match (&poll.socket).read(&mut reader.buffer) {
                Ok(0) => break false,
                Ok(bytes) => {
                    share.pay_read(bytes, poll.tls.is_some());
                    if !poll.keep_behind(&mut reader.buffer[..bytes]) {
                        break false;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break false,
            }
        };
        let behind = poll.unread_bytes();
        let charge = self.common.budget.hold_anyway(behind);
        self.table.polls.charge_behind(slot, charge);
        if !goes_on || (behind > 0 && self.common.budget.is_full()) {
            self.abandon(slot);
        }
    }

    /// Looks whether the poll of this session is to be answered, or whether its client has been away for too long. Nothing
    /// happens to a session with a connection of its own.
    pub(super) fn go_on_polling(&mut self, slot: u32) {
        let Some(polling) = self.table.polls.find(slot) else {
            return;
        };
        if polling.waiting.is_none() && polling.answering.is_none() && polling.due <= self.table.now
        {
            return self.abort(slot, Cause::Client);
        }
        if !self.wants_answer(slot) {
            return self.table.set_timer(slot);
        }
        // An event that says so may still be on its way, and messages that are written to such a socket are lost.
        let poll = self
            .table
            .polls
            .find(slot)
            .and_then(|polling| polling.waiting.as_ref());
        match poll.is_some_and(has_ended) {
            true => self.abandon(slot),
            false => self.answer_poll(slot),
        }
    }

    fn wants_answer(&self, slot: u32) -> bool {
        let connection = &self.table.connections[slot as usize];
        let polls = &self.table.polls;
        let Some(polling) = polls.find(slot) else {
            return false;
        };
        if polling.waiting.is_none() || polling.answering.is_some() {
            return false;
        }
        let now = self.table.now;
        let queued_at = connection.outbox.as_ref().map(|outbox| outbox.progress);
        match polling.stage {
            Stage::New => {
                let is_done = !connection.waits() && !connection.has_unread();
                connection.session.is_authenticated()
                    && (is_done || connection.is_backed_up(&self.common.bounds))
            }
            Stage::Open => {
                now >= polling.due || queued_at.is_some_and(|since| polls.is_flush_due(since, now))
            }
            Stage::Ended(_) => true,
        }
    }

    /// Answers the poll that waits with what is queued.
    fn answer_poll(&mut self, slot: u32) {
        self.writer.gather(&mut self.table, slot);
        let session = self.table.session_ref(slot);
        let Some(poll) = self.detach(slot) else {
            return;
        };
        let connection = &self.table.connections[slot as usize];
        let frames = connection
            .outbox
            .as_ref()
            .map(|outbox| outbox.first(POLL_ANSWER_BYTES_MAX))
            .unwrap_or_default();
        let Some(polling) = self.table.polls.find_mut(slot) else {
            return;
        };
        polling.answering = Some(frames.len() as u32);
        let (status, id) = match polling.stage {
            Stage::New => {
                let id = PollId {
                    shard: session.shard,
                    slot,
                    generation: session.generation,
                    secret: polling.secret(),
                };
                (200, Some(id))
            }
            Stage::Open => (200, None),
            Stage::Ended(status) => (status, None),
        };
        self.table.set_timer(slot);
        let messages = PollMessages {
            status,
            id,
            frames,
            session: Some(session),
        };
        self.send_answer_to(poll, PollContent::Messages(messages));
    }

    pub(super) fn send_answer_to(&mut self, poll: Poll, content: PollContent) {
        let answer = PollAnswer { poll, content };
        self.actions.push(Action::AnswerPoll(Box::new(answer)));
    }

    /// An answer has been written, or its client has not taken all of it: then its messages still wait.
    pub fn on_poll_answered(&mut self, session: SessionRef, written: bool) {
        let slot = session.slot;
        let token = Token {
            slot,
            generation: session.generation,
        };
        if self.table.slot_of(token).is_none() {
            return;
        }
        let now = self.table.now;
        let frames = self.table.polls.end_answer(slot, now);
        let Some(polling) = self.table.polls.find_mut(slot) else {
            return;
        };
        match (polling.stage, written) {
            (Stage::New, true) => polling.stage = Stage::Open,
            // The client does not have its id, and cannot poll.
            (Stage::New, false) => return self.abort(slot, Cause::Client),
            _ => {}
        }
        if written {
            self.writer.drop_answered(&mut self.table, slot, frames);
        }
        if self.is_over(slot) {
            return self.release(slot);
        }
        // The client may not have been read while it had much waiting.
        self.table.schedule_rest(slot);
        self.go_on_polling(slot);
    }
}

/// True when the client has closed its end.
pub(super) fn has_ended(poll: &Poll) -> bool {
    // The end of a TLS stream may be in bytes that are not decrypted yet.
    poll.tls.is_none()
        && match poll.socket.peek(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
}
