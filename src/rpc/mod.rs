//! HTTP calls to the app: what a call costs, when it is made, and how often it is tried.
//!
//! Owns the connections to the app and the rules around them. One [`RpcShared`] per process holds what all shards have in
//! common (the concurrency limit, the circuit breaker, the address of the app); one [`RpcClient`] per shard holds that
//! shard's warm connections. Bodies are opaque here: `protocol` writes and reads their JSON. Called by `shard::sessions`
//! and by the disconnect queue; names nothing above itself.
//!
//! Source: `contract/rpc.md` §1–§3, §5, §7.

mod advice;
mod breaker;
mod client;
mod connection;
mod error;
mod guards;
mod health;
mod kept;
mod limiter;
mod pool;
mod probe;
mod resolver;
pub(crate) mod response;
mod target;
mod tls;

use std::cell::Cell;
use std::time::{Duration, Instant};

pub use client::{RpcClient, RpcShared};
pub use error::{BadResponse, RpcError, StartError};
pub(crate) use kept::kept_max;
pub(crate) use target::without_secrets;

/// What the app is asked. The lower-case name is the last segment of the request path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Who is this client, and may it connect?
    Connect,
    /// A client's `subscribe`, `unsubscribe` or `message`.
    Command,
    /// A session has ended.
    Disconnect,
}

/// Which calls go first when the app is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// A client is waiting for the answer.
    Live,
    /// Nobody is waiting for the answer: runs when no live call waits, or when it has waited long enough.
    Disconnect,
}

/// When a call was asked for, and how long it then took.
#[derive(Debug)]
pub struct CallTimes {
    queued: Instant,
    waited: Cell<Option<Duration>>,
    ran: Cell<Option<Duration>>,
    /// The request has been sent, or has begun to be.
    sent: Cell<bool>,
}

impl CallTimes {
    /// For a call that was asked for at `queued`.
    pub fn since(queued: Instant) -> Self {
        Self {
            queued,
            waited: Cell::new(None),
            ran: Cell::new(None),
            sent: Cell::new(false),
        }
    }

    /// A request begins to be sent.
    pub(crate) fn note_sent(&self) {
        self.sent.set(true);
    }

    /// Whether the app may have got the request, in whatever attempt.
    pub fn is_sent(&self) -> bool {
        self.sent.get()
    }

    /// How long it waited for its slot, and how long it ran; `None` for one that was cancelled or has not ended.
    pub fn finished(&self) -> Option<(Duration, Duration)> {
        Some((self.waited.get()?, self.ran.get()?))
    }
}
