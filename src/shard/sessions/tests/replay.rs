//! The replay of missed messages to clients that take them slowly, and what is held back meanwhile. The test plays the home.

use super::resuming::*;
use super::*;
use crate::broker::history::{Classes, Epochs, History, Part};
use crate::broker::{Budget, StreamKey};
use crate::config::HistoryLimits;
use crate::shard::message::BrokerAnswer;

struct Unbounded;

impl Budget for Unbounded {
    fn try_charge(&self, _bytes: usize) -> bool {
        true
    }

    fn release(&self, _bytes: usize) {}
}

/// The history of one stream, whose epoch is that of [`stored`].
fn part(messages: usize, message_bytes: usize) -> Part {
    let limits = HistoryLimits {
        messages,
        ttl: PATIENCE,
    };
    let classes = Classes::new(limits, &[]);
    let now = Instant::now();
    let mut history = History::new(Unbounded, classes, Epochs::new(1, 0, 1), now);
    let key = || StreamKey { name: "a", hash: 1 };
    for number in 1..=messages {
        history.append(
            key(),
            &large(number as u64, message_bytes).into_bytes().into(),
            now,
        );
    }
    history.newest(key(), messages).expect("a known stream")
}

/// A message of this size, which is its offset.
fn large(offset: u64, message_bytes: usize) -> String {
    format!("{offset:message_bytes$}")
}

fn live(offset: u64, message_bytes: usize) -> Publication {
    Publication {
        message: large(offset, message_bytes).into_bytes().into(),
        ..stored("a", offset)
    }
}

/// A restored client, to which the socket has little room, and which has asked for the history of its stream.
fn asking(bench: &mut Bench) -> (Client, SessionRef) {
    let mut client = restored(bench, &["a"]);
    ask_for_history(&mut client, "a");
    let (session, _, _) = history_question(bench);
    let connection = &bench.sessions.table.connections[session.slot as usize];
    SockRef::from(connection.socket.as_ref().expect("a WebSocket has one"))
        .set_send_buffer_size(8 << 10)
        .expect("an option of every socket");
    (client, session)
}

fn answer(bench: &mut Bench, session: SessionRef, part: Part) {
    let answer = BrokerAnswer::History {
        place: 0,
        part: Some(part),
    };
    bench.turn(|sessions| sessions.on_broker_answer(session, answer));
}

/// Reads so many texts; the server goes on meanwhile.
fn read(bench: &mut Bench, client: &mut Client, count: usize) -> Vec<Value> {
    let deadline = Instant::now() + PATIENCE * 4;
    let mut texts = Vec::new();
    while texts.len() < count {
        assert!(
            Instant::now() < deadline,
            "{}: {} of {count}",
            bench.driver,
            texts.len()
        );
        match client.next_now() {
            Some(text) => texts.push(serde_json::from_str(&text).expect("JSON")),
            None => bench.harvest(),
        }
    }
    texts
}

const MESSAGES: usize = 400;
const MESSAGE_BYTES: usize = 2_000;
const PENDING: &[&str] = &[
    "--norpc",
    "--public",
    "--broker=memory",
    "--ping_interval=0",
    "--ws_max_pending_size=20000",
    "--session_bytes_max=100000",
];

#[test]
fn a_replay_larger_than_the_pending_limit_waits_for_its_client() {
    on_both(PENDING, |bench| {
        bench.sessions.kept = Some(keeping());
        let (mut client, session) = asking(bench);
        answer(bench, session, part(MESSAGES, MESSAGE_BYTES));
        bench.flush();
        let next = MESSAGES as u64 + 1;
        bench.broadcast(&live(next, MESSAGE_BYTES));
        assert!(
            bench.outbox_bytes() < 2 * 20_000 + 2 * MESSAGE_BYTES as i64,
            "{}: {} wait",
            bench.driver,
            bench.outbox_bytes()
        );
        let replayed = bench.counters().history_messages_total.value() as usize;
        assert!(
            replayed < MESSAGES / 2,
            "{}: {replayed} at once",
            bench.driver
        );
        let got = read(bench, &mut client, MESSAGES + 2);
        let offsets: Vec<u64> = got.iter().filter_map(|it| it["offset"].as_u64()).collect();
        assert_eq!(offsets, (1..=next).collect::<Vec<_>>(), "{}", bench.driver);
        assert_eq!(got[MESSAGES]["type"], "confirm_history", "{}", bench.driver);
        assert_eq!(bench.counters().disconnected_slow_clients_total.value(), 0);
        bench.broadcast(&live(next + 1, 10));
        assert_eq!(read(bench, &mut client, 1)[0]["offset"], next + 1);
        drop(client);
        bench.until_empty();
        assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
    });
}

#[test]
fn a_client_that_goes_during_its_replay_leaves_nothing() {
    on_both(PENDING, |bench| {
        bench.sessions.kept = Some(keeping());
        let (client, session) = asking(bench);
        answer(bench, session, part(MESSAGES, MESSAGE_BYTES));
        bench.broadcast(&live(MESSAGES as u64 + 1, MESSAGE_BYTES));
        drop(client);
        bench.until_empty();
        assert!(bench.sessions.holdbacks.is_empty(), "{}", bench.driver);
        assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
    });
}

const LARGE_BYTES: usize = 20_000;
const SMALL: &[&str] = &[
    "--norpc",
    "--public",
    "--broker=memory",
    "--ping_interval=0",
    "--session_bytes_max=100000",
];

#[test]
fn a_session_that_holds_back_more_than_it_may_is_slow() {
    on_both(SMALL, |bench| {
        bench.sessions.kept = Some(keeping());
        let (mut client, session) = asking(bench);
        for offset in 1..5 {
            bench.broadcast(&live(offset, LARGE_BYTES));
        }
        assert!(
            client.got_nothing(),
            "{}: it may hold this much back",
            bench.driver
        );
        let held = bench.sessions.holdbacks.bytes(session.slot);
        assert!((4 * LARGE_BYTES..100_000).contains(&held), "{held}");
        bench.broadcast(&live(5, LARGE_BYTES));
        assert_eq!(client.next(), TOO_SLOW, "{}", bench.driver);
        let counters = bench.counters();
        assert_eq!(counters.disconnected_slow_clients_total.value(), 1);
        assert_eq!(counters.session_bytes_exceeded_total.value(), 1);
        assert!(bench.sessions.holdbacks.is_empty(), "{}", bench.driver);
        drop(client);
        bench.until_empty();
        assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
    });
}

#[test]
fn several_subscriptions_of_one_session_hold_back_within_one_bound() {
    on_both(SMALL, |bench| {
        bench.sessions.kept = Some(keeping());
        let mut client = restored(bench, &["a", "b"]);
        for offset in 1..4 {
            for stream in ["a", "b"] {
                bench.broadcast(&Publication {
                    stream: stream.into(),
                    ..live(offset, LARGE_BYTES)
                });
            }
        }
        assert_eq!(client.next(), TOO_SLOW, "{}", bench.driver);
        drop(client);
        bench.until_empty();
        assert!(bench.sessions.holdbacks.is_empty(), "{}", bench.driver);
        assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
    });
}
