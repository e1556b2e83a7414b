//! The end of the server: every session is told, at once or spread over a time, and the last bytes reach their clients.

use std::sync::mpsc;
use std::time::Instant;

use super::Sessions;
use super::connection::Connection;
use crate::mesh::ShardId;
use crate::os::random;
use crate::shard::spread::Spread;
use crate::shard::timers::TICK;

/// How far the shutdown is.
#[derive(Default)]
pub(super) struct Drain {
    /// A client that connects now is told to leave at once.
    pub has_begun: bool,
    slow: Option<SlowDrain>,
    /// Told when the last socket is closed.
    done: Option<mpsc::Sender<ShardId>>,
}

/// A walk through the table: once around, from a random slot, so that the oldest sessions are not told first. It reaches
/// every session that was there at its start; later ones are told when they open.
struct SlowDrain {
    spread: Spread,
    /// The slot to look at next.
    cursor: usize,
    /// Slots of the table when the walk began.
    slots: usize,
}

impl Drain {
    /// Sessions are told at every tick.
    pub fn is_slow(&self) -> bool {
        self.slow.is_some()
    }
}

impl Sessions {
    /// Tells every session that the server shuts down. A client that connects from now on is told at once.
    pub fn close_all(&mut self) {
        self.drain.has_begun = true;
        let slots: Vec<u32> = self
            .table
            .connections
            .iter()
            .map(|(slot, _)| slot as u32)
            .collect();
        for slot in slots {
            self.close_for_shutdown(slot);
        }
    }

    /// Does the same, spread evenly over the time until `end`. Each session is served until its turn comes. A client that
    /// connects from now on is told at once, because it would have to reconnect soon anyway.
    pub fn close_slowly(&mut self, end: Instant) {
        self.drain.has_begun = true;
        let slots = self.table.identities.slots();
        let random = u64::from_ne_bytes(random::bytes());
        self.drain.slow = Some(SlowDrain {
            spread: Spread::new(
                self.table.time(),
                TICK * self.table.wheel.tick_of(end),
                self.table.open_sessions,
                random,
            ),
            cursor: (random % slots.max(1) as u64) as usize,
            slots,
        });
    }

    /// Tells `done` when the last socket is closed, see [`Self::take_drained`].
    pub fn report_closed(&mut self, done: mpsc::Sender<ShardId>) {
        self.drain.done = Some(done);
    }

    /// Where to report the end of the drain, once every session has ended and no call of an ended session is under way.
    pub fn take_drained(&mut self) -> Option<mpsc::Sender<ShardId>> {
        if self.table.connections.is_empty() && self.departed == 0 {
            self.drain.done.take()
        } else {
            None
        }
    }

    /// True when no socket is left.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.table.connections.is_empty()
    }

    /// Tells the sessions whose time has come.
    pub(super) fn drain_some(&mut self) {
        let Some(mut drain) = self.drain.slow.take() else {
            return;
        };
        let now = self.table.time();
        while self.table.open_sessions > 0 && drain.spread.take(now, self.table.open_sessions) {
            let around = (drain.cursor..drain.slots).chain(0..drain.cursor);
            let Some(slot) = around.into_iter().find(|&slot| self.is_open(slot)) else {
                break;
            };
            drain.cursor = slot;
            self.close_for_shutdown(slot as u32);
        }
        if self.table.open_sessions > 0 {
            self.drain.slow = Some(drain);
        }
    }

    fn is_open(&self, slot: usize) -> bool {
        self.table
            .connections
            .get(slot)
            .is_some_and(Connection::is_open)
    }
}
