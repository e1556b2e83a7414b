//! From a text or a publication to the socket: queueing, fan-out, flushing, slow clients.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::frames::{GroupFrames, message_frame};
use super::share::TimeSlice;
use super::{Cause, Connection, Life, Sessions};
use crate::log::kept;
use crate::metrics::ShardMetrics;
use crate::protocol::disconnect::{Close, DisconnectReason};
use crate::protocol::publication::Publication;
use crate::protocol::reply::Reply;
use crate::reactor::Outgoing;
use crate::shard::outbox::batch::{BatchList, Urgency};
use crate::shard::outbox::frame::{Frame, FrameKind};
use crate::shard::outbox::{Outbox, Written};
use crate::wire::websocket::frame;

/// Sessions written in one turn at most.
pub const FLUSHES_PER_TURN_MAX: usize = 512;
/// How long a turn may write; the others keep their place.
const FLUSHING_TIME_MAX: Duration = Duration::from_millis(2);
/// Sessions written between two looks at the clock: as many as go out with one call of the ring.
const FLUSHES_PER_LOOK: usize = 128;
/// Writes in a row to one session that has much waiting; then the others have their turn.
const WRITES_PER_TURN_MAX: usize = 8;
/// Groups that are delivered to between two looks at the clock.
const GROUPS_PER_LOOK: usize = 16;
/// Waiting sessions from which on a bulk of sends is worth its set-up.
const BULK_SENDS_MIN: usize = 8;

/// Publications on their way to those who listen here.
pub(super) struct FanOut {
    publications: Arc<[Publication]>,
    /// Of the message of the inbox that they are.
    number: u64,
    /// The one that is being delivered, and to how many it was so far.
    next: usize,
    delivered: u64,
}

impl Sessions {
    pub(super) fn send_reply(&mut self, slot: u32, reply: &Reply) {
        self.send_text(slot, &reply.json());
    }

    pub(super) fn send_text(&mut self, slot: u32, text: &[u8]) {
        let deflate = self.connections[slot as usize].deflate;
        let frame = message_frame(text, deflate, FrameKind::Message, &mut self.deflater);
        self.send(slot, frame);
    }

    pub(super) fn send_control(&mut self, slot: u32, bytes: Vec<u8>) {
        self.send(slot, Frame::new(bytes, FrameKind::Control));
    }

    pub(super) fn send(&mut self, slot: u32, frame: Frame) {
        let connection = &mut self.connections[slot as usize];
        if !connection.is_open() {
            return;
        }
        if connection.is_over(&self.bounds, &self.budget) {
            return self.drop_slow_client(slot);
        }
        let frame = self.batch.add_frame(frame);
        self.batch
            .deliver(slot, &mut connection.deliveries, frame, Urgency::Prompt);
    }

    /// Answers a ping. Of pings that come faster than their answers leave, only the newest is answered (RFC 6455 §5.5.3): a
    /// client that sends many and reads nothing would else be given a frame for each.
    pub(super) fn send_pong(&mut self, slot: u32, payload: &[u8]) {
        let pong = Frame::new(frame::pong_frame(payload), FrameKind::Pong);
        let connection = &self.connections[slot as usize];
        let blocked = connection.outbox.is_some();
        if let Some(pong) = self
            .batch
            .replace_pong(connection.deliveries, pong, blocked)
        {
            self.send(slot, pong);
        }
    }

    /// Begins to deliver publications, in order, to everybody who listens on this shard. They are one message of the inbox,
    /// `number` among all that have arrived. What this turn has no time for is left for [`Self::go_on_fan_out`].
    ///
    /// # Panics
    /// When an earlier message is not done yet.
    pub fn fan_out(&mut self, publications: Arc<[Publication]>, number: u64) {
        assert!(self.fan_out.is_none(), "one message after the other");
        if let Some(first) = publications.first() {
            self.hub.walk(&first.stream);
            self.fan_out = Some(FanOut {
                publications,
                number,
                next: 0,
                delivered: 0,
            });
        }
    }

