//! Turns the merged settings into the [`Config`] the server runs with. Pure; `support` has checked all values before.
//!
//! Source: `contract/operations.md` §4.

use std::time::Duration;

use super::error::ConfigError;
use super::secrets::{self, Token};
use super::settings::Settings;
use super::support::{self, not_allowed};
use super::value::Value;
use super::{
    ApiConfig, AuthConfig, BroadcastConfig, BrokerAdapter, BrokerConfig, CheckRequest, Config,
    ConsoleConfig, DisconnectConfig, DisconnectMode, DriverChoice, DurableStreamsConfig,
    HistoryLimits, HttpBroadcastConfig, JwtConfig, LogConfig, LogFormat, LogLevel, MemoryBound,
    MetricsConfig, PingConfig, PingPrecision, PollConfig, RpcConfig, RpcEndpoint, RpcTlsConfig,
    RuntimeConfig, ServerConfig, ShutdownConfig, SseConfig, StatsdConfig, StatsdTagStyle,
    StreamsConfig, TlsFiles, WebSocketConfig, is_loopback_host,
};

/// Port of the HTTP broadcast endpoint when it has no secret.
const UNSECURED_BROADCAST_PORT: i64 = 8090;
const RPC_CONCURRENCY_DEFAULT: usize = 28;
/// Period of the metrics log and of StatsD when it is set to 0.
const ROTATE_INTERVAL_DEFAULT: Duration = Duration::from_secs(15);
/// Time limit of one HTTP RPC request when none is set.
const RPC_REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_millis(3000);

/// Sets the ports that were left open (0), so that `--print-config` shows them. A main port of 0 stays 0: other ports equal
/// to it, also 0, then mean the main listener.
pub fn derive_ports(settings: &mut Settings) {
    let main = settings.int("port");
    if settings.int("metrics_port") == 0 {
        settings.derive("metrics_port", Value::Int(main));
    }
    if settings.int("http_broadcast_port") == 0 {
        let port = if secrets::broadcast_is_secured(settings) {
            main
        } else {
            UNSECURED_BROADCAST_PORT
        };
        settings.derive("http_broadcast_port", Value::Int(port));
    }
}

/// What is known besides the settings.
pub struct Origin {
    /// The node id when no `node_id` is set.
    pub random_node_id: String,
    pub config_file: Option<String>,
    pub presets: Vec<String>,
    pub notices: Vec<String>,
    /// Log lines found earlier; the lines found here are put in front of them.
    pub warnings: Vec<String>,
}

/// Builds the configuration.
///
/// RPC settings that lead to no app are a problem: [`ConfigError::RpcHostMissing`], [`ConfigError::NotSupported`] for gRPC,
/// [`ConfigError::NotAllowed`] for a host that is no URL. The configuration then has no RPC.
pub fn config(settings: &Settings, origin: Origin, problems: &mut Vec<ConfigError>) -> Config {
    let node_id = match settings.text("node_id") {
        "" => origin.random_node_id,
        given => given.to_owned(),
    };
    let mut warnings = warnings(settings);
    warnings.extend(secrets::doubts(settings));
    warnings.extend(support::without_effect(settings));
    warnings.extend(support::without_broker(settings));
    warnings.extend(origin.warnings);
    Config {
        node_id,
        server: server(settings),
        runtime: runtime(settings),
        websocket: websocket(settings),
        ping: ping(settings),
        auth: auth(settings),
        rpc: rpc(settings, problems),
        disconnect: disconnect(settings),
        broadcast: broadcast(settings),
        broker: broker(settings),
        sse: sse(settings),
        api: api(settings),
        durable_streams: durable_streams(settings),
        poll: poll(settings),
        metrics: metrics(settings),
        log: log(settings),
        shutdown: shutdown(settings),
        demo: settings.on("demo"),
        console: console(settings),
        config_file: origin.config_file,
        presets: origin.presets,
        warnings,
        remarks: support::not_in_use(settings),
        notices: origin.notices,
    }
}

/// The input of `--check`. It needs no RPC settings, so an unknown app is no problem there.
pub fn check_request(settings: &Settings, connections: u64) -> CheckRequest {
    let runtime = runtime(settings);
    CheckRequest {
        connections,
        cores: runtime.cores,
        driver: runtime.driver,
        connections_max: count(settings, "max-conn"),
        rpc_concurrency: rpc_concurrency(settings),
        ping_interval: secs(settings, "ping_interval"),
        tls: !settings.text("ssl_cert").is_empty(),
    }
}

