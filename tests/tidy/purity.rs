//! Codecs, values and state are pure: nothing there waits, reads a clock or writes the log. Time comes in as an argument.

use std::collections::BTreeMap;

use crate::assert_only;
use crate::source::{Source, line_of, sources, words};

/// The folders of L0 and L1. `os` is where the clock and the system calls are, and `log` is the log.
const PURE: [&str; 10] = [
    "auth",
    "broker",
    "config",
    "console",
    "endpoints",
    "hub",
    "metrics",
    "protocol",
    "session",
    "wire",
];

/// In the folders that are not pure, but belong to the same layer: nothing there waits on a runtime.
const WITHOUT_RUNTIME: [&str; 2] = ["log", "os"];

const RUNTIME: [&str; 2] = ["monoio", ".await"];
const CLOCK_AND_LOG: [&str; 3] = ["Instant::now", "SystemTime::now", "tracing"];

const EXCEPTIONS: &[(&str, &str)] = &[(
    "src/os/sockets.rs monoio",
    "it borrows the descriptor of a socket of monoio, and names its type to be sound",
)];

/// What is named in one place only: a word, and how the paths of the files begin that may name it.
const ONE_PLACE: [(&str, &[&str]); 3] = [
    ("getrandom", &["src/os/random.rs"]),
    // A signature in `os` names its socket.
    ("monoio::net", &["src/net/", "src/os/sockets.rs"]),
    // `driver` tries whether a ring can be had.
    ("io_uring::", &["src/reactor/", "src/driver.rs"]),
];

/// Words that stand where they should not.
fn misplaced(source: &Source) -> BTreeMap<String, String> {
    ONE_PLACE
        .iter()
        .filter(|(_, places)| !places.iter().any(|place| source.path.starts_with(place)))
        .filter_map(|(word, _)| {
            let at = words(&source.shipped, word).next()?;
            let line = line_of(&source.shipped, at);
            Some((format!("{} {word}", source.path), format!("line {line}")))
        })
        .collect()
}

fn broken(source: &Source) -> BTreeMap<String, String> {
    let pure = PURE.contains(&source.module());
    let without_runtime = pure || WITHOUT_RUNTIME.contains(&source.module());
    let forbidden = RUNTIME
        .iter()
        .filter(|_| without_runtime)
        .chain(CLOCK_AND_LOG.iter().filter(|_| pure));
    forbidden
        .filter_map(|what| {
            let at = words(&source.shipped, what).next()?;
            let line = line_of(&source.shipped, at);
            Some((format!("{} {what}", source.path), format!("line {line}")))
        })
        .collect()
}

#[test]
fn codecs_and_state_know_no_runtime_no_clock_and_no_log() {
    let found: BTreeMap<String, String> = sources("src/").into_iter().flat_map(broken).collect();
    assert_only("not pure", &found, EXCEPTIONS);
}

#[test]
fn randomness_sockets_and_rings_have_one_place() {
    let found: BTreeMap<String, String> = sources("src/").into_iter().flat_map(misplaced).collect();
    assert_only("named elsewhere", &found, &[]);
}

#[test]
fn what_is_misplaced_is_found() {
    let check = |path: &str, expected: usize| {
        let source = Source::new(path, "use getrandom::fill; use monoio::net::TcpStream;");
        assert_eq!(misplaced(&source).len(), expected, "{path}");
    };
    check("src/os/random.rs", 1);
    check("src/net/tcp.rs", 1);
    check("src/hub/table.rs", 2);
}

#[test]
fn what_is_not_pure_is_found() {
    let check = |path: &str, text: &str, expected: &[&str]| {
        let found = broken(&Source::new(path, text));
        let found: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(found, expected, "{path}: {text}");
    };
    check(
        "src/hub/a.rs",
        "use monoio::time;",
        &["src/hub/a.rs monoio"],
    );
    check("src/hub/a.rs", "read().await?", &["src/hub/a.rs .await"]);
    check(
        "src/wire/a.rs",
        "let now = Instant::now();",
        &["src/wire/a.rs Instant::now"],
    );
    check(
        "src/wire/a.rs",
        "SystemTime::now()",
        &["src/wire/a.rs SystemTime::now"],
    );
    check(
        "src/session/a.rs",
        "tracing::warn!()",
        &["src/session/a.rs tracing"],
    );
    check(
        "src/log/a.rs",
        "Instant::now(); x.await",
        &["src/log/a.rs .await"],
    );
    check("src/net/a.rs", "monoio::spawn(x.await)", &[]);
    check(
        "src/hub/a.rs",
        "// Instant::now\n#[cfg(test)]\nfn a() { Instant::now() }",
        &[],
    );
}
