//! The disconnect queue: calls that tell the app which sessions have ended. Shard 0 owns the queue for the whole process.
//!
//! In normal operation one call starts every `1 / disconnect_rate` seconds, no matter how long the answers take (the
//! reference waits for each answer, so slow answers make it fall behind). When the drain begins to close sessions, this rate
//! no longer applies: `shutdown_pool_size` calls run at the same time. One log line at the end says how the calls ended.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::log::cut_bytes;
use crate::mesh::ShardId;
use crate::protocol::rpc::{RpcStatus, decode_answer};
use crate::rpc::{CallTimes, Method, Priority, RpcClient, RpcError};
use crate::session::DisconnectCall;
use crate::shard::Shard;
use crate::shard::message::ShardMessage;
use crate::shard::notices::Notice;
use crate::shard::signal::Signal;
use crate::shard::slow_calls::FinishedCall;

/// Calls that may wait beyond `--disconnect_backlog_size`. In the reference the sessions themselves wait there with all
/// their memory; here only their texts do. When this limit is reached, a further call is given up, counted and logged.
pub const DISCONNECT_JOBS_MAX: usize = 1 << 18;
/// Bytes of all calls that have not ended, with the same behaviour. Clients that connect and leave at once must not fill the
/// memory with large cookies. With ordinary calls of 1 KB the limit on their number is reached first.
pub const DISCONNECT_BYTES_MAX: usize = 256 << 20;
/// The share of `--memory_bytes_max` that the calls may take, as a divisor: new clients need the rest.
const DISCONNECT_SHARE: usize = 4;

/// Calls that wait to be made.
#[derive(Default)]
pub struct DisconnectQueue {
    backlog: RefCell<Backlog<DisconnectCall>>,
    /// A call was queued, a call has ended, or the drain has reached its next step.
    changed: Signal,
    /// Concurrent calls once the rate no longer applies; 0 until then.
    parallel: Cell<usize>,
    /// No more calls will come.
    last: RefCell<Option<Last>>,
    tally: Cell<Tally>,
}

/// Calls that have not ended, within their limits.
struct Backlog<J> {
    waiting: VecDeque<J>,
    /// Calls that have been sent and not answered.
    running: usize,
    /// Bytes held by the waiting and the running calls.
    bytes: usize,
}

impl<J> Default for Backlog<J> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            running: 0,
            bytes: 0,
        }
    }
}

impl<J> Backlog<J> {
    /// Whether one more call of `bytes` bytes may wait when all calls together may hold `bytes_max`.
    fn has_room(&self, bytes: usize, bytes_max: usize) -> bool {
        self.left() < DISCONNECT_JOBS_MAX && self.bytes + bytes <= bytes_max
    }

    fn push(&mut self, job: J, bytes: usize) {
        self.waiting.push_back(job);
        self.bytes += bytes;
    }

    /// Takes the next call out and counts it as running.
    fn start(&mut self) -> Option<J> {
        let job = self.waiting.pop_front()?;
        self.running += 1;
        if self.waiting.is_empty() {
            self.waiting.shrink_to_fit();
        }
        Some(job)
    }

    /// A running call has ended.
    fn end(&mut self, bytes: usize) {
        self.running -= 1;
        self.bytes -= bytes;
    }

    fn left(&self) -> usize {
        self.waiting.len() + self.running
    }
}

struct Last {
    deadline: Instant,
    done: mpsc::Sender<ShardId>,
}

/// How the calls ended.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Tally {
    /// The app has answered, with whatever status.
    finished: usize,
    /// The queue was full.
    refused: usize,
    /// Sent, but the app was not reached, did not answer in time, or did not answer with 200.
    failed: usize,
    /// Not sent or not answered when the time of the shutdown was over.
    late: usize,
}

impl Tally {
    fn lost(&self) -> usize {
        self.refused + self.failed + self.late
    }

    fn text(&self, shutdown_timeout: Duration) -> String {
        let out_of_time = format!("out of time after {} s", shutdown_timeout.as_secs());
        let reasons: Vec<String> = [
            (self.late, out_of_time.as_str()),
            (self.failed, "failed"),
            (self.refused, "beyond a full queue"),
        ]
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, reason)| format!("{count} {reason}"))
        .collect();
        let mut text = format!(
            "disconnect calls: {} finished, {} lost",
            self.finished,
            self.lost()
        );
        if !reasons.is_empty() {
            text.push_str(&format!(" ({})", reasons.join(", ")));
        }
        text
    }
}

