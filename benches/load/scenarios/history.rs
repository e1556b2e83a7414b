//! The cost of history: the same fan-out with the memory broker and without it, in turns.
//!
//! With it a publication goes by way of the home of its stream, gets a position and is kept, and every delivery says which
//! position it has.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fleet::{Fleet, Mark, Plan};
use crate::names::history::DELIVERIES;
use crate::options::Options;
use crate::peer::Peer;
use crate::publisher::{Outlet, Publisher};
use crate::report::Report;
use crate::target::{Target, public_flags};

use super::drive::{Drive, Outcome};
use super::fanout::Spread;

const CLIENTS: usize = 5_000;
const MANY_STREAMS: usize = 2_000;
const PAYLOAD_BYTES: usize = 200;
/// Numbers of shards; the clients have the other CPUs, or the same ones.
const SHARDS: [usize; 2] = [1, 2];
/// One turn. Short, so that both are measured within the same seconds.
const TURN: Duration = Duration::from_millis(1_000);
/// Turns of each in one run.
const TURNS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

const OFF: &str = "without history";
const ON: &str = "with history";

struct Case {
    name: String,
    streams: usize,
    shards: usize,
    /// Connections that publish at the same time, one message each.
    publishers: usize,
    /// Rounds of publications that may be ahead of the receivers.
    window: usize,
}

pub fn run(options: &Options) {
    let mut report = Report::new("history", &options.shown);
    report.name_peer_of(options);
    for run in 0..options.runs {
        for case in cases(options) {
            eprintln!(
                "history: run {} of {}, {}",
                run + 1,
                options.runs,
                case.name
            );
            let options = &Options {
                cores: case.shards,
                ..options.clone()
            };
            for target in options.targets() {
                measure(options, &target, &case, &mut report);
            }
        }
    }
    report.finish();
}

fn cases(options: &Options) -> Vec<Case> {
    let case = |streams: usize, shards: usize| {
        let one = streams == 1;
        let text = if one { "1 stream" } else { "2,000 streams" };
        let plural = if shards == 1 { "" } else { "s" };
        Case {
            name: format!("{text}, {shards} shard{plural}"),
            streams,
            shards,
            publishers: if one { 1 } else { 16 },
            window: if one { 8 } else { 2 },
        }
    };
    let shards = SHARDS.into_iter();
    let mut cases: Vec<Case> = shards
        .flat_map(|shards| [case(1, shards), case(MANY_STREAMS, shards)])
        .collect();
    cases.retain(|case| options.wants(&case.name));
    cases
}

/// A server, with history or without.
struct Side<'a> {
    name: &'static str,
    pid: u32,
    drive: Drive<'a>,
    outlet: Publishers,
}

fn measure(options: &Options, target: &Target, case: &Case, report: &mut Report) {
    let clients = options.clients.unwrap_or(CLIENTS);
    let started = [(OFF, None), (ON, Some("--broker=memory".to_owned()))].map(|(name, flag)| {
        let mut flags = public_flags();
        // So that pings do not count in the CPU of the deliveries.
        flags.push("--ping_interval=3600".to_owned());
        flags.extend(flag);
        let peer = Peer::start(target, &flags, None);
        report.server(&format!("{}, {name}", target.name), &peer.flags);
        let spread = Arc::new(Spread {
            streams: case.streams,
        });
        let mut plan = Plan::new(peer.address, spread, options.threads_for(clients));
        plan.cpus = options.client_cpus();
        let mut fleet = Fleet::start(&plan);
        fleet.connect_all(clients, PATIENCE);
        (name, peer, fleet)
    });
    let mut sides: Vec<Side> = started
        .iter()
        .map(|(name, peer, fleet)| Side {
            name,
            outlet: Publishers::new(peer, case.publishers),
            drive: Drive::new(fleet, clients, case.streams),
            pid: peer.pid(),
        })
        .collect();
    for _ in 0..TURNS {
        let mut outcomes: Vec<(&str, Outcome)> = Vec::new();
        for side in &mut sides {
            side.drive.set_payload(PAYLOAD_BYTES);
            let (outlet, ahead) = (&mut side.outlet, (case.window, case.publishers));
            let outcome = side.drive.closed_loop(outlet, ahead, TURN, side.pid);
            let named = format!("{}: {}", case.name, side.name);
            outcome.tell(report, target.name, &named, true);
            outcomes.push((side.name, outcome));
        }
        tell_ratios(report, target.name, case, &outcomes);
        // The other one goes first in the next turn.
        sides.reverse();
    }
}

fn tell_ratios(report: &mut Report, server: &str, case: &Case, outcomes: &[(&str, Outcome)]) {
    let of = |wanted: &str| {
        let found = outcomes.iter().find(|(name, _)| *name == wanted);
        &found.expect("both were measured").1
    };
    let (on, off) = (of(ON), of(OFF));
    let mut say = |metric: &str, value: f64| {
        report.sample(server, &case.name, metric, "ratio", value);
    };
    say(DELIVERIES, on.per_second() / off.per_second());
    say(
        "server CPU per delivery with history, of that without",
        on.cpu_per_delivery() / off.cpu_per_delivery(),
    );
}

/// Several connections that publish at the same time. The next round begins when all are answered, so each stream has one
/// order.
struct Publishers(Vec<Publisher>);

impl Publishers {
    fn new(peer: &Peer, count: usize) -> Self {
        let publisher = |_| Publisher::new(peer.broadcast_address);
        Self((0..count).map(publisher).collect())
    }
}

impl Outlet for Publishers {
    fn publish(&mut self, marks: &[Mark]) -> Duration {
        let begun = Instant::now();
        let used = self.0.iter_mut().zip(marks);
        used.for_each(|(publisher, mark)| publisher.send(std::slice::from_ref(mark)));
        let used = self.0.iter_mut().take(marks.len());
        used.for_each(Publisher::wait_taken);
        begun.elapsed()
    }
}
