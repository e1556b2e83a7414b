//! One blocking client: WebSocket over TCP or TLS. For probes and for sessions opened one by one; the many clients of a
//! fleet are in [`crate::fleet`].

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use flate2::{Compress, Compression, FlushCompress};
use memchr::memmem;
use rustls::{ClientConfig, StreamOwned};

use crate::fleet::{client_frame, frame_header};
use crate::tls;

pub const OPCODE_TEXT: u8 = 0x1;
pub const OPCODE_PING: u8 = 0x9;
pub const OPCODE_PONG: u8 = 0xa;
/// The bit in the first byte of a frame that marks it as deflated.
pub const COMPRESSED: u8 = 0x40;
const READ_BYTES: usize = 16 * 1024;

/// A connection to a server, encrypted or not.
pub trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// Connects; later reads wait at most `patience`.
pub fn dial(
    address: SocketAddrV4,
    tls: Option<&Arc<ClientConfig>>,
    patience: Duration,
) -> io::Result<Box<dyn Stream>> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(match tls {
        None => Box::new(socket),
        Some(config) => Box::new(StreamOwned::new(tls::connection(config), socket)),
    })
}

/// The upgrade request. `lines` are additional header lines, each with its CRLF.
pub fn upgrade_request(address: SocketAddrV4, target: &str, lines: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: actioncable-v1-json\r\nOrigin: http://{address}\r\n{lines}\r\n"
    )
}

/// The text of a command that has only an identifier.
pub fn command(command: &str, identifier: &str) -> String {
    serde_json::json!({ "command": command, "identifier": identifier }).to_string()
}

/// Deflates as permessage-deflate requires: raw, ended by a flush without its last four bytes.
pub fn deflated(message: &[u8], level: Compression) -> Vec<u8> {
    let mut compressed = Vec::with_capacity(message.len() / 100 + 1_000);
    Compress::new(level, false)
        .compress_vec(message, &mut compressed, FlushCompress::Sync)
        .expect("there is room");
    assert!(compressed.ends_with(&[0, 0, 0xff, 0xff]), "it was flushed");
    compressed.truncate(compressed.len() - 4);
    compressed
}

/// An upgraded connection.
pub struct WebSocket<S> {
    stream: S,
    /// Bytes that were read but not used yet.
    buffer: Vec<u8>,
}

impl<S: Read + Write> WebSocket<S> {
    /// Sends the request and waits for the 101.
    ///
    /// # Errors
    /// Also when the answer is not 101.
    pub fn open(mut stream: S, request: &str) -> io::Result<Self> {
        stream.write_all(request.as_bytes())?;
        let mut socket = Self {
            stream,
            buffer: Vec::new(),
        };
        loop {
            if let Some(at) = memmem::find(&socket.buffer, b"\r\n\r\n") {
                if !socket.buffer.starts_with(b"HTTP/1.1 101") {
                    let answer = String::from_utf8_lossy(&socket.buffer[..at]).into_owned();
                    return Err(io::Error::other(answer));
                }
                socket.buffer.drain(..at + 4);
                return Ok(socket);
            }
            socket.fill()?;
        }
    }

    fn fill(&mut self) -> io::Result<()> {
        let filled = self.buffer.len();
        self.buffer.resize(filled + READ_BYTES, 0);
        let read = self.stream.read(&mut self.buffer[filled..]);
        self.buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
        match read? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    pub fn send(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = Vec::new();
        client_frame(opcode, payload, &mut frame);
        self.send_raw(&frame)
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next frame: its opcode and its payload. A timeout loses no bytes: the call can be repeated.
    pub fn frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        loop {
            if let Some((header_bytes, payload_bytes)) = frame_header(&self.buffer)
                && self.buffer.len() >= header_bytes + payload_bytes
            {
                let opcode = self.buffer[0] & 0x0f;
                let payload = self.buffer[header_bytes..header_bytes + payload_bytes].to_vec();
                self.buffer.drain(..header_bytes + payload_bytes);
                return Ok((opcode, payload));
            }
            self.fill()?;
        }
    }

    /// Waits for a frame of this kind that contains this text.
    pub fn wait_for(&mut self, opcode: u8, text: &[u8]) -> io::Result<()> {
        loop {
            let (found, payload) = self.frame()?;
            if found == opcode && memmem::find(&payload, text).is_some() {
                return Ok(());
            }
        }
    }

    /// Returns the stream. Bytes that were read but not used are lost.
    pub fn into_stream(self) -> S {
        self.stream
    }
}

/// Sends a request and waits for the whole answer; returns its status. The answer must have a `Content-Length`.
pub fn exchange(stream: &mut dyn Stream, request: &[u8]) -> io::Result<u16> {
    stream.write_all(request)?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut chunk)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&chunk[..read]),
        }
        if let Some(status) = whole_answer(&answer)? {
            return Ok(status);
        }
    }
}

/// The status of the answer, once all of it is there.
fn whole_answer(answer: &[u8]) -> io::Result<Option<u16>> {
    let Some(head_end) = memmem::find(answer, b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&answer[..head_end]).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(Ok(0), |length| length.trim().parse::<usize>());
    let status = head.split(' ').nth(1).map(str::parse);
    match (status, length) {
        (Some(Ok(status)), Ok(length)) => {
            Ok((answer.len() >= head_end + 4 + length).then_some(status))
        }
        _ => Err(io::Error::other(head)),
    }
}
