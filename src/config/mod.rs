//! The resolved configuration: what the server runs with after defaults, file, environment, flags and derivations.
//!
//! Nothing outside this folder reads a flag, a variable or a file. Values here are final: secrets are derived, ports are
//! decided, lists are split. Source: `contract/operations.md` §1–§6 and `contract/options.tsv`.

mod deprecated;
mod environment;
mod error;
mod file;
mod flags;
mod generate;
mod help;
mod options;
mod presets;
mod print;
mod resolve;
mod secrets;
mod settings;
mod stream_limits;
mod suggest;
mod support;
mod value;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

pub use crate::auth::channels::StreamsConfig;
pub use error::{ConfigError, stderr_line};
pub use stream_limits::PREFIXES_MAX;

use crate::os::random;
use flags::Flags;
use settings::Settings;
use value::Value;

/// What the command line asks for.
#[derive(Debug)]
pub enum Startup {
    /// Start the server.
    Run(Box<Config>),
    /// `--check`: report what would stop this host from holding the connections, and exit.
    Check(CheckRequest),
    /// `--check-config`: report the problems that a start with this configuration would find before it listens, and exit.
    CheckConfig(Box<Config>, Vec<ConfigError>),
    /// Help, version, `--generate` or `--print-config`: this text goes to stdout as it is, and the process exits with 0.
    Print(String),
}

/// Resolves arguments (without the program's name), environment and file. Reading the file is the only I/O.
///
/// Precedence: flag, environment, file, default; presets come last and replace only what equals the default.
///
/// # Errors
/// The first [`ConfigError`]: one line for stderr; see [`ConfigError::usage`] for what stdout gets first. With
/// `--check-config` all of them are in [`Startup::CheckConfig`] instead; options that could not be used have their default.
///
/// Source: `contract/operations.md` §1–§6.
pub fn load(args: &[String], env: &[(String, String)]) -> Result<Startup, ConfigError> {
    let mut problems = Vec::new();
    let flags = Flags::parse(args, &mut problems);
    let checks_config = flags.on("check-config");
    if !checks_config {
        none_of(&mut problems)?;
    }
    if let Some(text) = asked_for(&flags)? {
        return Ok(Startup::Print(text));
    }
    let config_file = file::locate(&flags);
    let prints_config = flags.on("print-config");
    let connections = connections_to_check(&flags)?;
    let mut settings = Settings::defaults();
    let mut unknown_names = fill(
        &mut settings,
        config_file.as_deref(),
        env,
        flags,
        &mut problems,
    );
    let notices = deprecated::normalize(&mut settings);
    if prints_config {
        none_of(&mut problems)?;
        return Ok(Startup::Print(printed(&mut settings, &notices)));
    }
    let presets = presets::apply(&mut settings, env).unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    unknown_names.extend(presets::unknown(&presets));
    support::check(&mut settings, &mut problems);
    if let Some(connections) = connections {
        none_of(&mut problems)?;
        return Ok(Startup::Check(resolve::check_request(
            &settings,
            connections,
        )));
    }
    if settings.on("demo") {
        demo(&mut settings)?;
    }
    resolve::derive_ports(&mut settings);
    let origin = resolve::Origin {
        random_node_id: random_text(NODE_ID_CHARS)?,
        config_file,
        presets,
        notices,
        warnings: unknown_names,
    };
    let config = Box::new(resolve::config(&settings, origin, &mut problems));
    if checks_config {
        return Ok(Startup::CheckConfig(config, problems));
    }
    none_of(&mut problems)?;
    Ok(Startup::Run(config))
}

/// What the demo needs and nobody has set.
fn demo(settings: &mut Settings) -> Result<(), ConfigError> {
    if settings.text("secret").is_empty() {
        settings.derive("secret", Value::Text(random_text(SECRET_CHARS)?));
    }
    // Its page shows what a broker is for.
    presets::broker(settings);
    Ok(())
}

/// The text for options that print something and need no configuration.
fn asked_for(flags: &Flags) -> Result<Option<String>, ConfigError> {
    if flags.on("help") {
        return Ok(Some(help()));
    }
    if flags.on("version") {
        return Ok(Some(format!("{}\n", env!("CARGO_PKG_VERSION"))));
    }
    let word = flags.last("generate").filter(|word| !word.is_empty());
    word.map(generated).transpose()
}