/// Lines for the log at WARN level; the first two are the reference's, in its order.
fn warnings(settings: &Settings) -> Vec<String> {
    let delay = settings.int("shutdown_delay");
    let has_no_jwt = secrets::jwt_secret(settings).is_none();
    let channel_without_secret = |switch: &str, secret: &str| {
        settings.on(switch) && secrets::channel_secret(settings, secret).is_none()
    };
    [
        (
            settings.on("public"),
            "Server is running in the public mode",
        ),
        (
            settings.int("rpc_concurrency") <= 0,
            "RPC concurrency must be positive, reverted to the default value",
        ),
        (
            !settings.on("rpc_tls_verify") && !rpc_tls_options_count(settings),
            "rpc_tls_verify=false has no effect without rpc_enable_tls or rpc_tls_root_ca",
        ),
        (
            delay > 0 && delay >= settings.int("shutdown_timeout"),
            "shutdown_delay uses up shutdown_timeout, half a second is kept for telling the clients",
        ),
        (
            settings.on("enforce_jwt") && has_no_jwt,
            "enforce_jwt has no effect without a JWT secret",
        ),
        (
            channel_without_secret("turbo_streams", "turbo_streams_secret"),
            "turbo_streams has no effect without a secret, Turbo::StreamsChannel goes to RPC",
        ),
        (
            channel_without_secret("cable_ready", "cable_ready_secret"),
            "cable_ready has no effect without a secret, CableReady::Stream goes to RPC",
        ),
        (
            !settings.list("api.cors_hosts").is_empty() && !settings.on("api.cors_headers"),
            "api.cors_hosts has no effect without api.cors_headers",
        ),
    ]
    .into_iter()
    .filter(|(applies, _)| *applies)
    .map(|(_, text)| text.to_owned())
    .collect()
}

fn server(settings: &Settings) -> ServerConfig {
    let (cert_path, key_path) = (settings.text("ssl_cert"), settings.text("ssl_key"));
    ServerConfig {
        host: settings.text("host").to_owned(),
        port: port(settings, "port"),
        paths: settings.list("path").to_vec(),
        health_path: settings.text("health-path").to_owned(),
        allowed_origins: lower_cased(settings.list("allowed_origins")),
        connections_max: count(settings, "max-conn"),
        head_bytes_max: count(settings, "max_head_size"),
        tls: (!cert_path.is_empty()).then(|| TlsFiles {
            cert_path: cert_path.to_owned(),
            key_path: key_path.to_owned(),
        }),
    }
}

fn runtime(settings: &Settings) -> RuntimeConfig {
    RuntimeConfig {
        cores: Some(count(settings, "cores")).filter(|&cores| cores > 0),
        driver: match settings.text("driver") {
            "io_uring" => DriverChoice::IoUring,
            "epoll" => DriverChoice::Epoll,
            _ => DriverChoice::Auto,
        },
        memory: memory_bound(settings, "memory_bytes_max"),
    }
}

fn memory_bound(settings: &Settings, name: &str) -> MemoryBound {
    match settings.int(name) {
        0 => MemoryBound::None,
        bytes => usize::try_from(bytes).map_or(MemoryBound::OfLimit, MemoryBound::Bytes),
    }
}

fn websocket(settings: &Settings) -> WebSocketConfig {
    WebSocketConfig {
        message_bytes_max: unsigned(settings, "max_message_size"),
        write_timeout: secs(settings, "ws_write_timeout"),
        pending_bytes_max: unsigned(settings, "ws_max_pending_size"),
        session_bytes_max: unsigned(settings, "session_bytes_max"),
        compression: settings.on("enable_ws_compression"),
    }
}

fn ping(settings: &Settings) -> PingConfig {
    PingConfig {
        interval: secs(settings, "ping_interval"),
        precision: match settings.text("ping_timestamp_precision") {
            "ms" => PingPrecision::Milliseconds,
            "ns" => PingPrecision::Nanoseconds,
            _ => PingPrecision::Seconds,
        },
        pong_timeout: secs(settings, "pong_timeout"),
        native: settings.on("enable_native_pings"),
    }
}

