//! Metrics by interval: the log record of `--metrics_log`, and StatsD over UDP. Source: `contract/operations.md` §15 and
//! §16.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::time::Instant;

use serde_json::Value;

use crate::support::wait::{PATIENCE, uninterrupted, until};
use crate::support::{Cable, Launch, Stage};

/// An interval as short as it can be.
const EVERY_SECOND: &str = "--metrics_rotate_interval=1";

/// Name and value of the attributes of a metrics record, in order; `None` for another line.
fn numbers(line: &str) -> Option<Vec<(&str, i64)>> {
    let (_, attributes) = line.split_once(" INF  nodeid=")?;
    let (_node_id, attributes) = attributes.split_once(' ')?;
    let pairs = attributes.split(' ').map(|pair| pair.split_once('='));
    pairs
        .map(|pair| pair.and_then(|(name, value)| Some((name, value.parse().ok()?))))
        .collect()
}

/// The metrics records so far, as maps.
fn records(stage: &Stage) -> Vec<HashMap<String, i64>> {
    let log = stage.server.log();
    let records = log.iter().filter_map(|line| numbers(line));
    records
        .map(|record| {
            let owned = record
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value));
            owned.collect()
        })
        .collect()
}

/// A StatsD server.
struct StatsdServer {
    socket: UdpSocket,
}

impl StatsdServer {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("an option of every socket");
        Self { socket }
    }

    fn flag(&self) -> String {
        let address = self.socket.local_addr().expect("bound");
        format!("--statsd_host={address}")
    }

    fn next_packet(&self) -> String {
        let mut buffer = [0; 65_536];
        let received = uninterrupted(|| self.socket.recv(&mut buffer));
        let bytes = received.expect("a packet in time");
        String::from_utf8(buffer[..bytes].to_vec()).expect("packets are text")
    }

    /// Reads packets until one has this line.
    fn wait_for_line(&self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while Instant::now() < deadline {
            let packet = self.next_packet();
            if packet.lines().any(|line| line == wanted) {
                return;
            }
            seen.push(packet);
        }
        panic!("no line {wanted:?} in {seen:#?}");
    }
}

