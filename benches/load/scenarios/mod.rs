//! What is measured, one file each.

pub mod beside;
pub mod burst;
pub mod churn;
pub mod drain;
mod drive;
pub mod fanout;
pub mod gate;
pub mod greedy;
pub mod idle;
pub mod limit;
pub mod profiles;
pub mod rpc;
pub mod scale;
pub mod slow;
pub mod storm;
pub mod unfair;

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
        "fanout",
        "one publication to many: deliveries per second, latency, CPU, beside the limit",
        fanout::run,
    ),
    scenario(
        "burst",
        "publishers outrun the sockets: messages per write",
        burst::run,
    ),
    scenario(
        "slow",
        "stalled readers among fast ones: latency of the fast, memory of the stalled",
        slow::run,
    ),
    scenario(
        "unfair",
        "clients that send flat out: what the others on their shard still get",
        unfair::run,
    ),
    scenario(
        "greedy",
        "clients that make the server hold much: memory for each of them",
        greedy::run,
    ),
    scenario(
        "limit",
        "what this kernel allows without a server: frames per second, bytes per socket",
        limit::run,
    ),
    scenario(
        "experiments",
        "questions of design settled by bare loops: sending, reading, accepting, options, layouts",
        crate::experiments::run,
    ),
    scenario(
        "allocator",
        "mimalloc with other options; as --peer, a build with the system's allocator",
        crate::experiments::allocator::run,
    ),
    Scenario {
        name: "experiments-child",
        about: "the experiments themselves",
        hidden: true,
        run: crate::experiments::run_child,
    },
    Scenario {
        name: "limit-child",
        about: "the bare loop",
        hidden: true,
        run: crate::limit::run_child,
    },
    scenario(
        "idle",
        "memory per connection, connect rate, pings, and what comes back when all leave",
        idle::run,
    ),
    scenario(
        "tls",
        "the same as idle without and with TLS for clients",
        idle::run_tls,
    ),
    scenario(
        beside::NAME,
        "the figures of the first page beside another server's, which --peer names",
        beside::run,
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
    scenario(
        "drain",
        "the server is stopped: who is told, when, and what becomes of the Disconnect calls",
        drain::run,
    ),
    scenario(
        "churn",
        "clients come and go for half an hour: memory, descriptors, every second",
        churn::run,
    ),
    scenario(
        "scale",
        "memory per connection up to 100,000, CPU per delivery with 1, 2 and 4 cores",
        scale::run,
    ),
    scenario(
        "gate",
        "small and quick: fails when a connection costs more than benches/gates.toml says",
        gate::run,
    ),
    scenario(
        "unfair-gate",
        "a short form of unfair: fails when one client holds up the others",
        unfair::run_gate,
    ),
    scenario("plots", "draws docs/images from the results", |_| {
        crate::plot::draw_all()
    }),
    scenario(
        "tables",
        "renews the tables of the pages in docs from the results",
        |_| crate::tables::renew_pages(),
    ),
];
