//! What becomes due with time: pings, missing pongs, write deadlines, and what restored subscriptions hold back.

use super::Sessions;
use super::closing::Cause;
use super::connection::Life;
use super::formats::{Encoding, PingFrames};
use super::resuming::RESUME_HOLD_TICKS;
use super::share::Share;
use crate::protocol::disconnect::{Close, DisconnectReason};
use crate::shard::notices::Notice;

impl Sessions {
    /// Serves the sessions whose deadline has passed.
    pub fn on_tick(&mut self) {
        let mut due = std::mem::take(&mut self.due_slots);
        self.table.wheel.expire(self.table.now, &mut due);
        let mut pings = PingFrames::default();
        for slot in due.drain(..) {
            self.on_due(slot, &mut pings);
        }
        self.due_slots = due;
        self.release_expired();
        self.drain_some();
    }

    fn on_due(&mut self, slot: u32, pings: &mut PingFrames) {
        if self.is_write_due(slot) {
            // The shard writes first: after a busy time it must not take its own delay for the client's.
            self.write_outbox(slot);
        }
        let Some(connection) = self.table.connections.get_mut(slot as usize) else {
            return;
        };
        if connection.format.encoding == Encoding::LINES {
            return self.go_on_polling(slot);
        }
        if connection.is_opening() {
            // Nothing is written before the answer, so there is no ping, and no write to be late with.
            let due = connection.session.deadlines.take_due(self.table.now);
            match due.ping && connection.reading().is_some() {
                true => self.on_reading_over(slot),
                false => self.table.set_timer(slot),
            }
            return;
        }
        if let Some(outbox) = &connection.outbox
            && outbox.deadline <= self.table.now
        {
            let messages = outbox.messages() as u64;
            let counters = self.common.counters();
            counters.timeout_server_msg_total.add(messages.min(1));
            counters.failed_server_msg_total.add(messages.min(1));
            self.record_slow_client(slot, "it took nothing within ws_write_timeout");
            return self.abort(slot, Cause::WriteTimeout);
        }
        match connection.life {
            Life::Opening | Life::Open => {}
            Life::Closing => return self.table.set_timer(slot),
            Life::Lingering => return self.release(slot),
        }
        if connection.outbox.is_some() && self.drop_if_stalled(slot) {
            return;
        }
        let connection = &mut self.table.connections[slot as usize];
        let due = connection.session.deadlines.take_due(self.table.now);
        if due.no_pong && connection.is_backed_up(&self.common.bounds) {
            // The pong may have arrived but is unread, because the server reads nothing from this client now.
            connection.session.deadlines.native_pong();
        } else if due.no_pong {
            self.log_no_pong(slot);
            let close = Close::NO_PONG;
            return self.disconnect(slot, DisconnectReason::NoPong, true, close, Cause::NoPong);
        }
        if due.ping && connection.reading().is_some() {
            return self.on_reading_over(slot);
        }
        // A client that does not receive what is queued gets no further pings. Its write deadline decides about it.
        if due.ping && connection.outbox.is_none() {
            self.writer.send_ping(&mut self.table, slot, pings);
        }
        self.table.set_timer(slot);
    }

    fn log_no_pong(&self, slot: u32) {
        if let Some(admitted) = self.common.notices.admit(Notice::NoPong) {
            tracing::warn!(
                context = "node",
                sid = self.table.sid(slot),
                shard = self.common.shard,
                left_out = admitted.left_out(),
                "disconnecting session due to no pongs"
            );
        }
    }

    fn is_write_due(&self, slot: u32) -> bool {
        let connection = self.table.connections.get(slot as usize);
        let outbox = connection
            .filter(|connection| !connection.is_opening() && connection.socket.is_some())
            .and_then(|connection| connection.outbox.as_ref());
        outbox.is_some_and(|outbox| outbox.deadline <= self.table.now)
    }

    /// Writes once more to a client that has much waiting. Returns true when it still received nothing and was dropped.
    /// Source: contract/websocket.md §11.
    fn drop_if_stalled(&mut self, slot: u32) -> bool {
        self.write_outbox(slot);
        let Some(connection) = self.table.connections.get(slot as usize) else {
            return true;
        };
        let (bounds, now) = (&self.common.bounds, self.table.now);
        let outbox = connection.outbox.as_ref();
        let stalled =
            connection.is_open() && outbox.is_some_and(|outbox| bounds.is_stalled(outbox, now));
        if stalled {
            self.drop_slow_client(slot);
        }
        stalled
    }

    /// Ends the time that restored subscriptions wait for their clients to ask for history. A client that has asked for one
    /// of them, or that has commands which have not been handled yet, may have asked for the others too, so these wait on.
    fn release_expired(&mut self) {
        for session in self.holdbacks.take_expired(self.table.now) {
            let slot = session.slot;
            if self.table.live(session).is_none() || !self.holdbacks.contains(slot) {
                continue;
            }
            self.read_what_has_come(slot);
            let Some(connection) = self.table.live(session) else {
                continue;
            };
            if connection.may_have_commands() {
                self.holdbacks
                    .expire_at(self.table.now + RESUME_HOLD_TICKS, session);
                continue;
            }
            for identifier in self.holdbacks.identifiers(slot) {
                self.release_held_back(slot, &identifier, None);
            }
        }
    }

    /// After a busy time the shard must not take its own delay for the client's.
    fn read_what_has_come(&mut self, slot: u32) {
        let connection = &mut self.table.connections[slot as usize];
        if connection.waits() {
            return;
        }
        connection.input_waiting = true;
        self.read(slot, &mut Share::new());
        if self.table.connections.contains(slot as usize) {
            self.table.schedule_rest(slot);
        }
    }
}
