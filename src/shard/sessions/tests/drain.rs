//! The end of the server, at once and spread over a time.

use super::*;

const NOTICE: &[&str] = &[
    r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#,
    "close 1001 Server restart",
    "end",
];

#[test]
fn a_drain_tells_everybody_and_reports_when_the_last_socket_is_closed() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.welcomed("u");
        let mut waiting = bench.open(|_| ());
        let connect = bench.call();
        let drained = bench.close_all();
        assert_eq!(client.rest(), NOTICE);
        assert_eq!(waiting.rest(), NOTICE);
        assert!(connect.is_canceled());
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert_eq!(bench.counters().closed_shutdown_total.value(), 2);
        // A client that was upgraded just now is told as well, and the app is not asked about it.
        let mut late = bench.open(|new| new.early_input = masked(0x81, br#"{"command":"ping"}"#));
        assert_eq!(late.rest(), NOTICE);
        assert!(bench.actions.is_empty());
        drop((client, waiting, late));
        bench.until_empty();
        let done = bench.sessions.take_drained().expect("nobody is left");
        done.send(0).expect("the test listens");
        assert_eq!(drained.recv(), Ok(0));
        assert!(bench.sessions.take_drained().is_none(), "once");
    });
}

#[test]
fn a_drain_waits_for_a_client_that_does_not_read_until_its_deadline() {
    on_both(PUBLIC, |bench| {
        let mut stuck = bench.open_narrow();
        bench.listen(&mut stuck, "x");
        bench.broadcast_until_blocked();
        let _drained = bench.close_all();
        assert!(bench.sessions.take_drained().is_none());
        bench.wait(Duration::from_millis(2200));
        assert!(bench.sessions.take_drained().is_some(), "{}", bench.driver);
        assert_eq!(bench.outbox_bytes(), 0);
    });
}

#[test]
fn a_drain_waits_a_moment_for_the_ends_of_its_clients() {
    on_both(PUBLIC, |bench| {
        let mut client = bench.open(|_| ());
        assert!(client.next().contains("welcome"));
        let _drained = bench.close_all();
        assert_eq!(client.rest(), NOTICE);
        // Its further input is discarded and does not reset the connection.
        client.say(r#"{"command":"ping"}"#);
        bench.wait(Duration::from_millis(900));
        bench.harvest();
        client.say(r#"{"command":"ping"}"#);
        assert!(bench.sessions.take_drained().is_none(), "{}", bench.driver);
        bench.wait(Duration::from_millis(200));
        assert!(bench.sessions.take_drained().is_some(), "{}", bench.driver);
    });
}

#[test]
fn a_slow_drain_tells_one_after_another_and_serves_the_others() {
    const CLIENTS: usize = 40;
    on_both(WITH_RPC, |bench| {
        let mut clients: Vec<Client> = (0..CLIENTS)
            .map(|_| {
                let mut client = bench.welcomed("u");
                bench.subscribe(&mut client, "A", &["x"]);
                client
            })
            .collect();
        let _drained = bench.close_slowly(Duration::from_secs(4));
        assert_eq!(bench.told(), 0, "{}", bench.driver);
        bench.wait(Duration::from_secs(2));
        let told = bench.told() as usize;
        assert!((15..=25).contains(&told), "{}: {told}", bench.driver);
        assert_eq!(bench.disconnect_jobs().len(), told);
        bench.broadcast(&message("x", "1"));
        // The app is not asked, because the client would be told in a moment anyway.
        let mut late = bench.open(|_| ());
        assert_eq!(late.rest(), NOTICE);
        assert!(bench.actions.is_empty());
        bench.wait(Duration::from_secs(2));
        assert_eq!(bench.told() as usize, CLIENTS + 1, "{}", bench.driver);
        assert_eq!(bench.disconnect_jobs().len(), CLIENTS - told);
        let mut served = 0;
        for client in &mut clients {
            let heard = client.rest();
            let notice = heard.len() - NOTICE.len();
            assert_eq!(heard[notice..], *NOTICE);
            served += notice;
        }
        assert_eq!(
            served,
            CLIENTS - told,
            "one delivery for each who was there"
        );
        drop((clients, late));
        bench.until_empty();
        assert!(bench.sessions.take_drained().is_some());
    });
}

#[test]
fn a_slow_drain_does_not_begin_with_the_same_client_every_time() {
    let mut first = std::collections::HashSet::new();
    for _ in 0..12 {
        let reactor = Reactor::epoll().expect("epoll");
        let mut bench = Bench::new(PUBLIC, "epoll", reactor);
        let mut clients: Vec<Client> = (0..8).map(|_| bench.open(|_| ())).collect();
        let _drained = bench.close_slowly(Duration::from_secs(8));
        while bench.told() == 0 {
            bench.wait(TICK);
        }
        let told = |client: &mut Client| client.next().contains("welcome") && !client.got_nothing();
        first.insert(clients.iter_mut().position(told));
    }
    assert!(first.len() > 1, "{first:?}");
}

#[test]
fn a_drain_waits_for_the_calls_that_sessions_have_left_behind() {
    on_both(WITH_RPC, |bench| {
        let mut client = bench.open(|_| ());
        let call = bench.call();
        call.handle.note_sent();
        bench.close_all();
        assert_eq!(client.rest(), NOTICE);
        drop(client);
        bench.until_empty();
        assert!(bench.sessions.take_drained().is_none());
        bench.answer(call, json!({ "status": 1, "identifiers": "u" }));
        assert_eq!(bench.disconnect_jobs(), ["s1"]);
        assert!(bench.sessions.take_drained().is_some());
    });
}
