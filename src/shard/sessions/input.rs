//! From readiness to commands: which session is served next, what was read, what a message asks for.

use std::io;
use std::time::Duration;

use super::Sessions;
use super::closing::Cause;
use super::connection::Life;
use super::formats::{Encoding, close_frame};
use super::reader::{Messages, Reader, Received};
use super::schedule::Place;
use super::share::{LOOK_COST, Share, TimeSlice};
use crate::log::cut_bytes;
use crate::mesh::MESSAGES_AHEAD_MAX;
use crate::protocol::command::{CommandKind, decode_command};
use crate::protocol::disconnect::Close;
use crate::reactor::Token;
use crate::session::CommandRefusal;
use crate::shard::notices::Notice;
use crate::shard::outbox::frame::Frame;
use crate::wire::websocket::frame::FrameError;
use crate::wire::websocket::message::Incoming;

/// How long a turn serves sessions; the others wait for the next turn.
const SERVING_TIME_MAX: Duration = Duration::from_millis(1);

impl Sessions {
    /// Takes the reactor's events and serves sessions, as far as one turn may.
    ///
    /// # Errors
    /// A broken reactor.
    pub fn harvest(&mut self) -> io::Result<()> {
        self.table.take_events()?;
        self.serve_some();
        Ok(())
    }

    /// Serves the sessions with something new first. After them at least one session that has used up an earlier share
    /// continues. It is only one while the shard is behind with its publications, because those sessions may be the ones
    /// that publish.
    fn serve_some(&mut self) {
        let time = TimeSlice::of_turn(SERVING_TIME_MAX);
        let mut paid = 0;
        while !self.writer.has_no_room()
            && let Some(token) = self.table.schedule.pop_fresh()
        {
            paid += self.serve(token);
            if paid >= LOOK_COST {
                paid = 0;
                if time.is_over() {
                    break;
                }
            }
        }
        // A session with more to do goes to the end of the queue; the count taken here ends the loop before it is served
        // twice.
        for _ in 0..self.table.schedule.unfinished_len() {
            if self.writer.has_no_room() {
                break;
            }
            let Some(token) = self.table.schedule.pop_unfinished() else {
                break;
            };
            self.serve(token);
            if time.is_over() || self.is_behind() {
                break;
            }
        }
    }

    fn is_behind(&self) -> bool {
        // This limit is below the one at which publishers must wait, so that whispers do not delay them.
        self.writer.is_full() || self.inbox.depth() > MESSAGES_AHEAD_MAX / 2
    }

    /// Gives a session its share of the turn. Returns the cost it has used.
    fn serve(&mut self, token: Token) -> u32 {
        let Some(slot) = self.table.slot_of(token) else {
            return 0;
        };
        let mut share = Share::new();
        let connection = &mut self.table.connections[slot as usize];
        connection.place = Place::Resting;
        if std::mem::take(&mut connection.write_ready) {
            self.write_outbox(slot);
            share.pay_writes();
        }
        self.go_on_replay(slot);
        if self.table.slot_of(token).is_some() {
            self.on_input(slot, &mut share);
        }
        if self.table.slot_of(token).is_some() {
            if share.is_used_up() {
                self.table.connections[slot as usize].place = Place::Greedy;
            }
            self.table.schedule_rest(slot);
        }
        share.paid()
    }

    fn on_input(&mut self, slot: u32, share: &mut Share) {
        let connection = &self.table.connections[slot as usize];
        match connection.life {
            Life::Opening | Life::Open => {}
            Life::Closing => return,
            Life::Lingering => return self.on_lingering_input(slot),
        }
        if !connection.waits() {
            return self.read(slot, share);
        }
        if connection.end_seen && !connection.session.is_authenticated() {
            // The client has left before it was welcomed, so the app need not be asked.
            self.begin_close(slot, None, Cause::Client);
        }
    }

    /// Processes what was read before, then reads until the kernel has no more, the session waits for a call, or its share
    /// is used up.
    pub(super) fn read(&mut self, slot: u32, share: &mut Share) {
        // Taken out of `self`, because messages borrow from it while they are handled.
        let mut reader = std::mem::take(&mut self.reader);
        self.take_up_unread(&mut reader.messages, slot, share);
        self.read_behind_poll(slot, &mut reader, share);
        while let Some(connection) = self.table.connections.get_mut(slot as usize) {
            let listens = connection.is_open()
                && connection.listens()
                && !connection.is_backed_up(&self.common.bounds);
            if !listens || !connection.input_waiting || share.is_used_up() {
                break;
            }
            match reader.receive(connection, share) {
                Received::Plain(bytes) => {
                    let input = &mut reader.buffer[..bytes];
                    self.take_up_or_keep(&mut reader.messages, slot, input, share);
                }
                Received::Records(bytes) => self.on_records(&mut reader, slot, bytes, share),
                Received::Nothing => {}
                Received::End => self.begin_close(slot, None, Cause::Client),
            }
        }
        self.reader = reader;
    }

