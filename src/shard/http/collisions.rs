//! Paths and addresses that two options claim. One of the two would silently not be served, so this is checked before the
//! server listens.
//!
//! `listener` decides what shares a listener, and `routes` decides which path wins where several match. An exact path beats
//! a pattern, so `--path=/*` beside `/health` is not a collision and is only mentioned.

use std::net::IpAddr;

use thiserror::Error;

use crate::config::Config;
use crate::console;
use crate::endpoints::Page;
use crate::shard::http::listener::{self, BindAddress, Features};
use crate::shard::http::routes::Paths;
use crate::wire::paths::PathPatterns;

/// Why a configuration cannot be served as it is. Each names both options.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Collision {
    #[error("path {path} is asked for by {first} and by {second}: give one of them another path{}", port_hint(.first, .second))]
    SamePath {
        path: String,
        first: Owner,
        second: Owner,
    },
    #[error("path {path} of {inner} lies in what {outer} serves ({below}…): give one of them another path{}", port_hint(.inner, .outer))]
    Inside {
        path: String,
        inner: Owner,
        below: String,
        outer: Owner,
    },
    #[error("--path (ANYCABLE_PATH) has {path} twice: leave one of them out")]
    Twice { path: String },
    #[error(
        "{first} and {second} are one address, and both listen on port {port}: {}",
        .second.setting.hint()
    )]
    SamePort {
        first: Host,
        second: Host,
        port: u16,
    },
}

/// A bind address and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    setting: HostSetting,
    host: String,
}

/// The option that a bind address comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostSetting {
    /// Counts for all features that have no address of their own.
    Main,
    Metrics,
    Api,
}

impl std::fmt::Display for Host {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let option = match self.setting {
            HostSetting::Main => "--host",
            HostSetting::Metrics => "--metrics_host",
            HostSetting::Api => "api.host",
        };
        write!(out, "{option}={}", self.host)
    }
}

impl HostSetting {
    /// What to do when another listener has the same address under another name.
    fn hint(self) -> &'static str {
        match self {
            Self::Main => "write both alike to share the port",
            Self::Metrics => {
                "leave --metrics_host (ANYCABLE_METRICS_HOST) out to share the port, or give --metrics_port \
                 (ANYCABLE_METRICS_PORT) another one"
            }
            Self::Api => {
                "leave api.host out to share the port, or give --api_port (ANYCABLE_API_PORT) another one"
            }
        }
    }
}

/// The option that a path comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    WebSocket,
    Health,
    Sse,
    Broadcast,
    Api,
    Metrics,
    DurableStreams,
    Poll,
    Console,
    Demo,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::WebSocket => "--path (ANYCABLE_PATH)",
            Self::Health => "--health-path (ANYCABLE_HEALTH_PATH)",
            Self::Sse => "--sse_path (ANYCABLE_SSE_PATH)",
            Self::Broadcast => "--http_broadcast_path (ANYCABLE_HTTP_BROADCAST_PATH)",
            Self::Api => "--api_path (ANYCABLE_API_PATH)",
            Self::Metrics => "--metrics_http (ANYCABLE_METRICS_HTTP)",
            Self::DurableStreams => "--ds_path (ANYCABLE_DS_PATH)",
            Self::Poll => "--poll_path (ANYCABLE_POLL_PATH)",
            Self::Console => "--console (ANYCABLE_CONSOLE)",
            Self::Demo => "--demo",
        })
    }
}

impl Owner {
    /// The option that moves the feature to a listener of its own.
    fn port_option(self) -> Option<&'static str> {
        match self {
            Self::Broadcast => Some("--http_broadcast_port"),
            Self::Api => Some("--api_port"),
            Self::Metrics => Some("--metrics_port"),
            Self::WebSocket
            | Self::Health
            | Self::DurableStreams
            | Self::Sse
            | Self::Poll
            | Self::Console
            | Self::Demo => None,
        }
    }
}

