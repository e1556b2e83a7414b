//! Signals and the drain. Source: `contract/operations.md` §9, `contract/websocket.md` §12.

use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::http::HttpConnection;
use crate::support::ports::free_port;
use crate::support::raw::{Raw, handshake};
use crate::support::wait::{uninterrupted, until};
use crate::support::{Answer, Driver, Gate, Launch, PATIENCE, Rails, Stage, http};

const NOTICE: &str = r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#;

fn expect_notice(raw: &mut Raw) {
    assert_eq!(raw.next_text(), NOTICE);
    raw.expect_close(1001, "Server restart");
}

/// Stops a stage with `count` sessions by `signal` and checks notices, calls and exit code.
fn drain(driver: Driver, count: usize, signal: impl Fn(&Stage)) {
    let stage = Stage::new(driver);
    let mut clients: Vec<Raw> = (0..count).map(|_| stage.raw()).collect();
    for raw in &mut clients {
        raw.subscribe("A");
    }
    signal(&stage);
    clients.iter_mut().for_each(expect_notice);
    assert_eq!(stage.server.wait_exit().code(), Some(0));
    let calls = stage.rails.calls_to("disconnect");
    assert_eq!(calls.len(), count);
    assert!(
        calls
            .iter()
            .all(|call| call.body["subscriptions"] == json!(["A"]))
    );
}

/// How long each client waits for its notice, all of them at the same time.
fn waits_for_notice(clients: Vec<Raw>, from: Instant) -> Vec<Duration> {
    let waiting = clients.into_iter().map(|mut raw| {
        thread::spawn(move || {
            assert_eq!(raw.next_text(), NOTICE);
            let waited = from.elapsed();
            raw.expect_close(1001, "Server restart");
            waited
        })
    });
    let waiting: Vec<_> = waiting.collect();
    let mut waits: Vec<Duration> = waiting
        .into_iter()
        .map(|client| client.join().expect("every client is told"))
        .collect();
    waits.sort_unstable();
    waits
}

/// One datagram of the server.
fn told_to_manager(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let received = uninterrupted(|| socket.recv(&mut buffer));
    let bytes = received.expect("the server says something");
    String::from_utf8(buffer[..bytes].to_vec()).expect("text")
}

fn tells_its_manager(socket: UnixDatagram, name: &str, driver: Driver) {
    socket
        .set_read_timeout(Some(PATIENCE))
        .expect("an option of every socket");
    let server = Launch::new(driver)
        .args(["--norpc", "--public"])
        .arg(format!("--http_broadcast_port={}", free_port()))
        .env("NOTIFY_SOCKET", name)
        .start();
    assert_eq!(told_to_manager(&socket), "READY=1");
    server.terminate();
    assert_eq!(told_to_manager(&socket), "STOPPING=1");
    assert_eq!(server.wait_exit().code(), Some(0));
    assert!(
        !server
            .log()
            .iter()
            .any(|line| line.contains("NOTIFY_SOCKET"))
    );
}

