//! Who is present in the streams that are at home on this shard.
//!
//! A stream has members: an id with an info. A session joins a stream under one id; several sessions may have the same id,
//! and the member leaves with the last of them. Every change returns what the listeners of the stream are to be told.
//!
//! A session of the extended protocol is kept alive by its connection: it has no deadline until it has ended. Others expire
//! some time after their first join, connected or not, as in the reference. A session has one deadline for all its streams
//! here.
//!
//! Source: `contract/extended.md` §7.

use std::time::{Duration, Instant};

use ahash::RandomState;
use bytes::Bytes;
use slab::Slab;
use thiserror::Error;

use super::Budget;
use super::expiry::{Expiring, Expiry, Links};
use super::index::{Index, entry_bytes, insert};
use crate::hub::{Interner, TextId};
use crate::protocol::presence::{PresenceEvent, PresenceRecord, RECORD_BYTES, info_message};

mod places;

use places::{PLACE_BYTES, Place, Places};

/// Longest id of a member. Ids are compared with each join and sent with each leave; a database key or a UUID has less than
/// 40 bytes.
pub const PRESENCE_ID_BYTES_MAX: usize = 1 << 10;
/// Longest info of a member: what a client can send in one message with the default options. The app may send more in an
/// answer, and each of the others would get it.
pub const PRESENCE_INFO_BYTES_MAX: usize = 64 << 10;
/// Longest answer about one stream. It is half of what one session may hold with the default options, so that a question
/// about a large stream does not end the session of the client that asks.
pub const PRESENCE_ANSWER_BYTES_MAX: usize = 8 << 20;

/// "No member".
const NONE: u32 = u32::MAX;

/// Memory of a stream beside its name: an interned text, and the head of its list of members.
const STREAM_BYTES: usize = 64;
/// Memory of a member beside its id and info: its entry, and what the allocator adds to its text.
const MEMBER_BYTES: usize = entry_bytes::<Member>() + 20;
/// The same of a session beside its sid.
const ATTENDANCE_BYTES: usize = entry_bytes::<Attendance>() + 24;

/// A presence id in one stream.
struct Member {
    /// The id, and the info if there is one.
    text: Box<str>,
    id_bytes: u32,
    stream: TextId,
    /// The neighbours in the list of the stream's members.
    previous: u32,
    next: u32,
    /// Sessions that have joined under this id; never 0.
    sessions: u32,
}

const _: () = assert!(size_of::<Member>() <= 40);

impl Member {
    fn id(&self) -> &str {
        &self.text[..self.id_bytes as usize]
    }

    fn record(&self) -> PresenceRecord<'_> {
        let (id, info) = self.text.split_at(self.id_bytes as usize);
        PresenceRecord {
            id,
            info: (!info.is_empty()).then_some(info),
        }
    }
}

/// What one session has joined.
struct Attendance {
    sid: Box<str>,
    places: Places,
    /// Has no deadline while the session is kept alive by its connection.
    links: Links,
}

const _: () = assert!(size_of::<Attendance>() <= 48);

impl Expiring for Attendance {
    fn links(&self) -> &Links {
        &self.links
    }

    fn links_mut(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// The members of one stream.
#[derive(Clone, Copy)]
struct StreamMembers {
    first: u32,
    count: u32,
    /// Bytes of their texts.
    text_bytes: usize,
}

const NO_MEMBERS: StreamMembers = StreamMembers {
    first: NONE,
    count: 0,
    text_bytes: 0,
};

/// What a session's presence depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// The session is present as long as it is connected, and `presence_ttl` longer.
    Connected,
    /// The session is present for `presence_ttl` after its first join.
    Expiring,
}

/// A session wants to be present in a stream.
#[derive(Debug, Clone, Copy)]
pub struct Join<'a> {
    pub stream: &'a str,
    pub sid: &'a str,
    /// The id and the info. An info of `null` is none.
    pub record: PresenceRecord<'a>,
    pub stay: Stay,
}

