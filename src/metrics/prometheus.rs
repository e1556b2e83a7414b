//! The Prometheus text of all metrics.
//!
//! Owns the exposed names, the HELP texts and the text format. Reads counters, writes a `String`, nothing else. Called by
//! `endpoints::metrics` for each scrape.
//!
//! The reference's names come first, summed over the shards, with the reference's HELP texts (Source:
//! `contract/operations.md` §13, §14). ringcable's own follow with the prefix `ringcable_`, one sample per shard, because
//! "why is it slow?" is often "why is *this shard* slow?".

use std::fmt::Display;
use std::fmt::Write as _;

use crate::metrics::histogram::{BOUNDS_MICROS, Snapshot};
use crate::metrics::{Counter, Gauge, Histogram, Metrics, ShardMetrics, TlsMetrics};

/// The `Content-Type` of the text. The reference leaves the version out; the format asks for it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const REFERENCE_PREFIX: &str = "anycable_go_";
pub(super) const OWN_PREFIX: &str = "ringcable_";

/// Appends the whole exposition to `out`. `tags` (`--metrics_tags`) become constant labels of every sample.
///
/// The order of families is fixed, so that two scrapes can be compared with `diff`.
pub fn render(metrics: &Metrics, tags: &[(String, String)], out: &mut String) {
    let mut text = Text {
        tags: constant_labels(tags),
        out,
    };
    render_reference(metrics, &mut text);
    render_own(metrics, &mut text);
}

fn render_reference(metrics: &Metrics, text: &mut Text<'_>) {
    for family in REFERENCE {
        text.sum(metrics, family);
    }
    if metrics.rpc_configured {
        for family in REFERENCE_RPC {
            text.sum(metrics, family);
        }
    }
    for family in REFERENCE_PROCESS {
        text.process(metrics, REFERENCE_PREFIX, family);
    }
}

fn render_own(metrics: &Metrics, text: &mut Text<'_>) {
    let name = format!("{OWN_PREFIX}build_info");
    text.head(&name, "gauge", "Always 1; the labels say what is running");
    let driver = metrics.driver.get().copied().unwrap_or_default();
    text.sample(
        &name,
        &[("version", env!("CARGO_PKG_VERSION")), ("driver", driver)],
        1,
    );
    for family in OWN_PROCESS {
        text.process(metrics, OWN_PREFIX, family);
    }
    if let Some(tls) = &metrics.tls {
        render_tls(tls, text);
    }
    for family in OWN {
        text.per_shard(metrics, family);
    }
    text.cpu(metrics);
    text.closed(metrics);
    for family in OWN_HISTOGRAMS {
        text.histogram(metrics, family);
    }
}

fn render_tls(tls: &TlsMetrics, text: &mut Text<'_>) {
    let expiry = tls.certificate_expiry.value();
    if expiry != TlsMetrics::EXPIRY_UNKNOWN {
        let name = format!("{OWN_PREFIX}tls_certificate_expiry_seconds");
        text.head(
            &name,
            "gauge",
            "Unix time at which the certificate for clients ends",
        );
        text.sample(&name, &[], expiry);
    }
    let name = format!("{OWN_PREFIX}tls_reloads_total");
    text.head(
        &name,
        "counter",
        "SIGHUPs, by whether the files of the certificate could be used",
    );
    for (result, count) in [
        ("ok", &tls.reloads_total),
        ("failed", &tls.failed_reloads_total),
    ] {
        text.sample(&name, &[("result", result)], count.value());
    }
}

/// A metric without a prefix and how to find it in a shard's block.
pub(super) struct Family {
    pub(super) name: &'static str,
    help: &'static str,
    pub(super) read: Read,
}

/// A metric of the whole process, without a prefix.
pub(super) struct ProcessFamily {
    pub(super) name: &'static str,
    help: &'static str,
    pub(super) kind: Kind,
    pub(super) read: fn(&Metrics) -> i64,
}

/// Whether a number only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        }
    }
}

pub(super) enum Read {
    Counter(ReadCounter),
    Gauge(ReadGauge),
}

type ReadCounter = fn(&ShardMetrics) -> &Counter;
type ReadGauge = fn(&ShardMetrics) -> &Gauge;

struct HistogramFamily {
    name: &'static str,
    help: &'static str,
    read: fn(&ShardMetrics) -> &Histogram,
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
    pub(super) fn kind(&self) -> Kind {
        match self {
            Read::Counter(_) => Kind::Counter,
            Read::Gauge(_) => Kind::Gauge,
        }
    }

    /// Over all shards. A counter's bits are those of a `u64`.
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
        kind: Kind::Gauge,
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
        kind: Kind::Counter,
        read,
    }
}

