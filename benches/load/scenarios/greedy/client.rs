//! Greedy clients: they connect, send bytes until the server reads no more, and stay.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use super::ways::{Entry, Offer, Reading, STREAM, Way};
use crate::fleet::frame_header;
use crate::peer::Peer;
use crate::websocket::{OPCODE_TEXT, WebSocket, dial, exchange, upgrade_request};

/// Time limit for one client to connect, and for one publication to be accepted.
const PATIENCE: Duration = Duration::from_secs(20);
/// When nothing has moved for this long, the server reads no more.
const QUIET: Duration = Duration::from_secs(1);
/// A client that can still send then could send for ever.
const OFFER_MAX: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(1);
/// How much slow readers read at a time, and how often.
const SLOW_BYTES: usize = 6 * 1024;
const SLOW_EVERY: Duration = Duration::from_millis(500);
const READ_BYTES: usize = 256 * 1024;
/// Confirmations and rejections repeat a long identifier, even when they are compressed; no other answer is this long.
const ANSWER_BYTES_MIN: usize = 1_000;

/// One client that makes the server hold much.
pub struct Greedy {
    /// `None`: the server refused it, or it has left.
    socket: Option<TcpStream>,
    offer: Offer,
    pub sent_bytes: u64,
    /// The piece that is being sent, and how much of it has been sent.
    piece: usize,
    piece_sent: usize,
    /// Answers so far, and the bytes of an incomplete frame.
    answers: usize,
    heard: Vec<u8>,
    /// When a slow reader reads again.
    reads_at: Instant,
}

impl Greedy {
    /// Connects all clients of a way. A refused client stays in the list without a connection.
    pub fn enter_all(peer: &Peer, way: &Way) -> Vec<Self> {
        (0..way.clients)
            .map(|number| {
                let offer = (way.offer)(peer.address, number);
                let socket = enter(peer, &offer).unwrap_or(None);
                Self {
                    socket,
                    offer,
                    sent_bytes: 0,
                    piece: 0,
                    piece_sent: 0,
                    answers: 0,
                    heard: Vec::new(),
                    reads_at: Instant::now(),
                }
            })
            .collect()
    }

    /// Whether the server has kept the connection open.
    pub fn is_open(&self) -> bool {
        let Some(socket) = &self.socket else {
            return false;
        };
        let ends = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut polled = [PollFd::new(socket, ends)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut polled, Some(&now)).expect("a socket can be polled") == 0
    }

    /// Sends what the socket takes now; returns whether it took anything.
    fn send(&mut self) -> bool {
        let Some(socket) = &mut self.socket else {
            return false;
        };
        let Some(piece) = self.offer.pieces.get(self.piece) else {
            return false;
        };
        if matches!(self.offer.reading, Reading::Answers) && self.piece > self.answers {
            return false;
        }
        match socket.write(&piece[self.piece_sent..]) {
            Ok(written) => {
                self.sent_bytes += written as u64;
                self.piece_sent += written;
                if self.piece_sent == piece.len() {
                    (self.piece, self.piece_sent) = (self.piece + 1, 0);
                }
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(_) => {
                self.socket = None;
                false
            }
        }
    }

    /// Reads what is there, in this client's way; returns whether that was anything.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        let Some(socket) = &mut self.socket else {
            return false;
        };
        let most = match self.offer.reading {
            Reading::Never => return false,
            Reading::Answers => buffer.len(),
            Reading::Slowly if Instant::now() < self.reads_at => return false,
            Reading::Slowly => {
                self.reads_at = Instant::now() + SLOW_EVERY;
                SLOW_BYTES
            }
        };
        match socket.read(&mut buffer[..most]) {
            Ok(read) if read > 0 => {
                self.count_answers(&buffer[..read]);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            _ => {
                self.socket = None;
                false
            }
        }
    }

    fn count_answers(&mut self, read: &[u8]) {
        if !matches!(self.offer.reading, Reading::Answers) {
            return;
        }
        self.heard.extend_from_slice(read);
        while let Some((header_bytes, payload_bytes)) = frame_header(&self.heard)
            && self.heard.len() >= header_bytes + payload_bytes
        {
            self.answers += usize::from(payload_bytes >= ANSWER_BYTES_MIN);
            self.heard.drain(..header_bytes + payload_bytes);
        }
    }
}

/// All clients send until the server reads no more, and then stay for `hold`.
pub fn offer(clients: &mut [Greedy], hold: Duration) {
    let mut buffer = vec![0; READ_BYTES];
    let begun = Instant::now();
    let mut last_moved = begun;
    let mut stays_until = None;
    loop {
        let mut moved = false;
        for client in &mut *clients {
            moved |= client.send();
            moved |= client.read(&mut buffer);
        }
        let now = Instant::now();
        if moved {
            last_moved = now;
        }
        if now - last_moved > QUIET || now - begun > OFFER_MAX {
            stays_until.get_or_insert(now + hold);
        }
        if stays_until.is_some_and(|until| now > until) {
            return;
        }
        if !moved {
            thread::sleep(PAUSE);
        }
    }
}

/// Publishes to the stream of greedy subscriptions, `times` messages of `bytes` bytes.
pub fn publish(peer: &Peer, times: usize, bytes: usize) {
    let publish = || -> io::Result<()> {
        let mut stream = dial(peer.broadcast_address, None, PATIENCE)?;
        let body = json!({ "stream": STREAM, "data": json!("a".repeat(bytes)).to_string() });
        let body = body.to_string();
        let request = format!(
            "POST /_broadcast HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
            peer.broadcast_address,
            body.len()
        );
        for _ in 0..times {
            let status = exchange(&mut *stream, request.as_bytes())?;
            assert_eq!(status, 201, "publications are taken");
        }
        Ok(())
    };
    if let Err(error) = publish() {
        eprintln!("a publication failed: {error}");
    }
}

fn enter(peer: &Peer, offer: &Offer) -> io::Result<Option<TcpStream>> {
    let address = match offer.entry {
        Entry::Broadcasts => peer.broadcast_address,
        _ => peer.address,
    };
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let socket = match &offer.entry {
        Entry::Clients | Entry::Broadcasts => socket,
        Entry::Session { compression } => {
            let lines = match compression {
                true => "Sec-WebSocket-Extensions: permessage-deflate\r\n",
                false => "",
            };
            welcomed(socket, &upgrade_request(address, "/cable", lines))?
        }
        Entry::Reset { lines } => {
            let socket = welcomed(socket, &upgrade_request(address, "/cable", lines))?;
            rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
            return Ok(None);
        }
    };
    socket.set_nonblocking(true)?;
    Ok(Some(socket))
}

fn welcomed(socket: TcpStream, request: &str) -> io::Result<TcpStream> {
    let mut session = WebSocket::open(socket, request)?;
    session.wait_for(OPCODE_TEXT, b"welcome")?;
    Ok(session.into_stream())
}
