//! How the same bytes are written to many sockets: one call each, gathered, or in batches through a ring with several
//! setups.

use std::io::IoSlice;
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::net::SendFlags;

use super::cost::Cost;
use super::far::{Far, listen};
use super::ring::{BATCH, Ring, Setup, Sleep};
use super::{Bench, FAR_CPU};
use crate::limit::finish;

const SOCKETS: usize = 5_000;
const SMALL_BYTES: usize = 200;
const LARGE_BYTES: usize = 21_000;
const FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// A macro, because the crate's trait for both kinds of descriptor is private.
macro_rules! send_entry {
    ($target:expr, $bytes:expr, $sends:expr) => {{
        let (start, length) = ($bytes.as_ptr(), $bytes.len() as u32);
        if $sends.zero_copy {
            opcode::SendZc::new($target, start, length)
                .flags(FLAGS)
                .build()
        } else {
            // Without WAITALL a partial send would count as success and would make no completion.
            let all = if $sends.skip_success {
                libc::MSG_WAITALL
            } else {
                0
            };
            opcode::Send::new($target, start, length)
                .flags(FLAGS | all)
                .build()
        }
    }};
}

/// A ring and how its sends are built.
#[derive(Clone, Copy)]
struct RingSends {
    setup: Setup,
    /// Sockets by their position in the ring's table instead of their descriptor.
    direct: bool,
    /// Complete sends make no completion.
    skip_success: bool,
    zero_copy: bool,
}

#[derive(Clone, Copy)]
enum Way {
    Write,
    Send,
    Gathered(usize),
    Ring(RingSends),
}

impl Way {
    fn name(self) -> String {
        match self {
            Self::Write => "write(2)".to_owned(),
            Self::Send => "send(2)".to_owned(),
            Self::Gathered(frames) => format!("writev(2) of {frames}"),
            Self::Ring(ring) => {
                let mut name = format!("ring SEND, {}", ring.setup.name());
                if ring.zero_copy {
                    name = format!("ring SEND_ZC, {}", ring.setup.name());
                }
                if ring.direct {
                    name += ", direct";
                }
                if ring.skip_success {
                    name += ", skip success";
                }
                name
            }
        }
    }
}

pub fn run(bench: &mut Bench) {
    let ring = |setup, direct, skip_success, zero_copy| {
        Way::Ring(RingSends {
            setup,
            direct,
            skip_success,
            zero_copy,
        })
    };
    let deferred = |direct, skip| ring(Setup::Deferred, direct, skip, false);
    let mut small = vec![Way::Write, Way::Send, Way::Gathered(8), Way::Gathered(64)];
    small.extend(Setup::ALL.map(|setup| ring(setup, false, false, false)));
    small.extend([
        deferred(true, false),
        deferred(false, true),
        deferred(true, true),
    ]);
    let large = [
        Way::Write,
        Way::Send,
        deferred(false, false),
        ring(Setup::Deferred, false, false, true),
    ];
    let ways = small.iter().map(|way| (way, SMALL_BYTES));
    for (way, bytes) in ways.chain(large.iter().map(|way| (way, LARGE_BYTES))) {
        let case = format!("sending: {}, {bytes} B", way.name());
        bench.measure(&case, |setting, notes| {
            let (cost, messages) = measure(setting.count(SOCKETS), *way, bytes, setting.time);
            notes.say("CPU per message", "µs", cost.micros_each(messages));
            notes.say("messages per second", "1/s", cost.rate(messages));
        });
    }
}

fn measure(sockets: usize, way: Way, bytes: usize, time: Duration) -> (Cost, u64) {
    let far = Far::start(FAR_CPU);
    let listener = listen(None);
    let sockets = far.open(&listener, sockets);
    far.read();
    let frames = match way {
        Way::Gathered(frames) => frames,
        _ => 1,
    };
    let text = vec![b'x'; bytes * frames];
    let mut writer = Writer::new(way, &sockets, bytes);
    let (mut cost, mut messages, mut sent) = (Cost::default(), 0, 0);
    // The first round is not counted, because the sockets are not in the caches yet.
    writer.write(&sockets, &text);
    sent += (sockets.len() * text.len()) as u64;
    far.wait_read(sent);
    while cost.elapsed < time {
        cost.count(|| writer.write(&sockets, &text));
        messages += (sockets.len() * frames) as u64;
        sent += (sockets.len() * text.len()) as u64;
        far.wait_read(sent);
    }
    (cost, messages)
}

