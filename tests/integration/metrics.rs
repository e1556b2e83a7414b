//! `/metrics`: names, values that move, and promtool's opinion. Source: `contract/operations.md` §13 and §14.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::ports::free_port;
use crate::support::raw::Raw;
use crate::support::wait::until;
use crate::support::{Answer, Cable, Driver, Gate, Stage};

/// Every name a server with HTTP RPC exposes by default, with its type.
const NAMES: [(&str, &str); 25] = [
    ("clients_num", "gauge"),
    ("clients_uniq_num", "gauge"),
    ("broadcast_streams_num", "gauge"),
    ("disconnect_queue_size", "gauge"),
    ("goroutines_num", "gauge"),
    ("mem_sys_bytes", "gauge"),
    ("failed_auths_total", "counter"),
    ("client_msg_total", "counter"),
    ("failed_client_msg_total", "counter"),
    ("data_rcvd_total", "counter"),
    ("data_sent_total", "counter"),
    ("server_msg_total", "counter"),
    ("failed_server_msg_total", "counter"),
    ("timeout_server_msg_total", "counter"),
    ("disconnected_slow_clients_total", "counter"),
    ("publications_total", "counter"),
    ("broadcast_msg_total", "counter"),
    ("failed_broadcast_msg_total", "counter"),
    ("remote_commands_total", "counter"),
    ("rpc_call_total", "counter"),
    ("rpc_retries_total", "counter"),
    ("rpc_error_total", "counter"),
    ("rpc_timeout_total", "counter"),
    ("rpc_canceled_total", "counter"),
    ("rpc_pending_num", "gauge"),
];

/// The page for operators says what each metric means, and none that is not there.
#[test]
fn monitoring_page_has_every_metric_with_its_type() {
    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/monitoring.md");
    let stage = Stage::new(Driver::Epoll);
    let metrics = stage.server.get("/metrics").text();
    let heads = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let mut exported: Vec<&str> = heads.collect();
    let page = std::fs::read_to_string(PAGE).expect("the page");
    let rows = page.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        let is_metric = name.starts_with("anycable_go_") || name.starts_with("ringcable_");
        let kind = rest.split([' ', ',']).next()?;
        is_metric.then(|| format!("{name} {kind}"))
    });
    let mut described: Vec<String> = rows.collect();
    exported.sort_unstable();
    described.sort_unstable();
    assert_eq!(described, exported);
}

