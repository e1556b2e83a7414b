//! How a shard starts, and the loops that run for its life.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::task::Poll;
use std::time::{Duration, Instant};

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder};

use crate::broker::history::Epochs;
use crate::config::{BrokerAdapter, Config};
use crate::hub::Interest;
use crate::mesh::{Lease, ProcessBudget, ShardBudget, ShardId};
use crate::metrics::Metrics;
use crate::net::tls::ServerTls;
use crate::net::{Driver, Listener, ReactorWake, Timeouts, Yields};
use crate::os;
use crate::reactor::Reactor;
use crate::rpc::{RpcClient, RpcShared};
use crate::shard::calls::CallQueue;
use crate::shard::console::Console;
use crate::shard::disconnects::{self, DisconnectQueue, Forwarding};
use crate::shard::http::accept;
use crate::shard::http::listener::{ListenerRules, ListenerSetup};
use crate::shard::long_work::LongWork;
use crate::shard::message::{ControlEvent, ShardInbox, ShardMesh};
use crate::shard::notices::Notices;
use crate::shard::publisher::{Broker, BrokerLeases, Home, Publisher};
use crate::shard::reclaim::Reclaim;
use crate::shard::sessions::{Kept, Sessions};
use crate::shard::shutdown::{PublicationsEnd, Shutdown};
use crate::shard::signal::{Signal, Stop, unless};
use crate::shard::slow_calls::SlowCalls;
use crate::shard::{Shard, sweeping};

/// Everything a shard is given when its thread starts.
pub struct ShardSetup {
    pub id: ShardId,
    /// The CPU to pin the thread to; `None` when there are more shards than CPUs.
    pub cpu: Option<usize>,
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub mesh: ShardMesh,
    pub inbox: ShardInbox,
    pub publications_end: PublicationsEnd,
    pub budget: Arc<ProcessBudget>,
    pub listeners: Vec<ListenerSetup>,
    pub rpc: Option<Arc<RpcShared>>,
    /// TLS on every listener.
    pub tls: Option<Arc<ServerTls>>,
    pub driver: Driver,
    /// A trial at the start has shown that io_uring works. This shard may take epoll if it is refused all the same, because
    /// the memory for rings is limited.
    pub may_fall_back: bool,
    /// To the control thread.
    pub control: Sender<ControlEvent>,
    /// `None`: nothing is kept.
    pub broker: Option<BrokerSetup>,
    /// Which shards may have a listener of a stream; also the hasher of all shards.
    pub interest: Arc<Interest>,
}

/// What the brokers of all shards share.
#[derive(Clone)]
pub struct BrokerSetup {
    /// The bytes that their histories may hold together.
    pub history: Arc<ProcessBudget>,
    /// The same for all else that they keep.
    pub others: Arc<ProcessBudget>,
    /// Random.
    pub epoch_seed: u64,
}

impl BrokerSetup {
    fn leases(&self) -> BrokerLeases {
        let lease = |budget| Rc::new(Lease::new(Arc::clone(budget)));
        BrokerLeases {
            history: lease(&self.history),
            others: lease(&self.others),
        }
    }
}

/// Runs a shard on the calling thread; returns only when it cannot start or its reactor breaks.
///
/// # Errors
/// When the driver is refused or a ring is broken.
pub fn run(setup: ShardSetup) -> io::Result<()> {
    if let Some(cpu) = setup.cpu
        && let Err(error) = os::cpu::pin_current_thread(cpu)
    {
        tracing::warn!(shard = setup.id, cpu, %error, "cannot pin the shard to its CPU, it runs unpinned");
    }
    match setup.driver {
        Driver::IoUring => match uring() {
            Ok((mut runtime, reactor)) => runtime.block_on(serve(setup, reactor)),
            Err(error) if setup.may_fall_back => {
                tracing::warn!(
                    shard = setup.id,
                    %error,
                    "io_uring is refused to this shard, it runs on epoll; raise the limit on locked memory (memlock)"
                );
                run_on_epoll(setup)
            }
            Err(error) => Err(error),
        },
        Driver::Epoll => run_on_epoll(setup),
    }
}

fn run_on_epoll(mut setup: ShardSetup) -> io::Result<()> {
    setup.driver = Driver::Epoll;
    let reactor = Reactor::epoll()?;
    RuntimeBuilder::<LegacyDriver>::new()
        .enable_timer()
        .build()?
        .block_on(serve(setup, reactor))
}

/// Requests that can wait in monoio's ring; a full queue is handed to the kernel at once. monoio's own 1,024 take 48 KB
/// more, also of a shard that does nothing.
const DRIVER_REQUESTS: u32 = 256;
/// Completions that fit into that ring.
const DRIVER_COMPLETIONS: u32 = 2048;

