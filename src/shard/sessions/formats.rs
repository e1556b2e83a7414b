//! How messages to a client become bytes: the only file where replies and publications meet the text of the protocol and the
//! framing of WebSocket.
//!
//! A frame that many sessions share is encoded for its first receiver, once for each [`Format`] in use.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::connection::Connection;
use crate::config::PingPrecision;
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
    /// permessage-deflate.
    pub deflate: bool,
}

impl Format {
    pub fn reply(self, reply: &Reply, deflater: &mut Deflater) -> Frame {
        self.text(&reply.json(), FrameKind::Message, deflater)
    }

    /// A text message, compressed when the client has agreed to that and the message is not huge.
    fn text(self, text: &[u8], kind: FrameKind, deflater: &mut Deflater) -> Frame {
        let bytes = if self.deflate && text.len() <= DEFLATED_BYTES_MAX {
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
}

impl<'a> GroupFrames<'a> {
    pub(super) fn new(identifier: &'a str, publication: &'a Publication) -> Self {
        Self {
            identifier,
            publication,
            plain: None,
            deflated: None,
        }
    }

    pub(super) fn get(
        &mut self,
        format: Format,
        batch: &mut Batch,
        deflater: &mut Deflater,
    ) -> u32 {
        let publication = self.publication;
        let (message, position) = (&publication.message, publication.position);
        // A huge message is not compressed, so it is the same frame for all.
        let deflate = format.deflate && message.len() <= DEFLATED_BYTES_MAX;
        let made = if deflate {
            &mut self.deflated
        } else {
            &mut self.plain
        };
        if let Some(frame) = *made {
            return frame;
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
        *made.insert(batch.add_frame(frame))
    }
}

/// The ping frames of one tick, encoded once for all sessions.
#[derive(Default)]
pub(super) struct PingFrames {
    /// By precision, plain and deflated.
    frames: [[Option<u32>; 2]; 3],
    native: Option<u32>,
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
        let made = &mut self.frames[format.precision as usize][usize::from(format.deflate)];
        let ping = *made.get_or_insert_with(|| {
            let timestamp = timestamp(format.precision);
            let ping = Reply::Ping { timestamp };
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

fn timestamp(precision: PingPrecision) -> i128 {
    let now = unix_time();
    match precision {
        PingPrecision::Seconds => now.as_secs().into(),
        PingPrecision::Milliseconds => now.as_millis() as i128,
        PingPrecision::Nanoseconds => now.as_nanos() as i128,
    }
}

/// A clock that shows a time before 1970 counts as 1970.
pub(super) fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
