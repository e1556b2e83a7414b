//! From readiness to commands: reading, decoding, and waiting while a call is under way.

use std::io;
use std::time::Duration;

use super::schedule::Place;
use super::share::{LOOK_COST, Share, TimeSlice};
use super::{Cause, Life, Sessions};
use crate::log::cut_bytes;
use crate::mesh::MESSAGES_AHEAD_MAX;
use crate::protocol::command::{CommandKind, decode_command};
use crate::reactor::{Readiness, Token};
use crate::session::CommandRefusal;
use crate::shard::notices::Notice;
use crate::shard::outbox::frame::Frame;
use crate::wire::websocket::frame;
use crate::wire::websocket::message::Incoming;

/// How long a turn may serve sessions; the others wait for the next one.
const SERVING_TIME_MAX: Duration = Duration::from_millis(1);
/// Looks at the kernel's list of events in one turn: a client may cause thousands of them.
const HARVESTS_PER_TURN_MAX: usize = 4;
/// Bytes of a session with TLS that are read at once: they may be nearly two hundred records.
const RECORDS_READ_BYTES: usize = 4 << 10;

impl Sessions {
    /// Takes the reactor's events and serves sessions, as far as one turn may.
    pub fn harvest(&mut self) -> io::Result<()> {
        self.take_events()?;
        self.serve_some();
        Ok(())
    }

