//! HTTP calls to the app: the limit, the breaker, the attempts, and the connections.
//!
//! One [`RpcShared`] per process holds what all shards share (the concurrency limit, the circuit breaker, the address of the
//! app). One [`RpcClient`] per shard holds the idle connections of that shard. This module does not look into bodies:
//! `protocol` writes and reads their JSON. Called by `shard::sessions` and by the queue of disconnect calls. It names
//! nothing above itself.
//!
//! Source: `contract/rpc.md` §1–§3, §5, §7.

mod breaker;
mod client;
mod connection;
mod diagnosis;
mod error;
mod guards;
mod health;
mod idle;
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
pub(crate) use idle::idle_connections_max;
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

/// Which calls go first when all slots are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// A client is waiting for the answer.
    Live,
    /// No client waits for the answer: the call runs when no live call waits, or when it has waited long enough.
    Disconnect,
}

/// When a call was asked for, and how long it then took.
#[derive(Debug)]
pub struct CallTimes {
    queued: Instant,
    waited: Cell<Option<Duration>>,
    ran: Cell<Option<Duration>>,
    /// The attempt has begun to send the request.
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

    /// An attempt begins to send its request.
    pub(crate) fn note_sent(&self) {
        self.sent.set(true);
    }

    /// Whether the app may have got the request, in any attempt.
    pub fn is_sent(&self) -> bool {
        self.sent.get()
    }

    /// How long the call waited for its slot, and how long it ran; `None` if it was cancelled or has not ended.
    pub fn finished(&self) -> Option<(Duration, Duration)> {
        Some((self.waited.get()?, self.ran.get()?))
    }
}
