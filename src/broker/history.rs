//! The history of the streams that are at home on this shard: it gives each message its position, keeps the newest ones, and
//! answers what a client has missed.
//!
//! A stream keeps as many messages as its limit says, for as long as its ttl says. After ten times its ttl without a message
//! it is forgotten with its counter; if it comes back, it has a new epoch, so a position of its earlier life is refused.
//! Every byte is charged to a budget, also while only an answer still has the message. Where that has no room, what is
//! oldest goes first: messages by the time at which they were stored, streams without messages by the time of their last
//! one.
//!
//! An answer is complete, or it is a [`Refusal`]. Offsets have no gaps and a stream keeps its newest messages, so the
//! offsets of the kept ones follow from the last offset and their number.
//!
//! Source: `contract/extended.md` §4 and §6. Other than in the reference, an up-to-date client is never refused while its
//! stream is known, nor is one that has missed exactly the kept messages; limits may differ by stream; and there is a bound
//! in bytes.

use std::time::{Duration, Instant};

use slab::Slab;

use super::index::{INDEX_BYTES, Index, insert};
use super::{Budget, StreamKey};
use crate::protocol::position::{Epoch, Position};
use crate::protocol::publication::Message;

mod ages;
mod epochs;
mod lent;
mod limits;
mod part;
mod ring;
#[cfg(test)]
mod tests;
mod view;

pub use epochs::Epochs;
pub use limits::Classes;
pub use part::{Part, Refusal};
pub use view::{KeptMessage, StreamTotals, StreamView};

use ages::Ages;
use lent::Lent;
use ring::{Entry, Ring};

/// Milliseconds since the history began, from 1 on.
type Millis = u64;

/// A stream is forgotten after this many times its ttl without a message, as in the reference.
const FORGOTTEN_AFTER_TTLS: u64 = 10;

/// Steps of making room for one message: a millisecond or two. Where they are not enough, the message is not kept.
pub const EVICTIONS_PER_MESSAGE_MAX: usize = 8_192;

/// Messages of [`Lent`] that are looked at for each one that is stored: more than can be added.
const LENT_PER_MESSAGE: usize = 2;

/// Bytes charged for a stream beside its name: its value, its place in the slab and in the index, its places in the two
/// lists by age (it may be in both), and what is free in all of these.
pub const STREAM_BYTES: usize = size_of::<Stream>() + (16 + 2 * 16) * 5 / 4 + INDEX_BYTES;

/// Bytes charged for a message beside its own: the reference counts before it, its entry, and what is free in its ring.
pub const MESSAGE_BYTES: usize = 16 + 24 + 8;

/// What is known of a stream.
struct Stream {
    name: Box<str>,
    /// See [`StreamKey::table_hash`].
    hash: u64,
    epoch: Epoch,
    /// The offset of its last message; 0 before the first one.
    last: u64,
    /// The newest messages, without a gap up to the last one.
    ring: Ring,
    /// When its last message came.
    used_at: Millis,
    /// Messages that were stored up to this time may be missing because there was no memory; 0: none.
    lost_until: Millis,
    class: u32,
    /// It is in the list of streams with messages. It may still be there when it has no more.
    is_keeping: bool,
    /// It is in the list of streams without messages. It may still be there when it has some again.
    is_idle: bool,
}

/// The streams of one class by age.
#[derive(Default)]
struct Lists {
    /// Streams with messages, by the time of the oldest one.
    keeping: Ages,
    /// Streams without messages, by the time of their last one.
    idle: Ages,
}

/// See [`Lists`].
#[derive(Debug, Clone, Copy)]
enum List {
    Keeping,
    Idle,
}

/// Why something is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Its time is over.
    Age,
    /// Its memory is needed.
    Memory,
}

/// The streams at home on one shard.
pub struct History<B> {
    budget: B,
    epochs: Epochs,
    classes: Classes,
    /// By class.
    lists: Box<[Lists]>,
    streams: Slab<Box<Stream>>,
    index: Index,
    lent: Lent,
    /// The zero of [`Millis`].
    start: Instant,
    /// The newest message that was lost with its stream, by the time at which it was stored.
    lost_until: Millis,
    totals: Totals,
}

/// Figures of a history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Streams that are known, with messages or without.
    pub streams: usize,
    /// Messages that are kept.
    pub messages: usize,
    /// Bytes that are charged.
    pub held_bytes: usize,
    /// Messages that were removed, or not stored, because there was no memory, since the start.
    pub evicted_messages: u64,
    /// Streams that were forgotten for the same reason, since the start.
    pub evicted_streams: u64,
}