fn auth(settings: &Settings) -> AuthConfig {
    AuthConfig {
        jwt: secrets::jwt_secret(settings).map(|secret| JwtConfig {
            secret,
            param: settings.text("jwt_param").to_owned(),
            enforce: settings.on("enforce_jwt"),
        }),
        noauth: settings.on("noauth") || settings.on("public"),
        streams: streams(settings),
    }
}

fn streams(settings: &Settings) -> StreamsConfig {
    let channel = |switch: &str, name: &str| {
        if settings.on(switch) {
            secrets::channel_secret(settings, name)
        } else {
            None
        }
    };
    StreamsConfig {
        pubsub_channel: settings.text("streams.pubsub_channel").to_owned(),
        secret: secrets::streams_secret(settings),
        public: settings.on("public_streams") || settings.on("public"),
        whisper: settings.on("streams_whisper"),
        presence: settings.on("streams_presence"),
        turbo_secret: channel("turbo_streams", "turbo_streams_secret"),
        cable_ready_secret: channel("cable_ready", "cable_ready_secret"),
    }
}

fn rpc(settings: &Settings, problems: &mut Vec<ConfigError>) -> RpcConfig {
    let Token {
        text: token,
        derived: token_derived,
    } = secrets::rpc_token(settings);
    let root_ca = settings.text("rpc_tls_root_ca").to_owned();
    let has_tls_options = rpc_tls_options_count(settings);
    let request_timeout = millis(settings, "rpc_request_timeout");
    RpcConfig {
        endpoint: rpc_endpoint(settings).unwrap_or_else(|problem| {
            problems.push(problem);
            RpcEndpoint::None
        }),
        concurrency: rpc_concurrency(settings),
        request_timeout: if request_timeout.is_zero() {
            RPC_REQUEST_TIMEOUT_DEFAULT
        } else {
            request_timeout
        },
        command_timeout: millis(settings, "rpc_command_timeout"),
        slow_call: millis(settings, "rpc_slow_call"),
        headers: lower_cased(settings.list("headers")),
        cookies: settings.list("proxy-cookies").to_vec(),
        token,
        token_derived,
        tls: RpcTlsConfig {
            enabled: has_tls_options,
            verify: settings.on("rpc_tls_verify") || !has_tls_options,
            root_ca,
        },
    }
}

/// Whether the RPC TLS options apply. Without one of these two options, https certificates are checked as browsers do it,
/// and all other TLS options are ignored.
/// Source: `contract/options.tsv`.
fn rpc_tls_options_count(settings: &Settings) -> bool {
    settings.on("rpc_enable_tls") || !settings.text("rpc_tls_root_ca").is_empty()
}

fn rpc_concurrency(settings: &Settings) -> usize {
    usize::try_from(settings.int("rpc_concurrency"))
        .ok()
        .filter(|&calls| calls > 0)
        .unwrap_or(RPC_CONCURRENCY_DEFAULT)
}

/// `http` or `https` in lower case selects HTTP, anything else gRPC. Source: `contract/rpc.md` §1.
fn rpc_endpoint(settings: &Settings) -> Result<RpcEndpoint, ConfigError> {
    let implementation = settings.text("rpc_impl");
    if implementation == "none" {
        return Ok(RpcEndpoint::None);
    }
    if implementation == "grpc" {
        return Err(grpc_not_supported(settings, "rpc_impl"));
    }
    if !settings.is_given("rpc_host") {
        return if settings.on("demo") {
            // The port is known only after the built-in app listens.
            Ok(RpcEndpoint::Http("http://127.0.0.1:0/".to_owned()))
        } else if settings.on("noauth") || settings.on("public") {
            Ok(RpcEndpoint::None)
        } else {
            Err(ConfigError::RpcHostMissing)
        };
    }
    let host = settings.text("rpc_host");
    match host
        .strip_prefix("http://")
        .or_else(|| host.strip_prefix("https://"))
    {
        Some(rest)
            if rest.starts_with(['/', ':', '?'])
                || rest.is_empty()
                || rest.contains(char::is_whitespace) =>
        {
            Err(not_allowed(
                settings,
                "rpc_host",
                "a URL with a host, such as http://localhost:3000/_anycable".to_owned(),
            ))
        }
        Some(_) => Ok(RpcEndpoint::Http(host.to_owned())),
        None if implementation == "http" => Err(not_allowed(
            settings,
            "rpc_host",
            "a URL that starts with http:// or https://".to_owned(),
        )),
        None => Err(grpc_not_supported(settings, "rpc_host")),
    }
}

