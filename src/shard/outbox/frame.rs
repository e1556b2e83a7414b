//! One encoded frame, shared by all its receivers.
//!
//! A frame owns its bytes, except for the message of a long publication: every frame of every shard that carries the message
//! refers to the same bytes, and the kernel makes the first copy. So a frame is made in a microsecond, however long its
//! message is.
//!
//! The bytes of a frame are charged to the shard's budget once, no matter how many sessions wait for them.

use std::io::IoSlice;
use std::rc::Rc;

use crate::mesh::{Charge, ShardBudget};
use crate::protocol::publication::Message;
use crate::wire::websocket::frame::{Opcode, encode_header, encoded_header_bytes};

/// Memory of a frame in addition to its bytes: reference counts and length, its charge, a place in the batch or in an
/// outbox, and the allocator's rounding. A pong of two bytes takes as much.
pub const FRAME_OVERHEAD_BYTES: usize = 96;
const _: () = assert!(size_of::<Frame>() + 16 + size_of::<Rc<Frame>>() <= FRAME_OVERHEAD_BYTES);
/// A message of at least this size is shared and not copied into its frames. Below it one slice for the kernel is cheaper
/// than three.
pub const SHARED_MESSAGE_BYTES_MIN: usize = 64 << 10;
/// Follows the message of a delivery when it is the last member of the JSON object.
const PLAIN_ENDING: &[u8] = b"}";
/// Slices that the kernel gets for a frame with a shared message.
const SLICES_PER_SHARED_FRAME: usize = 3;

/// How the counters count a frame that has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A text message: counts as a message, and its payload as data.
    Message,
    /// An Action Cable ping: only its payload counts, as data.
    Ping,
    /// A WebSocket control frame: does not count.
    Control,
    /// A control frame that a newer one may replace while it waits. Source: RFC 6455 §5.5.3.
    Pong,
    /// The head of an HTTP answer: does not count, and is not dropped, because what follows has no meaning without it.
    Head,
}

/// Encoded WebSocket bytes or a part of an HTTP answer, shared by reference count; or the TLS records that carry such a
/// frame to one client.
#[derive(Debug)]
pub struct Frame {
    /// The whole frame, or all of it but a shared message.
    bytes: Box<[u8]>,
    /// A message of at least [`SHARED_MESSAGE_BYTES_MIN`] bytes.
    message: Option<Message>,
    pub kind: FrameKind,
    /// How many of the last `bytes` follow the shared message.
    ending_bytes: u16,
    /// Bytes without frame header and encryption: what the counters count.
    payload_bytes: u32,
    /// Set when the frame is put into a batch or an outbox.
    charge: Option<Charge>,
}

impl Frame {
    pub fn new(bytes: Vec<u8>, kind: FrameKind) -> Self {
        Self {
            payload_bytes: payload_bytes(&bytes),
            bytes: bytes.into_boxed_slice(),
            message: None,
            kind,
            ending_bytes: 0,
            charge: None,
        }
    }

    /// A text message with a JSON object: `beginning` ends just before the value of the last member, and `message` is that
    /// value.
    pub fn delivery(beginning: &[u8], message: &Message) -> Self {
        Self::delivery_with_ending(beginning, message, PLAIN_ENDING)
    }

    /// The same with an object in which more members follow: `ending` has them and the end of the object.
    ///
    /// Inlined, because nearly all deliveries have the ending of one byte, which is then no copy of unknown length.
    #[inline(always)]
    pub fn delivery_with_ending(beginning: &[u8], message: &Message, ending: &[u8]) -> Self {
        let payload_bytes = beginning.len() + message.len() + ending.len();
        let is_shared =
            message.len() >= SHARED_MESSAGE_BYTES_MIN && ending.len() <= usize::from(u16::MAX);
        let (shared, copied) = match is_shared {
            true => (Some(Message::clone(message)), &[][..]),
            false => (None, &message[..]),
        };
        let mut bytes = Vec::with_capacity(
            encoded_header_bytes(payload_bytes) + beginning.len() + copied.len() + ending.len(),
        );
        encode_header(Opcode::Text, false, payload_bytes, &mut bytes);
        bytes.extend_from_slice(beginning);
        bytes.extend_from_slice(copied);
        bytes.extend_from_slice(ending);
        Self {
            bytes: bytes.into_boxed_slice(),
            message: shared,
            kind: FrameKind::Message,
            ending_bytes: if is_shared { ending.len() as u16 } else { 0 },
            payload_bytes: u32::try_from(payload_bytes).unwrap_or(u32::MAX),
            charge: None,
        }
    }

