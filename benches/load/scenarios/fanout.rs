//! One publication, many receivers: deliveries per second, latency and CPU, beside what the kernel allows.
//!
//! Each run measures the bare loop first, then each server, with the same clients, frames and windows.

use std::sync::Arc;
use std::time::Duration;

use crate::fleet::{Clients, Fleet, Plan};
use crate::limit::{Bare, Hold, Limit, LimitOutlet, Method, identifier};
use crate::options::Options;
use crate::peer::{Peer, Target, public_flags};
use crate::publisher::Publisher;
use crate::report::Report;

use super::drive::{Drive, Outcome};

const CLIENTS: usize = 15_000;
const STREAMS: usize = 1_000;
const SECONDS: u64 = 5;
const SMALL_BYTES: usize = 200;
const LARGE_BYTES: usize = 21_000;
/// Deliveries per second of the cases with a fixed rate: about half of what one core can do.
const FIXED_RATE: f64 = 40_000.0;
/// Where the curve of deliveries against subscribers is measured.
const CURVE: [usize; 5] = [100, 1_000, 3_000, 10_000, 15_000];
const PATIENCE: Duration = Duration::from_secs(120);

/// Clients that are spread over public streams, one each.
pub struct Spread {
    pub streams: usize,
}

impl Clients for Spread {
    fn identifiers(&self, index: u32) -> Vec<String> {
        vec![identifier(index % self.streams as u32)]
    }

    fn stream(&self, index: u32) -> Option<u32> {
        Some(index % self.streams as u32)
    }
}

/// How a case publishes.
#[derive(Clone, Copy)]
enum Pace {
    /// So many batches ahead of the receivers, so many messages in a batch.
    Closed { window: usize, batch: usize },
    /// Deliveries per second.
    Fixed(f64),
}

struct Case {
    name: String,
    clients: usize,
    streams: usize,
    payload_bytes: usize,
    pace: Pace,
}

pub fn run(options: &Options) {
    let cases = cases(options);
    let mut report = Report::new("fanout", &options.shown);
    for run in 0..options.runs {
        for group in cases
            .chunk_by(|one, other| (one.clients, one.streams) == (other.clients, other.streams))
        {
            eprintln!(
                "fanout: run {} of {}, {} and the like",
                run + 1,
                options.runs,
                group[0].name
            );
            let limits = measure_limit(options, group, &mut report);
            for target in options.targets() {
                measure_server(options, &target, group, &limits, &mut report);
            }
        }
    }
    report.finish();
}

fn cases(options: &Options) -> Vec<Case> {
    let clients = options.clients.unwrap_or(CLIENTS);
    let many = options.streams.unwrap_or(STREAMS).min(clients);
    let payloads = match options.payload_bytes {
        Some(bytes) => vec![bytes],
        None => vec![SMALL_BYTES, LARGE_BYTES],
    };
    let mut cases = Vec::new();
    for streams in [1, many] {
        for payload_bytes in payloads.clone() {
            let mut add = |name: &str, pace: Pace| {
                let text = if streams == 1 {
                    "1 stream".to_owned()
                } else {
                    format!("{streams} streams")
                };
                let name = format!("{text}, {payload_bytes} B, {name}");
                cases.push(Case {
                    name,
                    clients,
                    streams,
                    payload_bytes,
                    pace,
                });
            };
            add(
                "window 1",
                Pace::Closed {
                    window: 1,
                    batch: 1,
                },
            );
            add(
                "window 8",
                Pace::Closed {
                    window: 8,
                    batch: 1,
                },
            );
            if payload_bytes < LARGE_BYTES {
                add("fixed rate", Pace::Fixed(FIXED_RATE));
                add(
                    "batches of 20, window 1",
                    Pace::Closed {
                        window: 1,
                        batch: 20,
                    },
                );
            }
        }
    }
    for subscribers in CURVE.into_iter().filter(|_| options.clients.is_none()) {
        cases.push(Case {
            name: format!("{subscribers} subscribers"),
            clients: subscribers,
            streams: 1,
            payload_bytes: SMALL_BYTES,
            pace: Pace::Closed {
                window: 1,
                batch: 1,
            },
        });
    }
    cases.retain(|case| options.wants(&case.name));
    cases
}

/// Measures the bare loop both ways; gives its deliveries per second by write(2) and by the ring, for each case.
fn measure_limit(options: &Options, group: &[Case], report: &mut Report) -> Vec<[f64; 2]> {
    let (clients, streams) = (group[0].clients, group[0].streams);
    let mut limit = Limit::start(options.cores, Hold::Bare, None);
    let spread = Arc::new(Bare(Arc::new(Spread { streams })));
    let mut plan = Plan::new(limit.address, spread, options.threads_for(clients));
    plan.cpus = options.client_cpus();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(clients, PATIENCE);
    let mut drive = Drive::new(&fleet, clients, streams);
    let mut measure = |case: &Case, method: Method| {
        drive.set_payload(case.payload_bytes);
        let pid = limit.pid();
        let cpu = || crate::process::cpu(pid);
        let mut outlet = LimitOutlet {
            limit: &mut limit,
            method,
            gathered: false,
        };
        let outcome = pace(&mut drive, case, &mut outlet, options, &cpu);
        outcome.tell(report, method.name(), &case.name, true);
        outcome.per_second()
    };
    let both = |case: &Case| [measure(case, Method::Write), measure(case, Method::Ring)];
    group.iter().map(both).collect()
}

fn measure_server(
    options: &Options,
    target: &Target,
    group: &[Case],
    limits: &[[f64; 2]],
    report: &mut Report,
) {
    let (clients, streams) = (group[0].clients, group[0].streams);
    let mut flags = public_flags();
    // Pings would be among the deliveries' CPU.
    flags.push("--ping_interval=3600".to_owned());
    let peer = Peer::start(target, &flags, None);
    report.server(target.name, &peer.flags);
    let mut plan = Plan::new(
        peer.address,
        Arc::new(Spread { streams }),
        options.threads_for(clients),
    );
    plan.cpus = target.client_cpus();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(clients, PATIENCE);
    let mut drive = Drive::new(&fleet, clients, streams);
    let mut publisher = Publisher::connect(peer.broadcast_address);
    for (case, [write, ring]) in group.iter().zip(limits) {
        drive.set_payload(case.payload_bytes);
        let outcome = pace(&mut drive, case, &mut publisher, options, &|| peer.cpu());
        outcome.tell(report, target.name, &case.name, true);
        if matches!(case.pace, Pace::Closed { .. }) {
            let mut say = |metric: &str, of: f64| {
                report.sample(
                    target.name,
                    &case.name,
                    metric,
                    "ratio",
                    outcome.per_second() / of,
                );
            };
            say("deliveries/s, of write(2)", *write);
            say("deliveries/s, of io_uring SEND", *ring);
            say("deliveries/s, of the better limit", write.max(*ring));
        }
    }
}

fn pace(
    drive: &mut Drive,
    case: &Case,
    outlet: &mut dyn crate::publisher::Outlet,
    options: &Options,
    cpu: &dyn Fn() -> crate::sys::Cpu,
) -> Outcome {
    let time = Duration::from_secs(options.seconds.unwrap_or(SECONDS));
    match case.pace {
        Pace::Closed { window, batch } => drive.closed_loop(outlet, (window, batch), time, cpu),
        Pace::Fixed(deliveries) => {
            let each = case.clients as f64 / case.streams as f64;
            drive.fixed_rate(outlet, deliveries / each, time, cpu)
        }
    }
}
