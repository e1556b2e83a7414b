//! The history case by case; `model` has random cases.

use std::time::{Duration, Instant};

use ahash::RandomState;

use super::*;
use crate::broker::budget::FixedBudget;
use crate::config::HistoryLimits;

mod model;

/// Seconds since 1970 when the tests begin.
const UNIX_START: i64 = 1_800_000_000;

/// As by the hasher of a process.
fn key(name: &str) -> StreamKey<'_> {
    let hash = RandomState::with_seeds(1, 2, 3, 4).hash_one(name);
    StreamKey { name, hash }
}

fn limits(messages: usize, ttl_secs: u64) -> HistoryLimits {
    HistoryLimits {
        messages,
        ttl: Duration::from_secs(ttl_secs),
    }
}

/// A history with a clock.
struct Timed {
    history: History<FixedBudget>,
    start: Instant,
    now: Instant,
}

impl Timed {
    fn new(default: HistoryLimits, prefixes: &[(&str, HistoryLimits)]) -> Self {
        let prefixes: Vec<(String, HistoryLimits)> = prefixes
            .iter()
            .map(|(prefix, limits)| ((*prefix).to_owned(), *limits))
            .collect();
        let classes = Classes::new(default, &prefixes);
        let start = Instant::now();
        let budget = FixedBudget::new(usize::MAX);
        Self {
            history: History::new(budget, classes, Epochs::new(7, 0, 1), start),
            start,
            now: start,
        }
    }

    fn pass(&mut self, millis: u64) {
        self.now += Duration::from_millis(millis);
    }

    fn pass_secs(&mut self, secs: u64) {
        self.pass(1000 * secs);
    }

    /// A millisecond later than the one before.
    fn append(&mut self, stream: &str, message: &str) -> Position {
        self.pass(1);
        self.history
            .append(key(stream), &message.as_bytes().into(), self.now)
    }

    /// Room for `bytes` beyond what is charged.
    fn leave_room(&self, bytes: usize) {
        let used = self.history.budget.used();
        self.history.budget.set_max(used + bytes);
    }

    fn sweep(&mut self) {
        assert!(!self.history.sweep(self.now, usize::MAX));
    }

    fn since(&self, stream: &str, unix_secs: i64) -> Result<Part, Refusal> {
        let unix_now = Duration::from_secs(UNIX_START as u64) + (self.now - self.start);
        self.history
            .since(key(stream), unix_secs, self.now, unix_now)
    }

    fn from(&self, stream: &str, position: Position) -> Result<Part, Refusal> {
        self.history.from(key(stream), position)
    }
}

/// Offsets and texts of an answer.
fn texts(part: Result<Part, Refusal>) -> Result<Vec<(u64, String)>, Refusal> {
    let part = part?;
    let text = |message: &Message| String::from_utf8(message.to_vec()).expect("a text");
    let entries = part
        .entries()
        .map(|(at, message)| (at.offset, text(message)));
    Ok(entries.collect())
}

fn offsets(part: Result<Part, Refusal>) -> Result<Vec<u64>, Refusal> {
    Ok(part?.entries().map(|(at, _)| at.offset).collect())
}

fn at(epoch: Epoch, offset: u64) -> Position {
    Position { epoch, offset }
}

/// The cost of a message of this many bytes.
fn cost(bytes: usize) -> usize {
    bytes + MESSAGE_BYTES
}

#[test]
fn a_client_gets_what_it_has_missed_or_a_refusal() {
    let mut timed = Timed::new(limits(3, 300), &[]);
    let first = timed.append("a", "1");
    assert_eq!(first.offset, 1);
    for number in 2..=10 {
        let position = timed.append("a", &number.to_string());
        assert_eq!(position, at(first.epoch, number));
    }
    let check = |position: Position, expected: Result<&[u64], Refusal>| {
        let answer = timed.from("a", position);
        assert_eq!(
            offsets(answer),
            expected.map(<[u64]>::to_vec),
            "{position:?}"
        );
    };
    check(at(first.epoch, 10), Ok(&[]));
    check(at(first.epoch, 9), Ok(&[10]));
    check(at(first.epoch, 8), Ok(&[9, 10]));
    check(at(first.epoch, 7), Ok(&[8, 9, 10]));
    check(at(first.epoch, 6), Err(Refusal::NotKept));
    check(at(first.epoch, 0), Err(Refusal::NotKept));
    check(at(first.epoch, 11), Err(Refusal::InTheFuture));
    check(at(first.epoch, u64::MAX), Err(Refusal::InTheFuture));
    check(at(Epoch::FOREIGN, 10), Err(Refusal::ForeignEpoch));
    check(at(Epoch::from_bits(0), 10), Err(Refusal::ForeignEpoch));
    let part = timed.from("a", at(first.epoch, 9)).expect("an answer");
    assert_eq!(
        (part.last(), part.message_bytes()),
        (Some(at(first.epoch, 10)), 2)
    );
    assert_eq!(texts(Ok(part)), Ok(vec![(10, "10".to_owned())]));
    let unknown = timed.from("b", first);
    assert_eq!(unknown, Err(Refusal::UnknownStream));
}

