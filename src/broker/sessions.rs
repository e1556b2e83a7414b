//! Sessions that have ended and may come back: everything that a restore needs, by session id.
//!
//! A session is kept on the shard on which it has ended, for `sessions_ttl` from then on. A restore does not consume it, so
//! a client whose new connection breaks at once can use the same sid again. At the bound in bytes the session that ended
//! first goes first.
//!
//! A sid is a secret, and whoever has it becomes that client. Which sessions may be kept, and that a sid exists nowhere
//! else, is decided by the caller.
//!
//! Source: `contract/extended.md` §5.

use std::time::{Duration, Instant};

use ahash::RandomState;
use slab::Slab;
use thiserror::Error;

use super::Budget;
use super::expiry::{Expiring, Expiry, Links};
use super::index::{Index, entry_bytes, insert};
use crate::hub::{Interner, Marks, TextId};
use crate::protocol::state::State;

mod packing;

use packing::{Packing, Unpacking};

/// The most that one session may take here, with the texts that no other kept session has.
pub const KEPT_SESSION_BYTES_MAX: usize = 256 << 10;
/// Sessions that may be given up to keep one. More are needed only when something else has used up the budget.
pub const EVICTED_AT_ONCE_MAX: usize = 1_024;

/// Packed bytes of a session that are removed in one step of a sweep: a session of usual size is one step.
const STEP_BYTES: usize = 256;

/// Memory of a kept session beside its packed texts: its entry, and what the allocator adds to them.
const KEPT_BYTES: usize = entry_bytes::<Kept>() + 24;
/// Memory of connection identifiers beside their interned text.
const IDENTITY_BYTES: usize = 2 * size_of::<Identity>();

/// What a session is restored from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionSnapshot {
    /// The connection identifiers.
    pub identifiers: Box<str>,
    pub cstate: State,
    /// Channel state by identifier.
    pub istates: Vec<(Box<str>, State)>,
    pub subscriptions: Vec<SubscriptionSnapshot>,
    /// The session must end with a Disconnect call.
    pub wants_disconnect: bool,
}

impl SessionSnapshot {
    /// Bytes that it takes while it is on its way to the shard that restores the session.
    pub fn held_bytes(&self) -> usize {
        let istates = self.istates.iter();
        let istates = istates.map(|(identifier, state)| identifier.len() + state.bytes());
        let subscriptions = self
            .subscriptions
            .iter()
            .map(SubscriptionSnapshot::held_bytes);
        self.identifiers.len()
            + self.cstate.bytes()
            + size_of_val(&*self.istates)
            + istates.sum::<usize>()
            + subscriptions.sum::<usize>()
    }
}

/// A subscription of a [`SessionSnapshot`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionSnapshot {
    pub identifier: Box<str>,
    /// Its streams in order, and what it may do on each.
    pub streams: Vec<(Box<str>, Marks)>,
}

impl SubscriptionSnapshot {
    fn held_bytes(&self) -> usize {
        let names = self.streams.iter().map(|(stream, _)| stream.len());
        size_of::<Self>()
            + self.identifier.len()
            + size_of_val(&*self.streams)
            + names.sum::<usize>()
    }
}

/// Why a session is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeepRefusal {
    #[error("the session takes {0} bytes, at most {KEPT_SESSION_BYTES_MAX}")]
    TooLarge(usize),
    #[error("no memory is left for sessions that may come back")]
    NoMemory,
}

/// A kept session.
struct Kept {
    /// The sid and all of the snapshot but the connection identifiers. Identifiers and streams are indices of
    /// [`KeptSessions::texts`].
    packed: Box<[u8]>,
    identity: TextId,
    /// Counts up with each session that is kept.
    number: u64,
    links: Links,
}

const _: () = assert!(size_of::<Kept>() <= 48);

impl Kept {
    fn sid(&self) -> &str {
        Unpacking::new(&self.packed).text()
    }
}

impl Expiring for Kept {
    fn links(&self) -> &Links {
        &self.links
    }

    fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// The kept sessions of the same connection identifiers.
#[derive(Clone, Copy, Default)]
struct Identity {
    /// Those that can be restored.
    restorable: u32,
    /// Sessions up to this number cannot be restored any more.
    dropped: u64,
}

/// The kept sessions of one shard.
pub struct KeptSessions<B> {
    budget: B,
    sessions: Slab<Kept>,
    sid_index: Index,
    /// Identifiers and streams.
    texts: Interner,
    /// Connection identifiers.
    identity_texts: Interner,
    /// By the index of their text.
    identities: Vec<Identity>,
    hasher: RandomState,
    expiry: Expiry,
    last_number: u64,
    totals: SessionTotals,
}

/// Figures of the kept sessions of one shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SessionTotals {
    /// Sessions that can be restored. The time of some may be over.
    pub restorable: usize,
    /// Bytes that are charged.
    pub held_bytes: usize,
    /// Sessions that were given up, or not kept, because there was no memory, since the start.
    pub evicted: u64,
}

