//! The control thread after the start: signals, gauges and the metrics of each interval.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{process, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::drain::drain;
use super::{Server, StartError};
use crate::certificate::ReloadRequest;
use crate::config::MetricsConfig;
use crate::log;
use crate::os;
use crate::reporting::Reporting;
use crate::shard::message::{ControlEvent, ControlMessage, Survey};
use crate::shard::sampling::sample;

/// The console does not cause a new count of the gauges while the last one is younger than this.
const GAUGES_FRESH_FOR: Duration = Duration::from_secs(4);
/// How long a survey of the shards may take. After it the gauges keep their old values.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(1);
/// The name of a shard's thread is this prefix and the shard's number.
pub const SHARD_THREAD_PREFIX: &str = "shard-";

/// Starts the thread that passes signals on to the control thread. SIGHUP sets the reload request, which
/// `Server::reload_certificate` takes.
pub fn watch_signals(events: Sender<ControlEvent>) -> Result<ReloadRequest, StartError> {
    // SIGUSR1 and SIGUSR2 are ignored, as the reference ignores them; by default they would end the process.
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2]).map_err(StartError::Signals)?;
    let reload = ReloadRequest::default();
    let request = reload.clone();
    thread::Builder::new()
        .name("signals".to_string())
        .spawn(move || {
            for signal in signals.forever() {
                let event = match signal {
                    SIGINT | SIGTERM => ControlEvent::Signal,
                    SIGHUP if request.make() => ControlEvent::Reload,
                    _ => continue,
                };
                // The receiver lives as long as the process.
                let _ = events.send(event);
            }
        })
        .map_err(StartError::Signals)?;
    Ok(reload)
}

/// A job that the control thread repeats at an interval.
struct Periodic {
    interval: Duration,
    due: Instant,
}

impl Periodic {
    fn new(interval: Duration) -> Self {
        Self {
            interval,
            due: Instant::now() + interval,
        }
    }

    /// Returns true once per due time. Missed due times are not made up for.
    fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.due <= now;
        if is_due {
            let next = self.due + self.interval;
            self.due = if next > now {
                next
            } else {
                now + self.interval
            };
        }
        is_due
    }
}

/// The regular jobs of the control thread: refreshing the gauges and writing metrics.
struct Upkeep {
    refresh: Option<Periodic>,
    refreshed: Option<Instant>,
    rotate: Option<Periodic>,
    reporting: Option<Reporting>,
}

impl Upkeep {
    fn new(config: &MetricsConfig, reporting: Option<Reporting>) -> Self {
        let wanted = config.http_path.is_some() || reporting.is_some();
        let interval = Some(config.stats_refresh_interval);
        let interval = interval.filter(|interval| wanted && !interval.is_zero());
        let rotates = reporting.is_some();
        Self {
            refresh: interval.map(Periodic::new),
            refreshed: None,
            rotate: rotates.then(|| Periodic::new(config.rotate_interval)),
            reporting,
        }
    }

    /// Waits for an event, but not longer than until the next job is due.
    fn wait(&self, control: &Receiver<ControlEvent>) -> Result<ControlEvent, RecvTimeoutError> {
        let periodics = self.refresh.iter().chain(&self.rotate);
        match periodics.map(|periodic| periodic.due).min() {
            Some(due) => control.recv_timeout(due.saturating_duration_since(Instant::now())),
            None => control.recv().map_err(RecvTimeoutError::from),
        }
    }

    fn do_what_is_due(&mut self, server: &Server) {
        let now = Instant::now();
        let is_due =
            |periodic: &mut Option<Periodic>| periodic.as_mut().is_some_and(|it| it.take_due(now));
        if is_due(&mut self.refresh) {
            refresh_gauges(server);
            self.refreshed = Some(now);
        }
        if is_due(&mut self.rotate)
            && let Some(reporting) = &mut self.reporting
        {
            sample(
                &server.metrics,
                &server.mesh,
                &server.interest,
                server.rpc.as_deref(),
            );
            reporting.report(&server.metrics);
        }
    }

