//! Limits of this process: open files, which is the limit on connections, and locked memory.

use std::io;

/// Descriptors that the server needs at least in addition to client sockets: listeners, rings, RPC connections, log, DNS.
pub const DESCRIPTORS_RESERVED: u64 = 128;
/// Of each shard: three rings (on epoll two instances), the wake-ups of its thread, and the pipe of its yields.
/// `tests/integration/shortages.rs` counts them.
const DESCRIPTORS_PER_SHARD: u64 = 9;
/// Of each shard for each listener: the socket, and the same for the driver.
const DESCRIPTORS_PER_LISTENER: u64 = 2;
/// For the process: standard streams, signals, lookups, StatsD, files that are read again.
const DESCRIPTORS_OF_PROCESS: u64 = 16;
/// If the limit is very low, at most one part in this number is reserved.
const RESERVED_SHARE: u64 = 2;

/// How the limit on open files is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFiles {
    /// The limit; 0 = not known.
    pub max: u64,
    /// Descriptors that clients do not get.
    pub reserved: u64,
}

impl OpenFiles {
    /// `calls`: calls to the app at a time. `idle`: connections to the app that are idle between calls.
    pub fn share_out(
        max: u64,
        shards: usize,
        listeners: usize,
        calls: usize,
        idle: usize,
    ) -> OpenFiles {
        let wanted = DESCRIPTORS_OF_PROCESS
            .saturating_add(descriptors_of_shards(shards as u64, listeners as u64))
            .saturating_add(calls as u64)
            .saturating_add(idle as u64);
        let reserved = wanted.max(DESCRIPTORS_RESERVED).min(max / RESERVED_SHARE);
        OpenFiles { max, reserved }
    }

    /// Descriptors for clients.
    pub fn clients(&self) -> u64 {
        self.max.saturating_sub(self.reserved)
    }

    /// Descriptors for clients on listeners that serve no WebSockets. There are a few more of them, so that the app's
    /// broadcasts and Prometheus still get through when WebSocket clients have used all of theirs.
    pub fn requests(&self) -> u64 {
        self.clients() + self.reserved / 8
    }
}

/// What the shards hold without clients and without connections to the app.
pub fn descriptors_of_shards(shards: u64, listeners: u64) -> u64 {
    let of_listeners = DESCRIPTORS_PER_LISTENER.saturating_mul(listeners);
    shards.saturating_mul(DESCRIPTORS_PER_SHARD.saturating_add(of_listeners))
}

/// For messages about a limit on open files that is too low.
pub const HOW_TO_RAISE: &str = "raise it (LimitNOFILE= in systemd, --ulimit nofile= or ulimits: in Docker, ulimit -n in a shell, \
     /etc/security/limits.conf for logins)";

/// A limit of this process; `u64::MAX` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub soft: u64,
    pub hard: u64,
}

/// The limit on open files.
///
/// # Errors
/// The error of getrlimit(2).
pub fn open_files() -> io::Result<Limit> {
    // SAFETY: the pointer is to a live rlimit that the call fills.
    read(|limit| unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, limit) })
}

/// The limit on locked memory in bytes, against which recent kernels count rings.
///
/// # Errors
/// The error of getrlimit(2).
pub fn locked_memory() -> io::Result<Limit> {
    // SAFETY: the pointer is to a live rlimit that the call fills.
    read(|limit| unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, limit) })
}

/// The soft limits on private memory and on address space, in bytes. A limit that cannot be read counts as no limit.
pub fn memory() -> [u64; 2] {
    // SAFETY: the pointer is to a live rlimit that the call fills.
    let data = read(|limit| unsafe { libc::getrlimit(libc::RLIMIT_DATA, limit) });
    // SAFETY: as above.
    let address_space = read(|limit| unsafe { libc::getrlimit(libc::RLIMIT_AS, limit) });
    [data, address_space].map(|limit| limit.map_or(u64::MAX, |limit| limit.soft))
}

/// Raises the soft limit on open files to the hard limit and returns the limit that is then in force.
///
/// # Errors
/// The error of getrlimit(2). A refused raise is not an error: then the old soft limit is returned.
pub fn raise_open_files() -> io::Result<u64> {
    let limit = open_files()?;
    let raised = libc::rlimit {
        rlim_cur: limit.hard,
        rlim_max: limit.hard,
    };
    // SAFETY: the pointer is to a live rlimit that the call only reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } != 0 {
        return Ok(limit.soft);
    }
    Ok(limit.hard)
}

