//! Accepts the connections of one listener and starts a task for the HTTP phase of each.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::mesh::{ConnectionLimit, Full};
use crate::net::Listener;
use crate::os::limits::{self, OpenFiles, Shortage};
use crate::shard::Shard;
use crate::shard::http::connection;
use crate::shard::http::listener::ListenerRules;
use crate::shard::notices::Notice;
use crate::shard::signal::unless;

/// Connections accepted in a row before other tasks run.
const ACCEPTS_PER_TURN_MAX: usize = 64;
/// Pause after an accept error such as "too many open files". The connection stays in the kernel's queue, so trying again at
/// once would only waste CPU time.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the shard stops accepting. Dropping the listener then makes the kernel refuse new connections.
pub async fn run(
    shard: Rc<Shard>,
    listener: Listener,
    rules: Rc<ListenerRules>,
    limit: Arc<ConnectionLimit>,
    open_files: OpenFiles,
) {
    let acceptor = Acceptor {
        shard: &shard,
        listener: &listener,
        rules: &rules,
        limit: &limit,
        open_files,
    };
    unless(pin!(shard.accept_stop.wait()), pin!(acceptor.run())).await;
}

struct Acceptor<'a> {
    shard: &'a Rc<Shard>,
    listener: &'a Listener,
    rules: &'a Rc<ListenerRules>,
    limit: &'a Arc<ConnectionLimit>,
    open_files: OpenFiles,
}

impl Acceptor<'_> {
    async fn run(&self) {
        loop {
            let result = match self.listener.ready().await {
                Ok(()) => self.accept_waiting().await,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                self.shard.counters().accept_errors_total.add(1);
                warn_failed(self.shard, &error);
                self.shard.timeouts.sleep(ERROR_PAUSE).await;
            }
        }
    }

    async fn accept_waiting(&self) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            let permit = match self.limit.try_acquire() {
                Ok(permit) => permit,
                Err(full) => {
                    self.warn_full(full);
                    let waiting = &self.shard.counters().accept_waiting_num;
                    waiting.add(1);
                    let permit = self.limit.acquire().await;
                    waiting.sub(1);
                    permit
                }
            };
            match self.listener.accept() {
                Ok(Some((stream, peer))) => {
                    self.shard.counters().accepted_total.add(1);
                    let task = connection::serve(
                        Rc::clone(self.shard),
                        Rc::clone(self.rules),
                        stream,
                        peer.ip(),
                        permit,
                    );
                    monoio::spawn(task);
                }
                Ok(None) => return Ok(()),
                // The client left before it was accepted. This is not an error of the listener.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
        // More connections may wait, and with epoll the listener is ready again at once.
        self.shard.yields.yield_now().await;
        Ok(())
    }

    /// No permit is free: new clients wait in the kernel's queue and get no answer.
    fn warn_full(&self, full: Full) {
        let shard = self.shard;
        shard.counters().accept_waits_total.add(1);
        let notice = match full {
            Full::Listener => Notice::ConnectionLimit,
            Full::Process => Notice::DescriptorLimit,
        };
        let Some(admitted) = shard.notices.admit(notice) else {
            return;
        };
        let left_out = admitted.left_out();
        match full {
            Full::Listener => tracing::warn!(
                context = "http",
                shard = shard.id,
                left_out,
                "--max-conn={} is reached: new clients wait without an answer until others leave, and so do health checks",
                shard.config.server.connections_max
            ),
            Full::Process => tracing::warn!(
                context = "http",
                shard = shard.id,
                left_out,
                "{} clients are connected, the other {} of {} open files are kept for calls to the app: new clients wait \
                 without an answer until others leave, and so do health checks; {}",
                self.open_files.clients(),
                self.open_files.reserved,
                self.open_files.max,
                limits::HOW_TO_RAISE
            ),
        }
    }
}

fn warn_failed(shard: &Shard, error: &io::Error) {
    let Some(admitted) = shard.notices.admit(Notice::AcceptFailed) else {
        return;
    };
    let advice = match Shortage::of(error) {
        Some(shortage) => format!("clients wait; {}", shortage.advice()),
        None => "trying again".to_owned(),
    };
    tracing::warn!(
        context = "http",
        shard = shard.id,
        %error,
        left_out = admitted.left_out(),
        "cannot accept a connection: {advice}"
    );
}
