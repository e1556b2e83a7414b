//! The session table of one shard: established connections, what arrives on them and what leaves.
//!
//! Everything here is synchronous. A *turn* ([`Sessions::turn`]) is one call from the shard (events, messages of the inbox,
//! an RPC answer, a tick): it changes state, notes deliveries, and ends with one flush. What has to wait (RPC calls,
//! publishing, Disconnect calls) is handed out as [`Action`]s.

mod bounds;
mod calls;
mod closing;
mod console;
mod drain;
mod due;
mod frames;
mod input;
mod opening;
mod output;
mod schedule;
mod share;
#[cfg(test)]
mod tests;

pub use bounds::SESSION_ENTRY_BYTES;
#[cfg(test)]
pub use console::CONSOLE_CONNECTIONS_MAX;
pub use console::Scan;
#[cfg(test)]
pub use output::FLUSHES_PER_TURN_MAX;
pub use share::TimeSlice;

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use ahash::RandomState;
use slab::Slab;

use self::bounds::Bounds;
use self::drain::SlowDrain;
use self::output::FanOut;
use self::schedule::{Place, Schedule};
use crate::config::{Config, PingPrecision};
use crate::hub::Hub;
use crate::mesh::{Charge, Permit, SessionRef, ShardBudget, ShardId};
use crate::metrics::{Metrics, ShardMetrics};
use crate::net::tls::TlsSession;
use crate::protocol::publication::Publication;
use crate::reactor::{Reactor, Readiness, Token};
use crate::session::{Credentials, Farewell, Session, Step, Tick};
use crate::shard::calls::{Call, CallHandle};
use crate::shard::message::{ShardInbox, Survey};
use crate::shard::notices::Notices;
use crate::shard::outbox::Outbox;
use crate::shard::outbox::batch::{Batch, BatchList};
use crate::shard::timers::{TICK, TimerWheel};
use crate::wire::websocket::deflate::Deflater;
use crate::wire::websocket::message::{MessageDecoder, MessageLimits, Scratch};

/// Bytes read from a socket at once, into one buffer that all sessions of the shard share. Also the most that a session
/// keeps unread while a call is under way.
const READ_BUFFER_BYTES: usize = 64 << 10;

/// The most that a resting connection takes in the table, session included, beside its texts and subscriptions.
pub const CONNECTION_BYTES_MAX: usize = 120;
const _: () = assert!(size_of::<Connection>() <= CONNECTION_BYTES_MAX);

/// What the HTTP phase knows about a client whose upgrade has been answered.
pub struct NewConnection {
    pub socket: TcpStream,
    pub tls: Option<Box<TlsSession>>,
    pub sid: String,
    pub env: Box<str>,
    pub credentials: Credentials,
    /// `actioncable-v1-ext-json`.
    pub extended: bool,
    /// permessage-deflate was negotiated.
    pub deflate: bool,
    /// `None`: the server's default.
    pub ping_interval_secs: Option<i64>,
    pub ping_precision: Option<PingPrecision>,
    /// Bytes that came behind the request head.
    pub early_input: Vec<u8>,
    /// The socket's right to exist; `None` in the unit tests and the benches.
    pub permit: Option<Permit>,
}

/// What the shard has to do after a turn, in order.
pub enum Action {
    /// Make this call, then bring the answer to [`Sessions::on_call_result`].
    Call(Call),
    /// The session of this call has ended.
    Canceled(Rc<CallHandle>),
    /// Hand this to every shard.
    Publish(Publication),
    /// Put this into the disconnect queue.
    Disconnect(Farewell),
    /// Somebody looks at the console: send snapshots.
    Watch,
}

/// Why a client is not listened to: its call is under way, or it has had its share. Exists only then.
#[derive(Default)]
struct Held {
    call: Option<PendingCall>,
    /// What had been read before.
    unread: Unread,
}

impl Held {
    /// What is charged for it.
    fn bytes(&self) -> usize {
        let call = self.call.as_ref().map(|call| &call.charge);
        let unread = self.unread.charge.as_ref();
        call.into_iter().chain(unread).map(Charge::bytes).sum()
    }
}

struct PendingCall {
    handle: Rc<CallHandle>,
    /// Of the texts of the call.
    charge: Charge,
}

/// Bytes that were read and not taken up yet.
#[derive(Default)]
struct Unread {
    bytes: Vec<u8>,
    /// So many are done with.
    start: usize,
    charge: Option<Charge>,
}

