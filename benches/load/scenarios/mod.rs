//! The scenarios, one file each.

pub mod beside;
pub mod burst;
pub mod churn;
pub mod drain;
mod drive;
pub mod fanout;
pub mod gate;
pub mod greedy;
pub mod history;
pub mod idle;
pub mod limit;
pub mod presence;
pub mod profiles;
pub mod restores;
pub mod rpc;
pub mod scale;
pub mod shards;
pub mod slow;
pub mod sse;
pub mod storm;
pub mod unfair;
