//! `--check N`: what would stop this host from holding N connections, one line per finding.
//!
//! [`Report::new`] is pure: what is asked for, the host's facts and the answer about io_uring come in, findings go out.
//! `tuning/check.sh` says the same in shell, in the same words; an integration test compares the two.

use std::fmt;

use crate::config::{CheckRequest, DriverChoice};
use crate::driver;
use crate::os::host::HostFacts;
use crate::os::limits::DESCRIPTORS_RESERVED;

/// Memory of one idle connection in bytes. The same figures stand in `tuning/check.sh` and `tuning/README.md`.
mod connection {
    /// ringcable's own, with one subscription: 375 measured, rounded up. Campfire's 14 subscriptions take 1,519.
    pub const USER_BYTES: u64 = 400;
    /// What RPC makes it keep: URL, cookies and connection identifiers; measured with a cookie of 400 bytes.
    pub const TEXT_BYTES: u64 = 512;
    /// An accepted TCP socket in the kernel, Linux 6.18.
    pub const SOCKET_BYTES: u64 = 3_630;
    /// An armed multishot poll.
    pub const POLL_BYTES: u64 = 260;

    pub const BYTES: u64 = USER_BYTES + TEXT_BYTES + SOCKET_BYTES + POLL_BYTES;

    /// What TLS for clients adds: 2,488 in TLS 1.3, rounded up.
    pub const TLS_BYTES: u64 = 2_500;
}

/// The three rings of a shard, as the limit on locked memory counts them: 216 KiB on Linux 6.18, rounded up. Without the last
/// 28 a shard has no ring for sends and writes as on epoll.
const SHARD_RINGS_BYTES: u64 = 224 << 10;
/// The ring of the probe, which the kernel may still count when the shards start: 84 KiB on Linux 6.18, rounded up.
const PROBE_RING_BYTES: u64 = 96 << 10;
/// CPU time of one ping to a socket that rested, user and kernel, over loopback.
const PING_NANOS: u64 = 9_700;
/// Of the memory that is needed: less than this share above it leaves nothing for traffic.
const HEADROOM_DIVISOR: u64 = 4;
/// One in so many clients is expected to wait in an accept queue when all reconnect at once.
const ACCEPT_QUEUE_DIVISOR: u64 = 16;
/// What the kernel has by default since 5.4, and the largest queue that the server asks for.
const ACCEPT_QUEUE_MIN: u64 = 4_096;
const ACCEPT_QUEUE_MAX: u64 = 65_535;
/// Local ports per RPC connection: one in use, one that was closed and waits out its minute.
const PORTS_PER_CALL: u64 = 2;
/// Listeners, rings and wake-ups of a shard: 6 and two for each further listener.
const DESCRIPTORS_PER_SHARD: u64 = 10;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    /// Holds, but slowly, or not under a burst.
    Warn,
    /// Does not hold.
    Fail,
}

impl fmt::Display for Verdict {
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
    pub verdict: Verdict,
    pub name: &'static str,
    pub current: String,
    pub needed: String,
    /// Shown unless the verdict is [`Verdict::Ok`].
    pub change: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            verdict,
            name,
            current,
            needed,
            change,
        } = self;
        write!(out, "{verdict:<4} {name:<30} {current}, needs {needed}")?;
        match verdict {
            Verdict::Ok => Ok(()),
            Verdict::Warn | Verdict::Fail => write!(out, "; {change}"),
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
    /// Reads this host, tries io_uring, and judges.
    pub fn of_this_host(request: &CheckRequest) -> Self {
        let io_uring = driver::try_io_uring();
        Self::new(request, &HostFacts::read(), &io_uring)
    }

    /// Judges. `io_uring` is the kernel's answer, with the reason of a refusal.
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

    /// False when something stands in the way.
    pub fn passes(&self) -> bool {
        self.count(Verdict::Fail) == 0
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.findings
            .iter()
            .filter(|finding| finding.verdict == verdict)
            .count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(out, "{finding}")?;
        }
        let connections = self.connections;
        let (fails, warns) = (self.count(Verdict::Fail), self.count(Verdict::Warn));
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
        verdict: fail_unless(max == 0 || max >= request.connections),
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

/// The server raises the soft limit to the hard one itself, so the latter counts.
fn open_files(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let needed = files(request, facts);
    let (verdict, current) = match facts.open_files {
        Some(limit) => (
            fail_unless(limit.hard >= needed),
            format!("{} soft, {} hard", shown(limit.soft), shown(limit.hard)),
        ),
        None => unknown(),
    };
    Finding {
        verdict,
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
        Verdict::Fail,
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
            Verdict::Fail,
            format!("sysctl -w fs.file-max={}", needed.saturating_mul(2)),
        )
    }
}

