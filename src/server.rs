//! Boot, threads, signals and the drain. Speaks to shards by message and never names a socket.

use std::collections::HashSet;
use std::io;
use std::net::TcpListener;
use std::process;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ahash::RandomState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::certificate::{self, ReloadWish};
use crate::config::{Config, DriverChoice, RpcEndpoint};
use crate::demo::{DemoApp, DemoOptions};
use crate::mesh::{ConnectionLimit, Mesh, ShardMessage, Survey};
use crate::metrics::{Metrics, TlsMetrics};
use crate::net::Driver;
use crate::net::tls::{ServerTls, TlsFileError};
use crate::os;
use crate::reporting::Reporting;
use crate::rpc::{self, RpcShared};
use crate::shard::front::{self, Endpoint, Features, Front, ListenerSetup};
use crate::shard::sampling::sample;
use crate::shard::{self, ShardSetup};
use crate::wire::paths::PathPatternError;
use crate::{driver, startup};

/// Stack of a shard's thread. Parsers are not recursive and futures live on the heap.
const SHARD_STACK_BYTES: usize = 1 << 20;
/// A shard's thread is called so, and its number.
const SHARD_THREAD_PREFIX: &str = "shard-";
/// How often the drain looks for a second signal, and whether clients are left, while it waits.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// The gauges are not counted again for the console while they are so young.
const GAUGES_FRESH_FOR: Duration = Duration::from_secs(4);
/// How long a survey of the shards may take before the gauges stay as they were.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the server did not start. Each text says what was wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{feature} server at {url} cannot listen: {source}{hint}")]
    Listen {
        feature: &'static str,
        url: String,
        source: io::Error,
        hint: String,
    },
    #[error(transparent)]
    Path(#[from] PathPatternError),
    #[error("failed to initialize RPC controller, cause: {0}")]
    Rpc(#[from] rpc::StartError),
    #[error("the demo app cannot start: {0}")]
    Demo(io::Error),
    #[error("the signal handlers cannot be installed: {0}")]
    Signals(io::Error),
    #[error("the thread that sends StatsD packets cannot start: {0}")]
    Statsd(io::Error),
    #[error(transparent)]
    Driver(#[from] driver::DriverRefused),
    #[error("shard {id} cannot start: {source}")]
    Shard { id: usize, source: io::Error },
    #[error("failed to load SSL certificate, cause: {0}")]
    Tls(#[from] TlsFileError),
    #[error(
        "--demo has no TLS: its app broadcasts over plain HTTP; remove --ssl_cert and --ssl_key"
    )]
    DemoWithTls,
}

/// What the control thread waits for.
enum ControlEvent {
    /// SIGINT or SIGTERM.
    Signal,
    /// SIGHUP.
    Reload(ReloadWish),
    /// Somebody looks at the console, which shows the gauges.
    GaugesWanted,
    /// A shard serves, with this driver.
    ShardStarted(Driver),
    /// A shard could not start or its reactor broke: the process cannot go on.
    ShardEnded { id: usize, error: io::Error },
}

/// Runs the server until a signal ends it; exits the process itself then.
///
/// # Errors
/// Why it could not start.
pub fn run(mut config: Config) -> Result<(), StartError> {
    let started = Instant::now();
    let open_files = os::limits::raise_open_files().unwrap_or(0);
    let shards = config
        .runtime
        .cores
        .unwrap_or_else(os::cpu::default_cores)
        .max(1);
    let (events, control) = mpsc::channel();
    // Before anything else: a SIGHUP to a server that starts must not end it.
    watch_signals(events.clone())?;
    startup::banner(&config, open_files, shards);
    let Prepared { tls, rpc } = prepare(&config)?;
    let demo = start_demo(&mut config)?;
    let listeners = listen(&mut config, shards)?;
    let choice = driver::choose(config.runtime.driver)?;
    let rpc = match &demo {
        Some(_) => Some(RpcShared::new(&config.rpc)?),
        None => rpc,
    };
    let mut metrics = Metrics::new(shards);
    metrics.rpc_configured = rpc.is_some();
    metrics.tls = tls.as_ref().map(|_| TlsMetrics::default());
    set_constants(&metrics, open_files, rpc.as_deref());
    let config = Arc::new(config);
    let metrics = Arc::new(metrics);
    let (mesh, inboxes) = Mesh::new(shards);
    let hasher = RandomState::new();
    let cpus = os::cpu::allowed();
    for (id, (inbox, listeners)) in inboxes.into_iter().zip(listeners).enumerate() {
        let setup = ShardSetup {
            id,
            cpu: (shards <= cpus.len()).then(|| cpus[id]),
            config: Arc::clone(&config),
            metrics: Arc::clone(&metrics),
            mesh: mesh.clone(),
            inbox,
            listeners,
            rpc: rpc.clone(),
            tls: tls.clone(),
            driver: choice.driver,
            may_fall_back: config.runtime.driver == DriverChoice::Auto,
            ask_for_gauges: Box::new({
                let events = events.clone();
                // The control thread outlives the shards.
                move || drop(events.send(ControlEvent::GaugesWanted))
            }),
            started: Box::new({
                let events = events.clone();
                // The control thread outlives the shards.
                move |driver| drop(events.send(ControlEvent::ShardStarted(driver)))
            }),
            hasher: hasher.clone(),
        };
        spawn_shard(setup, events.clone())?;
    }
    let boot = await_shards(shards, &control)?;
    if boot.stopped {
        drain(&config, &metrics, &mesh, &control);
    }
    let choice = choice.after_start(boot.on_epoll, shards);
    // Both are set once, here.
    let _ = metrics.driver.set(choice.driver.as_str());
    if config.console.is_some() {
        let _ = metrics
            .private_bytes_at_start
            .set(os::memory::status().private_bytes);
    }
    startup::configuration(&config, &choice, open_files);
    if let Some(tls) = &tls {
        certificate::announce(tls, &metrics);
    }
    if let Some(demo) = &demo {
        startup::demo(&config, demo);
    }
    let reporting = Reporting::start(&config.metrics, &metrics).map_err(StartError::Statsd)?;
    tracing::info!(
        elapsed_ms = started.elapsed().as_millis() as u64,
        "ringcable is ready"
    );
    os::notify::ready();
    // The app may well start after this server: nothing waits for it. The demo's own app is there for sure.
    if rpc.is_some() && demo.is_none() {
        mesh.mailbox(0).send_blocking(ShardMessage::CheckRpc);
    }
    let watched = Watched {
        metrics: &metrics,
        mesh: &mesh,
        rpc: rpc.as_deref(),
        tls: tls.as_deref(),
    };
    if let Some(wish) = boot.reload {
        wish.take();
        certificate::reload(watched.tls, watched.metrics);
    }
    control_loop(&config, &watched, reporting, &control)
}

/// What a start makes of settings and files before it listens.
pub struct Prepared {
    tls: Option<Arc<ServerTls>>,
    /// `None` without RPC, and with `--demo`, whose app has no address yet.
    rpc: Option<Arc<RpcShared>>,
}

/// Everything that can be found wrong without a listener and without a word to anybody. The whole of `--check-config`.
///
/// # Errors
/// TLS files or a certificate authority that cannot be used, a path that is no pattern, an RPC URL or token that cannot
/// work.
pub fn prepare(config: &Config) -> Result<Prepared, StartError> {
    let tls = config
        .server
        .tls
        .as_ref()
        .map(|files| ServerTls::load(files).map(Arc::new))
        .transpose()?;
    if config.demo && tls.is_some() {
        return Err(StartError::DemoWithTls);
    }
    let main = Features {
        main: true,
        ..Features::default()
    };
    Front::new(config, main)?;
    let rpc = match config.rpc.endpoint {
        RpcEndpoint::Http(_) if !config.demo => Some(RpcShared::new(&config.rpc)?),
        _ => None,
    };
    Ok(Prepared { tls, rpc })
}

/// The gauges that never change.
fn set_constants(metrics: &Metrics, open_files: u64, rpc: Option<&RpcShared>) {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let start = since_1970.unwrap_or_default().as_secs();
    metrics.start_time_seconds.set(start as i64);
    metrics.open_files_limit.set(open_files as i64);
    let slots = rpc.map_or(0, RpcShared::concurrency);
    metrics.rpc_slots_num.set(slots as i64);
}

fn start_demo(config: &mut Config) -> Result<Option<DemoApp>, StartError> {
    if !config.demo {
        return Ok(None);
    }
    let http = config.broadcast.http.as_ref();
    let demo = DemoApp::start(DemoOptions {
        rpc_token: config.rpc.token.clone(),
        broadcast_token: http.and_then(|http| http.token.clone()),
    })
    .map_err(StartError::Demo)?;
    config.rpc.endpoint = RpcEndpoint::Http(demo.rpc_url());
    Ok(Some(demo))
}

/// Opens every listener once for each shard. Ports that were 0 are the chosen ones in `config` afterwards.
fn listen(config: &mut Config, shards: usize) -> Result<Vec<Vec<ListenerSetup>>, StartError> {
    let mut by_shard: Vec<Vec<ListenerSetup>> = (0..shards).map(|_| Vec::new()).collect();
    for (endpoint, features) in front::listeners(config) {
        let sockets = os::sockets::listen(&endpoint.host, endpoint.port, shards)
            .map_err(|source| refused(config.server.tls.is_some(), &endpoint, features, source))?;
        note_port(config, features, &sockets[0]);
        let max = config.server.connections_max;
        let limit = (max > 0).then(|| ConnectionLimit::new(max));
        for (setups, listener) in by_shard.iter_mut().zip(sockets) {
            setups.push(ListenerSetup {
                listener,
                features,
                limit: limit.clone(),
            });
        }
    }
    Ok(by_shard)
}

fn refused(tls: bool, endpoint: &Endpoint, features: Features, source: io::Error) -> StartError {
    let hint = match source.kind() {
        io::ErrorKind::AddrInUse => startup::port_taken(
            endpoint.port,
            startup::port_option(features),
            os::port_owner::find(&endpoint.host, endpoint.port).as_ref(),
        ),
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need the capability CAP_NET_BIND_SERVICE".to_string()
        }
        io::ErrorKind::AddrNotAvailable => {
            "; no interface of this machine has that address".to_string()
        }
        _ => String::new(),
    };
    StartError::Listen {
        feature: startup::listener_name(features),
        url: startup::url(tls, &endpoint.host, endpoint.port, ""),
        source,
        hint,
    }
}

