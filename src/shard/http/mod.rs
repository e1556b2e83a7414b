//! HTTP on the listeners of a shard: new connections, their requests and answers, and the upgrade to a session.

pub mod accept;
pub(in crate::shard) mod body;
pub mod collisions;
mod connection;
mod console;
pub mod listener;
mod pace;
mod reading;
mod refusals;
pub mod routes;

#[cfg(test)]
pub(super) use self::connection::serve;
