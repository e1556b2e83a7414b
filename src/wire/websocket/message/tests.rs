use super::*;
use crate::wire::websocket::deflate::Deflater;
use crate::wire::websocket::frame::encode_header;
use proptest::prelude::*;

const LIMITS: MessageLimits = MessageLimits {
    message_bytes_max: 65536,
    deflate: false,
    inflated_bytes_max: 0,
};
const DEFLATE: MessageLimits = MessageLimits {
    message_bytes_max: 65536,
    deflate: true,
    inflated_bytes_max: 1000,
};

/// A client's frame, masked; `first` is the byte with FIN, RSV bits and opcode.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_header(Opcode::Text, false, payload.len(), &mut frame);
    frame[0] = first;
    frame[1] |= 0x80;
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    frame.extend_from_slice(&mask);
    let start = frame.len();
    frame.extend_from_slice(payload);
    unmask(mask, 0, &mut frame[start..]);
    frame
}

fn concat(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.concat()
}

fn describe(incoming: &Incoming<'_>) -> String {
    match incoming {
        Incoming::Text(payload) => format!("message {}", String::from_utf8_lossy(payload)),
        Incoming::Binary(payload) => format!("binary {}", String::from_utf8_lossy(payload)),
        Incoming::Ping(payload) => format!("ping {}", String::from_utf8_lossy(payload)),
        Incoming::Pong(payload) => format!("pong {}", String::from_utf8_lossy(payload)),
        Incoming::Close(code) => format!("close {code:?}"),
    }
}

/// Feeds one piece per read; returns the events and the close frame of the error, if there was one.
fn feed<'p>(
    decoder: &mut MessageDecoder,
    pieces: impl IntoIterator<Item = &'p [u8]>,
    limits: &MessageLimits,
) -> Vec<String> {
    let mut events = Vec::new();
    let mut scratch = Scratch::default();
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = piece.as_mut_slice();
        while !input.is_empty() {
            let input_bytes = input.len();
            match decoder.next(input, limits, &mut scratch) {
                Ok((consumed, None)) => {
                    assert_eq!(
                        consumed, input_bytes,
                        "without an event everything is taken"
                    );
                    break;
                }
                Ok((consumed, Some(incoming))) => {
                    events.push(describe(&incoming));
                    input = &mut piece[..];
                    let at = input.len() - input_bytes + consumed;
                    input = &mut input[at..];
                }
                Err(error) => {
                    events.push(format!(
                        "error {} {}",
                        error.close_code(),
                        error.close_reason()
                    ));
                    return events;
                }
            }
        }
    }
    events
}

fn check_with(limits: &MessageLimits, wire: &[u8], expected: &[&str]) {
    for piece_bytes in [usize::MAX, 1, 2, 3, 5, 7] {
        let mut decoder = MessageDecoder::default();
        let events = feed(
            &mut decoder,
            wire.chunks(piece_bytes.min(wire.len())),
            limits,
        );
        assert_eq!(events, expected, "in pieces of {piece_bytes}");
    }
    for cut in 0..wire.len().min(40) {
        let mut decoder = MessageDecoder::default();
        let events = feed(&mut decoder, [&wire[..cut], &wire[cut..]], limits);
        assert_eq!(events, expected, "cut at {cut}");
    }
}

fn check(wire: &[u8], expected: &[&str]) {
    check_with(&LIMITS, wire, expected);
}

#[test]
fn the_example_of_the_rfc_is_read() {
    // RFC 6455 §5.7: a masked "Hello".
    let wire = [
        0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
    ];
    check(&wire, &["message Hello"]);
}

#[test]
fn frames_of_an_independent_client_are_read() {
    use tungstenite::protocol::frame::Frame;
    use tungstenite::protocol::frame::coding::{Data, OpCode};
    let data =
        |payload: &'static str, opcode, fin| Frame::message(payload, OpCode::Data(opcode), fin);
    let mut wire = Vec::new();
    for mut frame in [
        data("{\"command\":\"ping\"}", Data::Text, true),
        data("a", Data::Text, false),
        Frame::ping("p"),
        data("b", Data::Continue, true),
        Frame::close(None),
    ] {
        frame.header_mut().mask = Some([9, 0, 255, 77]);
        frame.format(&mut wire).unwrap();
    }
    check(
        &wire,
        &[
            "message {\"command\":\"ping\"}",
            "ping p",
            "message ab",
            "close None",
        ],
    );
}

#[test]
fn text_and_binary_are_told_apart() {
    let wire = concat(&[masked(0x81, b"{}"), masked(0x82, b"[1]"), masked(0x81, b"")]);
    check(&wire, &["message {}", "binary [1]", "message "]);
    // The first fragment decides the type of the message.
    let wire = concat(&[
        masked(0x02, b"[1"),
        masked(0x89, b"p"),
        masked(0x80, b"]"),
        masked(0x01, b"{"),
        masked(0x80, b"}"),
        masked(0x02, b""),
        masked(0x80, b""),
    ]);
    check(&wire, &["ping p", "binary [1]", "message {}", "binary "]);
    let compressed = Deflater::new().compress(b"\xff\xfe");
    let (head, tail) = compressed.split_at(1);
    let wire = concat(&[
        masked(0xc2, &compressed),
        masked(0x42, head),
        masked(0x80, tail),
    ]);
    let expected = "binary \u{fffd}\u{fffd}";
    check_with(&DEFLATE, &wire, &[expected, expected]);
}

