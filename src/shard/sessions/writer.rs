//! From frames to sockets: what is queued in this turn, and what the kernel has not taken yet.
//!
//! The writer never ends a session. What a write means for one comes back as an [`Outcome`], and the turn acts on it.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use super::common::Common;
use super::connection::{Connection, Life};
use super::formats::{GroupFrames, PingFrames, pong_frame};
use super::share::TimeSlice;
use super::table::Table;
use crate::metrics::ShardMetrics;
use crate::protocol::reply::Reply;
use crate::reactor::Outgoing;
use crate::shard::outbox::batch::{Batch, BatchList, Urgency};
use crate::shard::outbox::frame::Frame;
use crate::shard::outbox::{Outbox, Written};
use crate::wire::websocket::deflate::Deflater;

/// Sessions written between two looks at the clock: as many as go out with one call of the ring.
pub(super) const FLUSHES_PER_LOOK: usize = 128;
/// Writes in a row to one session that has much waiting; then the others have their turn.
const WRITES_PER_TURN_MAX: usize = 8;
/// Waiting sessions from which on a bulk of sends is worth its set-up.
const BULK_SENDS_MIN: usize = 8;

/// What a write means for its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing to be done: it goes on, now or when its socket has room.
    GoesOn,
    /// It was on its way out, and all that it had to be told is written.
    Drained,
    /// The socket is broken. So many messages are lost.
    Failed { messages: u64 },
}

/// Whether a frame could be queued.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queued {
    Yes,
    /// The client has as much waiting as it may.
    TooMuch,
}

pub(super) struct Writer {
    common: Rc<Common>,
    batch: Batch,
    deflater: Deflater,
    /// Sessions that get one frame in this turn, and what the kernel said.
    singles: Vec<(u32, BatchList)>,
    send_results: Vec<i32>,
    /// Of the flush, other than [`Outcome::GoesOn`].
    outcomes: Vec<(u32, Outcome)>,
}

