//! Whole turns of a shard's session table over real sockets: fan-out, and a command with its reply.
//!
//! The kernel's part of a delivery is in the times but not in the instruction counts, because callgrind sees only user
//! space.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use ringcable::config::{self, Config, Startup};
use ringcable::hub::Interest;
use ringcable::mesh::{ProcessBudget, ShardBudget};
use ringcable::metrics::Metrics;
use ringcable::protocol::publication::{Broadcast, Publication, decode_broadcast};
use ringcable::reactor::Reactor;
use ringcable::session::Admission;
use ringcable::shard::message::ShardMesh;
use ringcable::shard::sessions::{NewConnection, Sessions, TimeSlice, Transport};

use super::{Step, steps};

/// Sessions on the shard: few enough for a soft limit of 1,024 open files.
const CLIENTS: usize = 200;
/// Publications that reach the shard in one turn.
const BURST: usize = 16;
/// How long an event may take to arrive.
const PATIENCE: Duration = Duration::from_secs(10);

/// The frame has a mask of zeroes.
const PING_COMMAND: &[u8] = b"\x81\x92\0\0\0\0{\"command\":\"ping\"}";

pub fn fan_out_uring() -> Step {
    fan_out(uring(), 1)
}

pub fn fan_out_epoll() -> Step {
    fan_out(epoll(), 1)
}

pub fn burst_uring() -> Step {
    fan_out(uring(), BURST)
}

pub fn ping_uring() -> Step {
    ping(uring())
}

pub fn ping_epoll() -> Step {
    ping(epoll())
}

fn uring() -> Reactor {
    Reactor::uring().expect("io_uring on a machine that measures")
}

fn epoll() -> Reactor {
    Reactor::epoll().expect("epoll")
}

/// One turn that delivers `messages` publications of 200 B to every client.
fn fan_out(reactor: Reactor, messages: usize) -> Step {
    let mut shard = Shard::new(reactor);
    shard.subscribe_all();
    let publication: Arc<[Publication]> = [publication(&"x".repeat(200))].into();
    let shard = Rc::new(RefCell::new(shard));
    let clients = Rc::clone(&shard);
    Step::new(move || {
        shard.borrow_mut().turn(|sessions| {
            for _ in 0..messages {
                sessions.fan_out(Arc::clone(&publication), 0);
                sessions.go_on_fan_out(TimeSlice::new(PATIENCE));
            }
        });
    })
    .restored_by(move || clients.borrow_mut().receive(messages))
    .per((CLIENTS * messages) as u32)
}

/// Reads a command of every client and replies.
fn ping(reactor: Reactor) -> Step {
    let shard = Rc::new(RefCell::new(Shard::new(reactor)));
    shard.borrow_mut().write(PING_COMMAND);
    let clients = Rc::clone(&shard);
    // This is one turn, because the kernel delivers on the loopback device at once.
    Step::new(move || shard.borrow_mut().serve(CLIENTS))
        .restored_by(move || {
            let mut clients = clients.borrow_mut();
            clients.receive(1);
            clients.write(PING_COMMAND);
        })
        .per(CLIENTS as u32)
}

fn publication(text: &str) -> Publication {
    match decode_broadcast(&steps::broadcast_body(text)) {
        Ok(Broadcast::Publications(mut publications)) => publications.remove(0),
        other => unreachable!("the body is a publication: {other:?}"),
    }
}

/// The session table of one shard, with clients that need no authentication.
struct Shard {
    sessions: Sessions,
    metrics: Arc<Metrics>,
    now: Instant,
    clients: Vec<TcpStream>,
}

impl Shard {
    fn new(reactor: Reactor) -> Self {
        let metrics = Arc::new(Metrics::new(1));
        let now = Instant::now();
        // Fixed seeds give the same collisions in every run.
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let config = Arc::new(config());
        let budget = ShardBudget::new(ProcessBudget::new(None, 1), Arc::clone(&metrics), 0);
        let inbox = Rc::new(ShardMesh::new(1).1.remove(0));
        let interest = Arc::new(Interest::new(1, hasher));
        let sessions = Sessions::new(0, config, budget, interest, reactor, inbox, now);
        let mut shard = Self {
            sessions,
            metrics,
            now,
            clients: Vec::new(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        for number in 0..CLIENTS {
            shard.connect(&listener, number);
        }
        shard.receive(1); // the welcome
        shard
    }

    fn connect(&mut self, listener: &TcpListener, number: usize) {
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connect");
        let (socket, _) = listener.accept().expect("accept");
        for socket in [&client, &socket] {
            socket.set_nodelay(true).expect("nodelay");
        }
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.set_nonblocking(true).expect("nonblocking");
        let new = NewConnection {
            socket: Some(socket),
            tls: None,
            admission: Admission {
                sid: format!("s{number}"),
                env: r#""url":"u""#.into(),
                ..Admission::default()
            },
            transport: Transport::WebSocket {
                extended: false,
                deflate: false,
            },
            early_input: Vec::new(),
            permit: None,
        };
        self.turn(|sessions| sessions.open(new));
        self.clients.push(client);
    }

    /// One turn, and the further turns in which the shard continues to write.
    fn turn<R>(&mut self, change: impl FnOnce(&mut Sessions) -> R) -> R {
        // The clients need no authentication, so there are no actions to perform.
        let result = self.sessions.turn(self.now, change, drop);
        while self.sessions.has_unflushed() {
            self.sessions.turn(self.now, |_| (), drop);
        }
        result
    }

    /// Serves events until the sessions have written `frames` more.
    fn serve(&mut self, frames: usize) {
        let end = self.written() + frames as u64;
        let deadline = Instant::now() + PATIENCE;
        while self.written() < end {
            self.turn(Sessions::harvest).expect("a healthy reactor");
            assert!(Instant::now() < deadline, "the sessions do not reply");
        }
    }

    fn written(&self) -> u64 {
        self.metrics.shards[0].server_msg_total.value()
    }

    fn subscribe_all(&mut self) {
        let identifier = r#"{\"channel\":\"$pubsub\",\"stream_name\":\"room:1\"}"#;
        let command = format!(r#"{{"command":"subscribe","identifier":"{identifier}"}}"#);
        let header = [0x81, 0x80 | command.len() as u8, 0, 0, 0, 0];
        self.write(&[&header, command.as_bytes()].concat());
        self.serve(CLIENTS);
        self.receive(1);
    }

    /// Every client sends `bytes`.
    fn write(&mut self, bytes: &[u8]) {
        for client in &mut self.clients {
            client.write_all(bytes).expect("room in an idle socket");
        }
    }

    /// Every client reads `frames` frames.
    fn receive(&mut self, frames: usize) {
        for client in &mut self.clients {
            for _ in 0..frames {
                receive_frame(client);
            }
        }
    }
}

/// Reads one frame of less than 64 KiB. Source: RFC 6455 §5.2.
fn receive_frame(client: &mut TcpStream) {
    let mut bytes = [0; 1 << 16];
    let mut read = |bytes: &mut [u8]| client.read_exact(bytes).expect("a frame");
    read(&mut bytes[..2]);
    let payload_bytes = match bytes[1] {
        126 => {
            read(&mut bytes[2..4]);
            usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))
        }
        short => usize::from(short),
    };
    read(&mut bytes[..payload_bytes]);
}

fn config() -> Config {
    let args = ["--norpc", "--public", "--ping_interval=0"].map(String::from);
    match config::load(&args, &[]) {
        Ok(Startup::Run(config)) => *config,
        other => unreachable!("{args:?} starts the server: {other:?}"),
    }
}
