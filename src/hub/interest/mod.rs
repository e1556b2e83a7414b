//! Which shards may have a listener of a stream, so that a publication goes only to them.
//!
//! One table of bits is shared by all shards ([`Interest`]). A stream is put into two buckets by its hash, and each bucket
//! has a bit for each shard. A shard sets its bit while it has a stream in the bucket ([`LocalInterest`]), and a publisher
//! takes the shards whose bits are set in both buckets of a stream ([`Interest::listeners`]). The bits may be set for other
//! streams of these buckets: then a shard gets a publication for which it has no listener. A bit is never missing.

mod local;
mod shard_set;
mod table;
#[cfg(test)]
mod tests;

/// The model in `tests/interest_model.rs` compiles the files of this folder with those of loom.
mod atomics {
    pub(super) use std::sync::OnceLock;
    pub(super) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
}

pub use local::LocalInterest;
pub use shard_set::ShardSet;
pub use table::Interest;
