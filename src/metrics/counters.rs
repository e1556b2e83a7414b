//! Counters and gauges with a single writer each, and the blocks that hold them.
//!
//! A shard writes only its own [`ShardMetrics`]; the control thread writes the gauges of [`Metrics`]. Every thread may read
//! at any time. Nothing here sums or formats: that is `metrics::prometheus`.
//!
//! A few gauges are *samples*: another module keeps the value, and a thread that is about to read all numbers copies it here
//! first (`shard::sampling`). Two threads that do so at once both store a true value.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::metrics::Histogram;

/// A number that only grows, since the start of the process.
///
/// Single writer: [`Counter::add`] is a plain load and store, because a locked instruction would cost time at every
/// delivery, and nothing needs a second writer. A second writer would lose counts (and nothing worse).
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. Only the owner may call it.
    #[inline]
    pub fn add(&self, amount: u64) {
        let value = self.0.load(Ordering::Relaxed);
        self.0.store(value.wrapping_add(amount), Ordering::Relaxed);
    }

    /// Replaces the value of a sample by a newer one.
    #[inline]
    pub fn sample(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now, or a moment ago when another thread is writing.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down. Single writer, as [`Counter`].
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `amount`. Only the owner may call it.
    #[inline]
    pub fn add(&self, amount: i64) {
        let value = self.0.load(Ordering::Relaxed);
        self.0.store(value.wrapping_add(amount), Ordering::Relaxed);
    }

    /// Subtracts `amount`. Only the owner may call it.
    #[inline]
    pub fn sub(&self, amount: i64) {
        self.add(amount.wrapping_neg());
    }

    /// Replaces the value. Only the owner may call it.
    #[inline]
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The value now, or a moment ago when another thread is writing.
    #[inline]
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Everything one shard counts. Written by that shard only.
///
/// Aligned to 128 bytes: CPUs fetch cache lines in pairs. If two shards had counters in the same pair, every delivery of one
/// would slow the other down.
///
/// The first half carries the reference's names and meanings (Source: `contract/operations.md` §14), the second half is
/// ringcable's own. The text an operator reads about each field is in `metrics::families`.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardMetrics {
    /// Authenticated and not closed; live.
    pub clients_num: Gauge,
    /// Established connections of sessions, whatever their state: in authentication, serving, closing; live.
    pub sessions_num: Gauge,
    /// Clients that get server-sent events, from the head of the answer on; live.
    pub sse_clients_num: Gauge,
    /// Requests for durable streams that were admitted, and those of them that wait for messages or get events.
    pub ds_requests_total: Counter,
    pub ds_poll_requests_total: Counter,
    pub ds_sse_requests_total: Counter,
    /// Readers of durable streams that wait for a message, and those that get events; live.
    pub ds_poll_clients_num: Gauge,
    pub ds_sse_clients_num: Gauge,
    /// RPC disconnects that wait in this shard's queue; live.
    pub disconnect_queue_size: Gauge,
    /// Authentication ended in FAILURE; errors and timeouts do not count.
    pub failed_auths_total: Counter,
    /// Client messages that decode, whatever the command.
    pub client_msg_total: Counter,
    /// Client messages that do not decode, and commands that fail (these are in `client_msg_total` too).
    pub failed_client_msg_total: Counter,
    /// Payload bytes of client messages, before decoding.
    pub data_rcvd_total: Counter,
    /// Payload bytes of text and binary messages written, pings included, framing and close frames not.
    pub data_sent_total: Counter,
    /// Messages written from outboxes; pings do not count.
    pub server_msg_total: Counter,
    /// Queued messages whose write failed.
    pub failed_server_msg_total: Counter,
    /// The part of `failed_server_msg_total` that failed by its deadline.
    pub timeout_server_msg_total: Counter,
    /// Sessions that exceeded `ws_max_pending_size`.
    pub disconnected_slow_clients_total: Counter,
    /// Well-formed broadcast requests; a batch or a remote command counts once. Counted where the POST arrived.
    pub publications_total: Counter,
    /// Publications handed to the hubs, each item of a batch, plus well-formed remote disconnects. Counted once per node,
    /// where the POST arrived, not once per shard.
    pub broadcast_msg_total: Counter,
    /// Broadcast requests that cannot be parsed.
    pub failed_broadcast_msg_total: Counter,
    /// Remote commands, known or not.
    pub remote_commands_total: Counter,
    /// Calls, without retries.
    pub rpc_call_total: Counter,
    /// Waits before a repeated attempt.
    pub rpc_retries_total: Counter,
    /// Calls whose final outcome is an error, plus disconnect replies with status ERROR.
    pub rpc_error_total: Counter,
    /// Attempts that hit a deadline.
    pub rpc_timeout_total: Counter,
    /// Calls given up because their session closed.
    pub rpc_canceled_total: Counter,
    /// Calls that wait for a concurrency slot, not those in flight; live.
    pub rpc_pending_num: Gauge,

    /// Sockets accepted.
    pub accepted_total: Counter,
    /// Failed accept calls, for example out of file descriptors.
    pub accept_errors_total: Counter,
    /// Times that accepting stopped because the maximum number of clients was connected.
    pub accept_waits_total: Counter,
    /// Listeners that now wait for a client to leave; live.
    pub accept_waiting_num: Gauge,
    /// Complete request heads, upgrades included.
    pub http_requests_total: Counter,
    /// Requests refused because they are not HTTP or exceed a limit.
    pub http_bad_requests_total: Counter,
    /// Connections closed because the head was not complete in time.
    pub http_timeouts_total: Counter,
    /// Requests refused for lack of memory, see `memory_refusals_total`, or because too many large heads were being read.
    pub http_overload_total: Counter,
    /// Answers 101.
    pub upgrades_total: Counter,
    /// Upgrade requests that got a 4xx.
    pub upgrade_refused_total: Counter,
    /// Broadcasts and API requests that got a 401.
    pub http_unauthorized_total: Counter,
    /// Requests of a path that is not served.
    pub http_not_found_total: Counter,
    /// Calls that the app answered with 401.
    pub rpc_unauthorized_total: Counter,
    /// Attempts of calls that failed because this server lacked something: descriptors, ports, memory.
    pub rpc_shortages_total: Counter,

    /// Sessions closed because the client left (close frame, end of stream or reset).
    pub closed_client_total: Counter,
    /// Sessions closed by a remote command.
    pub closed_remote_total: Counter,
    /// Sessions closed because no pong came in time.
    pub closed_no_pong_total: Counter,
    /// Sessions closed because their outbox passed its limit.
    pub closed_too_slow_total: Counter,
    /// Sessions closed because a blocked write passed its deadline.
    pub closed_write_timeout_total: Counter,
    /// Sessions closed because of a WebSocket protocol violation or an oversized message.
    pub closed_protocol_error_total: Counter,
    /// Sessions closed because authentication failed.
    pub closed_auth_total: Counter,
    /// Sessions closed by the drain.
    pub closed_shutdown_total: Counter,
    /// Sessions closed for any other failure (RPC error at connect, socket error).
    pub closed_error_total: Counter,

    /// Frames of publications put into outboxes.
    pub deliveries_total: Counter,
    /// System calls made to flush outboxes.
    pub writes_total: Counter,
    /// Flushes that the kernel took only in part or not at all.
    pub write_blocked_total: Counter,
    /// Bytes in all outboxes now; a frame shared by many sessions counts once per session.
    pub outbox_bytes: Gauge,
    /// Bytes charged to the shard's budget: what it holds for clients and requests; live.
    pub memory_bytes: Gauge,
    /// Subscriptions refused and sessions ended because of `session_bytes_max`.
    pub session_bytes_exceeded_total: Counter,
    /// Work refused because the process holds as much as `memory_bytes_max` allows.
    pub memory_refusals_total: Counter,
    /// Messages in the inbox. A sample.
    pub inbox_depth: Gauge,
    /// Times another thread has woken this shard for its inbox. A sample.
    pub inbox_wakeups_total: Counter,
    /// Messages that this shard, as a publisher, has put into inboxes: one for each shard that gets it. A batch is one
    /// message.
    pub publications_handed_total: Counter,
    /// Times this shard, as a sender, found an inbox full and waited.
    pub inbox_waits_total: Counter,
    /// Publications whose answer was held back because an inbox was full.
    pub publications_waited_total: Counter,
    /// Broadcasts that came during the shutdown, when no client could get them any more.
    pub publications_refused_total: Counter,
    /// Whispers dropped because too many were waiting.
    pub whispers_dropped_total: Counter,
    /// Bytes that the broker holds: history, presence, kept sessions.
    pub broker_bytes: Gauge,
    /// Streams at home on the shard that the broker knows.
    pub broker_streams_num: Gauge,
    /// Messages in the history of these streams.
    pub broker_messages_num: Gauge,
    /// Messages given up because the broker had no memory.
    pub broker_evictions_total: Counter,
    /// Members of the presence streams at home on the shard.
    pub presence_members_num: Gauge,
    /// Sessions that have ended and may come back.
    pub sessions_kept_num: Gauge,
    /// Kept sessions given up because the broker had no memory.
    pub session_evictions_total: Counter,
    /// Sessions that have come back.
    pub restores_total: Counter,
    /// Clients that wanted to continue a session that is not known.
    pub restores_unknown_total: Counter,
    /// Requests for history that were answered.
    pub history_confirmed_total: Counter,
    /// Requests for history that were refused: messages are missing.
    pub history_refused_total: Counter,
    /// Messages that were replayed.
    pub history_messages_total: Counter,
    /// Joins of a presence stream that were refused.
    pub joins_refused_total: Counter,
    /// Publications left out because their idempotency key was known.
    pub publications_repeated_total: Counter,
    /// Idempotency keys forgotten too early.
    pub idempotency_keys_forgotten_total: Counter,
    /// Sessions over long polling.
    pub long_poll_clients_num: Gauge,
    /// Polls that were not answered with messages: their session had ended, or a newer poll took their place.
    pub long_poll_stale_requests_total: Counter,
    /// RPC answers for sessions that are gone.
    pub late_results_total: Counter,
    /// Reactor events for slots that were reused.
    pub stale_events_total: Counter,
    /// Connections that TLS ended: the client did not speak TLS, the handshake found nothing in common, or a record was
    /// damaged.
    pub tls_errors_total: Counter,
    /// Multishot polls that the kernel ended and that were armed again.
    pub poll_rearms_total: Counter,
    /// Completion queue overflows reported by the kernel.
    pub cq_overflows_total: Counter,
    /// Disconnect calls given up: at the bound of their queue, or because the drain ran out of time.
    pub disconnect_calls_dropped_total: Counter,
    /// Bytes of the Disconnect calls that have not ended.
    pub disconnect_queue_bytes: Gauge,
    /// Closed sessions that had to wait for room in the disconnect queue.
    pub disconnect_queue_waits: Counter,
    /// Calls that took longer than `--rpc_slow_call`, the wait for a slot included.
    pub rpc_slow_calls_total: Counter,
    /// Logins at the console with a wrong secret.
    pub console_logins_failed_total: Counter,
    /// Requests and connections of the console refused because too many were open.
    pub console_refused_total: Counter,
    /// Sessions ended and messages published by the console.
    pub console_actions_total: Counter,
    /// From asking for a concurrency slot to getting it.
    pub rpc_slot_wait_seconds: Histogram,
    /// From getting the slot to the final outcome, retries included.
    pub rpc_duration_seconds: Histogram,
}

