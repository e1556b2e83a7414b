//! What an experiment measures: CPU of the working thread, and elapsed time.

use std::fs;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::report::Report;
use crate::sys;

/// The server's name for experiments in results: there is no server.
const SERVER: &str = "bare loop";

/// CPU of the calling thread, exact; user and system together.
fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// How long the calling thread was ready to run and waited for its CPU. It shows whether the machine was quiet.
pub fn waited() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text.split_whitespace().nth(1);
    Duration::from_nanos(nanos.and_then(|word| word.parse().ok()).unwrap_or(0))
}

/// CPU and time, summed over the counted parts only.
#[derive(Clone, Copy, Default)]
pub struct Cost {
    pub cpu: Duration,
    pub elapsed: Duration,
}

impl Cost {
    /// Counts the cost of `work` for the calling thread.
    pub fn count<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let (cpu, begun) = (thread_time(), Instant::now());
        let result = work();
        self.cpu += thread_time().saturating_sub(cpu);
        self.elapsed += begun.elapsed();
        result
    }

    /// Microseconds of CPU per item.
    pub fn micros_each(&self, count: u64) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / count as f64
    }

    /// Items per second.
    pub fn rate(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64()
    }
}

/// Runs on its own thread, pinned to one CPU; returns the result.
pub fn on_cpu<T: Send>(cpu: usize, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            sys::pin(&[cpu]).expect("the CPU exists");
            work()
        });
        thread.join().expect("an experiment does not panic")
    })
}

/// Takes the figures of one variant.
pub struct Notes<'a> {
    pub report: &'a mut Report,
    pub case: String,
}

impl Notes<'_> {
    pub fn say(&mut self, metric: &str, unit: &str, value: f64) {
        self.report.sample(SERVER, &self.case, metric, unit, value);
    }
}
