//! Idle connections: what each costs, how fast they connect, what pings cost, and how much memory is freed when they leave;
//! and what TLS adds to that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::app::App;
use crate::app::answers::{connection_identifiers, user_of_cookie};
use crate::fleet::{Clients, Figures, Fleet, Plan};
use crate::limit::{Bare, Hold, Limit, Method, text_frame};
use crate::names::case;
use crate::nginx::Nginx;
use crate::options::Options;
use crate::peer::Peer;
use crate::process::{self, KernelMemory};
use crate::report::Report;
use crate::target::{Target, public_flags};
use crate::tls::Certificate;

use super::fanout::Spread;
use super::profiles::{OneChannel, OneStream, RoomPage, cookie};

const CLIENTS: usize = 15_000;
/// Fewer with TLS, because each client here then needs a few kilobytes as well.
const TLS_CLIENTS: usize = 5_000;
/// Enough for three pings of each client.
const SECONDS: u64 = 9;
/// Clients that connect and leave before the baseline, so that the baseline includes what a server allocates once.
const WARM_UP: usize = 200;
const PATIENCE: Duration = Duration::from_secs(300);
/// A refused client tries again: a server that connects many clients slowly may give up a call to the app.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// Disconnect calls per second, the most that ringcable allows: a server keeps data of a client that left until the app is
/// told.
const DISCONNECT_RATE: usize = 1_000;
/// The bare loop of pings makes this many writes per ping interval, each to one part of the clients.
const PING_PARTS: usize = 30;
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// Characters of a session id.
const SID_BYTES: usize = 21;

struct Case {
    name: &'static str,
    clients: Arc<dyn Clients>,
    /// Whether the app is asked, which makes a server store texts that it must send to the app again.
    app: bool,
    tls: Tls,
}

/// What terminates TLS.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tls {
    Nobody,
    Server,
    /// nginx, with this path of the program.
    Proxy(&'static str),
}

impl Case {
    const fn new(name: &'static str, clients: Arc<dyn Clients>, app: bool) -> Self {
        Self {
            name,
            clients,
            app,
            tls: Tls::Nobody,
        }
    }

    fn with_tls(self, name: &'static str, tls: Tls) -> Self {
        Self { name, tls, ..self }
    }
}

pub fn run(options: &Options) {
    let cases = [
        one_channel(),
        Case::new("campfire", Arc::new(RoomPage), true),
        Case::new("1 public subscription", Arc::new(OneStream), false),
    ];
    run_cases("idle", options, options.clients.unwrap_or(CLIENTS), &cases);
}

/// What TLS adds: the same clients without and with it, in turns.
pub fn run_tls(options: &Options) {
    let public = || Case::new("1 public subscription", Arc::new(OneStream), false);
    let mut cases = vec![
        one_channel(),
        one_channel().with_tls("1 subscription, TLS", Tls::Server),
        public(),
        public().with_tls("1 public subscription, TLS", Tls::Server),
    ];
    match Nginx::program() {
        Some(program) => {
            let name = "1 public subscription, TLS in nginx before it";
            cases.push(public().with_tls(name, Tls::Proxy(program)));
        }
        None => eprintln!("tls: there is no nginx here to be compared with"),
    }
    let clients = options.clients.unwrap_or(TLS_CLIENTS);
    run_cases("tls", options, clients, &cases);
}

fn one_channel() -> Case {
    Case::new(case::ONE_CHANNEL, Arc::new(OneChannel), true)
}

/// One run of the case that `beside` shows, without the pings and the leaving.
pub fn measure_one_channel(options: &Options, target: &Target, report: &mut Report) {
    let clients = options.clients.unwrap_or(CLIENTS);
    let mut held = hold(options, clients, target, &one_channel(), None, report);
    // Telling the app of all leavers takes long and is not measured, so the server is killed.
    held.peer.stop(Duration::ZERO);
}