impl DisconnectQueue {
    /// Adds a call. The call is given up at [`DISCONNECT_JOBS_MAX`], at [`DISCONNECT_BYTES_MAX`], and when the process has
    /// no memory left for what clients cause.
    pub fn push(&self, shard: &Shard, job: DisconnectCall) {
        let mut backlog = self.backlog.borrow_mut();
        let bytes = job.bytes_held();
        if !backlog.has_room(bytes, bytes_max(shard)) || !shard.budget.try_charge(bytes) {
            self.count(|tally| tally.refused += 1);
            return give_up(shard, &job);
        }
        if backlog.waiting.len() >= shard.config.disconnect.backlog {
            shard.counters().disconnect_queue_waits.add(1);
        }
        backlog.push(job, bytes);
        show(shard, &backlog);
        self.changed.notify();
    }

    /// A call has ended.
    fn ended(&self, shard: &Shard, job: &DisconnectCall) {
        let mut backlog = self.backlog.borrow_mut();
        backlog.end(job.bytes_held());
        shard.budget.release(job.bytes_held());
        show(shard, &backlog);
        self.changed.notify();
    }

    /// Ends the rate limit: up to `parallel` calls run at the same time. The tally of the shutdown starts here.
    pub fn hurry(&self, parallel: usize) {
        self.parallel.set(parallel.max(1));
        self.tally.set(Tally::default());
        self.changed.notify();
    }

    /// No more calls will come: answers on `done` when the last one has ended, or at `deadline`.
    pub fn finish(&self, deadline: Instant, done: mpsc::Sender<ShardId>) {
        *self.last.borrow_mut() = Some(Last { deadline, done });
        self.changed.notify();
    }

    /// Takes the next call out to send it.
    fn take(&self, shard: &Shard) -> Option<DisconnectCall> {
        let mut backlog = self.backlog.borrow_mut();
        let job = backlog.start();
        show(shard, &backlog);
        job
    }

    fn count(&self, change: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.get();
        change(&mut tally);
        self.tally.set(tally);
    }

    /// Calls that have not ended.
    fn left(&self) -> usize {
        self.backlog.borrow().left()
    }
}

/// Updates the metrics of the queue.
fn show(shard: &Shard, backlog: &Backlog<DisconnectCall>) {
    let counters = shard.counters();
    counters
        .disconnect_queue_size
        .set(backlog.waiting.len() as i64);
    counters.disconnect_queue_bytes.set(backlog.bytes as i64);
}

/// Sends the calls, for the life of the shard.
pub async fn run(shard: Rc<Shard>) {
    let queue = &shard.disconnects;
    let interval = Duration::from_secs(1) / shard.config.disconnect.rate.max(1);
    let mut next = Instant::now();
    while queue.parallel.get() == 0 {
        let now = Instant::now();
        if queue.backlog.borrow().waiting.is_empty() {
            queue.changed.notified().await;
        } else if next > now {
            // A drain that starts during this sleep is noticed one interval later at most.
            shard.timeouts.sleep(next - now).await;
        } else if let Some(job) = queue.take(&shard) {
            // Counted from the plan, so that late wake-ups do not lower the rate. After an idle time one interval is made up
            // for, not all of them.
            next = next.max(now - interval) + interval;
            start(&shard, job);
        }
    }
    hurry(&shard).await;
}

/// Sends the calls that wait and those that are still added, without a rate limit. Returns when [`DisconnectQueue::finish`]
/// was called and no call is left, or when the deadline has passed.
async fn hurry(shard: &Rc<Shard>) {
    let queue = &shard.disconnects;
    let mut announced = false;
    loop {
        while queue.backlog.borrow().running < queue.parallel.get() {
            let Some(job) = queue.take(shard) else { break };
            start(shard, job);
        }
        // An answer, a new call, `finish` and the deadline all wake this task. Dropping the wait loses no notification.
        let changed = pin!(queue.changed.notified());
        let deadline = queue.last.borrow().as_ref().map(|last| last.deadline);
        let Some(deadline) = deadline else {
            changed.await;
            continue;
        };
        let time = deadline.saturating_duration_since(Instant::now());
        if queue.left() == 0 || time.is_zero() {
            return report(shard);
        }
        if !announced {
            announced = true;
            tracing::info!(
                context = "disconnector",
                shard = shard.id,
                num = queue.left(),
                "invoking remaining disconnects"
            );
        }
        shard.timeouts.within(time, changed).await;
    }
}

