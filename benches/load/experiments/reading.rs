//! How small messages are read from many sockets, and what the kernel needs for a socket that waits for one.
//!
//! Each variant is measured in two situations: the thread sleeps in another system call until all messages are there (a ring
//! that is not deferred interrupts that sleep for each message), and the thread waits for them one by one.

use std::collections::VecDeque;

use io_uring::{cqueue, opcode, types};
use rustix::event::epoll;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::RecvFlags;

use super::cost::Cost;
use super::far::{Far, listen};
use super::ring::{Buffers, Ring, Setup, Sleep};
use super::{Bench, FAR_CPU, Setting};
use crate::process;

const SOCKETS: usize = 5_000;
const MESSAGE_BYTES: usize = 200;
const READ_BYTES: usize = 64 * 1024;
const EVENTS: usize = 1024;

#[derive(Clone, Copy)]
enum Way {
    Epoll {
        edge: bool,
    },
    Poll(Setup, Sleep),
    /// Multishot receive into buffers that the kernel chooses.
    Buffers(Setup, Sleep),
    /// Multishot poll and a receive through the ring, both on direct descriptors.
    Direct,
}

const WAYS: [(&str, Way); 9] = [
    ("epoll, level, recv(2)", Way::Epoll { edge: false }),
    ("epoll, edge, recv(2)", Way::Epoll { edge: true }),
    (
        "multishot poll, recv(2), plain ring, polled",
        Way::Poll(Setup::Plain, Sleep::OnDescriptor),
    ),
    (
        "multishot poll, recv(2), COOP_TASKRUN, polled",
        Way::Poll(Setup::Cooperative, Sleep::OnDescriptor),
    ),
    (
        "multishot poll, recv(2), DEFER_TASKRUN, eventfd polled",
        Way::Poll(Setup::Deferred, Sleep::OnEventfd),
    ),
    (
        "multishot poll, recv(2), DEFER_TASKRUN, sleeps in the ring",
        Way::Poll(Setup::Deferred, Sleep::Inside),
    ),
    (
        "multishot recv, provided buffers, COOP_TASKRUN, polled",
        Way::Buffers(Setup::Cooperative, Sleep::OnDescriptor),
    ),
    (
        "multishot recv, provided buffers, DEFER_TASKRUN, sleeps in the ring",
        Way::Buffers(Setup::Deferred, Sleep::Inside),
    ),
    (
        "multishot poll, ring RECV, direct, DEFER_TASKRUN, sleeps in the ring",
        Way::Direct,
    ),
];

pub fn run(bench: &mut Bench) {
    for (name, way) in WAYS {
        bench.measure(&format!("reading: {name}"), |setting, notes| {
            let figures = measure(setting, way);
            notes.say(
                "CPU per message, thread slept elsewhere",
                "µs",
                figures.together,
            );
            notes.say(
                "CPU per message, thread waits for them",
                "µs",
                figures.apart,
            );
            notes.say("charged to the process for waiting", "B", figures.charged);
            notes.say("uncharged for waiting", "B", figures.uncharged);
        });
    }
}

struct Measured {
    together: f64,
    apart: f64,
    charged: f64,
    uncharged: f64,
}

fn measure(setting: &Setting, way: Way) -> Measured {
    let far = Far::start(FAR_CPU);
    let listener = listen(None);
    let sockets = far.open(&listener, setting.count(SOCKETS));
    let mut reader = reader(way);
    let before = (setting.kernel_bytes(), process::uncharged_bytes() as f64);
    reader.arm(&sockets);
    let each = |after: f64, before: f64| (after - before) / sockets.len() as f64;
    let charged = each(setting.kernel_bytes(), before.0);
    let uncharged = each(process::uncharged_bytes() as f64, before.1);
    let message = [b'x'; MESSAGE_BYTES];
    let all = sockets.len() * MESSAGE_BYTES;
    let mut round = |cost: &mut Cost, together: bool| {
        cost.count(|| {
            far.write(&message);
            if together {
                far.wait();
            }
            let mut bytes = 0;
            while bytes < all {
                bytes += reader.turn(&sockets);
            }
        });
        if !together {
            far.wait();
        }
    };
    round(&mut Cost::default(), true);
    let mut micros = |together| {
        let (mut cost, mut messages) = (Cost::default(), 0);
        while cost.elapsed < setting.time {
            round(&mut cost, together);
            messages += sockets.len() as u64;
        }
        cost.micros_each(messages)
    };
    Measured {
        together: micros(true),
        apart: micros(false),
        charged,
        uncharged,
    }
}

trait Reader {
    fn arm(&mut self, sockets: &[OwnedFd]);
    /// Sleeps until data is there, reads it, returns the number of bytes.
    fn turn(&mut self, sockets: &[OwnedFd]) -> usize;
}

