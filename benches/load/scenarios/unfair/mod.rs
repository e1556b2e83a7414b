//! One client, or a hundred, that send as fast as they can: what the others on the same shard still get.
//!
//! The server has one shard on the first CPU; attackers, probes and app share the other CPUs. Attackers have a lower
//! priority than probes and always keep their sockets filled (`attack`), so the server always has more to do than it can.
//! Probes ask at fixed times (`probes`); how late the probes themselves are is measured too. Missed bars are listed at the
//! end.

mod attack;
mod floods;
mod gate;
mod probes;

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::app::App;
use crate::names::unfair::{HEALTH, PING, PINGS, TAKEN, WELCOME};
use crate::options::Options;
use crate::peer::Peer;
use crate::process;
use crate::report::{Report, Row, number};
use crate::tables;
use crate::target::{Target, public_flags};
use crate::tls::Certificate;
use attack::{Attack, Done};
use floods::{FLOODS, Flood, Needs};
use probes::{Figure, Probes, Seen};

pub use gate::run as run_gate;

const SECONDS: u64 = 5;
const ATTACKERS: [usize; 2] = [1, 100];
const WARM_UP: Duration = Duration::from_secs(1);
/// Half of the attackers' niceness: the app is no probe, but the attackers must not starve it.
const APP_NICENESS: i32 = attack::NICENESS / 2;

/// The server's addresses, and how to talk to it.
#[derive(Clone)]
pub struct Scene {
    pub address: SocketAddrV4,
    pub broadcast_address: SocketAddrV4,
    pub tls: Option<Arc<ClientConfig>>,
    /// CPUs for everything except the server; empty: any CPU.
    pub cpus: Vec<usize>,
}

/// A figure with a bar: its name, and its largest allowed value with one attacker and with more.
struct Bar {
    metric: &'static str,
    one: f64,
    many: f64,
}

const fn bar(metric: &'static str, one: f64, many: f64) -> Bar {
    Bar { metric, one, many }
}

pub const FRESH_HEALTH: &str = "health, fresh, p99";
pub const FAILURES: &str = "failed";

const BARS: [Bar; 7] = [
    bar(PING, 10.0, 25.0),
    bar(HEALTH, 20.0, 20.0),
    bar(FRESH_HEALTH, 20.0, 20.0),
    bar(TAKEN, 50.0, 50.0),
    bar(PINGS, 100.0, 100.0),
    bar(WELCOME, 1_000.0, 1_000.0),
    bar(FAILURES, 0.0, 0.0),
];

/// The name of cases with this many attackers, which is also the beginning of their rows in tables.
pub fn group(attackers: usize) -> String {
    match attackers {
        1 => "1 attacker".to_owned(),
        many => format!("{many} attackers"),
    }
}

/// The case that holds the largest value of each figure over all floods.
const WORST: &str = "the worst of all";

pub fn run(options: &Options) {
    let counts = match options.attackers.as_slice() {
        [] => &ATTACKERS,
        counts => counts,
    };
    let time = Duration::from_secs(options.seconds.unwrap_or(SECONDS));
    let mut report = Report::new("unfair", &options.shown);
    for run in 0..options.runs {
        for count in counts {
            for flood in FLOODS {
                let case = format!("{}: {}", group(*count), flood.name);
                if !options.wants(&case) {
                    continue;
                }
                for target in options.targets() {
                    let (run, of, server) = (run + 1, options.runs, target.name);
                    eprintln!("unfair: run {run} of {of}, {case}, {server}");
                    let measured = measure(&target, flood, *count, WARM_UP, time);
                    measured.tell(&mut report, target.name, &case);
                }
            }
        }
    }
    for count in counts {
        tell_worst(&mut report, options, *count);
        let begin = format!("{}: ", group(*count));
        print!(
            "\n{}\n{}",
            group(*count),
            tables::by_case(report.rows(), &begin)
        );
    }
    tell_missed(&report, counts);
    report.finish();
}

/// The effect of one flood on one server.
struct Measured {
    seen: Seen,
    /// Counts of the time window.
    attack: Done,
    seconds: f64,
    /// CPU of the server, and how long it waited for a CPU, as shares of the time.
    cpu: f64,
    waited: f64,
    /// Largest growth of the resident memory since before the attack.
    grown_bytes: u64,
}

fn measure(
    target: &Target,
    flood: &Flood,
    attackers: usize,
    warm_up: Duration,
    time: Duration,
) -> Measured {
    let certificate = flood.needs.tls.then(Certificate::new);
    let app = flood.needs.app.then(|| start_app(target));
    let flags = flags(flood.needs, app.as_ref());
    let peer = Peer::start_with(target, &flags, None, certificate.as_ref());
    let scene = Scene {
        address: peer.address,
        broadcast_address: peer.broadcast_address,
        tls: certificate.map(|certificate| Arc::clone(&certificate.client)),
        cpus: target.client_cpus(),
    };
    let probes = Probes::connect(&scene);
    let before = process::rss(peer.pid());
    process::reset_peak(peer.pid());
    let attack = Attack::start(&scene, (flood.parts)(attackers));
    thread::sleep(warm_up);
    let (begun, done) = (Instant::now(), attack.done());
    let (cpu, waited) = (peer.cpu(), process::waited(peer.pid()));
    let mut at_the_end = (Done::default(), 0.0, Duration::ZERO, Duration::ZERO);
    let seen = probes.measure(time, || {
        at_the_end = (
            attack.done().since(done),
            begun.elapsed().as_secs_f64(),
            peer.cpu().since(cpu).total(),
            process::waited(peer.pid()) - waited,
        );
        drop(attack);
    });
    let (attack, seconds, cpu, waited) = at_the_end;
    Measured {
        seen,
        attack,
        seconds,
        cpu: cpu.as_secs_f64() / seconds,
        waited: waited.as_secs_f64() / seconds,
        grown_bytes: process::peak_rss(peer.pid()).saturating_sub(before),
    }
}

