//! Metrics by interval, for the metrics log and StatsD: gauges as they are, counters as the difference to the last interval.
//!
//! Pure. Called by `reporting` every `--metrics_rotate_interval`. Names have no prefix, as in the reference's log;
//! ringcable's own carry theirs (`ringcable_deliveries_total`), summed over the shards.
//! Source: `contract/operations.md` §15 and §16.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::metrics::Metrics;
use crate::metrics::families::{
    CLOSED, MetricKind, OWN, OWN_PREFIX, OWN_PROCESS, REFERENCE, REFERENCE_PROCESS, REFERENCE_RPC,
};

/// One metric and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    pub name: Cow<'static, str>,
    pub kind: MetricKind,
    pub value: i64,
    /// Whether the reference has this metric too.
    pub is_reference: bool,
}

/// All metrics now, sorted by name. The names are the same every time. Histograms are not among them.
pub fn readings(metrics: &Metrics) -> Vec<Reading> {
    let with_rpc: &[_] = if metrics.rpc_configured {
        REFERENCE_RPC
    } else {
        &[]
    };
    let reference = |name, kind, value| Reading {
        name: Cow::Borrowed(name),
        kind,
        value,
        is_reference: true,
    };
    let own = |name: &str, kind, value| Reading {
        name: Cow::Owned(format!("{OWN_PREFIX}{name}")),
        kind,
        value,
        is_reference: false,
    };
    let mut readings = Vec::new();
    for family in REFERENCE.iter().chain(with_rpc) {
        readings.push(reference(
            family.name,
            family.read.kind(),
            family.read.sum(metrics),
        ));
    }
    for family in REFERENCE_PROCESS {
        readings.push(reference(family.name, family.kind, (family.read)(metrics)));
    }
    for family in OWN {
        readings.push(own(
            family.name,
            family.read.kind(),
            family.read.sum(metrics),
        ));
    }
    for family in OWN_PROCESS {
        readings.push(own(family.name, family.kind, (family.read)(metrics)));
    }
    let shards = metrics.shards.iter();
    let closed = shards.flat_map(|shard| CLOSED.iter().map(move |(_, read)| read(shard).value()));
    readings.push(own(
        "closed_total",
        MetricKind::Counter,
        closed.sum::<u64>() as i64,
    ));
    readings.sort_by(|one, other| one.name.cmp(&other.name));
    readings
}

/// The values of the counters at the end of the last interval.
#[derive(Debug, Default)]
pub struct Rotation {
    /// In the order of [`readings`]; empty before the first time.
    previous: Vec<i64>,
}

impl Rotation {
    /// All metrics of the interval that ends now, sorted by name. The first interval began with the process.
    pub fn rotate(&mut self, metrics: &Metrics) -> Vec<Reading> {
        let mut readings = readings(metrics);
        self.previous.resize(readings.len(), 0);
        for (reading, previous) in readings.iter_mut().zip(&mut self.previous) {
            let now = reading.value;
            if reading.kind == MetricKind::Counter {
                reading.value = now.wrapping_sub(*previous);
            }
            *previous = now;
        }
        readings
    }
}

/// Which metrics the log shows: those of the reference, or those named in the option.
#[derive(Debug)]
pub struct Selection {
    names: HashSet<String>,
}

impl Selection {
    /// `filter` is `--metrics_log_filter`; empty = the reference's metrics.
    pub fn new(filter: &[String]) -> Self {
        Self {
            names: filter.iter().cloned().collect(),
        }
    }

    pub fn shows(&self, reading: &Reading) -> bool {
        if self.names.is_empty() {
            reading.is_reference
        } else {
            self.names.contains(&*reading.name)
        }
    }
}

/// The names in `filter` that belong to no metric.
pub fn unknown_names<'a>(metrics: &Metrics, filter: &'a [String]) -> Vec<&'a str> {
    let known: HashSet<Cow<'static, str>> = readings(metrics)
        .into_iter()
        .map(|reading| reading.name)
        .collect();
    filter
        .iter()
        .map(String::as_str)
        .filter(|name| !known.contains(*name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(readings: &[Reading], name: &str) -> i64 {
        let found = readings.iter().find(|reading| reading.name == name);
        found.unwrap_or_else(|| panic!("no {name}")).value
    }

    #[test]
    fn counters_are_increases_and_gauges_are_values() {
        let metrics = Metrics::new(2);
        let mut rotation = Rotation::default();
        metrics.shards[0].client_msg_total.add(3);
        metrics.shards[1].client_msg_total.add(4);
        metrics.shards[1].clients_num.set(5);
        metrics.clients_uniq_num.set(2);
        metrics.shards[0].closed_remote_total.add(1);
        metrics.shards[1].closed_auth_total.add(1);
        let first = rotation.rotate(&metrics);
        assert_eq!(value(&first, "client_msg_total"), 7);
        assert_eq!(value(&first, "clients_num"), 5);
        assert_eq!(value(&first, "clients_uniq_num"), 2);
        assert_eq!(value(&first, "ringcable_closed_total"), 2);
        metrics.shards[0].client_msg_total.add(10);
        let second = rotation.rotate(&metrics);
        assert_eq!(value(&second, "client_msg_total"), 10);
        assert_eq!(value(&second, "clients_num"), 5);
        assert_eq!(value(&second, "ringcable_closed_total"), 0);
        assert_eq!(value(&rotation.rotate(&metrics), "client_msg_total"), 0);
    }

    #[test]
    fn a_counter_that_wraps_has_still_gained() {
        let metrics = Metrics::new(1);
        let mut rotation = Rotation::default();
        metrics.shards[0].data_sent_total.add(u64::MAX);
        rotation.rotate(&metrics);
        metrics.shards[0].data_sent_total.add(6);
        assert_eq!(value(&rotation.rotate(&metrics), "data_sent_total"), 6);
    }

    #[test]
    fn names_are_sorted_and_distinct() {
        let names: Vec<_> = readings(&Metrics::new(1))
            .into_iter()
            .map(|reading| reading.name)
            .collect();
        assert!(names.is_sorted());
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
    }

    #[test]
    fn without_a_filter_the_reference_alone_is_shown() {
        let shown = |metrics: &Metrics, filter: &[&str]| {
            let filter: Vec<String> = filter.iter().map(|&name| name.to_owned()).collect();
            let selection = Selection::new(&filter);
            let all = readings(metrics);
            let shown = all.iter().filter(|reading| selection.shows(reading));
            shown
                .map(|reading| reading.name.to_string())
                .collect::<Vec<_>>()
        };
        let mut metrics = Metrics::new(1);
        // 38 names less gRPC, adaptive concurrency and Go's memory: contract/operations.md §14.
        assert_eq!(shown(&metrics, &[]).len(), 33);
        assert!(shown(&metrics, &[]).contains(&"rpc_call_total".to_owned()));
        assert_eq!(
            shown(
                &metrics,
                &[
                    "rpc_call_total",
                    "clients_num",
                    "ringcable_writes_total",
                    "nope"
                ]
            ),
            ["clients_num", "ringcable_writes_total", "rpc_call_total"]
        );
        metrics.rpc_configured = false;
        assert_eq!(shown(&metrics, &[]).len(), 27);
    }

    #[test]
    fn names_that_no_metric_has_are_found() {
        let filter = ["clients_num", "clients", "anycable_go_clients_num"].map(str::to_owned);
        assert_eq!(
            unknown_names(&Metrics::new(1), &filter),
            ["clients", "anycable_go_clients_num"]
        );
    }
}
