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

/// A host that holds a million connections.
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
    assert_eq!(report.count(Severity::Warn), 0, "{report}");
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
    let sysctl = include_str!("../../../tuning/sysctl.d/90-ringcable.conf");
    let unit = include_str!("../../../tuning/limits/systemd/ringcable.conf");
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
    assert_eq!(report.count(Severity::Warn), 0, "{report}");
}

#[test]
fn the_documents_have_the_figures_of_the_code() {
    let readme = include_str!("../../../tuning/README.md");
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
    let unit = include_str!("../../../tuning/limits/systemd/ringcable.conf");
    assert!(unit.contains(&format!("{sum} bytes per connection")));
}

#[test]
fn each_fact_has_its_severity() {
    fn check(name: &str, spoil: impl FnOnce(&mut HostFacts), expected: Severity, current: &str) {
        let mut facts = tuned();
        spoil(&mut facts);
        let finding = finding(&million(), &facts, &Ok(()), name);
        assert_eq!(
            (finding.severity, finding.current.as_str()),
            (expected, current),
            "{finding}"
        );
    }
    let limit = |soft, hard| Some(Limit { soft, hard });
    use Severity::{Fail, Warn};
    check(
        "nofile",
        |facts| facts.open_files = limit(1024, 1_000_487),
        Fail,
        "1024 soft, 1000487 hard",
    );
    check(
        "nofile",
        |facts| facts.open_files = limit(1024, 1_000_488),
        Severity::Ok,
        "1024 soft, 1000488 hard",
    );
    check(
        "nofile",
        |facts| facts.open_files = limit(u64::MAX, u64::MAX),
        Severity::Ok,
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
    for (bytes, severity) in [
        (needed - 1, Fail),
        (needed, Warn),
        (needed + needed / 4 - 1, Warn),
        (needed + needed / 4, Severity::Ok),
    ] {
        check(
            "memory",
            |facts| facts.memory_available_bytes = Some(bytes),
            severity,
            &mib(bytes),
        );
        check(
            "cgroup memory",
            |facts| facts.cgroup_memory_bytes = Some(bytes),
            severity,
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
        Severity::Ok,
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
        Severity::Ok,
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
        Severity::Ok,
        "1888 KiB",
    );
    check(
        "memlock",
        |facts| (facts.locked_memory, facts.locks_without_limit) = (limit(0, 0), true),
        Severity::Ok,
        "unlimited (CAP_IPC_LOCK)",
    );
    // A million pings of 9.7 µs every 3 s keep 3.23 CPUs busy.
    check("cpus", |facts| facts.cpus = 3, Warn, "3");
    check("cpus", |facts| facts.cpus = 4, Severity::Ok, "4");
}

#[test]
fn what_is_asked_for_counts() {
    fn check(
        name: &str,
        ask: impl FnOnce(&mut CheckRequest),
        io_uring: &Result<(), String>,
        expected: Severity,
    ) {
        let mut request = million();
        ask(&mut request);
        let mut facts = tuned();
        facts.locked_memory = Some(Limit { soft: 0, hard: 0 });
        let finding = finding(&request, &facts, io_uring, name);
        assert_eq!(finding.severity, expected, "{finding}");
    }
    use Severity::{Fail, Warn};
    let refused = Err("blocked".to_string());
    let driver = |driver| move |request: &mut CheckRequest| request.driver = driver;
    check("io_uring", |_| {}, &refused, Warn);
    check("io_uring", driver(DriverChoice::IoUring), &refused, Fail);
    check(
        "io_uring",
        driver(DriverChoice::Epoll),
        &refused,
        Severity::Ok,
    );
    check("memlock", driver(DriverChoice::Auto), &refused, Warn);
    check("memlock", driver(DriverChoice::IoUring), &refused, Fail);
    check(
        "memlock",
        driver(DriverChoice::Epoll),
        &refused,
        Severity::Ok,
    );
    let max = |max| move |request: &mut CheckRequest| request.connections_max = max;
    check("max-conn", max(0), &refused, Severity::Ok);
    check("max-conn", max(999_999), &refused, Fail);
    check("max-conn", max(1_000_000), &refused, Severity::Ok);
    check("cpus", |request| request.cores = Some(9), &refused, Warn);
    check(
        "cpus",
        |request| request.ping_interval = Duration::ZERO,
        &refused,
        Severity::Ok,
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
