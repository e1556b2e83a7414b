//! Which source wins, the resolved value of each option, what is printed, and what is refused.

use super::*;

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

/// The configuration of a start that is refused, because the broker is.
fn broker_config(toml: &str, args: &[&str]) -> BrokerConfig {
    let file = toml_file(toml);
    let path = format!("--config-path={}", path_of(&file));
    match startup(&[], &[&["--norpc", "--check-config", &path], args].concat()) {
        Ok(Startup::CheckConfig(config, _)) => config.broker,
        other => panic!("{toml} {args:?} should be checked: {other:?}"),
    }
}

#[test]
fn the_broker_has_the_limits_of_the_reference() {
    let broker = config(&[]).broker;
    let expected = BrokerConfig {
        adapter: BrokerAdapter::None,
        history: HistoryLimits {
            messages: 100,
            ttl: Duration::from_secs(300),
        },
        history_by_prefix: Vec::new(),
        sessions_ttl: Duration::from_secs(300),
        presence_ttl: Duration::from_secs(15),
        memory: MemoryBound::OfLimit,
    };
    assert_eq!(broker, expected);
    assert!(!broker.keeps_sessions());
}

#[test]
fn the_broker_can_have_other_limits_for_some_streams() {
    let args = [
        "--history_limit=5",
        "--presence_ttl=7",
        "--broker_bytes_max=1000000",
    ];
    let toml = "[broker]\nadapter = 'memory'\nhistory_ttl = 60\nsessions_ttl = 8\n
        [[broker.limits]]\nprefix = 'chat/'\nhistory_limit = 1000\n
        [[broker.limits]]\nprefix = 'ticker/'\nhistory_limit = 0\nhistory_ttl = 1";
    let broker = broker_config(toml, &args);
    let limits = |messages: usize, secs: u64| HistoryLimits {
        messages,
        ttl: Duration::from_secs(secs),
    };
    let expected = BrokerConfig {
        adapter: BrokerAdapter::Memory,
        history: limits(5, 60),
        history_by_prefix: vec![
            ("chat/".to_owned(), limits(1000, 60)),
            ("ticker/".to_owned(), limits(0, 1)),
        ],
        sessions_ttl: Duration::from_secs(8),
        presence_ttl: Duration::from_secs(7),
        memory: MemoryBound::Bytes(1_000_000),
    };
    assert_eq!(broker, expected);
    assert!(broker.keeps_sessions());
    assert!(!broker_config("", &["--broker=memory", "--sessions_ttl=0"]).keeps_sessions());
}

#[test]
fn a_table_of_limits_that_means_nothing_is_refused() {
    let check = |toml: &str, expected: &str| {
        let file = toml_file(toml);
        let path = format!("--config-path={}", path_of(&file));
        let refusal = refusal(&[], &["--norpc", &path]);
        assert!(refusal.ends_with(expected), "{refusal}");
    };
    check(
        "[[broker.limits]]\nprefix = 'a'\nhistory_limit = -1",
        "invalid option broker.limits = a history_limit=-1: expected history_limit from 0 to 4294967295",
    );
    check(
        "[[broker.limits]]\nprefix = 'a'\nlimit = 1",
        "broker.limits must be an array of tables, each with prefix and whole numbers as history_limit or history_ttl, \
         not an array of something else",
    );
    check(
        "[broker]\nlimits = 5",
        "broker.limits must be an array of tables, each with prefix and whole numbers as history_limit or history_ttl, \
         not an integer",
    );
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
        // `--check` with any value is a question about the host, and 0 connections are no valid question.
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
