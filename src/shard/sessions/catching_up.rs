//! Readers of durable streams from an authenticated client to the beginning of the answer.
//!
//! A reader asks the home of its stream for the history, as a subscription does. What is there goes out as one answer whose
//! length is said before: all of it, as fast as the client takes it, or a refusal. A client that wants what follows listens
//! to the stream before it asks, and what is published meanwhile is held back, so that nothing is missing between the two
//! (`holdbacks`).

use std::time::Duration;

use super::Sessions;
use super::answering::date;
use super::closing::Cause;
use super::common::ticks;
use super::connection::Life;
use super::readers::{ReadState, array_bytes};
use super::waiting::{OpenQuestion, Replay};
use crate::endpoints::Response;
use crate::endpoints::durable_streams::{Found, ReadMode, ReadRefusal};
use crate::protocol::json::escape_into;
use crate::session::{BrokerQuestion, Deadlines, StreamHistory};
use crate::shard::outbox::frame::{Frame, FrameKind};
use crate::wire::http_response::{encode_head, encode_stream_head};

/// The identifier under which all readers of a stream listen to it.
fn identifier_of(stream: &str) -> String {
    let mut identifier = br#"{"channel":"$pubsub","stream_name":"#.to_vec();
    escape_into(&mut identifier, stream);
    identifier.push(b'}');
    String::from_utf8(identifier).expect("escaped text is UTF-8")
}

impl Sessions {
    /// Goes on with a reader whose client is authenticated: asks the home of the stream.
    pub(super) fn begin_reading(&mut self, slot: u32) {
        let Some(open) = self.table.reading(slot) else {
            return;
        };
        if open.state != ReadState::Unknown {
            return;
        }
        open.state = ReadState::Asked;
        let (stream, start, is_live) = (open.reading.stream.clone(), open.start(), open.is_live());
        let identifier = identifier_of(&stream);
        if is_live && !self.listen(slot, &identifier, &stream) {
            return self.answer_reader(slot, &Response::no_memory(), Cause::Error);
        }
        self.ask_broker(
            slot,
            BrokerQuestion::History {
                identifier: identifier.into(),
                streams: vec![StreamHistory { stream, start }],
            },
        );
    }

    /// False when there is no memory for one more listener.
    fn listen(&mut self, slot: u32, identifier: &str, stream: &str) -> bool {
        let listens = self.with_session(slot, true, |session, context, _| {
            session.listen(context, identifier, stream)
        });
        listens.is_ok()
    }

    /// The home has answered; an error: it has refused.
    pub(super) fn on_read(&mut self, slot: u32, answer: Result<Replay, Box<str>>) {
        let Ok(replay) = answer else {
            self.common.counters().history_refused_total.add(1);
            return self.refuse_reader(slot, ReadRefusal::Gone);
        };
        let Some(charge) = self.common.budget.hold(replay.message_bytes()) else {
            return self.answer_reader(slot, &Response::no_memory(), Cause::Error);
        };
        let Some(open) = self.table.reading(slot) else {
            return;
        };
        open.messages_charge = Some(charge);
        open.last = replay.last();
        match open.reading.mode {
            ReadMode::Head => self.answer_with_end(slot),
            ReadMode::LongPoll if replay.len() == 0 => self.wait_for_message(slot, &replay),
            ReadMode::CatchUp | ReadMode::LongPoll => self.answer_with_messages(slot, replay),
            ReadMode::Events => self.answer_with_events(slot, replay),
        }
    }

    /// Says where the stream ends.
    fn answer_with_end(&mut self, slot: u32) {
        let answer = self.table.reading(slot).map(|open| {
            let found = Found {
                first: None,
                last: open.last,
            };
            self.common.read_policy().metadata(&open.reading, found)
        });
        if let Some(answer) = answer {
            self.answer_reader(slot, &answer, Cause::Client);
        }
    }

    /// Nothing is there: the next message is the answer. What was held back meanwhile may have it.
    fn wait_for_message(&mut self, slot: u32, replay: &Replay) {
        if let Some(open) = self.table.reading(slot) {
            open.state = ReadState::Waiting;
            self.common.counters().ds_poll_clients_num.add(1);
        }
        self.set_reading_time(slot, self.read_times().0);
        self.release_held_back(slot, replay.identifier(), Some(replay));
        self.answer_waiting_readers();
    }

    /// How long a long poll and an answer with events last.
    fn read_times(&self) -> (Duration, Duration) {
        let config = self.common.config.durable_streams.as_ref();
        config.map_or((Duration::ZERO, Duration::ZERO), |it| {
            (it.poll_interval, it.events_ttl)
        })
    }

    /// [`Self::on_reading_over`] is called when this time is over.
    fn set_reading_time(&mut self, slot: u32, time: Duration) {
        let (now, ticks) = (self.table.now, ticks(time));
        let connection = &mut self.table.connections[slot as usize];
        connection.session.deadlines = Deadlines::new(now, ticks, ticks, 0);
        self.table.set_timer(slot);
    }

    /// Answers with all that is there. The client may have it already.
    fn answer_with_messages(&mut self, slot: u32, replay: Replay) {
        let Some(open) = self.table.reading(slot) else {
            return;
        };
        let policy = self.common.read_policy();
        let answer = policy.messages(&open.reading, found_in(&replay), open.cursor);
        if answer.status != 200 {
            return self.answer_reader(slot, &answer, Cause::Client);
        }
        let mut head = Vec::with_capacity(1024);
        let body_bytes = array_bytes(replay.len(), replay.message_bytes());
        encode_head(200, &answer.fields(), body_bytes, &date(), false, &mut head);
        self.begin_body(slot, head, replay);
    }

    /// Answers with events: first what is there.
    fn answer_with_events(&mut self, slot: u32, replay: Replay) {
        let Some(open) = self.table.reading(slot) else {
            return;
        };
        let answer = self.common.read_policy().events(&open.reading);
        let mut head = Vec::with_capacity(1024);
        encode_stream_head(&answer.fields(), &date(), open.form.chunked, &mut head);
        self.common.counters().ds_sse_clients_num.add(1);
        self.set_reading_time(slot, self.read_times().1);
        self.begin_body(slot, head, replay);
    }

    fn begin_body(&mut self, slot: u32, head: Vec<u8>, replay: Replay) {
        if let Some(open) = self.table.reading(slot) {
            open.state = ReadState::Answering { begun: false };
        }
        self.table.connections[slot as usize].life = Life::Open;
        let head = Frame::in_answer(head, FrameKind::Head, 0);
        self.writer.begin_answer(&mut self.table, slot, head);
        self.table
            .put_open_question(slot, OpenQuestion::Replay(replay));
        self.go_on_replay(slot);
        self.send(slot, Frame::flush_only());
    }
}

fn found_in(replay: &Replay) -> Found {
    Found {
        first: replay.first(),
        last: replay.last(),
    }
}