fn note_port(config: &mut Config, features: Features, listener: &TcpListener) {
    let Ok(address) = listener.local_addr() else {
        return;
    };
    let port = address.port();
    if features.main {
        config.server.port = port;
    }
    if let Some(http) = config
        .broadcast
        .http
        .as_mut()
        .filter(|_| features.broadcast)
    {
        http.port = port;
    }
    if let Some(api) = config.api.as_mut().filter(|_| features.api) {
        api.port = port;
    }
    if features.metrics {
        config.metrics.port = port;
    }
}

fn spawn_shard(setup: ShardSetup, events: Sender<ControlEvent>) -> Result<(), StartError> {
    let id = setup.id;
    thread::Builder::new()
        .name(format!("{SHARD_THREAD_PREFIX}{id}"))
        .stack_size(SHARD_STACK_BYTES)
        .spawn(move || {
            let error = match shard::run(setup) {
                Ok(()) => io::Error::other("its loop ended"),
                Err(error) => error,
            };
            // The control thread outlives the shards.
            let _ = events.send(ControlEvent::ShardEnded { id, error });
        })
        .map_err(|source| StartError::Shard { id, source })?;
    Ok(())
}

/// How the start went.
#[derive(Default)]
struct Boot {
    /// SIGINT or SIGTERM came while the shards started.
    stopped: bool,
    /// SIGHUP came. The files may have changed after they were read.
    reload: Option<ReloadWish>,
    /// Shards that run on epoll.
    on_epoll: usize,
}

