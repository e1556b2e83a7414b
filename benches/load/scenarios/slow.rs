//! Clients that have stopped reading among many that read: what they cost the others, the server and the kernel.
//!
//! The same fast clients are measured twice in a run: alone, and together with the stalled ones.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fleet::{Fleet, Plan};
use crate::histogram::Histogram;
use crate::options::Options;
use crate::peer::Peer;
use crate::process::KernelMemory;
use crate::publisher::Publisher;
use crate::report::Report;
use crate::sys::monotonic_nanos;
use crate::target::{Target, public_flags};

use super::drive::Drive;
use super::fanout::Spread;

const CLIENTS: usize = 2_000;
const STALLED: usize = 20;
const PAYLOAD_BYTES: usize = 21_000;
const SECONDS: u64 = 8;
/// Publications per second.
const RATE: f64 = 10.0;
const WARM_UP: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);
const CASE: &str = "20 stalled readers among 2,000";

pub fn run(options: &Options) {
    let mut report = Report::new("slow", &options.shown);
    for run in 0..options.runs {
        for target in options.targets() {
            eprintln!("slow: run {} of {}, {}", run + 1, options.runs, target.name);
            measure(options, &target, &mut report);
        }
    }
    report.finish();
}

/// Measured while messages were sent.
#[derive(Default)]
struct Seen {
    latency: Histogram,
    /// Memory and clients after each publication, when all fast clients had received it.
    looks: Vec<Look>,
    lost: u64,
}

struct Look {
    after: Duration,
    user_bytes: u64,
    kernel_bytes: u64,
    /// Number of clients according to the server.
    clients: f64,
}

impl Seen {
    fn millis(&self, percent: f64) -> f64 {
        self.latency.percentile(percent) as f64 / 1e6
    }

    fn median(&self, bytes: fn(&Look) -> u64) -> u64 {
        let mut sorted: Vec<u64> = self.looks.iter().map(bytes).collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }

    fn most(&self, bytes: fn(&Look) -> u64) -> u64 {
        self.looks.iter().map(bytes).max().unwrap_or(0)
    }
}

fn measure(options: &Options, target: &Target, report: &mut Report) {
    let clients = options.clients.unwrap_or(CLIENTS);
    let group = KernelMemory::new();
    let mut flags = public_flags();
    flags.push("--ping_interval=3600".to_owned());
    flags.push("--stats_refresh_interval=1".to_owned());
    let peer = Peer::start(target, &flags, group.as_ref());
    report.server(target.name, &peer.flags);
    let fleet_of = |count: usize| {
        let spread = Arc::new(Spread { streams: 1 });
        let mut plan = Plan::new(peer.address, spread, options.threads_for(count));
        plan.cpus = target.client_cpus();
        let mut fleet = Fleet::start(&plan);
        fleet.connect_all(count, PATIENCE);
        fleet
    };
    let (fleet, stalled) = (fleet_of(clients), fleet_of(STALLED));
    let mut drive = Drive::new(&fleet, clients, 1);
    drive.set_payload(options.payload_bytes.unwrap_or(PAYLOAD_BYTES));
    let mut publisher = Publisher::new(peer.broadcast_address);
    let mut publish = |time: Duration| {
        publish_for(
            time,
            &fleet,
            &mut drive,
            &mut publisher,
            &peer,
            group.as_ref(),
        )
    };
    let time = Duration::from_secs(options.seconds.unwrap_or(SECONDS));
    // Lets buffers grow to their size before the measurement, also those of the clients that will stall.
    publish(WARM_UP);
    let alone = publish(time);
    stalled.stall();
    let beside = publish(time);
    tell(
        report,
        target.name,
        &alone,
        &beside,
        clients,
        group.is_some(),
    );
}

fn tell(
    report: &mut Report,
    server: &str,
    alone: &Seen,
    beside: &Seen,
    clients: usize,
    kernel: bool,
) {
    let mut say =
        |metric: &str, unit: &str, value: f64| report.sample(server, CASE, metric, unit, value);
    for percent in [50.0, 99.0, 99.9] {
        say(
            &format!("fast clients, nobody stalls, p{percent}"),
            "ms",
            alone.millis(percent),
        );
        say(
            &format!("fast clients beside stalled ones, p{percent}"),
            "ms",
            beside.millis(percent),
        );
        say(
            &format!("p{percent}, of that when nobody stalls"),
            "ratio",
            beside.millis(percent) / alone.millis(percent),
        );
    }
    let each = |usual: u64, most: u64| (most as f64 - usual as f64) / STALLED as f64 / 1e3;
    let user = each(
        alone.median(|look| look.user_bytes),
        beside.most(|look| look.user_bytes),
    );
    say("server memory per stalled reader, at most", "kB", user);
    if kernel {
        let kernel = each(
            alone.median(|look| look.kernel_bytes),
            beside.most(|look| look.kernel_bytes),
        );
        say("kernel memory per stalled reader, at most", "kB", kernel);
    }
    say(
        "lost by fast clients",
        "",
        (alone.lost + beside.lost) as f64,
    );
    let last = beside.looks.last().map_or(0.0, |look| look.clients);
    say(
        "stalled readers disconnected",
        "",
        (clients + STALLED) as f64 - last,
    );
    let gone = beside
        .looks
        .iter()
        .find(|look| look.clients <= clients as f64);
    if let Some(look) = gone {
        say("all of them gone after", "s", look.after.as_secs_f64());
    }
}

/// Publishes at the fixed rate, and takes readings whenever the fast clients have received everything.
fn publish_for(
    time: Duration,
    fleet: &Fleet,
    drive: &mut Drive,
    publisher: &mut Publisher,
    peer: &Peer,
    group: Option<&KernelMemory>,
) -> Seen {
    fleet.take_figures();
    let mut seen = Seen::default();
    let begun = Instant::now();
    for number in 0..(time.as_secs_f64() * RATE) as u64 {
        let due = Duration::from_secs_f64(number as f64 / RATE);
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        let taken = drive.publish_one(publisher, monotonic_nanos());
        assert!(taken, "the fast clients do not get a message");
        seen.looks.push(Look {
            after: begun.elapsed(),
            user_bytes: peer.memory().private_bytes,
            kernel_bytes: group.map_or(0, KernelMemory::bytes),
            clients: peer.metric("anycable_go_clients_num").unwrap_or(f64::NAN),
        });
    }
    let figures = fleet.take_figures();
    seen.lost = figures.faults() + figures.closed;
    seen.latency = figures.latency;
    seen
}
