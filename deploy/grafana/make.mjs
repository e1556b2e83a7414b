#!/usr/bin/env node
// Writes ringcable.json, the dashboard that Grafana imports: `node deploy/grafana/make.mjs`. Grafana's JSON repeats itself in every
// panel; what is particular to each is here. tests/monitoring checks that the two agree and that every query has data.

import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const DATASOURCE = { type: "prometheus", uid: "${datasource}" };
const WIDTH = 24;

// ---- queries ----

/** A metric of the chosen instances, with more matchers if any. */
const of = (name, matchers = "") => `${name}{instance=~"$instance"${matchers && `,${matchers}`}}`;
const sum = (name, by = "") => `sum${by && ` by (${by})`} (${of(name)})`;
const rate = (name, by = "", matchers = "") => `sum${by && ` by (${by})`} (rate(${of(name, matchers)}[$__rate_interval]))`;
const quantile = (q, name) => `histogram_quantile(${q}, sum by (le) (rate(${of(`${name}_bucket`)}[$__rate_interval])))`;
const quantiles = (name) => [
  [quantile(0.5, name), "half of all"],
  [quantile(0.95, name), "95 %"],
  [quantile(0.99, name), "99 %"],
];

// ---- panels ----

const THRESHOLDS = { mode: "absolute", steps: [{ color: "green", value: null }] };

const stat = (title, unit, expr, description, { legend = "", none } = {}) => ({
  type: "stat",
  title,
  description,
  width: 3,
  height: 4,
  unit,
  none,
  targets: [[expr, legend]],
  options: {
    colorMode: "value",
    graphMode: "area",
    justifyMode: "auto",
    orientation: "auto",
    textMode: legend ? "name" : "auto",
    reduceOptions: { calcs: ["lastNotNull"], fields: "", values: false },
  },
});

const graph = (title, unit, targets, description, { width = 8, height = 8, stack = false } = {}) => ({
  type: "timeseries",
  title,
  description,
  width,
  height,
  unit,
  targets,
  custom: {
    drawStyle: "line",
    lineInterpolation: "linear",
    lineWidth: 1,
    fillOpacity: stack ? 40 : 10,
    showPoints: "never",
    spanNulls: false,
    stacking: { group: "A", mode: stack ? "normal" : "none" },
  },
  options: {
    legend: { calcs: ["lastNotNull", "max"], displayMode: "table", placement: "bottom", showLegend: true },
    tooltip: { mode: "multi", sort: "desc" },
  },
});