#[test]
fn streams_have_epochs_of_their_own_and_count_from_one() {
    let mut timed = Timed::new(limits(3, 300), &[]);
    let (one, other) = (timed.append("a", "1"), timed.append("b", "1"));
    assert_eq!((one.offset, other.offset), (1, 1));
    assert_eq!(timed.from("b", one), Err(Refusal::ForeignEpoch));
}

#[test]
fn the_newest_messages_are_given_without_a_position() {
    let mut timed = Timed::new(limits(3, 300), &[]);
    (0..5).for_each(|number| _ = timed.append("a", &number.to_string()));
    let newest = |count: usize| offsets(timed.history.newest(key("a"), count));
    assert_eq!(newest(2), Ok(vec![4, 5]));
    assert_eq!(newest(0), Ok(vec![]));
    assert_eq!(newest(usize::MAX), Ok(vec![3, 4, 5]));
    let unknown = timed.history.newest(key("b"), 1);
    assert_eq!(unknown, Err(Refusal::UnknownStream));
}

#[test]
fn messages_go_at_their_ttl_and_an_up_to_date_client_is_still_answered() {
    let mut timed = Timed::new(limits(100, 300), &[]);
    timed.append("a", "1");
    timed.pass_secs(100);
    let last = timed.append("a", "2");
    timed.pass(199_998);
    timed.sweep();
    assert_eq!(timed.history.totals().messages, 2);
    timed.pass(1);
    timed.sweep();
    assert_eq!(offsets(timed.from("a", at(last.epoch, 1))), Ok(vec![2]));
    assert_eq!(timed.from("a", at(last.epoch, 0)), Err(Refusal::NotKept));
    timed.pass(100_001);
    timed.sweep();
    assert_eq!(timed.history.totals().messages, 0);
    assert_eq!(offsets(timed.from("a", last)), Ok(vec![]));
    assert_eq!(timed.from("a", at(last.epoch, 1)), Err(Refusal::NotKept));
    assert_eq!(timed.append("a", "3"), at(last.epoch, 3));
    assert_eq!(offsets(timed.from("a", last)), Ok(vec![3]));
}

#[test]
fn a_stream_is_forgotten_after_ten_ttls_and_comes_back_with_another_epoch() {
    let mut timed = Timed::new(limits(100, 300), &[]);
    let old = timed.append("a", "1");
    timed.pass(2_999_999);
    timed.sweep();
    assert_eq!(offsets(timed.from("a", old)), Ok(vec![]));
    timed.pass(1);
    timed.sweep();
    assert_eq!(timed.from("a", old), Err(Refusal::UnknownStream));
    assert_eq!(timed.history.totals(), Totals::default());
    let new = timed.append("a", "1");
    assert_eq!(new.offset, old.offset);
    assert_eq!(timed.from("a", old), Err(Refusal::ForeignEpoch));
}

#[test]
fn a_message_keeps_its_stream_known() {
    let mut timed = Timed::new(limits(100, 300), &[]);
    let old = timed.append("a", "1");
    for _ in 0..5 {
        timed.pass_secs(2_999);
        timed.sweep();
        assert_eq!(timed.append("a", "2").epoch, old.epoch);
    }
}

