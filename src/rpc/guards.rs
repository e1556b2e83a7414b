//! Guards that undo what a call has taken, also when its future is dropped before the end: the counts, and its admission by
//! the breaker.

use std::time::Instant;

use super::{
    RpcError,
    breaker::{Admission, Breaker, BreakerChange},
};
use crate::metrics::ShardMetrics;

/// One attempt that the breaker has admitted. If it is dropped without an outcome, the breaker counts neither success nor
/// failure.
pub(super) struct AdmittedAttempt<'a> {
    breaker: &'a Breaker,
    admission: Option<Admission>,
}

impl<'a> AdmittedAttempt<'a> {
    pub fn start(breaker: &'a Breaker, now: Instant) -> Result<AdmittedAttempt<'a>, RpcError> {
        let admission = breaker.admit(now).map_err(|_| RpcError::BreakerOpen)?;
        Ok(AdmittedAttempt {
            breaker,
            admission: Some(admission),
        })
    }

    pub fn succeeded(mut self) {
        if let Some(admission) = self.admission.take() {
            log_change(self.breaker.succeeded(admission, Instant::now()));
        }
    }

    pub fn failed(mut self) {
        if let Some(admission) = self.admission.take() {
            log_change(self.breaker.failed(admission, Instant::now()));
        }
    }
}

impl Drop for AdmittedAttempt<'_> {
    fn drop(&mut self) {
        if let Some(admission) = self.admission.take() {
            self.breaker.abandoned(admission);
        }
    }
}

/// Logs the lines of the reference, one for each change.
fn log_change(change: Option<BreakerChange>) {
    match change {
        Some(BreakerChange::Opened) => {
            tracing::warn!(context = "cb", name = "httrpc", "circuit breaker is open")
        }
        Some(BreakerChange::Closed) => {
            tracing::info!(context = "cb", name = "httrpc", "circuit breaker is closed")
        }
        None => {}
    }
}

/// Counts a call as waiting as long as this value lives.
pub(super) struct Pending<'a>(&'a ShardMetrics);

impl<'a> Pending<'a> {
    pub fn new(counters: &'a ShardMetrics) -> Pending<'a> {
        counters.rpc_pending_num.add(1);
        Pending(counters)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.rpc_pending_num.sub(1);
    }
}

/// Counts a call as canceled unless the call has ended before the drop.
pub(super) struct Unfinished<'a>(&'a ShardMetrics);

impl<'a> Unfinished<'a> {
    pub fn new(counters: &'a ShardMetrics) -> Unfinished<'a> {
        Unfinished(counters)
    }

    pub fn finish(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.0.rpc_canceled_total.add(1);
    }
}
