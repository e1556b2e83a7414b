//! `--check N`: what would stop this host from holding N connections, one line per finding.
//!
//! [`Report::new`] is pure: the request, the host's facts and the answer about io_uring come in, findings go out.
//! `tuning/check.sh` says the same in shell, in the same words; an integration test compares the two.

use std::fmt;

use crate::config::{CheckRequest, DriverChoice};
use crate::driver;
use crate::os::host::HostFacts;
use crate::os::limits::{DESCRIPTORS_RESERVED, descriptors_of_shards};

/// Memory of one idle connection in bytes. The same figures stand in `tuning/check.sh` and `tuning/README.md`.
mod connection {
    /// ringcable's own, with one subscription: 375 measured, rounded up. Campfire's 14 subscriptions take 1,519.
    pub const USER_BYTES: u64 = 400;
    /// The texts that a session keeps for RPC calls: URL, cookies and connection identifiers; measured with a cookie of 400
    /// bytes.
    pub const TEXT_BYTES: u64 = 512;
    /// An accepted TCP socket in the kernel, Linux 6.18.
    pub const SOCKET_BYTES: u64 = 3_630;
    /// An armed multishot poll.
    pub const POLL_BYTES: u64 = 260;

    pub const BYTES: u64 = USER_BYTES + TEXT_BYTES + SOCKET_BYTES + POLL_BYTES;

    /// The extra bytes of a connection with TLS: 2,488 in TLS 1.3, rounded up.
    pub const TLS_BYTES: u64 = 2_500;
}

/// The three rings of a shard, as the limit on locked memory counts them: 216 KiB on Linux 6.18, rounded up. Without the
/// last 28 KiB a shard has no ring for sends and writes as it does on epoll.
const SHARD_RINGS_BYTES: u64 = 224 << 10;
/// The ring of the probe: 84 KiB on Linux 6.18, rounded up. The kernel may still count it when the shards start.
const PROBE_RING_BYTES: u64 = 96 << 10;
/// CPU time of one ping to a socket that was idle, user and kernel, over loopback.
const PING_NANOS: u64 = 9_700;
/// The memory should exceed the need by at least this share (1/4), otherwise nothing is left for traffic.
const HEADROOM_DIVISOR: u64 = 4;
/// When all clients reconnect at once, one in this many is expected to wait in an accept queue.
const ACCEPT_QUEUE_DIVISOR: u64 = 16;
/// The kernel's default since 5.4, and the largest queue that the server asks for.
const ACCEPT_QUEUE_MIN: u64 = 4_096;
const ACCEPT_QUEUE_MAX: u64 = 65_535;
/// Local ports per RPC connection: one in use, and one that was closed and stays in TIME-WAIT for a minute.
const PORTS_PER_CALL: u64 = 2;
/// Listeners that a server has if clients, broadcasts, the API and the metrics have an address each.
const LISTENERS: u64 = 4;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Ok,
    /// The host holds the connections, but slowly, or not in a burst.
    Warn,
    /// The host does not hold the connections.
    Fail,
}

impl fmt::Display for Severity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        })
    }
}

/// One limit: what it is, what it would have to be, and how to change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub severity: Severity,
    pub name: &'static str,
    pub current: String,
    pub needed: String,
    /// Shown unless the severity is [`Severity::Ok`].
    pub change: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            severity,
            name,
            current,
            needed,
            change,
        } = self;
        write!(out, "{severity:<4} {name:<30} {current}, needs {needed}")?;
        match severity {
            Severity::Ok => Ok(()),
            Severity::Warn | Severity::Fail => write!(out, "; {change}"),
        }
    }
}

/// All findings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    connections: u64,
    pub findings: Vec<Finding>,
}

impl Report {
    /// Reads the facts of this host, tries io_uring, and compares them with the request.
    pub fn of_this_host(request: &CheckRequest) -> Self {
        let io_uring = driver::try_io_uring();
        Self::new(request, &HostFacts::read(), &io_uring)
    }

