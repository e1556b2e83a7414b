//! The command line as an operator meets it: exit codes, one-line errors, `--version`, `--help`, `--print-config`.
//! Source: `contract/operations.md` §1, §3, §6 and §10.

use std::fs;
use std::net::TcpListener;

use crate::support::server::Finished;
use crate::support::{Launch, Rails, Stage};

fn run(args: &[&str]) -> Finished {
    Launch::bare().args(args.iter().copied()).run()
}

/// Refused with exit code 1 and exactly one line on stderr, which contains all `parts`.
fn refused(launch: Launch, parts: &[&str]) -> Finished {
    let finished = launch.run();
    assert_eq!(finished.status.code(), Some(1), "{finished}");
    assert_eq!(
        finished.stderr.lines().count(),
        1,
        "one clear line: {finished}"
    );
    for part in parts {
        assert!(finished.stderr.contains(part), "no {part:?} in {finished}");
    }
    assert!(
        !finished.stderr.contains("panicked") && !finished.stderr.contains("RUST_BACKTRACE"),
        "{finished}"
    );
    finished
}

fn refused_args(args: &[&str], parts: &[&str]) -> Finished {
    refused(
        Launch::bare().arg("--norpc").args(args.iter().copied()),
        parts,
    )
}

#[test]
fn version_is_bare() {
    for flag in ["--version", "-version", "-v"] {
        let finished = run(&[flag]);
        assert_eq!(finished.status.code(), Some(0), "{finished}");
        assert!(finished.stderr.is_empty(), "{finished}");
        assert_eq!(finished.stdout, env!("CARGO_PKG_VERSION"));
    }
}

#[test]
fn programs_own_name_as_the_first_word_is_skipped() {
    for name in ["anycable-go", "ringcable", "/usr/local/bin/anycable-go"] {
        let finished = run(&[name, "--port=9000", "--print-config"]);
        assert_eq!(finished.status.code(), Some(0), "{finished}");
        assert!(finished.stdout.contains("\nport = 9000\n"), "{finished}");
    }
    refused(
        Launch::bare().args(["--norpc", "anycable-go"]),
        &["unexpected argument \"anycable-go\""],
    );
}

#[test]
fn words_that_everybody_types_are_understood() {
    assert_eq!(run(&["version"]).stdout, run(&["--version"]).stdout);
    assert_eq!(run(&["help"]).stdout, run(&["--help"]).stdout);
    let printed = run(&["demo", "--port=9000", "--print-config"]);
    assert!(printed.stdout.contains("\nport = 9000\n"), "{printed}");
    refused_args(
        &["check-config"],
        &["unexpected argument \"check-config\" (did you mean --check-config?)"],
    );
    refused(
        Launch::bare(),
        &[
            "no RPC host is set",
            "to try ringcable without an app: --demo",
        ],
    );
}

#[test]
fn options_that_are_not_there_yet_close_the_help() {
    let help = run(&["--help"]).stdout;
    let (before, after) = help
        .split_once("OPTIONS OF ANYCABLE-GO THAT ARE NOT SUPPORTED YET:")
        .expect("a section");
    assert!(
        !before.contains("not supported yet") && after.contains("--embed_nats"),
        "{help}"
    );
}

#[test]
fn help_lists_the_options_with_defaults_and_variables() {
    for flag in ["--help", "-h"] {
        let finished = run(&[flag]);
        assert_eq!(finished.status.code(), Some(0), "{finished}");
        for part in [
            "NAME:",
            "USAGE:",
            "VERSION:",
            "GLOBAL OPTIONS:",
            "--rpc_host",
            "ANYCABLE_RPC_HOST",
            "ANYCABLE_PORT",
        ] {
            assert!(finished.stdout.contains(part), "no {part} in {finished}");
        }
        for own in [
            "--cores",
            "--driver",
            "--demo",
            "--check",
            "--check-config",
            "--generate",
            "--console",
        ] {
            assert!(finished.stdout.contains(own), "no {own} in {finished}");
        }
    }
}

#[test]
fn usage_errors_are_a_line_on_each_stream() {
    let table: [(&[&str], &str); 5] = [
        (
            &["--check=many"],
            "invalid value \"many\" for flag -check: parse error",
        ),
        (&["--nope"], "flag provided but not defined: -nope"),
        (
            &["--port=abc"],
            "invalid value \"abc\" for flag -port: parse error",
        ),
        (&["--port"], "flag needs an argument: -port"),
        (
            &["--max_conn=5"],
            "flag provided but not defined: -max_conn",
        ),
    ];
    for (args, message) in table {
        let finished = refused_args(args, &[message]);
        assert!(
            finished
                .stdout
                .starts_with(&format!("Incorrect Usage: {message}")),
            "{finished}"
        );
        assert_eq!(finished.stdout.lines().count(), 1, "{finished}");
        assert!(
            finished.stderr.ends_with("; see ringcable --help"),
            "{finished}"
        );
        let date = finished.stderr.get(..20).expect("a date");
        assert!(
            date.chars()
                .zip("dddd/dd/dd dd:dd:dd ".chars())
                .all(|(got, form)| match form {
                    'd' => got.is_ascii_digit(),
                    other => got == other,
                }),
            "{finished}"
        );
    }
}

#[test]
fn bad_variable_names_the_variable() {
    let launch = Launch::bare().arg("--norpc").env("ANYCABLE_DEBUG", "yes");
    refused(
        launch,
        &[
            "could not parse \"yes\" as bool value from environment variable \"ANYCABLE_DEBUG\" for flag debug",
        ],
    );
}