fn grpc_not_supported(settings: &Settings, name: &str) -> ConfigError {
    ConfigError::NotSupported {
        given: settings.as_given(name),
        why: "RPC over gRPC is planned".to_owned(),
        remedy: "set --rpc_host to the http:// or https:// URL of the app's /_anycable".to_owned(),
    }
}

fn disconnect(settings: &Settings) -> DisconnectConfig {
    DisconnectConfig {
        mode: match settings.text("disconnect_mode") {
            "always" => DisconnectMode::Always,
            "never" => DisconnectMode::Never,
            _ => DisconnectMode::Auto,
        },
        rate: u32::try_from(settings.int("disconnect_rate"))
            .expect("checked against the kind's range"),
        backlog: count(settings, "disconnect_backlog_size"),
    }
}

fn broadcast(settings: &Settings) -> BroadcastConfig {
    let Token {
        text: token,
        derived: token_derived,
    } = secrets::broadcast_token(settings);
    let has_http = settings
        .list("broadcast_adapter")
        .iter()
        .any(|adapter| adapter == "http");
    BroadcastConfig {
        http: has_http.then(|| HttpBroadcastConfig {
            port: port(settings, "http_broadcast_port"),
            path: settings.text("http_broadcast_path").to_owned(),
            token,
            token_derived,
            cors: settings.on("http_broadcast_cors"),
        }),
    }
}

fn broker(settings: &Settings) -> BrokerConfig {
    let history = HistoryLimits {
        messages: count(settings, "history_limit"),
        ttl: secs(settings, "history_ttl"),
    };
    let checked = |number: i64| u32::try_from(number).expect("checked with the table");
    let by_prefix = settings.stream_limits("broker.limits").iter().map(|entry| {
        let messages = entry.history_limit.map(|it| checked(it) as usize);
        let ttl = entry
            .history_ttl
            .map(|it| Duration::from_secs(checked(it).into()));
        let limits = HistoryLimits {
            messages: messages.unwrap_or(history.messages),
            ttl: ttl.unwrap_or(history.ttl),
        };
        (entry.prefix.clone(), limits)
    });
    BrokerConfig {
        adapter: match settings.text("broker") {
            "memory" => BrokerAdapter::Memory,
            _ => BrokerAdapter::None,
        },
        history,
        history_by_prefix: by_prefix.collect(),
        sessions_ttl: secs(settings, "sessions_ttl"),
        presence_ttl: secs(settings, "presence_ttl"),
        memory: memory_bound(settings, "broker_bytes_max"),
    }
}

/// The REST API is on in open mode, and when it has a port or a secret; the application's secret counts too.
fn sse(settings: &Settings) -> Option<SseConfig> {
    settings.on("sse").then(|| SseConfig {
        path: settings.text("sse_path").to_owned(),
    })
}

fn api(settings: &Settings) -> Option<ApiConfig> {
    let own_port = port(settings, "api_port");
    let Token {
        text: token,
        derived: token_derived,
    } = secrets::api_token(settings);
    (settings.on("public") || own_port != 0 || token.is_some()).then(|| ApiConfig {
        host: own_host(settings, "api.host"),
        port: if own_port == 0 {
            port(settings, "port")
        } else {
            own_port
        },
        path: settings.text("api_path").to_owned(),
        token,
        token_derived,
        cors: settings.on("api.cors_headers"),
        cors_hosts: lower_cased(settings.list("api.cors_hosts")),
    })
}

fn durable_streams(settings: &Settings) -> Option<DurableStreamsConfig> {
    let path = settings.text("ds_path").trim_end_matches('/');
    settings.on("ds").then(|| DurableStreamsConfig {
        path: path.to_owned(),
        skips_authentication: settings.on("ds_skip_auth"),
        poll_interval: secs(settings, "ds_poll_interval"),
        events_ttl: secs(settings, "ds_sse_ttl"),
    })
}

fn poll(settings: &Settings) -> Option<PollConfig> {
    settings.on("poll").then(|| PollConfig {
        path: settings.text("poll_path").to_owned(),
        interval: secs(settings, "poll_interval"),
        flush_interval: millis(settings, "poll_flush_interval"),
        request_bytes_max: count(settings, "poll_max_request_size"),
        keepalive_timeout: secs(settings, "poll_keepalive_timeout"),
    })
}

