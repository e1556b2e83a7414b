//! The messages between threads: what other threads ask of a shard, and what shards tell the control thread.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use bytes::Bytes;

use crate::broker::history::Part;
use crate::broker::presence::{JoinRefusal, LongAnswer, Stay};
use crate::broker::sessions::SessionSnapshot;
use crate::console::search::{Query, SessionReport};
use crate::console::streams::{Proposal, StreamFigures, StreamPart, StreamQuery};
use crate::mesh::{Inbox, Mesh, Reply, SessionRef, ShardId, Weigh};
use crate::net::Driver;
use crate::protocol::publication::{Publication, RemoteDisconnect};
use crate::session::{DisconnectCall, HistoryStart};
use crate::shard::polls::PassedPoll;

/// The inboxes of all shards.
pub type ShardMesh = Mesh<ShardMessage>;
/// The inbox of one shard.
pub type ShardInbox = Inbox<ShardMessage>;

/// What another thread can ask of a shard.
#[derive(Debug)]
pub enum ShardMessage {
    /// From the shard that published it, to the shards that may have a receiver.
    Publish(PublishMessage),
    /// From any shard to shard 0, which makes the Disconnect calls. If it were lost, the app would show a user as present
    /// for ever.
    Disconnect(Box<DisconnectCall>),
    /// From the shard that has a question about a stream, to the home of the stream.
    Home(Box<HomeMessage>),
    /// From the home of a stream, to the shard of the session that has asked.
    Answer(Box<(SessionRef, BrokerAnswer)>),
    /// About a session that a client wants to continue.
    Resume(Box<ResumeMessage>),
    /// From the shard that has read a poll, to that of its session. If it were lost, the client would have to ask again.
    Poll(Box<PassedPoll>),
    /// From the shard whose client uses the console.
    Console(Box<ConsoleQuestion>),
    /// From the control thread.
    Control(ControlMessage),
}

/// Something published. Cheap to clone: all shards that get it share one value.
#[derive(Debug, Clone)]
pub enum PublishMessage {
    /// For the subscriptions to these streams. A publication of the app must not be lost: the sender waits for room. A
    /// whisper may be lost when an inbox is full.
    Deliver(Arc<[Publication]>),
    /// For the sessions with these connection identifiers. Must not be lost: the sender waits for room.
    RemoteDisconnect(Arc<RemoteDisconnect>),
}

/// What other shards want of the home of a stream. Nothing of it may be lost: the sender waits for room, or queues it.
#[derive(Debug)]
pub enum HomeMessage {
    /// Give these publications their places and deliver them. All their streams are at home there.
    Publish {
        publications: Arc<[Publication]>,
        /// Dropped when they are in the inboxes of all shards that may have a listener; `None` for whispers.
        arrived: Option<Reply<()>>,
    },
    /// A session asks.
    Ask {
        session: SessionRef,
        stream: Box<str>,
        question: HomeQuestion,
    },
    /// The session with this sid has ended; it was present in streams that are at home there.
    Ended { sid: Box<str> },
    /// Who is present in a stream; the answer is the text for the client of the API.
    Members {
        stream: Box<str>,
        reply: Reply<Result<Bytes, LongAnswer>>,
    },
}

/// What a session asks about one stream.
#[derive(Debug)]
pub enum HomeQuestion {
    History {
        /// The place of the stream in the question of the session.
        place: usize,
        start: HistoryStart,
    },
    Join {
        sid: Box<str>,
        id: Box<str>,
        info: Option<Box<str>>,
        stay: Stay,
    },
    Leave {
        sid: Box<str>,
    },
    Members {
        with_records: bool,
    },
}

/// The answer to a [`HomeQuestion`].
#[derive(Debug)]
pub enum BrokerAnswer {
    History {
        place: usize,
        /// `None`: the client has to load its state anew.
        part: Option<Part>,
    },
    Joined(Result<(), JoinRefusal>),
    Left,
    /// The message for the client.
    Members(Result<Bytes, LongAnswer>),
}

/// Between the shard that a client has come back to, and those that may know its earlier session.
#[derive(Debug)]
pub enum ResumeMessage {
    /// Is there a session with this sid? The answer is for `session`.
    Find { session: SessionRef, sid: Box<str> },
    Found {
        session: SessionRef,
        snapshot: Option<SessionSnapshot>,
    },
}

/// What the console asks of a shard for someone who looks at the page. The page says so when the answer is missing.
#[derive(Debug)]
pub enum ConsoleQuestion {
    /// Find the sessions that match.
    Search {
        query: Arc<Query>,
        reply: Reply<Vec<SessionReport>>,
    },
    /// Propose the streams that come first here.
    Streams {
        query: Arc<StreamQuery>,
        reply: Reply<Proposal>,
    },
    /// Count what is here of these streams, in their order.
    Figures {
        names: Arc<[Box<str>]>,
        reply: Reply<Vec<StreamFigures>>,
    },
    /// Say what is known here of this stream.
    Stream {
        stream: Arc<str>,
        reply: Reply<StreamPart>,
    },
    /// Count the subscriptions that listen to this stream.
    Listeners { stream: Arc<str>, reply: Reply<u64> },
    /// End this session if it has this sid; the answer says whether it had.
    Disconnect {
        session: SessionRef,
        sid: Box<str>,
        reconnect: bool,
        reply: Reply<bool>,
    },
}

