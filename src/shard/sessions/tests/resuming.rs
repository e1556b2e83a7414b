//! Sessions that come back: what may not be restored, and what restored subscriptions hold back. The test plays the shard
//! that knows the earlier session.

use super::*;
use crate::broker::sessions::{SessionSnapshot, SubscriptionSnapshot};
use crate::hub::Marks;
use crate::mesh::Lease;
use crate::protocol::position::{Epoch, Position};
use crate::shard::message::{BrokerAnswer, HomeMessage, HomeQuestion, ResumeMessage};
use crate::shard::sessions::Kept;
use crate::shard::sessions::resuming::RESUME_HOLD_MAX;

pub(super) const BROKER: &[&str] = &[
    "--norpc",
    "--public",
    "--broker=memory",
    "--ping_interval=0",
];
const IDENTITY: &str = r#"{"user":"5"}"#;

/// A bench that keeps sessions.
fn on_both_keeping(test: impl Fn(&mut Bench)) {
    on_both_keeping_with(&[], test);
}

fn on_both_keeping_with(args: &[&str], test: impl Fn(&mut Bench)) {
    on_both(&[BROKER, args].concat(), |bench| {
        bench.sessions.kept = Some(keeping());
        test(bench);
    });
}

pub(super) fn transport(extended: bool) -> Transport {
    Transport::WebSocket {
        extended,
        deflate: false,
    }
}

pub(super) fn keeping() -> Kept {
    let lease = Rc::new(Lease::new(ProcessBudget::new(None, 1)));
    Kept::new(Duration::from_secs(300), lease)
}

