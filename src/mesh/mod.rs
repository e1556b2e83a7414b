//! How threads talk: one bounded inbox per shard for messages of any type, and the few things that shards share.
//!
//! The queue is lock-free. The mutexes around wakers are used only when a shard goes to sleep or a sender has to wait. The
//! meaning of the messages is not known here: `shard::message` has those between shards.

mod budget;
mod gather;
mod mailbox;
mod permits;
mod sync;
#[cfg(test)]
mod tests;

pub use budget::{Charge, Lease, ProcessBudget, ShardBudget};
pub use gather::{Gather, Reply};
pub use mailbox::{Inbox, MESSAGES_AHEAD_MAX, Mesh, Weigh};
pub use permits::{ClientSockets, ConnectionLimit, Full, Permit};

/// Index of a shard, from 0 to the number of shards − 1.
pub type ShardId = usize;

/// Names one use of one slot of a session. Data that outlives a turn keeps this reference and checks the generation before
/// use, so that a late answer for an earlier session of the slot is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRef {
    pub shard: ShardId,
    pub slot: u32,
    pub generation: u32,
}
