//! The end of the server: every session is told, at once or spread over a time, and the last bytes reach their clients.

use std::net::Shutdown;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::closing::discard_input;
use super::{Cause, Connection, Life, Sessions};
use crate::mesh::ShardId;
use crate::os::random;
use crate::protocol::disconnect::{Close, DisconnectReason};
use crate::session::Tick;
use crate::shard::pace::Pace;
use crate::shard::timers::TICK;

/// How long a client of a drain may take to close its side once it has got everything. Until then the socket stays: the
/// kernel drops what is not acknowledged when a container's network goes with its last process.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_TICKS: Tick = (LINGER.as_millis() / TICK.as_millis()) as Tick;

/// A walk through the table, once around from a random place: who came first is not told first. It meets every session:
/// those that come later are told when they open.
pub(super) struct SlowDrain {
    pace: Pace,
    /// The slot to look at next.
    cursor: usize,
    /// Slots of the table when the walk began.
    slots: usize,
}

impl Sessions {
    /// Tells every session that the server goes. Who opens from now on is told at once.
    pub fn close_all(&mut self) {
        self.draining = true;
        let slots: Vec<u32> = self
            .connections
            .iter()
            .map(|(slot, _)| slot as u32)
            .collect();
        for slot in slots {
            self.close_for_shutdown(slot);
        }
    }

    /// Does the same spread evenly over the time until `end`; sessions are served until it is their turn. Who opens from
    /// now on is told at once: it would only have to come again.
    pub fn close_slowly(&mut self, end: Instant) {
        self.draining = true;
        let slots = self.identity_hashes.len();
        let random = u64::from_ne_bytes(random::bytes());
        self.slow_drain = Some(SlowDrain {
            pace: Pace::new(
                self.now(),
                TICK * self.wheel.tick_of(end),
                self.open_sessions,
                random,
            ),
            cursor: (random % slots.max(1) as u64) as usize,
            slots,
        });
    }

    /// Has `done` told when the last socket is closed, see [`Self::take_drained`].
    pub fn report_closed(&mut self, done: mpsc::Sender<ShardId>) {
        self.drained = Some(done);
    }

    /// Who waits for the last session to end, once it has, and the calls that some have left behind.
    pub fn take_drained(&mut self) -> Option<mpsc::Sender<ShardId>> {
        if self.connections.is_empty() && self.departed == 0 {
            self.drained.take()
        } else {
            None
        }
    }

    /// True when no socket is left.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Tells those whose turn has come.
    pub(super) fn drain_some(&mut self) {
        let Some(mut drain) = self.slow_drain.take() else {
            return;
        };
        let now = self.now();
        while self.open_sessions > 0 && drain.pace.take(now, self.open_sessions) {
            let around = (drain.cursor..drain.slots).chain(0..drain.cursor);
            let Some(slot) = around.into_iter().find(|&slot| self.is_open(slot)) else {
                break;
            };
            drain.cursor = slot;
            self.close_for_shutdown(slot as u32);
        }
        if self.open_sessions > 0 {
            self.slow_drain = Some(drain);
        }
    }

    fn is_open(&self, slot: usize) -> bool {
        self.connections.get(slot).is_some_and(Connection::is_open)
    }

    /// Time of the turn, counted as the wheel counts it.
    fn now(&self) -> Duration {
        TICK * self.now_tick
    }

    pub(super) fn close_for_shutdown(&mut self, slot: u32) {
        let close = Close::SERVER_RESTART;
        self.disconnect(
            slot,
            DisconnectReason::ServerRestart,
            true,
            close,
            Cause::Shutdown,
        );
    }

    /// Everything is written and the client sees the end behind it; waits for the client's own end, which says that all of it
    /// has arrived.
    pub(super) fn linger(&mut self, slot: u32) {
        let connection = &mut self.connections[slot as usize];
        if connection.socket.shutdown(Shutdown::Write).is_err() {
            return self.release(slot);
        }
        connection.life = Life::Lingering;
        self.wheel.set(slot, self.now_tick + LINGER_TICKS);
        // It may have closed already, and that is no event any more.
        self.on_lingering_input(slot);
    }

    /// Throws away what still comes, for nothing of it can be answered, until the client closes or sends too much.
    pub(super) fn on_lingering_input(&mut self, slot: u32) {
        let mut buffer = std::mem::take(&mut self.read_buffer);
        let more_may_come = discard_input(&self.connections[slot as usize].socket, &mut buffer);
        self.read_buffer = buffer;
        if !more_may_come {
            self.release(slot);
        }
    }
}