fn run_cases(scenario: &str, options: &Options, clients: usize, cases: &[Case]) {
    let mut report = Report::new(scenario, &options.shown);
    for run in 0..options.runs {
        eprintln!(
            "{scenario}: run {} of {}, bare sockets",
            run + 1,
            options.runs
        );
        let bare = Floor::measure(options, clients);
        report.sample("limit", "pings", "CPU per ping", "µs", bare.ping_micros);
        report.sample(
            "limit",
            "one bare end",
            "kernel bytes per connection",
            "B",
            bare.client_uncharged_bytes,
        );
        for case in cases.iter().filter(|case| options.wants(case.name)) {
            for target in options.targets() {
                eprintln!(
                    "{scenario}: run {} of {}, {}, {}",
                    run + 1,
                    options.runs,
                    case.name,
                    target.name
                );
                measure(options, clients, &target, case, &bare, &mut report);
            }
        }
    }
    report.finish();
}

/// The cost of bare sockets, measured in the same run.
struct Floor {
    /// Kernel bytes outside all groups, for one end of a connection: each of our clients costs this.
    client_uncharged_bytes: f64,
    /// CPU to write one ping, in a loop that does nothing else.
    ping_micros: f64,
}

impl Floor {
    fn measure(options: &Options, clients: usize) -> Self {
        // Both ends are held in the same way, so each end is half of the sum.
        let mut limit = Limit::start(options.cores, Hold::Epoll, None);
        let spread = Arc::new(Bare(Arc::new(Spread {
            streams: PING_PARTS,
        })));
        let mut plan = Plan::new(limit.address, spread, options.threads_for(clients));
        plan.cpus = options.client_cpus();
        let mut fleet = Fleet::start(&plan);
        fleet.connect_all(WARM_UP, PATIENCE);
        let before = process::uncharged_bytes();
        fleet.connect_all(clients, PATIENCE);
        let after = process::uncharged_bytes();
        let client_uncharged_bytes = (after as f64 - before as f64) / clients as f64 / 2.0;
        fleet.take_figures();
        let cpu = process::cpu(limit.pid());
        let ping = text_frame(br#"{"type":"ping","message":1700000000}"#);
        let begun = Instant::now();
        let parts = PING_PARTS
            * options
                .seconds
                .unwrap_or(SECONDS)
                .div_ceil(PING_INTERVAL.as_secs()) as usize;
        for part in 0..parts {
            let due = PING_INTERVAL * part as u32 / PING_PARTS as u32;
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            limit.write(
                Method::Write,
                (part % PING_PARTS) as u32,
                ping.len(),
                ping.clone(),
            );
        }
        let used = process::cpu(limit.pid()).since(cpu);
        // The report is answered after everything that is already in the sockets, so it includes pings that were not read
        // yet.
        let pings = fleet.take_figures().pings;
        drop(limit);
        Self {
            client_uncharged_bytes,
            ping_micros: used.total().as_secs_f64() * 1e6 / pings as f64,
        }
    }
}

/// A server with idle clients. Fields are dropped in this order.
struct Held {
    fleet: Fleet,
    peer: Peer,
    group: Option<KernelMemory>,
    app: Option<App>,
    /// Memory before the clients came.
    base: Bytes,
}

/// Starts a server, connects the clients, and reports their cost.
fn hold(
    options: &Options,
    clients: usize,
    target: &Target,
    case: &Case,
    floor: Option<&Floor>,
    report: &mut Report,
) -> Held {
    let app = case
        .app
        .then(|| App::start(Duration::ZERO, target.client_cpus()).expect("the app starts"));
    let flags = match &app {
        Some(app) => vec![app.flag(), format!("--disconnect_rate={DISCONNECT_RATE}")],
        None => public_flags(),
    };
    let group = KernelMemory::new();
    let certificate = (case.tls != Tls::Nobody).then(Certificate::new);
    let own = certificate.as_ref().filter(|_| case.tls == Tls::Server);
    let mut peer = Peer::start_with(target, &flags, group.as_ref(), own);
    let mut address = peer.address;
    if let (Tls::Proxy(program), Some(certificate)) = (case.tls, &certificate) {
        let nginx = Nginx::start(program, target, certificate, address, group.as_ref());
        address = peer.put_behind(nginx);
    }
    report.server(target.name, &peer.flags);
    let mut say = |metric: &str, unit: &str, value: f64| {
        report.sample(target.name, case.name, metric, unit, value)
    };
    say(
        "start to healthy",
        "ms",
        peer.started_in.as_secs_f64() * 1e3,
    );

    say("threads", "", peer.threads() as f64);

    let mut plan = Plan::new(address, case.clients.clone(), options.threads_for(clients));
    plan.cpus = target.client_cpus();
    plan.tls = certificate.map(|certificate| certificate.client);
    plan.reconnect_after = Some(RECONNECT_AFTER);
    let mut fleet = warmed_up(&plan, app.as_ref());
    let look = || Bytes::settled(&peer, group.as_ref());
    let base = look();

    let [half, full] = connect_halves(&mut say, &mut fleet, clients, &peer, look);
    let user = tell_memory(&mut say, clients, [base, half, full], floor);
    if app.is_some() {
        let texts = texts_per_client(case.clients.as_ref(), WARM_UP, clients, &peer);
        say("texts that the app makes it keep", "B", texts);
        say("user bytes per connection beside texts", "B", user - texts);
    }
    tell_setup(&mut say, &fleet.take_figures());
    Held {
        fleet,
        peer,
        group,
        app,
        base,
    }
}

/// A fleet whose clients have connected and left once.
fn warmed_up(plan: &Plan, app: Option<&App>) -> Fleet {
    let mut fleet = Fleet::start(plan);
    fleet.connect_all(WARM_UP, PATIENCE);
    fleet.leave_all();
    if let Some(app) = app {
        app.wait_told(WARM_UP, PATIENCE);
    }
    fleet
}

/// Connects half of the clients and reads the memory, then does the same with the other half.
fn connect_halves(
    say: &mut impl FnMut(&str, &str, f64),
    fleet: &mut Fleet,
    clients: usize,
    peer: &Peer,
    look: impl Fn() -> Bytes,
) -> [Bytes; 2] {
    let (mut elapsed, mut cpu) = (Duration::ZERO, Duration::ZERO);
    let looks = [clients / 2, clients - clients / 2].map(|clients| {
        let before = peer.cpu();
        elapsed += fleet.connect_all(clients, PATIENCE);
        cpu += peer.cpu().since(before).total();
        look()
    });
    say(
        "connects per second",
        "1/s",
        clients as f64 / elapsed.as_secs_f64(),
    );
    say(
        "server CPU per connection made",
        "µs",
        cpu.as_secs_f64() * 1e6 / clients as f64,
    );
    looks
}

fn measure(
    options: &Options,
    clients: usize,
    target: &Target,
    case: &Case,
    floor: &Floor,
    report: &mut Report,
) {
    let held = hold(options, clients, target, case, Some(floor), report);
    let Held {
        fleet,
        peer,
        group,
        app,
        base,
    } = &held;
    let mut say = |metric: &str, unit: &str, value: f64| {
        report.sample(target.name, case.name, metric, unit, value)
    };
    tell_pings(&mut say, options, peer, fleet, floor);

    fleet.leave_all();
    let left = Instant::now();
    let mut tell_rest = |when: &str| {
        let rest = Bytes::now(peer, group.as_ref()).user as f64 - base.user as f64;
        report.sample(
            target.name,
            case.name,
            &format!("memory above start, {when}"),
            "kB",
            rest / 1e3,
        );
    };
    for seconds in [0, 1, 5, 10] {
        let due = left + Duration::from_secs(seconds);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        tell_rest(&format!("{seconds} s after all left"));
    }
    if let Some(app) = app {
        app.wait_told(WARM_UP + clients, PATIENCE);
        peer.settled_memory();
        tell_rest("when the app knows that all left");
    }
}

/// Memory of a server: its own, and the kernel's memory for it where that can be counted.
#[derive(Clone, Copy)]
struct Bytes {
    user: u64,
    rss: u64,
    kernel: Option<u64>,
    /// The other kernel memory, for everything on this machine.
    uncharged: u64,
}

impl Bytes {
    fn now(peer: &Peer, group: Option<&KernelMemory>) -> Self {
        let memory = peer.memory();
        Self {
            user: memory.private_bytes,
            rss: memory.rss_bytes,
            kernel: group.map(KernelMemory::bytes),
            uncharged: process::uncharged_bytes(),
        }
    }

