//! Options as an operator meets them at the real binary: `--check-config`, `--generate`, presets, `PORT`, suggestions, and
//! options that nothing reads. Source: `contract/operations.md` §2–§5.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::server::Finished;
use crate::support::{Launch, Rails, Stage, keys, ports};

const RPC: &str = "--rpc_host=http://localhost:1/_anycable";

/// Files that a configuration may name.
struct Files {
    directory: TempDir,
}

impl Files {
    /// Two certificates with their keys, and files that are neither.
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).expect("a file");
        };
        for name in ["a", "b"] {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a key");
            write(&format!("{name}.pem"), &made.cert.pem());
            write(&format!("{name}.key"), &made.signing_key.serialize_pem());
        }
        write("text.pem", "no certificate\n");
        Self { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

fn exited(finished: Finished, code: i32) -> Finished {
    assert_eq!(finished.status.code(), Some(code), "{finished}");
    finished
}

/// Standard error without its date.
fn message(finished: &Finished) -> &str {
    assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
    finished
        .stderr
        .get("2026/11/26 07:00:00 ".len()..)
        .expect("a date and a message")
}

/// What a start refuses, `--check-config` refuses in the same words, and nothing has been served before.
#[test]
fn check_config_finds_what_a_start_finds() {
    let files = Files::new();
    fs::write(files.path().join("broken.toml"), "[server\n").expect("a file");
    let table: [(&[&str], &str); 17] = [
        (&["--nope"], "flag provided but not defined: -nope"),
        (&["--port=x"], "invalid value \"x\" for flag -port"),
        (&["--disconnect_rate=0"], "--disconnect_rate=0"),
        (&["--broker=nats"], "--broker=nats is not supported yet"),
        (&["--config-path=none.toml"], "open none.toml: no such file"),
        (&["--config-path=broken.toml"], "broken.toml line 1"),
        (&["--ssl_cert=a.pem"], "needs --ssl_key too"),
        (
            &["--ssl_cert=none.pem", "--ssl_key=a.key"],
            "cannot read ssl_cert \"none.pem\"",
        ),
        (
            &["--ssl_cert=text.pem", "--ssl_key=a.key"],
            "ssl_cert \"text.pem\" holds no usable PEM certificate",
        ),
        (
            &["--ssl_cert=a.pem", "--ssl_key=text.pem"],
            "ssl_key \"text.pem\" holds no usable PEM private key",
        ),
        (
            &["--ssl_cert=a.pem", "--ssl_key=b.key"],
            "cannot be used together",
        ),
        (&["--path=/{a}/{a}"], "two placeholders called \"a\""),
        (&["--path=/{a:[}"], "a bad regular expression"),
        (&["--rpc_host=http://web:99999/"], "invalid port \"99999\""),
        (
            &["--http_rpc_secret=a\u{1}b"],
            "the RPC secret contains characters",
        ),
        (
            &["--rpc_host=https://web/", "--rpc_tls_root_ca=none.pem"],
            "cannot read rpc_tls_root_ca \"none.pem\"",
        ),
        (
            &["--rpc_host=https://web/", "--rpc_tls_root_ca=text.pem"],
            "rpc_tls_root_ca contains no usable PEM certificate",
        ),
    ];
    for (args, part) in table {
        let launch = || {
            Launch::bare()
                .directory(files.path())
                .args(["--host=127.0.0.1", "--port=0", RPC])
                .args(args.iter().copied())
        };
        let checked = exited(launch().arg("--check-config").run(), 1);
        assert!(message(&checked).contains(part), "{args:?}: {checked}");
        assert!(!checked.stdout.contains("is ok"), "{checked}");
        let started = exited(launch().run(), 1);
        // A start that ends for how it was called names the help, once.
        let reason = message(&started).trim_end_matches("; see ringcable --help");
        assert_eq!(message(&checked), reason, "{args:?}");
        assert!(!started.stdout.contains("Handle WebSocket"), "{started}");
    }
}

/// Three runs were needed for these three; each has its line, whatever else is wrong.
#[test]
fn check_config_lists_all_problems_of_a_run() {
    let files = Files::new();
    fs::write(files.path().join("anycable.toml"), "[server]\nport = 'x'\n").expect("a file");
    let launch = || {
        Launch::bare()
            .directory(files.path())
            .args([
                "--host=0.0.0.0",
                "--console",
                "--nope",
                "--ssl_cert=none.pem",
                "--ssl_key=none.key",
            ])
            .args(["--path=/health", "--log_level=loud", "--broker=nats"])
            .env("ANYCABLE_MAX_CONN", "many")
            .env("ANYCABLE_HEADERS", "\"cookie,origin\"")
    };
    let finished = exited(launch().arg("--check-config").run(), 1);
    let lines: Vec<&str> = finished.stderr.lines().collect();
    let wanted = [
        "flag provided but not defined: -nope",
        "./anycable.toml: server.port must be an integer, not a string",
        "could not parse \"many\" as int value from environment variable \"ANYCABLE_MAX_CONN\" for flag max-conn: write a \
         whole number",
        "invalid option --log_level=loud: expected one of debug, info, warn, error",
        "invalid option ANYCABLE_HEADERS=\"cookie,origin\": expected names of headers, without the quotes (docker --env-file",
        "option --broker=nats is not supported yet",
        "option --console=true needs a secret",
        "no RPC host is set",
        "cannot read ssl_cert \"none.pem\"",
        "cannot read ssl_key \"none.key\"",
        "path /health is asked for by --path (ANYCABLE_PATH) and by --health-path (ANYCABLE_HEALTH_PATH)",
    ];
    for part in wanted {
        assert!(
            lines.iter().any(|line| line.contains(part)),
            "{part}: {finished}"
        );
    }
    assert_eq!(lines.len(), wanted.len(), "{finished}");
    assert!(!finished.stdout.contains("is ok"), "{finished}");
    // A start ends with the first of them.
    let started = exited(launch().run(), 1);
    assert!(message(&started).contains("-nope"), "{started}");
}

/// Each would be served in silence, and one of the two features lost.
#[test]
fn paths_that_collide_are_refused_with_both_names() {
    let secret = "--secret=0123456789abcdef";
    let table: [(&[&str], [&str; 2]); 10] = [
        (&["--path=/health"], ["--path", "--health-path"]),
        (&["--health-path=/cable"], ["--path", "--health-path"]),
        (
            &[secret, "--metrics_http=/_broadcast"],
            ["--http_broadcast_path", "--metrics_http"],
        ),
        (
            &[secret, "--metrics_http=/api"],
            ["--api_path", "--metrics_http"],
        ),
        (
            &[secret, "--path=/api/presence/*"],
            ["--path", "--api_path"],
        ),
        (&["--path=/cable,/cable"], ["--path", "twice"]),
        (
            &["--console", "--metrics_http=/_console"],
            ["--console", "--metrics_http"],
        ),
        (&["--demo", "--path=/"], ["--path", "--demo"]),
        (
            &["--metrics_http=/_broadcast", "--metrics_port=8090"],
            ["--http_broadcast_path", "--metrics_http"],
        ),
        (
            &[
                "--port=8080",
                "--metrics_http=/metrics",
                "--metrics_host=localhost",
            ],
            ["--host=127.0.0.1", "--metrics_host=localhost"],
        ),
    ];
    for (args, parts) in table {
        let launch = || {
            Launch::bare()
                .args(["--host=127.0.0.1", "--port=0", RPC])
                .args(args.iter().copied())
        };
        let checked = exited(launch().arg("--check-config").run(), 1);
        for part in parts {
            assert!(message(&checked).contains(part), "{args:?}: {checked}");
        }
        let started = exited(launch().run(), 1);
        assert_eq!(message(&checked), message(&started), "{args:?}");
    }
    for args in [
        &[secret, "--metrics_http=/_broadcast", "--metrics_port=9"][..],
        &["--path=/*", "--metrics_http=/metrics"],
    ] {
        let finished = exited(
            Launch::bare()
                .args(["--check-config", RPC])
                .args(args.iter().copied())
                .run(),
            0,
        );
        assert!(
            finished.stdout.contains("configuration is ok"),
            "{finished}"
        );
    }
}

#[test]
fn a_service_link_of_kubernetes_is_explained() {
    let finished = Launch::bare()
        .arg("--check-config")
        .arg(RPC)
        .env("ANYCABLE_PORT", "tcp://10.96.0.7:80")
        .run();
    let finished = exited(finished, 1);
    assert!(
        message(&finished).contains("enableServiceLinks: false"),
        "{finished}"
    );
    assert!(!finished.stderr.contains("strconv"), "{finished}");
}

#[test]
fn an_encrypted_key_is_called_so() {
    let files = Files::new();
    for (name, text) in [
        (
            "new.key",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBvTBXBgkqhkiG9w0BBQ0wSjApBgkqhkiG\n-----END ENCRYPTED PRIVATE KEY-----\n",
        ),
        (
            "old.key",
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIBvTBXBgkqhkiG9w0B\n\
             -----END RSA PRIVATE KEY-----\n",
        ),
    ] {
        fs::write(files.path().join(name), text).expect("a file");
        let finished = Launch::bare()
            .directory(files.path())
            .args([
                "--check-config",
                RPC,
                "--ssl_cert=a.pem",
                &format!("--ssl_key={name}"),
            ])
            .run();
        let finished = exited(finished, 1);
        let wanted = format!(
            "ssl_key \"{name}\" is encrypted, and nobody can type its password here: decrypt it with openssl"
        );
        assert!(message(&finished).contains(&wanted), "{finished}");
    }
}

#[test]
fn check_config_says_which_file_and_where_a_start_would_listen() {
    let files = Files::new();
    let toml = "[server]\nprot = 1\n[rpc]\nhost = 'http://localhost:1/'\n[server.ssl]\ncert_path = 'a.pem'\nkey_path = 'a.key'\n";
    fs::write(files.path().join("anycable.toml"), toml).expect("a file");
    // Somebody has the port: a check does not want it.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port();
    let launch = Launch::bare().directory(files.path()).args([
        "--check-config",
        "--metrics_http=/metrics",
        "--metrics_port=9",
        "--jwt_id_key=0123456789abcdef",
        "--hub_gopool_size=3",
        &format!("--port={port}"),
    ]);
    let finished = exited(launch.env("REDIS_URL", "redis://:pass@app").run(), 0);
    assert!(finished.stderr.is_empty(), "{finished}");
    let lines: Vec<&str> = finished.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "DEPRECATION WARNING: jwt_id_key option is deprecated",
            "and will be removed in a future version of ringcable.",
            "Use jwt_secret instead.",
            "note: option REDIS_URL is not in use (Redis support is planned)",
            "warning: option --hub_gopool_size=3 has no effect: every shard fans out by itself; cores says how many there are",
            "warning: Unknown key server.prot in ./anycable.toml is ignored (did you mean server.port?)",
            &format!(
                "configuration is ok: file ./anycable.toml, would listen on https://localhost:{port} (WebSocket, health), \
                 https://localhost:8090 (broadcasts), https://localhost:9 (metrics)"
            ),
        ]
    );
    let bare = exited(
        Launch::bare()
            .args(["--check-config", "--noauth", "--secret=0123456789abcdef"])
            .run(),
        0,
    );
    assert_eq!(
        bare.stdout,
        "configuration is ok: no file, would listen on http://localhost:8080 (WebSocket, health, broadcasts, API)"
    );
    let demo = exited(Launch::bare().args(["--check-config", "--demo"]).run(), 0);
    assert!(demo.stdout.starts_with("configuration is ok: "), "{demo}");
}

