//! Tests of the whole way from arguments, environment and file to the resolved configuration.

use super::*;

fn pairs(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Without the files of the machine that runs the tests.
fn startup(env: &[(&str, &str)], args: &[&str]) -> Result<Startup, ConfigError> {
    let mut args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    if !args.iter().any(|arg| arg.starts_with("--config-path")) {
        args.insert(0, "--ignore-config-path".to_owned());
    }
    load(&args, &pairs(env))
}

fn run(env: &[(&str, &str)], args: &[&str]) -> Config {
    match startup(env, args) {
        Ok(Startup::Run(config)) => *config,
        other => panic!("{args:?} {env:?} should start the server: {other:?}"),
    }
}

/// With RPC out of the way.
fn config(args: &[&str]) -> Config {
    run(&[], &[&["--norpc"], args].concat())
}

fn printed_text(env: &[(&str, &str)], args: &[&str]) -> String {
    match startup(env, args) {
        Ok(Startup::Print(text)) => text,
        other => panic!("{args:?} should print: {other:?}"),
    }
}

fn refusal(env: &[(&str, &str)], args: &[&str]) -> String {
    startup(env, args)
        .expect_err("should be refused")
        .to_string()
}

/// A TOML file that lives as long as the value.
fn toml_file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("a writable temporary file");
    file
}

fn path_of(file: &tempfile::NamedTempFile) -> String {
    file.path()
        .to_str()
        .expect("temporary names are ASCII")
        .to_owned()
}

#[test]
fn defaults_are_those_of_the_reference() {
    let config = config(&[]);
    assert_eq!(
        (config.server.host.as_str(), config.server.port),
        ("localhost", 8080)
    );
    assert_eq!(config.server.paths, ["/cable"]);
    assert_eq!(config.server.health_path, "/health");
    assert!(config.server.allowed_origins.is_empty() && config.server.tls.is_none());
    assert_eq!(config.server.connections_max, 0);
    assert_eq!(
        config.runtime,
        RuntimeConfig {
            cores: None,
            memory: MemoryBound::OfLimit,
            driver: DriverChoice::Auto
        }
    );
    assert_eq!(config.websocket.message_bytes_max, 65_536);
    assert_eq!(config.websocket.pending_bytes_max, 1_048_576);
    assert_eq!(config.websocket.write_timeout, Duration::from_secs(2));
    assert_eq!(config.ping.interval, Duration::from_secs(3));
    assert_eq!(config.ping.precision, PingPrecision::Seconds);
    assert_eq!(config.ping.pong_timeout, Duration::ZERO);
    assert_eq!(config.auth.jwt, None);
    assert_eq!(config.auth.streams.pubsub_channel, "$pubsub");
    assert_eq!(config.auth.streams.secret, None);
    assert!(config.auth.streams.presence && !config.auth.streams.whisper);
    assert_eq!(config.rpc.concurrency, 28);
    assert_eq!(config.rpc.request_timeout, Duration::from_millis(3000));
    assert_eq!(config.rpc.command_timeout, Duration::from_millis(3000));
    assert_eq!(config.rpc.headers, ["cookie"]);
    assert!(config.rpc.cookies.is_empty() && config.rpc.tls.verify && !config.rpc.tls.enabled);
    assert_eq!(
        config.disconnect,
        DisconnectConfig {
            mode: DisconnectMode::Auto,
            rate: 100,
            backlog: 4096
        }
    );
    assert_eq!(config.api, None);
    assert_eq!(
        (config.metrics.http_path, config.metrics.port),
        (None, 8080)
    );
    assert_eq!(config.metrics.host, "localhost");
    assert_eq!(
        config.metrics.stats_refresh_interval,
        Duration::from_secs(5)
    );
    assert_eq!(
        config.log,
        LogConfig {
            level: LogLevel::Info,
            format: LogFormat::Text,
            debug: false
        }
    );
    assert_eq!(config.shutdown.timeout, Duration::from_secs(30));
    assert_eq!(
        (config.shutdown.delay, config.shutdown.pool_size),
        (Duration::ZERO, 16)
    );
    assert!(config.warnings.is_empty() && config.notices.is_empty() && config.presets.is_empty());
}