#[test]
fn with_a_limit_of_zero_messages_have_positions_and_are_not_kept() {
    let mut timed = Timed::new(limits(0, 300), &[]);
    let first = timed.append("a", "1");
    timed.pass_secs(2_000);
    timed.sweep();
    let second = timed.append("a", "2");
    assert_eq!(second, at(first.epoch, 2));
    assert_eq!(offsets(timed.from("a", second)), Ok(vec![]));
    assert_eq!(timed.from("a", first), Err(Refusal::NotKept));
    assert_eq!(offsets(timed.since("a", 0)), Ok(vec![]));
    timed.pass_secs(2_000);
    timed.sweep();
    assert_eq!(offsets(timed.from("a", second)), Ok(vec![]));
    timed.pass_secs(1_000);
    timed.sweep();
    assert_eq!(timed.history.totals(), Totals::default());
}

#[test]
fn limits_are_those_of_the_longest_prefix() {
    let table = [("chat/", limits(1, 10)), ("chat/room/", limits(2, 20))];
    let mut timed = Timed::new(limits(3, 30), &table);
    let streams = ["notes", "chat/1", "chat/room/1"];
    for stream in streams.repeat(4) {
        timed.append(stream, "x");
    }
    let kept = |timed: &Timed| streams.map(|it| offsets(timed.since(it, 0)).map(|it| it.len()));
    assert_eq!(kept(&timed), [Ok(3), Ok(1), Ok(2)]);
    let mut expect_after = |secs: u64, expected: [usize; 3]| {
        timed.pass_secs(secs);
        timed.sweep();
        assert_eq!(kept(&timed), expected.map(Ok));
    };
    expect_after(10, [3, 0, 2]);
    expect_after(10, [3, 0, 0]);
    expect_after(10, [0, 0, 0]);
}

#[test]
fn messages_are_given_by_the_second_in_which_they_were_stored() {
    let mut timed = Timed::new(limits(100, 300), &[]);
    timed.append("a", "1");
    timed.pass(998);
    timed.append("a", "2");
    timed.append("a", "3");
    timed.pass_secs(10);
    let check = |since: i64, expected: &[u64]| {
        let answer = timed.since("a", since);
        assert_eq!(offsets(answer), Ok(expected.to_vec()), "since {since}");
    };
    check(UNIX_START, &[1, 2, 3]);
    check(UNIX_START + 1, &[2, 3]);
    check(UNIX_START + 2, &[]);
    check(UNIX_START + 1_000_000, &[]);
    check(i64::MAX, &[]);
    check(0, &[1, 2, 3]);
    check(-1, &[1, 2, 3]);
    check(i64::MIN, &[1, 2, 3]);
    let unknown = timed.since("b", 0).expect("empty");
    assert_eq!((unknown.last(), unknown.entries().len()), (None, 0));
}

#[test]
fn without_memory_the_oldest_message_of_all_streams_goes_first() {
    let mut timed = Timed::new(limits(100, 300), &[("b", limits(100, 3000))]);
    let streams = ["a1", "b1", "a2", "b2", "a1"];
    let first = streams.map(|stream| timed.append(stream, "12345678"))[0];
    timed.leave_room(0);
    let kept = |timed: &Timed| {
        ["a1", "b1", "a2", "b2"].map(|it| offsets(timed.history.newest(key(it), 9)))
    };
    // An exchange of one message for another of the same size.
    timed.append("b2", "12345678");
    assert_eq!(
        kept(&timed),
        [&[2][..], &[1], &[1], &[1, 2]].map(|it| Ok(it.to_vec()))
    );
    timed.append("b2", "12345678");
    assert_eq!(
        kept(&timed),
        [&[2][..], &[], &[1], &[1, 2, 3]].map(|it| Ok(it.to_vec()))
    );
    assert_eq!(timed.from("a1", at(first.epoch, 0)), Err(Refusal::NotKept));
    assert_eq!(offsets(timed.from("a1", first)), Ok(vec![2]));
    assert_eq!(timed.history.totals().evicted_messages, 2);
    // A stream without messages counts by its last message, which was older than what the others keep.
    let mut streams = timed.history.totals().streams;
    timed.append("b2", "1234");
    streams -= 1;
    assert_eq!(kept(&timed)[1], Err(Refusal::UnknownStream));
    let totals = timed.history.totals();
    assert_eq!(
        (
            totals.streams,
            totals.evicted_streams,
            totals.evicted_messages
        ),
        (streams, 1, 2)
    );
}

