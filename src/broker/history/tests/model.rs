//! The history against a simple model: vectors, searched from end to end.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;

/// A stream of the model, from its first message until it is forgotten.
#[derive(Debug)]
struct Life {
    epoch: Epoch,
    last: u64,
    /// Offset, text and time of what is kept.
    kept: Vec<(u64, String, u64)>,
    used_at: u64,
}

/// What the history should be. Times are milliseconds since its start.
struct Model {
    lives: BTreeMap<String, Life>,
    /// Every epoch that a stream has had, with the streams.
    epochs: Vec<(String, Epoch)>,
    /// Stream and time of every message that was removed for memory or not stored.
    lost: Vec<(String, u64)>,
    bytes_max: usize,
    evicted_streams: u64,
}

fn limits_of(stream: &str) -> (usize, u64) {
    match stream.as_bytes()[0] {
        b'a' => (4, 10_000),
        b'b' => (0, 10_000),
        _ => (30, 60_000),
    }
}

impl Model {
    fn held(&self) -> usize {
        let life = |(name, life): (&String, &Life)| {
            let messages = life.kept.iter().map(|(_, text, _)| cost(text.len()));
            stream_bytes(name) + messages.sum::<usize>()
        };
        self.lives.iter().map(life).sum()
    }

    fn messages(&self) -> usize {
        self.lives.values().map(|life| life.kept.len()).sum()
    }

    /// Removes what is oldest until `bytes` fit.
    fn make_room(&mut self, bytes: usize, spared: &str) -> bool {
        let is_too_large = bytes > self.held();
        while self.held() + bytes > self.bytes_max {
            let ages = self
                .lives
                .iter()
                .filter_map(|(name, life)| match &life.kept[..] {
                    [(_, _, stored_at), ..] => Some((*stored_at, name.clone())),
                    [] => (name != spared).then(|| (life.used_at, name.clone())),
                });
            let Some((time, name)) = ages.min().filter(|_| !is_too_large) else {
                return false;
            };
            if self.lives[&name].kept.is_empty() {
                self.lives.remove(&name);
                self.evicted_streams += 1;
            } else if let Some(life) = self.lives.get_mut(&name) {
                life.kept.remove(0);
                self.lost.push((name, time));
            }
        }
        true
    }

    /// Returns offset and epoch of the message; no epoch when it must be a new one.
    fn append(
        &mut self,
        stream: &str,
        text: &str,
        now: u64,
        given: Position,
    ) -> (u64, Option<Epoch>) {
        let is_new = !self.lives.contains_key(stream);
        if is_new && !self.make_room(stream_bytes(stream), "") {
            self.lost.push((stream.to_owned(), now));
            return (1, None);
        }
        let life = self.lives.entry(stream.to_owned()).or_insert(Life {
            epoch: given.epoch,
            last: 0,
            kept: Vec::new(),
            used_at: 0,
        });
        (life.last, life.used_at) = (life.last + 1, now);
        let position = (life.last, (!is_new).then_some(life.epoch));
        let (limit, _) = limits_of(stream);
        if limit > 0 {
            let excess = (life.kept.len() + 1).saturating_sub(limit);
            life.kept.drain(..excess);
            let fits = self.make_room(cost(text.len()), stream);
            let life = self.lives.get_mut(stream).expect("it is spared");
            if fits {
                life.kept.push((position.0, text.to_owned(), now));
            } else {
                let all = life.kept.drain(..).map(|(.., time)| time).chain([now]);
                self.lost.extend(all.map(|time| (stream.to_owned(), time)));
            }
        }
        position
    }

    fn sweep(&mut self, now: u64) {
        self.lives.retain(|name, life| {
            let (_, ttl) = limits_of(name);
            life.kept.retain(|(.., stored_at)| stored_at + ttl > now);
            !life.kept.is_empty() || life.used_at + 10 * ttl > now
        });
    }

    fn from(&self, stream: &str, position: Position) -> Result<Vec<(u64, String)>, Refusal> {
        let life = self.lives.get(stream).ok_or(Refusal::UnknownStream)?;
        if life.epoch != position.epoch {
            return Err(Refusal::ForeignEpoch);
        }
        if position.offset > life.last {
            return Err(Refusal::InTheFuture);
        }
        let missed = (position.offset + 1..=life.last).map(|offset| {
            let kept = life.kept.iter().find(|(it, ..)| *it == offset);
            kept.map(|(offset, text, _)| (*offset, text.clone()))
        });
        let missed: Option<Vec<_>> = missed.collect();
        missed.ok_or(Refusal::NotKept)
    }

    fn since(&self, stream: &str, since: i64) -> Vec<(u64, String)> {
        let kept = self
            .lives
            .get(stream)
            .into_iter()
            .flat_map(|life| &life.kept);
        let young = kept.filter(|(.., stored_at)| *stored_at as i64 >= since);
        young
            .map(|(offset, text, _)| (*offset, text.clone()))
            .collect()
    }

    /// True when something is missing that was stored at `since` or later and would still be kept by `stream`: of the
    /// stream itself, or of `others`.
    fn has_lost(&self, stream: &str, others: bool, since: i64, now: u64) -> bool {
        let (_, ttl) = limits_of(stream);
        let is_missed = |time: u64| time as i64 >= since && time + ttl > now;
        let mut lost = self.lost.iter();
        lost.any(|(name, time)| (others || name == stream) && is_missed(*time))
    }
}

