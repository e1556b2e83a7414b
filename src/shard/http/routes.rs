//! The routing table of one listener: which path leads to what, including WebSockets, the console and plain pages.
//!
//! Decides the precedence between paths. Does not look at methods: the code behind a route answers a wrong one. Pure.
//! [`Paths`] is what the configuration asks for, which `collisions` checks before the server listens; `requests` asks
//! [`Routes`] for each request.

use crate::config::Config;
use crate::console::{self, ConsoleRoute};
use crate::endpoints::Page;
use crate::shard::http::listener::Features;
use crate::wire::paths::{PathPatternError, PathPatterns, Specificity};
use crate::wire::percent;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    WebSocket,
    /// Server-sent events.
    Sse,
    Broadcast,
    Health,
    Metrics,
    ApiPublish,
    /// A path below `<api_path>/presence/`.
    ApiPresence {
        /// The stream's name, percent-decoded; `None` when the path is not `<stream>/users` or does not decode to UTF-8.
        stream: Option<String>,
    },
    /// A path below `<ds_path>/`.
    DurableStream {
        /// The stream's name, percent-decoded; `None` when it does not decode to UTF-8.
        stream: Option<String>,
    },
    /// Long polling.
    Poll,
    Console(ConsoleRoute),
    Page(Page),
    NotFound,
}

/// The paths that a listener serves.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    /// Patterns (`wire::paths`). When there are none, the listener takes no WebSockets.
    pub websocket: Vec<String>,
    pub health: Option<String>,
    pub broadcast: Option<String>,
    /// Server-sent events.
    pub sse: Option<String>,
    /// The base path, such as `/api`.
    pub api: Option<String>,
    pub metrics: Option<String>,
    /// The base path of durable streams, such as `/ds`.
    pub durable_streams: Option<String>,
    pub poll: Option<String>,
    /// Whether the console is served. Its paths are fixed.
    pub console: bool,
    pub pages: Vec<Page>,
}

impl Paths {
    /// What a listener with these features serves. `pages` belong to the main listener.
    pub fn new(config: &Config, features: Features, pages: &[Page]) -> Self {
        let mut paths = Self::default();
        if features.main {
            paths.websocket = config.server.paths.clone();
            paths.health = Some(config.server.health_path.clone());
            paths.sse = config.sse.as_ref().map(|sse| sse.path.clone());
            let durable_streams = config.durable_streams.as_ref();
            paths.durable_streams = durable_streams.map(|it| it.path.clone());
            paths.poll = config.poll.as_ref().map(|poll| poll.path.clone());
            paths.console = config.console.is_some();
            paths.pages = pages.to_vec();
        }
        if let Some(http) = config
            .broadcast
            .http
            .as_ref()
            .filter(|_| features.broadcast)
        {
            paths.broadcast = Some(http.path.clone());
        }
        if let Some(api) = config.api.as_ref().filter(|_| features.api) {
            paths.api = Some(api.path.trim_end_matches('/').to_owned());
        }
        if features.metrics {
            paths.metrics = config.metrics.http_path.clone();
        }
        paths
    }
}

/// The routing table of one listener.
#[derive(Debug)]
pub struct Routes {
    /// The first match wins. WebSocket has an entry to mark its precedence, but its paths are in `websocket`.
    exact: Vec<(ExactPath, Route)>,
    has_console: bool,
    /// `<api_path>/presence/`
    presence_prefix: Option<String>,
    /// `<ds_path>/`
    durable_streams_prefix: Option<String>,
    websocket: PathPatterns,
}

#[derive(Debug)]
enum ExactPath {
    Path(String),
    WebSocket,
}

impl Routes {
    /// Builds the table of a listener with these paths.
    ///
    /// # Errors
    /// When a WebSocket path is not a valid pattern.
    pub fn new(paths: Paths) -> Result<Self, PathPatternError> {
        let websocket = PathPatterns::new(&paths.websocket)?;
        let path = |path: Option<String>, route| path.map(|path| (ExactPath::Path(path), route));
        let api = |end: &str| paths.api.as_ref().map(|base| format!("{base}{end}"));
        let presence_prefix = api("/presence/");
        // Where two features share a path, the one that the reference registers last wins, so its order is reversed here.
        let features = [
            path(paths.metrics, Route::Metrics),
            path(api("/publish"), Route::ApiPublish),
            path(paths.sse, Route::Sse),
            path(paths.health, Route::Health),
            Some((ExactPath::WebSocket, Route::WebSocket)),
            path(paths.broadcast, Route::Broadcast),
            path(paths.poll, Route::Poll),
        ];
        let pages = paths.pages.into_iter();
        let pages = pages.map(|page| (ExactPath::Path(page.path.to_owned()), Route::Page(page)));
        Ok(Self {
            exact: pages.chain(features.into_iter().flatten()).collect(),
            has_console: paths.console,
            presence_prefix,
            durable_streams_prefix: paths.durable_streams.map(|base| format!("{base}/")),
            websocket,
        })
    }

