//! Updates the gauges whose values are read on demand. Called before all metrics are read, by a shard that is scraped or by
//! the control thread.

use crate::hub::Interest;
use crate::log;
use crate::metrics::Metrics;
use crate::rpc::RpcShared;
use crate::shard::message::ShardMesh;

/// Brings the sampled gauges up to date.
pub fn sample(metrics: &Metrics, mesh: &ShardMesh, interest: &Interest, rpc: Option<&RpcShared>) {
    for (shard, mailbox) in metrics.shards.iter().zip(mesh.mailboxes()) {
        shard.inbox_depth.set(mailbox.depth() as i64);
        shard.inbox_wakeups_total.sample(mailbox.wakeups());
    }
    metrics.interest_bytes.set(interest.held_bytes() as i64);
    metrics
        .log_records_dropped
        .set(i64::try_from(log::dropped_records()).unwrap_or(i64::MAX));
    if let Some(rpc) = rpc {
        let breaker = rpc.breaker_status();
        metrics.rpc_running_num.set(rpc.running() as i64);
        metrics.rpc_breaker_open.set(i64::from(breaker.open));
        metrics.rpc_breaker_opened.set(breaker.opened as i64);
    }
}
