//! Measures a server that speaks this protocol: `cargo bench --bench load -- SCENARIO [options]`, `--help` lists them.
//!
//! The same client program measures every server: `--peer PATH` starts another binary with the same flags, and the two are
//! measured in turns. A scenario starts servers ([`peer`]), opens clients ([`fleet`]), publishes ([`publisher`]) and reports
//! ([`report`]); [`limit`] does the same socket work without any server logic. Traffic stays on 127.0.0.0/8.

#![allow(
    unsafe_code,
    reason = "it measures system calls and rings that have no safe wrapper"
)]

mod app;
mod bars;
mod catalog;
mod crowd;
#[cfg(feature = "experiments")]
mod experiments;
mod fleet;
mod handle;
mod histogram;
mod limit;
mod names;
mod nginx;
mod options;
mod peer;
mod plot;
mod process;
mod publisher;
mod report;
mod scenarios;
mod sys;
mod tables;
mod target;
mod tls;
mod websocket;

use catalog::SCENARIOS;
use options::Options;

fn main() {
    // Called before any thread is pinned, because pinning hides the other CPUs.
    process::machine_cpus();
    let (scenario, options) = Options::read(std::env::args().skip(1), SCENARIOS);
    (scenario.run)(&options);
}