#[test]
fn node_id_is_random_unless_set() {
    let (first, second) = (config(&[]).node_id, config(&[]).node_id);
    assert_ne!(first, second);
    assert!(
        first.len() == 6 && first.bytes().all(|byte| byte.is_ascii_alphanumeric()),
        "{first}"
    );
    assert_eq!(config(&["--node_id=n1"]).node_id, "n1");
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = toml_file(
        "[server]\nport = 1\nhost = 'file'\nhealth_path = '/file'\n[rpc]\nimplementation = 'none'",
    );
    let flag = format!("--config-path={}", path_of(&file));
    let env = [("ANYCABLE_PORT", "2"), ("ANYCABLE_HOST", "env")];
    let config = run(&env, &[&flag, "--port=3"]);
    assert_eq!(config.server.port, 3);
    assert_eq!(config.server.host, "env");
    assert_eq!(config.server.health_path, "/file");
    assert_eq!(config.server.paths, ["/cable"]);
    assert_eq!(config.config_file, Some(path_of(&file)));
    let ignoring = run(&env, &[&flag, "--ignore-config-path", "--norpc"]);
    assert_eq!(
        (ignoring.server.health_path.as_str(), ignoring.config_file),
        ("/health", None)
    );
}

#[test]
fn paths_and_headers_of_the_file_count() {
    let file = toml_file(
        "[ws]\npaths = ['/a', '/b']\nmax_pending_size = 5\n[rpc]\nproxy_headers = ['X-Api']",
    );
    let flag = format!("--config-path={}", path_of(&file));
    let config = run(&[], &[&flag, "--norpc", "--ws_max_pending_size=6"]);
    assert_eq!(config.server.paths, ["/a", "/b"]);
    assert_eq!(config.rpc.headers, ["x-api"]);
    assert_eq!(config.websocket.pending_bytes_max, 6);
    let env = [("ANYCABLE_WS_MAX_PENDING_SIZE", "7"), ("ANYCABLE_PATH", "")];
    let config = run(&env, &[&flag, "--norpc"]);
    assert_eq!(config.websocket.pending_bytes_max, 7);
    assert_eq!(config.server.paths, ["/a", "/b"]);
}

/// The table of `contract/broadcast.md` §1.
#[test]
fn broadcast_port_and_token_follow_the_secrets() {
    const MAIN: u16 = 9000;
    let check = |args: &[&str], port: u16, token: Option<&str>| {
        let config = config(&[&["--port=9000"], args].concat());
        let http = config.broadcast.http.expect("the default adapter is http");
        assert_eq!(
            (http.port, http.token.as_deref()),
            (port, token),
            "{args:?}"
        );
    };
    let from_s = Some("b015d1a3c08cf2fec39f3014255191ef020d4ac845ac9ee7ab068b97234c62c8");
    let from_none = Some("cefe585c117433fd0b169e2e123e15eaf8faa67bd62d87372ec54828f2d6950d");
    check(&[], 8090, None);
    check(&["--secret=S"], MAIN, from_s);
    check(&["--broadcast_key=K"], MAIN, Some("K"));
    check(&["--secret=S", "--broadcast_key=K"], MAIN, Some("K"));
    check(&["--broadcast_key=none"], 8090, None);
    check(&["--secret=S", "--broadcast_key=none"], 8090, None);
    check(&["--secret=none"], MAIN, from_none);
    check(&["--secret=none", "--broadcast_key=none"], 8090, None);
    check(&["--secret=S", "--http_broadcast_port=7"], 7, from_s);
    check(&["--http_broadcast_port=7"], 7, None);
    check(&["--public"], 8090, None);
    check(&["--public", "--secret=S"], MAIN, None);
    check(&["--public", "--broadcast_key=K"], MAIN, None);
    check(
        &["--public", "--secret=S", "--http_broadcast_port=7"],
        7,
        None,
    );
    check(&["--noauth", "--secret=S"], MAIN, from_s);
    check(
        &["--http_broadcast_secret=K", "--broadcast_key=L"],
        MAIN,
        Some("K"),
    );
    check(&["--http_broadcast_secret=none", "--secret=S"], 8090, None);
    check(&["--port=0", "--secret=S"], 0, from_s);
}