const ROWS = [
  ["Overview", [
    stat("Clients", "short", sum("anycable_go_clients_num"), "Authenticated sessions."),
    stat("Users", "short", sum("anycable_go_clients_uniq_num"), "Distinct connection identifiers."),
    stat("Streams", "short", sum("anycable_go_broadcast_streams_num"), "Streams with at least one listener."),
    stat("Deliveries", "ops", rate("ringcable_deliveries_total"), "Frames of publications, one per receiver."),
    stat("RPC calls", "ops", rate("anycable_go_rpc_call_total"), "Connect, command and disconnect calls to the app."),
    stat("Bytes per connection", "bytes", `max (${of("ringcable_bytes_per_connection")} > 0)`,
      "Private memory divided by sessions, on servers with 1,000 sessions and more.", { none: "below 1,000 clients" }),
    stat("Running for", "s", `min (time() - ${of("ringcable_start_time_seconds")})`, "The youngest of the chosen instances."),
    stat("Version, driver", "short", of("ringcable_build_info"), "epoll where io_uring was expected: see the log line of the start.",
      { legend: "{{version}} {{driver}}" }),
  ]],
  ["Connections", [
    graph("Sessions", "short", [
      [sum("ringcable_sessions_num"), "connections"],
      [sum("anycable_go_clients_num"), "authenticated"],
      [sum("anycable_go_clients_uniq_num"), "users"],
    ], "Connections above authenticated ones: the app is slow to answer Connect, or clients do not take their close frame."),
    graph("Coming and going", "ops", [
      [rate("ringcable_accepted_total"), "sockets accepted"],
      [rate("ringcable_upgrades_total"), "upgraded to WebSocket"],
      [rate("ringcable_closed_total"), "sessions closed"],
    ], "A steady state with high rates is a reconnect loop."),
    graph("Closed, by reason", "ops", [[rate("ringcable_closed_total", "reason"), "{{reason}}"]],
      "client: it left. too_slow, write_timeout, no_pong: the server gave it up. shutdown: this server restarts.", { stack: true }),
    graph("HTTP requests", "reqps", [
      [rate("ringcable_http_requests_total"), "requests"],
      [rate("ringcable_upgrade_refused_total"), "upgrades refused"],
      [rate("ringcable_http_bad_requests_total"), "malformed"],
      [rate("ringcable_http_timeouts_total"), "timed out"],
      [rate("ringcable_http_overload_total"), "no memory"],
    ], "All listeners: upgrades, broadcasts, health checks, scrapes."),
    graph("Messages from clients", "ops", [
      [rate("anycable_go_client_msg_total"), "commands"],
      [rate("anycable_go_failed_client_msg_total"), "failed"],
      [rate("anycable_go_failed_auths_total"), "refused connections"],
    ], "Failed: not readable, not possible, or the call to the app failed. The log says which."),
    graph("Payload", "Bps", [
      [rate("anycable_go_data_sent_total"), "to clients"],
      [rate("anycable_go_data_rcvd_total"), "from clients"],
    ], "Without WebSocket and TCP framing."),
    graph("Clients without a WebSocket", "short", [
      [sum("anycable_go_sse_clients_num"), "server-sent events"],
      [sum("anycable_go_long_poll_clients_num"), "long polling"],
      [sum("anycable_go_ds_sse_clients_num"), "durable streams, events"],
      [sum("anycable_go_ds_poll_clients_num"), "durable streams, long poll"],
    ], "They count among the clients and sessions above.", { width: 12 }),
    graph("Requests for durable streams, stale polls", "ops", [
      [rate("anycable_go_ds_requests_total"), "history"],
      [rate("anycable_go_ds_poll_requests_total"), "long polls"],
      [rate("anycable_go_ds_sse_requests_total"), "events"],
      [rate("anycable_go_long_poll_stale_requests_total"), "stale polls"],
    ], "A stale poll gave way to a newer one of its client..", { width: 12 }),
  ]],
  ["Deliveries", [
    graph("Broadcasts from the app", "ops", [
      [rate("anycable_go_publications_total"), "requests"],
      [rate("anycable_go_broadcast_msg_total"), "messages"],
      [rate("anycable_go_remote_commands_total"), "remote disconnects"],
      [rate("anycable_go_failed_broadcast_msg_total"), "not readable"],
    ], "Messages: each item of a batch, whispers too."),
    graph("Messages to clients", "ops", [
      [rate("ringcable_deliveries_total"), "deliveries"],
      [rate("anycable_go_server_msg_total"), "written"],
      [rate("anycable_go_failed_server_msg_total"), "failed"],
    ], "Written: deliveries and replies, pings not. Less than deliveries for long: outboxes fill."),
    graph("Receivers per message", "short", [
      [`${rate("ringcable_deliveries_total")} / ${rate("anycable_go_broadcast_msg_total")}`, "receivers"],
    ], "How wide a broadcast fans out on these instances."),
    graph("Frames per write", "short", [
      [`${rate("anycable_go_server_msg_total")} / ${rate("ringcable_writes_total")}`, "messages"],
    ], "Rises when bursts are gathered: more messages for each write. Pings are writes without a message: an idle server is near 0."),
    graph("Outboxes", "bytes", [[sum("ringcable_outbox_bytes"), "bytes waiting"]],
      "What the kernel has not taken from us yet: slow clients."),
    graph("Blocked writes", "ops", [
      [rate("ringcable_write_blocked_total"), "blocked"],
      [rate("ringcable_writes_total"), "all writes"],
    ], "A blocked write makes an outbox, which waits for room in the socket."),
  ]],
  ["Calls to the app", [
    graph("Calls", "ops", [
      [rate("anycable_go_rpc_call_total"), "calls"],
      [rate("anycable_go_rpc_error_total"), "failed"],
      [rate("anycable_go_rpc_timeout_total"), "timed out"],
      [rate("anycable_go_rpc_retries_total"), "retries"],
      [rate("anycable_go_rpc_canceled_total"), "cancelled: the client left"],
    ], "Failed calls include timed-out ones."),
    graph("Time of a call", "s", quantiles("ringcable_rpc_duration_seconds"), "From getting a slot to the answer, retries included: the app."),
    graph("Wait for a slot", "s", quantiles("ringcable_rpc_slot_wait_seconds"),
      "Before that. When this is long and calls are short, rpc_concurrency is too low for the app's threads."),
    graph("Slots", "short", [
      [sum("ringcable_rpc_running_num"), "running"],
      [sum("ringcable_rpc_slots_num"), "slots (rpc_concurrency)"],
      [sum("anycable_go_rpc_pending_num"), "waiting"],
    ], "Running at the limit with a queue: the app is the bottleneck."),
    graph("Slow calls, late answers", "ops", [
      [rate("ringcable_rpc_slow_calls_total"), "slow (rpc_slow_call)"],
      [rate("ringcable_late_results_total"), "answer for a session that is gone"],
    ], "The log has one line for many slow calls, with method, wait and run time."),
    graph("Disconnect calls", "short", [
      [sum("anycable_go_disconnect_queue_size"), "waiting"],
      [`sum (increase(${of("ringcable_disconnect_queue_waits_total")}[$__rate_interval]))`, "beyond the backlog"],
      [`sum (increase(${of("ringcable_disconnect_calls_dropped_total")}[$__rate_interval]))`, "given up"],
    ], "A queue that stays long: raise disconnect_rate."),
    graph("Circuit breaker", "short", [
      [`max (${of("ringcable_rpc_breaker_open")})`, "open"],
      [`sum (increase(${of("ringcable_rpc_breaker_opened_total")}[$__rate_interval]))`, "times opened"],
    ], "Open: the app did not answer, calls fail at once for 5 s.", { width: 24, height: 6 }),
  ]],
  ["Memory", [
    graph("Memory", "bytes", [
      [sum("anycable_go_mem_sys_bytes"), "resident"],
      [sum("ringcable_private_bytes"), "private"],
    ], "User space. The kernel's part of a connection (about 4 KB) is not in it.", { width: 12 }),
    graph("Bytes per connection", "bytes", [[`${of("ringcable_bytes_per_connection")} > 0`, "{{instance}}"]],
      "Private memory divided by sessions, while there are 1,000 and more.", { width: 12 }),
    graph("Held for clients", "bytes", [
      [sum("ringcable_memory_bytes"), "held for clients and requests"],
      [sum("ringcable_memory_bytes_max"), "memory_bytes_max"],
      [sum("ringcable_disconnect_queue_bytes"), "of it: Disconnect calls that wait"],
    ], "At the bound new sessions, subscriptions and bodies are refused, and who is connected stays.", { width: 12 }),
    graph("Refused for want of memory", "ops", [
      [rate("ringcable_memory_refusals_total"), "the process holds memory_bytes_max"],
      [rate("ringcable_session_bytes_exceeded_total"), "a session holds session_bytes_max"],
    ], "Should be 0. The second is one client that asks for too much.", { width: 12 }),
  ]],
  ["Broker", [
    graph("Held by the broker", "bytes", [
      [sum("ringcable_broker_bytes"), "history, presence, sessions, keys"],
      [sum("ringcable_broker_bytes_max"), "broker_bytes_max"],
    ], "At broker_bytes_max the oldest messages go first."),
    graph("Kept", "short", [
      [sum("ringcable_broker_streams_num"), "streams"],
      [sum("ringcable_broker_messages_num"), "messages"],
      [sum("ringcable_sessions_kept_num"), "sessions that may come back"],
      [sum("ringcable_presence_members_num"), "members of presence streams"],
    ], "Only with --broker=memory."),
    graph("Given up by the broker", "ops", [
      [rate("ringcable_broker_evictions_total"), "messages"],
      [rate("ringcable_session_evictions_total"), "sessions"],
      [rate("ringcable_idempotency_keys_forgotten_total"), "idempotency keys"],
      [rate("ringcable_joins_refused_total"), "refused joins"],
    ], "Should be 0. A join may also be refused because of its id or info; the log says why."),
    graph("Clients that come back", "ops", [
      [rate("ringcable_restores_total"), "restored"],
      [rate("ringcable_restores_unknown_total"), "unknown, authenticated anew"],
    ], "After a restart of the server all are unknown."),
    graph("History", "ops", [
      [rate("ringcable_history_confirmed_total"), "answered"],
      [rate("ringcable_history_refused_total"), "refused"],
    ], "Refused: the client loads its state anew."),
    graph("Replayed, repeated", "ops", [
      [rate("ringcable_history_messages_total"), "messages replayed"],
      [rate("ringcable_publications_repeated_total"), "broadcasts with a known key"],
    ], "The second are delivered once and answered each time."),
  ]],
  ["Shards", [
    graph("CPU", "percentunit", [[rate("ringcable_cpu_seconds_total", "instance, shard"), "{{instance}} shard {{shard}}"]],
      "A shard is one thread: at 100 % it has no time left, whatever the other CPUs do."),
    graph("Clients", "short", [[sum("ringcable_clients_num", "instance, shard"), "{{instance}} shard {{shard}}"]],
      "The kernel spreads connections; more of them spread better."),
    graph("Inboxes", "short", [[sum("ringcable_inbox_depth", "instance, shard"), "{{instance}} shard {{shard}}"]],
      "Messages that wait for the shard. Publishers wait at 4,096."),
    graph("Threads", "short", [[of("anycable_go_goroutines_num"), "{{instance}}"]], "Shards, control, signals."),
    graph("Polls armed again", "ops", [[rate("ringcable_poll_rearms_total", "instance, shard"), "{{instance}} shard {{shard}}"]],
      "io_uring: multishot polls that the kernel has ended. Harmless while rare."),
    graph("Late events, ring overflows", "ops", [
      [rate("ringcable_stale_events_total"), "events for a session that is gone"],
      [rate("ringcable_cq_overflows_total"), "completion queue overflows"],
    ], "With io_uring a session that ends leaves about one late event. Overflows that go on mean that a shard is behind."),
  ]],
  ["Trouble", [
    graph("Clients given up", "ops", [
      [rate("anycable_go_disconnected_slow_clients_total"), "too much pending"],
      [rate("anycable_go_timeout_server_msg_total"), "write timed out"],
      [rate("ringcable_closed_total", "", 'reason="no_pong"'), "no pong"],
      [rate("ringcable_closed_total", "", 'reason="protocol_error"'), "protocol error"],
    ], "Each costs that client alone."),
    graph("Accept errors", "ops", [
      [rate("ringcable_accept_errors_total"), "errors"],
      [rate("ringcable_accept_waits_total"), "waits for a client to leave"],
      [rate("ringcable_rpc_shortages_total"), "calls to the app without descriptor, port or memory"],
    ], "Waits: --max-conn is reached, or the open files for clients are used up."),
    graph("Listeners that wait", "short", [[sum("ringcable_accept_waiting_num"), "waiting"]],
      "While one does, new clients stand in the kernel's queue."),
    graph("File descriptors", "percentunit", [
      [`sum by (instance) (${of("ringcable_sessions_num")}) / on (instance) ${of("ringcable_open_files_limit")}`, "{{instance}}"],
    ], "Sessions as a part of the limit on open files."),
    graph("Publishers held back", "ops", [
      [rate("ringcable_publications_waited_total"), "publications that waited"],
      [rate("ringcable_inbox_waits_total"), "full inboxes"],
      [rate("ringcable_publications_refused_total"), "refused at a stop"],
    ], "A shard does not keep up; the app's broadcast requests take longer."),
    graph("Shards that get a message", "ops", [
      [rate("ringcable_publications_handed_total"), "put into inboxes"],
      [rate("ringcable_inbox_wakeups_total"), "shards woken for it"],
    ], "A message is put into the inboxes of the shards that may have a listener. A wake-up costs about 10 µs."),
    graph("Table of interest", "bytes", [[of("ringcable_interest_bytes"), "{{instance}}"]],
      "Which shards may have a listener. It grows with the streams of the shard that has most."),
    graph("Refused requests", "ops", [
      [rate("ringcable_http_unauthorized_total"), "wrong token"],
      [rate("ringcable_http_not_found_total"), "unknown path"],
      [rate("ringcable_rpc_unauthorized_total"), "by the app: the secrets differ"],
      [rate("ringcable_tls_errors_total"), "TLS errors"],
    ], "The log says which setting each of them is about."),
    graph("Console", "ops", [
      [rate("ringcable_console_actions_total"), "actions"],
      [rate("ringcable_console_logins_failed_total"), "failed logins"],
      [rate("ringcable_console_refused_total"), "refused: too many at once"],
    ], "Only with --console."),
    graph("Given up", "ops", [
      [rate("ringcable_whispers_dropped_total"), "whispers"],
      [rate("ringcable_disconnect_calls_dropped_total"), "disconnect calls"],
      [rate("ringcable_log_records_dropped_total"), "log records"],
    ], "Should be 0."),
    graph("StatsD", "ops", [
      [rate("ringcable_statsd_packets_total"), "packets"],
      [rate("ringcable_statsd_errors_total"), "failed"],
    ], "Only with statsd_host."),
  ]],
];

