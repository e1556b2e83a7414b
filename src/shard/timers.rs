//! One timing wheel per shard for everything that sessions wait for: pings, pongs and write deadlines.
//!
//! A session is in the wheel at most once, at its earliest deadline. When it comes up, the caller decides what is due. The
//! links are 8 bytes per slot in an array of their own: there is no timer object and no allocation per session.

use std::time::{Duration, Instant};

use crate::session::Tick;

/// Length of one tick, and so the precision of every deadline of a session.
pub const TICK: Duration = Duration::from_millis(50);
/// Buckets of the wheel. A deadline further away than `BUCKETS` ticks (25.6 s) comes up early and is put back.
const BUCKETS: usize = 512;
/// "No slot": the end of a list.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

const UNLINKED: Link = Link {
    previous: NONE,
    next: NONE,
};

/// The wheel. Slots are those of the session table.
pub struct TimerWheel {
    start: Instant,
    /// The next tick to be handled.
    next_tick: Tick,
    /// No slot is in the wheel for an earlier tick; [`NEVER`]: none is in it.
    earliest: Tick,
    heads: Box<[u32]>,
    links: Vec<Link>,
    /// Bucket of each slot, needed to take it out; [`NO_BUCKET`] = not in the wheel.
    buckets: Vec<u16>,
}

const NO_BUCKET: u16 = u16::MAX;
/// After 6.8 years of a shard.
const NEVER: Tick = Tick::MAX;