impl<B: Budget> History<B> {
    /// No streams yet. Every byte will be charged to `budget`. No time that is given later may be earlier than `start`.
    pub fn new(budget: B, classes: Classes, epochs: Epochs, start: Instant) -> Self {
        Self {
            budget,
            epochs,
            lists: (0..classes.len()).map(|_| Lists::default()).collect(),
            classes,
            streams: Slab::new(),
            index: Index::default(),
            lent: Lent::default(),
            start,
            lost_until: 0,
            totals: Totals::default(),
        }
    }

    /// Gives the next message of a stream its position, and keeps it as the limits of the stream allow. The deliveries have
    /// the same bytes.
    pub fn append(&mut self, stream: StreamKey<'_>, message: &Message, now: Instant) -> Position {
        let now = self.millis(now);
        self.take_back(LENT_PER_MESSAGE);
        let found = self.find(stream);
        let Some(id) = found.or_else(|| self.begin_stream(stream, now)) else {
            return self.position_without_stream();
        };
        let stream = &mut self.streams[id as usize];
        stream.last += 1;
        stream.used_at = now.max(stream.used_at);
        let (now, position) = (stream.used_at, stream.position());
        let messages_max = self.classes.limits(stream.class as usize).messages;
        if messages_max == 0 || !self.store(id, message, messages_max, now) {
            self.begin_idle(id);
        }
        position
    }

    /// The messages after a position that a client knows.
    ///
    /// # Errors
    /// [`Refusal`] when the position is none of this stream, or a message after it is not kept any more.
    pub fn from(&self, stream: StreamKey<'_>, position: Position) -> Result<Part, Refusal> {
        let stream = self.known(stream).ok_or(Refusal::UnknownStream)?;
        if stream.epoch != position.epoch {
            return Err(Refusal::ForeignEpoch);
        }
        let missed = stream.last.checked_sub(position.offset);
        let missed = missed.ok_or(Refusal::InTheFuture)?;
        match usize::try_from(missed) {
            Ok(missed) if missed <= stream.ring.len() => Ok(stream.newest(missed)),
            _ => Err(Refusal::NotKept),
        }
    }

    /// The kept messages that were stored at a time, given in seconds since 1970, or later. `now` and `unix_now` are the
    /// same moment on both clocks. Messages that limit and ttl have removed are not missed.
    ///
    /// # Errors
    /// [`Refusal::NotKept`] when messages of that time may be missing because there was no memory.
    pub fn since(
        &self,
        stream: StreamKey<'_>,
        unix_secs: i64,
        now: Instant,
        unix_now: Duration,
    ) -> Result<Part, Refusal> {
        let now = self.millis(now);
        let ahead = i128::from(unix_secs) * 1000 - unix_now.as_millis() as i128;
        let since = (i128::from(now) + ahead).clamp(1, i128::from(Millis::MAX)) as Millis;
        let known = self.known(stream);
        let lost_until = known.map_or(self.lost_until, |stream| stream.lost_until);
        let ttl = self.ttl(self.classes.class_of(stream.name));
        if since <= lost_until && now < lost_until.saturating_add(ttl) {
            return Err(Refusal::NotKept);
        }
        Ok(known.map_or_else(Part::default, |stream| {
            stream.newest(stream.ring.count_since(since))
        }))
    }

    /// The newest messages of a stream, `messages_max` at most.
    ///
    /// # Errors
    /// [`Refusal::UnknownStream`]
    pub fn newest(&self, stream: StreamKey<'_>, messages_max: usize) -> Result<Part, Refusal> {
        let stream = self.known(stream).ok_or(Refusal::UnknownStream)?;
        Ok(stream.newest(messages_max.min(stream.ring.len())))
    }

    /// Removes what is too old, in `steps_max` steps at most, each of which takes a fraction of a microsecond. True: there
    /// is more to do. Costs nothing for what stays.
    pub fn sweep(&mut self, now: Instant, steps_max: usize) -> bool {
        let now = self.millis(now);
        self.take_back(steps_max);
        let mut steps_left = steps_max;
        for class in 0..self.lists.len() {
            while let Some(list) = self.due(class, now) {
                if steps_left == 0 {
                    return true;
                }
                steps_left -= 1;
                self.remove_oldest(class, list, Cause::Age, None);
            }
        }
        self.shrink();
        false
    }

    pub fn totals(&self) -> Totals {
        Totals {
            streams: self.streams.len(),
            ..self.totals
        }
    }

