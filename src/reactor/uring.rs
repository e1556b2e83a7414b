//! The reactor on io_uring: one multishot poll per idle socket (256 bytes of kernel memory; an armed receive needs 864).
//!
//! The ring belongs to one thread (`SINGLE_ISSUER`), which completions do not interrupt (`COOP_TASKRUN`). `DEFER_TASKRUN` is
//! not used: with it the kernel does not wake a thread that polls the ring's descriptor, so the shard would miss its events.
//! Kernels before 6.0 refuse these flags; the ring is then made without them.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::sender::{Outgoing, Sender};
use super::{GENERATION_MASK, HARVEST_EVENTS_MAX, ReactorCounts, Readiness, Token};
use crate::os::bell::Bell;

/// Requests that can wait in the queue; a full queue is handed to the kernel at once.
const SUBMISSION_ENTRIES: u32 = 256;
/// Completions that fit into the ring. Further ones go to a list of the kernel (`cq_overflows_total` counts that).
const COMPLETION_ENTRIES: u32 = 4096;

const READ_EVENTS: u32 = (libc::POLLIN | libc::POLLRDHUP) as u32;
const WRITE_EVENTS: u32 = libc::POLLOUT as u32;

/// What a completion belongs to, in the two top bits of the user data.
const KIND_SHIFT: u32 = 62;
const KIND_READ: u64 = 0;
const KIND_WRITE: u64 = 1;
const KIND_CANCEL: u64 = 2;
const KIND_BELL: u64 = 3;

/// One ring, its sender, and its results that are not readiness.
pub struct UringReactor {
    ring: IoUring,
    /// `None`: the kernel refused memory for one more ring, or the ring has broken.
    sender: Option<Sender>,
    ended: Vec<Token>,
    counts: ReactorCounts,
    /// Watched as long as the ring exists.
    bell: Option<Arc<Bell>>,
}

/// Makes a ring of the size that a shard uses, and sends one request through the kernel.
///
/// # Errors
/// The kernel's refusal: EPERM (seccomp, sysctl), ENOSYS (podman, emulation), ENOMEM (memlock).
pub fn probe() -> io::Result<()> {
    let mut reactor = UringReactor::without_sender()?;
    // SAFETY: a no-op refers to no memory.
    unsafe {
        reactor.push(
            opcode::Nop::new()
                .build()
                .user_data(KIND_CANCEL << KIND_SHIFT),
        )
    }?;
    reactor.ring.submit_and_wait(1)?;
    match reactor.ring.completion().next() {
        Some(entry) if entry.result() >= 0 => Ok(()),
        Some(entry) => Err(io::Error::from_raw_os_error(-entry.result())),
        None => Err(io::Error::other("a no-op did not complete")),
    }
}

impl UringReactor {
    /// # Errors
    /// The kernel's refusal.
    pub fn new() -> io::Result<Self> {
        let mut reactor = Self::without_sender()?;
        reactor.sender = Sender::new().ok();
        Ok(reactor)
    }

