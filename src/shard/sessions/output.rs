//! Sending: replies, publications, the flush at the end of a turn, and what each write means for its session.

use std::sync::Arc;
use std::time::Duration;

use super::Sessions;
use super::connection::Connection;
use super::share::TimeSlice;
use super::writer::{FLUSHES_PER_LOOK, Outcome, Queued};
use crate::protocol::publication::Publication;
use crate::protocol::reply::Reply;
use crate::shard::outbox::frame::Frame;

/// Sessions written in one turn at most.
pub const FLUSHES_PER_TURN_MAX: usize = 512;
/// How long one turn writes; the other sessions keep their place in the queue.
const FLUSHING_TIME_MAX: Duration = Duration::from_millis(2);

impl Sessions {
    pub(super) fn send_reply(&mut self, slot: u32, reply: &Reply) {
        let queued = self.writer.send_reply(&mut self.table, slot, reply);
        self.settle_queued(slot, queued);
    }

    pub(super) fn send(&mut self, slot: u32, frame: Frame) {
        let queued = self.writer.send(&mut self.table, slot, frame);
        self.settle_queued(slot, queued);
    }

    pub(super) fn send_pong(&mut self, slot: u32, payload: &[u8]) {
        let queued = self.writer.send_pong(&mut self.table, slot, payload);
        self.settle_queued(slot, queued);
    }

    fn settle_queued(&mut self, slot: u32, queued: Queued) {
        if queued == Queued::TooMuch {
            self.drop_slow_client(slot);
        }
    }

    /// Continues to write what waits for a session.
    pub(super) fn write_outbox(&mut self, slot: u32) {
        let outcome = self.writer.write_outbox(&mut self.table, slot);
        self.settle(slot, outcome);
    }

    fn settle(&mut self, slot: u32, outcome: Outcome) {
        match outcome {
            Outcome::Gathered => self.go_on_polling(slot),
            written => self.settle_written(slot, written),
        }
    }

    /// Begins to deliver publications, in order, to all sessions that listen on this shard. They are one message of the
    /// inbox, with this `number` among all that have arrived. [`Self::go_on_fan_out`] delivers.
    ///
    /// # Panics
    /// When an earlier message is not done yet.
    pub fn fan_out(&mut self, publications: Arc<[Publication]>, number: u64) {
        self.fan_out.begin(&mut self.hub, publications, number);
    }

    /// Delivers until everything is done (true) or the turn has done enough: `time` is over, or the batch must be written
    /// first.
    pub fn go_on_fan_out(&mut self, time: TimeSlice) -> bool {
        let done = self.fan_out.go_on(
            &self.common,
            &mut self.hub,
            &mut self.table,
            &mut self.writer,
            &mut self.holdbacks,
            time,
        );
        for slot in self.fan_out.take_slow() {
            let connection = self.table.connections.get(slot as usize);
            if connection.is_some_and(Connection::is_open) {
                self.drop_slow_client(slot);
            }
        }
        done
    }

    /// Notes that a message of the inbox is done, unless it is still being delivered.
    pub fn note_handled(&mut self, number: u64) {
        if !self.fan_out.is_under_way() {
            self.hub.set_handled(number);
        }
    }

    /// True while publications wait for time or for room in the batch.
    pub fn is_fanning_out(&self) -> bool {
        self.fan_out.is_under_way()
    }

    /// Writes what the batch has for some sessions, so that a turn stays short however many sessions wait. The others keep
    /// their place, and publications that come before their turn go out with the same write.
    pub(super) fn flush_some(&mut self) {
        let time = TimeSlice::of_turn(FLUSHING_TIME_MAX);
        let mut flushed = 0;
        while flushed < FLUSHES_PER_TURN_MAX && self.writer.has_work() && !time.is_over() {
            self.writer.flush_few(&mut self.table, time);
            for (slot, outcome) in self.writer.take_outcomes() {
                self.settle(slot, outcome);
            }
            flushed += FLUSHES_PER_LOOK;
        }
        self.writer.end_flush();
    }

    /// True while sessions wait for a write that a turn had no time for.
    pub fn has_unflushed(&self) -> bool {
        !self.writer.is_empty()
    }
}
