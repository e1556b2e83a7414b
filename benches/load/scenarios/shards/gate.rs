//! The interest gate: counts to how many shards a publication to a small room goes. Fails when it goes to shards that have
//! no listener. Nothing is timed, so that it gives the same result on every machine.

use std::fs;
use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::fleet::{Fleet, Plan};
use crate::options::Options;
use crate::peer::Peer;
use crate::report::number;
use crate::scenarios::drive::Drive;
use crate::scenarios::fanout::Spread;
use crate::target::{Driver, Target, public_flags};

use super::publishing::{Publishers, ROOM_SESSIONS};
use super::{HANDED, PATIENCE, PUBLISHED, SESSIONS};

const DRIVERS: [Driver; 2] = [Driver::IoUring, Driver::Epoll];
const TIME: Duration = Duration::from_secs(1);
const MESSAGE_BYTES: usize = 200;
const WINDOW: usize = 64;

/// The part of `benches/gates.toml` for this gate.
#[derive(Deserialize)]
struct Gates {
    interest: Interest,
}

#[derive(Deserialize)]
struct Interest {
    shards: usize,
    rooms: usize,
    /// How much more than shards with a listener may get a publication.
    tolerance_percent: f64,
}

pub fn run(_: &Options) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/gates.toml");
    let text = fs::read_to_string(path).expect("benches/gates.toml can be read");
    let gates: Gates = toml::from_str(&text).expect("benches/gates.toml is as its head says");
    let mut wasteful = false;
    for driver in DRIVERS {
        if driver == Driver::IoUring && io_uring::IoUring::new(8).is_err() {
            println!("skipped: io_uring: this kernel refuses it");
            continue;
        }
        wasteful |= !is_frugal(driver, &gates.interest);
    }
    if wasteful {
        eprintln!("Shards get publications that no client of theirs listens to.");
        exit(1);
    }
}

/// Prints the result; returns false when a publication goes to too many shards.
fn is_frugal(driver: Driver, gate: &Interest) -> bool {
    let target = Target::ringcable(driver, gate.shards);
    let peer = Peer::start(&target, &public_flags(), None);
    let sessions = gate.rooms * ROOM_SESSIONS;
    let streams = Arc::new(Spread {
        streams: gate.rooms,
    });
    let mut fleet = Fleet::start(&Plan::new(peer.address, streams, 1));
    fleet.connect_all(sessions, PATIENCE);
    let mut drive = Drive::new(&fleet, sessions, gate.rooms);
    drive.set_payload(MESSAGE_BYTES);
    let mut publishers = Publishers::new(&peer);
    let outcome = drive.closed_loop(&mut publishers, (WINDOW, 1), TIME, peer.pid());
    let count = |name| peer.metric(name).expect("the server counts this");
    let handed = count(HANDED) / count(PUBLISHED);
    let listening = shards_that_listen(&peer.metric_by_label(SESSIONS));
    let most = listening * (1.0 + gate.tolerance_percent / 100.0);
    let lost = outcome.figures.faults() + outcome.missing;
    let verdict = match (lost, handed <= most) {
        (0, true) => "ok",
        (0, false) => "TOO MANY",
        _ => "DELIVERIES ARE LOST",
    };
    println!(
        "{} shards, {}: a publication to a room of {ROOM_SESSIONS} goes to {} of them, {} have a listener (at most {}), {lost} \
         deliveries lost or wrong: {verdict}",
        gate.shards,
        target.name,
        number(handed),
        number(listening),
        number(most),
    );
    verdict == "ok"
}

/// How many shards have a listener of a room, on average: those of a shard's share of all sessions that one of the room's
/// sessions is on it.
fn shards_that_listen(sessions: &[f64]) -> f64 {
    let all: f64 = sessions.iter().sum();
    let none = |of_shard: &f64| (1.0 - of_shard / all).powi(ROOM_SESSIONS as i32);
    sessions.iter().map(|of_shard| 1.0 - none(of_shard)).sum()
}
