//! Epochs for streams that begin.

use crate::protocol::position::Epoch;

/// Any odd number, so that its multiples modulo a power of two are all different. With many ones in it, the texts of epochs
/// that follow each other have little in common.
const STRIDE: u64 = 0x9E37_79B9_7F4A_7C15;

/// Makes the epochs of one shard's streams. No two of a process are equal (before 2^48 have been made), so a position of an
/// earlier life of a stream never matches a later one.
#[derive(Debug)]
pub struct Epochs {
    /// Random, the same for all shards of a process: epochs of an earlier process are unlikely to come again.
    seed: u64,
    next: u64,
    shards: u64,
}

impl Epochs {
    /// The epochs of `shard`, which is one of `shards` that all have this `seed`.
    pub fn new(seed: u64, shard: usize, shards: usize) -> Self {
        Self {
            seed,
            next: shard as u64,
            shards: shards as u64,
        }
    }

    pub(super) fn take(&mut self) -> Epoch {
        let bits = self.seed.wrapping_add(self.next.wrapping_mul(STRIDE));
        self.next += self.shards;
        Epoch::from_bits(bits)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_epochs_of_a_process_are_equal() {
        for shards in [1, 2, 3, 8] {
            let epochs: HashSet<Epoch> = (0..shards)
                .flat_map(|shard| {
                    let mut epochs = Epochs::new(u64::MAX - 7, shard, shards);
                    std::iter::from_fn(move || Some(epochs.take())).take(20_000)
                })
                .collect();
            assert_eq!(epochs.len(), shards * 20_000);
        }
    }
}
