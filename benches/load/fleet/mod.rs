//! Very many clients in a few threads. Scenarios define the clients ([`Clients`]), open and close them, and read figures.
//!
//! Each worker thread has its own descriptor table, so the limit on open files applies to a worker and not to the fleet.
//! Scenarios send commands to the workers and get figures back; the state for which they wait is in [`Progress`].

mod client;
mod figures;
mod listener;
mod message;
mod worker;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

pub use client::{client_frame, header as frame_header};
pub use figures::{Figures, Progress};
pub use message::Mark;

use crate::handle::{self, Handle};

/// Clients that share a source address. So few that its ports suffice even when many of them have just been closed.
const CLIENTS_PER_ADDRESS: u32 = 5_000;

/// Clients of one worker that are between connect and last confirmation, unless the plan says otherwise.
pub const UNFINISHED_MAX: usize = 500;

/// The properties of the clients, by their number. A client stores none of them; the worker asks when it needs them.
pub trait Clients: Send + Sync {
    /// Path and query of the upgrade.
    fn target(&self, _index: u32) -> String {
        "/cable".to_owned()
    }

    /// Additional header lines of the request, each with its CRLF.
    fn header_lines(&self, _index: u32) -> String {
        String::new()
    }

    /// The identifiers to subscribe to, in the order of the commands.
    fn identifiers(&self, index: u32) -> Vec<String>;

    /// The number of the one stream whose marks are checked; `None`: marks of any stream are accepted and their order is not
    /// checked.
    fn stream(&self, _index: u32) -> Option<u32> {
        None
    }
}

/// The behaviour of a fleet.
#[derive(Clone)]
pub struct Plan {
    pub address: SocketAddrV4,
    pub clients: Arc<dyn Clients>,
    pub threads: usize,
    /// CPUs for the workers; empty: any CPU.
    pub cpus: Vec<usize>,
    /// Largest number of unfinished connections of one worker.
    pub unfinished_max: usize,
    /// Subscribe commands follow the upgrade at once and do not wait for the welcome.
    pub pipelined: bool,
    /// A client reconnects this long after its connection is lost or refused.
    pub reconnect_after: Option<Duration>,
    /// Clients join streams that are already running, so their first sequence number is unknown.
    pub joins_late: bool,
    /// Clients use TLS.
    pub tls: Option<Arc<ClientConfig>>,
}

impl Plan {
    pub fn new(address: SocketAddrV4, clients: Arc<dyn Clients>, threads: usize) -> Self {
        Self {
            address,
            clients,
            threads,
            cpus: Vec::new(),
            unfinished_max: UNFINISHED_MAX,
            pipelined: false,
            reconnect_after: None,
            joins_late: false,
            tls: None,
        }
    }
}

enum Command {
    /// Opens this many more clients, at most so many per second.
    Connect {
        count: usize,
        per_second: f64,
    },
    /// Closes this many clients; each worker goes through its table in order, again and again.
    Leave {
        count: usize,
    },
    /// Stops reading for ever in every client that is ready.
    Stall,
    /// Sends the counts back.
    Report(Sender<Figures>),
    Stop,
}

/// The running clients.
pub struct Fleet {
    handles: Vec<Handle<Command>>,
    progress: Arc<Progress>,
    opened: usize,
    started: Instant,
}

impl Fleet {
    /// Starts the workers, without clients.
    pub fn start(plan: &Plan) -> Self {
        let progress = Arc::new(Progress::new());
        let started = Instant::now();
        let handles = (0..plan.threads)
            .map(|number| {
                let (plan, progress) = (plan.clone(), progress.clone());
                Handle::start(Command::Stop, move |inbox, wake| {
                    worker::run(worker::Setup {
                        plan,
                        number: number as u32,
                        inbox,
                        wake,
                        progress,
                        started,
                    });
                })
            })
            .collect();
        Self {
            handles,
            progress,
            opened: 0,
            started,
        }
    }

