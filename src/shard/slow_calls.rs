//! Tells the operator which calls to the app take long: the first at once, then at most one per `SPARSE_INTERVAL` and shard,
//! because a slow app is slow for every client. Every slow call is counted.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::log::{Sparse, cut};
use crate::mesh::ShardId;
use crate::metrics::Metrics;
use crate::rpc::{CallTimes, Method};

/// A call that has ended or was cancelled.
pub struct FinishedCall<'a> {
    pub times: &'a CallTimes,
    pub method: Method,
    pub sid: &'a str,
    /// The client's command and its identifier.
    pub command: Option<(&'static str, &'a str)>,
}

/// One shard's slow calls.
pub struct SlowCalls {
    shard: ShardId,
    metrics: Arc<Metrics>,
    /// Zero means that no call is slow.
    limit: Duration,
    lines: RefCell<Sparse>,
}

impl SlowCalls {
    pub fn new(shard: ShardId, metrics: Arc<Metrics>, limit: Duration) -> Self {
        Self {
            shard,
            metrics,
            limit,
            lines: RefCell::default(),
        }
    }

    /// Counts `call`, and logs it if it was slow and a line is due. A cancelled call has no time.
    pub fn note(&self, call: &FinishedCall<'_>) {
        let Some((waited, ran)) = call.times.finished() else {
            return;
        };
        if self.limit.is_zero() || waited + ran <= self.limit {
            return;
        }
        self.metrics.shards[self.shard].rpc_slow_calls_total.add(1);
        let Some(admitted) = self.lines.borrow_mut().admit(Instant::now()) else {
            return;
        };
        tracing::warn!(
            context = "rpc",
            sid = call.sid,
            shard = self.shard,
            method = call.method.path_segment(),
            command = call.command.map(|(command, _)| command),
            identifier = call.command.map(|(_, identifier)| cut(identifier)),
            waited_ms = waited.as_millis() as u64,
            ran_ms = ran.as_millis() as u64,
            left_out = admitted.left_out(),
            "slow RPC call"
        );
    }
}
