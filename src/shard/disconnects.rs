//! The disconnect queue: calls that tell the app which sessions are gone. Shard 0 has the queue of the whole process.
//!
//! In normal operation one call starts every `1 / disconnect_rate` seconds, however long the answers take (the reference
//! waits for each answer, so slow answers make it fall behind). During the drain the pace is given up and
//! `shutdown_pool_size` calls run side by side.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::log::cut;
use crate::mesh::ShardId;
use crate::protocol::rpc::{RpcStatus, decode_disconnect_response};
use crate::rpc::{CallTimes, Method, Priority};
use crate::session::Farewell;
use crate::shard::Shard;
use crate::shard::signal::Signal;
use crate::shard::slow_calls::FinishedCall;

/// Calls that may wait, beyond `--disconnect_backlog_size`: there the sessions of the reference wait with all their
/// memory; here it is their texts alone. At this bound a call is given up, counted and logged.
pub const DISCONNECT_JOBS_MAX: usize = 1 << 18;

/// Calls that wait to be made.
#[derive(Default)]
pub struct DisconnectQueue {
    jobs: RefCell<VecDeque<Farewell>>,
    /// Calls whose answer has not come.
    running: Cell<usize>,
    /// Something was queued, or a call has ended.
    changed: Signal,
    drain: RefCell<Option<Drain>>,
}

struct Drain {
    parallel: usize,
    deadline: Instant,
    done: mpsc::Sender<ShardId>,
}

impl DisconnectQueue {
    /// Adds a call. At [`DISCONNECT_JOBS_MAX`] it is given up.
    pub fn push(&self, shard: &Shard, job: Farewell) {
        let counters = shard.counters();
        let mut jobs = self.jobs.borrow_mut();
        if jobs.len() >= DISCONNECT_JOBS_MAX {
            counters.disconnect_calls_dropped_total.add(1);
            tracing::error!(
                context = "disconnector",
                shard = shard.id,
                sid = job.sid(),
                waiting = jobs.len(),
                "the disconnect queue is full, the app is not told that this session is gone"
            );
            return;
        }
        if jobs.len() >= shard.config.disconnect.backlog {
            counters.disconnect_queue_waits.add(1);
        }
        jobs.push_back(job);
        counters.disconnect_queue_size.set(jobs.len() as i64);
        drop(jobs);
        self.changed.notify();
    }

    /// Gives the pace up: `parallel` calls at a time until none is left, then answers on `done`.
    pub fn finish(&self, parallel: usize, deadline: Instant, done: mpsc::Sender<ShardId>) {
        *self.drain.borrow_mut() = Some(Drain {
            parallel: parallel.max(1),
            deadline,
            done,
        });
        self.changed.notify();
    }

    fn pop(&self, shard: &Shard) -> Option<Farewell> {
        let mut jobs = self.jobs.borrow_mut();
        let job = jobs.pop_front()?;
        shard
            .counters()
            .disconnect_queue_size
            .set(jobs.len() as i64);
        if jobs.is_empty() {
            jobs.shrink_to_fit();
        }
        Some(job)
    }

    fn is_draining(&self) -> bool {
        self.drain.borrow().is_some()
    }
}

/// Makes the calls, for the life of the shard.
pub async fn run(shard: Rc<Shard>) {
    let queue = &shard.disconnects;
    let pace = Duration::from_secs(1) / shard.config.disconnect.rate.max(1);
    let mut next = Instant::now();
    while !queue.is_draining() {
        let now = Instant::now();
        if queue.jobs.borrow().is_empty() {
            queue.changed.notified().await;
        } else if next > now {
            // A drain that starts meanwhile is seen at most one pace later.
            shard.timeouts.sleep(next - now).await;
        } else if let Some(job) = queue.pop(&shard) {
            next = next.max(now - pace) + pace;
            start(&shard, job, Priority::Disconnect);
        }
    }
    drain(&shard).await;
}

async fn drain(shard: &Rc<Shard>) {
    let queue = &shard.disconnects;
    let waiting = queue.jobs.borrow().len();
    if waiting > 0 {
        tracing::info!(
            context = "disconnector",
            shard = shard.id,
            num = waiting,
            "invoking remaining disconnects"
        );
    }
    let Some(Drain {
        parallel,
        deadline,
        done,
    }) = queue.drain.borrow_mut().take()
    else {
        return;
    };
    loop {
        while queue.running.get() < parallel {
            let Some(job) = queue.pop(shard) else { break };
            start(shard, job, Priority::Live);
        }
        if queue.running.get() == 0 && queue.jobs.borrow().is_empty() {
            break;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        // The answers and the deadline wake this up; nothing is lost by dropping the wait.
        let changed = pin!(queue.changed.notified());
        shard.timeouts.within(left, changed).await;
    }
    let lost = queue.jobs.borrow().len() + queue.running.get();
    if lost > 0 {
        shard
            .counters()
            .disconnect_calls_dropped_total
            .add(lost as u64);
        tracing::warn!(
            context = "disconnector",
            shard = shard.id,
            "had no time to invoke Disconnect calls: ~{lost}"
        );
    } else if waiting > 0 {
        tracing::info!(
            context = "disconnector",
            shard = shard.id,
            num = waiting,
            "disconnected sessions"
        );
    }
    // The control thread may have given up waiting.
    let _ = done.send(shard.id);
}

fn start(shard: &Rc<Shard>, job: Farewell, priority: Priority) {
    let running = &shard.disconnects.running;
    running.set(running.get() + 1);
    monoio::spawn(call(Rc::clone(shard), job, priority));
}

async fn call(shard: Rc<Shard>, job: Farewell, priority: Priority) {
    let queue = &shard.disconnects;
    let counters = shard.counters();
    counters.rpc_call_total.add(1);
    if let Some(rpc) = &shard.rpc {
        let (method, body) = (Method::Disconnect, job.body());
        tracing::debug!(
            context = "node",
            sid = job.sid(),
            shard = shard.id,
            data = %cut(&String::from_utf8_lossy(&body)),
            "disconnect"
        );
        let times = CallTimes::since(Instant::now());
        let result = rpc
            .call_timed(method, job.sid(), body, priority, &times)
            .await;
        shard.slow_calls.note(
            &shard,
            &FinishedCall {
                times: &times,
                method,
                sid: job.sid(),
                command: None,
            },
        );
        let failure = match result {
            Ok(body) => match decode_disconnect_response(&body) {
                Ok(response) if response.status == RpcStatus::Error => {
                    counters.rpc_error_total.add(1);
                    Some(response.error_msg)
                }
                Ok(_) => None,
                Err(error) => {
                    counters.rpc_error_total.add(1);
                    Some(error.to_string())
                }
            },
            Err(error) => Some(error.to_string()),
        };
        match failure {
            Some(error) => tracing::error!(
                context = "node",
                sid = job.sid(),
                shard = shard.id,
                error,
                "controller disconnect failed"
            ),
            None => tracing::debug!(
                context = "node",
                sid = job.sid(),
                shard = shard.id,
                "controller disconnect succeeded"
            ),
        }
    }
    queue.running.set(queue.running.get() - 1);
    queue.changed.notify();
}
