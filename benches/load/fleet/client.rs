//! One idle client in 64 bytes: its socket and how far it has read. Bytes in, events out; the worker does everything else.

use rustix::fd::OwnedFd;

use super::message::{Mark, Message};

/// Bytes of a payload needed to understand it: an identifier and a mark fit into them.
pub const HEAD_BYTES_MAX: usize = 1024;
/// The longest frame header that a server writes, which has no mask.
const HEADER_BYTES_MAX: usize = 10;
/// The longest accepted answer to the upgrade.
const RESPONSE_BYTES_MAX: usize = 4096;
/// Most bytes that a client stores while it waits for more.
pub const KEPT_BYTES_MAX: usize = RESPONSE_BYTES_MAX;

const _: () = assert!(HEAD_BYTES_MAX + HEADER_BYTES_MAX <= KEPT_BYTES_MAX);
const _: () = assert!(size_of::<Client>() <= 64);

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The connection is being established.
    Connecting,
    /// The upgrade request was sent.
    Upgrading,
    /// The answer was 101; the welcome has not come.
    Upgraded,
    /// Some subscriptions are not confirmed yet.
    Subscribing,
    /// Everything it asked for is confirmed.
    Ready,
}

/// What a client has read. The worker counts it and acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Upgraded,
    /// An answer that is not 101, or no HTTP at all.
    Refused,
    Said(Message),
    /// The end of a delivery whose beginning was reported as [`Event::Said`].
    Delivered {
        published_nanos: u64,
        payload_bytes: u32,
    },
    NativePing,
    /// A close frame; 0 when it has no code.
    Close {
        code: u16,
    },
}

/// What a sequence number says about the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Next,
    /// This many numbers are missing before it.
    Gap(u32),
    /// A missing number came late.
    Late,
    Duplicate,
}

/// A client's socket and state.
pub struct Client {
    pub socket: OwnedFd,
    pub index: u32,
    /// When its connection was started, since the start of the fleet.
    pub opened_micros: u32,
    /// Subscribes without an answer.
    pub awaited: u16,
    pub phase: Phase,
    pub stalled: bool,
    /// A disconnect message has come.
    pub told: bool,
    /// The next sequence number; `None` before the first delivery when the client joins a running stream.
    next: u32,
    joined: bool,
    /// Rest of the payload, which is skipped.
    skipped_bytes: u32,
    payload_bytes: u32,
    /// Publication time of the delivery that is being skipped; 0 when it is none.
    published_nanos: u64,
    /// Which of the last 64 sequence numbers came; the newest is the lowest bit.
    seen: u64,
    /// Bytes that are no complete head yet.
    kept: Option<Box<[u8]>>,
}

impl Client {
    /// `joins_late`: the stream is already running, so its first sequence number is unknown.
    pub fn new(
        socket: OwnedFd,
        index: u32,
        opened_micros: u32,
        awaited: u16,
        joins_late: bool,
    ) -> Self {
        Self {
            socket,
            index,
            opened_micros,
            awaited,
            phase: Phase::Connecting,
            stalled: false,
            told: false,
            next: 0,
            joined: !joins_late,
            skipped_bytes: 0,
            payload_bytes: 0,
            published_nanos: 0,
            seen: 0,
            kept: None,
        }
    }

    /// Takes the bytes that an earlier read left over; the new bytes must follow them.
    pub fn take_kept(&mut self) -> Option<Box<[u8]>> {
        self.kept.take()
    }

    /// Reads input that begins with the bytes from [`Client::take_kept`].
    pub fn read(&mut self, mut input: &[u8], tell: &mut impl FnMut(&mut Self, Event)) {
        if matches!(self.phase, Phase::Connecting | Phase::Upgrading) {
            match response_bytes(input) {
                Ok(Some(bytes)) => {
                    input = &input[bytes..];
                    tell(self, Event::Upgraded);
                }
                Ok(None) => return self.keep(input),
                Err(NotSwitching) => return tell(self, Event::Refused),
            }
        }
        while !input.is_empty() {
            match self.read_frame(input, tell) {
                Some(rest) => input = rest,
                None => return self.keep(input),
            }
        }
    }

