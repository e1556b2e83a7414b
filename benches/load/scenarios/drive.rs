//! Publishes through an outlet to a fleet, in a closed loop or at a fixed rate, and counts everything that the receivers
//! see.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::fleet::{Figures, Fleet, Mark};
use crate::histogram::Histogram;
use crate::process;
use crate::publisher::Outlet;
use crate::report::Report;
use crate::sys::{Cpu, monotonic_nanos};

/// Time of publishing before the measurement, in which send buffers and tables grow to their size.
const WARM_UP: Duration = Duration::from_millis(400);
/// A delivery that has not come by then counts as lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// Publishes to all streams in turns and counts their sequence numbers.
pub struct Drive<'a> {
    fleet: &'a Fleet,
    payload_bytes: usize,
    /// By stream: the next sequence number, and how many clients are subscribed.
    sequences: Vec<u32>,
    subscribers: Vec<u64>,
    next_stream: usize,
    /// Deliveries to this fleet when all publications have arrived.
    expected: u64,
}

/// The result of one drive.
pub struct Outcome {
    pub elapsed: Duration,
    /// Deliveries that did not come.
    pub missing: u64,
    /// Nanoseconds from sending a publication to its answer.
    pub publish: Histogram,
    /// CPU of the server, and how long its threads were ready without a CPU.
    pub cpu: Cpu,
    waited: Duration,
    pub figures: Figures,
}

impl<'a> Drive<'a> {
    /// Clients are spread over the streams by their number: client `i` is subscribed to stream `i % streams`.
    pub fn new(fleet: &'a Fleet, clients: usize, streams: usize) -> Self {
        let subscribers =
            (0..streams).map(|stream| ((clients + streams - 1 - stream) / streams) as u64);
        Self {
            fleet,
            payload_bytes: 0,
            sequences: vec![0; streams],
            subscribers: subscribers.collect(),
            next_stream: 0,
            expected: fleet.delivered(),
        }
    }

    /// Sets the size of later messages.
    pub fn set_payload(&mut self, bytes: usize) {
        self.payload_bytes = bytes;
    }

    /// Publishes `batch` messages at a time, and is never more than `window` batches ahead of the receivers.
    pub fn closed_loop(
        &mut self,
        outlet: &mut dyn Outlet,
        (window, batch): (usize, usize),
        time: Duration,
        server: u32,
    ) -> Outcome {
        self.publish_for(outlet, (window, batch), WARM_UP);
        self.measured(server, |drive| {
            drive.publish_for(outlet, (window, batch), time)
        })
    }

    fn publish_for(
        &mut self,
        outlet: &mut dyn Outlet,
        (window, batch): (usize, usize),
        time: Duration,
    ) -> Histogram {
        let mut publish = Histogram::default();
        let mut ahead = VecDeque::new();
        let begun = Instant::now();
        while begun.elapsed() < time {
            if ahead.len() == window {
                let oldest = ahead.pop_front().expect("a window is not empty");
                if !self.fleet.wait_delivered(oldest, PATIENCE) {
                    break;
                }
            }
            let marks = self.marks(batch, monotonic_nanos());
            publish.record(outlet.publish(&marks).as_nanos() as u64);
            ahead.push_back(self.expected);
        }
        publish
    }

    /// Publishes one message at a time at a fixed rate, however fast the receivers are. Latency counts from the time when
    /// the message was due.
    pub fn fixed_rate(
        &mut self,
        outlet: &mut dyn Outlet,
        per_second: f64,
        time: Duration,
        server: u32,
    ) -> Outcome {
        self.publish_for(outlet, (1, 1), WARM_UP);
        self.measured(server, |drive| {
            let mut publish = Histogram::default();
            let (begun, begun_nanos) = (Instant::now(), monotonic_nanos());
            for number in 0..(time.as_secs_f64() * per_second) as u64 {
                let due = Duration::from_secs_f64(number as f64 / per_second);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
                let marks = drive.marks(1, begun_nanos + due.as_nanos() as u64);
                publish.record(outlet.publish(&marks).as_nanos() as u64);
            }
            publish
        })
    }

