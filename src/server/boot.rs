//! From a plan and open listeners to running shards.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{io, thread};

use super::control::{SHARD_THREAD_PREFIX, terminate};
use super::plan::Plan;
use super::{Server, StartError};
use crate::config::{BrokerAdapter, Config, DriverChoice, MemoryBound};
use crate::driver::Choice;
use crate::mesh::ProcessBudget;
use crate::metrics::{Metrics, TlsMetrics};
use crate::net::Driver;
use crate::os;
use crate::rpc::RpcShared;
use crate::shard::http::listener::ListenerSetup;
use crate::shard::message::{ControlEvent, ShardInbox};
use crate::shard::{self, BrokerSetup, ShardSetup};

/// The stack of a shard's thread. It can be small: parsers do not recurse, and futures live on the heap.
const SHARD_STACK_BYTES: usize = 1 << 20;

/// The parts of the memory limit that clients and requests may take, and that the broker may take, as divisors.
const CLIENTS_PART: u64 = 2;
const BROKER_PART: u64 = 4;
/// What is not history gets this part of the broker's bytes.
const OTHERS_PART: usize = 4;

/// The metrics of this start, with the gauges that never change.
pub fn metrics(config: &Config, plan: &Plan, budget: &ProcessBudget) -> Metrics {
    let mut metrics = Metrics::new(plan.shards);
    metrics.rpc_configured = plan.rpc.is_some();
    metrics.tls = plan.tls.as_ref().map(|_| TlsMetrics::default());
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let start = since_1970.unwrap_or_default().as_secs();
    metrics.start_time_seconds.set(start as i64);
    metrics.open_files_limit.set(plan.open_files.max as i64);
    let slots = plan.rpc.as_deref().map_or(0, RpcShared::concurrency);
    metrics.rpc_slots_num.set(slots as i64);
    let bytes_max = budget.bytes_max().unwrap_or(0);
    metrics.memory_bytes_max.set(bytes_max as i64);
    metrics.has_broker = has_broker(config);
    if metrics.has_broker {
        let bytes_max = broker_bytes_max(config).unwrap_or(0);
        metrics.broker_bytes_max.set(bytes_max as i64);
    }
    metrics
}

/// The limits on what the process may hold for clients and requests.
pub fn budget(config: &Config, shards: usize) -> Arc<ProcessBudget> {
    ProcessBudget::new(memory_bytes_max(config), shards)
}

/// Bytes that clients and requests may take; `None` = no limit. The other half of the configured limit is for the process
/// itself, for socket memory in the kernel, and for the allocator's overhead.
fn memory_bytes_max(config: &Config) -> Option<usize> {
    match config.runtime.memory {
        MemoryBound::None => None,
        MemoryBound::Bytes(bytes) => Some(bytes),
        MemoryBound::OfLimit => memory_part(CLIENTS_PART),
    }
}

/// Starts one thread per shard. Each shard reports on `events` when it serves.
///
/// # Errors
/// No thread could be started.
pub fn start_shards(
    server: &Server,
    choice: &Choice,
    budget: &Arc<ProcessBudget>,
    events: Sender<ControlEvent>,
    shards: impl Iterator<Item = (ShardInbox, Vec<ListenerSetup>)>,
) -> Result<(), StartError> {
    let broker = broker(&server.config, server.mesh.shards());
    let cpus = os::cpu::allowed();
    let pinned = server.mesh.shards() <= cpus.len();
    for (id, (inbox, listeners)) in shards.enumerate() {
        spawn_shard(ShardSetup {
            id,
            cpu: pinned.then(|| cpus[id]),
            config: Arc::clone(&server.config),
            metrics: Arc::clone(&server.metrics),
            mesh: server.mesh.clone(),
            inbox,
            publications_end: server.publications_end.clone(),
            budget: Arc::clone(budget),
            listeners,
            rpc: server.rpc.clone(),
            tls: server.tls.clone(),
            driver: choice.driver,
            may_fall_back: server.config.runtime.driver == DriverChoice::Auto,
            control: events.clone(),
            broker: broker.clone(),
            interest: Arc::clone(&server.interest),
        })?;
    }
    Ok(())
}

/// What the brokers of all shards share; `None` when nothing is kept.
fn broker(config: &Config, shards: usize) -> Option<BrokerSetup> {
    let bytes_max = broker_bytes_max(config);
    has_broker(config).then(|| BrokerSetup {
        history: ProcessBudget::new(bytes_max.map(|bytes| bytes - bytes / OTHERS_PART), shards),
        others: ProcessBudget::new(bytes_max.map(|bytes| bytes / OTHERS_PART), shards),
        epoch_seed: u64::from_ne_bytes(os::random::bytes()),
    })
}

fn has_broker(config: &Config) -> bool {
    config.broker.adapter != BrokerAdapter::None
}

/// `None` = no bound.
fn broker_bytes_max(config: &Config) -> Option<usize> {
    match config.broker.memory {
        MemoryBound::None => None,
        MemoryBound::Bytes(bytes) => Some(bytes),
        MemoryBound::OfLimit => memory_part(BROKER_PART),
    }
}

/// This part of the memory limit of the process; `None` when there is no limit.
fn memory_part(part: u64) -> Option<usize> {
    let bytes = os::memory::limit_bytes()? / part;
    Some(usize::try_from(bytes).unwrap_or(usize::MAX))
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
            // The control thread outlives the shards, so its receiver is still there.
            let _ = control.send(ControlEvent::ShardEnded { id, error });
        })
        .map_err(|source| StartError::Shard { id, source })?;
    Ok(())
}

/// How the start went.
#[derive(Default)]
pub struct Boot {
    /// SIGINT or SIGTERM came while the shards started.
    pub stopped: bool,
    /// SIGHUP came during the start. The files may have changed after the server read them.
    pub reload: bool,
    /// Shards that run on epoll.
    pub on_epoll: usize,
}

/// Waits until every shard serves, so that "ready" is true for all of them. The first shard may have clients before the last
/// one serves; a signal that comes in between takes effect when all shards can be told. A second signal ends the process.
pub fn await_shards(server: &Server) -> Result<Boot, StartError> {
    let mut missing = server.mesh.shards();
    let mut boot = Boot::default();
    while missing > 0 {
        match server.control.recv() {
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
