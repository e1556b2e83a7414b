//! Memory of a server, as the kernel counts it.

use std::fs;

/// The memory of a process from one moment on.
pub struct Memory {
    pid: u32,
    at_first: u64,
}

impl Memory {
    /// From now on. The kernel forgets the highest value that it has seen before.
    pub fn of(pid: u32) -> Self {
        fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("a child of ours");
        Self {
            pid,
            at_first: status(pid, "VmRSS:"),
        }
    }

    /// The most by which it has been larger since.
    pub fn grown_bytes(&self) -> u64 {
        status(self.pid, "VmHWM:").saturating_sub(self.at_first)
    }
}

fn status(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process that runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.expect("every process has this").trim();
    let kib: u64 = value
        .trim_end_matches(" kB")
        .parse()
        .expect("a number of kB");
    kib * 1024
}