fn port_hint(first: &Owner, second: &Owner) -> String {
    let option = second.port_option().or(first.port_option());
    option.map_or(String::new(), |option| {
        format!(", or a port of its own ({option})")
    })
}

/// The request paths that an option claims.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Claim {
    Exact(String),
    /// Every path that begins with this.
    Below(String),
    /// A path with placeholders or a final `*`. Each of the other kinds beats it.
    Pattern(String),
}

/// All collisions of a configuration whose paths are valid patterns. The main listener also serves `pages`.
pub fn find(config: &Config, pages: &[Page]) -> Vec<Collision> {
    let listeners = listener::listeners(config);
    let mut found: Vec<Collision> = listeners
        .iter()
        .flat_map(|(_, features)| colliding_paths(&claims(Paths::new(config, *features, pages))))
        .collect();
    found.extend(colliding_addresses(config, &listeners));
    found
}

/// Log lines about WebSocket patterns that cover the path of another feature. That feature keeps its path.
pub fn shared_patterns(config: &Config, pages: &[Page]) -> Vec<String> {
    let mut lines = Vec::new();
    for (_, features) in listener::listeners(config) {
        let claims = claims(Paths::new(config, features, pages));
        for (_, claim) in &claims {
            let Claim::Pattern(pattern) = claim else {
                continue;
            };
            let Ok(pattern_alone) = PathPatterns::new(std::slice::from_ref(pattern)) else {
                continue;
            };
            for (owner, other) in &claims {
                if let Claim::Exact(path) = other
                    && *owner != Owner::WebSocket
                    && pattern_alone.matches(path)
                {
                    lines.push(format!(
                        "{pattern} of {} covers {path} too, which stays with {owner}",
                        Owner::WebSocket
                    ));
                }
            }
        }
    }
    lines
}

fn claims(paths: Paths) -> Vec<(Owner, Claim)> {
    let mut claims = Vec::new();
    for path in paths.websocket {
        let claim = match path.contains(['{', '*']) {
            true => Claim::Pattern(path),
            false => Claim::Exact(path),
        };
        claims.push((Owner::WebSocket, claim));
    }
    let exact = |owner, path: String| (owner, Claim::Exact(path));
    claims.extend(paths.health.map(|path| exact(Owner::Health, path)));
    claims.extend(paths.sse.map(|path| exact(Owner::Sse, path)));
    if paths.console {
        claims.push(exact(Owner::Console, console::PATH.to_owned()));
        claims.push((Owner::Console, Claim::Below(format!("{}/", console::PATH))));
    }
    claims.extend(paths.poll.map(|path| exact(Owner::Poll, path)));
    claims.extend(paths.broadcast.map(|path| exact(Owner::Broadcast, path)));
    if let Some(base) = paths.api {
        // The base path itself has no route, but another feature with this path is a mistake.
        let root = if base.is_empty() { "/" } else { &base };
        claims.push(exact(Owner::Api, root.to_owned()));
        claims.push(exact(Owner::Api, format!("{base}/publish")));
        claims.push((Owner::Api, Claim::Below(format!("{base}/presence/"))));
    }
    let durable_streams = paths.durable_streams.map(|base| format!("{base}/"));
    claims.extend(durable_streams.map(|below| (Owner::DurableStreams, Claim::Below(below))));
    claims.extend(paths.metrics.map(|path| exact(Owner::Metrics, path)));
    // Only pages whose path a feature also claims. A page that is only covered by a pattern keeps its path, which needs no
    // log line.
    let taken = paths
        .pages
        .iter()
        .map(|page| exact(Owner::Demo, page.path.to_owned()));
    let taken: Vec<_> = taken
        .filter(|(_, page)| claims.iter().any(|(_, claim)| claim == page))
        .collect();
    claims.extend(taken);
    claims
}