/// Writes the one log line about the calls of a shutdown.
fn report(shard: &Shard) {
    let queue = &shard.disconnects;
    let late = queue.left();
    queue.count(|tally| tally.late = late);
    shard
        .counters()
        .disconnect_calls_dropped_total
        .add(late as u64);
    let tally = queue.tally.get();
    let text = tally.text(shard.config.shutdown.timeout);
    if tally.lost() > 0 {
        tracing::warn!(context = "disconnector", "{text}");
    } else if tally.finished > 0 {
        tracing::info!(context = "disconnector", "{text}");
    }
    if let Some(last) = queue.last.borrow_mut().take() {
        // The control thread may have given up waiting.
        let _ = last.done.send(shard.id);
    }
}

fn start(shard: &Rc<Shard>, job: DisconnectCall) {
    monoio::spawn(call(Rc::clone(shard), job));
}

async fn call(shard: Rc<Shard>, job: DisconnectCall) {
    let queue = &shard.disconnects;
    shard.counters().rpc_call_total.add(1);
    if let Some(rpc) = &shard.rpc {
        let answer = ask(&shard, rpc, &job).await;
        queue.count(|tally| match answer {
            Ok(_) => tally.finished += 1,
            Err(_) => tally.failed += 1,
        });
        note_end(&shard, job.sid(), judge(answer));
    }
    queue.ended(&shard, &job);
}

/// Returns the body of the answer.
async fn ask(
    shard: &Rc<Shard>,
    rpc: &RpcClient,
    job: &DisconnectCall,
) -> Result<Vec<u8>, RpcError> {
    let method = Method::Disconnect;
    let charge = Cell::new(None);
    let body = || {
        let body = job.request().json();
        // These calls are as many as there are slots at most, and each of them frees the memory of a waiting one, so they
        // are charged without asking.
        charge.set(Some(shard.budget.hold_anyway(body.len())));
        tracing::debug!(
            context = "node",
            sid = job.sid(),
            shard = shard.id,
            data = %cut_bytes(&body),
            "disconnect"
        );
        Ok(body)
    };
    let times = CallTimes::since(Instant::now());
    let answer = rpc
        .call_timed(method, job.sid(), body, Priority::Disconnect, &times)
        .await;
    shard.slow_calls.note(&FinishedCall {
        times: &times,
        method,
        sid: job.sid(),
        command: None,
    });
    answer
}

/// Why the app may not have handled the call.
#[derive(Debug, thiserror::Error)]
enum DisconnectError {
    #[error(transparent)]
    Rpc(RpcError),
    /// The app's own text.
    #[error("{0}")]
    Refused(String),
}

fn judge(body: Result<Vec<u8>, RpcError>) -> Result<(), DisconnectError> {
    let decoded = body.and_then(|body| Ok(decode_answer(&body)?));
    let answer = decoded.map_err(DisconnectError::Rpc)?;
    match answer.status {
        RpcStatus::Error => Err(DisconnectError::Refused(answer.error_msg)),
        _ => Ok(()),
    }
}

fn note_end(shard: &Shard, sid: &str, result: Result<(), DisconnectError>) {
    let Err(error) = result else {
        return tracing::debug!(
            context = "node",
            sid,
            shard = shard.id,
            "controller disconnect succeeded"
        );
    };
    // `RpcClient` has counted a call without an answer already.
    if matches!(
        error,
        DisconnectError::Refused(_) | DisconnectError::Rpc(RpcError::Unreadable(_))
    ) {
        shard.counters().rpc_error_total.add(1);
    }
    if let Some(admitted) = shard.notices.admit(Notice::DisconnectFailed) {
        tracing::error!(
            context = "node",
            sid,
            shard = shard.id,
            %error,
            left_out = admitted.left_out(),
            "controller disconnect failed"
        );
    }
}

/// The bytes that the queue may hold.
fn bytes_max(shard: &Shard) -> usize {
    match usize::try_from(shard.metrics.memory_bytes_max.value()) {
        Ok(all) if all > 0 => DISCONNECT_BYTES_MAX.min(all / DISCONNECT_SHARE),
        _ => DISCONNECT_BYTES_MAX,
    }
}

