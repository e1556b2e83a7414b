//! The lines that the server logs while it starts. Their texts are the reference's where it has them: operators and their
//! scripts look for these. Source: contract/operations.md §7, contract/campfire.md §11.2.

use std::process;

use crate::config::{Config, RpcEndpoint};
use crate::demo::DemoApp;
use crate::driver::Choice;
use crate::os::limits::DESCRIPTORS_RESERVED;
use crate::shard::front::Features;

/// What a URL in the log looks like: the host as configured.
pub fn url(tls: bool, host: &str, port: u16, path: &str) -> String {
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{host}:{port}{path}")
}

/// What a listener is called in messages: by the first of its features.
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
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
}

/// A server that cannot hold this many connections deserves a warning.
const CONNECTIONS_EXPECTED: usize = 1000;

/// What is served where, and how.
pub fn configuration(config: &Config, choice: &Choice, open_files: u64) {
    let connections = open_files.saturating_sub(DESCRIPTORS_RESERVED);
    tracing::info!(
        "ringcable {}: driver {} ({}), up to {connections} connections by the limit on open files",
        env!("CARGO_PKG_VERSION"),
        choice.driver.as_str(),
        choice.reason,
    );
    let wanted = config.server.connections_max.max(CONNECTIONS_EXPECTED) as u64;
    if connections < wanted {
        tracing::warn!(
            "the limit on open files ({open_files}) allows {connections} connections, fewer than {wanted}: raise it \
             (ulimit -n, LimitNOFILE= in systemd, --ulimit nofile= in Docker)"
        );
    }
    authentication(config);
    tracing::info!("Using no-op (legacy) broker");
    broadcasting(config);
    rpc(config);
    endpoints(config);
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
    let cors = if http.cors { ", CORS enabled" } else { "" };
    tracing::info!(
        context = "broadcast",
        provider = "http",
        "Accept broadcast requests at {} ({}{cors})",
        url(
            config.server.tls.is_some(),
            &config.server.host,
            http.port,
            &http.path
        ),
        authorization(http.token.as_ref()),
    );
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
        "RPC controller initialized: {base} (concurrency: {}, impl: http, enable_tls: {}, proto_versions: v1, \
         proxy_headers: {}, proxy_cookies: {cookies})",
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
    if let Some(api) = &config.api {
        if api.token.is_none() {
            tracing::info!("API server is running without authentication");
        }
        tracing::info!(
            context = "api",
            "Handle API requests at {} ({})",
            url(tls, &server.host, api.port, &api.path),
            authorization(api.token.as_ref()),
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
}

fn authorization(token: Option<&String>) -> &'static str {
    if token.is_some() {
        "authorization required"
    } else {
        "no authorization"
    }
}

/// Tells the demo's app where to broadcast, and the user where to look.
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
