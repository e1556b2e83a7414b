//! Clients of the extended protocol, in a few threads: they remember their sid and their positions, leave all at once, come
//! back, ask for what they have missed, and check it by its offsets.
//!
//! `fleet` has the clients of the base protocol, which remember nothing and cost less.

mod member;
mod worker;

use std::net::SocketAddrV4;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use crate::fleet::Progress;
use crate::handle::{self, Handle};
use crate::histogram::Histogram;
use crate::sys::Cpu;

/// Clients of one worker that are between connect and welcome.
const UNFINISHED_MAX: usize = 500;

/// What one client has.
pub trait Members: Send + Sync {
    /// Its subscriptions: the identifier, and the number of its stream (see [`crate::publisher::stream_name`]).
    fn subscriptions(&self, index: u32) -> Vec<(String, u32)>;

    /// Additional header lines of the upgrade, each with its CRLF.
    fn header_lines(&self, index: u32) -> String;
}

/// The behaviour of a crowd.
#[derive(Clone)]
pub struct Plan {
    pub address: SocketAddrV4,
    pub members: Arc<dyn Members>,
    pub clients: usize,
    pub threads: usize,
    /// CPUs for the workers; empty: any CPU.
    pub cpus: Vec<usize>,
}

/// What a client says by its number; `None`: nothing.
pub type Saying = Arc<dyn Fn(u32) -> Option<Vec<String>> + Send + Sync>;

enum Command {
    /// Every client connects, comes back if it has been there, and is done when it has this many messages.
    Connect {
        messages: u32,
    },
    /// Every client is done when it has this many messages.
    Expect {
        messages: u32,
    },
    /// Every client says this, and is done when the last of it is answered.
    Say(Saying),
    Leave,
    Report(Sender<Figures>),
    Stop,
}

/// Counts since the last report.
#[derive(Clone, Default)]
pub struct Figures {
    /// Connections that failed, and upgrades whose answer was not 101.
    pub refused: u64,
    /// Connections that the server closed.
    pub closed: u64,
    /// Welcomes of sessions that go on, and of new ones.
    pub restored: u64,
    pub new: u64,
    /// Subscriptions that a restored session should have and has not.
    pub not_restored: u64,
    pub rejected: u64,
    pub messages: u64,
    /// Messages whose offset is not the next one: such as are missing, and such as came before.
    pub missing: u64,
    pub doubled: u64,
    /// Messages of an unknown form.
    pub unknown: u64,
    /// Microseconds from the connect to the welcome, and until the client is done.
    pub welcome: Histogram,
    pub done: Histogram,
    /// CPU of the clients themselves.
    pub cpu: Cpu,
}

impl Figures {
    fn merge(&mut self, other: &Self) {
        self.refused += other.refused;
        self.closed += other.closed;
        self.restored += other.restored;
        self.new += other.new;
        self.not_restored += other.not_restored;
        self.rejected += other.rejected;
        self.messages += other.messages;
        self.missing += other.missing;
        self.doubled += other.doubled;
        self.unknown += other.unknown;
        self.welcome.merge(&other.welcome);
        self.done.merge(&other.done);
        self.cpu += other.cpu;
    }

    /// Everything that a correct server never does to a client that comes back in time: 0 when all is well.
    pub fn faults(&self) -> u64 {
        let answers = self.new + self.not_restored + self.rejected;
        answers + self.missing + self.doubled + self.unknown + self.refused + self.closed
    }
}

/// The running clients.
pub struct Crowd {
    handles: Vec<Handle<Command>>,
    clients: usize,
    /// Its `ready` clients are those that are done.
    progress: Arc<Progress>,
}

impl Crowd {
    /// Starts the workers. No client is connected yet.
    pub fn start(plan: &Plan) -> Self {
        let progress = Arc::new(Progress::new());
        let start = |number: usize| {
            let (plan, progress) = (plan.clone(), progress.clone());
            Handle::start(Command::Stop, move |inbox, wake| {
                worker::run(worker::Setup {
                    plan,
                    number,
                    inbox,
                    wake,
                    progress,
                });
            })
        };
        Self {
            handles: (0..plan.threads).map(start).collect(),
            clients: plan.clients,
            progress,
        }
    }

    /// All clients connect and come back; returns the time until each has its answers and this many messages. `None`: it
    /// takes longer than `patience`.
    pub fn connect(&self, messages: u32, patience: Duration) -> Option<Duration> {
        self.all(patience, || Command::Connect { messages })
    }

    /// Counts messages from now on; the result of `publish` is dropped when each client has this many.
    pub fn receive(&self, messages: u32, patience: Duration, publish: impl FnOnce()) -> bool {
        self.begin(|| Command::Expect { messages });
        // The answer to the next command shows that this command was carried out.
        self.take_figures();
        publish();
        self.wait(patience)
    }

    /// Clients say something; returns the time until all are answered.
    pub fn say(&self, saying: &Saying, patience: Duration) -> Option<Duration> {
        self.all(patience, || Command::Say(Arc::clone(saying)))
    }

    /// All clients close their sockets.
    pub fn leave(&self) {
        self.handles
            .iter()
            .for_each(|handle| handle.send(Command::Leave));
        self.take_figures();
    }

    fn all(&self, patience: Duration, command: impl Fn() -> Command) -> Option<Duration> {
        let begun = Instant::now();
        self.begin(command);
        self.wait(patience).then(|| begun.elapsed())
    }

    fn begin(&self, command: impl Fn() -> Command) {
        self.progress.ready.store(0, SeqCst);
        for handle in &self.handles {
            handle.send(command());
        }
    }

    fn wait(&self, patience: Duration) -> bool {
        let all = self.clients as u64;
        self.progress
            .wait(patience, || self.progress.ready.load(SeqCst) == all)
    }

    /// Clients that are done.
    pub fn done(&self) -> u64 {
        self.progress.ready.load(SeqCst)
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