#[derive(Debug, Clone)]
enum Act {
    Append {
        stream: String,
        bytes: usize,
        after: u64,
    },
    Sweep {
        after: u64,
        steps: usize,
    },
    /// `life` counts back from the newest life of any stream, and `back` from its last message.
    From {
        stream: String,
        life: usize,
        back: i64,
    },
    Since {
        stream: String,
        secs_ago: i64,
    },
    SetMax {
        bytes: usize,
    },
}

fn acts() -> impl Strategy<Value = Act> {
    let stream = || "[abc][0-3]";
    prop_oneof![
        10 => (stream(), 0..200_usize, 1..2_000_u64)
            .prop_map(|(stream, bytes, after)| Act::Append { stream, bytes, after }),
        3 => (prop_oneof![5 => 0..5_000_u64, 1 => 0..700_000_u64], 1..9_usize)
            .prop_map(|(after, steps)| Act::Sweep { after, steps }),
        5 => (stream(), 0..5_usize, -2..35_i64)
            .prop_map(|(stream, life, back)| Act::From { stream, life, back }),
        5 => (stream(), -2..70_i64).prop_map(|(stream, secs_ago)| Act::Since { stream, secs_ago }),
        1 => prop_oneof![0..8_000_usize, Just(usize::MAX)].prop_map(|bytes| Act::SetMax { bytes }),
    ]
}

/// Both, side by side.
struct Pair {
    timed: Timed,
    model: Model,
}

impl Pair {
    fn new() -> Self {
        let prefixes = ["a", "b", "c"].map(|prefix| {
            let (messages, ttl) = limits_of(prefix);
            (prefix, limits(messages, ttl / 1000))
        });
        Self {
            timed: Timed::new(limits(1, 1), &prefixes),
            model: Model {
                lives: BTreeMap::new(),
                epochs: Vec::new(),
                lost: Vec::new(),
                bytes_max: usize::MAX,
                evicted_streams: 0,
            },
        }
    }

    fn now(&self) -> u64 {
        (self.timed.now - self.timed.start).as_millis() as u64
    }

    fn append(&mut self, stream: &str, bytes: usize) {
        let text = format!("{:0bytes$}", self.now());
        let given = self.timed.append(stream, &text);
        let now = self.now();
        let (offset, epoch) = self.model.append(stream, &text, now, given);
        assert_eq!(given.offset, offset, "{stream}");
        match epoch {
            Some(epoch) => assert_eq!(given.epoch, epoch, "{stream}"),
            None => self.model.epochs.push((stream.to_owned(), given.epoch)),
        }
    }

    fn sweep(&mut self, steps: usize) {
        while self.timed.history.sweep(self.timed.now, steps) {}
        self.model.sweep(self.now());
    }

    fn ask_from(&self, stream: &str, life: usize, back: i64) {
        let own = self.model.lives.get(stream);
        let foreign = self.model.epochs.iter().rev().nth(life);
        let epoch = match (life, own) {
            (0, Some(own)) => own.epoch,
            _ => foreign.map_or(Epoch::FOREIGN, |(_, epoch)| *epoch),
        };
        let last = own.map_or(5, |own| own.last) as i64;
        let position = at(epoch, (last - back).max(0) as u64);
        let answer = texts(self.timed.from(stream, position));
        assert_eq!(
            answer,
            self.model.from(stream, position),
            "{stream} {position:?}"
        );
    }

    fn ask_since(&self, stream: &str, secs_ago: i64) {
        let now = self.now();
        let since = (now / 1000) as i64 - secs_ago;
        let has_lost = |others| self.model.has_lost(stream, others, since * 1000, now);
        match texts(self.timed.since(stream, UNIX_START + since)) {
            Ok(answer) => {
                assert!(!has_lost(false), "{stream} since {since}");
                let expected = self.model.since(stream, since * 1000);
                assert_eq!(answer, expected, "{stream} since {since}");
            }
            // Of streams that are forgotten, only the time is known at which something was lost.
            Err(refusal) => {
                assert_eq!(refusal, Refusal::NotKept);
                assert!(has_lost(true), "{stream} since {since}");
            }
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Append {
                stream,
                bytes,
                after,
            } => {
                self.timed.pass(after);
                self.append(&stream, bytes);
            }
            Act::Sweep { after, steps } => {
                self.timed.pass(after);
                self.sweep(steps);
            }
            Act::From { stream, life, back } => self.ask_from(&stream, life, back),
            Act::Since { stream, secs_ago } => self.ask_since(&stream, secs_ago),
            Act::SetMax { bytes } => {
                self.timed.history.budget.set_max(bytes);
                self.model.bytes_max = bytes;
            }
        }
    }

    fn check(&self) {
        let expected = Totals {
            streams: self.model.lives.len(),
            messages: self.model.messages(),
            held_bytes: self.model.held(),
            evicted_messages: self.model.lost.len() as u64,
            evicted_streams: self.model.evicted_streams,
        };
        assert_eq!(self.timed.history.totals(), expected);
        assert_eq!(self.timed.history.budget.used(), expected.held_bytes);
    }
}

proptest! {
    #[test]
    fn a_history_is_what_the_model_says(acts in prop::collection::vec(acts(), 1..300)) {
        let mut pair = Pair::new();
        for act in acts {
            pair.act(act);
            pair.check();
        }
        let epochs: HashSet<Epoch> = pair.model.epochs.iter().map(|(_, epoch)| *epoch).collect();
        prop_assert_eq!(epochs.len(), pair.model.epochs.len(), "an epoch came again");
        pair.timed.pass(600_000);
        pair.sweep(100);
        pair.check();
        prop_assert_eq!(pair.model.held(), 0);
    }
}
