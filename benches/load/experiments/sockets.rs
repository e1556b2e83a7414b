//! Options that limit what the kernel queues for one socket: what fast readers lose, and what a stalled one costs.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsRawFd, OwnedFd};
use socket2::SockRef;

use super::cost::Cost;
use super::far::{Far, listen};
use super::{Bench, FAR_CPU, Setting};

const FAST_READERS: usize = 500;
const STALLED_READERS: usize = 50;
const MESSAGE_BYTES: usize = 21_000;
/// Messages that are queued for each fast reader before the writer waits.
const WINDOW: usize = 8;

#[derive(Clone, Copy)]
struct Options {
    not_sent_low: Option<u32>,
    send_buffer: Option<usize>,
}

const fn not_sent_low(bytes: u32) -> Options {
    Options {
        not_sent_low: Some(bytes),
        send_buffer: None,
    }
}

const fn send_buffer(bytes: usize) -> Options {
    Options {
        not_sent_low: None,
        send_buffer: Some(bytes),
    }
}

const VARIANTS: [(&str, Options); 6] = [
    (
        "default",
        Options {
            not_sent_low: None,
            send_buffer: None,
        },
    ),
    ("TCP_NOTSENT_LOWAT 16 KiB", not_sent_low(16 << 10)),
    ("TCP_NOTSENT_LOWAT 128 KiB", not_sent_low(128 << 10)),
    ("SO_SNDBUF 16 KiB", send_buffer(16 << 10)),
    ("SO_SNDBUF 64 KiB", send_buffer(64 << 10)),
    ("SO_SNDBUF 256 KiB", send_buffer(256 << 10)),
];

pub fn run(bench: &mut Bench) {
    for (name, options) in VARIANTS {
        bench.measure(&format!("socket options: {name}"), |setting, notes| {
            let fast = fast_readers(setting.count(FAST_READERS), options, setting.time);
            notes.say("messages per second, fast readers", "1/s", fast.rate);
            notes.say("CPU per message", "µs", fast.micros);
            notes.say("writes per message", "", fast.writes);
            let stalled = stalled_reader(setting, options);
            notes.say(
                "stalled reader: bytes taken, both ends",
                "kB",
                stalled.taken / 1e3,
            );
            notes.say(
                "stalled reader: memory of the send queue",
                "kB",
                stalled.queued / 1e3,
            );
            notes.say(
                "stalled reader: kernel memory, both ends",
                "kB",
                stalled.kernel / 1e3,
            );
        });
    }
}

fn open(far: &Far, count: usize, options: Options) -> Vec<OwnedFd> {
    let listener = listen(None);
    let sockets = far.open(&listener, count);
    for socket in &sockets {
        let socket = SockRef::from(socket);
        if let Some(bytes) = options.not_sent_low {
            socket
                .set_tcp_notsent_lowat(bytes)
                .expect("Linux has the option");
        }
        if let Some(bytes) = options.send_buffer {
            socket
                .set_send_buffer_size(bytes)
                .expect("Linux has the option");
        }
    }
    sockets
}

struct Fast {
    rate: f64,
    micros: f64,
    writes: f64,
}

/// Writes a window of messages to all readers as a server does: what a socket does not take waits until the socket is
/// writable.
fn fast_readers(count: usize, options: Options, time: Duration) -> Fast {
    let far = Far::start(FAR_CPU);
    let sockets = open(&far, count, options);
    far.read();
    let bytes = vec![b'x'; MESSAGE_BYTES * WINDOW];
    let (mut cost, mut rounds, mut writes) = (Cost::default(), 0u64, 0u64);
    while cost.elapsed < time {
        cost.count(|| {
            let mut rest: Vec<(usize, usize)> = (0..sockets.len()).map(|at| (at, 0)).collect();
            while !rest.is_empty() {
                rest.retain_mut(|(at, sent)| {
                    writes += 1;
                    *sent += rustix::io::write(&sockets[*at], &bytes[*sent..]).unwrap_or(0);
                    *sent < bytes.len()
                });
                wait_for_room(&sockets, &rest);
            }
        });
        rounds += 1;
        let all = rounds * (sockets.len() * bytes.len()) as u64;
        let begun = std::time::Instant::now();
        far.wait_read(all);
        cost.elapsed += begun.elapsed();
    }
    let messages = rounds * (sockets.len() * WINDOW) as u64;
    Fast {
        rate: cost.rate(messages),
        micros: cost.micros_each(messages),
        writes: writes as f64 / messages as f64,
    }
}

fn wait_for_room(sockets: &[OwnedFd], rest: &[(usize, usize)]) {
    if rest.is_empty() {
        return;
    }
    let mut waiting: Vec<PollFd> = rest
        .iter()
        .map(|(at, _)| PollFd::new(&sockets[*at], PollFlags::OUT))
        .collect();
    let _ = poll(&mut waiting, None);
}

struct Stalled {
    taken: f64,
    queued: f64,
    kernel: f64,
}

/// Writes to readers that never read until no socket takes more; the figures are per reader.
fn stalled_reader(setting: &Setting, options: Options) -> Stalled {
    let far = Far::start(FAR_CPU);
    let sockets = open(&far, STALLED_READERS, options);
    let before = setting.kernel_bytes();
    let bytes = vec![b'x'; MESSAGE_BYTES];
    let mut taken = 0;
    // After a write the far end's queue still takes bytes from the send queue for a moment.
    for _ in 0..20 {
        for socket in &sockets {
            while let Ok(written) = rustix::io::write(socket, &bytes) {
                taken += written;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let each = |bytes: f64| bytes / sockets.len() as f64;
    let queued: u64 = sockets.iter().map(send_queue_bytes).sum();
    Stalled {
        taken: each(taken as f64),
        queued: each(queued as f64),
        kernel: each(setting.kernel_bytes() - before),
    }
}

/// Memory that the kernel has charged to a socket's send queue.
fn send_queue_bytes(socket: &OwnedFd) -> u64 {
    const FIELDS: usize = 9; // SK_MEMINFO_VARS
    const QUEUED: usize = 5; // SK_MEMINFO_WMEM_QUEUED
    let mut fields = [0u32; FIELDS];
    let mut length = size_of_val(&fields) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the array and its length are what the option fills.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            fields.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "Linux has the option");
    u64::from(fields[QUEUED])
}