impl Unread {
    fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Open,
    /// The close frame is queued; the socket goes when the outbox is empty or its deadline has passed.
    Closing,
    /// Only in a drain: all is written, and the client has not closed its side yet.
    Lingering,
}

/// One client's socket and wire state.
struct Connection {
    session: Session,
    decoder: MessageDecoder,
    outbox: Option<Box<Outbox>>,
    tls: Option<Box<TlsSession>>,
    held: Option<Box<Held>>,
    #[expect(dead_code, reason = "held until the socket is closed, for its drop")]
    permit: Option<Permit>,
    deliveries: BatchList,
    socket: TcpStream,
    generation: u32,
    life: Life,
    precision: PingPrecision,
    deflate: bool,
    /// The kernel has (or may have) input that was not read.
    input_waiting: bool,
    /// The far end has closed its side, or may have: it is read until the end is reached.
    end_seen: bool,
    /// A `writable` event has been asked for.
    write_watched: bool,
    /// The outbox may be written on with.
    write_ready: bool,
    place: Place,
}

impl Connection {
    fn is_open(&self) -> bool {
        self.life == Life::Open
    }

    fn has_call(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.call.is_some())
    }

    fn has_unread(&self) -> bool {
        self.held
            .as_ref()
            .is_some_and(|held| !held.unread.is_empty())
    }

    /// It can be served without waiting for anything.
    fn is_ready(&self, bounds: &Bounds) -> bool {
        let listens = self.is_open() && !self.has_call() && !self.is_backed_up(bounds);
        let input = listens && (self.input_waiting || self.has_unread());
        input || self.write_ready
    }

    /// One read from the socket. TLS's own end counts as the end, too: the client may leave the socket open behind it.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            Some(tls) if tls.peer_has_closed() => Ok(0),
            _ => (&self.socket).read(buffer),
        }
    }
}

/// Why a session ends, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Client,
    Remote,
    NoPong,
    TooSlow,
    WriteTimeout,
    ProtocolError,
    Auth,
    Shutdown,
    Error,
}

/// The session table and all it needs to serve a turn.
pub struct Sessions {
    shard: ShardId,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    budget: Rc<ShardBudget>,
    bounds: Bounds,
    /// What is charged for the hub.
    hub_charged: usize,
    hasher: RandomState,
    connections: Slab<Connection>,
    /// Hash of the connection identifiers by slot, 0 = not registered: what a remote disconnect looks through.
    identity_hashes: Vec<u64>,
    last_generation: u32,
    hub: Hub,
    batch: Batch,
    reactor: Reactor,
    wheel: TimerWheel,
    now_tick: Tick,
    /// When a write that blocks in this turn must be through.
    write_deadline: Tick,
    events: Vec<Readiness>,
    /// Who has something to be done.
    schedule: Schedule,
    more_events: bool,
    /// Counts what arrives for this shard.
    inbox: Rc<ShardInbox>,
    /// The publications that are being delivered, while a turn has no time for all of it.
    fan_out: Option<FanOut>,
    read_buffer: Vec<u8>,
    /// Decrypted input of one read, for sessions with TLS.
    plain_buffer: Vec<u8>,
    inflate_buffer: Scratch,
    deflater: Deflater,
    /// Sessions that get one frame in this turn, and what the kernel said.
    singles: Vec<(u32, BatchList)>,
    send_results: Vec<i32>,
    due: Vec<u32>,
    slow: Vec<u32>,
    steps: Vec<Step>,
    actions: Vec<Action>,
    /// Of warnings about clients that are refused as sessions.
    notices: Notices,
    limits: MessageLimits,
    console: console::ConsoleConnections,
    /// Sessions that have not ended.
    open_sessions: usize,
    /// Sessions that have ended while a call is under way whose answer is waited for.
    departed: usize,
    /// The drain has begun: whoever still gets in is told to leave.
    draining: bool,
    slow_drain: Option<SlowDrain>,
    drained: Option<mpsc::Sender<ShardId>>,
}

