//! One thread of clients with its own epoll, buffer and table. Reads once per event and never waits for a client.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::os::fd::{FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto};
use rustls::ClientConnection;
use slab::Slab;

use super::client::{Client, KEPT_BYTES_MAX, Phase};
use super::listener::{Listener, send, send_raw};
use super::{Command, Figures, Plan, Progress, source_address};
use crate::sys::{self, Cpu, monotonic_nanos};
use crate::tls;

/// Bytes of one read.
const READ_BYTES: usize = 256 * 1024;
/// Events of one turn. Few, so that a read happens soon after its event.
const EVENTS_MAX: usize = 256;
/// Connections that are started in one turn.
const CONNECTS_PER_TURN: usize = 64;
/// The epoll key of the command queue; no slot is that high.
const WAKE_KEY: u64 = u64::MAX;

pub struct Setup {
    pub plan: Plan,
    pub number: u32,
    pub inbox: Receiver<Command>,
    /// The eventfd that wakes the worker for its inbox.
    pub wake: RawFd,
    pub progress: Arc<Progress>,
    pub started: Instant,
}

/// Runs until the worker is told to stop.
pub fn run(setup: Setup) {
    sys::own_descriptor_table(setup.wake).expect("a thread may have a descriptor table of its own");
    sys::pin(&setup.plan.cpus).expect("the CPUs exist");
    // SAFETY: in this thread's own table the number is a copy that nobody else closes.
    let wake = unsafe { OwnedFd::from_raw_fd(setup.wake) };
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    let key = epoll::EventData::new_u64(WAKE_KEY);
    epoll::add(&epoll, &wake, key, epoll::EventFlags::IN).expect("the eventfd is watched");
    let worker = Worker {
        epoll,
        wake,
        clients: Slab::new(),
        tls: Vec::new(),
        to_open: VecDeque::new(),
        next_index: setup.number,
        pace: f64::INFINITY,
        paced_from: Instant::now(),
        paced: 0,
        unfinished: 0,
        cursor: 0,
        figures: Figures::default(),
        cpu: Cpu::default(),
        turn: Turn::default(),
        setup,
    };
    worker.serve();
}

/// Changes during one turn; added to the shared progress at its end.
#[derive(Default)]
pub struct Turn {
    pub delivered: u64,
    pub ready: i64,
    pub closed: u64,
    pub refused: u64,
    pub pings: u64,
}

struct Worker {
    setup: Setup,
    epoll: OwnedFd,
    wake: OwnedFd,
    clients: Slab<Client>,
    /// TLS state of the clients that use TLS, by slot.
    tls: Vec<Option<Box<ClientConnection>>>,
    /// Numbers of clients that want to connect, and the earliest time for it.
    to_open: VecDeque<(u32, Instant)>,
    next_index: u32,
    /// Connects per second, counted from the time at which it was set.
    pace: f64,
    paced_from: Instant,
    paced: u64,
    unfinished: usize,
    /// The place in the table of the client that left last.
    cursor: usize,
    figures: Figures,
    /// CPU time when figures were last taken.
    cpu: Cpu,
    turn: Turn,
}

