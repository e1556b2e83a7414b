//! One client of a crowd: what it remembers, and what it does with what it hears. Bytes in, bytes out; the worker has the
//! socket.

use std::fmt::Write as _;
use std::time::Instant;

use memchr::memmem;
use serde_json::json;

use super::Figures;
use crate::fleet::{client_frame, frame_header};

/// Bytes at the end of a data message in which its position stands.
const POSITION_BYTES_MAX: usize = 128;

/// A subscription, and the position of its last message.
pub struct Line {
    identifier: String,
    stream: u32,
    epoch: String,
    /// 0: no message yet.
    offset: u64,
}

/// A client.
pub struct Member {
    lines: Vec<Line>,
    sid: String,
    /// When its connection was started.
    pub opened: Instant,
    upgraded: bool,
    pub welcomed: bool,
    /// Answers without which it is not done.
    awaited: u32,
    /// Messages without which it is not done.
    messages: u32,
    /// It is done, and counted.
    pub is_done: bool,
}

/// The connection is of no use.
pub struct Broken;

impl Member {
    pub fn new(subscriptions: Vec<(String, u32)>) -> Self {
        let line = |(identifier, stream)| Line {
            identifier,
            stream,
            epoch: String::new(),
            offset: 0,
        };
        Self {
            lines: subscriptions.into_iter().map(line).collect(),
            sid: String::new(),
            opened: Instant::now(),
            upgraded: false,
            welcomed: false,
            awaited: 0,
            messages: 0,
            is_done: true,
        }
    }

    /// The request of a new connection, which comes back if there was an earlier one.
    pub fn request(&mut self, host: &str, header_lines: &str, messages: u32) -> String {
        (self.upgraded, self.welcomed, self.is_done) = (false, false, false);
        // The welcome.
        (self.awaited, self.messages) = (1, messages);
        let query = match self.sid.as_str() {
            "" => String::new(),
            sid => format!("?sid={sid}"),
        };
        format!(
            "GET /cable{query} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: actioncable-v1-ext-json\r\n{header_lines}\r\n"
        )
    }

    /// It is done when it has this many messages.
    pub fn expect(&mut self, messages: u32) {
        (self.is_done, self.messages) = (false, messages);
    }

    /// It is done when this is answered: each but the last gets no answer.
    pub fn say(&mut self, texts: &[String], output: &mut Vec<u8>) {
        (self.is_done, self.awaited) = (false, 1);
        for text in texts {
            client_frame(0x1, text.as_bytes(), output);
        }
    }

    /// True when it has everything and was not done before.
    pub fn take_done(&mut self) -> bool {
        let is_done = self.awaited == 0 && self.messages == 0;
        is_done && !std::mem::replace(&mut self.is_done, true)
    }

    /// Reads what has come. Returns the bytes that were used; the others have to come again. Appends what it sends.
    pub fn read(
        &mut self,
        input: &[u8],
        figures: &mut Figures,
        output: &mut Vec<u8>,
    ) -> Result<usize, Broken> {
        let mut at = 0;
        if !self.upgraded {
            let Some(end) = memmem::find(input, b"\r\n\r\n") else {
                return Ok(0);
            };
            if !input.starts_with(b"HTTP/1.1 101") {
                return Err(Broken);
            }
            self.upgraded = true;
            at = end + 4;
        }
        while let Some((header_bytes, payload_bytes)) = frame_header(&input[at..]) {
            let start = at + header_bytes;
            let Some(payload) = input.get(start..start + payload_bytes) else {
                break;
            };
            match input[at] & 0x0f {
                0x1 => self.hear(payload, figures, output),
                0x9 => client_frame(0xa, payload, output),
                _ => return Err(Broken),
            }
            at = start + payload_bytes;
        }
        Ok(at)
    }

    fn hear(&mut self, text: &[u8], figures: &mut Figures, output: &mut Vec<u8>) {
        let Some(kind) = text.strip_prefix(br#"{"type":""#) else {
            // The app writes the identifier before the type.
            return match memmem::find(text, br#""type":"confirm_subscription""#) {
                Some(_) => self.answered(),
                None => self.on_data(text, figures),
            };
        };
        match kind.split(|byte| *byte == b'"').next().unwrap_or_default() {
            b"welcome" => self.on_welcome(text, figures, output),
            b"ping" => {}
            b"confirm_subscription" | b"confirm_history" | b"pong" | b"presence" => self.answered(),
            b"reject_history" | b"reject_subscription" => {
                figures.rejected += 1;
                self.answered();
            }
            _ => figures.unknown += 1,
        }
    }

    fn answered(&mut self) {
        self.awaited = self.awaited.saturating_sub(1);
    }

    /// Asks for what it has missed since its last messages; where it had none, subscribes.
    fn on_welcome(&mut self, text: &[u8], figures: &mut Figures, output: &mut Vec<u8>) {
        let Some(sid) = field(text, r#""sid":""#) else {
            figures.unknown += 1;
            return;
        };
        self.sid = sid.to_owned();
        self.welcomed = true;
        figures
            .welcome
            .record(self.opened.elapsed().as_micros() as u64);
        let restored = memmem::find(text, br#""restored":true"#).is_some();
        figures.restored += u64::from(restored);
        figures.new += u64::from(!restored);
        self.awaited = self.lines.len() as u32;
        let mut command = String::new();
        for line in &self.lines {
            command.clear();
            let identifier = json!(line.identifier).to_string();
            if restored {
                // The list has the identifier as a JSON string, as the command does.
                let has = memmem::find(text, identifier.as_bytes()).is_some();
                figures.not_restored += u64::from(!has);
                let _ = write!(
                    command,
                    r#"{{"command":"history","identifier":{identifier},"history":{{"streams":{{"s{}":{{"epoch":"{}","offset":{}}}}}}}}}"#,
                    line.stream, line.epoch, line.offset,
                );
            } else {
                let _ = write!(
                    command,
                    r#"{{"command":"subscribe","identifier":{identifier}}}"#
                );
            }
            client_frame(0x1, command.as_bytes(), output);
        }
    }

    fn on_data(&mut self, text: &[u8], figures: &mut Figures) {
        let end = &text[text.len().saturating_sub(POSITION_BYTES_MAX)..];
        let position = || {
            let stream = field(end, r#""stream_id":"s"#)?.parse::<u32>().ok()?;
            let offset = field(end, r#""offset":"#)?.parse::<u64>().ok()?;
            Some((stream, field(end, r#""epoch":""#)?, offset))
        };
        let Some((stream, epoch, offset)) = position() else {
            figures.unknown += 1;
            return;
        };
        let Some(line) = self.lines.iter_mut().find(|line| line.stream == stream) else {
            figures.unknown += 1;
            return;
        };
        if line.offset == 0 {
            epoch.clone_into(&mut line.epoch);
        } else if line.epoch != epoch {
            figures.unknown += 1;
        } else if offset <= line.offset {
            figures.doubled += 1;
            return;
        } else {
            figures.missing += offset - line.offset - 1;
        }
        line.offset = offset;
        figures.messages += 1;
        self.messages = self.messages.saturating_sub(1);
    }
}

/// The value behind `name`, up to the end of a string or a number.
fn field<'a>(text: &'a [u8], name: &str) -> Option<&'a str> {
    let start = memmem::find(text, name.as_bytes())? + name.len();
    let value = &text[start..];
    let end = value
        .iter()
        .position(|byte| matches!(byte, b'"' | b',' | b'}'))?;
    str::from_utf8(&value[..end]).ok()
}
