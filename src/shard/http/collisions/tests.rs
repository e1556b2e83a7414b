//! Which configurations collide, and what they are told.

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
    let sse = "--sse_path (ANYCABLE_SSE_PATH)";
    check_same(&["--sse", "--sse_path=/cable"], "/cable", PATH, sse, "");
    check_same(&["--sse", "--sse_path=/health"], "/health", HEALTH, sse, "");
    check(&["--sse_path=/health"], &[]);
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
    let durable = "--ds_path (ANYCABLE_DS_PATH)";
    let serves = ["--ds", "--broker=memory"];
    check(
        &[&serves[..], &["--path=/ds/cable"]].concat(),
        &[&inside("/ds/cable", PATH, "/ds/", durable, "")],
    );
    check(&[&serves[..], &["--path=/ds"]].concat(), &[]);
    check(&["--path=/ds/cable"], &[]);
}

#[test]
fn the_page_of_the_demo_has_its_paths() {
    let demo = |path: &str, owner: &str| {
        format!("path {path} is asked for by {owner} and by --demo: give one of them another path")
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
fn the_address_of_the_api_collides_as_that_of_metrics_does() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "[api]\nhost = '0.0.0.0'").expect("a file");
    let path = format!("--config-path={}", file.path().display());
    let args = [path.as_str(), "--host=127.0.0.1", "--port=80"];
    let leave_out =
        "leave api.host out to share the port, or give --api_port (ANYCABLE_API_PORT) another one";
    check(
        &args,
        &[&format!(
            "--host=127.0.0.1 and api.host=0.0.0.0 are one address, and both listen on port 80: {leave_out}"
        )],
    );
    check(&[&args[..], &["--api_port=81"]].concat(), &[]);
    check(&[&path, "--host=0.0.0.0"], &[]);
    let apart = [&args[..], &["--metrics_http=/m", "--metrics_port=81"]].concat();
    check(
        &[&apart[..], &["--api_port=81"]].concat(),
        &[
            "api.host=0.0.0.0 and --host=127.0.0.1 are one address, and both listen on port 81: write both alike to \
           share the port",
        ],
    );
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