/// All numbers of the process. Shared read-only between threads; every field inside has one writer.
#[derive(Debug)]
pub struct Metrics {
    /// One block per shard, in the order of the shard ids.
    pub shards: Vec<ShardMetrics>,
    /// Distinct connection identifiers over all shards. Written by the control thread.
    pub clients_uniq_num: Gauge,
    /// Distinct streams with a subscriber, over all shards. Written by the control thread.
    pub broadcast_streams_num: Gauge,
    /// Resident memory of the process in bytes. Written by the control thread.
    pub mem_sys_bytes: Gauge,
    /// Memory of the process that it shares with no other process, in bytes. Written by the control thread.
    pub private_bytes: Gauge,
    /// CPU time of each shard's thread, in the order of the shard ids, in milliseconds. Written by the control thread.
    pub cpu_millis: Vec<Gauge>,
    /// The limit on open files. Set at the start.
    pub open_files_limit: Gauge,
    /// Bytes of the table of interest, with the levels that it has outgrown. A sample.
    pub interest_bytes: Gauge,
    /// Bytes that the shards together may hold for clients and requests, 0 = no bound. Set at the start.
    pub memory_bytes_max: Gauge,
    /// Bytes that the broker may hold on all shards together, 0 = no bound, or no broker. Set at the start.
    pub broker_bytes_max: Gauge,
    /// When the process started, in seconds since 1970. Set at the start.
    pub start_time_seconds: Gauge,
    /// Calls to the app that may run at a time, over all shards. Set at the start.
    pub rpc_slots_num: Gauge,
    /// Calls to the app that have a slot. A sample.
    pub rpc_running_num: Gauge,
    /// 1 while the circuit breaker refuses calls. A sample.
    pub rpc_breaker_open: Gauge,
    /// Times the circuit breaker has opened. A sample of a number that only grows.
    pub rpc_breaker_opened: Gauge,
    /// StatsD datagrams sent. Written by the thread that sends them.
    pub statsd_packets_total: Counter,
    /// StatsD datagrams and whole flushes that could not be sent. Written by the thread that sends them.
    pub statsd_errors_total: Counter,
    /// Log records that were lost. A sample of a number that only grows.
    pub log_records_dropped: Gauge,
    /// Threads of the process, exposed under the reference's name `goroutines_num`. Written by the control thread.
    pub threads: Gauge,
    /// Private memory of the process when every shard served and nobody was connected; unset without the console.
    pub private_bytes_at_start: OnceLock<u64>,
    /// The driver in use, `io_uring` or `epoll`; empty until it has been probed.
    pub driver: OnceLock<&'static str>,
    /// There is a broker. To be set before the metrics are shared; false at first.
    pub has_broker: bool,
    /// False hides the six `rpc_*` names of the reference, as the reference does without RPC. To be set before the
    /// metrics are shared; true at first.
    pub rpc_configured: bool,
    /// The metrics that only a server with TLS has. Must be set before the metrics are shared.
    pub tls: Option<TlsMetrics>,
}

