//! ringcable: holds very many Action Cable connections in very little memory and sends broadcasts to them.
//!
//! The layers; a lower layer never names a higher one (`docs/ARCHITECTURE.md` has the whole map):
//! L0 `protocol wire config metrics auth os log` · L1 `session hub broker endpoints console` · L2 `reactor rpc mesh net` ·
//! L3 `shard` · L4 `server`, `reporting`, `check`, and `demo`, which is an application beside the server.

// These macros panic when stdout or stderr is closed or full; `os::stdio` does not.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub(crate) mod auth;
pub mod broker;
pub(crate) mod certificate;
pub mod check;
pub mod config;
pub(crate) mod console;
#[allow(
    clippy::disallowed_methods,
    reason = "it is an application, started to try things out, and reads what this server has encoded"
)]
pub(crate) mod demo;
pub(crate) mod driver;
pub(crate) mod endpoints;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod hub;
pub mod log;
pub mod mesh;
pub mod metrics;
pub mod net;
#[allow(unsafe_code, reason = "system calls that have no safe wrapper")]
pub mod os;
pub mod protocol;
#[allow(
    unsafe_code,
    reason = "rings and epoll: memory and descriptors that the kernel holds"
)]
pub mod reactor;
pub(crate) mod reporting;
pub mod rpc;
pub mod server;
pub mod session;
pub mod shard;
pub(crate) mod startup;
pub mod wire;

/// The version of the reference whose behaviour this server follows; sent as `X-AnyCable-Version`.
pub const COMPATIBLE_VERSION: &str = "1.6.16";