    fn take_events(&mut self) -> io::Result<()> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        for _ in 0..HARVESTS_PER_TURN_MAX {
            self.more_events = self.reactor.harvest(&mut events)?;
            for event in events.drain(..) {
                self.on_event(event);
            }
            if !self.more_events {
                break;
            }
        }
        self.events = events;
        let counts = self.reactor.take_counts();
        self.counters().cq_overflows_total.add(counts.overflows);
        self.counters().poll_rearms_total.add(counts.rearms);
        Ok(())
    }

    /// Notes what an event says. However many come of one session, it is served once in a turn.
    fn on_event(&mut self, event: Readiness) {
        let Some(slot) = self.slot_of(event.token) else {
            self.counters().stale_events_total.add(1);
            return;
        };
        let connection = &mut self.connections[slot as usize];
        if event.writable {
            connection.write_watched = false;
            connection.write_ready = true;
        }
        connection.input_waiting |= event.readable || event.closed;
        connection.end_seen |= event.closed;
        match std::mem::replace(&mut connection.place, Place::Scheduled) {
            Place::Resting => self.schedule.push_fresh(event.token),
            Place::Greedy => self.schedule.push_unfinished(event.token),
            Place::Scheduled => {}
        }
    }

    /// Serves those first who have something new. One at least of those who had their share goes on as well, and no more than
    /// one while the shard is behind with what is published: they may be who publishes.
    fn serve_some(&mut self) {
        let time = TimeSlice::new(SERVING_TIME_MAX);
        let mut paid = 0;
        while !self.batch.has_no_room()
            && let Some(token) = self.schedule.pop_fresh()
        {
            paid += self.serve(token);
            if paid >= LOOK_COST {
                paid = 0;
                if time.is_over() {
                    break;
                }
            }
        }
        // Who has more again stands behind the others: nobody is served twice.
        for _ in 0..self.schedule.unfinished_len() {
            if self.batch.has_no_room() {
                break;
            }
            let Some(token) = self.schedule.pop_unfinished() else {
                break;
            };
            self.serve(token);
            if time.is_over() || self.is_behind() {
                break;
            }
        }
    }

    fn is_behind(&self) -> bool {
        // Earlier than publishers have to wait: whispers are not to hold them up.
        self.batch.is_full() || self.inbox.depth() > MESSAGES_AHEAD_MAX / 2
    }

    /// Gives a session its share of the turn. Returns what it has paid.
    fn serve(&mut self, token: Token) -> u32 {
        let Some(slot) = self.slot_of(token) else {
            return 0;
        };
        let mut share = Share::new();
        let connection = &mut self.connections[slot as usize];
        connection.place = Place::Resting;
        if std::mem::take(&mut connection.write_ready) {
            self.write_outbox(slot);
            share.pay_writes();
        }
        if self.slot_of(token).is_some() {
            self.on_input(slot, &mut share);
        }
        if self.slot_of(token).is_some() {
            if share.is_used_up() {
                self.connections[slot as usize].place = Place::Greedy;
            }
            self.schedule_rest(slot);
        }
        share.paid()
    }

    /// Puts a session that had its share behind the others.
    pub(super) fn schedule_rest(&mut self, slot: u32) {
        let token = self.token(slot);
        let connection = &mut self.connections[slot as usize];
        if connection.is_ready(&self.bounds) && connection.place != Place::Scheduled {
            connection.place = Place::Scheduled;
            self.schedule.push_unfinished(token);
        }
    }

    fn on_input(&mut self, slot: u32, share: &mut Share) {
        let connection = &self.connections[slot as usize];
        match connection.life {
            Life::Open => {}
            Life::Closing => return,
            Life::Lingering => return self.on_lingering_input(slot),
        }
        if !connection.has_call() {
            return self.read(slot, share);
        }
        if connection.end_seen && !connection.session.is_authenticated() {
            // Nobody is left to be welcomed: the app need not be asked.
            self.begin_close(slot, None, Cause::Client);
        }
    }

    /// Goes on with what had been read, then reads until the kernel has no more, the session has to wait for a call, or it had
    /// its share.
    ///
    /// A read that does not fill the buffer has emptied the socket, and what comes later is a new event: the read that would
    /// only say "would block" is saved. Not so when the far end may have closed: its end comes behind the last byte and is
    /// no event of its own any more.
    pub(super) fn read(&mut self, slot: u32, share: &mut Share) {
        self.process_unread(slot, share);
        let mut buffer = std::mem::take(&mut self.read_buffer);
        while let Some(connection) = self.connections.get_mut(slot as usize) {
            let listens = connection.is_open()
                && connection.held.is_none()
                && !connection.is_backed_up(&self.bounds);
            if !listens || !connection.input_waiting || share.is_used_up() {
                break;
            }
            let encrypted = connection.tls.is_some();
            let room = if encrypted {
                RECORDS_READ_BYTES
            } else {
                buffer.len()
            };
            match connection.receive(&mut buffer[..room]) {
                Ok(0) => self.begin_close(slot, None, Cause::Client),
                Ok(bytes) => {
                    // With TLS the end may also stand in the bytes.
                    connection.input_waiting = bytes == room || connection.end_seen || encrypted;
                    share.pay_read(bytes, encrypted);
                    self.process_bytes(slot, &mut buffer[..bytes], share);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.input_waiting = false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.begin_close(slot, None, Cause::Client),
            }
        }
        self.read_buffer = buffer;
    }

    fn process_bytes(&mut self, slot: u32, bytes: &mut [u8], share: &mut Share) {
        if self.connections[slot as usize].tls.is_some() {
            self.process_records(slot, bytes, share);
        } else {
            self.process_input(slot, bytes, share);
        }
    }

    /// Decrypts what came from the socket. Records that TLS wants to send in return go out with the flush.
    fn process_records(&mut self, slot: u32, records: &mut [u8], share: &mut Share) {
        let Some(tls) = &mut self.connections[slot as usize].tls else {
            return;
        };
        let mut plain = std::mem::take(&mut self.plain_buffer);
        let decrypted = tls.decrypt(records, &mut plain);
        if tls.has_output() {
            self.send(slot, Frame::flush_only());
        }
        self.process_input(slot, &mut plain, share);
        plain.clear();
        self.plain_buffer = plain;
        if let Err(error) = decrypted
            && self.connections.contains(slot as usize)
        {
            self.counters().tls_errors_total.add(1);
            tracing::debug!(sid = self.sid(slot), shard = self.shard, %error, "closing after a TLS error");
            self.begin_close(slot, None, Cause::ProtocolError);
        }
    }

    /// Takes input up, as far as the session's share goes and no call keeps it; the rest is kept.
    pub(super) fn process_input(&mut self, slot: u32, input: &mut [u8], share: &mut Share) {
        let taken = self.take_up(slot, input, share);
        if let Some(connection) = self.connections.get_mut(slot as usize)
            && connection.is_open()
            && taken < input.len()
        {
            let unread = &mut connection.held.get_or_insert_default().unread;
            unread.bytes.extend_from_slice(&input[taken..]);
            // As much as one read brings, and what it decrypts to.
            unread.charge = Some(self.budget.hold_anyway(unread.bytes.len()));
        }
    }

    /// Goes on with what had been read before the session had to wait.
    fn process_unread(&mut self, slot: u32, share: &mut Share) {
        let connection = &mut self.connections[slot as usize];
        let Some(held) = &mut connection.held else {
            return;
        };
        let mut unread = std::mem::take(&mut held.unread);
        unread.start += self.take_up(slot, &mut unread.bytes[unread.start..], share);
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        if let Some(held) = &mut connection.held {
            if !unread.is_empty() {
                held.unread = unread;
            } else if held.call.is_none() {
                connection.held = None;
            }
        }
    }

    /// Decodes input and acts on it until the session's share is used up, a call has begun, the batch has to be written first,
    /// or the session has ended. Returns how many bytes are done with. What is left of an unfinished message is charged.
    fn take_up(&mut self, slot: u32, input: &mut [u8], share: &mut Share) -> usize {
        self.release_partial(slot);
        let taken = self.decode_input(slot, input, share);
        self.charge_partial(slot);
        taken
    }

    fn decode_input(&mut self, slot: u32, input: &mut [u8], share: &mut Share) -> usize {
        let mut inflated = std::mem::take(&mut self.inflate_buffer);
        let mut taken = 0;
        while taken < input.len() {
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                break;
            };
            let full = self.batch.has_no_room() || connection.is_backed_up(&self.bounds);
            if !connection.is_open() || connection.has_call() || share.is_used_up() || full {
                break;
            }
            // The decoder is taken out so that its borrow does not last while the event is handled.
            let mut decoder = std::mem::take(&mut connection.decoder);
            self.limits.deflate = connection.deflate;
            let limits = self.limits;
            match decoder.next(&mut input[taken..], &limits, &mut inflated) {
                Ok((bytes, event)) => {
                    taken += bytes;
                    share.pay_frames(bytes);
                    if let Some(event) = event {
                        self.on_incoming(slot, event, share);
                    }
                }
                Err(error) => {
                    tracing::debug!(sid = self.sid(slot), shard = self.shard, %error, "closing after a protocol violation");
                    self.send_control(
                        slot,
                        frame::close_frame(Some(error.close_code()), &error.close_reason()),
                    );
                    self.begin_close(slot, None, Cause::ProtocolError);
                    break;
                }
            }
            match self.connections.get_mut(slot as usize) {
                Some(connection) => connection.decoder = decoder,
                None => break,
            }
        }
        inflated.clear();
        self.inflate_buffer = inflated;
        taken
    }

    fn on_incoming(&mut self, slot: u32, event: Incoming<'_>, share: &mut Share) {
        match event {
            Incoming::Text(payload) | Incoming::Binary(payload) => {
                share.pay_message(payload.len());
                self.on_message(slot, payload, share);
            }
            Incoming::Ping(payload) => self.send_pong(slot, payload),
            Incoming::Pong(_) => self.connections[slot as usize]
                .session
                .deadlines
                .native_pong(),
            Incoming::Close(code) => {
                self.send_control(slot, frame::close_frame(code, ""));
                self.begin_close(slot, None, Cause::Client);
            }
        }
    }

    fn on_message(&mut self, slot: u32, payload: &[u8], share: &mut Share) {
        if self.console.contains(slot) {
            return self.on_console_message(slot, payload);
        }
        self.counters().data_rcvd_total.add(payload.len() as u64);
        let command = match decode_command(payload) {
            Ok(Some(command)) => command,
            Ok(None) => return,
            Err(error) => {
                return self.refuse_message(slot, payload, Notice::MessageUnreadable, &error);
            }
        };
        self.counters().client_msg_total.add(1);
        if command.kind == CommandKind::Whisper {
            share.pay_whisper();
        }
        self.connections[slot as usize]
            .session
            .deadlines
            .sign_of_life();
        tracing::debug!(
            context = "node",
            sid = self.sid(slot),
            shard = self.shard,
            data = %cut_bytes(payload),
            "incoming message"
        );
        let result = self.with_session(slot, |session, context, steps| {
            session.on_command(context, command, steps)
        });
        if let Err(error) = result {
            self.note_bound(slot, &error, payload.len());
            let notice = match error {
                CommandRefusal::AlreadySubscribed(_) => Notice::AlreadySubscribed,
                _ => Notice::CommandRefused,
            };
            self.refuse_message(slot, payload, notice, &error);
        }
    }

    /// Counts a message without effect, and logs it: those that the rate leaves out are debug records.
    fn refuse_message(
        &self,
        slot: u32,
        payload: &[u8],
        notice: Notice,
        error: &dyn std::error::Error,
    ) {
        self.counters().failed_client_msg_total.add(1);
        let Some(admitted) = self.notices.admit(notice) else {
            tracing::debug!(
                context = "node",
                sid = self.sid(slot),
                shard = self.shard,
                data = %cut_bytes(payload),
                %error,
                "failed to handle incoming message"
            );
            return;
        };
        tracing::warn!(
            context = "node",
            sid = self.sid(slot),
            shard = self.shard,
            data = %cut_bytes(payload),
            %error,
            left_out = admitted.left_out(),
            "failed to handle incoming message"
        );
    }
}
