//! How shards talk: a closed set of messages and one bounded inbox per shard; and the few things that they share.
//!
//! The queue is lock-free; the mutexes around wakers are touched only when a shard goes to sleep or a sender has to wait.

mod budget;
mod gather;
mod mailbox;
mod message;
mod permits;

pub use budget::{Charge, ProcessBudget, ShardBudget};
pub use gather::{Gather, Reply};
pub use mailbox::{INBOX_BYTES_MAX, INBOX_MESSAGES_MAX, Inbox, MESSAGES_AHEAD_MAX, Mailbox, Mesh};
pub use message::{ConsoleQuestion, SessionRef, ShardId, ShardMessage, Survey};
pub use permits::{ClientSockets, ConnectionLimit, Full, Permit};
