//! The endpoints beside WebSocket: which path is which, and what is answered there.
//!
//! Pure: a path, a method and a few header values come in, a value goes out. Reading requests, writing responses and
//! delivering publications is `shard::http`, which is the only caller.

pub mod api;
mod bearer;
pub mod broadcast;
pub mod health;
pub mod hints;
pub mod metrics;
pub mod response;
pub mod routes;

pub use response::Response;
pub use routes::{Endpoint, PathMatch, RoutePaths, Routes};
