//! The lines that the server logs while it starts. Their texts are the reference's where it has them: operators and their
//! scripts look for these. Source: contract/operations.md §7, contract/campfire.md §11.2.

use std::process;
use std::time::Duration;

use crate::config::{BrokerAdapter, BrokerConfig, Config, MetricsConfig, RpcEndpoint};
use crate::console;
use crate::demo::{self, DemoApp};
use crate::driver::Choice;
use crate::endpoints::Page;
use crate::log::in_words;
use crate::os;
use crate::os::limits::{HOW_TO_RAISE, OpenFiles};
use crate::os::port_owner::PortOwner;
use crate::rpc::without_secrets;
use crate::shard::http::collisions;
use crate::shard::http::listener::Features;

/// A URL as the log shows it, with the host as configured.
pub fn url(tls: bool, host: &str, port: u16, path: &str) -> String {
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{host}:{port}{path}")
}

/// The name of a listener in messages: that of its first feature.
pub fn listener_name(features: Features) -> &'static str {
    match features {
        Features { main: true, .. } => "WebSocket",
        Features {
            broadcast: true, ..
        } => "broadcasting HTTP",
        Features { api: true, .. } => "API HTTP",
        _ => "metrics HTTP",
    }
}

/// The option that moves a listener to another port.
pub fn port_option(features: Features) -> &'static str {
    match features {
        Features { main: true, .. } => "--port",
        Features {
            broadcast: true, ..
        } => "--http_broadcast_port",
        Features { api: true, .. } => "--api_port",
        _ => "--metrics_port",
    }
}

/// The text after "address already in use": which process has the port, if that is known, and what to do.
pub fn port_taken(port: u16, option: &str, owner: Option<&PortOwner>) -> String {
    match owner {
        Some(PortOwner { pid, program }) => format!(
            "; port {port} belongs to {program} (pid {pid}): stop it, or choose another port with {option}"
        ),
        None => format!(
            "; another process listens on port {port} (sudo ss -ltnp 'sport = :{port}' says which): stop it, or choose \
             another port with {option}"
        ),
    }
}

/// The pages that the main listener serves: those of the demo, when it is on.
pub fn pages(config: &Config) -> Vec<Page> {
    let files: &[demo::File] = if config.demo { &demo::FILES } else { &[] };
    let page = |file: &demo::File| Page {
        path: file.path,
        content_type: file.content_type,
        body: file.body,
    };
    files.iter().map(page).collect()
}