// ---- Grafana's JSON ----

function panel({ type, title, description, unit, none, targets, custom, options }, id, gridPos) {
  return {
    id,
    type,
    title,
    description,
    datasource: DATASOURCE,
    gridPos,
    fieldConfig: { defaults: { unit, min: 0, ...(none && { noValue: none }), ...(custom && { custom }), color: { mode: custom ? "palette-classic" : "thresholds" }, thresholds: THRESHOLDS }, overrides: [] },
    options,
    targets: targets.map(([expr, legendFormat], index) => ({
      refId: String.fromCharCode("A".charCodeAt(0) + index),
      datasource: DATASOURCE,
      expr,
      legendFormat: legendFormat || "__auto",
    })),
  };
}

function panels() {
  const made = [];
  let y = 0;
  for (const [title, inside] of ROWS) {
    made.push({ id: made.length + 1, type: "row", title, collapsed: false, gridPos: { h: 1, w: WIDTH, x: 0, y }, panels: [] });
    y += 1;
    let x = 0;
    let above = 0;
    for (const item of inside) {
      if (x + item.width > WIDTH) {
        x = 0;
        y += above;
      }
      above = item.height;
      made.push(panel(item, made.length + 1, { h: item.height, w: item.width, x, y }));
      x += item.width;
    }
    y += inside.at(-1).height;
  }
  return made;
}

