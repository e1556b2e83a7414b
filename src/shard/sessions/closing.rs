//! Ends of sessions: by the client, by the app, by a limit, by a broken socket, by the drain. No other file ends one.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::connection::Life;
use super::formats::Encoding;
use super::polls::Stage;
use super::writer::Outcome;
use super::{Action, Sessions};
use crate::config::DisconnectMode;
use crate::log::recent;
use crate::metrics::{Counter, ShardMetrics};
use crate::protocol::disconnect::{Close, DisconnectReason};
use crate::protocol::publication::RemoteDisconnect;
use crate::protocol::reply::Reply;
use crate::session::Tick;
use crate::shard::notices::Notice;
use crate::shard::timers::TICK;

/// Unread input is discarded up to this much when the server closes. Otherwise the kernel would send RST instead of FIN, and
/// the RST could overtake the reason.
const DISCARDED_BYTES_MAX: usize = 256 << 10;
/// During a drain, a client that has received everything has this long to close its side. The socket stays open until then:
/// when a container's network ends with its last process, the kernel drops bytes that are not acknowledged.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_TICKS: Tick = (LINGER.as_millis() / TICK.as_millis()) as Tick;

/// Status of the answer to a poll of a session that has ended.
const ENDED: u16 = 200;
/// The same for a client that is refused as a session.
const REFUSED: u16 = 401;
/// The same when nobody could say whether it is welcome.
const UNAVAILABLE: u16 = 503;

/// Why a session ends, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Client,
    Remote,
    NoPong,
    TooSlow,
    WriteTimeout,
    ProtocolError,
    Auth,
    Shutdown,
    Error,
}

impl Sessions {
    /// Closes every session with these connection identifiers. Source: contract/broadcast.md §7 (DECIDE: all of them).
    pub fn remote_disconnect(&mut self, command: &RemoteDisconnect) {
        self.forget_kept(command);
        for slot in self.table.identities.candidates(&command.identifiers) {
            let session = &self.table.connections[slot as usize].session;
            if session.identifiers() == &*command.identifiers {
                let (reason, reconnect) = (DisconnectReason::Remote, command.reconnect);
                self.disconnect(slot, reason, reconnect, Close::REMOTE, Cause::Remote);
            }
        }
    }

    /// Ends a session because the server shuts down.
    pub(super) fn close_for_shutdown(&mut self, slot: u32) {
        let (reason, close) = (DisconnectReason::ServerRestart, Close::SERVER_RESTART);
        self.disconnect(slot, reason, true, close, Cause::Shutdown);
    }

    /// Ends a session that has too much waiting.
    pub(super) fn drop_slow_client(&mut self, slot: u32) {
        let max = self.common.config.websocket.pending_bytes_max;
        let why = self.why_slow(slot);
        tracing::debug!(
            context = "node",
            sid = self.table.sid(slot),
            shard = self.common.shard,
            max,
            "slow client detected, disconnecting"
        );
        let counters = self.common.counters();
        counters.disconnected_slow_clients_total.add(1);
        self.record_slow_client(slot, why);
        self.writer.clear_queue(&mut self.table, slot);
        let (reason, close) = (DisconnectReason::TooSlow, Close::SLOW);
        self.disconnect(slot, reason, true, close, Cause::TooSlow);
    }