    /// A part of an HTTP answer. `payload_bytes` is what the counters count.
    pub fn in_answer(bytes: Vec<u8>, kind: FrameKind, payload_bytes: usize) -> Self {
        Self {
            payload_bytes: u32::try_from(payload_bytes).unwrap_or(u32::MAX),
            bytes: bytes.into_boxed_slice(),
            message: None,
            kind,
            ending_bytes: 0,
            charge: None,
        }
    }

    /// The same with a long message between its parts. `None` when too much follows the message.
    pub fn shared_in_answer(
        mut bytes: Vec<u8>,
        message: &Message,
        ending: &[u8],
        payload_bytes: usize,
    ) -> Option<Self> {
        let ending_bytes = u16::try_from(ending.len()).ok()?;
        bytes.extend_from_slice(ending);
        Some(Self {
            message: Some(Message::clone(message)),
            ending_bytes,
            ..Self::in_answer(bytes, FrameKind::Message, payload_bytes)
        })
    }

    /// A frame with no bytes. It makes the session flush, because TLS has records of its own to send.
    pub fn flush_only() -> Self {
        Self::new(Vec::new(), FrameKind::Control)
    }

    /// The TLS records that carry a part of this frame. The client decrypts records in order, so none may be dropped. The
    /// frame counts as written with its last part.
    pub(super) fn sealed(&self, records: Vec<u8>, is_last: bool) -> Self {
        Self {
            bytes: records.into_boxed_slice(),
            message: None,
            kind: if is_last {
                self.kind
            } else {
                FrameKind::Control
            },
            ending_bytes: 0,
            payload_bytes: self.payload_bytes,
            charge: None,
        }
    }

    /// Charges the frame without asking whether there is room: the receiver's limits were checked before it was encoded.
    pub(super) fn charged(mut self, budget: &Rc<ShardBudget>) -> Rc<Self> {
        self.charge = Some(budget.hold_anyway(self.held_bytes()));
        Rc::new(self)
    }

    /// Bytes to be sent.
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len() + self.message().len()
    }

    /// The message that it shares; empty when it shares none.
    #[inline]
    fn message(&self) -> &[u8] {
        self.message.as_deref().unwrap_or_default()
    }

    /// True for a frame that only causes a flush.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that the frame takes in memory.
    pub fn held_bytes(&self) -> usize {
        self.len() + FRAME_OVERHEAD_BYTES
    }

    /// The same without the message that it shares.
    pub fn own_bytes(&self) -> usize {
        self.bytes.len() + FRAME_OVERHEAD_BYTES
    }

    /// All its bytes, if they are in one piece.
    #[inline]
    pub fn contiguous(&self) -> Option<&[u8]> {
        self.message.is_none().then_some(&*self.bytes)
    }

    /// Its pieces in order; some may be empty.
    pub fn pieces(&self) -> [&[u8]; SLICES_PER_SHARED_FRAME] {
        let message_at = self.bytes.len() - usize::from(self.ending_bytes);
        let (beginning, ending) = self.bytes.split_at(message_at);
        [beginning, self.message(), ending]
    }

    /// Bytes without header and encryption, for the counters.
    pub fn payload_bytes(&self) -> u32 {
        self.payload_bytes
    }
}

/// Source: RFC 6455 §5.2, for unmasked frames.
fn payload_bytes(frame: &[u8]) -> u32 {
    let header = match frame.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    u32::try_from(frame.len().saturating_sub(header)).unwrap_or(u32::MAX)
}

/// Bytes of shared messages that one write offers at most: the kernel copies them while the other sessions wait.
pub const GATHERED_BYTES_MAX: usize = 256 << 10;
/// Frames in one gathered write at most.
pub const FRAMES_PER_WRITE_MAX: usize = 64;

/// The slices of frames for one gathered write.
pub(super) struct Gathered<'a> {
    slices: [IoSlice<'a>; FRAMES_PER_WRITE_MAX],
    count: usize,
    /// Total bytes of the slices.
    pub offered: usize,
}

impl<'a> Gathered<'a> {
    /// Inlined, because otherwise the value of more than a kilobyte would be copied to the caller.
    #[inline(always)]
    pub fn new() -> Self {
        Self {
            slices: [IoSlice::new(&[]); FRAMES_PER_WRITE_MAX],
            count: 0,
            offered: 0,
        }
    }

    /// Adds a whole frame. Returns false when there is no room for all of it.
    pub fn add(&mut self, frame: &'a Frame) -> bool {
        if self.offered >= GATHERED_BYTES_MAX {
            return false;
        }
        match frame.contiguous() {
            Some(bytes) if self.count < FRAMES_PER_WRITE_MAX => self.push(bytes),
            _ => return self.add_from(frame, 0),
        }
        true
    }