    /// Finds the route of a raw (still percent-encoded) path without its query.
    ///
    /// The paths of the console come first: a pattern such as `/*` must not take its requests to the app. An exact path
    /// beats a pattern. Among exact paths pages come first, then the feature registered last: long polling, which the
    /// reference does not have, metrics, API, server-sent events, health, WebSocket, broadcast. Matching is case-sensitive,
    /// and a trailing slash makes a different path.
    ///
    /// Source: `contract/websocket.md` §1 and §2; presence: `contract/http_transports.md` §2.
    pub fn route(&self, path: &str) -> Route {
        if self.has_console
            && let Some(route) = console::route(path)
        {
            return Route::Console(route);
        }
        let websocket = self.websocket.specificity(path);
        let exact = self.exact.iter().find(|(exact, _)| match exact {
            ExactPath::Path(exact) => exact == path,
            ExactPath::WebSocket => websocket == Some(Specificity::Exact),
        });
        if let Some((_, route)) = exact {
            return route.clone();
        }
        let below =
            |prefix: &Option<String>| prefix.as_deref().and_then(|it| path.strip_prefix(it));
        // More specific than any pattern that could match it too, such as `/*`.
        if let Some(rest) = below(&self.presence_prefix) {
            let stream = presence_stream(rest);
            return Route::ApiPresence { stream };
        }
        if let Some(name) = below(&self.durable_streams_prefix) {
            let stream = decoded(name);
            return Route::DurableStream { stream };
        }
        match websocket {
            Some(_) => Route::WebSocket,
            None => Route::NotFound,
        }
    }
}

/// Parses `<stream>/users`. The segment is split off before it is decoded, so a stream's name may contain `/` as `%2F`. The
/// reference decodes first, so it cannot serve such a stream.
fn presence_stream(rest: &str) -> Option<String> {
    let segment = rest.strip_suffix("/users")?;
    if segment.is_empty() || segment.contains('/') {
        return None;
    }
    decoded(segment)
}

