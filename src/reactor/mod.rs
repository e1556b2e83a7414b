//! Readiness of established sessions: which sockets have something to read, and which have room to write.
//!
//! Two back ends with the same events: `uring` (multishot poll, one armed request per idle socket) and `epoll`
//! (edge-triggered). Both report a socket only when something new has happened, so the reader must read until the kernel
//! would block or a read was short. The shard owns the reactor; nothing else calls it.

mod epoll;
mod sender;
mod uring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

pub use epoll::EpollReactor;
pub use sender::Outgoing;
pub use uring::{UringReactor, probe};

use crate::os::bell::Bell;

/// Names one use of one slot of the session table; packed into the kernel's user data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    pub slot: u32,
    /// Changes each time the slot is used again. Only the low [`GENERATION_BITS`] bits are compared.
    pub generation: u32,
}

/// Bits of the generation that fit into the kernel's user data.
pub const GENERATION_BITS: u32 = 30;
/// Mask of those bits.
pub const GENERATION_MASK: u32 = (1 << GENERATION_BITS) - 1;

/// What the kernel reports about one socket. The generation may be stale, so the caller must check it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    pub token: Token,
    pub readable: bool,
    pub writable: bool,
    /// The far end has closed its side, or the socket is broken: reading reaches the end.
    pub closed: bool,
}

/// Events that one harvest takes from the kernel at most, so that one shard turn stays short.
pub const HARVEST_EVENTS_MAX: usize = 1024;

/// Counts of rare events; the shard adds them to its metrics.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ReactorCounts {
    /// Multishot polls that the kernel ended and that were armed again.
    pub rearms: u64,
    /// Times the completion queue had overflowed.
    pub overflows: u64,
}

/// One shard's readiness source.
pub enum Reactor {
    Uring(Box<UringReactor>),
    Epoll(EpollReactor),
}

impl Reactor {
    /// A reactor on io_uring.
    ///
    /// # Errors
    /// The kernel's refusal (EPERM, ENOSYS, ENOMEM, …).
    pub fn uring() -> io::Result<Self> {
        UringReactor::new().map(|reactor| Self::Uring(Box::new(reactor)))
    }

    /// A reactor on epoll.
    ///
    /// # Errors
    /// The error of epoll_create1(2).
    pub fn epoll() -> io::Result<Self> {
        EpollReactor::new().map(Self::Epoll)
    }