/// Takes a closure, because the type of a resource's number differs between C libraries.
fn read(fill: impl FnOnce(&mut libc::rlimit) -> libc::c_int) -> io::Result<Limit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    match fill(&mut limit) {
        0 => Ok(Limit {
            soft: limit.rlim_cur,
            hard: limit.rlim_max,
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What this process or its machine has run out of. It is never the fault of the far end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// The limit on open files of this process.
    ProcessFiles,
    /// The limit on open files of the system.
    SystemFiles,
    /// Kernel memory, for sockets or anything else.
    Memory,
    /// Local ports for connections to one address.
    Ports,
    /// Threads.
    Threads,
    /// Descriptors that one user may watch with epoll.
    Watches,
}

impl Shortage {
    /// `None` when the error is something else.
    pub fn of(error: &io::Error) -> Option<Shortage> {
        Some(match error.raw_os_error()? {
            libc::EMFILE => Self::ProcessFiles,
            libc::ENFILE => Self::SystemFiles,
            libc::ENOMEM | libc::ENOBUFS => Self::Memory,
            libc::EADDRNOTAVAIL => Self::Ports,
            libc::EAGAIN => Self::Threads,
            libc::ENOSPC => Self::Watches,
            _ => return None,
        })
    }

    /// What is missing, and what to do.
    pub fn advice(self) -> String {
        match self {
            Self::ProcessFiles => {
                format!("the limit on open files of this process is reached; {HOW_TO_RAISE}")
            }
            Self::SystemFiles => {
                "the limit on open files of the system is reached; raise fs.file-max (sysctl)".to_owned()
            }
            Self::Memory => "the kernel has no memory for it; give the machine or the container more".to_owned(),
            Self::Ports => "no local port is free; widen net.ipv4.ip_local_port_range (sysctl)".to_owned(),
            Self::Threads => "no thread can be started; raise the limit on processes (TasksMax= in systemd, \
                              --pids-limit in Docker)"
                .to_owned(),
            Self::Watches => "the limit on watched descriptors is reached; raise fs.epoll.max_user_watches (sysctl)"
                .to_owned(),
        }
    }
}

/// The error that opening a file gives now when no descriptor is left. Some libraries replace that error by one of their
/// own.
pub fn shortage_of_descriptors() -> Option<io::Error> {
    let error = std::fs::File::open("/dev/null").err()?;
    let files = [Shortage::ProcessFiles, Shortage::SystemFiles];
    Shortage::of(&error)
        .is_some_and(|shortage| files.contains(&shortage))
        .then_some(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_grows_with_shards_and_calls() {
        let check = |max, shards, calls, idle, expected| {
            let files = OpenFiles::share_out(max, shards, 2, calls, idle);
            assert_eq!(
                (files.reserved, files.clients()),
                expected,
                "{max} {shards} {calls}"
            );
        };
        check(300, 1, 28, 57, (128, 172));
        check(1024, 2, 28, 58, (128, 896));
        check(1_048_576, 64, 28, 120, (996, 1_047_580));
        check(1_048_576, 8, 500, 1008, (1628, 1_046_948));
        check(80, 2, 28, 58, (40, 40));
        check(0, 2, 28, 58, (0, 0));
        check(
            u64::MAX,
            2,
            usize::MAX,
            usize::MAX,
            (u64::MAX / 2, u64::MAX / 2 + 1),
        );
        let small = OpenFiles::share_out(300, 1, 2, 28, 57);
        assert!(small.clients() < small.requests() && small.requests() < small.max);
    }

    #[test]
    fn what_is_short_here_is_told_from_what_is_wrong_there() {
        for errno in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::ENOMEM,
            libc::EADDRNOTAVAIL,
            libc::EAGAIN,
            libc::ENOSPC,
        ] {
            let shortage = Shortage::of(&io::Error::from_raw_os_error(errno));
            assert!(
                shortage.is_some_and(|it| !it.advice().is_empty()),
                "{errno}"
            );
        }
        for errno in [
            libc::ECONNREFUSED,
            libc::ECONNRESET,
            libc::ETIMEDOUT,
            libc::EHOSTUNREACH,
            libc::ENETUNREACH,
        ] {
            assert_eq!(
                Shortage::of(&io::Error::from_raw_os_error(errno)),
                None,
                "{errno}"
            );
        }
        assert_eq!(Shortage::of(&io::ErrorKind::TimedOut.into()), None);
    }
}