    /// Delivers until everything is done (true) or the turn has done enough: `time` is over, or the batch has to be written
    /// first.
    pub fn go_on_fan_out(&mut self, time: TimeSlice) -> bool {
        let Some(mut fan_out) = self.fan_out.take() else {
            return true;
        };
        let mut groups = 0;
        while let Some(publication) = fan_out.publications.get(fan_out.next) {
            while let Some(group) = self.hub.next_group() {
                fan_out.delivered += self.deliver(publication, group, fan_out.number);
                groups += 1;
                if self.batch.is_full() || (groups % GROUPS_PER_LOOK == 0 && time.is_over()) {
                    self.fan_out = Some(fan_out);
                    self.drop_slow_clients();
                    return false;
                }
            }
            self.finish_publication(publication, fan_out.delivered);
            fan_out.delivered = 0;
            fan_out.next += 1;
            if let Some(next) = fan_out.publications.get(fan_out.next) {
                self.hub.walk(&next.stream);
            }
        }
        self.drop_slow_clients();
        self.hub.set_handled(fan_out.number);
        !time.is_over()
    }

    /// Notes that a message of the inbox is done, unless it is still being delivered.
    pub fn note_handled(&mut self, number: u64) {
        if self.fan_out.is_none() {
            self.hub.set_handled(number);
        }
    }

    /// True while publications wait for time, or for room in the batch.
    pub fn is_fanning_out(&self) -> bool {
        self.fan_out.is_some()
    }

    /// Delivers a publication to one group; the frame is encoded once. Returns how many get it.
    fn deliver(&mut self, publication: &Publication, group: u32, number: u64) -> u64 {
        let has_latecomers = self.hub.has_latecomers();
        let (identifier, members) = self.hub.group(group);
        let mut frames = GroupFrames::new(identifier, publication);
        let mut delivered = 0;
        for &slot in members {
            let connection = &mut self.connections[slot as usize];
            let excluded = publication.exclude_socket.as_deref() == Some(connection.session.sid());
            if excluded || (has_latecomers && self.hub.is_late_for(group, slot, number)) {
                continue;
            }
            if connection.is_over(&self.bounds, &self.budget) {
                self.slow.push(slot);
                continue;
            }
            let frame = frames.get(connection.deflate, &mut self.batch, &mut self.deflater);
            self.batch
                .deliver(slot, &mut connection.deliveries, frame, Urgency::Bulk);
            delivered += 1;
        }
        delivered
    }

    fn finish_publication(&self, publication: &Publication, delivered: u64) {
        if delivered == 0 {
            tracing::debug!(
                component = "hub",
                shard = self.shard,
                stream = &*publication.stream,
                "no sessions"
            );
        }
        self.counters().deliveries_total.add(delivered);
    }

    fn drop_slow_clients(&mut self) {
        for slot in std::mem::take(&mut self.slow) {
            // A session may be in the list twice, by two identifiers.
            if self
                .connections
                .get(slot as usize)
                .is_some_and(Connection::is_open)
            {
                self.drop_slow_client(slot);
            }
        }
    }

    /// Writes what the batch has for some sessions: a turn stays short however many wait. The others keep their place, and
    /// what is published until their turn comes is gathered into the same write.
    pub(super) fn flush_some(&mut self) {
        let time = TimeSlice::new(FLUSHING_TIME_MAX);
        let mut flushed = 0;
        while flushed < FLUSHES_PER_TURN_MAX && !self.batch.is_empty() && !time.is_over() {
            self.flush_few(time);
            flushed += FLUSHES_PER_LOOK;
        }
        if self.batch.is_empty() {
            self.batch.finish();
        }
    }

    /// Writes [`FLUSHES_PER_LOOK`] sessions, fewer when `time` is over. Single frames go out together.
    fn flush_few(&mut self, time: TimeSlice) {
        let mut singles = std::mem::take(&mut self.singles);
        let in_bulk = self.reactor.sends_in_bulk() && self.batch.dirty_len() >= BULK_SENDS_MIN;
        for _ in 0..FLUSHES_PER_LOOK {
            let Some(slot) = self.batch.next_dirty() else {
                break;
            };
            let single = if in_bulk {
                self.take_single(slot)
            } else {
                None
            };
            match single {
                Some(list) => singles.push((slot, list)),
                None => {
                    self.flush_slot(slot);
                    if time.is_over() {
                        break;
                    }
                }
            }
        }
        self.send_singles(&singles);
        singles.clear();
        self.singles = singles;
    }