    /// Compares the facts with the request. `io_uring` is the kernel's answer, with the reason for a refusal.
    pub fn new(request: &CheckRequest, facts: &HostFacts, io_uring: &Result<(), String>) -> Self {
        let findings = vec![
            connections_max(request),
            open_files(request, facts),
            nr_open(request, facts),
            file_max(request, facts),
            memory(request, facts),
            cgroup_memory(request, facts),
            tcp_mem(request, facts),
            accept_queue(request, facts),
            syn_queue(request, facts),
            local_ports(request, facts),
            tracking(request, facts),
            uring(request, io_uring),
            locked_memory(request, facts),
            cpus(request, facts),
        ];
        Self {
            connections: request.connections,
            findings,
        }
    }

    /// False when a finding is [`Severity::Fail`].
    pub fn passes(&self) -> bool {
        self.count(Severity::Fail) == 0
    }

    fn count(&self, severity: Severity) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(out, "{finding}")?;
        }
        let connections = self.connections;
        let (fails, warns) = (self.count(Severity::Fail), self.count(Severity::Warn));
        match fails {
            0 => writeln!(
                out,
                "{connections} connections: nothing stands in the way (WARN {warns})"
            ),
            _ => writeln!(
                out,
                "{connections} connections: not on this host as it is (FAIL {fails}, WARN {warns})"
            ),
        }
    }
}

fn connections_max(request: &CheckRequest) -> Finding {
    let max = request.connections_max as u64;
    Finding {
        severity: fail_unless(max == 0 || max >= request.connections),
        name: "max-conn",
        current: if max == 0 {
            "off".to_string()
        } else {
            max.to_string()
        },
        needed: format!("off or {}", request.connections),
        change: format!("--max-conn={}", request.connections),
    }
}

/// The server raises the soft limit to the hard limit itself, so only the hard limit matters.
fn open_files(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let needed = files(request, facts);
    let (severity, current) = match facts.open_files {
        Some(limit) => (
            fail_unless(limit.hard >= needed),
            format!("{} soft, {} hard", shown(limit.soft), shown(limit.hard)),
        ),
        None => unknown(),
    };
    Finding {
        severity,
        name: "nofile",
        current,
        needed: format!("{needed} hard"),
        change: format!(
            "LimitNOFILE={needed} in the systemd unit, or docker run --ulimit nofile={needed}:{needed}"
        ),
    }
}

fn nr_open(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let needed = files(request, facts);
    at_least(
        "fs.nr_open",
        facts.nr_open,
        needed,
        Severity::Fail,
        format!("sysctl -w fs.nr_open={}", needed.max(2_097_152)),
    )
}

fn file_max(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let needed = files(request, facts);
    let free = facts
        .files
        .map(|files| files.max.saturating_sub(files.open));
    Finding {
        needed: format!("{needed} free"),
        ..at_least(
            "fs.file-max",
            free,
            needed,
            Severity::Fail,
            format!("sysctl -w fs.file-max={}", needed.saturating_mul(2)),
        )
    }
}

fn memory(request: &CheckRequest, facts: &HostFacts) -> Finding {
    memory_finding(
        "memory",
        request,
        facts.memory_available_bytes.map_or_else(unknown, |bytes| {
            (memory_severity(request, bytes), mib_below(bytes))
        }),
        "more memory or fewer connections",
    )
}

fn cgroup_memory(request: &CheckRequest, facts: &HostFacts) -> Finding {
    memory_finding(
        "cgroup memory",
        request,
        facts.cgroup_memory_bytes.map_or_else(
            || (Severity::Ok, "unlimited".to_string()),
            |bytes| (memory_severity(request, bytes), mib_below(bytes)),
        ),
        "MemoryMax= in the systemd unit, or docker run --memory: sockets count against it",
    )
}

