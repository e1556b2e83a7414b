//! The metrics of the reference.

use super::{Family, ProcessFamily, counter, gauge, process_gauge};

/// Names and HELP texts of the reference, word for word, because dashboards and alerts depend on them.
pub(in crate::metrics) const REFERENCE: &[Family] = &[
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
    gauge("sse_clients_num", "The number of active SSE clients", |m| {
        &m.sse_clients_num
    }),
    counter(
        "ds_requests_total",
        "The total number of durable streams HEAD/GET requests",
        |m| &m.ds_requests_total,
    ),
    counter(
        "ds_poll_requests_total",
        "The total number of durable streams long-poll requests",
        |m| &m.ds_poll_requests_total,
    ),
    counter(
        "ds_sse_requests_total",
        "The total number of durable streams SSE requests",
        |m| &m.ds_sse_requests_total,
    ),
    gauge(
        "ds_poll_clients_num",
        "The number of active durable streams long-poll clients",
        |m| &m.ds_poll_clients_num,
    ),
    gauge(
        "ds_sse_clients_num",
        "The number of active durable streams SSE clients",
        |m| &m.ds_sse_clients_num,
    ),
    gauge(
        "disconnect_queue_size",
        "The size of delayed disconnect",
        |m| &m.disconnect_queue_size,
    ),
    gauge(
        "long_poll_clients_num",
        "The number of active long polling clients",
        |m| &m.long_poll_clients_num,
    ),
    counter(
        "long_poll_stale_requests_total",
        "The total number of stale long polling requests",
        |m| &m.long_poll_stale_requests_total,
    ),
];

/// The reference's names whose values no shard counts.
pub(in crate::metrics) const REFERENCE_PROCESS: &[ProcessFamily] = &[
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
pub(in crate::metrics) const REFERENCE_RPC: &[Family] = &[
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
