//! Readers of durable streams at the end of their answer: what ends it, and their replay.
//!
//! `catching_up` begins the answers. The connection of a reader ends with its answer.

use super::Sessions;
use super::answering::date;
use super::closing::Cause;
use super::connection::Life;
use super::readers::{Polled, ReadState, array_bytes, whole};
use super::waiting::Replay;
use crate::endpoints::Response;
use crate::endpoints::durable_streams::{Found, ReadMode, ReadRefusal};
use crate::protocol::durable_streams::ArrayStyle;
use crate::protocol::publication::{Message, Publication};
use crate::shard::outbox::frame::{Frame, FrameKind};
use crate::wire::http_response::encode_head;

impl Sessions {
    /// Answers the long polls that have got a message.
    pub(super) fn answer_waiting_readers(&mut self) {
        for polled in self.writer.take_polled() {
            self.answer_waiting_reader(polled);
        }
    }

    fn answer_waiting_reader(&mut self, polled: Polled) {
        let Polled {
            session,
            position,
            message,
        } = polled;
        let slot = session.slot;
        if self.table.live(session).is_none() {
            return;
        }
        let Some(open) = self.table.reading(slot).filter(|open| open.is_waiting()) else {
            // An earlier message was its answer.
            return;
        };
        let found = Found {
            first: Some(position),
            last: Some(position),
        };
        let policy = self.common.read_policy();
        let answer = policy.messages(&open.reading, found, open.cursor);
        let frame = whole_array(&answer, &message);
        self.end_answer(slot, frame, Cause::Client);
    }

    /// Sends one message of the history. False when the client is no reader, and gets it as it gets others.
    pub(super) fn replay_to_reader(&mut self, slot: u32, publication: &Publication) -> bool {
        let Some(open) = self.table.reading(slot) else {
            return false;
        };
        let ReadState::Answering { begun } = &mut open.state else {
            return true;
        };
        let is_first = !std::mem::replace(begun, true);
        let frame = open.form.message(is_first, &publication.message);
        self.send(slot, frame);
        true
    }

    /// Everything that was there is sent, which ends the answer of a reader that wants nothing else.
    pub(super) fn end_replay_to_reader(&mut self, slot: u32, replay: &Replay) {
        let Some(open) = self.table.reading(slot) else {
            return;
        };
        let ReadState::Answering { begun } = open.state else {
            return;
        };
        open.messages_charge = None;
        let frame = open.form.end(begun, replay.last(), open.cursor);
        if open.reading.mode != ReadMode::Events {
            return self.end_answer(slot, frame, Cause::Client);
        }
        open.state = ReadState::Following;
        self.send(slot, frame);
    }

    /// The time of a reader is over. One that has not been asked for, or still gets what was there, goes on.
    pub(super) fn on_reading_over(&mut self, slot: u32) {
        let Some(open) = self.table.reading(slot) else {
            return;
        };
        match open.state {
            ReadState::Waiting => {
                let found = Found {
                    first: None,
                    last: open.last,
                };
                let policy = self.common.read_policy();
                let answer = policy.nothing_came(&open.reading, found, open.cursor);
                self.answer_reader(slot, &answer, Cause::Client);
            }
            ReadState::Following => {
                if let Some(last) = open.form.last() {
                    self.writer.send_last(&mut self.table, slot, last);
                }
                self.begin_close(slot, None, Cause::Client);
            }
            ReadState::Unknown | ReadState::Asked | ReadState::Answering { .. } => {
                self.table.set_timer(slot);
            }
        }
    }

    pub(super) fn refuse_reader(&mut self, slot: u32, refusal: ReadRefusal) {
        let answer = self
            .table
            .reading(slot)
            .map(|open| self.common.read_policy().refusal(&open.reading, refusal));
        if let Some(answer) = answer {
            self.answer_reader(slot, &answer, Cause::Error);
        }
    }

    /// Sends a whole answer and ends the connection.
    pub(super) fn answer_reader(&mut self, slot: u32, answer: &Response, cause: Cause) {
        let is_head = self
            .table
            .reading(slot)
            .is_some_and(|open| open.reading.mode == ReadMode::Head);
        self.end_answer(slot, whole(answer, is_head, &date()), cause);
    }

    /// Sends the last part of an answer and ends the connection.
    fn end_answer(&mut self, slot: u32, frame: Frame, cause: Cause) {
        self.table.connections[slot as usize].life = Life::Open;
        self.writer.send_last(&mut self.table, slot, frame);
        self.begin_close(slot, None, cause);
    }
}

/// An answer with one message.
fn whole_array(answer: &Response, message: &Message) -> Frame {
    let mut bytes = Vec::with_capacity(1024 + message.len());
    let body_bytes = array_bytes(1, message.len());
    encode_head(
        200,
        &answer.fields(),
        body_bytes,
        &date(),
        false,
        &mut bytes,
    );
    bytes.extend_from_slice(ArrayStyle::Body.beginning());
    bytes.extend_from_slice(message);
    bytes.extend_from_slice(ArrayStyle::Body.ending());
    Frame::in_answer(bytes, FrameKind::Message, message.len())
}