/// Why a join changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum JoinRefusal {
    #[error("the session is present in this stream under another id")]
    OtherId,
    #[error("a presence id of {0} bytes, at most {PRESENCE_ID_BYTES_MAX}")]
    LongId(usize),
    #[error("a presence info of {0} bytes, at most {PRESENCE_INFO_BYTES_MAX}")]
    LongInfo(usize),
    #[error("no memory is left for presence")]
    NoMemory,
}

/// A leave changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the session is not present in this stream")]
pub struct NotPresent;

/// The records of a stream do not fit into one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an answer of about {0} bytes, at most {PRESENCE_ANSWER_BYTES_MAX}")]
pub struct LongAnswer(usize);

/// A member that has left, with its last session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Departure {
    pub stream: Box<str>,
    pub id: Box<str>,
}

impl Departure {
    /// What the listeners of the stream are to be told.
    pub fn event(&self) -> PresenceEvent<'_> {
        PresenceEvent::Leave { id: &self.id }
    }
}

/// The presence of all streams at home on one shard.
pub struct PresenceTable<B> {
    budget: B,
    streams: Interner,
    /// By the stream's index.
    stream_members: Vec<StreamMembers>,
    members: Slab<Member>,
    member_index: Index,
    attendances: Slab<Attendance>,
    sid_index: Index,
    hasher: RandomState,
    expiry: Expiry,
    totals: PresenceTotals,
}

/// Figures of the presence of one shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PresenceTotals {
    /// Streams with at least one member.
    pub streams: usize,
    /// Members of all streams.
    pub members: usize,
    /// Bytes that are charged.
    pub held_bytes: usize,
    /// Joins that were refused because there was no memory, since the start.
    pub refused_joins: u64,
}

impl<B: Budget> PresenceTable<B> {
    /// Every byte will be charged to `budget`. No time that is given later may be earlier than `start`.
    pub fn new(budget: B, ttl: Duration, start: Instant) -> Self {
        Self {
            budget,
            streams: Interner::default(),
            stream_members: Vec::new(),
            members: Slab::new(),
            member_index: Index::default(),
            attendances: Slab::new(),
            sid_index: Index::default(),
            hasher: RandomState::default(),
            expiry: Expiry::new(ttl, start),
            totals: PresenceTotals::default(),
        }
    }

    pub fn totals(&self) -> PresenceTotals {
        PresenceTotals {
            streams: self.streams.len(),
            members: self.members.len(),
            ..self.totals
        }
    }