fn memory(request: &CheckRequest, facts: &HostFacts) -> Finding {
    memory_finding(
        "memory",
        request,
        facts.memory_available_bytes.map_or_else(unknown, |bytes| {
            (memory_verdict(request, bytes), mib_below(bytes))
        }),
        "more memory or fewer connections",
    )
}

fn cgroup_memory(request: &CheckRequest, facts: &HostFacts) -> Finding {
    memory_finding(
        "cgroup memory",
        request,
        facts.cgroup_memory_bytes.map_or_else(
            || (Verdict::Ok, "unlimited".to_string()),
            |bytes| (memory_verdict(request, bytes), mib_below(bytes)),
        ),
        "MemoryMax= in the systemd unit, or docker run --memory: sockets count against it",
    )
}

fn memory_finding(
    name: &'static str,
    request: &CheckRequest,
    (verdict, current): (Verdict, String),
    change: &str,
) -> Finding {
    Finding {
        verdict,
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

fn memory_verdict(request: &CheckRequest, bytes: u64) -> Verdict {
    let needed = memory_bytes(request);
    if bytes < needed {
        Verdict::Fail
    } else if bytes < needed.saturating_add(needed / HEADROOM_DIVISOR) {
        Verdict::Warn
    } else {
        Verdict::Ok
    }
}

/// Idle sockets use none of it; one unread message to everybody uses a page each.
fn tcp_mem(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let pages = request.connections;
    Finding {
        needed: format!("{pages} pages"),
        ..at_least(
            "net.ipv4.tcp_mem",
            facts.tcp_pages_max,
            pages,
            Verdict::Warn,
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
        Verdict::Warn,
        format!("sysctl -w net.core.somaxconn={needed}"),
    )
}

/// With SYN cookies the kernel looks at the accept queue's limit alone.
fn syn_queue(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let needed = queue(request);
    let mut finding = at_least(
        "net.ipv4.tcp_max_syn_backlog",
        facts.syn_queue_max,
        needed,
        Verdict::Warn,
        "sysctl -w net.ipv4.tcp_syncookies=1".to_string(),
    );
    finding.needed = format!("{needed} or SYN cookies");
    if facts.syn_cookies == Some(true) {
        finding.verdict = Verdict::Ok;
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
        Verdict::Warn,
        "sysctl -w net.ipv4.ip_local_port_range='10240 65535'".to_string(),
    )
}

/// A table that nobody uses yet stops nothing, but the first NAT rule would.
fn tracking(request: &CheckRequest, facts: &HostFacts) -> Finding {
    let connections = request.connections;
    let (verdict, current) = match facts.tracking {
        None => (Verdict::Ok, "not loaded".to_string()),
        Some(table) if table.max >= connections => (Verdict::Ok, table.max.to_string()),
        Some(table) if table.count == 0 => (Verdict::Warn, format!("{}, unused", table.max)),
        Some(table) => (Verdict::Fail, table.max.to_string()),
    };
    let max = connections.saturating_mul(2);
    Finding {
        verdict,
        name: "net.netfilter.nf_conntrack_max",
        current,
        needed: connections.to_string(),
        change: format!(
            "sysctl -w net.netfilter.nf_conntrack_max={max}, or do without NAT (docker run --network host)"
        ),
    }
}

fn uring(request: &CheckRequest, answer: &Result<(), String>) -> Finding {
    let (verdict, current) = match (answer, request.driver) {
        (_, DriverChoice::Epoll) => (Verdict::Ok, "not used".to_string()),
        (Ok(()), _) => (Verdict::Ok, "allowed".to_string()),
        (Err(reason), choice) => (refusal(choice), format!("refused ({reason})")),
    };
    Finding {
        verdict,
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
    let (verdict, current) = match facts.locked_memory {
        _ if request.driver == DriverChoice::Epoll => (Verdict::Ok, "not used".to_string()),
        _ if facts.locks_without_limit => (Verdict::Ok, "unlimited (CAP_IPC_LOCK)".to_string()),
        None => unknown(),
        Some(limit) => {
            let current = match limit.soft {
                u64::MAX => "unlimited".to_string(),
                bytes => format!("{} KiB", bytes >> 10),
            };
            match limit.soft >= needed {
                true => (Verdict::Ok, current),
                false => (refusal(request.driver), current),
            }
        }
    };
    Finding {
        verdict,
        name: "memlock",
        current,
        needed: format!("{} KiB ({shards} shards)", needed >> 10),
        change: "LimitMEMLOCK=infinity in the systemd unit, or docker run --ulimit memlock=-1:-1"
            .to_string(),
    }
}

/// Pings alone: the CPU time that N of them take in one interval.
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
        Verdict::Warn,
        format!(
            "more CPUs or quota, fewer --cores, or a longer --ping_interval (pings take {for_pings})"
        ),
    )
}

fn at_least(
    name: &'static str,
    current: Option<u64>,
    needed: u64,
    otherwise: Verdict,
    change: String,
) -> Finding {
    let (verdict, current) = match current {
        Some(current) if current >= needed => (Verdict::Ok, current.to_string()),
        Some(current) => (otherwise, current.to_string()),
        None => unknown(),
    };
    Finding {
        verdict,
        name,
        current,
        needed: needed.to_string(),
        change,
    }
}

/// A fact that could not be read.
fn unknown() -> (Verdict, String) {
    (Verdict::Warn, "unknown".to_string())
}

fn fail_unless(holds: bool) -> Verdict {
    if holds { Verdict::Ok } else { Verdict::Fail }
}

/// Without io_uring the server runs on epoll, unless it was told not to.
fn refusal(choice: DriverChoice) -> Verdict {
    match choice {
        DriverChoice::IoUring => Verdict::Fail,
        DriverChoice::Auto | DriverChoice::Epoll => Verdict::Warn,
    }
}

fn shards(request: &CheckRequest, facts: &HostFacts) -> u64 {
    request.cores.unwrap_or(facts.cpus) as u64
}

/// A file for each client, and what the shards and their connections to the app take.
fn files(request: &CheckRequest, facts: &HostFacts) -> u64 {
    let per_shard = DESCRIPTORS_PER_SHARD.saturating_add(request.rpc_concurrency as u64);
    request
        .connections
        .saturating_add(DESCRIPTORS_RESERVED)
        .saturating_add(shards(request, facts).saturating_mul(per_shard))
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

/// A limit in words.
fn shown(limit: u64) -> String {
    match limit {
        u64::MAX => "unlimited".to_string(),
        limit => limit.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::host::{SystemFiles, Tracking};
    use crate::os::limits::Limit;
    use std::time::Duration;

    fn million() -> CheckRequest {
        CheckRequest {
            connections: 1_000_000,
            cores: None,
            driver: DriverChoice::Auto,
            connections_max: 0,
            rpc_concurrency: 28,
            ping_interval: Duration::from_secs(3),
            tls: false,
        }
    }

    /// A host that holds a million.
    fn tuned() -> HostFacts {
        let limit = |value| Limit {
            soft: value,
            hard: value,
        };
        HostFacts {
            open_files: Some(limit(1_048_576)),
            nr_open: Some(2_097_152),
            files: Some(SystemFiles {
                max: 2_500_000,
                open: 500,
            }),
            memory_available_bytes: Some(16 << 30),
            cgroup_memory_bytes: None,
            tcp_pages_max: Some(1_500_000),
            accept_queue_max: Some(65_535),
            syn_cookies: Some(true),
            syn_queue_max: Some(2048),
            local_ports: Some(28_232),
            tracking: None,
            locked_memory: Some(limit(8 << 20)),
            locks_without_limit: false,
            cpus: 8,
        }
    }

    fn finding(
        request: &CheckRequest,
        facts: &HostFacts,
        io_uring: &Result<(), String>,
        name: &str,
    ) -> Finding {
        Report::new(request, facts, io_uring)
            .findings
            .into_iter()
            .find(|finding| finding.name == name)
            .expect("a finding of that name")
    }

    #[test]
    fn a_tuned_host_holds_a_million() {
        let report = Report::new(&million(), &tuned(), &Ok(()));
        assert!(report.passes(), "{report}");
        assert_eq!(report.count(Verdict::Warn), 0, "{report}");
        let text = report.to_string();
        assert!(
            text.ends_with("1000000 connections: nothing stands in the way (WARN 0)\n"),
            "{text}"
        );
    }

    #[test]
    fn tls_needs_more_memory() {
        let with_tls = CheckRequest {
            tls: true,
            ..million()
        };
        let needed = |request: &CheckRequest| finding(request, &tuned(), &Ok(()), "memory").needed;
        assert_eq!(needed(&million()), "4580 MiB (4802 bytes each)");
        assert_eq!(needed(&with_tls), "6964 MiB (7302 bytes each)");
    }

    #[test]
    fn nothing_that_is_known_is_nothing_but_warnings() {
        let report = Report::new(&million(), &HostFacts::default(), &Ok(()));
        assert!(report.passes(), "{report}");
        assert!(report.to_string().contains("unknown"));
    }

    /// The values of `name` in a file of `name = values` lines.
    fn settings(file: &str, name: &str) -> Vec<u64> {
        file.lines()
            .filter_map(|line| line.trim_start_matches('-').split_once(" = "))
            .find(|(key, _)| *key == name)
            .map(|(_, values)| {
                values
                    .split_whitespace()
                    .map(|value| value.parse().expect("a number"))
                    .collect()
            })
            .unwrap_or_else(|| panic!("{name} is in the file"))
    }

    #[test]
    fn the_shipped_settings_hold_a_million_with_64_shards() {
        let sysctl = include_str!("../tuning/sysctl.d/90-ringcable.conf");
        let unit = include_str!("../tuning/limits/systemd/ringcable.conf");
        let value = |name| *settings(sysctl, name).last().expect("a value");
        let limit = |name: &str| -> &str {
            unit.lines()
                .find_map(|line| line.strip_prefix(name))
                .expect("in the unit")
        };
        let files = limit("LimitNOFILE=").parse().expect("a number");
        let locked_mib: u64 = limit("LimitMEMLOCK=")
            .strip_suffix('M')
            .and_then(|number| number.parse().ok())
            .expect("a number of MiB");
        let ports = settings(sysctl, "net.ipv4.ip_local_port_range");
        let facts = HostFacts {
            open_files: Some(Limit {
                soft: files,
                hard: files,
            }),
            nr_open: Some(value("fs.nr_open")),
            files: Some(SystemFiles {
                max: value("fs.file-max"),
                open: 10_000,
            }),
            tcp_pages_max: Some(value("net.ipv4.tcp_mem")),
            accept_queue_max: Some(value("net.core.somaxconn")),
            syn_cookies: Some(false),
            syn_queue_max: Some(value("net.ipv4.tcp_max_syn_backlog")),
            local_ports: Some(ports[1] + 1 - ports[0]),
            tracking: Some(Tracking {
                max: value("net.netfilter.nf_conntrack_max"),
                count: 1,
            }),
            locked_memory: Some(Limit {
                soft: locked_mib << 20,
                hard: locked_mib << 20,
            }),
            cpus: 64,
            ..tuned()
        };
        let report = Report::new(&million(), &facts, &Ok(()));
        assert!(report.passes(), "{report}");
        assert_eq!(report.count(Verdict::Warn), 0, "{report}");
    }

    #[test]
    fn the_documents_have_the_figures_of_the_code() {
        let readme = include_str!("../tuning/README.md");
        let thousands = |number: u64| match number {
            0..1_000 => number.to_string(),
            _ => format!("{},{:03}", number / 1_000, number % 1_000),
        };
        for bytes in [
            connection::USER_BYTES,
            connection::TEXT_BYTES,
            connection::SOCKET_BYTES,
            connection::POLL_BYTES,
        ] {
            let cell = format!(" | {} | ", thousands(bytes));
            assert!(readme.contains(&cell), "no {cell:?} in tuning/README.md");
        }
        let sum = thousands(connection::BYTES);
        assert!(readme.contains(&format!("**{sum}**")), "{sum}");
        let unit = include_str!("../tuning/limits/systemd/ringcable.conf");
        assert!(unit.contains(&format!("{sum} bytes per connection")));
    }

    #[test]
    fn each_fact_has_its_verdict() {
        fn check(name: &str, spoil: impl FnOnce(&mut HostFacts), expected: Verdict, current: &str) {
            let mut facts = tuned();
            spoil(&mut facts);
            let finding = finding(&million(), &facts, &Ok(()), name);
            assert_eq!(
                (finding.verdict, finding.current.as_str()),
                (expected, current),
                "{finding}"
            );
        }
        let limit = |soft, hard| Some(Limit { soft, hard });
        use Verdict::{Fail, Warn};
        check(
            "nofile",
            |facts| facts.open_files = limit(1024, 1_000_431),
            Fail,
            "1024 soft, 1000431 hard",
        );
        check(
            "nofile",
            |facts| facts.open_files = limit(1024, 1_000_432),
            Verdict::Ok,
            "1024 soft, 1000432 hard",
        );
        check(
            "nofile",
            |facts| facts.open_files = limit(u64::MAX, u64::MAX),
            Verdict::Ok,
            "unlimited soft, unlimited hard",
        );
        check("nofile", |facts| facts.open_files = None, Warn, "unknown");
        check("fs.nr_open", |facts| facts.nr_open = Some(1), Fail, "1");
        check(
            "fs.file-max",
            |facts| {
                facts.files = Some(SystemFiles {
                    max: 1_000_200,
                    open: 100,
                })
            },
            Fail,
            "1000100",
        );
        let needed = 1_000_000 * connection::BYTES;
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        for (bytes, verdict) in [
            (needed - 1, Fail),
            (needed, Warn),
            (needed + needed / 4 - 1, Warn),
            (needed + needed / 4, Verdict::Ok),
        ] {
            check(
                "memory",
                |facts| facts.memory_available_bytes = Some(bytes),
                verdict,
                &mib(bytes),
            );
            check(
                "cgroup memory",
                |facts| facts.cgroup_memory_bytes = Some(bytes),
                verdict,
                &mib(bytes),
            );
        }
        check(
            "net.ipv4.tcp_mem",
            |facts| facts.tcp_pages_max = Some(999_999),
            Warn,
            "999999",
        );
        check(
            "net.core.somaxconn",
            |facts| facts.accept_queue_max = Some(4096),
            Warn,
            "4096",
        );
        check(
            "net.ipv4.tcp_max_syn_backlog",
            |facts| facts.syn_cookies = Some(false),
            Warn,
            "2048",
        );
        check(
            "net.ipv4.tcp_max_syn_backlog",
            |_| {},
            Verdict::Ok,
            "2048 with SYN cookies",
        );
        check(
            "net.ipv4.ip_local_port_range",
            |facts| facts.local_ports = Some(447),
            Warn,
            "447",
        );
        let tracking = |max, count| Some(Tracking { max, count });
        let name = "net.netfilter.nf_conntrack_max";
        check(
            name,
            |facts| facts.tracking = tracking(262_144, 0),
            Warn,
            "262144, unused",
        );
        check(
            name,
            |facts| facts.tracking = tracking(262_144, 7),
            Fail,
            "262144",
        );
        check(
            name,
            |facts| facts.tracking = tracking(1_000_000, 7),
            Verdict::Ok,
            "1000000",
        );
        // Eight shards take 1,632 KiB.
        check(
            "memlock",
            |facts| facts.locked_memory = limit(1887 << 10, u64::MAX),
            Warn,
            "1887 KiB",
        );
        check(
            "memlock",
            |facts| facts.locked_memory = limit(1888 << 10, u64::MAX),
            Verdict::Ok,
            "1888 KiB",
        );
        check(
            "memlock",
            |facts| (facts.locked_memory, facts.locks_without_limit) = (limit(0, 0), true),
            Verdict::Ok,
            "unlimited (CAP_IPC_LOCK)",
        );
        // A million pings of 9.7 µs every 3 s keep 3.23 CPUs busy.
        check("cpus", |facts| facts.cpus = 3, Warn, "3");
        check("cpus", |facts| facts.cpus = 4, Verdict::Ok, "4");
    }

    #[test]
    fn what_is_asked_for_counts() {
        fn check(
            name: &str,
            ask: impl FnOnce(&mut CheckRequest),
            io_uring: &Result<(), String>,
            expected: Verdict,
        ) {
            let mut request = million();
            ask(&mut request);
            let mut facts = tuned();
            facts.locked_memory = Some(Limit { soft: 0, hard: 0 });
            let finding = finding(&request, &facts, io_uring, name);
            assert_eq!(finding.verdict, expected, "{finding}");
        }
        use Verdict::{Fail, Warn};
        let refused = Err("blocked".to_string());
        let driver = |driver| move |request: &mut CheckRequest| request.driver = driver;
        check("io_uring", |_| {}, &refused, Warn);
        check("io_uring", driver(DriverChoice::IoUring), &refused, Fail);
        check(
            "io_uring",
            driver(DriverChoice::Epoll),
            &refused,
            Verdict::Ok,
        );
        check("memlock", driver(DriverChoice::Auto), &refused, Warn);
        check("memlock", driver(DriverChoice::IoUring), &refused, Fail);
        check(
            "memlock",
            driver(DriverChoice::Epoll),
            &refused,
            Verdict::Ok,
        );
        let max = |max| move |request: &mut CheckRequest| request.connections_max = max;
        check("max-conn", max(0), &refused, Verdict::Ok);
        check("max-conn", max(999_999), &refused, Fail);
        check("max-conn", max(1_000_000), &refused, Verdict::Ok);
        check("cpus", |request| request.cores = Some(9), &refused, Warn);
        check(
            "cpus",
            |request| request.ping_interval = Duration::ZERO,
            &refused,
            Verdict::Ok,
        );
    }

    #[test]
    fn a_line_says_what_is_there_what_is_needed_and_how_to_get_it() {
        let mut facts = tuned();
        facts.accept_queue_max = Some(128);
        let line = finding(&million(), &facts, &Ok(()), "net.core.somaxconn").to_string();
        assert_eq!(
            line,
            "WARN net.core.somaxconn             128, needs 62500; sysctl -w net.core.somaxconn=62500"
        );
    }

    #[test]
    fn absurd_requests_do_not_overflow() {
        let mut request = million();
        request.connections = u64::MAX;
        request.connections_max = usize::MAX;
        assert!(!Report::new(&request, &tuned(), &Ok(())).passes());
    }
}
