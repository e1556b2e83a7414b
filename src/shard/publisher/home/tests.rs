//! What one shard keeps for the streams at home there, and what it answers.

use std::time::Duration;

use ahash::RandomState;

use super::*;
use crate::broker::idempotency::KEY_BYTES;
use crate::broker::presence::{JoinRefusal, Stay};
use crate::config::{BrokerAdapter, HistoryLimits, MemoryBound};
use crate::mesh::ProcessBudget;
use crate::metrics::Metrics;

/// Nobody is present longer than the session, and nothing is kept longer than `history_ttl`.
fn config(history_ttl: Duration) -> BrokerConfig {
    let limits = |messages| HistoryLimits {
        messages,
        ttl: history_ttl,
    };
    BrokerConfig {
        adapter: BrokerAdapter::Memory,
        history: limits(100),
        history_by_prefix: vec![("short/".into(), limits(1))],
        sessions_ttl: Duration::ZERO,
        presence_ttl: Duration::ZERO,
        memory: MemoryBound::None,
    }
}

/// A home with a bound for each kind of memory.
pub fn home_within(history_ttl: Duration, bytes_max: [Option<usize>; 2]) -> Home {
    let [history, others] =
        bytes_max.map(|bytes_max| Rc::new(Lease::new(ProcessBudget::new(bytes_max, 1))));
    let interest = Arc::new(Interest::new(2, RandomState::new()));
    let leases = BrokerLeases { history, others };
    Home::new(&config(history_ttl), interest, leases, Epochs::new(7, 0, 1))
}

fn home() -> Home {
    home_within(Duration::from_secs(300), [None; 2])
}

fn publication(stream: &str, message: &str) -> Publication {
    Publication {
        stream: stream.into(),
        message: message.as_bytes().into(),
        ..Publication::default()
    }
}

/// Publishes, and returns the offsets of what has to be delivered.
fn sequence(home: &mut Home, publications: &[Publication]) -> Vec<Option<u64>> {
    let sequenced = home.sequence(publications.into());
    let offsets = sequenced.iter().map(|it| it.position.map(|it| it.offset));
    offsets.collect()
}

fn ask(home: &mut Home, stream: &str, question: HomeQuestion) -> (BrokerAnswer, Vec<String>) {
    let mut events = Vec::new();
    let answer = home.answer(stream, question, &mut events);
    (answer, texts(&events))
}

/// Streams and messages of presence events.
fn texts(events: &[Publication]) -> Vec<String> {
    let text = |event: &Publication| {
        assert!(event.transient && event.position.is_none());
        let message = str::from_utf8(&event.message).expect("UTF-8");
        format!("{} {message}", event.stream)
    };
    events.iter().map(text).collect()
}

fn history(home: &mut Home, stream: &str, start: HistoryStart) -> Option<Vec<u64>> {
    match ask(home, stream, HomeQuestion::History { place: 3, start }).0 {
        BrokerAnswer::History { place: 3, part } => {
            Some(part?.entries().map(|(at, _)| at.offset).collect())
        }
        other => panic!("{other:?}"),
    }
}

fn join(
    home: &mut Home,
    stream: &str,
    sid: &str,
    id: &str,
) -> (Result<(), JoinRefusal>, Vec<String>) {
    let question = HomeQuestion::Join {
        sid: sid.into(),
        id: id.into(),
        info: None,
        stay: Stay::Connected,
    };
    match ask(home, stream, question) {
        (BrokerAnswer::Joined(joined), events) => (joined, events),
        other => panic!("{other:?}"),
    }
}

fn sweep(home: &mut Home) -> Vec<String> {
    let mut events = Vec::new();
    while home.sweep(Instant::now(), &mut events) {}
    texts(&events)
}

fn used_bytes(home: &Home) -> [usize; 2] {
    [
        home.leases.history.used_bytes(),
        home.leases.others.used_bytes(),
    ]
}

#[test]
fn what_is_stored_gets_its_place_and_a_repetition_is_left_out() {
    let mut home = home();
    let transient = Publication {
        transient: true,
        ..publication("a", "t")
    };
    let keyed = |stream| Publication {
        idempotency_key: Some("k".into()),
        ..publication(stream, "k")
    };
    let batch = [
        publication("a", "1"),
        transient,
        publication("b", "1"),
        keyed("a"),
    ];
    assert_eq!(
        sequence(&mut home, &batch),
        [Some(1), None, Some(1), Some(2)]
    );
    assert_eq!(
        sequence(&mut home, &[keyed("a"), keyed("b"), publication("a", "3")]),
        [Some(2), Some(3)],
        "a key counts within its stream"
    );
    assert!(sequence(&mut home, &[keyed("a")]).is_empty());
    assert_eq!(
        history(&mut home, "a", HistoryStart::Since(1)),
        Some(vec![1, 2, 3])
    );
    let epoch = |home: &mut Home, stream: &str| {
        let sequenced = home.sequence([publication(stream, "1")].into());
        sequenced[0].position.expect("a place")
    };
    let (one, other) = (epoch(&mut home, "a"), epoch(&mut home, "b"));
    assert_ne!(one.epoch, other.epoch);
    assert_eq!(
        history(&mut home, "a", HistoryStart::After(one)),
        Some(vec![])
    );
    assert_eq!(history(&mut home, "a", HistoryStart::After(other)), None);
    assert_eq!(
        history(&mut home, "never seen", HistoryStart::After(one)),
        None
    );
}