fn metrics(settings: &Settings) -> MetricsConfig {
    let rotate_interval = secs(settings, "metrics_rotate_interval");
    MetricsConfig {
        http_path: Some(settings.text("metrics_http").to_owned()).filter(|path| !path.is_empty()),
        host: own_host(settings, "metrics_host"),
        port: port(settings, "metrics_port"),
        tags: settings.tags("metrics_tags").to_vec(),
        stats_refresh_interval: secs(settings, "stats_refresh_interval"),
        rotate_interval: if rotate_interval.is_zero() {
            ROTATE_INTERVAL_DEFAULT
        } else {
            rotate_interval
        },
        log: settings.on("metrics_log"),
        log_filter: settings.list("metrics_log_filter").to_vec(),
        statsd: statsd(settings),
    }
}

/// The bind address of a feature that may have one of its own.
fn own_host(settings: &Settings, name: &str) -> String {
    match settings.text(name) {
        "" => settings.text("host").to_owned(),
        own => own.to_owned(),
    }
}

fn statsd(settings: &Settings) -> Option<StatsdConfig> {
    let target = settings.text("statsd_host");
    (!target.is_empty()).then(|| StatsdConfig {
        target: target.to_owned(),
        prefix: settings.text("statsd_prefix").to_owned(),
        packet_bytes_max: count(settings, "statsd_max_packet_size"),
        tag_style: match settings.text("statsd_tags_format") {
            "influxdb" => StatsdTagStyle::Influxdb,
            "graphite" => StatsdTagStyle::Graphite,
            _ => StatsdTagStyle::Datadog,
        },
    })
}

fn console(settings: &Settings) -> Option<ConsoleConfig> {
    settings.on("console").then(|| ConsoleConfig {
        secret: secrets::application_secret(settings).map(str::to_owned),
        bound_to_loopback: is_loopback_host(settings.text("host")),
    })
}

fn log(settings: &Settings) -> LogConfig {
    LogConfig {
        level: match settings.text("log_level") {
            "debug" => LogLevel::Debug,
            "warn" => LogLevel::Warn,
            "error" => LogLevel::Error,
            _ => LogLevel::Info,
        },
        format: if settings.text("log_format") == "json" {
            LogFormat::Json
        } else {
            LogFormat::Text
        },
        debug: settings.on("debug"),
    }
}

fn shutdown(settings: &Settings) -> ShutdownConfig {
    ShutdownConfig {
        timeout: secs(settings, "shutdown_timeout"),
        delay: secs(settings, "shutdown_delay"),
        healthy: settings.on("shutdown_healthy"),
        slow_drain: slow_drain(settings),
        slow_drain_gap_max: millis(settings, "shutdown_slowdrain_max_interval"),
        pool_size: count(settings, "shutdown_pool_size"),
    }
}

/// A number of seconds is used as it is, because `support` has checked that it fits. The plain switch leaves a sixth of the
/// time, at least a second, for the steps after the clients are told.
fn slow_drain(settings: &Settings) -> Duration {
    if !settings.on("shutdown_slowdrain") {
        return secs(settings, "shutdown_slowdrain");
    }
    let timeout = secs(settings, "shutdown_timeout");
    let left = timeout.saturating_sub(secs(settings, "shutdown_delay"));
    left.saturating_sub((left / 6).max(Duration::from_secs(1)))
}

fn lower_cased(items: &[String]) -> Vec<String> {
    items.iter().map(|item| item.to_lowercase()).collect()
}

fn unsigned(settings: &Settings, name: &str) -> u64 {
    u64::try_from(settings.int(name)).expect("checked against the kind's range")
}

fn count(settings: &Settings, name: &str) -> usize {
    usize::try_from(settings.int(name)).expect("checked against the kind's range")
}

fn port(settings: &Settings, name: &str) -> u16 {
    u16::try_from(settings.int(name)).expect("checked against the kind's range")
}

fn secs(settings: &Settings, name: &str) -> Duration {
    Duration::from_secs(unsigned(settings, name))
}

fn millis(settings: &Settings, name: &str) -> Duration {
    Duration::from_millis(unsigned(settings, name))
}