    /// The text for the console why no more may be queued for a client. Also counts and logs the limit on the session's
    /// bytes.
    fn why_slow(&self, slot: u32) -> &'static str {
        let connection = &self.table.connections[slot as usize];
        let holds_much_back = self.holdbacks.bytes(slot) > self.common.bounds.session_bytes_max;
        let is_full = holds_much_back || connection.is_full(&self.common.bounds);
        if is_full {
            self.note_full_session(slot, "it is dropped as a slow client");
        }
        let outbox = connection.outbox.as_ref();
        if outbox.is_some_and(|outbox| self.common.bounds.is_much(outbox)) {
            "its outbox passed ws_max_pending_size"
        } else if is_full {
            "it holds session_bytes_max"
        } else {
            "the memory for clients is used up and it does not take what waits"
        }
    }

    /// Records the slow client for the console.
    pub(super) fn record_slow_client(&self, slot: u32, why: &str) {
        let outbox = &self.table.connections[slot as usize].outbox;
        let pending_bytes = outbox.as_ref().map_or(0, |outbox| outbox.pending_bytes());
        recent::slow_client(self.table.sid(slot), self.common.shard, why, pending_bytes);
    }

    /// Counts and logs that a session has reached `session_bytes_max`.
    pub(super) fn note_full_session(&self, slot: u32, consequence: &str) {
        let counters = self.common.counters();
        counters.session_bytes_exceeded_total.add(1);
        if let Some(admitted) = self.common.notices.admit(Notice::SessionFull) {
            tracing::warn!(
                context = "node",
                sid = self.table.sid(slot),
                shard = self.common.shard,
                max = self.common.bounds.session_bytes_max,
                left_out = admitted.left_out(),
                "a session holds as much as session_bytes_max allows, {consequence}"
            );
        }
    }

    /// Queues the disconnect message and the close frame. The limit on pending bytes does not apply to these two.
    pub(super) fn disconnect(
        &mut self,
        slot: u32,
        reason: DisconnectReason,
        reconnect: bool,
        close: Close,
        cause: Cause,
    ) {
        if !self.table.connections[slot as usize].is_open() {
            return;
        }
        // Also a client whose request is not answered learns why.
        self.accept_request(slot);
        let reply = Reply::Disconnect { reason, reconnect };
        self.writer.send_last_reply(&mut self.table, slot, &reply);
        self.begin_close(slot, Some(close), cause);
    }

    /// Ends the session. Its socket is closed after everything that is queued, the close frame last, has been written.
    pub(super) fn begin_close(&mut self, slot: u32, close: Option<Close>, cause: Cause) {
        if !self.table.connections[slot as usize].is_open() {
            return;
        }
        if let Some(close) = close {
            self.send_end(slot, &close);
        } else if self.table.connections[slot as usize].is_opening() {
            self.writer.drop_queue(&mut self.table, slot);
        }
        self.end_session(slot, cause);
        let connection = &self.table.connections[slot as usize];
        if connection.format.encoding == Encoding::LINES {
            return self.end_polling(slot, cause);
        }
        if connection.deliveries.is_empty() && connection.outbox.is_none() {
            self.finish_close(slot);
        } else {
            self.table.set_timer(slot);
        }
    }

    /// True when nobody has to get anything of an ended session any more.
    pub(super) fn is_over(&self, slot: u32) -> bool {
        let connection = &self.table.connections[slot as usize];
        let polling = self.table.polls.find(slot);
        polling.is_some_and(|polling| match polling.stage {
            _ if polling.answering.is_some() => false,
            Stage::New | Stage::Open => false,
            // While the server stops, no client polls again.
            Stage::Ended(ENDED) => {
                let has_messages = connection.outbox.is_some() || !connection.deliveries.is_empty();
                polling.waiting.is_none() && (self.drain.has_begun || !has_messages)
            }
            Stage::Ended(_) => polling.waiting.is_none(),
        })
    }

    /// The client of an ended session gets what is queued with the poll that waits, or with its next one.
    fn end_polling(&mut self, slot: u32, cause: Cause) {
        let Some(polling) = self.table.polls.find_mut(slot) else {
            return;
        };
        polling.stage = Stage::Ended(match (polling.stage, cause) {
            // Its client is just being told that it is welcome.
            _ if polling.answering.is_some() => ENDED,
            (Stage::New, Cause::Error) => UNAVAILABLE,
            (Stage::New, _) => REFUSED,
            _ => ENDED,
        });
        if polling.waiting.is_some() {
            polling.due = self.table.now;
        }
        match self.is_over(slot) {
            true => self.release(slot),
            false => self.table.set_timer(slot),
        }
    }

    /// Queues the last that a client gets.
    fn send_end(&mut self, slot: u32, close: &Close) {
        let frame = if let Some(refusal) = self.refusal(slot, close) {
            self.writer.drop_queue(&mut self.table, slot);
            Some(refusal)
        } else {
            self.table.connections[slot as usize].format.end(close)
        };
        if let Some(frame) = frame {
            self.writer.send_last(&mut self.table, slot, frame);
        }
    }

    /// Acts on what a write means for its session.
    pub(super) fn settle_written(&mut self, slot: u32, outcome: Outcome) {
        match outcome {
            Outcome::GoesOn => {}
            Outcome::Drained => self.finish_close(slot),
            Outcome::Gathered => {}
            Outcome::Failed { messages } => {
                let counters = self.common.counters();
                counters.failed_server_msg_total.add(messages);
                self.abort(slot, Cause::Client);
            }
        }
    }

    /// Ends a session whose connection is broken or out of time. Nothing more is sent to the client.
    pub(super) fn abort(&mut self, slot: u32, cause: Cause) {
        if self.table.connections[slot as usize].is_open() {
            self.end_session(slot, cause);
        }
        self.release(slot);
    }

    /// Removes the session from everything that refers to it; the socket stays. Happens once per session.
    fn end_session(&mut self, slot: u32, cause: Cause) {
        self.table.open_sessions -= 1;
        self.keep_session(slot, cause);
        self.end_presence(slot);
        let connection = &mut self.table.connections[slot as usize];
        let is_answered = connection.life == Life::Open;
        if let Some(reading) = connection.reading() {
            let counters = self.common.counters();
            let waiting = i64::from(reading.is_waiting());
            counters.ds_poll_clients_num.sub(waiting);
            let gets_events = i64::from(reading.gets_events());
            counters.ds_sse_clients_num.sub(gets_events);
        }
        connection.life = Life::Closing;
        let before = connection.session.own_bytes();
        let tells_the_app = self.common.config.disconnect.mode != DisconnectMode::Never;
        match connection.held.take().and_then(|held| held.call) {
            Some(call) if tells_the_app && call.handle.must_end() => {
                call.handle
                    .leave_behind(connection.session.depart(&self.hub, slot));
                self.departed += 1;
            }
            call => {
                if let Some(call) = call {
                    call.handle.cancel();
                    self.actions.push(Action::Canceled(call.handle));
                }
                if let Some(disconnect_call) =
                    connection.session.take_disconnect_call(&self.hub, slot)
                {
                    self.actions.push(Action::Disconnect(disconnect_call));
                }
            }
        }
        self.common.recharge(before, connection.session.own_bytes());
        let registered = self.table.identities.contains(slot);
        self.table.identities.forget(slot);
        self.hub.remove_session(slot);
        self.common.budget.release(self.holdbacks.forget(slot));
        let was_console = self.watchers.remove(slot);
        let counters = self.common.counters();
        counters.clients_num.sub(i64::from(registered));
        let format = self.table.connections[slot as usize].format;
        if is_answered && format.encoding.is_events() {
            counters.sse_clients_num.sub(1);
        }
        let polls = format.encoding == Encoding::LINES;
        counters.long_poll_clients_num.sub(i64::from(polls));
        let (reason, counter) = close_reason(counters, cause);
        counter.add(u64::from(!was_console));
        tracing::debug!(
            sid = self.table.sid(slot),
            shard = self.common.shard,
            cause = reason,
            "{} session completed",
            format.transport()
        );
    }

    /// Continues a close when everything has been written.
    fn finish_close(&mut self, slot: u32) {
        self.say_close_notify(slot);
        if self.drain.has_begun {
            return self.linger(slot);
        }
        if let Some(socket) = &self.table.connections[slot as usize].socket {
            discard_input(socket, &mut self.reader.buffer);
        }
        self.release(slot);
    }

    /// With TLS the client must be able to distinguish this end from a cut connection. The outbox is empty, so a socket that
    /// takes no bytes now has lost its client and the error can be ignored.
    fn say_close_notify(&mut self, slot: u32) {
        let connection = &mut self.table.connections[slot as usize];
        if let (Some(tls), Some(mut socket)) = (&mut connection.tls, connection.socket.as_ref()) {
            let mut records = Vec::new();
            tls.close(&mut records);
            let _ = socket.write(&records);
        }
    }

    /// Closes the writing side, so that the client sees the end after the last bytes. Then waits until the client closes
    /// too, which shows that everything has arrived.
    fn linger(&mut self, slot: u32) {
        let connection = &mut self.table.connections[slot as usize];
        let socket = connection.socket.as_ref();
        if socket.is_none_or(|socket| socket.shutdown(Shutdown::Write).is_err()) {
            return self.release(slot);
        }
        connection.life = Life::Lingering;
        self.table.wheel.set(slot, self.table.now + LINGER_TICKS);
        // The client may have closed already, and no further event would report that.
        self.on_lingering_input(slot);
    }

    /// Discards input until the client closes or sends too much: nothing can be answered any more.
    pub(super) fn on_lingering_input(&mut self, slot: u32) {
        let socket = self.table.connections[slot as usize].socket.as_ref();
        if !socket.is_some_and(|socket| discard_input(socket, &mut self.reader.buffer)) {
            self.release(slot);
        }
    }

    /// Closes a connection whose session has ended.
    pub(super) fn release(&mut self, slot: u32) {
        self.table.remove(slot);
        if self.table.connections.is_empty() {
            self.hub.forget_slots();
        }
    }
}

/// The value for the metric `closed_total`, and its counter.
fn close_reason(counters: &ShardMetrics, cause: Cause) -> (&'static str, &Counter) {
    match cause {
        Cause::Client => ("client", &counters.closed_client_total),
        Cause::Remote => ("remote", &counters.closed_remote_total),
        Cause::NoPong => ("no_pong", &counters.closed_no_pong_total),
        Cause::TooSlow => ("too_slow", &counters.closed_too_slow_total),
        Cause::WriteTimeout => ("write_timeout", &counters.closed_write_timeout_total),
        Cause::ProtocolError => ("protocol_error", &counters.closed_protocol_error_total),
        Cause::Auth => ("auth", &counters.closed_auth_total),
        Cause::Shutdown => ("shutdown", &counters.closed_shutdown_total),
        Cause::Error => ("error", &counters.closed_error_total),
    }
}

/// Returns true when the socket is empty now and the client has not closed.
fn discard_input(mut socket: &TcpStream, buffer: &mut [u8]) -> bool {
    let mut discarded = 0;
    while discarded < DISCARDED_BYTES_MAX {
        match socket.read(buffer) {
            Ok(bytes) if bytes > 0 => discarded += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            Ok(_) => return false,
        }
    }
    false
}
