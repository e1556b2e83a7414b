//! The warm connections of one shard.
//!
//! Last in, first out: under light load few connections do all the work and the others grow old and go. While there are idle
//! ones, a task looks at them now and then: what the app has closed, or what is too old, is closed here too.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use super::connection::Connection;
use crate::net::Timeouts;

/// An idle connection older than this is not used again. Puma closes idle connections after 65 s, and a request sent at that
/// very moment would be lost and repeated; ten seconds keep clear of it.
const IDLE_MAX: Duration = Duration::from_secs(55);
/// How often idle connections are looked at. It costs one system call for each.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Idle connections, oldest first.
pub(super) struct Pool {
    idle: RefCell<Vec<Idle>>,
    connections_max: usize,
    timeouts: Rc<Timeouts>,
    /// The task that looks at idle connections is there.
    sweeping: Cell<bool>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    /// Keeps at most `connections_max` idle connections.
    pub fn new(connections_max: usize, timeouts: Rc<Timeouts>) -> Rc<Pool> {
        Rc::new(Pool {
            idle: RefCell::new(Vec::new()),
            connections_max,
            timeouts,
            sweeping: Cell::new(false),
        })
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
    pub fn put(self: &Rc<Self>, connection: Connection, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.connections_max {
            idle.push(Idle {
                connection,
                since: now,
            });
        }
        if !self.sweeping.replace(true) {
            monoio::spawn(sweep(Rc::downgrade(self), Rc::clone(&self.timeouts)));
        }
    }

    /// Closes what must not or cannot be used again. False: nothing is left.
    fn close_useless(&self, now: Instant) -> bool {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|idle| {
            now.saturating_duration_since(idle.since) <= IDLE_MAX && idle.connection.is_quiet()
        });
        self.sweeping.set(!idle.is_empty());
        !idle.is_empty()
    }
}

/// Looks at the idle connections until there is none.
async fn sweep(pool: Weak<Pool>, timeouts: Rc<Timeouts>) {
    loop {
        timeouts.sleep(SWEEP_INTERVAL).await;
        match pool.upgrade() {
            Some(pool) if pool.close_useless(Instant::now()) => {}
            _ => return,
        }
    }
}
