//! `--check N` on this machine, and its twin `tuning/check.sh`, which must say the same.

use std::process::{Command, Output};

use crate::support::Launch;

type Variables = &'static [(&'static str, &'static str)];

/// Runs a program with a limit on open files and with these variables alone.
fn run(program: &str, count: &str, open_files: &str, env: Variables) -> Output {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"ulimit -n "$1" && shift && exec "$@""#, "sh"])
        .arg(open_files)
        .arg(program);
    if !program.ends_with(".sh") {
        command.arg("--check");
    }
    command.arg(count);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .envs(env.iter().copied());
    command.output().expect("sh runs")
}

fn text(output: &Output) -> String {
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// A line without the current value, which may change between two runs: verdict and name, and what is needed.
fn judgement(line: &str) -> String {
    let (head, needed) = line.split_once(", needs ").unwrap_or(("", line));
    let names: Vec<&str> = head.split_whitespace().take(2).collect();
    format!("{} needs {needed}", names.join(" "))
}

#[test]
fn binary_and_script_agree_on_this_machine() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tuning/check.sh");
    let cases: [(&str, &str, Variables); 5] = [
        ("1", "1000", &[]),
        ("900", "1000", &[]),
        ("1000000", "1000", &[]),
        ("100000000", "1000", &[("ANYCABLE_PING_INTERVAL", "0")]),
        (
            "20000",
            "1000",
            &[
                ("ANYCABLE_CORES", "3"),
                ("ANYCABLE_DRIVER", "epoll"),
                ("ANYCABLE_MAX_CONN", "19999"),
                ("ANYCABLE_RPC_CONCURRENCY", "50"),
                ("ANYCABLE_PING_INTERVAL", "1"),
            ],
        ),
    ];
    for (count, open_files, env) in cases {
        let binary = run(env!("CARGO_BIN_EXE_ringcable"), count, open_files, env);
        let shell = run(script, count, open_files, env);
        let judgements =
            |output: &Output| -> Vec<String> { text(output).lines().map(judgement).collect() };
        assert_eq!(judgements(&binary), judgements(&shell), "--check {count}");
        assert_eq!(binary.status.code(), shell.status.code(), "{count}");
    }
}

#[test]
fn each_line_has_verdict_name_current_and_needed_value() {
    let output = run(env!("CARGO_BIN_EXE_ringcable"), "900", "1000", &[]);
    let text = text(&output);
    let (summary, findings) = {
        let mut lines: Vec<&str> = text.lines().collect();
        (lines.pop().expect("a summary"), lines)
    };
    assert!(findings.len() >= 14, "{text}");
    for line in &findings {
        let verdict = line.split_whitespace().next().expect("a verdict");
        assert!(["OK", "WARN", "FAIL"].contains(&verdict), "{line}");
        assert!(line.contains(", needs "), "{line}");
        assert_eq!(verdict == "OK", !line.contains("; "), "{line}");
    }
    assert!(summary.starts_with("900 connections: "), "{summary}");
}

#[test]
fn a_limit_that_is_too_low_fails_and_says_how_to_raise_it() {
    let open_files = |count| {
        let output = run(env!("CARGO_BIN_EXE_ringcable"), count, "1000", &[]);
        let line = text(&output)
            .lines()
            .find(|line| line.contains(" nofile "))
            .map(str::to_owned)
            .expect("a finding about open files");
        (output.status.code(), line)
    };
    let (code, line) = open_files("1000");
    assert_eq!(code, Some(1), "{line}");
    assert!(
        line.starts_with("FAIL nofile") && line.contains("1000 soft, 1000 hard"),
        "{line}"
    );
    assert!(line.contains("; LimitNOFILE="), "{line}");
    let (_, line) = open_files("1");
    assert!(line.starts_with("OK "), "{line}");
}

#[test]
fn check_needs_no_app_and_starts_nothing() {
    let finished = Launch::bare().args(["--check", "1", "--port=1"]).run();
    assert!(finished.stderr.is_empty(), "{finished}");
    assert!(finished.stdout.contains("1 connections: "), "{finished}");
    assert!(!finished.stdout.contains("Starting"), "{finished}");
}
