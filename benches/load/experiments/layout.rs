//! The data of a session that a fan-out reads: 16 bytes in a separate array, or the same fields inside a larger slab entry,
//! next to each other or not.

use std::hint::black_box;

use rustix::fd::OwnedFd;
use rustix::net::SendFlags;

use super::cost::Cost;
use super::far::{Far, listen};
use super::{Bench, FAR_CPU, Setting};

const SOCKETS: usize = 2_000;
const MESSAGE: [u8; 200] = [b'x'; 200];
const SESSIONS: [u32; 2] = [15_000, 150_000];
/// Loops over all sessions that only read; they are short.
const LOOKS: usize = 20;

/// The data that a delivery needs.
#[derive(Clone, Copy)]
struct Hot {
    socket: u32,
    generation: u32,
    flags: u32,
    outbox: u32,
}

/// A slab entry of 120 bytes, with the fields of a delivery at both ends, as in a struct whose order nobody has chosen.
#[derive(Clone, Copy)]
#[repr(C)]
struct Apart {
    socket: u32,
    generation: u32,
    rest: [u64; 13],
    flags: u32,
    outbox: u32,
}

/// The same entry, with the fields of a delivery next to each other.
#[derive(Clone, Copy)]
#[repr(C)]
struct Together {
    hot: Hot,
    rest: [u64; 13],
}

const _: () = assert!(size_of::<Hot>() == 16);
const _: () = assert!(size_of::<Apart>() == 120 && size_of::<Together>() == 120);

#[derive(Clone, Copy)]
enum Layout {
    Array,
    Together,
    Apart,
}

const LAYOUTS: [(&str, Layout); 3] = [
    ("array of 16 bytes", Layout::Array),
    ("entry of 120 bytes, fields together", Layout::Together),
    ("entry of 120 bytes, fields apart", Layout::Apart),
];

pub fn run(bench: &mut Bench) {
    for sessions in SESSIONS {
        for (order_name, shuffled) in [("in order", false), ("shuffled", true)] {
            for (work_name, sends) in [("look only", false), ("send(2)", true)] {
                for (name, layout) in LAYOUTS {
                    let case =
                        format!("layout: {name}, {sessions} sessions, {order_name}, {work_name}");
                    bench.measure(&case, |setting, notes| {
                        let order = order(sessions, shuffled);
                        let nanos = measure_layout(setting, layout, &order, sends);
                        notes.say("CPU per session", "ns", nanos);
                    });
                }
            }
        }
    }
}

fn measure_layout(setting: &Setting, layout: Layout, order: &[(u32, u32)], sends: bool) -> f64 {
    let hot = (0..order.len() as u32).map(|socket| Hot {
        socket,
        generation: 1,
        flags: 0,
        outbox: u32::MAX,
    });
    match layout {
        Layout::Array => {
            let sessions: Vec<Hot> = hot.collect();
            measure(setting, &sessions, order, sends, |session| *session)
        }
        Layout::Together => {
            let entry = |hot| Together { hot, rest: [0; 13] };
            let sessions: Vec<Together> = hot.map(entry).collect();
            measure(setting, &sessions, order, sends, |session| session.hot)
        }
        Layout::Apart => {
            let sessions: Vec<Apart> = hot.map(Apart::new).collect();
            measure(setting, &sessions, order, sends, Apart::hot)
        }
    }
}

impl Apart {
    fn new(hot: Hot) -> Self {
        Self {
            socket: hot.socket,
            generation: hot.generation,
            rest: [0; 13],
            flags: hot.flags,
            outbox: hot.outbox,
        }
    }

    fn hot(&self) -> Hot {
        Hot {
            socket: self.socket,
            generation: self.generation,
            flags: self.flags,
            outbox: self.outbox,
        }
    }
}

/// Session and generation, which is how a hub names its subscribers.
fn order(count: u32, shuffled: bool) -> Vec<(u32, u32)> {
    let mut order: Vec<_> = (0..count).map(|number| (number, 1)).collect();
    if shuffled {
        // Xorshift gives the same order in every run.
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

/// Nanoseconds per session: checks that it is alive, accepts messages and has no unsent ones; then sends or does not send.
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
        // As many sessions at a time as there are sockets, so that a socket gets only one message.
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
