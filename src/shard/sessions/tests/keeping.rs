//! What stays of sessions that end: those that may come back, and where they are present.

use super::resuming::*;
use super::*;
use crate::broker::presence::JoinRefusal;
use crate::mesh::Lease;
use crate::shard::message::{BrokerAnswer, HomeMessage};
use crate::shard::sessions::Kept;

const TTL: Duration = Duration::from_secs(300);

/// A bench whose kept sessions may take this much, and their lease.
fn on_both_within(bytes_max: Option<usize>, test: impl Fn(&mut Bench, &Lease)) {
    on_both(BROKER, |bench| {
        let lease = Rc::new(Lease::new(ProcessBudget::new(bytes_max, 1)));
        bench.sessions.kept = Some(Kept::new(TTL, Rc::clone(&lease)));
        test(bench, &lease);
    });
}

/// A client of the extended protocol that has been welcomed, and its sid.
fn extended(bench: &mut Bench) -> (Client, String) {
    let mut client = bench.open(|new| new.transport = EXTENDED);
    let welcome: Value = serde_json::from_str(&client.next()).expect("JSON");
    let sid = welcome["sid"].as_str().expect("a sid").to_owned();
    (client, sid)
}

/// The only client goes.
fn leave(bench: &mut Bench, client: Client) {
    drop(client);
    bench.until_empty();
}

fn is_found(bench: &mut Bench, sid: &str) -> bool {
    bench.turn(|sessions| sessions.find_earlier(sid)).is_some()
}

fn sweep(bench: &mut Bench) {
    let now = bench.now;
    while bench.sessions.sweep_kept(now) {}
}

#[test]
fn a_session_is_found_while_it_lives_and_for_a_while_afterwards() {
    on_both_within(None, |bench, lease| {
        let (client, sid) = extended(bench);
        assert!(is_found(bench, &sid) && !is_found(bench, "another"));
        assert_eq!(lease.used_bytes(), 0, "an open session has no copy");
        leave(bench, client);
        assert!(is_found(bench, &sid));
        sweep(bench);
        assert_eq!(bench.counters().sessions_kept_num.value(), 1);
        bench.wait(TTL - TICK * 2);
        assert!(is_found(bench, &sid), "{}", bench.driver);
        bench.wait(TICK * 4);
        assert!(!is_found(bench, &sid), "{}", bench.driver);
        assert!(lease.used_bytes() > 0);
        sweep(bench);
        assert_eq!(
            (
                lease.used_bytes(),
                bench.counters().sessions_kept_num.value()
            ),
            (0, 0)
        );
    });
}

#[test]
fn what_must_not_come_back_is_not_kept() {
    on_both_within(None, |bench, lease| {
        // The base protocol.
        let mut base = bench.open(|_| ());
        assert!(base.next().contains("welcome"));
        assert!(!is_found(bench, "s1"));
        leave(bench, base);
        // One that has not been authenticated: its shard waits for the answer about an earlier session.
        let (waiting, _) = coming_back(bench);
        assert!(!is_found(bench, "s2"));
        leave(bench, waiting);
        // One that was disconnected remotely while it lived, and one after its end.
        for ends_first in [false, true] {
            let (mut client, sid) = extended(bench);
            let identifiers = json!({ "sid": sid }).to_string();
            if ends_first {
                leave(bench, client);
                assert!(is_found(bench, &sid));
                bench.disconnect_remotely(&identifiers, true);
            } else {
                bench.disconnect_remotely(&identifiers, true);
                assert!(client.next().contains("remote"));
                leave(bench, client);
            }
            assert!(!is_found(bench, &sid), "{}", bench.driver);
        }
        bench.wait(TTL + TICK);
        sweep(bench);
        assert_eq!(lease.used_bytes(), 0);
        assert!(!is_found(bench, "s1") && !is_found(bench, "s2"));
    });
}

#[test]
fn at_the_bound_in_bytes_those_that_ended_first_cannot_come_back() {
    const BYTES_MAX: usize = 10_000;
    on_both_within(Some(BYTES_MAX), |bench, lease| {
        let mut sids = Vec::new();
        while bench.counters().session_evictions_total.value() < 5 {
            let (client, sid) = extended(bench);
            leave(bench, client);
            sids.push(sid);
            sweep(bench);
            assert!(lease.used_bytes() <= BYTES_MAX && sids.len() < 1000);
        }
        let found = sids.iter().map(|sid| is_found(bench, sid));
        let found: Vec<bool> = found.collect();
        assert_eq!(
            found.iter().filter(|found| !**found).count(),
            5,
            "{}",
            bench.driver
        );
        assert!(found.is_sorted(), "{}: {found:?}", bench.driver);
    });
}

/// A public stream has presence, and the name of the stream is that of the presence stream.
fn present(bench: &mut Bench, extended: bool, stream: &str) -> Client {
    let mut client = bench.open(|new| new.transport = transport(extended));
    bench.listen(&mut client, stream);
    client.say(&join(stream));
    client
}

fn join(stream: &str) -> String {
    json!({ "command": "join", "identifier": identifier(stream), "presence": { "id": "5" } })
        .to_string()
}

/// The streams whose homes are told of an end.
fn told_of_ends(bench: &mut Bench) -> Vec<String> {
    let ends = bench.actions.drain(..).filter_map(|action| match action {
        Action::TellHome {
            stream,
            message: HomeMessage::Ended { .. },
        } => Some(stream.into()),
        _ => None,
    });
    ends.collect()
}

#[test]
fn homes_are_told_of_the_end_of_sessions_that_are_present_or_may_become_present() {
    on_both_within(None, |bench, _| {
        let answers = |bench: &mut Bench, answer| {
            let (session, _, _) = asked(bench);
            bench.turn(|sessions| sessions.on_broker_answer(session, answer));
        };
        let joined = || BrokerAnswer::Joined(Ok(()));
        let refused = || BrokerAnswer::Joined(Err(JoinRefusal::NoMemory));

        let client = present(bench, true, "a");
        answers(bench, joined());
        leave(bench, client);
        assert_eq!(told_of_ends(bench), ["a"], "{}", bench.driver);

        let client = present(bench, true, "a");
        answers(bench, refused());
        assert_eq!(bench.counters().joins_refused_total.value(), 1);
        leave(bench, client);
        assert_eq!(
            told_of_ends(bench),
            [""; 0],
            "{}: it was refused",
            bench.driver
        );

        let client = present(bench, true, "a");
        let (session, _, _) = asked(bench);
        // The end of a client that waits is seen when it is answered, but that of its session may come before.
        bench.disconnect_remotely(r#"{"sid":"s3"}"#, true);
        leave(bench, client);
        assert_eq!(
            told_of_ends(bench),
            ["a"],
            "{}: the home may let it in",
            bench.driver
        );
        bench.turn(|sessions| sessions.on_broker_answer(session, joined()));

        let client = present(bench, false, "a");
        answers(bench, joined());
        leave(bench, client);
        assert_eq!(
            told_of_ends(bench),
            [""; 0],
            "{}: it expires by itself",
            bench.driver
        );

        let mut client = present(bench, true, "a");
        answers(bench, joined());
        client.say(&json!({ "command": "leave", "identifier": identifier("a") }).to_string());
        answers(bench, BrokerAnswer::Left);
        leave(bench, client);
        assert_eq!(
            told_of_ends(bench),
            [""; 0],
            "{}: it has left",
            bench.driver
        );
        assert_eq!(bench.counters().memory_bytes.value(), 0, "{}", bench.driver);
    });
}
