//! A histogram of durations with fixed buckets and a single writer.
//!
//! Owns the bucket bounds. Never reads a clock: durations come in as arguments. Written by one shard, read by
//! `metrics::prometheus`.

use std::time::Duration;

use crate::metrics::Counter;

/// Upper bounds (inclusive) of all buckets but the last, in microseconds: 1 ms to 10 s.
///
/// The range is from an answer out of the app's cache to three times the default command timeout.
pub const BOUNDS_MICROS: [u64; 13] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// The buckets with a bound, and one for all longer durations.
pub const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// How many durations fell into each bucket, and their sum. Single writer, as [`Counter`].
#[derive(Debug, Default)]
pub struct Histogram {
    /// Not cumulative, so that one observation is one store here and one in the sum.
    buckets: [Counter; BUCKETS],
    sum_nanos: Counter,
}

/// What a [`Histogram`] held when it was read; snapshots can be added.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Observations per bucket, not cumulative.
    pub buckets: [u64; BUCKETS],
    /// Sum of all durations in nanoseconds; wraps after 584 years.
    pub sum_nanos: u64,
}

impl Histogram {
    /// Counts one duration. Only the owner may call it.
    pub fn observe(&self, duration: Duration) {
        let micros_rounded_up = duration.as_nanos().div_ceil(1_000);
        let bucket = BOUNDS_MICROS
            .iter()
            .position(|&bound| micros_rounded_up <= u128::from(bound));
        self.buckets[bucket.unwrap_or(BUCKETS - 1)].add(1);
        self.sum_nanos
            .add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Reads all buckets. An observation made at the same time may be in the sum and not yet in a bucket, or the other way
    /// round.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            buckets: std::array::from_fn(|i| self.buckets[i].value()),
            sum_nanos: self.sum_nanos.value(),
        }
    }
}

impl Snapshot {
    /// Adds another shard's observations.
    pub fn merge(&mut self, other: &Snapshot) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine = mine.wrapping_add(theirs);
        }
        self.sum_nanos = self.sum_nanos.wrapping_add(other.sum_nanos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(duration: Duration, expected_bucket: usize) {
        let histogram = Histogram::default();
        histogram.observe(duration);
        let snapshot = histogram.snapshot();
        let mut expected = [0; BUCKETS];
        expected[expected_bucket] = 1;
        assert_eq!(snapshot.buckets, expected, "{duration:?}");
        assert_eq!(
            u128::from(snapshot.sum_nanos),
            duration.as_nanos(),
            "{duration:?}"
        );
    }

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        check(Duration::ZERO, 0);
        check(Duration::from_millis(1), 0);
        check(Duration::from_nanos(1_000_001), 1);
        check(Duration::from_micros(2_500), 1);
        check(Duration::from_millis(3), 2);
        check(Duration::from_millis(700), 9);
        check(Duration::from_secs(10), 12);
        check(Duration::from_nanos(10_000_000_001), 13);
        check(Duration::from_secs(86_400), 13);
    }

    #[test]
    fn an_endless_duration_does_not_panic() {
        let histogram = Histogram::default();
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.snapshot().buckets[BUCKETS - 1], 1);
    }

    #[test]
    fn snapshots_of_several_shards_add_up() {
        let (one, two) = (Histogram::default(), Histogram::default());
        one.observe(Duration::from_millis(1));
        two.observe(Duration::from_millis(1));
        two.observe(Duration::from_secs(20));
        let mut sum = one.snapshot();
        sum.merge(&two.snapshot());
        assert_eq!(sum.buckets[0], 2);
        assert_eq!(sum.buckets[BUCKETS - 1], 1);
        assert_eq!(sum.sum_nanos, 20_002_000_000);
    }

    #[test]
    fn bounds_rise_strictly() {
        assert!(BOUNDS_MICROS.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
