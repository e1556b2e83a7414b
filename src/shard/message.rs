//! What threads say to each other: what other threads ask of a shard, and what shards tell the control thread.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use crate::console::search::{Query, SessionReport};
use crate::mesh::{Inbox, Mesh, Reply, SessionRef, ShardId, Weigh};
use crate::net::Driver;
use crate::protocol::publication::{Publication, RemoteDisconnect};
use crate::session::DisconnectCall;

/// The inboxes of all shards.
pub type ShardMesh = Mesh<ShardMessage>;
/// One shard's own.
pub type ShardInbox = Inbox<ShardMessage>;

/// What one thread can ask of a shard.
#[derive(Debug)]
pub enum ShardMessage {
    /// From the shard where something was published, to every shard.
    Publish(PublishMessage),
    /// From any shard to shard 0, which makes the Disconnect calls. A loss would leave a user "present" in the app.
    Disconnect(Box<DisconnectCall>),
    /// From the shard whose client looks at the console.
    Console(Box<ConsoleQuestion>),
    /// From the control thread.
    Control(ControlMessage),
}

/// What has been published. Cheap to clone: one value crosses to all shards.
#[derive(Debug, Clone)]
pub enum PublishMessage {
    /// For the subscriptions to these streams. From the app: must not be lost, the sender waits for room. A whisper: may be
    /// lost when an inbox is full.
    Deliver(Arc<[Publication]>),
    /// For the sessions of one user. Must not be lost: the sender waits for room.
    RemoteDisconnect(Arc<RemoteDisconnect>),
}

/// What the console asks of a shard, for somebody who looks at the page. A loss is told there.
#[derive(Debug)]
pub enum ConsoleQuestion {
    /// Which sessions are these?
    Search {
        query: Arc<Query>,
        reply: Reply<Vec<SessionReport>>,
    },
    /// How many subscriptions listen to this stream?
    Listeners { stream: Arc<str>, reply: Reply<u64> },
    /// End this session if it is the one with this sid; the answer says whether it was.
    Disconnect {
        session: SessionRef,
        sid: Box<str>,
        reconnect: bool,
        reply: Reply<bool>,
    },
}

/// What the control thread asks of shards. All but the first two belong to the shutdown: none of those may be lost.
#[derive(Debug, Clone)]
pub enum ControlMessage {
    /// For the gauges that count distinct things over all shards. A loss leaves them as they were.
    Survey(mpsc::Sender<Survey>),
    /// To shard 0 when all shards serve: ask the app once whether calls can work, and log it.
    CheckRpc,
    /// The signal has come: the health endpoint says so from now on.
    BeginShutdown,
    /// Accept nothing more. A second one changes nothing.
    StopAccepting,
    /// Before the sessions are closed: take no new publication, and answer when what has begun is in every inbox.
    FinishPublications(mpsc::Sender<ShardId>),
    /// Tell every session and close it, spread over the time until `slowly_until` if there is one. Who opens from now on is
    /// told at once.
    CloseSessions { slowly_until: Option<Instant> },
    /// Answer when the last socket is closed.
    ReportClosed(mpsc::Sender<ShardId>),
    /// To shard 0: make Disconnect calls without a pace from now on, `parallel` at a time.
    HurryDisconnects { parallel: usize },
    /// To shard 0: no more calls will come. Answer when none is left or at `deadline`.
    FinishDisconnects {
        deadline: Instant,
        done: mpsc::Sender<ShardId>,
    },
}

/// Hashes of what one shard has; equal things have equal hashes on all shards.
#[derive(Debug, Default)]
pub struct Survey {
    /// The connection identifiers of each registered session.
    pub identities: Vec<u64>,
    /// The names of the streams with a subscriber.
    pub streams: Vec<u64>,
}

/// What the control thread waits for, from the shards and from the thread that hears signals. It outlives both, so sending
/// does not fail.
#[derive(Debug)]
pub enum ControlEvent {
    /// SIGINT or SIGTERM.
    Signal,
    /// SIGHUP: the certificate is to be read again.
    Reload,
    /// Somebody looks at the console, which shows the gauges.
    GaugesWanted,
    /// A shard serves, with this driver.
    ShardStarted(Driver),
    /// A shard could not start or its reactor broke: the process cannot go on.
    ShardEnded { id: ShardId, error: io::Error },
}

impl From<ControlMessage> for ShardMessage {
    fn from(message: ControlMessage) -> Self {
        Self::Control(message)
    }
}

impl From<PublishMessage> for ShardMessage {
    fn from(message: PublishMessage) -> Self {
        Self::Publish(message)
    }
}

impl Weigh for ShardMessage {
    fn weight_bytes(&self) -> usize {
        match self {
            Self::Publish(PublishMessage::Deliver(publications)) => publications
                .iter()
                .map(|publication| publication.message.len() + publication.stream.len())
                .sum(),
            Self::Publish(PublishMessage::RemoteDisconnect(command)) => command.identifiers.len(),
            Self::Disconnect(disconnect_call) => disconnect_call.bytes_held(),
            Self::Console(_) | Self::Control(_) => 0,
        }
    }
}

/// An inbox has room for thousands of them.
const _: () = assert!(size_of::<ShardMessage>() <= 32);
