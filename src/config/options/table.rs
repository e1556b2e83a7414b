//! The one list of all options: all that the reference knows, and ours.
//!
//! A row reads: flag, file key, kind, default; then special properties; then the help text. Options of missing features are
//! in the list too, so that they can be refused by name. Source: `contract/options.tsv`.

use super::super::value::{Items, OptionKind};
use super::{OptionSpec, Section};

const BOOL: OptionKind = OptionKind::Bool;
const TEXT: OptionKind = OptionKind::Text;
/// A text that must not be empty.
const NAME: OptionKind = OptionKind::Name;
/// The path of a file on this machine.
const FILE: OptionKind = OptionKind::File;
/// A URL path.
const PATH: OptionKind = OptionKind::Path {
    may_be_empty: false,
};
const OPTIONAL_PATH: OptionKind = OptionKind::Path { may_be_empty: true };
/// URL paths of the WebSocket endpoint, an array in the file.
const PATHS: OptionKind = OptionKind::Paths;
/// Comma-separated on the command line, an array in the file.
const fn list(items: Items) -> OptionKind {
    OptionKind::List {
        separator: ',',
        array_in_file: true,
        items,
    }
}
/// Comma-separated everywhere.
const fn csv(items: Items) -> OptionKind {
    OptionKind::List {
        separator: ',',
        array_in_file: false,
        items,
    }
}
const LIST: OptionKind = list(Items::Any);
const WORDS: OptionKind = list(Items::Words);
const HEADERS: OptionKind = list(Items::HeaderNames);
const COOKIES: OptionKind = list(Items::CookieNames);
const CSV: OptionKind = csv(Items::Any);
const HOSTS: OptionKind = csv(Items::Hosts);
const GATEWAYS: OptionKind = OptionKind::List {
    separator: ';',
    array_in_file: true,
    items: Items::Any,
};
const TAGS: OptionKind = OptionKind::Tags;
const STREAM_LIMITS: OptionKind = OptionKind::StreamLimits;

const PORT: OptionKind = OptionKind::Int {
    min: 0,
    max: u16::MAX as i64,
};
/// Any number, for options in which zero and negative numbers have a special meaning.
const NUMBER: OptionKind = OptionKind::Int {
    min: i64::MIN,
    max: i64::MAX,
};
/// Seconds, or a switch: in the reference's paid edition this option is a boolean.
const SECS_OR_SWITCH: OptionKind = OptionKind::SecsOrSwitch;
const COUNT: OptionKind = OptionKind::Int {
    min: 0,
    max: u32::MAX as i64,
};
const POSITIVE: OptionKind = OptionKind::Int {
    min: 1,
    max: u32::MAX as i64,
};
const SECS: OptionKind = OptionKind::Int {
    min: 0,
    max: u32::MAX as i64,
};
const MILLIS: OptionKind = OptionKind::Int {
    min: 0,
    max: u32::MAX as i64,
};
const BYTES: OptionKind = OptionKind::Int {
    min: 0,
    max: i64::MAX,
};
/// Commands of one request of a polling client. The whole request is in memory while it is read.
const REQUEST_BYTES: OptionKind = OptionKind::Int {
    min: 1,
    max: 16 << 20,
};
/// The largest value is the reference's.
const HEAD_BYTES: OptionKind = OptionKind::Int {
    min: 4096,
    max: 1 << 20,
};
/// Disconnect calls per second; the reference crashes with a value outside this range.
const RATE: OptionKind = OptionKind::Int { min: 1, max: 1000 };
/// The largest value is the payload of a UDP datagram over IPv4.
const PACKET_BYTES: OptionKind = OptionKind::Int {
    min: 1,
    max: 65_507,
};
const CORES: OptionKind = OptionKind::Int { min: 0, max: 1024 };
/// -1 lets the server choose.
const BYTES_OR_AUTO: OptionKind = OptionKind::Int {
    min: -1,
    max: i64::MAX,
};