impl Sessions {
    pub fn new(
        shard: ShardId,
        config: Arc<Config>,
        budget: Rc<ShardBudget>,
        hasher: RandomState,
        reactor: Reactor,
        inbox: Rc<ShardInbox>,
        now: Instant,
    ) -> Self {
        let bounds = Bounds::new(&config.websocket);
        Self {
            shard,
            config,
            metrics: Arc::clone(budget.metrics()),
            hasher,
            connections: Slab::new(),
            identity_hashes: Vec::new(),
            last_generation: 0,
            hub: Hub::default(),
            batch: Batch::new(Rc::clone(&budget)),
            budget,
            hub_charged: 0,
            reactor,
            // Tick 0 means "no deadline": the wheel starts in the past.
            wheel: TimerWheel::new(now.checked_sub(TICK).unwrap_or(now)),
            now_tick: 1,
            write_deadline: 1,
            events: Vec::new(),
            schedule: Schedule::default(),
            more_events: false,
            inbox,
            fan_out: None,
            read_buffer: vec![0; READ_BUFFER_BYTES],
            plain_buffer: Vec::new(),
            inflate_buffer: Scratch::default(),
            deflater: Deflater::new(),
            singles: Vec::new(),
            send_results: Vec::new(),
            due: Vec::new(),
            slow: Vec::new(),
            steps: Vec::new(),
            actions: Vec::new(),
            notices: Notices::default(),
            limits: bounds.message_limits(),
            bounds,
            console: console::ConsoleConnections::default(),
            open_sessions: 0,
            departed: 0,
            draining: false,
            slow_drain: None,
            drained: None,
        }
    }

    /// Makes one turn: changes the sessions, then writes what that queued, as far as one turn may; see
    /// [`Self::has_unflushed`]. `perform` gets what the shard has to do, in order.
    ///
    /// What a change asks for is performed before anything is written: a client that reads the answer to its command finds
    /// what the command published already in the inbox of every shard.
    pub fn turn<R>(
        &mut self,
        now: Instant,
        change: impl FnOnce(&mut Self) -> R,
        mut perform: impl FnMut(Action),
    ) -> R {
        self.now_tick = self.wheel.tick_of(now);
        self.write_deadline = self
            .wheel
            .deadline(now, self.config.websocket.write_timeout);
        let result = change(self);
        self.take_actions().into_iter().for_each(&mut perform);
        self.flush_some();
        self.charge_hub();
        self.rearm();
        self.reactor.flush();
        // Writing may have ended sessions.
        self.take_actions().into_iter().for_each(perform);
        result
    }

    fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// True when the next harvest has work at once, without a new wake-up.
    pub fn has_more(&self) -> bool {
        self.more_events || !self.schedule.is_empty()
    }

    /// When the wheel wants its next turn.
    pub fn next_tick_at(&self) -> Instant {
        self.wheel.next_instant()
    }

    /// What this shard has, for the gauges that count distinct things over all shards.
    pub fn survey(&self) -> Survey {
        Survey {
            identities: self
                .identity_hashes
                .iter()
                .copied()
                .filter(|&hash| hash != 0)
                .collect(),
            streams: self
                .hub
                .streams()
                .map(|name| self.hasher.hash_one(name))
                .collect(),
        }
    }

    /// Polls that the kernel has ended are armed again.
    fn rearm(&mut self) {
        for token in self.reactor.take_ended() {
            if let Some(slot) = self.slot_of(token) {
                let connection = &self.connections[slot as usize];
                if connection.life != Life::Closing
                    && self.reactor.add(connection.socket.as_fd(), token).is_err()
                {
                    self.abort(slot, Cause::Error);
                }
            }
        }
    }

    fn counters(&self) -> &ShardMetrics {
        &self.metrics.shards[self.shard]
    }

    fn sid(&self, slot: u32) -> &str {
        self.connections
            .get(slot as usize)
            .map_or("", |connection| connection.session.sid())
    }

    fn token(&self, slot: u32) -> Token {
        Token {
            slot,
            generation: self.connections[slot as usize].generation,
        }
    }

    fn session_ref(&self, slot: u32) -> SessionRef {
        SessionRef {
            shard: self.shard,
            slot,
            generation: self.connections[slot as usize].generation,
        }
    }

    fn slot_of(&self, token: Token) -> Option<u32> {
        let connection = self.connections.get(token.slot as usize)?;
        (connection.generation == token.generation).then_some(token.slot)
    }

    /// The connection that `session` names, if that very one is still open.
    fn live(&mut self, session: SessionRef) -> Option<&mut Connection> {
        let connection = self.connections.get_mut(session.slot as usize)?;
        (connection.generation == session.generation && connection.is_open()).then_some(connection)
    }
}

/// Never 0, which means "not registered".
fn identity_hash(hasher: &RandomState, identifiers: &str) -> u64 {
    hasher.hash_one(identifiers) | 1
}