#[test]
fn a_message_larger_than_everything_that_is_kept_removes_nothing_but_its_own_stream() {
    let mut timed = Timed::new(limits(100, 300), &[]);
    let last = ["a", "b"].map(|stream| timed.append(stream, "1"))[0];
    timed.leave_room(0);
    let held = timed.history.totals().held_bytes;
    let position = timed.append("a", &"x".repeat(held));
    assert_eq!(position, at(last.epoch, 2));
    assert_eq!(timed.from("a", last), Err(Refusal::NotKept));
    assert_eq!(offsets(timed.from("a", position)), Ok(vec![]));
    assert_eq!(offsets(timed.history.newest(key("b"), 9)), Ok(vec![1]));
    assert_eq!(timed.history.totals().evicted_messages, 2);
    assert_eq!(timed.append("a", "3"), at(last.epoch, 3));
    assert_eq!(offsets(timed.from("a", position)), Ok(vec![3]));
}

#[test]
fn room_for_one_message_is_made_in_a_bounded_number_of_steps() {
    let mut timed = Timed::new(limits(usize::MAX, 300), &[]);
    for _ in 0..2 * EVICTIONS_PER_MESSAGE_MAX {
        timed.append("a", "");
    }
    let last = timed.append("b", "");
    timed.leave_room(0);
    let room_of = |messages: usize| "x".repeat(cost(0) * messages - MESSAGE_BYTES);
    let position = timed.append("b", &room_of(EVICTIONS_PER_MESSAGE_MAX));
    assert_eq!(offsets(timed.from("b", last)), Ok(vec![2]));
    timed.append("b", &room_of(EVICTIONS_PER_MESSAGE_MAX + 1));
    assert_eq!(timed.from("b", position), Err(Refusal::NotKept));
    assert_eq!(timed.history.totals().messages, 0);
}

#[test]
fn the_stream_of_a_new_message_is_not_forgotten_for_it() {
    let mut timed = Timed::new(limits(1, 300), &[]);
    let first = timed.append("a", "1");
    timed.leave_room(0);
    for number in 2..5 {
        assert_eq!(timed.append("a", "22"), at(first.epoch, number));
        assert_eq!(
            timed.history.totals().messages,
            0,
            "there is no room for it"
        );
    }
    assert_eq!(timed.append("a", "5"), at(first.epoch, 5));
    assert_eq!(timed.history.totals().messages, 1);
}

#[test]
fn without_any_memory_a_message_has_a_position_that_matches_no_other() {
    let mut timed = Timed::new(limits(100, 300), &[]);
    timed.leave_room(0);
    let (one, other) = (timed.append("a", "1"), timed.append("a", "2"));
    assert_ne!(one.epoch, other.epoch);
    assert_eq!((one.offset, other.offset), (1, 1));
    assert_eq!(timed.from("a", one), Err(Refusal::UnknownStream));
    assert_eq!(timed.since("a", UNIX_START), Err(Refusal::NotKept));
    let totals = timed.history.totals();
    assert_eq!(
        (totals.streams, totals.evicted_messages, totals.held_bytes),
        (0, 2, 0)
    );
}

#[test]
fn what_was_lost_for_memory_is_refused_by_time_until_it_would_be_too_old() {
    let mut timed = Timed::new(limits(100, 300), &[]);
    timed.append("a", "1");
    timed.pass_secs(5);
    timed.append("b", "1");
    timed.leave_room(0);
    timed.append("b", "2");
    let check = |timed: &Timed, stream: &str, since: i64, expected: Result<&[u64], Refusal>| {
        let answer = timed.since(stream, since);
        assert_eq!(
            offsets(answer),
            expected.map(<[u64]>::to_vec),
            "{stream} since {since}"
        );
    };
    check(&timed, "a", UNIX_START, Err(Refusal::NotKept));
    check(&timed, "a", UNIX_START + 1, Ok(&[]));
    check(&timed, "b", UNIX_START, Ok(&[1, 2]));
    // The stream itself goes, and what was lost of it is still refused, even when it has come back.
    timed.append("b", "3");
    assert_eq!(timed.history.totals().evicted_streams, 1);
    check(&timed, "a", UNIX_START, Err(Refusal::NotKept));
    check(&timed, "a", UNIX_START + 1, Ok(&[]));
    timed.leave_room(1000);
    timed.append("a", "1");
    check(&timed, "a", UNIX_START, Err(Refusal::NotKept));
    check(&timed, "a", UNIX_START + 1, Ok(&[1]));
    timed.pass_secs(300 - 6);
    check(&timed, "a", UNIX_START, Err(Refusal::NotKept));
    timed.pass_secs(1);
    check(&timed, "a", UNIX_START, Ok(&[1]));
}