/// Names and HELP texts of the reference, word for word: dashboards and alerts are built on them.
pub(super) const REFERENCE: &[Family] = &[
    counter(
        "failed_auths_total",
        "The total number of failed authentication attempts",
        |m| &m.failed_auths_total,
    ),
    counter(
        "client_msg_total",
        "The total number of received messages from clients",
        |m| &m.client_msg_total,
    ),
    counter(
        "failed_client_msg_total",
        "The total number of unrecognized messages received from clients",
        |m| &m.failed_client_msg_total,
    ),
    counter(
        "data_rcvd_total",
        "The total amount of bytes received from clients",
        |m| &m.data_rcvd_total,
    ),
    counter(
        "data_sent_total",
        "The total amount of bytes sent to clients",
        |m| &m.data_sent_total,
    ),
    counter(
        "server_msg_total",
        "The total number of messages sent to clients",
        |m| &m.server_msg_total,
    ),
    counter(
        "failed_server_msg_total",
        "The total number of messages failed to send to clients",
        |m| &m.failed_server_msg_total,
    ),
    counter(
        "timeout_server_msg_total",
        "The total number of messages failed to send to clients due to write timeouts",
        |m| &m.timeout_server_msg_total,
    ),
    counter(
        "disconnected_slow_clients_total",
        "The total number of disconnected slow clients",
        |m| &m.disconnected_slow_clients_total,
    ),
    counter(
        "publications_total",
        "The total number of publications received (from the application)",
        |m| &m.publications_total,
    ),
    counter(
        "broadcast_msg_total",
        "The total number of messages received through PubSub (for broadcast)",
        |m| &m.broadcast_msg_total,
    ),
    counter(
        "failed_broadcast_msg_total",
        "The total number of unrecognized publications received from the application",
        |m| &m.failed_broadcast_msg_total,
    ),
    counter(
        "remote_commands_total",
        "The total number of remote commands received through PubSub",
        |m| &m.remote_commands_total,
    ),
    gauge("clients_num", "The number of active clients", |m| {
        &m.clients_num
    }),
    gauge(
        "disconnect_queue_size",
        "The size of delayed disconnect",
        |m| &m.disconnect_queue_size,
    ),
];

/// The reference's names that no shard counts.
pub(super) const REFERENCE_PROCESS: &[ProcessFamily] = &[
    process_gauge(
        "clients_uniq_num",
        "The number of unique clients (with respect to connection identifiers)",
        |m| m.clients_uniq_num.value(),
    ),
    process_gauge(
        "broadcast_streams_num",
        "The number of active broadcasting streams",
        |m| m.broadcast_streams_num.value(),
    ),
    process_gauge(
        "mem_sys_bytes",
        "The total bytes of memory obtained from the OS",
        |m| m.mem_sys_bytes.value(),
    ),
    process_gauge("goroutines_num", "The number of Go routines", |m| {
        m.threads.value()
    }),
];

/// The reference's names that exist only with RPC.
pub(super) const REFERENCE_RPC: &[Family] = &[
    counter("rpc_call_total", "The total number of RPC calls", |m| {
        &m.rpc_call_total
    }),
    counter(
        "rpc_retries_total",
        "The total number of RPC call retries",
        |m| &m.rpc_retries_total,
    ),
    counter(
        "rpc_error_total",
        "The total number of failed RPC calls",
        |m| &m.rpc_error_total,
    ),
    counter(
        "rpc_timeout_total",
        "The total number of RPC call that timed out",
        |m| &m.rpc_timeout_total,
    ),
    counter(
        "rpc_canceled_total",
        "The total number of canceled RPC calls",
        |m| &m.rpc_canceled_total,
    ),
    gauge("rpc_pending_num", "The number of pending RPC calls", |m| {
        &m.rpc_pending_num
    }),
];

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
        "memory_bytes_max",
        "Bytes that may be held for clients and requests, 0 = no bound",
        |m| m.memory_bytes_max.value(),
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

/// With fewer sessions the figure would say more about the process than about connections. The console has the same bound.
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
        "Established WebSocket connections of the shard, those in authentication and closing ones too",
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

/// Summed over the shards: the limit on concurrent calls is one for all of them, so are the waits for it.
const OWN_HISTOGRAMS: &[HistogramFamily] = &[
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

/// The text being written and the labels that go on every sample.
struct Text<'a> {
    /// Valid, distinct names; values escaped.
    tags: Vec<(String, String)>,
    out: &'a mut String,
}

