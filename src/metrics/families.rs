//! Every metric by name: its HELP text and where its value is read.
//!
//! Owns the exposed names and the HELP texts. `prometheus` (the text of a scrape) and `rotation` (log and StatsD) read the
//! tables. Neither has metrics that are not here, except a few with labels of their own.
//!
//! The reference's names have its HELP texts (Source: `contract/operations.md` §13, §14).

mod reference;

pub(super) use self::reference::{REFERENCE, REFERENCE_PROCESS, REFERENCE_RPC};
use crate::metrics::{Counter, Gauge, Histogram, Metrics, ShardMetrics};

pub(super) const REFERENCE_PREFIX: &str = "anycable_go_";
pub(super) const OWN_PREFIX: &str = "ringcable_";

/// A metric without prefix, and how to read it from a shard's block.
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) read: Read,
}

/// A metric of the whole process, without prefix.
pub(super) struct ProcessFamily {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: MetricKind,
    pub(super) read: fn(&Metrics) -> i64,
}

/// Whether a number only grows (counter) or can fall (gauge).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
}

impl MetricKind {
    pub(super) fn word(self) -> &'static str {
        match self {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        }
    }
}

pub(super) enum Read {
    Counter(ReadCounter),
    Gauge(ReadGauge),
}

type ReadCounter = fn(&ShardMetrics) -> &Counter;
type ReadGauge = fn(&ShardMetrics) -> &Gauge;

pub(super) struct HistogramFamily {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) read: fn(&ShardMetrics) -> &Histogram,
}

const fn counter(name: &'static str, help: &'static str, read: ReadCounter) -> Family {
    Family {
        name,
        help,
        read: Read::Counter(read),
    }
}

const fn gauge(name: &'static str, help: &'static str, read: ReadGauge) -> Family {
    Family {
        name,
        help,
        read: Read::Gauge(read),
    }
}

impl Read {
    pub(super) fn kind(&self) -> MetricKind {
        match self {
            Read::Counter(_) => MetricKind::Counter,
            Read::Gauge(_) => MetricKind::Gauge,
        }
    }

    /// The sum over all shards. For a counter the bits are those of a `u64`.
    pub(super) fn sum(&self, metrics: &Metrics) -> i64 {
        metrics.shards.iter().fold(0, |sum: i64, shard| {
            sum.wrapping_add(match self {
                Read::Counter(read) => read(shard).value() as i64,
                Read::Gauge(read) => read(shard).value(),
            })
        })
    }
}

const fn process_gauge(
    name: &'static str,
    help: &'static str,
    read: fn(&Metrics) -> i64,
) -> ProcessFamily {
    ProcessFamily {
        name,
        help,
        kind: MetricKind::Gauge,
        read,
    }
}

const fn process_counter(
    name: &'static str,
    help: &'static str,
    read: fn(&Metrics) -> i64,
) -> ProcessFamily {
    ProcessFamily {
        name,
        help,
        kind: MetricKind::Counter,
        read,
    }
}

