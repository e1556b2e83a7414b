//! The routing table of one listener.
//!
//! Owns the precedence between paths. Knows no method: a wrong one is the endpoint's own answer. How WebSocket patterns
//! match is `wire::paths`, given to the table as a function. Built by `shard::http` for each listener, asked by
//! `shard::http` for each request.

use std::fmt;

use crate::wire::percent;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    WebSocket,
    Broadcast,
    Health,
    Metrics,
    ApiPublish,
    /// Somewhere below `<api_path>/presence/`.
    ApiPresence {
        /// The stream's name, percent-decoded; `None` when the path is not `<stream>/users` or does not decode to UTF-8.
        stream: Option<String>,
    },
    NotFound,
}

/// How a WebSocket path of the listener matches a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathMatch {
    /// A literal path equals it.
    Exact,
    /// A path with `*` or `{name}` covers it.
    Pattern,
    No,
}

/// The paths that a listener serves beside WebSocket; `None` = not on this listener.
#[derive(Debug, Clone, Default)]
pub struct RoutePaths {
    pub broadcast: Option<String>,
    pub health: Option<String>,
    /// The base, such as `/api`.
    pub api: Option<String>,
    pub metrics: Option<String>,
}

/// Tells how a raw request path matches the WebSocket paths of a listener.
pub type WebSocketPaths = Box<dyn Fn(&str) -> PathMatch + Send + Sync>;

/// The paths of one listener, ready to be asked.
pub struct Routes {
    /// The last registered first, so that the first hit wins. WebSocket has its place here, but no path.
    exact: Vec<(ExactRoute, Endpoint)>,
    /// `<api_path>/presence/`
    presence_prefix: Option<String>,
    websocket: WebSocketPaths,
}

#[derive(Debug)]
enum ExactRoute {
    Path(String),
    WebSocket,
}

impl Routes {
    /// The table of a listener with these paths. A listener without WebSocket passes a function that says
    /// [`PathMatch::No`] to everything, see [`Routes::without_websocket`].
    pub fn new(paths: RoutePaths, websocket: WebSocketPaths) -> Routes {
        let api = paths.api.map(|base| base.trim_end_matches('/').to_owned());
        let path =
            |path: Option<String>, endpoint| path.map(|path| (ExactRoute::Path(path), endpoint));
        // Where two features share a path, the one registered last wins: the order is the reference's, backwards.
        let exact = [
            path(paths.metrics, Endpoint::Metrics),
            path(
                api.as_ref().map(|base| format!("{base}/publish")),
                Endpoint::ApiPublish,
            ),
            path(paths.health, Endpoint::Health),
            Some((ExactRoute::WebSocket, Endpoint::WebSocket)),
            path(paths.broadcast, Endpoint::Broadcast),
        ];
        Routes {
            exact: exact.into_iter().flatten().collect(),
            presence_prefix: api.map(|base| format!("{base}/presence/")),
            websocket,
        }
    }

    /// The table of a listener that serves ordinary HTTP only, such as a separate broadcast port.
    pub fn without_websocket(paths: RoutePaths) -> Routes {
        Routes::new(paths, Box::new(|_| PathMatch::No))
    }

    /// Finds the endpoint of a raw (still percent-encoded) path without its query.
    ///
    /// An exact path beats a pattern; among exact ones the feature registered last wins: broadcast, WebSocket, health,
    /// API, metrics. Matching is case-sensitive and knows no trailing slash.
    ///
    /// Source: `contract/websocket.md` §1 and §2; presence: `contract/http_transports.md` §2.
    pub fn route(&self, path: &str) -> Endpoint {
        let websocket = (self.websocket)(path);
        let exact = self.exact.iter().find(|(route, _)| match route {
            ExactRoute::Path(exact) => exact == path,
            ExactRoute::WebSocket => websocket == PathMatch::Exact,
        });
        if let Some((_, endpoint)) = exact {
            return endpoint.clone();
        }
        let below_presence = self
            .presence_prefix
            .as_deref()
            .and_then(|prefix| path.strip_prefix(prefix));
        match (below_presence, websocket) {
            // More specific than any pattern that could cover it too, such as `/*`.
            (Some(rest), _) => Endpoint::ApiPresence {
                stream: presence_stream(rest),
            },
            (None, PathMatch::Pattern) => Endpoint::WebSocket,
            (None, _) => Endpoint::NotFound,
        }
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Routes {
            exact,
            presence_prefix,
            websocket: _,
        } = self;
        f.debug_struct("Routes")
            .field("exact", exact)
            .field("presence_prefix", presence_prefix)
            .finish_non_exhaustive()
    }
}

