//! Server-sent events beside WebSocket: memory of an idle client, deliveries per second, CPU per delivery.
//!
//! Both kinds of clients are read by the same loop, which counts bytes only, so a difference is the server's.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fd::OwnedFd;

use crate::fleet::{Mark, client_frame};
use crate::limit::identifier;
use crate::options::Options;
use crate::peer::Peer;
use crate::publisher::{Outlet, Publisher, stream_name};
use crate::report::Report;
use crate::sys::monotonic_nanos;
use crate::target::{Target, public_flags};
use crate::websocket::{OPCODE_TEXT, command, upgrade_request};

const CLIENTS: usize = 5_000;
/// Clients that connect and leave before the baseline, so that it includes what a server allocates once.
const WARM_UP: usize = 200;
const SECONDS: u64 = 5;
const PAYLOAD_BYTES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;
const STREAM: u32 = 0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    WebSocket,
    Events,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "WebSocket",
            Self::Events => "server-sent events",
        }
    }

    /// All that a client sends, and how the last of what it then gets ends.
    fn opening(self, address: SocketAddrV4) -> (Vec<u8>, &'static [u8]) {
        match self {
            Self::WebSocket => {
                let mut bytes = upgrade_request(address, "/cable", "").into_bytes();
                let subscribe = command("subscribe", &identifier(STREAM));
                client_frame(OPCODE_TEXT, subscribe.as_bytes(), &mut bytes);
                (bytes, b"\"}")
            }
            Self::Events => {
                let stream = stream_name(STREAM);
                let request =
                    format!("GET /events?stream={stream} HTTP/1.1\r\nHost: {address}\r\n\r\n");
                (request.into_bytes(), b"\"}\n\n\r\n")
            }
        }
    }
}

pub fn run(options: &Options) {
    let mut report = Report::new("sse", &options.shown);
    for run in 0..options.runs {
        for target in options.targets() {
            eprintln!("sse: run {} of {}, {}", run + 1, options.runs, target.name);
            measure(options, target, &mut report);
        }
    }
    report.finish();
}

/// What one way costs.
struct Costs {
    memory: f64,
    per_second: f64,
    cpu: f64,
}

/// Both ways, each with a server of its own, in turns.
fn measure(options: &Options, mut target: Target, report: &mut Report) {
    // Memory is given back at once, so that only what is held counts.
    target
        .environment
        .push(("MIMALLOC_PURGE_DELAY", "0".to_owned()));
    let [websocket, events] = [Way::WebSocket, Way::Events].map(|way| {
        let costs = measure_way(options, &target, way, report);
        let mut say = |metric: &str, unit: &str, value: f64| {
            report.sample(target.name, way.name(), metric, unit, value)
        };
        say("user bytes per connection", "B", costs.memory);
        say("deliveries/s", "1/s", costs.per_second);
        say("server CPU per delivery", "µs", costs.cpu);
        costs
    });
    let mut say = |metric: &str, value: f64| {
        report.sample(target.name, Way::Events.name(), metric, "ratio", value)
    };
    say(
        "user bytes per connection, of WebSocket",
        events.memory / websocket.memory,
    );
    say(
        "deliveries/s, of WebSocket",
        events.per_second / websocket.per_second,
    );
    say(
        "server CPU per delivery, of WebSocket",
        events.cpu / websocket.cpu,
    );
}