/// ringcable's own, one sample for the process.
pub(super) const OWN_PROCESS: &[ProcessFamily] = &[
    process_gauge(
        "start_time_seconds",
        "When the process started, in seconds since 1970",
        |m| m.start_time_seconds.value(),
    ),
    process_gauge(
        "private_bytes",
        "Memory of the process that it shares with nobody, swapped out or not",
        |m| m.private_bytes.value(),
    ),
    process_gauge(
        "bytes_per_connection",
        "Private memory divided by the number of sessions, 0 below 1000 sessions; the share of the process itself is in it",
        bytes_per_connection,
    ),
    process_gauge(
        "interest_bytes",
        "Bytes of the table that says which shards may have a listener of a stream",
        |m| m.interest_bytes.value(),
    ),
    process_gauge(
        "memory_bytes_max",
        "Bytes that may be held for clients and requests, 0 = no bound",
        |m| m.memory_bytes_max.value(),
    ),
    process_gauge(
        "broker_bytes_max",
        "Bytes that the broker may hold, 0 = no bound, or no broker",
        |m| m.broker_bytes_max.value(),
    ),
    process_gauge("open_files_limit", "The limit on open files", |m| {
        m.open_files_limit.value()
    }),
    process_gauge(
        "rpc_slots_num",
        "RPC calls that may run at a time (rpc_concurrency), 0 without RPC",
        |m| m.rpc_slots_num.value(),
    ),
    process_gauge("rpc_running_num", "RPC calls that have a slot", |m| {
        m.rpc_running_num.value()
    }),
    process_gauge(
        "rpc_breaker_open",
        "1 while the circuit breaker refuses RPC calls",
        |m| m.rpc_breaker_open.value(),
    ),
    process_counter(
        "rpc_breaker_opened_total",
        "Times the circuit breaker has opened",
        |m| m.rpc_breaker_opened.value(),
    ),
    process_counter("statsd_packets_total", "StatsD datagrams sent", |m| {
        m.statsd_packets_total.value() as i64
    }),
    process_counter(
        "statsd_errors_total",
        "StatsD datagrams and whole flushes that could not be sent",
        |m| m.statsd_errors_total.value() as i64,
    ),
    process_counter(
        "log_records_dropped_total",
        "Log records that were lost, because stdout was not read in time or could not be written",
        |m| m.log_records_dropped.value(),
    ),
];

/// With fewer sessions the figure would mostly show the process itself and not the connections. The console has the same
/// limit.
const SESSIONS_MIN: i64 = 1_000;

fn bytes_per_connection(metrics: &Metrics) -> i64 {
    let sessions: i64 = metrics
        .shards
        .iter()
        .map(|shard| shard.sessions_num.value())
        .sum();
    if sessions < SESSIONS_MIN {
        return 0;
    }
    metrics.private_bytes.value() / sessions
}

