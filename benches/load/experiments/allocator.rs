//! mimalloc with other options, and (as `--peer`) a ringcable that was built with the system's allocator.
//!
//! Runs a case of the scenario `storm` unchanged: memory at rest, at the peak, after it, and when all clients have left, and
//! the cost of a connection. Each way to allocate is a server in the results. `--case` selects ways.

use crate::options::Options;
use crate::report::Report;
use crate::scenarios::storm;
use crate::target::{Driver, Target};

const CLIENTS: usize = 4_000;

/// Names, and the environment variables for mimalloc.
const WAYS: [(&str, &[(&str, &str)]); 8] = [
    ("as shipped", &[]),
    ("ALLOW_THP=1", &[("MIMALLOC_ALLOW_THP", "1")]),
    ("PURGE_DELAY=0", &[("MIMALLOC_PURGE_DELAY", "0")]),
    ("PURGE_DELAY=10", &[("MIMALLOC_PURGE_DELAY", "10")]),
    (
        "ARENA_EAGER_COMMIT=0",
        &[("MIMALLOC_ARENA_EAGER_COMMIT", "0")],
    ),
    (
        "PAGE_COMMIT_ON_DEMAND=1",
        &[("MIMALLOC_PAGE_COMMIT_ON_DEMAND", "1")],
    ),
    (
        "PAGE_RECLAIM_ON_FREE=1",
        &[("MIMALLOC_PAGE_RECLAIM_ON_FREE", "1")],
    ),
    ("PAGE_FULL_RETAIN=0", &[("MIMALLOC_PAGE_FULL_RETAIN", "0")]),
];

pub fn run(options: &Options) {
    let mut targets: Vec<Target> = WAYS.iter().map(target).collect();
    targets.extend(options.peer.iter().map(|binary| Target {
        name: "system allocator",
        binary: binary.clone(),
        ..target(&WAYS[0])
    }));
    let small = Options {
        clients: Some(options.clients.unwrap_or(CLIENTS)),
        ..options.clone()
    };
    let mut report = Report::new("allocator", &options.shown);
    for run in 0..options.runs {
        for target in targets.iter().filter(|target| options.wants(target.name)) {
            eprintln!(
                "allocator: run {} of {}, {}",
                run + 1,
                options.runs,
                target.name
            );
            storm::measure_fast_app(&small, target, &mut report);
        }
    }
    report.finish();
}

fn target((name, variables): &(&'static str, &[(&'static str, &str)])) -> Target {
    Target {
        name,
        environment: variables
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect(),
        ..Target::ringcable(Driver::IoUring, 1)
    }
}
