//! What the page gets once a second: the counters as they are. The page calculates rates, medians and charts.

use std::time::Duration;

use serde::Serialize;

use crate::metrics::histogram::{BOUNDS_MICROS, Snapshot};
use crate::metrics::{Counter, Gauge, Metrics, ShardMetrics};

/// What a snapshot contains besides the metrics.
#[derive(Debug)]
pub struct Facts<'a> {
    pub node_id: &'a str,
    pub now_unix_ms: u64,
    pub uptime: Duration,
    /// Memory that belongs to this process alone, without socket memory in the kernel.
    pub private_bytes: u64,
    /// Number of the newest recent record: the page fetches the records when this number has grown.
    pub last_record: u64,
}

/// The `message` of a delivery to the console's connections.
pub fn encode(metrics: &Metrics, facts: &Facts<'_>) -> Vec<u8> {
    let shards = &metrics.shards;
    let sum = |read: fn(&ShardMetrics) -> &Counter| {
        shards
            .iter()
            .fold(0u64, |sum, shard| sum.wrapping_add(read(shard).value()))
    };
    let histogram = |read: fn(&ShardMetrics) -> &crate::metrics::Histogram| {
        let mut sum = Snapshot::default();
        for shard in shards {
            sum.merge(&read(shard).snapshot());
        }
        sum.buckets
    };
    let snapshot = Message {
        now_ms: facts.now_unix_ms,
        node: facts.node_id,
        version: env!("CARGO_PKG_VERSION"),
        driver: metrics.driver.get().copied().unwrap_or_default(),
        uptime_secs: facts.uptime.as_secs(),
        private_bytes: facts.private_bytes,
        private_bytes_at_start: metrics
            .private_bytes_at_start
            .get()
            .copied()
            .unwrap_or_default(),
        streams: metrics.broadcast_streams_num.value(),
        users: metrics.clients_uniq_num.value(),
        last_record: facts.last_record,
        shards: shards.iter().map(Shard::of).collect(),
        rpc: metrics.rpc_configured.then(|| Rpc {
            bounds_us: &BOUNDS_MICROS,
            ran: histogram(|shard| &shard.rpc_duration_seconds),
            waited: histogram(|shard| &shard.rpc_slot_wait_seconds),
            calls: sum(|shard| &shard.rpc_call_total),
            errors: sum(|shard| &shard.rpc_error_total),
            timeouts: sum(|shard| &shard.rpc_timeout_total),
            pending: gauge_sum(shards, |shard| &shard.rpc_pending_num),
            disconnect_queue: gauge_sum(shards, |shard| &shard.disconnect_queue_size),
        }),
        broker: metrics.has_broker.then(|| Broker {
            bytes: gauge_sum(shards, |shard| &shard.broker_bytes),
            bytes_max: metrics.broker_bytes_max.value(),
            streams: gauge_sum(shards, |shard| &shard.broker_streams_num),
            messages: gauge_sum(shards, |shard| &shard.broker_messages_num),
            members: gauge_sum(shards, |shard| &shard.presence_members_num),
            sessions: gauge_sum(shards, |shard| &shard.sessions_kept_num),
            restored: sum(|shard| &shard.restores_total),
            not_restored: sum(|shard| &shard.restores_unknown_total),
            answered: sum(|shard| &shard.history_confirmed_total),
            refused: sum(|shard| &shard.history_refused_total),
            replayed: sum(|shard| &shard.history_messages_total),
            evicted: sum(|shard| &shard.broker_evictions_total),
            evicted_sessions: sum(|shard| &shard.session_evictions_total),
        }),
    };
    sonic_rs::to_vec(&snapshot).expect("texts and numbers are always JSON")
}

fn gauge_sum(shards: &[ShardMetrics], read: fn(&ShardMetrics) -> &Gauge) -> i64 {
    shards.iter().map(|shard| read(shard).value()).sum()
}

#[derive(Serialize)]
struct Message<'a> {
    now_ms: u64,
    node: &'a str,
    version: &'a str,
    driver: &'a str,
    uptime_secs: u64,
    private_bytes: u64,
    private_bytes_at_start: u64,
    /// Distinct ones over all shards; counted every few seconds.
    streams: i64,
    users: i64,
    last_record: u64,
    shards: Vec<Shard>,
    rpc: Option<Rpc<'a>>,
    broker: Option<Broker>,
}

#[derive(Serialize)]
struct Shard {
    sessions: i64,
    accepted: u64,
    closed: u64,
    messages: u64,
    publications: u64,
    deliveries: u64,
    sent_bytes: u64,
    blocked_writes: u64,
    outbox_bytes: i64,
    inbox_depth: i64,
    slow: u64,
}