/// ringcable's own, one sample per shard.
pub(super) const OWN: &[Family] = &[
    counter("accepted_total", "Sockets accepted", |m| &m.accepted_total),
    counter(
        "accept_errors_total",
        "Failed accept calls, for example out of file descriptors",
        |m| &m.accept_errors_total,
    ),
    counter(
        "accept_waits_total",
        "Times that accepting waited because no more clients may be connected",
        |m| &m.accept_waits_total,
    ),
    gauge(
        "accept_waiting_num",
        "Listeners that take nobody now, until a client leaves",
        |m| &m.accept_waiting_num,
    ),
    counter(
        "http_requests_total",
        "Complete HTTP request heads, WebSocket upgrades included",
        |m| &m.http_requests_total,
    ),
    counter(
        "http_bad_requests_total",
        "HTTP requests refused as malformed or beyond a limit",
        |m| &m.http_bad_requests_total,
    ),
    counter(
        "http_timeouts_total",
        "Connections closed because the request head was not complete in time",
        |m| &m.http_timeouts_total,
    ),
    counter(
        "http_overload_total",
        "Requests answered with 503 because there was no memory for their head or body",
        |m| &m.http_overload_total,
    ),
    counter("upgrades_total", "WebSocket upgrades accepted", |m| {
        &m.upgrades_total
    }),
    counter("upgrade_refused_total", "WebSocket upgrades refused", |m| {
        &m.upgrade_refused_total
    }),
    counter(
        "http_unauthorized_total",
        "Broadcasts and API requests refused for their token",
        |m| &m.http_unauthorized_total,
    ),
    counter(
        "http_not_found_total",
        "HTTP requests of a path that is not served",
        |m| &m.http_not_found_total,
    ),
    counter(
        "rpc_unauthorized_total",
        "RPC calls whose token the app refused",
        |m| &m.rpc_unauthorized_total,
    ),
    counter(
        "rpc_shortages_total",
        "Attempts of RPC calls that failed for want of descriptors, ports or memory of this server",
        |m| &m.rpc_shortages_total,
    ),
    counter(
        "deliveries_total",
        "Frames of publications put into outboxes",
        |m| &m.deliveries_total,
    ),
    counter("writes_total", "System calls made to flush outboxes", |m| {
        &m.writes_total
    }),
    counter(
        "write_blocked_total",
        "Flushes that the kernel took only in part or not at all",
        |m| &m.write_blocked_total,
    ),
    counter(
        "publications_handed_total",
        "Messages that the shard, as a publisher, has put into inboxes: one for each shard that gets it",
        |m| &m.publications_handed_total,
    ),
    counter(
        "inbox_wakeups_total",
        "Times another thread had to wake the shard because it put a message into its inbox",
        |m| &m.inbox_wakeups_total,
    ),
    counter(
        "inbox_waits_total",
        "Times the shard found an inbox full and waited for room",
        |m| &m.inbox_waits_total,
    ),
    counter(
        "publications_waited_total",
        "Publications whose answer was held back by a full inbox",
        |m| &m.publications_waited_total,
    ),
    counter(
        "publications_refused_total",
        "Broadcasts refused while the server stops, their connections were reset",
        |m| &m.publications_refused_total,
    ),
    counter(
        "whispers_dropped_total",
        "Whispers dropped because too many were waiting for room in an inbox",
        |m| &m.whispers_dropped_total,
    ),
    gauge(
        "broker_bytes",
        "Bytes that the broker holds: history, presence, kept sessions",
        |m| &m.broker_bytes,
    ),
    gauge(
        "broker_streams_num",
        "Streams at home on the shard that the broker knows",
        |m| &m.broker_streams_num,
    ),
    gauge(
        "broker_messages_num",
        "Messages in the history of these streams",
        |m| &m.broker_messages_num,
    ),
    counter(
        "broker_evictions_total",
        "Messages given up because the broker had no memory",
        |m| &m.broker_evictions_total,
    ),
    gauge(
        "presence_members_num",
        "Members of the presence streams at home on the shard",
        |m| &m.presence_members_num,
    ),
    gauge(
        "sessions_kept_num",
        "Sessions that have ended and may come back",
        |m| &m.sessions_kept_num,
    ),
    counter(
        "session_evictions_total",
        "Kept sessions given up because the broker had no memory",
        |m| &m.session_evictions_total,
    ),
    counter("restores_total", "Sessions that have come back", |m| {
        &m.restores_total
    }),
    counter(
        "restores_unknown_total",
        "Clients that wanted to continue a session that is not known",
        |m| &m.restores_unknown_total,
    ),
    counter(
        "history_confirmed_total",
        "Requests for history that were answered",
        |m| &m.history_confirmed_total,
    ),
    counter(
        "history_refused_total",
        "Requests for history that were refused: messages are missing",
        |m| &m.history_refused_total,
    ),
    counter(
        "history_messages_total",
        "Messages that were replayed",
        |m| &m.history_messages_total,
    ),
    counter(
        "joins_refused_total",
        "Joins of a presence stream that were refused",
        |m| &m.joins_refused_total,
    ),
    counter(
        "publications_repeated_total",
        "Publications left out because their idempotency key was known",
        |m| &m.publications_repeated_total,
    ),
    counter(
        "idempotency_keys_forgotten_total",
        "Idempotency keys forgotten within their time, because there were too many",
        |m| &m.idempotency_keys_forgotten_total,
    ),
    counter(
        "late_results_total",
        "RPC results that arrived after their session was gone",
        |m| &m.late_results_total,
    ),
    counter(
        "stale_events_total",
        "Readiness events for sessions that were gone",
        |m| &m.stale_events_total,
    ),
    counter(
        "tls_errors_total",
        "Connections ended by TLS: not TLS, no common ground, or damaged records",
        |m| &m.tls_errors_total,
    ),
    counter(
        "poll_rearms_total",
        "Multishot polls that the kernel ended and that were armed again",
        |m| &m.poll_rearms_total,
    ),
    counter(
        "cq_overflows_total",
        "Completion queue overflows reported by the kernel",
        |m| &m.cq_overflows_total,
    ),
    counter(
        "disconnect_calls_dropped_total",
        "Disconnect calls given up, at the bound of their queue or at shutdown",
        |m| &m.disconnect_calls_dropped_total,
    ),
    gauge(
        "disconnect_queue_bytes",
        "Memory of the Disconnect calls that have not ended",
        |m| &m.disconnect_queue_bytes,
    ),
    counter(
        "disconnect_queue_waits_total",
        "Closed sessions that waited for room in the disconnect queue",
        |m| &m.disconnect_queue_waits,
    ),
    counter(
        "rpc_slow_calls_total",
        "RPC calls that took longer than rpc_slow_call, the wait for a slot included",
        |m| &m.rpc_slow_calls_total,
    ),
    counter(
        "session_bytes_exceeded_total",
        "Subscriptions refused and sessions ended because of session_bytes_max",
        |m| &m.session_bytes_exceeded_total,
    ),
    counter(
        "memory_refusals_total",
        "Work refused because the process holds as much as memory_bytes_max allows",
        |m| &m.memory_refusals_total,
    ),
    counter(
        "console_logins_failed_total",
        "Failed logins to the console",
        |m| &m.console_logins_failed_total,
    ),
    counter(
        "console_refused_total",
        "Requests and connections of the console refused because too many were under way",
        |m| &m.console_refused_total,
    ),
    counter(
        "console_actions_total",
        "Sessions ended and messages published by the console",
        |m| &m.console_actions_total,
    ),
    gauge("clients_num", "Authenticated sessions of the shard", |m| {
        &m.clients_num
    }),
    gauge(
        "sessions_num",
        "Established client connections of the shard, those in authentication and closing ones too",
        |m| &m.sessions_num,
    ),
    gauge("outbox_bytes", "Bytes waiting in outboxes", |m| {
        &m.outbox_bytes
    }),
    gauge("memory_bytes", "Bytes held for clients and requests", |m| {
        &m.memory_bytes
    }),
    gauge(
        "inbox_depth",
        "Messages waiting in the inbox of the shard",
        |m| &m.inbox_depth,
    ),
];

