//! The server is stopped as by `docker stop`, with SIGKILL after 10 s: does every client get its message and its close
//! frame, how are the messages spread over time, how long does it take, and how many Disconnect calls reach the app?

use std::sync::Arc;
use std::time::Duration;

use crate::app::App;
use crate::fleet::{Fleet, Plan};
use crate::options::Options;
use crate::peer::Peer;
use crate::report::Report;
use crate::scenarios::profiles::OneChannel;
use crate::target::Target;

const CLIENTS: usize = 10_000;
const SLOW_DRAIN_SECONDS: u64 = 5;
/// The default of `docker stop`.
const KILL_AFTER: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(120);
/// Disconnect messages are counted per interval of this length.
const PIECE_MICROS: u64 = 100_000;

struct Case {
    name: String,
    delay: Duration,
    /// Flags that another server may not know.
    own_flags: Vec<String>,
}

pub fn run(options: &Options) {
    let seconds = options.seconds.unwrap_or(SLOW_DRAIN_SECONDS);
    let slow = format!("--shutdown_slowdrain={seconds}");
    let slow_name = format!("slow drain {seconds} s");
    let cases = [2, 50].into_iter().flat_map(|millis| {
        let case = |name: &str, flags: &[&str]| Case {
            name: format!("{name}, app {millis} ms"),
            delay: Duration::from_millis(millis),
            own_flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        };
        [
            case("defaults", &[]),
            case(&slow_name, &[&slow]),
            case(
                "as advised for docker stop",
                &["--shutdown_timeout=9", "--shutdown_pool_size=28"],
            ),
        ]
    });
    let cases: Vec<Case> = cases.collect();
    let mut report = Report::new("drain", &options.shown);
    for run in 0..options.runs {
        for case in cases.iter().filter(|case| options.wants(&case.name)) {
            for target in options.targets() {
                eprintln!(
                    "drain: run {} of {}, {}, {}",
                    run + 1,
                    options.runs,
                    case.name,
                    target.name
                );
                measure(options, &target, case, &mut report);
            }
        }
    }
    report.finish();
}

fn measure(options: &Options, target: &Target, case: &Case, report: &mut Report) {
    let clients = options.clients.unwrap_or(CLIENTS);
    let app = App::start(case.delay, target.client_cpus()).expect("the app starts");
    // Long time limits, so that a busy machine loses no client before the measurement begins.
    let patient = ["--rpc_request_timeout=30000", "--rpc_command_timeout=30000"];
    let mut flags = vec![app.flag()];
    flags.extend(patient.map(str::to_owned));
    flags.extend(case.own_flags.iter().cloned());
    let mut peer = Peer::start(target, &flags, None);
    report.server(target.name, &peer.flags);
    let profile = Arc::new(OneChannel);
    let mut plan = Plan::new(peer.address, profile, options.threads_for(clients));
    plan.cpus = target.client_cpus();
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(clients, PATIENCE);

    let signal_micros = fleet.micros_now();
    let stop = peer.stop(KILL_AFTER);
    assert!(
        fleet.wait_closed(PATIENCE),
        "the sockets end with the server"
    );
    let figures = fleet.take_figures();
    let mut told: Vec<u64> = figures
        .told_micros
        .iter()
        .map(|micros| micros.saturating_sub(signal_micros))
        .collect();
    told.sort_unstable();
    let seconds = |micros: Option<&u64>| micros.map_or(f64::NAN, |&micros| micros as f64 / 1e6);

    let mut say = |metric: &str, unit: &str, value: f64| {
        report.sample(target.name, &case.name, metric, unit, value);
    };
    say("clients", "", clients as f64);
    say("signal to exit", "s", stop.took.as_secs_f64());
    say("killed", "", f64::from(u8::from(stop.killed)));
    let away = figures.sent_away as f64;
    say("clients with message and close frame 1001", "", away);
    say("clients without", "", clients as f64 - away);
    say("first notice", "s", seconds(told.first()));
    say("median notice", "s", seconds(told.get(told.len() / 2)));
    say("last notice", "s", seconds(told.last()));
    say("notices in the busiest 0.1 s", "", busiest(&told) as f64);
    let calls = app.counts().disconnects() as f64;
    say("Disconnect calls that the app got", "", calls);
    say("Disconnect calls lost", "", clients as f64 - calls);
    if let Some(lost) = lost_by_log(&peer.log()) {
        say("Disconnect calls lost, by the log", "", lost);
    }
}

/// Most disconnect messages in one interval. `told` is sorted.
fn busiest(told: &[u64]) -> usize {
    let pieces = told.chunk_by(|one, other| one / PIECE_MICROS == other / PIECE_MICROS);
    pieces.map(<[u64]>::len).max().unwrap_or(0)
}

/// The second number in "disconnect calls: 9998 finished, 2 lost".
fn lost_by_log(log: &str) -> Option<f64> {
    let line = log
        .lines()
        .find(|line| line.contains("disconnect calls: "))?;
    let before = line.split_once(" lost")?.0;
    before.rsplit(' ').next()?.parse().ok()
}
