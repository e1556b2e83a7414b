//! One of the two servers, with an app and clients of its own, and what was seen of it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tungstenite::Message;

use crate::support::http::request;
use crate::support::ports::free_port;
use crate::support::rails::confirmation;
use crate::support::{Answer, Cable, Driver, Launch, Rails, Stage, keys, wait};

pub const EXTENDED: &str = "actioncable-v1-ext-json";
pub const BASE: &str = "actioncable-v1-json";

/// What is looked for, and may not be there, is waited for so long. Only where the reference is known not to answer.
const BRIEFLY: Duration = Duration::from_millis(500);
const MARK: &str = "mark";

pub struct Side {
    pub stage: Stage,
    pub is_reference: bool,
    steps: Vec<(String, String)>,
    /// Calls of the app that have been noted.
    calls_noted: usize,
    /// Texts that are different each time, and what stands for them.
    names: Vec<(String, String)>,
}

impl Side {
    pub fn of_ringcable(driver: Driver, args: &[&str]) -> Self {
        let rails = Rails::start();
        let launch = Stage::launch(driver, &rails);
        Self::start(launch, rails, args, false)
    }

    pub fn of_reference(binary: &Path, args: &[&str]) -> Self {
        let (rails, port) = (Rails::start(), free_port());
        let launch = Launch::of(binary)
            .env("ANYCABLE_DISABLE_TELEMETRY", "true")
            .args([
                "--host=127.0.0.1".to_owned(),
                format!("--port={port}"),
                format!("--http_broadcast_port={port}"),
            ])
            .args([
                format!("--rpc_host={}", rails.url()),
                format!("--secret={}", keys::SECRET),
            ])
            .args(["--broadcast_adapter=http", "--log_level=debug"]);
        Self::start(launch, rails, args, true)
    }

    fn start(launch: Launch, rails: Rails, args: &[&str], is_reference: bool) -> Self {
        // Pings are left out of what is seen, and most scripts want none at all.
        let launch = launch.args(["--broker=memory", "--noauth", "--ping_interval=60"]);
        let server = launch.args(args.iter().copied()).start();
        let address = server.address().to_string();
        let side = Self {
            stage: Stage { server, rails },
            is_reference,
            steps: Vec::new(),
            calls_noted: 0,
            names: vec![(address, "<address>".to_owned())],
        };
        side.teach();
        side
    }

    /// `A` may whisper and has presence in `stream:A`, `B` neither; `C` has no stream, and `R` is rejected.
    fn teach(&self) {
        let confirmed = json!({
            "status": 1,
            "streams": ["stream:A"],
            "transmissions": [confirmation("A")],
            "env": { "istate": { "$p": "stream:A", "$w": "stream:A" } },
        });
        let rails = &self.stage.rails;
        rails.on_command("subscribe", "A", Answer::json(&confirmed));
        rails.streams("C", &[]);
        rails.on_command("subscribe", "R", Answer::reject("R"));
    }

    pub fn into_steps(self) -> Vec<(String, String)> {
        self.steps
    }

    pub fn note(&mut self, step: &str, seen: &str) {
        let (step, seen) = (self.neutral(step), self.neutral(seen));
        self.steps.push((step, seen));
    }

    pub fn note_all(&mut self, step: &str, seen: &[String]) {
        self.note(step, &seen.join(" "));
    }

