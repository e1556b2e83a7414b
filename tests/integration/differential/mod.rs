//! The same scripts against ringcable and against the reference: each step must look the same, or the difference is one
//! that `docs/COMPATIBILITY.md` has a row for. `RINGCABLE_REFERENCE=<path of anycable-go 1.6.16>` says where the reference
//! is; without it nothing is compared, and the output says so.

mod events;
mod history;
mod presence;
mod rest;
mod sessions;
mod side;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;

use crate::support::Driver;
use side::Side;

const REFERENCE: &str = "RINGCABLE_REFERENCE";
const COMPATIBILITY: &str = include_str!("../../../docs/COMPATIBILITY.md");

/// A step that is meant to look different.
struct Difference {
    /// Or the beginning of several steps.
    step: &'static str,
    reference: &'static str,
    ringcable: &'static str,
    /// The first cell of the row that says so.
    row: &'static str,
}

/// Plays the script on both servers, which have these arguments, and compares what was seen.
fn compare(driver: Driver, args: &[&str], script: fn(&mut Side), differences: &[Difference]) {
    let Some(reference) = std::env::var_os(REFERENCE) else {
        // Past the capturing of the test's output.
        let said = writeln!(
            std::io::stderr(),
            "NOT COMPARED with the reference: {REFERENCE} is not set"
        );
        return said.expect("stderr takes a line");
    };
    let play = |mut side: Side| {
        script(&mut side);
        side.into_steps()
    };
    let theirs = play(Side::of_reference(&PathBuf::from(reference), args));
    let ours = play(Side::of_ringcable(driver, args));
    let names = |steps: &[(String, String)]| -> Vec<String> {
        steps.iter().map(|step| step.0.clone()).collect()
    };
    assert_eq!(names(&ours), names(&theirs));
    let mut unmet: BTreeMap<&str, &Difference> =
        differences.iter().map(|it| (it.step, it)).collect();
    let mut unknown = Vec::new();
    for ((step, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        if ours == theirs {
            continue;
        }
        let known = differences
            .iter()
            .find(|it| step.starts_with(it.step) && it.reference == theirs && it.ringcable == ours);
        match known {
            Some(known) => drop(unmet.remove(known.step)),
            None => unknown.push(format!(
                "{step}\n  the reference: {theirs}\n  ringcable:     {ours}"
            )),
        }
    }
    assert!(
        unknown.is_empty(),
        "{} differences:\n{}",
        unknown.len(),
        unknown.join("\n")
    );
    assert!(
        unmet.is_empty(),
        "no difference any more: {:?}",
        unmet.keys()
    );
    for difference in differences {
        let row = format!("\n| {} |", difference.row);
        assert!(
            COMPATIBILITY.contains(&row),
            "no row {:?} in COMPATIBILITY",
            difference.row
        );
    }
}

on_both_drivers! {
    fn history_by_position_and_time(driver: Driver) {
        compare(driver, &["--history_limit=3"], history::positions, history::POSITIONS);
    }

    fn commands_in_all_orders(driver: Driver) {
        compare(driver, &[], history::commands, history::COMMANDS);
    }

    fn messages_live_and_replayed(driver: Driver) {
        compare(driver, &[], history::messages, history::MESSAGES);
    }

    fn frames_that_cannot_be_decoded(driver: Driver) {
        compare(driver, &[], history::undecodable, history::UNDECODABLE);
    }

    fn without_a_broker(driver: Driver) {
        compare(driver, &["--broker=none"], history::no_broker, &[]);
    }

    fn history_that_has_expired(driver: Driver) {
        compare(driver, &["--history_ttl=1"], history::expired, history::EXPIRED);
    }

    fn restored_sessions(driver: Driver) {
        compare(driver, &[], sessions::restored, sessions::RESTORED);
    }

    fn sessions_that_are_not_restored(driver: Driver) {
        compare(driver, &["--sessions_ttl=1"], sessions::not_restored, sessions::NOT_RESTORED);
    }

    fn sessions_of_an_app_that_authenticates(driver: Driver) {
        compare(driver, &["--noauth=false"], sessions::authenticated, sessions::AUTHENTICATED);
    }

    fn ends_of_sessions(driver: Driver) {
        compare(driver, &["--pong_timeout=1", "--ping_interval=1"], sessions::ends, sessions::ENDS);
    }

    fn members_of_a_room(driver: Driver) {
        compare(driver, &[], presence::members, presence::MEMBERS);
    }

    fn presence_of_connections_that_are_gone(driver: Driver) {
        compare(driver, &["--presence_ttl=2"], presence::gone, presence::GONE);
    }

    fn presence_by_the_app(driver: Driver) {
        compare(driver, &[], presence::by_the_app, presence::BY_THE_APP);
    }

    fn streams_without_the_app(driver: Driver) {
        compare(driver, &["--public_streams", "--turbo_streams", "--cable_ready"], presence::local_streams, presence::LOCAL_STREAMS);
    }

    fn requests_for_events(driver: Driver) {
        let args = ["--sse", "--public_streams", "--turbo_streams", "--noauth=false"];
        compare(driver, &args, events::requests, events::REQUESTS);
    }

    fn events_of_a_stream(driver: Driver) {
        compare(driver, &["--sse", "--public_streams"], events::stream, events::STREAM);
    }

    fn events_of_several_lines(driver: Driver) {
        compare(driver, &["--sse", "--public_streams"], events::lines, events::LINES);
    }

    fn rest_api(driver: Driver) {
        compare(driver, &["--public_streams"], rest::script, rest::DIFFERENCES);
    }
}
