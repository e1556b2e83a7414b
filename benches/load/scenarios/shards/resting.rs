//! A server without sessions: memory, wake-ups, start and end, and what looking at it costs.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::fleet::{Fleet, Plan};
use crate::peer::Peer;
use crate::process::{self, KernelMemory};
use crate::scenarios::profiles::OneStream;
use crate::target::public_flags;

use super::{PATIENCE, SHARD_THREAD_PREFIX, Scene, micros_each};

pub const NAME: &str = "at rest";
pub const MEMORY: &str = "private memory";
pub const WAKE_UPS: &str = "wake-ups per second and shard";
/// After the start a server still gives memory back.
const REST: Duration = Duration::from_secs(2);
const PAGES: usize = 50;
/// Sessions that are few for many shards.
const FEW: usize = 100;
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// The shortest interval of gauges and metrics log, so that a few seconds show what an interval costs.
const INTERVAL: Duration = Duration::from_secs(1);

pub fn measure(scene: &mut Scene<'_>) {
    let group = KernelMemory::new();
    let kernel = group.as_ref().map(KernelMemory::bytes);
    let mut peer = Peer::start(&scene.target, &public_flags(), group.as_ref());
    scene.report.server(scene.target.name, &peer.flags);
    scene.say(
        "start to healthy",
        "ms",
        peer.started_in.as_secs_f64() * 1e3,
    );
    thread::sleep(REST);
    let sleeps = || process::sleeps(peer.pid(), SHARD_THREAD_PREFIX) as f64;
    let before = sleeps();
    thread::sleep(scene.time);
    let each = (sleeps() - before) / scene.time.as_secs_f64() / scene.target.cores as f64;
    let memory = peer.memory();
    let kilobytes = |bytes: u64| bytes as f64 / 1e3;
    scene.say(MEMORY, "kB", kilobytes(memory.private_bytes));
    scene.say("resident memory", "kB", kilobytes(memory.rss_bytes));
    scene.say(
        "proportional memory",
        "kB",
        kilobytes(memory.proportional_bytes),
    );
    if let (Some(group), Some(kernel)) = (&group, kernel) {
        scene.say(
            "kernel memory",
            "kB",
            kilobytes(group.bytes().saturating_sub(kernel)),
        );
    }
    scene.say(WAKE_UPS, "1/s", each);
    scene.say("descriptors", "", process::descriptors(peer.pid()) as f64);
    say_pages(scene, &peer);
    let stop = peer.stop(STOP_PATIENCE);
    assert!(!stop.killed, "it ends in time");
    scene.say("SIGTERM to the end", "ms", stop.took.as_secs_f64() * 1e3);
    drop(peer);
    measure_upkeep(scene);
}

/// What one look at all metrics costs.
fn say_pages(scene: &mut Scene<'_>, peer: &Peer) {
    let cpu = peer.cpu();
    let mut bytes = 0;
    for _ in 0..PAGES {
        bytes = peer.metrics_page().expect("the page is served").len();
    }
    let cpu = peer.cpu().since(cpu).total();
    scene.say("metrics page", "kB", bytes as f64 / 1e3);
    scene.say("CPU per metrics page", "µs", micros_each(cpu, PAGES as f64));
}

/// What the gauges and the metrics log cost at each of their intervals.
fn measure_upkeep(scene: &mut Scene<'_>) {
    let seconds = INTERVAL.as_secs();
    let mut flags = public_flags();
    flags.extend([
        "--metrics_log".to_owned(),
        format!("--metrics_rotate_interval={seconds}"),
        format!("--stats_refresh_interval={seconds}"),
    ]);
    let peer = Peer::start(&scene.target, &flags, None);
    thread::sleep(REST);
    let cpu = || process::main_thread_cpu(peer.pid());
    let before = cpu();
    thread::sleep(scene.time);
    let intervals = scene.time.as_secs_f64() / INTERVAL.as_secs_f64();
    let cpu = cpu() - before;
    scene.say(
        "CPU of the control thread per interval",
        "µs",
        micros_each(cpu, intervals),
    );
    say_few_sessions(scene, &peer);
}

/// How the kernel spreads the connections of a few clients, each by the hash of its addresses.
fn say_few_sessions(scene: &mut Scene<'_>, peer: &Peer) {
    let mut fleet = Fleet::start(&Plan::new(peer.address, Arc::new(OneStream), 1));
    fleet.connect_all(FEW, PATIENCE);
    scene.say_spread(peer, FEW);
}