    /// The list of a class of which the oldest time is over.
    fn due(&self, class: usize, now: Millis) -> Option<List> {
        let ttl = self.ttl(class);
        let is_over = |ages: &Ages, after: Millis| {
            let oldest = ages.oldest();
            oldest.is_some_and(|(time, _)| time.saturating_add(after) <= now)
        };
        let lists = &self.lists[class];
        if is_over(&lists.keeping, ttl) {
            Some(List::Keeping)
        } else {
            let forgotten_after = ttl.saturating_mul(FORGOTTEN_AFTER_TTLS);
            is_over(&lists.idle, forgotten_after).then_some(List::Idle)
        }
    }

    fn ttl(&self, class: usize) -> Millis {
        let ttl = self.classes.limits(class).ttl.as_millis();
        Millis::try_from(ttl).unwrap_or(Millis::MAX)
    }

    fn millis(&self, now: Instant) -> Millis {
        let since_start = now.saturating_duration_since(self.start);
        since_start.as_secs() * 1000 + Millis::from(since_start.subsec_millis()) + 1
    }

    fn find(&self, stream: StreamKey<'_>) -> Option<u32> {
        let hash = stream.table_hash();
        self.index.find(hash, |id| {
            let known = &self.streams[id as usize];
            known.hash == hash && *known.name == *stream.name
        })
    }

    fn known(&self, stream: StreamKey<'_>) -> Option<&Stream> {
        self.find(stream).map(|id| &*self.streams[id as usize])
    }

    /// `None` when there is no memory for it.
    fn begin_stream(&mut self, stream: StreamKey<'_>, now: Millis) -> Option<u32> {
        if !self.charge(stream_bytes(stream.name), None) {
            self.totals.evicted_messages += 1;
            self.lost_until = now;
            return None;
        }
        let hash = stream.table_hash();
        let value = Box::new(Stream {
            name: stream.name.into(),
            hash,
            epoch: self.epochs.take(),
            last: 0,
            ring: Ring::default(),
            used_at: now,
            // It may have been forgotten with messages.
            lost_until: self.lost_until,
            class: self.classes.class_of(stream.name) as u32,
            is_keeping: false,
            is_idle: false,
        });
        let id = insert(&mut self.streams, value);
        let streams = &self.streams;
        self.index
            .insert(hash, id, |other| streams[other as usize].hash);
        Some(id)
    }

    /// Each message of a stream that cannot be kept is alone in an epoch, so that no client misses one without a refusal.
    fn position_without_stream(&mut self) -> Position {
        Position {
            epoch: self.epochs.take(),
            offset: 1,
        }
    }

    /// False: there is no memory for the message. Then the stream has no messages, because they would have a gap.
    fn store(&mut self, id: u32, message: &Message, messages_max: usize, now: Millis) -> bool {
        if self.streams[id as usize].ring.len() >= messages_max {
            let replaced = self.streams[id as usize].ring.replace_oldest();
            replaced.into_iter().for_each(|entry| self.discharge(entry));
        }
        if !self.charge(message.len() + MESSAGE_BYTES, Some(id)) {
            self.lose_newest(id, now);
            return false;
        }
        let stream = &mut self.streams[id as usize];
        let entry = Entry {
            message: Message::clone(message),
            stored_at: now,
        };
        stream.ring.add(entry, messages_max);
        self.totals.messages += 1;
        if !stream.is_keeping {
            stream.is_keeping = true;
            self.lists[stream.class as usize].keeping.add(now, id);
        }
        true
    }

    fn lose_newest(&mut self, id: u32, now: Millis) {
        self.totals.evicted_messages += 1;
        while self.remove_message(id, Cause::Memory) {}
        self.streams[id as usize].lost_until = now;
    }

    /// Removes the oldest message of a stream. False: it has none.
    fn remove_message(&mut self, id: u32, cause: Cause) -> bool {
        let stream = &mut self.streams[id as usize];
        let Some(entry) = stream.ring.remove_oldest() else {
            return false;
        };
        if cause == Cause::Memory {
            stream.lost_until = entry.stored_at;
            self.totals.evicted_messages += 1;
        }
        self.discharge(entry);
        true
    }

    /// A message is not kept any more. Its bytes stay charged while somebody else has it.
    fn discharge(&mut self, entry: Entry) {
        self.totals.messages -= 1;
        if let Some(message) = self.lent.add_if_used(entry.message) {
            self.release(message.len() + MESSAGE_BYTES);
        }
    }

    /// Looks at some of the messages that are not kept any more and releases those that nobody has.
    fn take_back(&mut self, looks_max: usize) {
        for _ in 0..looks_max.min(self.lent.len()) {
            if let Some(message) = self.lent.take_unused() {
                self.release(message.len() + MESSAGE_BYTES);
            }
        }
    }

