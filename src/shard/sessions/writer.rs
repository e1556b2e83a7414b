//! From frames to sockets: what is queued in this turn, and what the kernel has not taken yet.
//!
//! The writer never ends a session. It returns an [`Outcome`] for each write, and the turn acts on it.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::rc::Rc;

use super::common::Common;
use super::connection::{Connection, Life};
use super::formats::{GroupFrames, PingFrames, pong_frame, unix_time};
use super::readers::Polled;
use super::share::TimeSlice;
use super::table::Table;
use crate::mesh::SessionRef;
use crate::metrics::ShardMetrics;
use crate::protocol::durable_streams::next_cursor;
use crate::protocol::reply::Reply;
use crate::reactor::Outgoing;
use crate::shard::answers::Answer;
use crate::shard::outbox::batch::{Batch, BatchList, Urgency};
use crate::shard::outbox::frame::{Frame, GATHERED_BYTES_MAX};
use crate::shard::outbox::{Outbox, Written};
use crate::wire::websocket::deflate::Deflater;

/// Sessions written between two checks of the clock: as many as one submission to the ring sends.
pub(super) const FLUSHES_PER_LOOK: usize = 128;
/// Writes in a row to one session that has much waiting. After that the other sessions have their turn.
const WRITES_PER_TURN_MAX: usize = 8;
/// Fewer sends than this are made one by one: a single one through the ring costs more than send(2).
const BULK_SENDS_MIN: usize = 3;

/// What a write means for its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The session goes on, at once or when its socket has room. Nothing has to be done.
    GoesOn,
    /// The session was being closed, and everything for it has been written.
    Drained,
    /// The session has no socket: what is for it waits in its outbox.
    Gathered,
    /// The socket is broken. So many messages are lost.
    Failed { messages: u64 },
}

/// Whether a frame could be queued.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queued {
    Yes,
    /// As much waits for the client as is allowed.
    TooMuch,
}

pub(super) struct Writer {
    common: Rc<Common>,
    batch: Batch,
    deflater: Deflater,
    /// Sessions that get a single frame in this turn, and the results of their sends.
    bulk_sends: Vec<(u32, u32)>,
    /// The answers of the HTTP phase that go with them.
    answers: Vec<Answer>,
    send_results: Vec<i32>,
    /// Outcomes of the flush other than [`Outcome::GoesOn`].
    outcomes: Vec<(u32, Outcome)>,
    /// Messages that answer long polls of durable streams.
    polled: Vec<Polled>,
}

impl Writer {
    pub fn new(common: Rc<Common>) -> Self {
        Self {
            batch: Batch::new(Rc::clone(&common.budget)),
            common,
            deflater: Deflater::new(),
            bulk_sends: Vec::new(),
            answers: Vec::new(),
            send_results: Vec::new(),
            outcomes: Vec::new(),
            polled: Vec::new(),
        }
    }

    /// True when no session waits for the flush.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// True when there is something to write, to sessions or to clients of the HTTP phase.
    pub fn has_work(&self) -> bool {
        !self.batch.is_empty() || !self.common.answers.is_empty()
    }

    /// True when the batch should be written before publications add more.
    pub fn is_full(&self) -> bool {
        self.batch.is_full()
    }

    /// True when the batch must be written before anything else is queued.
    pub fn has_no_room(&self) -> bool {
        self.batch.has_no_room()
    }

