//! WebSocket bytes of a client: frames, fragments, control frames between them, compressed messages.

use std::cell::RefCell;

use super::Input;
use crate::wire::websocket::deflate::Deflater;
use crate::wire::websocket::frame::{
    FrameError, Opcode, close_frame, encode_header, frame, unmask,
};
use crate::wire::websocket::message::{Incoming, MessageDecoder, MessageLimits, Scratch};

const RSV1: u8 = 0x40;
const MASKED: u8 = 0x80;
/// Bytes that a buffer may hold in addition to the allowed message.
const SPARE_BYTES: usize = 4096;

thread_local! {
    static DEFLATER: RefCell<Deflater> = RefCell::new(Deflater::new());
}

/// One event with its payload, or the end.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<u16>),
    Error(FrameError),
}

/// The input is a piece size, limits, then bytes, or frames to build. The events must not depend on the pieces, must keep
/// the limits, and must be the same after they have passed through our encoder.
pub fn websocket(data: &[u8]) {
    let mut input = Input(data);
    let piece_bytes = input.piece_bytes();
    let choice = input.byte();
    let limits = MessageLimits {
        message_bytes_max: [0, 100, 1000, 1 << 16][usize::from(choice & 3)],
        deflate: choice & 4 != 0,
        inflated_bytes_max: [100, 1000, 1 << 16, 1 << 20][usize::from(choice >> 3 & 3)],
    };
    let wire = match choice & 32 {
        0 => build_frames(&mut input),
        _ => input.0.to_vec(),
    };
    let whole = decode(&wire, wire.len().max(1), &limits);
    assert_eq!(whole, decode(&wire, piece_bytes, &limits), "in pieces");
    for event in &whole {
        check_event(event, &limits);
        check_round_trip(event, false);
    }
    // Only sometimes, and only one: a compressor costs more than all other work here.
    if choice & 64 != 0
        && let Some(event) = whole.first()
    {
        check_round_trip(event, true);
    }
}

/// Frames as a client builds them, from first byte, size and payload. The payload is compressed when RSV1 is set and the
/// size is odd.
fn build_frames(input: &mut Input<'_>) -> Vec<u8> {
    let mut wire = Vec::new();
    while !input.0.is_empty() {
        let (first, size) = (input.byte(), input.byte());
        let payload = input.take(usize::from(size));
        if first & RSV1 != 0 && size % 2 == 1 {
            push_masked(&mut wire, first, &compress(payload));
        } else {
            push_masked(&mut wire, first, payload);
        }
    }
    wire
}

fn compress(payload: &[u8]) -> Vec<u8> {
    DEFLATER.with_borrow_mut(|deflater| deflater.compress(payload))
}

fn push_masked(wire: &mut Vec<u8>, first: u8, payload: &[u8]) {
    let mask = [first, 0x5a, 0, payload.len() as u8];
    let start = wire.len();
    encode_header(Opcode::Text, false, payload.len(), wire);
    wire[start] = first;
    wire[start + 1] |= MASKED;
    wire.extend_from_slice(&mask);
    let start = wire.len();
    wire.extend_from_slice(payload);
    unmask(mask, 0, &mut wire[start..]);
}

fn decode(wire: &[u8], piece_bytes: usize, limits: &MessageLimits) -> Vec<Event> {
    let mut decoder = MessageDecoder::default();
    let (mut events, mut scratch) = (Vec::new(), Scratch::default());
    for piece in wire.chunks(piece_bytes) {
        let mut piece = piece.to_vec();
        let mut at = 0;
        while at < piece.len() {
            let (consumed, incoming) = match decoder.next(&mut piece[at..], limits, &mut scratch) {
                Ok(taken) => taken,
                Err(error) => {
                    events.push(Event::Error(error));
                    return events;
                }
            };
            at += consumed;
            match incoming {
                None => assert_eq!(at, piece.len(), "without an event everything is taken"),
                Some(incoming) => {
                    assert!(
                        consumed > 0 || decoder.held_bytes() == 0,
                        "an event out of nothing"
                    );
                    let closed = matches!(incoming, Incoming::Close(_));
                    events.push(owned(&incoming));
                    if closed {
                        return events;
                    }
                }
            }
        }
        let allowed = limits.inflated_bytes_max as usize;
        assert!(scratch.payload.capacity() <= 2 * allowed.max(wire.len()) + SPARE_BYTES);
    }
    events
}

fn owned(incoming: &Incoming<'_>) -> Event {
    match *incoming {
        Incoming::Text(payload) => Event::Text(payload.to_vec()),
        Incoming::Binary(payload) => Event::Binary(payload.to_vec()),
        Incoming::Ping(payload) => Event::Ping(payload.to_vec()),
        Incoming::Pong(payload) => Event::Pong(payload.to_vec()),
        Incoming::Close(code) => Event::Close(code),
    }
}

fn check_event(event: &Event, limits: &MessageLimits) {
    match event {
        Event::Text(payload) | Event::Binary(payload) => {
            let plain_max = match limits.message_bytes_max {
                0 => u64::MAX,
                bytes_max => bytes_max,
            };
            let bytes_max = match limits.deflate {
                true => plain_max.max(limits.inflated_bytes_max),
                false => plain_max,
            };
            assert!(payload.len() as u64 <= bytes_max);
            assert!(matches!(event, Event::Binary(_)) || str::from_utf8(payload).is_ok());
        }
        Event::Ping(payload) | Event::Pong(payload) => assert!(payload.len() <= 125),
        Event::Close(code) => {
            assert!(code.is_none_or(|code| (1000..5000).contains(&code)));
        }
        Event::Error(error) => {
            let answer = close_frame(Some(error.close_code()), &error.close_reason());
            assert!(answer.len() <= 2 + 125);
            assert_eq!(answer[0], 0x88);
        }
    }
}

/// Encodes the event as a server does and reads it again as if a client had sent it.
fn check_round_trip(event: &Event, compressed: bool) {
    let (opcode, payload) = match event {
        Event::Text(payload) => (Opcode::Text, payload),
        Event::Binary(payload) => (Opcode::Binary, payload),
        Event::Ping(payload) => (Opcode::Ping, payload),
        Event::Pong(payload) => (Opcode::Pong, payload),
        Event::Close(_) | Event::Error(_) => return,
    };
    let limits = MessageLimits {
        message_bytes_max: 0,
        deflate: true,
        inflated_bytes_max: 0,
    };
    let wire = if compressed && !opcode.is_control() {
        let payload = compress(payload);
        masked(frame(opcode, true, &payload), payload.len())
    } else {
        masked(frame(opcode, false, payload), payload.len())
    };
    assert_eq!(
        decode_unlimited(&wire, &limits),
        std::slice::from_ref(event)
    );
}

/// Turns a server's frame into a client's, with a mask of zeros, which changes nothing.
fn masked(mut frame: Vec<u8>, payload_bytes: usize) -> Vec<u8> {
    let header_bytes = frame.len() - payload_bytes;
    frame[1] |= MASKED;
    frame.splice(header_bytes..header_bytes, [0; 4]);
    frame
}

fn decode_unlimited(wire: &[u8], limits: &MessageLimits) -> Vec<Event> {
    let (mut decoder, mut scratch) = (MessageDecoder::default(), Scratch::default());
    let mut wire = wire.to_vec();
    let wire_bytes = wire.len();
    match decoder.next(&mut wire, limits, &mut scratch) {
        Ok((consumed, Some(incoming))) if consumed == wire_bytes => vec![owned(&incoming)],
        other => panic!("our own frame was refused: {other:?}"),
    }
}
