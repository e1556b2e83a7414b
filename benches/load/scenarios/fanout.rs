//! One publication, many receivers: deliveries per second, latency and CPU, compared with what the kernel allows.
//!
//! In each run, each case measures first the bare loop and then each server, with the same clients, frames and windows.

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use crate::fleet::{Clients, Fleet, Plan};
use crate::limit::{Bare, Hold, Limit, LimitOutlet, Method, identifier};
use crate::names::case;
use crate::options::Options;
use crate::peer::Peer;
use crate::publisher::{Outlet, Publisher};
use crate::report::Report;
use crate::target::public_flags;

use super::drive::{Drive, Outcome};

const CLIENTS: usize = 15_000;
const STREAMS: usize = 1_000;
const SECONDS: u64 = 5;
const SMALL_BYTES: usize = 200;
const LARGE_BYTES: usize = 21_000;
/// Deliveries per second of the fixed-rate cases: about half of what one core can do.
const FIXED_RATE: f64 = 40_000.0;
/// The numbers of subscribers for the curve of deliveries.
const CURVE: [usize; 5] = [100, 1_000, 3_000, 10_000, 15_000];
const PATIENCE: Duration = Duration::from_secs(120);

/// Clients that are spread over public streams, with one stream each.
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
    /// `window` batches ahead of the receivers, `batch` messages in a batch.
    Closed { window: usize, batch: usize },
    /// This many deliveries per second.
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
        let together =
            |one: &Case, other: &Case| (one.clients, one.streams) == (other.clients, other.streams);
        for group in cases.chunk_by(together) {
            eprintln!(
                "fanout: run {} of {}, {} and the like",
                run + 1,
                options.runs,
                group[0].name
            );
            measure(options, group, &mut report);
        }
    }
    report.finish();
}

/// One run of the case that `beside` shows.
pub fn measure_one_stream(options: &Options, report: &mut Report) {
    let mut cases = cases(options);
    cases.retain(|case| case.name == case::ONE_STREAM);
    measure(options, &cases, report);
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

/// Measures cases with the same clients. All servers run at the same time and all but one are idle, so that compared figures
/// are measured within seconds of each other: the speed of a machine changes over time.
fn measure(options: &Options, group: &[Case], report: &mut Report) {
    let mut limit = Limit::start(options.cores, Hold::Bare, None);
    let pid = limit.pid();
    let spread = || {
        Arc::new(Spread {
            streams: group[0].streams,
        })
    };
    let bare_fleet = fleet_of(options, limit.address, Arc::new(Bare(spread())), group);
    let mut bare_drive = drive_of(&bare_fleet, group);
    let servers: Vec<(Peer, Fleet)> = options
        .targets()
        .iter()
        .map(|target| {
            let mut flags = public_flags();
            // So that pings do not count in the CPU of the deliveries.
            flags.push("--ping_interval=3600".to_owned());
            let peer = Peer::start(target, &flags, None);
            report.server(target.name, &peer.flags);
            let fleet = fleet_of(options, peer.address, spread(), group);
            (peer, fleet)
        })
        .collect();
    let mut driven: Vec<_> = servers
        .iter()
        .map(|(peer, fleet)| (peer, drive_of(fleet, group)))
        .collect();
    for case in group {
        let limits = [Method::Write, Method::Ring].map(|method| {
            let mut outlet = LimitOutlet {
                limit: &mut limit,
                method,
                gathered: false,
            };
            let outcome = pace(&mut bare_drive, case, &mut outlet, options, pid);
            outcome.tell(report, method.name(), &case.name, true);
            outcome
        });
        for (peer, drive) in &mut driven {
            // A new connection, because a server may close one that is idle.
            let mut publisher = Publisher::new(peer.broadcast_address);
            let outcome = pace(drive, case, &mut publisher, options, peer.pid());
            outcome.tell(report, peer.name, &case.name, true);
            tell_ratios(report, peer.name, case, &outcome, &limits);
        }
    }
}

fn fleet_of(
    options: &Options,
    address: SocketAddrV4,
    clients: Arc<dyn Clients>,
    group: &[Case],
) -> Fleet {
    let count = group[0].clients;
    let mut plan = Plan::new(address, clients, options.threads_for(count));
    plan.cpus = options.client_cpus();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(count, PATIENCE);
    fleet
}

fn drive_of<'a>(fleet: &'a Fleet, group: &[Case]) -> Drive<'a> {
    Drive::new(fleet, group[0].clients, group[0].streams)
}

fn tell_ratios(
    report: &mut Report,
    server: &str,
    case: &Case,
    outcome: &Outcome,
    [write, ring]: &[Outcome; 2],
) {
    let mut say =
        |metric: &str, value: f64| report.sample(server, &case.name, metric, "ratio", value);
    if matches!(case.pace, Pace::Closed { .. }) {
        let of = |limit: f64| outcome.per_second() / limit;
        say("deliveries/s, of write(2)", of(write.per_second()));
        say("deliveries/s, of io_uring SEND", of(ring.per_second()));
        say(
            "deliveries/s, of the better limit",
            of(write.per_second().max(ring.per_second())),
        );
    }
    let of = |limit: f64| outcome.cpu_per_delivery() / limit;
    say(
        "server CPU per delivery, of write(2)",
        of(write.cpu_per_delivery()),
    );
    say(
        "server CPU per delivery, of io_uring SEND",
        of(ring.cpu_per_delivery()),
    );
}

fn pace(
    drive: &mut Drive,
    case: &Case,
    outlet: &mut dyn Outlet,
    options: &Options,
    server: u32,
) -> Outcome {
    let time = Duration::from_secs(options.seconds.unwrap_or(SECONDS));
    drive.set_payload(case.payload_bytes);
    match case.pace {
        Pace::Closed { window, batch } => drive.closed_loop(outlet, (window, batch), time, server),
        Pace::Fixed(deliveries) => {
            let each = case.clients as f64 / case.streams as f64;
            drive.fixed_rate(outlet, deliveries / each, time, server)
        }
    }
}
