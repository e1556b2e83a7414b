//! Connections of the console in the table, and searches for it.

use super::*;
use crate::console::IDENTIFIER;
use crate::console::search::{HITS_MAX, Query};
use crate::shard::sessions::{CONSOLE_CONNECTIONS_MAX, Scan};

impl Bench {
    /// A connection of the console that has got its welcome.
    fn open_console(&mut self) -> Client {
        let (new, mut client) = self.upgraded("console");
        self.turn(|sessions| sessions.open_console(new));
        assert_eq!(client.next(), r#"{"type":"welcome","sid":"console"}"#);
        client
    }

    fn watch(&mut self, client: &mut Client) {
        client.command("subscribe", IDENTIFIER);
        self.until("action", |bench| !bench.actions.is_empty());
        assert!(matches!(self.actions.pop_front(), Some(Action::Watch)));
        assert_eq!(
            client.next(),
            r#"{"type":"confirm_subscription","identifier":"{\"channel\":\"ringcable:console\"}"}"#
        );
    }

    fn show(&mut self, snapshot: &str) -> usize {
        self.turn(|sessions| sessions.show_snapshot(snapshot.as_bytes()))
    }

    /// The sids that a search finds, and the number of looks it needed.
    fn search(&self, text: &str, slots_max: usize) -> (Vec<String>, usize) {
        let mut scan = Scan::new(Arc::new(Query::new(text)));
        let mut looks = 1;
        while !self.sessions.look(&mut scan, slots_max) {
            looks += 1;
        }
        (
            scan.found.into_iter().map(|found| found.sid).collect(),
            looks,
        )
    }
}

#[test]
fn who_watches_gets_snapshots_and_is_no_client_of_the_app() {
    on_both(WITH_RPC, |bench| {
        let mut console = bench.open_console();
        assert_eq!(bench.show("1"), 0, "nobody has asked for it");
        bench.watch(&mut console);
        assert_eq!(bench.show(r#"{"a":1}"#), 1);
        assert_eq!(
            console.next(),
            r#"{"identifier":"{\"channel\":\"ringcable:console\"}","message":{"a":1}}"#
        );
        assert_eq!(bench.clients(), 0);
        assert!(bench.survey().identities.is_empty());
        assert_eq!(bench.counters().client_msg_total.value(), 0);
        assert_eq!(bench.search("", 100).0, Vec::<String>::new());

        drop(console);
        bench.until("end of the connection", |bench| {
            bench.sessions.console_connections() == 0
        });
        assert_eq!(bench.disconnect_jobs(), Vec::<String>::new());
        assert_eq!(bench.counters().closed_client_total.value(), 0);
    });
}

#[test]
fn the_app_cannot_speak_to_the_console_nor_end_it() {
    on_both(WITH_RPC, |bench| {
        let mut console = bench.open_console();
        bench.watch(&mut console);
        for stream in [IDENTIFIER, "ringcable:console", ""] {
            bench.broadcast(&message(stream, "spoofed"));
        }
        bench.disconnect_remotely("", false);
        bench.show("2");
        assert!(console.next().ends_with(r#""message":2}"#));
    });
}

#[test]
fn an_ordinary_client_that_names_the_channel_asks_the_app() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        client.command("subscribe", IDENTIFIER);
        let call = bench.call();
        assert_eq!(call.body["identifier"], IDENTIFIER);
        bench.answer(
            call,
            json!({ "status": 1, "streams": [IDENTIFIER], "transmissions": ["confirm"] }),
        );
        assert_eq!(client.next(), "confirm");
        assert_eq!(bench.show("1"), 0);
        assert!(client.got_nothing());
    });
}

#[test]
fn the_console_has_one_channel() {
    on_both(WITH_RPC, |bench| {
        let mut console = bench.open_console();
        console.command("message", IDENTIFIER);
        console.say("nonsense");
        console.command("subscribe", "A");
        assert_eq!(bench.counters().server_msg_total.value(), 1);
        bench.until_count(|counters| &counters.server_msg_total, 2);
        assert_eq!(
            console.next(),
            r#"{"type":"reject_subscription","identifier":"A"}"#
        );
        assert_eq!(bench.show("1"), 0);
        bench.watch(&mut console);
        console.command("unsubscribe", IDENTIFIER);
        bench.until("last look", |bench| bench.sessions.console_watchers() == 0);
        assert_eq!(bench.show("1"), 0);
    });
}

#[test]
fn the_number_of_console_connections_is_bounded() {
    on_both(WITH_RPC, |bench| {
        let consoles: Vec<Client> = (0..CONSOLE_CONNECTIONS_MAX)
            .map(|_| bench.open_console())
            .collect();
        assert_eq!(
            bench.sessions.console_connections(),
            CONSOLE_CONNECTIONS_MAX
        );
        let (new, mut client) = bench.upgraded("console");
        bench.turn(|sessions| sessions.open_console(new));
        assert_eq!(client.next(), "end");
        assert_eq!(bench.counters().console_refused_total.value(), 1);
        drop(consoles);
        bench.until("end of all", |bench| {
            bench.sessions.console_connections() == 0
        });
    });
}

#[test]
fn a_search_takes_small_steps_and_stops_when_it_has_enough() {
    on_both(PUBLIC, |bench| {
        let clients: Vec<Client> = (0..HITS_MAX + 10).map(|_| bench.open(|_| ())).collect();
        let all = clients.len();
        assert_eq!(bench.search("s59", all), (vec!["s59".to_owned()], 1));
        // When the number of slots is a multiple of the step, the last look finds nothing new.
        assert_eq!(
            bench.search("s59", 4),
            (vec!["s59".to_owned()], all.div_ceil(4))
        );
        let (found, looks) = bench.search("", all);
        assert_eq!(found.len(), HITS_MAX + 1);
        assert!(
            looks > 5,
            "each session that is found costs something: {looks} looks"
        );
        assert_eq!(bench.search("nobody", all).0, Vec::<String>::new());
    });
}

#[test]
fn a_session_that_is_found_tells_its_subscriptions() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed(r#"{"user":"Z2lkOi8vYS9Vc2VyLzQy"}"#);
        bench.subscribe(&mut client, "A", &["x", "y"]);
        bench.subscribe(&mut client, "B", &[]);
        let mut scan = Scan::new(Arc::new(Query::new("User/42")));
        assert!(bench.sessions.look(&mut scan, 10));
        let found = &scan.found[0];
        assert_eq!(
            (found.sid.as_str(), found.shard, found.outbox_bytes),
            ("s1", 0, 0)
        );
        assert_eq!(found.identifiers, r#"{"user":"Z2lkOi8vYS9Vc2VyLzQy"}"#);
        let told: Vec<(&str, Vec<String>)> = found
            .subscriptions
            .iter()
            .map(|subscription| {
                (
                    subscription.identifier.as_str(),
                    subscription.streams.clone(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [("A", vec!["x".to_owned(), "y".to_owned()]), ("B", vec![])]
        );
        assert_eq!(bench.sessions.listeners("x"), (1, 1));
        assert_eq!(bench.sessions.listeners("z"), (0, 0));
    });
}

#[test]
fn the_console_ends_the_session_that_is_meant_and_no_other() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        let mut scan = Scan::new(Arc::new(Query::new("")));
        bench.sessions.look(&mut scan, 10);
        let found = &scan.found[0];
        let session = SessionRef {
            shard: 0,
            slot: found.slot,
            generation: found.generation,
        };
        let another = SessionRef {
            generation: found.generation + 1,
            ..session
        };
        let nowhere = SessionRef {
            slot: 99,
            ..session
        };
        for (session, sid) in [(another, "s1"), (nowhere, "s1"), (session, "s2")] {
            assert!(!bench.turn(|sessions| sessions.disconnect_one(session, sid, true)));
        }
        assert!(client.got_nothing());
        assert!(bench.turn(|sessions| sessions.disconnect_one(session, "s1", true)));
        assert_eq!(
            client.rest(),
            [
                r#"{"type":"disconnect","reason":"remote","reconnect":true}"#,
                "close 1000 Closed remotely",
                "end"
            ]
        );
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert!(!bench.turn(|sessions| sessions.disconnect_one(session, "s1", true)));
    });
}
