//! What this kernel allows with no server logic: frames per second into so many sockets, and bytes per idle socket.

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
/// Sockets that are open before the count begins, so that it does not hold what a process costs once.
const WARM_UP: usize = 200;
const PATIENCE: Duration = Duration::from_secs(120);
const SERVER: &str = "limit";

pub fn run(options: &Options) {
    let mut report = Report::new("limit", &options.shown);
    for run in 0..options.runs {
        for threads in [1, 2] {
            if threads <= machine_cpus() {
                eprintln!(
                    "limit: run {} of {}, {threads} threads",
                    run + 1,
                    options.runs
                );
                write_frames(options, threads, &mut report);
            }
        }
        for hold in Hold::ALL {
            eprintln!(
                "limit: run {} of {}, {}",
                run + 1,
                options.runs,
                hold.name()
            );
            hold_sockets(options, hold, &mut report);
        }
    }
    report.finish();
}

fn write_frames(options: &Options, threads: usize, report: &mut Report) {
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
    let mut measure = |name: String, method: Method, payload_bytes: usize, batch: usize| {
        let case = format!("{name}, {payload_bytes} B, {threads} threads");
        if !options.wants(&case) {
            return;
        }
        drive.set_payload(payload_bytes);
        let mut outlet = LimitOutlet {
            limit: &mut limit,
            method,
            gathered: batch > 1,
        };
        let outcome = drive.closed_loop(&mut outlet, (1, batch), time, &|| process::cpu(pid));
        outcome.tell(report, SERVER, &case, true);
    };
    for payload_bytes in [SMALL_BYTES, LARGE_BYTES] {
        for method in [Method::Write, Method::Ring] {
            measure(method.name().to_owned(), method, payload_bytes, 1);
        }
    }
    for batch in [8, 64] {
        measure(
            format!("writev(2) of {batch}"),
            Method::Write,
            SMALL_BYTES,
            batch,
        );
    }
}

fn hold_sockets(options: &Options, hold: Hold, report: &mut Report) {
    let case = format!("held by {}", hold.name());
    let Some(group) = KernelMemory::new().filter(|_| options.wants(&case)) else {
        return;
    };
    let clients = options.clients.unwrap_or(CLIENTS);
    let limit = Limit::start(1, hold, Some(&group));
    let spread = Arc::new(Bare(Arc::new(Spread { streams: 1 })));
    let mut plan = Plan::new(limit.address, spread, options.threads_for(clients));
    plan.cpus = options.client_cpus();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(WARM_UP, PATIENCE);
    let before = group.bytes();
    fleet.connect_all(clients - WARM_UP, PATIENCE);
    let bytes = group.bytes() as f64 - before as f64;
    report.sample(
        SERVER,
        &case,
        "kernel bytes per socket",
        "B",
        bytes / (clients - WARM_UP) as f64,
    );
    // The child goes first: it takes no notice of sockets that end.
    drop(limit);
}