    /// Opens `count` more clients, as fast as the limit on unfinished ones allows.
    pub fn connect(&mut self, count: usize) {
        self.connect_paced(count, f64::INFINITY);
    }

    /// Opens `count` more clients, `per_second` of them per second. Does not wait for them.
    pub fn connect_paced(&mut self, count: usize, per_second: f64) {
        let workers = self.handles.len();
        self.progress.open.fetch_add(count as u64, SeqCst);
        for (worker, handle) in self.handles.iter().enumerate() {
            // Clients are numbered in turns: of W workers, worker w has the clients w, w + W, w + 2 W …
            let of_worker = |clients: usize| (clients + workers - 1 - worker) / workers;
            let count = of_worker(self.opened + count) - of_worker(self.opened);
            handle.send(Command::Connect {
                count,
                per_second: per_second / workers as f64,
            });
        }
        self.opened += count;
    }

    /// Closes `count` clients, spread over the workers. Does not wait.
    pub fn leave(&self, count: usize) {
        let workers = self.handles.len();
        for (worker, handle) in self.handles.iter().enumerate() {
            let count = (count + workers - 1 - worker) / workers;
            handle.send(Command::Leave { count });
        }
    }

    /// Makes all clients stop reading. After that only the end of their sockets is noticed.
    pub fn stall(&self) {
        for handle in &self.handles {
            handle.send(Command::Stall);
        }
        // The answer to the next command shows that this command was carried out.
        self.take_figures();
    }

    /// Opens `count` clients and waits until all of them are ready; returns the time it took.
    ///
    /// # Panics
    /// When not all of them are ready in time, because further results would have no meaning.
    pub fn connect_all(&mut self, count: usize, patience: Duration) -> Duration {
        let begun = Instant::now();
        let wanted = self.ready() + count as u64;
        self.connect(count);
        assert!(
            self.wait_ready(wanted, patience),
            "{} of {wanted} clients are ready after {:?}, {} were refused",
            self.ready(),
            begun.elapsed(),
            self.progress.refused.load(SeqCst),
        );
        begun.elapsed()
    }

    /// Closes all clients and waits until their sockets are closed on this side.
    pub fn leave_all(&self) {
        self.leave(usize::MAX / 2);
        assert!(
            self.wait_closed(Duration::from_secs(60)),
            "closing takes no time"
        );
    }

    /// Waits until no socket is open; false when the time is over.
    pub fn wait_closed(&self, patience: Duration) -> bool {
        let done = || self.progress.open.load(SeqCst) == 0;
        self.progress.wait(patience, done)
    }

    /// Time on the clock of [`Figures::told_micros`].
    pub fn micros_now(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Waits until this many clients are ready; false when the time is over.
    pub fn wait_ready(&self, count: u64, patience: Duration) -> bool {
        self.progress.wait(patience, || self.ready() >= count)
    }

    /// Waits until this many deliveries have come since the start; false when the time is over.
    pub fn wait_delivered(&self, count: u64, patience: Duration) -> bool {
        self.progress.wait_delivered(count, patience)
    }

    /// Clients with all their confirmations.
    pub fn ready(&self) -> u64 {
        self.progress.ready.load(SeqCst)
    }

    /// Deliveries since the start.
    pub fn delivered(&self) -> u64 {
        self.progress.delivered.load(SeqCst)
    }

    /// The counts since the last call.
    pub fn take_figures(&self) -> Figures {
        let figures = handle::ask_all(&self.handles, Command::Report);
        figures.iter().fold(Figures::default(), |mut sum, figures| {
            sum.merge(&figures);
            sum
        })
    }
}

/// The source addresses of the clients: 127.1.0.1, 127.1.0.2 and so on.
pub fn source_address(index: u32) -> Ipv4Addr {
    let number = 1 + index / CLIENTS_PER_ADDRESS;
    let [_, high, middle, low] = number.to_be_bytes();
    Ipv4Addr::new(127, high + 1, middle, low)
}
