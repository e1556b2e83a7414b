//! What the server needs from Linux besides sockets: CPUs, limits, memory figures, socket options, the local time, random
//! bytes, messages to systemd.
//!
//! Unsafe code is only here and in `reactor/`; everywhere else a lint denies it. Called by `server` at start-up and by
//! `shard` for sockets.

pub mod bell;
mod cgroup;
pub(crate) mod cpu;
pub(crate) mod host;
pub(crate) mod limits;
pub(crate) mod local_time;
pub mod memory;
pub(crate) mod notify;
pub(crate) mod port_owner;
pub(crate) mod random;
pub(crate) mod sockets;
pub mod stdio;