#[test]
fn a_bare_secret_switches_on_what_the_reference_switches_on() {
    let config = config(&["--secret=qwerty"]);
    let jwt = JwtConfig {
        secret: "qwerty".to_owned(),
        param: "jid".to_owned(),
        enforce: false,
    };
    assert_eq!(config.auth.jwt, Some(jwt));
    assert_eq!(config.auth.streams.secret.as_deref(), Some("qwerty"));
    assert_eq!(config.auth.streams.turbo_secret, None);
    let rpc_token = "57c40610d142fe7d7999be4e23dfba4f42c3c542e1f278063e8e3b6a30b0c2bd";
    assert_eq!(
        (config.rpc.token.as_deref(), config.rpc.token_derived),
        (Some(rpc_token), true)
    );
    let api = config.api.expect("a secret mounts the API");
    let api_token = "bdd0244b3664404d03b7d0c2f1b946dc4fc6c13fdcbfa2be62a4a28deb04d096";
    assert_eq!((api.port, api.path.as_str()), (8080, "/api"));
    assert_eq!(
        (api.token.as_deref(), api.token_derived),
        (Some(api_token), true)
    );
    assert!(config.broadcast.http.expect("http is on").token_derived);
}

#[test]
fn secrets_fall_back_and_none_clears_them() {
    let jwt = |args: &[&str]| config(args).auth.jwt.map(|jwt| jwt.secret);
    let streams = |args: &[&str]| config(args).auth.streams.secret;
    let turbo = |args: &[&str]| config(args).auth.streams.turbo_secret;
    let rpc = |args: &[&str]| config(args).rpc.token;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(jwt(&["--secret=S", "--jwt_secret=J"]), some("J"));
    assert_eq!(jwt(&["--secret=S", "--jwt_secret=none"]), None);
    assert_eq!(jwt(&["--secret=none"]), None);
    assert_eq!(jwt(&["--jwt_id_key=K"]), some("K"));
    assert_eq!(streams(&["--streams_secret=T"]), some("T"));
    assert_eq!(streams(&["--secret=S", "--streams_secret=none"]), None);
    assert_eq!(turbo(&["--secret=S", "--turbo_streams"]), some("S"));
    assert_eq!(turbo(&["--secret=S", "--turbo_streams_secret=U"]), None);
    assert_eq!(turbo(&["--turbo_rails_key=U"]), some("U"));
    assert_eq!(
        config(&["--cable_ready_key=C"])
            .auth
            .streams
            .cable_ready_secret,
        some("C")
    );
    assert_eq!(rpc(&["--http_rpc_secret=R"]), some("R"));
    assert_eq!(rpc(&["--secret=S", "--http_rpc_secret=none"]), None);
    assert_eq!(rpc(&["--secret=none"]).map(|token| token.len()), Some(64));
    assert_eq!(rpc(&[]), None);
}

#[test]
fn the_api_is_mounted_by_public_port_or_secret() {
    let api = |args: &[&str]| config(args).api.map(|api| (api.port, api.token));
    assert_eq!(api(&[]), None);
    assert_eq!(api(&["--public"]), Some((8080, None)));
    assert_eq!(api(&["--api_port=7"]), Some((7, None)));
    assert_eq!(api(&["--api_secret=A"]), Some((8080, Some("A".to_owned()))));
    assert_eq!(
        api(&["--api_secret=none"]),
        Some((8080, Some("none".to_owned())))
    );
    assert_eq!(api(&["--secret=none"]), None);
    assert!(
        api(&["--public", "--secret=S"])
            .expect("mounted")
            .1
            .is_some()
    );
}

#[test]
fn public_means_noauth_and_public_streams() {
    let open = config(&["--public"]);
    assert!(open.auth.noauth && open.auth.streams.public);
    assert_eq!(open.warnings, ["Server is running in the public mode"]);
    let noauth = config(&["--noauth"]);
    assert!(noauth.auth.noauth && !noauth.auth.streams.public);
}