    /// A descriptor that is readable while events wait. The caller owns it; it is independent of the reactor's own
    /// descriptor.
    ///
    /// # Errors
    /// The error of dup(2).
    pub fn wake_fd(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Uring(reactor) => reactor.as_fd().try_clone_to_owned(),
            Self::Epoll(reactor) => reactor.as_fd().try_clone_to_owned(),
        }
    }

    /// Starts to watch `socket` for input and hang-up. The socket must stay open until [`Self::remove`].
    ///
    /// # Errors
    /// The kernel's refusal; then the socket is not watched.
    pub fn add(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        match self {
            Self::Uring(reactor) => reactor.add(socket, token),
            Self::Epoll(reactor) => reactor.add(socket, token),
        }
    }

    /// Watches what other threads wake this one with: an edge makes [`Self::wake_fd`] readable, and is no event.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn watch_bell(&mut self, bell: Arc<Bell>) -> io::Result<()> {
        match self {
            Self::Uring(reactor) => reactor.watch_bell(bell),
            Self::Epoll(reactor) => reactor.watch_bell(bell),
        }
    }

    /// Asks for one `writable` event.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn watch_write(&mut self, socket: BorrowedFd<'_>, token: Token) -> io::Result<()> {
        match self {
            Self::Uring(reactor) => reactor.watch_write(socket, token),
            Self::Epoll(reactor) => reactor.watch_write(socket, token),
        }
    }

    /// Stops watching. Call it before the socket is closed, because an armed poll keeps the socket alive in the kernel.
    /// `write_watched`: the event of a [`Self::watch_write`] has not come yet.
    pub fn remove(&mut self, socket: BorrowedFd<'_>, token: Token, write_watched: bool) {
        match self {
            Self::Uring(reactor) => reactor.remove(token, write_watched),
            Self::Epoll(reactor) => reactor.remove(socket),
        }
    }

    /// True when [`Self::send_all`] works: it sends many messages more cheaply than send(2).
    pub fn sends_in_bulk(&self) -> bool {
        matches!(self, Self::Uring(reactor) if reactor.sender().is_some())
    }

    /// Sends of each message what its socket takes now. `results` gets, in the same order, the number of bytes taken or the
    /// negative errno, as send(2) with `MSG_DONTWAIT` and `MSG_NOSIGNAL` would return. Where [`Self::sends_in_bulk`] is
    /// false nothing is sent and every result is `-ECANCELED`.
    pub fn send_all(&mut self, messages: &[Outgoing<'_>], results: &mut Vec<i32>) {
        let sent = match self {
            Self::Uring(reactor) => reactor.send_all(messages, results),
            Self::Epoll(_) => false,
        };
        if !sent {
            results.resize(messages.len(), -libc::ECANCELED);
        }
    }

    /// Hands the requests since the last call to the kernel.
    pub fn flush(&mut self) {
        if let Self::Uring(reactor) = self {
            reactor.flush();
        }
    }

    /// Takes the events that are there, at most [`HARVEST_EVENTS_MAX`], without waiting. True: there may be more.
    ///
    /// # Errors
    /// A broken ring or epoll instance. This should not happen in a healthy process.
    pub fn harvest(&mut self, events: &mut Vec<Readiness>) -> io::Result<bool> {
        match self {
            Self::Uring(reactor) => reactor.harvest(events),
            Self::Epoll(reactor) => reactor.harvest(events),
        }
    }

    /// Returns what was counted since the last call.
    pub fn take_counts(&mut self) -> ReactorCounts {
        match self {
            Self::Uring(reactor) => reactor.take_counts(),
            Self::Epoll(_) => ReactorCounts::default(),
        }
    }

    /// The sockets whose multishot poll the kernel has ended: the caller must arm those again whose session still exists.
    pub fn take_ended(&mut self) -> Vec<Token> {
        match self {
            Self::Uring(reactor) => reactor.take_ended(),
            Self::Epoll(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::task::Wake;
    use std::time::{Duration, Instant};

    use super::*;

    fn reactors() -> Vec<(&'static str, Reactor)> {
        vec![
            (
                "uring",
                Reactor::uring().expect("io_uring on the test machine"),
            ),
            ("epoll", Reactor::epoll().expect("epoll")),
        ]
    }

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("socketpair");
        ours.set_nonblocking(true).expect("nonblocking");
        (ours, theirs)
    }

    /// Harvests until `count` events have come or a second has passed.
    fn harvest(reactor: &mut Reactor, count: usize) -> Vec<Readiness> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut all = Vec::new();
        let mut events = Vec::new();
        while all.len() < count && Instant::now() < deadline {
            reactor.flush();
            reactor.harvest(&mut events).expect("harvest");
            all.append(&mut events);
        }
        all
    }

    const TOKEN: Token = Token {
        slot: 7,
        generation: 3,
    };

    #[test]
    fn input_is_reported_each_time_something_new_arrives() {
        for (name, mut reactor) in reactors() {
            let (mut ours, mut theirs) = pair();
            reactor.add(ours.as_fd(), TOKEN).expect("add");
            for round in 0..3 {
                theirs.write_all(b"x").expect("write");
                let events = harvest(&mut reactor, 1);
                assert_eq!(events.len(), 1, "{name} round {round}");
                assert!(events[0].readable && !events[0].closed, "{name}");
                assert_eq!(events[0].token, TOKEN, "{name}");
                let mut byte = [0];
                ours.read_exact(&mut byte).expect("read");
            }
        }
    }

    #[test]
    fn input_that_was_there_before_is_reported() {
        for (name, mut reactor) in reactors() {
            let (ours, mut theirs) = pair();
            theirs.write_all(b"early").expect("write");
            reactor.add(ours.as_fd(), TOKEN).expect("add");
            assert_eq!(harvest(&mut reactor, 1).len(), 1, "{name}");
        }
    }

    #[test]
    fn the_end_of_the_far_side_is_reported_as_closed() {
        for (name, mut reactor) in reactors() {
            let (ours, theirs) = pair();
            reactor.add(ours.as_fd(), TOKEN).expect("add");
            drop(theirs);
            let events = harvest(&mut reactor, 1);
            assert!(
                events.iter().any(|event| event.closed),
                "{name}: {events:?}"
            );
        }
    }

    #[test]
    fn room_to_write_is_reported_once_when_asked_for() {
        for (name, mut reactor) in reactors() {
            let (mut ours, mut theirs) = pair();
            reactor.add(ours.as_fd(), TOKEN).expect("add");
            while ours.write(&[0; 65536]).is_ok() {}
            reactor.watch_write(ours.as_fd(), TOKEN).expect("watch");
            assert!(
                !harvest_now(&mut reactor).iter().any(|event| event.writable),
                "{name}: the socket is full"
            );
            theirs.set_nonblocking(true).expect("nonblocking");
            let mut sink = vec![0; 1 << 20];
            while theirs.read(&mut sink).is_ok() {}
            let events = harvest(&mut reactor, 1);
            assert!(
                events.iter().any(|event| event.writable),
                "{name}: {events:?}"
            );
        }
    }

    fn harvest_now(reactor: &mut Reactor) -> Vec<Readiness> {
        let mut events = Vec::new();
        reactor.flush();
        reactor.harvest(&mut events).expect("harvest");
        events
    }

    #[test]
    fn nothing_is_reported_after_remove_and_the_far_end_sees_the_close() {
        for (name, mut reactor) in reactors() {
            let (ours, mut theirs) = pair();
            reactor.add(ours.as_fd(), TOKEN).expect("add");
            reactor.flush();
            reactor.remove(ours.as_fd(), TOKEN, false);
            drop(ours);
            let late = harvest_now(&mut reactor);
            assert!(late.is_empty(), "{name}: {late:?}");
            theirs
                .set_read_timeout(Some(Duration::from_secs(5)))
                .expect("timeout");
            let mut byte = [0];
            let deadline = Instant::now() + Duration::from_secs(1);
            theirs.set_nonblocking(true).expect("nonblocking");
            loop {
                harvest_now(&mut reactor);
                match theirs.read(&mut byte) {
                    Ok(0) => break,
                    other => assert!(Instant::now() < deadline, "{name}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn the_wake_descriptor_is_readable_while_events_wait() {
        for (name, mut reactor) in reactors() {
            let (ours, mut theirs) = pair();
            reactor.add(ours.as_fd(), TOKEN).expect("add");
            reactor.flush();
            let wake = reactor.wake_fd().expect("dup");
            assert!(!poll_readable(&wake, 0), "{name}: nothing yet");
            theirs.write_all(b"x").expect("write");
            assert!(poll_readable(&wake, 1000), "{name}: an event waits");
        }
    }

    #[test]
    fn an_event_wakes_a_thread_that_sleeps_on_the_wake_descriptor() {
        for (name, mut reactor) in reactors() {
            let (ours, mut theirs) = pair();
            reactor.add(ours.as_fd(), TOKEN).expect("add");
            reactor.flush();
            let wake = reactor.wake_fd().expect("dup");
            let writer = std::thread::spawn(move || {
                // Long enough for the other thread to fall asleep; the test also passes if it is awake.
                std::thread::sleep(Duration::from_millis(50));
                theirs.write_all(b"x").expect("write");
                theirs
            });
            assert!(poll_readable(&wake, 5000), "{name}: slept through an event");
            assert_eq!(harvest(&mut reactor, 1).len(), 1, "{name}");
            writer.join().expect("writer");
        }
    }

    #[test]
    fn the_bell_wakes_each_time_it_is_rung_and_is_no_event() {
        for (name, mut reactor) in reactors() {
            let bell = Arc::new(Bell::new().expect("an eventfd"));
            reactor.watch_bell(Arc::clone(&bell)).expect("watched");
            let wake = reactor.wake_fd().expect("dup");
            assert!(!poll_readable(&wake, 0), "{name}: nobody has rung");
            for round in 0..3 {
                Arc::clone(&bell).wake();
                assert!(poll_readable(&wake, 1000), "{name} round {round}");
                assert!(harvest_now(&mut reactor).is_empty(), "{name}");
                assert!(!poll_readable(&wake, 0), "{name}: nothing is left over");
            }
        }
    }

    fn poll_readable(fd: &OwnedFd, timeout_ms: i32) -> bool {
        use std::os::fd::AsRawFd;
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd that outlives the call.
        unsafe { libc::poll(&mut poll, 1, timeout_ms) > 0 }
    }

    #[test]
    fn more_sockets_than_the_submission_queue_holds_can_be_added_and_all_report() {
        for (name, mut reactor) in reactors() {
            let mut pairs: Vec<_> = (0..1500).map(|_| pair()).collect();
            for (slot, (ours, _)) in pairs.iter().enumerate() {
                let token = Token {
                    slot: slot as u32,
                    generation: 1,
                };
                reactor.add(ours.as_fd(), token).expect("add");
            }
            for (_, theirs) in &mut pairs {
                theirs.write_all(b"x").expect("write");
            }
            let mut slots: Vec<u32> = harvest(&mut reactor, 1500)
                .iter()
                .map(|e| e.token.slot)
                .collect();
            slots.sort_unstable();
            assert_eq!(slots, (0..1500).collect::<Vec<u32>>(), "{name}");
        }
    }
}