fn measure_way(options: &Options, target: &Target, way: Way, report: &mut Report) -> Costs {
    let mut flags = public_flags();
    flags.extend(["--sse", "--ping_interval=3600"].map(str::to_owned));
    let peer = Peer::start(target, &flags, None);
    report.server(target.name, &peer.flags);
    drop(Readers::open(&peer, way, WARM_UP));
    let before = peer.settled_memory().private_bytes;
    let clients = options.clients.unwrap_or(CLIENTS);
    let mut readers = Readers::open(&peer, way, clients);
    let held = peer.settled_memory().private_bytes as f64 - before as f64;
    let mut publisher = Publisher::new(peer.broadcast_address);
    let payload_bytes = options.payload_bytes.unwrap_or(PAYLOAD_BYTES);
    let mut publish = |sequence| {
        let mark = Mark {
            stream: STREAM,
            sequence,
            nanos: monotonic_nanos(),
            bytes: payload_bytes as u32,
        };
        publisher.publish(std::slice::from_ref(&mark));
    };
    publish(0);
    let frame_bytes = readers.frame_bytes();
    let (cpu, begun) = (peer.cpu(), Instant::now());
    let mut published = 0;
    while begun.elapsed() < Duration::from_secs(options.seconds.unwrap_or(SECONDS)) {
        published += 1;
        publish(published);
        readers.wait(frame_bytes * clients as u64);
    }
    let elapsed = begun.elapsed().as_secs_f64();
    let deliveries = f64::from(published) * clients as f64;
    let used = peer.cpu().since(cpu).total().as_secs_f64();
    Costs {
        memory: held / clients as f64,
        per_second: deliveries / elapsed,
        cpu: used * 1e6 / deliveries,
    }
}

/// Clients of one way. What they get is counted and thrown away.
struct Readers {
    epoll: OwnedFd,
    sockets: Vec<TcpStream>,
    buffer: Vec<u8>,
}

impl Readers {
    /// Opens clients that all listen to one stream.
    fn open(peer: &Peer, way: Way, count: usize) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
        let (request, end) = way.opening(peer.address);
        let sockets: Vec<TcpStream> = (0..count).map(|_| opened(peer, &request, end)).collect();
        for (at, socket) in sockets.iter().enumerate() {
            socket.set_nonblocking(true).expect("an option of sockets");
            let key = epoll::EventData::new_u64(at as u64);
            epoll::add(&epoll, socket, key, epoll::EventFlags::IN).expect("a socket is watched");
        }
        Self {
            epoll,
            sockets,
            buffer: vec![0; READ_BYTES],
        }
    }

    /// The bytes of one delivery, from the first client; waits until all have got it.
    fn frame_bytes(&mut self) -> u64 {
        let mut first = [0; READ_BYTES];
        let socket = &self.sockets[0];
        socket.set_nonblocking(false).expect("an option of sockets");
        let bytes = (&*socket).read(&mut first).expect("a delivery");
        socket.set_nonblocking(true).expect("an option of sockets");
        let others = self.sockets.len() as u64 - 1;
        self.wait(bytes as u64 * others);
        bytes as u64
    }

    /// Reads until so many bytes have come.
    ///
    /// # Panics
    /// When they do not come in time, or more come.
    fn wait(&mut self, bytes: u64) {
        let deadline = Instant::now() + PATIENCE;
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        let mut left = bytes;
        while left > 0 {
            assert!(Instant::now() < deadline, "{left} bytes do not come");
            let room = rustix::buffer::spare_capacity(&mut events);
            let second = rustix::event::Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            let _ = epoll::wait(&self.epoll, room, Some(&second));
            for event in events.drain(..) {
                let mut socket = &self.sockets[event.data.u64() as usize];
                let read = socket.read(&mut self.buffer).expect("an open connection");
                assert!(read > 0, "the server has closed a connection");
                left = left
                    .checked_sub(read as u64)
                    .expect("no more bytes than were sent");
            }
        }
    }
}

/// A client whose subscription is confirmed.
fn opened(peer: &Peer, request: &[u8], end: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(peer.address).expect("the server accepts");
    socket.set_nodelay(true).expect("an option of sockets");
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("an option of sockets");
    socket.write_all(request).expect("the server reads");
    let mut answer = Vec::new();
    let confirmed = |answer: &[u8]| {
        answer.ends_with(end) && memchr::memmem::find(answer, b"confirm_subscription").is_some()
    };
    while !confirmed(&answer) {
        let mut part = [0; 4096];
        let bytes = socket.read(&mut part).expect("an answer");
        assert!(bytes > 0, "refused: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..bytes]);
    }
    socket
}
