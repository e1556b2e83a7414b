//! The connections of a shard by slot, and what refers to them: the reactor, the timers, the schedule.
//!
//! Nothing here decides about a session. A slot is reused when its connection is gone. Code that keeps a slot for longer
//! than a turn keeps the generation with it and checks both again.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use slab::Slab;

use super::common::Common;
use super::connection::{Connection, Life};
use super::formats::Encoding;
use super::identities::Identities;
use super::polls::Polls;
use super::readers::OpenReading;
use super::schedule::{Place, Schedule};
use super::waiting::{BrokerWait, OpenQuestion, Replay};
use crate::mesh::SessionRef;
use crate::reactor::{GENERATION_MASK, Reactor, Readiness, Token};
use crate::session::Tick;
use crate::shard::timers::{TICK, TimerWheel};

/// Harvests of kernel events in one turn at most: a client may cause thousands of events.
const HARVESTS_PER_TURN_MAX: usize = 4;

pub(super) struct Table {
    common: Rc<Common>,
    pub connections: Slab<Connection>,
    pub identities: Identities,
    pub polls: Polls,
    last_generation: u32,
    /// Sessions that have not ended.
    pub open_sessions: usize,
    pub reactor: Reactor,
    events: Vec<Readiness>,
    more_events: bool,
    /// The sessions that have something to do.
    pub schedule: Schedule,
    pub wheel: TimerWheel,
    pub now: Tick,
    /// The same as an instant, for times that are not counted in ticks.
    pub instant: Instant,
    /// Deadline for a write that blocks in this turn.
    pub write_deadline: Tick,
}

impl Table {
    pub fn new(common: Rc<Common>, hasher: RandomState, reactor: Reactor, now: Instant) -> Self {
        Self {
            polls: Polls::new(common.config.poll.as_ref()),
            common,
            connections: Slab::new(),
            identities: Identities::new(hasher),
            last_generation: 0,
            open_sessions: 0,
            reactor,
            events: Vec::new(),
            more_events: false,
            schedule: Schedule::default(),
            // Tick 0 means "no deadline", so the wheel starts one tick in the past.
            wheel: TimerWheel::new(now.checked_sub(TICK).unwrap_or(now)),
            now: 1,
            instant: now,
            write_deadline: 1,
        }
    }

    /// Begins a turn.
    pub fn set_now(&mut self, now: Instant) {
        self.now = self.wheel.tick_of(now);
        self.instant = now;
        self.write_deadline = self
            .wheel
            .deadline(now, self.common.config.websocket.write_timeout);
    }

    /// The time of the turn, as the wheel counts it.
    pub fn time(&self) -> Duration {
        TICK * self.now
    }

    /// True when a session can be served at once, without a wake-up.
    pub fn has_work(&self) -> bool {
        self.more_events || !self.schedule.is_empty()
    }

    pub fn sid(&self, slot: u32) -> &str {
        self.connections
            .get(slot as usize)
            .map_or("", |connection| connection.session.sid())
    }

    pub fn token(&self, slot: u32) -> Token {
        Token {
            slot,
            generation: self.connections[slot as usize].generation,
        }
    }

    pub fn session_ref(&self, slot: u32) -> SessionRef {
        SessionRef {
            shard: self.common.shard,
            slot,
            generation: self.connections[slot as usize].generation,
        }
    }

    pub fn slot_of(&self, token: Token) -> Option<u32> {
        let connection = self.connections.get(token.slot as usize)?;
        (connection.generation == token.generation).then_some(token.slot)
    }

    /// The connection that `session` refers to, if this very one is still open.
    pub fn live(&self, session: SessionRef) -> Option<&Connection> {
        let connection = self.connections.get(session.slot as usize)?;
        (connection.generation == session.generation && connection.is_open()).then_some(connection)
    }

    /// As [`Self::live`], but mutable.
    pub fn live_mut(&mut self, session: SessionRef) -> Option<&mut Connection> {
        self.live(session)?;
        self.connections.get_mut(session.slot as usize)
    }

    /// What a session waits for from the broker; `None` when it waits for nothing or has ended.
    pub fn broker_wait(&mut self, slot: u32) -> Option<&mut BrokerWait> {
        let connection = self.connections.get_mut(slot as usize)?;
        let held = connection
            .held
            .as_mut()
            .filter(|_| matches!(connection.life, Life::Opening | Life::Open))?;
        held.broker.as_deref_mut()
    }

    /// Takes out the question that a session waits for.
    pub fn take_open_question(&mut self, slot: u32) -> Option<OpenQuestion> {
        self.broker_wait(slot)?.open.take()
    }

    /// Takes out what is being replayed to a session. Another question stays open.
    pub fn take_replay(&mut self, slot: u32) -> Option<Replay> {
        let wait = self.broker_wait(slot)?;
        match wait.open.take()? {
            OpenQuestion::Replay(replay) => Some(replay),
            other => {
                wait.open = Some(other);
                None
            }
        }
    }

