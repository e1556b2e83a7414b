//! What the app answers, and when.

use std::io::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::rules::{confirmation, rejection};
use crate::support::app::{Caller, Reply};

/// Keeps answers back until the test lets them go.
#[derive(Debug, Clone, Default)]
pub struct Gate {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl Gate {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn open(&self) {
        let (open, changed) = &*self.shared;
        *open.lock().expect("not poisoned") = true;
        changed.notify_all();
    }

    /// Returns when it is open.
    pub fn wait(&self) {
        let (open, changed) = &*self.shared;
        let open = open.lock().expect("not poisoned");
        drop(
            changed
                .wait_while(open, |open| !*open)
                .expect("not poisoned"),
        );
    }

    fn is_open(&self) -> bool {
        *self.shared.0.lock().expect("not poisoned")
    }
}

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    ContentLength,
    Chunked,
    /// HTTP/1.0 style: the end of the connection ends the body.
    CloseDelimited,
}

/// What the app does with one call.
#[derive(Debug, Clone)]
pub struct Answer {
    gate: Option<Gate>,
    delay: Duration,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Http {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
        framing: Framing,
        gzip: bool,
        close: bool,
    },
    /// These bytes and nothing else, then the connection ends.
    Raw(Vec<u8>),
    /// The connection ends without a byte.
    HangUp,
}

impl Answer {
    /// Waits as the answer wants. False when the caller has left meanwhile.
    pub(super) fn wait(&self, caller: &Caller<'_>) -> bool {
        let until = Instant::now() + self.delay;
        let is_due = || Instant::now() >= until && self.gate.as_ref().is_none_or(Gate::is_open);
        while !is_due() {
            if !caller.is_there() {
                return false;
            }
        }
        true
    }

    pub(super) fn into_reply(self) -> Reply {
        match self.content {
            Content::HangUp => Reply::SendAndClose(Vec::new()),
            Content::Raw(bytes) => Reply::SendAndClose(bytes),
            Content::Http {
                status,
                headers,
                body,
                framing,
                gzip,
                close,
            } => {
                let ends = close || framing == Framing::CloseDelimited;
                let bytes = encode_http(status, headers, body, framing, gzip, close);
                if ends {
                    Reply::SendAndClose(bytes)
                } else {
                    Reply::Send(bytes)
                }
            }
        }
    }

    pub fn json(body: &Value) -> Self {
        Self::status(200, body.to_string())
    }

    pub fn status(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::from(Content::Http {
            status,
            headers: Vec::new(),
            body: body.into(),
            framing: Framing::ContentLength,
            gzip: false,
            close: false,
        })
    }

    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::from(Content::Raw(bytes.into()))
    }

    pub fn hang_up() -> Self {
        Self::from(Content::HangUp)
    }

    /// A plain success of connect with these identifiers and transmissions.
    pub fn welcome(identifiers: &str, transmissions: &[&str]) -> Self {
        Self::json(
            &json!({ "status": 1, "identifiers": identifiers, "transmissions": transmissions, "env": {} }),
        )
    }

    /// The refusal of a connection as Rails words it.
    pub fn unauthorized() -> Self {
        let message = r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#;
        Self::json(&json!({ "status": 2, "transmissions": [message] }))
    }

    /// A confirmed subscription to `streams`.
    pub fn confirm(identifier: &str, streams: &[&str]) -> Self {
        let mut body =
            json!({ "status": 1, "transmissions": [confirmation(identifier)], "env": {} });
        if !streams.is_empty() {
            body["streams"] = json!(streams);
        }
        Self::json(&body)
    }

    /// A rejected subscription.
    pub fn reject(identifier: &str) -> Self {
        let body = json!({ "status": 2, "stop_streams": true, "transmissions": [rejection(identifier)], "env": {} });
        Self::json(&body)
    }

    /// A successful command with nothing but these transmissions.
    pub fn transmit(transmissions: &[String]) -> Self {
        Self::json(&json!({ "status": 1, "transmissions": transmissions, "env": {} }))
    }

    /// Nothing to send, nothing to change.
    pub fn success() -> Self {
        Self::json(&json!({ "status": 1, "env": {} }))
    }

    pub fn behind(mut self, gate: &Gate) -> Self {
        self.gate = Some(gate.clone());
        self
    }

    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub fn framed(mut self, wanted: Framing) -> Self {
        if let Content::Http { framing, .. } = &mut self.content {
            *framing = wanted;
        }
        self
    }

    pub fn gzipped(mut self) -> Self {
        if let Content::Http { gzip, .. } = &mut self.content {
            *gzip = true;
        }
        self
    }

    /// Announces `Connection: close` and does it.
    pub fn closing(mut self) -> Self {
        if let Content::Http { close, .. } = &mut self.content {
            *close = true;
        }
        self
    }

    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Content::Http { headers, .. } = &mut self.content {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }
}

impl From<Content> for Answer {
    fn from(content: Content) -> Self {
        Self {
            gate: None,
            delay: Duration::ZERO,
            content,
        }
    }
}

fn encode_http(
    status: u16,
    mut headers: Vec<(String, String)>,
    mut body: Vec<u8>,
    framing: Framing,
    gzip: bool,
    close: bool,
) -> Vec<u8> {
    if gzip {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&body).expect("memory takes bytes");
        body = encoder.finish().expect("memory takes bytes");
        headers.push(("Content-Encoding".to_owned(), "gzip".to_owned()));
    }
    let version = if framing == Framing::CloseDelimited {
        "HTTP/1.0"
    } else {
        "HTTP/1.1"
    };
    let mut head = format!("{version} {status} Whatever\r\n");
    match framing {
        Framing::ContentLength => head.push_str(&format!("Content-Length: {}\r\n", body.len())),
        Framing::Chunked => {
            head.push_str("Transfer-Encoding: chunked\r\n");
            body = chunked(&body);
        }
        Framing::CloseDelimited => {}
    }
    if close {
        head.push_str("Connection: close\r\n");
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut bytes = (head + "\r\n").into_bytes();
    bytes.extend_from_slice(&body);
    bytes
}

/// Small chunks, so that sizes and data get split.
fn chunked(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(7) {
        bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}
