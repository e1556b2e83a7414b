//! Boot, threads, signals and the drain. Speaks to shards by message and never names a socket.
//!
//! A start has three parts: `plan` decides what can be decided without a socket, `listen` opens the listeners, `boot` starts
//! the shards with them. Then the control thread takes over (`control`), until a signal makes it drain (`drain`).

mod boot;
mod control;
mod drain;
mod listen;
mod plan;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Instant;

use ahash::RandomState;

use self::control::{control_loop, watch_signals};
use self::drain::drain;
use self::listen::listen;
use self::plan::Plan;
pub use self::plan::{Prepared, prepare};
use crate::certificate::{self, ReloadRequest};
use crate::config::Config;
use crate::driver::Choice;
use crate::hub::Interest;
use crate::mesh::ShardId;
use crate::metrics::Metrics;
use crate::net::tls::{ServerTls, TlsFileError};
use crate::os;
use crate::reporting::Reporting;
use crate::rpc::{self, RpcShared};
use crate::shard::PublicationsEnd;
use crate::shard::http::collisions::Collision;
use crate::shard::message::{ControlEvent, ControlMessage, ShardMesh};
use crate::wire::paths::PathPatternError;
use crate::{driver, startup};

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

/// The server as the control thread sees it.
struct Server {
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    mesh: ShardMesh,
    interest: Arc<Interest>,
    publications_end: PublicationsEnd,
    rpc: Option<Arc<RpcShared>>,
    tls: Option<Arc<ServerTls>>,
    reload: ReloadRequest,
    control: Receiver<ControlEvent>,
}

/// Runs the server until a signal ends it; the process then exits from inside this function.
///
/// # Errors
/// Why the server could not start.
pub fn run(mut config: Config) -> Result<(), StartError> {
    let started = Instant::now();
    let (events, control) = mpsc::channel();
    // First of all: by default a SIGHUP during the start would end the process.
    let reload = watch_signals(events.clone())?;
    let plan = Plan::make(&mut config)?;
    let listeners = listen(&mut config, plan.shards, plan.open_files)?;
    let choice = driver::choose(config.runtime.driver)?;
    let budget = boot::budget(&config, plan.shards);
    let (mesh, inboxes) = ShardMesh::new(plan.shards);
    let server = Server {
        metrics: Arc::new(boot::metrics(&config, &plan, &budget)),
        config: Arc::new(config),
        interest: Arc::new(Interest::new(plan.shards, RandomState::new())),
        mesh,
        publications_end: PublicationsEnd::default(),
        rpc: plan.rpc.clone(),
        tls: plan.tls.clone(),
        reload,
        control,
    };
    boot::start_shards(
        &server,
        &choice,
        &budget,
        events,
        inboxes.into_iter().zip(listeners),
    )?;
    let boot = boot::await_shards(&server)?;
    if boot.stopped {
        drain(&server);
    }
    announce(
        &server,
        &plan,
        choice.after_start(boot.on_epoll, plan.shards),
    );
    let reporting =
        Reporting::start(&server.config.metrics, &server.metrics).map_err(StartError::Statsd)?;
    tracing::info!(
        elapsed_ms = started.elapsed().as_millis() as u64,
        "ringcable is ready"
    );
    os::notify::ready();
    // The app may start after this server, so the start does not wait for it. The demo's own app is already running.
    if server.rpc.is_some() && plan.demo.is_none() {
        server.tell(0, ControlMessage::CheckRpc);
    }
    if boot.reload {
        server.reload_certificate();
    }
    control_loop(&server, reporting)
}

/// Logs the configuration and sets the last metrics, when all shards serve.
fn announce(server: &Server, plan: &Plan, choice: Choice) {
    let metrics = &server.metrics;
    // Each of the two is set only here, so it cannot be set already.
    let _ = metrics.driver.set(choice.driver.as_str());
    if server.config.console.is_some() {
        let _ = metrics
            .private_bytes_at_start
            .set(os::memory::status().private_bytes);
    }
    startup::configuration(&server.config, &choice, plan.open_files);
    if let Some(tls) = &server.tls {
        certificate::announce(tls, metrics);
    }
    if let Some(demo) = &plan.demo {
        startup::demo(&server.config, demo);
    }
}

impl Server {
    /// Waits for room in the shard's inbox.
    fn tell(&self, shard: ShardId, message: ControlMessage) {
        self.mesh.mailbox(shard).send_blocking(message.into());
    }

    fn tell_all(&self, message: ControlMessage) {
        for shard in 0..self.mesh.shards() {
            self.tell(shard, message.clone());
        }
    }

    fn clients(&self) -> i64 {
        let shards = self.metrics.shards.iter();
        shards.map(|shard| shard.clients_num.value()).sum()
    }

    fn reload_certificate(&self) {
        self.reload.take();
        certificate::reload(self.tls.as_deref(), &self.metrics);
    }
}
