//! Word to a service manager that waits for it (systemd's `Type=notify`): one datagram to the socket that `NOTIFY_SOCKET`
//! names, nothing when it names none. Called by `server`.
//!
//! Source: sd_notify(3).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The server serves.
pub fn ready() {
    tell("READY=1");
}

/// The signal has come; the process ends by itself.
pub fn stopping() {
    tell("STOPPING=1");
}

/// A manager that cannot be told may think that the server hangs: that is worth a line, and no reason to stop.
fn tell(state: &str) {
    let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
        return;
    };
    if let Err(error) = send(&name, state) {
        tracing::warn!(%error, "cannot tell {state} to the socket in NOTIFY_SOCKET (\"{}\")", name.display());
    }
}

fn send(name: &OsStr, state: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    // The control thread must not wait for a manager that does not read.
    socket.set_nonblocking(true)?;
    let address = match name.as_bytes().split_first() {
        Some((b'@', rest)) => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}