    /// Queues a reply for an open session, unless it has too much waiting.
    pub fn send_reply(&mut self, table: &mut Table, slot: u32, reply: &Reply) -> Queued {
        let format = table.connections[slot as usize].format;
        match format.reply(reply, &mut self.deflater) {
            Some(frame) => self.send(table, slot, frame),
            None => Queued::Yes,
        }
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

    /// Queues the message that says why the session ends. It is queued no matter how much waits.
    pub fn send_last_reply(&mut self, table: &mut Table, slot: u32, reply: &Reply) {
        let connection = &mut table.connections[slot as usize];
        if let Some(frame) = connection.format.reply(reply, &mut self.deflater) {
            self.queue(connection, slot, frame);
        }
    }

    /// The same for the frame that ends the connection.
    pub fn send_last(&mut self, table: &mut Table, slot: u32, frame: Frame) {
        self.queue(&mut table.connections[slot as usize], slot, frame);
    }

    fn queue(&mut self, connection: &mut Connection, slot: u32, frame: Frame) {
        let frame = self.batch.add_frame(frame);
        self.batch
            .deliver(slot, &mut connection.deliveries, frame, Urgency::Prompt);
    }

    /// Answers a ping. When pings come faster than the answers can be sent, only the newest is answered (RFC 6455 §5.5.3).
    /// Otherwise a client that sends many pings and reads nothing would get a frame for each.
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

    /// Queues a publication for one client. The caller has checked that it does not have too much waiting. False when the
    /// client does not want publications of this kind.
    #[inline]
    pub fn deliver(
        &mut self,
        slot: u32,
        connection: &mut Connection,
        frames: &mut GroupFrames<'_>,
    ) -> bool {
        let frame = frames.get(connection.format, &mut self.batch, &mut self.deflater);
        match frame {
            Some(frame) => {
                let deliveries = &mut connection.deliveries;
                self.batch.deliver(slot, deliveries, frame, Urgency::Bulk);
                true
            }
            None => self.deliver_to_reader(slot, connection, frames),
        }
    }

    /// The same for a reader of a durable stream; false for any other client. A long poll gets its whole answer from
    /// [`Self::take_polled`].
    #[cold]
    fn deliver_to_reader(
        &mut self,
        slot: u32,
        connection: &mut Connection,
        frames: &mut GroupFrames<'_>,
    ) -> bool {
        let reading = connection
            .held
            .as_ref()
            .and_then(|held| held.reading.as_ref());
        let publication = frames.publication();
        let (Some(reading), Some(position)) = (reading, publication.position) else {
            return false;
        };
        if reading.is_waiting() {
            self.polled.push(Polled {
                session: SessionRef {
                    shard: self.common.shard,
                    slot,
                    generation: connection.generation,
                },
                position,
                message: publication.message.clone(),
            });
            return true;
        }
        if !reading.is_following() {
            return false;
        }
        let frame = {
            let now = next_cursor(unix_time().as_secs(), None, 0);
            let (cursor, chunked) = (reading.event_cursor(now), reading.form.chunked);
            frames.reader_event(position, cursor, chunked, &mut self.batch)
        };
        self.batch
            .deliver(slot, &mut connection.deliveries, frame, Urgency::Bulk);
        true
    }

    /// The messages that answer long polls. A session may be there twice, and its first message counts.
    pub fn take_polled(&mut self) -> Vec<Polled> {
        std::mem::take(&mut self.polled)
    }

    /// Puts the head of an answer before everything that waits for the client. From now on the client is written to.
    pub fn begin_answer(&mut self, table: &mut Table, slot: u32, head: Frame) {
        self.common.counters().outbox_bytes.add(head.len() as i64);
        let (now, deadline) = (table.now, table.write_deadline);
        let connection = &mut table.connections[slot as usize];
        let outbox = connection.outbox.get_or_insert_default();
        outbox.push_head(head, &self.common.budget);
        (outbox.progress, outbox.deadline) = (now, deadline);
        table.set_timer(slot);
    }

    /// Drops everything that is queued for a client to which nothing has been written.
    pub fn drop_queue(&mut self, table: &mut Table, slot: u32) {
        let connection = &mut table.connections[slot as usize];
        connection.deliveries = BatchList::default();
        if let Some(outbox) = connection.outbox.take() {
            let bytes = outbox.pending_bytes() as i64;
            self.common.counters().outbox_bytes.sub(bytes);
        }
    }

    /// Moves what the batch has for a session without a socket into its outbox.
    pub fn gather(&mut self, table: &mut Table, slot: u32) {
        let connection = &mut table.connections[slot as usize];
        if connection.deliveries.is_empty() {
            return;
        }
        let due = || Box::new(Outbox::due(table.now, table.write_deadline));
        let outbox = connection.outbox.get_or_insert_with(due);
        let before = outbox.pending_bytes() as i64;
        self.batch.drain_into(&mut connection.deliveries, outbox);
        let added = outbox.pending_bytes() as i64 - before;
        self.common.counters().outbox_bytes.add(added);
    }

    /// Drops the first frames of an outbox, which the answer to a poll has taken to the client.
    pub fn drop_answered(&mut self, table: &mut Table, slot: u32, frames: u32) {
        let connection = &mut table.connections[slot as usize];
        let Some(outbox) = &mut connection.outbox else {
            return;
        };
        let written = outbox.drop_first(frames as usize);
        let counters = self.common.counters();
        count_written(counters, &written);
        counters.outbox_bytes.sub(written.bytes as i64);
        if outbox.is_empty() {
            connection.outbox = None;
        }
    }

    /// Drops what is queued for a session and not started.
    pub fn clear_queue(&mut self, table: &mut Table, slot: u32) {
        table.polls.forget_answered(slot);
        let connection = &mut table.connections[slot as usize];
        connection.deliveries = BatchList::default();
        if let Some(outbox) = &mut connection.outbox {
            let before = outbox.pending_bytes();
            outbox.clear_unstarted();
            let gone = before - outbox.pending_bytes();
            self.common.counters().outbox_bytes.sub(gone as i64);
        }
    }

    /// Writes up to [`FLUSHES_PER_LOOK`] sessions, fewer when `time` is over, and as many answers. Answers and single frames
    /// are sent together through the ring. [`Self::take_outcomes`] returns the outcomes.
    pub fn flush_few(&mut self, table: &mut Table, time: TimeSlice) {
        let mut bulk_sends = std::mem::take(&mut self.bulk_sends);
        self.common
            .answers
            .take(FLUSHES_PER_LOOK, &mut self.answers);
        let sends = self.batch.dirty_len() + self.answers.len();
        let in_bulk = table.reactor.sends_in_bulk() && sends >= BULK_SENDS_MIN;
        for _ in 0..FLUSHES_PER_LOOK {
            let Some(slot) = self.batch.next_dirty() else {
                break;
            };
            let bulk_send = if in_bulk {
                self.take_bulk_send(table, slot)
            } else {
                None
            };
            match bulk_send {
                Some(frame) => bulk_sends.push((slot, frame)),
                None => {
                    let outcome = self.flush_slot(table, slot);
                    self.note(slot, outcome);
                    if time.is_over() {
                        break;
                    }
                }
            }
        }
        if in_bulk {
            self.send_in_bulk(table, &bulk_sends);
        }
        self.answers.drain(..).for_each(Answer::write);
        bulk_sends.clear();
        self.bulk_sends = bulk_sends;
    }

    fn note(&mut self, slot: u32, outcome: Outcome) {
        if !matches!(outcome, Outcome::GoesOn) {
            self.outcomes.push((slot, outcome));
        }
    }

    /// The outcomes of a flush for the sessions that need an action.
    pub fn take_outcomes(&mut self) -> Vec<(u32, Outcome)> {
        std::mem::take(&mut self.outcomes)
    }

    /// Ends the flush. When everything is written, the batch is emptied.
    pub fn end_flush(&mut self) {
        if self.batch.is_empty() {
            self.batch.finish();
        }
    }

    /// Takes the frame of a session that gets a single one and has nothing waiting before it.
    fn take_bulk_send(&self, table: &mut Table, slot: u32) -> Option<u32> {
        let connection = table.connections.get_mut(slot as usize)?;
        let plain = connection.tls.is_none() && connection.outbox.is_none();
        if !plain || connection.socket.is_none() {
            return None;
        }
        let frame = self.batch.only_frame(connection.deliveries)?;
        connection.deliveries = BatchList::default();
        Some(frame)
    }

    /// Sends the answers, and one frame to each of many sessions, with few system calls.
    fn send_in_bulk(&mut self, table: &mut Table, bulk_sends: &[(u32, u32)]) {
        let mut answers = std::mem::take(&mut self.answers);
        let answered = answers.iter().map(Answer::outgoing);
        let delivered = bulk_sends.iter().map(|&(slot, frame)| Outgoing {
            socket: socket_of(&table.connections[slot as usize]).as_fd(),
            bytes: self.batch.bytes(frame),
        });
        let messages: Vec<Outgoing> = answered.chain(delivered).collect();
        let mut results = std::mem::take(&mut self.send_results);
        table.reactor.send_all(&messages, &mut results);
        let mut taken = results.iter().map(|&result| bytes_taken(result));
        for answer in answers.drain(..) {
            let taken = taken.next().unwrap_or(Ok(0));
            answer.finish(taken);
        }
        self.answers = answers;
        let counters = self.common.counters();
        counters.writes_total.add(bulk_sends.len() as u64);
        for (&(slot, frame), taken) in bulk_sends.iter().zip(taken) {
            let written = taken.map(|bytes| self.batch.account_only_frame(frame, bytes));
            let outcome = self.on_written(table, slot, written);
            self.note(slot, outcome);
        }
        self.send_results = results;
    }

    /// Writes what the current batch has for one session, after what it has waiting.
    pub fn flush_slot(&mut self, table: &mut Table, slot: u32) -> Outcome {
        let Some(connection) = table.connections.get_mut(slot as usize) else {
            return Outcome::GoesOn;
        };
        if connection.deliveries.is_empty() {
            return Outcome::GoesOn;
        }
        let counters = self.common.counters();
        let waits = connection.tls.is_some() || connection.socket.is_none();
        if waits && connection.outbox.is_none() {
            // TLS records are made for one client and cannot be shared. They are made when the outbox is written.
            // What is for a client without a socket waits until it polls.
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
                // There may be no further delivery that would check whether the client is slow, so the timer has to.
                table.set_timer(slot);
            }
            return Outcome::GoesOn;
        }
        let Some(socket) = &connection.socket else {
            return Outcome::GoesOn;
        };
        counters.writes_total.add(1);
        let written = self.batch.write(&mut connection.deliveries, socket);
        self.on_written(table, slot, written)
    }