/// The certificate, as the control thread knows it. Written by that thread.
#[derive(Debug, Default)]
pub struct TlsMetrics {
    /// Unix time of the last second in which the certificate is valid, or [`Self::EXPIRY_UNKNOWN`].
    pub certificate_expiry: Gauge,
    /// SIGHUPs after which new connections get the certificate from the files.
    pub reloads_total: Counter,
    /// SIGHUPs after which the old certificate stayed in use.
    pub failed_reloads_total: Counter,
}

impl TlsMetrics {
    /// The validity of the certificate is unknown; the Prometheus text then has no sample.
    pub const EXPIRY_UNKNOWN: i64 = 0;
}

impl Metrics {
    /// All zero, with one block for each of `shards` shards.
    pub fn new(shards: usize) -> Metrics {
        Metrics {
            shards: (0..shards).map(|_| ShardMetrics::default()).collect(),
            clients_uniq_num: Gauge::default(),
            broadcast_streams_num: Gauge::default(),
            mem_sys_bytes: Gauge::default(),
            private_bytes: Gauge::default(),
            cpu_millis: (0..shards).map(|_| Gauge::default()).collect(),
            open_files_limit: Gauge::default(),
            interest_bytes: Gauge::default(),
            memory_bytes_max: Gauge::default(),
            broker_bytes_max: Gauge::default(),
            start_time_seconds: Gauge::default(),
            rpc_slots_num: Gauge::default(),
            rpc_running_num: Gauge::default(),
            rpc_breaker_open: Gauge::default(),
            rpc_breaker_opened: Gauge::default(),
            statsd_packets_total: Counter::default(),
            statsd_errors_total: Counter::default(),
            log_records_dropped: Gauge::default(),
            threads: Gauge::default(),
            private_bytes_at_start: OnceLock::new(),
            driver: OnceLock::new(),
            has_broker: false,
            rpc_configured: true,
            tls: None,
        }
    }
}

