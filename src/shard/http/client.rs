//! What is known of a client in its HTTP phase, and what follows each of its requests.
//!
//! Data only. The code is in `connection` (its life), `reading` and `body` (bytes received), `writing` (bytes sent),
//! `requests`, `console`, `events`, `polling` and `upgrade` (the answers).

use std::net::IpAddr;
use std::rc::Rc;

use crate::endpoints::durable_streams::StreamReading;
use crate::endpoints::response::Headers;
use crate::mesh::{Charge, Permit};
use crate::net::Socket;
use crate::shard::Shard;
use crate::shard::http::listener::ListenerRules;
use crate::shard::http::polling::AcceptedPoll;
use crate::shard::http::task_time::TaskTime;
use crate::wire::handshake::Upgrade;
use crate::wire::http_request::RequestHead;

/// A client that speaks HTTP.
pub struct Client {
    pub(super) shard: Rc<Shard>,
    pub(super) rules: Rc<ListenerRules>,
    pub(super) socket: Socket,
    pub(super) peer: IpAddr,
    /// Its place among the open connections.
    pub(super) permit: Permit,
    /// Bytes that were read and have not been used yet.
    pub(super) input: Vec<u8>,
    /// Charge for the memory of the current request.
    pub(super) held: Option<Charge>,
    pub(super) time: TaskTime,
    /// The connection is idle between two requests.
    pub(super) is_kept: bool,
    /// The last request published something.
    pub(super) publishes: bool,
}

impl Client {
    /// A client that has just connected. `permit` is its place among the open connections.
    pub(super) fn new(
        shard: Rc<Shard>,
        rules: Rc<ListenerRules>,
        socket: Socket,
        peer: IpAddr,
        permit: Permit,
    ) -> Self {
        Self {
            shard,
            rules,
            socket,
            peer,
            permit,
            input: Vec::new(),
            held: None,
            time: TaskTime::new(),
            is_kept: false,
            publishes: false,
        }
    }
}

/// What follows a request.
pub enum Next {
    Keep,
    Upgrade(Box<AcceptedUpgrade>),
    Events(Box<AcceptedEvents>),
    Reading(Box<AcceptedReading>),
    Poll(Box<AcceptedPoll>),
    End,
}

/// A request that becomes a session.
pub struct AcceptedUpgrade {
    pub(super) head: RequestHead,
    pub(super) upgrade: Upgrade,
    pub(super) kind: SessionKind,
}

/// A request for server-sent events that becomes a session.
pub struct AcceptedEvents {
    pub(super) head: RequestHead,
    /// One a line.
    pub(super) commands: Vec<u8>,
    /// For the answer, besides those that all answers have.
    pub(super) headers: Headers,
}

/// A request for a durable stream that its client may read.
pub struct AcceptedReading {
    pub(super) head: RequestHead,
    pub(super) reading: Box<StreamReading>,
}

/// The kind of session that a request becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// A client of the app.
    Client,
    /// A client of the console, which the console has admitted.
    Console,
}
