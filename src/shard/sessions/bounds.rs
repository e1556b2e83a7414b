//! The limits on what one session makes the shard hold, in bytes: where they are counted and what happens at each.
//!
//! Memory is charged to two budgets. The session's own (`session_bytes_max`) counts everything that the session holds,
//! shared or not, and is checked where something is added. The budget of the process (`mesh/budget.rs`) counts memory when
//! it is allocated: a frame or an identifier that many sessions share is charged once.

use std::time::Duration;

use crate::config::WebSocketConfig;
use crate::session::Tick;
use crate::shard::outbox::Outbox;
use crate::shard::timers::TICK;
use crate::wire::websocket::message::MessageLimits;

/// Memory of an idle session, rounded up: its entry in the table, its timer, the hash of its identity, its row in the hub.
/// Its texts are not included.
pub const SESSION_ENTRY_BYTES: usize = 256;
/// Subscriptions may take one part in this many of a session's budget. The rest is for what is sent to the session.
pub(super) const SUBSCRIPTIONS_PART: usize = 4;
/// A client with more than `ws_max_pending_size` waiting is slow when it receives nothing for this long; at most three
/// quarters of `ws_write_timeout`. It is not shorter because a busy machine can stop a client for some hundred milliseconds.
const STALL_TIME: Duration = Duration::from_millis(1500);
/// When the process has no memory left, an outbox or an unfinished message of up to this size does not end its session.
pub(super) const SMALL_BYTES: usize = 64 << 10;

/// The limits of every session, from the configuration.
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

    /// True when so much waits for a client that it must not stop receiving.
    pub fn is_much(&self, outbox: &Outbox) -> bool {
        outbox.queued_bytes() >= self.pending_bytes_max
    }

    /// True when such a client has stopped receiving. Check this after a write, so that a busy shard does not take its own
    /// delay for the client's.
    pub fn is_stalled(&self, outbox: &Outbox, now: Tick) -> bool {
        self.is_much(outbox) && now.saturating_sub(outbox.progress) > self.stall_ticks
    }

    /// When to check a client that receives nothing.
    pub fn next_look(&self, outbox: &Outbox) -> Tick {
        match self.is_much(outbox) {
            true => (outbox.progress + self.stall_ticks + 1).min(outbox.deadline),
            false => outbox.deadline,
        }
    }

    /// With this much waiting the server stops reading from a client, because its commands would only add more.
    pub fn reading_stops_at(&self) -> usize {
        self.pending_bytes_max.min(self.session_bytes_max / 2)
    }

    /// The limits of a message: `max_message_size`, compressed or not, and the limit of a session.
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

/// In the options 0 means "no limit".
fn unlimited_if_zero(bytes: u64) -> usize {
    match bytes {
        0 => usize::MAX,
        bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
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
