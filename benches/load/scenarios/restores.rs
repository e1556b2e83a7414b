//! All clients lose their connection and come back at once, to a broker that has what they have missed: how long until each
//! has everything, what does it cost, and is anything missing?
//!
//! Each client has six subscriptions through the app and misses twenty messages. The app is asked nothing when they come
//! back; it counts its calls.

use std::process::exit;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::app::App;
use crate::crowd::{Crowd, Figures, Members, Plan};
use crate::fleet::Mark;
use crate::names::case::{RESTORE, RESTORE_MANY};
use crate::names::restores::{ALL, CALLS, FAULTS, TIMED_OUT};
use crate::options::Options;
use crate::peer::Peer;
use crate::process;
use crate::publisher::{Outlet as _, Publisher};
use crate::report::Report;
use crate::scenarios::profiles::cookie_line;
use crate::sys::{Cpu, monotonic_nanos};
use crate::target::Target;

/// Subscriptions of a client, with one stream each.
const SUBSCRIPTIONS: u32 = 6;
/// Clients that share their six streams with so many others are one group.
const CLIENTS_PER_GROUP: u32 = 50;
/// Messages that each client misses: [`missed`] of each of its streams.
const MISSED: u32 = 20;
const MESSAGE_BYTES: u32 = 200;
/// Messages of one request.
const BATCH: usize = 100;
const CORES: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);
/// A Rails client treats a connection as lost when it has received nothing for this long.
const STALE_AFTER: Duration = Duration::from_secs(6);
/// The clients of the gate.
const GATE_CLIENTS: usize = 300;

/// Clients in groups with the same six streams.
struct Groups;