fn reader(way: Way) -> Box<dyn Reader> {
    match way {
        Way::Epoll { edge } => Box::new(EpollReader {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll"),
            edge,
            events: Vec::with_capacity(EVENTS),
            buffer: vec![0; READ_BYTES],
        }),
        Way::Poll(setup, sleep) => Box::new(PollReader {
            ring: Ring::new(setup, sleep),
            buffer: vec![0; READ_BYTES],
        }),
        Way::Buffers(setup, sleep) => {
            let ring = Ring::new(setup, sleep);
            Box::new(BufferReader {
                buffers: Buffers::new(&ring),
                ring: Some(ring),
            })
        }
        Way::Direct => Box::new(DirectReader {
            ring: Some(Ring::new(Setup::Deferred, Sleep::Inside)),
            memory: vec![0; DIRECT_RECEIVES * DIRECT_BYTES].into(),
            free: (0..DIRECT_RECEIVES).collect(),
            readable: VecDeque::new(),
        }),
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> usize {
    rustix::net::recv(socket, buffer, RecvFlags::DONTWAIT).map_or(0, |(_, bytes)| bytes)
}

struct EpollReader {
    epoll: OwnedFd,
    edge: bool,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
}

impl Reader for EpollReader {
    fn arm(&mut self, sockets: &[OwnedFd]) {
        let mut flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        if self.edge {
            flags |= epoll::EventFlags::ET;
        }
        for (at, socket) in sockets.iter().enumerate() {
            let key = epoll::EventData::new_u64(at as u64);
            epoll::add(&self.epoll, socket, key, flags).expect("it is watched");
        }
    }

    fn turn(&mut self, sockets: &[OwnedFd]) -> usize {
        let spare = rustix::buffer::spare_capacity(&mut self.events);
        let _ = epoll::wait(&self.epoll, spare, None);
        let mut bytes = 0;
        for event in self.events.drain(..) {
            bytes += receive(&sockets[event.data.u64() as usize], &mut self.buffer);
        }
        bytes
    }
}

struct PollReader {
    ring: Ring,
    buffer: Vec<u8>,
}

const READ_EVENTS: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;

impl Reader for PollReader {
    fn arm(&mut self, sockets: &[OwnedFd]) {
        for (at, socket) in sockets.iter().enumerate() {
            let poll = opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), READ_EVENTS).multi(true);
            // SAFETY: a poll refers to no memory.
            unsafe { self.ring.push(&poll.build().user_data(at as u64)) };
        }
        self.ring.flush();
    }

    fn turn(&mut self, sockets: &[OwnedFd]) -> usize {
        self.ring.wait();
        let mut bytes = 0;
        for entry in self.ring.uring.completion() {
            bytes += receive(&sockets[entry.user_data() as usize], &mut self.buffer);
        }
        bytes
    }
}

struct BufferReader {
    /// Dropped before the buffers.
    ring: Option<Ring>,
    buffers: Buffers,
}

impl BufferReader {
    fn arm_one(ring: &mut Ring, socket: &OwnedFd, at: u64) {
        let receive = opcode::RecvMulti::new(types::Fd(socket.as_raw_fd()), Buffers::GROUP);
        // SAFETY: the buffers outlive the ring.
        unsafe { ring.push(&receive.build().user_data(at)) };
    }
}

impl Reader for BufferReader {
    fn arm(&mut self, sockets: &[OwnedFd]) {
        let ring = self.ring.as_mut().expect("there until the end");
        for (socket, at) in sockets.iter().zip(0..) {
            Self::arm_one(ring, socket, at);
        }
        ring.flush();
    }

    fn turn(&mut self, sockets: &[OwnedFd]) -> usize {
        let ring = self.ring.as_mut().expect("there until the end");
        ring.wait();
        let (mut bytes, mut again) = (0, Vec::new());
        for entry in ring.uring.completion() {
            bytes += usize::try_from(entry.result()).unwrap_or(0);
            if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
                self.buffers.give(buffer);
            }
            if !cqueue::more(entry.flags()) {
                again.push(entry.user_data());
            }
        }
        self.buffers.publish();
        // The kernel ends a multishot receive when there is no buffer.
        for at in again {
            Self::arm_one(ring, &sockets[at as usize], at);
        }
        bytes
    }
}

impl Drop for BufferReader {
    fn drop(&mut self) {
        self.ring = None;
    }
}

const DIRECT_RECEIVES: usize = 512;
const DIRECT_BYTES: usize = 4096;
/// Marks the user data of a receive, whose low bits are the number of its buffer; without the mark it is a poll of a socket.
const RECEIVE: u64 = 1 << 63;

/// recv(2) cannot read a direct descriptor, so each readiness costs a second request.
struct DirectReader {
    ring: Option<Ring>,
    memory: Box<[u8]>,
    free: Vec<usize>,
    readable: VecDeque<u32>,
}

impl Reader for DirectReader {
    fn arm(&mut self, sockets: &[OwnedFd]) {
        let ring = self.ring.as_mut().expect("there until the end");
        ring.register(sockets);
        for at in 0..sockets.len() as u32 {
            let poll = opcode::PollAdd::new(types::Fixed(at), READ_EVENTS).multi(true);
            // SAFETY: a poll refers to no memory.
            unsafe { ring.push(&poll.build().user_data(u64::from(at))) };
        }
        ring.flush();
    }

    fn turn(&mut self, _sockets: &[OwnedFd]) -> usize {
        let ring = self.ring.as_mut().expect("there until the end");
        while let (Some(&at), Some(&slot)) = (self.readable.front(), self.free.last()) {
            self.readable.pop_front();
            self.free.pop();
            let start = &raw mut self.memory[slot * DIRECT_BYTES];
            let receive = opcode::Recv::new(types::Fixed(at), start, DIRECT_BYTES as u32)
                .flags(libc::MSG_DONTWAIT);
            // SAFETY: the buffer is this receive's own until its completion is seen, and outlives the ring.
            unsafe { ring.push(&receive.build().user_data(RECEIVE | slot as u64)) };
        }
        ring.wait();
        let mut bytes = 0;
        for entry in ring.uring.completion() {
            if entry.user_data() & RECEIVE == 0 {
                self.readable.push_back(entry.user_data() as u32);
            } else {
                self.free.push((entry.user_data() & !RECEIVE) as usize);
                bytes += usize::try_from(entry.result()).unwrap_or(0);
            }
        }
        bytes
    }
}

impl Drop for DirectReader {
    fn drop(&mut self) {
        self.ring = None;
    }
}
