//! permessage-deflate without context takeover, behind its option. Source: RFC 7692, `contract/websocket.md` §3 and §11.

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder};

use crate::support::raw::{CONTINUATION, Raw, TEXT, frame_with, handshake};
use crate::support::{Stage, rails::confirmation};

const MASK: Option<[u8; 4]> = Some([9, 8, 7, 6]);
const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits";

/// The four bytes that a sender leaves out (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

fn deflate(text: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).expect("memory takes bytes");
    encoder.flush().expect("memory takes bytes");
    let bytes = encoder.get_ref().clone();
    bytes.strip_suffix(&TAIL).expect("a flush ends so").to_vec()
}

fn inflate(payload: &[u8]) -> String {
    let mut decoder = DeflateDecoder::new(Vec::new());
    decoder.write_all(payload).expect("valid deflate data");
    decoder.write_all(&TAIL).expect("valid deflate data");
    decoder.flush().expect("valid deflate data");
    String::from_utf8(decoder.get_ref().clone()).expect("the server sends UTF-8")
}

/// A compressed client, its welcome read.
fn client(stage: &Stage, offer: &str) -> Raw {
    let mut raw = Raw::connect(stage.server.address());
    raw.send(handshake("/cable?pi=0", &[offer]).as_bytes());
    let head = raw.read_head();
    assert_eq!(head.status(), 101);
    let accepted = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    assert_eq!(head.header("Sec-WebSocket-Extensions"), Some(accepted));
    assert_eq!(next(&mut raw), r#"{"type":"welcome"}"#);
    raw
}

/// The next message, which must be compressed.
fn next(raw: &mut Raw) -> String {
    let frame = raw.next_frame();
    assert!(frame.rsv1 && frame.fin && frame.opcode == TEXT, "{frame:?}");
    inflate(&frame.payload)
}

on_both_drivers! {
    fn compressed_messages_travel_both_ways(driver: Driver) {
        let stage = Stage::with(driver, &["--enable_ws_compression"]);
        for offer in [OFFER, "Sec-WebSocket-Extensions: permessage-deflate"] {
            let mut raw = client(&stage, offer);
            raw.send(&frame_with(0xc1, MASK, &deflate(br#"{"command":"subscribe","identifier":"A"}"#)));
            assert_eq!(next(&mut raw), confirmation("A"));
            for data in ["1".to_owned(), format!("\"{}\"", "abc".repeat(30_000))] {
                stage.publish("stream:A", &data);
                assert_eq!(next(&mut raw), format!(r#"{{"identifier":"A","message":{data}}}"#));
            }
        }
    }

    fn uncompressed_messages_of_a_compressed_client_are_fine(driver: Driver) {
        let stage = Stage::with(driver, &["--enable_ws_compression"]);
        let mut raw = client(&stage, OFFER);
        raw.send_text(r#"{"command":"ping"}"#);
        assert_eq!(next(&mut raw), r#"{"type":"pong"}"#);
    }

    fn compressed_message_may_come_in_fragments(driver: Driver) {
        let stage = Stage::with(driver, &["--enable_ws_compression"]);
        let mut raw = client(&stage, OFFER);
        let bytes = deflate(br#"{"command":"ping"}"#);
        let (first, second) = bytes.split_at(5);
        raw.send(&frame_with(0x41, MASK, first));
        raw.send(&frame_with(0x80 | CONTINUATION, MASK, second));
        assert_eq!(next(&mut raw), r#"{"type":"pong"}"#);
    }

    fn clients_with_and_without_compression_get_the_same_message(driver: Driver) {
        let stage = Stage::with(driver, &["--enable_ws_compression"]);
        let mut compressed = client(&stage, OFFER);
        compressed.send_text(r#"{"command":"subscribe","identifier":"A"}"#);
        next(&mut compressed);
        let mut plain = stage.client();
        plain.subscribe("A");
        stage.publish("stream:A", r#"{"a":1}"#);
        let expected = r#"{"identifier":"A","message":{"a":1}}"#;
        assert_eq!(next(&mut compressed), expected);
        assert_eq!(plain.next_text(), expected);
    }

    /// Deflating it would hold everybody up.
    fn huge_message_is_sent_without_compression(driver: Driver) {
        let stage = Stage::with(driver, &["--enable_ws_compression"]);
        let mut raw = client(&stage, OFFER);
        raw.send_text(r#"{"command":"subscribe","identifier":"A"}"#);
        next(&mut raw);
        let huge = format!("\"{}\"", "abc".repeat(100_000));
        stage.publish("stream:A", &huge);
        let frame = raw.next_frame();
        assert!(!frame.rsv1 && frame.fin && frame.opcode == TEXT);
        let expected = format!(r#"{{"identifier":"A","message":{huge}}}"#);
        assert!(frame.payload == expected.as_bytes());
        stage.publish("stream:A", "1");
        assert_eq!(next(&mut raw), r#"{"identifier":"A","message":1}"#);
    }

    fn nothing_is_negotiated_unless_switched_on_and_offered(driver: Driver) {
        let off = Stage::new(driver);
        let mut raw = Raw::connect(off.server.address());
        raw.send(handshake("/cable", &[OFFER]).as_bytes());
        assert_eq!(raw.read_head().header("Sec-WebSocket-Extensions"), None);
        assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
        raw.send(&frame_with(
            0xc1,
            MASK,
            &deflate(br#"{"command":"ping"}"#),
        ));
        raw.expect_close(1002, "RSV1 set");
        let on = Stage::with(driver, &["--enable_ws_compression"]);
        let mut raw = Raw::connect(on.server.address());
        raw.send(handshake("/cable", &["Sec-WebSocket-Extensions: x-webkit-deflate-frame"]).as_bytes());
        assert_eq!(raw.read_head().header("Sec-WebSocket-Extensions"), None);
        assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
    }

    /// Each message is compressed with a window of 32 KiB: a client that remembers less could not read it.
    fn a_smaller_window_is_declined_and_the_next_offer_looked_at(driver: Driver) {
        let stage = Stage::with(driver, &["--enable_ws_compression"]);
        let small = "permessage-deflate; server_max_window_bits=10";
        let answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        let largest = format!("{answer}; server_max_window_bits=15");
        let table: [(&[&str], Option<&str>); 12] = [
            (&[small], None),
            (&["permessage-deflate; server_max_window_bits=\"10\""], None),
            (&["permessage-deflate;client_max_window_bits;server_max_window_bits = 14"], None),
            (&["permessage-deflate; server_max_window_bits"], None),
            (&["permessage-deflate; server_max_window_bits=15"], Some(&largest)),
            (&["permessage-deflate; client_max_window_bits=\"9\""], Some(answer)),
            (&["permessage-deflate; client_max_window_bits=16"], None),
            (&["permessage-deflate; unknown"], None),
            (&["permessage-deflate; server_no_context_takeover; server_no_context_takeover"], None),
            (&["permessage-deflate; server_max_window_bits=10, permessage-deflate; client_max_window_bits"], Some(answer)),
            (&[small, "permessage-deflate"], Some(answer)),
            (&["foo", small, "permessage-deflate; server_max_window_bits=15"], Some(&largest)),
        ];
        let data = format!("\"{}\"", (0..4000).map(|number| format!("{number},")).collect::<String>());
        for (offers, expected) in table {
            let lines: Vec<String> = offers.iter().map(|offer| format!("Sec-WebSocket-Extensions: {offer}")).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let mut raw = Raw::connect(stage.server.address());
            raw.send(handshake("/cable?pi=0", &lines).as_bytes());
            let head = raw.read_head();
            assert_eq!((head.status(), head.header("Sec-WebSocket-Extensions")), (101, expected), "{offers:?}");
            let read = |raw: &mut Raw| match expected {
                Some(_) => next(raw),
                None => raw.next_text(),
            };
            assert_eq!(read(&mut raw), r#"{"type":"welcome"}"#);
            raw.send_text(r#"{"command":"subscribe","identifier":"A"}"#);
            assert_eq!(read(&mut raw), confirmation("A"));
            // Far more than a window of 1 KiB.
            stage.publish("stream:A", &data);
            assert_eq!(read(&mut raw), format!(r#"{{"identifier":"A","message":{data}}}"#));
        }
    }

    fn decompression_bomb_ends_the_session_and_nothing_else(driver: Driver) {
        let stage = Stage::with(driver, &["--enable_ws_compression"]);
        let mut raw = client(&stage, OFFER);
        let mut other = stage.client();
        let bomb = deflate(&vec![b' '; 40_000_000]);
        assert!(bomb.len() < 65_536, "within the limit before decompression: {}", bomb.len());
        raw.send(&frame_with(0xc1, MASK, &bomb));
        assert_eq!(raw.next_frame().close().0, Some(1009));
        other.expect_nothing_before_pong();
    }

    fn broken_compressed_data_ends_the_session_and_nothing_else(driver: Driver) {
        let stage = Stage::with(driver, &["--enable_ws_compression"]);
        let mut raw = client(&stage, OFFER);
        let mut other = stage.client();
        raw.send(&frame_with(0xc1, MASK, &[0xff; 40]));
        // Either the message is dropped like any undecodable one or the session is closed; it must not hang.
        raw.try_send(&frame_with(0x81, MASK, br#"{"command":"ping"}"#)).expect("the socket is open");
        if let Some(frame) = raw.frame_or_reset()
            && frame.opcode == TEXT
        {
            assert_eq!(inflate(&frame.payload), r#"{"type":"pong"}"#);
        }
        other.expect_nothing_before_pong();
    }
}
