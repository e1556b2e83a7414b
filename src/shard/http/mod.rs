//! HTTP on the listeners of a shard: new connections, their requests and answers, and the upgrade to a session.
//!
//! Follow a request: `accept` → `connection` → `reading` → `requests`, which asks `routes` → `upgrade`, `events`, `polling`,
//! `console` or an endpoint (a publication: `body`, then `shard::broadcasts`) → `writing`. `reading`, `body` and `writing`
//! do not depend on routes.

pub mod accept;
pub(in crate::shard) mod body;
mod client;
pub mod collisions;
mod connection;
mod console;
mod durable_streams;
mod events;
pub mod listener;
pub(in crate::shard) mod polling;
mod reading;
mod refusals;
mod requests;
pub mod routes;
mod task_time;
mod upgrade;
mod writing;

#[cfg(test)]
pub(super) use self::connection::serve;
