//! What is known of a client in its HTTP phase, and what follows each of its requests.
//!
//! Data alone. What is done with it stands in `connection` (its life), `reading` and `body` (its bytes), `writing` (ours),
//! `requests`, `console` and `upgrade` (what is answered).

use std::net::IpAddr;
use std::rc::Rc;

use crate::mesh::{Charge, Permit};
use crate::net::Socket;
use crate::shard::Shard;
use crate::shard::http::listener::ListenerRules;
use crate::shard::http::pace::TaskPace;
use crate::wire::handshake::Upgrade;
use crate::wire::http_request::RequestHead;

/// A client that speaks HTTP.
pub struct Client {
    pub(super) shard: Rc<Shard>,
    pub(super) rules: Rc<ListenerRules>,
    pub(super) socket: Socket,
    pub(super) peer: IpAddr,
    /// Its socket's right to exist.
    pub(super) permit: Permit,
    /// Bytes that were read and not used yet.
    pub(super) input: Vec<u8>,
    /// Memory of the request that is under way.
    pub(super) held: Option<Charge>,
    pub(super) pace: TaskPace,
    /// It rests between two requests.
    pub(super) is_kept: bool,
    /// It has published something.
    pub(super) publishes: bool,
}

impl Client {
    /// One that has just come. `permit` is its socket's right to exist.
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
            pace: TaskPace::new(),
            is_kept: false,
            publishes: false,
        }
    }
}

/// What follows a request.
pub enum Next {
    Keep,
    Upgrade(Box<AcceptedUpgrade>),
    End,
}

/// A request that becomes a session.
pub struct AcceptedUpgrade {
    pub(super) head: RequestHead,
    pub(super) upgrade: Upgrade,
    pub(super) kind: SessionKind,
}

/// Whose session it becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// A client's of the app.
    Client,
    /// The console's, which has let it in.
    Console,
}
