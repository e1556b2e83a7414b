//! Limits of this process: open files, which is the limit on connections, and locked memory.

use std::io;

/// Descriptors that the server needs beside client sockets: listeners, rings, RPC connections, log, DNS.
pub const DESCRIPTORS_RESERVED: u64 = 128;

/// For messages about too low a limit on open files.
pub const HOW_TO_RAISE: &str = "raise it (LimitNOFILE= in systemd, --ulimit nofile= or ulimits: in Docker, ulimit -n in a shell, \
     /etc/security/limits.conf for logins)";

/// A limit of this process; `u64::MAX` stands for none.
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

/// The soft limits on private memory and on address space, in bytes; a limit that cannot be read is none.
pub fn memory() -> [u64; 2] {
    // SAFETY: the pointer is to a live rlimit that the call fills.
    let data = read(|limit| unsafe { libc::getrlimit(libc::RLIMIT_DATA, limit) });
    // SAFETY: as above.
    let address_space = read(|limit| unsafe { libc::getrlimit(libc::RLIMIT_AS, limit) });
    [data, address_space].map(|limit| limit.map_or(u64::MAX, |limit| limit.soft))
}

/// Raises the soft limit on open files to the hard one and returns the limit then in force.
///
/// # Errors
/// The error of getrlimit(2); a refused raise is not an error, the old soft limit is returned then.
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

/// A closure, because the type of a resource's number differs between C libraries.
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