/// Reads `<stream>/users`. The segment is cut before it is decoded, so that a stream's name may contain `/` as `%2F`; the
/// reference decodes first and cannot be asked for such a stream.
fn presence_stream(rest: &str) -> Option<String> {
    let segment = rest.strip_suffix("/users")?;
    if segment.is_empty() || segment.contains('/') {
        return None;
    }
    // No stream can have a name with a broken escape, or with bytes that are not UTF-8.
    let name = percent::decode(segment).ok()?.into_owned();
    String::from_utf8(name).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all_paths() -> RoutePaths {
        let path = |path: &str| Some(path.to_owned());
        RoutePaths {
            broadcast: path("/_broadcast"),
            health: path("/health"),
            api: path("/api"),
            metrics: path("/metrics"),
        }
    }

    /// A listener whose WebSocket paths are `exact` and everything below `wildcard`.
    fn routes(
        paths: RoutePaths,
        exact: &'static [&'static str],
        wildcard: Option<&'static str>,
    ) -> Routes {
        Routes::new(
            paths,
            Box::new(move |path| match wildcard {
                _ if exact.contains(&path) => PathMatch::Exact,
                Some(prefix) if path.starts_with(prefix) => PathMatch::Pattern,
                _ => PathMatch::No,
            }),
        )
    }

    fn presence(stream: Option<&str>) -> Endpoint {
        Endpoint::ApiPresence {
            stream: stream.map(str::to_owned),
        }
    }

    #[track_caller]
    fn check(routes: &Routes, path: &str, expected: Endpoint) {
        assert_eq!(routes.route(path), expected, "{path}");
    }

    #[test]
    fn every_feature_answers_on_its_exact_path_only() {
        let routes = routes(all_paths(), &["/cable"], None);
        check(&routes, "/cable", Endpoint::WebSocket);
        check(&routes, "/health", Endpoint::Health);
        check(&routes, "/_broadcast", Endpoint::Broadcast);
        check(&routes, "/metrics", Endpoint::Metrics);
        check(&routes, "/api/publish", Endpoint::ApiPublish);
        for path in [
            "",
            "/",
            "*",
            "/cable/",
            "//cable",
            "/CABLE",
            "/%63able",
            "/health/",
            "/_broadcast/",
            "/metrics/x",
            "/api",
            "/api/",
            "/api/publish/",
            "/api/presence",
            "/api/presence?",
        ] {
            check(&routes, path, Endpoint::NotFound);
        }
    }

    #[test]
    fn an_exact_path_beats_a_websocket_wildcard() {
        let routes = routes(all_paths(), &[], Some("/"));
        check(&routes, "/health", Endpoint::Health);
        check(&routes, "/_broadcast", Endpoint::Broadcast);
        check(&routes, "/metrics", Endpoint::Metrics);
        check(&routes, "/api/publish", Endpoint::ApiPublish);
        check(&routes, "/api/presence/x/users", presence(Some("x")));
        check(&routes, "/", Endpoint::WebSocket);
        check(&routes, "/health/", Endpoint::WebSocket);
        check(&routes, "/api/other", Endpoint::WebSocket);
    }

    #[test]
    fn on_one_path_the_feature_registered_last_wins() {
        let at = |path: &str| Some(path.to_owned());
        let websocket_and = |paths| routes(paths, &["/x"], None);
        let broadcast = RoutePaths {
            broadcast: at("/x"),
            ..RoutePaths::default()
        };
        check(&websocket_and(broadcast.clone()), "/x", Endpoint::WebSocket);
        let health = RoutePaths {
            health: at("/x"),
            ..broadcast
        };
        check(&websocket_and(health.clone()), "/x", Endpoint::Health);
        let metrics = RoutePaths {
            metrics: at("/x"),
            ..health
        };
        check(&websocket_and(metrics), "/x", Endpoint::Metrics);
        let api = RoutePaths {
            health: at("/x/publish"),
            api: at("/x"),
            ..RoutePaths::default()
        };
        check(&websocket_and(api), "/x/publish", Endpoint::ApiPublish);
    }

    #[test]
    fn the_root_can_be_the_websocket_path() {
        let routes = routes(all_paths(), &["/"], None);
        check(&routes, "/", Endpoint::WebSocket);
        check(&routes, "/cable", Endpoint::NotFound);
        check(&routes, "/health", Endpoint::Health);
    }

    #[test]
    fn a_separate_listener_knows_only_its_own_paths() {
        let paths = RoutePaths {
            broadcast: Some("/_broadcast".to_owned()),
            ..RoutePaths::default()
        };
        let routes = Routes::without_websocket(paths);
        check(&routes, "/_broadcast", Endpoint::Broadcast);
        check(&routes, "/health", Endpoint::NotFound);
        check(&routes, "/cable", Endpoint::NotFound);
        check(&routes, "/api/presence/x/users", Endpoint::NotFound);
    }

    #[test]
    fn presence_takes_the_stream_from_one_encoded_segment() {
        let routes = routes(all_paths(), &["/cable"], None);
        check(&routes, "/api/presence/chat/users", presence(Some("chat")));
        check(
            &routes,
            "/api/presence/chat%2F1/users",
            presence(Some("chat/1")),
        );
        check(
            &routes,
            "/api/presence/chat%2f1/users",
            presence(Some("chat/1")),
        );
        check(
            &routes,
            "/api/presence/a+b%20c/users",
            presence(Some("a+b c")),
        );
        check(
            &routes,
            "/api/presence/gr%C3%B6%C3%9Fe/users",
            presence(Some("größe")),
        );
        check(
            &routes,
            "/api/presence/users/users",
            presence(Some("users")),
        );
        for path in [
            "/api/presence/",
            "/api/presence/users",
            "/api/presence//users",
            "/api/presence/chat",
            "/api/presence/chat/1/users",
            "/api/presence/chat/users/",
            "/api/presence/chat/members",
            "/api/presence/%/users",
            "/api/presence/%2/users",
            "/api/presence/%zz/users",
            "/api/presence/%+1/users",
            "/api/presence/%ff/users",
        ] {
            check(&routes, path, presence(None));
        }
    }

    #[test]
    fn the_base_of_the_api_may_end_with_a_slash() {
        let api_at = |base: &str| {
            Routes::without_websocket(RoutePaths {
                api: Some(base.to_owned()),
                ..RoutePaths::default()
            })
        };
        check(&api_at("/v1/api/"), "/v1/api/publish", Endpoint::ApiPublish);
        check(&api_at("/"), "/publish", Endpoint::ApiPublish);
        check(&api_at("/"), "/presence/x/users", presence(Some("x")));
    }

    fn encode(stream: &str) -> String {
        stream.bytes().map(|byte| format!("%{byte:02X}")).collect()
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "\\PC*") {
            let routes = routes(all_paths(), &["/cable"], Some("/w/"));
            routes.route(&path);
            routes.route(&format!("/api/presence/{path}"));
            routes.route(&format!("/api/presence/{path}/users"));
        }

        #[test]
        fn every_stream_name_can_be_asked_for(stream in "\\PC+") {
            let routes = routes(all_paths(), &["/cable"], None);
            let path = format!("/api/presence/{}/users", encode(&stream));
            prop_assert_eq!(routes.route(&path), presence(Some(&stream)));
        }
    }
}
