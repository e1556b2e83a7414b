//! Times and instruction counts of the steps on the data path: `cargo bench --bench micro [-- <part of a name>]`.
//!
//! Times on shared machines are noisy: compare only times of one run. Instruction counts (user space, by callgrind) hardly
//! change from run to run, so they are stored in `benches/gates.toml` and checked:
//!
//! - `cargo bench --bench micro -- --gate` fails when a count has grown by more than a tenth;
//! - `cargo bench --bench micro -- --renew` writes the counts of this build into that file.
//!
//! Counts need valgrind and `gungraun-runner`; without these programs only the times are shown.

mod counts;
mod gate;
mod histories;
mod steps;
mod turns;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use mimalloc::MiMalloc;

/// The server's own allocator, because its instructions are part of a step.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// How long one step is timed.
const TIME_EACH: Duration = Duration::from_millis(500);
/// Calls between two readings of the clock, for a step that needs no restoring.
const BATCH: u32 = 1000;

/// One measured piece of work.
pub struct Step {
    /// Does the work once.
    run: Box<dyn FnMut()>,
    /// Restores what a call has used up; not measured.
    restore: Option<Box<dyn FnMut()>>,
    /// How many equal things one call handles; figures are per thing.
    units: u32,
}

impl Step {
    /// A step that can be repeated without restoring anything.
    pub fn new(run: impl FnMut() + 'static) -> Self {
        Self {
            run: Box::new(run),
            restore: None,
            units: 1,
        }
    }

    /// Makes the figures be per one of `units`.
    pub fn per(self, units: u32) -> Self {
        Self { units, ..self }
    }

    /// Calls `restore` between two calls of the step.
    pub fn restored_by(self, restore: impl FnMut() + 'static) -> Self {
        Self {
            restore: Some(Box::new(restore)),
            ..self
        }
    }

    fn restore(&mut self) {
        if let Some(restore) = &mut self.restore {
            restore();
        }
    }
}

/// The name of a step in `benches/gates.toml`, and the function that sets it up.
type NamedStep = (&'static str, fn() -> Step);

/// Every step.
const STEPS: &[NamedStep] = &[
    ("frame: decode a header", steps::decode_header),
    ("frame: unmask 200 B", steps::unmask_200),
    ("frame: unmask 1 KiB", steps::unmask_1024),
    ("frame: build for 200 B", steps::build_frame),
    ("text: check 1 KiB of UTF-8", steps::check_utf8),
    ("message: decode a 200 B frame", steps::decode_frame),
    ("command: decode a subscribe", steps::decode_subscribe),
    ("command: decode a perform", steps::decode_perform),
    ("publication: decode 200 B", steps::decode_publication_200),
    ("publication: decode 21 kB", steps::decode_publication_21k),
    (
        "delivery: encode 200 B for one identifier",
        steps::encode_delivery_200,
    ),
    (
        "delivery: encode 1 kB for one identifier",
        steps::encode_delivery_1k,
    ),
    (
        "delivery: encode 1 kB, identifier of 37 B",
        steps::encode_delivery_1k_short,
    ),
    (
        "delivery: encode 21 kB for one identifier",
        steps::encode_delivery_21k,
    ),
    ("rpc: build a command body", steps::command_body),
    ("rpc: decode a command answer", steps::command_answer),
    ("hub: find one stream of 10,000", steps::find_stream),
    ("hub: walk 10,000 receivers of one stream", steps::walk),
    ("inbox: hand over one publication", steps::hand_over),
    (
        "history: store 200 B in one of 10,000 streams",
        histories::append,
    ),
    ("history: replay 20 messages", histories::replay),
    (
        "history: replay 20 messages by time",
        histories::replay_since,
    ),
    (
        "publication: to an inbox, without history",
        histories::publish_transient,
    ),
    (
        "publication: to an inbox, stored",
        histories::publish_stored,
    ),
    ("idempotency: remember a new key", histories::see_key),
    (
        "presence: leave or join of 10,000 members",
        histories::join_and_leave,
    ),
    (
        "turn: one delivery, 1 message, io_uring",
        turns::fan_out_uring,
    ),
    ("turn: one delivery, 1 message, epoll", turns::fan_out_epoll),
    (
        "turn: one delivery, burst of 16, io_uring",
        turns::burst_uring,
    ),
    (
        "turn: ping command to pong reply, io_uring",
        turns::ping_uring,
    ),
    ("turn: ping command to pong reply, epoll", turns::ping_epoll),
];

/// A step that has run once, so that lazy setup is not measured.
fn prepare(index: usize) -> Step {
    let mut step = STEPS[index].1();
    (step.run)();
    step.restore();
    step
}

fn main() -> ExitCode {
    if counts::is_counting_process() {
        counts::run_counting_process();
        return ExitCode::SUCCESS;
    }
    // Cargo passes `--bench`, which is no step.
    let argument = std::env::args()
        .skip(1)
        .find(|argument| argument != "--bench");
    match argument.as_deref() {
        Some("--gate") => gate::check(),
        Some("--renew") => gate::renew(),
        wanted => {
            show(wanted.unwrap_or(""));
            ExitCode::SUCCESS
        }
    }
}

/// Prints times and counts of the steps with `wanted` in their name.
fn show(wanted: &str) {
    let counts = match counts::measure() {
        Ok(counts) => Some(counts),
        Err(error) => {
            println!("times only: {error}");
            None
        }
    };
    println!("{:<46} {:>12} {:>14}", "step", "ns, median", "instructions");
    for (index, (name, _)) in STEPS.iter().enumerate() {
        if !name.contains(wanted) {
            continue;
        }
        let nanos = median_nanos(prepare(index));
        let count = match &counts {
            Some(counts) => format!("{:.1}", counts[index]),
            None => "-".to_owned(),
        };
        println!("{name:<46} {nanos:>12.1} {count:>14}");
    }
}

fn median_nanos(mut step: Step) -> f64 {
    let calls = if step.restore.is_some() { 1 } else { BATCH };
    let started = Instant::now();
    let mut batches = Vec::new();
    while started.elapsed() < TIME_EACH {
        let batch = Instant::now();
        for _ in 0..calls {
            (step.run)();
        }
        batches.push(batch.elapsed());
        step.restore();
    }
    batches.sort_unstable();
    batches[batches.len() / 2].as_nanos() as f64 / f64::from(calls * step.units)
}
