//! What operators read and grep. Source: `contract/operations.md` §7 and §8, `contract/campfire.md` §11.2.

use serde_json::Value;

use crate::support::ports::free_port;
use crate::support::raw::Raw;
use crate::support::{Driver, Launch, Rails, Server, Stage, keys};

/// Asserts that the texts come in this order, each in a line of its own.
fn assert_in_order(log: &[String], texts: &[String]) {
    let mut lines = log.iter();
    for text in texts {
        assert!(
            lines.any(|line| line.contains(text.as_str())),
            "no {text:?} at its place in\n{}",
            log.join("\n")
        );
    }
}

/// A record of the text format: time, level, message, `nodeid` first among the attributes.
fn assert_text_record(line: &str) {
    let form = "dddd-dd-dd dd:dd:dd.ddd ";
    let head = line
        .get(..form.len())
        .unwrap_or_else(|| panic!("too short: {line:?}"));
    let fits = head.chars().zip(form.chars()).all(|(got, form)| {
        if form == 'd' {
            got.is_ascii_digit()
        } else {
            got == form
        }
    });
    assert!(fits, "{line:?}");
    let level = &line[form.len()..form.len() + 4];
    assert!(
        ["DBG ", "INF ", "WRN ", "ERR "].contains(&level),
        "{line:?}"
    );
    assert!(line.contains(" nodeid="), "{line:?}");
    assert!(
        !line.contains('\x1b'),
        "no colours when stdout is a pipe: {line:?}"
    );
}

/// Campfire's variables, as its deployments set them.
fn campfire(driver: Driver, rails: &Rails, port: u16) -> Launch {
    Launch::bare()
        .args(["--cores=2", driver.flag()])
        .env("ANYCABLE_HOST", "0.0.0.0")
        .env("ANYCABLE_PORT", port.to_string())
        .env("ANYCABLE_RPC_HOST", rails.url())
        .env("ANYCABLE_BROADCAST_ADAPTER", "http")
        .env("ANYCABLE_HTTP_BROADCAST_PORT", port.to_string())
        .env("ANYCABLE_SECRET", keys::SECRET)
}

/// Waits for the last start-up line and gives the log.
fn startup_log(server: &Server) -> Vec<String> {
    server.wait_for_log(&["Handle API requests at "]);
    server.log()
}