    fn settled(peer: &Peer, group: Option<&KernelMemory>) -> Self {
        peer.settled_memory();
        Self::now(peer, group)
    }
}

/// Reports memory; returns the user bytes per connection.
fn tell_memory(
    say: &mut impl FnMut(&str, &str, f64),
    clients: usize,
    [base, half, full]: [Bytes; 3],
    floor: Option<&Floor>,
) -> f64 {
    let per_client =
        |from: u64, to: u64, clients: usize| (to as f64 - from as f64) / clients as f64;
    let user = per_client(base.user, full.user, clients);
    say("user bytes per connection", "B", user);
    let slope = per_client(half.user, full.user, clients - clients / 2);
    say(
        "user bytes per connection, slope of the second half",
        "B",
        slope,
    );
    say(
        "RSS per connection",
        "B",
        per_client(base.rss, full.rss, clients),
    );
    if let Some(floor) = floor {
        let both_ends = per_client(base.uncharged, full.uncharged, clients);
        let uncharged = both_ends - floor.client_uncharged_bytes;
        say("kernel bytes that no group is charged for", "B", uncharged);
    }
    if let (Some(from), Some(to)) = (base.kernel, full.kernel) {
        let kernel = per_client(from, to, clients);
        say("kernel bytes per connection", "B", kernel);
        say("whole system, bytes per connection", "B", user + kernel);
    }
    user
}

/// Bytes of text that a server must keep, because every call sends them to the app again: the sid, the connection
/// identifiers, url and headers, and the identifiers that no other client has. `first` clients connected and left before.
fn texts_per_client(who: &dyn Clients, first: usize, clients: usize, peer: &Peer) -> f64 {
    let mut identifiers: HashMap<String, u32> = HashMap::new();
    let mut bytes = 0;
    for index in first..first + clients {
        let index = index as u32;
        let cookie = cookie(index);
        let url = format!("http://{}{}", peer.address, who.target(index));
        let headers = json!({ "cookie": cookie }).to_string();
        let user = connection_identifiers(user_of_cookie(&cookie));
        bytes += SID_BYTES + url.len() + headers.len() + user.len();
        for identifier in who.identifiers(index) {
            *identifiers.entry(identifier).or_default() += 1;
        }
    }
    let own = identifiers.iter().filter(|(_, clients)| **clients == 1);
    bytes += own.map(|(identifier, _)| identifier.len()).sum::<usize>();
    bytes as f64 / clients as f64
}

fn tell_setup(say: &mut impl FnMut(&str, &str, f64), figures: &Figures) {
    for percent in [50.0, 99.0] {
        let millis = |micros: u64| micros as f64 / 1e3;
        say(
            &format!("connect to 101, p{percent}"),
            "ms",
            millis(figures.upgrade.percentile(percent)),
        );
        say(
            &format!("connect to welcome, p{percent}"),
            "ms",
            millis(figures.welcome.percentile(percent)),
        );
        say(
            &format!("connect to confirmation, p{percent}"),
            "ms",
            millis(figures.ready.percentile(percent)),
        );
    }
    say(
        "refused, rejected, closed",
        "",
        (figures.refused + figures.rejected + figures.closed) as f64,
    );
}

/// Reports the CPU while nothing happens except pings.
fn tell_pings(
    say: &mut impl FnMut(&str, &str, f64),
    options: &Options,
    peer: &Peer,
    fleet: &Fleet,
    floor: &Floor,
) {
    fleet.take_figures();
    let (cpu, begun) = (peer.cpu(), Instant::now());
    std::thread::sleep(Duration::from_secs(options.seconds.unwrap_or(SECONDS)));
    let (used, elapsed) = (peer.cpu().since(cpu), begun.elapsed());
    let figures = fleet.take_figures();
    let each = used.total().as_secs_f64() * 1e6 / figures.pings as f64;
    say(
        "CPU while idle",
        "ms/s",
        used.total().as_secs_f64() * 1e3 / elapsed.as_secs_f64(),
    );
    say("CPU per ping", "µs", each);
    say(
        "CPU per ping, of the bare loop",
        "ratio",
        each / floor.ping_micros,
    );
    say(
        "client: CPU per ping",
        "µs",
        figures.cpu.total().as_secs_f64() * 1e6 / figures.pings as f64,
    );
    say("connections lost while idle", "", figures.closed as f64);
}