/// Both rings of a shard, or neither of them.
fn uring() -> io::Result<(Runtime<TimeDriver<IoUringDriver>>, Reactor)> {
    // A shard enters the kernel often anyway, so a completed operation need not interrupt it.
    let mut cooperative = monoio_uring::IoUring::builder();
    cooperative.setup_coop_taskrun().setup_single_issuer();
    let build = |mut ring: monoio_uring::Builder| {
        ring.setup_cqsize(DRIVER_COMPLETIONS);
        RuntimeBuilder::<IoUringDriver>::new()
            .uring_builder(ring)
            .with_entries(DRIVER_REQUESTS)
            .enable_timer()
            .build()
    };
    // Kernels older than 6.0 refuse the flags.
    let runtime = build(cooperative).or_else(|_| build(monoio_uring::IoUring::builder()))?;
    Ok((runtime, Reactor::uring()?))
}

async fn serve(setup: ShardSetup, mut reactor: Reactor) -> io::Result<()> {
    hang_bell(&setup.inbox, &mut reactor)?;
    let wake = ReactorWake::new(reactor.wake_fd()?)?;
    let driver = setup.driver;
    let (shard, listeners) = assemble(setup, reactor)?;
    for setup in listeners {
        let listener = Listener::adopt(setup.listener)?;
        let rules = ListenerRules::new(&shard.config, setup.features, setup.paths)
            .map_err(io::Error::other)?;
        let rules = Rc::new(rules);
        if setup.features.main {
            shard.main_rules.get_or_init(|| Rc::clone(&rules));
        }
        monoio::spawn(accept::run(
            Rc::clone(&shard),
            listener,
            rules,
            setup.limit,
            setup.open_files,
        ));
    }
    monoio::spawn(run_waiting_messages(Rc::clone(&shard)));
    monoio::spawn(run_flushes(Rc::clone(&shard)));
    monoio::spawn(run_timers(Rc::clone(&shard)));
    if shard.config.broker.adapter != BrokerAdapter::None {
        monoio::spawn(sweeping::run(Rc::clone(&shard)));
    }
    if shard.id == 0 {
        monoio::spawn(disconnects::run(Rc::clone(&shard)));
    }
    shard.tell_control(ControlEvent::ShardStarted(driver));
    serve_sessions(&shard, &wake).await
}

/// What the shard keeps for streams, and for sessions that may come back.
fn keeping(setup: &ShardSetup) -> (Broker, Option<Kept>) {
    let Some(broker) = &setup.broker else {
        return (Broker::None, None);
    };
    let config = &setup.config.broker;
    let leases = broker.leases();
    let keeps_sessions = config.keeps_sessions();
    let kept = keeps_sessions.then(|| Kept::new(config.sessions_ttl, Rc::clone(&leases.others)));
    let epochs = Epochs::new(broker.epoch_seed, setup.id, setup.mesh.shards());
    let home = Home::new(config, Arc::clone(&setup.interest), leases, epochs);
    (Broker::Memory(Box::new(RefCell::new(home))), kept)
}

/// Builds the shard's state, with the clocks that live in its runtime, and returns the listeners it is to serve.
fn assemble(setup: ShardSetup, reactor: Reactor) -> io::Result<(Rc<Shard>, Vec<ListenerSetup>)> {
    let (broker, kept) = keeping(&setup);
    let metrics = || Arc::clone(&setup.metrics);
    let interest = || Arc::clone(&setup.interest);
    let timeouts = Timeouts::start();
    let yields = Yields::start(setup.driver)?;
    let inbox = Rc::new(setup.inbox);
    let slow_call = setup.config.rpc.slow_call;
    let slow_calls = SlowCalls::new(setup.id, metrics(), slow_call);
    let concurrency = setup.rpc.as_ref().map_or(1, |rpc| rpc.concurrency());
    let shutdown = Shutdown::new(setup.id, metrics(), setup.publications_end);
    let mesh = setup.mesh.clone();
    let publisher = Publisher::new(setup.id, mesh, interest(), metrics(), broker);
    let budget = ShardBudget::new(setup.budget, metrics(), setup.id);
    let sessions = Sessions::new(
        setup.id,
        Arc::clone(&setup.config),
        Rc::clone(&budget),
        interest(),
        reactor,
        Rc::clone(&inbox),
        Instant::now(),
    );
    let shard = Shard {
        id: setup.id,
        budget: Rc::clone(&budget),
        sessions: RefCell::new(sessions.keeping(kept)),
        rpc: setup
            .rpc
            .map(|rpc| RpcClient::new(rpc, metrics(), setup.id, Rc::clone(&timeouts))),
        config: setup.config,
        metrics: metrics(),
        mesh: setup.mesh,
        interest: interest(),
        tls: setup.tls,
        timeouts,
        inbox,
        control: setup.control,
        yields,
        calls: CallQueue::new(concurrency),
        disconnects: DisconnectQueue::default(),
        console: Console::new(),
        publisher,
        long_work: LongWork::default(),
        notices: Notices::default(),
        slow_calls,
        main_rules: OnceCell::new(),
        requests: Cell::new(0),
        forwarding: Forwarding::default(),
        unflushed: Signal::default(),
        unserved: Signal::default(),
        timer_at: Cell::new(None),
        earlier_timer: Signal::default(),
        accept_stop: Stop::default(),
        shutdown,
    };
    Ok((Rc::new(shard), setup.listeners))
}