on_both_drivers! {
    fn startup_lines_of_campfire_come_in_order(driver: Driver) {
        let rails = Rails::start();
        for (path, kamal) in [("/cable", false), ("/", true)] {
            let port = free_port();
            let launch = campfire(driver, &rails, port);
            let server = if kamal { launch.env("ANYCABLE_PATH", "/") } else { launch }.start();
            let log = startup_log(&server);
            let generated = "auto-generated authorization secret from the application secret";
            assert_in_order(&log, &[
                "Starting AnyCable ".to_owned(),
                "JWT authentication is enabled (param: jid, enforced: false)".to_owned(),
                "Using channels router: $pubsub".to_owned(),
                "Using no-op (legacy) broker".to_owned(),
                generated.to_owned(),
                format!("Accept broadcast requests at http://0.0.0.0:{port}/_broadcast (authorization required)"),
                generated.to_owned(),
                format!("RPC controller initialized: {} (concurrency: 28, impl: http, enable_tls: false, proto_versions: v1, proxy_headers: cookie, proxy_cookies: <all>)", rails.url()),
                format!("Handle WebSocket connections at http://0.0.0.0:{port}{path}"),
                format!("Handle health requests at http://0.0.0.0:{port}/health"),
                format!("Handle API requests at http://0.0.0.0:{port}/api (authorization required)"),
            ]);
            for line in &log {
                assert_text_record(line);
            }
            assert!(server.stderr().is_empty());
        }
    }

    fn password_in_the_url_of_the_app_is_not_shown(driver: Driver) {
        let rails = Rails::start();
        let url = "--rpc_host=http://cable:sesame@127.0.0.1:1/_anycable";
        let server = Stage::launch(driver, &rails).arg(url).start();
        server.wait_for_log(&["RPC controller initialized: http://***@127.0.0.1:1/_anycable (", "concurrency: 28"]);
        server.wait_for_log(&["RPC check: "]);
        let log = server.log().join("\n");
        assert!(!log.contains("sesame"), "{log}");
    }

    fn every_line_has_the_context_the_contract_gives_it(driver: Driver) {
        let stage = Stage::new(driver);
        let log = startup_log(&stage.server);
        let line = |text: &str| log.iter().find(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text:?}")).clone();
        assert!(line("Accept broadcast requests").contains(" context=broadcast provider=http"));
        assert!(line("RPC controller initialized").contains(" context=rpc"));
        assert!(line("Handle API requests").contains(" context=api"));
        assert!(line("Serve metrics at http://127.0.0.1:").contains(" context=metrics"));
        let starting = line("Starting AnyCable ");
        for part in ["(pid: ", ", open file limit: "] {
            assert!(starting.contains(part), "{starting}");
        }
        assert!(starting.contains(&format!("(pid: {},", stage.server.pid())), "{starting}");
    }

    fn driver_is_named_in_the_log(driver: Driver) {
        let stage = Stage::new(driver);
        let name = driver.flag().trim_start_matches("--driver=");
        let log = startup_log(&stage.server);
        assert!(log.iter().any(|line| line.contains("INF") && line.contains(name)), "{log:#?}");
    }

    fn debug_shows_the_banner_and_the_main_path_with_sid(driver: Driver) {
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails)
            .arg("--log_level=info")
            .env("ANYCABLE_LOG_LEVEL", "debug")
            .env("ANYCABLE_DEBUG", "true")
            .start();
        server.wait_for_log(&["DBG", "Debug mode is on"]);
        let stage = Stage { server, rails };
        let mut client = crate::support::Cable::to(&stage.server).header("X-Request-ID", "sid-in-log").welcomed();
        client.subscribe("A");
        client.perform("A", "x");
        client.next_text();
        stage.publish("stream:A", "1");
        client.next_text();
        client.close();
        for text in [
            "WebSocket session established", "controller authenticate", "incoming message", "controller subscribe",
            "controller perform", "WebSocket session completed",
        ] {
            stage.server.wait_for_log(&["DBG", text, "sid=sid-in-log"]);
        }
        stage.server.wait_for_log(&["DBG", "incoming broadcast message"]);
    }

    fn every_record_of_a_session_says_which_session_and_shard(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = crate::support::Cable::to(&stage.server).header("X-Request-ID", "mine").welcomed();
        client.subscribe("A");
        client.perform("A", "x");
        client.next_text();
        client.command("subscribe", "A");
        client.send("nope");
        client.command("unsubscribe", "A");
        stage.rails.wait_for_command("unsubscribe", "A");
        client.close();
        stage.server.wait_for_log(&["controller disconnect succeeded"]);
        let texts = [
            "DBG WebSocket session established", "DBG controller authenticate", "DBG incoming message", "DBG controller subscribe",
            "DBG controller perform", "WRN failed to handle incoming message", "DBG controller unsubscribe",
            "DBG WebSocket session completed", "DBG disconnect", "DBG controller disconnect succeeded",
        ];
        let log = stage.server.log();
        for text in texts {
            let lines: Vec<&String> = log.iter().filter(|line| line.contains(&format!("{text} nodeid="))).collect();
            assert!(!lines.is_empty(), "no {text:?} in\n{}", log.join("\n"));
            for line in lines {
                assert!(line.contains(" sid=mine") && line.contains(" shard="), "{line}");
            }
        }
        let completed = stage.server.wait_for_log(&["WebSocket session completed"]);
        assert!(completed.contains(" cause=client"), "{completed}");
    }

    fn answers_of_the_app_and_their_absence_are_debug_records(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.on_command("subscribe", "B", crate::support::Answer::status(500, ""));
        let mut client = stage.client();
        client.subscribe("A");
        client.command("subscribe", "B");
        stage.server.wait_for_log(&["DBG controller authenticate", "context=node", r#"response="{\"#]);
        stage.server.wait_for_log(&["DBG controller subscribe", "context=node", r#"response="{\"#]);
        let failed = stage.server.wait_for_log(&["DBG controller subscribe", " err="]);
        assert!(!failed.contains("response="), "{failed}");
        let warning = stage.server.wait_for_log(&["WRN failed to handle incoming message", " error="]);
        let data = r#" data="{\"command\":\"subscribe\",\"identifier\":\"B\"}""#;
        assert!(warning.contains(data), "{warning}");
    }

    fn an_app_that_is_not_told_of_the_end_is_an_error(driver: Driver) {
        let stage = Stage::new(driver);
        stage.server.wait_for_log(&["DBG calls rate", "context=disconnector", "rate=10ms"]);
        stage.rails.on_disconnect(crate::support::Answer::status(500, ""));
        crate::support::Cable::to(&stage.server).header("X-Request-ID", "me").welcomed().close();
        stage.server.wait_for_log(&["ERR controller disconnect failed", "context=node", "sid=me", "shard=0", "error="]);
    }

    fn publications_and_their_way_are_debug_records(driver: Driver) {
        let stage = Stage::new(driver);
        stage.publish("nobody", "1");
        stage.server.wait_for_log(&["DBG handle broadcast message", "context=node", "payload=", "nobody"]);
        stage.server.wait_for_log(&["DBG no sessions", "component=hub", "shard=", "stream=nobody"]);
        let mut client = stage.client();
        client.subscribe("A");
        stage.publish("stream:A", "2");
        stage.server.wait_for_log(&["DBG incoming broadcast message", "context=node", "stream=stream:A", "payload=2"]);
    }

    fn a_session_that_no_token_can_open_is_an_error_with_its_reason(driver: Driver) {
        let stage = Stage::new(driver);
        let mut raw = Raw::upgrade(stage.server.address(), "/cable?jid=%zz");
        raw.expect_close(1011, "Auth Error");
        stage.server.wait_for_log(&["ERR WebSocket session failed", "context=ws", "sid=", "shard=", "query of the URL cannot be parsed"]);
    }

    fn missing_pongs_are_told_in_the_words_of_the_reference(driver: Driver) {
        let stage = Stage::with(driver, &["--pong_timeout=1", "--ping_interval=1"]);
        let silent = crate::support::Cable::to(&stage.server)
            .subprotocols("actioncable-v1-ext-json")
            .header("X-Request-ID", "silent")
            .welcomed();
        stage.server.wait_for_log(&["WRN disconnecting session due to no pongs", "context=node", "sid=silent", "shard="]);
        drop(silent);
    }

    fn slow_calls_are_told_once_in_a_while_and_all_are_counted(driver: Driver) {
        let stage = Stage::with(driver, &["--rpc_slow_call=50", "--cores=1"]);
        let slow = std::time::Duration::from_millis(120);
        for identifier in ["A", "B", "C"] {
            stage.rails.on_command("subscribe", identifier, crate::support::Answer::confirm(identifier, &[]).after(slow));
        }
        let mut client = crate::support::Cable::to(&stage.server).header("X-Request-ID", "me").welcomed();
        for identifier in ["A", "B", "C"] {
            client.subscribe(identifier);
        }
        let line = stage.server.wait_for_log(&["WRN slow RPC call", "context=rpc", "sid=me", "shard=0"]);
        assert!(!line.contains("left_out"), "nothing was left out: {line}");
        for part in [" method=command", " command=subscribe", " identifier=A", " waited_ms="] {
            assert!(line.contains(part), "{line}");
        }
        let (_, ran) = line.split_once(" ran_ms=").unwrap_or_else(|| panic!("{line}"));
        let ran: u64 = ran.split(' ').next().expect("a number").parse().expect("a number");
        assert!((100..10_000).contains(&ran), "{line}");
        let page = stage.server.get("/metrics").text();
        assert!(page.contains("ringcable_rpc_slow_calls_total{shard=\"0\"} 3\n"), "{page}");
        let lines = stage.server.log().iter().filter(|line| line.contains("slow RPC call")).count();
        assert_eq!(lines, 1, "one line in ten seconds");
    }

    fn slow_calls_can_be_ignored(driver: Driver) {
        let stage = Stage::with(driver, &["--rpc_slow_call=0"]);
        let slow = crate::support::Answer::confirm("A", &[]).after(std::time::Duration::from_millis(1200));
        stage.rails.on_command("subscribe", "A", slow);
        stage.client().subscribe("A");
        assert!(!stage.server.log().iter().any(|line| line.contains("slow RPC call")));
    }

    fn failures_are_warnings_with_sid(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = crate::support::Cable::to(&stage.server).header("X-Request-ID", "me").welcomed();
        client.subscribe("A");
        client.command("subscribe", "A");
        let line = stage.server.wait_for_log(&["WRN", "failed to handle incoming message", "sid=me"]);
        assert!(line.contains("already subscribed to"), "{line}");
        stage.broadcaster().post("nope");
        stage.server.wait_for_log(&["WRN", "failed to parse pubsub message"]);
        stage.rails.on_connect(crate::support::Answer::status(500, ""));
        Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        stage.server.wait_for_log(&["ERR", "WebSocket session failed", "sid="]);
    }

    fn json_records_are_objects_with_the_fixed_keys(driver: Driver) {
        let stage = Stage::with(driver, &["--log_format=json", "--node_id=n0de"]);
        stage.client().subscribe("A");
        stage.server.wait_for_log(&["controller subscribe"]);
        for line in stage.server.log() {
            let record: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
            assert!(["DEBUG", "INFO", "WARN", "ERROR"].contains(&record["level"].as_str().unwrap_or_default()), "{line}");
            assert!(record["msg"].is_string() && record["time"].as_str().is_some_and(|time| time.contains('T')), "{line}");
            assert_eq!(record["nodeid"], "n0de", "{line}");
        }
    }

    fn level_error_is_silent_in_normal_operation(driver: Driver) {
        let rails = Rails::start();
        let port = free_port();
        let launch = campfire(driver, &rails, port).env("ANYCABLE_LOG_LEVEL", "error");
        let finished = launch.start_at(port);
        Raw::welcomed(finished.address()).subscribe("A");
        finished.terminate();
        assert!(finished.wait_exit().success());
        assert_eq!(finished.log(), Vec::<String>::new());
    }

    fn secrets_and_cookies_are_not_logged_above_debug(driver: Driver) {
        let stage = Stage::with(driver, &["--log_level=info"]);
        let cookie = "very-private-cookie";
        let mut client = crate::support::Cable::to(&stage.server).header("Cookie", cookie).welcomed();
        client.subscribe("A");
        stage.publish("stream:A", "\"private-payload\"");
        client.next_text();
        stage.rails.on_connect(crate::support::Answer::status(500, "private-answer"));
        Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        let log = stage.server.log().join("\n");
        let secrets = [cookie, "private-payload", keys::SECRET, &keys::rpc_token(keys::SECRET), &keys::broadcast_token(keys::SECRET)];
        for secret in secrets {
            assert!(!log.contains(secret), "{secret} in\n{log}");
        }
    }
}
