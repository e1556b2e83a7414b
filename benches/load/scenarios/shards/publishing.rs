//! What the app publishes: to many small rooms, and to one stream that all listen to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fleet::{Fleet, Mark, Plan};
use crate::peer::Peer;
use crate::process;
use crate::publisher::{Outlet, Publisher};
use crate::scenarios::drive::Drive;
use crate::scenarios::fanout::Spread;
use crate::target::public_flags;

use super::{HANDED, PATIENCE, PUBLISHED, SHARD_THREAD_PREFIX, Scene, TABLE, WOKEN, micros_each};

pub const ROOMS: &str = "rooms of three";
pub const ONE_STREAM: &str = "one stream";
pub const PER_PUBLICATION: &str = "server CPU per publication";
pub const PER_SECOND: &str = "deliveries/s";
pub const ROOM_SESSIONS: usize = 3;
/// Sessions of all rooms together, and listeners of the one stream.
const SESSIONS: usize = 6_000;
const LISTENERS: usize = 5_000;
const MESSAGE_BYTES: usize = 200;
/// Connections of the publisher. Each has one publication on its way.
const CONNECTIONS: usize = 16;
/// Publications that may be ahead of the receivers: in rooms, and to one stream.
const ROOM_WINDOW: usize = 64;
const STREAM_WINDOW: usize = 8;

/// A server with its listeners, spread over streams.
pub struct Audience {
    pub peer: Peer,
    pub fleet: Fleet,
    pub sessions: usize,
    pub streams: usize,
}

impl Audience {
    pub fn gather(scene: &mut Scene<'_>, sessions: usize, streams: usize) -> Self {
        let mut flags = public_flags();
        flags.push("--ping_interval=3600".to_owned());
        let peer = Peer::start(&scene.target, &flags, None);
        scene.report.server(scene.target.name, &peer.flags);
        let threads = scene.options.threads_for(sessions);
        let mut plan = Plan::new(peer.address, Arc::new(Spread { streams }), threads);
        plan.cpus = scene.target.client_cpus();
        let mut fleet = Fleet::start(&plan);
        fleet.connect_all(sessions, PATIENCE);
        Self {
            peer,
            fleet,
            sessions,
            streams,
        }
    }
}

/// Kept-alive connections that publish in turns.
pub struct Publishers {
    connections: Vec<(Publisher, Answer)>,
    next: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Answer {
    Read,
    Awaited,
}

impl Publishers {
    pub fn new(peer: &Peer) -> Self {
        let connection = |_| (Publisher::new(peer.broadcast_address), Answer::Read);
        Self {
            connections: (0..CONNECTIONS).map(connection).collect(),
            next: 0,
        }
    }
}

impl Outlet for Publishers {
    /// Waits for the answer to the last publication of the connection whose turn it is, and not for the one to this.
    fn publish(&mut self, marks: &[Mark]) -> Duration {
        let begun = Instant::now();
        let (connection, answer) = &mut self.connections[self.next];
        if *answer == Answer::Awaited {
            connection.wait_taken();
        }
        connection.send(marks);
        *answer = Answer::Awaited;
        self.next = (self.next + 1) % CONNECTIONS;
        begun.elapsed()
    }
}

pub fn measure_rooms(scene: &mut Scene<'_>) {
    let rooms = scene.options.clients.unwrap_or(SESSIONS) / ROOM_SESSIONS;
    let sessions = rooms * ROOM_SESSIONS;
    let audience = Audience::gather(scene, sessions, rooms);
    scene.say_spread(&audience.peer, sessions);
    let mut publishers = Publishers::new(&audience.peer);
    publish(scene, &audience, &mut publishers, ROOM_WINDOW);
}

pub fn measure_one_stream(scene: &mut Scene<'_>) {
    let listeners = scene.options.clients.unwrap_or(LISTENERS).min(LISTENERS);
    let audience = Audience::gather(scene, listeners, 1);
    let mut publisher = Publisher::new(audience.peer.broadcast_address);
    publish(scene, &audience, &mut publisher, STREAM_WINDOW);
}

fn publish(scene: &mut Scene<'_>, audience: &Audience, outlet: &mut dyn Outlet, window: usize) {
    let Audience { peer, fleet, .. } = audience;
    let mut drive = Drive::new(fleet, audience.sessions, audience.streams);
    drive.set_payload(MESSAGE_BYTES);
    let counts = || {
        let sleeps = process::sleeps(peer.pid(), SHARD_THREAD_PREFIX) as f64;
        let metric = |name| peer.metric(name);
        [
            Some(sleeps),
            metric(HANDED),
            metric(WOKEN),
            metric(PUBLISHED),
        ]
    };
    let before = counts();
    let outcome = drive.closed_loop(outlet, (window, 1), scene.time, peer.pid());
    let after = counts();
    let faults = outcome.figures.faults() + outcome.missing + outcome.figures.closed;
    assert_eq!(faults, 0, "deliveries are lost, wrong or twice there");
    let listeners = (audience.sessions / audience.streams) as f64;
    let publications = outcome.figures.deliveries as f64 / listeners;
    let seconds = outcome.elapsed.as_secs_f64();
    scene.say("publications/s", "1/s", publications / seconds);
    scene.say(PER_SECOND, "1/s", outcome.per_second());
    scene.say(
        PER_PUBLICATION,
        "µs",
        micros_each(outcome.cpu.total(), publications),
    );
    scene.say(
        "server CPU",
        "cores",
        outcome.cpu.total().as_secs_f64() / seconds,
    );
    scene.say(
        "publish to read, p50",
        "µs",
        outcome.figures.latency.percentile(50.0) as f64 / 1e3,
    );
    if let Some(bytes) = peer.metric(TABLE) {
        scene.say("table of interest", "kB", bytes / 1e3);
    }
    // With the warm-up, which is in all counts. Another build may not have all of them.
    let grown = |at: usize| Some(after[at]? - before[at]?);
    let published = grown(3).expect("every build counts publications");
    for (at, metric) in [
        (0, "sleeps of shards per publication"),
        (1, "handed to shards per publication"),
        (2, "shards woken per publication"),
    ] {
        if let Some(count) = grown(at) {
            scene.say(metric, "", count / published);
        }
    }
}
