//! Single WebSocket frames: headers in and out, masking, and which frames violate the protocol.
//!
//! Server side only: incoming frames must be masked; outgoing frames are neither masked nor fragmented. This file does not
//! know messages. Called by `message` for incoming frames, and by the session, the hub and the outbox for outgoing ones.

use std::borrow::Cow;
use std::fmt;

use thiserror::Error;

/// Payload bytes of a control frame, at most. Source: RFC 6455 §5.5.
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;
/// The longest incoming header: two bytes, eight of length, four of mask.
pub const HEADER_BYTES_MAX: usize = 14;

/// The top bit of a length must be 0. Source: RFC 6455 §5.2.
const PAYLOAD_BYTES_MAX: u64 = i64::MAX as u64;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const RSV2: u8 = 0x20;
const RSV3: u8 = 0x10;
const MASKED: u8 = 0x80;
/// Bytes of the status code of a close frame.
const CLOSE_CODE_BYTES: usize = 2;

/// What a frame carries. Source: RFC 6455 §5.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    /// Close, ping and pong: short, never fragmented, and allowed between fragments.
    pub fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }

    fn from_bits(bits: u8) -> Option<Opcode> {
        match bits {
            0x0 => Some(Opcode::Continuation),
            0x1 => Some(Opcode::Text),
            0x2 => Some(Opcode::Binary),
            0x8 => Some(Opcode::Close),
            0x9 => Some(Opcode::Ping),
            0xa => Some(Opcode::Pong),
            _ => None,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Opcode::Continuation => 0x0,
            Opcode::Text => 0x1,
            Opcode::Binary => 0x2,
            Opcode::Close => 0x8,
            Opcode::Ping => 0x9,
            Opcode::Pong => 0xa,
        }
    }
}

/// The header of an incoming frame that broke no rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    pub fin: bool,
    /// Set on the first frame of a compressed message.
    pub rsv1: bool,
    pub opcode: Opcode,
    /// At most `i64::MAX`; at most 125 for control frames.
    pub payload_bytes: u64,
    pub mask: [u8; 4],
    /// Bytes of the header itself, 6 to 14.
    pub header_bytes: usize,
}

/// What the state of the connection allows for the next frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameRules {
    /// permessage-deflate was negotiated, so RSV1 has a meaning.
    pub deflate: bool,
    /// A fragmented message is unfinished, so data frames must be continuations.
    pub in_message: bool,
}

/// Why the connection must be closed: the client broke RFC 6455 or a limit of this server.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("protocol violation: {0}")]
    Violation(Violations),
    #[error("bad close code {0}")]
    BadCloseCode(u16),
    #[error("invalid utf8 payload in close frame")]
    CloseReasonNotUtf8,
    #[error("text message is not UTF-8")]
    TextNotUtf8,
    #[error("message of {bytes} bytes or more, limit {bytes_max}")]
    TooLong { bytes: u64, bytes_max: u64 },
    #[error("message is longer than {bytes_max} bytes when decompressed")]
    InflatedTooLong { bytes_max: u64 },
    #[error("compressed message does not decompress")]
    BadDeflate,
}

impl FrameError {
    /// The status code of the close frame to answer with. Source: `contract/websocket.md` §9.
    pub fn close_code(&self) -> u16 {
        match self {
            FrameError::Violation(_)
            | FrameError::BadCloseCode(_)
            | FrameError::CloseReasonNotUtf8 => 1002,
            FrameError::TooLong { .. } | FrameError::InflatedTooLong { .. } => 1009,
            FrameError::BadDeflate | FrameError::TextNotUtf8 => 1007,
        }
    }

    /// The reason text of that close frame, often empty. Source: `contract/websocket.md` §9.
    pub fn close_reason(&self) -> Cow<'static, str> {
        match self {
            FrameError::Violation(violations) => Cow::Owned(violations.to_string()),
            FrameError::BadCloseCode(code) => Cow::Owned(format!("bad close code {code}")),
            FrameError::CloseReasonNotUtf8 => Cow::Borrowed("invalid utf8 payload in close frame"),
            FrameError::TooLong { .. }
            | FrameError::InflatedTooLong { .. }
            | FrameError::BadDeflate
            | FrameError::TextNotUtf8 => Cow::Borrowed(""),
        }
    }
}

