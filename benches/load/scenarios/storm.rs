//! All clients reconnect at once: how long until all are subscribed again, what does it cost, and is the memory freed?
//!
//! First the clients connect, then all of them leave and reconnect to the same server in the same moment.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::app::{App, bare_calls};
use crate::fleet::{Clients, Figures, Fleet, Plan};
use crate::names::case;
use crate::options::Options;
use crate::peer::Peer;
use crate::process::{self, Memory};
use crate::report::Report;
use crate::scenarios::profiles::{JWT_SECRET, LoadScript, OneChannel, TokenBearers};
use crate::sys::Cpu;
use crate::target::Target;

const CASE_JWT: &str = "tokens, 6 public streams";

/// Clients that connect and leave before the measurement.
const WARM_UP: usize = 200;
const PATIENCE: Duration = Duration::from_secs(180);
/// A Rails client treats a connection as lost when it has received nothing for this long.
const STALE_AFTER: Duration = Duration::from_secs(6);
/// A refused client tries again after this time.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
const BARE_CONNECTIONS: usize = 28;
const BARE_TIME: Duration = Duration::from_secs(2);
/// Time for a server to give memory back before it is read.
const REST: Duration = Duration::from_secs(10);
/// The rate at which the clients connect before the storm.
const ARRIVALS_PER_SECOND: f64 = 750.0;

struct Case {
    name: &'static str,
    clients: usize,
    profile: Arc<dyn Clients>,
    /// Delay of the app; `None`: no app.
    delay: Option<Duration>,
}

pub fn run(options: &Options) {
    let clients = |default: usize| options.clients.unwrap_or(default);
    let cases = [
        Case {
            name: case::STORM_RPC,
            clients: clients(15_000),
            profile: Arc::new(LoadScript),
            delay: Some(Duration::from_millis(2)),
        },
        fast_app(options),
        Case {
            name: CASE_JWT,
            clients: clients(15_000),
            profile: Arc::new(TokenBearers),
            delay: None,
        },
    ];
    let mut report = Report::new("storm", &options.shown);
    for run in 0..options.runs {
        for case in cases.iter().filter(|case| options.wants(case.name)) {
            let alone = case.delay.map(|delay| app_alone(case, delay, &mut report));
            for target in options.targets() {
                eprintln!(
                    "storm: run {} of {}, {}, {}",
                    run + 1,
                    options.runs,
                    case.name,
                    target.name
                );
                measure(options, &target, case, alone, &mut report);
            }
        }
    }
    report.finish();
}

/// One run of the case in which the server itself needs most of the time.
#[cfg(feature = "experiments")]
pub fn measure_fast_app(options: &Options, target: &Target, report: &mut Report) {
    measure(options, target, &fast_app(options), None, report);
}

/// One run of the case that `beside` shows: only the storm, without readings of settled memory.
pub fn measure_return(options: &Options, target: &Target, report: &mut Report) {
    let case = fast_app(options);
    let mut stage = Stage::set(options, target, &case);
    report.server(target.name, &stage.peer.flags);
    stage.fleet.connect_all(case.clients, PATIENCE);
    stage.fleet.take_figures();
    let storm = stage.storm(case.clients);
    storm.tell(
        &mut |metric, unit, value| report.sample(target.name, case.name, metric, unit, value),
        case.clients,
    );
    stage.peer.stop(Duration::ZERO);
}

fn fast_app(options: &Options) -> Case {
    Case {
        name: case::STORM_FAST_APP,
        clients: options.clients.unwrap_or(5_000),
        profile: Arc::new(OneChannel),
        delay: Some(Duration::ZERO),
    }
}

/// Answers per second of the app without a server, on as many connections as the server uses.
fn app_alone(case: &Case, delay: Duration, report: &mut Report) -> f64 {
    let app = App::start(delay, Vec::new()).expect("the app starts");
    let bare = bare_calls(app.address(), BARE_CONNECTIONS, BARE_TIME).expect("the app answers");
    let rate = bare.calls as f64 / bare.elapsed.as_secs_f64();
    report.sample("app alone", case.name, "calls/s", "1/s", rate);
    rate
}

fn measure(
    options: &Options,
    target: &Target,
    case: &Case,
    alone: Option<f64>,
    report: &mut Report,
) {
    let mut stage = Stage::set(options, target, case);
    report.server(target.name, &stage.peer.flags);
    let start = stage.peer.settled_memory();

    // Before the storm they connect one by one, so this is the normal cost of these clients.
    stage.fleet.connect_paced(case.clients, ARRIVALS_PER_SECOND);
    assert!(
        stage.fleet.wait_ready(case.clients as u64, PATIENCE),
        "only {} clients are ready",
        stage.fleet.ready()
    );
    let before = rested_memory(&stage.peer);
    stage.fleet.take_figures();

    let storm = stage.storm(case.clients);
    let Stage { fleet, peer, app } = &stage;
    let peak = peer.memory();
    wait_told(app.as_ref(), WARM_UP + case.clients);
    let after = rested_memory(peer);
    fleet.leave_all();
    wait_told(app.as_ref(), WARM_UP + 2 * case.clients);
    let end = rested_memory(peer);

    let mut say = |metric: &str, unit: &str, value: f64| {
        report.sample(target.name, case.name, metric, unit, value)
    };
    storm.tell(&mut say, case.clients);
    if let (Some(app), Some(alone)) = (app, alone) {
        let rate = storm.called as f64 / storm.elapsed.as_secs_f64();
        say("calls/s", "1/s", rate);
        say("calls/s, of the app alone", "ratio", rate / alone);
        say(
            "calls at a time, most",
            "",
            app.counts().concurrent_max() as f64,
        );
        say("connections to the app", "", app.counts().accepted() as f64);
        say("errors seen by the app", "", app.counts().errors() as f64);
        let errors = [
            "anycable_go_rpc_error_total",
            "anycable_go_rpc_timeout_total",
            "anycable_go_rpc_retries_total",
        ];
        say(
            "RPC errors, time-outs, retries",
            "",
            errors.iter().filter_map(|name| peer.metric(name)).sum(),
        );
    }
    tell_memory(&mut say, &[start, before, peak, after, end]);
}

