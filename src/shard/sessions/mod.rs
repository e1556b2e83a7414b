//! The session table of one shard: established connections, what arrives on them and what is sent.
//!
//! Everything here is synchronous. A *turn* ([`Sessions::turn`]) is one call from the shard (events, messages of the inbox,
//! an RPC answer, a tick): it changes state, notes deliveries, and ends with one flush. Work that has to wait (RPC calls,
//! publishing, Disconnect calls) is returned as [`Action`]s.

mod answering;
mod answers;
mod arriving;
mod asking;
mod bounds;
mod broker;
mod catching_up;
mod closing;
mod common;
mod connection;
mod console;
mod deciding;
mod drain;
mod fan_out;
mod formats;
mod holdbacks;
mod identities;
mod input;
mod keeping;
mod memberships;
mod opening;
mod output;
mod polling;
mod polls;
mod reader;
mod readers;
mod reading;
mod replay;
mod resuming;
mod schedule;
mod share;
mod sids;
mod steps;
mod table;
#[cfg(test)]
mod tests;
mod ticks;
mod waiting;
mod watchers;
mod writer;

pub use answering::EventRequest;
pub use bounds::SESSION_ENTRY_BYTES;
pub use console::Scan;
pub use formats::EventForm;
#[cfg(test)]
pub use output::FLUSHES_PER_TURN_MAX;
pub use readers::ReadRequest;
pub use share::TimeSlice;
#[cfg(test)]
pub use watchers::CONSOLE_CONNECTIONS_MAX;

use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use self::closing::Cause;
use self::common::Common;
use self::drain::Drain;
use self::fan_out::FanOut;
use self::holdbacks::Holdbacks;
pub use self::keeping::Kept;
use self::memberships::Memberships;
use self::reader::Reader;
use self::sids::Sids;
use self::table::Table;
use self::watchers::Watchers;
use self::writer::Writer;
use crate::config::Config;
use crate::hub::{Hub, Interest, LocalInterest};
use crate::mesh::{Permit, ShardBudget, ShardId};
use crate::net::TcpSocket;
use crate::net::tls::TlsSession;
use crate::protocol::publication::Publication;
use crate::reactor::Reactor;
use crate::session::{Admission, DisconnectCall, Step};
use crate::shard::answers::SentAnswer;
use crate::shard::calls::{Call, CallHandle};
use crate::shard::message::{HomeMessage, ShardInbox, ShardMessage, Survey};
use crate::shard::polls::{Poll, PollAnswer};

/// What the HTTP phase knows about a client that becomes a session.
pub struct NewConnection {
    /// `None` over long polling.
    pub socket: Option<TcpStream>,
    pub tls: Option<Box<TlsSession>>,
    pub admission: Admission,
    pub transport: Transport,
    /// Bytes that came after the request head; over plain HTTP the commands of the request, one a line.
    pub early_input: Vec<u8>,
    /// The socket's place among the open connections; `None` in the unit tests and the benches.
    pub permit: Option<Permit>,
}

/// How a session and its client talk.
pub enum Transport {
    /// The upgrade has been answered.
    WebSocket {
        /// `actioncable-v1-ext-json`.
        extended: bool,
        /// permessage-deflate was negotiated.
        deflate: bool,
    },
    /// Server-sent events. The request is answered when it is decided.
    Events(EventRequest),
    /// A durable stream. The request is answered when the home of the stream has said what is there.
    Reading(ReadRequest),
    /// Long polling. The first poll, which is answered when the client is authenticated and its commands are done.
    Polling(Poll),
}

impl Transport {
    fn is_extended(&self) -> bool {
        match self {
            Self::WebSocket { extended, .. } => *extended,
            Self::Events(_) | Self::Reading(_) => false,
            // Only clients of the extended protocol use what it adds, and this transport has nothing to ask for it with.
            Self::Polling(_) => true,
        }
    }
}

/// What the shard has to do after a turn, in order.
pub enum Action {
    /// Make this call, then pass the answer to [`Sessions::on_call_result`].
    Call(Call),
    /// The session of this call has ended.
    Canceled(Rc<CallHandle>),
    /// Hand this to the shards that may have a listener.
    Publish(Publication),
    /// Send this to a shard, which may be this one.
    Tell {
        shard: ShardId,
        message: ShardMessage,
    },
    /// Send this to the home of a stream. An answer goes to [`Sessions::on_broker_answer`].
    TellHome {
        stream: Box<str>,
        message: HomeMessage,
    },
    /// Put this into the disconnect queue.
    Disconnect(DisconnectCall),
    /// A connection watches the console: send snapshots.
    Watch,
    /// Answer a poll, then tell [`Sessions::on_poll_answered`] if the answer names a session.
    AnswerPoll(Box<PollAnswer>),
}

