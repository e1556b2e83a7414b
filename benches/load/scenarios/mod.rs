//! What is measured, one file each.

pub mod idle;
pub mod profiles;
pub mod rpc;
pub mod storm;

use crate::options::Options;

/// A scenario, as the command line knows it.
pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    /// A part of another scenario, in a process of its own.
    pub hidden: bool,
    pub run: fn(&Options),
}

const fn scenario(name: &'static str, about: &'static str, run: fn(&Options)) -> Scenario {
    Scenario {
        name,
        about,
        hidden: false,
        run,
    }
}

pub const SCENARIOS: &[Scenario] = &[
    scenario(
        "idle",
        "memory per connection, connect rate, pings, and what comes back when all leave",
        idle::run,
    ),
    scenario(
        "rpc",
        "performs through the app: rate, cost, and the time that the server adds",
        rpc::run,
    ),
    scenario(
        "storm",
        "everyone reconnects at once, through the app and by token",
        storm::run,
    ),
];