impl<B: Budget> KeptSessions<B> {
    /// Every byte will be charged to `budget`. No time that is given later may be earlier than `start`.
    pub fn new(budget: B, ttl: Duration, start: Instant) -> Self {
        Self {
            budget,
            sessions: Slab::new(),
            sid_index: Index::default(),
            texts: Interner::default(),
            identity_texts: Interner::default(),
            identities: Vec::new(),
            hasher: RandomState::default(),
            expiry: Expiry::new(ttl, start),
            last_number: 0,
            totals: SessionTotals::default(),
        }
    }

    pub fn totals(&self) -> SessionTotals {
        self.totals
    }

    /// Keeps a session that has ended now. It replaces a kept one of the same sid. Where it does not fit, those that
    /// ended first are given up.
    ///
    /// # Errors
    /// [`KeepRefusal`]: the session is not kept, nor is an earlier one of its sid.
    pub fn keep(
        &mut self,
        sid: &str,
        session: &SessionSnapshot,
        now: Instant,
    ) -> Result<(), KeepRefusal> {
        if let Some(earlier) = self.find(sid) {
            self.remove(earlier);
        }
        let text_bytes = self.text_bytes();
        let kept = self.pack(sid, session);
        let new_text_bytes = self.text_bytes() - text_bytes;
        let bytes = KEPT_BYTES + kept.packed.len() + new_text_bytes;
        if bytes > KEPT_SESSION_BYTES_MAX {
            self.abandon(&kept, new_text_bytes);
            return Err(KeepRefusal::TooLarge(bytes));
        }
        let mut evicted = 0;
        while !self.budget.try_charge(bytes) {
            let oldest = self.expiry.oldest();
            let Some(oldest) = oldest.filter(|_| evicted < EVICTED_AT_ONCE_MAX) else {
                self.abandon(&kept, new_text_bytes);
                self.totals.evicted += 1;
                return Err(KeepRefusal::NoMemory);
            };
            self.remove(oldest);
            evicted += 1;
            self.totals.evicted += 1;
        }
        self.totals.held_bytes += bytes;
        self.insert(sid, kept, now);
        Ok(())
    }

    /// The session of a sid. It stays kept, and its time is not extended.
    pub fn restore(&self, sid: &str, now: Instant) -> Option<SessionSnapshot> {
        let kept = &self.sessions[self.find(sid)? as usize];
        let can_be_restored = self.is_restorable(kept) && !self.expiry.is_due(kept, now);
        can_be_restored.then(|| self.unpack(kept))
    }

    /// None of the sessions that are kept now with these connection identifiers can be restored any more. Returns how many
    /// these are. Their memory is given back when they expire, so this takes the same short time for any number.
    pub fn drop_all_of(&mut self, identifiers: &str) -> usize {
        let Some(identity) = self.identity_texts.find(identifiers) else {
            return 0;
        };
        let identity = &mut self.identities[identity as usize];
        let dropped = std::mem::take(&mut identity.restorable) as usize;
        identity.dropped = self.last_number;
        self.totals.restorable -= dropped;
        dropped
    }

    /// Removes sessions whose time is over, in `steps_max` steps at most, each of which takes a microsecond or two. True:
    /// there is more to do. Costs nothing for what stays.
    pub fn sweep(&mut self, now: Instant, steps_max: usize) -> bool {
        let mut steps = 0;
        while let Some(due) = self.expiry.due(&self.sessions, now) {
            if steps >= steps_max {
                return true;
            }
            steps += 1 + self.sessions[due as usize].packed.len() / STEP_BYTES;
            self.remove(due);
        }
        false
    }

    fn find(&self, sid: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(sid);
        self.sid_index
            .find(hash, |it| self.sessions[it as usize].sid() == sid)
    }

    fn is_restorable(&self, kept: &Kept) -> bool {
        kept.number > self.identities[kept.identity as usize].dropped
    }

    /// Bytes of the texts that sessions share.
    fn text_bytes(&self) -> usize {
        let identities =
            self.identity_texts.held_bytes() + self.identity_texts.len() * IDENTITY_BYTES;
        self.texts.held_bytes() + identities
    }

    fn pack(&mut self, sid: &str, session: &SessionSnapshot) -> Kept {
        let mut packing = Packing::default();
        packing.text(sid);
        packing.number(usize::from(session.wants_disconnect));
        pack_state(&session.cstate, &mut packing);
        packing.number(session.istates.len());
        for (identifier, state) in &session.istates {
            packing.number(self.texts.acquire(identifier).0 as usize);
            pack_state(state, &mut packing);
        }
        packing.number(session.subscriptions.len());
        for subscription in &session.subscriptions {
            packing.number(self.texts.acquire(&subscription.identifier).0 as usize);
            packing.number(subscription.streams.len());
            for (stream, marks) in &subscription.streams {
                let (stream, _) = self.texts.acquire(stream);
                packing.number(with_marks(stream, *marks));
            }
        }
        let (identity, new) = self.identity_texts.acquire(&session.identifiers);
        if new.is_some() {
            let length = self.identities.len().max(identity as usize + 1);
            self.identities.resize(length, Identity::default());
            self.identities[identity as usize] = Identity::default();
        }
        self.last_number += 1;
        Kept {
            packed: packing.finish(),
            identity,
            number: self.last_number,
            links: Links::default(),
        }
    }

