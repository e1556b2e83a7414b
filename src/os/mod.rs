//! What the server needs from Linux beside sockets: CPUs, limits, memory figures, socket options, word to systemd.
//!
//! Unsafe code lives here and in `reactor/`; everywhere else a lint denies it. Called by `server` at start-up and by `shard`
//! for sockets.

pub mod cgroup;
pub mod cpu;
pub mod host;
pub mod limits;
pub mod memory;
pub mod notify;
pub mod port_owner;
pub mod sockets;
pub mod stdio;
