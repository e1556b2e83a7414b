//! Random bytes from the kernel. Only this file asks for them; pure code gets them as an argument.
//!
//! The configuration asks first in each process, and ends the process with an error when there are none.

pub use getrandom::Error;

/// Fills `bytes`. One system call.
///
/// # Errors
/// getrandom(2) is missing or not allowed.
pub fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    getrandom::fill(bytes)
}

/// Returns `COUNT` random bytes. One system call.
///
/// # Panics
/// If [`fill`] fails, although it worked when the process started.
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
