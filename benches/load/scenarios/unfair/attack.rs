//! The attackers: one thread that always keeps their sockets filled.
//!
//! The thread has a lower priority than the probes, because both share the CPUs that the server does not have. So the probes
//! see how the server orders its work, and not how the scheduler does.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustls::{ClientConnection, StreamOwned};

use super::Scene;
use super::floods::{Entry, Part};
use crate::websocket::{OPCODE_TEXT, WebSocket, command, upgrade_request};
use crate::{sys, tls};

/// Niceness of the attackers, relative to the probes.
pub const NICENESS: i32 = 10;
/// An attacker whose connection was ended reconnects after this time.
const BACK_AFTER: Duration = Duration::from_millis(100);
/// How long one attacker may take to connect.
const PATIENCE: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 256 * 1024;
/// Reads and writes of one attacker before it is the next one's turn.
const TRIES_PER_TURN: usize = 4;
/// Encrypted records that may wait for the socket.
const RECORDS_AHEAD: usize = 2_000;
const EVENTS_MAX: usize = 128;
/// How often the thread checks whether the attack is over.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the attackers have done so far.
#[derive(Default)]
pub struct Tally {
    sent_bytes: AtomicU64,
    /// In thousandths of a message, because a write may end anywhere in a message.
    millimessages: AtomicU64,
    thrown_out: AtomicU64,
}

/// [`Tally`] at one moment.
#[derive(Clone, Copy, Default)]
pub struct Done {
    pub sent_bytes: f64,
    pub messages: f64,
    pub thrown_out: f64,
}

impl Done {
    pub fn since(self, earlier: Self) -> Self {
        Self {
            sent_bytes: self.sent_bytes - earlier.sent_bytes,
            messages: self.messages - earlier.messages,
            thrown_out: self.thrown_out - earlier.thrown_out,
        }
    }
}