#[test]
fn a_message_that_was_lost_in_the_very_millisecond_is_refused() {
    let mut timed = Timed::new(limits(100, 300), &[]);
    timed.pass(999);
    timed.append("a", "1");
    timed.leave_room(0);
    timed.append("a", "2");
    let answer = |secs: i64| offsets(timed.since("a", UNIX_START + secs));
    assert_eq!(answer(1), Err(Refusal::NotKept));
    assert_eq!(answer(2), Ok(vec![]));
}

#[test]
fn a_sweep_takes_as_many_steps_as_it_may() {
    let mut timed = Timed::new(limits(100, 300), &[("b", limits(100, 600))]);
    for _ in 0..10 {
        timed.append("a", "1");
        timed.append("b", "1");
    }
    timed.pass_secs(600);
    assert!(timed.history.sweep(timed.now, 0));
    assert_eq!(timed.history.totals().messages, 20);
    assert!(timed.history.sweep(timed.now, 1));
    assert_eq!(timed.history.totals().messages, 19);
    let mut sweeps = 0;
    while timed.history.sweep(timed.now, 4) {
        sweeps += 1;
    }
    assert!(sweeps >= 4);
    assert_eq!(timed.history.totals().messages, 0);
}

#[test]
fn streams_of_one_shard_are_found_although_their_hashes_have_equal_low_bits() {
    let mut timed = Timed::new(limits(1, 300), &[]);
    let names: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let key = |at: usize| StreamKey {
        name: &names[at],
        hash: key(&names[at]).hash << 10,
    };
    let now = timed.now;
    (0..1000).for_each(|at| {
        _ = timed
            .history
            .append(key(at), &names[at].as_bytes().into(), now)
    });
    let places: std::collections::HashSet<u64> =
        (0..1000).map(|at| key(at).table_hash() % 1024).collect();
    assert!(places.len() > 500, "{} places of 1,024", places.len());
    for (at, name) in names.iter().enumerate() {
        let newest = timed.history.newest(key(at), 1);
        assert_eq!(texts(newest), Ok(vec![(1, name.clone())]));
    }
}

#[test]
fn streams_with_the_same_hash_are_different_streams() {
    let mut timed = Timed::new(limits(1, 300), &[]);
    let now = timed.now;
    let key = |name: &'static str| StreamKey { name, hash: 1 };
    for name in ["a", "b"] {
        timed
            .history
            .append(key(name), &name.as_bytes().into(), now);
    }
    for name in ["a", "b"] {
        let newest = texts(timed.history.newest(key(name), 1));
        assert_eq!(newest, Ok(vec![(1, name.to_owned())]));
    }
}

#[test]
fn a_message_stays_charged_while_an_answer_has_it() {
    let mut timed = Timed::new(limits(2, 300), &[]);
    let first = timed.append("a", "1");
    timed.append("a", "2");
    let held = timed.history.totals().held_bytes;
    let answer = timed.history.from(key("a"), at(first.epoch, 0));
    let both = answer.expect("both are kept");
    timed.append("a", "3");
    timed.append("a", "4");
    assert_eq!(timed.history.totals().messages, 2);
    assert_eq!(timed.history.budget.used(), held + 2 * cost(1));
    // They give no room to a longer one.
    timed.history.budget.set_max(held + 2 * cost(1));
    timed.append("a", "55");
    let totals = timed.history.totals();
    assert_eq!((totals.messages, totals.evicted_messages), (1, 1));
    drop(both);
    timed.append("a", "6");
    let totals = timed.history.totals();
    assert_eq!((totals.messages, totals.evicted_messages), (2, 1));
    assert_eq!(timed.history.budget.used(), held + 1);
    timed.history.sweep(timed.now, usize::MAX);
    timed.pass(301_000);
    timed.history.sweep(timed.now, usize::MAX);
    timed.pass(3_000_000);
    timed.history.sweep(timed.now, usize::MAX);
    assert_eq!(timed.history.budget.used(), 0);
}