impl Members for Groups {
    fn subscriptions(&self, index: u32) -> Vec<(String, u32)> {
        let first = index / CLIENTS_PER_GROUP * SUBSCRIPTIONS;
        let subscription = |stream: u32| {
            let identifier = format!(r#"{{"channel":"BenchChannel","stream":"s{stream}"}}"#);
            (identifier, stream)
        };
        (first..first + SUBSCRIPTIONS).map(subscription).collect()
    }

    fn header_lines(&self, index: u32) -> String {
        cookie_line(index)
    }
}

/// How many messages of its stream with this number a client misses.
fn missed(stream: u32) -> u32 {
    let of_all = MISSED / SUBSCRIPTIONS;
    of_all + u32::from(stream % SUBSCRIPTIONS < MISSED % SUBSCRIPTIONS)
}

/// What a return has taken.
struct Return {
    /// `None`: not every client has got everything in time.
    elapsed: Option<Duration>,
    done: u64,
    cpu: Cpu,
    waited: Duration,
    /// Calls that the app has got meanwhile.
    calls: u64,
    figures: Figures,
}

pub fn run(options: &Options) {
    // The bar is for two cores, which the clients use as well.
    let options = &Options {
        cores: CORES,
        ..options.clone()
    };
    let mut report = Report::new("restores", &options.shown);
    report.name_peer_of(options);
    let cases = [(RESTORE, 5_000), (RESTORE_MANY, 15_000)];
    for run in 0..options.runs {
        for (case, clients) in cases.iter().filter(|(case, _)| options.wants(case)) {
            for target in options.targets() {
                eprintln!(
                    "restores: run {} of {}, {case}, {}",
                    run + 1,
                    options.runs,
                    target.name
                );
                let clients = options.clients.unwrap_or(*clients);
                let (flags, returned) = measure(&target, clients, CORES);
                report.server(target.name, &flags);
                returned.tell(&mut report, target.name, case, clients);
            }
        }
    }
    report.finish();
}

/// Small and quick: fails when the app is asked, when a client is not restored, or when a message is missing or comes twice.
pub fn run_gate(options: &Options) {
    let mut failed = false;
    for target in options.targets() {
        let (_, returned) = measure(&target, GATE_CLIENTS, 1);
        let Return { calls, figures, .. } = &returned;
        let all = returned.elapsed.is_some() && figures.restored == GATE_CLIENTS as u64;
        println!(
            "{}: {} of {GATE_CLIENTS} clients have everything, {} restored, {calls} calls, {} missing, {} twice, {} faults",
            target.name,
            returned.done,
            figures.restored,
            figures.missing,
            figures.doubled,
            figures.faults(),
        );
        failed |= !all || *calls > 0 || figures.faults() > 0;
    }
    if failed {
        eprintln!("A client that comes back misses something, or the app is asked about it.");
        exit(1);
    }
}

fn measure(target: &Target, clients: usize, threads: usize) -> (Vec<String>, Return) {
    let app = App::start(Duration::ZERO, Vec::new()).expect("the app starts");
    let flags = [
        app.flag(),
        "--broker=memory".to_owned(),
        // The calls for the connections that end would come in between.
        "--disconnect_mode=never".to_owned(),
    ];
    let peer = Peer::start(target, &flags, None);
    let crowd = Crowd::start(&Plan {
        address: peer.address,
        members: Arc::new(Groups),
        clients,
        threads,
        cpus: Vec::new(),
    });
    assert!(
        crowd.connect(0, PATIENCE).is_some(),
        "{} of {clients} clients are subscribed",
        crowd.done()
    );
    let streams = (clients as u32).div_ceil(CLIENTS_PER_GROUP) * SUBSCRIPTIONS;
    let mut publisher = Publisher::new(peer.broadcast_address);
    // So that each client has a position in each of its streams.
    let publish = || publish(&mut publisher, streams, |_| 1);
    assert!(
        crowd.receive(SUBSCRIPTIONS, PATIENCE, publish),
        "{} of {clients} clients have the first messages",
        crowd.done()
    );
    crowd.leave();
    wait_gone(&peer);
    let mut publisher = Publisher::new(peer.broadcast_address);
    self::publish(&mut publisher, streams, missed);

    let (calls, cpu) = (app.counts().calls(), peer.cpu());
    let waited = process::waited(peer.pid());
    crowd.take_figures();
    let elapsed = crowd.connect(MISSED, PATIENCE);
    let returned = Return {
        elapsed,
        done: crowd.done(),
        cpu: peer.cpu().since(cpu),
        waited: process::waited(peer.pid()) - waited,
        calls: app.counts().calls() - calls,
        figures: crowd.take_figures(),
    };
    (peer.flags.clone(), returned)
}

/// Publishes so many messages to each stream.
fn publish(publisher: &mut Publisher, streams: u32, count: impl Fn(u32) -> u32) {
    let of_stream = |stream| {
        (0..count(stream)).map(move |sequence| Mark {
            stream,
            sequence,
            nanos: monotonic_nanos(),
            bytes: MESSAGE_BYTES,
        })
    };
    let marks: Vec<Mark> = (0..streams).flat_map(of_stream).collect();
    for batch in marks.chunks(BATCH) {
        publisher.publish(batch);
    }
}

/// Waits until the server has noticed that all clients have left.
fn wait_gone(peer: &Peer) {
    let deadline = Instant::now() + PATIENCE;
    while peer.metric("anycable_go_clients_num") != Some(0.0) {
        assert!(Instant::now() < deadline, "the server sees the ends");
        thread::sleep(Duration::from_millis(100));
    }
}

impl Return {
    fn tell(&self, report: &mut Report, server: &str, case: &str, clients: usize) {
        let figures = &self.figures;
        let mut say =
            |metric: &str, unit: &str, value: f64| report.sample(server, case, metric, unit, value);
        say("clients", "", clients as f64);
        if let Some(elapsed) = self.elapsed {
            say(ALL, "s", elapsed.as_secs_f64());
            let share = self.waited.as_secs_f64() / elapsed.as_secs_f64();
            say("server waited for a CPU, of the time", "ratio", share);
        }
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / clients as f64;
        say("server CPU per client", "µs", each(self.cpu.total()));
        say("server CPU per client, user", "µs", each(self.cpu.user));
        say("client CPU per client", "µs", each(figures.cpu.total()));
        let seconds = |micros: u64| micros as f64 / 1e6;
        let (welcome, done) = (&figures.welcome, &figures.done);
        say(
            "connect to welcome, p50",
            "s",
            seconds(welcome.percentile(50.0)),
        );
        say("connect to welcome, longest", "s", seconds(welcome.max()));
        say(
            "connect to everything, p50",
            "s",
            seconds(done.percentile(50.0)),
        );
        say("connect to everything, longest", "s", seconds(done.max()));
        let stale = welcome.above(STALE_AFTER.as_micros() as u64);
        let lost = figures.refused + figures.closed;
        say(TIMED_OUT, "", (stale + lost) as f64);
        say(CALLS, "", self.calls as f64);
        let without = clients as u64 - self.done;
        let faults = without + figures.missing + figures.doubled;
        say(FAULTS, "", faults as f64);
        say(
            "not restored",
            "",
            (figures.new + figures.not_restored) as f64,
        );
        say("histories refused", "", figures.rejected as f64);
        say("messages missing", "", figures.missing as f64);
        say("messages twice", "", figures.doubled as f64);
        say("strange messages", "", figures.unknown as f64);
    }
}