#[test]
fn silly_values_are_refused_by_name() {
    let table: [(&[&str], &str); 11] = [
        (
            &["--check=0"],
            "--check=0: expected a number of connections from 1",
        ),
        (&["--check=-5"], "--check=-5"),
        (&["--log_level=foo"], "foo"),
        (&["--log_format=xml"], "xml"),
        (&["--disconnect_rate=0"], "disconnect_rate"),
        (&["--disconnect_rate=1001"], "disconnect_rate"),
        (&["--path=cable"], "path"),
        (&["--path=/a{b"], "path"),
        (&["--disconnect_mode=sometimes"], "disconnect_mode"),
        (&["--broadcast_adapter=carrier-pigeon"], "carrier-pigeon"),
        (&["--driver=kqueue"], "driver"),
    ];
    for (args, part) in table {
        refused_args(args, &[part]);
    }
    let implementation = ["--rpc_host=http://localhost/", "--rpc_impl=foo"];
    refused(Launch::bare().args(implementation), &["rpc_impl"]);
}

#[test]
fn features_that_are_not_there_yet_are_refused_by_name() {
    for args in [
        &["--broker=nats"][..],
        &["--pubsub=redis"],
        &["--broadcast_adapter=redisx"],
        &["--embed_nats"],
    ] {
        let name = args[0]
            .trim_start_matches('-')
            .split('=')
            .next()
            .expect("a name");
        refused_args(args, &[name]);
    }
    refused(
        Launch::bare().arg("--rpc_host=localhost:50051"),
        &["rpc_host"],
    );
}

#[test]
fn unreadable_or_broken_file_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    refused_args(
        &["--config-path=nope.toml"],
        &["failed to read config file", "nope.toml"],
    );
    let broken = directory.path().join("broken.toml");
    fs::write(&broken, "[server\nport = 1").expect("a file");
    refused_args(
        &["--config-path", broken.to_str().expect("UTF-8")],
        &["failed to parse TOML configuration"],
    );
    let wrong = directory.path().join("wrong.toml");
    fs::write(&wrong, "[server]\nport = \"many\"\n").expect("a file");
    refused_args(
        &["--config-path", wrong.to_str().expect("UTF-8")],
        &["port"],
    );
}

#[test]
fn printed_configuration_reads_back_to_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("printed.toml");
    let args = [
        "--rpc_host=http://web:3000/_anycable",
        "--secret=s",
        "--port=9999",
        "--metrics_http=/metrics",
        "--path=/a,/b",
        "--headers=cookie,origin",
        "--shutdown_delay=3",
        "--node_id=n1",
        "--ping_interval=7",
        "--enable_native_pings",
    ];
    let first = run(&[&args[..], &["--print-config"]].concat());
    assert_eq!(first.status.code(), Some(0), "{first}");
    fs::write(&path, &first.stdout).expect("a file");
    let second = run(&[
        "--config-path",
        path.to_str().expect("UTF-8"),
        "--print-config",
    ]);
    assert_eq!(second.status.code(), Some(0), "{second}");
    assert_eq!(first.stdout, second.stdout);
}

on_both_drivers! {
    fn port_in_use_is_one_clear_line_and_exit_code_1(driver: Driver) {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let launch = Launch::bare().args(["--norpc", "--host=127.0.0.1", driver.flag()]).arg(format!("--port={port}"));
        refused(launch, &[&port.to_string(), "in use"]);
    }

    fn second_server_cannot_share_the_port_of_the_first(driver: Driver) {
        let stage = Stage::new(driver);
        let port = stage.server.port();
        let launch = Launch::bare().args(["--norpc", "--host=127.0.0.1", driver.flag()]).arg(format!("--port={port}"));
        refused(launch, &[&port.to_string(), "in use"]);
        stage.client().subscribe("A");
    }

    fn file_environment_and_flags_override_each_other_in_this_order(driver: Driver) {
        let directory = tempfile::tempdir().expect("a directory");
        let file = "[server]\nhealth_path = \"/file\"\n[logging]\nlevel = \"debug\"\n[ws]\npaths = [\"/from-file\"]\n";
        fs::write(directory.path().join("anycable.toml"), file).expect("a file");
        let rails = Rails::start();
        let launch = || Stage::launch(driver, &rails).directory(directory.path());
        let from_file = launch().spawn_without_health();
        assert_eq!(from_file.get("/file").status, 200);
        assert_eq!(from_file.get("/from-file").status, 400);
        from_file.wait_for_log(&["Using configuration from file: ./anycable.toml"]);
        let from_env = launch().env("ANYCABLE_HEALTH_PATH", "/env").spawn_without_health();
        assert_eq!(from_env.get("/env").status, 200);
        let from_flag = launch().env("ANYCABLE_HEALTH_PATH", "/env").arg("--health-path=/flag").spawn_without_health();
        assert_eq!(from_flag.get("/flag").status, 200);
        let ignored = launch().arg("--ignore-config-path").start();
        assert_eq!(ignored.get("/file").status, 404);
    }

    fn unknown_variables_do_no_harm(driver: Driver) {
        let rails = Rails::start();
        let launch = Stage::launch(driver, &rails).env("ANYCABLE_NO_SUCH_THING", "1").env("REDIS_URL", "redis://nowhere");
        let server = launch.env("ANYCABLE_DISABLE_TELEMETRY", "true").start();
        assert_eq!(server.get("/health").status, 200);
    }
}