    /// Processes the bytes that came after the request head.
    pub(super) fn take_early_input(&mut self, slot: u32, input: &mut [u8]) {
        if input.is_empty() {
            return;
        }
        let mut reader = std::mem::take(&mut self.reader);
        self.take_up_or_keep(&mut reader.messages, slot, input, &mut Share::new());
        self.reader = reader;
        if self.table.connections.contains(slot as usize) {
            self.table.schedule_rest(slot);
        }
    }

    /// Decrypts what came from the socket. Records that TLS has to send in return go out with the flush.
    fn on_records(&mut self, reader: &mut Reader, slot: u32, bytes: usize, share: &mut Share) {
        let connection = &mut self.table.connections[slot as usize];
        let decrypted = reader.decrypt(connection, bytes);
        if connection.tls.as_ref().is_some_and(|tls| tls.has_output()) {
            self.send(slot, Frame::flush_only());
        }
        self.take_up_or_keep(&mut reader.messages, slot, &mut reader.plain, share);
        reader.plain.clear();
        if let Err(error) = decrypted
            && self.table.connections.contains(slot as usize)
        {
            self.common.counters().tls_errors_total.add(1);
            let (sid, shard) = (self.table.sid(slot), self.common.shard);
            tracing::debug!(sid, shard, %error, "closing after a TLS error");
            self.begin_close(slot, None, Cause::ProtocolError);
        }
    }

    /// Processes input and stores the rest, if the session is still open.
    fn take_up_or_keep(
        &mut self,
        messages: &mut Messages,
        slot: u32,
        input: &mut [u8],
        share: &mut Share,
    ) {
        let taken = self.take_up(messages, slot, input, share);
        if let Some(connection) = self.table.connections.get_mut(slot as usize)
            && connection.is_open()
            && taken < input.len()
        {
            let unread = &mut connection.held.get_or_insert_default().unread;
            unread.bytes.extend_from_slice(&input[taken..]);
            // Charged without a check: it is at most what one read brings and decrypts to.
            unread.charge = Some(self.common.budget.hold_anyway(unread.bytes.len()));
        }
    }

    /// Continues with the input that was stored when the session had to wait.
    fn take_up_unread(&mut self, messages: &mut Messages, slot: u32, share: &mut Share) {
        let connection = &mut self.table.connections[slot as usize];
        let Some(held) = &mut connection.held else {
            return;
        };
        let mut unread = std::mem::take(&mut held.unread);
        unread.start += self.take_up(messages, slot, &mut unread.bytes[unread.start..], share);
        let Some(connection) = self.table.connections.get_mut(slot as usize) else {
            return;
        };
        if let Some(held) = &mut connection.held {
            if !unread.is_empty() {
                held.unread = unread;
            } else if held.is_over() {
                connection.held = None;
            }
        }
        self.answer_if_decided(slot);
        self.go_on_polling(slot);
    }

    /// Decodes input and acts on it until the session's share is used up, a call has begun, the batch must be written first,
    /// or the session has ended. Returns how many bytes were processed.
    fn take_up(
        &mut self,
        messages: &mut Messages,
        slot: u32,
        input: &mut [u8],
        share: &mut Share,
    ) -> usize {
        let connection = &mut self.table.connections[slot as usize];
        let encoding = connection.format.encoding;
        if encoding == Encoding::LINES {
            return self.take_up_lines(slot, input, share, Self::on_message);
        }
        if encoding.is_events() {
            // What a client sends after its request is thrown away, because nothing can be asked there.
            return match connection.is_opening() {
                true => self.take_up_lines(slot, input, share, Self::on_line),
                false => input.len(),
            };
        }
        if encoding.is_reader() {
            // Nothing can be asked behind the request.
            return input.len();
        }
        let limits = messages.begin(&self.common, connection);
        let mut taken = 0;
        while taken < input.len() && self.takes_more(slot, share) {
            match messages.next(&mut input[taken..], &limits) {
                Ok((bytes, incoming)) => {
                    taken += bytes;
                    share.pay_frames(bytes);
                    if let Some(incoming) = incoming {
                        self.on_incoming(slot, incoming, share);
                    }
                }
                Err(error) => {
                    self.on_violation(slot, &error);
                    break;
                }
            }
        }
        if !messages.end(&self.common, &mut self.table, slot) {
            let close = Close::NO_MEMORY;
            self.send(slot, close_frame(Some(close.code), close.reason));
            self.begin_close(slot, None, Cause::Error);
        }
        taken
    }