/// A running attack; dropping it stops it.
pub struct Attack {
    tally: Arc<Tally>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Attack {
    /// Connects all attackers, then begins.
    ///
    /// # Panics
    /// When the server does not accept them, because then nothing can be measured.
    pub fn start(scene: &Scene, parts: Vec<Part>) -> Self {
        let (tally, stopping) = (Arc::<Tally>::default(), Arc::<AtomicBool>::default());
        let (ready, wait) = mpsc::channel();
        let (scene, counted, stop) = (scene.clone(), Arc::clone(&tally), Arc::clone(&stopping));
        let thread = thread::spawn(move || {
            sys::pin(&scene.cpus).expect("the CPUs exist");
            rustix::process::nice(NICENESS).expect("everybody may be nicer");
            let mut crowd = Crowd::enter(scene, parts, counted).expect("attackers get in");
            let _ = ready.send(());
            while !stop.load(Relaxed) {
                crowd.turn();
            }
        });
        // An error means that the thread has ended; it has already printed why.
        wait.recv().expect("the attack begins");
        Self {
            tally,
            stopping,
            thread: Some(thread),
        }
    }

    pub fn done(&self) -> Done {
        Done {
            sent_bytes: self.tally.sent_bytes.load(Relaxed) as f64,
            messages: self.tally.millimessages.load(Relaxed) as f64 / 1e3,
            thrown_out: self.tally.thrown_out.load(Relaxed) as f64,
        }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.stopping.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Attacker {
    part: Part,
    socket: Option<TcpStream>,
    /// Present with [`Entry::OneByteRecords`].
    tls: Option<Box<ClientConnection>>,
    /// Records that the socket has not taken yet.
    records: Vec<u8>,
    /// The bytes to send first after a reconnect.
    hello: Vec<u8>,
    /// The position in the block.
    offset: usize,
}

struct Crowd {
    scene: Scene,
    attackers: Vec<Attacker>,
    /// Attackers without a connection, and when each reconnects.
    outside: VecDeque<(Instant, usize)>,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
    tally: Arc<Tally>,
}

impl Crowd {
    fn enter(scene: Scene, parts: Vec<Part>, tally: Arc<Tally>) -> io::Result<Self> {
        let mut crowd = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
            buffer: vec![0; READ_BYTES],
            outside: VecDeque::new(),
            attackers: Vec::new(),
            scene,
            tally,
        };
        for part in parts {
            let (socket, tls) = enter(&crowd.scene, &part.entry)?;
            crowd.attackers.push(Attacker {
                part,
                socket: None,
                tls,
                records: Vec::new(),
                hello: Vec::new(),
                offset: 0,
            });
            crowd.take_in(crowd.attackers.len() - 1, socket)?;
        }
        Ok(crowd)
    }

    /// Adds a socket to the watched ones.
    fn take_in(&mut self, index: usize, socket: TcpStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let key = epoll::EventData::new_u64(index as u64);
        epoll::add(&self.epoll, &socket, key, self.attackers[index].wants())?;
        self.attackers[index].socket = Some(socket);
        Ok(())
    }

    fn turn(&mut self) {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK_EVERY.subsec_nanos().into(),
        };
        let mut events = std::mem::take(&mut self.events);
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&timeout),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("epoll: {error}"),
        }
        for event in events.drain(..) {
            let index = event.data.u64() as usize;
            if self.serve(index, event.flags).is_err() {
                self.thrown_out(index);
            }
        }
        self.events = events;
        self.come_back();
    }

    /// An error means that the connection has ended.
    fn serve(&mut self, index: usize, flags: epoll::EventFlags) -> io::Result<()> {
        let attacker = &mut self.attackers[index];
        if flags.contains(epoll::EventFlags::IN) {
            attacker.throw_away(&mut self.buffer)?;
        }
        if flags
            .intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR)
        {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if flags.contains(epoll::EventFlags::OUT) {
            let sent = attacker.send()?;
            let wants = attacker.wants();
            if !wants.contains(epoll::EventFlags::OUT)
                && let Some(socket) = &attacker.socket
            {
                let key = epoll::EventData::new_u64(index as u64);
                epoll::modify(&self.epoll, socket, key, wants)?;
            }
            self.tally.sent_bytes.fetch_add(sent.bytes, Relaxed);
            let each = attacker.part.messages as f64 / attacker.part.block.len().max(1) as f64;
            let messages = sent.of_block as f64 * each * 1e3;
            self.tally.millimessages.fetch_add(messages as u64, Relaxed);
        }
        Ok(())
    }

    fn thrown_out(&mut self, index: usize) {
        self.attackers[index].socket = None;
        self.tally.thrown_out.fetch_add(1, Relaxed);
        self.outside.push_back((Instant::now() + BACK_AFTER, index));
    }

    /// Attackers with TLS do not reconnect, because their handshake would delay the others.
    fn come_back(&mut self) {
        while let Some((due, index)) = self.outside.front().copied() {
            if due > Instant::now() {
                return;
            }
            self.outside.pop_front();
            if self.attackers[index].tls.is_some() {
                continue;
            }
            let hello = hello(&self.scene, &self.attackers[index].part.entry);
            self.attackers[index].hello = hello;
            self.attackers[index].offset = 0;
            // The kernel accepts the connection, so this does not wait for the server.
            let socket = TcpStream::connect(self.attackers[index].part.entry.address(&self.scene));
            if socket
                .and_then(|socket| self.take_in(index, socket))
                .is_err()
            {
                self.outside.push_back((Instant::now() + BACK_AFTER, index));
            }
        }
    }
}

/// What one turn of an attacker sent.
#[derive(Default)]
struct Sent {
    bytes: u64,
    /// The part of its block that it has sent.
    of_block: u64,
}

impl Attacker {
    /// The events to watch for.
    fn wants(&self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::RDHUP;
        let sends = !self.hello.is_empty() || !self.part.block.is_empty();
        flags.set(epoll::EventFlags::IN, self.part.reads);
        flags.set(epoll::EventFlags::OUT, sends);
        flags
    }

