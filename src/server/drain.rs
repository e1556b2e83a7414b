//! The end of the server: clients are told, the Disconnect calls are made, the process exits.

use std::process;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::Server;
use super::control::terminate;
use crate::config::Config;
use crate::shard::message::{ControlEvent, ControlMessage};
use crate::{log, os};

/// How often a waiting drain checks for a second signal and for clients that are left.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// How long publications that have begun to arrive may take before the clients are told: a publication answered with 201
/// must reach them. A publication that takes longer gets no answer, so that the app sends it again.
const PUBLICATIONS_TIME: Duration = Duration::from_secs(3);
/// Time reserved for telling the clients when the delay would use up the whole timeout, and for the last log lines.
const NOTICE_TIME: Duration = Duration::from_millis(500);

/// Tells every client that the server stops, makes the outstanding Disconnect calls, and exits.
/// Source: contract/operations.md §9; docs/deploys.md has the whole order of events.
pub fn drain(server: &Server) -> ! {
    let deadline = Instant::now() + server.config.shutdown.timeout;
    begin(server);
    close_sessions(server, deadline);
    await_closed(server, deadline);
    finish_disconnects(server, deadline);
    log::flush();
    process::exit(0)
}

/// From now on the health endpoint fails. Clients stay connected for the delay, so that proxies have time to see the
/// failure.
fn begin(server: &Server) {
    let shutdown = &server.config.shutdown;
    tracing::info!(
        "Shutting down... (hit Ctrl-C to stop immediately or wait for up to {}s for graceful shutdown)",
        shutdown.timeout.as_secs()
    );
    os::notify::stopping();
    server.tell_all(ControlMessage::BeginShutdown);
    // The delay is part of the timeout, but the clients must be told in any case, so NOTICE_TIME is left for that.
    let delay = shutdown
        .delay
        .min(shutdown.timeout.saturating_sub(NOTICE_TIME));
    wait_until(Instant::now() + delay, &server.control, || false);
}

/// Tells every client, all at once or one after another. Returns when all have been told, or when the time is up.
fn close_sessions(server: &Server, deadline: Instant) {
    let clients = server.clients();
    let slowly = slow_drain(&server.config, clients);
    let slowly_until = (!slowly.is_zero()).then(|| Instant::now() + slowly);
    if clients > 0 {
        tracing::info!(
            context = "node",
            num = clients,
            slowdrain_ms = slowly_until.map(|_| slowly.as_millis() as u64),
            "closing active connections"
        );
    }
    // Disconnect calls start when their session has ended, not when the last session has ended.
    let parallel = server.config.shutdown.pool_size;
    server.tell(0, ControlMessage::HurryDisconnects { parallel });
    match slowly_until {
        None => {
            // This order keeps the promise of a 201: a publication that is in the inboxes before `publications_end` is set
            // stands there before the order to close. A later one is refused.
            server.tell_all(ControlMessage::StopAccepting);
            finish_publications(server, deadline);
            server.publications_end.set();
            server.tell_all(ControlMessage::CloseSessions { slowly_until });
        }
        Some(end) => {
            server.tell_all(ControlMessage::CloseSessions { slowly_until });
            // The listeners stay open until then, because clients that have not been told yet must still get publications.
            wait_until(end, &server.control, || server.clients() == 0);
            server.tell_all(ControlMessage::StopAccepting);
            server.publications_end.set();
        }
    }
}

/// How long a slow drain takes: with few clients it is shorter than the configured time.
fn slow_drain(config: &Config, clients: i64) -> Duration {
    let gaps = u32::try_from(clients).unwrap_or(0);
    let shutdown = &config.shutdown;
    shutdown
        .slow_drain
        .min(shutdown.slow_drain_gap_max.saturating_mul(gaps))
}

/// Waits until publications that have begun to arrive are in the inboxes, so that they come before the order to close.
fn finish_publications(server: &Server, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now());
    let time = PUBLICATIONS_TIME.min(left.saturating_sub(NOTICE_TIME));
    let (done, finished) = mpsc::channel();
    server.tell_all(ControlMessage::FinishPublications(done));
    wait_for(
        server.mesh.shards(),
        &finished,
        Instant::now() + time,
        &server.control,
    );
}

fn await_closed(server: &Server, deadline: Instant) {
    let (done, closed) = mpsc::channel();
    server.tell_all(ControlMessage::ReportClosed(done));
    if wait_for(server.mesh.shards(), &closed, deadline, &server.control) {
        tracing::info!(context = "node", "all active connections closed");
    } else {
        tracing::warn!(
            context = "node",
            "terminated while disconnecting active sessions"
        );
    }
}

fn finish_disconnects(server: &Server, deadline: Instant) {
    let (done, finished) = mpsc::channel();
    server.tell(0, ControlMessage::FinishDisconnects { deadline, done });
    // The shard watches the deadline itself and logs the calls it did not make, so this wait is a little longer.
    wait_for(1, &finished, deadline + NOTICE_TIME, &server.control);
}

/// Waits until `end` or until `over` returns true. A second signal ends the process.
fn wait_until(end: Instant, control: &Receiver<ControlEvent>, over: impl Fn() -> bool) {
    while !over() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        if let Ok(ControlEvent::Signal) = control.recv_timeout(left.min(DRAIN_POLL)) {
            terminate();
        }
    }
}

/// Waits for `count` answers. Returns false if the deadline came first. A second signal ends the process.
fn wait_for(
    count: usize,
    answers: &Receiver<usize>,
    deadline: Instant,
    control: &Receiver<ControlEvent>,
) -> bool {
    let mut missing = count;
    while missing > 0 {
        if let Ok(ControlEvent::Signal) = control.try_recv() {
            terminate();
        }
        match answers.recv_timeout(DRAIN_POLL) {
            Ok(_) => missing -= 1,
            Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
            Err(_) => return false,
        }
    }
    true
}
