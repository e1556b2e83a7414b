//! How much of a turn one session may take, and how long each part of a turn may last.
//!
//! A session's share is counted in *cost*: about one nanosecond of the shard's time, estimated from the work to be done, so
//! that it depends neither on the clock nor on other load of the machine. Reading, unmasking, inflating, parsing and
//! replying all cost something, whatever the client sends and however the kernel reports it. A session that has used up its
//! share continues in the next turn, after those that have not.

use std::time::{Duration, Instant};

/// What one session may cost in one turn, in estimated nanoseconds. The step that reaches this is finished; it is one
/// message at most.
const SHARE: u32 = 100_000;

/// A read from a socket, without its bytes.
const READ_COST: u32 = 1_000;
/// A few writes of gathered frames.
const WRITES_COST: u32 = 50_000;
/// A frame of any kind: its header, the handling of its payload, a reply.
const FRAME_COST: u32 = 100;
/// A message, without its bytes: a command is decoded, looked up and answered.
const MESSAGE_COST: u32 = 1_500;
/// A publication by a client: every shard has to look for listeners.
const WHISPER_COST: u32 = 10_000;

/// What is left of a session's share of this turn.
#[derive(Debug)]
pub(super) struct Share {
    left: u32,
}

impl Share {
    pub(super) fn new() -> Self {
        Self { left: SHARE }
    }

    pub(super) fn is_used_up(&self) -> bool {
        self.left == 0
    }

    /// The cost used so far, in estimated nanoseconds.
    pub(super) fn paid(&self) -> u32 {
        SHARE - self.left
    }

    fn pay(&mut self, cost: u32) {
        self.left = self.left.saturating_sub(cost);
    }

    /// One read of so many bytes. Encrypted bytes may be records of one byte each, which take 23 bytes on the wire and a
    /// microsecond.
    pub(super) fn pay_read(&mut self, bytes: usize, encrypted: bool) {
        let per_byte = if encrypted { 40 } else { 0 };
        self.pay(READ_COST.saturating_add(cost(bytes) * per_byte + cost(bytes) / 8));
    }

    /// Writing what waits in the session's outbox.
    pub(super) fn pay_writes(&mut self) {
        self.pay(WRITES_COST);
    }

    /// The bytes that one call of the decoder took from the input.
    pub(super) fn pay_frames(&mut self, bytes: usize) {
        self.pay(FRAME_COST.saturating_add(cost(bytes) / 2));
    }

    /// A whole message of so many bytes, after inflating.
    pub(super) fn pay_message(&mut self, bytes: usize) {
        self.pay(MESSAGE_COST.saturating_add(cost(bytes).saturating_mul(2)));
    }

    pub(super) fn pay_whisper(&mut self) {
        self.pay(WHISPER_COST);
    }
}

/// A loop over many sessions with little to do checks the clock each time they have cost this much together.
pub(super) const LOOK_COST: u32 = 20_000;

fn cost(bytes: usize) -> u32 {
    // Far more than a share, and small enough that the products do not overflow.
    bytes.min(1 << 24) as u32
}

/// The time that one part of a turn may take. The loop that uses it checks it between two steps.
#[derive(Debug, Clone, Copy)]
pub struct TimeSlice {
    ends: Instant,
}

impl TimeSlice {
    pub fn new(length: Duration) -> Self {
        Self {
            ends: Instant::now() + length,
        }
    }

    /// As [`Self::new`]. In unit tests it is far longer, because they count what a turn does, and a busy machine may
    /// interrupt a turn for longer than it may last.
    pub fn of_turn(length: Duration) -> Self {
        Self::new(if cfg!(test) { length * 10_000 } else { length })
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often `pay` can be done before the share is used up.
    fn times(mut pay: impl FnMut(&mut Share)) -> usize {
        let mut share = Share::new();
        (0..)
            .take_while(|_| {
                let left = !share.is_used_up();
                pay(&mut share);
                left
            })
            .count()
    }

    #[test]
    fn a_share_is_used_up_by_many_small_things_and_by_one_large() {
        assert_eq!(times(|share| share.pay_frames(6)), 971);
        assert_eq!(times(|share| share.pay_message(7)), 67);
        assert_eq!(times(|share| share.pay_message(65_536)), 1);
        assert_eq!(times(|share| share.pay_message(usize::MAX)), 1);
        assert_eq!(times(|share| share.pay_read(65_536, false)), 11);
        assert_eq!(times(|share| share.pay_read(4_096, true)), 1);
        assert_eq!(times(Share::pay_whisper), 10);
    }
}