/// A server, its app if there is one, and clients that have not connected yet. Fields are dropped in this order.
struct Stage {
    fleet: Fleet,
    peer: Peer,
    app: Option<App>,
}

impl Stage {
    fn set(options: &Options, target: &Target, case: &Case) -> Self {
        let app = case
            .delay
            .map(|delay| App::start(delay, target.client_cpus()).expect("the app starts"));
        let peer = Peer::start(target, &flags(app.as_ref()), None);
        let mut plan = Plan::new(
            peer.address,
            Arc::clone(&case.profile),
            options.threads_for(case.clients),
        );
        plan.cpus = target.client_cpus();
        plan.pipelined = true;
        plan.reconnect_after = Some(RECONNECT_AFTER);
        plan.unfinished_max = case.clients;
        let mut fleet = Fleet::start(&plan);
        fleet.connect_all(WARM_UP, PATIENCE);
        fleet.leave_all();
        wait_told(app.as_ref(), WARM_UP);
        Self { fleet, peer, app }
    }

    fn calls(&self) -> u64 {
        self.app.as_ref().map_or(0, |app| app.counts().calls())
    }

    /// All clients leave and reconnect at once.
    fn storm(&mut self, clients: usize) -> Storm {
        let (calls, cpu, waited) = (
            self.calls(),
            self.peer.cpu(),
            process::waited(self.peer.pid()),
        );
        self.fleet.leave_all();
        let elapsed = self.fleet.connect_all(clients, PATIENCE);
        Storm {
            elapsed,
            cpu: self.peer.cpu().since(cpu),
            waited: process::waited(self.peer.pid()) - waited,
            called: self.calls() - calls,
            figures: self.fleet.take_figures(),
        }
    }
}

struct Storm {
    elapsed: Duration,
    cpu: Cpu,
    /// How long the server's threads were ready without a CPU.
    waited: Duration,
    /// Calls that the app got during the storm.
    called: u64,
    figures: Figures,
}

impl Storm {
    fn tell(&self, say: &mut impl FnMut(&str, &str, f64), clients: usize) {
        let clients = clients as f64;
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / clients;
        say("clients", "", clients);
        say("all subscribed again", "s", self.elapsed.as_secs_f64());
        say("server CPU per connection", "µs", each(self.cpu.total()));
        say("server CPU per connection, user", "µs", each(self.cpu.user));
        let of_clients = each(self.figures.cpu.total());
        say("client CPU per connection", "µs", of_clients);
        let share = self.waited.as_secs_f64() / self.elapsed.as_secs_f64();
        say("server waited for a CPU, of the time", "ratio", share);
        tell_clients(say, &self.figures);
    }
}

/// The flags of the server. The Disconnect calls of the clients that left are made one after another; at the default of 100
/// per second that would take too long.
fn flags(app: Option<&App>) -> Vec<String> {
    match app {
        Some(app) => vec![app.flag(), "--disconnect_rate=1000".to_owned()],
        None => ["--norpc", "--enforce_jwt", "--public_streams"]
            .into_iter()
            .map(str::to_owned)
            .chain([format!("--jwt_secret={JWT_SECRET}")])
            .collect(),
    }
}

/// Waits until the server has told the app that this many clients left. Without an app there is nothing to wait for.
fn wait_told(app: Option<&App>, left: usize) {
    if app.is_some_and(|app| !app.wait_told(left, PATIENCE)) {
        eprintln!("the app was not told of all {left} leavers after {PATIENCE:?}");
    }
}

fn rested_memory(peer: &Peer) -> Memory {
    thread::sleep(REST);
    peer.settled_memory()
}

fn tell_clients(say: &mut impl FnMut(&str, &str, f64), figures: &Figures) {
    let seconds = |micros: u64| micros as f64 / 1e6;
    say(
        "connect to welcome, p50",
        "s",
        seconds(figures.welcome.percentile(50.0)),
    );
    say(
        "connect to welcome, longest",
        "s",
        seconds(figures.welcome.max()),
    );
    say(
        "connect to all confirmations, p50",
        "s",
        seconds(figures.ready.percentile(50.0)),
    );
    say(
        "connect to all confirmations, longest",
        "s",
        seconds(figures.ready.max()),
    );
    let stale = figures.welcome.above(STALE_AFTER.as_micros() as u64);
    say(
        "clients timed out",
        "",
        (stale + figures.refused + figures.closed) as f64,
    );
}

/// Memory at the start, before the storm, at its end, some time after it, and some time after all clients have left.
fn tell_memory(
    say: &mut impl FnMut(&str, &str, f64),
    [start, before, peak, after, end]: &[Memory; 5],
) {
    let megabytes = |memory: &Memory| memory.private_bytes as f64 / 1e6;
    say("memory at the start", "MB", megabytes(start));
    say("memory before", "MB", megabytes(before));
    say("memory when all are back", "MB", megabytes(peak));
    say("memory after", "MB", megabytes(after));
    say(
        "memory after, of before",
        "ratio",
        megabytes(after) / megabytes(before),
    );
    say("memory when all left", "MB", megabytes(end));
    say(
        "memory when all left, of the start",
        "ratio",
        megabytes(end) / megabytes(start),
    );
}