/// The app's thread inherits the niceness of the thread that starts it.
fn start_app(target: &Target) -> App {
    let cpus = target.client_cpus();
    let start = move || {
        rustix::process::nice(APP_NICENESS).expect("everybody may be nicer");
        App::start(Duration::ZERO, cpus).expect("the app starts")
    };
    thread::spawn(start).join().expect("the app starts")
}

fn flags(needs: Needs, app: Option<&App>) -> Vec<String> {
    let mut flags = needs.flags();
    match app {
        None => flags.extend(public_flags()),
        Some(app) => flags.extend([
            app.flag(),
            "--public_streams".to_owned(),
            "--broadcast_adapter=http".to_owned(),
            "--disconnect_rate=1000".to_owned(),
        ]),
    }
    flags
}

impl Measured {
    /// Every figure with its name and its unit.
    fn figures(&self) -> Vec<(&'static str, &'static str, f64)> {
        let percentile = |figure, percent| self.seen.of(figure).percentile(percent) as f64 / 1e6;
        let most = |figure| self.seen.of(figure).max() as f64 / 1e6;
        vec![
            ("ping p50", "ms", percentile(Figure::Ping, 50.0)),
            (PING, "ms", percentile(Figure::Ping, 99.0)),
            ("ping max", "ms", most(Figure::Ping)),
            ("subscribe p99", "ms", percentile(Figure::Subscribe, 99.0)),
            (HEALTH, "ms", percentile(Figure::Health, 99.0)),
            ("health max", "ms", most(Figure::Health)),
            (FRESH_HEALTH, "ms", percentile(Figure::FreshHealth, 99.0)),
            (TAKEN, "ms", percentile(Figure::Taken, 99.0)),
            ("201 max", "ms", most(Figure::Taken)),
            ("delivery p99", "ms", percentile(Figure::Delivered, 99.0)),
            (PINGS, "ms", self.seen.ping_deviation.as_secs_f64() * 1e3),
            (WELCOME, "ms", percentile(Figure::Welcome, 99.0)),
            (FAILURES, "", self.seen.failures as f64),
            (
                "attack",
                "MB/s",
                self.attack.sent_bytes / self.seconds / 1e6,
            ),
            (
                "attack, thousands",
                "1/s",
                self.attack.messages / self.seconds / 1e3,
            ),
            ("thrown out", "", self.attack.thrown_out),
            ("server CPU", "%", self.cpu * 100.0),
            ("waited for a CPU", "%", self.waited * 100.0),
            ("RSS grown by", "MB", self.grown_bytes as f64 / 1e6),
            ("probes late p99", "ms", percentile(Figure::Nothing, 99.0)),
        ]
    }

    fn tell(&self, report: &mut Report, server: &str, case: &str) {
        for (metric, unit, value) in self.figures() {
            report.sample(server, case, metric, unit, value);
        }
    }
}

/// Reports for the summary of all bars: the largest median of each figure, for each server.
fn tell_worst(report: &mut Report, options: &Options, attackers: usize) {
    let begin = format!("{}: ", group(attackers));
    for target in options.targets() {
        for bar in &BARS {
            let rows = report.rows().iter().filter(|row| {
                row.server == target.name
                    && row.metric == bar.metric
                    && row.case.starts_with(&begin)
            });
            let worst = rows.map(|row| (row.median(), row.unit.clone()));
            if let Some((value, unit)) = worst.max_by(|one, other| one.0.total_cmp(&other.0)) {
                let case = format!("{begin}{WORST}");
                report.sample(target.name, &case, bar.metric, &unit, value);
            }
        }
    }
}

/// Prints the missed bars: a line for each case and server.
fn tell_missed(report: &Report, counts: &[usize]) {
    println!();
    for count in counts {
        let begin = format!("{}: ", group(*count));
        let of_count = |row: &&Row| row.case.starts_with(&begin) && !row.case.ends_with(WORST);
        let rows: Vec<&Row> = report.rows().iter().filter(of_count).collect();
        for rows in
            rows.chunk_by(|one, other| (&one.case, &one.server) == (&other.case, &other.server))
        {
            let missed: Vec<String> = rows.iter().filter_map(|row| missed(row, *count)).collect();
            if !missed.is_empty() {
                let (case, server) = (&rows[0].case, &rows[0].server);
                println!("missed: {case}, {server}: {}", missed.join(", "));
            }
        }
    }
}

/// The figure and its bar, if the bar is missed.
fn missed(row: &Row, attackers: usize) -> Option<String> {
    let bar = BARS.iter().find(|bar| bar.metric == row.metric)?;
    let most = if attackers == 1 { bar.one } else { bar.many };
    let text = || {
        format!(
            "{} {} (≤ {})",
            bar.metric,
            number(row.median()),
            number(most)
        )
    };
    (row.median() > most).then(text)
}
