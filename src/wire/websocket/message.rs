//! Incoming WebSocket bytes to messages: fragments, interleaved control frames, limits, decompression.
//!
//! Between messages a decoder is one null pointer, so an idle session costs eight bytes here. The bytes of an unfinished
//! frame or message are in a box, which is freed after the last byte. Text must be UTF-8 (RFC 6455 §8.1). Binary messages
//! may contain any bytes: Action Cable treats both kinds alike, and the JSON layer replaces what is not UTF-8 in them. The
//! shard calls this for every read of every session.
//!
//! Source: RFC 6455 §5.4 and §5.5, `contract/websocket.md` §6, §9 and §11.

use std::ops::Range;

use super::deflate::{InflateError, Inflater};
use super::frame::{
    FrameError, FrameHeader, FrameRules, HEADER_BYTES_MAX, Opcode, decode_close, decode_header,
    unmask,
};

/// The limits of what a session may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageLimits {
    /// Payload bytes of one message, summed over its fragments, before decompression. 0 = no limit.
    pub message_bytes_max: u64,
    /// permessage-deflate was negotiated.
    pub deflate: bool,
    /// Bytes of one message after decompression. 0 = no limit. The reference has no such limit: there 16 KiB may become 16
    /// MiB.
    pub inflated_bytes_max: u64,
}

