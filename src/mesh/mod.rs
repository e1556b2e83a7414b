//! How threads talk: one bounded inbox per shard for messages of whatever type; and the few things that shards share.
//!
//! The queue is lock-free; the mutexes around wakers are touched only when a shard goes to sleep or a sender has to wait.
//! What is said is the business of whoever uses a mesh: `shard::message` has what shards are asked.

mod budget;
mod gather;
mod mailbox;
mod permits;

pub use budget::{Charge, ProcessBudget, ShardBudget};
pub use gather::{Gather, Reply};
pub use mailbox::{Inbox, MESSAGES_AHEAD_MAX, Mesh, Weigh};
pub use permits::{ClientSockets, ConnectionLimit, Full, Permit};

/// Index of a shard, 0 to number of shards − 1.
pub type ShardId = usize;

/// Names one life of one session. What outlives a turn keeps this and checks the generation again, so that a late answer
/// for a slot that was used again falls on the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRef {
    pub shard: ShardId,
    pub slot: u32,
    pub generation: u32,
}
