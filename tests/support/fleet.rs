//! Thousands of clients in one thread: non-blocking sockets under one epoll, no allocation per message.
//!
//! Every byte of every delivery is compared with what must come, in the order in which it must come.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use super::raw::{TEXT, frame, handshake};

/// Bytes of one read, enough for several large messages.
const READ_BYTES: usize = 256 * 1024;

/// Events of one look at the sockets.
const EVENTS_MAX: usize = 1024;

/// Clients that may be between their connect and their last confirmation.
const JOINING_MAX: usize = 400;

/// Longest message that is collected before it is understood. Larger ones are compared as they arrive.
const SMALL_BYTES_MAX: usize = 2048;

/// No progress of any kind for this long ends the test.
const STALL_MAX: Duration = Duration::from_secs(60);

/// Lets this process open as many files as the system allows; gives that number.
pub fn raise_open_files() -> u64 {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may be raised to the hard one");
    limits.maximum.unwrap_or(u64::MAX)
}

/// One line of messages that every client must get completely and in order.
pub struct Expected {
    /// Payloads in the order of publication.
    pub payloads: Vec<Vec<u8>>,
}

impl Expected {
    /// `{"identifier":"…","message":<data>}` for each data.
    pub fn new(identifier: &str, data: impl IntoIterator<Item = String>) -> Self {
        let identifier = json!(identifier);
        let payload = |data: String| {
            format!(r#"{{"identifier":{identifier},"message":{data}}}"#).into_bytes()
        };
        Self {
            payloads: data.into_iter().map(payload).collect(),
        }
    }
}

/// All clients, their common expectations and what is still missing.
pub struct Fleet {
    epoll: OwnedFd,
    address: SocketAddr,
    wanted: usize,
    /// Six subscribes in one write, as k6 sends them.
    subscribes: Vec<u8>,
    confirmations: HashMap<Vec<u8>, u32>,
    lines: Vec<Expected>,
    clients: Vec<Client>,
    joined: usize,
    /// `received[line][n]`: how many clients have message `n` of that line.
    received: Vec<Vec<usize>>,
    pub pings: usize,
    buffer: Vec<u8>,
}

struct Client {
    stream: TcpStream,
    upgraded: bool,
    welcomed: bool,
    /// One bit per confirmed subscription.
    confirmed: u32,
    /// Next message of each line.
    next: Vec<usize>,
    /// Bytes of an incomplete head, frame header or small payload.
    partial: Vec<u8>,
    /// A large payload under comparison: its line and how much of it has come.
    large: Option<(usize, usize)>,
}

impl Fleet {
    pub fn new(
        address: SocketAddr,
        wanted: usize,
        identifiers: &[String],
        lines: Vec<Expected>,
    ) -> Self {
        let subscribe = |identifier: &String| {
            json!({ "command": "subscribe", "identifier": identifier }).to_string()
        };
        let confirmation =
            |identifier: &String| super::rails::confirmation(identifier).into_bytes();
        Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll"),
            address,
            wanted,
            subscribes: identifiers
                .iter()
                .flat_map(|it| frame(TEXT, subscribe(it).as_bytes()))
                .collect(),
            confirmations: identifiers
                .iter()
                .enumerate()
                .map(|(bit, it)| (confirmation(it), 1 << bit))
                .collect(),
            received: lines
                .iter()
                .map(|line| vec![0; line.payloads.len()])
                .collect(),
            lines,
            clients: Vec::with_capacity(wanted),
            joined: 0,
            pings: 0,
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Connects everybody and waits until each subscription of each client is confirmed.
    pub fn join(&mut self) {
        self.run_until("every subscription to be confirmed", |fleet| {
            while fleet.clients.len() < fleet.wanted
                && fleet.clients.len() - fleet.joined < JOINING_MAX
            {
                fleet.connect();
            }
            fleet.joined == fleet.wanted
        });
    }

    /// Waits until every client has message `number` of every line.
    pub fn receive(&mut self, number: usize) {
        self.run_until("every client to get a message", |fleet| {
            fleet
                .received
                .iter()
                .all(|line| line[number] == fleet.wanted)
        });
    }

    /// Handles what is there and looks again until `done`.
    fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut progress = Instant::now();
        while !done(self) {
            events.clear();
            let timeout = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 100_000_000,
            };
            let found = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            );
            found.expect("the epoll is ours");
            if !events.is_empty() {
                progress = Instant::now();
            }
            let stalled = progress.elapsed() > STALL_MAX;
            assert!(
                !stalled,
                "waited in vain for {what}: {} joined of {}",
                self.joined, self.wanted
            );
            for event in &events {
                self.read(usize::try_from(event.data.u64()).expect("an index"));
            }
        }
    }

    fn connect(&mut self) {
        let mut stream = TcpStream::connect(self.address).expect("the server accepts");
        stream
            .write_all(handshake("/cable", &["Origin: http://localhost"]).as_bytes())
            .expect("an open connection");
        stream
            .set_nonblocking(true)
            .expect("an option of every socket");
        let data = epoll::EventData::new_u64(self.clients.len() as u64);
        epoll::add(&self.epoll, &stream, data, epoll::EventFlags::IN).expect("room for a socket");
        self.clients.push(Client {
            stream,
            upgraded: false,
            welcomed: false,
            confirmed: 0,
            next: vec![0; self.lines.len()],
            partial: Vec::new(),
            large: None,
        });
    }

    /// One read of one client; what is left keeps the socket readable.
    fn read(&mut self, index: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        match self.clients[index].stream.read(&mut buffer) {
            Ok(0) => panic!("the server closed client {index} of {}", self.clients.len()),
            Ok(count) => self.consume(index, &buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("client {index}: {error}"),
        }
        self.buffer = buffer;
    }

    fn consume(&mut self, index: usize, read: &[u8]) {
        // What was left over last time goes in front; it is small.
        let mut joined = std::mem::take(&mut self.clients[index].partial);
        let mut input = read;
        if !joined.is_empty() {
            joined.extend_from_slice(read);
            input = &joined;
        }
        while !input.is_empty() {
            let used = if !self.clients[index].upgraded {
                self.upgrade(index, input)
            } else if self.clients[index].large.is_some() {
                self.compare(index, input)
            } else {
                self.frame(index, input)
            };
            if used == 0 {
                self.clients[index].partial = input.to_vec();
                return;
            }
            input = &input[used..];
        }
    }

    /// The head of the 101; then the subscribes go out without waiting for the welcome.
    fn upgrade(&mut self, index: usize, input: &[u8]) -> usize {
        let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
            return 0;
        };
        assert!(
            input.starts_with(b"HTTP/1.1 101 "),
            "{}",
            String::from_utf8_lossy(&input[..end])
        );
        let client = &mut self.clients[index];
        client.upgraded = true;
        client
            .stream
            .write_all(&self.subscribes)
            .expect("room for six small frames");
        end + 4
    }

    /// A frame header and, for small frames, its payload. 0 = more bytes, please.
    fn frame(&mut self, index: usize, input: &[u8]) -> usize {
        let Some((length, header)) = header(input) else {
            return 0;
        };
        assert_eq!(
            input[0],
            0x80 | TEXT,
            "client {index}: frame {:02x?}",
            &input[..header]
        );
        if length > SMALL_BYTES_MAX {
            let next = |line: usize| {
                self.lines[line]
                    .payloads
                    .get(self.clients[index].next[line])
            };
            let fits = |line: &usize| next(*line).is_some_and(|payload| payload.len() == length);
            let line = (0..self.lines.len()).find(fits);
            let line =
                line.unwrap_or_else(|| panic!("client {index}: nobody expects {length} bytes"));
            self.clients[index].large = Some((line, 0));
            return header;
        }
        let Some(payload) = input.get(header..header + length) else {
            return 0;
        };
        self.small(index, payload);
        header + length
    }

    /// As much of a large payload as is there, compared with what it must be.
    fn compare(&mut self, index: usize, input: &[u8]) -> usize {
        let (line, done) = self.clients[index]
            .large
            .expect("asked only inside a large payload");
        let number = self.clients[index].next[line];
        let rest = &self.lines[line].payloads[number][done..];
        let used = rest.len().min(input.len());
        assert!(
            rest[..used] == input[..used],
            "client {index}: message {number} of line {line} differs"
        );
        if used == rest.len() {
            self.clients[index].large = None;
            self.delivered(index, line);
        } else {
            self.clients[index].large = Some((line, done + used));
        }
        used
    }

    fn small(&mut self, index: usize, payload: &[u8]) {
        let client = &mut self.clients[index];
        if payload.starts_with(br#"{"type":"ping""#) {
            self.pings += 1;
        } else if payload == br#"{"type":"welcome"}"# {
            assert!(!client.welcomed, "client {index}: welcomed twice");
            client.welcomed = true;
        } else if let Some(bit) = self.confirmations.get(payload) {
            assert!(
                client.welcomed && client.confirmed & bit == 0,
                "client {index}: an unexpected confirmation"
            );
            client.confirmed |= bit;
            self.joined +=
                usize::from(client.confirmed.count_ones() as usize == self.confirmations.len());
        } else {
            let expected = |line: &usize| {
                let next = self.lines[*line].payloads.get(client.next[*line]);
                next.is_some_and(|expected| expected == payload)
            };
            let line = (0..self.lines.len()).find(expected);
            let line = line
                .unwrap_or_else(|| panic!("client {index}: {}", String::from_utf8_lossy(payload)));
            self.delivered(index, line);
        }
    }

    fn delivered(&mut self, index: usize, line: usize) {
        let number = &mut self.clients[index].next[line];
        self.received[line][*number] += 1;
        *number += 1;
    }
}

/// Payload length and header length of an unmasked frame.
fn header(input: &[u8]) -> Option<(usize, usize)> {
    match input.get(1)? {
        126 => Some((
            usize::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?)),
            4,
        )),
        127 => Some((
            u64::from_be_bytes(input.get(2..10)?.try_into().ok()?) as usize,
            10,
        )),
        short => Some((usize::from(*short), 2)),
    }
}
