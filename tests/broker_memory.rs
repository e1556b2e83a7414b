//! What the broker takes for what it keeps, to the byte, and that it charges its budget for at least that.
//!
//! A binary of its own, with an allocator that counts. Sizes are those of mimalloc's classes, which the server has.

#![allow(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ahash::RandomState;
use ringcable::broker::history::{Classes, Epochs, History};
use ringcable::broker::idempotency::{KEY_WINDOW, SeenKeys};
use ringcable::broker::presence::{Join, PresenceTable, Stay};
use ringcable::broker::sessions::{KeptSessions, SessionSnapshot, SubscriptionSnapshot};
use ringcable::broker::{Budget, StreamKey};
use ringcable::config::HistoryLimits;
use ringcable::hub::Marks;
use ringcable::protocol::presence::PresenceRecord;

/// A message that a stream keeps, beside its bytes.
const STORED_MESSAGE_BYTES_MAX: usize = 64;
/// A stream that has had messages, beside its name.
const IDLE_STREAM_BYTES_MAX: usize = 256;
/// A member of a presence stream, beside its id and info; its sid is included.
const MEMBER_BYTES_MAX: usize = 200;
/// A kept session with 14 subscriptions, beside its texts.
const KEPT_SESSION_BYTES_MAX: usize = 300;

struct Counting;