/// The first lines: who starts, and with which configuration file.
pub fn banner(config: &Config, open_files: u64, shards: usize) {
    if !config.presets.is_empty() {
        tracing::info!(
            context = "config",
            presets = config.presets.join(","),
            "load presets"
        );
    }
    if config.log.debug {
        tracing::debug!("🔧 🔧 🔧 Debug mode is on 🔧 🔧 🔧");
    }
    tracing::info!(
        "Starting AnyCable {} (pid: {}, open file limit: {open_files}, gomaxprocs: {shards})",
        crate::COMPATIBLE_VERSION,
        process::id(),
    );
    if let Some(file) = &config.config_file {
        tracing::info!("Using configuration from file: {file}");
    }
    for remark in collisions::shared_patterns(config, &pages(config)) {
        tracing::info!("{remark}");
    }
    for remark in &config.remarks {
        tracing::info!("{remark}");
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(warning) = too_many_shards(shards, os::cpu::default_cores()) {
        tracing::warn!("{warning}");
    }
}

/// A warning when `--cores` is larger than the number of CPUs.
fn too_many_shards(shards: usize, cpus: usize) -> Option<String> {
    (shards > cpus).then(|| {
        format!(
            "cores={shards}, but there are {cpus} CPUs for this process: more than one shard for each makes nothing faster and \
             costs memory; leave cores out to get one for each"
        )
    })
}

/// The log warns when the server cannot hold at least this many connections.
const CONNECTIONS_EXPECTED: u64 = 1000;

/// Logs the rate of Disconnect calls at debug level, as the reference does.
fn disconnects(config: &Config) {
    let pace = Duration::from_secs(1) / config.disconnect.rate.max(1);
    tracing::debug!(context = "disconnector", rate = %in_words(pace), "calls rate");
}

/// Logs what is served on which listener, and how.
pub fn configuration(config: &Config, choice: &Choice, open_files: OpenFiles) {
    let connections = open_files.clients();
    tracing::info!(
        "ringcable {}: driver {} ({}), up to {connections} connections by the limit on open files",
        env!("CARGO_PKG_VERSION"),
        choice.driver.as_str(),
        choice.reason,
    );
    if let Some(warning) = too_few_files(open_files, config.server.connections_max as u64) {
        tracing::warn!("{warning}");
    }
    authentication(config);
    tracing::info!("{}", broker(&config.broker));
    disconnects(config);
    broadcasting(config);
    rpc(config);
    endpoints(config);
}

/// The reference also shows its epoch; here each stream has an epoch of its own.
fn broker(config: &BrokerConfig) -> String {
    match config.adapter {
        BrokerAdapter::None => "Using no-op (legacy) broker".to_owned(),
        BrokerAdapter::Memory => format!(
            "Using in-memory broker (history limit: {}, history ttl: {}s, sessions ttl: {}s, presence ttl: {}s)",
            config.history.messages,
            config.history.ttl.as_secs(),
            config.sessions_ttl.as_secs(),
            config.presence_ttl.as_secs(),
        ),
    }
}

/// A warning when the limit on open files is lower than `connections_max` needs (`--max-conn`, 0 = no limit).
fn too_few_files(open_files: OpenFiles, connections_max: u64) -> Option<String> {
    let connections = open_files.clients();
    let wanted = match connections_max {
        0 => CONNECTIONS_EXPECTED,
        max => max,
    };
    if connections >= wanted {
        return None;
    }
    let needed = wanted.saturating_add(open_files.reserved);
    let asked_for = match connections_max {
        0 => format!("{wanted} need {needed}"),
        max => format!("--max-conn={max} needs {needed}"),
    };
    Some(format!(
        "the limit on open files ({}) allows {connections} connections, {asked_for}: {HOW_TO_RAISE}",
        open_files.max
    ))
}

fn authentication(config: &Config) {
    let auth = &config.auth;
    if let Some(jwt) = &auth.jwt {
        tracing::info!(
            "JWT authentication is enabled (param: {}, enforced: {})",
            jwt.param,
            jwt.enforce
        );
    }
    if auth.noauth {
        tracing::info!("connection authentication is disabled");
    }
    let streams = &auth.streams;
    let channels = [
        (
            !streams.pubsub_channel.is_empty(),
            streams.pubsub_channel.as_str(),
        ),
        (streams.turbo_secret.is_some(), "Turbo::StreamsChannel"),
        (streams.cable_ready_secret.is_some(), "CableReady::Stream"),
    ];
    let names: Vec<&str> = channels
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| *name)
        .collect();
    if !names.is_empty() {
        tracing::info!("Using channels router: {}", names.join(", "));
    }
}

const TOKEN_DERIVED: &str = "auto-generated authorization secret from the application secret";

fn broadcasting(config: &Config) {
    let Some(http) = &config.broadcast.http else {
        return;
    };
    if http.token_derived {
        tracing::info!(context = "broadcast", provider = "http", "{TOKEN_DERIVED}");
    }
    tracing::info!(
        context = "broadcast",
        provider = "http",
        "Accept broadcast requests at {} ({}{})",
        url(
            config.server.tls.is_some(),
            &config.server.host,
            http.port,
            &http.path
        ),
        authorization(http.token.as_ref()),
        cors(http.cors),
    );
}

fn cors(on: bool) -> &'static str {
    if on { ", CORS enabled" } else { "" }
}

