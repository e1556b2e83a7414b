//! What this host and this process's limits allow, read from `/proc` and the cgroup file system, for `--check`.
//!
//! This file only reads; `check` judges. A file that cannot be read gives `None`, not an error.

use std::fs;

use super::limits::{self, Limit};
use super::{cpu, memory};

/// Number of the capability that exempts a process from the limit on locked memory.
const CAP_IPC_LOCK: u32 = 14;

/// The facts; `None` where a file is missing, unreadable or of an unknown shape.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// RLIMIT_NOFILE.
    pub open_files: Option<Limit>,
    /// `fs.nr_open`: how far RLIMIT_NOFILE can be raised.
    pub nr_open: Option<u64>,
    pub files: Option<SystemFiles>,
    pub memory_available_bytes: Option<u64>,
    /// The memory limit of the cgroup; also `None` when there is no limit.
    pub cgroup_memory_bytes: Option<u64>,
    /// Third value of `net.ipv4.tcp_mem`.
    pub tcp_pages_max: Option<u64>,
    /// `net.core.somaxconn`.
    pub accept_queue_max: Option<u64>,
    /// `net.ipv4.tcp_syncookies` is not 0.
    pub syn_cookies: Option<bool>,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub syn_queue_max: Option<u64>,
    /// Size of `net.ipv4.ip_local_port_range`.
    pub local_ports: Option<u64>,
    /// Also `None` when connection tracking is not loaded.
    pub tracking: Option<Tracking>,
    /// RLIMIT_MEMLOCK in bytes.
    pub locked_memory: Option<Limit>,
    /// The process has CAP_IPC_LOCK.
    pub locks_without_limit: bool,
    /// CPUs allowed by affinity and cgroup quota.
    pub cpus: usize,
}

/// Open files of the whole system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemFiles {
    /// `fs.file-max`.
    pub max: u64,
    /// Open now, in all processes.
    pub open: u64,
}

/// The table of tracked connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracking {
    /// `net.netfilter.nf_conntrack_max`.
    pub max: u64,
    /// Entries now; 0 means that no firewall rule uses tracking.
    pub count: u64,
}

impl HostFacts {
    /// Reads all of them.
    pub fn read() -> Self {
        Self {
            open_files: limits::open_files().ok(),
            nr_open: number("fs/nr_open"),
            files: system_files(),
            memory_available_bytes: memory::available_bytes(),
            cgroup_memory_bytes: memory::cgroup_limit_bytes(),
            tcp_pages_max: last_number("net/ipv4/tcp_mem"),
            accept_queue_max: number("net/core/somaxconn"),
            syn_cookies: number("net/ipv4/tcp_syncookies").map(|mode| mode != 0),
            syn_queue_max: number("net/ipv4/tcp_max_syn_backlog"),
            local_ports: local_ports(),
            tracking: tracking(),
            locked_memory: limits::locked_memory().ok(),
            locks_without_limit: locks_without_limit(),
            cpus: cpu::default_cores(),
        }
    }
}

fn sysctl(path: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/sys/{path}")).ok()
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace()
        .map_while(|word| word.parse().ok())
        .collect()
}

fn number(path: &str) -> Option<u64> {
    numbers(&sysctl(path)?).first().copied()
}

fn last_number(path: &str) -> Option<u64> {
    numbers(&sysctl(path)?).last().copied()
}

fn system_files() -> Option<SystemFiles> {
    Some(SystemFiles {
        max: number("fs/file-max")?,
        open: number("fs/file-nr")?,
    })
}

fn local_ports() -> Option<u64> {
    match numbers(&sysctl("net/ipv4/ip_local_port_range")?)[..] {
        [first, last] => Some((last + 1).saturating_sub(first)),
        _ => None,
    }
}

fn tracking() -> Option<Tracking> {
    Some(Tracking {
        max: number("net/netfilter/nf_conntrack_max")?,
        count: number("net/netfilter/nf_conntrack_count")?,
    })
}

fn locks_without_limit() -> bool {
    has_capability(
        &fs::read_to_string("/proc/self/status").unwrap_or_default(),
        CAP_IPC_LOCK,
    )
}

fn has_capability(proc_self_status: &str, capability: u32) -> bool {
    proc_self_status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_what_every_linux_has() {
        let facts = HostFacts::read();
        assert!(facts.open_files.is_some_and(|limit| limit.soft > 0));
        assert!(facts.nr_open.is_some() && facts.files.is_some());
        assert!(facts.memory_available_bytes.is_some_and(|bytes| bytes > 0));
        assert!(facts.local_ports.is_some_and(|ports| ports <= 65_535));
        assert!(facts.cpus >= 1);
    }

    #[test]
    fn capabilities_are_bits_of_the_effective_mask() {
        fn check(status: &str, expected: bool) {
            assert_eq!(has_capability(status, CAP_IPC_LOCK), expected, "{status:?}");
        }
        check(
            "CapPrm:\t000001ffffffffff\nCapEff:\t0000000000004000\n",
            true,
        );
        check("CapEff:\t00000000a80425fb\n", false);
        check("", false);
    }
}
