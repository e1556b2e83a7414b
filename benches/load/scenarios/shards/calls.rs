//! Performs through the app: all shards share one limiter.

use std::thread;
use std::time::Duration;

use crate::app::App;
use crate::peer::Peer;
use crate::scenarios::rpc::Performers;
use crate::sys;

use super::{Scene, micros_each};

pub const NAME: &str = "calls";
pub const PER_PERFORM: &str = "server CPU per perform";
/// So many that calls wait for their slots on every shard.
const CLIENTS: usize = 500;
const WARM_UP: Duration = Duration::from_millis(500);

pub fn measure(scene: &mut Scene<'_>) {
    let cpus = scene.target.client_cpus();
    let app = App::start(Duration::ZERO, cpus.clone()).expect("the app starts");
    let peer = Peer::start(&scene.target, &[app.flag()], None);
    let clients = scene.options.clients.unwrap_or(CLIENTS).min(CLIENTS);
    // Its own thread, because a pinned thread stays pinned.
    thread::scope(|scope| {
        scope.spawn(|| {
            sys::pin(&cpus).expect("the CPUs exist");
            let performers = Performers::connect(peer.address, clients);
            let mut performers = performers.expect("the clients subscribe");
            performers.run(WARM_UP).expect("the echoes come back");
            let cpu = peer.cpu();
            let performed = performers.run(scene.time).expect("the echoes come back");
            let cpu = peer.cpu().since(cpu).total();
            let performs = performed.performs as f64;
            scene.say(
                "performs/s",
                "1/s",
                performs / performed.elapsed.as_secs_f64(),
            );
            scene.say(PER_PERFORM, "µs", micros_each(cpu, performs));
            for percent in [50.0, 99.0] {
                let micros = performed.latency.percentile(percent) as f64 / 1e3;
                scene.say(&format!("round trip p{percent}"), "µs", micros);
            }
        });
    });
    let counts = app.counts();
    scene.say("calls at a time, most", "", counts.concurrent_max() as f64);
    scene.say("connections to the app", "", counts.accepted() as f64);
    assert_eq!(counts.errors(), 0, "the app understands all calls");
}
