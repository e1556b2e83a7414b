//! The endpoints beside WebSocket: what is answered there.
//!
//! Pure: a method and a few header values come in, a value goes out. Routing, reading requests, writing responses and
//! delivering publications is `shard::http`, which is the only caller.

pub mod api;
mod bearer;
pub mod broadcast;
pub mod health;
pub mod hints;
pub mod metrics;
pub mod page;
pub mod response;

pub use page::Page;
pub use response::Response;
