//! Clients connect and leave for hours: memory must stay constant. Each connects, subscribes through the app, receives from
//! the stream, and leaves.
//!
//! Only one run, because it is long. Every second is a line of `benches/results/churn.csv`; the plot shows the lines with
//! the fitted slope.

use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::app::App;
use crate::fleet::{Figures, Fleet, Mark, Plan};
use crate::names::case;
use crate::options::Options;
use crate::peer::Peer;
use crate::plot::{WARM_UP_SHARE, fitted_line};
use crate::process::KernelMemory;
use crate::publisher::{Outlet as _, Publisher};
use crate::report::{Report, Row, results_folder};
use crate::scenarios::profiles::OneChannel;
use crate::sys::monotonic_nanos;
use crate::target::Target;

const CLIENTS_PER_SECOND: f64 = 500.0;
const SECONDS: u64 = 1800;
/// Clients at a time: each stays for 0.4 s.
const POPULATION: usize = 200;
/// The interval at which a message is published and the oldest clients leave: a client receives two or three messages.
const BEAT: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(30);
const MESSAGE_BYTES: u32 = 200;

/// One second.
struct Sample {
    seconds: f64,
    private_bytes: u64,
    descriptors: usize,
    kernel_bytes: u64,
}

pub fn run(options: &Options) {
    let mut report = Report::new("churn", &options.shown);
    let mut lines = "seconds,server,private_bytes,descriptors,kernel_bytes\n".to_owned();
    for target in options.targets() {
        eprintln!("churn: {}", target.name);
        for sample in measure(options, &target, &mut report) {
            let Sample {
                seconds,
                private_bytes,
                descriptors,
                kernel_bytes,
            } = sample;
            let _ = writeln!(
                lines,
                "{seconds:.1},{},{private_bytes},{descriptors},{kernel_bytes}",
                target.name
            );
        }
    }
    report.finish();
    let path = results_folder().join("churn.csv");
    match fs::write(&path, lines) {
        Ok(()) => println!("every second: {}", path.display()),
        Err(error) => eprintln!("cannot write {}: {error}", path.display()),
    }
}

fn measure(options: &Options, target: &Target, report: &mut Report) -> Vec<Sample> {
    let time = Duration::from_secs(options.seconds.unwrap_or(SECONDS));
    let app = App::start(Duration::ZERO, target.client_cpus()).expect("the app starts");
    let group = KernelMemory::new();
    // As many Disconnect calls per second as clients leave, because otherwise their queue would grow.
    let flags = [
        app.flag(),
        "--disconnect_rate=1000".to_owned(),
        "--broadcast_adapter=http".to_owned(),
    ];
    let peer = Peer::start(target, &flags, group.as_ref());
    report.server(target.name, &peer.flags);
    let mut plan = Plan::new(peer.address, Arc::new(OneChannel), options.threads.max(1));
    plan.cpus = target.client_cpus();
    plan.joins_late = true;
    let mut fleet = Fleet::start(&plan);
    let mut publisher = Publisher::new(peer.broadcast_address);
    fleet.connect_all(POPULATION, PATIENCE);

    let begun = Instant::now();
    let total = (time.as_secs_f64() * CLIENTS_PER_SECOND) as usize;
    fleet.connect_paced(total, CLIENTS_PER_SECOND);
    let (mut samples, mut left, mut sequence) = (Vec::new(), 0, 0);
    while begun.elapsed() < time {
        std::thread::sleep(
            BEAT.mul_f64(f64::from(sequence + 1))
                .saturating_sub(begun.elapsed()),
        );
        publisher.publish(&[Mark {
            stream: 0,
            sequence,
            nanos: monotonic_nanos(),
            bytes: MESSAGE_BYTES,
        }]);
        sequence += 1;
        let surplus = (fleet.ready() as usize).saturating_sub(POPULATION);
        fleet.leave(surplus);
        left += surplus;
        if begun.elapsed().as_secs() as usize > samples.len() {
            samples.push(Sample {
                seconds: begun.elapsed().as_secs_f64(),
                private_bytes: peer.memory().private_bytes,
                descriptors: descriptors(&peer),
                kernel_bytes: group.as_ref().map_or(0, KernelMemory::bytes),
            });
        }
    }
    let rate = left as f64 / begun.elapsed().as_secs_f64();
    tell(report, target, rate, &samples, &fleet.take_figures());
    report.sample(
        target.name,
        case::CHURN,
        "RPC calls that the app did not understand",
        "",
        app.counts().errors() as f64,
    );
    samples
}

/// Open descriptors of the server.
fn descriptors(peer: &Peer) -> usize {
    fs::read_dir(format!("/proc/{}/fd", peer.pid())).map_or(0, Iterator::count)
}

fn tell(report: &mut Report, target: &Target, rate: f64, samples: &[Sample], figures: &Figures) {
    let settled = &samples[(samples.len() as f64 * WARM_UP_SHARE) as usize..];
    let median = |samples: &[Sample], value: fn(&Sample) -> f64| {
        let values = samples.iter().map(value).collect();
        Row {
            values,
            ..Row::default()
        }
        .median()
    };
    let private = |sample: &Sample| sample.private_bytes as f64;
    let points: Vec<(f64, f64)> = settled
        .iter()
        .map(|sample| (sample.seconds, private(sample)))
        .collect();
    let (slope, _) = fitted_line(&points);
    let part = settled.len().div_ceil(10);
    let (first, last) = (&settled[..part], &settled[settled.len() - part..]);
    let mut say = |metric: &str, unit: &str, value: f64| {
        report.sample(target.name, case::CHURN, metric, unit, value)
    };
    say("clients that came and left", "1/s", rate);
    say(
        "deliveries per client",
        "",
        figures.deliveries as f64 / figures.ready.count() as f64,
    );
    say(
        "connect to confirmation, p99",
        "ms",
        figures.ready.percentile(99.0) as f64 / 1e3,
    );
    say(
        "refused, closed by the server",
        "",
        (figures.refused + figures.closed) as f64,
    );
    say(
        "deliveries lost, doubled or wrong",
        "",
        figures.faults() as f64,
    );
    say(
        "private memory, first tenth",
        "MB",
        median(first, private) / 1e6,
    );
    say(
        "private memory, last tenth",
        "MB",
        median(last, private) / 1e6,
    );
    say("slope of private memory", "kB/min", slope * 60.0 / 1e3);
    say(
        "growth in an hour",
        "%",
        slope * 3600.0 / median(settled, private) * 100.0,
    );
    for (name, samples) in [("first", first), ("last", last)] {
        say(
            &format!("descriptors, {name} tenth"),
            "",
            median(samples, |sample| sample.descriptors as f64),
        );
        say(
            &format!("kernel memory, {name} tenth"),
            "MB",
            median(samples, |sample| sample.kernel_bytes as f64) / 1e6,
        );
    }
}
