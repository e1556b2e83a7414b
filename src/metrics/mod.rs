//! The numbers an operator sees: counters that shards write without locks, and their Prometheus text.
//!
//! Owns the names, their meaning and the text formats. Never listens, never logs, never reads a clock. Shards and the
//! control thread write the values; `endpoints` serves the Prometheus text, `reporting` sends the interval's values to the
//! log and StatsD.

pub(crate) mod counters;
pub(crate) mod families;
pub(crate) mod histogram;
pub(crate) mod prometheus;
pub(crate) mod rotation;
pub(crate) mod statsd;

pub use counters::{Counter, Gauge, Metrics, ShardMetrics, TlsMetrics};
pub use histogram::Histogram;
