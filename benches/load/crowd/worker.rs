//! A thread of a crowd: its clients' sockets, one epoll, its own descriptor table.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::os::fd::{FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use rustix::event::epoll::{self, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use super::member::Member;
use super::{Command, Figures, Plan, Saying, UNFINISHED_MAX};
use crate::fleet::{Progress, source_address};
use crate::sys::{self, Cpu};

const READ_BYTES: usize = 64 * 1024;
const EVENTS_MAX: usize = 256;
/// Connections that are started in one turn.
const CONNECTS_PER_TURN: usize = 64;
/// The epoll key of the command queue; no client has that number.
const WAKE_KEY: u64 = u64::MAX;

pub struct Setup {
    pub plan: Plan,
    pub number: usize,
    pub inbox: Receiver<Command>,
    /// The eventfd that wakes the worker for its inbox.
    pub wake: RawFd,
    pub progress: Arc<Progress>,
}

/// A client and its socket.
struct Client {
    index: u32,
    member: Member,
    socket: Option<OwnedFd>,
    is_connecting: bool,
    /// Input that is no whole frame yet.
    kept: Vec<u8>,
}

struct Worker {
    setup: Setup,
    epoll: OwnedFd,
    wake: OwnedFd,
    clients: Vec<Client>,
    /// Places of the clients that want to connect.
    to_open: VecDeque<usize>,
    /// Messages that they expect.
    messages: u32,
    unfinished: usize,
    figures: Figures,
    /// CPU time when figures were last taken.
    cpu: Cpu,
    done: u64,
    output: Vec<u8>,
}

/// Runs until the worker is told to stop.
pub fn run(setup: Setup) {
    sys::own_descriptor_table(setup.wake).expect("a thread may have a descriptor table of its own");
    sys::pin(&setup.plan.cpus).expect("the CPUs exist");
    // SAFETY: in this thread's own table the number is a copy that nobody else closes.
    let wake = unsafe { OwnedFd::from_raw_fd(setup.wake) };
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    let key = epoll::EventData::new_u64(WAKE_KEY);
    epoll::add(&epoll, &wake, key, EventFlags::IN).expect("the eventfd is watched");
    let numbers = (setup.number..setup.plan.clients).step_by(setup.plan.threads);
    let client = |index: usize| Client {
        index: index as u32,
        member: Member::new(setup.plan.members.subscriptions(index as u32)),
        socket: None,
        is_connecting: false,
        kept: Vec::new(),
    };
    let clients = numbers.map(client).collect();
    let worker = Worker {
        epoll,
        wake,
        clients,
        to_open: VecDeque::new(),
        messages: 0,
        unfinished: 0,
        figures: Figures::default(),
        cpu: Cpu::default(),
        done: 0,
        output: Vec::new(),
        setup,
    };
    worker.serve();
}