impl Worker {
    fn serve(mut self) {
        // The bytes that a client stored go in front of the bytes that are read.
        let mut buffer = vec![0; KEPT_BYTES_MAX + READ_BYTES];
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        loop {
            let timeout = self.timeout();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => panic!("epoll: {error}"),
            }
            let mut told = false;
            for event in events.drain(..) {
                let key = event.data.u64();
                if key == WAKE_KEY {
                    told = true;
                } else {
                    self.on_event(key as usize, event.flags, &mut buffer);
                }
            }
            if told && !self.carry_out() {
                return;
            }
            self.open_some();
            self.publish_turn();
        }
    }

    /// How long to wait for sockets until something else is due.
    fn timeout(&self) -> Option<Timespec> {
        let (_, due) = self.to_open.front()?;
        if self.unfinished >= self.setup.plan.unfinished_max {
            return None;
        }
        let now = Instant::now();
        let wait = due.saturating_duration_since(now).max(self.pause(now));
        Some(Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: i64::from(wait.subsec_nanos()),
        })
    }

    /// How long to wait before the next connect.
    fn pause(&self, now: Instant) -> Duration {
        if self.pace.is_infinite() {
            return Duration::ZERO;
        }
        let due = self.paced_from + Duration::from_secs_f64(self.paced as f64 / self.pace);
        due.saturating_duration_since(now)
    }

    /// Carries out the commands in the inbox; false when one says to stop.
    fn carry_out(&mut self) -> bool {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        while let Ok(command) = self.setup.inbox.try_recv() {
            match command {
                Command::Connect { count, per_second } => self.plan_connects(count, per_second),
                Command::Leave { count } => self.leave(count),
                Command::Stall => self.stall(),
                Command::Report(reply) => self.report(&reply),
                Command::Stop => return false,
            }
        }
        true
    }

    fn plan_connects(&mut self, count: usize, per_second: f64) {
        let now = Instant::now();
        (self.pace, self.paced_from, self.paced) = (per_second, now, 0);
        for _ in 0..count {
            self.to_open.push_back((self.next_index, now));
            self.next_index += self.setup.plan.threads as u32;
        }
    }

    fn leave(&mut self, count: usize) {
        let count = count.min(self.clients.len());
        let mut left = 0;
        while left < count {
            if self.cursor >= self.clients.capacity() {
                self.cursor = 0;
            }
            if let Some(client) = self.clients.try_remove(self.cursor) {
                self.forget(&client);
                left += 1;
            }
            self.cursor += 1;
        }
        self.turn.closed += left as u64;
    }

    fn stall(&mut self) {
        for (slot, client) in &mut self.clients {
            if client.phase == Phase::Ready {
                client.stalled = true;
                watch(&self.epoll, slot, client, epoll::EventFlags::RDHUP);
            }
        }
    }

    fn report(&mut self, reply: &Sender<Figures>) {
        let cpu = sys::thread_cpu();
        let mut figures = std::mem::take(&mut self.figures);
        figures.cpu = cpu.since(self.cpu);
        self.cpu = cpu;
        // The scenario may no longer wait for the answer.
        let _ = reply.send(figures);
    }

    fn open_some(&mut self) {
        for _ in 0..CONNECTS_PER_TURN {
            let Some((index, due)) = self.to_open.front().copied() else {
                return;
            };
            let now = Instant::now();
            let waits = due > now || !self.pause(now).is_zero();
            if waits || self.unfinished >= self.setup.plan.unfinished_max {
                return;
            }
            self.to_open.pop_front();
            self.paced += 1;
            if let Err(error) = self.open(index) {
                // Descriptors or ports ran out: a mistake in the scenario, not in the server.
                assert!(
                    error == Errno::CONNREFUSED,
                    "client {index} cannot connect: {error}"
                );
                self.refused(index);
            }
        }
    }

    fn open(&mut self, index: u32) -> Result<(), Errno> {
        let plan = &self.setup.plan;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            flags,
            Some(ipproto::TCP),
        )?;
        sys::bind_address_no_port(socket.as_fd()).expect("TCP sockets have the option");
        rustix::net::bind(&socket, &SocketAddrV4::new(source_address(index), 0))?;
        let opened_micros = self.setup.started.elapsed().as_micros() as u32;
        match rustix::net::connect(&socket, &plan.address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let awaited = plan.clients.identifiers(index).len() as u16;
        let client = Client::new(socket, index, opened_micros, awaited, plan.joins_late);
        let slot = self.clients.vacant_entry();
        if let Some(config) = &plan.tls {
            let slots = self.tls.len().max(slot.key() + 1);
            self.tls.resize_with(slots, || None);
            self.tls[slot.key()] = Some(Box::new(tls::connection(config)));
        }
        let key = epoll::EventData::new_u64(slot.key() as u64);
        epoll::add(&self.epoll, &client.socket, key, epoll::EventFlags::OUT)?;
        slot.insert(client);
        self.unfinished += 1;
        Ok(())
    }

    fn on_event(&mut self, slot: usize, flags: epoll::EventFlags, buffer: &mut [u8]) {
        let Some(client) = self.clients.get(slot) else {
            return;
        };
        if client.phase == Phase::Connecting {
            if flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP) {
                return self.lose(slot);
            }
            return self.ask_upgrade(slot);
        }
        if client.stalled {
            // For a stalled client only the end of the socket is watched.
            return self.lose(slot);
        }
        self.read(slot, buffer);
    }

    fn ask_upgrade(&mut self, slot: usize) {
        let client = &mut self.clients[slot];
        let clients = &self.setup.plan.clients;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: actioncable-v1-json\r\n{}\r\n",
            clients.target(client.index),
            self.setup.plan.address,
            clients.header_lines(client.index),
        );
        client.phase = Phase::Upgrading;
        watch(&self.epoll, slot, client, epoll::EventFlags::IN);
        if !send(client, tls_of(&mut self.tls, slot), request.as_bytes()) {
            self.lose(slot);
        }
    }

    fn read(&mut self, slot: usize, buffer: &mut [u8]) {
        let client = &mut self.clients[slot];
        let received = rustix::net::recv(
            &client.socket,
            &mut buffer[KEPT_BYTES_MAX..],
            RecvFlags::empty(),
        );
        let bytes = match received {
            Ok((_, 0)) => return self.lose(slot),
            Ok((_, bytes)) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.lose(slot),
        };
        let mut tls = tls_of(&mut self.tls, slot);
        let bytes = match &mut tls {
            None => bytes,
            Some(connection) => {
                let received = &buffer[KEPT_BYTES_MAX..KEPT_BYTES_MAX + bytes];
                let (mut plain, mut records) = (Vec::new(), Vec::new());
                let is_tls = tls::open(connection, received, &mut plain, &mut records);
                if !is_tls || !send_raw(client, &records) {
                    return self.lose(slot);
                }
                if plain.is_empty() {
                    return;
                }
                // The plain text is shorter than the records, so it fits where they were.
                buffer[KEPT_BYTES_MAX..KEPT_BYTES_MAX + plain.len()].copy_from_slice(&plain);
                plain.len()
            }
        };
        let mut start = KEPT_BYTES_MAX;
        if let Some(kept) = client.take_kept() {
            start -= kept.len();
            buffer[start..KEPT_BYTES_MAX].copy_from_slice(&kept);
        }
        let mut listener = Listener {
            plan: &self.setup.plan,
            started: self.setup.started,
            read_nanos: monotonic_nanos(),
            figures: &mut self.figures,
            turn: &mut self.turn,
            unfinished: &mut self.unfinished,
            tls,
            lost: false,
        };
        client.read(
            &buffer[start..KEPT_BYTES_MAX + bytes],
            &mut |client, event| {
                listener.on(client, event);
            },
        );
        if listener.lost {
            self.lose(slot);
        }
    }

    /// The server ended the connection, or refused it.
    fn lose(&mut self, slot: usize) {
        let client = self.clients.remove(slot);
        self.forget(&client);
        if matches!(client.phase, Phase::Connecting | Phase::Upgrading) {
            self.refused(client.index);
        } else {
            self.figures.closed += 1;
            self.come_back(client.index);
        }
    }

    fn refused(&mut self, index: u32) {
        self.figures.refused += 1;
        self.turn.refused += 1;
        self.come_back(index);
    }

    fn come_back(&mut self, index: u32) {
        match self.setup.plan.reconnect_after {
            Some(delay) => self.to_open.push_back((index, Instant::now() + delay)),
            None => self.turn.closed += 1,
        }
    }

    /// Subtracts a client that has left the table from the counts.
    fn forget(&mut self, client: &Client) {
        if client.phase == Phase::Ready {
            self.turn.ready -= 1;
        } else {
            self.unfinished -= 1;
        }
    }

    fn publish_turn(&mut self) {
        let turn = std::mem::take(&mut self.turn);
        let progress = &self.setup.progress;
        progress.ready.fetch_add(turn.ready as u64, SeqCst);
        progress.open.fetch_sub(turn.closed, SeqCst);
        progress.refused.fetch_add(turn.refused, Relaxed);
        progress.pings.fetch_add(turn.pings, Relaxed);
        if turn.ready != 0 || turn.closed != 0 {
            progress.wake();
        }
        if turn.delivered > 0 {
            progress.add_delivered(turn.delivered);
        }
    }
}

fn tls_of(tls: &mut [Option<Box<ClientConnection>>], slot: usize) -> Option<&mut ClientConnection> {
    tls.get_mut(slot)?.as_deref_mut()
}

fn watch(epoll: &OwnedFd, slot: usize, client: &Client, flags: epoll::EventFlags) {
    let key = epoll::EventData::new_u64(slot as u64);
    epoll::modify(epoll, &client.socket, key, flags).expect("the socket is watched");
}
