//! Growth: memory per connection from 1,000 to 100,000 of them, and CPU per delivery with 1, 2 and 4 cores.
//!
//! On the smallest supported machine a process may open 20,000 files, so for more connections several servers run side by
//! side.

use std::sync::Arc;
use std::time::Duration;

use crate::fleet::{Fleet, Plan};
use crate::options::Options;
use crate::peer::Peer;
use crate::process::KernelMemory;
use crate::publisher::Publisher;
use crate::report::Report;
use crate::scenarios::drive::Drive;
use crate::scenarios::fanout::Spread;
use crate::scenarios::profiles::OneStream;
use crate::target::{Target, public_flags};

const SIZES: [usize; 7] = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000];
/// The size that the largest one is compared with.
const COMPARED_SIZE: usize = 10_000;
const CONNECTIONS_PER_SERVER: usize = 18_000;
const CORES: [usize; 3] = [1, 2, 4];
/// Subscribers of the one stream that is used to compare numbers of cores.
const LISTENERS: usize = 5_000;
const SECONDS: u64 = 5;
const MESSAGE_BYTES: usize = 200;
/// Publications on their way at a time.
const WINDOW: usize = 8;
const WARM_UP: usize = 200;
const PATIENCE: Duration = Duration::from_secs(180);
/// The rate at which clients connect to one server. Slow, because a rush would leave memory behind that does not belong to
/// the clients.
const ARRIVALS_PER_SECOND: f64 = 4_000.0;

pub fn run(options: &Options) {
    let mut report = Report::new("scale", &options.shown);
    let largest = options.clients.unwrap_or(usize::MAX);
    for run in 0..options.runs {
        for size in SIZES.into_iter().filter(|size| *size <= largest) {
            let case = format!("{size} connections");
            if options.wants(&case) {
                for target in options.targets() {
                    eprintln!(
                        "scale: run {} of {}, {case}, {}",
                        run + 1,
                        options.runs,
                        target.name
                    );
                    measure_memory(&target, size, &case, &mut report);
                }
            }
        }
        for cores in CORES {
            let case = if cores == 1 {
                "1 core".to_owned()
            } else {
                format!("{cores} cores")
            };
            if options.wants(&case) {
                let options = Options {
                    cores,
                    ..options.clone()
                };
                for target in options.targets() {
                    eprintln!(
                        "scale: run {} of {}, {case}, {}",
                        run + 1,
                        options.runs,
                        target.name
                    );
                    measure_cores(&options, &target, &case, &mut report);
                }
            }
        }
    }
    compare(options, &mut report);
    report.finish();
}

/// A server with its clients.
struct Site {
    peer: Peer,
    fleet: Fleet,
}

impl Site {
    fn start(target: &Target, group: Option<&KernelMemory>) -> Self {
        let peer = Peer::start(target, &public_flags(), group);
        let mut plan = Plan::new(peer.address, Arc::new(OneStream), 1);
        plan.cpus = target.client_cpus();
        let mut fleet = Fleet::start(&plan);
        fleet.connect_all(WARM_UP, PATIENCE);
        fleet.leave_all();
        Self { peer, fleet }
    }
}

fn measure_memory(target: &Target, size: usize, case: &str, report: &mut Report) {
    let group = KernelMemory::new();
    let servers = size.div_ceil(CONNECTIONS_PER_SERVER);
    let mut sites: Vec<Site> = (0..servers)
        .map(|_| Site::start(target, group.as_ref()))
        .collect();
    report.server(target.name, &sites[0].peer.flags);
    let user = |sites: &[Site]| {
        sites
            .iter()
            .map(|site| site.peer.settled_memory().private_bytes)
            .sum::<u64>()
    };
    let kernel = || group.as_ref().map(KernelMemory::bytes);
    let (user_base, kernel_base) = (user(&sites), kernel());
    for (number, site) in sites.iter_mut().enumerate() {
        let share = (size + servers - 1 - number) / servers;
        site.fleet.connect_paced(share, ARRIVALS_PER_SECOND);
        assert!(
            site.fleet.wait_ready(share as u64, PATIENCE),
            "{} of {share} are ready",
            site.fleet.ready()
        );
    }
    let each = |now: u64, base: u64| (now as f64 - base as f64) / size as f64;
    let user = each(user(&sites), user_base);
    let mut say = |metric: &str, unit: &str, value: f64| {
        report.sample(target.name, case, metric, unit, value)
    };
    say("servers", "", servers as f64);
    say("user memory per connection", "B", user);
    if let (Some(now), Some(base)) = (kernel(), kernel_base) {
        say("kernel memory per connection", "B", each(now, base));
        say("both per connection", "B", user + each(now, base));
    }
}

fn measure_cores(options: &Options, target: &Target, case: &str, report: &mut Report) {
    let listeners = options.clients.unwrap_or(LISTENERS).min(LISTENERS);
    let time = Duration::from_secs(options.seconds.unwrap_or(SECONDS));
    let mut flags = public_flags();
    flags.push("--ping_interval=3600".to_owned());
    let peer = Peer::start(target, &flags, None);
    let mut plan = Plan::new(
        peer.address,
        Arc::new(Spread { streams: 1 }),
        options.threads_for(listeners),
    );
    plan.cpus = target.client_cpus();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(listeners, PATIENCE);
    let mut drive = Drive::new(&fleet, listeners, 1);
    drive.set_payload(MESSAGE_BYTES);
    let mut publisher = Publisher::new(peer.broadcast_address);
    let outcome = drive.closed_loop(&mut publisher, (WINDOW, 1), time, peer.pid());
    outcome.tell(report, target.name, case, true);
}

/// The ratios that show whether growth costs anything, from the medians of all runs.
fn compare(options: &Options, report: &mut Report) {
    let (cpu, memory) = ("server CPU per delivery", "user memory per connection");
    for target in options.targets() {
        let median = |report: &Report, case: &str, metric: &str| {
            Some(report.row(target.name, case, metric)?.median())
        };
        for cores in [2, 4] {
            let case = format!("{cores} cores");
            if let (Some(many), Some(one)) =
                (median(report, &case, cpu), median(report, "1 core", cpu))
            {
                let metric = "server CPU per delivery, of that with 1 core";
                report.sample(target.name, &case, metric, "ratio", many / one);
            }
        }
        let small = format!("{COMPARED_SIZE} connections");
        for size in SIZES.into_iter().filter(|size| *size > COMPARED_SIZE) {
            let case = format!("{size} connections");
            if let (Some(large), Some(small)) = (
                median(report, &case, memory),
                median(report, &small, memory),
            ) {
                report.sample(
                    target.name,
                    &case,
                    "user memory, of that at 10000",
                    "ratio",
                    large / small,
                );
            }
        }
    }
}
