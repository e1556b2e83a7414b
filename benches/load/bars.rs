//! The bars of the project: the value that each figure must reach, and the value that would be excellent. The summary table
//! is made from the results.

use std::fmt::Write as _;

use crate::names::case::{
    BUSY_CALLS, CHURN, MEMBERS, MEMBERS_ASKED, ONE_CHANNEL, ONE_STREAM, RESTORE, RESTORE_MANY,
    STORM_FAST_APP, STORM_RPC,
};
use crate::names::{BESIDE, SHARDS, history, presence, restores, unfair};
use crate::report::{Row, Stored, number};

enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    fn is_met(&self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= *most,
            Self::AtLeast(least) => value >= *least,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", number(*most)),
            Self::AtLeast(least) => format!("≥ {}", number(*least)),
        }
    }
}

/// One bar: a figure of ringcable in the results of a scenario.
struct Bar {
    what: &'static str,
    scenario: &'static str,
    case: &'static str,
    metric: &'static str,
    goal: Goal,
    moonshot: Option<Goal>,
    /// The server's name in results.
    server: &'static str,
}

impl Bar {
    const fn on_epoll(self) -> Self {
        Self {
            server: "ringcable epoll",
            ..self
        }
    }
}

use Goal::{AtLeast, AtMost};

const fn bar(
    what: &'static str,
    [scenario, case, metric]: [&'static str; 3],
    goal: Goal,
    moonshot: Option<Goal>,
) -> Bar {
    Bar {
        what,
        scenario,
        case,
        metric,
        goal,
        moonshot,
        server: "ringcable",
    }
}

const BARS: &[Bar] = &[
    bar(
        "user bytes per idle connection without its texts, 1 subscription",
        [
            "idle",
            ONE_CHANNEL,
            "user bytes per connection beside texts",
        ],
        AtMost(512.0),
        Some(AtMost(320.0)),
    ),
    bar(
        "the same with Campfire's 14 subscriptions",
        ["idle", "campfire", "user bytes per connection beside texts"],
        AtMost(2_560.0),
        Some(AtMost(1_536.0)),
    ),
    bar(
        "bytes of the whole system per idle connection",
        ["idle", ONE_CHANNEL, "whole system, bytes per connection"],
        AtMost(4_900.0),
        Some(AtMost(4_500.0)),
    ),
    bar(
        "CPU per ping while idle, divided by that of a bare loop",
        ["idle", ONE_CHANNEL, "CPU per ping, of the bare loop"],
        AtMost(1.3),
        Some(AtMost(1.1)),
    ),
    bar(
        "fan-out to one stream, 200 B: deliveries/s, divided by the limit with one write each",
        ["fanout", ONE_STREAM, "deliveries/s, of the better limit"],
        AtLeast(0.85),
        Some(AtLeast(0.95)),
    ),
    bar(
        "the same fan-out: user CPU per delivery, µs",
        ["fanout", ONE_STREAM, "server CPU per delivery, user"],
        AtMost(0.8),
        Some(AtMost(0.4)),
    ),
    bar(
        "bursts of 16 publishers: deliveries/s, divided by those with one write(2) each",
        [
            "burst",
            "16 publishers",
            "deliveries/s, of one write(2) each",
        ],
        AtLeast(4.0),
        Some(AtLeast(8.0)),
    ),
    bar(
        "a stalled reader: most kernel memory, kB",
        [
            "slow",
            "20 stalled readers among 2,000",
            "kernel memory per stalled reader, at most",
        ],
        AtMost(256.0),
        None,
    ),
    bar(
        "fast clients beside stalled ones: p99, divided by that without stalled ones",
        [
            "slow",
            "20 stalled readers among 2,000",
            "p99, of that when nobody stalls",
        ],
        AtMost(1.2),
        None,
    ),
    bar(
        "start until `/health` answers 200, ms",
        ["idle", ONE_CHANNEL, "start to healthy"],
        AtMost(50.0),
        Some(AtMost(15.0)),
    ),
    bar(
        "storm of 15,000 clients through a 2 ms app: calls/s, divided by what the app alone answers",
        ["storm", STORM_RPC, "calls/s, of the app alone"],
        AtLeast(0.9),
        None,
    ),
    bar(
        "the same storm: clients without a welcome for 6 s, or disconnected",
        ["storm", STORM_RPC, "clients timed out"],
        AtMost(0.0),
        None,
    ),
    bar(
        "the same storm: memory after it, divided by that before",
        ["storm", STORM_RPC, "memory after, of before"],
        AtMost(1.1),
        None,
    ),
    bar(
        "5,000 clients come back through a 0 ms app, s",
        ["storm", STORM_FAST_APP, "all subscribed again"],
        AtMost(1.4),
        Some(AtMost(0.7)),
    ),
    bar(
        "server CPU per new connection (upgrade, connect and one subscribe through RPC), µs",
        ["storm", STORM_FAST_APP, "server CPU per connection"],
        AtMost(200.0),
        Some(AtMost(100.0)),
    ),
    bar(
        "fan-out with history, one stream, 1 shard: deliveries/s, divided by those without",
        ["history", "1 stream, 1 shard", history::DELIVERIES],
        AtLeast(0.95),
        None,
    ),
    bar(
        "the same with 2 shards",
        ["history", "1 stream, 2 shards", history::DELIVERIES],
        AtLeast(0.95),
        None,
    ),
    bar(
        "fan-out with history, 2,000 streams, 1 shard: deliveries/s, divided by those without",
        ["history", "2,000 streams, 1 shard", history::DELIVERIES],
        AtLeast(0.95),
        None,
    ),
    bar(
        "the same with 2 shards",
        ["history", "2,000 streams, 2 shards", history::DELIVERIES],
        AtLeast(0.95),
        None,
    ),
    bar(
        "5,000 clients come back and have missed 20 messages: all have everything, s",
        ["restores", RESTORE, restores::ALL],
        AtMost(1.0),
        None,
    ),
    bar(
        "the same: calls to the app",
        ["restores", RESTORE, restores::CALLS],
        AtMost(0.0),
        None,
    ),
    bar(
        "the same: messages that are missing or come twice, clients without everything",
        ["restores", RESTORE, restores::FAULTS],
        AtMost(0.0),
        None,
    ),
    bar(
        "15,000 clients come back: without a welcome for 6 s, refused or closed",
        ["restores", RESTORE_MANY, restores::TIMED_OUT],
        AtMost(0.0),
        None,
    ),
    bar(
        "the same: calls to the app",
        ["restores", RESTORE_MANY, restores::CALLS],
        AtMost(0.0),
        None,
    ),
    bar(
        "the same: messages that are missing or come twice, clients without everything",
        ["restores", RESTORE_MANY, restores::FAULTS],
        AtMost(0.0),
        None,
    ),
    bar(
        "10,000 members of one stream: joins and leaves/s",
        ["presence", MEMBERS, presence::RATE],
        AtLeast(20_000.0),
        None,
    ),
    bar(
        "the answer that names them all, ms",
        ["presence", MEMBERS_ASKED, presence::ANSWER],
        AtMost(50.0),
        None,
    ),
    bar(
        "server CPU per perform, µs",
        ["rpc", BUSY_CALLS, "server CPU per perform"],
        AtMost(60.0),
        Some(AtMost(30.0)),
    ),
    bar(
        "30 minutes of churn: growth of private memory per hour, %",
        ["churn", CHURN, "growth in an hour"],
        AtMost(1.0),
        None,
    ),
    bar(
        "100,000 connections: user bytes per connection, divided by those at 10,000",
        [
            "scale",
            "100000 connections",
            "user memory, of that at 10000",
        ],
        AtMost(1.05),
        None,
    ),
    bar(
        "CPU per delivery with 2 shards, divided by that with 1",
        [
            "scale",
            "2 cores",
            "server CPU per delivery, of that with 1 core",
        ],
        AtMost(1.05),
        None,
    ),
    bar(
        "CPU per delivery with 4 shards, divided by that with 1",
        [
            "scale",
            "4 cores",
            "server CPU per delivery, of that with 1 core",
        ],
        AtMost(1.05),
        None,
    ),
    bar(
        "rooms of three at 32 shards: CPU per publication, divided by that with 1",
        [
            SHARDS,
            "growth: 32 shards",
            "rooms of three: server CPU per publication, of that with 1 shard",
        ],
        AtMost(1.6),
        None,
    ),
    bar(
        "the same, divided by that with 8",
        [
            SHARDS,
            "growth: 32 shards",
            "rooms of three: server CPU per publication, of that with 8 shards",
        ],
        AtMost(1.15),
        None,
    ),
    bar(
        "whispers in groups of three at 32 shards: CPU per whisper, divided by that with 1",
        [
            SHARDS,
            "growth: 32 shards",
            "whispers: server CPU per whisper, of that with 1 shard",
        ],
        AtMost(1.6),
        None,
    ),
    bar(
        "the same, divided by that with 8",
        [
            SHARDS,
            "growth: 32 shards",
            "whispers: server CPU per whisper, of that with 8 shards",
        ],
        AtMost(1.15),
        None,
    ),
    bar(
        "rooms of three at 32 shards: the table of interest, kB",
        [SHARDS, "rooms of three: 32 shards", "table of interest"],
        AtMost(1_048.0),
        None,
    ),
    bar(
        "private memory of a shard at rest, of 32, kB",
        [
            SHARDS,
            "growth: 32 shards",
            "private memory per further shard",
        ],
        AtMost(200.0),
        None,
    ),
    bar(
        "wake-ups of a shard at rest, of 32, per second",
        [
            SHARDS,
            "at rest: 32 shards",
            "wake-ups per second and shard",
        ],
        AtMost(2.0),
        None,
    ),
    bar(
        "one client sends flat out, worst flood: ping p99 of the others, ms",
        ["unfair", "1 attacker: the worst of all", unfair::PING],
        AtMost(10.0),
        None,
    ),
    bar(
        "100 clients send flat out, worst flood: ping p99 of the others, ms",
        ["unfair", "100 attackers: the worst of all", unfair::PING],
        AtMost(25.0),
        None,
    ),
    bar(
        "100 clients send flat out, worst flood: `/health` p99, ms",
        ["unfair", "100 attackers: the worst of all", unfair::HEALTH],
        AtMost(20.0),
        None,
    ),
    bar(
        "100 clients send flat out, worst flood: p99 of the 201 of a publication, ms",
        ["unfair", "100 attackers: the worst of all", unfair::TAKEN],
        AtMost(50.0),
        None,
    ),
    bar(
        "100 clients send flat out, worst flood: largest deviation of Action Cable pings, ms",
        ["unfair", "100 attackers: the worst of all", unfair::PINGS],
        AtMost(100.0),
        None,
    ),
    bar(
        "100 clients send flat out, worst flood: p99 of the welcome of new clients, ms",
        ["unfair", "100 attackers: the worst of all", unfair::WELCOME],
        AtMost(1_000.0),
        None,
    ),
    bar(
        "one client sends flat out, worst flood, epoll: ping p99 of the others, ms",
        ["unfair", "1 attacker: the worst of all", unfair::PING],
        AtMost(10.0),
        None,
    )
    .on_epoll(),
    bar(
        "100 clients send flat out, worst flood, epoll: ping p99 of the others, ms",
        ["unfair", "100 attackers: the worst of all", unfair::PING],
        AtMost(25.0),
        None,
    )
    .on_epoll(),
    bar(
        "100 clients send flat out, worst flood, epoll: `/health` p99, ms",
        ["unfair", "100 attackers: the worst of all", unfair::HEALTH],
        AtMost(20.0),
        None,
    )
    .on_epoll(),
    bar(
        "100 clients send flat out, worst flood, epoll: p99 of the 201 of a publication, ms",
        ["unfair", "100 attackers: the worst of all", unfair::TAKEN],
        AtMost(50.0),
        None,
    )
    .on_epoll(),
    bar(
        "100 clients send flat out, worst flood, epoll: largest deviation of Action Cable pings, ms",
        ["unfair", "100 attackers: the worst of all", unfair::PINGS],
        AtMost(100.0),
        None,
    )
    .on_epoll(),
    bar(
        "100 clients send flat out, worst flood, epoll: p99 of the welcome of new clients, ms",
        ["unfair", "100 attackers: the worst of all", unfair::WELCOME],
        AtMost(1_000.0),
        None,
    )
    .on_epoll(),
];

/// The table of all bars as Markdown; missing results are named as such.
pub fn markdown() -> String {
    let mut text =
        "\n| what | bar | moonshot | measured | peer | |\n| --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    // The same cases, but measured together with another server.
    let beside = Stored::read(BESIDE);
    for bar in BARS {
        let stored = Stored::read(bar.scenario);
        let row = |stored: &Option<Stored>, server: &str| {
            let rows = &stored.as_ref()?.rows;
            rows.iter()
                .find(|row| {
                    row.server == server && row.case == bar.case && row.metric == bar.metric
                })
                .cloned()
        };
        let measured = row(&stored, bar.server);
        let peer = row(&stored, "peer").or_else(|| row(&beside, "peer"));
        let verdict = match measured.as_ref().map(Row::median) {
            None => "",
            Some(value) if bar.moonshot.as_ref().is_some_and(|goal| goal.is_met(value)) => {
                "**moonshot**"
            }
            Some(value) if bar.goal.is_met(value) => "met",
            Some(_) => "**not met**",
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {verdict} |",
            bar.what,
            bar.goal.shown(),
            bar.moonshot.as_ref().map_or(String::new(), Goal::shown),
            measured.map_or("not measured".to_owned(), |row| row.spread()),
            peer.map_or(String::new(), |row| row.spread()),
        );
    }
    text.push('\n');
    text
}
