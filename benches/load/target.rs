//! Which server to start, with which flags and where.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};

use crate::process::machine_cpus;

/// How ringcable waits for its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    IoUring,
    Epoll,
}

impl Driver {
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "io_uring" => Ok(Self::IoUring),
            "epoll" => Ok(Self::Epoll),
            other => Err(format!("--driver takes io_uring or epoll, not {other:?}")),
        }
    }
}

/// A server to start.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server's name in results.
    pub name: &'static str,
    pub binary: PathBuf,
    /// Flags that only this binary knows.
    pub own_flags: Vec<String>,
    pub environment: Vec<(&'static str, String)>,
    pub cores: usize,
}

impl Target {
    pub fn ringcable(driver: Driver, cores: usize) -> Self {
        let (name, driver) = match driver {
            Driver::IoUring => ("ringcable", "io_uring"),
            Driver::Epoll => ("ringcable epoll", "epoll"),
        };
        Self {
            name,
            binary: env!("CARGO_BIN_EXE_ringcable").into(),
            own_flags: vec![format!("--driver={driver}"), format!("--cores={cores}")],
            environment: Vec::new(),
            cores,
        }
    }

    /// Another build of ringcable.
    pub fn before(binary: &Path, driver: Driver, cores: usize) -> Self {
        let now = Self::ringcable(driver, cores);
        Self {
            name: match driver {
                Driver::IoUring => "before",
                Driver::Epoll => "before epoll",
            },
            binary: binary.to_owned(),
            ..now
        }
    }

    /// Another binary with the same flags.
    pub fn peer(binary: &Path, cores: usize) -> Self {
        Self {
            name: "peer",
            binary: binary.to_owned(),
            own_flags: Vec::new(),
            environment: vec![
                ("GOMAXPROCS", cores.to_string()),
                // Keeps all traffic on this machine.
                ("ANYCABLE_DISABLE_TELEMETRY", "true".to_owned()),
            ],
            cores,
        }
    }

    /// The CPUs of the server: the first ones.
    pub fn cpus(&self) -> Vec<usize> {
        (0..self.cores.min(machine_cpus())).collect()
    }

    /// The CPUs left for the clients; all CPUs when none is left.
    pub fn client_cpus(&self) -> Vec<usize> {
        (self.cores..machine_cpus()).collect()
    }
}

/// Flags for streams without an app: all clients may connect and subscribe to public streams.
pub fn public_flags() -> Vec<String> {
    ["--public", "--norpc"].map(str::to_owned).into()
}

/// An address of this machine with a port that is free now.
pub fn free_address() -> SocketAddrV4 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let port = listener
        .local_addr()
        .expect("a bound socket has an address")
        .port();
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}