/// Waits until every shard serves, so that "ready" means all of it. The first shard may have clients before the last one
/// serves: a signal that comes in between is obeyed when all of them can be told. A second one ends the process.
fn await_shards(count: usize, control: &Receiver<ControlEvent>) -> Result<Boot, StartError> {
    let mut missing = count;
    let mut boot = Boot::default();
    while missing > 0 {
        match control.recv() {
            Ok(ControlEvent::ShardStarted(driver)) => {
                missing -= 1;
                boot.on_epoll += usize::from(driver == Driver::Epoll);
            }
            Ok(ControlEvent::ShardEnded { id, error }) => {
                return Err(StartError::Shard { id, source: error });
            }
            Ok(ControlEvent::Reload(wish)) => boot.reload = Some(wish),
            Ok(ControlEvent::GaugesWanted) => {}
            Ok(ControlEvent::Signal) if !boot.stopped => boot.stopped = true,
            Ok(ControlEvent::Signal) | Err(_) => terminate(),
        }
    }
    Ok(boot)
}

fn watch_signals(events: Sender<ControlEvent>) -> Result<(), StartError> {
    // The last two are ignored, as the reference ignores them; by default they would end the process.
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2]).map_err(StartError::Signals)?;
    let reload = ReloadWish::default();
    thread::Builder::new()
        .name("signals".to_string())
        .spawn(move || {
            for signal in signals.forever() {
                let event = match signal {
                    SIGINT | SIGTERM => ControlEvent::Signal,
                    SIGHUP if reload.make() => ControlEvent::Reload(reload.clone()),
                    _ => continue,
                };
                // The receiver goes only when the process does.
                let _ = events.send(event);
            }
        })
        .map_err(StartError::Signals)?;
    Ok(())
}