on_both_drivers! {
    fn metrics_log_has_gauges_as_they_are_and_counters_by_interval(driver: Driver) {
        // Without a metrics page: the gauges are there for the log.
        let stage = Stage::with(driver, &["--metrics_log", EVERY_SECOND, "--metrics_http="]);
        stage.server.wait_for_log(&["INF log metrics", " interval=1"]);
        let mut client = stage.client();
        client.subscribe("A");
        let record = until("a record with the client", || {
            records(&stage).into_iter().find(|record| record["clients_uniq_num"] == 1 && record["broadcast_streams_num"] == 1)
        });
        assert_eq!(record["clients_num"], 1);
        assert!(record["mem_sys_bytes"] > 1_000_000);
        let sum = |name: &str| records(&stage).iter().map(|record| record[name]).sum::<i64>();
        assert_eq!((sum("client_msg_total"), sum("rpc_call_total")), (1, 2));
        client.perform("A", "x");
        client.next_text();
        until("the call of the next interval", || (sum("rpc_call_total") == 3).then_some(()));
        assert!(records(&stage).iter().all(|record| record["rpc_call_total"] <= 2), "no counter is a total");
        stage.server.wait_for_log(&["DBG rotate metrics", "context=metrics", "interval=1s"]);
    }

    fn metrics_log_names_are_those_of_the_reference_in_order(driver: Driver) {
        let stage = Stage::with(driver, &["--metrics_log", EVERY_SECOND]);
        let line = stage.server.wait_for_log(&[" INF  nodeid=", " clients_num="]);
        let names: Vec<&str> = numbers(&line).expect("numbers alone").into_iter().map(|(name, _)| name).collect();
        assert!(names.is_sorted(), "{line}");
        assert_eq!(names.len(), 33, "{line}");
        assert!(!line.contains("context=") && !line.contains("anycable_go") && !line.contains("ringcable"), "{line}");
    }

    fn metrics_log_filter_chooses_and_unknown_names_are_told(driver: Driver) {
        let filter = "--metrics_log_filter=rpc_call_total,ringcable_accepted_total,nope,clients_num";
        let stage = Stage::with(driver, &["--metrics_log", EVERY_SECOND, filter]);
        stage.server.wait_for_log(&["INF log metrics", "fields=rpc_call_total,ringcable_accepted_total,nope,clients_num"]);
        stage.server.wait_for_log(&["WRN", "metrics_log_filter has names that no metric has", "names=nope"]);
        let line = stage.server.wait_for_log(&[" INF  nodeid=", " clients_num="]);
        let names: Vec<&str> = numbers(&line).expect("numbers alone").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["clients_num", "ringcable_accepted_total", "rpc_call_total"]);
    }

    fn metrics_log_in_json_has_numbers(driver: Driver) {
        let stage = Stage::with(driver, &["--metrics_log", EVERY_SECOND, "--log_format=json", "--node_id=n0de"]);
        let line = stage.server.wait_for_log(&["\"clients_num\":"]);
        let record: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in {line}"));
        assert_eq!((record["level"].as_str(), record["msg"].as_str()), (Some("INFO"), Some("")), "{line}");
        assert_eq!(record["nodeid"], "n0de");
        assert!(record["rpc_pending_num"].is_i64(), "{line}");
    }

    fn without_writers_nothing_is_rotated(driver: Driver) {
        let stage = Stage::with(driver, &["--metrics_log_filter=clients_num"]);
        stage.server.wait_for_log(&["DBG no metrics writers, disabling metrics rotation", "context=metrics"]);
    }

    fn deprecated_interval_counts_when_the_new_one_is_zero(driver: Driver) {
        let stage = Stage::with(driver, &["--metrics_log", "--metrics_log_interval=1", "--metrics_rotate_interval=0"]);
        stage.server.wait_for_log(&["INF log metrics", " interval=1"]);
        stage.server.wait_for_log(&[" INF  nodeid=", " clients_num="]);
    }

    fn statsd_gets_gauges_and_what_counters_gained(driver: Driver) {
        let statsd = StatsdServer::start();
        let stage = Stage::with(driver, &[&statsd.flag(), EVERY_SECOND]);
        stage.server.wait_for_log(&["INF Send statsd metrics to 127.0.0.1:", " with every 1s (prefix=anycable_go.)"]);
        stage.client().subscribe("A");
        statsd.wait_for_line("anycable_go.client_msg_total:1|c");
        // The next interval gained nothing, and the client has left.
        statsd.wait_for_line("anycable_go.clients_num:0|g");
        let packet = statsd.next_packet();
        assert!(!packet.contains("client_msg_total") && !packet.contains("ringcable") && !packet.ends_with('\n'), "{packet}");
        let page = stage.server.get("/metrics").text();
        assert!(page.contains("\nringcable_statsd_errors_total 0\n"), "{page}");
    }

    fn statsd_lines_carry_tags_in_each_style(driver: Driver) {
        let table = [
            ("datadog", "p.clients_num:0|g|#env:dev,rev:1.1"),
            ("influxdb", "p.clients_num,env=dev,rev=1.1:0|g"),
            ("graphite", "p.clients_num;env=dev;rev=1.1:0|g"),
        ];
        for (style, line) in table {
            let statsd = StatsdServer::start();
            let format = format!("--statsd_tags_format={style}");
            let args = [&statsd.flag(), EVERY_SECOND, "--statsd_prefix=p.", "--metrics_tags=env:dev,rev:1.1", &format];
            let stage = Stage::with(driver, &args);
            let described = format!("(prefix=p., tags=map[env:dev rev:1.1], style={style})");
            stage.server.wait_for_log(&["Send statsd metrics to ", &described]);
            statsd.wait_for_line(line);
        }
    }

    fn statsd_packets_are_split_at_their_limit(driver: Driver) {
        let statsd = StatsdServer::start();
        let stage = Stage::with(driver, &[&statsd.flag(), EVERY_SECOND, "--statsd_max_packet_size=100"]);
        stage.client().subscribe("A");
        let mut names = Vec::new();
        while !(names.contains(&"rpc_pending_num".to_owned()) && names.contains(&"broadcast_streams_num".to_owned())) {
            let packet = statsd.next_packet();
            assert!(packet.len() <= 100, "{packet}");
            for line in packet.lines() {
                let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("{line}"));
                assert!(value.ends_with("|g") || value.ends_with("|c"), "{line}");
                names.push(name.trim_start_matches("anycable_go.").to_owned());
            }
        }
    }

    fn statsd_that_is_not_there_costs_warnings_and_nothing_else(driver: Driver) {
        let statsd = StatsdServer::start();
        let flag = statsd.flag();
        drop(statsd);
        // Many packets, so that the refusals of the first ones are seen by the others.
        let stage = Stage::with(driver, &[&flag, EVERY_SECOND, "--statsd_max_packet_size=100"]);
        stage.server.wait_for_log(&["WRN cannot send metrics, the packet is lost", "service=statsd", "host=127.0.0.1:"]);
        until("more than one error", || {
            let page = stage.server.get("/metrics").text();
            let line = page.lines().find(|line| line.starts_with("ringcable_statsd_errors_total "))?.to_owned();
            (line.split(' ').nth(1)?.parse::<u64>().ok()? > 3).then_some(())
        });
        let lines = stage.server.log().iter().filter(|line| line.contains("cannot send metrics")).count();
        assert_eq!(lines, 1, "one line per minute");
        Cable::to(&stage.server).welcomed().close();
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
    }

    fn a_name_that_cannot_be_resolved_does_not_delay_the_end(driver: Driver) {
        let stage = Stage::with(driver, &["--statsd_host=statsd.invalid:8125", EVERY_SECOND]);
        stage.server.wait_for_log(&["DBG rotate metrics"]);
        let told = Instant::now();
        stage.server.terminate();
        assert!(stage.server.wait_exit().success());
        assert!(told.elapsed() < PATIENCE / 2, "{:?}", told.elapsed());
    }
}

#[test]
fn a_target_or_style_that_cannot_work_is_refused() {
    for (arg, part) in [
        ("--statsd_host=localhost", "a host and a port"),
        (
            "--statsd_tags_format=carbon",
            "one of datadog, influxdb, graphite",
        ),
    ] {
        let finished = Launch::bare().args(["--norpc", arg]).run();
        assert_eq!(finished.status.code(), Some(1), "{finished}");
        assert!(
            finished.stderr.contains(arg) && finished.stderr.contains(part),
            "{finished}"
        );
    }
}