/// One event from the client.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A complete text message, decompressed and valid UTF-8. Action Cable treats it like a binary one.
    Text(&'a [u8]),
    /// A complete binary message, decompressed; any bytes.
    Binary(&'a [u8]),
    /// Must be answered with a pong of the same payload.
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// The client's close code, if it sent one. Later bytes are ignored.
    Close(Option<u16>),
}

/// The state of one connection's incoming side.
#[derive(Debug, Default)]
pub struct MessageDecoder {
    partial: Option<Box<Partial>>,
}

const _: () = assert!(size_of::<MessageDecoder>() == 8);

/// What the decoders of a shard share: room for a message that cannot be borrowed from the input, and the decompressor.
///
/// Each message is decompressed as a whole and nothing is remembered between messages, so all sessions can share one.
#[derive(Debug, Default)]
pub struct Scratch {
    pub(crate) payload: Vec<u8>,
    inflater: Inflater,
}

impl Scratch {
    /// Drops the message but keeps the allocation.
    pub fn clear(&mut self) {
        self.payload.clear();
    }

    fn inflate(&mut self, data: &[u8], limits: &MessageLimits) -> Result<(), FrameError> {
        self.inflater
            .inflate(data, limits.inflated_bytes_max, &mut self.payload)
            .map_err(|error| match error {
                InflateError::Invalid => FrameError::BadDeflate,
                InflateError::TooLong { bytes_max } => FrameError::InflatedTooLong { bytes_max },
            })
    }
}

/// The bytes of an incomplete frame or message. At most one of `header_bytes` and `frame` is in use. `message` is set from
/// the first frame of a message to its last byte.
#[derive(Debug, Default)]
struct Partial {
    /// The first `header_length` bytes of the next header.
    header_bytes: [u8; HEADER_BYTES_MAX],
    header_length: usize,
    frame: Option<PartialFrame>,
    message: Option<PartialMessage>,
    /// Payload of an unfinished control frame, unmasked.
    control: Vec<u8>,
}

#[derive(Debug)]
struct PartialFrame {
    header: FrameHeader,
    /// Payload bytes that have arrived, fewer than the header announces.
    arrived_bytes: u64,
}

#[derive(Debug)]
struct PartialMessage {
    /// The opcode of the first frame: text or binary.
    opcode: Opcode,
    compressed: bool,
    /// The bytes that have arrived, unmasked, with the fragments joined.
    payload: Vec<u8>,
}

/// An event without its payload, which [`MessageDecoder::next`] borrows afterwards.
enum Found {
    Event { opcode: Opcode, place: Place },
    Closed(Option<u16>),
}

enum Place {
    /// In the input.
    Input(Range<usize>),
    /// In the scratch, which contains nothing else.
    Scratch,
}

impl MessageDecoder {
    /// Takes bytes from the start of `input` up to the first event. Returns their number, and the event.
    ///
    /// Without an event all of `input` was taken. With an event, call it again with the rest. A frame that is complete in
    /// `input` is unmasked in place and borrowed from there. A message that came in parts, or compressed, is put into
    /// `scratch`; that overwrites its old contents and may replace its allocation.
    ///
    /// # Errors
    /// [`FrameError`] with the close frame to send. The decoder must not be used after that.
    pub fn next<'a>(
        &mut self,
        input: &'a mut [u8],
        limits: &MessageLimits,
        scratch: &'a mut Scratch,
    ) -> Result<(usize, Option<Incoming<'a>>), FrameError> {
        let (consumed, found) = self.advance(input, limits, scratch)?;
        let incoming = found.map(|found| match found {
            Found::Closed(code) => Incoming::Close(code),
            Found::Event { opcode, place } => {
                let payload: &[u8] = match place {
                    Place::Input(range) => &input[range],
                    Place::Scratch => &scratch.payload,
                };
                match opcode {
                    Opcode::Ping => Incoming::Ping(payload),
                    Opcode::Pong => Incoming::Pong(payload),
                    Opcode::Binary => Incoming::Binary(payload),
                    _ => Incoming::Text(payload),
                }
            }
        });
        Ok((consumed, incoming))
    }

    /// Bytes that are stored of an incomplete frame or message; 0 when the next byte starts a new message.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            let message = partial.message.as_ref();
            let payload = message.map_or(0, |message| message.payload.capacity());
            size_of::<Partial>() + payload + partial.control.capacity()
        })
    }

    fn advance(
        &mut self,
        input: &mut [u8],
        limits: &MessageLimits,
        scratch: &mut Scratch,
    ) -> Result<(usize, Option<Found>), FrameError> {
        let mut at = 0;
        while at < input.len() {
            if !self.inside_frame() {
                match self.take_header(&input[at..], limits)? {
                    (taken, None) => at += taken,
                    (taken, Some(header)) => {
                        at += taken;
                        if let Some(range) = self.whole_payload(&header, at, input.len()) {
                            at = range.end;
                            let found = self.whole_frame(&header, input, range, limits, scratch)?;
                            return Ok((at, Some(found)));
                        }
                        self.begin_frame(header);
                    }
                }
            }
            // Also when no input is left, because a fragment may be empty.
            if self.inside_frame() {
                let (taken, found) = self.take_payload(&mut input[at..], limits, scratch)?;
                at += taken;
                if found.is_some() {
                    return Ok((at, found));
                }
            }
        }
        Ok((at, None))
    }

    fn inside_frame(&self) -> bool {
        self.partial
            .as_ref()
            .is_some_and(|partial| partial.frame.is_some())
    }

    /// Reads the header of the next frame; a part of it may have come earlier. Returns the number of bytes taken. Without a
    /// complete header all bytes are taken and stored.
    fn take_header(
        &mut self,
        input: &[u8],
        limits: &MessageLimits,
    ) -> Result<(usize, Option<FrameHeader>), FrameError> {
        let rules = FrameRules {
            deflate: limits.deflate,
            in_message: self.message_bytes().is_some(),
        };
        let kept = self
            .partial
            .as_ref()
            .map_or(0, |partial| partial.header_length);
        let header = match &self.partial {
            Some(partial) if kept > 0 => {
                let mut joined = partial.header_bytes;
                let fresh = input.len().min(HEADER_BYTES_MAX - kept);
                joined[kept..kept + fresh].copy_from_slice(&input[..fresh]);
                decode_header(&joined[..kept + fresh], rules)?
            }
            _ => decode_header(input, rules)?,
        };
        let Some(header) = header else {
            // Together fewer than HEADER_BYTES_MAX bytes; with that many the header would be complete.
            let partial = self.partial.get_or_insert_default();
            partial.header_bytes[kept..kept + input.len()].copy_from_slice(input);
            partial.header_length = kept + input.len();
            return Ok((input.len(), None));
        };
        self.check_message_bytes(&header, limits)?;
        if let Some(partial) = &mut self.partial {
            partial.header_length = 0;
        }
        Ok((header.header_bytes - kept, Some(header)))
    }

    /// The limit is on the sum of the fragments. The header announces the size, so the check is made before the payload
    /// arrives.
    fn check_message_bytes(
        &self,
        header: &FrameHeader,
        limits: &MessageLimits,
    ) -> Result<(), FrameError> {
        if header.opcode.is_control() || limits.message_bytes_max == 0 {
            return Ok(());
        }
        let bytes = self
            .message_bytes()
            .unwrap_or(0)
            .saturating_add(header.payload_bytes);
        if bytes <= limits.message_bytes_max {
            return Ok(());
        }
        Err(FrameError::TooLong {
            bytes,
            bytes_max: limits.message_bytes_max,
        })
    }

    /// Payload bytes of the unfinished message so far; `None` between messages.
    fn message_bytes(&self) -> Option<u64> {
        let message = self.partial.as_ref()?.message.as_ref()?;
        Some(message.payload.len() as u64)
    }

    /// The position of the frame's payload in the input, if all of it is there and the frame alone is an event.
    fn whole_payload(
        &self,
        header: &FrameHeader,
        start: usize,
        input_bytes: usize,
    ) -> Option<Range<usize>> {
        let stands_alone =
            header.opcode.is_control() || (header.fin && self.message_bytes().is_none());
        if !stands_alone || header.payload_bytes > (input_bytes - start) as u64 {
            return None;
        }
        Some(start..start + header.payload_bytes as usize)
    }

    fn whole_frame(
        &mut self,
        header: &FrameHeader,
        input: &mut [u8],
        range: Range<usize>,
        limits: &MessageLimits,
        scratch: &mut Scratch,
    ) -> Result<Found, FrameError> {
        self.release_unless_in_message();
        let payload = &mut input[range.clone()];
        unmask(header.mask, 0, payload);
        let opcode = header.opcode;
        if opcode == Opcode::Close {
            return decode_close(payload).map(Found::Closed);
        }
        if header.rsv1 {
            scratch.inflate(payload, limits)?;
            check_text(opcode == Opcode::Text, &scratch.payload)?;
            return Ok(Found::Event {
                opcode,
                place: Place::Scratch,
            });
        }
        check_text(opcode == Opcode::Text, payload)?;
        Ok(Found::Event {
            opcode,
            place: Place::Input(range),
        })
    }

    fn begin_frame(&mut self, header: FrameHeader) {
        let partial = self.partial.get_or_insert_default();
        if matches!(header.opcode, Opcode::Text | Opcode::Binary) {
            partial.message = Some(PartialMessage {
                opcode: header.opcode,
                compressed: header.rsv1,
                payload: Vec::new(),
            });
        }
        partial.frame = Some(PartialFrame {
            header,
            arrived_bytes: 0,
        });
    }

    /// Takes payload of the current frame. Returns an event if that completes a control frame or the last frame of a
    /// message.
    fn take_payload(
        &mut self,
        input: &mut [u8],
        limits: &MessageLimits,
        scratch: &mut Scratch,
    ) -> Result<(usize, Option<Found>), FrameError> {
        let Some(partial) = self.partial.as_deref_mut() else {
            return Ok((0, None));
        };
        let (taken, finished) = partial.take_payload(input);
        let found = match finished {
            None => None,
            Some(header) if header.opcode.is_control() => {
                Some(self.finish_control(header.opcode, scratch)?)
            }
            Some(header) if header.fin => Some(self.finish_message(limits, scratch)?),
            Some(_) => None,
        };
        Ok((taken, found))
    }

    fn finish_control(
        &mut self,
        opcode: Opcode,
        scratch: &mut Scratch,
    ) -> Result<Found, FrameError> {
        scratch.clear();
        if let Some(partial) = &mut self.partial {
            scratch.payload.append(&mut partial.control);
            partial.control = Vec::new();
        }
        self.release_unless_in_message();
        if opcode == Opcode::Close {
            return decode_close(&scratch.payload).map(Found::Closed);
        }
        Ok(Found::Event {
            opcode,
            place: Place::Scratch,
        })
    }

    fn finish_message(
        &mut self,
        limits: &MessageLimits,
        scratch: &mut Scratch,
    ) -> Result<Found, FrameError> {
        let message = self.partial.take().and_then(|partial| partial.message);
        let message = message.expect("a data frame is only begun inside a message");
        if message.compressed {
            scratch.inflate(&message.payload, limits)?;
        } else {
            scratch.payload = message.payload;
        }
        check_text(message.opcode == Opcode::Text, &scratch.payload)?;
        Ok(Found::Event {
            opcode: message.opcode,
            place: Place::Scratch,
        })
    }

    fn release_unless_in_message(&mut self) {
        if self.message_bytes().is_none() {
            self.partial = None;
        }
    }
}