fn colliding_paths(claims: &[(Owner, Claim)]) -> Vec<Collision> {
    let mut found = Vec::new();
    for (at, (first_owner, first)) in claims.iter().enumerate() {
        for (second_owner, second) in &claims[at + 1..] {
            let collision = collision((*first_owner, first), (*second_owner, second));
            found.extend(collision.filter(|collision| !found.contains(collision)));
        }
    }
    found
}

fn collision(
    (first_owner, first): (Owner, &Claim),
    (second_owner, second): (Owner, &Claim),
) -> Option<Collision> {
    use Claim as C;
    if first_owner == second_owner && first_owner != Owner::WebSocket {
        return None;
    }
    match (first, second) {
        (C::Exact(path), C::Exact(other)) if path == other => Some(match first_owner {
            _ if first_owner == second_owner => Collision::Twice { path: path.clone() },
            _ => Collision::SamePath {
                path: path.clone(),
                first: first_owner,
                second: second_owner,
            },
        }),
        (C::Pattern(path), C::Pattern(other)) if without_names(path) == without_names(other) => {
            Some(Collision::Twice {
                path: other.clone(),
            })
        }
        (C::Exact(path) | C::Pattern(path), C::Below(below))
            if literal(path).starts_with(below) =>
        {
            Some(inside(path, first_owner, below, second_owner))
        }
        (C::Below(below), C::Exact(path) | C::Pattern(path))
            if literal(path).starts_with(below) =>
        {
            Some(inside(path, second_owner, below, first_owner))
        }
        _ => None,
    }
}

fn inside(path: &str, inner: Owner, below: &str, outer: Owner) -> Collision {
    Collision::Inside {
        path: path.to_owned(),
        inner,
        below: below.to_owned(),
        outer,
    }
}

/// The part that every path of a pattern begins with.
fn literal(pattern: &str) -> &str {
    pattern.split(['{', '*']).next().unwrap_or(pattern)
}

/// Removes the names: `{a}` and `{b}` match the same paths.
fn without_names(pattern: &str) -> String {
    pattern
        .split_inclusive('}')
        .map(|part| match part.split_once('{') {
            Some((literal, inside)) => {
                let expression = inside.split_once(':').map_or("}", |(_, rest)| rest);
                format!("{literal}{{{expression}")
            }
            None => part.to_owned(),
        })
        .collect()
}

/// Finds listeners with one port whose hosts are written differently but mean the same address. The main listener is the
/// first of all.
fn colliding_addresses(config: &Config, listeners: &[(BindAddress, Features)]) -> Vec<Collision> {
    let mut found = Vec::new();
    for (at, (first, _)) in listeners.iter().enumerate() {
        for (second, features) in &listeners[at + 1..] {
            let is_clash = first.host != second.host
                && first.port == second.port
                && first.port != 0
                && is_same_address(&first.host, &second.host);
            if is_clash {
                found.push(Collision::SamePort {
                    first: host(config, first, listeners[at].1),
                    second: host(config, second, *features),
                    port: first.port,
                });
            }
        }
    }
    found
}

fn host(config: &Config, address: &BindAddress, features: Features) -> Host {
    let setting = if address.host == config.server.host {
        HostSetting::Main
    } else if features.api
        && config
            .api
            .as_ref()
            .is_some_and(|api| api.host == address.host)
    {
        HostSetting::Api
    } else {
        HostSetting::Metrics
    };
    Host {
        setting,
        host: address.host.clone(),
    }
}

/// Compares without a DNS query.
fn is_same_address(first: &str, second: &str) -> bool {
    let address = |host: &str| match host {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        name => name.trim_matches(['[', ']']).parse().ok(),
    };
    let is_any = |host: &str| {
        host.is_empty() || address(host).is_some_and(|address| address.is_unspecified())
    };
    is_any(first)
        || is_any(second)
        || address(first).is_some() && address(first) == address(second)
        || first.eq_ignore_ascii_case(second)
}

#[cfg(test)]
mod tests;