/// Lets the reactor wake this thread when another one puts a message into the inbox.
fn hang_bell(inbox: &ShardInbox, reactor: &mut Reactor) -> io::Result<()> {
    let bell = Arc::new(os::bell::Bell::new()?);
    reactor.watch_bell(Arc::clone(&bell))?;
    inbox.hang_bell(bell.into());
    Ok(())
}

/// How long sessions may be served before the shard asks the driver for completions and timers again.
const SERVED_WITHOUT_PASS_MAX: Duration = Duration::from_millis(1);

/// Serves established sessions and the inbox for the life of the shard.
async fn serve_sessions(shard: &Rc<Shard>, wake: &ReactorWake) -> io::Result<()> {
    let mut passed = Instant::now();
    // Stays armed while the shard works for other reasons than an event.
    let mut events = pin!(wake.ready());
    loop {
        if shard.has_work() || passed.elapsed() >= SERVED_WITHOUT_PASS_MAX {
            shard.yields.yield_now().await;
            passed = Instant::now();
        }
        if !shard.has_work() {
            let woken = wait_for_work(shard, events.as_mut()).await;
            // With epoll, readiness that is already known does not count as asking the driver.
            if woken.waited {
                passed = Instant::now();
            }
            if let Some(result) = woken.events {
                result?;
                events.set(wake.ready());
            }
        }
        shard.turn(Sessions::harvest)?;
    }
}

/// Why the shard goes on.
struct Woken {
    /// It had to wait, so the driver has been asked.
    waited: bool,
    /// The reactor has events.
    events: Option<io::Result<()>>,
}

/// Returns when there are events, messages in the inbox, or sessions that can be served at once. Another shard that sends a
/// message rings the bell, which is an event.
async fn wait_for_work(
    shard: &Shard,
    mut events: Pin<&mut impl Future<Output = io::Result<()>>>,
) -> Woken {
    let mut waited = false;
    let mut unserved = pin!(shard.unserved.notified());
    let mut messages = pin!(shard.inbox.ready());
    poll_fn(|context| {
        let polled = if unserved.as_mut().poll(context).is_ready()
            || messages.as_mut().poll(context).is_ready()
        {
            Poll::Ready(None)
        } else {
            events.as_mut().poll(context).map(Some)
        };
        waited |= polled.is_pending();
        polled.map(|events| Woken { waited, events })
    })
    .await
}

/// Continues the writes that a turn had no time for, and lets the other tasks of the shard run in between.
async fn run_flushes(shard: Rc<Shard>) {
    loop {
        shard.unflushed.notified().await;
        shard.yields.yield_now().await;
        // The turn writes, and notifies again while sessions still wait.
        shard.turn(|_| ());
    }
}

/// Sends the messages that wait for room in an inbox.
async fn run_waiting_messages(shard: Rc<Shard>) {
    shard.publisher.send_waiting().await;
}

/// Makes a turn when a session's deadline has come, and lets the allocator look for free memory.
async fn run_timers(shard: Rc<Shard>) {
    let mut reclaim = Reclaim::new(Instant::now());
    loop {
        let due = shard.next_timer_at(reclaim.due_at());
        let sleep = due.saturating_duration_since(Instant::now());
        let mut timer = pin!(monoio::time::sleep(sleep.max(TIMER_SLEEP_MIN)));
        let mut earlier = pin!(shard.earlier_timer.notified());
        if unless(earlier.as_mut(), timer.as_mut()).await.is_none() {
            continue;
        }
        shard.turn(Sessions::on_tick);
        if reclaim.is_due(Instant::now(), shard.counters()) {
            os::memory::give_back();
        }
    }
}

/// The driver's timers count milliseconds; a shorter sleep would not sleep at all.
const TIMER_SLEEP_MIN: Duration = Duration::from_millis(1);