#[test]
fn rpc_leads_to_http_or_nowhere() {
    let check = |args: &[&str], expected: RpcEndpoint| {
        assert_eq!(run(&[], args).rpc.endpoint, expected, "{args:?}")
    };
    let http = |url: &str| RpcEndpoint::Http(url.to_owned());
    check(
        &["--rpc_host=http://web:3000/_anycable"],
        http("http://web:3000/_anycable"),
    );
    check(
        &["--rpc_host=https://web/_anycable"],
        http("https://web/_anycable"),
    );
    check(
        &["--rpc_host=http://web", "--rpc_impl=http"],
        http("http://web"),
    );
    check(
        &["--rpc_host=http://web", "--rpc_impl=none"],
        RpcEndpoint::None,
    );
    check(&["--norpc"], RpcEndpoint::None);
    check(&["--noauth"], RpcEndpoint::None);
    check(&["--public"], RpcEndpoint::None);
    check(&["--noauth", "--rpc_host=http://web"], http("http://web"));
    check(&["--demo"], http("http://127.0.0.1:0/"));
}

#[test]
fn rpc_that_leads_elsewhere_is_refused() {
    let check = |args: &[&str], expected: &str| {
        let message = refusal(&[], args);
        assert!(message.starts_with(expected), "{args:?}: {message}");
        assert!(!message.contains('\n'));
    };
    check(&[], "no RPC host is set");
    check(&["--rpc_host="], "no RPC host is set");
    check(
        &["--rpc_host=localhost:50051"],
        "option --rpc_host=localhost:50051 is not supported yet",
    );
    check(
        &["--rpc_host=dns:///rpc:50051"],
        "option --rpc_host=dns:///rpc:50051 is not supported yet",
    );
    check(
        &["--rpc_host=HTTP://web"],
        "option --rpc_host=HTTP://web is not supported yet",
    );
    check(
        &["--rpc_impl=grpc"],
        "option --rpc_impl=grpc is not supported yet",
    );
    check(
        &["--rpc_impl=http", "--rpc_host=web:3000"],
        "invalid option --rpc_host=web:3000: expected a URL",
    );
    check(
        &["--rpc_host=http://"],
        "invalid option --rpc_host=http://: expected a URL with a host",
    );
    check(
        &["--rpc_host=http:///x"],
        "invalid option --rpc_host=http:///x: expected a URL with a host",
    );
}

#[test]
fn rpc_limits_and_timeouts_are_resolved() {
    let rpc = |args: &[&str]| config(args).rpc;
    assert_eq!(rpc(&["--rpc_concurrency=5"]).concurrency, 5);
    let config = config(&["--rpc_concurrency=-1"]);
    assert_eq!(config.rpc.concurrency, 28);
    assert_eq!(
        config.warnings,
        ["RPC concurrency must be positive, reverted to the default value"]
    );
    let request = |args: &[&str]| rpc(args).request_timeout.as_millis();
    assert_eq!(request(&["--rpc_request_timeout=500"]), 500);
    assert_eq!(
        request(&["--rpc_request_timeout=500", "--http_rpc_timeout=800"]),
        800
    );
    assert_eq!(
        rpc(&["--rpc_command_timeout=0"]).command_timeout,
        Duration::ZERO
    );
    assert!(rpc(&["--rpc_tls_root_ca=ca.pem"]).tls.enabled);
    assert!(
        !rpc(&["--rpc_enable_tls", "--rpc_tls_verify=false"])
            .tls
            .verify
    );
    assert_eq!(
        rpc(&["--headers=Cookie, X-Api ,"]).headers,
        ["cookie", "x-api"]
    );
    assert!(rpc(&["--headers="]).headers.is_empty());
    assert_eq!(
        rpc(&["--proxy-cookies=_session, Id"]).cookies,
        ["_session", "Id"]
    );
}