fn memory_finding(
    name: &'static str,
    request: &CheckRequest,
    (severity, current): (Severity, String),
    change: &str,
) -> Finding {
    Finding {
        severity,
        name,
        current,
        needed: format!(
            "{} MiB ({} bytes each)",
            memory_bytes(request).div_ceil(1 << 20),
            connection_bytes(request)
        ),
        change: change.to_string(),
    }
}

fn memory_severity(request: &CheckRequest, bytes: u64) -> Severity {
    let needed = memory_bytes(request);
    if bytes < needed {
        Severity::Fail
    } else if bytes < needed.saturating_add(needed / HEADROOM_DIVISOR) {
        Severity::Warn
    } else {
        Severity::Ok
    }
}

/// Idle sockets use none of this memory; one unread message to every client uses a page per client.
fn tcp_mem(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let pages = request.connections;
    Finding {
        needed: format!("{pages} pages"),
        ..at_least(
            "net.ipv4.tcp_mem",
            facts.tcp_pages_max,
            pages,
            Severity::Warn,
            format!(
                "sysctl -w net.ipv4.tcp_mem='{} {pages} {}'",
                pages.saturating_mul(3) / 4,
                pages.saturating_add(pages / 2)
            ),
        )
    }
}

fn accept_queue(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let needed = queue(request);
    at_least(
        "net.core.somaxconn",
        facts.accept_queue_max,
        needed,
        Severity::Warn,
        format!("sysctl -w net.core.somaxconn={needed}"),
    )
}

/// With SYN cookies the kernel checks only the limit of the accept queue.
fn syn_queue(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let needed = queue(request);
    let mut finding = at_least(
        "net.ipv4.tcp_max_syn_backlog",
        facts.syn_queue_max,
        needed,
        Severity::Warn,
        "sysctl -w net.ipv4.tcp_syncookies=1".to_string(),
    );
    finding.needed = format!("{needed} or SYN cookies");
    if facts.syn_cookies == Some(true) {
        finding.severity = Severity::Ok;
        finding.current = format!("{} with SYN cookies", finding.current);
    }
    finding
}

/// Each shard keeps as many connections to the app as there may be calls in all.
fn local_ports(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let needed =
        (shards(request, facts) * request.rpc_concurrency as u64).saturating_mul(PORTS_PER_CALL);
    at_least(
        "net.ipv4.ip_local_port_range",
        facts.local_ports,
        needed,
        Severity::Warn,
        "sysctl -w net.ipv4.ip_local_port_range='10240 65535'".to_string(),
    )
}

/// An unused connection tracking table blocks nothing now, but it does after the first NAT rule. So it is only a warning.
fn tracking(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let connections = request.connections;
    let (severity, current) = match facts.tracking {
        None => (Severity::Ok, "not loaded".to_string()),
        Some(table) if table.max >= connections => (Severity::Ok, table.max.to_string()),
        Some(table) if table.count == 0 => (Severity::Warn, format!("{}, unused", table.max)),
        Some(table) => (Severity::Fail, table.max.to_string()),
    };
    let max = connections.saturating_mul(2);
    Finding {
        severity,
        name: "net.netfilter.nf_conntrack_max",
        current,
        needed: connections.to_string(),
        change: format!(
            "sysctl -w net.netfilter.nf_conntrack_max={max}, or do without NAT (docker run --network host)"
        ),
    }
}

fn uring(request: &CheckRequest, answer: &Result<(), String>) -> Finding {
    let (severity, current) = match (answer, request.driver) {
        (_, DriverChoice::Epoll) => (Severity::Ok, "not used".to_string()),
        (Ok(()), _) => (Severity::Ok, "allowed".to_string()),
        (Err(reason), choice) => (refusal(choice), format!("refused ({reason})")),
    };
    Finding {
        severity,
        name: "io_uring",
        current,
        needed: "allowed".to_string(),
        change: "epoll takes its place; allow it with tuning/seccomp/ringcable.json and \
                 sysctl -w kernel.io_uring_disabled=0"
            .to_string(),
    }
}

