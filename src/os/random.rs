//! Random bytes from the kernel. Nothing else asks for any, so that pure code stays pure: it gets them as an argument.
//!
//! The configuration draws the first of a process and ends it with an error where there are none.

pub use getrandom::Error;

/// Fills `bytes`. One system call.
///
/// # Errors
/// getrandom(2) is not there or not allowed.
pub fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes)
}

/// So many random bytes. One system call.
///
/// # Panics
/// Where [`fill`] fails, which it did not when the process started.
pub fn bytes<const COUNT: usize>() -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    fill(&mut bytes).expect("the kernel gave random bytes at the start");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_draws_are_equal() {
        assert_ne!(bytes::<16>(), bytes::<16>());
        let mut filled = [0; 16];
        fill(&mut filled).expect("random bytes");
        assert_ne!(filled, [0; 16]);
    }
}