/// The rules that the first two bytes of a frame break. All of them, because the reference's close reason lists them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Violations {
    bits: u16,
    opcode: u8,
}

/// The texts in the order in which the reference joins them; bit `n` of [`Violations`] is entry `n`.
const VIOLATION_TEXTS: [&str; 9] = [
    "RSV1 set",
    "RSV2 set",
    "RSV3 set",
    "len > 125 for control",
    "FIN not set on control",
    "data before FIN",
    "continuation after FIN",
    "bad opcode",
    "bad MASK",
];
const BAD_OPCODE: usize = 7;

impl Violations {
    fn find(first: u8, second: u8, rules: FrameRules) -> Violations {
        let opcode_bits = first & 0x0f;
        let opcode = Opcode::from_bits(opcode_bits);
        let control = opcode.is_some_and(Opcode::is_control);
        let starts_message = matches!(opcode, Some(Opcode::Text | Opcode::Binary));
        let broken = [
            first & RSV1 != 0 && !(rules.deflate && starts_message),
            first & RSV2 != 0,
            first & RSV3 != 0,
            control && usize::from(second & !MASKED) > CONTROL_PAYLOAD_BYTES_MAX,
            control && first & FIN == 0,
            starts_message && rules.in_message,
            opcode == Some(Opcode::Continuation) && !rules.in_message,
            opcode.is_none(),
            second & MASKED == 0,
        ];
        let bits = broken.iter().enumerate().fold(0, |bits, (index, broken)| {
            bits | (u16::from(*broken) << index)
        });
        Violations {
            bits,
            opcode: opcode_bits,
        }
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (index, text) in VIOLATION_TEXTS.iter().enumerate() {
            if self.bits & (1 << index) == 0 {
                continue;
            }
            write!(formatter, "{separator}{text}")?;
            if index == BAD_OPCODE {
                write!(formatter, " {}", self.opcode)?;
            }
            separator = ", ";
        }
        Ok(())
    }
}

/// Reads one frame header from the start of `input`.
///
/// Returns `Ok(None)` while fewer bytes than the whole header are there (6 to 14 bytes), but checks the first two as soon as
/// they are there. Lengths that could be written in fewer bytes are accepted, as in the reference.
///
/// # Errors
/// [`FrameError::Violation`] for what [`FrameRules`] forbid; [`FrameError::TooLong`] when the length does not fit into 63
/// bits. `message` checks the limits of messages.
///
/// Source: RFC 6455 §5.2, `contract/websocket.md` §9.
pub fn decode_header(input: &[u8], rules: FrameRules) -> Result<Option<FrameHeader>, FrameError> {
    let [first, second, rest @ ..] = input else {
        return Ok(None);
    };
    let violations = Violations::find(*first, *second, rules);
    let opcode = match Opcode::from_bits(first & 0x0f) {
        Some(opcode) if violations.bits == 0 => opcode,
        _ => return Err(FrameError::Violation(violations)),
    };
    let Some((payload_bytes, rest)) = decode_length(second & !MASKED, rest) else {
        return Ok(None);
    };
    if payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(FrameError::TooLong {
            bytes: payload_bytes,
            bytes_max: PAYLOAD_BYTES_MAX,
        });
    }
    let Some((mask, rest)) = rest.split_first_chunk::<4>() else {
        return Ok(None);
    };
    Ok(Some(FrameHeader {
        fin: first & FIN != 0,
        rsv1: first & RSV1 != 0,
        opcode,
        payload_bytes,
        mask: *mask,
        header_bytes: input.len() - rest.len(),
    }))
}

fn decode_length(short: u8, rest: &[u8]) -> Option<(u64, &[u8])> {
    match short {
        126 => rest
            .split_first_chunk::<2>()
            .map(|(bytes, rest)| (u64::from(u16::from_be_bytes(*bytes)), rest)),
        127 => rest
            .split_first_chunk::<8>()
            .map(|(bytes, rest)| (u64::from_be_bytes(*bytes), rest)),
        short => Some((u64::from(short), rest)),
    }
}

