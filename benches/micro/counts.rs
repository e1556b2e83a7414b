//! Instruction counts of the steps, by callgrind through gungraun.
//!
//! gungraun's runner starts this program under valgrind once for each step, with a clean environment and without address
//! space randomization, and counts from the start of [`count`] to its end. To get the counts, the program starts itself a
//! second time with [`COUNTING`] set. That second process talks to the runner, and the first one reads its output.

use std::fmt;
use std::io;
use std::process::{Command, Stdio};

use gungraun::prelude::*;

use super::{STEPS, Step, prepare};

/// Set in the process that talks to the runner.
const COUNTING: &str = "RINGCABLE_MICRO_COUNTING";
/// The argument with which the runner asks for one step.
const RUN_ARGUMENT: &str = "--gungraun-run";
/// Switches off copying and filling by string instructions.
const GLIBC_TUNABLES: &str =
    "glibc.cpu.x86_rep_movsb_threshold=1073741824:glibc.cpu.x86_rep_stosb_threshold=1073741824";
/// Counted calls of a step that needs no restoring.
const CALLS: u32 = 20;

/// Why the counts could not be had.
#[derive(Debug)]
pub enum CountError {
    /// A required program is not installed.
    Missing(&'static str),
    Io(io::Error),
    /// The runner failed; this is its output.
    Runner(String),
    /// The runner's report has no count for this step.
    NoCount(&'static str),
}

impl fmt::Display for CountError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(program) => write!(
                formatter,
                "{program} is missing; instruction counts need `apt-get install valgrind` and \
                 `cargo install gungraun-runner --version {}`",
                runner_version()
            ),
            Self::Io(error) => write!(formatter, "{error}"),
            Self::Runner(output) => write!(formatter, "gungraun-runner failed:\n{output}"),
            Self::NoCount(step) => write!(formatter, "gungraun-runner has no count for `{step}`"),
        }
    }
}

/// The runner accepts only programs that use its own version of the crate.
fn runner_version() -> &'static str {
    include_str!("../../Cargo.toml")
        .lines()
        .find_map(|line| line.strip_prefix("gungraun = \"=")?.strip_suffix('"'))
        .expect("Cargo.toml names one version of gungraun")
}

/// True in a process that has to call [`run_counting_process`] and end.
pub fn is_counting_process() -> bool {
    std::env::args().nth(1).as_deref() == Some(RUN_ARGUMENT) || std::env::var_os(COUNTING).is_some()
}

/// Instructions of each step, per unit, in the order of [`STEPS`].
pub fn measure() -> Result<Vec<f64>, CountError> {
    for program in ["valgrind", "gungraun-runner"] {
        // The exit status does not matter: the program could be started.
        Command::new(program)
            .arg("--version")
            .output()
            .map_err(|_| CountError::Missing(program))?;
    }
    let output = Command::new(std::env::current_exe().map_err(CountError::Io)?)
        .arg("--bench")
        .env(COUNTING, "1")
        .env("GUNGRAUN_OUTPUT_FORMAT", "json")
        .stdin(Stdio::null())
        .output()
        .map_err(CountError::Io)?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        return Err(CountError::Runner(
            String::from_utf8_lossy(&text).into_owned(),
        ));
    }
    STEPS
        .iter()
        .enumerate()
        .map(|(index, &(name, _))| {
            let report = String::from_utf8_lossy(&output.stdout);
            let total = instructions_of(&report, index).ok_or(CountError::NoCount(name))?;
            let step = STEPS[index].1();
            Ok(total / f64::from(calls_counted(&step) * step.units))
        })
        .collect()
}

/// The report has one JSON object per line; the ids of the steps are `step_0`, `step_1`, ….
fn instructions_of(report: &str, index: usize) -> Option<f64> {
    let id = format!("step_{index}");
    report
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|report| report["id"] == id)?
        .pointer("/profiles/0/data/total/metrics/Ir/values/new")?
        .as_f64()
}

fn calls_counted(step: &Step) -> u32 {
    if step.restore.is_some() { 1 } else { CALLS }
}

#[library_benchmark]
#[benches::step(iter = 0..STEPS.len(), setup = prepare)]
fn count(mut step: Step) -> Step {
    for _ in 0..calls_counted(&step) {
        (step.run)();
    }
    step
}

library_benchmark_group!(name = instructions, benchmarks = count);

main!(
    // A copy by `rep movsb` would count as one instruction per byte, and glibc chooses it only on some processors.
    config = LibraryBenchmarkConfig::default().env("GLIBC_TUNABLES", GLIBC_TUNABLES);
    library_benchmark_groups = instructions
);

/// Talks to the runner, or runs the step that the runner asks for.
pub fn run_counting_process() {
    main();
}
