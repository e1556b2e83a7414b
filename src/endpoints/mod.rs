//! The HTTP endpoints besides WebSocket: their answers.
//!
//! Pure: a method and a few header values come in, a value goes out. `shard::http` routes and reads requests, writes
//! responses and delivers publications; it is the only caller.

pub mod api;
mod bearer;
pub mod broadcast;
pub mod durable_streams;
pub mod health;
pub mod hints;
pub mod metrics;
pub mod page;
pub mod polling;
pub mod response;
pub mod sse;

pub use page::Page;
pub use response::Response;