thread_local! {
    /// Of this thread, because each test has its own.
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

fn class_of(bytes: usize) -> usize {
    // SAFETY: a pure function of its argument.
    unsafe { libmimalloc_sys::mi_good_size(bytes) }
}

// SAFETY: hands everything to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get().wrapping_add(class_of(layout.size())));
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.set(ALLOCATED.get().wrapping_sub(class_of(layout.size())));
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A budget without a bound.
#[derive(Clone, Default)]
struct Unbounded {
    used: Rc<Cell<usize>>,
}

impl Budget for Unbounded {
    fn try_charge(&self, bytes: usize) -> bool {
        self.used.set(self.used.get() + bytes);
        true
    }

    fn release(&self, bytes: usize) {
        self.used.set(self.used.get() - bytes);
    }
}

/// Numbers of entries: tables that have just grown, and tables that are nearly full.
const COUNTS: [usize; 4] = [7_000, 7_300, 10_000, 14_400];

/// What `make` allocates, and what it charges. When `remove` has taken it away, nothing is charged, and small tables are all
/// that is left.
fn measured<T>(make: impl FnOnce(Unbounded) -> T, remove: impl FnOnce(&mut T)) -> (usize, usize) {
    let budget = Unbounded::default();
    let before = ALLOCATED.get();
    let mut made = make(budget.clone());
    let taken = ALLOCATED.get() - before;
    let charged = budget.used.get();
    remove(&mut made);
    assert_eq!(budget.used.get(), 0);
    let left = ALLOCATED.get() - before;
    assert!(100 * left < taken, "{left} left of {taken}");
    (taken, charged)
}

#[test]
fn a_member_takes_no_more_than_its_bar_and_is_charged_for() {
    let now = Instant::now();
    let info = r#"{"name":"A name of usual length"}"#;
    for count in COUNTS {
        let ids: Vec<String> = (0..count).map(|it| format!("{it:08}")).collect();
        let sids: Vec<String> = (0..count).map(|it| format!("{it:021}")).collect();
        let make = |budget: Unbounded| {
            let mut presence = PresenceTable::new(budget, Duration::from_secs(15), now);
            for (id, sid) in ids.iter().zip(&sids) {
                let record = PresenceRecord {
                    id,
                    info: Some(info),
                };
                let join = Join {
                    stream: "room",
                    sid,
                    record,
                    stay: Stay::Expiring,
                };
                presence.join(&join, now).expect("room");
            }
            presence
        };
        let remove = |presence: &mut PresenceTable<Unbounded>| {
            let mut departures = Vec::new();
            presence.sweep(now + Duration::from_secs(15), usize::MAX, &mut departures);
            assert_eq!(departures.len(), count);
        };
        let (taken, charged) = measured(make, remove);
        let texts = 8 + info.len();
        let (taken, charged) = (taken / count - texts, charged / count - texts);
        println!("{count} members: {taken} bytes each beside id and info, {charged} charged");
        assert!(taken <= MEMBER_BYTES_MAX, "{taken}");
        assert!(charged >= taken, "{charged} of {taken}");
    }
}

/// A session of a page with 14 subscriptions, of which the last `own` have streams that no other session has.
fn page(number: usize, own: usize) -> SessionSnapshot {
    let subscription = |it: usize| {
        let stream = match it < 14 - own {
            true => format!("stream:{it}"),
            false => format!("stream:{it}:{number:08}"),
        };
        SubscriptionSnapshot {
            identifier: format!(r#"{{"channel":"Turbo::StreamsChannel","name":{it}}}"#).into(),
            streams: vec![(stream.into(), Marks::default())],
        }
    };
    SessionSnapshot {
        identifiers: format!(r#"{{"current_user":"{number:030}"}}"#).into(),
        subscriptions: (0..14).map(subscription).collect(),
        wants_disconnect: true,
        ..SessionSnapshot::default()
    }
}

#[test]
fn a_kept_session_takes_no_more_than_its_bar_and_is_charged_for() {
    let now = Instant::now();
    for (count, own) in COUNTS
        .map(|count| (count, 0))
        .into_iter()
        .chain([(10_000, 2)])
    {
        let make = |budget: Unbounded| {
            let mut sessions = KeptSessions::new(budget, Duration::from_secs(300), now);
            for number in 0..count {
                let (sid, session) = (format!("{number:021}"), page(number, own));
                sessions.keep(&sid, &session, now).expect("room");
            }
            sessions
        };
        let remove = |sessions: &mut KeptSessions<Unbounded>| {
            sessions.sweep(now + Duration::from_secs(300), usize::MAX);
        };
        let (taken, charged) = measured(make, remove);
        let identifiers = r#"{"current_user":""}"#.len() + 30;
        let texts = 21 + identifiers + own * "stream:13:00000000".len();
        let (taken, charged) = (taken / count - texts, charged / count - texts);
        println!("{count} sessions, {own} own streams: {taken} bytes each, {charged} charged");
        assert!(taken <= KEPT_SESSION_BYTES_MAX, "{taken}");
        assert!(charged >= taken, "{charged} of {taken}");
    }
}

/// How long a message is kept in these tests.
const HISTORY_TTL: Duration = Duration::from_secs(300);

/// A history that keeps 100 messages of each stream.
fn history(budget: Unbounded, now: Instant) -> History<Unbounded> {
    let limits = HistoryLimits {
        messages: 100,
        ttl: HISTORY_TTL,
    };
    let classes = Classes::new(limits, &[]);
    History::new(budget, classes, Epochs::new(7, 0, 1), now)
}

/// Names of streams with the hashes that a process gives them.
fn streams(count: usize) -> Vec<(String, u64)> {
    let hasher = RandomState::new();
    let names = (0..count).map(|it| format!("a stream {it:07}"));
    names
        .map(|name| {
            let hash = hasher.hash_one(&name);
            (name, hash)
        })
        .collect()
}

/// Appends a message to each stream, `times` times.
fn append(
    history: &mut History<Unbounded>,
    streams: &[(String, u64)],
    message: &[u8],
    times: usize,
    now: Instant,
) {
    for &(ref name, hash) in std::iter::repeat_n(streams, times).flatten() {
        history.append(StreamKey { name, hash }, &message.into(), now);
    }
}

#[test]
fn a_stored_message_takes_no_more_than_its_bar_and_is_charged_for() {
    let now = Instant::now();
    // The allocator has classes for these sizes with the two counts in front of the text.
    for bytes in [112, 240, 1_008] {
        for (count, times) in [(5_000, 2), (5_000, 5), (1_000, 20), (1_000, 60), (500, 99)] {
            let (streams, message) = (streams(count), vec![b'x'; bytes]);
            let budget = Unbounded::default();
            let mut history = history(budget.clone(), now);
            // So the streams themselves are not counted.
            append(&mut history, &streams, &message, 1, now);
            let before = (ALLOCATED.get(), budget.used.get());
            append(&mut history, &streams, &message, times, now);
            let each = |bytes_of_all: usize| bytes_of_all / (count * times) - bytes;
            let taken = each(ALLOCATED.get() - before.0);
            let charged = each(budget.used.get() - before.1);
            println!("{times} messages of {bytes} bytes: {taken} beside them, {charged} charged");
            assert!(taken <= STORED_MESSAGE_BYTES_MAX, "{taken}");
            assert!(charged >= taken, "{charged} of {taken}");
        }
    }
}

#[test]
fn a_stream_takes_no_more_than_its_bar_and_is_charged_for() {
    let now = Instant::now();
    for count in COUNTS {
        let streams = streams(count);
        let make = |budget: Unbounded| {
            let mut history = history(budget, now);
            append(&mut history, &streams, &[b'x'; 100], 3, now);
            history.sweep(now + HISTORY_TTL, usize::MAX);
            let totals = history.totals();
            assert_eq!((totals.streams, totals.messages), (count, 0));
            history
        };
        let remove = |history: &mut History<Unbounded>| {
            history.sweep(now + 10 * HISTORY_TTL, usize::MAX);
            assert_eq!(history.totals().streams, 0);
        };
        let (taken, charged) = measured(make, remove);
        let name = streams[0].0.len();
        let (taken, charged) = (taken / count - name, charged / count - name);
        println!("{count} idle streams: {taken} bytes each beside the name, {charged} charged");
        assert!(taken <= IDLE_STREAM_BYTES_MAX, "{taken}");
        assert!(charged >= taken, "{charged} of {taken}");
    }
}

#[test]
fn an_idempotency_key_is_charged_for() {
    let now = Instant::now();
    for count in COUNTS {
        let texts: Vec<String> = (0..count).map(|it| it.to_string()).collect();
        let make = |budget: Unbounded| {
            let mut keys = SeenKeys::new(budget);
            texts
                .iter()
                .for_each(|key| _ = keys.see("a stream", key, now));
            assert_eq!(keys.len(), count);
            keys
        };
        let remove = |keys: &mut SeenKeys<Unbounded>| _ = keys.sweep(now + KEY_WINDOW, usize::MAX);
        let (taken, charged) = measured(make, remove);
        let (taken, charged) = (taken / count, charged / count);
        println!("{count} keys: {taken} bytes each, {charged} charged");
        assert!(charged >= taken, "{charged} of {taken}");
    }
}