    /// Charges bytes, and removes what is oldest for them if necessary, but never the stream `spared`. False: there is not
    /// enough that could be removed. Nothing is removed for what is larger than all that the shard holds.
    fn charge(&mut self, bytes: usize, spared: Option<u32>) -> bool {
        let mut steps_left = match bytes > self.totals.held_bytes {
            true => 0,
            false => EVICTIONS_PER_MESSAGE_MAX,
        };
        while !self.budget.try_charge(bytes) {
            self.take_back(LENT_PER_MESSAGE);
            if steps_left == 0 || !self.evict(spared) {
                return false;
            }
            steps_left -= 1;
        }
        self.totals.held_bytes += bytes;
        true
    }

    fn release(&mut self, bytes: usize) {
        self.budget.release(bytes);
        self.totals.held_bytes -= bytes;
    }

    /// Removes what is oldest. False: there is nothing.
    fn evict(&mut self, spared: Option<u32>) -> bool {
        let lists = self.lists.iter().enumerate();
        let oldest = lists.flat_map(|(class, lists)| {
            let time = |ages: &Ages| Some(ages.oldest()?.0);
            let keeping = time(&lists.keeping).map(|time| (time, class, List::Keeping));
            let idle = time(&lists.idle).map(|time| (time, class, List::Idle));
            keeping.into_iter().chain(idle)
        });
        let Some((_, class, list)) = oldest.min_by_key(|(time, ..)| *time) else {
            return false;
        };
        self.remove_oldest(class, list, Cause::Memory, spared);
        true
    }

    /// Removes what is oldest in a list, or corrects the time that the list has for it.
    fn remove_oldest(&mut self, class: usize, list: List, cause: Cause, spared: Option<u32>) {
        match list {
            List::Keeping => self.remove_oldest_message(class, cause),
            List::Idle => self.forget_oldest_stream(class, cause, spared),
        }
    }

    fn remove_oldest_message(&mut self, class: usize, cause: Cause) {
        let Some((time, id)) = self.lists[class].keeping.oldest() else {
            return;
        };
        let oldest = self.streams[id as usize].ring.oldest();
        if oldest.is_some_and(|oldest| oldest.stored_at <= time) {
            self.remove_message(id, cause);
        }
        let stream = &mut self.streams[id as usize];
        let list = &mut self.lists[class].keeping;
        match stream.ring.oldest() {
            Some(next) => list.renew_oldest(next.stored_at),
            None => {
                stream.is_keeping = false;
                list.remove_oldest();
                self.begin_idle(id);
            }
        }
    }

    fn forget_oldest_stream(&mut self, class: usize, cause: Cause, spared: Option<u32>) {
        let list = &mut self.lists[class].idle;
        let Some((time, id)) = list.oldest() else {
            return;
        };
        let stream = &mut self.streams[id as usize];
        if stream.is_keeping || spared == Some(id) {
            stream.is_idle = false;
            list.remove_oldest();
        } else if stream.used_at > time {
            list.renew_oldest(stream.used_at);
        } else {
            list.remove_oldest();
            self.forget(id, cause);
        }
    }

    fn forget(&mut self, id: u32, cause: Cause) {
        let stream = self.streams.remove(id as usize);
        self.index.remove(stream.hash, id);
        self.lost_until = self.lost_until.max(stream.lost_until);
        self.release(stream_bytes(&stream.name));
        if cause == Cause::Memory {
            self.totals.evicted_streams += 1;
        }
    }

    /// Puts a stream without messages among those that are forgotten after a while.
    fn begin_idle(&mut self, id: u32) {
        let stream = &mut self.streams[id as usize];
        if !stream.is_idle {
            stream.is_idle = true;
            let list = &mut self.lists[stream.class as usize].idle;
            list.add(stream.used_at, id);
        }
    }

    /// Frees memory after much has been removed.
    fn shrink(&mut self) {
        for lists in &mut self.lists {
            lists.keeping.shrink();
            lists.idle.shrink();
        }
        let streams = &self.streams;
        self.index.shrink(|id| streams[id as usize].hash);
        if self.streams.is_empty() {
            self.streams = Slab::new();
        }
        self.lent.shrink();
    }
}

impl Stream {
    fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            offset: self.last,
        }
    }

    fn newest(&self, count: usize) -> Part {
        Part::new(self.ring.newest(count), self.position())
    }
}

fn stream_bytes(name: &str) -> usize {
    name.len() + STREAM_BYTES
}