fn rpc(config: &Config) {
    let rpc = &config.rpc;
    let RpcEndpoint::Http(base) = &rpc.endpoint else {
        tracing::info!(context = "rpc", r#impl = "null", "no RPC configured");
        return;
    };
    if rpc.token_derived {
        tracing::info!(context = "rpc", "{TOKEN_DERIVED}");
    }
    let cookies = if rpc.cookies.is_empty() {
        "<all>".to_string()
    } else {
        rpc.cookies.join(",")
    };
    tracing::info!(
        context = "rpc",
        "RPC controller initialized: {} (concurrency: {}, impl: http, enable_tls: {}, proto_versions: v1, \
         proxy_headers: {}, proxy_cookies: {cookies})",
        without_secrets(base),
        rpc.concurrency,
        rpc.tls.enabled,
        rpc.headers.join(","),
    );
}

fn endpoints(config: &Config) {
    let server = &config.server;
    let tls = server.tls.is_some();
    let main = |path: &str| url(tls, &server.host, server.port, path);
    for path in &server.paths {
        tracing::info!("Handle WebSocket connections at {}", main(path));
    }
    tracing::info!("Handle health requests at {}", main(&server.health_path));
    if let Some(sse) = &config.sse {
        tracing::info!("Handle SSE requests at {}", main(&sse.path));
    }
    if let Some(poll) = &config.poll {
        tracing::info!("Handle long-polling requests at {}", main(&poll.path));
    }
    if let Some(durable_streams) = &config.durable_streams {
        let at = main(&durable_streams.path);
        tracing::info!("Handle Durable Streams requests at {at}");
    }
    if let Some(console) = &config.console {
        let login = if console.bound_to_loopback {
            "no login from this machine"
        } else {
            "login required"
        };
        tracing::info!(
            context = "console",
            "Serve the console at {} ({login})",
            main(console::PATH)
        );
    }
    if let Some(api) = &config.api {
        if api.token.is_none() {
            tracing::info!("API server is running without authentication");
        }
        tracing::info!(
            context = "api",
            "Handle API requests at {} ({}{})",
            url(tls, &api.host, api.port, &api.path),
            authorization(api.token.as_ref()),
            cors(api.cors),
        );
    }
    if let Some(path) = &config.metrics.http_path {
        let metrics = &config.metrics;
        tracing::info!(
            context = "metrics",
            "Serve metrics at {}",
            url(tls, &metrics.host, metrics.port, path)
        );
    }
    metrics_writers(&config.metrics);
}

fn metrics_writers(metrics: &MetricsConfig) {
    let interval = metrics.rotate_interval;
    if metrics.log {
        let fields = (!metrics.log_filter.is_empty()).then(|| metrics.log_filter.join(","));
        tracing::info!(interval = interval.as_secs(), fields, "log metrics");
    }
    if let Some(statsd) = &metrics.statsd {
        let tags = if metrics.tags.is_empty() {
            String::new()
        } else {
            let pairs: Vec<String> = metrics
                .tags
                .iter()
                .map(|(name, value)| format!("{name}:{value}"))
                .collect();
            let style = statsd.tag_style.as_str();
            format!(", tags=map[{}], style={style}", pairs.join(" "))
        };
        tracing::info!(
            "Send statsd metrics to {} with every {}s (prefix={}{tags})",
            statsd.target,
            interval.as_secs(),
            statsd.prefix,
        );
    }
    if !metrics.log && metrics.statsd.is_none() {
        tracing::debug!(
            context = "metrics",
            "no metrics writers, disabling metrics rotation"
        );
    }
}

fn authorization(token: Option<&String>) -> &'static str {
    if token.is_some() {
        "authorization required"
    } else {
        "no authorization"
    }
}

/// Gives the demo app its broadcast URL, and logs the URL of its page.
pub fn demo(config: &Config, demo: &DemoApp) {
    let host = match config.server.host.as_str() {
        "" | "0.0.0.0" | "::" => "localhost",
        host => host,
    };
    if let Some(http) = &config.broadcast.http {
        demo.set_broadcast_url(&url(false, host, http.port, &http.path));
    }
    tracing::info!(
        "Demo: open {} in two browser windows",
        url(false, host, config.server.port, "/")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_shards_than_cpus_are_worth_a_warning() {
        assert_eq!(too_many_shards(2, 2), None);
        assert_eq!(too_many_shards(1, 2), None);
        let warning = too_many_shards(500, 2).expect("a warning");
        assert!(
            warning.starts_with("cores=500, but there are 2 CPUs "),
            "{warning}"
        );
    }

    #[test]
    fn a_limit_on_open_files_that_is_too_low_is_explained_with_figures() {
        fn check(open_files: u64, connections_max: u64, expected: Option<&str>) {
            let open_files = OpenFiles {
                max: open_files,
                reserved: 128,
            };
            let warning = too_few_files(open_files, connections_max);
            let start = warning
                .as_deref()
                .and_then(|text| text.split(": raise").next());
            assert_eq!(start, expected);
        }
        check(1128, 0, None);
        check(
            1127,
            0,
            Some("the limit on open files (1127) allows 999 connections, 1000 need 1128"),
        );
        check(
            1024,
            5000,
            Some(
                "the limit on open files (1024) allows 896 connections, --max-conn=5000 needs 5128",
            ),
        );
        // A limit of few connections needs few files.
        check(328, 200, None);
        check(
            64,
            200,
            Some("the limit on open files (64) allows 0 connections, --max-conn=200 needs 328"),
        );
        check(
            1024,
            u64::MAX,
            Some(
                "the limit on open files (1024) allows 896 connections, --max-conn=18446744073709551615 needs 18446744073709551615",
            ),
        );
    }

    #[test]
    fn a_port_in_use_is_named_with_its_owner_or_with_a_way_to_find_it() {
        let owner = PortOwner {
            pid: 7,
            program: "puma".to_owned(),
        };
        assert_eq!(
            port_taken(8080, "--port", Some(&owner)),
            "; port 8080 belongs to puma (pid 7): stop it, or choose another port with --port"
        );
        let unknown = port_taken(8090, "--http_broadcast_port", None);
        assert!(unknown.contains("ss -ltnp 'sport = :8090'"), "{unknown}");
        assert!(unknown.ends_with("--http_broadcast_port"), "{unknown}");
    }
}
