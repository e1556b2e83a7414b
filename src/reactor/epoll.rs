//! The reactor on epoll, edge-triggered: used where io_uring is refused.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use super::{GENERATION_MASK, HARVEST_EVENTS_MAX, Readiness, Token};
use crate::os::bell::Bell;

const READ_EVENTS: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLET) as u32;

/// What the bell's events carry; no token has these bits.
const BELL: u64 = u64::MAX;

/// One epoll instance and the buffer its events are read into.
pub struct EpollReactor {
    epoll: OwnedFd,
    buffer: Vec<libc::epoll_event>,
    /// Watched as long as the instance exists.
    bell: Option<Arc<Bell>>,
}

impl EpollReactor {
    /// # Errors
    /// The error of epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed; a non-negative result is a descriptor that nobody else owns.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: `fd` was just made and has no other owner.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self {
            epoll,
            buffer: Vec::with_capacity(HARVEST_EVENTS_MAX),
            bell: None,
        })
    }

    pub(super) fn add(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket, READ_EVENTS, data(token))
    }

    pub(super) fn watch_bell(&mut self, bell: Arc<Bell>) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, bell.as_fd(), READ_EVENTS, BELL)?;
        self.bell = Some(bell);
        Ok(())
    }

    /// Edge-triggered, so one event costs no extra call: it comes when the socket becomes writable, or at once if it is
    /// writable.
    pub(super) fn watch_write(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let events = READ_EVENTS | libc::EPOLLOUT as u32;
        self.control(libc::EPOLL_CTL_MOD, socket, events, data(token))
    }

    pub(super) fn remove(&mut self, socket: BorrowedFd<'_>) {
        // SAFETY: EPOLL_CTL_DEL ignores the event pointer. A failure means the socket was not watched: nothing to undo.
        unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                libc::EPOLL_CTL_DEL,
                socket.as_raw_fd(),
                ptr::null_mut(),
            )
        };
    }

    fn control(
        &self,
        operation: i32,
        socket: BorrowedFd<'_>,
        events: u32,
        data: u64,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: both descriptors are open for the length of the call and `event` is a live value the kernel copies.
        check(unsafe {
            libc::epoll_ctl(
                self.epoll.as_raw_fd(),
                operation,
                socket.as_raw_fd(),
                &mut event,
            )
        })?;
        Ok(())
    }

    pub(super) fn harvest(&mut self, events: &mut Vec<Readiness>) -> io::Result<bool> {
        self.buffer.clear();
        // SAFETY: the buffer has room for HARVEST_EVENTS_MAX events; timeout 0 returns at once.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                self.buffer.as_mut_ptr(),
                HARVEST_EVENTS_MAX as i32,
                0,
            )
        };
        let count = match check(count) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        };
        // SAFETY: the kernel has written `count` events, which is at most the capacity.
        unsafe { self.buffer.set_len(count) };
        events.extend(
            self.buffer
                .iter()
                .filter(|event| event.u64 != BELL)
                .map(|event| readiness(event.events, event.u64)),
        );
        Ok(count == HARVEST_EVENTS_MAX)
    }
}

impl AsFd for EpollReactor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn data(token: Token) -> u64 {
    u64::from(token.slot) | u64::from(token.generation & GENERATION_MASK) << 32
}

fn readiness(bits: u32, data: u64) -> Readiness {
    let has = |flag: i32| bits & flag as u32 != 0;
    Readiness {
        token: Token {
            slot: data as u32,
            generation: (data >> 32) as u32,
        },
        readable: has(libc::EPOLLIN),
        writable: has(libc::EPOLLOUT),
        closed: has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR),
    }
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
