//! Performs through the app: how many per second, what one costs the server, and how much time the server adds to the app's.

mod performers;

use std::thread;
use std::time::Duration;

use crate::app::{App, bare_calls};
use crate::options::Options;
use crate::peer::Peer;
use crate::process;
use crate::report::Report;
use crate::sys;
use crate::target::Target;
pub use performers::Performers;

const SECONDS: u64 = 5;
/// The default of `--rpc_concurrency`: this many clients never wait for each other.
const CONCURRENCY: usize = 28;
/// Enough clients to use all calls all the time.
const CLIENTS: usize = 500;
const WARM_UP: Duration = Duration::from_millis(500);

const BUSY_CALLS: Case = Case {
    delay: Duration::from_millis(2),
    clients: CLIENTS,
};

struct Case {
    delay: Duration,
    clients: usize,
}

impl Case {
    fn name(&self) -> String {
        format!(
            "app {} ms, {} clients",
            self.delay.as_millis(),
            self.clients
        )
    }
}

pub fn run(options: &Options) {
    let mut report = Report::new("rpc", &options.shown);
    let clients = options.clients.unwrap_or(CLIENTS);
    for run in 0..options.runs {
        for delay in [0, 2].map(Duration::from_millis) {
            for clients in [CONCURRENCY, clients] {
                let case = Case { delay, clients };
                if options.wants(&case.name()) {
                    eprintln!("rpc: run {} of {}, {}", run + 1, options.runs, case.name());
                    measure(options, &case, &mut report);
                }
            }
        }
    }
    report.finish();
}

/// Within one case and run: first the app alone, then each server.
fn measure(options: &Options, case: &Case, report: &mut Report) {
    let time = Duration::from_secs(options.seconds.unwrap_or(SECONDS));
    let app = App::start(case.delay, Vec::new()).expect("the app starts");
    let bare = bare_calls(app.address(), CONCURRENCY, time).expect("the app answers");
    let (name, alone) = (case.name(), bare.calls as f64 / bare.elapsed.as_secs_f64());
    report.sample("app alone", &name, "calls/s", "1/s", alone);
    for percent in [50.0, 99.0] {
        let micros = bare.latency.percentile(percent) as f64 / 1e3;
        report.sample(
            "app alone",
            &name,
            &format!("round trip p{percent}"),
            "µs",
            micros,
        );
    }
    for target in options.targets() {
        measure_server(&target, case, time, report);
        let performed = report
            .row(target.name, &name, "calls/s")
            .map_or(0.0, |row| row.values[row.values.len() - 1]);
        report.sample(
            target.name,
            &name,
            "calls/s, of the app alone",
            "ratio",
            performed / alone,
        );
        let added = |percent: f64| {
            let metric = format!("round trip p{percent}");
            let last = |server| Some(*report.row(server, &name, &metric)?.values.last()?);
            Some(last(target.name)? - last("app alone")?)
        };
        // With more clients than calls, the latency includes waiting for a free call, which is not the server's time.
        if case.clients == CONCURRENCY
            && let (Some(half), Some(most)) = (added(50.0), added(99.0))
        {
            report.sample(target.name, &name, "added by the server p50", "µs", half);
            report.sample(target.name, &name, "added by the server p99", "µs", most);
        }
    }
}

/// One run of the case with a slow app and all calls in use.
pub fn measure_busy_calls(options: &Options, target: &Target, report: &mut Report) {
    let time = Duration::from_secs(options.seconds.unwrap_or(SECONDS));
    measure_server(target, &BUSY_CALLS, time, report);
}

fn measure_server(target: &Target, case: &Case, time: Duration, report: &mut Report) {
    let app = App::start(case.delay, target.client_cpus()).expect("the app starts");
    let peer = Peer::start(target, &[app.flag()], None);
    report.server(target.name, &peer.flags);
    // Its own thread, because a pinned thread stays pinned.
    thread::scope(|scope| {
        scope.spawn(|| {
            sys::pin(&target.client_cpus()).expect("the CPUs exist");
            let clients = Performers::connect(peer.address, case.clients);
            let mut performers = clients.expect("the clients subscribe");
            performers.run(WARM_UP).expect("the app's echoes come back");
            tell(report, target, case, &peer, &app, &mut performers, time);
        });
    });
}

fn tell(
    report: &mut Report,
    target: &Target,
    case: &Case,
    peer: &Peer,
    app: &App,
    performers: &mut Performers,
    time: Duration,
) {
    let (server_cpu, app_cpu, waited) = (peer.cpu(), app.cpu(), process::waited(peer.pid()));
    let performed = performers.run(time).expect("the app's echoes come back");
    let (server_cpu, app_cpu) = (peer.cpu().since(server_cpu), app.cpu() - app_cpu);
    let waited = process::waited(peer.pid()) - waited;
    let performs = performed.performs as f64;
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / performs;
    let name = case.name();
    let mut say = |metric: &str, unit: &str, value: f64| {
        report.sample(target.name, &name, metric, unit, value)
    };
    say("calls/s", "1/s", performs / performed.elapsed.as_secs_f64());
    for percent in [50.0, 99.0] {
        say(
            &format!("round trip p{percent}"),
            "µs",
            performed.latency.percentile(percent) as f64 / 1e3,
        );
    }
    say("server CPU per perform", "µs", each(server_cpu.total()));
    say("server CPU per perform, user", "µs", each(server_cpu.user));
    say("app CPU per perform", "µs", each(app_cpu));
    say("client CPU per perform", "µs", each(performed.cpu.total()));
    let share = waited.as_secs_f64() / performed.elapsed.as_secs_f64();
    say("server waited for a CPU, of the time", "ratio", share);
    let counts = app.counts();
    say("calls at a time, most", "", counts.concurrent_max() as f64);
    say("connections to the app", "", counts.accepted() as f64);
    say("errors", "", counts.errors() as f64);
}
