//! What one session may make the shard hold, in bytes: where it is counted and what happens at the bound.
//!
//! Two budgets are charged. The session's own (`session_bytes_max`) counts everything that it holds, shared or not, and is
//! looked at where something is added. The process's (`mesh/budget.rs`) counts memory as it is taken: a frame or an identifier
//! that many sessions share is charged once.

use std::time::Duration;

use super::{Cause, Connection, Sessions};
use crate::config::WebSocketConfig;
use crate::mesh::ShardBudget;
use crate::protocol::disconnect::Close;
use crate::session::{CommandRefusal, Tick};
use crate::shard::notices::Notice;
use crate::shard::outbox::Outbox;
use crate::shard::timers::TICK;
use crate::wire::websocket::frame;
use crate::wire::websocket::message::MessageLimits;

/// A session at rest: its entry in the table, its timer, the hash of its identity, its row in the hub, rounded up. Its texts come
/// on top.
pub const SESSION_ENTRY_BYTES: usize = 256;
/// The part of a session's budget that subscriptions may take: the rest is for what it is sent.
const SUBSCRIPTIONS_PART: usize = 4;
/// A client that takes nothing for this long, with more than `ws_max_pending_size` waiting, is slow; at most three quarters of
/// `ws_write_timeout`. A machine with other work to do lets a client wait for some hundred milliseconds.
const STALL_TIME: Duration = Duration::from_millis(1500);
/// With the process's memory used up, an outbox or an unfinished message of this size is still no reason to end a session.
const SMALL_BYTES: usize = 64 << 10;

/// The bounds of every session, from the configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub session_bytes_max: usize,
    pending_bytes_max: usize,
    message_bytes_max: u64,
    stall_ticks: Tick,
}

impl Bounds {
    pub fn new(config: &WebSocketConfig) -> Self {
        let stall = STALL_TIME.min(config.write_timeout * 3 / 4);
        Self {
            session_bytes_max: unlimited_if_zero(config.session_bytes_max),
            pending_bytes_max: unlimited_if_zero(config.pending_bytes_max),
            message_bytes_max: config.message_bytes_max,
            stall_ticks: stall.as_millis().div_ceil(TICK.as_millis()) as Tick,
        }
    }

    /// True when a client that has this waiting must not stand still.
    pub fn is_much(&self, outbox: &Outbox) -> bool {
        outbox.queued_bytes() >= self.pending_bytes_max
    }

    /// True when it does. Ask behind a write: a shard that was busy must not take its own delay for the client's.
    pub fn is_stalled(&self, outbox: &Outbox, now: Tick) -> bool {
        self.is_much(outbox) && now.saturating_sub(outbox.progress) > self.stall_ticks
    }

    /// When to look at a client that takes nothing.
    pub fn next_look(&self, outbox: &Outbox) -> Tick {
        match self.is_much(outbox) {
            true => (outbox.progress + self.stall_ticks + 1).min(outbox.deadline),
            false => outbox.deadline,
        }
    }

    /// With so much waiting a client is not read: it would only make more.
    fn reading_stops_at(&self) -> usize {
        self.pending_bytes_max.min(self.session_bytes_max / 2)
    }

    /// A message may be as large as `max_message_size` says, compressed or not, and no larger than a session.
    pub fn message_limits(&self) -> MessageLimits {
        let session_bytes_max = match self.session_bytes_max {
            usize::MAX => 0,
            bytes => bytes as u64,
        };
        let bytes_max = match (self.message_bytes_max, session_bytes_max) {
            (0, bytes) | (bytes, 0) => bytes,
            (message, session) => message.min(session),
        };
        MessageLimits {
            message_bytes_max: bytes_max,
            deflate: false,
            inflated_bytes_max: bytes_max,
        }
    }
}

/// Options say 0 for "no limit".
fn unlimited_if_zero(bytes: u64) -> usize {
    match bytes {
        0 => usize::MAX,
        bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
    }
}

impl Connection {
    /// Everything that this session makes the shard hold, but for what stands in the running batch, which has a bound of its own.
    fn held_bytes(&self) -> usize {
        let outbox = self.outbox.as_ref().map_or(0, |outbox| outbox.held_bytes());
        let held = self.held.as_ref().map_or(0, |held| held.bytes());
        self.session.held_bytes() + self.decoder.held_bytes() + outbox + held
    }

    /// What is charged to the process for the session itself, from its first turn to its last.
    pub(super) fn charged_bytes(&self) -> usize {
        SESSION_ENTRY_BYTES + self.session.own_bytes() + self.decoder.held_bytes()
    }

    /// True while a client that has much waiting is not read, so that what it asks for makes no more of it: TCP holds it back.
    pub(super) fn is_backed_up(&self, bounds: &Bounds) -> bool {
        self.outbox
            .as_ref()
            .is_some_and(|outbox| outbox.queued_bytes() >= bounds.reading_stops_at())
    }

    /// True when no more may be queued for this client: it holds as much as a session may. One burst of large messages below
    /// that makes no client slow; whether it takes them is seen when its time has come (`due`).
    pub(super) fn is_over(&self, bounds: &Bounds, budget: &ShardBudget) -> bool {
        let Some(outbox) = &self.outbox else {
            return false;
        };
        self.held_bytes() >= bounds.session_bytes_max
            || (outbox.held_bytes() >= SMALL_BYTES && budget.is_full())
    }
}

