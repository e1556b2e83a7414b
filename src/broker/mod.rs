//! What one shard keeps beyond the moment: presence, and sessions that may come back. Pure state: time comes in as an
//! argument, and every byte is charged to a [`Budget`] from outside.
//!
//! A stream has one home among the shards, and a session is kept by the shard on which it has ended, so nothing here is
//! shared.

mod budget;
mod expiry;
mod index;
pub mod presence;

pub use budget::Budget;