/// No stream has a name with an invalid escape or invalid UTF-8.
fn decoded(name: &str) -> Option<String> {
    String::from_utf8(percent::decode(name).ok()?.into_owned()).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Startup, load};
    use crate::shard::http::listener::listeners;

    /// A listener with all features but console and server-sent events, whose WebSocket paths are `websocket`.
    fn all_paths(websocket: &[&str]) -> Paths {
        let path = |path: &str| Some(path.to_owned());
        Paths {
            broadcast: path("/_broadcast"),
            health: path("/health"),
            api: path("/api"),
            metrics: path("/metrics"),
            ..websockets(websocket)
        }
    }

    fn websockets(patterns: &[&str]) -> Paths {
        Paths {
            websocket: patterns.iter().map(|path| (*path).to_owned()).collect(),
            ..Paths::default()
        }
    }

    fn routes(paths: Paths) -> Routes {
        Routes::new(paths).expect("good patterns")
    }

    fn presence(stream: Option<&str>) -> Route {
        Route::ApiPresence {
            stream: stream.map(str::to_owned),
        }
    }

    #[track_caller]
    fn check(routes: &Routes, path: &str, expected: Route) {
        assert_eq!(routes.route(path), expected, "{path}");
    }

    #[test]
    fn every_feature_answers_on_its_exact_path_only() {
        let routes = routes(all_paths(&["/cable"]));
        check(&routes, "/cable", Route::WebSocket);
        check(&routes, "/health", Route::Health);
        check(&routes, "/_broadcast", Route::Broadcast);
        check(&routes, "/metrics", Route::Metrics);
        check(&routes, "/api/publish", Route::ApiPublish);
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
            check(&routes, path, Route::NotFound);
        }
    }

    #[test]
    fn an_exact_path_beats_a_websocket_wildcard() {
        let routes = routes(all_paths(&["/*"]));
        check(&routes, "/health", Route::Health);
        check(&routes, "/_broadcast", Route::Broadcast);
        check(&routes, "/metrics", Route::Metrics);
        check(&routes, "/api/publish", Route::ApiPublish);
        check(&routes, "/api/presence/x/users", presence(Some("x")));
        check(&routes, "/", Route::WebSocket);
        check(&routes, "/health/", Route::WebSocket);
        check(&routes, "/api/other", Route::WebSocket);
    }

    #[test]
    fn on_one_path_the_feature_registered_last_wins() {
        let at = |path: &str| Some(path.to_owned());
        let websocket_and = |paths| {
            routes(Paths {
                websocket: vec!["/x".to_owned()],
                ..paths
            })
        };
        let broadcast = Paths {
            broadcast: at("/x"),
            ..Paths::default()
        };
        check(&websocket_and(broadcast.clone()), "/x", Route::WebSocket);
        let health = Paths {
            health: at("/x"),
            ..broadcast
        };
        check(&websocket_and(health.clone()), "/x", Route::Health);
        let metrics = Paths {
            metrics: at("/x"),
            ..health
        };
        check(&websocket_and(metrics), "/x", Route::Metrics);
        let api = Paths {
            health: at("/x/publish"),
            api: at("/x"),
            ..Paths::default()
        };
        check(&websocket_and(api), "/x/publish", Route::ApiPublish);
    }

    #[test]
    fn the_root_can_be_the_websocket_path() {
        let routes = routes(all_paths(&["/"]));
        check(&routes, "/", Route::WebSocket);
        check(&routes, "/cable", Route::NotFound);
        check(&routes, "/health", Route::Health);
    }

    #[test]
    fn a_separate_listener_knows_only_its_own_paths() {
        let routes = routes(Paths {
            broadcast: Some("/_broadcast".to_owned()),
            ..Paths::default()
        });
        check(&routes, "/_broadcast", Route::Broadcast);
        check(&routes, "/health", Route::NotFound);
        check(&routes, "/cable", Route::NotFound);
        check(&routes, "/api/presence/x/users", Route::NotFound);
    }

    #[test]
    fn presence_takes_the_stream_from_one_encoded_segment() {
        let routes = routes(all_paths(&["/cable"]));
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
    fn a_durable_stream_has_the_rest_of_the_path_as_its_name() {
        let routes = routes(Paths {
            durable_streams: Some("/ds".to_owned()),
            ..all_paths(&["/*"])
        });
        let check_stream = |path: &str, stream: Option<&str>| {
            let stream = stream.map(str::to_owned);
            check(&routes, path, Route::DurableStream { stream });
        };
        check_stream("/ds/chat", Some("chat"));
        check_stream("/ds/chat/42", Some("chat/42"));
        check_stream("/ds/chat%2F42/", Some("chat/42/"));
        check_stream("/ds//a+b%20c", Some("/a+b c"));
        check_stream("/ds/", Some(""));
        check_stream("/ds/%ff", None);
        check_stream("/ds/%z", None);
        check(&routes, "/ds", Route::WebSocket);
        check(&routes, "/dsx/chat", Route::WebSocket);
    }

    #[test]
    fn the_base_of_the_api_may_end_with_a_slash() {
        let api_at = |base: &str| routes(configured(&[&format!("--api_path={base}")]));
        check(&api_at("/v1/api/"), "/v1/api/publish", Route::ApiPublish);
        check(&api_at("/"), "/publish", Route::ApiPublish);
        check(&api_at("/"), "/presence/x/users", presence(Some("x")));
    }

    const PAGE: Page = Page {
        path: "/",
        content_type: "text/html",
        body: b"<p>",
    };

    /// What the main listener serves with these options, with a page at `/`.
    fn configured(args: &[&str]) -> Paths {
        let required = ["--rpc_host=http://app", "--secret=0123456789abcdef"];
        let args: Vec<String> = required
            .iter()
            .chain(args)
            .map(|arg| (*arg).to_owned())
            .collect();
        let Ok(Startup::Run(config)) = load(&args, &[]) else {
            panic!("{args:?} is a good configuration");
        };
        let (_, features) = listeners(&config)[0].clone();
        Paths::new(&config, features, &[PAGE])
    }

    #[test]
    fn the_console_keeps_its_paths_from_every_pattern() {
        let with = routes(configured(&["--console", "--path=/*"]));
        check(&with, "/_console", Route::Console(ConsoleRoute::Page));
        check(
            &with,
            "/_console/cable",
            Route::Console(ConsoleRoute::Cable),
        );
        check(&with, "/_console/x", Route::Console(ConsoleRoute::Nowhere));
        check(&with, "/_consoles", Route::WebSocket);
        let without = routes(configured(&["--path=/*"]));
        check(&without, "/_console", Route::WebSocket);
    }

    #[test]
    fn a_page_is_served_on_its_exact_path_of_the_main_listener() {
        let main = routes(configured(&["--path=/*"]));
        check(&main, "/", Route::Page(PAGE));
        check(&main, "//", Route::WebSocket);
        let config = |features| {
            let Ok(Startup::Run(config)) = load(&["--rpc_host=http://app".to_owned()], &[]) else {
                panic!("a good configuration");
            };
            routes(Paths::new(&config, features, &[PAGE]))
        };
        let metrics = Features {
            metrics: true,
            ..Features::default()
        };
        check(&config(metrics), "/", Route::NotFound);
    }

    #[test]
    fn a_pattern_that_cannot_be_understood_is_no_table() {
        assert!(Routes::new(websockets(&["cable"])).is_err());
    }

    fn encode(stream: &str) -> String {
        stream.bytes().map(|byte| format!("%{byte:02X}")).collect()
    }

    proptest! {
        #[test]
        fn no_path_panics(path in "\\PC*") {
            let routes = routes(all_paths(&["/cable", "/w/*"]));
            routes.route(&path);
            routes.route(&format!("/api/presence/{path}"));
            routes.route(&format!("/api/presence/{path}/users"));
        }

        #[test]
        fn every_stream_name_can_be_asked_for(stream in "\\PC+") {
            let routes = routes(all_paths(&["/cable"]));
            let path = format!("/api/presence/{}/users", encode(&stream));
            prop_assert_eq!(routes.route(&path), presence(Some(&stream)));
        }
    }
}