#[test]
fn the_variables_of_campfire_give_its_configuration() {
    let env = [
        ("ANYCABLE_HOST", "0.0.0.0"),
        ("ANYCABLE_PORT", "8080"),
        ("ANYCABLE_RPC_HOST", "http://campfire-web:3000/_anycable"),
        ("ANYCABLE_BROADCAST_ADAPTER", "http"),
        ("ANYCABLE_HTTP_BROADCAST_PORT", "8080"),
        ("ANYCABLE_SECRET", "0123456789abcdef"),
        ("ANYCABLE_PATH", "/"),
        ("ANYCABLE_LOG_LEVEL", "debug"),
        ("ANYCABLE_DEBUG", "true"),
        ("ANYCABLE_WEBSOCKET_URL", "wss://example.com/cable"),
        (
            "ANYCABLE_BROADCAST_URL",
            "http://campfire-anycable:8080/_broadcast",
        ),
        ("REDIS_URL", "redis://redis:6379/3"),
    ];
    let config = run(&env, &[]);
    assert_eq!(
        (config.server.host.as_str(), config.server.port),
        ("0.0.0.0", 8080)
    );
    assert_eq!(config.server.paths, ["/"]);
    assert_eq!(
        config.rpc.endpoint,
        RpcEndpoint::Http("http://campfire-web:3000/_anycable".to_owned())
    );
    assert_eq!(
        config.broadcast.http.map(|http| (http.port, http.path)),
        Some((8080, "/_broadcast".to_owned()))
    );
    assert_eq!(
        config.log,
        LogConfig {
            level: LogLevel::Debug,
            format: LogFormat::Text,
            debug: true
        }
    );
    assert!(config.auth.jwt.is_some() && config.api.is_some() && config.warnings.is_empty());
    assert_eq!(
        config.remarks,
        ["option REDIS_URL is not in use (Redis support is planned)"]
    );
}

#[test]
fn the_console_needs_a_secret_or_loopback() {
    assert_eq!(config(&[]).console, None);
    let console = |args: &[&str]| {
        config(&[&["--console"], args].concat())
            .console
            .expect("on")
    };
    let expected = |secret: Option<&str>, bound_to_loopback| ConsoleConfig {
        secret: secret.map(str::to_owned),
        bound_to_loopback,
    };
    assert_eq!(console(&[]), expected(None, true));
    assert_eq!(console(&["--secret=none"]), expected(None, true));
    for host in ["localhost", "127.0.0.1", "127.1.2.3", "::1"] {
        assert_eq!(
            console(&["--host", host, "--secret=S"]),
            expected(Some("S"), true),
            "{host}"
        );
    }
    for host in ["", "0.0.0.0", "::", "10.0.0.1", "example.com"] {
        let host = format!("--host={host}");
        assert_eq!(
            console(&[&host, "--secret=S"]),
            expected(Some("S"), false),
            "{host}"
        );
        for secret in ["--secret=", "--secret=none"] {
            let refusal = refusal(&[], &["--norpc", "--console", &host, secret]);
            assert!(
                refusal.starts_with("option --console=true needs a secret"),
                "{refusal}"
            );
        }
    }
    // The secret that the demo makes up is known to nobody.
    let refusal = refusal(
        &[("ANYCABLE_CONSOLE", "true")],
        &["--demo", "--host=0.0.0.0"],
    );
    assert!(refusal.contains("ANYCABLE_CONSOLE"), "{refusal}");
    let file = toml_file("[console]\nenabled = true\n");
    let args = ["--norpc", "--config-path", &path_of(&file)];
    assert_eq!(run(&[], &args).console, Some(expected(None, true)));
}

#[test]
fn demo_needs_nothing_else() {
    let demo = run(&[], &["--demo"]);
    assert!(demo.demo);
    assert_eq!(
        (demo.server.host.as_str(), demo.server.port),
        ("localhost", 8080)
    );
    let secret = demo.auth.streams.secret.expect("a secret is generated");
    assert_eq!(secret.len(), 32);
    assert_ne!(Some(secret), run(&[], &["--demo"]).auth.streams.secret);
    assert_eq!(
        run(&[], &["--demo", "--secret=S"])
            .auth
            .streams
            .secret
            .as_deref(),
        Some("S")
    );
}

