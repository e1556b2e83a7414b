//! Ends of sessions: by the client and by a remote disconnect.

use super::*;

#[test]
fn a_client_that_leaves_during_a_command_is_noticed_when_the_answer_is_there() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        client.command("subscribe", "A");
        let call = bench.call();
        drop(client);
        for _ in 0..10 {
            bench.harvest();
        }
        assert_eq!((bench.clients(), call.is_canceled()), (1, false));
        bench.answer(call, json!({ "status": 1, "streams": ["x"] }));
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert_eq!((bench.clients(), bench.survey().streams.len()), (0, 0));
    });
}

#[test]
fn a_connect_that_was_sent_comes_to_its_end_without_its_client() {
    on_both(WITH_RPC, |bench| {
        drop(bench.open(|_| ()));
        let call = bench.call();
        call.handle.note_sent();
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert!(!call.is_canceled());
        bench.answer(
            call,
            json!({ "status": 1, "identifiers": "u", "transmissions": ["late"] }),
        );
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert_eq!(bench.clients(), 0);
    });
}

#[test]
fn two_sessions_may_have_the_same_sid() {
    on_both(WITH_RPC, |bench| {
        let mut twins: Vec<Client> = (0..2)
            .map(|_| {
                let mut client = bench.open(|new| new.admission.sid = "twin".into());
                let call = bench.call();
                bench.answer(
                    call,
                    json!({ "status": 1, "identifiers": "u", "transmissions": ["welcome"] }),
                );
                assert_eq!(client.next(), "welcome");
                bench.subscribe(&mut client, "A", &["x"]);
                client
            })
            .collect();
        bench.broadcast(&message("x", "1"));
        for twin in &mut twins {
            assert_eq!(twin.next(), delivery("A", "1"));
        }
        drop(twins.remove(0));
        bench.until_count(|counters| &counters.closed_client_total, 1);
        assert_eq!(bench.clients(), 1);
        bench.broadcast(&message("x", "2"));
        bench.disconnect_remotely("u", true);
        let notice = r#"{"type":"disconnect","reason":"remote","reconnect":true}"#;
        let expected = [
            &*delivery("A", "2"),
            notice,
            "close 1000 Closed remotely",
            "end",
        ];
        assert_eq!(twins[0].rest(), expected);
        assert_eq!(bench.disconnect_jobs(), ["twin", "twin"]);
    });
}

#[test]
fn a_remote_disconnect_closes_every_session_of_the_user_and_nobody_else() {
    on_both(WITH_RPC, |bench| {
        let mut tabs = [bench.welcomed("u"), bench.welcomed("u")];
        let mut other = bench.welcomed("v");
        let mut waiting = bench.open(|_| ());
        let connect = bench.call();
        for identifiers in ["", "U", "u "] {
            bench.disconnect_remotely(identifiers, true);
        }
        assert_eq!(bench.clients(), 3);
        bench.disconnect_remotely("u", false);
        let notice = r#"{"type":"disconnect","reason":"remote","reconnect":false}"#;
        for tab in &mut tabs {
            assert_eq!(tab.rest(), [notice, "close 1000 Closed remotely", "end"]);
        }
        assert_eq!(
            (
                bench.clients(),
                bench.counters().closed_remote_total.value()
            ),
            (1, 2)
        );
        assert_eq!(bench.disconnect_jobs(), ["s1", "s2"]);
        bench.subscribe(&mut other, "A", &["x"]);
        bench.answer(
            connect,
            json!({ "status": 1, "identifiers": "u", "transmissions": ["welcome"] }),
        );
        assert_eq!(waiting.next(), "welcome");
        bench.disconnect_remotely("u", true);
        assert!(waiting.next().ends_with(r#""reconnect":true}"#));
    });
}