/// What the control thread asks of shards. All but the first two belong to the shutdown and must not be lost.
#[derive(Debug, Clone)]
pub enum ControlMessage {
    /// For the gauges that count distinct values over all shards. If it is lost, they keep their old values.
    Survey(mpsc::Sender<Survey>),
    /// To shard 0 when all shards serve: check once whether calls to the app can work, and log the result.
    CheckRpc,
    /// The signal has come: the health endpoint reports the shutdown from now on.
    BeginShutdown,
    /// Accept no more connections. A second one changes nothing.
    StopAccepting,
    /// Sent before the sessions are closed: take no new publication, and answer when those that have begun are in the
    /// inboxes.
    FinishPublications(mpsc::Sender<ShardId>),
    /// Send every session its disconnect message and close it, spread over the time until `slowly_until` if that is given. A
    /// client that connects after this is told at once.
    CloseSessions { slowly_until: Option<Instant> },
    /// Answer when the last socket is closed.
    ReportClosed(mpsc::Sender<ShardId>),
    /// To shard 0: make Disconnect calls without a rate limit from now on, `parallel` at a time.
    HurryDisconnects { parallel: usize },
    /// To shard 0: no more calls will come. Answer when none is left, or at `deadline`.
    FinishDisconnects {
        deadline: Instant,
        done: mpsc::Sender<ShardId>,
    },
}

/// Hashes of what one shard has. Equal values have equal hashes on all shards.
#[derive(Debug, Default)]
pub struct Survey {
    /// The connection identifiers of each registered session.
    pub identities: Vec<u64>,
    /// The names of the streams that have a subscriber.
    pub streams: Vec<u64>,
}

/// What the control thread waits for, from the shards and from the thread that receives signals. The control thread outlives
/// both, so sending to it does not fail.
#[derive(Debug)]
pub enum ControlEvent {
    /// SIGINT or SIGTERM.
    Signal,
    /// SIGHUP: read the certificate again.
    Reload,
    /// A client looks at the console, which shows the gauges.
    GaugesWanted,
    /// A shard serves now, with this driver.
    ShardStarted(Driver),
    /// A shard could not start, or its reactor broke. The process cannot continue.
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
            Self::Publish(PublishMessage::Deliver(publications)) => text_bytes(publications),
            Self::Publish(PublishMessage::RemoteDisconnect(command)) => command.identifiers.len(),
            Self::Home(message) => message.weight_bytes(),
            Self::Answer(answer) => answer.1.weight_bytes(),
            Self::Disconnect(disconnect_call) => disconnect_call.bytes_held(),
            Self::Poll(passed) => passed.lines.len() + passed.poll.held_bytes(),
            Self::Resume(message) => message.weight_bytes(),
            Self::Console(_) | Self::Control(_) => 0,
        }
    }

    /// A home must not wait until this shard has delivered what came before: its publishers would wait with it, and with
    /// only one message at a time on its way each would be written alone. What a home sends is ordered by the home.
    fn goes_first(&self) -> bool {
        matches!(self, Self::Home(_))
    }
}

fn text_bytes(publications: &[Publication]) -> usize {
    let texts = publications
        .iter()
        .map(|it| it.message.len() + it.stream.len());
    texts.sum()
}

impl HomeMessage {
    fn weight_bytes(&self) -> usize {
        match self {
            Self::Publish { publications, .. } => text_bytes(publications),
            Self::Ask {
                stream, question, ..
            } => stream.len() + question.text_bytes(),
            Self::Ended { sid } => sid.len(),
            Self::Members { stream, .. } => stream.len(),
        }
    }
}

impl ResumeMessage {
    fn weight_bytes(&self) -> usize {
        match self {
            Self::Find { sid, .. } => sid.len(),
            Self::Found { snapshot, .. } => {
                snapshot.as_ref().map_or(0, SessionSnapshot::held_bytes)
            }
        }
    }
}

impl HomeQuestion {
    fn text_bytes(&self) -> usize {
        match self {
            Self::Join { sid, id, info, .. } => {
                sid.len() + id.len() + info.as_ref().map_or(0, |info| info.len())
            }
            Self::Leave { sid } => sid.len(),
            Self::History { .. } | Self::Members { .. } => 0,
        }
    }
}

impl BrokerAnswer {
    fn weight_bytes(&self) -> usize {
        match self {
            Self::History { part, .. } => part.as_ref().map_or(0, Part::message_bytes),
            Self::Members(members) => members.as_ref().map_or(0, Bytes::len),
            Self::Joined(_) | Self::Left => 0,
        }
    }
}

/// Kept small because an inbox has room for thousands of messages.
const _: () = assert!(size_of::<ShardMessage>() <= 32);