    /// The list of a session that gets one frame, which nothing stands before.
    fn take_single(&mut self, slot: u32) -> Option<BatchList> {
        let connection = self.connections.get_mut(slot as usize)?;
        let plain = connection.tls.is_none() && connection.outbox.is_none();
        if !plain || self.batch.single(connection.deliveries).is_none() {
            return None;
        }
        Some(std::mem::take(&mut connection.deliveries))
    }

    /// Sends one frame to each of many sessions with few system calls.
    fn send_singles(&mut self, singles: &[(u32, BatchList)]) {
        if singles.is_empty() {
            return;
        }
        let messages: Vec<Outgoing> = singles
            .iter()
            .filter_map(|&(slot, list)| {
                Some(Outgoing {
                    socket: self.connections[slot as usize].socket.as_fd(),
                    bytes: self.batch.single(list)?,
                })
            })
            .collect();
        let mut results = std::mem::take(&mut self.send_results);
        self.reactor.send_all(&messages, &mut results);
        self.counters().writes_total.add(messages.len() as u64);
        for (&(slot, list), &result) in singles.iter().zip(&results) {
            let taken = match result {
                0.. => Ok(result as usize),
                _ if [libc::EAGAIN, libc::EINTR].contains(&-result) => Ok(0),
                _ => Err(io::Error::from_raw_os_error(-result)),
            };
            let written = taken.map(|bytes| self.batch.account_single(list, bytes));
            self.on_written(slot, written);
        }
        self.send_results = results;
    }

    /// True while sessions wait for a write that a turn had no time for.
    pub fn has_unflushed(&self) -> bool {
        !self.batch.is_empty()
    }