/// What the control thread looks at and looks after.
struct Watched<'a> {
    metrics: &'a Metrics,
    mesh: &'a Mesh,
    rpc: Option<&'a RpcShared>,
    tls: Option<&'a ServerTls>,
}

/// Something that happens again and again while the control thread waits.
struct Periodic {
    interval: Duration,
    due: Instant,
}

impl Periodic {
    fn new(interval: Duration) -> Self {
        Self {
            interval,
            due: Instant::now() + interval,
        }
    }

    /// True once when it has come due. What was missed meanwhile is not made up for.
    fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.due <= now;
        if is_due {
            let next = self.due + self.interval;
            self.due = if next > now {
                next
            } else {
                now + self.interval
            };
        }
        is_due
    }
}

/// Refreshes the gauges and writes metrics until something happens.
fn control_loop(
    config: &Config,
    watched: &Watched<'_>,
    mut reporting: Option<Reporting>,
    control: &Receiver<ControlEvent>,
) -> Result<(), StartError> {
    let refresh_interval = config.metrics.stats_refresh_interval;
    let wanted = config.metrics.http_path.is_some() || reporting.is_some();
    let mut refresh =
        (wanted && !refresh_interval.is_zero()).then(|| Periodic::new(refresh_interval));
    let mut rotate = reporting
        .is_some()
        .then(|| Periodic::new(config.metrics.rotate_interval));
    let mut refreshed: Option<Instant> = None;
    loop {
        let next = refresh.iter().chain(&rotate).map(|periodic| periodic.due);
        let event = match next.min() {
            Some(due) => control.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => control.recv().map_err(RecvTimeoutError::from),
        };
        match event {
            Err(RecvTimeoutError::Timeout) => {
                let now = Instant::now();
                let is_due = |periodic: &mut Option<Periodic>| {
                    periodic.as_mut().is_some_and(|it| it.take_due(now))
                };
                if is_due(&mut refresh) {
                    refresh_gauges(watched.metrics, watched.mesh);
                    refreshed = Some(now);
                }
                if is_due(&mut rotate)
                    && let Some(reporting) = &mut reporting
                {
                    sample(watched.metrics, watched.mesh, watched.rpc);
                    reporting.report(watched.metrics);
                }
            }
            Ok(ControlEvent::ShardStarted(_)) => {}
            Ok(ControlEvent::GaugesWanted) => {
                // Each shard whose clients look at the console asks.
                if refreshed.is_none_or(|at| at.elapsed() >= GAUGES_FRESH_FOR) {
                    refresh_gauges(watched.metrics, watched.mesh);
                    refreshed = Some(Instant::now());
                }
            }
            Ok(ControlEvent::ShardEnded { id, error }) => {
                return Err(StartError::Shard { id, source: error });
            }
            Ok(ControlEvent::Reload(wish)) => {
                wish.take();
                certificate::reload(watched.tls, watched.metrics);
            }
            Ok(ControlEvent::Signal) | Err(RecvTimeoutError::Disconnected) => {
                drain(config, watched.metrics, watched.mesh, control)
            }
        }
    }
}

