//! How connections are accepted from a listener.

use std::time::Duration;

use io_uring::{opcode, types};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use socket2::Socket;

use super::cost::Cost;
use super::far::{CHUNK, Far, address_of, listen};
use super::ring::{Ring, Setup, Sleep};
use super::{Bench, FAR_CPU};

/// Connections of one measurement.
const CONNECTIONS: usize = 4_000;

#[derive(Clone, Copy)]
enum Way {
    /// One poll(2), then accept4(2) until no connection waits.
    Loop,
    /// One request that stays active.
    Multishot { setup: Setup, direct: bool },
}

const WAYS: [(&str, Way); 4] = [
    ("accept4(2) after a poll", Way::Loop),
    (
        "multishot, COOP_TASKRUN",
        Way::Multishot {
            setup: Setup::Cooperative,
            direct: false,
        },
    ),
    (
        "multishot, DEFER_TASKRUN",
        Way::Multishot {
            setup: Setup::Deferred,
            direct: false,
        },
    ),
    (
        "multishot, DEFER_TASKRUN, direct",
        Way::Multishot {
            setup: Setup::Deferred,
            direct: true,
        },
    ),
];

pub fn run(bench: &mut Bench) {
    for (name, way) in WAYS {
        for (light, waiting) in [
            ("thread slept elsewhere", true),
            ("thread waits for them", false),
        ] {
            bench.measure(&format!("accepting: {name}, {light}"), |setting, notes| {
                let count = setting.count(CONNECTIONS);
                let (cost, accepted) = measure(way, waiting, count, setting.time);
                notes.say("CPU per connection", "µs", cost.micros_each(accepted));
            });
        }
    }
}

fn measure(way: Way, waiting: bool, count: usize, time: Duration) -> (Cost, u64) {
    let (mut cost, mut accepted) = (Cost::default(), 0);
    while cost.elapsed < time && accepted < 10 * count as u64 {
        let far = Far::start(FAR_CPU);
        let listener = listen(None);
        let mut accepter = Accepter::new(way, &listener, count);
        let mut done = 0;
        while done < count {
            let chunk = CHUNK.min(count - done);
            cost.count(|| {
                far.connect(address_of(&listener), chunk, 1);
                if waiting {
                    far.wait();
                }
                accepter.take(chunk);
            });
            if !waiting {
                far.wait();
            }
            done += chunk;
        }
        accepted += count as u64;
    }
    (cost, accepted)
}

struct Accepter<'a> {
    listener: &'a Socket,
    ring: Option<(Ring, bool)>,
    accepted: Vec<OwnedFd>,
}

impl<'a> Accepter<'a> {
    fn new(way: Way, listener: &'a Socket, count: usize) -> Self {
        listener.set_nonblocking(true).expect("it may not block");
        let ring = match way {
            Way::Loop => None,
            Way::Multishot { setup, direct } => {
                let sleep = match setup {
                    Setup::Deferred => Sleep::Inside,
                    _ => Sleep::OnDescriptor,
                };
                let mut ring = Ring::new(setup, sleep);
                if direct {
                    let submitter = ring.uring.submitter();
                    submitter
                        .register_files_sparse(count as u32)
                        .expect("a ring takes as many files as a table");
                }
                // A direct descriptor is in no descriptor table that a new program could inherit, so the kernel refuses the
                // flag.
                let flags = libc::SOCK_NONBLOCK | if direct { 0 } else { libc::SOCK_CLOEXEC };
                let accept = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd()))
                    .allocate_file_index(direct)
                    .flags(flags);
                // SAFETY: an accept that asks for no address refers to no memory.
                unsafe { ring.push(&accept.build()) };
                ring.flush();
                Some((ring, direct))
            }
        };
        Self {
            listener,
            ring,
            accepted: Vec::with_capacity(count),
        }
    }

    fn take(&mut self, count: usize) {
        match &mut self.ring {
            None => self.accept(count),
            Some((ring, direct)) => {
                let mut taken = 0;
                while taken < count {
                    ring.wait();
                    for entry in ring.uring.completion() {
                        assert!(entry.result() >= 0, "accept: {}", entry.result());
                        taken += 1;
                        if !*direct {
                            // SAFETY: the kernel has just made this descriptor for us.
                            let socket = unsafe { OwnedFd::from_raw_fd(entry.result()) };
                            self.accepted.push(socket);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self, count: usize) {
        let mut taken = 0;
        while taken < count {
            let _ = poll(&mut [PollFd::new(self.listener, PollFlags::IN)], None);
            loop {
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                match rustix::net::accept_with(self.listener, flags) {
                    Ok(socket) => {
                        self.accepted.push(socket);
                        taken += 1;
                    }
                    Err(Errno::AGAIN) => break,
                    Err(error) => panic!("accept: {error}"),
                }
            }
        }
    }
}
