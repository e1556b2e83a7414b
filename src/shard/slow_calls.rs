//! Tells the operator which calls to the app take long: one line at once, then at most one per [`LINE_INTERVAL`] and shard,
//! because a slow app is slow for everybody. Every slow call is counted.

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::log::cut;
use crate::rpc::{CallTimes, Method};
use crate::shard::Shard;

/// Between two lines of one shard.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// A call that has come to its end, or was cancelled.
pub struct FinishedCall<'a> {
    pub times: &'a CallTimes,
    pub method: Method,
    pub sid: &'a str,
    /// The client's command and its identifier.
    pub command: Option<(&'static str, &'a str)>,
}

/// One shard's slow calls.
pub struct SlowCalls {
    /// Zero: no call is slow.
    limit: Duration,
    lines: Lines,
}

impl SlowCalls {
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            lines: Lines::default(),
        }
    }

    /// Counts `call` and logs it if it was slow and a line is due. A cancelled one has no time.
    pub fn note(&self, shard: &Shard, call: &FinishedCall<'_>) {
        let Some((waited, ran)) = call.times.finished() else {
            return;
        };
        if self.limit.is_zero() || waited + ran <= self.limit {
            return;
        }
        shard.counters().rpc_slow_calls_total.add(1);
        let Some(suppressed) = self.lines.next(Instant::now()) else {
            return;
        };
        tracing::warn!(
            context = "rpc",
            sid = call.sid,
            shard = shard.id,
            method = method_name(call.method),
            command = call.command.map(|(command, _)| command),
            identifier = call.command.map(|(_, identifier)| cut(identifier)),
            waited_ms = waited.as_millis() as u64,
            ran_ms = ran.as_millis() as u64,
            suppressed,
            "slow RPC call"
        );
    }
}

fn method_name(method: Method) -> &'static str {
    match method {
        Method::Connect => "connect",
        Method::Command => "command",
        Method::Disconnect => "disconnect",
    }
}

/// When the last line was written, and what was not since then.
#[derive(Default)]
struct Lines {
    last: Cell<Option<Instant>>,
    suppressed: Cell<u64>,
}

impl Lines {
    /// How many lines were suppressed before this one; `None`: this one is, too.
    fn next(&self, now: Instant) -> Option<u64> {
        let last = self.last.get();
        if last.is_some_and(|last| now.saturating_duration_since(last) < LINE_INTERVAL) {
            self.suppressed.set(self.suppressed.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.suppressed.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_interval_says_how_many_it_stands_for() {
        let lines = Lines::default();
        let start = Instant::now();
        let table = [
            (0, Some(0)),
            (1, None),
            (9_999, None),
            (10_000, Some(2)),
            (10_001, None),
            (40_000, Some(1)),
            (50_000, Some(0)),
        ];
        for (millis, expected) in table {
            let now = start + Duration::from_millis(millis);
            assert_eq!(lines.next(now), expected, "{millis}");
        }
    }
}
