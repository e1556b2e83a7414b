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
        "--host={host} and --metrics_host={metrics_host} are one address, and both listen on port {port}: leave \
         --metrics_host (ANYCABLE_METRICS_HOST) out to share the port, or give --metrics_port (ANYCABLE_METRICS_PORT) \
         another one"
    )]
    SamePort {
        host: String,
        metrics_host: String,
        port: u16,
    },
}

/// The option that a path comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    WebSocket,
    Health,
    Broadcast,
    Api,
    Metrics,
    Console,
    Demo,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::WebSocket => "--path (ANYCABLE_PATH)",
            Self::Health => "--health-path (ANYCABLE_HEALTH_PATH)",
            Self::Broadcast => "--http_broadcast_path (ANYCABLE_HTTP_BROADCAST_PATH)",
            Self::Api => "--api_path (ANYCABLE_API_PATH)",
            Self::Metrics => "--metrics_http (ANYCABLE_METRICS_HTTP)",
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
            Self::WebSocket | Self::Health | Self::Console | Self::Demo => None,
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
    if paths.console {
        claims.push(exact(Owner::Console, console::PATH.to_owned()));
        claims.push((Owner::Console, Claim::Below(format!("{}/", console::PATH))));
    }
    claims.extend(paths.broadcast.map(|path| exact(Owner::Broadcast, path)));
    if let Some(base) = paths.api {
        // The base path itself has no route, but another feature with this path is a mistake.
        let root = if base.is_empty() { "/" } else { &base };
        claims.push(exact(Owner::Api, root.to_owned()));
        claims.push(exact(Owner::Api, format!("{base}/publish")));
        claims.push((Owner::Api, Claim::Below(format!("{base}/presence/"))));
    }
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

