//! Boot, threads, signals and the drain. Speaks to shards by message and never names a socket.
//!
//! Here is the start; then the control thread takes over (`control`), until a signal makes it drain (`drain`).

mod control;
mod drain;
mod listen;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ahash::RandomState;

use self::control::{SHARD_THREAD_PREFIX, Watched, control_loop, terminate, watch_signals};
use self::drain::drain;
use self::listen::listen;
use crate::certificate;
use crate::config::{Config, DriverChoice, MemoryBound, RpcEndpoint};
use crate::demo::{DemoApp, DemoOptions};
use crate::mesh::ProcessBudget;
use crate::metrics::{Metrics, TlsMetrics};
use crate::net::Driver;
use crate::net::tls::{ServerTls, TlsFileError};
use crate::os;
use crate::os::limits::OpenFiles;
use crate::reporting::Reporting;
use crate::rpc::{self, RpcShared};
use crate::shard::http::collisions::{self, Collision};
use crate::shard::message::{ControlEvent, ControlMessage, ShardMesh};
use crate::shard::{self, PublicationsEnd, ShardSetup};
use crate::wire::paths::{PathPatternError, PathPatterns};
use crate::{driver, startup};

/// Stack of a shard's thread. Parsers are not recursive and futures live on the heap.
const SHARD_STACK_BYTES: usize = 1 << 20;

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
    #[error(transparent)]
    Collision(#[from] Collision),
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
    let reload = watch_signals(events.clone())?;
    startup::banner(&config, open_files, shards);
    let Prepared { tls, rpc } = prepare(&config).map_err(|mut problems| problems.swap_remove(0))?;
    let demo = start_demo(&mut config)?;
    let calls = config.rpc.concurrency.max(1);
    let open_files = OpenFiles::share_out(open_files, shards, calls, rpc::kept_max(calls, shards));
    let listeners = listen(&mut config, shards, open_files)?;
    let choice = driver::choose(config.runtime.driver)?;
    let rpc = match &demo {
        Some(_) => Some(RpcShared::new(&config.rpc)?),
        None => rpc,
    };
    let mut metrics = Metrics::new(shards);
    metrics.rpc_configured = rpc.is_some();
    metrics.tls = tls.as_ref().map(|_| TlsMetrics::default());
    let budget = ProcessBudget::new(memory_bytes_max(&config), shards);
    set_constants(&metrics, open_files.max, rpc.as_deref(), &budget);
    let config = Arc::new(config);
    let metrics = Arc::new(metrics);
    let (mesh, inboxes) = ShardMesh::new(shards);
    let publications_end = PublicationsEnd::default();
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
            publications_end: publications_end.clone(),
            budget: Arc::clone(&budget),
            listeners,
            rpc: rpc.clone(),
            tls: tls.clone(),
            driver: choice.driver,
            may_fall_back: config.runtime.driver == DriverChoice::Auto,
            control: events.clone(),
            hasher: hasher.clone(),
        };
        spawn_shard(setup)?;
    }
    let watched = Watched {
        metrics: &metrics,
        mesh: &mesh,
        publications_end: &publications_end,
        rpc: rpc.as_deref(),
        tls: tls.as_deref(),
        reload: &reload,
    };
    let boot = await_shards(shards, &control)?;
    if boot.stopped {
        drain(&config, &watched, &control);
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
        mesh.mailbox(0)
            .send_blocking(ControlMessage::CheckRpc.into());
    }
    if boot.reload {
        reload.take();
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
/// All of it: TLS files or a certificate authority that cannot be used, paths that are no patterns or collide, an RPC URL
/// or token that cannot work. Never empty.
pub fn prepare(config: &Config) -> Result<Prepared, Vec<StartError>> {
    let mut problems = Vec::new();
    let tls = match &config.server.tls {
        Some(files) => match ServerTls::load(files) {
            Ok(tls) => Some(Arc::new(tls)),
            Err(_) => {
                problems.extend(ServerTls::problems(files).into_iter().map(StartError::Tls));
                None
            }
        },
        None => None,
    };
    if config.demo && config.server.tls.is_some() {
        problems.push(StartError::DemoWithTls);
    }
    match PathPatterns::new(&config.server.paths) {
        Ok(_) => problems.extend(
            collisions::find(config, &startup::pages(config))
                .into_iter()
                .map(StartError::Collision),
        ),
        Err(error) => problems.push(StartError::Path(error)),
    }
    let rpc = match config.rpc.endpoint {
        RpcEndpoint::Http(_) if !config.demo => RpcShared::new(&config.rpc)
            .map_err(|error| problems.push(StartError::Rpc(error)))
            .ok(),
        _ => None,
    };
    if problems.is_empty() {
        Ok(Prepared { tls, rpc })
    } else {
        Err(problems)
    }
}

/// The gauges that never change.
fn set_constants(
    metrics: &Metrics,
    open_files: u64,
    rpc: Option<&RpcShared>,
    budget: &ProcessBudget,
) {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let start = since_1970.unwrap_or_default().as_secs();
    metrics.start_time_seconds.set(start as i64);
    metrics.open_files_limit.set(open_files as i64);
    let slots = rpc.map_or(0, RpcShared::concurrency);
    metrics.rpc_slots_num.set(slots as i64);
    let bytes_max = budget.bytes_max().unwrap_or(0);
    metrics.memory_bytes_max.set(bytes_max as i64);
}

/// What clients and requests may take; `None` = no bound. The other half of the limit is for the process itself, for the
/// kernel's memory of sockets, and for what an allocator needs beside what it is asked for.
fn memory_bytes_max(config: &Config) -> Option<usize> {
    match config.runtime.memory {
        MemoryBound::None => None,
        MemoryBound::Bytes(bytes) => Some(bytes),
        MemoryBound::OfLimit => {
            os::memory::limit_bytes().map(|bytes| usize::try_from(bytes / 2).unwrap_or(usize::MAX))
        }
    }
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

fn spawn_shard(setup: ShardSetup) -> Result<(), StartError> {
    let id = setup.id;
    let control = setup.control.clone();
    thread::Builder::new()
        .name(format!("{SHARD_THREAD_PREFIX}{id}"))
        .stack_size(SHARD_STACK_BYTES)
        .spawn(move || {
            let error = match shard::run(setup) {
                Ok(()) => io::Error::other("its loop ended"),
                Err(error) => error,
            };
            // The control thread outlives the shards.
            let _ = control.send(ControlEvent::ShardEnded { id, error });
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
    reload: bool,
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
            Ok(ControlEvent::Reload) => boot.reload = true,
            Ok(ControlEvent::GaugesWanted) => {}
            Ok(ControlEvent::Signal) if !boot.stopped => boot.stopped = true,
            Ok(ControlEvent::Signal) | Err(_) => terminate(),
        }
    }
    Ok(boot)
}
