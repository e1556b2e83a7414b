//! How messages to a client become bytes: the only file where replies and publications meet the text of the protocol and the
//! framing of WebSocket or of an HTTP answer.
//!
//! A frame that many sessions share is encoded for its first receiver, once for each [`Format`] in use.

mod events;
mod lines;
mod reading;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::events::{EventFrames, EventPings};
pub(super) use self::reading::ReadForm;
use self::reading::ReadFrames;
use super::connection::Connection;
use crate::config::PingPrecision;
use crate::protocol::disconnect::Close;
use crate::protocol::durable_streams::Cursor;
use crate::protocol::event_stream::View;
use crate::protocol::position::Position;
use crate::protocol::publication::Publication;
use crate::protocol::reply::{self, Reply};
use crate::shard::outbox::batch::{Batch, Urgency};
use crate::shard::outbox::frame::{Frame, FrameKind};
use crate::wire::websocket::deflate::Deflater;
use crate::wire::websocket::frame;

/// What a client and the server have agreed on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Format {
    /// Precision of the timestamps in pings.
    pub precision: PingPrecision,
    pub encoding: Encoding,
}

/// What frames are made of. One byte, because every session has one and most deliveries compare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Encoding(u8);

/// How a client gets server-sent events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventForm {
    pub view: View,
    /// As chunks of a body, so that it can end before its connection does. HTTP/1.0 has none.
    pub chunked: bool,
}

impl Encoding {
    /// WebSocket frames with text.
    pub const PLAIN: Self = Self(0);
    /// The same, compressed.
    pub const DEFLATED: Self = Self(1);
    /// JSON texts, one a line, which wait until the client polls.
    pub const LINES: Self = Self(64);
    /// Server-sent events, and what follows.
    const EVENTS: u8 = 2;
    const UNWRAP: u8 = 4;
    const RAW: u8 = 8;
    const CHUNKED: u8 = 16;
    /// A reader of a durable stream: what it gets depends on how far it is.
    const READER: u8 = 32;

    pub fn events(form: EventForm) -> Self {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let view = flag(form.view.unwrap, Self::UNWRAP) | flag(form.view.raw, Self::RAW);
        Self(Self::EVENTS | view | flag(form.chunked, Self::CHUNKED))
    }

    /// `chunked`: the body of the answer.
    pub fn reader(chunked: bool) -> Self {
        Self(Self::READER | if chunked { Self::CHUNKED } else { 0 })
    }

    pub fn is_reader(self) -> bool {
        self.0 & Self::READER != 0
    }

    pub fn is_events(self) -> bool {
        self.0 & Self::EVENTS != 0
    }

    /// `None`: a WebSocket.
    pub fn event_form(self) -> Option<EventForm> {
        let has = |flag| self.0 & flag != 0;
        self.is_events().then(|| EventForm {
            view: View {
                unwrap: has(Self::UNWRAP),
                raw: has(Self::RAW),
            },
            chunked: has(Self::CHUNKED),
        })
    }
}

impl Format {
    /// The name of the transport, for the log.
    pub fn transport(self) -> &'static str {
        match self.encoding {
            encoding if encoding.is_events() => "SSE",
            encoding if encoding.is_reader() => "durable stream",
            Encoding::LINES => "long-polling",
            _ => "WebSocket",
        }
    }

    /// `None` when the client does not want such replies.
    pub fn reply(self, reply: &Reply, deflater: &mut Deflater) -> Option<Frame> {
        match self.encoding.event_form() {
            Some(form) => events::reply(reply, form),
            None if self.encoding.is_reader() => None,
            None if self.encoding == Encoding::LINES => Some(lines::reply(reply)),
            None => Some(self.text(&reply.json(), FrameKind::Message, deflater)),
        }
    }

    /// The last frame of a client that the server disconnects. `None` when the end of the connection says it all.
    pub fn end(self, close: &Close) -> Option<Frame> {
        let encoding = self.encoding;
        match encoding.is_events() || encoding.is_reader() {
            true => events::end(encoding.0 & Encoding::CHUNKED != 0),
            false if encoding == Encoding::LINES => None,
            false => Some(close_frame(Some(close.code), close.reason)),
        }
    }

    /// A text message, compressed when the client has agreed to that and the message is not huge.
    fn text(self, text: &[u8], kind: FrameKind, deflater: &mut Deflater) -> Frame {
        let bytes = if self.encoding == Encoding::DEFLATED && text.len() <= DEFLATED_BYTES_MAX {
            frame::compressed_text_frame(&deflater.compress(text))
        } else {
            frame::text_frame(text)
        };
        Frame::new(bytes, kind)
    }
}

/// A message to the console, which uses no compression.
pub(super) fn console_frame(text: &[u8]) -> Frame {
    Frame::new(frame::text_frame(text), FrameKind::Message)
}

/// The last frame that a client gets.
pub(super) fn close_frame(code: Option<u16>, reason: &str) -> Frame {
    Frame::new(frame::close_frame(code, reason), FrameKind::Control)
}

/// The answer to a ping.
pub(super) fn pong_frame(payload: &[u8]) -> Frame {
    Frame::new(frame::pong_frame(payload), FrameKind::Pong)
}

