//! One shard's subscription table: which session listens to what, and who gets a publication. Pure state, owned by the
//! shard.
//!
//! Subscribers of a stream are grouped by identifier, because all members of such a group receive the same bytes. Stream
//! names and identifiers are interned with reference counts; a session's subscriptions are one boxed slice of edges. A hub
//! tells the publishers of all shards which streams have a listener here (`interest`).

mod edge;
mod interest;
mod intern;
mod latecomers;
mod table;

pub use edge::Marks;
pub use interest::{Interest, LocalInterest, ShardSet};
pub use intern::{Interner, TextId};
pub use table::{Hub, identifier_bytes};
