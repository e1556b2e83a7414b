//! What is known of the sessions over long polling besides their entries in the table.

use std::collections::HashMap;
use std::net::TcpStream;
use std::time::Duration;

use ahash::RandomState;

use super::common::ticks;
use crate::config::PollConfig;
use crate::mesh::Charge;
use crate::os::random;
use crate::session::Tick;
use crate::shard::polls::Poll;

/// The polling sessions of a shard.
pub(super) struct Polls {
    /// By slot; empty when there are none.
    by_slot: Vec<Option<Box<Polling>>>,
    count: usize,
    /// For what some clients have sent behind the poll that waits.
    behind: HashMap<u32, Charge, RandomState>,
    /// A poll without messages waits for so long.
    interval: Tick,
    /// Messages wait for so long, so that more of them go out with one answer.
    flush_interval: Tick,
    /// A session without a poll lives for so long.
    keepalive: Tick,
}

/// A session over long polling. Its connection in the table has no socket; the socket of a poll is here while it waits.
pub(super) struct Polling {
    secret: [u8; 16],
    /// When the poll that waits gets an answer in any case. While none waits: when the session is given up.
    pub due: Tick,
    pub stage: Stage,
    /// How many messages at the front of the outbox are in the answer that is being written; `None` while none is.
    pub answering: Option<u32>,
    /// The poll that waits.
    pub waiting: Option<Poll>,
}

/// Bytes that an idle polling session may take here. Its place by slot is not included.
const POLLING_BYTES_MAX: usize = 64;
const _: () = assert!(size_of::<Polling>() <= POLLING_BYTES_MAX);
/// Memory of a polling session besides its entry in the table, rounded up.
pub(super) const POLLING_ENTRY_BYTES: usize = 96;
/// Places that are made at once at least.
const PLACES_MADE: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its client does not have its id yet.
    New,
    Open,
    /// The session has ended, and its client does not have the last messages yet. Their answer has this status.
    Ended(u16),
}

impl Polls {
    pub fn new(config: Option<&PollConfig>) -> Self {
        let time = |of: fn(&PollConfig) -> Duration| config.map_or(0, |config| ticks(of(config)));
        Self {
            by_slot: Vec::new(),
            count: 0,
            behind: HashMap::default(),
            interval: time(|config| config.interval),
            flush_interval: time(|config| config.flush_interval),
            keepalive: time(|config| config.keepalive_timeout),
        }
    }

    /// Adds a session whose first request waits.
    pub fn add(&mut self, slot: u32, poll: Poll) {
        let place = slot as usize;
        if place >= self.by_slot.len() {
            let more = place + 1 - self.by_slot.len();
            if self.by_slot.capacity() <= place {
                self.by_slot
                    .reserve_exact(more.max(PLACES_MADE).max(place / 8));
            }
            self.by_slot.resize_with(place + 1, || None);
        }
        let polling = Polling {
            secret: random::bytes(),
            due: Tick::MAX,
            stage: Stage::New,
            answering: None,
            waiting: Some(poll),
        };
        self.by_slot[place] = Some(Box::new(polling));
        self.count += 1;
    }

    pub fn find(&self, slot: u32) -> Option<&Polling> {
        self.by_slot.get(slot as usize)?.as_deref()
    }

    pub fn find_mut(&mut self, slot: u32) -> Option<&mut Polling> {
        self.by_slot.get_mut(slot as usize)?.as_deref_mut()
    }

    /// Removes a session. Returns the poll that waits.
    pub fn remove(&mut self, slot: u32) -> Option<Poll> {
        let polling = self.by_slot.get_mut(slot as usize)?.take()?;
        self.behind.remove(&slot);
        self.count -= 1;
        if self.count == 0 {
            self.by_slot = Vec::new();
        }
        polling.waiting
    }

    /// The socket of the poll that waits.
    pub fn socket(&self, slot: u32) -> Option<&TcpStream> {
        let poll = self.find(slot)?.waiting.as_ref()?;
        Some(&poll.socket)
    }

    /// A poll of this session waits from now on.
    pub fn attach(&mut self, slot: u32, poll: Poll, now: Tick) {
        let interval = self.interval;
        if let Some(polling) = self.find_mut(slot) {
            polling.waiting = Some(poll);
            polling.due = now + interval;
        }
    }

    /// Keeps the charge for what its client has sent behind it.
    pub fn charge_behind(&mut self, slot: u32, charge: Charge) {
        if charge.bytes() > 0 {
            self.behind.insert(slot, charge);
        }
    }

    /// No poll of this session waits from now on.
    pub fn detach(&mut self, slot: u32, now: Tick) -> Option<Poll> {
        let keepalive = self.keepalive;
        let polling = self.find_mut(slot)?;
        let poll = polling.waiting.take()?;
        polling.due = now + keepalive;
        self.behind.remove(&slot);
        Some(poll)
    }

    /// An answer has ended. Returns the number of messages that it had.
    pub fn end_answer(&mut self, slot: u32, now: Tick) -> u32 {
        let keepalive = self.keepalive;
        let Some(polling) = self.find_mut(slot) else {
            return 0;
        };
        if polling.waiting.is_none() {
            polling.due = now + keepalive;
        }
        polling.answering.take().unwrap_or_default()
    }

    /// What an answer under way has is not in the outbox any more.
    pub fn forget_answered(&mut self, slot: u32) {
        if let Some(polling) = self.find_mut(slot) {
            polling.answering = polling.answering.map(|_| 0);
        }
    }

    /// True when messages that wait since then are to be sent.
    pub fn is_flush_due(&self, since: Tick, now: Tick) -> bool {
        now >= since + self.flush_interval
    }

    /// When a session has to be looked at. `since`: when the first of its messages was queued.
    pub fn next_look(&self, slot: u32, since: Option<Tick>) -> Option<Tick> {
        let polling = self.find(slot)?;
        match (polling.answering, &polling.waiting, polling.stage) {
            // The end of the answer is the next event.
            (Some(_), _, _) => None,
            (None, None, _) => Some(polling.due),
            // So is what its client waits for.
            (None, Some(_), Stage::New) => None,
            (None, Some(_), _) => {
                let flush_at = since.map(|since| since + self.flush_interval);
                Some(flush_at.map_or(polling.due, |at| at.min(polling.due)))
            }
        }
    }
}

impl Polling {
    pub fn secret(&self) -> u128 {
        u128::from_le_bytes(self.secret)
    }

    /// Compares all bits at once, so that the time says nothing about them.
    pub fn has_secret(&self, secret: u128) -> bool {
        self.secret() ^ secret == 0
    }
}