#[test]
fn everything_else_lands_in_its_place() {
    let config = config(&[
        "--allowed_origins=Example.com, *.Test.io,",
        "--max-conn=10",
        "--cores=2",
        "--driver=epoll",
        "--max_message_size=0",
        "--enable_ws_compression",
        "--ping_interval=0",
        "--ping_timestamp_precision=ns",
        "--pong_timeout=6",
        "--enable_native_pings",
        "--disconnect_mode=always",
        "--disconnect_rate=1000",
        "--metrics_http=/metrics",
        "--metrics_port=9090",
        "--metrics_host=0.0.0.0",
        "--metrics_tags=env:dev",
        "--log_format=json",
        "--shutdown_delay=2",
        "--shutdown_healthy",
        "--shutdown_slowdrain=5",
        "--http_broadcast_cors",
        "--streams_whisper",
        "--streams_presence=false",
        "--ssl_cert=c.pem",
        "--ssl_key=k.pem",
    ]);
    assert_eq!(config.server.allowed_origins, ["example.com", "*.test.io"]);
    assert_eq!(config.server.connections_max, 10);
    assert_eq!(
        config.runtime,
        RuntimeConfig {
            cores: Some(2),
            memory: MemoryBound::OfLimit,
            driver: DriverChoice::Epoll
        }
    );
    assert_eq!(config.websocket.message_bytes_max, 0);
    assert!(config.websocket.compression && config.ping.native);
    assert_eq!(config.ping.interval, Duration::ZERO);
    assert_eq!(config.ping.precision, PingPrecision::Nanoseconds);
    assert_eq!(config.ping.pong_timeout, Duration::from_secs(6));
    assert_eq!(
        (config.disconnect.mode, config.disconnect.rate),
        (DisconnectMode::Always, 1000)
    );
    assert_eq!(config.metrics.http_path.as_deref(), Some("/metrics"));
    assert_eq!(
        (config.metrics.host.as_str(), config.metrics.port),
        ("0.0.0.0", 9090)
    );
    assert_eq!(config.metrics.tags, [("env".to_owned(), "dev".to_owned())]);
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.shutdown.delay, Duration::from_secs(2));
    assert_eq!(config.shutdown.slow_drain, Duration::from_secs(5));
    assert!(config.shutdown.healthy);
    assert!(config.broadcast.http.expect("http is on").cors);
    assert!(config.auth.streams.whisper && !config.auth.streams.presence);
    let tls = TlsFiles {
        cert_path: "c.pem".to_owned(),
        key_path: "k.pem".to_owned(),
    };
    assert_eq!(config.server.tls, Some(tls));
}

#[test]
fn metrics_by_interval_are_off_unless_asked_for() {
    let off = config(&["--metrics_log_filter=a", "--statsd_prefix=p."]).metrics;
    assert!(!off.log && off.statsd.is_none());
    assert_eq!(off.rotate_interval, Duration::from_secs(15));
    let on = config(&[
        "--metrics_log",
        "--metrics_log_filter=a, b",
        "--metrics_rotate_interval=0",
        "--metrics_log_interval=7",
        "--statsd_host=s:8125",
        "--statsd_tags_format=graphite",
    ])
    .metrics;
    assert!(on.log);
    assert_eq!(on.log_filter, ["a", "b"]);
    assert_eq!(on.rotate_interval, Duration::from_secs(7));
    let statsd = StatsdConfig {
        target: "s:8125".to_owned(),
        prefix: "anycable_go.".to_owned(),
        packet_bytes_max: 1400,
        tag_style: StatsdTagStyle::Graphite,
    };
    assert_eq!(on.statsd, Some(statsd));
    let zero = config(&["--metrics_rotate_interval=0"]).metrics;
    assert_eq!(zero.rotate_interval, Duration::from_secs(15));
}

