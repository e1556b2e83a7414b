//! A WebSocket client at the level of bytes: it can break every rule and sees everything, close codes browsers hide
//! included.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Instant;

use serde_json::{Value, json};

use super::wait::PATIENCE;

pub const CONTINUATION: u8 = 0;
pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// The key of the example in `contract/websocket.md` §14.
pub const KEY: &str = "MDAwMDAwMDAwMDAwMDAwMA==";

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A frame as it was on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub fin: bool,
    pub rsv1: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn text(&self) -> String {
        String::from_utf8(self.payload.clone()).expect("the server sends UTF-8")
    }

    /// Code and reason of a close frame.
    pub fn close(&self) -> (Option<u16>, String) {
        assert_eq!(self.opcode, CLOSE, "not a close frame: {self:?}");
        match self.payload.as_slice() {
            [] => (None, String::new()),
            [high, low, reason @ ..] => (
                Some(u16::from_be_bytes([*high, *low])),
                String::from_utf8_lossy(reason).into_owned(),
            ),
            [_] => panic!("a close frame of one byte"),
        }
    }
}

/// The head of a handshake answer.
#[derive(Debug, Clone)]
pub struct Head {
    pub lines: Vec<String>,
}

impl Head {
    pub fn status(&self) -> u16 {
        self.lines[0]
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .expect("a status line")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.lines[1..].iter().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// A TCP connection with what was read but not used yet.
pub struct Raw {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).expect("the server accepts");
        Self::over(stream)
    }

    pub fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("an option of every socket");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("an option of every socket");
        stream
            .set_write_timeout(Some(PATIENCE))
            .expect("an option of every socket");
        Self {
            stream,
            unread: Vec::new(),
        }
    }

    /// A finished upgrade of `target`.
    pub fn upgrade(address: SocketAddr, target: &str) -> Self {
        let mut raw = Self::connect(address);
        raw.send(handshake(target, &[]).as_bytes());
        let head = raw.read_head();
        assert_eq!(head.status(), 101, "{head:?}");
        raw
    }

    /// An upgraded connection without pings that has got its welcome.
    pub fn welcomed(address: SocketAddr) -> Self {
        let mut raw = Self::upgrade(address, "/cable?pi=0");
        assert!(raw.next_text().contains(r#""type":"welcome""#));
        raw
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// Sends and does not care whether the server has closed.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub fn send_text(&mut self, text: &str) {
        self.send(&frame(TEXT, text.as_bytes()));
    }

    pub fn command(&mut self, command: &str, identifier: &str) {
        self.send_text(&json!({ "command": command, "identifier": identifier }).to_string());
    }

    /// Subscribes and waits for the app's confirmation.
    pub fn subscribe(&mut self, identifier: &str) {
        self.command("subscribe", identifier);
        assert_eq!(self.next_text(), super::rails::confirmation(identifier));
    }

    pub fn shutdown_write(&self) {
        self.stream
            .shutdown(Shutdown::Write)
            .expect("an open connection");
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub fn read_head(&mut self) -> Head {
        let end = loop {
            if let Some(at) = self
                .unread
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break at;
            }
            self.fill("a response head");
        };
        let head: Vec<u8> = self.unread.drain(..end + 4).collect();
        let text = String::from_utf8(head).expect("a head is ASCII");
        Head {
            lines: text.trim_end().split("\r\n").map(str::to_owned).collect(),
        }
    }

    /// Exactly `length` bytes, for a body.
    pub fn read_exact(&mut self, length: usize) -> Vec<u8> {
        while self.unread.len() < length {
            self.fill("bytes of a body");
        }
        self.unread.drain(..length).collect()
    }

    pub fn read_frame(&mut self) -> Frame {
        loop {
            if let Some((frame, used)) = decode(&self.unread) {
                self.unread.drain(..used);
                return frame;
            }
            self.fill("a frame");
        }
    }

    /// The next frame that is not an Action Cable ping.
    pub fn next_frame(&mut self) -> Frame {
        loop {
            let frame = self.read_frame();
            if !is_action_cable_ping(&frame) {
                return frame;
            }
        }
    }

    /// The next text that is not a ping, whole.
    pub fn next_text(&mut self) -> String {
        let frame = self.next_frame();
        assert_eq!(
            (frame.opcode, frame.fin),
            (TEXT, true),
            "expected a text frame, got {frame:?}"
        );
        frame.text()
    }

    pub fn next_json(&mut self) -> Value {
        let text = self.next_text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The next frame that is not a ping, or `None` when the connection ends or is reset instead.
    pub fn frame_or_reset(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, used)) = decode(&self.unread) {
                self.unread.drain(..used);
                if is_action_cable_ping(&frame) {
                    continue;
                }
                return Some(frame);
            }
            let mut buffer = [0; 4096];
            match self.receive(&mut buffer) {
                Ok(0) => return None,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return None,
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) => panic!("{error} while waiting for a frame or the end"),
            }
        }
    }

    /// The next frame is this close frame, and nothing follows it.
    pub fn expect_close(&mut self, code: u16, reason: &str) {
        assert_eq!(self.next_frame().close(), (Some(code), reason.to_owned()));
        self.expect_end();
    }

    /// Nothing more comes. A reset counts: the server closes with our bytes unread.
    pub fn expect_end(&mut self) {
        assert!(
            self.unread.is_empty(),
            "bytes before the end: {:?}",
            String::from_utf8_lossy(&self.unread)
        );
        let mut byte = [0];
        match self.receive(&mut byte) {
            Ok(0) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("expected the end of the connection, got {other:?} {byte:?}"),
        }
    }

    /// Nothing was queued for us before the answer to this `ping` command.
    pub fn expect_nothing_before_pong(&mut self) {
        self.send_text(r#"{"command":"ping"}"#);
        assert_eq!(self.next_text(), r#"{"type":"pong"}"#);
    }

    /// A read with a timeout is not restarted by the kernel when something interrupts it.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    /// One read of a client that takes its time; gives the number of bytes.
    pub fn fill_some(&mut self) -> usize {
        let before = self.unread.len();
        self.fill("more bytes");
        self.unread.len() - before
    }

    fn fill(&mut self, what: &str) {
        let mut buffer = [0; 16 * 1024];
        let started = Instant::now();
        match self.receive(&mut buffer) {
            Ok(0) => panic!(
                "the connection ended before {what}; unread: {:?}",
                String::from_utf8_lossy(&self.unread)
            ),
            Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
            Err(error) => panic!(
                "{error} after {:?} while waiting for {what}",
                started.elapsed()
            ),
        }
    }
}

/// A complete upgrade request with extra header lines.
pub fn handshake(target: &str, extra: &[&str]) -> String {
    let mut lines = vec![
        format!("GET {target} HTTP/1.1"),
        "Host: localhost".to_owned(),
        "Upgrade: websocket".to_owned(),
        "Connection: keep-alive, Upgrade".to_owned(),
        format!("Sec-WebSocket-Key: {KEY}"),
        "Sec-WebSocket-Version: 13".to_owned(),
    ];
    lines.extend(extra.iter().map(|line| (*line).to_owned()));
    lines.join("\r\n") + "\r\n\r\n"
}

/// A final masked frame.
pub fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame_with(0x80 | opcode, Some(MASK), payload)
}

