//! What sessions ask the broker: one question after the other, and nothing is read meanwhile. The test answers.

use super::resuming::*;
use super::*;
use crate::broker::presence::Stay;
use crate::session::HistoryStart;
use crate::shard::message::{BrokerAnswer, HomeQuestion, ResumeMessage};

/// A client that subscribes with a wish for history, joins, and sends more at once.
fn eager(bench: &mut Bench, extended: bool) -> Client {
    let mut client = bench.open(|new| new.transport = transport(extended));
    assert!(client.next().contains("welcome"));
    let subscribe = json!({
        "command": "subscribe",
        "identifier": identifier("a"),
        "history": { "since": 5 },
        "presence": { "id": "5", "info": "x".repeat(1000) },
    });
    client.say(&subscribe.to_string());
    let members = json!({ "command": "presence", "identifier": identifier("a") });
    client.say(&members.to_string());
    client.say(r#"{"command":"ping"}"#);
    client
}

#[test]
fn questions_are_asked_one_after_the_other_and_their_texts_are_charged() {
    on_both(BROKER, |bench| {
        for extended in [false, true] {
            let mut client = eager(bench, extended);
            let (session, stream, question) = asked(bench);
            assert!(client.next().contains("confirm_subscription"));
            assert_eq!(&*stream, "a");
            assert!(matches!(
                question,
                HomeQuestion::History {
                    place: 0,
                    start: HistoryStart::Since(5)
                }
            ));
            bench.harvest();
            assert!(bench.actions.is_empty(), "{}: it waits", bench.driver);
            let waiting = bench.counters().memory_bytes.value();

            let answer = BrokerAnswer::History {
                place: 0,
                part: Some(Default::default()),
            };
            bench.turn(|sessions| sessions.on_broker_answer(session, answer));
            assert!(client.next().contains("confirm_history"));
            let (_, stream, question) = asked(bench);
            let stay = if extended {
                Stay::Connected
            } else {
                Stay::Expiring
            };
            assert!(
                matches!(&question, HomeQuestion::Join { id, stay: of_question, .. }
                    if &**id == "5" && *of_question == stay),
                "{stream}: {question:?}"
            );
            assert!(
                client.got_nothing(),
                "{}: the pong comes later",
                bench.driver
            );
            let joining = bench.counters().memory_bytes.value();
            bench.turn(|sessions| {
                sessions.on_broker_answer(session, BrokerAnswer::Joined(Ok(())));
            });
            let (_, _, question) = asked(bench);
            assert!(matches!(
                question,
                HomeQuestion::Members { with_records: true }
            ));
            let asking = bench.counters().memory_bytes.value();
            assert!(
                waiting > joining && joining > asking + 900,
                "{waiting}, {joining}, {asking}"
            );
            let members = BrokerAnswer::Members(Ok(r#"{"type":"info","total":1}"#.into()));
            bench.turn(|sessions| sessions.on_broker_answer(session, members));
            assert!(client.next().contains(r#""total":1"#));
            bench.flush();
            assert_eq!(client.next(), r#"{"type":"pong"}"#, "{}", bench.driver);
            drop(client);
            bench.until_empty();
            assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
            bench.actions.clear();
        }
    });
}

#[test]
fn a_client_that_goes_with_questions_waiting_leaves_nothing() {
    on_both(BROKER, |bench| {
        let client = eager(bench, true);
        let (session, _, _) = asked(bench);
        // The end of a client that waits is seen when it is answered, but that of its session may come before.
        bench.disconnect_remotely(r#"{"sid":"s1"}"#, true);
        drop(client);
        bench.until_empty();
        assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
        let answer = BrokerAnswer::History {
            place: 0,
            part: None,
        };
        bench.turn(|sessions| sessions.on_broker_answer(session, answer));
        assert!(
            bench.actions.is_empty(),
            "{}: nothing is asked any more",
            bench.driver
        );
        assert!(bench.sessions.holdbacks.is_empty(), "{}", bench.driver);
    });
}

#[test]
fn who_is_not_present_asks_nobody_to_leave() {
    on_both(BROKER, |bench| {
        let mut client = bench.open(|_| ());
        let identifier = bench.listen(&mut client, "a");
        client.command("leave", &identifier);
        client.command("unsubscribe", &identifier);
        client.say(r#"{"command":"ping"}"#);
        bench.until_count(|it| &it.client_msg_total, 4);
        assert_eq!(client.next(), r#"{"type":"pong"}"#);
        assert!(bench.actions.is_empty(), "{}", bench.driver);
    });
}

/// A sid that names a shard is asked for there; any other might be anywhere.
#[test]
fn an_earlier_session_is_asked_for_where_it_may_be() {
    let sid_of = |shard| crate::protocol::sid::encode_sid_of_shard([0; 21], shard);
    on_both(BROKER, |bench| {
        bench.sessions.kept = Some(keeping());
        bench.sessions.common = Rc::new(crate::shard::sessions::common::Common::new(
            0,
            3,
            Arc::new(config(BROKER)),
            Rc::clone(&bench.sessions.common.budget),
        ));
        for (earlier, expected) in [
            (sid_of(2), vec![2]),
            (sid_of(0), vec![0]),
            (sid_of(3), vec![0, 1, 2]),
            ("from-a-proxy".to_owned(), vec![0, 1, 2]),
        ] {
            let client = bench.open(|new| {
                new.transport = EXTENDED;
                new.admission.earlier = Some(earlier.clone());
            });
            let shards = bench.actions.drain(..).map(|action| match action {
                Action::Tell {
                    shard,
                    message: ShardMessage::Resume(message),
                } => {
                    assert!(
                        matches!(&*message, ResumeMessage::Find { sid, .. } if **sid == *earlier)
                    );
                    shard
                }
                _ => panic!("another action"),
            });
            assert_eq!(shards.collect::<Vec<_>>(), expected, "{earlier}");
            drop(client);
            bench.until_empty();
        }
    });
}
