//! The frames of server-sent events: parts of the body of an HTTP answer.

use super::EventForm;
use crate::protocol::event_stream::{self, Around, PublicationEvent};
use crate::protocol::publication::{Message, Publication};
use crate::protocol::reply::Reply;
use crate::shard::outbox::batch::Batch;
use crate::shard::outbox::frame::{Frame, FrameKind, SHARED_MESSAGE_BYTES_MIN};

/// The end of a body in chunks. Source: RFC 9112 §7.1.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
const LINE_END: &[u8] = b"\r\n";
/// "Not made yet".
const NONE: u32 = u32::MAX;

pub(super) fn reply(reply: &Reply, form: EventForm) -> Option<Frame> {
    let mut text = Vec::new();
    event_stream::reply_event(reply, form.view, &mut text)
        .then(|| frame(&text, FrameKind::Message, form.chunked))
}

pub(super) fn end(chunked: bool) -> Option<Frame> {
    chunked.then(|| Frame::in_answer(LAST_CHUNK.to_vec(), FrameKind::Control, 0))
}

/// The frames of one publication for one identifier: by whether the message is unwrapped, and by whether it is a chunk. Raw
/// clients get the same frames, or none.
pub(super) struct EventFrames([[u32; 2]; 2]);

impl Default for EventFrames {
    #[inline]
    fn default() -> Self {
        Self([[NONE; 2]; 2])
    }
}

impl EventFrames {
    /// `None` when the client does not want this publication.
    pub(super) fn get(
        &mut self,
        identifier: &str,
        publication: &Publication,
        form: EventForm,
        batch: &mut Batch,
    ) -> Option<u32> {
        let kind = publication.broadcast_type.as_deref().unwrap_or_default();
        if !form.view.shows(kind) {
            return None;
        }
        let made = &mut self.0[usize::from(form.view.unwrap)][usize::from(form.chunked)];
        if *made == NONE {
            let event = PublicationEvent {
                identifier,
                stream: &publication.stream,
                message: &publication.message,
                kind,
                position: publication.position,
                unwrap: form.view.unwrap,
            };
            let frame = publication_frame(event, publication, form.chunked, batch);
            *made = batch.add_frame(frame);
        }
        Some(*made)
    }
}

fn publication_frame(
    event: PublicationEvent<'_>,
    publication: &Publication,
    chunked: bool,
    batch: &mut Batch,
) -> Frame {
    if publication.message.len() >= SHARED_MESSAGE_BYTES_MIN
        && let Some(frame) = event.around().and_then(|Around { before, after }| {
            shared_frame(&before, &publication.message, after, chunked)
        })
    {
        return frame;
    }
    let mut text = batch.take_scratch();
    event.encode(&mut text);
    let frame = frame(&text, FrameKind::Message, chunked);
    batch.keep_scratch(text);
    frame
}

/// A frame that refers to the bytes of a long message.
pub(super) fn shared_frame(
    before: &[u8],
    message: &Message,
    mut after: Vec<u8>,
    chunked: bool,
) -> Option<Frame> {
    let bytes = before.len() + message.len() + after.len();
    let mut begin = Vec::with_capacity(CHUNK_HEAD_BYTES + before.len());
    if chunked {
        chunk_head(bytes, &mut begin);
        after.extend_from_slice(LINE_END);
    }
    begin.extend_from_slice(before);
    Frame::shared_in_answer(begin, message, &after, bytes)
}

/// The keep-alive frames of one tick, by whether the client is raw, and by whether it gets chunks.
#[derive(Default)]
pub(super) struct EventPings([[Option<u32>; 2]; 2]);

impl EventPings {
    pub(super) fn get(
        &mut self,
        form: EventForm,
        batch: &mut Batch,
        make_ping: impl FnOnce() -> Reply,
    ) -> u32 {
        let made = &mut self.0[usize::from(form.view.raw)][usize::from(form.chunked)];
        *made.get_or_insert_with(|| {
            let mut text = Vec::new();
            if !event_stream::reply_event(&make_ping(), form.view, &mut text) {
                // Raw clients see no ping. Without any bytes a proxy would cut the connection.
                text.extend_from_slice(event_stream::COMMENT);
            }
            batch.add_frame(frame(&text, FrameKind::Ping, form.chunked))
        })
    }
}

/// The longest size of a chunk in text, with its line end.
const CHUNK_HEAD_BYTES: usize = 16 + LINE_END.len();

pub(super) fn frame(text: &[u8], kind: FrameKind, chunked: bool) -> Frame {
    let framing = if chunked {
        CHUNK_HEAD_BYTES + LINE_END.len()
    } else {
        0
    };
    let mut bytes = Vec::with_capacity(text.len() + framing);
    if chunked {
        chunk_head(text.len(), &mut bytes);
    }
    bytes.extend_from_slice(text);
    if chunked {
        bytes.extend_from_slice(LINE_END);
    }
    Frame::in_answer(bytes, kind, text.len())
}

/// Appends the size of a chunk. Source: RFC 9112 §7.1.
fn chunk_head(bytes: usize, out: &mut Vec<u8>) {
    let digits = (usize::BITS - bytes.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[bytes >> (4 * digit) & 15]);
    }
    out.extend_from_slice(LINE_END);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_says_how_long_it_is() {
        for bytes in [
            0,
            1,
            9,
            15,
            16,
            255,
            256,
            65_535,
            65_536,
            0x0123_4567,
            usize::MAX,
        ] {
            let mut head = Vec::new();
            chunk_head(bytes, &mut head);
            assert_eq!(head, format!("{bytes:x}\r\n").into_bytes());
            assert!(head.len() <= CHUNK_HEAD_BYTES);
        }
    }
}
