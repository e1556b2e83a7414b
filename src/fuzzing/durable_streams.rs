//! Requests for durable streams: their offsets, who may read, and the answers.

use std::sync::LazyLock;

use super::Input;
use crate::auth::channels::StreamsConfig;
use crate::endpoints::Response;
use crate::endpoints::durable_streams::{
    Found, READ_NAME_BYTES_MAX, ReadMode, ReadPolicy, ReadRefusal, ReadVerdict, StreamReading,
    check,
};
use crate::protocol::durable_streams::{Offset, control_event, next_cursor, offset_text};
use crate::protocol::position::{Epoch, Position};
use crate::wire::http_head::HeadLimits;
use crate::wire::http_request::RequestHead;
use crate::wire::percent;

/// `chat/2023` signed with `s3Krit`.
const SIGNED: &str =
    "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e8320c";
const SIGNED_STREAM: &str = "chat/2023";

static CLOSED: LazyLock<ReadPolicy> = LazyLock::new(|| policy(false));
static OPEN: LazyLock<ReadPolicy> = LazyLock::new(|| policy(true));

fn policy(public: bool) -> ReadPolicy {
    let streams = StreamsConfig {
        secret: Some("s3Krit".to_owned()),
        public,
        ..StreamsConfig::default()
    };
    ReadPolicy::for_streams(streams)
}

/// The input is a choice of policy, method and signed name, then what follows `/ds/` in the target. Only the stream whose
/// name was signed may be read, or any public one. An answer must have one line for each of its headers, an offset must be
/// read as it was written, and a cursor must be greater than the client's.
pub fn durable_streams(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.byte();
    let method = ["GET", "HEAD", "OPTIONS", "POST"][usize::from(choice & 3)];
    let policy: &ReadPolicy = if choice & 4 == 0 { &CLOSED } else { &OPEN };
    let header = match choice & 8 {
        0 => String::new(),
        _ => format!("X-Signed: {SIGNED}\r\n"),
    };
    let mut text = format!("{method} /ds/").into_bytes();
    text.extend_from_slice(input.0);
    text.extend_from_slice(format!(" HTTP/1.1\r\nHost: a\r\n{header}\r\n").as_bytes());
    let Ok(Some((head, _))) = RequestHead::decode(&text, &HeadLimits::default()) else {
        return;
    };
    let Some(name) = head.path().strip_prefix("/ds/") else {
        return;
    };
    let stream = percent::decode(name).ok();
    let stream = stream.and_then(|name| String::from_utf8(name.into_owned()).ok());
    match check(&head, stream.clone(), policy) {
        ReadVerdict::Answer(answer) => check_refusal(method, &answer),
        ReadVerdict::Read(reading) => {
            assert_eq!(Some(&*reading.stream), stream.as_deref());
            assert!((1..=READ_NAME_BYTES_MAX).contains(&reading.stream.len()));
            assert_eq!(method == "HEAD", reading.mode == ReadMode::Head);
            if choice & 4 == 0 {
                assert_eq!(
                    &*reading.stream, SIGNED_STREAM,
                    "a signed name opens another stream"
                );
            }
            check_answers(policy, &reading, u64::from(choice));
        }
    }
}

fn check_refusal(method: &str, answer: &Response) {
    check_headers(answer);
    match answer.status {
        200 => assert_eq!(method, "OPTIONS"),
        400 | 401 | 405 => {
            let body: serde_json::Value =
                serde_json::from_slice(&answer.body).expect("a refusal is JSON");
            assert!(body["error"].is_string());
        }
        status => panic!("a request is not refused with {status}"),
    }
}

fn check_answers(policy: &ReadPolicy, reading: &StreamReading, number: u64) {
    let position = match reading.offset {
        Offset::After(position) if position.epoch != Epoch::FOREIGN => position,
        _ => Position {
            epoch: Epoch::from_bits(number),
            offset: number,
        },
    };
    let text = offset_text(Some(position));
    assert_eq!(Offset::decode(&text), Ok(Offset::After(position)));
    let cursor = next_cursor(number, reading.cursor, 7);
    assert!(reading.cursor.is_none_or(|of_client| of_client < cursor));
    let found = Found {
        first: Some(position),
        last: Some(position),
    };
    for answer in [
        policy.metadata(reading, found),
        policy.messages(reading, found, cursor),
        policy.nothing_came(reading, Found::default(), cursor),
        policy.events(reading),
        policy.refusal(reading, ReadRefusal::Gone),
    ] {
        check_headers(&answer);
    }
    let mut event = Vec::new();
    control_event(Some(position), cursor, &mut event);
    let event = String::from_utf8(event).expect("UTF-8");
    let data = event.strip_prefix("event: control\ndata:");
    let data = data.and_then(|data| data.strip_suffix("\n\n"));
    let control: serde_json::Value =
        serde_json::from_str(data.expect("one line of data")).expect("JSON");
    assert_eq!(control["streamNextOffset"], text.as_str());
    assert_eq!(control["streamCursor"], cursor.to_string());
}

fn check_headers(answer: &Response) {
    for (name, value) in answer.fields() {
        assert!(!value.contains(['\r', '\n', '\0']), "{name}: {value:?}");
    }
    let names: Vec<_> = answer.fields().iter().map(|(name, _)| *name).collect();
    assert!(names.contains(&"X-Content-Type-Options"));
}