/// Empty = nothing is generated.
const GENERATED: OptionKind = OptionKind::Word(&[
    "",
    "man",
    "complete-bash",
    "complete-zsh",
    "complete-fish",
    "options",
]);
const DRIVER: OptionKind = OptionKind::Word(&["auto", "io_uring", "epoll"]);
const BROKER_WORD: OptionKind = OptionKind::Word(&["", "memory", "nats", "none"]);
const PUBSUB_WORD: OptionKind = OptionKind::Word(&["", "redis", "nats", "none"]);
const RPC_IMPL: OptionKind = OptionKind::Word(&["", "http", "grpc", "none"]);
const DISCONNECT_MODE: OptionKind = OptionKind::Word(&["auto", "always", "never"]);
const LOG_LEVEL: OptionKind = OptionKind::Word(&["debug", "info", "warn", "error"]);
const LOG_FORMAT: OptionKind = OptionKind::Word(&["text", "json"]);
const TAG_STYLE: OptionKind = OptionKind::Word(&["datadog", "influxdb", "graphite"]);
const PRECISION: OptionKind = OptionKind::Word(&["s", "ms", "ns"]);

/// Turns the rows below into [`OPTIONS`].
macro_rules! options {
    ($($section:ident { $($name:literal, $file_key:literal, $kind:ident, $default:literal,
        $($($note:ident($($argument:literal)?))+,)? $help:literal;)+ })+) => {
        /// All options. Help sorts them itself; `--print-config` keeps this order inside each table.
        pub static OPTIONS: &[OptionSpec] = &[$($(
            OptionSpec::new(Section::$section, $name, $file_key, $kind, $default, $help)$($(.$note($($argument)?))+)?,
        )+)+];
    };
}

