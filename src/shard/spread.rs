//! Spreads many actions over a time: evenly, with jitter, and never past the end.
//!
//! Pure. It stores nothing per action: after each one, the next pause is the remaining time divided by the actions left.

use std::time::Duration;

/// Shortest and longest pause, as multiples of the even one. Their mean is 1, so the actions fill the time on average.
const JITTER: (f64, f64) = (0.5, 1.5);

/// One such spread. Times count from an origin that the caller chooses.
#[derive(Debug)]
pub struct Spread {
    next: Duration,
    end: Duration,
    /// State of a xorshift generator, never 0: the jitter need not be secret.
    random: u64,
}

impl Spread {
    /// Spreads `count` over the time from `now` to `end`. Different seeds give different pauses.
    pub fn new(now: Duration, end: Duration, count: usize, seed: u64) -> Self {
        let mut spread = Self {
            next: now,
            end,
            random: seed | 1,
        };
        // The first action waits, too: an operator may stop many servers at the same moment.
        spread.advance(count, (0.0, 1.0));
        spread
    }

    /// Whether one of the `left` actions is due at `now`; if so, chooses the time of the next one. At the end all are due.
    pub fn take(&mut self, now: Duration, left: usize) -> bool {
        let due = now >= self.next || now >= self.end;
        if due {
            self.advance(left, JITTER);
        }
        due
    }

    fn advance(&mut self, left: usize, (shortest, longest): (f64, f64)) {
        let even = self.end.saturating_sub(self.next).as_secs_f64() / left.max(1) as f64;
        let pause = even * (shortest + (longest - shortest) * self.random_part());
        self.next += Duration::from_secs_f64(pause);
    }

    /// At least 0, less than 1.
    fn random_part(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_millis(50);

    /// The number of actions due at each tick, from `from` to `from + over`.
    fn walk(from: Duration, over: Duration, count: usize, seed: u64) -> Vec<usize> {
        let mut spread = Spread::new(from, from + over, count, seed);
        let (mut now, mut left, mut due) = (from, count, Vec::new());
        while now <= from + over {
            let before = left;
            while left > 0 && spread.take(now, left) {
                left -= 1;
            }
            due.push(before - left);
            now += TICK;
        }
        assert_eq!(left, 0, "nobody waits past the end");
        due
    }

    #[test]
    fn many_are_spread_evenly() {
        let due = walk(Duration::from_secs(1000), Duration::from_secs(5), 10_000, 7);
        assert_eq!(due.len(), 101);
        // 100 per tick. The first tick may have fewer and the last one takes the rest.
        let inner = &due[1..100];
        assert!(
            inner.iter().all(|&due| (80..=120).contains(&due)),
            "{due:?}"
        );
        assert!(due[0] <= 20 && due[100] <= 120, "{due:?}");
    }

    #[test]
    fn few_are_apart_and_jitter_moves_them() {
        let at = |seed: u64| {
            let due = walk(Duration::ZERO, Duration::from_secs(5), 5, seed);
            assert!(due.iter().all(|&due| due <= 1), "{due:?}");
            let ticks = due.iter().enumerate().filter(|(_, due)| **due > 0);
            ticks.map(|(tick, _)| tick).collect::<Vec<_>>()
        };
        assert_ne!(at(1 << 40), at(2 << 40));
    }

    #[test]
    fn who_leaves_by_himself_does_not_hurry_the_others() {
        let end = Duration::from_secs(10);
        let mut spread = Spread::new(Duration::ZERO, end, 1000, 3);
        let (mut now, mut left) = (Duration::ZERO, 1000);
        let mut told_late = 0;
        while now <= end {
            if now == Duration::from_secs(5) {
                left /= 2;
            }
            while left > 0 && spread.take(now, left) {
                left -= 1;
                told_late += usize::from(now > Duration::from_secs(9));
            }
            now += TICK;
        }
        // About 500 come in the first half and 250 in the second: 50 in the last second.
        assert!((35..=65).contains(&told_late), "{told_late}");
    }

    proptest! {
        #[test]
        fn the_end_is_kept(count in 0..2000usize, ticks in 0..400u32, seed: u64) {
            let due = walk(Duration::from_secs(77), TICK * ticks, count, seed);
            prop_assert_eq!(due.iter().sum::<usize>(), count);
        }
    }
}