on_both_drivers! {
    fn sigterm_tells_every_client_and_the_app_and_exits_with_zero(driver: Driver) {
        drain(driver, 40, |stage| stage.server.terminate());
    }

    fn sigint_does_the_same(driver: Driver) {
        drain(driver, 10, |stage| stage.server.interrupt());
    }

    fn server_without_clients_exits_at_once(driver: Driver) {
        let stage = Stage::new(driver);
        let started = Instant::now();
        stage.server.terminate();
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }

    fn notices_reach_the_sockets_even_without_disconnect_calls(driver: Driver) {
        let stage = Stage::with(driver, &["--disconnect_mode=never"]);
        let mut clients: Vec<Raw> = (0..60).map(|_| stage.raw()).collect();
        stage.server.terminate();
        clients.iter_mut().for_each(expect_notice);
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert!(stage.rails.calls_to("disconnect").is_empty());
    }

    fn notices_do_not_wait_for_a_slow_app(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_disconnect(Answer::json(&json!({ "status": 1 })).behind(&gate));
        let mut clients: Vec<Raw> = (0..30).map(|_| stage.raw()).collect();
        stage.server.terminate();
        clients.iter_mut().for_each(expect_notice);
        gate.open();
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert_eq!(stage.rails.calls_to("disconnect").len(), 30);
    }

    fn publications_before_the_signal_arrive_before_the_notice(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients: Vec<Raw> = (0..10).map(|_| stage.raw()).collect();
        for raw in &mut clients {
            raw.subscribe("A");
        }
        let mut publisher = stage.broadcaster().keep_alive();
        for number in 0..50 {
            publisher.publish("stream:A", &number.to_string());
        }
        stage.server.terminate();
        for raw in &mut clients {
            for number in 0..50 {
                assert_eq!(raw.next_json()["message"], number);
            }
            expect_notice(raw);
        }
    }

    fn second_signal_exits_at_once(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_delay=20"]);
        let _client = stage.raw();
        stage.server.terminate();
        stage.server.wait_for_log(&["Shutting down..."]);
        let started = Instant::now();
        stage.server.terminate();
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        let log = stage.server.log();
        assert!(log.iter().any(|line| line.contains("WRN") && line.contains("Immediate termination requested. Stopped")));
    }

    fn everything_works_during_the_shutdown_delay(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_delay=2"]);
        let mut early = stage.raw();
        stage.server.terminate();
        stage.server.wait_for_log(&["Shutting down... (hit Ctrl-C to stop immediately or wait for up to 30s for graceful shutdown)"]);
        let health = until("the health check to fail", || {
            Some(stage.server.get("/health")).filter(|answer| answer.status != 200)
        });
        assert_eq!((health.status, health.text()), (503, "shutting down".to_owned()));
        let mut late = stage.raw();
        late.subscribe("A");
        stage.publish("stream:A", "1");
        assert_eq!(late.next_json()["message"], 1);
        expect_notice(&mut early);
        expect_notice(&mut late);
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert_eq!(stage.rails.calls_to("disconnect").len(), 2);
    }

    fn health_can_stay_as_it_is_until_the_listeners_close(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_delay=1", "--shutdown_healthy"]);
        stage.server.terminate();
        stage.server.wait_for_log(&["Shutting down..."]);
        let mut answers = 0;
        while let Some(answer) = http::try_get(stage.server.address(), "/health") {
            assert_eq!(answer.status, 200);
            answers += 1;
        }
        assert!(answers > 10, "{answers} in a second");
        assert_eq!(stage.server.wait_exit().code(), Some(0));
    }

    fn slow_drain_spreads_the_notices_over_its_time(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_slowdrain=3"]);
        let clients: Vec<Raw> = (0..60).map(|_| stage.raw()).collect();
        let started = Instant::now();
        stage.server.terminate();
        let waits = waits_for_notice(clients, started);
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        let in_first_half = waits.iter().filter(|wait| wait.as_secs_f64() < 1.5).count();
        assert!((20..=40).contains(&in_first_half), "{waits:?}");
        assert!(waits[0].as_secs_f64() < 1.0 && waits[59].as_secs_f64() > 2.0, "{waits:?}");
        assert!(waits[59].as_secs_f64() < 4.0, "{waits:?}");
        let pause_max = waits.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert!(pause_max < Some(Duration::from_secs(1)), "{waits:?}");
        assert_eq!(stage.rails.calls_to("disconnect").len(), 60);
        let log = stage.server.log();
        let line = log.iter().find(|line| line.contains("closing active connections")).expect("a line");
        assert!(line.contains("num=60") && line.contains("slowdrain_ms=3000"), "{line}");
        assert!(log.iter().any(|line| line.contains("disconnect calls: 60 finished, 0 lost")), "{log:#?}");
    }

    fn who_is_not_told_yet_is_served_during_a_slow_drain(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_slowdrain=3"]);
        let mut clients: Vec<Raw> = (0..12).map(|_| stage.raw()).collect();
        for raw in &mut clients {
            raw.subscribe("A");
        }
        stage.server.terminate();
        stage.server.wait_for_log(&["closing active connections"]);
        // As the app does it: a new connection for each. The listeners stay as long as there are clients to be served.
        let broadcaster = stage.broadcaster();
        let mut published = 0;
        while stage.server.metric("clients_num") > 2 {
            broadcaster.publish("stream:A", &published.to_string());
            published += 1;
            thread::sleep(Duration::from_millis(20));
        }
        let mut heard = Vec::new();
        for raw in &mut clients {
            let mut next = 0;
            loop {
                let text = raw.next_text();
                if text == NOTICE {
                    break;
                }
                assert_eq!(serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["message"], next);
                next += 1;
            }
            heard.push(next);
        }
        heard.sort_unstable();
        assert!(heard[0] < published / 2 && heard[11] == published, "{heard:?} of {published}");
        assert_eq!(stage.server.wait_exit().code(), Some(0));
    }

    fn who_comes_during_a_slow_drain_is_told_at_once_without_the_app(driver: Driver) {
        let args = ["--shutdown_slowdrain=20", "--shutdown_slowdrain_max_interval=20000"];
        let stage = Stage::with(driver, &args);
        let _clients: Vec<Raw> = (0..30).map(|_| stage.raw()).collect();
        stage.server.terminate();
        let health = until("sessions to be closed", || {
            let mut kept = HttpConnection::open(stage.server.address()).expect("the listeners stay");
            let health = kept.request("GET", "/health", &[], b"").expect("an answer");
            (health.header("Connection") == Some("close")).then_some(health)
        });
        assert_eq!(health.status, 503);
        let mut late = Raw::upgrade(stage.server.address(), "/cable");
        expect_notice(&mut late);
        assert_eq!(stage.rails.calls_to("connect").len(), 30);
        let started = Instant::now();
        stage.server.terminate();
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert!(started.elapsed() < Duration::from_secs(3), "a second signal ends it: {:?}", started.elapsed());
    }

    fn few_clients_do_not_take_all_the_time_of_a_slow_drain(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_slowdrain=25"]);
        let clients: Vec<Raw> = (0..3).map(|_| stage.raw()).collect();
        let started = Instant::now();
        stage.server.terminate();
        let waits = waits_for_notice(clients, started);
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert!(waits[2] < Duration::from_secs(3), "{waits:?}");
    }

    fn client_in_authentication_is_told(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome("u", &["welcome"]).behind(&gate));
        let mut raw = Raw::upgrade(stage.server.address(), "/cable");
        stage.rails.wait_for_calls("connect", 1);
        stage.server.terminate();
        expect_notice(&mut raw);
        gate.open();
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert_eq!(stage.rails.calls_to("disconnect").len(), 1, "the app has let it in");
    }

    fn client_in_the_middle_of_its_request_is_told(driver: Driver) {
        let stage = Stage::new(driver);
        let request = handshake("/cable", &[]);
        let (begin, rest) = request.split_at(30);
        let mut raw = Raw::connect(stage.server.address());
        raw.send(begin.as_bytes());
        until("the server to read the begin", || stage.server.has_read_all(raw.stream()).then_some(()));
        stage.server.terminate();
        until("connections to be refused", || TcpStream::connect(stage.server.address()).is_err().then_some(()));
        raw.send(rest.as_bytes());
        assert_eq!(raw.read_head().status(), 101);
        expect_notice(&mut raw);
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert!(stage.rails.calls_to("connect").is_empty());
    }

    fn client_that_goes_on_sending_is_not_reset_before_it_has_read(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        stage.server.terminate();
        stage.server.wait_for_log(&["closing active connections"]);
        for _ in 0..10 {
            // The server has closed its side: what still comes must not be answered with a reset.
            raw.send_text(r#"{"command":"ping"}"#);
            thread::sleep(Duration::from_millis(20));
        }
        let mut texts = vec![raw.next_text()];
        while texts.last().is_some_and(|text| text != NOTICE) {
            texts.push(raw.next_text());
        }
        raw.expect_close(1001, "Server restart");
        assert!(raw.stream().take_error().expect("a socket").is_none());
    }

    fn slow_reader_gets_everything_up_to_the_close_frame(driver: Driver) {
        let stage = Stage::with(driver, &["--ws_max_pending_size=0", "--ws_write_timeout=10"]);
        let mut slow = stage.raw();
        slow.subscribe("A");
        let mut publisher = stage.broadcaster().keep_alive();
        let data = format!("\"{}\"", "x".repeat(200_000));
        for _ in 0..40 {
            publisher.publish("stream:A", &data);
        }
        stage.server.terminate();
        stage.server.wait_for_log(&["closing active connections"]);
        // A reader that takes its time: the server has to wait for it.
        thread::sleep(Duration::from_millis(300));
        for _ in 0..40 {
            assert_eq!(slow.next_json()["message"].as_str().map(str::len), Some(200_000));
        }
        expect_notice(&mut slow);
        assert_eq!(stage.server.wait_exit().code(), Some(0));
    }

    fn disconnect_calls_wait_for_no_slow_reader_and_for_no_pace(driver: Driver) {
        let args = ["--shutdown_timeout=6", "--ws_max_pending_size=0", "--ws_write_timeout=60", "--disconnect_rate=1"];
        let stage = Stage::with(driver, &args);
        let mut stuck = stage.raw();
        stuck.subscribe("A");
        let clients: Vec<Raw> = (0..40).map(|_| stage.raw()).collect();
        let mut publisher = stage.broadcaster().keep_alive();
        let data = format!("\"{}\"", "x".repeat(500_000));
        for _ in 0..40 {
            publisher.publish("stream:A", &data);
        }
        let started = Instant::now();
        stage.server.terminate();
        stage.rails.wait_for_calls("disconnect", 41);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        drop((stuck, clients));
        assert_eq!(stage.server.wait_exit().code(), Some(0));
    }

    fn one_line_says_how_many_disconnect_calls_were_made_and_lost(driver: Driver) {
        let last_word = |stage: &Stage| {
            assert_eq!(stage.server.wait_exit().code(), Some(0));
            let log = stage.server.log();
            let lines: Vec<&String> = log.iter().filter(|line| line.contains("disconnect calls: ")).collect();
            assert_eq!(lines.len(), 1, "{log:#?}");
            lines[0].clone()
        };
        let stage = Stage::with(driver, &["--shutdown_timeout=1"]);
        stage.rails.on(|call| {
            let late = call.method == "disconnect" && call.body["identifiers"] == "late";
            late.then(|| Answer::success().behind(&Gate::new()))
        });
        let mut clients: Vec<Raw> = (0..2).map(|_| stage.raw()).collect();
        stage.rails.on_connect(Answer::welcome("late", &[r#"{"type":"welcome"}"#]));
        clients.extend((0..3).map(|_| stage.raw()));
        stage.server.terminate();
        clients.iter_mut().for_each(expect_notice);
        drop(clients);
        let line = last_word(&stage);
        assert!(line.contains("WRN") && line.contains("2 finished, 3 lost (3 out of time after 1 s)"), "{line}");

        let stage = Stage::new(driver);
        stage.rails.on_disconnect(Answer::status(500, "no"));
        let mut clients: Vec<Raw> = (0..3).map(|_| stage.raw()).collect();
        stage.server.terminate();
        clients.iter_mut().for_each(expect_notice);
        drop(clients);
        let line = last_word(&stage);
        assert!(line.contains("WRN") && line.contains("0 finished, 3 lost (3 failed)"), "{line}");
    }

    fn systemd_is_told_by_a_path(driver: Driver) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let name = path.to_str().expect("UTF-8").to_owned();
        tells_its_manager(UnixDatagram::bind(&path).expect("a socket"), &name, driver);
    }

    fn systemd_is_told_by_an_abstract_name(driver: Driver) {
        let name = format!("ringcable-test-{}-{}", std::process::id(), driver.flag());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        tells_its_manager(UnixDatagram::bind_addr(&address).expect("a socket"), &format!("@{name}"), driver);
    }

    fn socket_of_a_manager_that_is_gone_is_no_reason_to_stop(driver: Driver) {
        let server = Launch::new(driver)
            .args(["--norpc", "--public"])
            .arg(format!("--http_broadcast_port={}", free_port()))
            .env("NOTIFY_SOCKET", "/nowhere/notify")
            .start();
        server.wait_for_log(&["WRN", "cannot tell READY=1 to the socket in NOTIFY_SOCKET (\"/nowhere/notify\")"]);
        server.terminate();
        assert_eq!(server.wait_exit().code(), Some(0));
    }

    fn new_connections_are_refused_once_the_drain_has_begun(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_disconnect(Answer::json(&json!({ "status": 1 })).behind(&gate));
        let mut raw = stage.raw();
        stage.server.terminate();
        expect_notice(&mut raw);
        stage.rails.wait_for_calls("disconnect", 1);
        until("connections to be refused", || TcpStream::connect(stage.server.address()).is_err().then_some(()));
        assert!(http::try_get(stage.server.address(), "/health").is_none());
        gate.open();
        assert_eq!(stage.server.wait_exit().code(), Some(0));
    }

    fn budget_of_the_shutdown_is_kept_when_the_app_hangs(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_timeout=1"]);
        stage.rails.on_disconnect(Answer::json(&json!({ "status": 1 })).behind(&Gate::new()));
        let mut clients: Vec<Raw> = (0..5).map(|_| stage.raw()).collect();
        let started = Instant::now();
        stage.server.terminate();
        clients.iter_mut().for_each(expect_notice);
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        let log = stage.server.log();
        assert!(log.iter().any(|line| line.contains("disconnect calls: 0 finished, 5 lost (5 out of time after 1 s)")), "{log:#?}");
        let took = started.elapsed().as_secs_f64();
        assert!((0.5..2.9).contains(&took), "shutdown took {took} s");
    }

    fn timeout_zero_exits_without_ceremony(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_timeout=0"]);
        let _clients: Vec<Raw> = (0..5).map(|_| stage.raw()).collect();
        let started = Instant::now();
        stage.server.terminate();
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }

    fn disconnect_calls_run_in_parallel_up_to_the_pool_size(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_pool_size=4"]);
        let gate = Gate::new();
        stage.rails.on_disconnect(Answer::json(&json!({ "status": 1 })).behind(&gate));
        let _clients: Vec<Raw> = (0..12).map(|_| stage.raw()).collect();
        stage.server.terminate();
        stage.rails.wait_for_calls("disconnect", 4);
        gate.open();
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert_eq!(stage.rails.calls_to("disconnect").len(), 12);
        assert!(stage.rails.parallel_calls_max() <= 4, "{} at once", stage.rails.parallel_calls_max());
    }

    fn client_that_does_not_read_does_not_hold_up_the_exit(driver: Driver) {
        let stage = Stage::with(driver, &["--shutdown_timeout=3", "--ws_max_pending_size=0", "--ws_write_timeout=60"]);
        let mut stuck = stage.raw();
        stuck.subscribe("A");
        let mut publisher = stage.broadcaster().keep_alive();
        let data = format!("\"{}\"", "x".repeat(500_000));
        for _ in 0..40 {
            publisher.publish("stream:A", &data);
        }
        let started = Instant::now();
        stage.server.terminate();
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    }

    fn next_process_can_take_the_port_at_once(driver: Driver) {
        let (rails, port) = (Rails::start(), free_port());
        for round in 0..6 {
            let server = Stage::launch(driver, &rails).arg(format!("--port={port}")).start();
            let mut raw = Raw::welcomed(server.address());
            if round % 2 == 0 {
                server.terminate();
                expect_notice(&mut raw);
                assert_eq!(server.wait_exit().code(), Some(0));
            }
            // Otherwise it is killed here, as by an out-of-memory killer.
        }
    }

    fn steps_of_the_drain_are_logged(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients: Vec<Raw> = (0..3).map(|_| stage.raw()).collect();
        stage.server.terminate();
        clients.iter_mut().for_each(expect_notice);
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        let log = stage.server.log();
        let position = |text: &str| {
            log.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text:?} in {log:#?}"))
        };
        let steps = [
            "Shutting down...",
            "closing active connections",
            "all active connections closed",
            "disconnect calls: 3 finished, 0 lost",
        ].map(position);
        assert!(steps.is_sorted(), "{steps:?}");
        assert!(log[steps[1]].contains("num=3"), "{}", log[steps[1]]);
    }
}
