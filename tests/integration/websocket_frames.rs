//! WebSocket at the level of frames: fragments, control frames, masks, limits, close codes.
//! Source: RFC 6455 §5 and §7, `contract/websocket.md` §9 and §11.

use crate::support::raw::{
    BINARY, CLOSE, CONTINUATION, PING, PONG, Raw, TEXT, close_frame, fragment, frame, frame_with,
};
use crate::support::{Stage, rails::confirmation};

const SUBSCRIBE: &[u8] = br#"{"command":"subscribe","identifier":"A"}"#;
const MASK: Option<[u8; 4]> = Some([1, 2, 3, 4]);

/// A `ping` command padded to `length` bytes of payload.
fn padded_ping(length: usize) -> Vec<u8> {
    let mut text = br#"{"command":"ping"}"#.to_vec();
    text.resize(length, b' ');
    text
}

on_both_drivers! {
    fn message_in_fragments_with_control_frames_between_is_one_command(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        let (first, rest) = SUBSCRIBE.split_at(7);
        let (second, third) = rest.split_at(11);
        raw.send(&fragment(TEXT, first));
        raw.send(&frame(PING, b"between"));
        raw.send(&fragment(CONTINUATION, second));
        raw.send(&frame(PONG, b"unasked"));
        raw.send(&fragment(CONTINUATION, b""));
        raw.send(&frame(CONTINUATION, third));
        let pong = raw.next_frame();
        assert_eq!((pong.opcode, pong.payload.as_slice()), (PONG, &b"between"[..]));
        assert_eq!(raw.next_text(), confirmation("A"));
    }

    fn bytes_may_arrive_one_at_a_time(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        let (first, rest) = SUBSCRIBE.split_at(20);
        let bytes = [fragment(BINARY, first), frame(PING, b"x"), frame(CONTINUATION, rest)].concat();
        for byte in bytes {
            raw.send(&[byte]);
        }
        assert_eq!(raw.next_frame().opcode, PONG);
        assert_eq!(raw.next_text(), confirmation("A"));
    }

    fn many_frames_in_one_segment_are_all_handled(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        let burst: Vec<u8> = (0..500).flat_map(|_| frame(TEXT, br#"{"command":"ping"}"#)).collect();
        raw.send(&burst);
        for _ in 0..500 {
            assert_eq!(raw.next_text(), r#"{"type":"pong"}"#);
        }
    }

    fn ping_frames_are_answered_with_the_same_payload(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        for payload in [&b""[..], b"hello", &[0xff; 125]] {
            raw.send(&frame(PING, payload));
            let pong = raw.next_frame();
            assert_eq!((pong.opcode, pong.payload.as_slice()), (PONG, payload));
        }
    }

    fn message_of_the_largest_allowed_size_is_accepted(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        for length in [125, 126, 65_535, 65_536] {
            raw.send(&frame(TEXT, &padded_ping(length)));
            assert_eq!(raw.next_text(), r#"{"type":"pong"}"#, "{length} bytes");
        }
        let whole = padded_ping(65_536);
        let (first, second) = whole.split_at(40_000);
        raw.send(&fragment(TEXT, first));
        raw.send(&frame(CONTINUATION, second));
        assert_eq!(raw.next_text(), r#"{"type":"pong"}"#);
    }

    fn message_over_the_limit_is_closed_with_1009(driver: Driver) {
        let stage = Stage::new(driver);
        let oversized = frame(TEXT, &padded_ping(65_537));
        let fragmented = [fragment(TEXT, &padded_ping(40_000)), frame(CONTINUATION, &[b' '; 25_537])].concat();
        // Only the header: the announced length alone is enough.
        let announced = frame_with(0x81, MASK, &vec![b' '; 1 << 20])[..14].to_vec();
        for bytes in [oversized, fragmented, announced] {
            let mut raw = stage.raw();
            let _closed_early = raw.try_send(&bytes);
            if let Some(frame) = raw.frame_or_reset() {
                assert_eq!(frame.close(), (Some(1009), String::new()));
                raw.expect_end();
            }
        }
        stage.server.wait_for_metric("clients_num", 0);
    }

    fn limit_can_be_changed_and_lifted(driver: Driver) {
        let small = Stage::with(driver, &["--max_message_size=100"]);
        let mut raw = small.raw();
        raw.send(&frame(TEXT, &padded_ping(100)));
        assert_eq!(raw.next_text(), r#"{"type":"pong"}"#);
        raw.send(&frame(TEXT, &padded_ping(101)));
        raw.expect_close(1009, "");
        let unlimited = Stage::with(driver, &["--max_message_size=0"]);
        let mut raw = unlimited.raw();
        raw.send(&frame(TEXT, &padded_ping(3_000_000)));
        assert_eq!(raw.next_text(), r#"{"type":"pong"}"#);
    }

    fn protocol_violations_are_closed_with_1002_and_say_why(driver: Driver) {
        let stage = Stage::new(driver);
        let table: [(Vec<u8>, &str); 9] = [
            (frame_with(0x83, MASK, b"x"), "bad opcode 3"),
            (frame_with(0x81, None, b"x"), "bad MASK"),
            (frame_with(0xc1, MASK, b"x"), "RSV1 set"),
            (frame_with(0x89, MASK, &[0; 126]), "len > 125 for control"),
            (frame_with(0x09, MASK, b"x"), "FIN not set on control"),
            (frame_with(0x80, MASK, b"x"), "continuation after FIN"),
            ([fragment(TEXT, b"x"), frame(TEXT, b"y")].concat(), "data before FIN"),
            (close_frame(1006, ""), "bad close code 1006"),
            (frame(CLOSE, b"\x03\xe8\xff"), "invalid utf8 payload in close frame"),
        ];
        for (bytes, reason) in table {
            let mut raw = stage.raw();
            raw.send(&bytes);
            raw.expect_close(1002, reason);
        }
        stage.rails.wait_for_calls("disconnect", 9);
    }

    fn reserved_bits_two_and_three_are_refused(driver: Driver) {
        let stage = Stage::new(driver);
        for first in [0xa1, 0x91, 0xf1] {
            let mut raw = stage.raw();
            raw.send(&frame_with(first, MASK, b"x"));
            assert_eq!(raw.next_frame().close().0, Some(1002));
            raw.expect_end();
        }
    }

    fn close_is_echoed_with_the_code_and_without_the_reason(driver: Driver) {
        let stage = Stage::new(driver);
        for code in [1000, 1001, 1002, 1003, 1007, 1011, 1013, 3000, 4001, 4999] {
            let mut raw = stage.raw();
            raw.send(&close_frame(code, "going away"));
            raw.expect_close(code, "");
        }
        for payload in [&b""[..], b"\x03"] {
            let mut raw = stage.raw();
            raw.send(&frame(CLOSE, payload));
            assert_eq!(raw.next_frame().close(), (None, String::new()));
            raw.expect_end();
        }
    }

    fn nothing_after_a_close_frame_is_handled(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        raw.send(&[close_frame(1000, ""), frame(TEXT, SUBSCRIBE)].concat());
        assert_eq!(raw.next_frame().close(), (Some(1000), String::new()));
        stage.rails.wait_for_calls("disconnect", 1);
        assert_eq!(stage.rails.summaries(), ["connect", "disconnect"]);
    }

    fn commands_before_a_close_frame_in_the_same_segment_are_handled(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        raw.send(&[frame(TEXT, SUBSCRIBE), close_frame(1000, "")].concat());
        assert_eq!(raw.next_text(), confirmation("A"));
        raw.expect_close(1000, "");
        let call = &stage.rails.wait_for_calls("disconnect", 1)[0];
        assert_eq!(call.body["subscriptions"], serde_json::json!(["A"]));
    }

    fn half_closed_client_is_let_go(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        raw.shutdown_write();
        // Either close frame 1006 "Read failed" or the bare end: browsers report both as 1006.
        if let Some(frame) = raw.frame_or_reset() {
            assert_eq!(frame.close(), (Some(1006), "Read failed".to_owned()));
        }
        raw.expect_end();
        stage.rails.wait_for_calls("disconnect", 1);
    }

    fn outgoing_messages_are_single_frames_of_any_size(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        raw.subscribe("A");
        for length in [0, 1, 90, 91, 92, 93, 1_000, 65_500, 65_510, 70_000, 300_000] {
            let data = format!("\"{}\"", "x".repeat(length));
            stage.publish("stream:A", &data);
            let frame = raw.next_frame();
            assert_eq!((frame.fin, frame.rsv1, frame.opcode), (true, false, TEXT));
            assert_eq!(frame.text(), format!(r#"{{"identifier":"A","message":{data}}}"#));
        }
    }

    fn random_frames_never_harm_the_server(driver: Driver) {
        let stage = Stage::new(driver);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..60 {
            let mut raw = stage.raw();
            let payload: Vec<u8> = (0..random() % 200).map(|_| (random() >> 20) as u8).collect();
            let _closed_early = raw.try_send(&frame_with((random() >> 30) as u8, MASK, &payload));
            let _closed_early = raw.try_send(&payload);
        }
        stage.server.assert_running();
        stage.client().subscribe("A");
    }

    fn invalid_utf8_is_replaced_in_binary_messages_and_ends_text_messages(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        let broken = b"{\"command\":\"subscribe\",\"identifier\":\"a\xff\"}";
        raw.send(&frame(BINARY, broken));
        assert_eq!(raw.next_json()["identifier"], "a\u{fffd}");
        // A character may be cut by a fragment.
        let whole = "{\"command\":\"subscribe\",\"identifier\":\"é\"}".as_bytes();
        let (first, second) = whole.split_at(whole.len() - 3);
        raw.send(&[fragment(TEXT, first), frame(CONTINUATION, second)].concat());
        assert_eq!(raw.next_json()["identifier"], "é");
        raw.send(&frame(TEXT, broken));
        raw.expect_close(1007, "");
    }

    fn session_that_is_closed_while_a_frame_is_incomplete_is_forgotten(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw: Raw = stage.raw();
        raw.send(&frame(TEXT, &padded_ping(5_000))[..3_000]);
        drop(raw);
        stage.rails.wait_for_calls("disconnect", 1);
        stage.server.wait_for_metric("clients_num", 0);
    }
}