    /// Whatever is different each time gets the same name on both sides.
    fn neutral(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (secret, name) in &self.names {
            text = text.replace(secret, name);
        }
        [r#""epoch":""#, r#""sid":""#]
            .iter()
            .fold(text, |text, key| without_values(&text, key))
    }

    /// A client, and its first message.
    pub fn open(&mut self, target: &str, subprotocol: &str) -> (Cable, Value) {
        self.open_with(target, &[("Sec-WebSocket-Protocol", subprotocol)])
    }

    pub fn open_with(&mut self, target: &str, headers: &[(&str, &str)]) -> (Cable, Value) {
        let request = headers.iter().fold(
            Cable::at(&self.stage.server, target),
            |request, (name, value)| request.header(name, value),
        );
        let mut client = request.open();
        let first = client.next_json();
        if let Some(sid) = first["sid"].as_str() {
            self.names
                .push((sid.to_owned(), format!("<sid {}>", self.names.len())));
        }
        (client, first)
    }

    /// An extended client, subscribed to `A`, and its sid.
    pub fn subscribed(&mut self) -> (Cable, String) {
        let (mut client, welcome) = self.open("/cable", EXTENDED);
        client.subscribe("A");
        (client, welcome["sid"].as_str().expect("a sid").to_owned())
    }

    /// Sends a command, and notes everything that comes before the answer to a ping.
    pub fn say(&mut self, step: &str, client: &mut Cable, command: &Value) {
        client.send(&command.to_string());
        let seen = until_pong(client);
        self.note_all(step, &seen);
    }

    /// Sends a command that is answered, and notes everything up to a message of one of these types.
    pub fn ask(&mut self, step: &str, client: &mut Cable, command: &Value, last: &[&str]) {
        client.send(&command.to_string());
        let seen = self.up_to(client, last);
        self.note_all(step, &seen);
    }

    pub fn up_to(&self, client: &mut Cable, last: &[&str]) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let text = client.next_text();
            let message: Value = serde_json::from_str(&text).expect("the server sends JSON");
            let is_last = last
                .iter()
                .any(|kind| message["type"] == **kind || message["message"]["type"] == **kind);
            // Marks of steps before, where the client has several subscriptions to a stream.
            if message["message"] != MARK {
                seen.push(text);
            }
            if is_last {
                return seen;
            }
        }
    }

    /// Notes everything that clients of `stream` have got, each up to a message that is published now. All that they have
    /// sent before is done.
    pub fn settle<const COUNT: usize>(
        &mut self,
        step: &str,
        stream: &str,
        clients: [&mut Cable; COUNT],
    ) {
        let mut seen: Vec<(&mut Cable, Vec<String>)> = clients
            .into_iter()
            .map(|client| {
                let before = until_pong(client);
                (client, before)
            })
            .collect();
        self.publish(
            stream,
            &json!(MARK).to_string(),
            json!({ "transient": true }),
        );
        for (index, (client, seen)) in seen.iter_mut().enumerate() {
            until_mark(client, seen);
            self.note_all(&format!("{step}, client {index}"), seen);
        }
    }

    pub fn publish(&self, stream: &str, data: &str, meta: Value) {
        let body = json!({ "stream": stream, "data": data, "meta": meta });
        self.stage.broadcaster().post(&body.to_string());
    }

    /// Publishes the numbers to `stream:A`; the client has them when this returns. Gives the last message.
    pub fn publish_to(&self, client: &mut Cable, numbers: std::ops::RangeInclusive<u64>) -> Value {
        let mut last = Value::Null;
        for number in numbers {
            self.stage.publish("stream:A", &number.to_string());
            last = client.next_json();
            assert_eq!(last["message"], number, "{last}");
        }
        last
    }

    /// Whether the client is still read. Where the reference is known to answer nothing, the wait is short.
    pub fn answers_ping(&self, client: &mut Cable) -> bool {
        client.send(r#"{"command":"ping"}"#);
        let patience = if self.is_reference {
            BRIEFLY
        } else {
            wait::PATIENCE
        };
        client.next_within(patience).is_some()
    }

    /// The next message, pings aside, is the end.
    pub fn note_close(&mut self, step: &str, client: &mut Cable) {
        let seen = Self::close_of(client);
        self.note(step, &seen);
    }

    /// Code and reason of the close frame, which is the next one.
    pub fn close_of(client: &mut Cable) -> String {
        let frame = loop {
            match client.next_message() {
                Message::Text(text) if text.starts_with(r#"{"type":"ping""#) => {}
                other => break other,
            }
        };
        match frame {
            Message::Close(Some(frame)) => format!("{} {}", u16::from(frame.code), frame.reason),
            other => format!("{other:?}"),
        }
    }

    /// Ends a connection, and waits until the server knows.
    pub fn end(&self, client: Cable) {
        let before = self.stage.server.sessions_open();
        drop(client);
        wait::until("the end of a session", || {
            (self.stage.server.sessions_open() < before).then_some(())
        });
    }

    /// The calls that the app has got since the last time, when there are as many as expected.
    pub fn note_calls(&mut self, step: &str, count: usize) {
        let all = self.calls_noted + count;
        let calls = self.stage.rails.wait_for(&format!("{all} calls"), |calls| {
            (calls.len() >= all).then(|| calls.to_vec())
        });
        let seen: Vec<String> = calls[self.calls_noted..]
            .iter()
            .map(|call| {
                let mut body = call.body.clone();
                // Their order is not defined.
                if let Some(subscriptions) =
                    body.get_mut("subscriptions").and_then(Value::as_array_mut)
                {
                    subscriptions.sort_by_key(Value::to_string);
                }
                format!("{} {body}", call.method)
            })
            .collect();
        self.calls_noted = calls.len();
        self.note_all(step, &seen);
    }

    /// Notes status, chosen headers and body.
    pub fn note_request(
        &mut self,
        step: &str,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) {
        let response = request(
            self.stage.server.address(),
            method,
            target,
            headers,
            body.as_bytes(),
        );
        let response = response.expect("an answer");
        let kind = response.header("content-type").unwrap_or("-").to_owned();
        self.note(
            step,
            &format!("{} {kind} {}", response.status, response.text()),
        );
    }
}

/// Everything that comes before the answer to a ping, when all commands before it are done.
pub fn until_pong(client: &mut Cable) -> Vec<String> {
    client.send(r#"{"command":"ping"}"#);
    let mut seen = Vec::new();
    loop {
        match client.next_text() {
            pong if pong == r#"{"type":"pong"}"# => return seen,
            text => seen.push(text),
        }
    }
}

fn until_mark(client: &mut Cable, seen: &mut Vec<String>) {
    loop {
        let text = client.next_text();
        let message: Value = serde_json::from_str(&text).expect("the server sends JSON");
        if message["message"] == MARK {
            return;
        }
        seen.push(text);
    }
}

/// The text with nothing between `before` and the next quote.
fn without_values(text: &str, before: &str) -> String {
    let mut parts = text.split(before);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        let rest = part.split_once('"').map_or("", |(_, rest)| rest);
        format!("{all}{before}\"{rest}")
    })
}

/// A command for `A`.
pub fn command(name: &str, key: &str, value: Value) -> Value {
    json!({ "command": name, "identifier": "A", key: value })
}

pub fn bare(name: &str, identifier: &str) -> Value {
    json!({ "command": name, "identifier": identifier })
}

/// The members of an answer about presence, in an order of their own: that of the records is not defined.
pub fn sorted_records(text: &str) -> String {
    let mut message: Value = serde_json::from_str(text).expect("the server sends JSON");
    if let Some(records) = message
        .pointer_mut("/message/records")
        .and_then(Value::as_array_mut)
    {
        records.sort_by_key(|record| record["id"].as_str().map(str::to_owned));
    }
    message.to_string()
}