#[test]
fn every_text_is_generated_whatever_else_is_given() {
    let table = [
        ("man", ".TH RINGCABLE 1 "),
        ("complete-bash", "complete -F _ringcable ringcable"),
        ("complete-zsh", "#compdef ringcable"),
        ("complete-fish", "complete -c ringcable -f"),
        ("options", "# Options"),
    ];
    for (word, part) in table {
        let launch = Launch::bare()
            .args(["--generate", word])
            .env("ANYCABLE_PORT", "x");
        let finished = exited(launch.run(), 0);
        assert!(finished.stderr.is_empty(), "{finished}");
        assert!(finished.stdout.contains(part), "{word}: {finished}");
        assert!(finished.stdout.contains("rpc_host"), "{word}: {finished}");
    }
    let finished = exited(Launch::bare().arg("--generate=html").run(), 1);
    assert_eq!(
        message(&finished),
        "invalid option --generate=html: expected one of man, complete-bash, complete-zsh, complete-fish, options"
    );
}

/// A real bash with the completions of the binary, asked as readline asks.
struct Bash {
    directory: TempDir,
}

impl Bash {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let made = exited(Launch::bare().arg("--generate=complete-bash").run(), 0);
        fs::write(directory.path().join("ringcable.bash"), made.stdout).expect("a file");
        for name in ["one.pem", "one.key", "two.pem"] {
            fs::write(directory.path().join(name), "").expect("a file");
        }
        Self { directory }
    }

    fn run(&self, script: &str) -> Vec<String> {
        let output = Command::new("bash")
            .args(["--norc", "--noprofile", "-c"])
            .arg(format!("set -u; source ./ringcable.bash && {script}"))
            .current_dir(self.directory.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .output()
            .expect("bash is there");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.lines().map(str::to_owned).collect()
    }

    /// What is offered for the last of `words`.
    fn offers(&self, words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let words = words.join(" ");
        let script = format!(
            "COMP_WORDS=(ringcable {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _ringcable; \
             ((${{#COMPREPLY[@]}} == 0)) || printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let mut offers = self.run(&script);
        offers.sort();
        offers
    }
}

#[test]
fn bash_completes_flags_words_and_files() {
    let bash = Bash::new();
    assert_eq!(
        bash.run("complete -p ringcable"),
        ["complete -F _ringcable ringcable"]
    );
    let check = |words: &[&str], expected: &[&str]| {
        assert_eq!(bash.offers(words), expected, "{words:?}");
    };
    check(&["--rpc_ho"], &["--rpc_host"]);
    check(&["--log_"], &["--log_format", "--log_level"]);
    check(&["--nothing_like_it"], &[]);
    check(&["--driver", ""], &["auto", "epoll", "io_uring"]);
    check(&["--driver", "e"], &["epoll"]);
    check(&["-driver", "e"], &["epoll"]);
    // As readline splits it, and as it is where = is no word break.
    check(&["--driver", "="], &["auto", "epoll", "io_uring"]);
    check(&["--driver", "=", "e"], &["epoll"]);
    check(&["--driver=e"], &["--driver=epoll"]);
    check(&["--rpc_impl", "h"], &["http"]);
    check(&["--ssl_cert", "o"], &["one.key", "one.pem"]);
    check(&["--ssl_cert", "=", "t"], &["two.pem"]);
    check(&["--ssl_key=two"], &["--ssl_key=two.pem"]);
    check(&["--debug", "="], &["false", "true"]);
    check(&["--debug", "--driv"], &["--driver"]);
    check(&["--port", ""], &[]);
    check(&["--port", "=", ""], &[]);
    check(&["--port=8"], &[]);
    let all = bash.offers(&[""]);
    for flag in ["--help", "--rpc_host", "--check-config", "--driver"] {
        assert!(all.iter().any(|offer| offer == flag), "{flag} in {all:?}");
    }
    for flag in ["--pubsub", "--jwt_id_key", "--embed_nats"] {
        assert!(all.iter().all(|offer| offer != flag), "{flag} in {all:?}");
    }
}

#[test]
fn presets_that_cannot_work_are_refused_with_the_reason() {
    let fly = |launch: Launch| {
        launch
            .env("FLY_APP_NAME", "cable")
            .env("FLY_ALLOC_ID", "1")
            .env("FLY_REGION", "ams")
    };
    let refused = |launch: Launch, expected: &str| {
        let finished = exited(launch.run(), 1);
        assert_eq!(message(&finished), expected, "{finished}");
    };
    refused(
        Launch::bare().args([RPC, "--presets=fly"]),
        "failed to load configuration presets, cause: FLY_REGION env is missing",
    );
    refused(
        fly(Launch::bare()).arg(RPC),
        "option --pubsub=nats of the fly preset is not supported yet by ringcable (node-to-node fan-out is planned); \
         set ANYCABLE_PUBSUB=none to run on one machine",
    );
    refused(
        fly(Launch::bare())
            .env("ANYCABLE_PUBSUB", "none")
            .env("ANYCABLE_FLY_RPC_APP_NAME", "web"),
        "option --rpc_host=dns:///ams.web.internal:50051 is not supported yet by ringcable (RPC over gRPC is planned); \
         set --rpc_host to the http:// or https:// URL of the app's /_anycable",
    );
}

/// Listens where the preset says and serves there; `port` is among its variables or flags.
fn listens_everywhere(launch: Launch, presets: &str, port: u16) {
    let server = launch.start();
    server.wait_for_log(&[
        "load presets",
        "context=config",
        &format!("presets={presets}"),
    ]);
    server.wait_for_log(&[&format!(
        "Handle WebSocket connections at http://0.0.0.0:{port}/cable"
    )]);
    assert_eq!(server.port(), port);
}

on_both_drivers! {
    fn fly_and_heroku_listen_on_every_interface(driver: Driver) {
        let rails = Rails::start();
        let rpc = format!("--rpc_host={}", rails.url());
        let secret = format!("--secret={}", keys::SECRET);
        let launch = || Launch::bare().args(["--cores=2", driver.flag(), &rpc, &secret]);
        let fly = launch()
            .env("FLY_APP_NAME", "cable")
            .env("FLY_ALLOC_ID", "1")
            .env("FLY_REGION", "ams")
            .env("ANYCABLE_PUBSUB", "none");
        let port = ports::free_port();
        listens_everywhere(fly.env("PORT", port.to_string()), "fly", port);
        let heroku = |launch: Launch| launch.env("HEROKU_APP_ID", "a").env("HEROKU_DYNO_ID", "d");
        let port = ports::free_port();
        listens_everywhere(heroku(launch()).env("PORT", port.to_string()), "heroku", port);
        let port = ports::free_port();
        listens_everywhere(launch().env("ANYCABLE_PRESETS", "heroku").arg(format!("--port={port}")), "heroku", port);
        // Not where something else was said, and not where detection is switched off.
        let elsewhere = heroku(launch()).args(["--host=127.0.0.1", "--port=0"]).start();
        elsewhere.wait_for_log(&["Handle WebSocket connections at http://127.0.0.1:"]);
        let off = heroku(launch()).env("ANYCABLE_PRESETS", "none").arg("--port=0").start();
        off.wait_for_log(&["Handle WebSocket connections at http://localhost:"]);
    }

    fn port_is_taken_from_the_first_variable_that_is_there(driver: Driver) {
        let rails = Rails::start();
        let rpc = format!("--rpc_host={}", rails.url());
        let secret = format!("--secret={}", keys::SECRET);
        let launch = || Launch::bare().args(["--cores=2", driver.flag(), "--host=127.0.0.1", &secret, &rpc]);
        let (first, second) = (ports::free_port(), ports::free_port());
        assert_eq!(launch().env("PORT", first.to_string()).start().port(), first);
        let both = launch().env("PORT", first.to_string()).env("ANYCABLE_PORT", second.to_string());
        assert_eq!(both.start().port(), second);
        let flag = launch().env("PORT", first.to_string()).arg(format!("--port={second}"));
        assert_eq!(flag.start().port(), second);
    }

    fn what_nothing_reads_is_mentioned_at_the_start(driver: Driver) {
        let rails = Rails::start();
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("anycable.toml"), "[metrics]\nhttp = '/metrics'\n").expect("a file");
        let server = Stage::launch(driver, &rails)
            .directory(directory.path())
            .arg("--read_buffer_size=4096")
            .env("ANYCABLE_HISTORY_TTL", "60")
            .env("ANYCABLE_HISTORY_LIMIT", "100")
            .env("ANYCABLE_PUSHER_SECRET", "open sesame")
            .env("ANYCABLE_RPC_HOTS", "x")
            .env("ANYCABLE_PRESETS", "herku")
            .env("REDIS_URL", "redis://:sesame@app")
            .start();
        for parts in [
            ["WRN", "option --read_buffer_size=4096 has no effect: connections have no buffers of their own"],
            ["WRN", "option ANYCABLE_HISTORY_TTL=60 has no effect without a broker: set broker to memory"],
            ["WRN", "option ANYCABLE_PUSHER_SECRET has no effect: the Pusher protocol is not served"],
            ["WRN", "Unknown environment variable ANYCABLE_RPC_HOTS is ignored (did you mean ANYCABLE_RPC_HOST?)"],
            ["WRN", "Unknown key metrics.http in ./anycable.toml is ignored (did you mean metrics.http_path?)"],
            ["WRN", "Unknown preset herku changes nothing (there are fly, heroku, broker)"],
            ["INF", "option REDIS_URL is not in use (Redis support is planned)"],
        ] {
            server.wait_for_log(&parts);
        }
        let log = server.log().join("\n");
        // A default that is said aloud promises nothing.
        assert!(!log.contains("HISTORY_LIMIT") && !log.contains("sesame"), "{log}");
    }

    fn secrets_that_are_hardly_meant_are_mentioned_and_not_shown(driver: Driver) {
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails)
            .env("ANYCABLE_JWT_SECRET", "${SESAME}")
            .env("ANYCABLE_STREAMS_SECRET", "sesame open sesame ")
            .start();
        server.wait_for_log(&["WRN", "ANYCABLE_JWT_SECRET looks like the name of a variable that was not replaced by its value"]);
        server.wait_for_log(&["WRN", "ANYCABLE_STREAMS_SECRET has white space at an end"]);
        let log = server.log().join("\n");
        assert!(!log.contains("SESAME") && !log.contains("sesame"), "{log}");
    }
}
