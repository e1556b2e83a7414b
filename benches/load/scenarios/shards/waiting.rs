//! More clients than `--max-conn` allows wait on every shard: what it costs to let one in for each that leaves.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::fleet::{Fleet, Plan};
use crate::peer::Peer;
use crate::process;
use crate::scenarios::profiles::OneStream;
use crate::target::public_flags;

use super::{PATIENCE, SHARD_THREAD_PREFIX, Scene, micros_each};

pub const NAME: &str = "full";
pub const PER_CHANGE: &str = "server CPU per client that follows another";
/// Clients that are let in, and as many that wait at the beginning.
const CLIENTS: usize = 1_000;
/// Clients that follow others, one after the other. So few that clients still wait on every shard at the end.
const CHANGES: usize = 400;
/// Time in which the waiting clients get into the queues of all shards.
const ARRIVAL: Duration = Duration::from_millis(500);

pub fn measure(scene: &mut Scene<'_>) {
    let mut flags = public_flags();
    flags.extend([
        format!("--max-conn={CLIENTS}"),
        "--ping_interval=3600".to_owned(),
    ]);
    let peer = Peer::start(&scene.target, &flags, None);
    let mut plan = Plan::new(peer.address, Arc::new(OneStream), 1);
    plan.cpus = scene.target.client_cpus();
    plan.unfinished_max = CLIENTS;
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(CLIENTS, PATIENCE);
    fleet.take_figures();
    fleet.connect(CLIENTS);
    thread::sleep(ARRIVAL);
    let sleeps = || process::sleeps(peer.pid(), SHARD_THREAD_PREFIX) as f64;
    let (cpu, slept) = (peer.cpu(), sleeps());
    let mut let_in = 0;
    for change in 1..=CHANGES {
        fleet.leave(1);
        while let_in < change as u64 {
            let_in += fleet.take_figures().ready.count();
            thread::sleep(Duration::from_micros(200));
        }
    }
    let cpu = peer.cpu().since(cpu).total();
    scene.say(PER_CHANGE, "µs", micros_each(cpu, CHANGES as f64));
    let each = (sleeps() - slept) / CHANGES as f64;
    scene.say("sleeps of shards per client that follows another", "", each);
}