    fn throw_away(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let Some(socket) = &mut self.socket else {
            return Ok(());
        };
        for _ in 0..TRIES_PER_TURN {
            match socket.read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) if read < buffer.len() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends until the socket is full or the turn is over.
    fn send(&mut self) -> io::Result<Sent> {
        let mut sent = Sent::default();
        for _ in 0..TRIES_PER_TURN {
            match self.send_once(&mut sent) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    fn send_once(&mut self, sent: &mut Sent) -> io::Result<()> {
        let Some(socket) = &mut self.socket else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        let block = &self.part.block;
        if self.hello.is_empty() && block.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let written = if !self.hello.is_empty() {
            let written = socket.write(&self.hello)?;
            self.hello.drain(..written);
            written
        } else if let Some(connection) = &mut self.tls {
            if self.records.is_empty() {
                for _ in 0..RECORDS_AHEAD {
                    tls::seal(connection, &[block[self.offset]], &mut self.records);
                    self.offset = (self.offset + 1) % block.len();
                    sent.of_block += 1;
                }
            }
            let written = socket.write(&self.records)?;
            self.records.drain(..written);
            written
        } else {
            let written = socket.write(&block[self.offset..])?;
            self.offset = (self.offset + written) % block.len();
            sent.of_block += written as u64;
            written
        };
        sent.bytes += written as u64;
        Ok(())
    }
}

impl Entry {
    fn address(&self, scene: &Scene) -> std::net::SocketAddrV4 {
        match self {
            Self::Broadcasts => scene.broadcast_address,
            Self::Session { .. } | Self::OneByteRecords | Self::Requests => scene.address,
        }
    }
}

/// Connects, and waits until the session and its subscriptions are complete.
fn enter(scene: &Scene, entry: &Entry) -> io::Result<(TcpStream, Option<Box<ClientConnection>>)> {
    let socket = TcpStream::connect(entry.address(scene))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    match entry {
        Entry::Requests | Entry::Broadcasts => Ok((socket, None)),
        Entry::Session { identifiers, .. } => {
            let mut session = WebSocket::open(socket, &upgrade(scene, entry))?;
            session.wait_for(OPCODE_TEXT, b"welcome")?;
            session.send_raw(&subscribes(identifiers))?;
            for _ in identifiers {
                session.wait_for(OPCODE_TEXT, b"confirm_subscription")?;
            }
            Ok((session.into_stream(), None))
        }
        Entry::OneByteRecords => {
            let config = scene.tls.as_ref().expect("the server speaks TLS");
            let stream = StreamOwned::new(tls::connection(config), socket);
            let mut session = WebSocket::open(stream, &upgrade(scene, entry))?;
            session.wait_for(OPCODE_TEXT, b"welcome")?;
            let stream = session.into_stream();
            Ok((stream.sock, Some(Box::new(stream.conn))))
        }
    }
}

/// Everything that must come before the block, without waiting for answers.
fn hello(scene: &Scene, entry: &Entry) -> Vec<u8> {
    match entry {
        Entry::Session { identifiers, .. } => {
            let mut hello = upgrade(scene, entry).into_bytes();
            hello.extend(subscribes(identifiers));
            hello
        }
        Entry::OneByteRecords | Entry::Requests | Entry::Broadcasts => Vec::new(),
    }
}

fn upgrade(scene: &Scene, entry: &Entry) -> String {
    let lines = match entry {
        Entry::Session {
            compression: true, ..
        } => "Sec-WebSocket-Extensions: permessage-deflate\r\n",
        _ => "",
    };
    upgrade_request(scene.address, "/cable", lines)
}

fn subscribes(identifiers: &[String]) -> Vec<u8> {
    let mut frames = Vec::new();
    for identifier in identifiers {
        let subscribe = command("subscribe", identifier);
        crate::fleet::client_frame(OPCODE_TEXT, subscribe.as_bytes(), &mut frames);
    }
    frames
}