    /// Adds a frame without its first `skip` bytes. Returns false when there is no room for all of it.
    pub fn add_from(&mut self, frame: &'a Frame, skip: usize) -> bool {
        if self.count + SLICES_PER_SHARED_FRAME > FRAMES_PER_WRITE_MAX {
            return false;
        }
        let mut skip = skip;
        for piece in frame.pieces() {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            let rest = &piece[skipped..];
            let room = GATHERED_BYTES_MAX.saturating_sub(self.offered);
            if rest.len() > room {
                self.push(&rest[..room]);
                return false;
            }
            if !rest.is_empty() {
                self.push(rest);
            }
        }
        true
    }

    fn push(&mut self, bytes: &'a [u8]) {
        self.slices[self.count] = IoSlice::new(bytes);
        self.count += 1;
        self.offered += bytes.len();
    }

    pub fn slices(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::websocket::frame;

    #[test]
    fn payload_bytes_leave_the_header_out() {
        for bytes in [0, 125, 126, 65_535, 65_536] {
            let frame = Frame::new(
                frame::text_frame(&vec![b'x'; bytes as usize]),
                FrameKind::Message,
            );
            assert_eq!(frame.payload_bytes, bytes);
        }
    }

    fn text(frame: &Frame) -> Vec<u8> {
        frame.pieces().concat()
    }

    #[test]
    fn a_delivery_is_the_frame_of_its_text_whether_its_message_is_shared_or_not() {
        fn check(bytes: usize, ending: &[u8], is_shared: bool) {
            let message = Message::from(vec![b'7'; bytes]);
            let beginning = br#"{"identifier":"A","message":"#;
            let delivery = Frame::delivery_with_ending(beginning, &message, ending);
            let expected = frame::text_frame(&[&beginning[..], &message, ending].concat());
            assert!(text(&delivery) == expected, "{bytes}");
            assert_eq!(delivery.len(), expected.len());
            let payload_bytes = bytes + beginning.len() + ending.len();
            assert_eq!(delivery.payload_bytes as usize, payload_bytes);
            assert_eq!(delivery.contiguous().is_none(), is_shared);
            let copied = if is_shared { 0 } else { bytes };
            let own_bytes = copied + beginning.len() + ending.len();
            assert!((own_bytes..own_bytes + 130).contains(&delivery.own_bytes()));
        }
        for bytes in [1, 60, 125, 126, 1000, 65_535, 65_536, 70_000] {
            let is_shared = bytes >= SHARED_MESSAGE_BYTES_MIN;
            check(bytes, PLAIN_ENDING, is_shared);
            check(
                bytes,
                br#","stream_id":"x","epoch":"ABCDEFGH","offset":7}"#,
                is_shared,
            );
            check(bytes, &[b'x'; u16::MAX as usize], is_shared);
            check(bytes, &[b'x'; u16::MAX as usize + 1], false);
        }
        let message = Message::from(*b"1");
        assert_eq!(
            text(&Frame::delivery(b"{\"message\":", &message))[2..],
            *b"{\"message\":1}"
        );
    }

    #[test]
    fn a_gathered_write_goes_on_anywhere_inside_a_frame() {
        let message = Message::from(vec![b'7'; SHARED_MESSAGE_BYTES_MIN]);
        let delivery = Frame::delivery_with_ending(b"{\"message\":", &message, b",\"offset\":7}");
        let all = text(&delivery);
        let ending_at = all.len() - 12;
        for skip in [
            0,
            1,
            21,
            22,
            23,
            500,
            ending_at,
            ending_at + 1,
            all.len() - 1,
        ] {
            let mut gathered = Gathered::new();
            assert!(gathered.add_from(&delivery, skip));
            let bytes: Vec<u8> = gathered
                .slices()
                .iter()
                .flat_map(|slice| slice.to_vec())
                .collect();
            assert!(bytes == all[skip..], "{skip}");
            assert_eq!(gathered.offered, bytes.len());
        }
    }

    #[test]
    fn a_gathered_write_is_bounded_in_bytes() {
        let message = Message::from(vec![b'7'; SHARED_MESSAGE_BYTES_MIN]);
        let shared = Frame::delivery(b"{\"message\":", &message);
        let small = Frame::delivery(b"{\"message\":", &message[..10].into());
        let mut gathered = Gathered::new();
        assert!(gathered.add(&small));
        let mut whole = 0;
        while gathered.add(&shared) {
            whole += 1;
        }
        assert_eq!(whole, (GATHERED_BYTES_MAX - small.len()) / shared.len());
        assert_eq!(gathered.offered, GATHERED_BYTES_MAX, "a part of the next");
        assert!(!gathered.add(&small));
    }
}