/// Finds two listeners with one port whose hosts are written differently but mean the same address.
fn colliding_addresses(
    config: &Config,
    listeners: &[(BindAddress, Features)],
) -> Option<Collision> {
    let (metrics, _) = listeners.iter().find(|(_, features)| features.metrics)?;
    let clash = |address: &BindAddress| {
        address != metrics
            && address.port == metrics.port
            && metrics.port != 0
            && is_same_address(&address.host, &metrics.host)
    };
    listeners
        .iter()
        .any(|(address, _)| clash(address))
        .then(|| Collision::SamePort {
            host: config.server.host.clone(),
            metrics_host: metrics.host.clone(),
            port: metrics.port,
        })
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
mod tests {
    use super::*;
    use crate::config::{Startup, load};

    fn config(args: &[&str]) -> Config {
        let args: Vec<String> = ["--rpc_host=http://app", "--secret=0123456789abcdef"]
            .iter()
            .chain(args)
            .map(|arg| (*arg).to_owned())
            .collect();
        match load(&args, &[]) {
            Ok(Startup::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    /// The main listener serves two pages with `--demo`.
    fn pages(config: &Config) -> Vec<Page> {
        let paths = ["/", "/demo/app.js"];
        let page = |path| Page {
            path,
            content_type: "text/html",
            body: b"",
        };
        paths
            .map(page)
            .into_iter()
            .filter(|_| config.demo)
            .collect()
    }

    fn find(config: &Config) -> Vec<Collision> {
        super::find(config, &pages(config))
    }

    fn shared_patterns(config: &Config) -> Vec<String> {
        super::shared_patterns(config, &pages(config))
    }

    #[track_caller]
    fn check(args: &[&str], expected: &[&str]) {
        let found: Vec<String> = find(&config(args))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, expected, "{args:?}");
    }

    const PATH: &str = "--path (ANYCABLE_PATH)";
    const HEALTH: &str = "--health-path (ANYCABLE_HEALTH_PATH)";
    const BROADCAST: &str = "--http_broadcast_path (ANYCABLE_HTTP_BROADCAST_PATH)";
    const API: &str = "--api_path (ANYCABLE_API_PATH)";
    const METRICS: &str = "--metrics_http (ANYCABLE_METRICS_HTTP)";

    /// Expects that `first` and `second` collide, and that the hint names the option that separates them.
    #[track_caller]
    fn check_same(args: &[&str], path: &str, first: &str, second: &str, port: &str) {
        let port = match port {
            "" => String::new(),
            port => format!(", or a port of its own ({port})"),
        };
        check(
            args,
            &[&format!(
                "path {path} is asked for by {first} and by {second}: give one of them another path{port}"
            )],
        );
    }

    #[test]
    fn every_pair_of_equal_paths_is_named() {
        check_same(&["--path=/health"], "/health", PATH, HEALTH, "");
        check_same(&["--path=/cable,/health"], "/health", PATH, HEALTH, "");
        check_same(
            &["--path=/_broadcast"],
            "/_broadcast",
            PATH,
            BROADCAST,
            "--http_broadcast_port",
        );
        check_same(&["--path=/api"], "/api", PATH, API, "--api_port");
        check_same(
            &["--path=/api/publish"],
            "/api/publish",
            PATH,
            API,
            "--api_port",
        );
        check_same(
            &["--metrics_http=/cable"],
            "/cable",
            PATH,
            METRICS,
            "--metrics_port",
        );
        check_same(&["--health-path=/cable"], "/cable", PATH, HEALTH, "");
        check_same(
            &["--health-path=/_broadcast"],
            "/_broadcast",
            HEALTH,
            BROADCAST,
            "--http_broadcast_port",
        );
        check_same(&["--health-path=/api"], "/api", HEALTH, API, "--api_port");
        check_same(
            &["--health-path=/api/publish"],
            "/api/publish",
            HEALTH,
            API,
            "--api_port",
        );
        check_same(
            &["--metrics_http=/health"],
            "/health",
            HEALTH,
            METRICS,
            "--metrics_port",
        );
        check_same(
            &["--http_broadcast_path=/api/publish"],
            "/api/publish",
            BROADCAST,
            API,
            "--api_port",
        );
        check_same(
            &["--api_path=/_broadcast"],
            "/_broadcast",
            BROADCAST,
            API,
            "--api_port",
        );
        check_same(
            &["--metrics_http=/_broadcast"],
            "/_broadcast",
            BROADCAST,
            METRICS,
            "--metrics_port",
        );
        check_same(
            &["--metrics_http=/api"],
            "/api",
            API,
            METRICS,
            "--metrics_port",
        );
        check_same(
            &["--metrics_http=/api/publish"],
            "/api/publish",
            API,
            METRICS,
            "--metrics_port",
        );
        check_same(&["--api_path=/", "--path=/"], "/", PATH, API, "--api_port");
    }

    #[test]
    fn one_path_twice_is_named() {
        let twice =
            |path: &str| format!("--path (ANYCABLE_PATH) has {path} twice: leave one of them out");
        check(&["--path=/cable,/cable"], &[&twice("/cable")]);
        check(&["--path=/a/*,/a/*"], &[&twice("/a/*")]);
        check(&["--path=/{a}/ws,/{b}/ws"], &[&twice("/{b}/ws")]);
        check(&["--path=/a,/a,/a"], &[&twice("/a")]);
    }

    #[test]
    fn what_lies_in_the_place_of_another_feature_is_named() {
        let inside = |path: &str, inner: &str, below: &str, outer: &str, port: &str| {
            let port = match port {
                "" => String::new(),
                port => format!(", or a port of its own ({port})"),
            };
            format!(
                "path {path} of {inner} lies in what {outer} serves ({below}…): give one of them another path{port}"
            )
        };
        let presence = "/api/presence/";
        for path in [
            "/api/presence/a/users",
            "/api/presence/*",
            "/api/presence/{stream}/users",
        ] {
            check(
                &[&format!("--path={path}")],
                &[&inside(path, PATH, presence, API, "--api_port")],
            );
        }
        let users = "/api/presence/a/users";
        check(
            &[&format!("--health-path={users}")],
            &[&inside(users, HEALTH, presence, API, "--api_port")],
        );
        check(
            &[&format!("--metrics_http={users}")],
            &[&inside(users, METRICS, presence, API, "--api_port")],
        );
        check(
            &[&format!("--http_broadcast_path={users}")],
            &[&inside(users, BROADCAST, presence, API, "--api_port")],
        );
        let console = "--console (ANYCABLE_CONSOLE)";
        for path in ["/_console/cable", "/_console/*"] {
            check(
                &["--console", &format!("--path={path}")],
                &[&inside(path, PATH, "/_console/", console, "")],
            );
        }
        check_same(
            &["--console", "--path=/_console"],
            "/_console",
            PATH,
            console,
            "",
        );
        check_same(
            &["--console", "--health-path=/_console"],
            "/_console",
            HEALTH,
            console,
            "",
        );
        check(&["--path=/_console"], &[]);
    }

    #[test]
    fn the_page_of_the_demo_has_its_paths() {
        let demo = |path: &str, owner: &str| {
            format!(
                "path {path} is asked for by {owner} and by --demo: give one of them another path"
            )
        };
        check(&["--demo", "--path=/"], &[&demo("/", PATH)]);
        check(
            &["--demo", "--health-path=/demo/app.js"],
            &[&demo("/demo/app.js", HEALTH)],
        );
        check(&["--demo"], &[]);
        check(&["--path=/"], &[]);
    }

    #[test]
    fn other_ports_do_not_collide() {
        check(&[], &[]);
        check(&["--metrics_http=/cable", "--metrics_port=9000"], &[]);
        check(&["--path=/_broadcast", "--http_broadcast_port=9000"], &[]);
        check(&["--path=/api", "--api_port=9000"], &[]);
        check(
            &[
                "--path=/a,/a/b,/a/*",
                "--metrics_http=/metrics",
                "--console",
                "--demo",
            ],
            &[],
        );
        // Two features that have moved to the same other port share it.
        check_same(
            &[
                "--metrics_http=/_broadcast",
                "--metrics_port=9",
                "--http_broadcast_port=9",
            ],
            "/_broadcast",
            BROADCAST,
            METRICS,
            "--metrics_port",
        );
    }

    #[test]
    fn several_collisions_are_all_named() {
        let found = find(&config(&[
            "--path=/health,/api,/api",
            "--metrics_http=/health",
        ]));
        assert_eq!(found.len(), 5, "{found:?}");
    }

    #[test]
    fn one_address_under_two_names_is_named() {
        let clash = |host: &str, metrics_host: &str, expected: bool| {
            let args = [
                "--metrics_http=/metrics".to_owned(),
                format!("--host={host}"),
                format!("--metrics_host={metrics_host}"),
            ];
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let found = find(&config(&args));
            assert_eq!(!found.is_empty(), expected, "{host} {metrics_host}");
            let other_port = [&args[..], &["--metrics_port=9"]].concat();
            assert!(find(&config(&other_port)).is_empty());
            let any_port = [&args[..], &["--port=0"]].concat();
            assert!(find(&config(&any_port)).is_empty());
        };
        clash("0.0.0.0", "127.0.0.1", true);
        clash("", "10.0.0.1", true);
        clash("127.0.0.1", "0.0.0.0", true);
        clash("localhost", "127.0.0.1", true);
        clash("localhost", "localhost", false);
        clash("127.0.0.1", "127.0.0.2", false);
        clash("localhost", "[::1]", false);
        clash("web.internal", "WEB.internal", true);
    }

    #[test]
    fn a_pattern_that_covers_another_path_is_mentioned() {
        assert_eq!(find(&config(&["--path=/*"])), []);
        let lines = shared_patterns(&config(&["--path=/heal*,/cable"]));
        assert_eq!(
            lines,
            [format!(
                "/heal* of {PATH} covers /health too, which stays with {HEALTH}"
            )]
        );
        assert!(shared_patterns(&config(&["--path=/cable/*,/cable"])).is_empty());
        assert!(shared_patterns(&config(&["--demo", "--path=/demo/*"])).is_empty());
    }
}
