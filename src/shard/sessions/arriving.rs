//! Polls that come from the HTTP phase, of this shard or another one: they open a session, or wait for its messages.

use super::polling::has_ended;
use super::{NewConnection, Sessions, Transport};
use crate::protocol::poll_id::PollId;
use crate::reactor::Token;
use crate::shard::polls::{NewPolling, PassedPoll, Poll, PollContent, PollMessages};

/// Status of the answer when there is no room for more sessions.
const UNAVAILABLE: u16 = 503;

impl Sessions {
    /// Opens a session. Its client gets the answer when it is authenticated and its commands are done.
    pub fn open_polling(&mut self, new: NewPolling) {
        let connections_max = self.common.config.server.connections_max;
        if connections_max > 0 && self.common.polling_sessions() >= connections_max {
            self.common.counters().upgrade_refused_total.add(1);
            let messages = PollMessages {
                status: UNAVAILABLE,
                id: None,
                frames: Vec::new(),
                session: None,
            };
            return self.send_answer_to(new.poll, PollContent::Messages(messages));
        }
        self.open(NewConnection {
            socket: None,
            tls: None,
            admission: new.admission,
            transport: Transport::Polling(new.poll),
            early_input: new.lines,
            permit: None,
        });
    }

    /// A client polls.
    pub fn poll(&mut self, passed: PassedPoll) {
        let PassedPoll { id, poll, lines } = passed;
        let Some(slot) = self.polled(&id) else {
            self.common.counters().long_poll_stale_requests_total.add(1);
            return self.send_answer_to(poll, PollContent::Expired);
        };
        // One that its client has given up may come behind its successor, by way of another shard.
        if !has_ended(&poll) {
            self.send_away(slot);
            if !self.attach(slot, poll) {
                return;
            }
        }
        self.take_commands(slot, lines);
        self.go_on_polling(slot);
    }

    /// The session with this id.
    fn polled(&self, id: &PollId) -> Option<u32> {
        let token = Token {
            slot: id.slot,
            generation: id.generation,
        };
        let slot = self.table.slot_of(token)?;
        let polling = self.table.polls.find(slot)?;
        polling.has_secret(id.secret).then_some(slot)
    }

    /// Answers the poll that waits, because a newer one has come. It gets no messages: its client may have given it up.
    fn send_away(&mut self, slot: u32) {
        if let Some(older) = self.detach(slot) {
            self.common.counters().long_poll_stale_requests_total.add(1);
            let messages = PollMessages {
                status: 200,
                id: None,
                frames: Vec::new(),
                session: None,
            };
            self.send_answer_to(older, PollContent::Messages(messages));
        }
    }

    /// Makes a poll the one that waits. False when its socket cannot be watched.
    fn attach(&mut self, slot: u32, poll: Poll) -> bool {
        let now = self.table.now;
        self.table.polls.attach(slot, poll, now);
        match self.table.watch(slot) {
            Ok(()) => true,
            Err(error) => {
                self.log_unwatched(slot, &error);
                self.abandon(slot);
                false
            }
        }
    }

    /// Takes the commands that came with a poll, behind those of earlier ones.
    fn take_commands(&mut self, slot: u32, mut lines: Vec<u8>) {
        let session_bytes_max = self.common.bounds.session_bytes_max;
        let connection = &mut self.table.connections[slot as usize];
        if lines.is_empty() || !connection.is_open() {
            return;
        }
        if connection.held_bytes() + lines.len() >= session_bytes_max {
            return self.drop_slow_client(slot);
        }
        let held = connection.held.as_mut();
        let Some(held) = held.filter(|held| !held.unread.is_empty()) else {
            return self.take_early_input(slot, &mut lines);
        };
        let unread = &mut held.unread;
        unread.bytes.push(b'\n');
        unread.bytes.append(&mut lines);
        unread.charge = Some(self.common.budget.hold_anyway(unread.bytes.len()));
    }
}