    /// Publishes one message and waits until all receivers have it; false when that takes too long.
    pub fn publish_one(&mut self, outlet: &mut dyn Outlet, nanos: u64) -> bool {
        let marks = self.marks(1, nanos);
        outlet.publish(&marks);
        self.fleet.wait_delivered(self.expected, PATIENCE)
    }

    /// Begins when no delivery is on its way, and ends when all deliveries have come.
    fn measured(&mut self, server: u32, publish: impl FnOnce(&mut Self) -> Histogram) -> Outcome {
        self.fleet.wait_delivered(self.expected, PATIENCE);
        self.fleet.take_figures();
        let (begun, cpu, waited) = (
            Instant::now(),
            process::cpu(server),
            process::waited(server),
        );
        let publish = publish(self);
        self.fleet.wait_delivered(self.expected, PATIENCE);
        Outcome {
            elapsed: begun.elapsed(),
            missing: self.expected.saturating_sub(self.fleet.delivered()),
            publish,
            cpu: process::cpu(server).since(cpu),
            waited: process::waited(server).saturating_sub(waited),
            figures: self.fleet.take_figures(),
        }
    }

    fn marks(&mut self, count: usize, nanos: u64) -> Vec<Mark> {
        let mark = |drive: &mut Self| {
            let stream = drive.next_stream;
            drive.next_stream = (stream + 1) % drive.sequences.len();
            let sequence = drive.sequences[stream];
            drive.sequences[stream] += 1;
            drive.expected += drive.subscribers[stream];
            Mark {
                stream: stream as u32,
                sequence,
                nanos,
                bytes: drive.payload_bytes as u32,
            }
        };
        (0..count).map(|_| mark(self)).collect()
    }
}

impl Outcome {
    pub fn per_second(&self) -> f64 {
        self.figures.deliveries as f64 / self.elapsed.as_secs_f64()
    }

    /// Microseconds of the server's CPU per delivery.
    pub fn cpu_per_delivery(&self) -> f64 {
        self.cpu.total().as_secs_f64() * 1e6 / self.figures.deliveries as f64
    }

    /// Puts every figure into the report. `ordered`: there is one publisher, so the order of deliveries is known and
    /// checked.
    pub fn tell(&self, report: &mut Report, server: &str, case: &str, ordered: bool) {
        let figures = &self.figures;
        let mut say =
            |metric: &str, unit: &str, value: f64| report.sample(server, case, metric, unit, value);
        say("deliveries/s", "1/s", self.per_second());
        let micros = |nanos: u64| nanos as f64 / 1e3;
        for percent in [50.0, 99.0, 99.9] {
            let latency = micros(figures.latency.percentile(percent));
            say(&format!("publish to read, p{percent}"), "µs", latency);
        }
        for percent in [50.0, 99.0] {
            say(
                &format!("publish to 201, p{percent}"),
                "µs",
                micros(self.publish.percentile(percent)),
            );
        }
        let each = |time: Duration| time.as_secs_f64() * 1e6 / figures.deliveries as f64;
        say("server CPU per delivery", "µs", each(self.cpu.total()));
        say("server CPU per delivery, user", "µs", each(self.cpu.user));
        say(
            "server CPU per delivery, system",
            "µs",
            each(self.cpu.system),
        );
        let waited = self.waited.as_secs_f64() / self.elapsed.as_secs_f64();
        say("server waited for a CPU, of the time", "ratio", waited);
        say(
            "server CPU",
            "cores",
            self.cpu.total().as_secs_f64() / self.elapsed.as_secs_f64(),
        );
        say(
            "client CPU per delivery, user",
            "µs",
            each(figures.cpu.user),
        );
        say(
            "client CPU per delivery, system",
            "µs",
            each(figures.cpu.system),
        );
        say(
            "client CPU",
            "cores",
            figures.cpu.total().as_secs_f64() / self.elapsed.as_secs_f64(),
        );
        say("lost", "", (self.missing.max(figures.lost)) as f64);
        say("duplicates", "", figures.duplicates as f64);
        if ordered {
            say("out of order", "", figures.reordered as f64);
        }
        let strange = figures.misdirected + figures.unmarked + figures.unknown;
        say("wrong stream, length or text", "", strange as f64);
        say("connections lost", "", figures.closed as f64);
    }
}