impl Writer {
    pub fn new(common: Rc<Common>) -> Self {
        Self {
            batch: Batch::new(Rc::clone(&common.budget)),
            common,
            deflater: Deflater::new(),
            singles: Vec::new(),
            send_results: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    /// True when no session waits for the flush.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// True when what is queued should be written before publications bring more.
    pub fn is_full(&self) -> bool {
        self.batch.is_full()
    }

    /// True when it must be written before anything else is queued.
    pub fn has_no_room(&self) -> bool {
        self.batch.has_no_room()
    }

    /// Queues a reply for an open session, unless it has too much waiting.
    pub fn send_reply(&mut self, table: &mut Table, slot: u32, reply: &Reply) -> Queued {
        let format = table.connections[slot as usize].format;
        let frame = format.reply(reply, &mut self.deflater);
        self.send(table, slot, frame)
    }

    /// Queues a frame for an open session, unless it has too much waiting.
    pub fn send(&mut self, table: &mut Table, slot: u32, frame: Frame) -> Queued {
        let connection = &mut table.connections[slot as usize];
        if !connection.is_open() {
            return Queued::Yes;
        }
        if connection.is_over(&self.common.bounds, &self.common.budget) {
            return Queued::TooMuch;
        }
        self.queue(connection, slot, frame);
        Queued::Yes
    }

    /// Queues a message that a client gets whatever waits for it: the reason why it has to go.
    pub fn send_last_reply(&mut self, table: &mut Table, slot: u32, reply: &Reply) {
        let connection = &mut table.connections[slot as usize];
        let frame = connection.format.reply(reply, &mut self.deflater);
        self.queue(connection, slot, frame);
    }

    /// The same for the close frame.
    pub fn send_last(&mut self, table: &mut Table, slot: u32, frame: Frame) {
        self.queue(&mut table.connections[slot as usize], slot, frame);
    }

    fn queue(&mut self, connection: &mut Connection, slot: u32, frame: Frame) {
        let frame = self.batch.add_frame(frame);
        self.batch
            .deliver(slot, &mut connection.deliveries, frame, Urgency::Prompt);
    }

    /// Answers a ping. Of pings that come faster than their answers leave, only the newest is answered (RFC 6455 §5.5.3): a
    /// client that sends many and reads nothing would else be given a frame for each.
    pub fn send_pong(&mut self, table: &mut Table, slot: u32, payload: &[u8]) -> Queued {
        let pong = pong_frame(payload);
        let connection = &table.connections[slot as usize];
        let blocked = connection.outbox.is_some();
        match self
            .batch
            .replace_pong(connection.deliveries, pong, blocked)
        {
            Some(pong) => self.send(table, slot, pong),
            None => Queued::Yes,
        }
    }

    /// Queues the pings that are due now.
    pub fn send_ping(&mut self, table: &mut Table, slot: u32, pings: &mut PingFrames) {
        let connection = &mut table.connections[slot as usize];
        let native = self.common.config.ping.native;
        let (batch, deflater) = (&mut self.batch, &mut self.deflater);
        pings.deliver(slot, connection, native, batch, deflater);
    }

    /// Queues a publication for one client. Whether it has too much waiting has been asked.
    pub fn deliver(
        &mut self,
        slot: u32,
        connection: &mut Connection,
        frames: &mut GroupFrames<'_>,
    ) {
        let frame = frames.get(connection.format, &mut self.batch, &mut self.deflater);
        self.batch
            .deliver(slot, &mut connection.deliveries, frame, Urgency::Bulk);
    }

    /// Drops what is queued for a session and not begun.
    pub fn clear_queue(&mut self, table: &mut Table, slot: u32) {
        let connection = &mut table.connections[slot as usize];
        connection.deliveries = BatchList::default();
        if let Some(outbox) = &mut connection.outbox {
            let before = outbox.pending_bytes();
            outbox.clear_unstarted();
            let gone = before - outbox.pending_bytes();
            self.common.counters().outbox_bytes.sub(gone as i64);
        }
    }

    /// Writes [`FLUSHES_PER_LOOK`] sessions, fewer when `time` is over. Single frames go out together.
    /// [`Self::take_outcomes`] has what follows.
    pub fn flush_few(&mut self, table: &mut Table, time: TimeSlice) {
        let mut singles = std::mem::take(&mut self.singles);
        let in_bulk = table.reactor.sends_in_bulk() && self.batch.dirty_len() >= BULK_SENDS_MIN;
        for _ in 0..FLUSHES_PER_LOOK {
            let Some(slot) = self.batch.next_dirty() else {
                break;
            };
            let single = if in_bulk {
                self.take_single(table, slot)
            } else {
                None
            };
            match single {
                Some(list) => singles.push((slot, list)),
                None => {
                    let outcome = self.flush_slot(table, slot);
                    self.note(slot, outcome);
                    if time.is_over() {
                        break;
                    }
                }
            }
        }
        self.send_singles(table, &singles);
        singles.clear();
        self.singles = singles;
    }

    fn note(&mut self, slot: u32, outcome: Outcome) {
        if !matches!(outcome, Outcome::GoesOn) {
            self.outcomes.push((slot, outcome));
        }
    }

    /// What a flush means for the sessions that do not simply go on.
    pub fn take_outcomes(&mut self) -> Vec<(u32, Outcome)> {
        std::mem::take(&mut self.outcomes)
    }

    /// The flush is over: gives back what it took, if everything is written.
    pub fn end_flush(&mut self) {
        if self.batch.is_empty() {
            self.batch.finish();
        }
    }

    /// The list of a session that gets one frame, which nothing stands before.
    fn take_single(&mut self, table: &mut Table, slot: u32) -> Option<BatchList> {
        let connection = table.connections.get_mut(slot as usize)?;
        let plain = connection.tls.is_none() && connection.outbox.is_none();
        if !plain || self.batch.single(connection.deliveries).is_none() {
            return None;
        }
        Some(std::mem::take(&mut connection.deliveries))
    }

    /// Sends one frame to each of many sessions with few system calls.
    fn send_singles(&mut self, table: &mut Table, singles: &[(u32, BatchList)]) {
        if singles.is_empty() {
            return;
        }
        let messages: Vec<Outgoing> = singles
            .iter()
            .filter_map(|&(slot, list)| {
                Some(Outgoing {
                    socket: table.connections[slot as usize].socket.as_fd(),
                    bytes: self.batch.single(list)?,
                })
            })
            .collect();
        let mut results = std::mem::take(&mut self.send_results);
        table.reactor.send_all(&messages, &mut results);
        let sent = messages.len() as u64;
        self.common.counters().writes_total.add(sent);
        for (&(slot, list), &result) in singles.iter().zip(&results) {
            let taken = match result {
                0.. => Ok(result as usize),
                _ if [libc::EAGAIN, libc::EINTR].contains(&-result) => Ok(0),
                _ => Err(io::Error::from_raw_os_error(-result)),
            };
            let written = taken.map(|bytes| self.batch.account_single(list, bytes));
            let outcome = self.on_written(table, slot, written);
            self.note(slot, outcome);
        }
        self.send_results = results;
    }

    /// Writes what the running batch has for one session, behind what it has waiting.
    pub fn flush_slot(&mut self, table: &mut Table, slot: u32) -> Outcome {
        let Some(connection) = table.connections.get_mut(slot as usize) else {
            return Outcome::GoesOn;
        };
        if connection.deliveries.is_empty() {
            return Outcome::GoesOn;
        }
        let counters = self.common.counters();
        if connection.tls.is_some() && connection.outbox.is_none() {
            // Records are the client's own and cannot be shared: they are made when the outbox is written.
            let outbox = Outbox::due(table.now, table.write_deadline);
            connection.outbox = Some(Box::new(outbox));
        }
        if let Some(outbox) = &mut connection.outbox {
            let before = outbox.pending_bytes() as i64;
            self.batch.drain_into(&mut connection.deliveries, outbox);
            counters
                .outbox_bytes
                .add(outbox.pending_bytes() as i64 - before);
            if !connection.write_watched {
                return self.write_outbox(table, slot);
            }
            if self.common.bounds.is_much(outbox) {
                // Nothing may come any more that would ask whether it is slow.
                table.set_timer(slot);
            }
            return Outcome::GoesOn;
        }
        counters.writes_total.add(1);
        let written = self
            .batch
            .write(&mut connection.deliveries, &connection.socket);
        self.on_written(table, slot, written)
    }

    /// The first write of a session's deliveries is done; what the kernel did not take becomes its outbox.
    #[inline]
    fn on_written(
        &mut self,
        table: &mut Table,
        slot: u32,
        written: io::Result<(Written, Option<Outbox>)>,
    ) -> Outcome {
        let counters = self.common.counters();
        let connection = &mut table.connections[slot as usize];
        match written {
            Ok((written, None)) => {
                count_written(counters, &written);
                match connection.life {
                    Life::Closing => Outcome::Drained,
                    _ => Outcome::GoesOn,
                }
            }
            Ok((written, Some(mut outbox))) => {
                count_written(counters, &written);
                counters.outbox_bytes.add(outbox.pending_bytes() as i64);
                (outbox.progress, outbox.deadline) = (table.now, table.write_deadline);
                connection.outbox = Some(Box::new(outbox));
                if written.blocked {
                    self.wait_for_room(table, slot)
                } else {
                    self.write_outbox(table, slot)
                }
            }
            Err(_) => Outcome::Failed { messages: 1 },
        }
    }

    /// Writes an outbox until it is empty, the kernel takes no more, or the session had its share of writes.
    pub fn write_outbox(&mut self, table: &mut Table, slot: u32) -> Outcome {
        let counters = self.common.counters();
        for _ in 0..WRITES_PER_TURN_MAX {
            let connection = &mut table.connections[slot as usize];
            let Some(outbox) = &mut connection.outbox else {
                return Outcome::GoesOn;
            };
            if let Some(tls) = &mut connection.tls {
                let before = outbox.pending_bytes() as i64;
                outbox.seal(tls, &self.common.budget);
                counters
                    .outbox_bytes
                    .add(outbox.pending_bytes() as i64 - before);
            }
            counters.writes_total.add(u64::from(!outbox.is_empty()));
            let Ok(written) = outbox.write(&connection.socket) else {
                let messages = outbox.messages() as u64;
                return Outcome::Failed { messages };
            };
            count_written(counters, &written);
            counters.outbox_bytes.sub(written.bytes as i64);
            if outbox.is_empty() {
                connection.outbox = None;
                // The close frame may still stand in the running batch: the flush finishes then.
                if connection.life == Life::Closing && connection.deliveries.is_empty() {
                    return Outcome::Drained;
                }
                // It may not have been read while it had much waiting.
                table.schedule_rest(slot);
                return Outcome::GoesOn;
            }
            if written.bytes > 0 {
                outbox.progress = table.now;
            }
            // A large message may take its time on a slow line. Who is on the way out gets time by the frame only, and there
            // are two more.
            if written.frames > 0 || (written.bytes > 0 && connection.life == Life::Open) {
                outbox.deadline = table.write_deadline;
            }
            if written.blocked {
                return self.wait_for_room(table, slot);
            }
        }
        table.connections[slot as usize].write_ready = true;
        table.set_timer(slot);
        table.schedule_rest(slot);
        Outcome::GoesOn
    }

    fn wait_for_room(&self, table: &mut Table, slot: u32) -> Outcome {
        self.common.counters().write_blocked_total.add(1);
        if table.watch_write(slot).is_err() {
            return Outcome::Failed { messages: 1 };
        }
        table.set_timer(slot);
        Outcome::GoesOn
    }
}

fn count_written(counters: &ShardMetrics, written: &Written) {
    counters.server_msg_total.add(written.messages);
    counters.data_sent_total.add(written.payload_bytes);
}
