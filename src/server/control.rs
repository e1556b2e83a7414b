//! The control thread after the start: signals, gauges, what is reported by interval.

use std::collections::HashSet;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{process, thread};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use super::drain::drain;
use super::{Server, StartError};
use crate::certificate::ReloadWish;
use crate::config::MetricsConfig;
use crate::log;
use crate::os;
use crate::reporting::Reporting;
use crate::shard::message::{ControlEvent, ControlMessage, Survey};
use crate::shard::sampling::sample;

/// The gauges are not counted again for the console while they are so young.
const GAUGES_FRESH_FOR: Duration = Duration::from_secs(4);
/// How long a survey of the shards may take before the gauges stay as they were.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(1);
/// A shard's thread is called so, and its number.
pub const SHARD_THREAD_PREFIX: &str = "shard-";

/// Has signals told to the control thread. SIGHUP is a wish, which is taken when it is obeyed.
pub fn watch_signals(events: Sender<ControlEvent>) -> Result<ReloadWish, StartError> {
    // The last two are ignored, as the reference ignores them; by default they would end the process.
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2]).map_err(StartError::Signals)?;
    let reload = ReloadWish::default();
    let wish = reload.clone();
    thread::Builder::new()
        .name("signals".to_string())
        .spawn(move || {
            for signal in signals.forever() {
                let event = match signal {
                    SIGINT | SIGTERM => ControlEvent::Signal,
                    SIGHUP if wish.make() => ControlEvent::Reload,
                    _ => continue,
                };
                // The receiver goes only when the process does.
                let _ = events.send(event);
            }
        })
        .map_err(StartError::Signals)?;
    Ok(reload)
}

/// Something that happens again and again while the control thread waits.
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

    /// True once when it has come due. What was missed meanwhile is not made up for.
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

/// What the control thread does by itself: refreshes the gauges, and writes metrics.
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

    /// Waits for an event, until something is due.
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
            sample(&server.metrics, &server.mesh, server.rpc.as_deref());
            reporting.report(&server.metrics);
        }
    }

    /// Each shard whose clients look at the console asks.
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

/// Obeys what comes, and does what is due meanwhile.
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

/// The gauges that are looked up every `--stats_refresh_interval`.
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
        // A shard that is too busy for a question keeps the old figures.
        if mailbox
            .try_send(ControlMessage::Survey(reply.clone()).into())
            .is_err()
        {
            return;
        }
    }
    let (mut identities, mut streams) = (HashSet::new(), HashSet::new());
    for _ in 0..mesh.shards() {
        let Ok(survey) = replies.recv_timeout(SURVEY_TIMEOUT) else {
            return;
        };
        identities.extend(survey.identities);
        streams.extend(survey.streams);
    }
    metrics.clients_uniq_num.set(identities.len() as i64);
    metrics.broadcast_streams_num.set(streams.len() as i64);
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
    fn what_is_periodic_keeps_its_pace_and_makes_nothing_up() {
        let start = Instant::now();
        let interval = Duration::from_secs(10);
        let mut periodic = Periodic {
            interval,
            due: start + interval,
        };
        // Looked at after so many seconds: is it due, and when next?
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