options! {
    General {
        "help", "", BOOL, "false", no_env(),
            "Print this list and exit";
        "version", "", BOOL, "false", no_env(),
            "Print the version number and exit";
        "ignore-config-path", "", BOOL, "false", no_env(),
            "Read no TOML file, not even the one --config-path names";
        "config-path", "", FILE, "", no_env(),
            "TOML file to read instead of ./anycable.toml or /etc/anycable/anycable.toml";
        "print-config", "", BOOL, "false", no_env(),
            "Print the merged configuration as TOML and exit (presets are not applied, secrets are in clear)";
        "check-config", "", BOOL, "false", no_env(),
            "Look at everything that a start looks at before it listens, say what is wrong, and exit with 0 or 1";
        "generate", "", GENERATED, "", no_env(),
            "Print a text made from the options and exit: man, complete-bash, complete-zsh, complete-fish, options";
        "check", "", COUNT, "0", no_env(),
            "Say what would stop this host from holding that many connections, and exit with 0 if nothing does";
        "ws_max_pending_size", "ws.max_pending_size", BYTES, "1048576",
            "Unsent bytes beyond which a client that takes nothing counts as slow and is dropped; 0 = no limit";
        "demo", "", BOOL, "false", no_env(),
            "Start a small built-in chat app beside the server; open the printed address in a browser";
        "console", "console.enabled", BOOL, "false",
            "Serve a page for operators at /_console: live figures, sessions, recent errors; needs a secret unless host is loopback";
    }
    Server {
        "host", "server.host", TEXT, "localhost",
            "Bind address of every listener: localhost is 127.0.0.1 only, empty or 0.0.0.0 is every interface";
        "port", "server.port", PORT, "8080", also_env("PORT"),
            "Port of the main listener; 0 lets the kernel choose";
        "allowed_origins", "server.allowed_origins", HOSTS, "",
            "Hosts accepted in the Origin header, comma-separated; a leading * matches any prefix; empty = no check";
        "secret", "secret", TEXT, "", sensitive(),
            "Application secret: the JWT, stream, broadcast, RPC and API secrets come from it when unset";
        "broadcast_key", "broadcast_key", TEXT, "", sensitive(),
            "Token that broadcast requests must carry; none switches the check off and moves the default broadcast port to 8090";
        "public", "public", BOOL, "false",
            "Open mode: noauth, public streams and broadcasts without authorization";
        "noauth", "noauth", BOOL, "false",
            "Accept every connection without asking the app; a JWT, when configured, is still looked at first";
        "max-conn", "server.max_conn", COUNT, "0",
            "Connections accepted at the same time per listener, 0 = unlimited; more of them wait in the kernel backlog";
        "max_head_size", "server.max_head_size", HEAD_BYTES, "65536",
            "Largest head of a request in bytes, cookies and all headers together; anycable-go takes 1048576";
        "path", "ws.paths", PATHS, "/cable", empty_is_unset(),
            "WebSocket paths, comma-separated; {name} placeholders and a trailing * are understood";
        "health-path", "server.health_path", PATH, "/health",
            "Path of the health endpoint on the main listener";
        "shutdown_timeout", "app.shutdown_timeout", SECS, "30",
            "Time limit of the whole shutdown in seconds, shutdown_delay included";
        "shutdown_pool_size", "app.shutdown_disconnect_gopool_size", POSITIVE, "16", hidden(),
            "Disconnect calls made in parallel during shutdown";
        "shutdown_delay", "app.shutdown_delay", SECS, "0",
            "Seconds between the signal and the moment the listeners stop accepting";
        "shutdown_healthy", "app.shutdown_healthy", BOOL, "false",
            "Keep the health endpoint at 200 during shutdown_delay, as anycable-go does, instead of 503";
        "shutdown_slowdrain", "app.shutdown_slowdrain", SECS_OR_SWITCH, "0",
            "Seconds over which clients are told to reconnect at shutdown; true = most of shutdown_timeout, 0 = all at once";
        "shutdown_slowdrain_max_interval", "app.shutdown_slowdrain_max_interval", MILLIS, "500", hidden(),
            "Longest pause between two clients of a slow drain in milliseconds, so that few clients take little time";
        "node_id", "node_id", TEXT, "", hidden() empty_is_unset(),
            "Value of nodeid on every log record; random when unset";
    }
    Runtime {
        "cores", "runtime.cores", CORES, "0",
            "Cores to use, one pinned thread each; 0 = every core the process may use";
        "driver", "runtime.driver", DRIVER, "auto",
            "How to wait for sockets: io_uring, epoll, auto = io_uring where the kernel allows it";
        "memory_bytes_max", "runtime.memory_bytes_max", BYTES_OR_AUTO, "-1",
            "Bytes that may be held for clients and requests before new work is refused; 0 = no bound, -1 = half of the memory limit";
    }
    Ssl {
        "ssl_cert", "server.ssl.cert_path", FILE, "",
            "PEM certificate file; TLS serves every listener, SIGHUP reads it again";
        "ssl_key", "server.ssl.key_path", FILE, "",
            "PEM private key file of ssl_cert";
    }
    Broadcasting {
        "broadcast_adapter", "broadcast_adapters", WORDS, "http", empty_is_unset(),
            "Publishing inputs to start, comma-separated; only http works yet";
        "broker", "broker.adapter", BROKER_WORD, "",
            "Keeps stream history, sessions that may come back, presence: memory, nats, none; only memory works yet";
        "pubsub", "pubsub_adapter", PUBSUB_WORD, "", refused("node-to-node fan-out is planned"),
            "Node-to-node fan-out: redis, nats, none";
        "redis_channel", "redis_pubsub_broadcast.channel", TEXT, "__anycable__", refused("Redis support is planned"),
            "Redis channel of the plain redis broadcast adapter";
        "nats_channel", "nats_broadcast.channel", TEXT, "__anycable__", refused("NATS support is planned"),
            "NATS subject of the nats broadcast adapter";
        "hub_gopool_size", "app.broadcast_gopool_size", COUNT, "16", hidden() unused("every shard fans out by itself; cores says how many there are"),
            "Fan-out workers of anycable-go";
    }
    Broker {
        "history_limit", "broker.history_limit", COUNT, "100",
            "Messages kept per stream";
        "history_ttl", "broker.history_ttl", SECS, "300",
            "Age limit of stream history";
        "sessions_ttl", "broker.sessions_ttl", SECS, "300",
            "How long a closed session can be resumed";
        "presence_ttl", "broker.presence_ttl", SECS, "15",
            "How long presence survives without a touch after disconnect";
        "broker_bytes_max", "broker.bytes_max", BYTES_OR_AUTO, "-1",
            "Bytes that the broker may hold, then its oldest messages go first; 0 = no bound, -1 = a quarter of the memory limit";
        "broker.limits", "broker.limits", STREAM_LIMITS, "", only_in_file(),
            "Limits of the streams whose names begin with a prefix, each a table with prefix, history_limit, history_ttl; the longest prefix counts";
    }
    Redis {
        "redis_url", "redis.url", TEXT, "redis://localhost:6379", also_env("REDIS_URL") sensitive() refused("Redis support is planned"),
            "Redis URL, comma list for cluster; host part = master name in Sentinel mode";
        "redis_sentinels", "redis.sentinels", CSV, "", refused("Redis support is planned"),
            "Sentinel addresses; non-empty switches to Sentinel mode";
        "redis_sentinel_discovery_interval", "redis.sentinel_discovery_interval", SECS, "30", hidden() unused("anycable-go does not read it either"),
            "Sentinel re-discovery period";
        "redis_keepalive_interval", "redis.keepalive_ping_interval", SECS, "30", hidden() refused("Redis support is planned"),
            "TCP keepalive period of Redis connections";
        "redis_tls_verify", "redis.tls_verify", BOOL, "false", hidden() refused("Redis support is planned"),
            "Check the server certificate for rediss:// URLs";
        "redis_tls_ca_cert_path", "redis.tls_ca_cert_path", FILE, "", refused("Redis support is planned"),
            "CA bundle for the Redis server certificate";
        "redis_tls_client_cert_path", "redis.tls_client_cert_path", FILE, "", refused("Redis support is planned"),
            "Client certificate for mutual TLS with Redis (needs the key too)";
        "redis_tls_client_key_path", "redis.tls_client_key_path", FILE, "", refused("Redis support is planned"),
            "Client key for mutual TLS with Redis";
        "redis_disable_cache", "redis.disable_cache", BOOL, "false", hidden() refused("Redis support is planned"),
            "Do not use CLIENT TRACKING (for managed Redis that forbids it)";
        "redis.max_reconnect_attempts", "redis.max_reconnect_attempts", NUMBER, "5", only_in_file() refused("Redis support is planned"),
            "Attempts to reach Redis again before the server gives up";
        "redis_pubsub.channel", "redis_pubsub.channel", TEXT, "__anycable_internal__", only_in_file() refused("Redis support is planned"),
            "Redis channel between nodes";
    }
    RedisX {
        "redisx_stream", "redis_stream_broadcast.stream", TEXT, "__anycable__", refused("Redis support is planned"),
            "Redis stream key read by the redisx adapter";
        "redisx_group", "redis_stream_broadcast.group", TEXT, "bx", hidden() refused("Redis support is planned"),
            "Consumer group name of the redisx adapter";
        "redisx_read_block_milliseconds", "redis_stream_broadcast.stream_read_block_milliseconds", MILLIS, "2000", hidden() refused("Redis support is planned"),
            "BLOCK time of XREADGROUP";
    }
    HttpBroadcast {
        "http_broadcast_port", "http_broadcast.port", PORT, "0",
            "Port of the HTTP broadcast endpoint; 0 = the main port when a broadcast secret exists, else 8090";
        "http_broadcast_path", "http_broadcast.path", PATH, "/_broadcast",
            "Path of the HTTP broadcast endpoint";
        "http_broadcast_secret", "http_broadcast.secret", TEXT, "", hidden() sensitive() deprecated(),
            "Deprecated name of broadcast_key; wins over it when both are set";
        "http_broadcast_cors", "http_broadcast.cors_headers", BOOL, "false", hidden(),
            "Answer OPTIONS and add CORS headers on the broadcast endpoint";
        "http_broadcast.cors_hosts", "http_broadcast.cors_hosts", CSV, "", only_in_file() unused("allowed_origins counts, as in anycable-go"),
            "Hosts for the CORS headers of the broadcast endpoint";
    }
    Nats {
        "nats_servers", "nats.servers", CSV, "nats://127.0.0.1:4222", sensitive() refused("NATS support is planned"),
            "NATS URLs for pub/sub, broadcast and broker";
        "nats_dont_randomize_servers", "nats.dont_randomize_servers", BOOL, "false", hidden() refused("NATS support is planned"),
            "Try NATS servers in the given order";
        "nats.max_reconnect_attempts", "nats.max_reconnect_attempts", NUMBER, "5", only_in_file() refused("NATS support is planned"),
            "Attempts to reach NATS again before the server gives up";
        "nats_pubsub.channel", "nats_pubsub.channel", TEXT, "__anycable_internal__", only_in_file() refused("NATS support is planned"),
            "NATS subject between nodes";
    }
    EmbeddedNats {
        "embed_nats", "embedded_nats.enabled", BOOL, "false", refused("there is no embedded NATS server"),
            "Run a NATS server inside the process";
        "enats_addr", "embedded_nats.service_addr", TEXT, "nats://127.0.0.1:4222", hidden() refused("there is no embedded NATS server"),
            "Client bind address of the embedded NATS";
        "enats_cluster", "embedded_nats.cluster_addr", TEXT, "", hidden() refused("there is no embedded NATS server"),
            "Cluster bind address of the embedded NATS";
        "enats_cluster_name", "embedded_nats.cluster_name", TEXT, "anycable-cluster", refused("there is no embedded NATS server"),
            "NATS cluster name";
        "enats_cluster_routes", "embedded_nats.routes", LIST, "", refused("there is no embedded NATS server"),
            "Known cluster routes";
        "enats_gateway", "embedded_nats.gateway_addr", TEXT, "", hidden() refused("there is no embedded NATS server"),
            "Gateway bind address";
        "enats_gateways", "embedded_nats.gateways", GATEWAYS, "", refused("there is no embedded NATS server"),
            "Known gateways, each as name:addr,addr";
        "enats_gateway_advertise", "embedded_nats.gateway_advertise", TEXT, "", refused("there is no embedded NATS server"),
            "Gateway address announced to peers";
        "enats_store_dir", "embedded_nats.jetstream_store_dir", FILE, "", hidden() refused("there is no embedded NATS server"),
            "JetStream storage folder";
        "enats_server_name", "embedded_nats.name", TEXT, "", refused("there is no embedded NATS server"),
            "NATS server name";
        "enats_debug", "embedded_nats.debug", BOOL, "false", hidden() refused("there is no embedded NATS server"),
            "Show NATS server logs";
        "enats_trace", "embedded_nats.trace", BOOL, "false", hidden() refused("there is no embedded NATS server"),
            "Show NATS protocol traces";
        "enats_max_payload", "embedded_nats.max_payload", BYTES, "0", refused("there is no embedded NATS server"),
            "Largest NATS message";
        "embedded_nats.jetstream", "embedded_nats.jetstream", BOOL, "false", only_in_file() refused("there is no embedded NATS server"),
            "Run JetStream in the embedded NATS";
        "embedded_nats.jetstream_ready_timeout", "embedded_nats.jetstream_ready_timeout", SECS, "30", only_in_file() refused("there is no embedded NATS server"),
            "Seconds to wait for JetStream";
    }
    Rpc {
        "rpc_host", "rpc.host", TEXT, "localhost:50051", empty_is_unset(),
            "Base URL of RPC over HTTP, such as http://localhost:3000/_anycable";
        "norpc", "", BOOL, "false",
            "No RPC at all: whoever is not let in by JWT or noauth is refused";
        "rpc_concurrency", "rpc.concurrency", NUMBER, "28",
            "RPC calls in flight at the same time";
        "rpc_enable_tls", "rpc.enable_tls", BOOL, "false", hidden(),
            "Use the TLS options below for https RPC";
        "rpc_tls_verify", "rpc.tls_verify", BOOL, "true", hidden(),
            "Verify the certificate of the RPC server; read when rpc_enable_tls or rpc_tls_root_ca is set";
        "rpc_tls_root_ca", "rpc.tls_root_ca_path", FILE, "", hidden(),
            "CA of the RPC server, a path or PEM text; implies rpc_enable_tls";
        "rpc_max_call_recv_size", "rpc.max_recv_size", BYTES, "0", hidden() unused("only gRPC has such a limit"),
            "gRPC receive size cap";
        "rpc_max_call_send_size", "rpc.max_send_size", BYTES, "0", hidden() unused("only gRPC has such a limit"),
            "gRPC send size cap";
        "rpc_request_timeout", "rpc.request_timeout", MILLIS, "0",
            "Time limit of one RPC request in milliseconds; 0 = 3000";
        "rpc_command_timeout", "rpc.command_timeout", MILLIS, "3000", hidden(),
            "Time limit of one RPC call with all its retries in milliseconds; 0 = none";
        "rpc_slow_call", "rpc.slow_call", MILLIS, "1000",
            "Milliseconds beyond which an RPC call, its wait for a slot included, is logged as slow; 0 = never";
        "headers", "rpc.proxy_headers", HEADERS, "cookie",
            "Request headers that are passed on to the app, comma-separated";
        "proxy-cookies", "rpc.proxy_cookies", COOKIES, "",
            "Cookies kept in the forwarded Cookie header, comma-separated; empty = all";
        "rpc_impl", "rpc.implementation", RPC_IMPL, "", hidden(),
            "RPC implementation: http or none; empty = from the scheme of rpc_host";
        "http_rpc_secret", "rpc.secret", TEXT, "", sensitive(),
            "Token sent with RPC requests; none = send none even when secret is set";
        "http_rpc_timeout", "rpc.http_request_timeout", MILLIS, "0", hidden() deprecated(),
            "Deprecated name of rpc_request_timeout; wins over it when both are set";
    }
    Disconnector {
        "disconnect_mode", "app.disconnect_mode", DISCONNECT_MODE, "auto",
            "When to call disconnect over RPC: always, never, auto = only if RPC handled the session";
        "disconnect_rate", "disconnector.rate", RATE, "100", hidden(),
            "Disconnect calls per second, 1 to 1000";
        "disconnect_backlog_size", "disconnector.backlog", POSITIVE, "4096", hidden(),
            "Capacity of the disconnect queue";
        "disconnect_timeout", "disconnector.ShutdownTimeout", SECS, "0", hidden() deprecated(),
            "Deprecated, without effect";
        "disable_disconnect", "DisconnectorDisabled", BOOL, "false", hidden() deprecated(),
            "Deprecated form of disconnect_mode=never";
    }
    Log {
        "log_level", "logging.level", LOG_LEVEL, "info",
            "Log level: debug, info, warn or error";
        "log_format", "logging.format", LOG_FORMAT, "text",
            "Log format: text or json";
        "debug", "logging.debug", BOOL, "false",
            "Set log_level to debug and say so";
    }
    Metrics {
        "metrics_log", "metrics.log", BOOL, "false",
            "Periodically log all metrics at info level";
        "metrics_rotate_interval", "metrics.rotate_interval", SECS, "15",
            "Seconds between metrics log lines and StatsD flushes; 0 = 15";
        "metrics_log_interval", "metrics.LogInterval", SECS, "0", hidden() deprecated(),
            "Deprecated name of metrics_rotate_interval";
        "metrics_log_filter", "metrics.log_filter", WORDS, "",
            "Metrics to include in the metrics log, comma-separated names without anycable_go_; empty = all of these";
        "metrics_log_formatter", "metrics.LogFormatter", TEXT, "", hidden() refused("mruby is not built in"),
            "mruby script for the metrics log";
        "metrics_http", "metrics.http_path", OPTIONAL_PATH, "",
            "Path of the Prometheus endpoint; empty = no endpoint";
        "metrics_host", "metrics.host", TEXT, "",
            "Bind address of the metrics endpoint; empty = same as host";
        "metrics_port", "metrics.port", PORT, "0",
            "Port of the metrics endpoint; 0 = the main port";
        "metrics_tags", "metrics.tags", TAGS, "",
            "Constant labels of all metrics, as name:value,name:value";
        "stats_refresh_interval", "app.stats_refresh_interval", SECS, "5",
            "Seconds between refreshes of the polled gauges; 0 = never";
    }
    WebSockets {
        "read_buffer_size", "ws.read_buffer_size", BYTES, "1024", hidden() unused("connections have no buffers of their own"),
            "Read buffer of a connection in anycable-go";
        "write_buffer_size", "ws.write_buffer_size", BYTES, "1024", hidden() unused("connections have no buffers of their own"),
            "Write buffer of a connection in anycable-go";
        "max_message_size", "ws.max_message_size", BYTES, "65536", hidden(),
            "Largest accepted client message in bytes, before and after decompression; 0 = no limit";
        "session_bytes_max", "ws.session_bytes_max", BYTES, "16777216",
            "Bytes that the server holds for one client: unsent messages, subscriptions, state, unfinished messages; 0 = no limit";
        "ws_write_timeout", "ws.write_timeout", POSITIVE, "2",
            "Seconds without progress after which a blocked write ends the connection";
        "enable_ws_compression", "ws.enable_compression", BOOL, "false", hidden(),
            "Negotiate permessage-deflate";
    }
    Ping {
        "ping_interval", "app.ping_interval", SECS, "3",
            "Seconds between pings; 0 = none";
        "ping_timestamp_precision", "app.ping_timestamp_precision", PRECISION, "s", hidden(),
            "Unit of the ping timestamp: s, ms or ns";
        "pong_timeout", "app.pong_timeout", SECS, "0",
            "Seconds after which a client that does not answer pings is dropped; 0 = never";
        "enable_native_pings", "app.enable_native_ping", BOOL, "false",
            "Also send WebSocket PING frames at ping_interval";
    }
    Jwt {
        "jwt_id_key", "", TEXT, "", hidden() sensitive() deprecated(),
            "Deprecated name of jwt_secret";
        "jwt_secret", "jwt.secret", TEXT, "", sensitive(),
            "Key of JWT authentication; empty = the application secret, none = no JWT";
        "jwt_id_param", "", TEXT, "", hidden() deprecated(),
            "Deprecated, without effect";
        "jwt_param", "jwt.param", NAME, "jid",
            "Query parameter carrying the token; the header is x-<param>";
        "jwt_id_enforce", "", BOOL, "false", hidden() deprecated(),
            "Deprecated form of enforce_jwt";
        "enforce_jwt", "jwt.force", BOOL, "false",
            "Refuse connections without a token instead of asking the app";
    }
    SignedStreams {
        "streams_secret", "streams.secret", TEXT, "", sensitive(),
            "Key of signed stream names; empty = the application secret, none = none";
        "public_streams", "streams.public", BOOL, "false",
            "Allow subscribing to $pubsub streams by plain name";
        "streams_whisper", "streams.whisper", BOOL, "false",
            "Allow whispers on signed streams";
        "streams_presence", "streams.presence", BOOL, "true",
            "Allow presence on signed streams";
        "turbo_streams", "streams.turbo", BOOL, "false",
            "Serve Turbo::StreamsChannel in the server itself (needs a secret)";
        "cable_ready", "streams.cable_ready", BOOL, "false",
            "Serve CableReady::Stream in the server itself (needs a secret)";
        "turbo_rails_key", "", TEXT, "", hidden() sensitive() deprecated(),
            "Deprecated form of turbo_streams_secret with turbo_streams";
        "turbo_streams_secret", "streams.turbo_secret", TEXT, "", sensitive(),
            "Key of Turbo stream names; empty = streams_secret";
        "turbo_rails_cleartext", "", BOOL, "false", hidden() deprecated(),
            "Deprecated, without effect";
        "cable_ready_key", "", TEXT, "", hidden() sensitive() deprecated(),
            "Deprecated form of cable_ready_secret with cable_ready";
        "cable_ready_secret", "streams.cable_ready_secret", TEXT, "", sensitive(),
            "Key of CableReady stream names; empty = streams_secret";
        "cable_ready_cleartext", "", BOOL, "false", hidden() deprecated(),
            "Deprecated, without effect";
        "streams.pubsub_channel", "streams.pubsub_channel", TEXT, "$pubsub", only_in_file(),
            "Name of the signed and public streams channel; empty removes it";
    }
    Pusher {
        "pusher_app_id", "pusher.app_id", TEXT, "", refused("the Pusher protocol is not served"),
            "Pusher application id; Pusher mode is on when id and key are both set";
        "pusher_secret", "pusher.secret", TEXT, "", sensitive() unused("the Pusher protocol is not served"),
            "Pusher signing secret";
        "pusher_app_key", "pusher.app_key", TEXT, "", refused("the Pusher protocol is not served"),
            "Pusher application key (part of the WebSocket path)";
        "pusher_api_port", "pusher.api_port", PORT, "0", unused("the Pusher protocol is not served"),
            "Port of the Pusher REST API";
    }
    Statsd {
        "statsd_host", "metrics.statsd.host", TEXT, "",
            "StatsD UDP target, host:port; a value enables StatsD";
        "statsd_prefix", "metrics.statsd.prefix", TEXT, "anycable_go.",
            "Prefix of StatsD metric names";
        "statsd_max_packet_size", "metrics.statsd.max_packet_size", PACKET_BYTES, "1400", hidden(),
            "Largest StatsD datagram in bytes";
        "statsd_tags_format", "metrics.statsd.tags_format", TAG_STYLE, "datadog",
            "How StatsD lines carry metrics_tags: datadog, influxdb or graphite";
    }
    Sse {
        "sse", "sse.enabled", BOOL, "false",
            "Enable the SSE endpoint";
        "sse_path", "sse.path", PATH, "/events",
            "URL path of the SSE endpoint";
    }
    LongPolling {
        "poll", "poll.enabled", BOOL, "false",
            "Enable the long-polling endpoint";
        "poll_path", "poll.path", PATH, "/lp",
            "URL path of the long-polling endpoint";
        "poll_interval", "poll.interval", POSITIVE, "15",
            "Seconds after which a poll without messages gets an empty answer";
        "poll_flush_interval", "poll.flush_interval", MILLIS, "500",
            "Milliseconds for which messages are gathered before they answer a poll; 0 = none";
        "poll_max_request_size", "poll.max_request_size", REQUEST_BYTES, "65536", also_env("ANYCABLE_POLL_MAX_REQEUEST_SIZE"),
            "Largest request body in bytes";
        "poll_keepalive_timeout", "poll.keepalive_timeout", POSITIVE, "5",
            "Seconds after a poll within which the client must poll again, or its session ends";
    }
    DurableStreams {
        "ds", "ds.enabled", BOOL, "false",
            "Serve the history of streams to readers of the Durable Streams protocol; needs broker=memory";
        "ds_path", "ds.path", PATH, "/ds",
            "Base path of durable streams, the name of the stream follows";
        "ds_skip_auth", "ds.skip_auth", BOOL, "false",
            "Do not authenticate readers of durable streams, only check that they may read the stream";
        "ds_poll_interval", "ds.poll_interval", POSITIVE, "10",
            "Seconds for which a long poll of a durable stream waits for a message";
        "ds_sse_ttl", "ds.sse_ttl", POSITIVE, "60",
            "Seconds after which an answer with events of a durable stream ends, and its reader asks again";
    }
    Api {
        "api_port", "api.port", PORT, "0",
            "Port of the REST API; a value enables it, 0 = the main port";
        "api_path", "api.path", PATH, "/api",
            "Base path of the REST API";
        "api_secret", "api.secret", TEXT, "", sensitive(),
            "Token of the REST API; a value enables it; empty = derived from secret";
        "api.host", "api.host", TEXT, "", only_in_file(),
            "Bind address of the REST API; empty = same as host";
        "api.cors_headers", "api.cors_headers", BOOL, "false", only_in_file(),
            "Answer OPTIONS and add CORS headers when publishing through the REST API";
        "api.cors_hosts", "api.cors_hosts", HOSTS, "", only_in_file(),
            "Hosts for the CORS headers of the REST API, as in allowed_origins; empty = every origin";
    }
    Misc {
        "presets", "presets", WORDS, "", empty_is_unset(),
            "Named sets of defaults: fly, heroku, broker; none switches detection off";
    }
}