/// Removes (or adds) the mask of `bytes`, the part of the payload that starts at `offset`.
pub fn unmask(mask: [u8; 4], offset: u64, bytes: &mut [u8]) {
    // The mask is rotated as a number, because the rotation of an array is a call into the library.
    let word = u32::from_le_bytes(mask).rotate_right((offset % 4) as u32 * 8);
    let mask = word.to_le_bytes();
    let word = u32::from_ne_bytes(mask);
    let wide = u64::from(word) << 32 | u64::from(word);
    let (words, tail) = bytes.as_chunks_mut::<8>();
    // A plain loop over fixed-size chunks, because the compiler turns it into vector instructions.
    for chunk in words {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Checks the payload of a received close frame and returns its code; `None` when it has no code (0 or 1 bytes).
///
/// # Errors
/// A code that must not be sent, or a reason that is not UTF-8.
///
/// Source: RFC 6455 §7.4, `contract/websocket.md` §9.
pub fn decode_close(payload: &[u8]) -> Result<Option<u16>, FrameError> {
    let Some((code, reason)) = payload.split_first_chunk::<CLOSE_CODE_BYTES>() else {
        return Ok(None);
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1013 | 3000..=4999) {
        return Err(FrameError::BadCloseCode(code));
    }
    match simdutf8::basic::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(FrameError::CloseReasonNotUtf8),
    }
}

/// Appends the header of a final, unmasked frame: 2, 4 or 10 bytes.
pub fn encode_header(opcode: Opcode, rsv1: bool, payload_bytes: usize, out: &mut Vec<u8>) {
    let first = FIN | if rsv1 { RSV1 } else { 0 } | opcode.bits();
    if payload_bytes <= CONTROL_PAYLOAD_BYTES_MAX {
        out.extend_from_slice(&[first, payload_bytes as u8]);
    } else if let Ok(length) = u16::try_from(payload_bytes) {
        out.extend_from_slice(&[first, 126]);
        out.extend_from_slice(&length.to_be_bytes());
    } else {
        out.extend_from_slice(&[first, 127]);
        out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
    }
}

/// Number of bytes that [`encode_header`] writes for a payload of this size.
pub fn encoded_header_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=CONTROL_PAYLOAD_BYTES_MAX => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// A whole frame, in an allocation of exactly its size. `rsv1`: a [`Deflater`](super::deflate::Deflater) has compressed
/// `payload`. Payloads of control frames must have at most 125 bytes.
pub fn frame(opcode: Opcode, rsv1: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(encoded_header_bytes(payload.len()) + payload.len());
    encode_header(opcode, rsv1, payload.len(), &mut out);
    out.extend_from_slice(payload);
    out
}

/// A text frame.
pub fn text_frame(payload: &[u8]) -> Vec<u8> {
    frame(Opcode::Text, false, payload)
}

/// A text frame whose payload a [`Deflater`](super::deflate::Deflater) has compressed.
pub fn compressed_text_frame(payload: &[u8]) -> Vec<u8> {
    frame(Opcode::Text, true, payload)
}

/// A close frame, empty without `code`. `reason` is cut between two characters so that it fits, and ignored without a code.
pub fn close_frame(code: Option<u16>, reason: &str) -> Vec<u8> {
    let Some(code) = code else {
        return frame(Opcode::Close, false, &[]);
    };
    let mut reason_bytes = reason
        .len()
        .min(CONTROL_PAYLOAD_BYTES_MAX - CLOSE_CODE_BYTES);
    while !reason.is_char_boundary(reason_bytes) {
        reason_bytes -= 1;
    }
    let mut payload = Vec::with_capacity(CLOSE_CODE_BYTES + reason_bytes);
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(&reason.as_bytes()[..reason_bytes]);
    frame(Opcode::Close, false, &payload)
}

/// A ping frame. `payload` is cut at 125 bytes.
pub fn ping_frame(payload: &[u8]) -> Vec<u8> {
    frame(Opcode::Ping, false, control_payload(payload))
}

/// A pong frame. `payload` is cut at 125 bytes.
pub fn pong_frame(payload: &[u8]) -> Vec<u8> {
    frame(Opcode::Pong, false, control_payload(payload))
}

fn control_payload(payload: &[u8]) -> &[u8] {
    &payload[..payload.len().min(CONTROL_PAYLOAD_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDLE: FrameRules = FrameRules {
        deflate: false,
        in_message: false,
    };
    const IN_MESSAGE: FrameRules = FrameRules {
        deflate: false,
        in_message: true,
    };
    const DEFLATE: FrameRules = FrameRules {
        deflate: true,
        in_message: false,
    };

    #[test]
    fn every_violation_has_the_reference_text() {
        fn check(first: u8, second: u8, rules: FrameRules, reason: &str) {
            let error = decode_header(&[first, second], rules).expect_err(reason);
            assert_eq!(error.close_reason(), reason);
            assert_eq!(error.close_code(), 1002);
        }
        check(0x83, 0x80, IDLE, "bad opcode 3");
        check(0x8f, 0x80, IDLE, "bad opcode 15");
        check(0x81, 0x05, IDLE, "bad MASK");
        check(0xc1, 0x80, IDLE, "RSV1 set");
        check(0xa1, 0x80, DEFLATE, "RSV2 set");
        check(0x91, 0x80, IDLE, "RSV3 set");
        check(0x89, 0xfe, IDLE, "len > 125 for control");
        check(0x08, 0x80, IDLE, "FIN not set on control");
        check(0x80, 0x80, IDLE, "continuation after FIN");
        check(0x81, 0x80, IN_MESSAGE, "data before FIN");
        check(
            0xc0,
            0x80,
            FrameRules {
                deflate: true,
                in_message: true,
            },
            "RSV1 set",
        );
        check(0xc9, 0x80, DEFLATE, "RSV1 set");
        check(
            0x73,
            0x00,
            IDLE,
            "RSV1 set, RSV2 set, RSV3 set, bad opcode 3, bad MASK",
        );
        check(
            0x09,
            0x7f,
            IDLE,
            "len > 125 for control, FIN not set on control, bad MASK",
        );
    }

    #[test]
    fn headers_of_every_length_are_read() {
        fn check(input: &[u8], rules: FrameRules, fin: bool, opcode: Opcode, payload_bytes: u64) {
            for cut in 0..input.len() {
                assert_eq!(
                    decode_header(&input[..cut], rules),
                    Ok(None),
                    "cut at {cut}"
                );
            }
            let header = decode_header(input, rules).unwrap().unwrap();
            let rsv1 = input[0] & 0x40 != 0;
            let (mask, header_bytes) = ([1, 2, 3, 4], input.len());
            let expected = FrameHeader {
                fin,
                rsv1,
                opcode,
                payload_bytes,
                mask,
                header_bytes,
            };
            assert_eq!(header, expected);
        }
        check(&[0x81, 0x85, 1, 2, 3, 4], IDLE, true, Opcode::Text, 5);
        check(&[0x02, 0x80, 1, 2, 3, 4], IDLE, false, Opcode::Binary, 0);
        check(&[0xc1, 0x80, 1, 2, 3, 4], DEFLATE, true, Opcode::Text, 0);
        check(
            &[0x80, 0xfe, 1, 0, 1, 2, 3, 4],
            IN_MESSAGE,
            true,
            Opcode::Continuation,
            256,
        );
        check(
            &[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4],
            IDLE,
            true,
            Opcode::Text,
            65536,
        );
        check(&[0x81, 0xfe, 0, 3, 1, 2, 3, 4], IDLE, true, Opcode::Text, 3);
        check(
            &[0x88, 0xfd, 1, 2, 3, 4],
            IN_MESSAGE,
            true,
            Opcode::Close,
            125,
        );
        check(&[0x8a, 0x80, 1, 2, 3, 4], IDLE, true, Opcode::Pong, 0);
    }

    #[test]
    fn a_length_beyond_63_bits_is_too_long() {
        let error = decode_header(&[0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], IDLE).unwrap_err();
        assert_eq!(
            (error.close_code(), error.close_reason().as_ref()),
            (1009, "")
        );
    }

    #[test]
    fn close_payloads_are_checked() {
        fn check(payload: &[u8], expected: Result<Option<u16>, &str>) {
            let got = decode_close(payload).map_err(|error| error.close_reason().into_owned());
            assert_eq!(got, expected.map_err(str::to_owned), "{payload:?}");
        }
        check(b"", Ok(None));
        check(&[3], Ok(None));
        check(&[0x03, 0xe8], Ok(Some(1000)));
        check(&[0x0f, 0xa1, b'b', b'y', b'e'], Ok(Some(4001)));
        check(&[0x03, 0xee], Err("bad close code 1006"));
        check(&[0x03, 0xed], Err("bad close code 1005"));
        check(&[0x00, 0x00], Err("bad close code 0"));
        check(&[0x13, 0x88], Err("bad close code 5000"));
        check(
            &[0x03, 0xe8, 0xff],
            Err("invalid utf8 payload in close frame"),
        );
    }

    #[test]
    fn outgoing_frames_have_the_exact_bytes() {
        fn check(frame: Vec<u8>, expected: &[u8]) {
            assert_eq!(frame, expected);
            assert_eq!(frame.capacity(), frame.len());
        }
        check(text_frame(b"{}"), b"\x81\x02{}");
        check(compressed_text_frame(b"x"), b"\xc1\x01x");
        check(frame(Opcode::Binary, false, b"\xff"), b"\x82\x01\xff");
        check(frame(Opcode::Binary, true, b"x"), b"\xc2\x01x");
        check(ping_frame(b""), b"\x89\x00");
        check(pong_frame(b"ab"), b"\x8a\x02ab");
        check(close_frame(None, "ignored"), b"\x88\x00");
        check(close_frame(Some(1000), ""), b"\x88\x02\x03\xe8");
        check(
            close_frame(Some(1006), "Command Failed"),
            b"\x88\x10\x03\xeeCommand Failed",
        );
        assert_eq!(text_frame(&[b'a'; 126])[..4], [0x81, 126, 0, 126]);
        assert_eq!(text_frame(&[b'a'; 65535])[..4], [0x81, 126, 0xff, 0xff]);
        assert_eq!(
            text_frame(&[b'a'; 65536])[..10],
            [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]
        );
        for payload_bytes in [0, 125, 126, 65535, 65536] {
            let frame = text_frame(&vec![b'a'; payload_bytes]);
            assert_eq!(
                frame.len(),
                encoded_header_bytes(payload_bytes) + payload_bytes
            );
            assert_eq!(frame.capacity(), frame.len());
        }
    }

    #[test]
    fn an_independent_client_reads_our_frames() {
        use tungstenite::protocol::frame::FrameHeader as TheirHeader;
        for payload_bytes in [0, 1, 125, 126, 65535, 65536] {
            let frame = text_frame(&vec![b'a'; payload_bytes]);
            let mut cursor = std::io::Cursor::new(&frame);
            let (header, length) = TheirHeader::parse(&mut cursor).unwrap().unwrap();
            assert!(header.is_final && !header.rsv1 && header.mask.is_none());
            assert_eq!(length, payload_bytes as u64);
            assert_eq!(cursor.position() as usize + payload_bytes, frame.len());
        }
    }

    #[test]
    fn long_close_reasons_are_cut_at_a_character() {
        let frame = close_frame(Some(1002), &"é".repeat(100));
        assert_eq!(frame[1], 124);
        assert_eq!(decode_close(&frame[2..]), Ok(Some(1002)));
        assert_eq!(pong_frame(&[0; 200]).len(), 127);
    }

    proptest! {
        #[test]
        fn unmasking_equals_the_rfc_loop_at_any_offset(
            mask: [u8; 4], offset in 0u64..1_000_000, bytes in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let expected: Vec<u8> = bytes.iter().zip(offset..)
                .map(|(byte, index)| byte ^ mask[(index % 4) as usize])
                .collect();
            let mut got = bytes;
            unmask(mask, offset, &mut got);
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn garbage_headers_never_panic(
            input in proptest::collection::vec(any::<u8>(), 0..20), deflate: bool, in_message: bool,
        ) {
            if let Ok(Some(header)) = decode_header(&input, FrameRules { deflate, in_message }) {
                prop_assert!(header.header_bytes <= input.len());
                prop_assert!(header.header_bytes <= HEADER_BYTES_MAX);
            }
            let _ = decode_close(&input);
        }
    }
}