/// Applies the file, the environment and the flags, in this order, so that the later one wins. Returns warnings about
/// unknown names.
fn fill(
    settings: &mut Settings,
    config_file: Option<&str>,
    env: &[(String, String)],
    flags: Flags,
    problems: &mut Vec<ConfigError>,
) -> Vec<String> {
    let mut unknown_names = Vec::new();
    if let Some(path) = config_file {
        unknown_names.extend(file::apply(path, settings, problems));
    }
    unknown_names.extend(environment::likely_typos(env));
    environment::apply(env, settings, problems);
    flags.apply(settings);
    unknown_names
}

/// Returns the first problem as the error, because a start ends with it.
fn none_of(problems: &mut Vec<ConfigError>) -> Result<(), ConfigError> {
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems.swap_remove(0)),
    }
}

/// True for `localhost` and the loopback addresses; an IPv6 address has no brackets here.
pub fn is_loopback_host(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The text of `--help`.
pub fn help() -> String {
    help::text()
}

const NODE_ID_CHARS: usize = 6;
/// Length of a generated application secret: 190 bits.
const SECRET_CHARS: usize = 32;

/// Largest number of connections that `--check` accepts.
const CHECKED_MAX: i64 = 100_000_000;

fn connections_to_check(flags: &Flags) -> Result<Option<u64>, ConfigError> {
    let Some(Value::Int(count)) = flags.last("check") else {
        return Ok(None);
    };
    u64::try_from(*count)
        .ok()
        .filter(|_| (1..=CHECKED_MAX).contains(count))
        .map(Some)
        .ok_or_else(|| ConfigError::NotAllowed {
            given: format!("--check={count}"),
            expected: format!("a number of connections from 1 to {CHECKED_MAX}"),
        })
}

fn generated(word: &Value) -> Result<String, ConfigError> {
    let word = word.to_string();
    generate::text(&word).ok_or_else(|| ConfigError::NotAllowed {
        given: format!("--generate={word}"),
        expected: format!("one of {}", generate::WORDS.join(", ")),
    })
}

fn printed(settings: &mut Settings, notices: &[String]) -> String {
    resolve::derive_ports(settings);
    let mut text: String = notices.iter().map(|notice| format!("{notice}\n")).collect();
    text.push_str(&print::text(settings));
    text
}

/// Letters and digits from the kernel's random source.
fn random_text(chars: usize) -> Result<String, ConfigError> {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut bytes = vec![0; chars];
    random::fill(&mut bytes).map_err(ConfigError::Random)?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]))
        .collect())
}

/// The input of `--check` besides the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckRequest {
    pub connections: u64,
    /// As in [`RuntimeConfig::cores`].
    pub cores: Option<usize>,
    pub driver: DriverChoice,
    /// As in [`ServerConfig::connections_max`].
    pub connections_max: usize,
    pub rpc_concurrency: usize,
    /// Zero = no pings.
    pub ping_interval: Duration,
    /// Clients connect with TLS.
    pub tls: bool,
}

