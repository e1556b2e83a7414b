//! The memory gate: compares bytes per connection with the values in `benches/gates.toml`. Fails when they grow.
//!
//! Small, so that it runs on every machine and gives the same result each time: clients connect a few at a time, so that no
//! memory of a rush is left, and the value is the slope through several points.

use std::process::exit;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use serde::Deserialize;

use crate::app::App;
use crate::fleet::{Clients, Fleet, Plan};
use crate::options::Options;
use crate::peer::Peer;
use crate::report::{Row, number};
use crate::scenarios::profiles::{OneChannel, OneStream, RoomPage};
use crate::target::{Driver, Target, public_flags};

const CLIENTS: usize = 2_000;
/// The clients connect in this many steps; memory is read after each.
const PARTS: usize = 4;
const WARM_UP: usize = 200;
const CORES: usize = 1;
/// Disconnect calls per second, the most that servers allow.
const DISCONNECT_RATE: u32 = 1_000;
/// Clients that are connecting at a time.
const UNFINISHED_MAX: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause after the last client connected or left, so that the server can finish its work.
const REST: Duration = Duration::from_millis(300);
/// Small pages that are given back at once, because the gate counts what the server holds and not what the allocator keeps.
const ALLOCATOR: [(&str, &str); 2] = [("MIMALLOC_ALLOW_THP", "0"), ("MIMALLOC_PURGE_DELAY", "0")];
const TRIES_MAX: usize = 3;
const LOOKS: usize = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// `benches/gates.toml`.
#[derive(Deserialize)]
struct Gates {
    memory: Vec<Gate>,
}

#[derive(Deserialize)]
struct Gate {
    profile: String,
    driver: String,
    bytes_per_connection: f64,
    tolerance_percent: f64,
}

impl Gate {
    fn most(&self) -> f64 {
        self.bytes_per_connection * (1.0 + self.tolerance_percent / 100.0)
    }

    fn least(&self) -> f64 {
        self.bytes_per_connection * (1.0 - self.tolerance_percent / 100.0)
    }
}

pub fn run(options: &Options) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/gates.toml");
    let text = fs::read_to_string(path).expect("benches/gates.toml can be read");
    let gates: Gates = toml::from_str(&text).expect("benches/gates.toml is as its head says");
    let mut grown = false;
    for gate in gates
        .memory
        .iter()
        .filter(|gate| options.wants(&gate.profile))
    {
        let driver = Driver::parse(&gate.driver).expect("benches/gates.toml names drivers");
        if driver == Driver::IoUring && io_uring::IoUring::new(8).is_err() {
            println!(
                "skipped: {}, {}: this kernel refuses io_uring",
                gate.profile, gate.driver
            );
            continue;
        }
        let mut target = Target::ringcable(driver, CORES);
        target
            .environment
            .extend(ALLOCATOR.map(|(name, value)| (name, value.to_owned())));
        // Disturbances only add memory, so the smallest of a few tries is nearest to the truth. Real growth shows in all of
        // them.
        let tries = (0..TRIES_MAX).map(|_| bytes_per_connection(&gate.profile, &target));
        let mut measured = f64::INFINITY;
        for tried in tries {
            measured = measured.min(tried);
            if measured <= gate.most() {
                break;
            }
        }
        grown |= !judge(gate, measured);
    }
    if grown {
        eprintln!(
            "A connection costs more memory than before. If that is wanted, benches/gates.toml says how to renew it."
        );
        exit(1);
    }
}

/// Prints the result; returns false when it is too large.
fn judge(gate: &Gate, measured: f64) -> bool {
    let verdict = match measured {
        _ if measured > gate.most() => "TOO MUCH",
        _ if measured < gate.least() => "ok, and so much less that the stored value should follow",
        _ => "ok",
    };
    println!(
        "{}, {}: {} bytes per connection, stored {} (at most {}): {verdict}",
        gate.profile,
        gate.driver,
        number(measured.round()),
        number(gate.bytes_per_connection),
        number(gate.most().round()),
    );
    measured <= gate.most()
}

fn bytes_per_connection(profile: &str, target: &Target) -> f64 {
    let (clients, has_app): (Arc<dyn Clients>, _) = match profile {
        "1 subscription" => (Arc::new(OneChannel), true),
        "campfire" => (Arc::new(RoomPage), true),
        "1 public subscription" => (Arc::new(OneStream), false),
        other => panic!("benches/gates.toml names a profile {other:?} that is not known"),
    };
    let start = || App::start(Duration::ZERO, target.client_cpus()).expect("the app starts");
    let app = has_app.then(start);
    let flags = app.as_ref().map_or_else(public_flags, |app| {
        vec![app.flag(), format!("--disconnect_rate={DISCONNECT_RATE}")]
    });
    let peer = Peer::start(target, &flags, None);
    let mut plan = Plan::new(peer.address, clients, 1);
    plan.cpus = target.client_cpus();
    plan.unfinished_max = UNFINISHED_MAX;
    let mut fleet = Fleet::start(&plan);
    fleet.connect_all(WARM_UP, PATIENCE);
    fleet.leave_all();
    if let Some(app) = &app {
        assert!(app.wait_told(WARM_UP, PATIENCE), "the app is told who left");
    }
    let mut points = vec![(0.0, steady_bytes(&peer))];
    for part in 1..=PARTS {
        fleet.connect_all(CLIENTS / PARTS, PATIENCE);
        points.push(((part * CLIENTS / PARTS) as f64, steady_bytes(&peer)));
    }
    middle_slope(&points)
}

/// The median of the slopes between all pairs of points, which a single outlier does not change.
fn middle_slope(points: &[(f64, f64)]) -> f64 {
    let pairs = points
        .iter()
        .enumerate()
        .flat_map(|(index, one)| points[..index].iter().map(move |other| (one, other)));
    let values = pairs
        .map(|(one, other)| (one.1 - other.1) / (one.0 - other.0))
        .collect();
    Row {
        values,
        ..Row::default()
    }
    .median()
}

/// Private memory: the median of several readings.
fn steady_bytes(peer: &Peer) -> f64 {
    thread::sleep(REST);
    let look = |_| {
        thread::sleep(BETWEEN_LOOKS);
        peer.memory().private_bytes as f64
    };
    let values = (0..LOOKS).map(look).collect();
    Row {
        values,
        ..Row::default()
    }
    .median()
}
