//! Waiting for something observable, always with a deadline.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

/// How long anything that must happen may take. Generous, because the suite shares two cores with itself.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two looks at something that cannot wake us.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Looks until `probe` gives a value.
///
/// # Panics
/// After [`PATIENCE`], naming `what`.
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for {what}"
        );
        thread::sleep(LOOK_INTERVAL);
    }
}

/// The same call until nothing interrupts it: the kernel does not restart a read with a timeout, and a ring that another
/// test tears down interrupts its thread later.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