const _: () = assert!(align_of::<ShardMetrics>() == 128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_adds_up() {
        let counter = Counter::default();
        counter.add(1);
        counter.add(41);
        assert_eq!(counter.value(), 42);
    }

    #[test]
    fn a_counter_wraps_instead_of_panicking() {
        let counter = Counter::default();
        counter.add(u64::MAX);
        counter.add(2);
        assert_eq!(counter.value(), 1);
    }

    #[test]
    fn a_gauge_goes_up_and_down_and_can_be_set() {
        let gauge = Gauge::default();
        gauge.add(5);
        gauge.sub(7);
        assert_eq!(gauge.value(), -2);
        gauge.set(9);
        assert_eq!(gauge.value(), 9);
    }

    #[test]
    fn a_reader_on_another_thread_sees_what_the_writer_left() {
        let metrics = std::sync::Arc::new(Metrics::new(2));
        let writer = {
            let metrics = metrics.clone();
            std::thread::spawn(move || {
                (0..1000).for_each(|_| metrics.shards[1].deliveries_total.add(1))
            })
        };
        writer.join().expect("the writer only counts");
        assert_eq!(metrics.shards[0].deliveries_total.value(), 0);
        assert_eq!(metrics.shards[1].deliveries_total.value(), 1000);
    }
}
