//! Publishers are faster than the sockets: deliveries per second, and messages per write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fleet::{Fleet, Mark, Plan};
use crate::limit::{Bare, Hold, Limit, LimitOutlet, Method};
use crate::options::Options;
use crate::peer::Peer;
use crate::publisher::{Outlet, Publisher};
use crate::report::Report;
use crate::target::{Target, public_flags};

use super::drive::Drive;
use super::fanout::Spread;

const CLIENTS: usize = 5_000;
const SECONDS: u64 = 5;
const PAYLOAD_BYTES: usize = 200;
const PATIENCE: Duration = Duration::from_secs(120);

/// Connections of the case with many publishers.
const PUBLISHERS: usize = 16;
/// Publications ahead of the slowest receiver. With more than a socket can take, receivers would be dropped as slow clients.
const AHEAD_MAX: usize = 256;
/// Messages of one batch.
const BATCH: usize = 64;

const CASE_PUBLISHERS: &str = "16 publishers";
const CASE_BATCHES: &str = "batches of 64";

/// Several connections that publish one message each at the same time.
struct Crowd(Vec<Publisher>);

impl Outlet for Crowd {
    fn publish(&mut self, marks: &[Mark]) -> Duration {
        let begun = Instant::now();
        for (publisher, mark) in self.0.iter_mut().zip(marks) {
            publisher.send(std::slice::from_ref(mark));
        }
        for (publisher, _) in self.0.iter_mut().zip(marks) {
            publisher.wait_taken();
        }
        begun.elapsed()
    }
}

pub fn run(options: &Options) {
    let mut report = Report::new("burst", &options.shown);
    for run in 0..options.runs {
        eprintln!("burst: run {} of {}", run + 1, options.runs);
        let one_write_each = measure_limit(options, &mut report);
        for target in options.targets() {
            measure_server(options, &target, one_write_each, &mut report);
        }
    }
    report.finish();
}

/// Measures the bare loop, also gathered; returns its deliveries per second with one write(2) per message.
fn measure_limit(options: &Options, report: &mut Report) -> f64 {
    let clients = options.clients.unwrap_or(CLIENTS);
    let mut limit = Limit::start(options.cores, Hold::Bare, None);
    let spread = Arc::new(Bare(Arc::new(Spread { streams: 1 })));
    let mut plan = Plan::new(limit.address, spread, options.threads_for(clients));
    plan.cpus = options.client_cpus();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(clients, PATIENCE);
    let mut drive = Drive::new(&fleet, clients, 1);
    drive.set_payload(options.payload_bytes.unwrap_or(PAYLOAD_BYTES));
    let pid = limit.pid();
    let mut single = 0.0;
    for (case, batch) in [
        ("one write(2) each", 1),
        ("writev(2) of 8", 8),
        ("writev(2) of 64", 64),
    ] {
        let mut outlet = LimitOutlet {
            limit: &mut limit,
            method: Method::Write,
            gathered: batch > 1,
        };
        let window = (AHEAD_MAX / batch).min(8);
        let outcome = drive.closed_loop(&mut outlet, (window, batch), time(options), pid);
        outcome.tell(report, "limit", case, true);
        if batch == 1 {
            single = outcome.per_second();
        }
    }
    single
}

fn measure_server(options: &Options, target: &Target, one_write_each: f64, report: &mut Report) {
    let clients = options.clients.unwrap_or(CLIENTS);
    let mut flags = public_flags();
    flags.push("--ping_interval=3600".to_owned());
    let peer = Peer::start(target, &flags, None);
    report.server(target.name, &peer.flags);
    let mut plan = Plan::new(
        peer.address,
        Arc::new(Spread { streams: 1 }),
        options.threads_for(clients),
    );
    plan.cpus = target.client_cpus();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(clients, PATIENCE);
    let mut drive = Drive::new(&fleet, clients, 1);
    drive.set_payload(options.payload_bytes.unwrap_or(PAYLOAD_BYTES));
    let mut crowd = Crowd(
        (0..PUBLISHERS)
            .map(|_| Publisher::new(peer.broadcast_address))
            .collect(),
    );
    let mut single = Publisher::new(peer.broadcast_address);
    let outlets: [(&str, &mut dyn Outlet, usize); 2] = [
        (CASE_PUBLISHERS, &mut crowd, PUBLISHERS),
        (CASE_BATCHES, &mut single, BATCH),
    ];
    for (case, outlet, batch) in outlets {
        if !options.wants(case) {
            continue;
        }
        let counted = || {
            Some((
                peer.metric("anycable_go_server_msg_total")?,
                peer.metric("ringcable_writes_total")?,
            ))
        };
        let before = counted();
        let outcome = drive.closed_loop(
            outlet,
            (AHEAD_MAX / batch, batch),
            time(options),
            peer.pid(),
        );
        outcome.tell(report, target.name, case, batch != PUBLISHERS);
        let mut say =
            |metric: &str, value: f64| report.sample(target.name, case, metric, "ratio", value);
        say(
            "deliveries/s, of one write(2) each",
            outcome.per_second() / one_write_each,
        );
        if let (Some((messages, writes)), Some((messages_before, writes_before))) =
            (counted(), before)
        {
            say(
                "messages per write",
                (messages - messages_before) / (writes - writes_before),
            );
        }
    }
}

fn time(options: &Options) -> Duration {
    Duration::from_secs(options.seconds.unwrap_or(SECONDS))
}