impl Partial {
    /// Moves the part of the current frame's payload that `input` has to its buffer. Returns the number of bytes taken, and
    /// the header if the frame is complete now.
    fn take_payload(&mut self, input: &mut [u8]) -> (usize, Option<FrameHeader>) {
        let Some(frame) = &mut self.frame else {
            return (0, None);
        };
        let header = frame.header;
        let missing_bytes = header.payload_bytes - frame.arrived_bytes;
        let taken =
            usize::try_from(missing_bytes).map_or(input.len(), |missing| missing.min(input.len()));
        let fresh = &mut input[..taken];
        unmask(header.mask, frame.arrived_bytes, fresh);
        frame.arrived_bytes += taken as u64;
        let finished = frame.arrived_bytes == header.payload_bytes;
        match &mut self.message {
            Some(message) if !header.opcode.is_control() => {
                message.payload.extend_from_slice(fresh)
            }
            _ => self.control.extend_from_slice(fresh),
        }
        if finished {
            self.frame = None;
        }
        (taken, finished.then_some(header))
    }
}

/// Source: RFC 6455 §8.1.
fn check_text(text: bool, payload: &[u8]) -> Result<(), FrameError> {
    if text && simdutf8::basic::from_utf8(payload).is_err() {
        return Err(FrameError::TextNotUtf8);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