/// The frames of one publication for one identifier, each encoded for its first receiver.
pub(super) struct GroupFrames<'a> {
    identifier: &'a str,
    publication: &'a Publication,
    plain: Option<u32>,
    deflated: Option<u32>,
    lines: Option<u32>,
    events: EventFrames,
    readers: ReadFrames,
}

impl<'a> GroupFrames<'a> {
    pub(super) fn new(identifier: &'a str, publication: &'a Publication) -> Self {
        Self {
            identifier,
            publication,
            plain: None,
            deflated: None,
            lines: None,
            events: EventFrames::default(),
            readers: ReadFrames::default(),
        }
    }

    pub(super) fn publication(&self) -> &'a Publication {
        self.publication
    }

    /// The frame for a reader of a durable stream that gets events.
    pub(super) fn reader_event(
        &mut self,
        position: Position,
        cursor: Cursor,
        chunked: bool,
        batch: &mut Batch,
    ) -> u32 {
        let message = &self.publication.message;
        self.readers.get(message, position, cursor, chunked, batch)
    }

    /// The frame for a client; `None` when it does not want this publication.
    #[inline]
    pub(super) fn get(
        &mut self,
        format: Format,
        batch: &mut Batch,
        deflater: &mut Deflater,
    ) -> Option<u32> {
        match self.plain {
            Some(frame) if format.encoding == Encoding::PLAIN => Some(frame),
            _ => self.find(format, batch, deflater),
        }
    }

    fn find(&mut self, format: Format, batch: &mut Batch, deflater: &mut Deflater) -> Option<u32> {
        if let Some(form) = format.encoding.event_form() {
            let (identifier, publication) = (self.identifier, self.publication);
            return self.events.get(identifier, publication, form, batch);
        }
        if format.encoding.is_reader() {
            return None;
        }
        let publication = self.publication;
        if format.encoding == Encoding::LINES {
            let identifier = self.identifier;
            return Some(*self.lines.get_or_insert_with(|| {
                let frame = lines::publication(identifier, publication, batch);
                batch.add_frame(frame)
            }));
        }
        let (message, position) = (&publication.message, publication.position);
        // A huge message is not compressed, so it is the same frame for all.
        let deflate = format.encoding == Encoding::DEFLATED && message.len() <= DEFLATED_BYTES_MAX;
        let made = if deflate {
            &mut self.deflated
        } else {
            &mut self.plain
        };
        if made.is_some() {
            return *made;
        }
        let mut text = batch.take_scratch();
        reply::begin_data_message(
            self.identifier,
            publication.broadcast_type.as_deref(),
            &mut text,
        );
        let frame = if deflate {
            text.extend_from_slice(message);
            reply::end_data_message(&publication.stream, position, &mut text);
            format.text(&text, FrameKind::Message, deflater)
        } else if position.is_none() {
            Frame::delivery(&text, message)
        } else {
            let message_at = text.len();
            reply::end_data_message(&publication.stream, position, &mut text);
            let (beginning, ending) = text.split_at(message_at);
            Frame::delivery_with_ending(beginning, message, ending)
        };
        batch.keep_scratch(text);
        *made = Some(batch.add_frame(frame));
        *made
    }
}

/// The ping frames of one tick, encoded once for all sessions.
#[derive(Default)]
pub(super) struct PingFrames {
    /// By precision, plain and deflated.
    frames: [[Option<u32>; 2]; 3],
    native: Option<u32>,
    events: EventPings,
}

impl PingFrames {
    pub(super) fn deliver(
        &mut self,
        slot: u32,
        connection: &mut Connection,
        native: bool,
        batch: &mut Batch,
        deflater: &mut Deflater,
    ) {
        let format = connection.format;
        if let Some(form) = format.encoding.event_form() {
            let ping = self.events.get(form, batch, || ping(format.precision));
            batch.deliver(slot, &mut connection.deliveries, ping, Urgency::Prompt);
            return;
        }
        let deflate = usize::from(format.encoding == Encoding::DEFLATED);
        let made = &mut self.frames[format.precision as usize][deflate];
        let ping = *made.get_or_insert_with(|| {
            let ping = ping(format.precision);
            batch.add_frame(format.text(&ping.json(), FrameKind::Ping, deflater))
        });
        batch.deliver(slot, &mut connection.deliveries, ping, Urgency::Prompt);
        if native {
            let made = &mut self.native;
            let ping = *made.get_or_insert_with(|| {
                batch.add_frame(Frame::new(frame::ping_frame(b""), FrameKind::Control))
            });
            batch.deliver(slot, &mut connection.deliveries, ping, Urgency::Prompt);
        }
    }
}

/// Longer messages are not compressed, because compressing one would block the shard for more than a few milliseconds. Every
/// client accepts an uncompressed message (RFC 7692 §6).
const DEFLATED_BYTES_MAX: usize = 256 << 10;

fn ping(precision: PingPrecision) -> Reply {
    let now = unix_time();
    let timestamp = match precision {
        PingPrecision::Seconds => now.as_secs().into(),
        PingPrecision::Milliseconds => now.as_millis() as i128,
        PingPrecision::Nanoseconds => now.as_nanos() as i128,
    };
    Reply::Ping { timestamp }
}

/// A clock that shows a time before 1970 counts as 1970.
pub(super) fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