    /// What the client reads, when it is a reader of a durable stream.
    pub fn reading(&mut self, slot: u32) -> Option<&mut OpenReading> {
        let connection = self.connections.get_mut(slot as usize)?;
        connection.held.as_mut()?.reading.as_deref_mut()
    }

    /// Puts a question back that has not been answered completely, unless the session has ended meanwhile.
    pub fn put_open_question(&mut self, slot: u32, question: OpenQuestion) {
        if let Some(wait) = self.broker_wait(slot) {
            wait.open = Some(question);
        }
    }

    /// Gives a new connection its slot and its generation.
    pub fn insert(&mut self, connection: Connection) -> u32 {
        self.last_generation = (self.last_generation + 1) & GENERATION_MASK;
        self.common.budget.charge(connection.charged_bytes());
        self.common.counters().sessions_num.add(1);
        self.open_sessions += 1;
        let slot = self.connections.insert(Connection {
            generation: self.last_generation,
            ..connection
        }) as u32;
        self.identities.make_room(slot);
        slot
    }

    /// Makes the reactor report events of a connection.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn watch(&mut self, slot: u32) -> io::Result<()> {
        let token = self.token(slot);
        let socket = self.connections[slot as usize].socket.as_ref();
        match socket.or_else(|| self.polls.socket(slot)) {
            Some(socket) => self.reactor.add(socket.as_fd(), token),
            None => Ok(()),
        }
    }

    /// Takes the events of the poll that waits away from the reactor.
    pub fn unwatch_poll(&mut self, slot: u32) {
        let token = self.token(slot);
        if let Some(socket) = self.polls.socket(slot) {
            self.reactor.remove(socket.as_fd(), token, false);
        }
    }

    /// Makes the reactor report when a socket has room again.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn watch_write(&mut self, slot: u32) -> io::Result<()> {
        let token = self.token(slot);
        let connection = &mut self.connections[slot as usize];
        if let Some(socket) = &connection.socket
            && !connection.write_watched
        {
            self.reactor.watch_write(socket.as_fd(), token)?;
            connection.write_watched = true;
        }
        Ok(())
    }

    /// Arms polls again that the kernel has ended. Returns the connections for which this fails.
    pub fn rearm(&mut self) -> Vec<u32> {
        let mut unwatched = Vec::new();
        for token in self.reactor.take_ended() {
            if let Some(slot) = self.slot_of(token)
                && self.connections[slot as usize].life != Life::Closing
                && self.watch(slot).is_err()
            {
                unwatched.push(slot);
            }
        }
        unwatched
    }

    /// Removes a connection and closes its socket. Its session has ended before.
    pub fn remove(&mut self, slot: u32) {
        let token = self.token(slot);
        self.wheel.clear(slot);
        let connection = self.connections.remove(slot as usize);
        let counters = self.common.counters();
        counters.sessions_num.sub(1);
        self.common.budget.release(connection.charged_bytes());
        if let Some(outbox) = &connection.outbox {
            counters.outbox_bytes.sub(outbox.pending_bytes() as i64);
        }
        let poll = self.polls.remove(slot);
        let socket = connection.socket.as_ref();
        if let Some(socket) = socket.or(poll.as_ref().map(|poll| &poll.socket)) {
            self.reactor
                .remove(socket.as_fd(), token, connection.write_watched);
            // The armed poll keeps the file open for a moment. Without the shutdown the client would see the end only after
            // that.
            let _ = socket.shutdown(Shutdown::Both);
        }
        if self.connections.is_empty() {
            // Frees what is stored for each slot, too.
            self.connections.shrink_to_fit();
            self.identities.clear();
            self.wheel.forget_slots();
        }
    }

    /// Sets the timer of a connection to its earliest deadline.
    pub fn set_timer(&mut self, slot: u32) {
        match self.next_deadline(slot) {
            Some(tick) => self.wheel.set(slot, tick),
            None => self.wheel.clear(slot),
        }
    }

    fn next_deadline(&self, slot: u32) -> Option<Tick> {
        let connection = &self.connections[slot as usize];
        if connection.format.encoding == Encoding::LINES {
            let since = connection.outbox.as_ref().map(|outbox| outbox.progress);
            return self.polls.next_look(slot, since);
        }
        let write = connection.outbox.as_ref().and_then(|outbox| {
            match connection.life {
                // Nothing is written before the answer.
                Life::Opening => None,
                Life::Open => Some(self.common.bounds.next_look(outbox)),
                Life::Closing | Life::Lingering => Some(outbox.deadline),
            }
        });
        let session = if connection.is_open() {
            connection.session.deadlines.next()
        } else {
            None
        };
        write.into_iter().chain(session).min()
    }

    /// Takes the reactor's events, as far as one turn may, and schedules the sessions that have something new.
    ///
    /// # Errors
    /// A broken reactor.
    pub fn take_events(&mut self) -> io::Result<()> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        for _ in 0..HARVESTS_PER_TURN_MAX {
            self.more_events = self.reactor.harvest(&mut events)?;
            for event in events.drain(..) {
                self.on_event(event);
            }
            if !self.more_events {
                break;
            }
        }
        self.events = events;
        let counts = self.reactor.take_counts();
        let counters = self.common.counters();
        counters.cq_overflows_total.add(counts.overflows);
        counters.poll_rearms_total.add(counts.rearms);
        Ok(())
    }

    /// Notes what an event says. A session with many events is served once in a turn.
    fn on_event(&mut self, event: Readiness) {
        let Some(slot) = self.slot_of(event.token) else {
            self.common.counters().stale_events_total.add(1);
            return;
        };
        let connection = &mut self.connections[slot as usize];
        if event.writable {
            connection.write_watched = false;
            connection.write_ready = true;
        }
        connection.input_waiting |= event.readable || event.closed;
        connection.end_seen |= event.closed;
        match std::mem::replace(&mut connection.place, Place::Scheduled) {
            Place::Resting => self.schedule.push_fresh(event.token),
            Place::Greedy => self.schedule.push_unfinished(event.token),
            Place::Scheduled => {}
        }
    }

    /// Puts a session that can be served again at the end of the queue.
    pub fn schedule_rest(&mut self, slot: u32) {
        let token = self.token(slot);
        let connection = &mut self.connections[slot as usize];
        if connection.is_ready(&self.common.bounds) && connection.place != Place::Scheduled {
            connection.place = Place::Scheduled;
            self.schedule.push_unfinished(token);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::shard::sessions::tests::parts::Parts;

    #[test]
    fn what_refers_to_an_ended_connection_does_not_find_the_next_one_in_its_slot() {
        Parts::on_both(&[], |parts| {
            let (slot, _client) = parts.connect();
            let (token, session) = (parts.table.token(slot), parts.table.session_ref(slot));
            assert_eq!(parts.table.slot_of(token), Some(slot));
            assert!(parts.table.live(session).is_some());
            parts.table.remove(slot);
            let (next, _client) = parts.connect();
            assert_eq!(next, slot);
            assert_eq!(parts.table.slot_of(token), None);
            assert!(parts.table.live_mut(session).is_none());
            // A session that is being closed has its slot, but is not live.
            let (token, session) = (parts.table.token(slot), parts.table.session_ref(slot));
            parts.connection(slot).life = Life::Closing;
            assert_eq!(parts.table.slot_of(token), Some(slot));
            assert!(parts.table.live(session).is_none());
        });
    }

    #[test]
    fn removal_gives_everything_back_and_ends_the_connection_at_once() {
        Parts::on_both(&[], |parts| {
            let before = parts.common.budget.used_bytes();
            let (slot, mut client) = parts.connect();
            assert!(parts.common.budget.used_bytes() > before);
            assert_eq!(parts.counters().sessions_num.value(), 1);
            parts.table.remove(slot);
            assert_eq!(parts.common.budget.used_bytes(), before);
            assert_eq!(parts.counters().sessions_num.value(), 0);
            // The reactor has not been flushed, so an armed poll may still hold the file open.
            assert_eq!(client.read(&mut [0; 1]).expect("the end"), 0);
        });
    }

    #[test]
    fn a_session_is_scheduled_once_behind_the_others_after_it_used_up_its_share() {
        Parts::on_both(&[], |parts| {
            let (fresh, mut client) = parts.connect();
            let (greedy, mut other) = parts.connect();
            parts.connection(greedy).place = Place::Greedy;
            for _ in 0..2 {
                client.write_all(b"x").expect("write");
                other.write_all(b"x").expect("write");
                parts.take_events_until(|table| {
                    [fresh, greedy]
                        .iter()
                        .all(|&slot| table.connections[slot as usize].input_waiting)
                });
                parts.connection(fresh).input_waiting = false;
                parts.connection(greedy).input_waiting = false;
            }
            let token = |parts: &Parts, slot| Some(parts.table.token(slot));
            assert_eq!(parts.table.schedule.pop_fresh(), token(parts, fresh));
            assert_eq!(parts.table.schedule.pop_unfinished(), token(parts, greedy));
            assert!(parts.table.schedule.is_empty());
        });
    }

    #[test]
    fn an_event_that_comes_too_late_is_counted_and_dropped() {
        Parts::on_both(&[], |parts| {
            let (slot, _client) = parts.connect();
            let token = parts.table.token(slot);
            parts.table.remove(slot);
            let (_, _client) = parts.connect();
            parts.table.on_event(Readiness {
                token,
                readable: true,
                writable: true,
                closed: true,
            });
            assert_eq!(parts.counters().stale_events_total.value(), 1);
            assert!(parts.table.schedule.is_empty() && !parts.connection(slot).end_seen);
        });
    }
}
