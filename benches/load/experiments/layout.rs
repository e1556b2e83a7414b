//! What a fan-out reads of a session: 16 bytes in an array of their own, or the same fields inside a larger slab entry.

use std::hint::black_box;

use rustix::fd::OwnedFd;
use rustix::net::SendFlags;

use super::cost::Cost;
use super::far::{Far, listen};
use super::{Bench, FAR_CPU, Setting};

const SOCKETS: usize = 2_000;
const MESSAGE: [u8; 200] = [b'x'; 200];
const SESSIONS: [u32; 2] = [15_000, 150_000];
/// Loops over all sessions that only look; they are short.
const LOOKS: usize = 20;

/// What a delivery needs to know.
#[derive(Clone, Copy)]
struct Hot {
    socket: u32,
    generation: u32,
    flags: u32,
    outbox: u32,
}

/// A slab entry of 120 bytes: the fields of a delivery are at both ends, as they are when nobody arranges them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    socket: u32,
    generation: u32,
    rest: [u64; 13],
    flags: u32,
    outbox: u32,
}

const _: () = assert!(size_of::<Hot>() == 16 && size_of::<Entry>() == 120);

pub fn run(bench: &mut Bench) {
    for sessions in SESSIONS {
        for (order_name, shuffled) in [("in order", false), ("shuffled", true)] {
            for (layout_name, hot) in [("16 bytes apart", true), ("entry of 120 bytes", false)] {
                for (work_name, sends) in [("look only", false), ("send(2)", true)] {
                    let case = format!(
                        "layout: {layout_name}, {sessions} sessions, {order_name}, {work_name}"
                    );
                    bench.measure(&case, |setting, notes| {
                        let order = order(sessions, shuffled);
                        let nanos = if hot {
                            measure(setting, &hot_sessions(sessions), &order, sends, |session| {
                                *session
                            })
                        } else {
                            measure(setting, &entries(sessions), &order, sends, Entry::hot)
                        };
                        notes.say("CPU per session", "ns", nanos);
                    });
                }
            }
        }
    }
}

impl Entry {
    fn hot(&self) -> Hot {
        Hot {
            socket: self.socket,
            generation: self.generation,
            flags: self.flags,
            outbox: self.outbox,
        }
    }
}

fn hot_sessions(count: u32) -> Vec<Hot> {
    let session = |number| Hot {
        socket: number,
        generation: 1,
        flags: 0,
        outbox: u32::MAX,
    };
    (0..count).map(session).collect()
}

fn entries(count: u32) -> Vec<Entry> {
    let entry = |number| Entry {
        socket: number,
        generation: 1,
        rest: [0; 13],
        flags: 0,
        outbox: u32::MAX,
    };
    (0..count).map(entry).collect()
}

/// Session and generation, as a hub names its subscribers.
fn order(count: u32, shuffled: bool) -> Vec<(u32, u32)> {
    let mut order: Vec<_> = (0..count).map(|number| (number, 1)).collect();
    if shuffled {
        // Xorshift: the same order in every run.
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for at in (1..order.len()).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            order.swap(at, (state % (at as u64 + 1)) as usize);
        }
    }
    order
}

/// Nanoseconds for each session: checks that it lives, takes messages and owes nothing; then sends, or does not.
fn measure<S>(
    setting: &Setting,
    sessions: &[S],
    order: &[(u32, u32)],
    sends: bool,
    hot: impl Fn(&S) -> Hot,
) -> f64 {
    let mut cost = Cost::default();
    let mut visits = 0;
    if !sends {
        while cost.elapsed < setting.time / 4 {
            cost.count(|| {
                for _ in 0..LOOKS {
                    deliver(sessions, order, &hot, |socket| {
                        black_box(socket);
                    });
                }
            });
            visits += (LOOKS * order.len()) as u64;
        }
        return cost.micros_each(visits) * 1e3;
    }
    let far = Far::start(FAR_CPU);
    let listener = listen(None);
    let sockets: Vec<OwnedFd> = far.open(&listener, setting.count(SOCKETS));
    far.read();
    let mut sent = 0;
    while cost.elapsed < setting.time {
        // As many sessions at a time as there are sockets, so that no socket has two messages to hold.
        for part in order.chunks(sockets.len()) {
            cost.count(|| {
                let mut next = 0;
                deliver(sessions, part, &hot, |_| {
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    rustix::net::send(&sockets[next], &MESSAGE, flags).expect("there is room");
                    next += 1;
                });
            });
            sent += (part.len() * MESSAGE.len()) as u64;
            far.wait_read(sent);
        }
        visits += order.len() as u64;
    }
    cost.micros_each(visits) * 1e3
}

fn deliver<S>(
    sessions: &[S],
    order: &[(u32, u32)],
    hot: &impl Fn(&S) -> Hot,
    mut send: impl FnMut(u32),
) {
    for (slot, generation) in order {
        let session = hot(&sessions[*slot as usize]);
        let idle = session.flags == 0 && session.outbox == u32::MAX;
        if session.generation == *generation && idle {
            send(session.socket);
        }
    }
}
