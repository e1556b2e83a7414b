//! Ends of sessions: by the client, by the app, by a limit, by the drain.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;

use super::frames::message_frame;
use super::{Action, Cause, Life, Sessions, identity_hash};
use crate::config::DisconnectMode;
use crate::metrics::{Counter, ShardMetrics};
use crate::protocol::disconnect::{Close, DisconnectReason};
use crate::protocol::publication::RemoteDisconnect;
use crate::protocol::reply::Reply;
use crate::shard::outbox::batch::Urgency;
use crate::shard::outbox::frame::{Frame, FrameKind};
use crate::wire::websocket::frame;

/// Input thrown away when the server closes, so that the kernel sends FIN and not RST, which could overtake the reason.
const DISCARDED_BYTES_MAX: usize = 256 << 10;

impl Sessions {
    /// Closes every session with these connection identifiers. Source: contract/broadcast.md §7 (DECIDE: all of them).
    pub fn remote_disconnect(&mut self, command: &RemoteDisconnect) {
        let hash = identity_hash(&self.hasher, &command.identifiers);
        let slots: Vec<usize> = (0..self.identity_hashes.len())
            .filter(|&slot| self.identity_hashes[slot] == hash)
            .collect();
        for slot in slots {
            if self.connections[slot].session.identifiers() == &*command.identifiers {
                let close = Close::REMOTE;
                self.disconnect(
                    slot as u32,
                    DisconnectReason::Remote,
                    command.reconnect,
                    close,
                    Cause::Remote,
                );
            }
        }
    }

    /// Queues the disconnect message and the close frame. The limit on pending bytes does not hold for these two.
    pub(super) fn disconnect(
        &mut self,
        slot: u32,
        reason: DisconnectReason,
        reconnect: bool,
        close: Close,
        cause: Cause,
    ) {
        let connection = &mut self.connections[slot as usize];
        if !connection.is_open() {
            return;
        }
        let reply = Reply::Disconnect { reason, reconnect };
        let frame = message_frame(
            &reply.json(),
            connection.deflate,
            FrameKind::Message,
            &mut self.deflater,
        );
        let frame = self.batch.add_frame(frame);
        self.batch
            .deliver(slot, &mut connection.deliveries, frame, Urgency::Prompt);
        self.begin_close(slot, Some(close), cause);
    }

    /// The session ends here; its socket goes when everything queued, the close frame last, has been written.
    pub(super) fn begin_close(&mut self, slot: u32, close: Option<Close>, cause: Cause) {
        if !self.connections[slot as usize].is_open() {
            return;
        }
        if let Some(close) = close {
            let bytes = frame::close_frame(Some(close.code), close.reason);
            let frame = self.batch.add_frame(Frame::new(bytes, FrameKind::Control));
            let connection = &mut self.connections[slot as usize];
            self.batch
                .deliver(slot, &mut connection.deliveries, frame, Urgency::Prompt);
        }
        self.end_session(slot, cause);
        let connection = &self.connections[slot as usize];
        if connection.deliveries.is_empty() && connection.outbox.is_none() {
            self.finish_close(slot);
        } else {
            self.set_timer(slot);
        }
    }

    /// Takes the session out of everything that knows it; the socket stays. Happens once.
    pub(super) fn end_session(&mut self, slot: u32, cause: Cause) {
        let connection = &mut self.connections[slot as usize];
        connection.life = Life::Closing;
        self.open_sessions -= 1;
        let before = connection.session.own_bytes();
        let tells_the_app = self.config.disconnect.mode != DisconnectMode::Never;
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
                if let Some(farewell) = connection.session.take_farewell(&self.hub, slot) {
                    self.actions.push(Action::Disconnect(farewell));
                }
            }
        }
        let after = connection.session.own_bytes();
        let registered = self.is_registered(slot);
        self.hub.remove_session(slot);
        self.identity_hashes[slot as usize] = 0;
        self.recharge(before, after);
        let was_console = self.console.remove(slot);
        let counters = self.counters();
        counters.clients_num.sub(i64::from(registered));
        let (reason, counter) = close_reason(counters, cause);
        counter.add(u64::from(!was_console));
        tracing::debug!(
            sid = self.sid(slot),
            shard = self.shard,
            cause = reason,
            "WebSocket session completed"
        );
    }

    /// The connection is broken or out of time: nothing more can be said to the client.
    pub(super) fn abort(&mut self, slot: u32, cause: Cause) {
        if self.connections[slot as usize].is_open() {
            self.end_session(slot, cause);
        }
        self.release(slot);
    }

    pub(super) fn finish_close(&mut self, slot: u32) {
        self.say_close_notify(slot);
        if self.draining {
            return self.linger(slot);
        }
        let mut buffer = std::mem::take(&mut self.read_buffer);
        discard_input(&self.connections[slot as usize].socket, &mut buffer);
        self.read_buffer = buffer;
        self.release(slot);
    }

    /// With TLS the client must be able to tell this end from a cut. The outbox is empty: a socket that takes nothing now
    /// has lost its client.
    fn say_close_notify(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        if let Some(tls) = &mut connection.tls {
            let mut records = Vec::new();
            tls.close(&mut records);
            let _ = (&connection.socket).write(&records);
        }
    }

    pub(super) fn release(&mut self, slot: u32) {
        let token = self.token(slot);
        self.wheel.clear(slot);
        let connection = self.connections.remove(slot as usize);
        self.counters().sessions_num.sub(1);
        self.budget.release(connection.charged_bytes());
        if let Some(outbox) = &connection.outbox {
            self.counters()
                .outbox_bytes
                .sub(outbox.pending_bytes() as i64);
        }
        let socket = connection.socket;
        self.reactor
            .remove(socket.as_fd(), token, connection.write_watched);
        // The poll keeps the file open for a moment; the far end shall see the end now.
        let _ = socket.shutdown(Shutdown::Both);
        if self.connections.is_empty() {
            self.give_back_slots();
        }
    }

    /// Nobody is left: what is kept for each slot goes, too.
    fn give_back_slots(&mut self) {
        self.connections.shrink_to_fit();
        self.identity_hashes = Vec::new();
        self.hub.forget_slots();
        self.wheel.forget_slots();
    }
}

/// The word of the metric `closed_total`, and its counter.
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

/// True when the socket is empty now and its far end has not closed.
pub(super) fn discard_input(mut socket: &TcpStream, buffer: &mut [u8]) -> bool {
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
