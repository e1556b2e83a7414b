//! Where the bytes that the broker holds are charged. The shard has the budget; `broker` knows only this.

/// A number of bytes that may be held.
pub trait Budget {
    /// Charges `bytes`, to be released by [`Self::release`]. False: they do not fit, and nothing is charged.
    #[must_use]
    fn try_charge(&self, bytes: usize) -> bool;

    /// Gives charged bytes back.
    fn release(&self, bytes: usize);
}

/// A budget of a fixed size.
#[cfg(test)]
pub struct FixedBudget {
    bytes_max: std::cell::Cell<usize>,
    used: std::cell::Cell<usize>,
}

#[cfg(test)]
impl FixedBudget {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max: bytes_max.into(),
            used: 0.into(),
        }
    }

    pub fn set_max(&self, bytes_max: usize) {
        self.bytes_max.set(bytes_max);
    }

    pub fn used(&self) -> usize {
        self.used.get()
    }
}

#[cfg(test)]
impl Budget for FixedBudget {
    fn try_charge(&self, bytes: usize) -> bool {
        let used = self.used.get().saturating_add(bytes);
        let fits = used <= self.bytes_max.get();
        if fits {
            self.used.set(used);
        }
        fits
    }

    fn release(&self, bytes: usize) {
        let used = self.used.get().checked_sub(bytes);
        self.used.set(used.expect("only what was charged"));
    }
}
