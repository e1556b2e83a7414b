//! What becomes due with time: pings and missing pongs.

use super::*;

/// Lets time pass and returns the ticks at which each client got something.
fn ticks_with_input(bench: &mut Bench, clients: &mut [Client], ticks: u32) -> Vec<Vec<u32>> {
    let mut seen = vec![Vec::new(); clients.len()];
    let sent_before = bench.counters().data_sent_total.value();
    let mut read_bytes = 0;
    for tick in 1..=ticks {
        bench.wait(TICK);
        // An interrupted turn may have left some sessions for the next one.
        bench.flush();
        // On a busy machine, bytes that were sent need a moment to arrive.
        while bench.counters().data_sent_total.value() - sent_before > read_bytes {
            for (client, seen) in clients.iter_mut().zip(&mut seen) {
                if !client.got_nothing() {
                    let ping = client.next();
                    assert!(ping.starts_with(r#"{"type":"ping","message":"#));
                    read_bytes += ping.len() as u64;
                    seen.push(tick);
                }
            }
        }
    }
    seen
}

/// Source: contract/websocket.md §10.
#[test]
fn pings_begin_at_random_and_then_keep_their_interval() {
    on_both(&["--norpc", "--public", "--ping_interval=2"], |bench| {
        let mut clients: Vec<Client> = (0..30).map(|_| bench.open(|_| ())).collect();
        clients
            .iter_mut()
            .for_each(|client| assert!(client.next().contains("welcome")));
        let sent = bench.counters().data_sent_total.value();
        let seen = ticks_with_input(bench, &mut clients, 200);
        let first: Vec<u32> = seen.iter().map(|ticks| ticks[0]).collect();
        assert!(
            first.iter().all(|tick| (19..=62).contains(tick)),
            "{first:?}"
        );
        assert!(first.iter().min() < first.iter().max(), "spread: {first:?}");
        for ticks in &seen {
            assert!(
                ticks.windows(2).all(|pair| pair[1] - pair[0] == 40),
                "{ticks:?}"
            );
            assert!(ticks.len() >= 4);
        }
        let pings: usize = seen.iter().map(Vec::len).sum();
        assert_eq!(
            bench.counters().server_msg_total.value(),
            30,
            "pings are no messages"
        );
        let ping_bytes = r#"{"type":"ping","message":1700000000}"#.len();
        assert_eq!(
            bench.counters().data_sent_total.value() - sent,
            (pings * ping_bytes) as u64
        );
    });
}

#[test]
fn a_client_chooses_its_interval_and_precision() {
    fn check(secs: Option<i64>, precision: Option<PingPrecision>, digits: Option<usize>) {
        on_both(&["--norpc", "--public", "--ping_interval=1"], |bench| {
            let mut client = bench.open(|new| {
                new.admission.ping_interval_secs = secs;
                new.admission.ping_precision = precision;
            });
            client.next();
            bench.wait(Duration::from_secs(2));
            match digits {
                None => assert!(client.got_nothing()),
                Some(digits) => {
                    let bytes = r#"{"type":"ping","message":}"#.len() + digits;
                    assert_eq!(client.next().len(), bytes);
                }
            }
        });
    }
    check(None, None, Some(10));
    check(None, Some(PingPrecision::Seconds), Some(10));
    check(None, Some(PingPrecision::Milliseconds), Some(13));
    check(Some(1), Some(PingPrecision::Nanoseconds), Some(19));
    check(Some(0), None, None);
    check(Some(-1), None, None);
    check(Some(i64::MAX), None, None);
}

#[test]
fn native_pings_follow_the_ping_message() {
    on_both(
        &[
            "--norpc",
            "--public",
            "--ping_interval=1",
            "--enable_native_pings",
        ],
        |bench| {
            let mut client = bench.open(|_| ());
            client.next();
            bench.wait(Duration::from_millis(1600));
            assert!(client.next().starts_with(r#"{"type":"ping""#));
            assert_eq!(client.next(), "ping ");
        },
    );
}

const PONGS: &[&str] = &[
    "--norpc",
    "--public",
    "--ping_interval=1",
    "--pong_timeout=2",
];
const NO_PONG: &[&str] = &[
    r#"{"type":"disconnect","reason":"no_pong","reconnect":true}"#,
    "close 1000 No Pong",
    "end",
];

#[test]
fn a_silent_client_is_closed_when_pongs_are_required() {
    on_both(PONGS, |bench| {
        let mut silent = bench.open(|new| new.transport = EXTENDED);
        let mut talker = bench.open(|new| new.transport = EXTENDED);
        let base = bench.open(|_| ());
        for second in 1..=6 {
            bench.wait(Duration::from_secs(1));
            talker.say(r#"{"command":"pong"}"#);
            bench.until_count(|counters| &counters.client_msg_total, second);
        }
        assert_eq!(bench.clients(), 2, "{}", bench.driver);
        assert_eq!(bench.counters().closed_no_pong_total.value(), 1);
        let frames = silent.rest();
        assert_eq!(frames[frames.len() - 3..], *NO_PONG);
        drop(base);
    });
}

#[test]
fn no_pong_is_asked_of_a_client_that_is_not_read() {
    let args = [
        "--rpc_host=http://localhost:1/",
        "--ping_interval=1",
        "--pong_timeout=1",
    ];
    on_both(&args, |bench| {
        let mut client = bench.open(|new| new.transport = EXTENDED);
        let call = bench.call();
        // The pongs wait in the socket behind the command.
        bench.wait(Duration::from_secs(4));
        client.say(r#"{"command":"pong"}"#);
        bench.answer(call, json!({ "status": 1, "identifiers": "u" }));
        client.command("subscribe", "A");
        let call = bench.call();
        bench.wait(Duration::from_secs(4));
        assert_eq!(
            bench.counters().closed_no_pong_total.value(),
            0,
            "{}",
            bench.driver
        );
        bench.answer(call, json!({ "status": 1 }));
        bench.wait(Duration::from_millis(900));
        assert_eq!(
            bench.clients(),
            1,
            "{}: a whole timeout from the answer on",
            bench.driver
        );
        bench.wait(Duration::from_secs(3));
        assert_eq!(bench.counters().closed_no_pong_total.value(), 1);
        let frames = client.rest();
        assert_eq!(frames[frames.len() - 3..], *NO_PONG);
    });
}