impl TimerWheel {
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            next_tick: 0,
            earliest: NEVER,
            heads: vec![NONE; BUCKETS].into(),
            links: Vec::new(),
            buckets: Vec::new(),
        }
    }

    /// The tick that `at` falls into.
    pub fn tick_of(&self, at: Instant) -> Tick {
        (at.saturating_duration_since(self.start).as_millis() / TICK.as_millis()) as Tick
    }

    /// The tick at which a wait of `duration` from `now` is over: never early, one tick late at most.
    pub fn deadline(&self, now: Instant, duration: Duration) -> Tick {
        self.tick_of(now + duration) + 1
    }

    /// When the next tick starts.
    pub fn next_instant(&self) -> Instant {
        self.start + TICK * self.next_tick
    }

    /// When [`Self::expire`] may find a slot; `None` when the wheel is empty.
    pub fn earliest_instant(&self) -> Option<Instant> {
        (self.earliest != NEVER).then(|| self.start + TICK * self.earliest)
    }

    /// Puts a slot in at `tick`, or moves it there when it is in already.
    pub fn set(&mut self, slot: u32, tick: Tick) {
        self.clear(slot);
        let index = slot as usize;
        if self.links.len() <= index {
            self.links.resize(index + 1, UNLINKED);
            self.buckets.resize(index + 1, NO_BUCKET);
        }
        let tick = tick.max(self.next_tick);
        self.earliest = self.earliest.min(tick);
        let bucket = tick as usize % BUCKETS;
        let head = self.heads[bucket];
        self.links[index] = Link {
            previous: NONE,
            next: head,
        };
        if head != NONE {
            self.links[head as usize].previous = slot;
        }
        self.heads[bucket] = slot;
        self.buckets[index] = bucket as u16;
    }

    /// Takes a slot out, if it is in the wheel.
    pub fn clear(&mut self, slot: u32) {
        let index = slot as usize;
        let bucket = match self.buckets.get_mut(index) {
            Some(bucket) if *bucket != NO_BUCKET => std::mem::replace(bucket, NO_BUCKET) as usize,
            _ => return,
        };
        let Link { previous, next } = std::mem::replace(&mut self.links[index], UNLINKED);
        match previous {
            NONE => self.heads[bucket] = next,
            _ => self.links[previous as usize].next = next,
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
    }

    /// Frees the memory for the slots. Call when no slot is in the wheel.
    ///
    /// # Panics
    /// When a slot is in the wheel.
    pub fn forget_slots(&mut self) {
        assert!(
            self.heads.iter().all(|&head| head == NONE),
            "no slot is in the wheel"
        );
        self.links = Vec::new();
        self.buckets = Vec::new();
    }

    /// Takes out the slots of every tick up to and including `now`. They include slots whose deadline is further away than
    /// the wheel is long: the caller checks the deadline and sets them again.
    pub fn expire(&mut self, now: Tick, due: &mut Vec<u32>) {
        // After a stall longer than the wheel every bucket comes up once, not once per missed round.
        let first = self.next_tick.max(now.saturating_sub(BUCKETS as Tick - 1));
        for tick in first..=now {
            let mut slot = self.heads[tick as usize % BUCKETS];
            while slot != NONE {
                due.push(slot);
                slot = self.links[slot as usize].next;
            }
        }
        for &slot in due.iter() {
            self.clear(slot);
        }
        self.next_tick = self.next_tick.max(now + 1);
        let mut ticks = self.next_tick..self.next_tick + BUCKETS as Tick;
        let occupied = ticks.find(|&tick| self.heads[tick as usize % BUCKETS] != NONE);
        self.earliest = occupied.unwrap_or(NEVER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expire(wheel: &mut TimerWheel, now: Tick) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.expire(now, &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn slots_come_up_at_their_tick_once() {
        let mut wheel = TimerWheel::new(Instant::now());
        wheel.set(1, 3);
        wheel.set(2, 3);
        wheel.set(3, 5);
        assert!(expire(&mut wheel, 2).is_empty());
        assert_eq!(expire(&mut wheel, 3), [1, 2]);
        assert_eq!(expire(&mut wheel, 6), [3]);
        assert!(expire(&mut wheel, 2000).is_empty());
    }

    #[test]
    fn a_slot_can_be_moved_and_taken_out() {
        let mut wheel = TimerWheel::new(Instant::now());
        for slot in 0..3 {
            wheel.set(slot, 4);
        }
        wheel.set(1, 9);
        wheel.clear(2);
        wheel.clear(77);
        assert_eq!(expire(&mut wheel, 5), [0]);
        assert_eq!(expire(&mut wheel, 9), [1]);
    }

    #[test]
    fn a_deadline_in_the_past_comes_up_at_the_next_tick() {
        let mut wheel = TimerWheel::new(Instant::now());
        expire(&mut wheel, 100);
        wheel.set(1, 3);
        assert_eq!(expire(&mut wheel, 101), [1]);
    }

    #[test]
    fn the_shard_sleeps_until_a_slot_may_come_up() {
        let start = Instant::now();
        let mut wheel = TimerWheel::new(start);
        let at = |tick: Tick| Some(start + TICK * tick);
        assert_eq!(wheel.earliest_instant(), None);
        wheel.set(1, 900);
        assert_eq!(wheel.earliest_instant(), at(900));
        wheel.set(2, 7);
        wheel.set(3, 70);
        assert_eq!(wheel.earliest_instant(), at(7));
        assert_eq!(expire(&mut wheel, 7), [2]);
        assert_eq!(wheel.earliest_instant(), at(70));
        assert_eq!(expire(&mut wheel, 70), [3]);
        // The bucket of tick 900 comes up once before.
        assert_eq!(wheel.earliest_instant(), at(900 - BUCKETS as Tick));
        wheel.clear(1);
        assert!(expire(&mut wheel, 400).is_empty());
        assert_eq!(wheel.earliest_instant(), None);
    }

    #[test]
    fn a_long_stall_brings_every_slot_up_once() {
        let mut wheel = TimerWheel::new(Instant::now());
        for slot in 0..1000 {
            wheel.set(slot, slot);
        }
        assert_eq!(expire(&mut wheel, 100_000), (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn deadlines_are_never_early() {
        let start = Instant::now();
        let wheel = TimerWheel::new(start);
        let deadline = wheel.deadline(start, Duration::from_millis(120));
        assert!(start + TICK * deadline >= start + Duration::from_millis(120));
    }
}
