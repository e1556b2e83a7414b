//! One client's socket and wire state, and questions about it.

use std::io::{self, Read};
use std::net::TcpStream;
use std::rc::Rc;

use super::answering::Opening;
use super::bounds::{Bounds, SESSION_ENTRY_BYTES, SMALL_BYTES, SUBSCRIPTIONS_PART};
use super::formats::{Encoding, Format};
use super::polls::POLLING_ENTRY_BYTES;
use super::readers::OpenReading;
use super::schedule::Place;
use super::waiting::{BrokerWait, OpenQuestion};
use crate::mesh::{Charge, Permit, ShardBudget};
use crate::net::tls::TlsSession;
use crate::session::Session;
use crate::shard::calls::CallHandle;
use crate::shard::outbox::Outbox;
use crate::shard::outbox::batch::BatchList;
use crate::wire::websocket::message::MessageDecoder;

/// Bytes that an idle connection may take in the table, its session included. Its texts and subscriptions are not included.
const CONNECTION_BYTES_MAX: usize = 120;
const _: () = assert!(size_of::<Connection>() <= CONNECTION_BYTES_MAX);

/// Why the server does not read from a client: a call is under way, the broker is asked, or the client has used up its
/// share. Exists only then.
#[derive(Default)]
pub(super) struct Held {
    pub call: Option<PendingCall>,
    pub broker: Option<Box<BrokerWait>>,
    /// Input that was read before that.
    pub unread: Unread,
    /// A request over plain HTTP that has no answer yet.
    pub opening: Option<Box<Opening>>,
    /// The client reads a durable stream.
    pub reading: Option<Box<OpenReading>>,
}

impl Held {
    /// True while an answer is missing. The answer to a request over plain HTTP does not wait for the broker: whether its
    /// subscriptions are there does not depend on that.
    pub fn waits(&self) -> bool {
        self.call.is_some() || (self.broker.is_some() && self.opening.is_none())
    }

    /// True when there is no reason left to hold the client's input.
    fn is_quiet(&self) -> bool {
        self.call.is_none()
            && self.broker.is_none()
            && self.opening.is_none()
            && self.unread.is_empty()
    }

    /// True when nothing is held any more. A reader is held until it has its answer.
    pub fn is_over(&self) -> bool {
        self.is_quiet() && self.reading.is_none()
    }

    /// The bytes that are charged for it.
    fn bytes(&self) -> usize {
        let call = self.call.as_ref().map(|call| &call.charge);
        let unread = self.unread.charge.as_ref();
        let opening = self.opening.as_ref().map(|opening| &opening.charge);
        let charges = call.into_iter().chain(unread).chain(opening);
        let reading = self.reading.as_ref().map_or(0, |it| it.charged_bytes());
        charges.map(Charge::bytes).sum::<usize>() + reading
    }
}

pub(super) struct PendingCall {
    pub handle: Rc<CallHandle>,
    /// For the texts of the call.
    pub charge: Charge,
}

/// Bytes that were read and have not been processed.
#[derive(Default)]
pub(super) struct Unread {
    pub bytes: Vec<u8>,
    /// Bytes at the start that have been processed.
    pub start: usize,
    pub charge: Option<Charge>,
}

impl Unread {
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// The client's HTTP request has no answer yet (`answering`). What is sent to the client waits in its outbox.
    Opening,
    Open,
    /// The close frame is queued. The socket is closed when the outbox is empty or its deadline has passed.
    Closing,
    /// Only in a drain: everything is written, and the client has not closed its side yet.
    Lingering,
}

/// One client's socket and wire state.
pub(super) struct Connection {
    pub session: Session,
    pub decoder: MessageDecoder,
    pub outbox: Option<Box<Outbox>>,
    pub tls: Option<Box<TlsSession>>,
    pub held: Option<Box<Held>>,
    #[expect(dead_code, reason = "held until the socket is closed, for its drop")]
    pub permit: Option<Permit>,
    pub deliveries: BatchList,
    /// `None` over long polling: then [`Polls`](super::polls::Polls) has one while a poll waits.
    pub socket: Option<TcpStream>,
    pub generation: u32,
    pub life: Life,
    pub format: Format,
    /// The kernel has, or may have, input that was not read.
    pub input_waiting: bool,
    /// The client has closed its side, or may have. The server reads on until it reaches the end.
    pub end_seen: bool,
    /// A `writable` event was requested.
    pub write_watched: bool,
    /// The socket has room again for the outbox.
    pub write_ready: bool,
    pub place: Place,
}

