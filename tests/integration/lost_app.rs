//! Connections that are kept to an app that is lost: how many clients that costs. Source: `contract/rpc.md` §2, §5.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::rails::{CURRENT_USER, WELCOME};
use crate::support::raw::{CLOSE, Raw};
use crate::support::{Answer, Cable, Driver, Gate, Stage};

/// Warm connections of all shards together.
const WARM: usize = 24;
/// After so long the last answer proves nothing any more: a second, and a little.
const QUIET: Duration = Duration::from_millis(1200);
/// A call that gets no answer for so long makes the other kept connections doubtful: 0.2 seconds, and a little.
const DOUBT: Duration = Duration::from_millis(300);

/// Calls side by side leave as many connections warm.
fn warmed_up(driver: Driver, args: &[&str]) -> (Stage, Vec<Cable>) {
    // Room for a busy machine: all clients come before the first is answered.
    let patient = [
        "--rpc_request_timeout=10000",
        "--rpc_command_timeout=10000",
        "--log_level=info",
    ];
    let stage = Stage::with(driver, &[&patient, args].concat());
    let gate = Gate::new();
    let welcome = || Answer::welcome(CURRENT_USER, &[WELCOME]);
    stage.rails.on_connect(welcome().behind(&gate));
    let mut clients: Vec<Cable> = (0..WARM).map(|_| Cable::to(&stage.server).open()).collect();
    stage.rails.wait_for_calls("connect", WARM);
    gate.open();
    for client in &mut clients {
        client.next_text();
    }
    assert_eq!(stage.rails.connections_opened(), WARM);
    (stage, clients)
}

/// Whether a new client is closed instead of being welcomed.
fn is_lost(stage: &Stage) -> bool {
    let mut raw = Raw::upgrade(stage.server.address(), "/cable?pi=0");
    let frame = raw.read_frame();
    if frame.opcode == CLOSE {
        assert_eq!(frame.close(), (Some(1011), "Auth Error".to_owned()));
        return true;
    }
    assert_eq!(frame.text(), WELCOME);
    false
}

on_both_drivers! {
    fn frozen_app_costs_one_client_of_those_that_come_one_after_the_other(driver: Driver) {
        let (stage, _clients) = warmed_up(driver, &["--rpc_request_timeout=2500"]);
        stage.rails.freeze_connections();
        let started = Instant::now();
        let lost = (0..18).filter(|_| is_lost(&stage)).count();
        assert_eq!(lost, 1, "in {:?}", started.elapsed());
        assert!(!stage.server.log().iter().any(|line| line.contains("circuit breaker is open")));
    }

    fn frozen_app_costs_one_client_of_those_that_come_together_after_a_quiet_time(driver: Driver) {
        let (stage, _clients) = warmed_up(driver, &["--rpc_request_timeout=2500"]);
        stage.rails.freeze_connections();
        thread::sleep(QUIET);
        let stage = &stage;
        let lost: usize = thread::scope(|scope| {
            let clients: Vec<_> = (0..18).map(|_| scope.spawn(|| usize::from(is_lost(stage)))).collect();
            clients.into_iter().map(|client| client.join().expect("a client does not panic")).sum()
        });
        assert!(lost <= 2, "{lost} of 18");
    }

    fn clients_that_come_while_the_first_waits_are_welcomed(driver: Driver) {
        let (stage, _clients) = warmed_up(driver, &["--rpc_request_timeout=8000", "--rpc_command_timeout=8000"]);
        stage.rails.freeze_connections();
        let mut first = Raw::upgrade(stage.server.address(), "/cable?pi=0");
        stage.rails.wait_for_unanswered();
        thread::sleep(DOUBT);
        // Long before the eight seconds of the first are over.
        let started = Instant::now();
        assert!((0..10).all(|_| !is_lost(&stage)));
        assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
        first.expect_close(1011, "Auth Error");
    }

    fn commands_of_sessions_find_the_new_app_too(driver: Driver) {
        let (stage, mut clients) = warmed_up(driver, &["--rpc_request_timeout=2500"]);
        stage.rails.freeze_connections();
        clients[0].command("subscribe", "lost");
        clients[0].expect_nothing_before_pong();
        for client in &mut clients[1..] {
            client.subscribe("A");
        }
    }

    fn app_that_has_closed_or_reset_all_kept_connections_costs_nobody(driver: Driver) {
        let (stage, _clients) = warmed_up(driver, &[]);
        stage.rails.close_connections();
        assert!((0..6).all(|_| !is_lost(&stage)));
        stage.rails.reset_connections();
        assert!((0..6).all(|_| !is_lost(&stage)));
        assert_eq!(stage.server.metric("rpc_error_total"), 0);
        assert_eq!(stage.server.metric("rpc_retries_total"), 0);
    }

    fn app_that_was_only_slow_keeps_its_connections(driver: Driver) {
        let (stage, mut clients) = warmed_up(driver, &[]);
        let gate = Gate::new();
        stage.rails.on_command("subscribe", "slow", Answer::confirm("slow", &[]).behind(&gate));
        clients[0].command("subscribe", "slow");
        stage.rails.wait_for_command("subscribe", "slow");
        thread::sleep(DOUBT);
        clients[1].subscribe("A");
        gate.open();
        clients[0].next_text();
        let opened = stage.rails.connections_opened();
        assert!(opened <= WARM + 1, "{opened}");
        for client in &mut clients[2..] {
            client.subscribe("A");
        }
        assert_eq!(stage.rails.connections_opened(), opened);
    }
}
