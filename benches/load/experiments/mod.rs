//! Questions that were answered by measuring, each with all its variants: a bare loop for every variant, no server.
//!
//! Variants run in turns, again and again, so that a slow minute of the machine affects all of them. The far ends are a
//! thread on another CPU with its own descriptor table ([`far`]); only the CPU of the working thread is counted ([`cost`]).
//! `--case WORD` selects questions or variants, `--clients N` makes the experiment smaller.
//! `docs/performance/experiments.md` has the answers.

mod accepting;
pub mod allocator;
mod cost;
mod descriptors;
mod far;
mod interning;
mod layout;
mod polling;
mod reading;
mod ring;
mod sealing;
mod sending;
mod sockets;
mod spread;

use std::process::Command;
use std::time::Duration;

use crate::options::Options;
use crate::process::{self, KernelMemory};
use crate::report::Report;

use cost::{Notes, on_cpu, waited};

/// The CPU of the measured thread.
const NEAR_CPU: usize = 0;
/// The CPUs of the far ends.
const FAR_CPU: &[usize] = &[1];
/// How long one variant works in one run, unless `--seconds` is given.
const TIME: Duration = Duration::from_secs(2);

/// The hidden scenario that runs the experiments.
const CHILD: &str = "experiments-child";

const QUESTIONS: &[fn(&mut Bench)] = &[
    sending::run,
    reading::run,
    accepting::run,
    sockets::run,
    spread::run,
    polling::run,
    descriptors::run,
    layout::run,
    interning::run,
    sealing::run,
];

/// Starts this program again inside a memory group, so that the kernel's memory for it can be counted separately.
pub fn run(options: &Options) {
    let group = KernelMemory::new();
    let program = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program);
    command.args(std::env::args().skip(1).map(|word| {
        if word == options.scenario {
            CHILD.to_owned()
        } else {
            word
        }
    }));
    process::enter(&mut command, Vec::new(), group.as_ref());
    let status = command.status().expect("this program can be started again");
    assert!(status.success(), "the experiments end early");
}

/// Runs all experiments `--runs` times.
pub fn run_child(options: &Options) {
    assert!(
        process::machine_cpus() > 1,
        "near and far ends need a CPU each"
    );
    let shown = options.shown.replacen(CHILD, "experiments", 1);
    let mut bench = Bench {
        options,
        report: Report::new("experiments", shown),
        group: KernelMemory::of_this_process(),
        time: options.seconds.map_or(TIME, Duration::from_secs),
    };
    for run in 0..options.runs {
        eprintln!("experiments: run {} of {}", run + 1, options.runs);
        for question in QUESTIONS {
            question(&mut bench);
        }
    }
    bench.report.finish();
}

/// The data that all experiments share.
pub struct Bench<'a> {
    options: &'a Options,
    report: Report,
    /// The memory group of this process.
    group: Option<KernelMemory>,
    time: Duration,
}

impl Bench<'_> {
    /// Runs one variant on the CPU of the measured thread, unless it is not selected.
    fn measure(&mut self, case: &str, variant: impl FnOnce(&Setting, &mut Notes) + Send) {
        if !self.options.wants(case) {
            return;
        }
        eprintln!("  {case}");
        let setting = Setting {
            clients: self.options.clients,
            group: self.group.as_ref(),
            time: self.time,
        };
        let mut notes = Notes {
            report: &mut self.report,
            case: case.to_owned(),
        };
        on_cpu(NEAR_CPU, || {
            let waited = waited();
            variant(&setting, &mut notes);
            let waited = self::waited().saturating_sub(waited);
            notes.say("waited for a CPU", "ms", waited.as_secs_f64() * 1e3);
        });
    }
}

/// The data that a variant may use.
pub struct Setting<'a> {
    clients: Option<usize>,
    group: Option<&'a KernelMemory>,
    time: Duration,
}

impl Setting<'_> {
    /// The number of sockets, unless the command line gives another one.
    fn count(&self, usual: usize) -> usize {
        self.clients.unwrap_or(usual)
    }

    /// Bytes that the kernel charges to this process. Without a group NaN, which reports drop.
    fn kernel_bytes(&self) -> f64 {
        self.group.map_or(f64::NAN, |group| group.bytes() as f64)
    }
}