/// Everything the server needs to know, shared read-only by all shards.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub node_id: String,
    pub server: ServerConfig,
    pub runtime: RuntimeConfig,
    pub websocket: WebSocketConfig,
    pub ping: PingConfig,
    pub auth: AuthConfig,
    pub rpc: RpcConfig,
    pub disconnect: DisconnectConfig,
    pub broadcast: BroadcastConfig,
    pub broker: BrokerConfig,
    /// Server-sent events; `None` = not served.
    pub sse: Option<SseConfig>,
    pub api: Option<ApiConfig>,
    /// `--ds`: durable streams are read on the main listener.
    pub durable_streams: Option<DurableStreamsConfig>,
    /// `--poll`: long polling on the main listener.
    pub poll: Option<PollConfig>,
    pub metrics: MetricsConfig,
    pub log: LogConfig,
    pub shutdown: ShutdownConfig,
    /// `--demo`: start the built-in app on loopback and point RPC at it.
    pub demo: bool,
    /// `--console`: serve the operator's page.
    pub console: Option<ConsoleConfig>,
    /// The file that was read, for the start-up line.
    pub config_file: Option<String>,
    /// Names of the presets that were applied, for the start-up line.
    pub presets: Vec<String>,
    /// Lines for the log at WARN level, found while resolving (for example a non-positive `rpc_concurrency`).
    pub warnings: Vec<String>,
    /// The same at INFO level: options that may be meant for another program.
    pub remarks: Vec<String>,
    /// Deprecation notices, printed as they are on stdout before the log, even when the log is JSON.
    pub notices: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// Bind address as configured (`localhost`, empty = every interface).
    pub host: String,
    /// 0 = the kernel chooses.
    pub port: u16,
    /// WebSocket paths, never empty, each starts with `/`.
    pub paths: Vec<String>,
    pub health_path: String,
    /// Lower-cased, trimmed, empty entries removed; empty list = no check.
    pub allowed_origins: Vec<String>,
    /// Accepted sockets per listener, 0 = unlimited.
    pub connections_max: usize,
    /// Largest request head, `--max_head_size`.
    pub head_bytes_max: usize,
    /// Certificate and key, when TLS is on; it is then on for every listener.
    pub tls: Option<TlsFiles>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TlsFiles {
    pub cert_path: String,
    pub key_path: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeConfig {
    /// `--cores`: number of shards; `None` = the CPUs allowed by affinity and cgroup quota.
    pub cores: Option<usize>,
    pub driver: DriverChoice,
    /// `--memory_bytes_max`
    pub memory: MemoryBound,
}

/// How much may be held: `--memory_bytes_max` for clients and requests, `--broker_bytes_max` by the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBound {
    /// A share of the memory limit of this process.
    OfLimit,
    None,
    Bytes(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverChoice {
    Auto,
    IoUring,
    Epoll,
}

#[derive(Debug, Clone, PartialEq)]
pub struct WebSocketConfig {
    /// Payload bytes of one incoming message, summed over fragments; 0 = no limit.
    pub message_bytes_max: u64,
    /// Deadline of a blocked write.
    pub write_timeout: Duration,
    /// A client with more unsent bytes than this is slow and is dropped; 0 = no limit.
    pub pending_bytes_max: u64,
    /// Most bytes that the server holds for one client; 0 = no limit.
    pub session_bytes_max: u64,
    /// `--enable_ws_compression`.
    pub compression: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PingConfig {
    /// Zero = no pings.
    pub interval: Duration,
    pub precision: PingPrecision,
    /// Zero = pongs are not required.
    pub pong_timeout: Duration,
    pub native: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PingPrecision {
    Seconds,
    Milliseconds,
    Nanoseconds,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct AuthConfig {
    pub jwt: Option<JwtConfig>,
    /// `--noauth` or `--public`.
    pub noauth: bool,
    pub streams: StreamsConfig,
}

#[derive(Debug, Clone, PartialEq)]
pub struct JwtConfig {
    pub secret: String,
    /// Query parameter; the header is `x-<param>`.
    pub param: String,
    pub enforce: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RpcConfig {
    pub endpoint: RpcEndpoint,
    /// Calls in flight over all shards, at least 1.
    pub concurrency: usize,
    /// Time limit of one HTTP request; zero = none.
    pub request_timeout: Duration,
    /// Time limit of one call with all its retries; zero = none.
    pub command_timeout: Duration,
    /// A call that takes longer is logged, and the wait for its slot counts; zero = no call is logged.
    pub slow_call: Duration,
    /// Lower-cased names of the request headers that are copied into the RPC env, trimmed.
    pub headers: Vec<String>,
    /// Names of the cookies kept in the forwarded header; empty = all.
    pub cookies: Vec<String>,
    /// The `Bearer` token, already derived.
    pub token: Option<String>,
    /// True when `token` was derived from the application secret (start-up line).
    pub token_derived: bool,
    pub tls: RpcTlsConfig,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RpcEndpoint {
    /// Base URL, `http://` or `https://`.
    Http(String),
    /// `--norpc` or `--rpc_impl=none`.
    None,
}

#[derive(Debug, Clone, PartialEq)]
pub struct RpcTlsConfig {
    pub enabled: bool,
    pub verify: bool,
    /// Path or PEM text; empty = system roots.
    pub root_ca: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct DisconnectConfig {
    pub mode: DisconnectMode,
    /// Calls per second, 1 to 1000.
    pub rate: u32,
    /// Capacity of the disconnect queue.
    pub backlog: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisconnectMode {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, PartialEq)]
pub struct BroadcastConfig {
    /// `None` when the adapter list has no `http`.
    pub http: Option<HttpBroadcastConfig>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpBroadcastConfig {
    /// The main port here means a route of the main listener.
    pub port: u16,
    pub path: String,
    /// `None` = no authorization.
    pub token: Option<String>,
    pub token_derived: bool,
    pub cors: bool,
}

/// What is kept for clients that come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    pub adapter: BrokerAdapter,
    /// Of the streams without a prefix of their own.
    pub history: HistoryLimits,
    /// Of the streams whose names begin with a prefix; the longest one counts. None is empty, none is here twice, and there
    /// are at most [`PREFIXES_MAX`].
    pub history_by_prefix: Vec<(String, HistoryLimits)>,
    /// How long a session can be restored after its end; zero = never.
    pub sessions_ttl: Duration,
    /// How long a client is present after its end.
    pub presence_ttl: Duration,
    /// How much all of this may take.
    pub memory: MemoryBound,
}

impl BrokerConfig {
    /// Whether a session can be restored.
    pub fn keeps_sessions(&self) -> bool {
        self.adapter != BrokerAdapter::None && !self.sessions_ttl.is_zero()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerAdapter {
    /// Nothing is kept.
    None,
    /// In the memory of this process.
    Memory,
}

/// What a stream keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// 0 = no message is kept, but messages have positions.
    pub messages: usize,
    /// Age at which a message is dropped.
    pub ttl: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SseConfig {
    pub path: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ApiConfig {
    /// Bind address; equal to `server.host` unless set.
    pub host: String,
    /// The main port here means a route of the main listener, if the host is the same.
    pub port: u16,
    pub path: String,
    pub token: Option<String>,
    pub token_derived: bool,
    /// `api.cors_headers`.
    pub cors: bool,
    /// `api.cors_hosts`, as [`ServerConfig::allowed_origins`]; empty = every origin.
    pub cors_hosts: Vec<String>,
}

/// The readers of durable streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurableStreamsConfig {
    /// Without a slash at the end.
    pub path: String,
    /// Their clients are not authenticated. Whether one may read a stream is checked in any case.
    pub skips_authentication: bool,
    /// How long a long poll waits for a message.
    pub poll_interval: Duration,
    /// How long an answer with events lasts.
    pub events_ttl: Duration,
}

/// Long polling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PollConfig {
    pub path: String,
    /// A poll without messages gets an empty answer after this time; never zero.
    pub interval: Duration,
    /// Messages are gathered for this long before they answer a poll.
    pub flush_interval: Duration,
    /// Body of one request.
    pub request_bytes_max: usize,
    /// A session without a poll ends after this time; never zero.
    pub keepalive_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct MetricsConfig {
    /// `None` = no Prometheus endpoint.
    pub http_path: Option<String>,
    /// Bind address; equal to `server.host` unless set.
    pub host: String,
    pub port: u16,
    /// Constant labels.
    pub tags: Vec<(String, String)>,
    /// Zero = the polled gauges stay 0.
    pub stats_refresh_interval: Duration,
    /// Period of the metrics log and of StatsD; never zero.
    pub rotate_interval: Duration,
    /// `--metrics_log`.
    pub log: bool,
    /// The metrics that the log shows; empty = those of the reference.
    pub log_filter: Vec<String>,
    /// `None` = no StatsD.
    pub statsd: Option<StatsdConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatsdConfig {
    /// `host:port`.
    pub target: String,
    pub prefix: String,
    pub packet_bytes_max: usize,
    pub tag_style: StatsdTagStyle,
}

/// How StatsD lines carry tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsdTagStyle {
    /// `name:1|c|#env:dev,rev:1.1`
    Datadog,
    /// `name,env=dev,rev=1.1:1|c`
    Influxdb,
    /// `name;env=dev;rev=1.1:1|c`
    Graphite,
}

impl StatsdTagStyle {
    /// The word of `--statsd_tags_format`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Datadog => "datadog",
            Self::Influxdb => "influxdb",
            Self::Graphite => "graphite",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ConsoleConfig {
    /// The application secret, from which the console's token is derived; `None` = no login is possible.
    pub secret: Option<String>,
    /// The main listener is bound to loopback, so clients from outside reach it only through a proxy.
    pub bound_to_loopback: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    pub level: LogLevel,
    pub format: LogFormat,
    /// `--debug`: prints the banner.
    pub debug: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ShutdownConfig {
    /// Time of the whole drain, delay included.
    pub timeout: Duration,
    pub delay: Duration,
    /// Keep the health endpoint at 200 until the listeners close.
    pub healthy: bool,
    /// Time over which the clients are told, within `timeout` and after `delay`; zero = at once.
    pub slow_drain: Duration,
    /// Longest pause between two clients of a slow drain.
    pub slow_drain_gap_max: Duration,
    /// Disconnect calls made in parallel during shutdown.
    pub pool_size: usize,
}
