//! What grows with the number of shards: the cost of a message in a small room, of a whisper and of a call, memory,
//! wake-ups, start and end.
//!
//! All of it is measured with 1, 2, 4 … 64 shards, and `--before` measures another build in turns. There may be more shards
//! than CPUs; then a part of the cost is that of task switches, for both builds.

mod calls;
mod gate;
mod growth;
mod leaving;
mod publishing;
mod resting;
mod waiting;
mod whispers;

use std::time::Duration;

use crate::names::SHARDS;
use crate::options::Options;
use crate::peer::Peer;
use crate::report::Report;
use crate::target::Target;

pub use gate::run as run_gate;

const COUNTS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const SECONDS: u64 = 3;
const PATIENCE: Duration = Duration::from_secs(120);
/// The name of a shard's thread begins like this, in every build.
const SHARD_THREAD_PREFIX: &str = "shard-";

/// Sessions of a shard.
const SESSIONS: &str = "ringcable_clients_num";
/// Messages that were put into inboxes.
const HANDED: &str = "ringcable_publications_handed_total";
/// Times a shard had to be woken for its inbox.
const WOKEN: &str = "ringcable_inbox_wakeups_total";
/// Bytes of the table that says which shards listen to a stream.
const TABLE: &str = "ringcable_interest_bytes";
/// Publications and whispers.
const PUBLISHED: &str = "anycable_go_broadcast_msg_total";

/// What is measured, in this order.
const PARTS: [Part; 7] = [
    Part {
        name: resting::NAME,
        measure: resting::measure,
    },
    Part {
        name: publishing::ROOMS,
        measure: publishing::measure_rooms,
    },
    Part {
        name: publishing::ONE_STREAM,
        measure: publishing::measure_one_stream,
    },
    Part {
        name: whispers::NAME,
        measure: whispers::measure,
    },
    Part {
        name: calls::NAME,
        measure: calls::measure,
    },
    Part {
        name: leaving::NAME,
        measure: leaving::measure,
    },
    Part {
        name: waiting::NAME,
        measure: waiting::measure,
    },
];

struct Part {
    /// Its cases are this name and the number of shards.
    name: &'static str,
    measure: fn(&mut Scene<'_>),
}

/// One part with one server.
struct Scene<'a> {
    target: Target,
    case: String,
    options: &'a Options,
    time: Duration,
    report: &'a mut Report,
}

pub fn run(options: &Options) {
    let counts = match &*options.shards {
        [] => COUNTS.to_vec(),
        chosen => chosen.to_vec(),
    };
    let mut report = Report::new(SHARDS, &options.shown);
    for run in 0..options.runs {
        for part in &PARTS {
            for shards in &counts {
                let case = case(part.name, *shards);
                if !options.wants(&case) {
                    continue;
                }
                let mut targets = targets(options, *shards);
                // So that neither build is always the one that follows the other.
                if run % 2 == 1 {
                    targets.reverse();
                }
                for target in targets {
                    eprintln!(
                        "{SHARDS}: run {} of {}, {case}, {}",
                        run + 1,
                        options.runs,
                        target.name
                    );
                    (part.measure)(&mut Scene {
                        target,
                        case: case.clone(),
                        options,
                        time: Duration::from_secs(options.seconds.unwrap_or(SECONDS)),
                        report: &mut report,
                    });
                }
            }
        }
    }
    growth::compare(&counts, &mut report);
    report.finish();
}

/// The case of a part with this many shards.
fn case(part: &str, shards: usize) -> String {
    match shards {
        1 => format!("{part}: 1 shard"),
        many => format!("{part}: {many} shards"),
    }
}

fn targets(options: &Options, shards: usize) -> Vec<Target> {
    let both = |driver| {
        let before = options.before.as_ref();
        let before = before.map(|path| Target::before(path, driver, shards));
        [Some(Target::ringcable(driver, shards)), before]
    };
    let drivers = options.drivers.iter().copied();
    drivers.flat_map(both).flatten().collect()
}

impl Scene<'_> {
    fn say(&mut self, metric: &str, unit: &str, value: f64) {
        self.report
            .sample(self.target.name, &self.case, metric, unit, value);
    }

    /// The fewest and the most sessions of a shard.
    fn say_spread(&mut self, peer: &Peer, sessions: usize) {
        let by_shard = peer.metric_by_label(SESSIONS);
        assert_eq!(by_shard.iter().sum::<f64>() as usize, sessions);
        let (fewest, most) = by_shard
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(fewest, most), value| {
                (fewest.min(*value), most.max(*value))
            });
        self.say("sessions of a shard, fewest", "", fewest);
        self.say("sessions of a shard, most", "", most);
    }
}

/// Microseconds of each of `count`.
fn micros_each(time: Duration, count: f64) -> f64 {
    time.as_secs_f64() * 1e6 / count
}
