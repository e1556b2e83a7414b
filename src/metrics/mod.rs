//! The numbers an operator sees: counters that shards write without locks, and their Prometheus text.
//!
//! Owns the names, their meaning and the text formats. Never listens, never logs, never reads a clock. Shards and the
//! control thread write the values; `endpoints` serves the Prometheus text, `reporting` what goes to the log and to StatsD.

pub mod counters;
pub mod families;
pub mod histogram;
pub mod prometheus;
pub mod rotation;
pub mod statsd;

pub use counters::{Counter, Gauge, Metrics, ShardMetrics, TlsMetrics};
pub use histogram::Histogram;