    /// Each shard with open console pages asks for this, so the time since the last refresh is checked here.
    fn refresh_for_the_console(&mut self, server: &Server) {
        if self
            .refreshed
            .is_none_or(|at| at.elapsed() >= GAUGES_FRESH_FOR)
        {
            refresh_gauges(server);
            self.refreshed = Some(Instant::now());
        }
    }
}

/// Handles events, and does regular jobs when they are due.
///
/// # Errors
/// A shard has ended.
pub fn control_loop(server: &Server, reporting: Option<Reporting>) -> Result<(), StartError> {
    let mut upkeep = Upkeep::new(&server.config.metrics, reporting);
    loop {
        match upkeep.wait(&server.control) {
            Err(RecvTimeoutError::Timeout) => upkeep.do_what_is_due(server),
            Ok(ControlEvent::ShardStarted(_)) => {}
            Ok(ControlEvent::GaugesWanted) => upkeep.refresh_for_the_console(server),
            Ok(ControlEvent::Reload) => server.reload_certificate(),
            Ok(ControlEvent::ShardEnded { id, error }) => {
                return Err(StartError::Shard { id, source: error });
            }
            Ok(ControlEvent::Signal) | Err(RecvTimeoutError::Disconnected) => drain(server),
        }
    }
}

/// The gauges that are refreshed every `--stats_refresh_interval`.
fn refresh_gauges(server: &Server) {
    let Server { metrics, mesh, .. } = server;
    metrics
        .mem_sys_bytes
        .set(os::memory::resident_bytes() as i64);
    let status = os::memory::status();
    metrics.threads.set(status.threads as i64);
    metrics.private_bytes.set(status.private_bytes as i64);
    for (shard, time) in os::cpu::times_of_threads(SHARD_THREAD_PREFIX) {
        if let Some(gauge) = metrics.cpu_millis.get(shard) {
            gauge.set(time.as_millis() as i64);
        }
    }
    let (reply, replies) = mpsc::channel::<Survey>();
    for mailbox in mesh.mailboxes() {
        // The inbox of this shard is full: all gauges of the survey keep their old values.
        if mailbox
            .try_send(ControlMessage::Survey(reply.clone()).into())
            .is_err()
        {
            return;
        }
    }
    let (mut identities, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..mesh.shards() {
        let Ok(survey) = replies.recv_timeout(SURVEY_TIMEOUT) else {
            return;
        };
        identities.extend(survey.identities);
        streams.extend(survey.streams);
    }
    metrics.clients_uniq_num.set(distinct(identities));
    metrics.broadcast_streams_num.set(distinct(streams));
}

/// How many different values there are. With a million of them, sorting takes a third of the time and half of the memory of
/// a hash set.
fn distinct(mut values: Vec<u64>) -> i64 {
    values.sort_unstable();
    values.dedup();
    values.len() as i64
}

pub fn terminate() -> ! {
    tracing::warn!("Immediate termination requested. Stopped");
    log::flush();
    process::exit(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_periodic_job_keeps_its_rate_and_does_not_make_up_for_missed_times() {
        let start = Instant::now();
        let interval = Duration::from_secs(10);
        let mut periodic = Periodic {
            interval,
            due: start + interval,
        };
        // Columns: seconds since the start, whether the job is due then, when it is due next.
        for (secs, is_due, next_secs) in [
            (9, false, 10),
            (10, true, 20),
            (11, false, 20),
            (21, true, 30),
            (55, true, 65),
            (64, false, 65),
            (65, true, 75),
        ] {
            let now = start + Duration::from_secs(secs);
            assert_eq!(periodic.take_due(now), is_due, "{secs}");
            assert_eq!(
                periodic.due,
                start + Duration::from_secs(next_secs),
                "{secs}"
            );
        }
    }
}
