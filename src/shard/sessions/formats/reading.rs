//! The frames of readers of durable streams: parts of a JSON array of messages, in the body of an answer or in events.

use memchr::memchr2;

use super::events::{end, frame, shared_frame};
use crate::protocol::durable_streams::{ArrayStyle, Cursor, control_event};
use crate::protocol::event_stream::rest_of_lines;
use crate::protocol::position::Position;
use crate::protocol::publication::Message;
use crate::shard::outbox::batch::Batch;
use crate::shard::outbox::frame::{Frame, FrameKind, SHARED_MESSAGE_BYTES_MIN};

/// How a reader gets messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shard::sessions) struct ReadForm {
    pub style: ArrayStyle,
    /// As chunks of a body.
    pub chunked: bool,
}

impl ReadForm {
    /// One message of an array.
    pub fn message(self, is_first: bool, message: &Message) -> Frame {
        let before = match is_first {
            true => self.style.beginning(),
            false => self.style.separator(),
        };
        let mut text = before.to_vec();
        if message.len() >= SHARED_MESSAGE_BYTES_MIN
            && !self.changes(message)
            && let Some(frame) = shared_frame(&text, message, Vec::new(), self.chunked)
        {
            return frame;
        }
        self.append(message, &mut text);
        frame(&text, FrameKind::Message, self.chunked)
    }

    /// The end of an array; the whole of one without messages (`begun` is false).
    pub fn end(self, begun: bool, last: Option<Position>, cursor: Cursor) -> Frame {
        let mut text = Vec::new();
        if !begun && self.style == ArrayStyle::Body {
            text.extend_from_slice(self.style.beginning());
        }
        if begun || self.style == ArrayStyle::Body {
            text.extend_from_slice(self.style.ending());
        }
        if self.style == ArrayStyle::Event {
            control_event(last, cursor, &mut text);
        }
        frame(&text, FrameKind::Control, self.chunked)
    }

    /// What ends a body with events; `None` when the end of the connection does.
    pub fn last(self) -> Option<Frame> {
        end(self.chunked)
    }

    /// True when the message cannot be part of an event as it is.
    fn changes(self, message: &[u8]) -> bool {
        self.style == ArrayStyle::Event && memchr2(b'\n', b'\r', message).is_some()
    }

    fn append(self, message: &[u8], text: &mut Vec<u8>) {
        match self.style {
            ArrayStyle::Body => text.extend_from_slice(message),
            ArrayStyle::Event => rest_of_lines(message, text),
        }
    }
}

/// The frames of one publication for readers of events, by cursor, and by whether they are chunks. Nearly all readers have
/// the cursor of the time.
#[derive(Default)]
pub(super) struct ReadFrames(Vec<(Cursor, bool, u32)>);

impl ReadFrames {
    pub fn get(
        &mut self,
        message: &Message,
        position: Position,
        cursor: Cursor,
        chunked: bool,
        batch: &mut Batch,
    ) -> u32 {
        let made = self
            .0
            .iter()
            .find(|(of, is, _)| (*of, *is) == (cursor, chunked));
        if let Some((.., frame)) = made {
            return *frame;
        }
        let style = ArrayStyle::Event;
        let form = ReadForm { style, chunked };
        let mut after = style.ending().to_vec();
        control_event(Some(position), cursor, &mut after);
        let shared = (message.len() >= SHARED_MESSAGE_BYTES_MIN && !form.changes(message))
            .then(|| shared_frame(style.beginning(), message, after.clone(), chunked))
            .flatten();
        let made = shared.unwrap_or_else(|| {
            let mut text = style.beginning().to_vec();
            form.append(message, &mut text);
            text.extend_from_slice(&after);
            frame(&text, FrameKind::Message, chunked)
        });
        let made = batch.add_frame(made);
        self.0.push((cursor, chunked, made));
        made
    }
}