/// The gauges that are looked up every `--stats_refresh_interval`.
fn refresh_gauges(metrics: &Metrics, mesh: &Mesh) {
    metrics
        .mem_sys_bytes
        .set(os::memory::resident_bytes() as i64);
    let status = os::memory::status();
    metrics.threads.set(status.threads as i64);
    metrics.private_bytes.set(status.private_bytes as i64);
    for (shard, time) in os::cpu::times_of_threads(SHARD_THREAD_PREFIX) {
        if let Some(gauge) = metrics.cpu_millis.get(shard) {
            gauge.set(time.as_millis() as i64);
        }
    }
    let (reply, replies) = mpsc::channel::<Survey>();
    for mailbox in mesh.mailboxes() {
        // A shard that is too busy for a question keeps the old figures.
        if mailbox
            .try_send(ShardMessage::Survey(reply.clone()))
            .is_err()
        {
            return;
        }
    }
    let (mut identities, mut streams) = (HashSet::new(), HashSet::new());
    for _ in 0..mesh.shards() {
        let Ok(survey) = replies.recv_timeout(SURVEY_TIMEOUT) else {
            return;
        };
        identities.extend(survey.identities);
        streams.extend(survey.streams);
    }
    metrics.clients_uniq_num.set(identities.len() as i64);
    metrics.broadcast_streams_num.set(streams.len() as i64);
}

/// Tells every client that the server goes, makes the Disconnect calls that are owed, and exits.
/// Source: contract/operations.md §9; docs/deploys.md has the whole order of events.
fn drain(config: &Config, metrics: &Metrics, mesh: &Mesh, control: &Receiver<ControlEvent>) -> ! {
    let shutdown = &config.shutdown;
    let deadline = Instant::now() + shutdown.timeout;
    tracing::info!(
        "Shutting down... (hit Ctrl-C to stop immediately or wait for up to {}s for graceful shutdown)",
        shutdown.timeout.as_secs()
    );
    os::notify::stopping();
    for mailbox in mesh.mailboxes() {
        mailbox.send_blocking(ShardMessage::BeginShutdown);
    }
    // The delay is inside the timeout, but clients are told in any case: a moment is kept for that.
    let delay = shutdown
        .delay
        .min(shutdown.timeout.saturating_sub(NOTICE_TIME));
    wait_until(Instant::now() + delay, control, || false);

    let clients = clients(metrics);
    let slowly = slow_drain(config, clients);
    let slowly_until = (!slowly.is_zero()).then(|| Instant::now() + slowly);
    if clients > 0 {
        tracing::info!(
            context = "node",
            num = clients,
            slowdrain_ms = slowly_until.map(|_| slowly.as_millis() as u64),
            "closing active connections"
        );
    }
    // A call is made when its session has ended, not when the last session has.
    mesh.mailbox(0)
        .send_blocking(ShardMessage::HurryDisconnects {
            parallel: shutdown.pool_size,
        });
    if slowly_until.is_none() {
        stop_accepting(mesh);
    }
    for mailbox in mesh.mailboxes() {
        mailbox.send_blocking(ShardMessage::CloseSessions { slowly_until });
    }
    if let Some(end) = slowly_until {
        // Until then the listeners stay: what is published belongs to those who have not been told yet, too.
        wait_until(end, control, || self::clients(metrics) == 0);
        stop_accepting(mesh);
    }
    let (done, closed) = mpsc::channel();
    for mailbox in mesh.mailboxes() {
        mailbox.send_blocking(ShardMessage::ReportClosed(done.clone()));
    }
    if wait_for(mesh.shards(), &closed, deadline, control) {
        tracing::info!(context = "node", "all active connections closed");
    } else {
        tracing::warn!(
            context = "node",
            "terminated while disconnecting active sessions"
        );
    }
    let (done, finished) = mpsc::channel();
    mesh.mailbox(0)
        .send_blocking(ShardMessage::FinishDisconnects { deadline, done });
    // The shard keeps the deadline and logs what it could not do.
    wait_for(1, &finished, deadline + NOTICE_TIME, control);
    process::exit(0)
}

