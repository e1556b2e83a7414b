//! Takes new connections of one listener and gives each a task for its HTTP phase.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::mesh::{ConnectionLimit, Permit};
use crate::net::Listener;
use crate::os::limits;
use crate::shard::Shard;
use crate::shard::front::Front;
use crate::shard::http_phase;
use crate::shard::notices::Notice;
use crate::shard::signal::unless;

/// Connections taken in one go before other tasks run.
const ACCEPTS_PER_TURN_MAX: usize = 64;
/// Pause after an accept error such as "too many open files": the connection stays in the queue, trying again at once
/// would only burn the CPU.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the shard stops accepting; dropping the listener then refuses what comes.
pub async fn run(
    shard: Rc<Shard>,
    listener: Listener,
    front: Rc<Front>,
    limit: Option<Arc<ConnectionLimit>>,
) {
    let accepting = pin!(accept_loop(&shard, &listener, &front, limit.as_ref()));
    unless(pin!(shard.accept_stop.wait()), accepting).await;
}

async fn accept_loop(
    shard: &Rc<Shard>,
    listener: &Listener,
    front: &Rc<Front>,
    limit: Option<&Arc<ConnectionLimit>>,
) {
    loop {
        let result = match listener.ready().await {
            Ok(()) => accept_waiting(shard, listener, front, limit).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            shard.counters().accept_errors_total.add(1);
            warn_failed(shard, &error);
            shard.timeouts.sleep(ERROR_PAUSE).await;
        }
    }
}

async fn accept_waiting(
    shard: &Rc<Shard>,
    listener: &Listener,
    front: &Rc<Front>,
    limit: Option<&Arc<ConnectionLimit>>,
) -> io::Result<()> {
    for _ in 0..ACCEPTS_PER_TURN_MAX {
        let permit = match limit {
            Some(limit) => Some(acquire(shard, limit).await),
            None => None,
        };
        match listener.accept() {
            Ok(Some((stream, peer))) => {
                shard.counters().accepted_total.add(1);
                let task = http_phase::serve(
                    Rc::clone(shard),
                    Rc::clone(front),
                    stream,
                    peer.ip(),
                    permit,
                );
                monoio::spawn(task);
            }
            Ok(None) => return Ok(()),
            // The client has left before it was taken: its own business.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The right to take one more connection. While there is none, clients wait in the kernel's queue and see nothing happen.
async fn acquire(shard: &Shard, limit: &Arc<ConnectionLimit>) -> Permit {
    if let Some(permit) = limit.try_acquire() {
        return permit;
    }
    if let Some(admitted) = shard.notices.admit(Notice::ConnectionLimit) {
        tracing::warn!(
            context = "http",
            shard = shard.id,
            left_out = admitted.left_out(),
            "--max-conn={} is reached: new clients wait without an answer until others leave, and so do health checks",
            shard.config.server.connections_max
        );
    }
    limit.acquire().await
}

fn warn_failed(shard: &Shard, error: &io::Error) {
    let Some(admitted) = shard.notices.admit(Notice::AcceptFailed) else {
        return;
    };
    let advice = match error.raw_os_error() {
        Some(libc::EMFILE) => format!(
            "the limit on open files of this process is reached, clients wait; {}",
            limits::HOW_TO_RAISE
        ),
        Some(libc::ENFILE) => {
            "the limit on open files of the system is reached, clients wait; raise fs.file-max (sysctl)".to_owned()
        }
        _ => "trying again".to_owned(),
    };
    tracing::warn!(
        context = "http",
        shard = shard.id,
        %error,
        left_out = admitted.left_out(),
        "cannot accept a connection: {advice}"
    );
}
