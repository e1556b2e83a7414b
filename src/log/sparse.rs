//! Decides when to write a record that clients or the app can cause at any rate. Pure: time is an argument.

use std::time::{Duration, Instant};

/// Time between two records of one kind, unless the caller has a reason for another.
pub const SPARSE_INTERVAL: Duration = Duration::from_secs(10);

/// One kind of record: the first is written at once, then at most one in [`SPARSE_INTERVAL`], which says how many were left
/// out. The metrics count every one.
#[derive(Debug, Default)]
pub struct Sparse {
    written: Option<Instant>,
    left_out: u64,
}

/// Permission to write a record; holds how many like it were left out since the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    left_out: u64,
}

impl Sparse {
    /// Asks to write a record at `now`. `None`: the record is left out and counted.
    pub fn admit(&mut self, now: Instant) -> Option<Admitted> {
        self.admit_every(SPARSE_INTERVAL, now)
    }

    /// The same, with at most one record in `interval`.
    pub fn admit_every(&mut self, interval: Duration, now: Instant) -> Option<Admitted> {
        let too_early = self
            .written
            .is_some_and(|written| now.saturating_duration_since(written) < interval);
        if too_early {
            self.left_out = self.left_out.saturating_add(1);
            return None;
        }
        self.written = Some(now);
        Some(Admitted {
            left_out: std::mem::take(&mut self.left_out),
        })
    }
}

#[cfg(test)]
impl Sparse {
    /// Records left out since the last one.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

impl Admitted {
    /// The value of the attribute `left_out`: how many other records this one stands for. `None` without omissions, because
    /// the record then has no such attribute.
    pub fn left_out(self) -> Option<u64> {
        (self.left_out > 0).then_some(self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `events`: milliseconds after the start, and what is admitted then.
    fn check(events: &[(u64, Option<Option<u64>>)]) {
        let start = Instant::now();
        let mut sparse = Sparse::default();
        for (line, (millis, expected)) in events.iter().enumerate() {
            let admitted = sparse.admit(start + Duration::from_millis(*millis));
            assert_eq!(admitted.map(Admitted::left_out), *expected, "line {line}");
        }
    }

    #[test]
    fn the_first_is_written_and_those_that_follow_at_once_are_not() {
        check(&[(0, Some(None)), (0, None), (1, None), (9_999, None)]);
    }

    #[test]
    fn after_the_interval_the_next_one_tells_how_many_were_left_out() {
        check(&[
            (0, Some(None)),
            (5_000, None),
            (9_000, None),
            (10_000, Some(Some(2))),
            (10_001, None),
            (20_000, Some(Some(1))),
        ]);
    }

    #[test]
    fn one_record_per_interval_says_how_many_it_stands_for() {
        let interval = Duration::from_secs(60);
        let mut sparse = Sparse::default();
        let start = Instant::now();
        let table = [
            (0, Some(None)),
            (1, None),
            (59_999, None),
            (60_000, Some(Some(2))),
            (60_001, None),
            (240_000, Some(Some(1))),
            (300_000, Some(None)),
        ];
        for (millis, expected) in table {
            let admitted = sparse.admit_every(interval, start + Duration::from_millis(millis));
            assert_eq!(admitted.map(Admitted::left_out), expected, "{millis}");
        }
    }

    #[test]
    fn what_is_rare_is_always_written() {
        check(&[(0, Some(None)), (10_000, Some(None)), (60_000, Some(None))]);
    }

    #[test]
    fn a_clock_that_seems_to_go_back_does_no_harm() {
        let now = Instant::now() + Duration::from_secs(1);
        let mut sparse = Sparse::default();
        assert!(sparse.admit(now).is_some());
        assert!(sparse.admit(now - Duration::from_secs(1)).is_none());
    }
}