    /// Acts on the lines of a request. Returns how many bytes were processed.
    fn take_up_lines(
        &mut self,
        slot: u32,
        input: &[u8],
        share: &mut Share,
        on_line: fn(&mut Self, u32, &[u8], &mut Share),
    ) -> usize {
        let mut taken = 0;
        while taken < input.len() && self.takes_more(slot, share) {
            let rest = &input[taken..];
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            taken += (end + 1).min(rest.len());
            share.pay_frames(end);
            let line = rest[..end].trim_ascii();
            if !line.is_empty() {
                share.pay_message(line.len());
                on_line(self, slot, line, share);
            }
        }
        taken
    }

    /// Each line subscribes, whatever its command is called. Source: contract/http_transports.md §1.3.
    fn on_line(&mut self, slot: u32, line: &[u8], _share: &mut Share) {
        let mut command = match decode_command(line) {
            Ok(Some(command)) => command,
            // The lines were checked when the request was read.
            Ok(None) | Err(_) => return self.refuse_request(slot),
        };
        command.kind = CommandKind::Subscribe;
        let identifier = command.identifier.clone();
        let result = self.with_session(slot, true, |session, context, steps| {
            session.on_command(context, command, steps)
        });
        match result {
            Ok(()) => self.refuse_if_rejected(slot, &identifier),
            Err(error) => {
                self.note_bound(slot, &error, line.len());
                self.refuse_message(slot, line, Notice::CommandRefused, &error);
                self.refuse_request(slot);
            }
        }
    }

    /// Whether another message of the session may be handled now.
    fn takes_more(&self, slot: u32, share: &Share) -> bool {
        let Some(connection) = self.table.connections.get(slot as usize) else {
            return false;
        };
        let full = self.writer.has_no_room() || connection.is_backed_up(&self.common.bounds);
        connection.is_open() && !connection.waits() && !share.is_used_up() && !full
    }

    fn on_violation(&mut self, slot: u32, error: &FrameError) {
        let (sid, shard) = (self.table.sid(slot), self.common.shard);
        tracing::debug!(sid, shard, %error, "closing after a protocol violation");
        let frame = close_frame(Some(error.close_code()), &error.close_reason());
        self.send(slot, frame);
        self.begin_close(slot, None, Cause::ProtocolError);
    }

    fn on_incoming(&mut self, slot: u32, incoming: Incoming<'_>, share: &mut Share) {
        match incoming {
            Incoming::Text(payload) | Incoming::Binary(payload) => {
                share.pay_message(payload.len());
                self.on_message(slot, payload, share);
            }
            Incoming::Ping(payload) => self.send_pong(slot, payload),
            Incoming::Pong(_) => self.table.connections[slot as usize]
                .session
                .deadlines
                .native_pong(),
            Incoming::Close(code) => {
                self.send(slot, close_frame(code, ""));
                self.begin_close(slot, None, Cause::Client);
            }
        }
    }

    fn on_message(&mut self, slot: u32, payload: &[u8], share: &mut Share) {
        if self.watchers.contains(slot) {
            return self.on_console_message(slot, payload);
        }
        let counters = self.common.counters();
        counters.data_rcvd_total.add(payload.len() as u64);
        let command = match decode_command(payload) {
            Ok(Some(command)) => command,
            Ok(None) => return,
            Err(error) => {
                return self.refuse_message(slot, payload, Notice::MessageUnreadable, &error);
            }
        };
        counters.client_msg_total.add(1);
        if command.kind == CommandKind::Whisper {
            share.pay_whisper();
        }
        self.table.connections[slot as usize]
            .session
            .deadlines
            .sign_of_life();
        tracing::debug!(
            context = "node",
            sid = self.table.sid(slot),
            shard = self.common.shard,
            data = %cut_bytes(payload),
            "incoming message"
        );
        let may_subscribe = command.kind == CommandKind::Subscribe;
        let result = self.with_session(slot, may_subscribe, |session, context, steps| {
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

    /// Counts and logs that a command was refused because there was no room.
    fn note_bound(&self, slot: u32, refusal: &CommandRefusal, bytes: usize) {
        match refusal {
            CommandRefusal::NoRoomInSession => {
                self.note_full_session(slot, "it is refused a subscription");
            }
            CommandRefusal::NoMemory => self.common.budget.note_refusal(bytes),
            _ => {}
        }
    }

    /// Counts a message without effect and logs it, at debug level when the rate limit does not allow a warning.
    fn refuse_message(
        &self,
        slot: u32,
        payload: &[u8],
        notice: Notice,
        error: &dyn std::error::Error,
    ) {
        self.common.counters().failed_client_msg_total.add(1);
        let Some(admitted) = self.common.notices.admit(notice) else {
            tracing::debug!(
                context = "node",
                sid = self.table.sid(slot),
                shard = self.common.shard,
                data = %cut_bytes(payload),
                %error,
                "failed to handle incoming message"
            );
            return;
        };
        tracing::warn!(
            context = "node",
            sid = self.table.sid(slot),
            shard = self.common.shard,
            data = %cut_bytes(payload),
            %error,
            left_out = admitted.left_out(),
            "failed to handle incoming message"
        );
    }
}
