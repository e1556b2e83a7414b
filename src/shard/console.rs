//! The console's tasks on one shard: snapshots while someone watches, questions to the other shards, and their answers.

mod streams;

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::console::search::{Query, SessionReport};
use crate::console::snapshot;
use crate::log::recent;
use crate::mesh::{Gather, Reply, ShardId};
use crate::os;
use crate::shard::Shard;
use crate::shard::message::{ConsoleQuestion, ControlEvent, ShardMessage};
use crate::shard::sessions::{Scan, Sessions};

/// Time between two snapshots.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// Snapshots between two counts of the distinct identities and streams of all shards.
const SNAPSHOTS_PER_COUNT: u32 = 5;
/// Time for the other shards to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Slots that a search examines before the other tasks of the shard run.
const SLOTS_PER_LOOK_MAX: usize = 2048;
/// Questions and test messages of the console that one shard handles at a time.
pub const REQUESTS_MAX: usize = 4;
/// Login attempts that one shard handles at a time. A wrong one is answered after [`LOGIN_PAUSE`].
pub const LOGINS_MAX: usize = 4;
/// Together with [`LOGINS_MAX`] this allows at most four guesses a second.
pub const LOGIN_PAUSE: Duration = Duration::from_secs(1);

/// The console's state on one shard.
pub struct Console {
    started: Instant,
    /// The task that makes snapshots is running.
    ticking: Cell<bool>,
    requests: Cell<usize>,
    logins: Cell<usize>,
}

/// Counts as one of a bounded number of concurrent things until it is dropped.
pub struct UnderWay<'a>(&'a Cell<usize>);

impl<'a> UnderWay<'a> {
    fn begin(count: &'a Cell<usize>, max: usize) -> Option<Self> {
        if count.get() >= max {
            return None;
        }
        count.set(count.get() + 1);
        Some(Self(count))
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Console {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            ticking: Cell::new(false),
            requests: Cell::new(0),
            logins: Cell::new(0),
        }
    }

    /// `None` when too many are running.
    pub fn begin_request(&self) -> Option<UnderWay<'_>> {
        UnderWay::begin(&self.requests, REQUESTS_MAX)
    }

    /// `None` when too many are running.
    pub fn begin_login(&self) -> Option<UnderWay<'_>> {
        UnderWay::begin(&self.logins, LOGINS_MAX)
    }
}

/// Starts the snapshots, unless they are running already.
pub fn watch(shard: &Rc<Shard>) {
    if !shard.console.ticking.replace(true) {
        monoio::spawn(send_snapshots(Rc::clone(shard)));
    }
}

/// Ends when no connection watches any more.
async fn send_snapshots(shard: Rc<Shard>) {
    let mut sent: u32 = 0;
    loop {
        if sent.is_multiple_of(SNAPSHOTS_PER_COUNT) {
            shard.tell_control(ControlEvent::GaugesWanted);
        }
        let snapshot = snapshot(&shard);
        if shard.turn(|sessions| sessions.show_snapshot(&snapshot)) == 0 {
            break;
        }
        sent = sent.wrapping_add(1);
        shard.timeouts.sleep(SNAPSHOT_INTERVAL).await;
    }
    shard.console.ticking.set(false);
}

fn snapshot(shard: &Shard) -> Vec<u8> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let facts = snapshot::Facts {
        node_id: &shard.config.node_id,
        now_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        uptime: shard.console.started.elapsed(),
        private_bytes: os::memory::status().private_bytes,
        last_record: recent::last_number(),
    };
    snapshot::encode(&shard.metrics, &facts)
}

/// Answers a question of the console, at once or in a task.
pub fn answer(shard: &Rc<Shard>, sessions: &mut Sessions, question: ConsoleQuestion) {
    match question {
        ConsoleQuestion::Search { query, reply } => {
            monoio::spawn(search(Rc::clone(shard), query, reply));
        }
        ConsoleQuestion::Streams { query, reply } => {
            monoio::spawn(streams::propose(Rc::clone(shard), query, reply));
        }
        ConsoleQuestion::Figures { names, reply } => {
            monoio::spawn(streams::count(Rc::clone(shard), names, reply));
        }
        ConsoleQuestion::Stream { stream, reply } => {
            reply.send(streams::part(shard, sessions, &stream));
        }
        ConsoleQuestion::Listeners { stream, reply } => reply.send(sessions.listeners(&stream).0),
        ConsoleQuestion::Disconnect {
            session,
            sid,
            reconnect,
            reply,
        } => reply.send(sessions.disconnect_one(session, &sid, reconnect)),
    }
}

/// A search examines a part of the table, then lets other tasks run: there may be a million sessions. It stops when the
/// reader of the reply has gone.
async fn search(shard: Rc<Shard>, query: Arc<Query>, reply: Reply<Vec<SessionReport>>) {
    let mut scan = Scan::new(query);
    while !reply.is_abandoned() {
        if shard.sessions.borrow().look(&mut scan, SLOTS_PER_LOOK_MAX) {
            return reply.send(scan.found);
        }
        shard.yields.yield_now().await;
    }
}

/// The answers of all shards, and whether every shard answered in time.
pub async fn ask_all<T>(
    shard: &Shard,
    question: impl Fn(Reply<T>) -> ConsoleQuestion,
) -> (Vec<T>, bool) {
    let shards = shard.mesh.shards();
    let (gather, replies) = Gather::new(shards);
    for (mailbox, reply) in shard.mesh.mailboxes().zip(replies) {
        // When the inbox is full the question is dropped. Its `Reply` goes with it, which counts as no answer.
        let _ = mailbox.try_send(ShardMessage::Console(Box::new(question(reply))));
    }
    shard
        .timeouts
        .within(ANSWER_TIMEOUT, pin!(gather.all()))
        .await;
    gather.take(shards)
}

/// The answer of one shard; `None` when it did not come in time.
pub async fn ask_one<T>(
    shard: &Shard,
    id: ShardId,
    question: impl FnOnce(Reply<T>) -> ConsoleQuestion,
) -> Option<T> {
    let (gather, mut replies) = Gather::new(1);
    let reply = replies.pop()?;
    let message = ShardMessage::Console(Box::new(question(reply)));
    let _ = shard.mesh.mailbox(id).try_send(message);
    shard
        .timeouts
        .within(ANSWER_TIMEOUT, pin!(gather.all()))
        .await;
    gather.take(1).0.pop()
}
