//! From the upgrade to the first command: welcome, refusals, errors, early commands. Source: `contract/websocket.md` §4.

use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use crate::support::ports::free_port;
use crate::support::rails::{CURRENT_USER, confirmation, echo};
use crate::support::raw::{Raw, close_frame, frame};
use crate::support::wait::until;
use crate::support::{Answer, Cable, Gate, Rails, Stage};

on_both_drivers! {
    fn transmissions_of_connect_are_relayed_verbatim_and_in_order(driver: Driver) {
        let stage = Stage::new(driver);
        let sent = [r#"{ "type": "welcome", "sid":"x" }"#, "not even json: é <&>", r#"{"a":1.50}"#];
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &sent));
        let mut client = Cable::to(&stage.server).open();
        for text in sent {
            assert_eq!(client.next_text(), text);
        }
    }

    fn server_adds_no_welcome_of_its_own(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[]));
        let mut client = Cable::to(&stage.server).open();
        client.subscribe("A");
    }

    fn commands_sent_before_the_welcome_wait_and_keep_their_order(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[r#"{"type":"welcome"}"#]).behind(&gate));
        let mut client = Cable::to(&stage.server).open();
        client.command("subscribe", "A");
        client.perform("A", "hello");
        client.command("subscribe", "B");
        stage.rails.wait_for_calls("connect", 1);
        assert_eq!(stage.rails.summaries(), ["connect"]);
        gate.open();
        assert_eq!(client.next_text(), r#"{"type":"welcome"}"#);
        assert_eq!(client.next_text(), confirmation("A"));
        assert_eq!(client.next_text(), echo("A", "hello"));
        assert_eq!(client.next_text(), confirmation("B"));
        assert_eq!(stage.rails.summaries(), ["connect", "subscribe A", "message A", "subscribe B"]);
    }

    fn refused_connection_gets_the_transmissions_and_close_1000(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.on_connect(Answer::unauthorized());
        let mut raw = Raw::upgrade(stage.server.address(), "/cable");
        // Sent before authentication ended: dropped with the session.
        raw.try_send(&frame(1, br#"{"command":"subscribe","identifier":"A"}"#)).expect("open");
        assert_eq!(raw.next_text(), r#"{"type":"disconnect","reason":"unauthorized","reconnect":false}"#);
        raw.expect_close(1000, "Auth Failed");
        stage.server.wait_for_metric("failed_auths_total", 1);
        // A session that never existed has no disconnect call: the next call is that of another client.
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[r#"{"type":"welcome"}"#]));
        let _next = stage.client();
        assert_eq!(stage.rails.summaries(), ["connect", "connect"]);
    }

    fn application_error_in_connect_closes_with_1011_and_sends_nothing(driver: Driver) {
        let stage = Stage::new(driver);
        let welcome = r#"{"type":"welcome"}"#;
        let answers = [
            json!({ "error_msg": "undefined method `user' for nil" }),
            json!({ "status": 0, "transmissions": [welcome] }),
            json!({ "transmissions": [welcome] }),
            json!({ "status": 7, "transmissions": [welcome] }),
        ];
        for answer in answers {
            stage.rails.on_connect(Answer::json(&answer));
            Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        }
        assert_eq!(stage.server.metric("failed_auths_total"), 0);
        assert!(stage.rails.calls_to("disconnect").is_empty());
    }

    fn unusable_http_answers_to_connect_close_with_1011_at_once(driver: Driver) {
        let stage = Stage::new(driver);
        let answers = [
            Answer::status(401, "Unauthorized"),
            Answer::status(404, "Not found"),
            Answer::status(500, "<html>"),
            Answer::status(503, ""),
            Answer::status(201, r#"{"status":1}"#),
            Answer::status(204, ""),
            Answer::status(302, "").with_header("Location", "/elsewhere"),
            Answer::status(200, ""),
            Answer::status(200, "{"),
            Answer::status(200, "[]"),
            Answer::status(200, r#"{"status":1,"transmissions":"x"}"#),
        ];
        let count = answers.len();
        for answer in answers {
            stage.rails.on_connect(answer);
            Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        }
        // One request each: nothing of this is retried.
        assert_eq!(stage.rails.calls().len(), count);
        assert_eq!(stage.server.metric("rpc_retries_total"), 0);
    }

    fn pings_may_come_before_a_slow_welcome(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[r#"{"type":"welcome"}"#]).behind(&gate));
        let mut raw = Raw::upgrade(stage.server.address(), "/cable?pi=1");
        assert!(raw.read_frame().text().starts_with(r#"{"type":"ping","message":"#));
        gate.open();
        assert_eq!(raw.next_text(), r#"{"type":"welcome"}"#);
    }

    fn client_that_leaves_during_connect_leaves_nothing_behind(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[r#"{"type":"welcome"}"#]).behind(&gate));
        let raw = Raw::upgrade(stage.server.address(), "/cable");
        stage.rails.wait_for_calls("connect", 1);
        drop(raw);
        gate.open();
        until("the connect call to end", || (stage.rails.calls_running() == 0).then_some(()));
        let mut next = stage.client();
        next.subscribe("A");
        stage.server.wait_for_metric("clients_num", 1);
        next.close();
        stage.server.wait_for_metric("clients_num", 0);
        until("every socket of the server to be closed", || (stage.server.sessions_open() == 0).then_some(()));
    }

    fn sessions_wait_for_a_slow_app_side_by_side(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome(CURRENT_USER, &[r#"{"type":"welcome"}"#]).behind(&gate));
        let mut clients: Vec<Cable> = (0..10).map(|_| Cable::to(&stage.server).open()).collect();
        stage.rails.wait_for_calls("connect", 10);
        gate.open();
        for client in &mut clients {
            assert_eq!(client.next_text(), r#"{"type":"welcome"}"#);
        }
    }

    fn app_that_was_absent_at_boot_is_found_when_it_comes(driver: Driver) {
        let rails = Rails::start();
        rails.stop();
        let server = Stage::launch(driver, &rails).start();
        let mut client = Cable::to(&server).open();
        crate::support::wait::until("a retry", || (server.metric("rpc_retries_total") >= 1).then_some(()));
        rails.restart();
        assert_eq!(client.next_text(), r#"{"type":"welcome"}"#);
        drop(client);
        rails.wait_for_calls("disconnect", 1);
    }

    fn session_is_counted_once_it_is_authenticated(driver: Driver) {
        let stage = Stage::new(driver);
        let gate = Gate::new();
        let _first = stage.client();
        stage.rails.on_connect(Answer::welcome(r#"{"current_user":"2"}"#, &[r#"{"type":"welcome"}"#]).behind(&gate));
        let mut second = Cable::to(&stage.server).open();
        stage.rails.wait_for_calls("connect", 2);
        stage.server.wait_for_metric("clients_num", 1);
        gate.open();
        second.next_text();
        stage.server.wait_for_metric("clients_num", 2);
        stage.server.wait_for_metric("clients_uniq_num", 2);
    }

    fn clients_that_come_and_go_leave_nothing_behind(driver: Driver) {
        let stage = Stage::with(driver, &["--disconnect_mode=never", "--log_level=info"]);
        let mut witness = stage.client();
        witness.subscribe("kept");
        let files = stage.server.open_files();
        for round in 0..20 {
            let mut clients: Vec<Raw> = (0..30).map(|_| stage.raw()).collect();
            for (number, raw) in clients.iter_mut().enumerate() {
                raw.subscribe(&format!("{round}:{}", number % 7));
            }
            // Some say goodbye, some vanish, some leave in the middle of a frame.
            for (number, raw) in clients.iter_mut().enumerate() {
                match number % 3 {
                    0 => raw.send(&close_frame(1000, "")),
                    1 => raw.send(&frame(1, b"half a message")[..9]),
                    _ => {}
                }
            }
        }
        stage.server.wait_for_metric("clients_num", 1);
        stage.server.wait_for_metric("broadcast_streams_num", 1);
        until("every socket but one to be closed", || (stage.server.sessions_open() == 1).then_some(()));
        // Six hundred sessions came and went; the rest is the keep-alive pool and shards that had not opened their rings.
        stage.server.wait_for_open_files(files + 12);
        stage.publish("stream:kept", "1");
        assert_eq!(witness.next_text(), r#"{"identifier":"kept","message":1}"#);
    }

    fn server_without_free_descriptors_recovers_when_clients_leave(driver: Driver) {
        let rails = Rails::start();
        let launch = Stage::launch(driver, &rails).args(["--disconnect_mode=never", "--log_level=info"]);
        let port = free_port();
        let server = launch.arg(format!("--port={port}")).open_files_max(80).start_at(port);
        // What the shards need themselves they must have by now.
        server.wait_for_log(&["ringcable is ready"]);
        let mut inside = vec![Raw::welcomed(server.address())];
        let waiting: Vec<TcpStream> =
            (0..120).map(|_| TcpStream::connect(server.address()).expect("the kernel queues it")).collect();
        inside[0].expect_nothing_before_pong();
        // Nothing to wait for: the server must do nothing for a while.
        let busy_before = server.cpu_seconds();
        std::thread::sleep(Duration::from_secs(1));
        let busy = server.cpu_seconds() - busy_before;
        assert!(busy < 0.5, "{busy} s of CPU in one second without a free descriptor");
        inside[0].expect_nothing_before_pong();
        drop(waiting);
        until("the queue to be worked off", || (server.sessions_open() == 1).then_some(()));
        for _ in 0..5 {
            inside.push(Raw::welcomed(server.address()));
        }
        server.assert_running();
    }

    fn slow_connect_within_the_timeout_still_succeeds(driver: Driver) {
        let stage = Stage::new(driver);
        let welcome = Answer::welcome(CURRENT_USER, &[r#"{"type":"welcome"}"#]);
        stage.rails.on_connect(welcome.after(Duration::from_millis(1500)));
        stage.client().subscribe("A");
    }
}