    /// A reactor that cannot send.
    fn without_sender() -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_cqsize(COMPLETION_ENTRIES)
            .setup_single_issuer()
            .setup_coop_taskrun()
            .build(SUBMISSION_ENTRIES)
            .or_else(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => IoUring::builder()
                    .setup_cqsize(COMPLETION_ENTRIES)
                    .build(SUBMISSION_ENTRIES),
                _ => Err(error),
            })?;
        Ok(Self {
            ring,
            sender: None,
            ended: Vec::new(),
            counts: ReactorCounts::default(),
            bell: None,
        })
    }

    pub(super) fn add(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), READ_EVENTS)
            .multi(true)
            .build()
            .user_data(user_data(KIND_READ, token));
        // SAFETY: a poll request refers to no memory of ours; the kernel takes its own reference on the file.
        unsafe { self.push(entry) }
    }

    pub(super) fn watch_bell(&mut self, bell: Arc<Bell>) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(bell.as_fd().as_raw_fd()), READ_EVENTS)
            .multi(true)
            .build()
            .user_data(KIND_BELL << KIND_SHIFT);
        // SAFETY: as in `add`.
        unsafe { self.push(entry) }?;
        self.bell = Some(bell);
        self.submit()
    }

    pub(super) fn watch_write(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        let entry = opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), WRITE_EVENTS)
            .build()
            .user_data(user_data(KIND_WRITE, token));
        // SAFETY: as in `add`.
        unsafe { self.push(entry) }
    }

    /// The poll keeps the file open, so the far end sees a close only after the kernel has got the removal: flush soon. The
    /// queue is in order, so a removal never comes before its poll.
    pub(super) fn remove(&mut self, token: Token, write_watched: bool) {
        let kinds: &[u64] = if write_watched {
            &[KIND_READ, KIND_WRITE]
        } else {
            &[KIND_READ]
        };
        for &kind in kinds {
            let entry = opcode::PollRemove::new(user_data(kind, token))
                .build()
                .user_data(KIND_CANCEL << KIND_SHIFT)
                .flags(squeue::Flags::SKIP_SUCCESS);
            // A refusal here means a broken ring, and the next harvest reports that.
            // SAFETY: a removal refers to no memory.
            let _ = unsafe { self.push(entry) };
        }
    }

    /// # Safety
    /// The entry must not refer to memory that can go away before its completion.
    unsafe fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: promised by the caller.
        unsafe { self.ring.submission().push(&entry) }
            .map_err(|_| io::Error::other("the submission queue is full"))
    }

    /// EBUSY (completions must be taken first) and EAGAIN are not failures: the entries stay in the queue.
    fn submit(&mut self) -> io::Result<()> {
        match self.ring.submit() {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY | libc::EAGAIN | libc::EINTR) => Ok(()),
                _ => Err(error),
            },
        }
    }

    pub(super) fn flush(&mut self) {
        if !self.ring.submission().is_empty() {
            // The next harvest makes the same call and reports a broken ring.
            let _ = self.submit();
        }
    }

    pub(super) fn harvest(&mut self, events: &mut Vec<Readiness>) -> io::Result<bool> {
        let overflowed = self.ring.submission().cq_overflow();
        self.counts.overflows += u64::from(overflowed);
        if overflowed || !self.ring.submission().is_empty() {
            self.enter()?;
        }
        let mut taken = 0;
        let mut bell_ended = false;
        let mut completion = self.ring.completion();
        for entry in completion.by_ref().take(HARVEST_EVENTS_MAX) {
            taken += 1;
            if entry.user_data() >> KIND_SHIFT == KIND_BELL {
                bell_ended |= !cqueue::more(entry.flags());
                continue;
            }
            if let Some(event) = readiness(&entry, &mut self.ended) {
                events.push(event);
            }
        }
        drop(completion);
        if bell_ended && let Some(bell) = self.bell.take() {
            self.watch_bell(bell)?;
        }
        Ok(taken == HARVEST_EVENTS_MAX)
    }

    /// Submits, and makes the kernel move overflowed completions into the ring.
    fn enter(&mut self) -> io::Result<()> {
        let to_submit = self.ring.submission().len() as u32;
        const GET_EVENTS: u32 = 1; // IORING_ENTER_GETEVENTS
        // SAFETY: no signal mask is passed; the entries in the queue were checked when pushed.
        let result = unsafe {
            self.ring
                .submitter()
                .enter::<libc::sigset_t>(to_submit, 0, GET_EVENTS, None)
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY | libc::EAGAIN | libc::EINTR) => Ok(()),
                _ => Err(error),
            },
        }
    }

    pub(super) fn sender(&self) -> Option<&Sender> {
        self.sender.as_ref()
    }

    /// False: nothing more can be sent in bulk, and `results` may be too short.
    pub(super) fn send_all(&mut self, messages: &[Outgoing<'_>], results: &mut Vec<i32>) -> bool {
        let Some(sender) = &mut self.sender else {
            results.clear();
            return false;
        };
        if sender.send_all(messages, results).is_err() {
            self.sender = None;
        }
        true
    }

    pub(super) fn take_ended(&mut self) -> Vec<Token> {
        self.counts.rearms += self.ended.len() as u64;
        mem::take(&mut self.ended)
    }

    pub(super) fn take_counts(&mut self) -> ReactorCounts {
        mem::take(&mut self.counts)
    }
}

impl AsFd for UringReactor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open as long as the ring exists, and the returned borrow keeps the ring alive.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

fn user_data(kind: u64, token: Token) -> u64 {
    kind << KIND_SHIFT | u64::from(token.generation & GENERATION_MASK) << 32 | u64::from(token.slot)
}

fn readiness(entry: &cqueue::Entry, ended: &mut Vec<Token>) -> Option<Readiness> {
    let data = entry.user_data();
    let token = Token {
        slot: data as u32,
        generation: (data >> 32) as u32 & GENERATION_MASK,
    };
    let kind = data >> KIND_SHIFT;
    if kind == KIND_CANCEL || entry.result() == -libc::ECANCELED {
        return None;
    }
    if kind == KIND_READ && !cqueue::more(entry.flags()) {
        ended.push(token);
    }
    // A failed poll counts as readable: the read then returns the socket's error.
    let bits = if entry.result() < 0 {
        libc::POLLERR
    } else {
        entry.result() as i16
    };
    let has = |flag: i16| bits & flag != 0;
    Some(Readiness {
        token,
        readable: kind == KIND_READ && has(libc::POLLIN),
        writable: kind == KIND_WRITE,
        closed: has(libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_trip_through_user_data() {
        for (slot, generation) in [(0, 0), (u32::MAX, GENERATION_MASK), (17, 42)] {
            let data = user_data(KIND_WRITE, Token { slot, generation });
            assert_eq!(data as u32, slot);
            assert_eq!((data >> 32) as u32 & GENERATION_MASK, generation);
            assert_eq!(data >> KIND_SHIFT, KIND_WRITE);
        }
    }

    #[test]
    fn the_probe_agrees_with_building_a_reactor() {
        assert_eq!(probe().is_ok(), UringReactor::new().is_ok());
    }
}
