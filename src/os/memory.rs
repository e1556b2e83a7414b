//! Memory and thread figures of this process for the gauges, and the memory that it may use.

use std::fs;

use super::{cgroup, limits};

/// A cgroup v1 without a limit reports the largest multiple of a page; no real limit is near it.
const UNLIMITED_BYTES: u64 = 1 << 62;

/// Makes this process use pages of 4 KiB, also where the host would use huge pages. With huge pages every shard starts with
/// megabytes that it does not need, and after a storm a huge page is not given back while one small block in it is in use. A
/// kernel that does not know this call has no huge pages.
pub fn refuse_huge_pages() {
    // SAFETY: PR_SET_THP_DISABLE takes plain numbers and changes nothing but how later page faults of this process are
    // served.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
}

/// Makes the allocator look through the calling thread's heap. The first call marks free memory; a call that comes at least
/// a second later gives it to the kernel. A look at 250 MB takes about a millisecond, giving back 400 MB takes 70 ms. The
/// collection is not forced: a forced one follows every list of freed blocks, which takes 150 ms after a million of them.
pub fn give_back() {
    // SAFETY: has no preconditions; blocks in use stay where they are.
    unsafe { libmimalloc_sys::mi_collect(false) };
}

/// Resident bytes of this process, 0 when /proc cannot be read.
pub fn resident_bytes() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm
        .split_whitespace()
        .nth(1)
        .and_then(|field| field.parse().ok())
        .unwrap_or(0);
    // SAFETY: sysconf has no preconditions; _SC_PAGESIZE is always known on Linux.
    let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages * u64::try_from(page_bytes).unwrap_or(4096)
}

/// The number of threads, and the memory that this process does not share.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    pub threads: u64,
    /// Anonymous memory, swapped out or not.
    pub private_bytes: u64,
}

/// Zeroes when /proc cannot be read.
pub fn status() -> Status {
    parse_status(&fs::read_to_string("/proc/self/status").unwrap_or_default())
}

fn parse_status(text: &str) -> Status {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0)
    };
    Status {
        threads: value("Threads:"),
        private_bytes: (value("RssAnon:") + value("VmSwap:")) * 1024,
    }
}

/// Bytes that the kernel could give to programs without swapping (`MemAvailable`).
pub fn available_bytes() -> Option<u64> {
    meminfo_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The smallest of the limits on this process's memory: the memory of the host, the limits of its cgroups, and half of
/// RLIMIT_DATA and RLIMIT_AS. Only half of these two, because they count what the allocator keeps mapped, not what is in
/// use. `None` when none of them can be read.
pub fn limit_bytes() -> Option<u64> {
    let host = fs::read_to_string("/proc/meminfo").ok();
    let host = host.and_then(|meminfo| meminfo_bytes(&meminfo, "MemTotal:"));
    let of_process = limits::memory()
        .into_iter()
        .filter(|&bytes| bytes < u64::MAX);
    let of_process = of_process.map(|bytes| bytes / 2);
    host.into_iter()
        .chain(cgroup_limit_bytes())
        .chain(of_process)
        .min()
}

/// The smallest memory limit of this process's cgroup and those above it; `None` without a limit. The kernel memory of
/// sockets counts towards this limit.
pub fn cgroup_limit_bytes() -> Option<u64> {
    smallest_limit(
        &fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        |path| fs::read_to_string(path).ok(),
    )
}

/// cgroup v2 says `max` where there is no limit.
fn smallest_limit(proc_self_cgroup: &str, read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    cgroup::directories(proc_self_cgroup, "memory")
        .iter()
        .filter_map(|directory| {
            read(&format!("{directory}/memory.max"))
                .or_else(|| read(&format!("{directory}/memory.limit_in_bytes")))
        })
        .filter_map(|text| text.trim().parse().ok())
        .filter(|&bytes| bytes < UNLIMITED_BYTES)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_running_process_are_not_zero() {
        assert!(resident_bytes() > 100_000);
        assert!(status().threads >= 1);
        assert!(status().private_bytes > 10_000);
        assert!(limit_bytes().is_some_and(|bytes| bytes > 10_000));
    }

    #[test]
    fn private_memory_is_anonymous_memory_swapped_out_or_not() {
        let text = "Threads:\t3\nRssAnon:\t     100 kB\nRssFile:\t 7 kB\nVmSwap:\t       4 kB\n";
        let expected = Status {
            threads: 3,
            private_bytes: 104 * 1024,
        };
        assert_eq!(parse_status(text), expected);
        assert_eq!(parse_status("Threads:\tmany\n"), Status::default());
    }

    #[test]
    fn available_memory_is_in_bytes() {
        assert_eq!(
            meminfo_bytes("MemFree: 1 kB\nMemAvailable:      12 kB\n", "MemAvailable:"),
            Some(12_288)
        );
        assert_eq!(meminfo_bytes("MemFree: 1 kB\n", "MemAvailable:"), None);
    }

    #[test]
    fn the_smallest_memory_limit_on_the_way_up_counts() {
        fn check(proc_self_cgroup: &str, files: &[(&str, &str)], expected: Option<u64>) {
            let found = smallest_limit(proc_self_cgroup, |path| {
                let file = files.iter().find(|(name, _)| *name == path);
                file.map(|(_, text)| (*text).to_string())
            });
            assert_eq!(found, expected, "{proc_self_cgroup:?}");
        }
        let unit = "0::/system.slice/ringcable.service\n";
        check(unit, &[], None);
        check(
            unit,
            &[
                (
                    "/sys/fs/cgroup/system.slice/ringcable.service/memory.max",
                    "max\n",
                ),
                ("/sys/fs/cgroup/system.slice/memory.max", "1000\n"),
            ],
            Some(1000),
        );
        check(
            "4:memory:/docker/abc\n",
            &[
                (
                    "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes",
                    "2000\n",
                ),
                (
                    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                    "9223372036854771712\n",
                ),
            ],
            Some(2000),
        );
    }
}
