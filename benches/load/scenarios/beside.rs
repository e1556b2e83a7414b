//! The figures that most readers want first, next to another server's: `--peer PATH` names its binary. Each figure is a case
//! of another scenario, shortened to what is shown, so that all are measured in turns within minutes. Without `--peer` only
//! ringcable is measured.

use crate::names::BESIDE;
use crate::names::case::{BUSY_CALLS, ONE_CHANNEL, ONE_STREAM, STORM_FAST_APP};
use crate::options::Options;
use crate::report::Report;

use super::{fanout, idle, rpc, storm};

pub fn run(options: &Options) {
    // The rows of the short table state the number of clients, so it is fixed here.
    let options = &Options {
        clients: None,
        ..options.clone()
    };
    let mut report = Report::new(BESIDE, &options.shown);
    report.name_peer_of(options);
    for run in 0..options.runs {
        let say = |case: &str, server: &str| {
            eprintln!(
                "{BESIDE}: run {} of {}, {case}, {server}",
                run + 1,
                options.runs
            )
        };
        for target in options.targets() {
            if options.wants(ONE_CHANNEL) {
                say(ONE_CHANNEL, target.name);
                idle::measure_one_channel(options, &target, &mut report);
            }
            if options.wants(BUSY_CALLS) {
                say(BUSY_CALLS, target.name);
                rpc::measure_busy_calls(options, &target, &mut report);
            }
            if options.wants(STORM_FAST_APP) {
                say(STORM_FAST_APP, target.name);
                storm::measure_return(options, &target, &mut report);
            }
        }
        if options.wants(ONE_STREAM) {
            say(ONE_STREAM, "all");
            fanout::measure_one_stream(options, &mut report);
        }
    }
    report.finish();
}
