use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;

fn text_of(metrics: &Metrics, tags: &[(&str, &str)]) -> String {
    let tags: Vec<_> = tags
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    let mut out = String::new();
    render(metrics, &tags, &mut out);
    out
}

#[track_caller]
fn check(metrics: &Metrics, tags: &[(&str, &str)], expected_line: &str) {
    let text = text_of(metrics, tags);
    assert!(
        text.lines().any(|line| line == expected_line),
        "no line {expected_line:?} in\n{text}"
    );
}

/// Name, type and HELP, copied from the contract.
const REFERENCE_HEADS: &[(&str, &str, &str)] = &[
    ("clients_num", "gauge", "The number of active clients"),
    (
        "clients_uniq_num",
        "gauge",
        "The number of unique clients (with respect to connection identifiers)",
    ),
    (
        "broadcast_streams_num",
        "gauge",
        "The number of active broadcasting streams",
    ),
    (
        "disconnect_queue_size",
        "gauge",
        "The size of delayed disconnect",
    ),
    (
        "sse_clients_num",
        "gauge",
        "The number of active SSE clients",
    ),
    (
        "long_poll_clients_num",
        "gauge",
        "The number of active long polling clients",
    ),
    (
        "long_poll_stale_requests_total",
        "counter",
        "The total number of stale long polling requests",
    ),
    (
        "ds_requests_total",
        "counter",
        "The total number of durable streams HEAD/GET requests",
    ),
    (
        "ds_poll_requests_total",
        "counter",
        "The total number of durable streams long-poll requests",
    ),
    (
        "ds_sse_requests_total",
        "counter",
        "The total number of durable streams SSE requests",
    ),
    (
        "ds_poll_clients_num",
        "gauge",
        "The number of active durable streams long-poll clients",
    ),
    (
        "ds_sse_clients_num",
        "gauge",
        "The number of active durable streams SSE clients",
    ),
    ("goroutines_num", "gauge", "The number of Go routines"),
    (
        "mem_sys_bytes",
        "gauge",
        "The total bytes of memory obtained from the OS",
    ),
    (
        "failed_auths_total",
        "counter",
        "The total number of failed authentication attempts",
    ),
    (
        "client_msg_total",
        "counter",
        "The total number of received messages from clients",
    ),
    (
        "failed_client_msg_total",
        "counter",
        "The total number of unrecognized messages received from clients",
    ),
    (
        "data_rcvd_total",
        "counter",
        "The total amount of bytes received from clients",
    ),
    (
        "data_sent_total",
        "counter",
        "The total amount of bytes sent to clients",
    ),
    (
        "server_msg_total",
        "counter",
        "The total number of messages sent to clients",
    ),
    (
        "failed_server_msg_total",
        "counter",
        "The total number of messages failed to send to clients",
    ),
    (
        "timeout_server_msg_total",
        "counter",
        "The total number of messages failed to send to clients due to write timeouts",
    ),
    (
        "disconnected_slow_clients_total",
        "counter",
        "The total number of disconnected slow clients",
    ),
    (
        "publications_total",
        "counter",
        "The total number of publications received (from the application)",
    ),
    (
        "broadcast_msg_total",
        "counter",
        "The total number of messages received through PubSub (for broadcast)",
    ),
    (
        "failed_broadcast_msg_total",
        "counter",
        "The total number of unrecognized publications received from the application",
    ),
    (
        "remote_commands_total",
        "counter",
        "The total number of remote commands received through PubSub",
    ),
    ("rpc_call_total", "counter", "The total number of RPC calls"),
    (
        "rpc_retries_total",
        "counter",
        "The total number of RPC call retries",
    ),
    (
        "rpc_error_total",
        "counter",
        "The total number of failed RPC calls",
    ),
    (
        "rpc_timeout_total",
        "counter",
        "The total number of RPC call that timed out",
    ),
    (
        "rpc_canceled_total",
        "counter",
        "The total number of canceled RPC calls",
    ),
    (
        "rpc_pending_num",
        "gauge",
        "The number of pending RPC calls",
    ),
];

#[test]
fn the_reference_names_come_with_their_help_and_type_and_no_other() {
    let text = text_of(&Metrics::new(2), &[]);
    for (name, kind, help) in REFERENCE_HEADS {
        let expected = format!(
            "# HELP anycable_go_{name} {help}\n# TYPE anycable_go_{name} {kind}\nanycable_go_{name} 0\n"
        );
        assert!(text.contains(&expected), "missing:\n{expected}");
    }
    let heads = text
        .lines()
        .filter(|line| line.starts_with("# TYPE anycable_go_"))
        .count();
    assert_eq!(heads, REFERENCE_HEADS.len());
}

#[test]
fn without_rpc_the_rpc_names_of_the_reference_are_absent() {
    let mut metrics = Metrics::new(1);
    metrics.rpc_configured = false;
    assert!(!text_of(&metrics, &[]).contains("anycable_go_rpc_"));
}