#[test]
fn fragments_are_joined_and_control_frames_may_interleave() {
    let wire = concat(&[
        masked(0x01, b"one "),
        masked(0x89, b"p"),
        masked(0x00, b""),
        masked(0x8a, b""),
        masked(0x00, b"two "),
        masked(0x80, b"three"),
        masked(0x81, b"next"),
    ]);
    check(
        &wire,
        &["ping p", "pong ", "message one two three", "message next"],
    );
    check(
        &concat(&[masked(0x01, b""), masked(0x80, b"")]),
        &["message "],
    );
}

#[test]
fn close_frames_carry_an_optional_code() {
    check(&masked(0x88, b""), &["close None"]);
    check(&masked(0x88, &[3]), &["close None"]);
    check(&masked(0x88, b"\x0f\xa1bye"), &["close Some(4001)"]);
    check(
        &masked(0x88, &[0x03, 0xee]),
        &["error 1002 bad close code 1006"],
    );
    check(
        &masked(0x88, b"\x03\xe8\xff"),
        &["error 1002 invalid utf8 payload in close frame"],
    );
    check(
        &concat(&[masked(0x01, b"a"), masked(0x88, b"")]),
        &["close None"],
    );
}

#[test]
fn violations_are_found_after_earlier_messages() {
    let wire = concat(&[masked(0x81, b"ok"), masked(0x80, b"x")]);
    check(&wire, &["message ok", "error 1002 continuation after FIN"]);
    let wire = concat(&[masked(0x01, b"a"), masked(0x81, b"b")]);
    check(&wire, &["error 1002 data before FIN"]);
    check(&[0x81, 0x01, b'a'], &["error 1002 bad MASK"]);
    check(&masked(0xc1, b"a"), &["error 1002 RSV1 set"]);
}

#[test]
fn the_message_limit_is_exact_and_counts_fragments() {
    let exact = vec![b'a'; 65536];
    let events = feed(
        &mut MessageDecoder::default(),
        [&masked(0x81, &exact)[..]],
        &LIMITS,
    );
    assert_eq!(events.len(), 1);
    assert!(events[0].starts_with("message a"));
    let long = vec![b'a'; 65537];
    let events = feed(
        &mut MessageDecoder::default(),
        [&masked(0x81, &long)[..14]],
        &LIMITS,
    );
    assert_eq!(events, ["error 1009 "]);

    let five = MessageLimits {
        message_bytes_max: 5,
        ..LIMITS
    };
    check_with(
        &five,
        &concat(&[masked(0x01, b"abc"), masked(0x80, b"de")]),
        &["message abcde"],
    );
    check_with(
        &five,
        &concat(&[masked(0x01, b"abc"), masked(0x80, b"def")]),
        &["error 1009 "],
    );
    check_with(
        &five,
        &masked(0x89, b"longer than five"),
        &["ping longer than five"],
    );
    let none = MessageLimits {
        message_bytes_max: 0,
        ..LIMITS
    };
    let events = feed(
        &mut MessageDecoder::default(),
        [&masked(0x81, &long)[..]],
        &none,
    );
    assert!(events[0].starts_with("message a"));
}

#[test]
fn text_that_is_not_utf8_is_an_error_and_binary_may_be_anything() {
    let broken = b"\xce\xba\xe1";
    check(&masked(0x81, broken), &["error 1007 "]);
    check(&masked(0x82, broken), &["binary \u{3ba}\u{fffd}"]);
    // A character may be split between fragments.
    let wire = concat(&[masked(0x01, b"\xce"), masked(0x80, b"\xba")]);
    check(&wire, &["message \u{3ba}"]);
    let wire = concat(&[masked(0x01, b"\xce"), masked(0x80, b"x")]);
    check(&wire, &["error 1007 "]);
    let compressed = Deflater::new().compress(broken);
    check_with(&DEFLATE, &masked(0xc1, &compressed), &["error 1007 "]);
}

#[test]
fn compressed_messages_come_out_plain() {
    let compressed = Deflater::new().compress(b"hello hello hello");
    let (head, tail) = compressed.split_at(3);
    let wire = concat(&[
        masked(0xc1, &compressed),
        masked(0x81, b"plain"),
        masked(0x41, head),
        masked(0x89, b"ping"),
        masked(0x80, tail),
    ]);
    let expected = [
        "message hello hello hello",
        "message plain",
        "ping ping",
        "message hello hello hello",
    ];
    check_with(&DEFLATE, &wire, &expected);
    check_with(&DEFLATE, &masked(0xc1, &[0xff, 0xff]), &["error 1007 "]);
    let bomb = Deflater::new().compress(&[b'a'; 1001]);
    check_with(&DEFLATE, &masked(0xc1, &bomb), &["error 1009 "]);
}

