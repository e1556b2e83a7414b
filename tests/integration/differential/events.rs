//! Server-sent events: requests and their answers, events of one stream and of several, positions, and ends.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use super::Difference;
use super::side::Side;
use crate::support::events::EventRequest;
use crate::support::{Answer, PATIENCE};

const MARK: &str = "mark";

/// One request and the events that answer it.
struct Events {
    reader: BufReader<TcpStream>,
    /// Status line and header lines.
    head: Vec<String>,
    /// Bytes of the current chunk that were not read yet.
    left: usize,
    chunked: bool,
}

impl Events {
    fn open(side: &Side, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Self {
        let address = side.stage.server.address();
        let request = match method {
            "POST" => EventRequest::post(address, target, body),
            _ => EventRequest::new(address, &format!("{method} {target} HTTP/1.1")),
        };
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(name, value)
        });
        let stream = request.send();
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("an option of every socket");
        let mut events = Self {
            reader: BufReader::new(stream),
            head: Vec::new(),
            left: 0,
            chunked: false,
        };
        loop {
            let line = events.raw_line();
            if line.is_empty() {
                break;
            }
            events.head.push(line);
        }
        events.chunked = events
            .head
            .iter()
            .any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
        events
    }

    fn raw_line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("a line");
        line.trim_end_matches(['\r', '\n']).to_owned()
    }

    /// Status and headers, in an order of their own; not the date, and not how the connection goes on.
    fn summary(&self) -> String {
        let mut lines: Vec<String> = self.head[1..].to_vec();
        let ignored = ["date:", "connection:", "content-length:"];
        lines.retain(|line| {
            !ignored
                .iter()
                .any(|name| line.to_ascii_lowercase().starts_with(name))
        });
        lines.sort();
        format!("{} {}", self.head[0], lines.join(" | "))
    }

    fn byte(&mut self) -> Option<u8> {
        if self.chunked && self.left == 0 {
            let size = self.raw_line();
            self.left = usize::from_str_radix(&size, 16).unwrap_or(0);
            if self.left == 0 {
                return None;
            }
        }
        let mut byte = [0];
        self.reader.read_exact(&mut byte).ok()?;
        if self.chunked {
            self.left -= 1;
            if self.left == 0 {
                self.raw_line();
            }
        }
        Some(byte[0])
    }

    /// The lines of the next event that is no ping, or nothing at the end of the stream.
    fn next(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            let mut line = Vec::new();
            loop {
                match self.byte()? {
                    b'\n' => break,
                    byte => line.push(byte),
                }
            }
            if !line.is_empty() {
                text.push_str(&String::from_utf8_lossy(&line));
                text.push_str("\\n");
            } else if text.starts_with("event: ping") {
                text.clear();
            } else if !text.is_empty() {
                return Some(text);
            }
        }
    }

    /// Up to the mark, a plain message.
    fn until_mark(&mut self) -> Vec<String> {
        let is_mark = |event: &str| {
            event.starts_with("data: mark\\n") || event.contains(r#""message":"mark""#)
        };
        std::iter::from_fn(|| self.next().filter(|event| !is_mark(event))).collect()
    }

    /// All that come before the end of the body.
    fn until_end(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

fn mark(side: &Side, stream: &str) {
    side.publish(
        stream,
        &json!(MARK).to_string(),
        json!({ "transient": true }),
    );
}

fn note_events(side: &mut Side, step: &str, stream: &str, clients: &mut [&mut Events]) {
    mark(side, stream);
    for (index, client) in clients.iter_mut().enumerate() {
        let seen = client.until_mark();
        note_all(side, &format!("{step}, client {index}"), &seen);
    }
}

/// Without the epochs of positions.
fn note_all(side: &mut Side, step: &str, seen: &[String]) {
    let neutral = |event: &String| match event.split_once("id: ") {
        Some((before, id)) => {
            let parts: Vec<&str> = id.splitn(3, '/').collect();
            format!("{before}id: {}//{}", parts[0], parts[2])
        }
        None => event.clone(),
    };
    let seen: Vec<String> = seen.iter().map(neutral).collect();
    side.note_all(step, &seen);
}

/// A request that opens no stream.
fn note_answer(
    side: &mut Side,
    step: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) {
    let events = Events::open(side, method, target, headers, body);
    side.note(step, &events.summary());
}

/// What it is, method, target, and body.
const TABLE: &[(&str, &str, &str, &str)] = &[
    ("nothing", "GET", "/events", ""),
    ("an empty stream", "GET", "/events?stream=", ""),
    ("another parameter", "GET", "/events?streams=a", ""),
    ("a rejected one", "GET", "/events?identifier=R", ""),
    ("a forged one", "GET", "/events?signed_stream=abc--def", ""),
    (
        "a forged Turbo stream",
        "GET",
        "/events?turbo_signed_stream_name=abc--def",
        "",
    ),
    (
        "a time that is none",
        "GET",
        "/events?stream=a&history_since=x",
        "",
    ),
    (
        "an empty time",
        "GET",
        "/events?stream=a&history_since=",
        "",
    ),
    ("HEAD", "HEAD", "/events?stream=a", ""),
    ("PUT", "PUT", "/events?stream=a", ""),
    ("DELETE", "DELETE", "/events?stream=a", ""),
    ("OPTIONS", "OPTIONS", "/events", ""),
    ("another path", "GET", "/events/", ""),
    ("bad JSON", "POST", "/events", "x"),
    (
        "bad JSON in the second line",
        "POST",
        "/events",
        "{\"identifier\":\"A\"}\nx",
    ),
    ("a wrong type", "POST", "/events", r#"{"identifier":5}"#),
    (
        "a rejected line",
        "POST",
        "/events",
        r#"{"identifier":"R"}"#,
    ),
    (
        "one twice",
        "POST",
        "/events",
        "{\"identifier\":\"A\"}\n{\"identifier\":\"A\"}",
    ),
    ("a good one", "GET", "/events?channel=A", ""),
    ("a public stream", "GET", "/events?stream=a", ""),
    ("an identifier", "GET", "/events?identifier=A&stream=b", ""),
    ("an empty body", "POST", "/events", ""),
    ("empty lines", "POST", "/events", "\n\n"),
    (
        "a line without a command",
        "POST",
        "/events",
        r#"{"identifier":"A"}"#,
    ),
];

/// Statuses and headers.
pub fn requests(side: &mut Side) {
    side.stage.rails.on(|call| {
        (call.method == "connect" && call.forwarded("cookie").is_none()).then(Answer::unauthorized)
    });
    let cookie = [("Cookie", "a=b")];
    for (step, method, target, body) in TABLE {
        note_answer(side, step, method, target, &cookie, body);
    }
    note_answer(side, "a refused client", "GET", "/events?stream=a", &[], "");
    note_answer(
        side,
        "a refused client with a bad request",
        "GET",
        "/events",
        &[],
        "",
    );
    for (step, id) in [
        ("one part", "1"),
        ("two parts", "1/a"),
        ("a negative offset", "-1/a/b"),
        ("no number", "x/a/b"),
        ("an empty one", ""),
        ("three parts", "1/a/b"),
    ] {
        let headers = [cookie[0], ("Last-Event-ID", id)];
        note_answer(
            side,
            &format!("a position of {step}"),
            "GET",
            "/events?stream=b",
            &headers,
            "",
        );
    }
    let origin = [cookie[0], ("Origin", "http://Example.com:3000")];
    note_answer(side, "an origin", "GET", "/events?stream=a", &origin, "");
    note_answer(
        side,
        "OPTIONS with an origin",
        "OPTIONS",
        "/events",
        &origin,
        "",
    );
    let long = "x".repeat(70_000);
    note_answer(
        side,
        "a body that is too long",
        "POST",
        "/events",
        &cookie,
        &format!(r#"{{"identifier":"{long}"}}"#),
    );
}

pub const REQUESTS: &[Difference] = &[];

/// Events of one stream.
pub fn stream(side: &mut Side) {
    let get =
        |side: &Side, query: &str| Events::open(side, "GET", &format!("/events?{query}"), &[], "");
    let mut plain = get(side, "stream=room");
    // In the reference the form of one client decides that of all with the same identifier.
    let mut raw = get(
        side,
        "identifier=%7B%22channel%22%3A%22%24pubsub%22%2C%22stream_name%22%3A%22room%22%2C%22raw%22%3A1%7D&raw=1",
    );
    let table = [
        (r#"{"a":1}"#, json!({})),
        ("\"one\\ntwo\\r\\nthree\\rfour\"", json!({})),
        ("not JSON\nat all", json!({})),
        ("null", json!({})),
        ("1.5", json!({ "transient": true })),
        ("[2]", json!({ "broadcast_type": "typed" })),
        (r#""""#, json!({})),
    ];
    for (data, meta) in table {
        side.publish("room", data, meta);
    }
    note_events(side, "messages", "room", &mut [&mut plain]);
    let seen = raw.until_mark();
    note_all(side, "messages, raw", &seen);
    let mut late = get(side, "stream=room&history_since=1");
    note_events(side, "history", "room", &mut [&mut plain, &mut late]);
    side.publish("room", "8", json!({}));
    mark(side, "room");
    let seen = plain.until_mark();
    positions(side, seen.last().expect("an event"));
}

/// Clients that come back with the position of this event, or with one like it.
fn positions(side: &mut Side, event: &str) {
    let id = event
        .split_once("id: ")
        .and_then(|(_, id)| id.split_once("\\n"));
    let parts: Vec<&str> = id.expect("a position").0.splitn(3, '/').collect();
    let [offset, epoch, stream] = parts[..] else {
        panic!("{event}")
    };
    side.publish("room", "9", json!({}));
    for (step, id, query) in [
        (
            "missed one",
            format!("{offset}/{epoch}/{stream}"),
            "stream=room",
        ),
        (
            "missed one, with a time",
            format!("{offset}/{epoch}/{stream}"),
            "stream=room&history_since=1",
        ),
        (
            "another epoch",
            format!("{offset}/x{epoch}/{stream}"),
            "stream=room",
        ),
        (
            "another stream",
            format!("{offset}/{epoch}/other"),
            "stream=room",
        ),
    ] {
        let headers = [("Last-Event-ID", id.as_str())];
        let mut client = Events::open(side, "GET", &format!("/events?{query}"), &headers, "");
        note_events(side, step, "room", &mut [&mut client]);
    }
}

pub const STREAM: &[Difference] = &[];

/// Several subscriptions of one request, presence, and the ends of streams.
pub fn lines(side: &mut Side) {
    let public = |stream: &str| json!({ "channel": "$pubsub", "stream_name": stream }).to_string();
    let of = |stream: &str, key: &str, value: Value| {
        json!({ "identifier": public(stream), key: value }).to_string()
    };
    let body = [
        of("a", "command", json!("unsubscribe")),
        String::new(),
        of("b", "data", json!(5)),
        of("c", "history", json!({ "since": 1 })),
    ];
    side.publish("c", "1", json!({}));
    let mut client = Events::open(side, "POST", "/events", &[], &body.join("\n"));
    note_events(side, "opened", "c", &mut [&mut client]);
    side.publish("b", "2", json!({ "broadcast_type": "typed" }));
    side.publish("b", "3", json!({}));
    note_events(side, "messages", "b", &mut [&mut client]);
    let mut member = Events::open(
        side,
        "POST",
        "/events",
        &[],
        &of("a", "presence", json!({ "id": "7", "info": 1 })),
    );
    note_events(side, "a member", "a", &mut [&mut member, &mut client]);
    let mut app = Events::open(side, "GET", "/events?identifier=A", &[], "");
    note_events(side, "by the app", "stream:A", &mut [&mut app]);

    for reconnect in [true, false] {
        let mut client = Events::open(
            side,
            "GET",
            "/events?stream=d",
            &[("X-Request-ID", "gone")],
            "",
        );
        note_events(
            side,
            &format!("before a disconnect, reconnect {reconnect}"),
            "d",
            &mut [&mut client],
        );
        let identifier = json!({ "sid": "gone" }).to_string();
        let command = json!({ "command": "disconnect", "payload": { "identifier": identifier, "reconnect": reconnect } });
        side.stage.broadcaster().post(&command.to_string());
        let seen = client.until_end();
        note_all(
            side,
            &format!("a remote disconnect, reconnect {reconnect}"),
            &seen,
        );
    }
}

pub const LINES: &[Difference] = &[
    Difference {
        step: "by the app",
        reference: concat!(
            r#"event: welcome\ndata: {"type":"welcome","sid":""}\n "#,
            r#"event: confirm_subscription\ndata: {"type":"confirm_subscription","identifier":"A"}\n"#
        ),
        ringcable: concat!(
            r#"event: welcome\ndata: {"type":"welcome","sid":""}\n "#,
            r#"event: confirm_subscription\ndata: {"identifier":"A","type":"confirm_subscription"}\n"#
        ),
        row: "a transmission of the app",
    },
    Difference {
        step: "a remote disconnect, reconnect false",
        reference: r#"event: disconnect\ndata: {"type":"disconnect","reason":"remote","reconnect":false}\nretry: 31536000000\n"#,
        ringcable: r#"event: disconnect\ndata: {"type":"disconnect","reason":"remote","reconnect":false}\nretry: 2147483647\n"#,
        row: "`retry` with a final disconnect",
    },
];