struct Writer {
    way: Way,
    ring: Option<Ring>,
    frame_bytes: usize,
}

impl Writer {
    fn new(way: Way, sockets: &[OwnedFd], frame_bytes: usize) -> Self {
        let ring = match way {
            Way::Ring(sends) => {
                let ring = Ring::new(sends.setup, Sleep::Inside);
                if sends.direct {
                    ring.register(sockets);
                }
                Some(ring)
            }
            _ => None,
        };
        Self {
            way,
            ring,
            frame_bytes,
        }
    }

    fn write(&mut self, sockets: &[OwnedFd], bytes: &[u8]) {
        let mut unfinished: Vec<(usize, usize)> = Vec::new();
        let mut taken = |at: usize, sent: usize| {
            if sent < bytes.len() {
                unfinished.push((at, sent));
            }
        };
        match self.way {
            Way::Write => {
                for (at, socket) in sockets.iter().enumerate() {
                    taken(at, rustix::io::write(socket, bytes).unwrap_or(0));
                }
            }
            Way::Send => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                for (at, socket) in sockets.iter().enumerate() {
                    taken(at, rustix::net::send(socket, bytes, flags).unwrap_or(0));
                }
            }
            Way::Gathered(_) => {
                let frames: Vec<IoSlice> =
                    bytes.chunks(self.frame_bytes).map(IoSlice::new).collect();
                for (at, socket) in sockets.iter().enumerate() {
                    taken(at, rustix::io::writev(socket, &frames).unwrap_or(0));
                }
            }
            Way::Ring(sends) => {
                let ring = self.ring.as_mut().expect("this way has a ring");
                for (batch, from) in sockets.chunks(BATCH).zip((0..).step_by(BATCH)) {
                    send_batch(ring, sends, batch, from, bytes, &mut taken);
                }
            }
        }
        for (at, sent) in unfinished {
            finish(&sockets[at], &bytes[sent..]);
        }
    }
}

fn send_batch(
    ring: &mut Ring,
    sends: RingSends,
    batch: &[OwnedFd],
    from: usize,
    bytes: &[u8],
    taken: &mut impl FnMut(usize, usize),
) {
    for (socket, at) in batch.iter().zip(from..) {
        let mut entry = if sends.direct {
            send_entry!(types::Fixed(at as u32), bytes, sends)
        } else {
            send_entry!(types::Fd(socket.as_raw_fd()), bytes, sends)
        }
        .user_data(at as u64);
        if sends.skip_success {
            entry = entry.flags(squeue::Flags::SKIP_SUCCESS);
        }
        // SAFETY: the sockets and the bytes outlive the batch, which is waited for below.
        unsafe { ring.push(&entry) };
    }
    // A send that may not wait is complete when it was submitted; only the notices of zero-copy sends come later.
    let mut missing = batch.len() * if sends.zero_copy { 2 } else { 1 };
    if sends.skip_success {
        ring.flush();
        missing = 0;
    }
    loop {
        if missing > 0 {
            ring.uring
                .submit_and_wait(1)
                .expect("the kernel takes a batch");
        }
        for entry in ring.uring.completion() {
            missing = missing.saturating_sub(1);
            if !cqueue::notif(entry.flags()) {
                taken(
                    entry.user_data() as usize,
                    usize::try_from(entry.result()).unwrap_or(0),
                );
                if sends.zero_copy && !cqueue::more(entry.flags()) {
                    missing = missing.saturating_sub(1);
                }
            }
        }
        if missing == 0 {
            return;
        }
    }
}
