//! A histogram with a logarithmic scale: 64 steps to every power of two, so a value read back is at most 1.6 % too high.
//!
//! Each thread fills its own; then they are merged. Percentiles are never averaged.

/// log2 of the number of steps between two powers of two.
const STEP_BITS: u32 = 6;
const STEPS: usize = 1 << STEP_BITS;
/// Rows of steps: one for the values below [`STEPS`], one for each higher power of two of a u64.
const ROWS: usize = 64 - STEP_BITS as usize + 1;

/// Counts of values, with bounded error and fixed size (30 kB).
#[derive(Clone)]
pub struct Histogram {
    counts: Box<[u64]>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; ROWS * STEPS].into(),
            count: 0,
            max: 0,
        }
    }
}

impl Histogram {
    pub fn record(&mut self, value: u64) {
        self.counts[step_of(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    /// The number of values above this one, to within a step.
    pub fn above(&self, value: u64) -> u64 {
        self.counts[step_of(value) + 1..].iter().sum()
    }

    /// The value that `percent` of all values do not exceed; 0 when there are no values.
    pub fn percentile(&self, percent: f64) -> u64 {
        let rank = (self.count as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut passed = 0;
        for (step, count) in self.counts.iter().enumerate() {
            passed += count;
            if passed >= rank {
                return highest_of(step).min(self.max);
            }
        }
        self.max
    }
}

fn step_of(value: u64) -> usize {
    if value < STEPS as u64 {
        return value as usize;
    }
    let power = 63 - value.leading_zeros();
    let row = (power - STEP_BITS + 1) as usize;
    let within = (value >> (power - STEP_BITS)) as usize - STEPS;
    row * STEPS + within
}

/// The highest value that falls into a step.
fn highest_of(step: usize) -> u64 {
    let (row, within) = (step / STEPS, (step % STEPS) as u64);
    if row == 0 {
        return within;
    }
    let shift = row as u32 - 1;
    ((STEPS as u64 + within) << shift) + ((1 << shift) - 1)
}
