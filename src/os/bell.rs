//! Wakes a thread from another one: an eventfd, which the thread's reactor watches.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Wake;

/// An eventfd that is only written. Who watches it for edges gets one at each write, so nobody has to read it: its counter
/// reaches its limit after 2⁶⁴ writes.
pub struct Bell {
    event: OwnedFd,
}

impl Bell {
    /// # Errors
    /// The error of eventfd(2).
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made and has no other owner.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { event })
    }

    fn ring(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes of a live value. A write to our own eventfd does not fail while its counter has room.
        unsafe {
            libc::write(
                self.event.as_raw_fd(),
                std::ptr::from_ref(&one).cast(),
                size_of_val(&one),
            )
        };
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