/// A masked frame that is not the last of its message.
pub fn fragment(opcode: u8, payload: &[u8]) -> Vec<u8> {
    frame_with(opcode, Some(MASK), payload)
}

/// A frame with any first byte, masked or not.
pub fn frame_with(first: u8, mask: Option<[u8; 4]>, payload: &[u8]) -> Vec<u8> {
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(mask_bit | length as u8),
        length @ 126..=0xffff => {
            bytes.push(mask_bit | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            bytes.push(mask_bit | 127);
            bytes.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    let mask_bytes = mask.unwrap_or_default();
    bytes.extend_from_slice(mask.as_ref().map_or(&[][..], |mask| &mask[..]));
    bytes.extend(
        payload
            .iter()
            .enumerate()
            .map(|(at, byte)| byte ^ mask_bytes[at % 4]),
    );
    bytes
}

/// A close frame of a client.
pub fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let mut payload = code.to_be_bytes().to_vec();
    payload.extend_from_slice(reason.as_bytes());
    frame(CLOSE, &payload)
}

/// One unmasked frame from the start of `input` and its length in bytes.
fn decode(input: &[u8]) -> Option<(Frame, usize)> {
    let (&first, &second) = (input.first()?, input.get(1)?);
    assert_eq!(second & 0x80, 0, "a server does not mask");
    let (length, head) = match second {
        126 => (
            usize::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?)),
            4,
        ),
        127 => (
            u64::from_be_bytes(input.get(2..10)?.try_into().ok()?) as usize,
            10,
        ),
        short => (usize::from(short), 2),
    };
    let payload = input.get(head..head + length)?.to_vec();
    assert_eq!(first & 0x30, 0, "RSV2 and RSV3 are never set");
    let frame = Frame {
        fin: first & 0x80 != 0,
        rsv1: first & 0x40 != 0,
        opcode: first & 0x0f,
        payload,
    };
    Some((frame, head + length))
}

fn is_action_cable_ping(frame: &Frame) -> bool {
    frame.opcode == TEXT && frame.payload.starts_with(br#"{"type":"ping""#)
}