on_both_drivers! {
    fn every_name_of_the_reference_is_there_with_help_and_type(driver: Driver) {
        let stage = Stage::new(driver);
        let answer = stage.server.get("/metrics");
        assert_eq!(answer.status, 200);
        assert!(answer.header("Content-Type").is_some_and(|value| value.starts_with("text/plain")));
        let body = answer.text();
        for (name, kind) in NAMES {
            assert!(body.contains(&format!("# HELP anycable_go_{name} ")), "no help for {name}");
            assert!(body.contains(&format!("# TYPE anycable_go_{name} {kind}\n")), "no type for {name}");
            assert!(stage.server.metric(name) >= 0);
        }
        let help = "# HELP anycable_go_rpc_pending_num The number of pending RPC calls";
        assert!(body.contains(help), "{body}");
    }

    fn counters_and_gauges_move_with_what_happens(driver: Driver) {
        let stage = Stage::new(driver);
        let metric = |name: &str| stage.server.metric(name);
        let mut clients: Vec<Cable> = (0..4).map(|_| stage.client()).collect();
        for client in &mut clients {
            client.subscribe("A");
        }
        clients[0].subscribe("B");
        stage.server.wait_for_metric("clients_num", 4);
        stage.server.wait_for_metric("clients_uniq_num", 1);
        stage.server.wait_for_metric("broadcast_streams_num", 2);
        assert_eq!(metric("rpc_call_total"), 4 + 5);
        assert_eq!(metric("client_msg_total"), 5);
        assert_eq!(metric("server_msg_total"), 4 + 5);
        let subscribe_bytes = r#"{"command":"subscribe","identifier":"A"}"#.len() as i64;
        assert_eq!(metric("data_rcvd_total"), 5 * subscribe_bytes);
        let sent = metric("server_msg_total");
        stage.publish("stream:A", "1");
        clients.iter_mut().for_each(|client| assert_eq!(client.next_json()["message"], 1));
        assert_eq!((metric("broadcast_msg_total"), metric("publications_total")), (1, 1));
        assert_eq!(metric("server_msg_total"), sent + 4);
        assert!(metric("data_sent_total") >= 4 * r#"{"identifier":"A","message":1}"#.len() as i64);
        clients.into_iter().for_each(Cable::close);
        stage.rails.wait_for_calls("disconnect", 4);
        stage.server.wait_for_metric("rpc_call_total", 9 + 4);
        for name in ["clients_num", "clients_uniq_num", "broadcast_streams_num", "disconnect_queue_size"] {
            stage.server.wait_for_metric(name, 0);
        }
        assert!(metric("mem_sys_bytes") > 1_000_000);
    }

    fn failures_are_counted_where_the_table_says(driver: Driver) {
        let stage = Stage::new(driver);
        stage.rails.on_connect(Answer::unauthorized());
        Raw::upgrade(stage.server.address(), "/cable").next_text();
        stage.server.wait_for_metric("failed_auths_total", 1);
        assert_eq!(stage.server.metric("rpc_error_total"), 0);
        stage.rails.on_connect(Answer::status(500, ""));
        Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
        stage.server.wait_for_metric("rpc_error_total", 1);
        assert_eq!(stage.server.metric("failed_auths_total"), 1);
        assert_eq!(stage.server.metric("clients_num"), 0);
    }

    fn polled_gauges_wait_for_their_interval_and_the_client_count_is_live(driver: Driver) {
        let stage = Stage::with(driver, &["--stats_refresh_interval=3600"]);
        let mut client = stage.client();
        client.subscribe("A");
        assert_eq!(stage.server.metric("clients_num"), 1);
        assert_eq!(stage.server.metric("clients_uniq_num"), 0);
        assert_eq!(stage.server.metric("broadcast_streams_num"), 0);
    }

    fn own_gauges_say_what_the_process_holds(driver: Driver) {
        let stage = Stage::new(driver);
        let page = || stage.server.get("/metrics").text();
        let value = |page: &str, series: &str| -> f64 {
            let line = page.lines().find_map(|line| line.strip_prefix(&format!("{series} ")));
            line.unwrap_or_else(|| panic!("no {series} in\n{page}")).parse().expect("a number")
        };
        let sum = |page: &str, name: &str| (0..2).map(|shard| value(page, &format!("{name}{{shard=\"{shard}\"}}"))).sum::<f64>();
        let first = page();
        assert!(value(&first, "ringcable_open_files_limit") >= 256.0);
        assert!(value(&first, "ringcable_start_time_seconds") > 1.7e9);
        assert_eq!(value(&first, "ringcable_rpc_slots_num"), 28.0);
        assert_eq!(sum(&first, "ringcable_sessions_num"), 0.0);
        let driver_label = driver.flag().trim_start_matches("--driver=").to_owned();
        assert!(first.contains(&format!("driver=\"{driver_label}\"}} 1")), "{first}");
        // A session in authentication is one, but not yet a client.
        let gate = Gate::new();
        stage.rails.on_connect(Answer::welcome("u", &["{}"]).behind(&gate));
        let mut waiting = Cable::to(&stage.server).open();
        stage.rails.wait_for_calls("connect", 1);
        let busy = page();
        assert_eq!((sum(&busy, "ringcable_sessions_num"), sum(&busy, "ringcable_clients_num")), (1.0, 0.0));
        assert_eq!(value(&busy, "ringcable_rpc_running_num"), 1.0);
        gate.open();
        assert_eq!(waiting.next_text(), "{}");
        let polled = until("the polled gauges", || {
            let page = page();
            (value(&page, "ringcable_private_bytes") > 0.0 && sum(&page, "ringcable_cpu_seconds_total") > 0.0).then_some(page)
        });
        // One session says nothing about many.
        assert_eq!(value(&polled, "ringcable_bytes_per_connection"), 0.0);
        assert_eq!(value(&polled, "ringcable_rpc_running_num"), 0.0);
        // The poll itself puts a question into each inbox, which may be there still.
        until("empty inboxes", || (sum(&page(), "ringcable_inbox_depth") == 0.0).then_some(()));
        waiting.close();
        until("the session's end", || (sum(&page(), "ringcable_sessions_num") == 0.0).then_some(()));
    }

    fn an_app_that_is_gone_opens_the_breaker_and_the_page_shows_it(driver: Driver) {
        let stage = Stage::with(driver, &["--rpc_command_timeout=50"]);
        stage.rails.stop();
        until("the breaker to open", || {
            Raw::upgrade(stage.server.address(), "/cable").expect_close(1011, "Auth Error");
            let page = stage.server.get("/metrics").text();
            (page.contains("\nringcable_rpc_breaker_open 1\n") && page.contains("\nringcable_rpc_breaker_opened_total 1\n")).then_some(())
        });
        stage.server.wait_for_log(&["WRN circuit breaker is open", "context=cb", "name=httrpc"]);
        stage.rails.restart();
    }

    fn tags_become_labels(driver: Driver) {
        let stage = Stage::with(driver, &["--metrics_tags=env:dev,rev:1.1"]);
        let body = stage.server.get("/metrics").text();
        let line = body.lines().find(|line| line.starts_with("anycable_go_clients_num{")).expect("a labelled line");
        assert!(line.contains(r#"env="dev""#) && line.contains(r#"rev="1.1""#), "{line}");
    }

    fn endpoint_is_off_unless_asked_for(driver: Driver) {
        let stage = Stage::with(driver, &["--metrics_http="]);
        assert_eq!(stage.server.get("/metrics").status, 404);
    }

    fn endpoint_can_have_a_port_of_its_own(driver: Driver) {
        let port = free_port();
        let stage = Stage::with(driver, &[&format!("--metrics_port={port}"), "--metrics_http=/m"]);
        let address = ([127, 0, 0, 1], port).into();
        let body = crate::support::http::get(address, "/m").text();
        assert!(body.contains("anycable_go_clients_num"));
        assert_eq!(stage.server.get("/m").status, 404);
        stage.server.wait_for_log(&[&format!("Serve metrics at http://127.0.0.1:{port}/m")]);
    }

    fn promtool_reads_the_page(driver: Driver) {
        let Ok(mut promtool) = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
        else {
            eprintln!("skipped: promtool is not installed");
            return;
        };
        let stage = Stage::with(driver, &["--metrics_tags=env:dev"]);
        stage.client().subscribe("A");
        let page = stage.server.get("/metrics").body;
        promtool.stdin.take().expect("stdin is piped").write_all(&page).expect("promtool reads");
        let output = promtool.wait_with_output().expect("promtool ends");
        // Exit code 3 is for matters of style, which names of the reference may offend; 1 is a page it cannot read.
        let report = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{report}");
        assert!(report.lines().all(|line| !line.contains("ringcable_")), "our own names must be clean: {report}");
    }
}