    /// Handles the first write of a session's deliveries. What the kernel did not take becomes its outbox.
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

    /// Writes an outbox until it is empty, the kernel takes no more, or the session has had its share of writes.
    pub fn write_outbox(&mut self, table: &mut Table, slot: u32) -> Outcome {
        let counters = self.common.counters();
        let mut written_bytes = 0;
        for _ in 0..WRITES_PER_TURN_MAX {
            let connection = &mut table.connections[slot as usize];
            let Some(outbox) = &mut connection.outbox else {
                return Outcome::GoesOn;
            };
            let Some(socket) = &connection.socket else {
                return Outcome::Gathered;
            };
            if connection.life == Life::Opening {
                return Outcome::GoesOn;
            }
            if let Some(tls) = &mut connection.tls {
                let before = outbox.pending_bytes() as i64;
                outbox.seal(tls, &self.common.budget);
                counters
                    .outbox_bytes
                    .add(outbox.pending_bytes() as i64 - before);
            }
            counters.writes_total.add(u64::from(!outbox.is_empty()));
            let Ok(written) = outbox.write(socket) else {
                let messages = outbox.messages() as u64;
                return Outcome::Failed { messages };
            };
            count_written(counters, &written);
            counters.outbox_bytes.sub(written.bytes as i64);
            if outbox.is_empty() {
                connection.outbox = None;
                // The close frame may still be in the current batch; then the flush finishes the close.
                if connection.life == Life::Closing && connection.deliveries.is_empty() {
                    return Outcome::Drained;
                }
                // The client may not have been read while it had much waiting.
                table.schedule_rest(slot);
                return Outcome::GoesOn;
            }
            if written.bytes > 0 {
                outbox.progress = table.now;
            }
            // A large message may need a long time on a slow line, so any progress extends the deadline of an open session.
            // A closing session has at most two more frames to get, and only a whole frame extends its deadline.
            if written.frames > 0 || (written.bytes > 0 && connection.life == Life::Open) {
                outbox.deadline = table.write_deadline;
            }
            if written.blocked {
                return self.wait_for_room(table, slot);
            }
            written_bytes += written.bytes;
            if written_bytes >= GATHERED_BYTES_MAX {
                break;
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

/// The socket of a session that [`Writer::take_bulk_send`] has chosen.
fn socket_of(connection: &Connection) -> &TcpStream {
    let socket = connection.socket.as_ref();
    socket.expect("only sessions with a socket are sent to in bulk")
}

/// The result of a send through the ring. A full socket has taken nothing.
fn bytes_taken(result: i32) -> io::Result<usize> {
    match result {
        0.. => Ok(result as usize),
        _ if [libc::EAGAIN, libc::EINTR].contains(&-result) => Ok(0),
        _ => Err(io::Error::from_raw_os_error(-result)),
    }
}

fn count_written(counters: &ShardMetrics, written: &Written) {
    counters.server_msg_total.add(written.messages);
    counters.data_sent_total.add(written.payload_bytes);
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::Shutdown;

    use super::*;
    use crate::shard::outbox::frame::FrameKind;
    use crate::shard::sessions::tests::parts::Parts;
    use crate::wire::websocket::frame;

    const TIME: std::time::Duration = std::time::Duration::from_secs(5);

    fn message(text: &str) -> Frame {
        Frame::new(frame::text_frame(text.as_bytes()), FrameKind::Message)
    }

    fn next(client: &mut TcpStream, text: &str) {
        let expected = frame::text_frame(text.as_bytes());
        let mut bytes = vec![0; expected.len()];
        client.read_exact(&mut bytes).expect("a frame");
        assert_eq!(bytes, expected);
    }

    fn flush(writer: &mut Writer, parts: &mut Parts) -> Vec<(u32, Outcome)> {
        while !writer.is_empty() {
            writer.flush_few(&mut parts.table, TimeSlice::new(TIME));
        }
        writer.end_flush();
        writer.take_outcomes()
    }

    /// So many sessions that single frames are sent together where the reactor can do that.
    #[test]
    fn each_session_gets_its_frames_in_the_order_of_queueing() {
        Parts::on_both(&[], |parts| {
            let mut writer = Writer::new(Rc::clone(&parts.common));
            let mut clients: Vec<_> = (0..2 * BULK_SENDS_MIN).map(|_| parts.connect()).collect();
            for (slot, _) in &clients {
                assert_eq!(
                    writer.send(&mut parts.table, *slot, message("a")),
                    Queued::Yes
                );
            }
            let twice = clients[3].0;
            assert_eq!(
                writer.send_reply(&mut parts.table, twice, &Reply::Pong),
                Queued::Yes
            );
            assert_eq!(flush(&mut writer, parts), []);
            for (slot, client) in &mut clients {
                next(client, "a");
                if *slot == twice {
                    next(client, r#"{"type":"pong"}"#);
                }
            }
            let messages = clients.len() as u64 + 1;
            assert_eq!(parts.counters().server_msg_total.value(), messages);
            assert_eq!(parts.counters().outbox_bytes.value(), 0);
        });
    }

    #[test]
    fn the_turn_learns_of_broken_sockets_and_of_closing_sessions_that_have_everything() {
        Parts::on_both(&[], |parts| {
            let mut writer = Writer::new(Rc::clone(&parts.common));
            let (broken, _client) = parts.connect();
            let (closing, mut client) = parts.connect();
            parts
                .connection(broken)
                .socket
                .as_ref()
                .expect("a socket")
                .shutdown(Shutdown::Both)
                .expect("shutdown");
            parts.connection(closing).life = Life::Closing;
            assert_eq!(
                writer.send(&mut parts.table, broken, message("a")),
                Queued::Yes
            );
            // Only the last frames go to a session that is being closed.
            assert_eq!(
                writer.send(&mut parts.table, closing, message("no")),
                Queued::Yes
            );
            writer.send_last(&mut parts.table, closing, message("last"));
            let expected = [
                (broken, Outcome::Failed { messages: 1 }),
                (closing, Outcome::Drained),
            ];
            assert_eq!(flush(&mut writer, parts), expected);
            next(&mut client, "last");
        });
    }

    #[test]
    fn a_client_that_takes_nothing_gets_no_more_than_a_session_may_hold() {
        Parts::on_both(&["--session_bytes_max=1048576"], |parts| {
            let mut writer = Writer::new(Rc::clone(&parts.common));
            let (slot, _client) = parts.connect();
            let large = "x".repeat(256 << 10);
            let mut frames = 0;
            while writer.send(&mut parts.table, slot, message(&large)) == Queued::Yes {
                assert_eq!(flush(&mut writer, parts), []);
                frames += 1;
                assert!(frames < 1000, "the kernel takes no end");
            }
            let held = parts.connection(slot).held_bytes();
            assert!((1 << 20..(1 << 20) + (300 << 10)).contains(&held), "{held}");
            let counted = parts.counters().outbox_bytes.value();
            let outbox = parts.connection(slot).outbox.as_ref().expect("frames wait");
            assert_eq!(counted, outbox.pending_bytes() as i64);
            // The message that says why it ends is queued all the same, and what waits can be dropped for it.
            writer.clear_queue(&mut parts.table, slot);
            writer.send_last_reply(&mut parts.table, slot, &Reply::Pong);
            assert_eq!(flush(&mut writer, parts), []);
            let outbox = parts.connection(slot).outbox.as_ref().expect("frames wait");
            assert!(outbox.messages() <= 2 && outbox.held_bytes() < 600 << 10);
        });
    }
}
