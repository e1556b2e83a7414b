//! Signals and the drain. Source: `contract/operations.md` §9, `contract/websocket.md` §12.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::ports::free_port;
use crate::support::raw::Raw;
use crate::support::wait::until;
use crate::support::{Answer, Driver, Gate, Rails, Stage, http};

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
        assert_eq!(stage.server.get("/health").status, 200);
        let mut late = stage.raw();
        late.subscribe("A");
        stage.publish("stream:A", "1");
        assert_eq!(late.next_json()["message"], 1);
        expect_notice(&mut early);
        expect_notice(&mut late);
        assert_eq!(stage.server.wait_exit().code(), Some(0));
        assert_eq!(stage.rails.calls_to("disconnect").len(), 2);
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
        let steps = ["Shutting down...", "closing active connections", "all active connections closed"].map(position);
        assert!(steps.is_sorted(), "{steps:?}");
        assert!(log[steps[1]].contains("num=3"), "{}", log[steps[1]]);
    }
}