    /// A session joins a stream, or joins again: then the info is replaced. Returns the event of a member that was not
    /// there before.
    ///
    /// # Errors
    /// [`JoinRefusal`]; nothing has changed then.
    pub fn join<'a>(
        &mut self,
        join: &Join<'a>,
        now: Instant,
    ) -> Result<Option<PresenceEvent<'a>>, JoinRefusal> {
        let record = checked(join.record)?;
        let found = self.find(join);
        if found
            .place
            .is_some_and(|it| Some(it.member) != found.member)
        {
            return Err(JoinRefusal::OtherId);
        }
        let bytes = self.join_bytes(join, &record, &found);
        if !self.budget.try_charge(bytes) {
            self.totals.refused_joins += 1;
            return Err(JoinRefusal::NoMemory);
        }
        self.totals.held_bytes += bytes;
        let member = match found.member {
            Some(member) => {
                self.replace_info(member, &record);
                member
            }
            None => self.insert_member(join.stream, &record),
        };
        let attendance = match found.place {
            Some(_) => found.attendance.expect("a place is in an attendance"),
            None => self.attend(join.sid, member, found.attendance),
        };
        self.set_stay(attendance, join.stay, found.attendance.is_none(), now);
        Ok((found.member.is_none()).then_some(PresenceEvent::Join(record)))
    }

    /// A session leaves a stream. Returns its member if that has left with it.
    ///
    /// # Errors
    /// [`NotPresent`] when the session has not joined.
    pub fn leave(&mut self, stream: &str, sid: &str) -> Result<Option<Departure>, NotPresent> {
        let attendance = self.find_attendance(sid).ok_or(NotPresent)?;
        let stream = self.streams.find(stream).ok_or(NotPresent)?;
        let places = &self.attendances[attendance as usize].places;
        let place = places.find(stream).ok_or(NotPresent)?;
        Ok(self.remove_place(attendance, place))
    }

    /// A session has ended. It is present for `presence_ttl` from now on.
    pub fn ended(&mut self, sid: &str, now: Instant) {
        if let Some(attendance) = self.find_attendance(sid) {
            self.expiry.set(&mut self.attendances, attendance, now);
        }
    }

    /// Removes sessions whose time is over, in `steps_max` steps at most, each of which takes about a microsecond. Appends
    /// the members that leave with them. True: there is more to do. Costs nothing for what stays.
    pub fn sweep(
        &mut self,
        now: Instant,
        steps_max: usize,
        departures: &mut Vec<Departure>,
    ) -> bool {
        for _ in 0..steps_max {
            let Some(due) = self.expiry.due(&self.attendances, now) else {
                return false;
            };
            let place = self.attendances[due as usize].places.last();
            departures.extend(self.remove_place(due, place));
        }
        self.expiry.due(&self.attendances, now).is_some()
    }

    /// Members of one stream.
    pub fn total(&self, stream: &str) -> usize {
        self.members_of(stream).map_or(0, |it| it.count as usize)
    }

    /// The members of one stream, in no order.
    pub fn records(&self, stream: &str) -> impl Iterator<Item = PresenceRecord<'_>> {
        let first = self.members_of(stream).map(|it| it.first);
        std::iter::successors(first, |&member| {
            let next = self.members[member as usize].next;
            (next != NONE).then_some(next)
        })
        .map(|member| self.members[member as usize].record())
    }

    /// The answer to a question about one stream: all its records, or only their number.
    ///
    /// # Errors
    /// [`LongAnswer`]: a part of the records would be wrong, so there is no answer.
    pub fn info(&self, stream: &str, with_records: bool) -> Result<Bytes, LongAnswer> {
        let total = self.total(stream);
        if !with_records {
            return Ok(info_message(total, std::iter::empty(), 0));
        }
        let text_bytes = self.members_of(stream).map_or(0, |it| it.text_bytes);
        let bytes = text_bytes + total * RECORD_BYTES;
        if bytes > PRESENCE_ANSWER_BYTES_MAX {
            return Err(LongAnswer(bytes));
        }
        Ok(info_message(total, self.records(stream), text_bytes))
    }

    /// Places of streams with members, from 0 on. Some are empty.
    pub fn places(&self) -> usize {
        self.streams.places()
    }

    /// The stream at a place.
    pub fn name_at(&self, place: usize) -> Option<&str> {
        self.streams.text_at(place)
    }

    fn members_of(&self, stream: &str) -> Option<&StreamMembers> {
        let stream = self.streams.find(stream)?;
        Some(&self.stream_members[stream as usize])
    }

    fn find(&self, join: &Join<'_>) -> Found {
        let stream = self.streams.find(join.stream);
        let attendance = self.find_attendance(join.sid);
        let place = || {
            let places = &self.attendances[attendance? as usize].places;
            places.find(stream?)
        };
        Found {
            stream,
            attendance,
            place: place(),
            member: stream.and_then(|stream| self.find_member(stream, join.record.id)),
        }
    }

    fn find_attendance(&self, sid: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(sid);
        self.sid_index
            .find(hash, |it| &*self.attendances[it as usize].sid == sid)
    }

    fn find_member(&self, stream: TextId, id: &str) -> Option<u32> {
        let is_wanted = |member: u32| {
            let member = &self.members[member as usize];
            member.stream == stream && member.id() == id
        };
        self.member_index
            .find(self.hasher.hash_one((stream, id)), is_wanted)
    }

    /// Bytes that a join adds.
    fn join_bytes(&self, join: &Join<'_>, record: &PresenceRecord<'_>, found: &Found) -> usize {
        let text_bytes = record.id.len() + record.info.map_or(0, str::len);
        let of_stream = match found.stream {
            Some(_) => 0,
            None => STREAM_BYTES + join.stream.len(),
        };
        let of_member = match found.member {
            Some(member) => {
                let old_bytes = self.members[member as usize].text.len();
                text_bytes.saturating_sub(old_bytes)
            }
            None => MEMBER_BYTES + text_bytes,
        };
        let of_session = match (found.attendance, found.place) {
            (None, _) => ATTENDANCE_BYTES + join.sid.len(),
            (Some(_), None) => PLACE_BYTES,
            (Some(_), Some(_)) => 0,
        };
        of_stream + of_member + of_session
    }

    fn release(&mut self, bytes: usize) {
        self.totals.held_bytes -= bytes;
        self.budget.release(bytes);
    }

    /// Adds a member of no session yet.
    fn insert_member(&mut self, stream: &str, record: &PresenceRecord<'_>) -> u32 {
        let (stream, new) = self.streams.acquire(stream);
        if new.is_some() {
            self.add_stream(stream);
        }
        let text: Box<str> = [record.id, record.info.unwrap_or("")].concat().into();
        let of_stream = &mut self.stream_members[stream as usize];
        of_stream.text_bytes += text.len();
        of_stream.count += 1;
        let next = of_stream.first;
        let member = insert(
            &mut self.members,
            Member {
                text,
                id_bytes: record.id.len() as u32,
                stream,
                previous: NONE,
                next,
                sessions: 0,
            },
        );
        of_stream.first = member;
        if let Some(next) = self.members.get_mut(next as usize) {
            next.previous = member;
        }
        let (members, hasher) = (&self.members, &self.hasher);
        let hash_of = |it: u32| hash_of_member(hasher, &members[it as usize]);
        self.member_index.insert(hash_of(member), member, hash_of);
        member
    }

    fn add_stream(&mut self, stream: TextId) {
        let stream = stream as usize;
        if self.stream_members.len() <= stream {
            self.stream_members.resize(stream + 1, NO_MEMBERS);
        }
        self.stream_members[stream] = NO_MEMBERS;
    }

    fn replace_info(&mut self, member: u32, record: &PresenceRecord<'_>) {
        let member = &mut self.members[member as usize];
        if member.record() == *record {
            return;
        }
        let old_bytes = member.text.len();
        member.text = [record.id, record.info.unwrap_or("")].concat().into();
        let new_bytes = member.text.len();
        let of_stream = &mut self.stream_members[member.stream as usize];
        of_stream.text_bytes = of_stream.text_bytes - old_bytes + new_bytes;
        self.release(old_bytes.saturating_sub(new_bytes));
    }

    /// Adds a member to what a session has joined. Returns the session's attendance.
    fn attend(&mut self, sid: &str, member: u32, attendance: Option<u32>) -> u32 {
        let joined = &mut self.members[member as usize];
        joined.sessions += 1;
        let stream = joined.stream;
        let place = Place { stream, member };
        if let Some(attendance) = attendance {
            self.attendances[attendance as usize].places.insert(place);
            return attendance;
        }
        let attendance = insert(
            &mut self.attendances,
            Attendance {
                sid: sid.into(),
                places: Places::One(place),
                links: Links::default(),
            },
        );
        let (attendances, hasher) = (&self.attendances, &self.hasher);
        let hash_of = |it: u32| hasher.hash_one(&*attendances[it as usize].sid);
        self.sid_index
            .insert(hash_of(attendance), attendance, hash_of);
        attendance
    }

    /// A connection keeps all that its session has joined alive. Otherwise the first join starts the time, and further ones
    /// do not extend it.
    fn set_stay(&mut self, attendance: u32, stay: Stay, is_first: bool, now: Instant) {
        match stay {
            Stay::Connected => self.expiry.clear(&mut self.attendances, attendance),
            Stay::Expiring if is_first => self.expiry.set(&mut self.attendances, attendance, now),
            Stay::Expiring => {}
        }
    }

    /// A session leaves one of its streams.
    fn remove_place(&mut self, attendance: u32, place: Place) -> Option<Departure> {
        let places = &mut self.attendances[attendance as usize].places;
        if places.remove(place) {
            self.release(PLACE_BYTES);
        } else {
            self.remove_attendance(attendance);
        }
        let member = &mut self.members[place.member as usize];
        member.sessions -= 1;
        let departure = (member.sessions == 0).then(|| self.remove_member(place.member));
        self.shrink();
        departure
    }

    fn remove_attendance(&mut self, attendance: u32) {
        self.expiry.clear(&mut self.attendances, attendance);
        let hash = self
            .hasher
            .hash_one(&*self.attendances[attendance as usize].sid);
        self.sid_index.remove(hash, attendance);
        let removed = self.attendances.remove(attendance as usize);
        self.release(ATTENDANCE_BYTES + removed.sid.len());
    }

    fn remove_member(&mut self, id: u32) -> Departure {
        let hash = hash_of_member(&self.hasher, &self.members[id as usize]);
        self.member_index.remove(hash, id);
        let member = self.members.remove(id as usize);
        if let Some(next) = self.members.get_mut(member.next as usize) {
            next.previous = member.previous;
        }
        let of_stream = &mut self.stream_members[member.stream as usize];
        match self.members.get_mut(member.previous as usize) {
            Some(previous) => previous.next = member.next,
            None => of_stream.first = member.next,
        }
        of_stream.count -= 1;
        of_stream.text_bytes -= member.text.len();
        let departure = Departure {
            stream: self.streams.text(member.stream).into(),
            id: member.id().into(),
        };
        self.release(MEMBER_BYTES + member.text.len());
        if self.streams.release(member.stream).is_some() {
            self.release(STREAM_BYTES + departure.stream.len());
        }
        departure
    }

    /// Frees memory after many have left.
    fn shrink(&mut self) {
        let (members, attendances, hasher) = (&self.members, &self.attendances, &self.hasher);
        self.member_index
            .shrink(|it| hash_of_member(hasher, &members[it as usize]));
        self.sid_index
            .shrink(|it| hasher.hash_one(&*attendances[it as usize].sid));
        self.streams.shrink();
        if self.members.is_empty() {
            self.members = Slab::new();
            self.attendances = Slab::new();
            self.stream_members = Vec::new();
        }
    }
}

/// What a join has to do with.
struct Found {
    stream: Option<TextId>,
    attendance: Option<u32>,
    /// Where the session is in the stream.
    place: Option<Place>,
    member: Option<u32>,
}

/// The record to keep: `null` is no info.
fn checked(record: PresenceRecord<'_>) -> Result<PresenceRecord<'_>, JoinRefusal> {
    let info = record.info.filter(|&info| info != "null");
    if record.id.len() > PRESENCE_ID_BYTES_MAX {
        return Err(JoinRefusal::LongId(record.id.len()));
    }
    match info.map_or(0, str::len) {
        bytes if bytes > PRESENCE_INFO_BYTES_MAX => Err(JoinRefusal::LongInfo(bytes)),
        _ => Ok(PresenceRecord { info, ..record }),
    }
}

fn hash_of_member(hasher: &RandomState, member: &Member) -> u64 {
    hasher.hash_one((member.stream, member.id()))
}

#[cfg(test)]
mod tests;