#[test]
fn nothing_is_held_between_messages_and_little_inside_one() {
    let wire = masked(0x81, &[b'a'; 1000]);
    let mut decoder = MessageDecoder::default();
    assert_eq!(decoder.held_bytes(), 0);
    feed(&mut decoder, [&wire[..3]], &LIMITS);
    assert_eq!(decoder.held_bytes(), size_of::<Partial>());
    feed(&mut decoder, [&wire[3..20]], &LIMITS);
    assert!(
        decoder.held_bytes() <= size_of::<Partial>() + 32,
        "only what arrived"
    );
    feed(&mut decoder, [&wire[20..]], &LIMITS);
    assert_eq!(decoder.held_bytes(), 0);

    let ping = masked(0x89, b"ping");
    feed(&mut decoder, [&ping[..1], &ping[1..8], &ping[8..]], &LIMITS);
    assert_eq!(
        decoder.held_bytes(),
        0,
        "a control frame in parts leaves nothing behind"
    );
    feed(&mut decoder, [&ping[..1], &ping[1..]], &LIMITS);
    assert_eq!(decoder.held_bytes(), 0);
}

#[test]
fn a_whole_frame_is_borrowed_from_the_input() {
    let mut wire = masked(0x81, b"{}");
    let range = wire.as_ptr_range();
    let mut decoder = MessageDecoder::default();
    let mut scratch = Scratch::default();
    let (_, incoming) = decoder.next(&mut wire, &LIMITS, &mut scratch).unwrap();
    let Some(Incoming::Text(payload)) = incoming else {
        panic!("one message");
    };
    assert!(range.contains(&payload.as_ptr()));
    assert_eq!(scratch.payload.capacity(), 0);
}

/// Payloads, their fragment sizes, and whether a ping goes in between.
fn messages() -> impl Strategy<Value = Vec<(Vec<u8>, usize, bool)>> {
    proptest::collection::vec(
        (
            "[a-z]{0,300}".prop_map(String::into_bytes),
            1usize..200,
            any::<bool>(),
        ),
        0..6,
    )
}

fn first_byte() -> impl Strategy<Value = u8> {
    proptest::sample::select(vec![0x81, 0x01, 0x00, 0x80, 0x89, 0x88, 0xc1])
}

proptest! {
    #[test]
    fn any_messages_in_any_pieces_come_out_whole(messages in messages(), piece_bytes in 1usize..400) {
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for (payload, fragment_bytes, ping) in &messages {
            let fragments: Vec<&[u8]> = payload.chunks(*fragment_bytes).collect();
            let last = fragments.len().saturating_sub(1);
            for (index, fragment) in fragments.iter().enumerate() {
                let fin = if index == last { 0x80 } else { 0 };
                wire.extend(masked(fin | u8::from(index == 0), fragment));
                if *ping {
                    wire.extend(masked(0x89, b"p"));
                }
            }
            if fragments.is_empty() {
                wire.extend(masked(0x82, b""));
                expected.push("binary ".to_owned());
            } else {
                let pings = if *ping { fragments.len() } else { 0 };
                expected.extend((1..pings).map(|_| "ping p".to_owned()));
                expected.push(format!("message {}", String::from_utf8_lossy(payload)));
                expected.extend((0..pings.min(1)).map(|_| "ping p".to_owned()));
            }
        }
        let mut decoder = MessageDecoder::default();
        let events = feed(&mut decoder, wire.chunks(piece_bytes), &LIMITS);
        prop_assert_eq!(events, expected);
        prop_assert_eq!(decoder.held_bytes(), 0);
    }

    #[test]
    fn garbage_never_panics_and_splits_do_not_matter(
        input in proptest::collection::vec(any::<u8>(), 1..200), deflate: bool, piece_bytes in 1usize..50,
    ) {
        let limits = MessageLimits { message_bytes_max: 100, deflate, inflated_bytes_max: 100 };
        let whole = feed(&mut MessageDecoder::default(), [&input[..]], &limits);
        let split = feed(&mut MessageDecoder::default(), input.chunks(piece_bytes), &limits);
        prop_assert_eq!(whole, split);
    }

    #[test]
    fn plausible_garbage_never_panics(
        frames in proptest::collection::vec((first_byte(), proptest::collection::vec(any::<u8>(), 0..150)), 0..8),
        piece_bytes in 1usize..50,
    ) {
        let limits = MessageLimits { message_bytes_max: 300, deflate: true, inflated_bytes_max: 100 };
        let wire: Vec<u8> = frames.iter().flat_map(|(first, payload)| masked(*first, payload)).collect();
        let whole = feed(&mut MessageDecoder::default(), [&wire[..]], &limits);
        let split = feed(&mut MessageDecoder::default(), wire.chunks(piece_bytes), &limits);
        prop_assert_eq!(whole, split);
    }
}