export function dashboard() {
  return {
    uid: "ringcable",
    title: "ringcable",
    description: "Connections, deliveries, calls to the app, memory and trouble of ringcable servers.",
    tags: ["ringcable", "anycable", "websocket"],
    editable: true,
    schemaVersion: 39,
    version: 1,
    refresh: "10s",
    time: { from: "now-1h", to: "now" },
    timezone: "browser",
    graphTooltip: 1,
    links: [],
    annotations: {
      list: [{
        name: "Restarts",
        datasource: DATASOURCE,
        enable: true,
        iconColor: "orange",
        expr: `changes(${of("ringcable_start_time_seconds")}[$__rate_interval]) > 0`,
        titleFormat: "{{instance}} restarted",
      }],
    },
    templating: {
      list: [
        { name: "datasource", label: "Data source", type: "datasource", query: "prometheus", refresh: 1, hide: 0, current: {}, options: [] },
        {
          name: "instance",
          label: "Instance",
          type: "query",
          datasource: DATASOURCE,
          query: { query: "label_values(ringcable_build_info, instance)", refId: "instance" },
          refresh: 2,
          sort: 1,
          multi: true,
          includeAll: true,
          allValue: ".*",
          current: { text: "All", value: "$__all" },
          hide: 0,
          options: [],
        },
      ],
    },
    panels: panels(),
  };
}

export const text = () => `${JSON.stringify(dashboard(), null, 1)}\n`;

if (process.argv[1] === fileURLToPath(import.meta.url)) writeFileSync(new URL("ringcable.json", import.meta.url), text());
