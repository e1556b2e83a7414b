//! A log that nobody takes stops nobody: stdout stands still, is closed, full or must not block, and the server serves.

use std::fs::File;
use std::io::{Read, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::support::ports::free_port;
use crate::support::raw::{PING, PONG, Raw, TEXT, frame};
use crate::support::wait::until;
use crate::support::{Driver, Gate, Launch, Rails, Server, Stage};

/// Far less than the seconds that a stopped shard takes, far more than an answer needs on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

/// One shard, so that all clients are on it, with every record that there is.
fn launch(driver: Driver, rails: &Rails, port: u16) -> Launch {
    Stage::launch(driver, rails).args(["--cores=1".to_owned(), format!("--port={port}")])
}

/// A command that is refused without a call to the app and makes records of some hundred bytes.
fn refused_command(number: usize) -> String {
    format!(
        r#"{{"command":"message","identifier":"nobody-{number}","data":"{{\"action\":\"x\"}}"}}"#
    )
}

/// Sends `count` commands that are refused, with records that make far more than a pipe holds, and waits until the server
/// has read them all.
fn flood(server: &Server, count: usize) -> Raw {
    let mut attacker = Raw::welcomed(server.address());
    for number in 0..count {
        attacker.send(&frame(TEXT, refused_command(number).as_bytes()));
    }
    until("the server to read the flood", || {
        server.has_read_all(attacker.stream()).then_some(())
    });
    attacker
}

fn assert_served_at_once(server: &Server, client: &mut Raw) {
    let asked = Instant::now();
    client.send(&frame(PING, b"here?"));
    let answer = client.next_frame();
    assert_eq!((answer.opcode, &*answer.payload), (PONG, &b"here?"[..]));
    assert_eq!(server.get("/health").status, 200);
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
}

fn dropped_records(server: &Server) -> u64 {
    let page = server.get("/metrics").text();
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix("ringcable_log_records_dropped_total "));
    line.unwrap_or_else(|| panic!("no such metric in\n{page}"))
        .parse()
        .expect("a whole number")
}

on_both_drivers! {
    fn a_log_that_nobody_reads_stops_nobody(driver: Driver) {
        let (rails, gate, port) = (Rails::start(), Gate::new(), free_port());
        let server = launch(driver, &rails, port).log_is_read_after(&gate).start_at(port);
        let mut healthy = Raw::welcomed(server.address());
        let _attacker = flood(&server, 12_000);
        assert_served_at_once(&server, &mut healthy);
        healthy.subscribe("A");
        let dropped = dropped_records(&server);
        assert!(dropped > 0);
        // The first records are kept, the newest are lost, and the log says where and how many.
        gate.open();
        let line = server.wait_for_log(&["WRN", "log records were dropped", "left_out="]);
        let left_out: u64 = line.rsplit_once("left_out=").expect("a number").1.parse().expect("a number");
        assert!(left_out >= dropped, "{left_out} of {dropped}");
        assert!(server.log().iter().any(|line| line.contains("nobody-0")));
        // From then on it is whole again.
        healthy.command("unsubscribe", "A");
        server.wait_for_log(&["incoming message", "unsubscribe"]);
        server.terminate();
        assert!(server.wait_exit().success());
        server.wait_for_log(&["all active connections closed"]);
        for line in server.log() {
            assert!(line.contains(" nodeid="), "a torn line: {line:?}");
        }
    }

    fn a_log_that_nobody_reads_delays_the_exit_a_second_at_most(driver: Driver) {
        let (rails, gate, port) = (Rails::start(), Gate::new(), free_port());
        let server = launch(driver, &rails, port).log_is_read_after(&gate).start_at(port);
        let attacker = flood(&server, 3_000);
        drop(attacker);
        let asked = Instant::now();
        server.terminate();
        // Its end is seen before its output is read.
        until("the process to be a zombie", || {
            let status = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).ok()?;
            status.contains(") Z ").then_some(())
        });
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        gate.open();
        assert!(server.wait_exit().success());
    }

    fn every_record_before_the_exit_is_written(driver: Driver) {
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails).start();
        let clients: Vec<Raw> = (0..200).map(|_| Raw::welcomed(server.address())).collect();
        server.terminate();
        assert!(server.wait_exit().success());
        let log = server.log();
        let lines = |text: &str| log.iter().filter(|line| line.contains(text)).count();
        assert_eq!(lines("WebSocket session completed"), clients.len());
        assert_eq!(lines("all active connections closed"), 1);
    }

    fn a_log_that_cannot_be_written_is_counted_and_stops_nobody(driver: Driver) {
        let rails = Rails::start();
        let (reader, closed) = pipe().expect("a pipe");
        drop(reader);
        let full = File::options().write(true).open("/dev/full").expect("a device");
        for stdout in [OwnedFd::from(closed), OwnedFd::from(full)] {
            let port = free_port();
            let server = launch(driver, &rails, port).stdout(stdout).start_at(port);
            let mut healthy = Raw::welcomed(server.address());
            let _attacker = flood(&server, 200);
            assert_served_at_once(&server, &mut healthy);
            until("losses to be counted", || (dropped_records(&server) > 200).then_some(()));
            server.terminate();
            assert!(server.wait_exit().success());
            assert_eq!(server.stderr(), Vec::<String>::new());
        }
    }

    fn a_log_that_must_not_block_is_written_whole(driver: Driver) {
        let (rails, port) = (Rails::start(), free_port());
        let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        theirs.set_nonblocking(true).expect("an option of every socket");
        let server = launch(driver, &rails, port).stdout(OwnedFd::from(theirs)).start_at(port);
        let mut healthy = Raw::welcomed(server.address());
        let _attacker = flood(&server, 2_000);
        assert_served_at_once(&server, &mut healthy);
        assert_eq!(dropped_records(&server), 0);
        server.terminate();
        let mut log = String::new();
        ours.read_to_string(&mut log).expect("UTF-8 until the server is gone");
        assert!(server.wait_exit().success());
        assert_eq!(log.matches("DBG incoming message").count(), 2_000);
        assert!(log.lines().all(|line| line.contains(" nodeid=")));
    }
}