    /// Reads one frame or a part of one; returns the bytes behind it. `None`: more bytes are needed.
    fn read_frame<'a>(
        &mut self,
        input: &'a [u8],
        tell: &mut impl FnMut(&mut Self, Event),
    ) -> Option<&'a [u8]> {
        if self.skipped_bytes > 0 {
            return Some(self.skip(input, tell));
        }
        let (header_bytes, payload_bytes) = header(input)?;
        let head = input.get(header_bytes..header_bytes + payload_bytes.min(HEAD_BYTES_MAX))?;
        self.payload_bytes = payload_bytes as u32;
        self.skipped_bytes = payload_bytes as u32;
        self.published_nanos = 0;
        match input[0] & 0x0f {
            0x1 => {
                let message = Message::read(head, payload_bytes);
                if let Message::Delivery(mark) = message {
                    self.published_nanos = mark.nanos;
                }
                tell(self, Event::Said(message));
            }
            0x8 => {
                let code = head.first_chunk().copied().map_or(0, u16::from_be_bytes);
                tell(self, Event::Close { code });
            }
            0x9 => tell(self, Event::NativePing),
            _ => {}
        }
        Some(self.skip(&input[header_bytes..], tell))
    }

    fn skip<'a>(&mut self, input: &'a [u8], tell: &mut impl FnMut(&mut Self, Event)) -> &'a [u8] {
        let skipped = (self.skipped_bytes as usize).min(input.len());
        self.skipped_bytes -= skipped as u32;
        if self.skipped_bytes == 0 && self.published_nanos != 0 {
            let (published_nanos, payload_bytes) = (self.published_nanos, self.payload_bytes);
            tell(
                self,
                Event::Delivered {
                    published_nanos,
                    payload_bytes,
                },
            );
        }
        &input[skipped..]
    }

    fn keep(&mut self, input: &[u8]) {
        if !input.is_empty() {
            self.kept = Some(input.into());
        }
    }

    /// Stores a sequence number and says what it means.
    pub fn order(&mut self, mark: Mark) -> Order {
        if !self.joined {
            self.joined = true;
            self.next = mark.sequence;
        }
        if mark.sequence >= self.next {
            let gap = mark.sequence - self.next;
            self.next = mark.sequence + 1;
            self.seen = self.seen.checked_shl(gap + 1).unwrap_or(0) | 1;
            return if gap == 0 {
                Order::Next
            } else {
                Order::Gap(gap)
            };
        }
        let behind = self.next - 1 - mark.sequence;
        let bit = 1u64.checked_shl(behind).unwrap_or(0);
        if bit == 0 || self.seen & bit != 0 {
            return Order::Duplicate;
        }
        self.seen |= bit;
        Order::Late
    }
}

/// The server did not switch protocols.
struct NotSwitching;

/// Length of the whole answer to an upgrade, once all of it is there.
fn response_bytes(input: &[u8]) -> Result<Option<usize>, NotSwitching> {
    const SWITCHING: &[u8] = b"HTTP/1.1 101";
    let compared = input.len().min(SWITCHING.len());
    if input[..compared] != SWITCHING[..compared] {
        return Err(NotSwitching);
    }
    match memchr::memmem::find(input, b"\r\n\r\n") {
        Some(at) => Ok(Some(at + 4)),
        None if input.len() > RESPONSE_BYTES_MAX => Err(NotSwitching),
        None => Ok(None),
    }
}

/// Length of the header and of the payload behind it. `None`: more bytes are needed.
pub fn header(input: &[u8]) -> Option<(usize, usize)> {
    match input.get(1)? & 0x7f {
        126 => {
            let length = input.get(2..4)?.try_into().expect("two bytes");
            Some((4, u16::from_be_bytes(length).into()))
        }
        127 => {
            let length = input.get(2..10)?.try_into().expect("eight bytes");
            Some((10, u64::from_be_bytes(length) as usize))
        }
        short => Some((2, short.into())),
    }
}

/// A frame as a client sends it, masked.
pub fn client_frame(opcode: u8, payload: &[u8], frame: &mut Vec<u8>) {
    const MASK: [u8; 4] = [0x5a, 0xc3, 0x17, 0x9e];
    frame.push(0x80 | opcode);
    match payload.len() {
        length @ 0..126 => frame.push(0x80 | length as u8),
        length @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
}
