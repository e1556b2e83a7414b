//! Disconnect calls: when they are made, how fast, with what. Source: `contract/rpc.md` §8, `contract/auth_streams.md` §8.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::rails::{CURRENT_USER, Call, WELCOME};
use crate::support::raw::{Raw, handshake};
use crate::support::wait::until;
use crate::support::{Answer, Cable, Driver, Gate, Rails, Stage};

/// Two sessions under `args`: one only connects, one subscribes to a channel of the app. Gives their disconnect calls.
fn disconnects_under(driver: Driver, args: &[&str], expected: usize) -> Vec<Call> {
    let stage = Stage::with(driver, args);
    stage.client().close();
    let mut subscribed = stage.client();
    subscribed.subscribe("A");
    subscribed.close();
    let calls = stage.rails.wait_for_calls("disconnect", expected);
    // Queued calls are drained before the exit, so nothing can come after it.
    stage.server.terminate();
    assert!(stage.server.wait_exit().success());
    assert_eq!(
        stage.rails.calls_to("disconnect").len(),
        expected,
        "{args:?}"
    );
    calls
}

/// Each comes with a cookie of 0.9 MB, is welcomed, and resets its connection.
pub fn clients_with_large_cookies(stage: &Stage, count: usize) {
    let cookie = format!("Cookie: session={}", "x".repeat(900_000));
    for _ in 0..count {
        let mut raw = Raw::connect(stage.server.address());
        raw.send(handshake("/cable?pi=0", &[&cookie]).as_bytes());
        assert_eq!(raw.read_head().status(), 101);
        assert_eq!(raw.next_text(), WELCOME);
        let option = socket2::SockRef::from(raw.stream()).set_linger(Some(Duration::ZERO));
        option.expect("an option of every socket");
    }
}