/// The values of the label `reason` of `ringcable_closed_total`.
pub(super) const CLOSED: &[(&str, ReadCounter)] = &[
    ("client", |m| &m.closed_client_total),
    ("remote", |m| &m.closed_remote_total),
    ("no_pong", |m| &m.closed_no_pong_total),
    ("too_slow", |m| &m.closed_too_slow_total),
    ("write_timeout", |m| &m.closed_write_timeout_total),
    ("protocol_error", |m| &m.closed_protocol_error_total),
    ("auth", |m| &m.closed_auth_total),
    ("shutdown", |m| &m.closed_shutdown_total),
    ("error", |m| &m.closed_error_total),
];

/// Summed over the shards, because the limit on concurrent calls is shared by all shards, and so are the waits for it.
pub(super) const OWN_HISTOGRAMS: &[HistogramFamily] = &[
    HistogramFamily {
        name: "rpc_slot_wait_seconds",
        help: "Time an RPC call waited for a concurrency slot",
        read: |m| &m.rpc_slot_wait_seconds,
    },
    HistogramFamily {
        name: "rpc_duration_seconds",
        help: "Time an RPC call took once it had its slot, retries included",
        read: |m| &m.rpc_duration_seconds,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts through a row's reader and finds the changed field in the derived `Debug` text.
    #[test]
    fn every_row_reads_the_field_of_its_name() {
        for family in REFERENCE.iter().chain(REFERENCE_RPC).chain(OWN) {
            let shard = ShardMetrics::default();
            let moved = match family.read {
                Read::Counter(read) => {
                    read(&shard).add(1);
                    "Counter(1)"
                }
                Read::Gauge(read) => {
                    read(&shard).add(1);
                    "Gauge(1)"
                }
            };
            let debug = format!("{shard:?}");
            let stem = family.name.trim_end_matches("_total");
            let fields = [
                format!(" {stem}: {moved}"),
                format!(" {stem}_total: {moved}"),
            ];
            assert!(
                fields.iter().any(|field| debug.contains(field)),
                "{} reads another field",
                family.name
            );
        }
        for (reason, read) in CLOSED {
            let shard = ShardMetrics::default();
            read(&shard).add(1);
            assert!(
                format!("{shard:?}").contains(&format!(" closed_{reason}_total: Counter(1)")),
                "{reason}"
            );
        }
    }
}