#[test]
fn limits_by_prefix_are_those_of_the_configuration() {
    let mut home = home();
    for stream in ["short/1", "shorter"] {
        sequence(
            &mut home,
            &[publication(stream, "1"), publication(stream, "2")],
        );
    }
    assert_eq!(
        history(&mut home, "short/1", HistoryStart::Since(1)),
        Some(vec![2])
    );
    assert_eq!(
        history(&mut home, "shorter", HistoryStart::Since(1)),
        Some(vec![1, 2])
    );
}

#[test]
fn members_come_and_go_with_an_event_each() {
    let mut home = home();
    let members = |home: &mut Home, with_records| match ask(
        home,
        "room",
        HomeQuestion::Members { with_records },
    )
    .0
    {
        BrokerAnswer::Members(Ok(members)) => String::from_utf8(members.to_vec()).expect("UTF-8"),
        other => panic!("{other:?}"),
    };
    let leave = |home: &mut Home, sid: &str| match ask(
        home,
        "room",
        HomeQuestion::Leave { sid: sid.into() },
    ) {
        (BrokerAnswer::Left, events) => events,
        other => panic!("{other:?}"),
    };
    let joined = r#"room {"id":"5","type":"join"}"#.to_owned();
    let left = r#"room {"id":"5","type":"leave"}"#.to_owned();
    assert_eq!(
        join(&mut home, "room", "s1", "5"),
        (Ok(()), vec![joined.clone()])
    );
    assert_eq!(
        join(&mut home, "room", "s2", "5"),
        (Ok(()), vec![]),
        "the same member"
    );
    assert_eq!(
        join(&mut home, "room", "s2", "6"),
        (Err(JoinRefusal::OtherId), vec![])
    );
    assert_eq!(
        members(&mut home, true),
        r#"{"type":"info","total":1,"records":[{"id":"5"}]}"#
    );
    assert_eq!(members(&mut home, false), r#"{"type":"info","total":1}"#);
    assert_eq!(leave(&mut home, "s1"), [""; 0]);
    assert_eq!(leave(&mut home, "s2"), std::slice::from_ref(&left));
    assert_eq!(leave(&mut home, "s2"), [""; 0], "it is not there");

    assert_eq!(join(&mut home, "room", "s3", "5").1, [joined]);
    assert_eq!(sweep(&mut home), [""; 0], "its session lives");
    home.ended("s3");
    assert_eq!(sweep(&mut home), [left]);
    assert_eq!(used_bytes(&home), [0, 0]);
}

#[test]
fn nothing_is_charged_when_everything_is_old() {
    let mut home = home_within(Duration::ZERO, [None; 2]);
    let keyed = Publication {
        idempotency_key: Some("k".into()),
        ..publication("a", "1")
    };
    sequence(
        &mut home,
        &[publication("a", "1"), publication("b", "1"), keyed],
    );
    let [history, others] = used_bytes(&home);
    assert!(
        history > 0 && others == KEY_BYTES,
        "a key is remembered for its window"
    );
    sweep(&mut home);
    assert_eq!(used_bytes(&home), [0, KEY_BYTES]);
    let metrics = Metrics::new(1);
    let counters = &metrics.shards[0];
    home.report(counters);
    let gauges = [
        &counters.broker_bytes,
        &counters.broker_streams_num,
        &counters.broker_messages_num,
        &counters.presence_members_num,
    ];
    assert_eq!(
        gauges.map(|gauge| gauge.value()),
        [KEY_BYTES as i64, 0, 0, 0]
    );
}

/// One kind of memory takes nothing from the other.
#[test]
fn at_the_bound_of_its_kind_old_messages_go_joins_are_refused_and_keys_forgotten() {
    const BYTES_MAX: usize = 16 << 10;
    let mut home = home_within(Duration::from_secs(300), [Some(BYTES_MAX); 2]);
    let metrics = Metrics::new(1);
    let counters = &metrics.shards[0];
    assert_eq!(join(&mut home, "room", "s", "5").0, Ok(()));
    for number in 1..=100 {
        let message = format!("{number:01000}");
        assert_eq!(
            sequence(&mut home, &[publication("a", &message)]),
            [Some(number)]
        );
    }
    home.report(counters);
    let (kept, evicted) = (
        counters.broker_messages_num.value() as u64,
        counters.broker_evictions_total.value(),
    );
    assert!(kept > 10 && kept + evicted == 100, "{kept} + {evicted}");
    assert_eq!(
        history(&mut home, "a", HistoryStart::Since(1)),
        None,
        "never a part"
    );
    assert!(home.leases.history.used_bytes() <= BYTES_MAX);

    let mut refused = 0;
    for number in 0..200 {
        let sid = format!("{number:0100}");
        let (joined, events) = join(&mut home, "room", &sid, &sid);
        refused += usize::from(joined == Err(JoinRefusal::NoMemory));
        assert_eq!(joined.is_ok(), !events.is_empty());
    }
    assert!(refused > 0, "the bound was not reached");
    let keyed = |number: usize| Publication {
        transient: true,
        idempotency_key: Some(number.to_string().into()),
        ..publication("a", "k")
    };
    for number in 0..10 {
        assert_eq!(
            sequence(&mut home, &[keyed(number)]),
            [None],
            "it is delivered"
        );
    }
    home.report(counters);
    assert!(counters.idempotency_keys_forgotten_total.value() > 0);
    assert_eq!(counters.presence_members_num.value(), 201 - refused as i64);
    assert!(home.leases.others.used_bytes() <= BYTES_MAX);
    home.report(counters);
    assert_eq!(
        counters.broker_evictions_total.value(),
        evicted,
        "counted once"
    );
}