/// The session table and everything it needs for a turn.
///
/// Each part knows only what it needs: the table stores connections, the reader delivers messages, the writer takes frames
/// and reports what happened to them. What that means for a session is decided here, in files whose calls go one way:
/// `closing` ends sessions; `output` sends; `steps` carries out what a session decides; `input` serves what comes in;
/// `answers`, `opening`, `ticks` and `drain` handle everything else that can happen in a turn.
pub struct Sessions {
    common: Rc<Common>,
    table: Table,
    reader: Reader,
    writer: Writer,
    hub: Hub,
    /// The bytes that are charged for the hub.
    hub_charged: usize,
    fan_out: FanOut,
    holdbacks: Holdbacks,
    memberships: Memberships,
    sids: Sids,
    /// Sessions that have ended and may come back; `None` when none are kept.
    kept: Option<Kept>,
    drain: Drain,
    watchers: Watchers,
    /// Asked for the number of messages that have arrived for this shard.
    inbox: Rc<ShardInbox>,
    /// Ended sessions with a call under way whose answer the server still needs.
    departed: usize,
    /// For the shard to do, in order.
    actions: Vec<Action>,
    /// Buffers, empty between two uses: for the decisions of a session, and for the slots that are due.
    steps: Vec<Step>,
    due_slots: Vec<u32>,
}

impl Sessions {
    pub fn new(
        shard: ShardId,
        config: Arc<Config>,
        budget: Rc<ShardBudget>,
        interest: Arc<Interest>,
        reactor: Reactor,
        inbox: Rc<ShardInbox>,
        now: Instant,
    ) -> Self {
        let shards = interest.shards();
        let common = Rc::new(Common::new(shard, shards, config, budget));
        Self {
            table: Table::new(Rc::clone(&common), interest.hasher().clone(), reactor, now),
            reader: Reader::new(),
            writer: Writer::new(Rc::clone(&common)),
            common,
            hub: Hub::new(LocalInterest::new(interest, shard)),
            hub_charged: 0,
            fan_out: FanOut::default(),
            holdbacks: Holdbacks::default(),
            memberships: Memberships::default(),
            sids: Sids::default(),
            kept: None,
            drain: Drain::default(),
            watchers: Watchers::default(),
            inbox,
            departed: 0,
            actions: Vec::new(),
            steps: Vec::new(),
            due_slots: Vec::new(),
        }
    }

    /// Keeps sessions that end, for clients that come back.
    pub fn keeping(self, kept: Option<Kept>) -> Self {
        Self { kept, ..self }
    }

    /// Makes one turn: changes the sessions, then writes what that has queued, as far as one turn may (see
    /// [`Self::has_unflushed`]). `perform` gets what the shard has to do, in order.
    ///
    /// The actions of a change are performed before anything is written. So when a client reads the answer to its command,
    /// what the command published is already in the inbox of every shard with a listener.
    pub fn turn<R>(
        &mut self,
        now: Instant,
        change: impl FnOnce(&mut Self) -> R,
        mut perform: impl FnMut(Action),
    ) -> R {
        self.table.set_now(now);
        let result = change(self);
        self.answer_waiting_readers();
        self.take_actions().into_iter().for_each(&mut perform);
        self.flush_some();
        self.hub.keep_up_interest();
        self.charge_hub();
        for slot in self.table.rearm() {
            self.abort(slot, Cause::Error);
        }
        self.table.reactor.flush();
        // Writing may have ended sessions, which adds actions.
        self.take_actions().into_iter().for_each(perform);
        result
    }

    /// What the shard has to do, in order. A turn takes it by itself.
    pub fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// True when there is something to publish among it.
    pub fn has_whispers(&self) -> bool {
        self.actions
            .iter()
            .any(|action| matches!(action, Action::Publish(_)))
    }

    /// True when the next harvest has work at once, without a wake-up.
    pub fn has_more(&self) -> bool {
        self.table.has_work() || !self.common.answers.is_empty()
    }

    /// Has the next turn write an answer to a client of the HTTP phase.
    pub fn send_answer(
        &self,
        socket: TcpSocket,
        bytes: Vec<u8>,
    ) -> impl Future<Output = SentAnswer> + use<> {
        self.common.answers.send(socket, bytes)
    }

    /// When [`Self::on_tick`] has something to do; `None`: not before another turn.
    pub fn next_tick_at(&self) -> Option<Instant> {
        if self.drain.is_slow() || self.holdbacks.expire_soon() {
            return Some(self.table.wheel.next_instant());
        }
        self.table.wheel.earliest_instant()
    }

    /// What this shard has, for the gauges that count distinct values over all shards.
    pub fn survey(&self) -> Survey {
        let identities = &self.table.identities;
        Survey {
            identities: identities.hashes().collect(),
            streams: self
                .hub
                .streams()
                .map(|name| identities.hash(name))
                .collect(),
        }
    }
}
