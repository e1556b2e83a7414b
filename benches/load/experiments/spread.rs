//! How the kernel distributes connections over two listeners of one port.

use std::net::SocketAddrV4;

use rustix::fd::AsRawFd;
use socket2::Socket;

use super::Bench;
use super::far::{CHUNK, Far, address_of, listen};

const CONNECTIONS: usize = 10_000;
const LISTENERS: usize = 2;

/// The rule that chooses the listener.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The kernel's hash of addresses and ports.
    Hash,
    /// The CPU on which the first packet arrived.
    Cpu,
    Random,
}

pub fn run(bench: &mut Bench) {
    let rules = [
        ("by hash", Rule::Hash),
        ("by CPU", Rule::Cpu),
        ("by random", Rule::Random),
    ];
    for (name, rule) in rules {
        for (sources_name, sources) in [("one source", 1), ("2,000 sources", 2_000)] {
            for (cpus_name, cpus) in [
                ("clients on both CPUs", &[0, 1][..]),
                ("clients on one CPU", &[1]),
            ] {
                let case = format!("spread: {name}, {sources_name}, {cpus_name}");
                bench.measure(&case, |setting, notes| {
                    let taken = measure(rule, sources, cpus, setting.count(CONNECTIONS));
                    let all: usize = taken.iter().sum();
                    let most = *taken.iter().max().expect("there are listeners");
                    notes.say(
                        "share of the fuller listener",
                        "%",
                        100.0 * most as f64 / all as f64,
                    );
                });
            }
        }
    }
}

/// Connections that each listener got.
fn measure(rule: Rule, sources: u32, cpus: &[usize], count: usize) -> [usize; LISTENERS] {
    let first = listen(Some(0));
    let address: SocketAddrV4 = address_of(&first);
    let listeners = [first, listen(Some(address.port()))];
    if rule != Rule::Hash {
        attach(&listeners[0], rule);
    }
    for listener in &listeners {
        listener.set_nonblocking(true).expect("it may not block");
    }
    let fars: Vec<Far> = cpus.iter().map(|cpu| Far::start(&[*cpu])).collect();
    let mut taken = [0; LISTENERS];
    let mut accepted = Vec::with_capacity(count);
    while accepted.len() < count {
        let chunk = CHUNK.min(count - accepted.len()) / fars.len();
        for far in &fars {
            far.connect(address, chunk.max(1), sources);
            far.wait();
        }
        for (listener, taken) in listeners.iter().zip(&mut taken) {
            while let Ok((socket, _)) = listener.accept() {
                accepted.push(socket);
                *taken += 1;
            }
        }
    }
    taken
}

/// Attaches a classic packet filter program that returns the number of a listener.
fn attach(listener: &Socket, rule: Rule) {
    let field = match rule {
        Rule::Cpu => libc::SKF_AD_CPU,
        _ => libc::SKF_AD_RANDOM,
    };
    let step = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let mut steps = [
        step(
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            (libc::SKF_AD_OFF + field) as u32,
        ),
        step(
            libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K,
            LISTENERS as u32,
        ),
        step(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let program = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the descriptor is open; the program and its steps live through the call, which copies them.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "the kernel takes the program");
}
