//! From readiness to commands: reading, decoding, and waiting while a call is under way.

use std::io;

use super::{Cause, Life, Sessions};
use crate::log::cut;
use crate::protocol::command::decode_command;
use crate::reactor::Readiness;
use crate::shard::outbox::Frame;
use crate::wire::frame;
use crate::wire::message::Incoming;

/// Full reads from one socket in one turn; what is left is read in the next turn, after the others.
const READS_PER_TURN_MAX: usize = 4;

/// Whether the far end may have closed its side before the read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The event says that it has not.
    NotSeen,
    MayBeThere,
}

impl Sessions {
    /// Takes the reactor's events and serves them.
    pub fn harvest(&mut self) -> io::Result<()> {
        for token in std::mem::take(&mut self.unfinished) {
            if let Some(slot) = self.slot_of(token) {
                self.read(slot, End::MayBeThere);
            }
        }
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        self.more_events = self.reactor.harvest(&mut events)?;
        for event in &events {
            self.on_event(*event);
        }
        self.events = events;
        let counts = self.reactor.take_counts();
        self.counters().cq_overflows_total.add(counts.overflows);
        self.counters().poll_rearms_total.add(counts.rearms);
        Ok(())
    }

    pub(super) fn on_event(&mut self, event: Readiness) {
        let Some(slot) = self.slot_of(event.token) else {
            self.counters().stale_events_total.add(1);
            return;
        };
        if event.writable {
            self.connections[slot as usize].write_watched = false;
            self.write_outbox(slot);
        }
        if (event.readable || event.closed) && self.slot_of(event.token).is_some() {
            self.on_input(slot, event.closed);
        }
    }

    pub(super) fn on_input(&mut self, slot: u32, closed: bool) {
        let connection = &mut self.connections[slot as usize];
        match connection.life {
            Life::Open => {}
            Life::Closing => return,
            Life::Lingering => return self.on_lingering_input(slot),
        }
        if connection.call.is_none() {
            let end = if closed {
                End::MayBeThere
            } else {
                End::NotSeen
            };
            return self.read(slot, end);
        }
        connection.input_waiting = true;
        if closed && !connection.session.is_authenticated() {
            // Nobody is left to be welcomed: the app need not be asked.
            self.begin_close(slot, None, Cause::Client);
        }
    }

    /// Reads until the kernel has no more, the session has to wait for a call, or it had its share.
    ///
    /// A read that does not fill the buffer has emptied the socket, and what comes later is a new event: the read that would
    /// only say "would block" is saved. Not so when the far end may have closed: its end comes behind the last byte and is
    /// no event of its own any more.
    pub(super) fn read(&mut self, slot: u32, end: End) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let mut reads = 0;
        while let Some(connection) = self.connections.get_mut(slot as usize) {
            if !connection.is_open() {
                break;
            }
            if connection.call.is_some() {
                connection.input_waiting = true;
                break;
            }
            if reads == READS_PER_TURN_MAX {
                let token = self.token(slot);
                self.unfinished.push_back(token);
                break;
            }
            match connection.receive(&mut buffer) {
                Ok(0) => {
                    self.begin_close(slot, None, Cause::Client);
                    break;
                }
                Ok(bytes) => {
                    // With TLS the end may also stand in the bytes.
                    let emptied =
                        bytes < buffer.len() && end == End::NotSeen && connection.tls.is_none();
                    self.process_bytes(slot, &mut buffer[..bytes]);
                    if emptied {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.begin_close(slot, None, Cause::Client);
                    break;
                }
            }
            reads += 1;
        }
        self.read_buffer = buffer;
    }

    fn process_bytes(&mut self, slot: u32, bytes: &mut [u8]) {
        if self.connections[slot as usize].tls.is_some() {
            self.process_records(slot, bytes);
        } else {
            self.process_input(slot, bytes);
        }
    }

    /// Decrypts what came from the socket. Records that TLS wants to send in return go out with the flush.
    fn process_records(&mut self, slot: u32, records: &mut [u8]) {
        let Some(tls) = &mut self.connections[slot as usize].tls else {
            return;
        };
        let mut plain = std::mem::take(&mut self.plain_buffer);
        let decrypted = tls.decrypt(records, &mut plain);
        if tls.has_output() {
            self.send(slot, Frame::flush_only());
        }
        self.process_input(slot, &mut plain);
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

    /// Goes on with what came while a call was under way: first what had been read, then what the kernel holds.
    pub(super) fn resume_input(&mut self, slot: u32, mut unread: Vec<u8>) {
        self.process_input(slot, &mut unread);
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        if connection.is_open()
            && connection.call.is_none()
            && std::mem::take(&mut connection.input_waiting)
        {
            self.read(slot, End::MayBeThere);
        }
    }

    pub(super) fn process_input(&mut self, slot: u32, input: &mut [u8]) {
        let mut inflated = std::mem::take(&mut self.inflate_buffer);
        let mut offset = 0;
        while offset < input.len() {
            let Some(connection) = self.connections.get_mut(slot as usize) else {
                break;
            };
            if !connection.is_open() {
                break;
            }
            if let Some(call) = &mut connection.call {
                call.unread.extend_from_slice(&input[offset..]);
                break;
            }
            // The decoder is taken out so that its borrow does not last while the event is handled.
            let mut decoder = std::mem::take(&mut connection.decoder);
            self.limits.deflate = connection.deflate;
            let limits = self.limits;
            match decoder.next(&mut input[offset..], &limits, &mut inflated) {
                Ok((consumed, event)) => {
                    offset += consumed;
                    if let Some(event) = event {
                        self.on_incoming(slot, event);
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
    }

    pub(super) fn on_incoming(&mut self, slot: u32, event: Incoming<'_>) {
        match event {
            Incoming::Message(payload) => self.on_message(slot, payload),
            Incoming::Ping(payload) => self.send_control(slot, frame::pong_frame(payload)),
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

    pub(super) fn on_message(&mut self, slot: u32, payload: &[u8]) {
        if self.console.contains(slot) {
            return self.on_console_message(slot, payload);
        }
        self.counters().data_rcvd_total.add(payload.len() as u64);
        let command = match decode_command(payload) {
            Ok(Some(command)) => command,
            Ok(None) => return,
            Err(error) => return self.refuse_message(slot, payload, &error),
        };
        self.counters().client_msg_total.add(1);
        self.connections[slot as usize]
            .session
            .deadlines
            .sign_of_life();
        tracing::debug!(
            context = "node",
            sid = self.sid(slot),
            shard = self.shard,
            data = %cut(&String::from_utf8_lossy(payload)),
            "incoming message"
        );
        let result = self.with_session(slot, |session, context, steps| {
            session.on_command(context, command, steps)
        });
        if let Err(error) = result {
            self.refuse_message(slot, payload, &error);
        }
    }

    pub(super) fn refuse_message(&self, slot: u32, payload: &[u8], error: &dyn std::error::Error) {
        self.counters().failed_client_msg_total.add(1);
        tracing::warn!(
            context = "node",
            sid = self.sid(slot),
            shard = self.shard,
            data = %cut(&String::from_utf8_lossy(payload)),
            %error,
            "failed to handle incoming message"
        );
    }
}
