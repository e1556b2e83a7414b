//! What this kernel allows without server logic: frames per second into many sockets, and bytes per idle socket.

use std::sync::Arc;
use std::time::Duration;

use crate::fleet::{Fleet, Plan};
use crate::limit::{Bare, Hold, Limit, LimitOutlet, Method};
use crate::options::Options;
use crate::process::{self, KernelMemory, machine_cpus};
use crate::report::Report;

use super::drive::Drive;
use super::fanout::Spread;

const CLIENTS: usize = 15_000;
const SECONDS: u64 = 5;
const SMALL_BYTES: usize = 200;
const LARGE_BYTES: usize = 21_000;
/// Sockets that are opened before the count begins, so that the count leaves out the one-time costs of a process.
const WARM_UP: usize = 200;
const PATIENCE: Duration = Duration::from_secs(120);
const SERVER: &str = "limit";

pub fn run(options: &Options) {
    let mut report = Report::new("limit", &options.shown);
    for run in 0..options.runs {
        for threads in [1, 2]
            .into_iter()
            .filter(|threads| *threads <= machine_cpus())
        {
            write_frames(options, threads, &mut report);
        }
        hold_all(options, run, &mut report);
    }
    report.finish();
}

/// A way of writing.
struct Way {
    name: String,
    method: Method,
    payload_bytes: usize,
    /// Frames in one write.
    gathered: usize,
}

fn ways(options: &Options, threads: usize) -> Vec<Way> {
    let single = [SMALL_BYTES, LARGE_BYTES].into_iter().flat_map(|bytes| {
        [Method::Write, Method::Ring].map(|method| (method.name().to_owned(), method, bytes, 1))
    });
    let gathered = [8, 64].map(|frames| {
        (
            format!("writev(2) of {frames}"),
            Method::Write,
            SMALL_BYTES,
            frames,
        )
    });
    let ways = single
        .chain(gathered)
        .map(|(name, method, payload_bytes, gathered)| {
            let threads = if threads == 1 {
                "1 thread".to_owned()
            } else {
                format!("{threads} threads")
            };
            Way {
                name: format!("{name}, {payload_bytes} B, {threads}"),
                method,
                payload_bytes,
                gathered,
            }
        });
    ways.filter(|way| options.wants(&way.name)).collect()
}

fn write_frames(options: &Options, threads: usize, report: &mut Report) {
    let ways = ways(options, threads);
    if ways.is_empty() {
        return;
    }
    eprintln!("limit: {threads} threads");
    let clients = options.clients.unwrap_or(CLIENTS);
    let time = Duration::from_secs(options.seconds.unwrap_or(SECONDS));
    let mut limit = Limit::start(threads, Hold::Bare, None);
    let pid = limit.pid();
    let spread = Arc::new(Bare(Arc::new(Spread { streams: 1 })));
    let mut plan = Plan::new(limit.address, spread, options.threads_for(clients));
    plan.cpus = (threads..machine_cpus()).collect();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(clients, PATIENCE);
    let mut drive = Drive::new(&fleet, clients, 1);
    for way in &ways {
        drive.set_payload(way.payload_bytes);
        let mut outlet = LimitOutlet {
            limit: &mut limit,
            method: way.method,
            gathered: way.gathered > 1,
        };
        let outcome = drive.closed_loop(&mut outlet, (1, way.gathered), time, pid);
        outcome.tell(report, SERVER, &way.name, true);
    }
}

/// Bytes per socket.
#[derive(Clone, Copy)]
struct Held {
    charged: f64,
    /// In slabs outside all groups, with the client's end.
    uncharged: f64,
}

fn hold_all(options: &Options, run: usize, report: &mut Report) {
    let hold = |hold: Hold| {
        eprintln!(
            "limit: run {} of {}, {}",
            run + 1,
            options.runs,
            hold.name()
        );
        hold_sockets(options, hold)
    };
    let wanted: Vec<Hold> = Hold::ALL
        .into_iter()
        .filter(|hold| options.wants(&case_of(*hold)))
        .collect();
    if wanted.is_empty() {
        return;
    }
    // A client is held by epoll too, so its end is half of this result.
    let Some(epoll) = hold(Hold::Epoll) else {
        return eprintln!("no memory group can be made here: bytes per socket are not measured");
    };
    for way in wanted {
        let held = if way == Hold::Epoll {
            Some(epoll)
        } else {
            hold(way)
        };
        let held = held.expect("a group was made before");
        let uncharged = held.uncharged - epoll.uncharged / 2.0;
        let mut say =
            |metric: &str, value: f64| report.sample(SERVER, &case_of(way), metric, "B", value);
        say("kernel bytes per socket", held.charged + uncharged);
        say("of them charged to its group", held.charged);
        say("of them in slabs that no group is charged for", uncharged);
    }
}

fn case_of(hold: Hold) -> String {
    format!("held by {}", hold.name())
}

fn hold_sockets(options: &Options, hold: Hold) -> Option<Held> {
    let group = KernelMemory::new()?;
    let clients = options.clients.unwrap_or(CLIENTS);
    let limit = Limit::start(1, hold, Some(&group));
    let spread = Arc::new(Bare(Arc::new(Spread { streams: 1 })));
    let mut plan = Plan::new(limit.address, spread, options.threads_for(clients));
    plan.cpus = options.client_cpus();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(WARM_UP, PATIENCE);
    let before = (group.bytes(), process::uncharged_bytes());
    fleet.connect_all(clients - WARM_UP, PATIENCE);
    let after = (group.bytes(), process::uncharged_bytes());
    // The child ends first: it does not notice sockets that are closed.
    drop(limit);
    let each =
        |before: u64, after: u64| (after as f64 - before as f64) / (clients - WARM_UP) as f64;
    Some(Held {
        charged: each(before.0, after.0),
        uncharged: each(before.1, after.1),
    })
}