impl Sessions {
    /// Why no more may be queued for a client, for the console; the two rarer bounds are counted and told here.
    pub(super) fn why_slow(&self, slot: u32) -> &'static str {
        let connection = &self.connections[slot as usize];
        let is_full = connection.held_bytes() >= self.bounds.session_bytes_max;
        if is_full {
            self.note_full_session(slot, "it is dropped as a slow client");
        }
        let outbox = connection.outbox.as_ref();
        if outbox.is_some_and(|outbox| self.bounds.is_much(outbox)) {
            "its outbox passed ws_max_pending_size"
        } else if is_full {
            "it holds session_bytes_max"
        } else {
            "the memory for clients is used up and it does not take what waits"
        }
    }

    /// Counts and tells that a command was refused for want of room.
    pub(super) fn note_bound(&self, slot: u32, refusal: &CommandRefusal, bytes: usize) {
        match refusal {
            CommandRefusal::NoRoomInSession => {
                self.note_full_session(slot, "it is refused a subscription");
            }
            CommandRefusal::NoMemory => self.budget.note_refusal(bytes),
            _ => {}
        }
    }

    /// A session is at `session_bytes_max`.
    pub(super) fn note_full_session(&self, slot: u32, consequence: &str) {
        self.counters().session_bytes_exceeded_total.add(1);
        if let Some(admitted) = self.notices.admit(Notice::SessionFull) {
            tracing::warn!(
                context = "node",
                sid = self.sid(slot),
                shard = self.shard,
                max = self.bounds.session_bytes_max,
                left_out = admitted.left_out(),
                "a session holds as much as session_bytes_max allows, {consequence}"
            );
        }
    }

    /// What the session in `slot` may add to its subscriptions.
    pub(super) fn subscription_room(&self, slot: u32) -> usize {
        let connection = &self.connections[slot as usize];
        let session_bytes_max = self.bounds.session_bytes_max;
        let of_subscriptions = (session_bytes_max / SUBSCRIPTIONS_PART)
            .saturating_sub(connection.session.subscribed_bytes());
        of_subscriptions.min(session_bytes_max.saturating_sub(connection.held_bytes()))
    }

    /// The app may set more state than a session may hold: there is nobody to refuse it to.
    pub(super) fn close_if_too_large(&mut self, slot: u32) {
        let too_large = self
            .connections
            .get(slot as usize)
            .is_some_and(|connection| {
                connection.is_open()
                    && connection.session.held_bytes() >= self.bounds.session_bytes_max
            });
        if too_large {
            self.note_full_session(slot, "it is closed: the app has set too much state");
            self.begin_close(slot, Some(Close::TOO_LARGE), Cause::Error);
        }
    }

    /// A session's own bytes have changed.
    pub(super) fn recharge(&self, before: usize, after: usize) {
        if after > before {
            self.budget.charge(after - before);
        } else {
            self.budget.release(before - after);
        }
    }

    /// Subscriptions may have changed. Whether there was room has been asked before, for each.
    pub(super) fn charge_hub(&mut self) {
        let held = self.hub.held_bytes();
        self.recharge(self.hub_charged, held);
        self.hub_charged = held;
    }

    /// Releases what is charged for an unfinished message: it is about to change.
    pub(super) fn release_partial(&self, slot: u32) {
        self.budget.release(self.partial_bytes(slot));
    }

    /// Charges what has come of an unfinished message. A client that sends a large one while the memory is used up is closed.
    pub(super) fn charge_partial(&mut self, slot: u32) {
        let bytes = self.partial_bytes(slot);
        if bytes <= SMALL_BYTES / 16 {
            return self.budget.charge(bytes);
        }
        if !self.budget.try_charge(bytes) {
            self.connections[slot as usize].decoder = Default::default();
            let close = Close::NO_MEMORY;
            self.send_control(slot, frame::close_frame(Some(close.code), close.reason));
            self.begin_close(slot, None, Cause::Error);
        }
    }

    fn partial_bytes(&self, slot: u32) -> usize {
        self.connections
            .get(slot as usize)
            .map_or(0, |connection| connection.decoder.held_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(message_bytes_max: u64, session_bytes_max: u64) -> Bounds {
        Bounds::new(&WebSocketConfig {
            message_bytes_max,
            write_timeout: Duration::from_secs(2),
            pending_bytes_max: 0,
            session_bytes_max,
            compression: false,
        })
    }

    #[test]
    fn a_message_is_bounded_by_its_limit_and_by_the_session() {
        fn check(message: u64, session: u64, expected: u64) {
            let limits = bounds(message, session).message_limits();
            assert_eq!(limits.message_bytes_max, expected, "{message} {session}");
            assert_eq!(limits.inflated_bytes_max, expected, "{message} {session}");
        }
        check(65_536, 16 << 20, 65_536);
        check(32 << 20, 16 << 20, 16 << 20);
        check(0, 16 << 20, 16 << 20);
        check(65_536, 0, 65_536);
        check(0, 0, 0);
    }

    #[test]
    fn a_stall_is_always_shorter_than_the_write_timeout() {
        assert_eq!(bounds(0, 0).stall_ticks * 50, 1500);
        let mut config = WebSocketConfig {
            message_bytes_max: 0,
            write_timeout: Duration::from_secs(1),
            pending_bytes_max: 0,
            session_bytes_max: 0,
            compression: false,
        };
        assert_eq!(Bounds::new(&config).stall_ticks * 50, 750);
        config.write_timeout = Duration::from_secs(60);
        assert_eq!(Bounds::new(&config).stall_ticks * 50, 1500);
    }
}