impl Connection {
    pub fn is_open(&self) -> bool {
        matches!(self.life, Life::Opening | Life::Open)
    }

    /// True while the client's request over plain HTTP has no answer.
    pub fn is_opening(&self) -> bool {
        self.life == Life::Opening
    }

    /// True when the next input of the client can be read.
    pub fn listens(&self) -> bool {
        self.held.as_ref().is_none_or(|held| held.is_quiet())
    }

    pub fn reading(&self) -> Option<&OpenReading> {
        self.held.as_ref()?.reading.as_deref()
    }

    pub fn has_call(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.call.is_some())
    }

    /// True while the client's next command has to wait for an answer of the app or of the broker.
    pub fn waits(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.waits())
    }

    /// True while the client gets what it has missed.
    pub fn is_replaying(&self) -> bool {
        let wait = self.held.as_ref().and_then(|held| held.broker.as_ref());
        wait.is_some_and(|wait| matches!(wait.open, Some(OpenQuestion::Replay(_))))
    }

    pub fn has_unread(&self) -> bool {
        self.held
            .as_ref()
            .is_some_and(|held| !held.unread.is_empty())
    }

    /// True while commands of the client wait for an answer, or for the server to read or to handle them.
    pub fn may_have_commands(&self) -> bool {
        self.waits() || self.input_waiting || self.has_unread()
    }

    /// True when the session can be served without waiting for anything.
    pub fn is_ready(&self, bounds: &Bounds) -> bool {
        let takes_more = self.is_open() && !self.is_backed_up(bounds);
        let listens = takes_more && !self.waits();
        let input = listens && (self.input_waiting || self.has_unread());
        input || (takes_more && !self.is_opening() && self.is_replaying()) || self.write_ready
    }

    /// Reads from the socket once. An end of the TLS stream counts as the end, because the client may leave the socket open
    /// after it.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match (&self.tls, &self.socket) {
            (Some(tls), _) if tls.peer_has_closed() => Ok(0),
            (_, Some(socket)) => (&*socket).read(buffer),
            (_, None) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// All bytes that this session makes the shard hold, except its deliveries in the current batch, which has its own
    /// limit.
    pub fn held_bytes(&self) -> usize {
        let outbox = self.outbox.as_ref().map_or(0, |outbox| outbox.held_bytes());
        let held = self.held.as_ref().map_or(0, |held| held.bytes());
        self.session.held_bytes() + self.decoder.held_bytes() + outbox + held
    }

    /// The bytes charged to the process for the session itself, from its first turn to its last.
    pub fn charged_bytes(&self) -> usize {
        let entry_bytes = match self.format.encoding {
            Encoding::LINES => SESSION_ENTRY_BYTES + POLLING_ENTRY_BYTES,
            _ => SESSION_ENTRY_BYTES,
        };
        entry_bytes + self.session.own_bytes() + self.decoder.held_bytes()
    }

    /// True while so much waits for a client that the server does not read from it, so that its commands cannot add more.
    /// TCP then makes the client wait. The lines of a request are read in any case, because nothing is written before.
    pub fn is_backed_up(&self, bounds: &Bounds) -> bool {
        self.outbox.as_ref().is_some_and(|outbox| {
            outbox.queued_bytes() >= bounds.reading_stops_at() && !self.is_opening()
        })
    }

    /// True when no more may be queued for this client: it holds as much as a session may, or its outbox is not small while
    /// the process has no memory left. Below that a burst of large messages does not make a client slow; whether the client
    /// receives them is checked at its deadline (`ticks`).
    pub fn is_over(&self, bounds: &Bounds, budget: &ShardBudget) -> bool {
        let Some(outbox) = &self.outbox else {
            return false;
        };
        self.is_full(bounds) || (outbox.held_bytes() >= SMALL_BYTES && budget.is_full())
    }

    /// True when it holds as much as a session may.
    pub fn is_full(&self, bounds: &Bounds) -> bool {
        self.held_bytes() >= bounds.session_bytes_max
    }

    /// Bytes that the session may add to its subscriptions.
    pub fn subscription_room(&self, bounds: &Bounds) -> usize {
        let session_bytes_max = bounds.session_bytes_max;
        let of_subscriptions = (session_bytes_max / SUBSCRIPTIONS_PART)
            .saturating_sub(self.session.subscribed_bytes());
        of_subscriptions.min(session_bytes_max.saturating_sub(self.held_bytes()))
    }
}