/// Drops a call: the app is not told that this session has ended.
fn give_up(shard: &Shard, job: &DisconnectCall) {
    shard.counters().disconnect_calls_dropped_total.add(1);
    let Some(admitted) = shard.notices.admit(Notice::DisconnectQueueFull) else {
        return;
    };
    tracing::error!(
        context = "disconnector",
        shard = shard.id,
        sid = job.sid(),
        left_out = admitted.left_out(),
        "the disconnect queue is full (at {DISCONNECT_JOBS_MAX} calls or {} MiB), the app is not told that this session is gone: \
         raise --disconnect_rate if the app can take more calls",
        bytes_max(shard) >> 20
    );
}

/// Bytes of Disconnect calls of one shard that wait for room in the inbox of shard 0. A call beyond that is given up.
pub const FORWARDED_BYTES_MAX: usize = 64 << 20;

/// Sends the calls of other shards to shard 0.
#[derive(Default)]
pub struct Forwarding {
    calls: Cell<usize>,
    bytes: Cell<usize>,
}

impl Forwarding {
    /// True when no call is on its way.
    pub fn is_idle(&self) -> bool {
        self.calls.get() == 0
    }

    /// Puts a call into the inbox of shard 0, or waits until there is room.
    pub fn send(&self, shard: &Rc<Shard>, job: DisconnectCall) {
        let bytes = job.bytes_held();
        let message = ShardMessage::Disconnect(Box::new(job));
        let Err(message) = shard.mesh.mailbox(0).try_send(message) else {
            return;
        };
        let charge = match self.bytes.get() + bytes > FORWARDED_BYTES_MAX {
            true => None,
            false => shard.budget.hold(bytes),
        };
        let Some(charge) = charge else {
            if let ShardMessage::Disconnect(job) = message {
                give_up(shard, &job);
            }
            return;
        };
        self.calls.set(self.calls.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        let shard = Rc::clone(shard);
        monoio::spawn(async move {
            shard.counters().inbox_waits_total.add(1);
            shard.mesh.mailbox(0).send(message).await;
            drop(charge);
            let forwarding = &shard.forwarding;
            forwarding.calls.set(forwarding.calls.get() - 1);
            forwarding.bytes.set(forwarding.bytes.get() - bytes);
            shard.report_drained();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_bounded_in_calls_and_calls_under_way_count() {
        let mut backlog = Backlog::default();
        for number in 0..DISCONNECT_JOBS_MAX {
            assert!(backlog.has_room(1, DISCONNECT_BYTES_MAX), "{number} calls");
            backlog.push(number, 1);
        }
        assert!(!backlog.has_room(0, DISCONNECT_BYTES_MAX));
        assert_eq!(backlog.start(), Some(0));
        assert!(
            !backlog.has_room(0, DISCONNECT_BYTES_MAX),
            "it has not ended"
        );
        backlog.end(1);
        assert!(backlog.has_room(1, DISCONNECT_BYTES_MAX));
    }

    #[test]
    fn the_queue_is_bounded_in_bytes_and_calls_under_way_count() {
        const CALL_BYTES: usize = 1 << 20;
        let mut backlog = Backlog::default();
        for number in 0..DISCONNECT_BYTES_MAX / CALL_BYTES {
            assert!(
                backlog.has_room(CALL_BYTES, DISCONNECT_BYTES_MAX),
                "{number} calls"
            );
            backlog.push(number, CALL_BYTES);
        }
        assert!(backlog.has_room(0, DISCONNECT_BYTES_MAX));
        assert!(!backlog.has_room(1, DISCONNECT_BYTES_MAX));
        assert_eq!(backlog.start(), Some(0));
        assert!(
            !backlog.has_room(1, DISCONNECT_BYTES_MAX),
            "it has not ended"
        );
        backlog.end(CALL_BYTES);
        assert!(backlog.has_room(CALL_BYTES, DISCONNECT_BYTES_MAX));
        assert!(!backlog.has_room(CALL_BYTES + 1, DISCONNECT_BYTES_MAX));
        assert!(
            !backlog.has_room(1, backlog.bytes),
            "a smaller bound counts"
        );
    }

    #[test]
    fn one_line_says_what_became_of_the_calls() {
        let check = |tally: Tally, expected: &str| {
            assert_eq!(tally.text(Duration::from_secs(30)), expected);
        };
        let finished = Tally {
            finished: 3,
            ..Tally::default()
        };
        check(finished, "disconnect calls: 3 finished, 0 lost");
        let mixed = Tally {
            finished: 9,
            refused: 1,
            failed: 2,
            late: 4,
        };
        check(
            mixed,
            "disconnect calls: 9 finished, 7 lost (4 out of time after 30 s, 2 failed, 1 beyond a full queue)",
        );
    }
}
