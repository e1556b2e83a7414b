//! What is kept of a reader of a durable stream until its answer is complete.

use std::rc::Rc;

use super::formats::ReadForm;
use crate::endpoints::Response;
use crate::endpoints::durable_streams::{ReadMode, ReadPolicy, ReadRefusal, StreamReading};
use crate::mesh::{Charge, SessionRef, ShardBudget};
use crate::os::random;
use crate::protocol::disconnect::Close;
use crate::protocol::durable_streams::{ArrayStyle, Cursor, Offset, next_cursor};
use crate::protocol::position::Position;
use crate::protocol::publication::Message;
use crate::session::HistoryStart;
use crate::shard::outbox::frame::{Frame, FrameKind};
use crate::wire::http_response::encode_response;

/// A request that may read its stream, once its client is authenticated.
#[derive(Debug)]
pub struct ReadRequest {
    pub reading: Box<StreamReading>,
    /// The client understands a body in chunks.
    pub chunked: bool,
}

/// A reader until its answer is complete.
pub(super) struct OpenReading {
    pub reading: Box<StreamReading>,
    pub form: ReadForm,
    pub state: ReadState,
    /// The cursor of the answer, and the least one of its events.
    pub cursor: Cursor,
    /// Where the stream ended when its home answered.
    pub last: Option<Position>,
    /// For the request.
    charge: Charge,
    /// For the messages of the answer: the history may drop them before the client has taken them.
    pub messages_charge: Option<Charge>,
}

/// How far a reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReadState {
    /// Its client is not authenticated.
    Unknown,
    /// The home has been asked.
    Asked,
    /// A long poll waits for a message.
    Waiting,
    /// The head of the answer is out. `begun`: its first message too.
    Answering { begun: bool },
    /// A reader of events gets what follows.
    Following,
}

/// A message that answers a long poll.
pub(super) struct Polled {
    pub session: SessionRef,
    pub position: Position,
    pub message: Message,
}

impl OpenReading {
    /// `now_unix_secs`: seconds since 1970.
    pub fn new(request: ReadRequest, now_unix_secs: u64, budget: &Rc<ShardBudget>) -> Self {
        let ReadRequest { reading, chunked } = request;
        let random = u32::from_ne_bytes(random::bytes());
        let style = match reading.mode {
            ReadMode::Events => ArrayStyle::Event,
            _ => ArrayStyle::Body,
        };
        Self {
            form: ReadForm {
                style,
                chunked: chunked && style == ArrayStyle::Event,
            },
            state: ReadState::Unknown,
            cursor: next_cursor(now_unix_secs, reading.cursor, random),
            last: None,
            charge: budget.hold_anyway(size_of::<Self>() + reading.held_bytes()),
            messages_charge: None,
            reading,
        }
    }

    /// The bytes that are charged for it.
    pub fn charged_bytes(&self) -> usize {
        let messages = self.messages_charge.as_ref();
        self.charge.bytes() + messages.map_or(0, Charge::bytes)
    }

    /// A long poll that waits for a message.
    pub fn is_waiting(&self) -> bool {
        self.state == ReadState::Waiting
    }

    /// A reader of events that has what was there.
    pub fn is_following(&self) -> bool {
        self.state == ReadState::Following
    }

    /// The head of its answer is out.
    fn is_answering(&self) -> bool {
        matches!(self.state, ReadState::Answering { .. })
    }

    /// A reader of events whose answer has begun.
    pub fn gets_events(&self) -> bool {
        self.reading.mode == ReadMode::Events && (self.is_answering() || self.is_following())
    }

    /// Whether it wants what is published from now on.
    pub fn is_live(&self) -> bool {
        matches!(self.reading.mode, ReadMode::LongPoll | ReadMode::Events)
    }

    pub fn start(&self) -> HistoryStart {
        match (self.reading.mode, self.reading.offset) {
            (ReadMode::Head, _) | (_, Offset::Now) => HistoryStart::Next,
            (_, Offset::Beginning) => HistoryStart::Oldest,
            (_, Offset::After(position)) => HistoryStart::After(position),
        }
    }

    /// The cursor of an event, `now` being that of the time. It is never less than that of an earlier event.
    pub fn event_cursor(&self, now: Cursor) -> Cursor {
        self.cursor.max(now)
    }

    /// The answer to a reader that is closed before it has one.
    pub fn refusal(&self, policy: &ReadPolicy, close: &Close, date: &str) -> Option<Frame> {
        if self.is_answering() || self.is_following() {
            return None;
        }
        let refusal = match *close == Close::SERVER_RESTART {
            true => ReadRefusal::Stopping,
            false => ReadRefusal::Unauthorized,
        };
        let answer = policy.refusal(&self.reading, refusal);
        Some(whole(&answer, self.reading.mode == ReadMode::Head, date))
    }
}

/// A whole answer, which ends the connection.
pub(super) fn whole(answer: &Response, head_only: bool, date: &str) -> Frame {
    let mut bytes = Vec::with_capacity(1024 + answer.body.len());
    encode_response(
        answer.status,
        &answer.fields(),
        &answer.body,
        date,
        false,
        head_only,
        &mut bytes,
    );
    Frame::in_answer(bytes, FrameKind::Head, 0)
}

/// Bytes of an array of `messages` with so many bytes in all.
pub(super) fn array_bytes(messages: usize, message_bytes: usize) -> usize {
    let brackets = ArrayStyle::Body.beginning().len() + ArrayStyle::Body.ending().len();
    let commas = messages.saturating_sub(1) * ArrayStyle::Body.separator().len();
    brackets + commas + message_bytes
}
