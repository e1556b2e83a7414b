//! Requests for server-sent events, and the events of what the app sends.

use super::Input;
use crate::endpoints::sse::{SseVerdict, check, check_lines, wants_raw};
use crate::protocol::command::decode_command;
use crate::protocol::event_stream::{PublicationEvent, ReadEvent, View, read, reply_event};
use crate::protocol::json::lossy_text;
use crate::protocol::position::{Epoch, Position};
use crate::protocol::reply::Reply;
use crate::wire::http_head::HeadLimits;
use crate::wire::http_request::RequestHead;

/// The input is a choice, then a request or what the app sends. What a request asks for must be one command on one line,
/// which `serde_json` reads as the server does. What the app sends must be one event for an `EventSource`, whatever line
/// breaks are in it.
pub fn sse_request(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 4 {
        0 | 1 => check_request(input.0),
        2 => check_transmission(input.byte(), input.0),
        _ => check_publication(input),
    }
}

fn check_request(bytes: &[u8]) {
    let Ok(Some((head, taken))) = RequestHead::decode(bytes, &HeadLimits::default()) else {
        return;
    };
    let _ = wants_raw(&head);
    match check(&head) {
        Ok(SseVerdict::Subscribe(line)) => {
            assert_eq!(head.method(), "GET");
            check_line(&line);
        }
        Ok(SseVerdict::ReadBody) => {
            let body = &bytes[taken..];
            if check_lines(body).is_ok() {
                let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
                for line in lines.filter(|line| !line.is_empty()) {
                    assert!(matches!(decode_command(line), Ok(Some(_))));
                }
            }
        }
        Ok(SseVerdict::Refuse(status)) => assert!([200, 405].contains(&status)),
        Err(error) => assert!(head.method() == "GET" && !error.to_string().is_empty()),
    }
}

fn check_line(line: &[u8]) {
    assert!(!line.contains(&b'\n') && !line.contains(&b'\r'));
    let value: serde_json::Value = serde_json::from_slice(line).expect("a command is JSON");
    let command = decode_command(line).expect("a command").expect("an object");
    assert_eq!(value["identifier"], *command.identifier);
    assert!(!command.identifier.is_empty());
    assert_eq!(value.get("history").is_some(), command.history.is_some());
}

fn check_transmission(choice: u8, bytes: &[u8]) {
    let view = View {
        unwrap: choice & 1 != 0,
        raw: choice & 2 != 0,
    };
    let text = lossy_text(bytes).into_owned();
    let mut out = Vec::new();
    let shown = reply_event(&Reply::Transmission(text), view, &mut out);
    let events = read_all(&out);
    assert_eq!(events.len(), usize::from(shown));
    if let Some(event) = events.first() {
        assert!(event.kind.is_empty() || !view.raw);
        assert!(event.id.is_empty());
    }
}

/// Choices, the length of the type and of the stream's name, then these and the message.
fn check_publication(mut input: Input<'_>) {
    let choice = input.byte();
    let (kind_bytes, stream_bytes) = (input.byte(), input.byte());
    let kind = lossy_text(input.take(kind_bytes.into())).into_owned();
    let stream = lossy_text(input.take(stream_bytes.into())).into_owned();
    let text = lossy_text(input.0).into_owned();
    // As `encode_message` makes it: any JSON, or a string.
    let value = serde_json::from_str::<serde_json::Value>(&text);
    let message = match &value {
        Ok(_) => text.trim_ascii().to_owned(),
        Err(_) => serde_json::Value::from(&*text).to_string(),
    };
    let position = Some(Position {
        epoch: Epoch::from_bits(u64::from(choice)),
        offset: u64::MAX,
    });
    let event = PublicationEvent {
        identifier: "A",
        stream: &stream,
        message: message.as_bytes(),
        kind: &kind,
        position: position.filter(|_| choice & 1 != 0),
        unwrap: choice & 2 != 0,
    };
    let mut out = Vec::new();
    event.encode(&mut out);
    if let Some(around) = event.around() {
        let parts = [&around.before[..], message.as_bytes(), &around.after].concat();
        assert_eq!(parts, out);
    }
    let events = read_all(&out);
    assert_eq!(events.len(), 1);
    check_data(&event, &message, &events[0]);
}

fn check_data(event: &PublicationEvent<'_>, message: &str, read: &ReadEvent) {
    assert_eq!(read.kind, event.kind.replace(['\r', '\n'], " "));
    let value: serde_json::Value = serde_json::from_str(message).expect("JSON");
    let expected = match (event.unwrap && event.kind.is_empty(), &value) {
        (true, serde_json::Value::String(text)) => {
            let lines = text.replace("\r\n", "\n").replace('\r', "\n");
            return assert_eq!(read.data, lines);
        }
        (true, _) => &value,
        (false, _) => {
            let reply: serde_json::Value = serde_json::from_str(&read.data).expect("JSON");
            assert_eq!(reply["identifier"], "A");
            return assert_eq!(reply["message"], value);
        }
    };
    let found: serde_json::Value = serde_json::from_str(&read.data).expect("JSON");
    assert_eq!(&found, expected);
}

fn read_all(out: &[u8]) -> Vec<ReadEvent> {
    assert!(out.is_empty() || out.ends_with(b"\n\n"));
    read(str::from_utf8(out).expect("events are UTF-8"))
}