/// Kept for telling the clients when the delay would take all of the time, and for the last log lines.
const NOTICE_TIME: Duration = Duration::from_millis(500);

fn clients(metrics: &Metrics) -> i64 {
    let shards = metrics.shards.iter();
    shards.map(|shard| shard.clients_num.value()).sum()
}

/// How long the clients of a slow drain take: few of them do not need all of the time.
fn slow_drain(config: &Config, clients: i64) -> Duration {
    let gaps = u32::try_from(clients).unwrap_or(0);
    let shutdown = &config.shutdown;
    shutdown
        .slow_drain
        .min(shutdown.slow_drain_gap_max.saturating_mul(gaps))
}

fn stop_accepting(mesh: &Mesh) {
    for mailbox in mesh.mailboxes() {
        mailbox.send_blocking(ShardMessage::StopAccepting);
    }
}

/// Waits until `end`, or until there is nothing to wait for any more. A second signal ends the process.
fn wait_until(end: Instant, control: &Receiver<ControlEvent>, over: impl Fn() -> bool) {
    while !over() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        if let Ok(ControlEvent::Signal) = control.recv_timeout(left.min(DRAIN_POLL)) {
            terminate();
        }
    }
}

/// Waits for `count` answers. False: the deadline came first. A second signal ends the process.
fn wait_for(
    count: usize,
    answers: &Receiver<usize>,
    deadline: Instant,
    control: &Receiver<ControlEvent>,
) -> bool {
    let mut missing = count;
    while missing > 0 {
        if let Ok(ControlEvent::Signal) = control.try_recv() {
            terminate();
        }
        match answers.recv_timeout(DRAIN_POLL) {
            Ok(_) => missing -= 1,
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(_) => return false,
        }
    }
    true
}

fn terminate() -> ! {
    tracing::warn!("Immediate termination requested. Stopped");
    process::exit(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_periodic_keeps_its_pace_and_makes_nothing_up() {
        let start = Instant::now();
        let interval = Duration::from_secs(10);
        let mut periodic = Periodic {
            interval,
            due: start + interval,
        };
        // Looked at after so many seconds: is it due, and when next?
        for (secs, is_due, next_secs) in [
            (9, false, 10),
            (10, true, 20),
            (11, false, 20),
            (21, true, 30),
            (55, true, 65),
            (64, false, 65),
            (65, true, 75),
        ] {
            let now = start + Duration::from_secs(secs);
            assert_eq!(periodic.take_due(now), is_due, "{secs}");
            assert_eq!(
                periodic.due,
                start + Duration::from_secs(next_secs),
                "{secs}"
            );
        }
    }
}
