//! What the server needs from Linux beside sockets: CPUs, limits, memory figures, socket options, the local time,
//! random bytes, word to systemd.
//!
//! Unsafe code lives here and in `reactor/`; everywhere else a lint denies it. Called by `server` at start-up and by `shard`
//! for sockets.

pub mod cgroup;
pub mod cpu;
pub mod host;
pub mod limits;
pub mod local_time;
pub mod memory;
pub mod notify;
pub mod port_owner;
pub mod random;
pub mod sockets;
pub mod stdio;