impl Text<'_> {
    fn sum(&mut self, metrics: &Metrics, family: &Family) {
        let name = format!("{REFERENCE_PREFIX}{}", family.name);
        let kind = family.read.kind();
        self.head(&name, kind.word(), family.help);
        self.number(&name, kind, family.read.sum(metrics));
    }

    fn process(&mut self, metrics: &Metrics, prefix: &str, family: &ProcessFamily) {
        let name = format!("{prefix}{}", family.name);
        self.head(&name, family.kind.word(), family.help);
        self.number(&name, family.kind, (family.read)(metrics));
    }

    fn number(&mut self, name: &str, kind: Kind, value: i64) {
        match kind {
            Kind::Counter => self.sample(name, &[], value as u64),
            Kind::Gauge => self.sample(name, &[], value),
        }
    }

    fn cpu(&mut self, metrics: &Metrics) {
        let name = format!("{OWN_PREFIX}cpu_seconds_total");
        self.head(&name, "counter", "CPU time of the shard's thread");
        for (id, gauge) in metrics.cpu_millis.iter().enumerate() {
            let millis = gauge.value();
            let seconds = format!("{}.{:03}", millis / 1000, millis % 1000);
            self.sample(&name, &[("shard", &id.to_string())], seconds);
        }
    }

    fn per_shard(&mut self, metrics: &Metrics, family: &Family) {
        let name = format!("{OWN_PREFIX}{}", family.name);
        self.head(&name, family.read.kind().word(), family.help);
        for (id, shard) in metrics.shards.iter().enumerate() {
            let labels = [("shard", &*id.to_string())];
            match family.read {
                Read::Counter(read) => self.sample(&name, &labels, read(shard).value()),
                Read::Gauge(read) => self.sample(&name, &labels, read(shard).value()),
            }
        }
    }

    fn closed(&mut self, metrics: &Metrics) {
        let name = format!("{OWN_PREFIX}closed_total");
        self.head(&name, "counter", "Sessions closed, by reason");
        for (id, shard) in metrics.shards.iter().enumerate() {
            let id = id.to_string();
            for (reason, read) in CLOSED {
                self.sample(
                    &name,
                    &[("shard", &id), ("reason", reason)],
                    read(shard).value(),
                );
            }
        }
    }

    fn histogram(&mut self, metrics: &Metrics, family: &HistogramFamily) {
        let name = format!("{OWN_PREFIX}{}", family.name);
        self.head(&name, "histogram", family.help);
        let mut sum = Snapshot::default();
        for shard in &metrics.shards {
            sum.merge(&(family.read)(shard).snapshot());
        }
        let bucket_name = format!("{name}_bucket");
        let bounds = BOUNDS_MICROS
            .iter()
            .map(|&micros| (micros as f64 / 1e6).to_string());
        let mut count = 0u64;
        for (bucket, bound) in sum.buckets.iter().zip(bounds.chain(["+Inf".to_owned()])) {
            count = count.wrapping_add(*bucket);
            self.sample(&bucket_name, &[("le", &bound)], count);
        }
        // The count is the last bucket, not a counter of its own: the two must agree in every scrape.
        let seconds = format!(
            "{}.{:09}",
            sum.sum_nanos / 1_000_000_000,
            sum.sum_nanos % 1_000_000_000
        );
        self.sample(&format!("{name}_sum"), &[], seconds);
        self.sample(&format!("{name}_count"), &[], count);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        for part in [
            "# HELP ",
            name,
            " ",
            help,
            "\n# TYPE ",
            name,
            " ",
            kind,
            "\n",
        ] {
            self.out.push_str(part);
        }
    }

    fn sample(&mut self, name: &str, own_labels: &[(&str, &str)], value: impl Display) {
        self.out.push_str(name);
        self.labels(own_labels);
        writeln!(self.out, " {value}").expect("writing to a String cannot fail");
    }

    /// Own labels first, then the constant ones. Values of own labels are ours and need no escaping.
    fn labels(&mut self, own_labels: &[(&str, &str)]) {
        let is_own = |name: &str| own_labels.iter().any(|(own, _)| *own == name);
        let is_tag = |name: &str| self.tags.iter().any(|(tag, _)| tag == name);
        let mut opener = "{";
        let mut push = |prefix: &str, name: &str, value: &str| {
            for part in [opener, prefix, name, "=\"", value, "\""] {
                self.out.push_str(part);
            }
            opener = ",";
        };
        for (name, value) in own_labels {
            push("", name, value);
        }
        for (name, value) in &self.tags {
            if !is_own(name) {
                push("", name, value);
            } else if !is_tag(&format!("{CLASH_PREFIX}{name}")) {
                push(CLASH_PREFIX, name, value);
            }
        }
        if opener == "," {
            self.out.push('}');
        }
    }
}

/// Two labels of one name would make the whole scrape invalid. Prometheus renames its own clashes like this.
const CLASH_PREFIX: &str = "exported_";

/// Turns tags into labels: names made valid, values escaped, the first of equal names wins.
fn constant_labels(tags: &[(String, String)]) -> Vec<(String, String)> {
    let mut labels: Vec<(String, String)> = Vec::with_capacity(tags.len());
    for (name, value) in tags {
        let name = label_name(name);
        if labels.iter().all(|(other, _)| *other != name) {
            labels.push((name, escape(value)));
        }
    }
    labels
}

/// Replaces what `[a-zA-Z_][a-zA-Z0-9_]*` does not allow by `_`.
fn label_name(tag: &str) -> String {
    let valid = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let mut name: String = tag.chars().map(valid).collect();
    if !name.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic()) {
        name.insert(0, '_');
    }
    name
}

/// Escapes a label value: backslash, double quote and line feed are all that the format knows.
fn escape(value: &str) -> String {
    value
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
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

    /// name, type, HELP: copied from the contract.
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
        // The certificate does not tell.
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

    /// The derived `Debug` names every field, so a field that nobody renders is found here.
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

    /// Counts through a row's reader and looks into the derived `Debug` for the field that moved.
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

    /// What `promtool check metrics` looks at, as far as a unit test can tell.
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
}
