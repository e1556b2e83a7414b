//! Action Cable and RPC JSON to values and back.
//!
//! The text of every message is defined here: what clients send ([`command`]), what they get ([`reply`], `disconnect`, and
//! as server-sent events [`event_stream`]),
//! what the app posts ([`publication`]), where a message stands in its stream ([`position`]) and what the app is asked
//! ([`rpc`], `request_env`, [`state`]). Pure: no I/O, no clock, no logging. Called by `session`, `endpoints`, `hub`,
//! `broker`, `rpc` and `shard`.

pub mod command;
pub(crate) mod disconnect;
pub mod durable_streams;
pub mod event_stream;
pub(crate) mod json;
pub(crate) mod poll_id;
pub mod position;
pub mod presence;
pub mod publication;
pub mod reply;
pub(crate) mod request_env;
pub mod rpc;
pub(crate) mod sid;
pub mod state;