#[test]
fn memory_is_bounded_by_a_share_a_number_or_not_at_all() {
    let bound = |args: &[&str]| config(args).runtime.memory;
    assert_eq!(bound(&[]), MemoryBound::OfLimit);
    assert_eq!(bound(&["--memory_bytes_max=-1"]), MemoryBound::OfLimit);
    assert_eq!(bound(&["--memory_bytes_max=0"]), MemoryBound::None);
    assert_eq!(
        bound(&["--memory_bytes_max=50000000"]),
        MemoryBound::Bytes(50_000_000)
    );
    assert!(startup(&[], &["--memory_bytes_max=-2"]).is_err());
}

#[test]
fn slow_calls_have_a_limit_that_can_be_switched_off() {
    let limit = |args: &[&str]| config(args).rpc.slow_call;
    assert_eq!(limit(&[]), Duration::from_secs(1));
    assert_eq!(limit(&["--rpc_slow_call=250"]), Duration::from_millis(250));
    assert_eq!(limit(&["--rpc_slow_call=0"]), Duration::ZERO);
}

#[test]
fn a_slow_drain_by_switch_takes_most_of_the_time() {
    let check = |env: &str, args: &[&str], millis: u64| {
        let args = [&["--norpc"], args].concat();
        let config = run(&[("ANYCABLE_SHUTDOWN_SLOWDRAIN", env)], &args);
        let expected = Duration::from_millis(millis);
        assert_eq!(config.shutdown.slow_drain, expected, "{env} {args:?}");
    };
    check("true", &[], 25_000);
    check("true", &["--shutdown_delay=12"], 15_000);
    check("true", &["--shutdown_timeout=4"], 3_000);
    check("true", &["--shutdown_timeout=0"], 0);
    check("true", &["--shutdown_slowdrain=false"], 0);
    check("false", &[], 0);
    check("", &[], 0);
    check("8", &[], 8_000);
}

#[test]
fn an_empty_host_means_every_interface() {
    assert_eq!(run(&[("ANYCABLE_HOST", "")], &["--norpc"]).server.host, "");
}

#[test]
fn presets_come_last() {
    let env = [
        ("HEROKU_APP_ID", "a"),
        ("HEROKU_DYNO_ID", "d"),
        ("PORT", "3000"),
    ];
    let config = run(&env, &["--norpc"]);
    assert_eq!(
        (config.server.host.as_str(), config.server.port),
        ("0.0.0.0", 3000)
    );
    assert_eq!(config.metrics.host, "0.0.0.0");
    assert_eq!(config.presets, ["heroku"]);
    assert_eq!(config.broadcast.http.map(|http| http.port), Some(8090));
}

#[test]
fn settings_without_effect_are_warned_about() {
    let config = config(&["--enforce_jwt", "--turbo_streams", "--shutdown_delay=30"]);
    assert_eq!(
        config.warnings,
        [
            "shutdown_delay uses up shutdown_timeout, half a second is kept for telling the clients",
            "enforce_jwt has no effect without a JWT secret",
            "turbo_streams has no effect without a secret, Turbo::StreamsChannel goes to RPC",
        ]
    );
    let typo = run(&[("ANYCABLE_RPC_HOTS", "x")], &["--norpc"]);
    assert_eq!(typo.warnings.len(), 1);
}

#[test]
fn certificates_of_the_app_are_verified_unless_its_tls_options_are_on() {
    let tls = |args: &[&str]| {
        let config = config(args);
        (config.rpc.tls.verify, config.warnings.len())
    };
    assert_eq!(tls(&[]), (true, 0));
    assert_eq!(tls(&["--rpc_tls_verify=false"]), (true, 1));
    assert_eq!(
        tls(&["--rpc_tls_verify=false", "--rpc_enable_tls"]),
        (false, 0)
    );
    assert_eq!(
        tls(&["--rpc_tls_verify=false", "--rpc_tls_root_ca=ca.pem"]),
        (false, 0)
    );
}

#[test]
fn check_config_resolves_as_a_start_does() {
    let args = [
        "--node_id=n",
        "--rpc_host=http://web",
        "--hub_gopool_size=3",
    ];
    let checked = startup(&[], &[&args[..], &["--check-config"]].concat());
    let Ok(Startup::CheckConfig(checked, problems)) = checked else {
        panic!("a check was asked for: {checked:?}");
    };
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!(*checked, run(&[], &args));
}

