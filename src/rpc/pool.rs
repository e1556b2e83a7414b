//! The warm connections of one shard.
//!
//! Last in, first out: under light load few connections do all the work and the others grow old and go. Old ones are dropped
//! when the pool is used, so no timer runs for them; while nobody calls, they cost nothing but a descriptor.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use super::connection::Connection;

/// An idle connection older than this is not used again. Puma closes idle connections after 65 s, and a request sent at that
/// very moment would be lost and repeated; ten seconds keep clear of it.
const IDLE_MAX: Duration = Duration::from_secs(55);

/// Idle connections, oldest first.
pub(super) struct Pool {
    idle: RefCell<Vec<Idle>>,
    connections_max: usize,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// Keeps at most `connections_max` idle connections.
    pub fn new(connections_max: usize) -> Pool {
        Pool {
            idle: RefCell::new(Vec::new()),
            connections_max,
        }
    }

    /// The connection used last, if it is still good: young, open, and with nothing to read.
    pub fn take(&self, now: Instant) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        loop {
            let Idle { connection, since } = idle.pop()?;
            if now.saturating_duration_since(since) > IDLE_MAX {
                // All others are older still.
                idle.clear();
                return None;
            }
            if connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for the next call.
    pub fn put(&self, connection: Connection, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        let young =
            idle.partition_point(|idle| now.saturating_duration_since(idle.since) > IDLE_MAX);
        idle.drain(..young);
        if idle.len() < self.connections_max {
            idle.push(Idle {
                connection,
                since: now,
            });
        }
    }
}