impl Worker {
    fn serve(mut self) {
        let mut buffer = vec![0; READ_BYTES];
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_MAX);
        loop {
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => panic!("epoll: {error}"),
            }
            let mut told = false;
            for event in events.drain(..) {
                match event.data.u64() {
                    WAKE_KEY => told = true,
                    place => self.on_event(place as usize, event.flags, &mut buffer),
                }
            }
            if told && !self.carry_out() {
                return;
            }
            self.open_some();
            self.report_done();
        }
    }

    /// Carries out the commands in the inbox; false when one says to stop.
    fn carry_out(&mut self) -> bool {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        while let Ok(command) = self.setup.inbox.try_recv() {
            match command {
                Command::Connect { messages } => {
                    self.messages = messages;
                    self.to_open.extend(0..self.clients.len());
                }
                Command::Expect { messages } => {
                    let members = self.clients.iter_mut().map(|client| &mut client.member);
                    members.for_each(|member| member.expect(messages));
                }
                Command::Say(saying) => self.say(&saying),
                Command::Leave => self.leave(),
                Command::Report(reply) => {
                    let cpu = sys::thread_cpu();
                    let mut figures = std::mem::take(&mut self.figures);
                    figures.cpu = cpu.since(self.cpu);
                    self.cpu = cpu;
                    // The scenario may no longer wait for the answer.
                    let _ = reply.send(figures);
                }
                Command::Stop => return false,
            }
        }
        true
    }

    fn say(&mut self, saying: &Saying) {
        for place in 0..self.clients.len() {
            let client = &mut self.clients[place];
            match saying(client.index) {
                Some(texts) => client.member.say(&texts, &mut self.output),
                None => self.done += 1,
            }
            self.send(place);
        }
    }

    fn leave(&mut self) {
        for client in &mut self.clients {
            client.socket = None;
            client.kept.clear();
        }
        self.unfinished = 0;
    }

    fn open_some(&mut self) {
        for _ in 0..CONNECTS_PER_TURN {
            if self.unfinished >= UNFINISHED_MAX {
                return;
            }
            let Some(place) = self.to_open.pop_front() else {
                return;
            };
            self.open(place)
                .expect("there are descriptors and ports for all clients");
        }
        if !self.to_open.is_empty() {
            // Comes back after the events that are there.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    fn open(&mut self, place: usize) -> Result<(), Errno> {
        let client = &mut self.clients[place];
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let tcp = Some(ipproto::TCP);
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, tcp)?;
        sys::bind_address_no_port(socket.as_fd()).expect("TCP sockets have the option");
        rustix::net::bind(&socket, &SocketAddrV4::new(source_address(client.index), 0))?;
        client.member.opened = Instant::now();
        match rustix::net::connect(&socket, &self.setup.plan.address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let key = epoll::EventData::new_u64(place as u64);
        epoll::add(&self.epoll, &socket, key, EventFlags::OUT)?;
        client.socket = Some(socket);
        client.is_connecting = true;
        self.unfinished += 1;
        Ok(())
    }

    fn on_event(&mut self, place: usize, flags: EventFlags, buffer: &mut [u8]) {
        let client = &mut self.clients[place];
        let Some(socket) = &client.socket else {
            return;
        };
        if !client.is_connecting {
            return self.read(place, buffer);
        }
        if flags.intersects(EventFlags::ERR | EventFlags::HUP) {
            return self.lose(place);
        }
        client.is_connecting = false;
        let key = epoll::EventData::new_u64(place as u64);
        epoll::modify(&self.epoll, socket, key, EventFlags::IN).expect("the socket is watched");
        let plan = &self.setup.plan;
        let lines = plan.members.header_lines(client.index);
        let host = plan.address.to_string();
        let request = client.member.request(&host, &lines, self.messages);
        self.output.extend_from_slice(request.as_bytes());
        self.send(place);
    }

    fn read(&mut self, place: usize, buffer: &mut [u8]) {
        let client = &mut self.clients[place];
        let Some(socket) = &client.socket else {
            return;
        };
        let bytes = match rustix::net::recv(socket, &mut *buffer, RecvFlags::empty()) {
            Ok((_, 0)) => return self.lose(place),
            Ok((_, bytes)) => bytes,
            Err(Errno::AGAIN | Errno::INTR) => return,
            Err(_) => return self.lose(place),
        };
        let before = client.member.welcomed;
        let (figures, output) = (&mut self.figures, &mut self.output);
        let used = if client.kept.is_empty() {
            let input = &buffer[..bytes];
            let used = client.member.read(input, figures, output);
            used.map(|used| client.kept.extend_from_slice(&input[used..]))
        } else {
            client.kept.extend_from_slice(&buffer[..bytes]);
            let used = client.member.read(&client.kept, figures, output);
            used.map(|used| drop(client.kept.drain(..used)))
        };
        if used.is_err() {
            return self.lose(place);
        }
        if client.member.welcomed && !before {
            self.unfinished -= 1;
        }
        if client.member.take_done() {
            let took = client.member.opened.elapsed();
            self.figures.done.record(took.as_micros() as u64);
            self.done += 1;
        }
        self.send(place);
    }

    /// Sends what has been collected for a client. It has little to say, so its socket has room.
    fn send(&mut self, place: usize) {
        if self.output.is_empty() {
            return;
        }
        let Some(socket) = &self.clients[place].socket else {
            return self.output.clear();
        };
        let sent = rustix::net::send(socket, &self.output, SendFlags::NOSIGNAL);
        let all = sent == Ok(self.output.len());
        self.output.clear();
        if !all {
            self.lose(place);
        }
    }

    /// The server has ended or refused the connection. The client does not come back, so the scenario fails.
    fn lose(&mut self, place: usize) {
        let client = &mut self.clients[place];
        client.socket = None;
        client.kept.clear();
        if client.member.welcomed {
            self.figures.closed += 1;
        } else {
            self.unfinished -= 1;
            self.figures.refused += 1;
        }
    }

    fn report_done(&mut self) {
        let done = std::mem::take(&mut self.done);
        if done > 0 {
            self.setup.progress.ready.fetch_add(done, SeqCst);
            self.setup.progress.wake();
        }
    }
}