on_both_drivers! {
    fn large_cookies_fill_no_more_than_a_part_of_the_memory(driver: Driver) {
        let args = ["--memory_bytes_max=40000000", "--max_head_size=1048576", "--disconnect_rate=1", "--log_level=info"];
        let stage = Stage::with(driver, &args);
        let own = |name: &str| -> i64 {
            let page = stage.server.get("/metrics").text();
            let values = page.lines().filter(|line| line.starts_with(&format!("ringcable_{name}{{")));
            values.map(|line| line.rsplit(' ').next().expect("a value").parse::<i64>().expect("an integer")).sum()
        };
        // A call leaves the queue every second. How many clients it takes to fill it depends on the machine.
        let mut clients = 0;
        while own("disconnect_calls_dropped_total") < 10 {
            assert!(clients < 200, "so many large cookies are not held");
            clients_with_large_cookies(&stage, 10);
            clients += 10;
            stage.server.wait_for_metric("clients_num", 0);
        }
        let bytes = own("disconnect_queue_bytes");
        assert!(bytes > 5_000_000 && bytes <= 10_000_000, "{bytes}");
        let dropped = own("disconnect_calls_dropped_total");
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        let told = stage.rails.calls_to("disconnect").len() as i64;
        let kept = clients - dropped;
        assert!((kept - 1..=kept).contains(&told), "{told} told, {dropped} of {clients} dropped");
    }

    fn closed_session_is_reported_once_with_all_its_subscriptions(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = Cable::to(&stage.server).header("X-Request-ID", "me").welcomed();
        for identifier in ["A", "B", "C"] {
            client.subscribe(identifier);
        }
        client.command("unsubscribe", "B");
        client.expect_nothing_before_pong();
        client.close();
        let calls = stage.rails.wait_for_calls("disconnect", 1);
        let mut subscriptions = calls[0].body["subscriptions"].as_array().expect("a list").clone();
        subscriptions.sort_by_key(ToString::to_string);
        assert_eq!(subscriptions, ["A", "C"]);
        assert_eq!((calls[0].sid.as_str(), calls[0].body["identifiers"].as_str()), ("me", Some(CURRENT_USER)));
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        assert_eq!(stage.rails.calls_to("disconnect").len(), 1);
    }

    fn vanished_client_is_reported_too(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = stage.raw();
        raw.subscribe("A");
        // A reset instead of a FIN.
        socket2::SockRef::from(raw.stream()).set_linger(Some(Duration::ZERO)).expect("an option of every socket");
        drop(raw);
        assert_eq!(stage.rails.wait_for_calls("disconnect", 1)[0].body["subscriptions"], json!(["A"]));
    }

    fn mode_auto_reports_sessions_that_the_app_knows(driver: Driver) {
        disconnects_under(driver, &[], 2);
        disconnects_under(driver, &["--disconnect_mode=auto", "--noauth"], 1);
    }

    fn mode_always_reports_every_session(driver: Driver) {
        let calls = disconnects_under(driver, &["--disconnect_mode=always", "--noauth"], 2);
        assert!(calls[0].body["identifiers"].as_str().is_some_and(|text| text.starts_with(r#"{"sid":""#)));
    }

    fn mode_never_reports_nothing(driver: Driver) {
        disconnects_under(driver, &["--disconnect_mode=never"], 0);
        disconnects_under(driver, &["--disable_disconnect"], 0);
    }

    fn calls_are_made_at_the_rate(driver: Driver) {
        let stage = Stage::with(driver, &["--disconnect_rate=20"]);
        let clients: Vec<Cable> = (0..10).map(|_| stage.client()).collect();
        clients.into_iter().for_each(Cable::close);
        let calls = stage.rails.wait_for_calls("disconnect", 10);
        let took = calls[9].started - calls[0].started;
        assert!(took >= Duration::from_millis(350), "10 calls at 20 per second took {took:?}");
        assert!(took <= Duration::from_secs(3), "10 calls at 20 per second took {took:?}");
    }

    fn slow_app_does_not_lower_the_rate_of_disconnect_calls(driver: Driver) {
        let stage = Stage::with(driver, &["--disconnect_rate=20"]);
        stage.rails.on_disconnect(Answer::json(&json!({ "status": 1 })).after(Duration::from_millis(800)));
        let clients: Vec<Cable> = (0..10).map(|_| stage.client()).collect();
        clients.into_iter().for_each(Cable::close);
        let calls = stage.rails.wait_for_calls("disconnect", 10);
        let took = calls[9].started - calls[0].started;
        assert!(took >= Duration::from_millis(350), "10 calls at 20 per second took {took:?}");
        assert!(took <= Duration::from_secs(3), "one call at a time would take eight seconds, this {took:?}");
    }

    fn live_commands_go_before_queued_disconnects(driver: Driver) {
        let stage = Stage::with(driver, &["--rpc_concurrency=1", "--disconnect_rate=1000"]);
        let gate = Gate::new();
        let mut live: Vec<Cable> = (0..4).map(|_| stage.client()).collect();
        let leaving: Vec<Cable> = (0..6).map(|_| stage.client()).collect();
        stage.rails.on_command("subscribe", "slow", Answer::confirm("slow", &[]).behind(&gate));
        live[0].command("subscribe", "slow");
        stage.rails.wait_for_command("subscribe", "slow");
        leaving.into_iter().for_each(Cable::close);
        for client in &mut live[1..] {
            client.command("subscribe", "A");
        }
        // Three commands and at least the oldest disconnect wait for the only slot.
        stage.server.wait_for_metric("client_msg_total", 4);
        until("commands and disconnects to wait", || {
            (stage.server.metric("rpc_pending_num") >= 4).then_some(())
        });
        gate.open();
        for client in &mut live[1..] {
            client.next_text();
        }
        stage.rails.wait_for_calls("disconnect", 6);
        let order: Vec<String> = stage.rails.summaries().into_iter().skip(10).take(4).collect();
        let disconnects_before = order.iter().filter(|call| *call == "disconnect").count();
        assert_eq!(disconnects_before, 0, "{order:?}");
    }

    fn full_backlog_loses_no_call(driver: Driver) {
        let stage = Stage::with(driver, &["--disconnect_backlog_size=1", "--disconnect_rate=200"]);
        let clients: Vec<Cable> = (0..20).map(|_| stage.client()).collect();
        clients.into_iter().for_each(Cable::close);
        stage.rails.wait_for_calls("disconnect", 20);
    }

    fn failed_disconnect_call_is_not_repeated(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.on_disconnect(Answer::status(500, ""));
        stage.client().close();
        stage.rails.wait_for_calls("disconnect", 1);
        stage.server.wait_for_metric("rpc_error_total", 1);
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        assert_eq!(stage.rails.calls_to("disconnect").len(), 1);
    }

    fn queue_is_drained_without_the_rate_at_shutdown(driver: Driver) {
        let stage = Stage::with(driver, &["--disconnect_rate=1"]);
        let clients: Vec<Cable> = (0..8).map(|_| stage.client()).collect();
        clients.into_iter().for_each(Cable::close);
        stage.server.wait_for_metric("clients_num", 0);
        let started = Instant::now();
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        assert!(started.elapsed() < Duration::from_secs(5), "the rate does not hold at shutdown");
        assert_eq!(stage.rails.calls_to("disconnect").len(), 8);
    }

    fn sessions_that_share_a_session_id_are_reported_and_closed_each(driver: Driver) {
        let stage = Stage::new(driver);
        let mut clients: Vec<Cable> =
            (0..6).map(|_| Cable::to(&stage.server).header("X-Request-ID", "same").welcomed()).collect();
        for client in &mut clients {
            client.subscribe("A");
        }
        stage.server.wait_for_metric("clients_num", 6);
        clients.remove(0).close();
        stage.server.wait_for_metric("clients_num", 5);
        stage.publish("stream:A", "1");
        for client in &mut clients {
            assert_eq!(client.next_text(), r#"{"identifier":"A","message":1}"#);
        }
        let command = json!({ "command": "disconnect", "payload": { "identifier": CURRENT_USER, "reconnect": true } });
        stage.broadcaster().post(&command.to_string());
        for client in &mut clients {
            assert_eq!(client.next_text(), r#"{"type":"disconnect","reason":"remote","reconnect":true}"#);
            client.expect_close(1000, "Closed remotely");
        }
        stage.rails.wait_for_calls("disconnect", 6);
    }

    fn sessions_without_rpc_are_never_reported(driver: Driver) {
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails).args(["--norpc", "--noauth", "--disconnect_mode=always"]).start();
        Cable::to(&server).welcomed().close();
        server.terminate();
        assert!(server.wait_exit().success());
        assert!(rails.calls().is_empty());
    }
}
