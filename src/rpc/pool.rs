//! The idle connections of one shard.
//!
//! Last in, first out: under light load a few connections do all the work, and the others become old and are closed. While
//! there are idle connections, a task looks at them at intervals. It closes those that the app has closed, those that are
//! too old, and those that are lost because a call on a connection of the same age has failed.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, Instant},
};

use super::connection::Connection;
use super::idle::{IdleChoice, IdlePolicy, Place};
use crate::net::Timeouts;

/// An idle connection older than this is not used again. Puma closes idle connections after 65 s, and a request sent at that
/// moment would be lost and repeated. This leaves ten seconds of distance.
const IDLE_MAX: Duration = Duration::from_secs(55);
/// Interval between two looks at the idle connections. A look costs one system call for each.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Idle connections, oldest first.
pub(super) struct Pool {
    idle: RefCell<Vec<Idle>>,
    connections_max: usize,
    policy: Arc<IdlePolicy>,
    timeouts: Rc<Timeouts>,
    /// The task that looks at idle connections runs.
    sweeping: Cell<bool>,
}

struct Idle {
    connection: Connection,
    since: Instant,
    /// `None`: it waits for a call of this shard that has its slot already, or is about to get it.
    place: Option<Place>,
}

impl Pool {
    /// Keeps at most `connections_max` idle connections, and no more than all shards may keep together.
    pub fn new(
        connections_max: usize,
        policy: Arc<IdlePolicy>,
        timeouts: Rc<Timeouts>,
    ) -> Rc<Pool> {
        Rc::new(Pool {
            idle: RefCell::new(Vec::new()),
            connections_max,
            policy,
            timeouts,
            sweeping: Cell::new(false),
        })
    }

    /// The connection that was used last, if it can still be used: not too old, open, nothing to read, and of an age that
    /// can be trusted.
    pub fn take(&self, now: Instant) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        while let Some(last) = idle.last() {
            if now.saturating_duration_since(last.since) > IDLE_MAX {
                // All others have been idle longer.
                idle.clear();
                return None;
            }
            let choice = match last.connection.is_quiet() {
                true => self.policy.judge(last.connection.age(), now),
                false => IdleChoice::Close,
            };
            match choice {
                IdleChoice::Use => return idle.pop().map(|last| last.connection),
                IdleChoice::Leave => return None,
                IdleChoice::Close => drop(idle.pop()),
            }
        }
        None
    }

    /// Keeps a connection for the next call. When other shards have all the places, it stays until [`Self::settle`]: the
    /// slot may go to a call of this shard, which needs a connection.
    pub fn put(self: &Rc<Self>, connection: Connection, now: Instant) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.connections_max && !self.policy.is_lost(connection.age()) {
            idle.push(Idle {
                connection,
                since: now,
                place: self.policy.place(),
            });
        }
        if !self.sweeping.replace(true) {
            monoio::spawn(sweep(Rc::downgrade(self), Rc::clone(&self.timeouts)));
        }
    }

    /// A call has given its slot back, and so many calls of this shard have slots and have not begun. Closes the connections
    /// without a place that are more than these, the oldest first.
    pub fn settle(&self, calls: usize) {
        let mut idle = self.idle.borrow_mut();
        let without_place = idle.iter().filter(|idle| idle.place.is_none()).count();
        let mut too_many = without_place.saturating_sub(calls);
        if too_many > 0 {
            idle.retain(|idle| {
                let close = too_many > 0 && idle.place.is_none();
                too_many -= usize::from(close);
                !close
            });
        }
    }

    /// Closes the connections that must not or cannot be used again, or for which there is still no place. False: none is
    /// left.
    fn close_useless(&self, now: Instant) -> bool {
        let mut idle = self.idle.borrow_mut();
        for idle in idle.iter_mut().filter(|idle| idle.place.is_none()) {
            idle.place = self.policy.place();
        }
        idle.retain(|idle| {
            now.saturating_duration_since(idle.since) <= IDLE_MAX
                && !self.policy.is_lost(idle.connection.age())
                && idle.place.is_some()
                && idle.connection.is_quiet()
        });
        self.sweeping.set(!idle.is_empty());
        !idle.is_empty()
    }
}

/// Looks at the idle connections until none is left.
async fn sweep(pool: Weak<Pool>, timeouts: Rc<Timeouts>) {
    loop {
        timeouts.sleep(SWEEP_INTERVAL).await;
        match pool.upgrade() {
            Some(pool) if pool.close_useless(Instant::now()) => {}
            _ => return,
        }
    }
}
