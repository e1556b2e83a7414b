//! Messages to a service manager that waits for them (systemd's `Type=notify`): one datagram to the socket that
//! `NOTIFY_SOCKET` names, and nothing without that variable. Called by `server`.
//!
//! Source: sd_notify(3).

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Tells that the server is serving.
pub fn ready() {
    tell("READY=1");
}

/// Tells that the server has got the signal and will end by itself.
pub fn stopping() {
    tell("STOPPING=1");
}

/// Without the message the manager may think that the server hangs. So a failure is logged, but the server goes on.
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
    // The control thread must not wait when the manager does not read.
    socket.set_nonblocking(true)?;
    let address = match name.as_bytes().split_first() {
        Some((b'@', rest)) => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    socket.send_to_addr(state.as_bytes(), &address).map(drop)
}
