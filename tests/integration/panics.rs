//! What is left of a bug: the records before the panic, and the panic itself, also when the log is read slowly.

use std::env;
use std::io::Read;
use std::process::{Command, Stdio, abort};
use std::thread;

use ringcable::config::{LogConfig, LogFormat, LogLevel};
use ringcable::log;

use crate::support::machine;
use crate::support::wait::until;

/// More than a pipe takes, less than the log keeps.
const RECORDS: usize = 5_000;
const IS_CHILD: &str = "RINGCABLE_TEST_PANICS";

/// A process whose log waits for its reader when a thread panics. It ends as a release build does: after the hook.
fn panic_with_records_waiting() -> ! {
    let config = LogConfig {
        level: LogLevel::Info,
        format: LogFormat::Text,
        debug: false,
    };
    log::init(&config, "n1").expect("the log of this process");
    for number in 0..RECORDS {
        tracing::info!(number, "before the bug");
    }
    let bug = thread::Builder::new()
        .name("shard-7".to_owned())
        .spawn(|| panic!("a broken invariant"));
    let ended = bug.expect("a thread").join();
    assert!(ended.is_err());
    abort()
}

#[test]
fn a_panic_in_a_thread_ends_when_the_records_before_it_are_written() {
    if env::var_os(IS_CHILD).is_some() {
        panic_with_records_waiting();
    }
    let _machine = machine::shared();
    let mut child = Command::new(env::current_exe().expect("a program"))
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg("panics::a_panic_in_a_thread_ends_when_the_records_before_it_are_written")
        .env(IS_CHILD, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this program");
    let mut said = child.stderr.take().expect("a pipe");
    let mut panic = String::new();
    // Nobody reads the log until the panic is there.
    until("the panic on stderr", || {
        let mut piece = [0; 4096];
        let count = said.read(&mut piece).expect("a pipe");
        panic.push_str(&String::from_utf8_lossy(&piece[..count]));
        panic.contains("a broken invariant").then_some(())
    });
    assert!(panic.contains("shard-7"), "{panic}");
    let mut log = String::new();
    child
        .stdout
        .take()
        .expect("a pipe")
        .read_to_string(&mut log)
        .expect("UTF-8");
    let records = log
        .lines()
        .filter(|line| line.contains("before the bug"))
        .count();
    assert_eq!(
        records,
        RECORDS,
        "{}",
        log.lines().last().unwrap_or_default()
    );
    assert!(!child.wait().expect("a child").success());
}
