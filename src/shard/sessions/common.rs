//! What every part of the session table may use: the shard's id, its options, its counters, its limits.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::bounds::Bounds;
use crate::config::Config;
use crate::endpoints::durable_streams::ReadPolicy;
use crate::mesh::{ShardBudget, ShardId};
use crate::metrics::{Metrics, ShardMetrics};
use crate::session::Tick;
use crate::shard::answers::Answers;
use crate::shard::notices::Notices;
use crate::shard::timers::TICK;
use crate::wire::websocket::message::MessageLimits;

pub(super) struct Common {
    pub shard: ShardId,
    /// The number of all shards.
    pub shards: usize,
    pub config: Arc<Config>,
    metrics: Arc<Metrics>,
    pub budget: Rc<ShardBudget>,
    pub bounds: Bounds,
    /// The limits on messages that hold for every session, without what it has negotiated.
    pub message_limits: MessageLimits,
    /// The answers to readers of durable streams; `None` when there are none.
    read_policy: Option<ReadPolicy>,
    /// Answers of the HTTP phase, which leave with what is written to sessions.
    pub answers: Answers,
    /// For warnings about clients that are refused as sessions.
    pub notices: Notices,
}

impl Common {
    pub fn new(
        shard: ShardId,
        shards: usize,
        config: Arc<Config>,
        budget: Rc<ShardBudget>,
    ) -> Self {
        let bounds = Bounds::new(&config.websocket);
        Self {
            shard,
            shards,
            bounds,
            message_limits: bounds.message_limits(),
            read_policy: ReadPolicy::of(&config),
            config,
            metrics: Arc::clone(budget.metrics()),
            budget,
            answers: Answers::default(),
            notices: Notices::default(),
        }
    }

    /// # Panics
    /// When no durable streams are served.
    pub fn read_policy(&self) -> &ReadPolicy {
        self.read_policy
            .as_ref()
            .expect("only a listener with durable streams takes readers")
    }

    /// The sessions over long polling of all shards.
    pub fn polling_sessions(&self) -> usize {
        let shards = self.metrics.shards.iter();
        let sum: i64 = shards
            .map(|shard| shard.long_poll_clients_num.value())
            .sum();
        usize::try_from(sum).unwrap_or_default()
    }

    pub fn counters(&self) -> &ShardMetrics {
        &self.metrics.shards[self.shard]
    }

    /// Adjusts the charge of something that has changed its size.
    pub fn recharge(&self, before: usize, after: usize) {
        if after > before {
            self.budget.charge(after - before);
        } else {
            self.budget.release(before - after);
        }
    }
}

/// A duration in ticks of the wheel.
pub(super) fn ticks(duration: Duration) -> Tick {
    let ticks = duration.as_millis().div_ceil(TICK.as_millis());
    // A quarter of the range leaves room to add deadlines.
    ticks.min(u128::from(Tick::MAX / 4)) as Tick
}