    fn unpack(&self, kept: &Kept) -> SessionSnapshot {
        let text = |id: usize| self.texts.text(id as TextId).into();
        let mut unpacking = Unpacking::new(&kept.packed);
        unpacking.text();
        let wants_disconnect = unpacking.number() != 0;
        let cstate = unpack_state(&mut unpacking);
        let istates = (0..unpacking.number())
            .map(|_| (text(unpacking.number()), unpack_state(&mut unpacking)))
            .collect();
        let subscriptions = (0..unpacking.number())
            .map(|_| SubscriptionSnapshot {
                identifier: text(unpacking.number()),
                streams: (0..unpacking.number())
                    .map(|_| unpacking.number())
                    .map(|stream| (text(stream >> MARK_BITS), marks_of(stream)))
                    .collect(),
            })
            .collect();
        SessionSnapshot {
            identifiers: self.identity_texts.text(kept.identity).into(),
            cstate,
            istates,
            subscriptions,
            wants_disconnect,
        }
    }

    fn insert(&mut self, sid: &str, kept: Kept, now: Instant) {
        self.identities[kept.identity as usize].restorable += 1;
        self.totals.restorable += 1;
        let entry = insert(&mut self.sessions, kept);
        let (sessions, hasher) = (&self.sessions, &self.hasher);
        self.sid_index.insert(hasher.hash_one(sid), entry, |it| {
            hasher.hash_one(sessions[it as usize].sid())
        });
        self.expiry.set(&mut self.sessions, entry, now);
    }

    fn remove(&mut self, entry: u32) {
        self.expiry.clear(&mut self.sessions, entry);
        let hash = self.hasher.hash_one(self.sessions[entry as usize].sid());
        self.sid_index.remove(hash, entry);
        let kept = self.sessions.remove(entry as usize);
        if self.is_restorable(&kept) {
            self.identities[kept.identity as usize].restorable -= 1;
            self.totals.restorable -= 1;
        }
        let freed = KEPT_BYTES + kept.packed.len() + self.release_texts(&kept);
        self.totals.held_bytes -= freed;
        self.budget.release(freed);
        self.shrink();
    }

    /// Releases the texts of a session that is not kept after all. Those that are new because of it are not charged. Others
    /// may have lost their last user meanwhile, and they are.
    fn abandon(&mut self, kept: &Kept, new_text_bytes: usize) {
        let freed = self.release_texts(kept) - new_text_bytes;
        self.totals.held_bytes -= freed;
        self.budget.release(freed);
        self.shrink();
    }

    /// Releases the texts that a session shares with others. Returns the bytes of those that nobody else has.
    fn release_texts(&mut self, kept: &Kept) -> usize {
        let before = self.text_bytes();
        let mut unpacking = Unpacking::new(&kept.packed);
        unpacking.text();
        unpacking.number();
        skip_state(&mut unpacking);
        for _ in 0..unpacking.number() {
            self.texts.release(unpacking.number() as TextId);
            skip_state(&mut unpacking);
        }
        for _ in 0..unpacking.number() {
            self.texts.release(unpacking.number() as TextId);
            for _ in 0..unpacking.number() {
                let stream = unpacking.number() >> MARK_BITS;
                self.texts.release(stream as TextId);
            }
        }
        self.identity_texts.release(kept.identity);
        before - self.text_bytes()
    }

    /// Frees memory after many sessions have been removed.
    fn shrink(&mut self) {
        let (sessions, hasher) = (&self.sessions, &self.hasher);
        self.sid_index
            .shrink(|it| hasher.hash_one(sessions[it as usize].sid()));
        self.texts.shrink();
        self.identity_texts.shrink();
        if self.sessions.is_empty() {
            self.sessions = Slab::new();
        }
        // A session that is about to be inserted has its texts already.
        if self.identity_texts.is_empty() {
            self.identities = Vec::new();
        }
    }
}

/// The marks are in the lowest bits of a stream's number.
const MARK_BITS: u32 = 2;

fn with_marks(stream: TextId, marks: Marks) -> usize {
    (stream as usize) << MARK_BITS | usize::from(marks.whisper) << 1 | usize::from(marks.presence)
}

fn marks_of(number: usize) -> Marks {
    Marks {
        whisper: number & 2 != 0,
        presence: number & 1 != 0,
    }
}

fn pack_state(state: &State, packing: &mut Packing) {
    packing.number(state.iter().count());
    for (key, value) in state.iter() {
        packing.text(key);
        packing.text(value);
    }
}

fn unpack_state(unpacking: &mut Unpacking<'_>) -> State {
    (0..unpacking.number())
        .map(|_| (unpacking.text(), unpacking.text()))
        .collect()
}

fn skip_state(unpacking: &mut Unpacking<'_>) {
    for _ in 0..2 * unpacking.number() {
        unpacking.text();
    }
}

#[cfg(test)]
mod tests;
