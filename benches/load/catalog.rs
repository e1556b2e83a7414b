//! All scenarios with their names.
//!
//! The experiments answer questions that are already settled, so they are built only on demand: `--features experiments`.

#[cfg(feature = "experiments")]
use crate::experiments;
use crate::names::{BESIDE, SHARDS};
use crate::options::{Options, Scenario};
use crate::{limit, plot, scenarios, tables};

const fn scenario(name: &'static str, about: &'static str, run: fn(&Options)) -> Scenario {
    Scenario {
        name,
        about,
        hidden: false,
        run,
    }
}

/// All scenarios, in the order of `--help`.
pub const SCENARIOS: &[Scenario] = &[
    scenario(
        "fanout",
        "one publication to many: deliveries per second, latency, CPU, beside the limit",
        scenarios::fanout::run,
    ),
    scenario(
        "burst",
        "publishers outrun the sockets: messages per write",
        scenarios::burst::run,
    ),
    scenario(
        "slow",
        "stalled readers among fast ones: latency of the fast, memory of the stalled",
        scenarios::slow::run,
    ),
    scenario(
        "unfair",
        "clients that send flat out: what the others on their shard still get",
        scenarios::unfair::run,
    ),
    scenario(
        "greedy",
        "clients that make the server hold much: memory for each of them",
        scenarios::greedy::run,
    ),
    scenario(
        "limit",
        "what this kernel allows without a server: frames per second, bytes per socket",
        scenarios::limit::run,
    ),
    #[cfg(feature = "experiments")]
    scenario(
        "experiments",
        "questions of design settled by bare loops: sending, reading, accepting, options, layouts",
        experiments::run,
    ),
    #[cfg(feature = "experiments")]
    scenario(
        "allocator",
        "mimalloc with other options; as --peer, a build with the system's allocator",
        experiments::allocator::run,
    ),
    #[cfg(feature = "experiments")]
    Scenario {
        name: "experiments-child",
        about: "the experiments themselves",
        hidden: true,
        run: experiments::run_child,
    },
    Scenario {
        name: "limit-child",
        about: "the bare loop",
        hidden: true,
        run: limit::run_child,
    },
    scenario(
        "idle",
        "memory per connection, connect rate, pings, and what comes back when all leave",
        scenarios::idle::run,
    ),
    scenario(
        "tls",
        "the same as idle without and with TLS for clients",
        scenarios::idle::run_tls,
    ),
    scenario(
        BESIDE,
        "the figures of the first page beside another server's, which --peer names",
        scenarios::beside::run,
    ),
    scenario(
        "sse",
        "server-sent events beside WebSocket: memory, deliveries per second, CPU",
        scenarios::sse::run,
    ),
    scenario(
        "rpc",
        "performs through the app: rate, cost, and the time that the server adds",
        scenarios::rpc::run,
    ),
    scenario(
        "storm",
        "everyone reconnects at once, through the app and by token",
        scenarios::storm::run,
    ),
    scenario(
        "drain",
        "the server is stopped: who is told, when, and what becomes of the Disconnect calls",
        scenarios::drain::run,
    ),
    scenario(
        "churn",
        "clients come and go for half an hour: memory, descriptors, every second",
        scenarios::churn::run,
    ),
    scenario(
        "scale",
        "memory per connection up to 100,000, CPU per delivery with 1, 2 and 4 cores",
        scenarios::scale::run,
    ),
    scenario(
        SHARDS,
        "what grows with the number of shards: small rooms, whispers, memory, wake-ups, calls",
        scenarios::shards::run,
    ),
    scenario(
        "history",
        "the same fan-out with the memory broker and without it, in turns",
        scenarios::history::run,
    ),
    scenario(
        "restores",
        "everyone comes back at once and gets what was missed: time, cost, exactness, calls",
        scenarios::restores::run,
    ),
    scenario(
        "presence",
        "10,000 members of one stream: joins and leaves per second, the answer that names all",
        scenarios::presence::run,
    ),
    scenario(
        "restores-gate",
        "small and quick: fails when a client that comes back misses something or the app is asked",
        scenarios::restores::run_gate,
    ),
    scenario(
        "shards-gate",
        "small and quick: fails when shards without a listener get publications",
        scenarios::shards::run_gate,
    ),
    scenario(
        "gate",
        "small and quick: fails when a connection costs more than benches/gates.toml says",
        scenarios::gate::run,
    ),
    scenario(
        "unfair-gate",
        "a short form of unfair: fails when one client holds up the others",
        scenarios::unfair::run_gate,
    ),
    scenario("plots", "draws docs/images from the results", |_| {
        plot::draw_all()
    }),
    scenario(
        "tables",
        "renews the tables of the pages in docs from the results",
        |_| tables::renew_pages(),
    ),
];
