//! Everybody leaves at once: the Disconnect calls of all shards go through the inbox of one.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::app::App;
use crate::fleet::{Fleet, Plan};
use crate::peer::Peer;
use crate::scenarios::profiles::OneChannel;

use super::{PATIENCE, Scene, micros_each};

pub const NAME: &str = "all leave";
pub const PER_SESSION: &str = "server CPU per session that leaves";
const SESSIONS: usize = 15_000;
/// Calls that wait, calls that were given up, and messages that found the inbox full.
const QUEUED: &str = "anycable_go_disconnect_queue_size";
const DROPPED: &str = "ringcable_disconnect_calls_dropped_total";
const WAITED: &str = "ringcable_inbox_waits_total";
/// Not too often: reading metrics costs CPU too.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

pub fn measure(scene: &mut Scene<'_>) {
    let cpus = scene.target.client_cpus();
    let app = App::start(Duration::ZERO, cpus.clone()).expect("the app starts");
    let peer = Peer::start(&scene.target, &[app.flag()], None);
    let sessions = scene.options.clients.unwrap_or(SESSIONS).min(SESSIONS);
    let threads = scene.options.threads_for(sessions);
    let mut plan = Plan::new(peer.address, Arc::new(OneChannel), threads);
    plan.cpus = cpus;
    let mut fleet = Fleet::start(&plan);
    let cpu = peer.cpu();
    fleet.connect_all(sessions, PATIENCE);
    let came = peer.cpu().since(cpu).total();
    let (begun, cpu) = (Instant::now(), peer.cpu());
    fleet.leave_all();
    let value = |name| peer.metric(name).expect("every build has this metric");
    while value(QUEUED) + (app.counts().disconnects() as f64) < sessions as f64 {
        assert!(begun.elapsed() < PATIENCE, "not all calls reach the queue");
        thread::sleep(BETWEEN_LOOKS);
    }
    let (took, left) = (begun.elapsed(), peer.cpu().since(cpu).total());
    scene.say(
        "server CPU per session that comes",
        "µs",
        micros_each(came, sessions as f64),
    );
    scene.say(
        "all calls in the queue after",
        "ms",
        took.as_secs_f64() * 1e3,
    );
    scene.say(PER_SESSION, "µs", micros_each(left, sessions as f64));
    scene.say("found the inbox full", "", value(WAITED));
    scene.say("calls given up", "", value(DROPPED));
}