fn locked_memory(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let shards = shards(request, facts);
    let needed = shards * SHARD_RINGS_BYTES + PROBE_RING_BYTES;
    let (severity, current) = match facts.locked_memory {
        _ if request.driver == DriverChoice::Epoll => (Severity::Ok, "not used".to_string()),
        _ if facts.locks_without_limit => (Severity::Ok, "unlimited (CAP_IPC_LOCK)".to_string()),
        None => unknown(),
        Some(limit) => {
            let current = match limit.soft {
                u64::MAX => "unlimited".to_string(),
                bytes => format!("{} KiB", bytes >> 10),
            };
            match limit.soft >= needed {
                true => (Severity::Ok, current),
                false => (refusal(request.driver), current),
            }
        }
    };
    Finding {
        severity,
        name: "memlock",
        current,
        needed: format!("{} KiB ({shards} shards)", needed >> 10),
        change: "LimitMEMLOCK=infinity in the systemd unit, or docker run --ulimit memlock=-1:-1"
            .to_string(),
    }
}

/// Counts only pings: the CPU time that N of them take in one interval.
fn cpus(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let interval_nanos = u64::try_from(request.ping_interval.as_nanos()).unwrap_or(u64::MAX);
    let for_pings = match interval_nanos {
        0 => 1,
        interval => request
            .connections
            .saturating_mul(PING_NANOS)
            .div_ceil(interval),
    };
    let needed = for_pings.max(request.cores.unwrap_or(1) as u64);
    at_least(
        "cpus",
        Some(facts.cpus as u64),
        needed,
        Severity::Warn,
        format!(
            "more CPUs or quota, fewer --cores, or a longer --ping_interval (pings take {for_pings})"
        ),
    )
}

fn at_least(
    name: &'static str,
    current: Option<u64>,
    needed: u64,
    otherwise: Severity,
    change: String,
) -> Finding {
    let (severity, current) = match current {
        Some(current) if current >= needed => (Severity::Ok, current.to_string()),
        Some(current) => (otherwise, current.to_string()),
        None => unknown(),
    };
    Finding {
        severity,
        name,
        current,
        needed: needed.to_string(),
        change,
    }
}

/// The severity for a fact that could not be read.
fn unknown() -> (Severity, String) {
    (Severity::Warn, "unknown".to_string())
}

fn fail_unless(holds: bool) -> Severity {
    if holds { Severity::Ok } else { Severity::Fail }
}

/// The severity when io_uring is refused: the server then runs on epoll, unless the options require io_uring.
fn refusal(choice: DriverChoice) -> Severity {
    match choice {
        DriverChoice::IoUring => Severity::Fail,
        DriverChoice::Auto | DriverChoice::Epoll => Severity::Warn,
    }
}

fn shards(request: &CheckRequest, facts: &HostFacts) -> u64 {
    request.cores.unwrap_or(facts.cpus) as u64
}

/// Descriptors for all clients, for the shards, and for the connections to the app.
fn files(request: &CheckRequest, facts: &HostFacts) -> u64 {
    let shards = shards(request, facts);
    request
        .connections
        .saturating_add(DESCRIPTORS_RESERVED)
        .saturating_add(descriptors_of_shards(shards, LISTENERS))
        .saturating_add(shards.saturating_mul(request.rpc_concurrency as u64))
}

fn memory_bytes(request: &CheckRequest) -> u64 {
    request
        .connections
        .saturating_mul(connection_bytes(request))
}

fn connection_bytes(request: &CheckRequest) -> u64 {
    connection::BYTES
        + if request.tls {
            connection::TLS_BYTES
        } else {
            0
        }
}

fn queue(request: &CheckRequest) -> u64 {
    (request.connections / ACCEPT_QUEUE_DIVISOR).clamp(ACCEPT_QUEUE_MIN, ACCEPT_QUEUE_MAX)
}

fn mib_below(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// A limit as text.
fn shown(limit: u64) -> String {
    match limit {
        u64::MAX => "unlimited".to_string(),
        limit => limit.to_string(),
    }
}

#[cfg(test)]
mod tests;