pub(super) fn identifier(stream: &str) -> String {
    format!(r#"{{"channel":"$pubsub","stream_name":"{stream}"}}"#)
}

/// A client that has come back; its shard waits for the answer.
pub(super) fn coming_back(bench: &mut Bench) -> (Client, SessionRef) {
    let client = bench.open(|new| {
        new.transport = EXTENDED;
        new.admission.earlier = Some("earlier".into());
    });
    let (session, sid) = bench
        .actions
        .drain(..)
        .find_map(asked_for)
        .expect("a question");
    assert_eq!(&*sid, "earlier");
    (client, session)
}

fn asked_for(action: Action) -> Option<(SessionRef, Box<str>)> {
    let Action::Tell {
        message: ShardMessage::Resume(message),
        ..
    } = action
    else {
        return None;
    };
    match *message {
        ResumeMessage::Find { session, sid } => Some((session, sid)),
        ResumeMessage::Found { .. } => None,
    }
}

/// An earlier session with these streams, each under an identifier of its own.
fn earlier(streams: &[&str]) -> SessionSnapshot {
    let subscription = |stream: &&str| SubscriptionSnapshot {
        identifier: identifier(stream).into(),
        streams: vec![((*stream).into(), Marks::default())],
    };
    SessionSnapshot {
        identifiers: IDENTITY.into(),
        subscriptions: streams.iter().map(subscription).collect(),
        ..SessionSnapshot::default()
    }
}

pub(super) fn restored(bench: &mut Bench, streams: &[&str]) -> Client {
    let (mut client, session) = coming_back(bench);
    bench.turn(|sessions| sessions.on_earlier(session, Some(earlier(streams))));
    assert!(client.next().contains(r#""restored":true"#));
    client
}

pub(super) fn stored(stream: &str, offset: u64) -> Publication {
    let position = Position {
        epoch: Epoch::from_bits(1),
        offset,
    };
    Publication {
        position: Some(position),
        ..message(stream, &offset.to_string())
    }
}

pub(super) fn ask_for_history(client: &mut Client, stream: &str) {
    client.say(&history_command(stream));
}

fn history_command(stream: &str) -> String {
    let position = json!({ stream: { "epoch": Epoch::from_bits(1).to_string(), "offset": 1 } });
    let history = json!({ "streams": position });
    json!({ "command": "history", "identifier": identifier(stream), "history": history })
        .to_string()
}

/// The next question has come: whose it is, and about which stream.
pub(super) fn asked(bench: &mut Bench) -> (SessionRef, Box<str>, HomeQuestion) {
    bench.until("question", |bench| !bench.actions.is_empty());
    match bench.actions.pop_front() {
        Some(Action::TellHome {
            message:
                HomeMessage::Ask {
                    session,
                    stream,
                    question,
                },
            ..
        }) => (session, stream, question),
        _ => panic!("another action"),
    }
}

/// As [`asked`], for a question for history: its last value is the place of the stream.
pub(super) fn history_question(bench: &mut Bench) -> (SessionRef, Box<str>, usize) {
    match asked(bench) {
        (session, stream, HomeQuestion::History { place, .. }) => (session, stream, place),
        (_, _, other) => panic!("{other:?}"),
    }
}

fn refuse(bench: &mut Bench, (session, _, place): (SessionRef, Box<str>, usize)) {
    bench.turn(|sessions| {
        sessions.on_broker_answer(session, BrokerAnswer::History { place, part: None })
    });
}

fn number(text: &str) -> u64 {
    let text: Value = serde_json::from_str(text).expect("JSON");
    text["offset"]
        .as_u64()
        .unwrap_or_else(|| panic!("no data: {text}"))
}

#[test]
fn what_is_held_back_comes_when_the_client_asks_for_nothing() {
    on_both_keeping(|bench| {
        let mut client = restored(bench, &["a"]);
        bench.broadcast(&stored("a", 2));
        bench.broadcast(&message("a", "1"));
        assert_eq!(
            client.next(),
            delivery(&identifier("a"), "1"),
            "what has no position is not held back"
        );
        bench.wait(RESUME_HOLD_MAX - TICK * 2);
        assert!(client.got_nothing(), "{}", bench.driver);
        bench.wait(TICK * 3);
        assert_eq!(number(&client.next()), 2);
        bench.broadcast(&stored("a", 3));
        assert_eq!(number(&client.next()), 3);
    });
}

#[test]
fn nothing_is_held_back_for_a_subscription_that_has_ended() {
    on_both_keeping(|bench| {
        let mut client = restored(bench, &["a", "b"]);
        bench.broadcast(&stored("a", 2));
        bench.broadcast(&stored("b", 2));
        client.command("unsubscribe", &identifier("a"));
        client.say(r#"{"command":"ping"}"#);
        bench.until("pong", |bench| {
            bench.counters().client_msg_total.value() >= 2
        });
        assert_eq!(client.next(), r#"{"type":"pong"}"#);
        let slot = bench.sessions.table.connections.iter().next();
        let (slot, _) = slot.expect("the client");
        let holding = bench.sessions.holdbacks.identifiers(slot as u32);
        assert_eq!(holding, [identifier("b").into()], "{}", bench.driver);
        bench.wait(RESUME_HOLD_MAX + TICK);
        let got: Value = serde_json::from_str(&client.next()).expect("JSON");
        assert_eq!(got["identifier"], identifier("b"), "{}", bench.driver);
        assert!(client.got_nothing(), "{}", bench.driver);
        drop(client);
        bench.until_empty();
        assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
    });
}

#[test]
fn subscriptions_wait_on_while_the_history_of_another_is_under_way() {
    on_both_keeping(|bench| {
        let mut client = restored(bench, &["a", "b"]);
        ask_for_history(&mut client, "a");
        ask_for_history(&mut client, "b");
        let question = history_question(bench);
        assert_eq!(&*question.1, "a");
        bench.broadcast(&stored("b", 2));
        bench.wait(RESUME_HOLD_MAX * 2);
        assert!(
            client.got_nothing(),
            "{}: the history of b comes first",
            bench.driver
        );
        refuse(bench, question);
        assert!(client.next().contains("reject_history"));
        let question = history_question(bench);
        assert_eq!(&*question.1, "b");
        assert!(client.got_nothing(), "{}", bench.driver);
        refuse(bench, question);
        assert!(client.next().contains("reject_history"));
        assert_eq!(number(&client.next()), 2);
        bench.wait(RESUME_HOLD_MAX * 2);
        assert!(client.got_nothing(), "{}", bench.driver);
    });
}

/// The second question is read together with the first one, and then so much waits for the client that it is not handled.
#[test]
fn a_question_that_cannot_be_handled_yet_is_waited_for() {
    // The server stops reading at half of what a session may hold.
    let bounds = [
        "--ws_max_pending_size=0",
        "--session_bytes_max=1048576",
        "--ws_write_timeout=60",
    ];
    on_both_keeping_with(&bounds, |bench| {
        let mut client = restored(bench, &["a", "b"]);
        let [a, b] = ["a", "b"].map(|stream| masked(0x81, history_command(stream).as_bytes()));
        client.send(&[a, b].concat());
        let question = history_question(bench);
        assert_eq!(&*question.1, "a");
        narrow(bench, &client, question.0.slot);
        let text = format!("\"{}\"", "x".repeat(100_000));
        for offset in 2..10 {
            bench.broadcast(&Publication {
                message: text.as_bytes().into(),
                ..stored("a", offset)
            });
        }
        bench.broadcast(&stored("b", 2));
        refuse(bench, question);
        assert!(bench.outbox_bytes() > 600_000, "{}", bench.driver);
        bench.wait(RESUME_HOLD_MAX * 2);

        let mut frames = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while bench.actions.is_empty() {
            assert!(Instant::now() < deadline, "{}: no question", bench.driver);
            frames.extend(client.next_now());
            bench.harvest();
        }
        let question = history_question(bench);
        assert_eq!(&*question.1, "b");
        refuse(bench, question);
        while frames.len() < 11 {
            frames.extend(client.next_now());
            bench.harvest();
        }
        assert!(frames[0].contains("reject_history"));
        let offsets: Vec<u64> = frames[1..9].iter().map(|text| number(text)).collect();
        assert_eq!(offsets, (2..10).collect::<Vec<u64>>());
        assert!(frames[9].contains("reject_history"), "{}", bench.driver);
        assert_eq!(number(&frames[10]), 2);
    });
}

/// Leaves little room in both sockets of a connection.
fn narrow(bench: &Bench, client: &Client, slot: u32) {
    let server = &bench.sessions.table.connections[slot as usize].socket;
    SockRef::from(server.as_ref().expect("a socket"))
        .set_send_buffer_size(8 << 10)
        .expect("an option of every socket");
    SockRef::from(&client.socket)
        .set_recv_buffer_size(8 << 10)
        .expect("an option of every socket");
}

/// The question is in the socket, and the shard has had no time to look.
#[test]
fn a_question_that_has_not_been_read_yet_is_waited_for() {
    on_both_keeping(|bench| {
        let mut client = restored(bench, &["a"]);
        bench.broadcast(&stored("a", 2));
        ask_for_history(&mut client, "a");
        bench.wait(RESUME_HOLD_MAX + TICK);
        let question = history_question(bench);
        assert!(
            client.got_nothing(),
            "{}: history comes first",
            bench.driver
        );
        refuse(bench, question);
        assert!(client.next().contains("reject_history"));
        assert_eq!(number(&client.next()), 2);
    });
}

#[test]
fn a_session_that_is_disconnected_remotely_meanwhile_is_not_restored() {
    on_both_keeping(|bench| {
        // The one that has come just before may not have reached the shard that answers.
        for before in [false, true] {
            if before {
                bench.disconnect_remotely(IDENTITY, true);
            }
            let (mut client, session) = coming_back(bench);
            if !before {
                bench.disconnect_remotely(IDENTITY, true);
            }
            bench.turn(|sessions| sessions.on_earlier(session, Some(earlier(&["a"]))));
            let welcome = client.next();
            assert!(
                welcome.contains("welcome") && !welcome.contains("restored"),
                "{welcome}"
            );
        }
        bench.wait(Duration::from_secs(11));
        restored(bench, &["a"]);
        // More than the shard remembers.
        let (mut client, session) = coming_back(bench);
        for other in 0..=1024 {
            bench.disconnect_remotely(&other.to_string(), true);
        }
        bench.turn(|sessions| sessions.on_earlier(session, Some(earlier(&["a"]))));
        assert!(!client.next().contains("restored"));
        restored(bench, &["a"]);
    });
}

#[test]
fn a_client_that_goes_while_its_question_is_open_leaves_nothing() {
    on_both_keeping(|bench| {
        let (client, session) = coming_back(bench);
        drop(client);
        bench.turn(|sessions| sessions.on_earlier(session, Some(earlier(&["a"]))));
        bench.until_empty();
        let mut client = restored(bench, &["a"]);
        ask_for_history(&mut client, "a");
        let question = history_question(bench);
        bench.broadcast(&stored("a", 2));
        bench.disconnect_remotely(IDENTITY, true);
        drop(client);
        bench.until_empty();
        refuse(bench, question);
        assert!(bench.sessions.holdbacks.is_empty(), "{}", bench.driver);
        assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
    });
}

#[test]
fn a_session_that_can_be_written_to_again_still_waits_for_its_answer() {
    on_both_keeping(|bench| {
        let mut client = restored(bench, &["a"]);
        ask_for_history(&mut client, "a");
        let question = history_question(bench);
        // Served for another reason than the answer.
        client.say(r#"{"command":"ping"}"#);
        let slot = question.0.slot;
        bench.turn(|sessions| sessions.go_on_replay(slot));
        bench.harvest();
        refuse(bench, question);
        assert!(client.next().contains("reject_history"));
        bench.until("pong", |bench| {
            bench.counters().client_msg_total.value() >= 2
        });
        assert_eq!(client.next(), r#"{"type":"pong"}"#);
    });
}
