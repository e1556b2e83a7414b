//! What most readers ask first, beside another server: `--peer PATH` names its binary. Each figure is a case of another scenario,
//! shortened to what is shown, so that all of them are measured in turns within minutes. Without `--peer` it measures ringcable alone.

use crate::options::Options;
use crate::report::{Report, Row, Stored, number};

use super::fanout::{self, CASE_ONE_STREAM};
use super::idle::{self, CASE_ONE_CHANNEL};
use super::rpc::{self, CASE_BUSY_CALLS};
use super::storm::{self, CASE_FAST_APP};

pub const NAME: &str = "beside";

/// A row of the short table: what, case, figure.
const SHORT: [(&str, &str, &str); 8] = [
    (
        "memory of an idle connection, 1 subscription",
        CASE_ONE_CHANNEL,
        "user bytes per connection",
    ),
    (
        "the same with what the kernel holds for it",
        CASE_ONE_CHANNEL,
        "whole system, bytes per connection",
    ),
    (
        "one stream, 15,000 subscribers, 200 B: deliveries per second",
        CASE_ONE_STREAM,
        "deliveries/s",
    ),
    (
        "CPU of a delivery",
        CASE_ONE_STREAM,
        "server CPU per delivery",
    ),
    (
        "CPU of a perform through the app",
        CASE_BUSY_CALLS,
        "server CPU per perform",
    ),
    (
        "5,000 clients come back at once: all subscribed",
        CASE_FAST_APP,
        "all subscribed again",
    ),
    (
        "CPU of a client that comes back: upgrade, connect, subscribe",
        CASE_FAST_APP,
        "server CPU per connection",
    ),
    (
        "start to the first `/health` 200",
        CASE_ONE_CHANNEL,
        "start to healthy",
    ),
];

pub fn run(options: &Options) {
    // The rows of the short table say how many clients there are.
    let options = &Options {
        clients: None,
        ..options.clone()
    };
    let mut report = Report::new(NAME, &options.shown);
    if let Some(binary) = &options.peer {
        report.name_peer(binary);
    }
    for run in 0..options.runs {
        let say = |case: &str, server: &str| {
            eprintln!(
                "{NAME}: run {} of {}, {case}, {server}",
                run + 1,
                options.runs
            )
        };
        for target in options.targets() {
            if options.wants(CASE_ONE_CHANNEL) {
                say(CASE_ONE_CHANNEL, target.name);
                idle::measure_one_channel(options, &target, &mut report);
            }
            if options.wants(CASE_BUSY_CALLS) {
                say(CASE_BUSY_CALLS, target.name);
                rpc::measure_busy_calls(options, &target, &mut report);
            }
            if options.wants(CASE_FAST_APP) {
                say(CASE_FAST_APP, target.name);
                storm::measure_return(options, &target, &mut report);
            }
        }
        if options.wants(CASE_ONE_STREAM) {
            say(CASE_ONE_STREAM, "all");
            fanout::measure_one_stream(options, &mut report);
        }
    }
    report.finish();
}

/// The rows of the short table: what, ringcable's median, the other server's, and how they compare.
pub fn short(stored: &Stored) -> Vec<[String; 4]> {
    let row = |server: &str, case: &str, metric: &str| {
        stored
            .rows
            .iter()
            .find(|row| (&*row.server, &*row.case, &*row.metric) == (server, case, metric))
    };
    let filled = SHORT.iter().filter_map(|(what, case, metric)| {
        let (ours, theirs) = (row("ringcable", case, metric)?, row("peer", case, metric)?);
        Some([
            (*what).to_owned(),
            shown(ours),
            shown(theirs),
            compared(ours.median(), theirs.median()),
        ])
    });
    filled.collect()
}

fn shown(row: &Row) -> String {
    let unit = match row.unit.as_str() {
        // The row's name says it.
        "1/s" => "",
        unit => unit,
    };
    format!("{} {unit}", number(row.median()))
        .trim_end()
        .to_owned()
}

fn compared(ours: f64, theirs: f64) -> String {
    if ours <= theirs {
        format!("{:.1} times less", theirs / ours)
    } else {
        format!("{:.1} times more", ours / theirs)
    }
}