    pub(super) fn flush_slot(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot as usize) else {
            return;
        };
        if connection.deliveries.is_empty() {
            return;
        }
        let counters = &self.metrics.shards[self.shard];
        if connection.tls.is_some() && connection.outbox.is_none() {
            // Records are the client's own and cannot be shared: they are made when the outbox is written.
            let outbox = Outbox::due(self.now_tick, self.write_deadline);
            connection.outbox = Some(Box::new(outbox));
        }
        if let Some(outbox) = &mut connection.outbox {
            let before = outbox.pending_bytes() as i64;
            self.batch.drain_into(&mut connection.deliveries, outbox);
            counters
                .outbox_bytes
                .add(outbox.pending_bytes() as i64 - before);
            if !connection.write_watched {
                self.write_outbox(slot);
            } else if self.bounds.is_much(outbox) {
                // Nothing may come any more that would ask whether it is slow.
                self.set_timer(slot);
            }
            return;
        }
        counters.writes_total.add(1);
        let written = self
            .batch
            .write(&mut connection.deliveries, &connection.socket);
        self.on_written(slot, written);
    }

    /// The first write of a session's deliveries is done; what the kernel did not take becomes its outbox.
    fn on_written(&mut self, slot: u32, written: io::Result<(Written, Option<Outbox>)>) {
        let (now, deadline) = (self.now_tick, self.write_deadline);
        let counters = &self.metrics.shards[self.shard];
        let connection = &mut self.connections[slot as usize];
        match written {
            Ok((written, None)) => {
                count_written(counters, &written);
                if connection.life == Life::Closing {
                    self.finish_close(slot);
                }
            }
            Ok((written, Some(mut outbox))) => {
                count_written(counters, &written);
                counters.outbox_bytes.add(outbox.pending_bytes() as i64);
                (outbox.progress, outbox.deadline) = (now, deadline);
                connection.outbox = Some(Box::new(outbox));
                if written.blocked {
                    self.wait_for_room(slot);
                } else {
                    self.write_outbox(slot);
                }
            }
            Err(_) => self.write_failed(slot, 1),
        }
    }

    /// Writes an outbox until it is empty, the kernel takes no more, or the session had its share of writes.
    pub(super) fn write_outbox(&mut self, slot: u32) {
        let (now, deadline) = (self.now_tick, self.write_deadline);
        for _ in 0..WRITES_PER_TURN_MAX {
            let connection = &mut self.connections[slot as usize];
            let Some(outbox) = &mut connection.outbox else {
                return;
            };
            let counters = &self.metrics.shards[self.shard];
            if let Some(tls) = &mut connection.tls {
                let before = outbox.pending_bytes() as i64;
                outbox.seal(tls, &self.budget);
                counters
                    .outbox_bytes
                    .add(outbox.pending_bytes() as i64 - before);
            }
            counters.writes_total.add(u64::from(!outbox.is_empty()));
            let written = match outbox.write(&connection.socket) {
                Ok(written) => written,
                Err(_) => {
                    let messages = outbox.messages() as u64;
                    return self.write_failed(slot, messages);
                }
            };
            count_written(counters, &written);
            counters.outbox_bytes.sub(written.bytes as i64);
            if outbox.is_empty() {
                connection.outbox = None;
                // The close frame may still stand in the running batch: the flush finishes then.
                if connection.life == Life::Closing && connection.deliveries.is_empty() {
                    self.finish_close(slot);
                } else {
                    // It may not have been read while it had much waiting.
                    self.schedule_rest(slot);
                }
                return;
            }
            if written.bytes > 0 {
                outbox.progress = now;
            }
            // A large message may take its time on a slow line. Who is on the way out gets time by the frame only, and there
            // are two more.
            if written.frames > 0 || (written.bytes > 0 && connection.life == Life::Open) {
                outbox.deadline = deadline;
            }
            if written.blocked {
                return self.wait_for_room(slot);
            }
        }
        self.connections[slot as usize].write_ready = true;
        self.set_timer(slot);
        self.schedule_rest(slot);
    }

    pub(super) fn wait_for_room(&mut self, slot: u32) {
        self.counters().write_blocked_total.add(1);
        let token = self.token(slot);
        let connection = &mut self.connections[slot as usize];
        if connection.write_watched {
            return self.set_timer(slot);
        }
        match self.reactor.watch_write(connection.socket.as_fd(), token) {
            Ok(()) => {
                connection.write_watched = true;
                self.set_timer(slot);
            }
            Err(_) => self.write_failed(slot, 1),
        }
    }

    pub(super) fn write_failed(&mut self, slot: u32, messages: u64) {
        self.counters().failed_server_msg_total.add(messages);
        self.abort(slot, Cause::Client);
    }

    /// A client that has much waiting gets a last chance to take something. True: it took nothing, and is dropped.
    /// Source: contract/websocket.md §11.
    pub(super) fn drop_if_stalled(&mut self, slot: u32) -> bool {
        self.write_outbox(slot);
        let Some(connection) = self.connections.get(slot as usize) else {
            return true;
        };
        let outbox = connection.outbox.as_ref();
        let stalled = connection.is_open()
            && outbox.is_some_and(|outbox| self.bounds.is_stalled(outbox, self.now_tick));
        if stalled {
            self.drop_slow_client(slot);
        }
        stalled
    }

    /// The session has too much waiting.
    pub(super) fn drop_slow_client(&mut self, slot: u32) {
        let max = self.config.websocket.pending_bytes_max;
        let why = self.why_slow(slot);
        tracing::debug!(
            context = "node",
            sid = self.sid(slot),
            shard = self.shard,
            max,
            "slow client detected, disconnecting"
        );
        self.counters().disconnected_slow_clients_total.add(1);
        self.keep_slow_client(slot, why);
        self.clear_queue(slot);
        self.disconnect(
            slot,
            DisconnectReason::TooSlow,
            true,
            Close::SLOW,
            Cause::TooSlow,
        );
    }

    /// For the console.
    pub(super) fn keep_slow_client(&self, slot: u32, why: &str) {
        let outbox = &self.connections[slot as usize].outbox;
        let pending_bytes = outbox.as_ref().map_or(0, |outbox| outbox.pending_bytes());
        kept::slow_client(self.sid(slot), self.shard, why, pending_bytes);
    }

    pub(super) fn clear_queue(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        connection.deliveries = BatchList::default();
        if let Some(outbox) = &mut connection.outbox {
            let before = outbox.pending_bytes();
            outbox.clear_unstarted();
            let gone = before - outbox.pending_bytes();
            self.metrics.shards[self.shard]
                .outbox_bytes
                .sub(gone as i64);
        }
    }
}

fn count_written(counters: &ShardMetrics, written: &Written) {
    counters.server_msg_total.add(written.messages);
    counters.data_sent_total.add(written.payload_bytes);
}