#[test]
fn reference_metrics_are_sums_over_the_shards() {
    let metrics = Metrics::new(3);
    metrics.shards[0].client_msg_total.add(1);
    metrics.shards[1].client_msg_total.add(2);
    metrics.shards[2].client_msg_total.add(40);
    metrics.shards[0].clients_num.set(5);
    metrics.shards[2].clients_num.set(6);
    metrics.mem_sys_bytes.set(1_234_567);
    metrics.threads.set(4);
    metrics.clients_uniq_num.set(7);
    check(&metrics, &[], "anycable_go_client_msg_total 43");
    check(&metrics, &[], "anycable_go_clients_num 11");
    check(&metrics, &[], "anycable_go_mem_sys_bytes 1234567");
    check(&metrics, &[], "anycable_go_goroutines_num 4");
    check(&metrics, &[], "anycable_go_clients_uniq_num 7");
}

#[test]
fn own_metrics_have_one_sample_per_shard() {
    let metrics = Metrics::new(2);
    metrics.shards[1].deliveries_total.add(9);
    metrics.shards[0].closed_no_pong_total.add(3);
    metrics.shards[0].inbox_depth.set(2);
    metrics.shards[1].clients_num.set(8);
    check(&metrics, &[], r#"ringcable_deliveries_total{shard="0"} 0"#);
    check(&metrics, &[], r#"ringcable_deliveries_total{shard="1"} 9"#);
    check(
        &metrics,
        &[],
        r#"ringcable_closed_total{shard="0",reason="no_pong"} 3"#,
    );
    check(&metrics, &[], r#"ringcable_inbox_depth{shard="0"} 2"#);
    check(&metrics, &[], r#"ringcable_clients_num{shard="1"} 8"#);
}

#[test]
fn histograms_are_cumulative_sums_over_the_shards() {
    let metrics = Metrics::new(2);
    metrics.shards[0]
        .rpc_duration_seconds
        .observe(Duration::from_millis(2));
    metrics.shards[1]
        .rpc_duration_seconds
        .observe(Duration::from_millis(40));
    metrics.shards[1]
        .rpc_duration_seconds
        .observe(Duration::from_secs(11));
    check(
        &metrics,
        &[],
        r#"ringcable_rpc_duration_seconds_bucket{le="0.001"} 0"#,
    );
    check(
        &metrics,
        &[],
        r#"ringcable_rpc_duration_seconds_bucket{le="0.0025"} 1"#,
    );
    check(
        &metrics,
        &[],
        r#"ringcable_rpc_duration_seconds_bucket{le="0.05"} 2"#,
    );
    check(
        &metrics,
        &[],
        r#"ringcable_rpc_duration_seconds_bucket{le="10"} 2"#,
    );
    check(
        &metrics,
        &[],
        r#"ringcable_rpc_duration_seconds_bucket{le="+Inf"} 3"#,
    );
    check(
        &metrics,
        &[],
        "ringcable_rpc_duration_seconds_sum 11.042000000",
    );
    check(&metrics, &[], "ringcable_rpc_duration_seconds_count 3");
}

#[test]
fn process_metrics_have_one_sample() {
    let metrics = Metrics::new(2);
    metrics.private_bytes.set(10_000_000);
    check(&metrics, &[], "ringcable_bytes_per_connection 0");
    metrics.shards[0].sessions_num.set(600);
    metrics.shards[1].sessions_num.set(399);
    check(&metrics, &[], "ringcable_bytes_per_connection 0");
    metrics.shards[1].sessions_num.set(400);
    check(&metrics, &[], "ringcable_bytes_per_connection 10000");
    check(&metrics, &[], "ringcable_private_bytes 10000000");
    metrics.rpc_breaker_opened.set(2);
    check(&metrics, &[], "ringcable_rpc_breaker_opened_total 2");
    metrics.statsd_errors_total.add(5);
    check(&metrics, &[], "ringcable_statsd_errors_total 5");
    metrics.log_records_dropped.set(7);
    check(&metrics, &[], "ringcable_log_records_dropped_total 7");
    metrics.cpu_millis[1].set(61_020);
    check(
        &metrics,
        &[],
        r#"ringcable_cpu_seconds_total{shard="1"} 61.020"#,
    );
}

#[test]
fn a_counter_beyond_what_is_signed_is_still_positive() {
    let metrics = Metrics::new(2);
    metrics.shards[0].data_sent_total.add(1 << 63);
    metrics.shards[1].data_sent_total.add(1);
    check(
        &metrics,
        &[],
        "anycable_go_data_sent_total 9223372036854775809",
    );
}

#[test]
fn build_info_says_version_and_driver() {
    let metrics = Metrics::new(1);
    metrics.driver.set("io_uring").expect("set once");
    let version = env!("CARGO_PKG_VERSION");
    check(
        &metrics,
        &[],
        &format!(r#"ringcable_build_info{{version="{version}",driver="io_uring"}} 1"#),
    );
}

#[test]
fn a_server_with_tls_tells_when_its_certificate_ends() {
    let mut metrics = Metrics::new(1);
    assert!(!text_of(&metrics, &[]).contains("tls_certificate"));
    metrics.tls = Some(TlsMetrics::default());
    // The validity of the certificate is unknown.
    assert!(!text_of(&metrics, &[]).contains("tls_certificate"));
    let tls = metrics.tls.as_ref().expect("just set");
    tls.certificate_expiry.set(1_795_675_620);
    tls.failed_reloads_total.add(1);
    let expected = "ringcable_tls_certificate_expiry_seconds 1795675620";
    check(&metrics, &[], expected);
    let expected = r#"ringcable_tls_reloads_total{result="ok"} 0"#;
    check(&metrics, &[], expected);
    let expected = r#"ringcable_tls_reloads_total{result="failed"} 1"#;
    check(&metrics, &[], expected);
}

#[test]
fn tags_are_constant_labels_of_every_sample() {
    let metrics = Metrics::new(1);
    let tags = [("env", "dev"), ("rev", "1.1")];
    check(
        &metrics,
        &tags,
        r#"anycable_go_clients_num{env="dev",rev="1.1"} 0"#,
    );
    check(
        &metrics,
        &tags,
        r#"ringcable_writes_total{shard="0",env="dev",rev="1.1"} 0"#,
    );
    check(
        &metrics,
        &tags,
        r#"ringcable_rpc_slot_wait_seconds_bucket{le="1",env="dev",rev="1.1"} 0"#,
    );
    check(
        &metrics,
        &tags,
        r#"ringcable_rpc_slot_wait_seconds_count{env="dev",rev="1.1"} 0"#,
    );
}

#[test]
fn tag_values_are_escaped() {
    check(
        &Metrics::new(1),
        &[("a", "x\"y\\z\nw")],
        r#"anycable_go_clients_num{a="x\"y\\z\nw"} 0"#,
    );
}

#[test]
fn tag_names_become_valid_label_names() {
    let metrics = Metrics::new(1);
    check(
        &metrics,
        &[("my-tag", "1")],
        r#"anycable_go_clients_num{my_tag="1"} 0"#,
    );
    check(
        &metrics,
        &[("1st", "1")],
        r#"anycable_go_clients_num{_1st="1"} 0"#,
    );
    check(
        &metrics,
        &[("", "1")],
        r#"anycable_go_clients_num{_="1"} 0"#,
    );
    check(
        &metrics,
        &[("größe", "1")],
        r#"anycable_go_clients_num{gr__e="1"} 0"#,
    );
    check(
        &metrics,
        &[("a.b", "1"), ("a-b", "2")],
        r#"anycable_go_clients_num{a_b="1"} 0"#,
    );
}

#[test]
fn a_tag_that_clashes_with_an_own_label_is_renamed_there_only() {
    let metrics = Metrics::new(1);
    let tags = [("shard", "eu")];
    check(&metrics, &tags, r#"anycable_go_clients_num{shard="eu"} 0"#);
    check(
        &metrics,
        &tags,
        r#"ringcable_writes_total{shard="0",exported_shard="eu"} 0"#,
    );
    let both = [("shard", "eu"), ("exported_shard", "x")];
    check(
        &metrics,
        &both,
        r#"ringcable_writes_total{shard="0",exported_shard="x"} 0"#,
    );
}

/// The derived `Debug` names every field, so this finds fields that the text does not contain.
#[test]
fn every_field_of_a_shard_is_rendered() {
    let metrics = Metrics::new(1);
    let text = text_of(&metrics, &[]);
    let debug = format!("{:#?}", metrics.shards[0]);
    let fields: Vec<&str> = debug
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split(':').next())
        .collect();
    assert!(fields.len() > 50, "{fields:?}");
    for field in fields {
        let reason = field
            .strip_prefix("closed_")
            .and_then(|rest| rest.strip_suffix("_total"));
        let expected = match reason {
            Some(reason) => format!("reason=\"{reason}\""),
            None => format!("_{field}"),
        };
        assert!(text.contains(&expected), "{field} is not rendered");
    }
}

/// The checks of `promtool check metrics`, as far as a unit test can do them.
#[test]
fn the_text_is_well_formed() {
    let text = text_of(&Metrics::new(2), &[("env", "a\"b")]);
    let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
    let mut samples = BTreeSet::new();
    let mut family = "";
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("name and help");
            assert!(!help.is_empty());
            assert!(!kinds.contains_key(name), "{name} appears twice");
            family = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("name and type");
            assert_eq!(name, family);
            assert_eq!(
                kind == "counter",
                name.ends_with("_total"),
                "{name} is a {kind}"
            );
            kinds.insert(name, kind);
        } else {
            assert!(line.starts_with(family), "{line} is not of {family}");
            let (series, value) = line.rsplit_once(' ').expect("series and value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(samples.insert(series), "{series} appears twice");
        }
    }
}
