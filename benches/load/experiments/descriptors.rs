//! Two threads that write: with a shared descriptor table, and with one table each.
//!
//! A thread that does not share its table looks a descriptor up without counting a reference. The far ends are in the same
//! thread and are read between the rounds without being counted, so no other thread needs the two CPUs.

use std::sync::Barrier;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsRawFd, OwnedFd};
use socket2::{Domain, Socket, Type};

use super::Bench;
use super::cost::Cost;
use super::far::{address_of, listen};
use crate::sys;

const SOCKETS: usize = 500;
const MESSAGE: [u8; 200] = [b'x'; 200];
/// Messages that each far end holds before it is read; far less than its receive buffer.
const ROUNDS: usize = 20;
const THREADS: usize = 2;

#[derive(Clone, Copy)]
enum Call {
    Write,
    /// The cheapest system call on a descriptor: nearly all of it is the look-up.
    Flags,
}

pub fn run(bench: &mut Bench) {
    for (call_name, call) in [("write(2)", Call::Write), ("fcntl(F_GETFL)", Call::Flags)] {
        for (name, own) in [("shared table", false), ("own tables", true)] {
            let case = format!("descriptor table: {call_name}, {name}");
            bench.measure(&case, |setting, notes| {
                let nanos = measure(call, own, setting.count(SOCKETS), setting.time);
                notes.say("CPU per call", "ns", nanos);
            });
        }
    }
}

fn measure(call: Call, own: bool, sockets: usize, time: Duration) -> f64 {
    let barrier = Barrier::new(THREADS);
    // Making a separate table needs one descriptor to keep; this one has no other use.
    let kept = eventfd(0, EventfdFlags::empty()).expect("an eventfd");
    let nanos = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|cpu| {
                let (barrier, kept) = (&barrier, kept.as_raw_fd());
                scope.spawn(move || {
                    sys::pin(&[cpu]).expect("the CPU exists");
                    if own {
                        sys::own_descriptor_table(kept).expect("a thread may have its own table");
                    }
                    work(call, sockets, time, barrier)
                })
            })
            .collect();
        let each = threads
            .into_iter()
            .map(|thread| thread.join().expect("no thread panics"));
        each.sum::<f64>()
    });
    nanos / THREADS as f64
}

/// Nanoseconds of CPU per call.
fn work(call: Call, sockets: usize, time: Duration, barrier: &Barrier) -> f64 {
    let pairs = pairs(sockets);
    let (mut cost, mut calls) = (Cost::default(), 0u64);
    let mut buffer = vec![0; MESSAGE.len() * ROUNDS];
    // Both threads start at once, so that a shared table is shared all the time.
    barrier.wait();
    while cost.elapsed < time {
        cost.count(|| {
            for _ in 0..ROUNDS {
                for (near, _) in &pairs {
                    match call {
                        Call::Write => {
                            rustix::io::write(near, &MESSAGE).expect("there is room");
                        }
                        Call::Flags => {
                            rustix::fs::fcntl_getfl(near).expect("it is open");
                        }
                    }
                }
            }
        });
        calls += (ROUNDS * pairs.len()) as u64;
        if let Call::Write = call {
            for (_, far) in &pairs {
                let mut left = buffer.len();
                while left > 0 {
                    left -= rustix::io::read(far, &mut buffer[..left]).expect("bytes are there");
                }
            }
        }
    }
    barrier.wait();
    cost.micros_each(calls) * 1e3
}

/// Connected sockets; both ends are in this process.
fn pairs(count: usize) -> Vec<(OwnedFd, OwnedFd)> {
    let listener = listen(None);
    let address = address_of(&listener).into();
    let pair = |_| {
        let far = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        far.connect(&address).expect("a listener waits");
        let (near, _) = listener.accept().expect("a connection waits");
        near.set_tcp_nodelay(true).expect("TCP has the option");
        (near.into(), far.into())
    };
    (0..count).map(pair).collect()
}