impl Shard {
    fn of(metrics: &ShardMetrics) -> Self {
        let closed = [
            &metrics.closed_client_total,
            &metrics.closed_remote_total,
            &metrics.closed_no_pong_total,
            &metrics.closed_too_slow_total,
            &metrics.closed_write_timeout_total,
            &metrics.closed_protocol_error_total,
            &metrics.closed_auth_total,
            &metrics.closed_shutdown_total,
            &metrics.closed_error_total,
        ];
        Self {
            sessions: metrics.clients_num.value(),
            accepted: metrics.accepted_total.value(),
            closed: closed.iter().map(|counter| counter.value()).sum(),
            messages: metrics.client_msg_total.value(),
            publications: metrics.broadcast_msg_total.value(),
            deliveries: metrics.deliveries_total.value(),
            sent_bytes: metrics.data_sent_total.value(),
            blocked_writes: metrics.write_blocked_total.value(),
            outbox_bytes: metrics.outbox_bytes.value(),
            inbox_depth: metrics.inbox_depth.value(),
            slow: metrics.closed_too_slow_total.value()
                + metrics.closed_write_timeout_total.value(),
        }
    }
}

#[derive(Serialize)]
struct Rpc<'a> {
    /// Upper bounds of all buckets but the last.
    bounds_us: &'a [u64],
    ran: [u64; crate::metrics::histogram::BUCKETS],
    waited: [u64; crate::metrics::histogram::BUCKETS],
    calls: u64,
    errors: u64,
    timeouts: u64,
    pending: i64,
    disconnect_queue: i64,
}

/// Brought up to date once a second, as the metrics are.
#[derive(Serialize)]
struct Broker {
    bytes: i64,
    /// 0: no bound.
    bytes_max: i64,
    streams: i64,
    messages: i64,
    members: i64,
    /// Sessions that may come back.
    sessions: i64,
    restored: u64,
    not_restored: u64,
    /// Questions for history that were answered.
    answered: u64,
    refused: u64,
    /// Messages in these answers.
    replayed: u64,
    /// Messages given up for memory.
    evicted: u64,
    evicted_sessions: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts<'static> = Facts {
        node_id: "n\"1",
        now_unix_ms: 1_800_000_000_123,
        uptime: Duration::from_secs(61),
        private_bytes: 12_345_678,
        last_record: 7,
    };

    #[test]
    fn a_snapshot_has_each_shard_and_the_calls_of_all() {
        let metrics = Metrics::new(2);
        metrics.shards[0].clients_num.set(3);
        metrics.shards[1].clients_num.set(4);
        metrics.shards[1].deliveries_total.add(90);
        metrics.shards[1].closed_too_slow_total.add(1);
        metrics.shards[1].closed_client_total.add(2);
        metrics.shards[0].rpc_call_total.add(5);
        metrics.shards[1].rpc_call_total.add(6);
        metrics.shards[0]
            .rpc_duration_seconds
            .observe(Duration::from_millis(2));
        metrics.shards[1]
            .rpc_duration_seconds
            .observe(Duration::from_secs(60));
        metrics.broadcast_streams_num.set(8);
        let text = encode(&metrics, &FACTS);
        let value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(value["node"], "n\"1");
        assert_eq!(value["uptime_secs"], 61);
        assert_eq!(value["streams"], 8);
        assert_eq!(value["shards"][0]["sessions"], 3);
        assert_eq!(value["shards"][1]["deliveries"], 90);
        assert_eq!(
            (&value["shards"][1]["closed"], &value["shards"][1]["slow"]),
            (&3.into(), &1.into())
        );
        assert_eq!(value["rpc"]["calls"], 11);
        assert_eq!(
            (&value["rpc"]["ran"][1], &value["rpc"]["ran"][13]),
            (&1.into(), &1.into())
        );
        assert_eq!(value["rpc"]["bounds_us"].as_array().map(Vec::len), Some(13));
    }

    #[test]
    fn without_rpc_nothing_is_said_about_calls() {
        let mut metrics = Metrics::new(1);
        metrics.rpc_configured = false;
        let value: serde_json::Value =
            serde_json::from_slice(&encode(&metrics, &FACTS)).expect("JSON");
        assert!(value["rpc"].is_null());
    }

    #[test]
    fn with_a_broker_it_is_said_what_all_shards_keep() {
        let mut metrics = Metrics::new(2);
        let snapshot = |metrics: &Metrics| -> serde_json::Value {
            serde_json::from_slice(&encode(metrics, &FACTS)).expect("JSON")
        };
        assert!(snapshot(&metrics)["broker"].is_null());
        metrics.has_broker = true;
        metrics.broker_bytes_max.set(1_000);
        metrics.shards[0].broker_bytes.set(30);
        metrics.shards[1].broker_bytes.set(12);
        metrics.shards[1].history_refused_total.add(2);
        metrics.shards[0].broker_evictions_total.add(5);
        let broker = &snapshot(&metrics)["broker"];
        let shown = |name: &str| broker[name].as_u64().expect("a number");
        assert_eq!((shown("bytes"), shown("bytes_max")), (42, 1_000));
        assert_eq!(
            (shown("refused"), shown("evicted"), shown("restored")),
            (2, 5, 0)
        );
    }
}
