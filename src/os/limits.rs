//! The limit on open files, which is the limit on connections.

use std::io;

/// Descriptors that the server needs beside client sockets: listeners, rings, RPC connections, log, DNS.
pub const DESCRIPTORS_RESERVED: u64 = 128;

/// Raises the soft limit on open files to the hard one and returns the limit then in force.
///
/// # Errors
/// The error of getrlimit(2); a refused raise is not an error, the old soft limit is returned then.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live rlimit that the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let raised = libc::rlimit {
        rlim_cur: limit.rlim_max,
        rlim_max: limit.rlim_max,
    };
    // SAFETY: the pointer is to a live rlimit that the call only reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } != 0 {
        return Ok(limit.rlim_cur);
    }
    Ok(raised.rlim_cur)
}
