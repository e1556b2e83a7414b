//! Connections that do nothing: what each costs, how fast they come, what pings cost, and what comes back when they go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fleet::{Clients, Figures, Fleet, Plan};
use crate::options::Options;
use crate::peer::{Peer, Target, public_flags};
use crate::process::KernelMemory;
use crate::report::Report;

const CLIENTS: usize = 15_000;
const SECONDS: u64 = 9;
/// Clients that come and go before the baseline, so that it holds what a server allocates once.
const WARM_UP: usize = 200;
const PATIENCE: Duration = Duration::from_secs(120);
const CASE: &str = "1 subscription";

/// One public stream for everybody.
struct OneStream;

impl Clients for OneStream {
    fn identifiers(&self, _index: u32) -> Vec<String> {
        vec![json!({"channel": "$pubsub", "stream_name": "everybody"}).to_string()]
    }

    fn stream(&self, _index: u32) -> Option<u32> {
        Some(0)
    }
}

pub fn run(options: &Options) {
    let mut report = Report::new("idle", &options.shown);
    for run in 0..options.runs {
        for target in options.targets() {
            eprintln!("idle: run {} of {}, {}", run + 1, options.runs, target.name);
            measure(options, &target, &mut report);
        }
    }
    report.finish();
}

fn measure(options: &Options, target: &Target, report: &mut Report) {
    let clients = options.clients.unwrap_or(CLIENTS);
    let group = KernelMemory::new();
    let peer = Peer::start(target, &public_flags(), group.as_ref());
    report.server(target.name, &peer.flags);
    let mut say = |metric: &str, unit: &str, value: f64| {
        report.sample(target.name, CASE, metric, unit, value)
    };
    say(
        "start to healthy",
        "ms",
        peer.started_in.as_secs_f64() * 1e3,
    );

    let mut plan = Plan::new(
        peer.address,
        Arc::new(OneStream),
        options.threads_for(clients),
    );
    plan.cpus = target.client_cpus();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(WARM_UP, PATIENCE);
    fleet.leave_all();
    let base = Bytes::settled(&peer, group.as_ref());

    let first = fleet.connect_all(clients / 2, PATIENCE);
    let half = Bytes::settled(&peer, group.as_ref());
    let second = fleet.connect_all(clients - clients / 2, PATIENCE);
    let full = Bytes::settled(&peer, group.as_ref());
    say(
        "connects per second",
        "1/s",
        clients as f64 / (first + second).as_secs_f64(),
    );
    tell_memory(&mut say, clients, base, half, full);
    let figures = fleet.take_figures();
    tell_setup(&mut say, &figures);

    let cpu = peer.cpu();
    let begun = Instant::now();
    std::thread::sleep(Duration::from_secs(options.seconds.unwrap_or(SECONDS)));
    let (used, elapsed) = (peer.cpu().since(cpu), begun.elapsed());
    let idle = fleet.take_figures();
    say(
        "CPU while idle",
        "ms/s",
        used.total().as_secs_f64() * 1e3 / elapsed.as_secs_f64(),
    );
    say(
        "CPU per ping",
        "µs",
        used.total().as_secs_f64() * 1e6 / idle.pings as f64,
    );
    say(
        "client: CPU per ping",
        "µs",
        idle.cpu.total().as_secs_f64() * 1e6 / idle.pings as f64,
    );

    fleet.leave_all();
    let left = Instant::now();
    for seconds in [0, 1, 5, 10] {
        std::thread::sleep(
            (left + Duration::from_secs(seconds)).saturating_duration_since(Instant::now()),
        );
        let rest = Bytes::now(&peer, group.as_ref())
            .user
            .saturating_sub(base.user);
        say(
            &format!("memory above start, {seconds} s after all left"),
            "kB",
            rest as f64 / 1e3,
        );
    }
}

/// Memory of a server: its own, and what the kernel holds for it where that can be counted.
#[derive(Clone, Copy)]
struct Bytes {
    user: u64,
    rss: u64,
    kernel: Option<u64>,
}

impl Bytes {
    fn now(peer: &Peer, group: Option<&KernelMemory>) -> Self {
        let memory = peer.memory();
        Self {
            user: memory.private_bytes,
            rss: memory.rss_bytes,
            kernel: group.map(KernelMemory::bytes),
        }
    }

    fn settled(peer: &Peer, group: Option<&KernelMemory>) -> Self {
        peer.settled_memory();
        Self::now(peer, group)
    }
}

fn tell_memory(
    say: &mut impl FnMut(&str, &str, f64),
    clients: usize,
    base: Bytes,
    half: Bytes,
    full: Bytes,
) {
    let per_client =
        |from: u64, to: u64, clients: usize| (to as f64 - from as f64) / clients as f64;
    let later = clients - clients / 2;
    let user = per_client(base.user, full.user, clients);
    say("user bytes per connection", "B", user);
    say(
        "user bytes per connection, slope of the second half",
        "B",
        per_client(half.user, full.user, later),
    );
    say(
        "RSS per connection",
        "B",
        per_client(base.rss, full.rss, clients),
    );
    if let (Some(from), Some(to)) = (base.kernel, full.kernel) {
        let kernel = per_client(from, to, clients);
        say("kernel bytes per connection", "B", kernel);
        say("whole system, bytes per connection", "B", user + kernel);
    }
}

fn tell_setup(say: &mut impl FnMut(&str, &str, f64), figures: &Figures) {
    for percent in [50.0, 99.0] {
        let millis = |micros: u64| micros as f64 / 1e3;
        say(
            &format!("connect to 101, p{percent}"),
            "ms",
            millis(figures.upgrade.percentile(percent)),
        );
        say(
            &format!("connect to welcome, p{percent}"),
            "ms",
            millis(figures.welcome.percentile(percent)),
        );
        say(
            &format!("connect to confirmation, p{percent}"),
            "ms",
            millis(figures.ready.percentile(percent)),
        );
    }
    say(
        "refused, rejected, closed",
        "",
        (figures.refused + figures.rejected + figures.closed) as f64,
    );
}