#[test]
fn help_and_version_print_and_win_over_everything_that_can_be_read() {
    assert_eq!(
        printed_text(&[("ANYCABLE_PORT", "x")], &["-v"]),
        format!("{}\n", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(
        printed_text(&[], &["--version", "--broker=memory"]),
        printed_text(&[], &["-version"])
    );
    assert_eq!(printed_text(&[], &["--help"]), help());
    assert_eq!(
        printed_text(&[], &["-h", "--config-path=nope.toml"]),
        help()
    );
    assert!(refusal(&[], &["--help", "--nope"]).starts_with("flag provided but not defined"));
}

#[test]
fn only_errors_of_reading_show_the_usage() {
    let check = |env: &[(&str, &str)], args: &[&str], usage: bool| {
        let error = startup(env, args).expect_err("refused");
        assert_eq!((error.usage(), error.exit_code()), (usage, 1), "{error}");
    };
    check(&[], &["--nope"], true);
    check(&[], &["foo"], true);
    check(&[], &["--port=x"], true);
    check(&[("ANYCABLE_PORT", "x")], &[], true);
    check(&[], &["--config-path=nope.toml"], false);
    check(&[], &["--log_level=foo"], false);
    check(&[], &["--broker=memory"], false);
    check(&[], &[], false);
}

#[test]
fn broken_files_are_reported() {
    let file = toml_file("[server]\nport = 'x'");
    let path = path_of(&file);
    let expected = format!(
        "failed to parse TOML configuration, cause: {path}: server.port must be an integer, not a string"
    );
    assert_eq!(refusal(&[], &[&format!("--config-path={path}")]), expected);
    assert_eq!(
        refusal(&[], &["--config-path", "nope.toml"]),
        "failed to read config file, cause: open nope.toml: no such file or directory"
    );
}

#[test]
fn every_option_may_be_given_its_default() {
    let env = [("ANYCABLE_NORPC", "true"), ("ANYCABLE_RPC_IMPL", "none")];
    for option in options::OPTIONS.iter().filter(|option| option.has_flag) {
        // Given at all, it asks a question; no connections are no question.
        if option.name == "check" {
            continue;
        }
        let arg = format!("--{}={}", option.name, option.default_text);
        match startup(&env, &[&arg]) {
            Ok(_) => {}
            Err(error) => panic!("{arg}: {error}"),
        }
    }
}

#[test]
fn check_takes_the_other_options_into_account_and_needs_no_app() {
    let check = |env: &[(&str, &str)], args: &[&str], expected: CheckRequest| {
        let Startup::Check(found) = startup(env, args).expect("a question") else {
            panic!("a check was asked for: {args:?}");
        };
        assert_eq!(found, expected, "{args:?}");
    };
    let default = CheckRequest {
        connections: 1_000_000,
        cores: None,
        driver: DriverChoice::Auto,
        connections_max: 0,
        rpc_concurrency: 28,
        ping_interval: Duration::from_secs(3),
        tls: false,
    };
    check(&[], &["--check", "1000000"], default.clone());
    check(
        &[("ANYCABLE_CORES", "4"), ("ANYCABLE_RPC_CONCURRENCY", "9")],
        &[
            "--check=7",
            "--driver=io_uring",
            "--max-conn=5",
            "--ping_interval=0",
            "--ssl_cert=cert.pem",
            "--ssl_key=key.pem",
        ],
        CheckRequest {
            connections: 7,
            cores: Some(4),
            driver: DriverChoice::IoUring,
            connections_max: 5,
            rpc_concurrency: 9,
            ping_interval: Duration::ZERO,
            tls: true,
        },
    );
    assert_eq!(
        refusal(&[], &["--check=100000001"]),
        "invalid option --check=100000001: expected a number of connections from 1 to 100000000"
    );
    assert_eq!(
        refusal(&[], &["--check=5", "--driver=kqueue"]),
        "invalid option --driver=kqueue: expected one of auto, io_uring, epoll"
    );
}
