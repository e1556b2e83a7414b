//! epoll with a timeout in nanoseconds; the standard wrappers round it up to milliseconds.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;
use std::{io, ptr};

pub const EVENTS_MAX: usize = 256;
/// An empty event for the buffer.
pub const EVENT: libc::epoll_event = libc::epoll_event { events: 0, u64: 0 };

/// epoll with a timeout in nanoseconds, level-triggered, for reading.
pub struct Epoll(OwnedFd);

impl Epoll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call has no preconditions, and a descriptor it returns is ours alone.
        unsafe {
            let fd = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            if fd < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(Self(OwnedFd::from_raw_fd(fd)))
            }
        }
    }

    pub fn watch(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: token,
        };
        // SAFETY: the kernel reads one event from a valid place, and keeps nothing of it.
        match unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event)
        } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The events that came within `timeout` (`None`: no limit). An interrupted call returns no events.
    pub fn wait<'e>(
        &self,
        events: &'e mut [libc::epoll_event],
        timeout: Option<Duration>,
    ) -> &'e [libc::epoll_event] {
        let spec = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let spec = spec.as_ref().map_or(ptr::null(), ptr::from_ref);
        let (fd, room) = (self.0.as_raw_fd(), events.len());
        let no_signals = ptr::null::<libc::sigset_t>();
        // SAFETY: `events` has room for as many events as are asked for, `spec` is null or lives beyond the call.
        let ready = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                fd,
                events.as_mut_ptr(),
                room,
                spec,
                no_signals,
                size_of::<u64>(),
            )
        };
        &events[..usize::try_from(ready).unwrap_or(0)]
    }
}
