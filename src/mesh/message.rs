//! The messages between shards, and the names by which things are called across turns.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use super::gather::Reply;
use crate::console::search::{Needle, SessionReport};
use crate::protocol::publication::{Publication, RemoteDisconnect};
use crate::session::Farewell;

/// Index of a shard, 0 to number of shards − 1.
pub type ShardId = usize;

/// Names one life of one session. What outlives a turn keeps this and checks the generation again, so that a late answer
/// for a slot that was used again falls on the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRef {
    pub shard: ShardId,
    pub slot: u32,
    pub generation: u32,
}

/// Hashes of what one shard has; equal things have equal hashes on all shards.
#[derive(Debug, Default)]
pub struct Survey {
    /// The connection identifiers of each registered session.
    pub identities: Vec<u64>,
    /// The names of the streams with a subscriber.
    pub streams: Vec<u64>,
}

/// What the console asks of a shard, for somebody who looks at the page. A loss is told there.
#[derive(Debug)]
pub enum ConsoleQuestion {
    /// Which sessions are these?
    Search {
        needle: Arc<Needle>,
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

/// What one thread can ask of a shard.
#[derive(Debug)]
pub enum ShardMessage {
    /// From the shard that took the POST (or a whisper), to every shard. Must not be lost: the sender waits for room.
    Deliver(Arc<[Publication]>),
    /// From the shard that took the POST, to every shard. Must not be lost: the sender waits for room.
    RemoteDisconnect(Arc<RemoteDisconnect>),
    /// From any shard to shard 0, which makes the Disconnect calls. A loss would leave a user "present" in the app.
    Disconnect(Box<Farewell>),
    /// From the control thread, for the gauges that count distinct things over all shards. A loss leaves them as they were.
    Survey(mpsc::Sender<Survey>),
    /// From the control thread, to shard 0 when all shards serve: ask the app once whether calls can work, and log it.
    CheckRpc,
    /// From the shard whose client looks at the console.
    Console(Box<ConsoleQuestion>),
    /// From the control thread at the signal: the health endpoint says so from now on.
    BeginShutdown,
    /// From the control thread at shutdown: accept nothing more. A second one changes nothing.
    StopAccepting,
    /// From the control thread at shutdown, before the sessions are closed: take no new publication, and answer when what has
    /// begun is in every inbox.
    FinishPublications(mpsc::Sender<ShardId>),
    /// From the control thread at shutdown: tell every session and close it, spread over the time until `slowly_until` if
    /// there is one. Who opens from now on is told at once.
    CloseSessions { slowly_until: Option<Instant> },
    /// From the control thread at shutdown: answer when the last socket is closed.
    ReportClosed(mpsc::Sender<ShardId>),
    /// From the control thread at shutdown, to shard 0: make Disconnect calls without a pace from now on, `parallel` at a
    /// time.
    HurryDisconnects { parallel: usize },
    /// From the control thread at shutdown, to shard 0: no more calls will come. Answer when none is left or at `deadline`.
    FinishDisconnects {
        deadline: Instant,
        done: mpsc::Sender<ShardId>,
    },
}

impl ShardMessage {
    /// Bytes that the message keeps alive while it waits; what the inbox's byte limit counts.
    pub fn weight_bytes(&self) -> usize {
        match self {
            Self::Deliver(publications) => publications
                .iter()
                .map(|publication| publication.message.len() + publication.stream.len())
                .sum(),
            Self::Disconnect(farewell) => farewell.bytes_held(),
            Self::RemoteDisconnect(command) => command.identifiers.len(),
            _ => 0,
        }
    }
}
