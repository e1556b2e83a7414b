//! The steps of the broker for each publication that is stored, and for a client that comes back.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use ringcable::broker::history::{Classes, Epochs, History};
use ringcable::broker::idempotency::SeenKeys;
use ringcable::broker::{Budget, StreamKey};
use ringcable::config::HistoryLimits;
use ringcable::protocol::publication::Message;

use super::Step;

const STREAMS: usize = 10_000;
/// Messages that each stream keeps.
const MESSAGES: usize = 20;
const MESSAGE: [u8; 200] = [b'x'; 200];
/// Seconds since 1970 when the step begins.
const UNIX_NOW: u64 = 1_800_000_000;

/// Counts as a shard does, without a bound.
#[derive(Default)]
struct Unbounded(Cell<usize>);

impl Budget for Unbounded {
    fn try_charge(&self, bytes: usize) -> bool {
        self.0.set(self.0.get() + bytes);
        true
    }

    fn release(&self, bytes: usize) {
        self.0.set(self.0.get() - bytes);
    }
}

/// Any numbers that differ, in all their bits.
fn hash(number: usize) -> u64 {
    (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The stream that the steps use.
const STREAM: usize = STREAMS / 2;

/// All streams with as many messages as they keep.
fn filled(now: Instant) -> History<Unbounded> {
    let limits = HistoryLimits {
        messages: MESSAGES,
        ttl: Duration::from_secs(300),
    };
    let classes = Classes::new(limits, &[]);
    let mut history = History::new(Unbounded::default(), classes, Epochs::new(7, 0, 1), now);
    for number in (0..STREAMS).flat_map(|number| [number; MESSAGES]) {
        let name = format!("room:{number}");
        let stream = StreamKey {
            name: &name,
            hash: hash(number),
        };
        history.append(stream, &Message::from(MESSAGE), now);
    }
    history
}

fn stream(name: &str) -> StreamKey<'_> {
    StreamKey {
        name,
        hash: hash(STREAM),
    }
}

/// The oldest message of the stream makes way.
pub fn append() -> Step {
    let now = Instant::now();
    let mut history = filled(now);
    let name = format!("room:{STREAM}");
    Step::new(move || {
        let message = Message::from(MESSAGE);
        black_box(history.append(black_box(stream(&name)), &message, now));
    })
}

pub fn replay() -> Step {
    let history = filled(Instant::now());
    let name = format!("room:{STREAM}");
    let mut position = history
        .newest(stream(&name), 0)
        .ok()
        .and_then(|part| part.last())
        .expect("it has messages");
    position.offset = 0;
    Step::new(move || {
        let part = history.from(black_box(stream(&name)), position);
        assert_eq!(part.expect("all are kept").entries().len(), MESSAGES);
    })
    .per(MESSAGES as u32)
}

pub fn replay_since() -> Step {
    let now = Instant::now();
    let history = filled(now);
    let name = format!("room:{STREAM}");
    Step::new(move || {
        let since = UNIX_NOW as i64 - 10;
        let unix_now = Duration::from_secs(UNIX_NOW);
        let part = history.since(black_box(stream(&name)), since, now, unix_now);
        assert_eq!(part.expect("all are kept").entries().len(), MESSAGES);
    })
    .per(MESSAGES as u32)
}

/// A new key every time, beside a thousand others.
pub fn see_key() -> Step {
    let now = Instant::now();
    let mut keys = SeenKeys::new(Unbounded::default());
    for number in 0..1_000 {
        keys.see("room:1", &number.to_string(), now);
    }
    let mut number = 0_u64;
    Step::new(move || {
        number += 1;
        let mut text = [b'k'; 17];
        for (digit, byte) in text[1..].iter_mut().enumerate() {
            *byte = b'a' + (number >> (4 * digit)) as u8 % 16;
        }
        let key = std::str::from_utf8(&text).expect("ASCII");
        black_box(keys.see("room:1", black_box(key), now));
    })
}
