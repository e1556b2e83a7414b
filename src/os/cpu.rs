//! Which CPUs this process may use, pinning a thread to one of them, and how much time the threads have used.

use std::fs;
use std::io;
use std::mem;
use std::time::Duration;

use super::cgroup;

/// The CPU numbers in the affinity mask of the calling thread, ascending; never empty.
pub fn allowed() -> Vec<usize> {
    // SAFETY: cpu_set_t is a plain bit array, for which all zeroes is a valid value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer and the size describe `set`, which outlives the call; pid 0 is the calling thread.
    let result = unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &mut set) };
    if result != 0 {
        return vec![0];
    }
    let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
        // SAFETY: every index is below CPU_SETSIZE, the number of bits in the set.
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Pins the calling thread to `cpu`.
///
/// # Errors
/// The error of sched_setaffinity(2), for example when the CPU is not in the allowed set.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: cpu_set_t is a plain bit array, for which all zeroes is a valid value.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `cpu` is below CPU_SETSIZE, checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the pointer and the size describe `set`, which outlives the call.
    match unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of shards to start when `--cores` is not given: the allowed CPUs, cut to the cgroup's CPU quota (rounded
/// down, at least 1) as container users expect.
pub fn default_cores() -> usize {
    let allowed = allowed().len();
    quota().map_or(allowed, |quota| allowed.min(quota.max(1)))
}

/// CPU time, user and kernel, of each thread of this process whose name is `prefix` and a number. The kernel tells it in
/// hundredths of a second.
pub fn times_of_threads(prefix: &str) -> Vec<(usize, Duration)> {
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| {
            // A thread may end meanwhile.
            let stat = fs::read_to_string(task.path().join("stat")).ok()?;
            let (name, time) = parse_stat(&stat)?;
            Some((name.strip_prefix(prefix)?.parse().ok()?, time))
        })
        .collect()
}

/// Name and CPU time in a line of `/proc/<pid>/stat`: `42 (shard-0) S 1 …`, where utime and stime are the 14th and 15th field.
fn parse_stat(line: &str) -> Option<(&str, Duration)> {
    const TICK_MILLIS: u64 = 10;
    let (head, rest) = line.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    let mut times = rest.split(' ').skip(11);
    let mut ticks = || times.next()?.parse::<u64>().ok();
    let sum = ticks()?.saturating_add(ticks()?);
    Some((name, Duration::from_millis(sum.saturating_mul(TICK_MILLIS))))
}

/// Whole CPUs that the cgroup grants, rounded down; `None` without a quota.
fn quota() -> Option<usize> {
    smallest_quota(
        &fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        |path| fs::read_to_string(path).ok(),
    )
}

/// The smallest CPU quota of this process's cgroup and those above it: cgroup v2 (`cpu.max`) or v1 (`cpu.cfs_*`).
fn smallest_quota(proc_self_cgroup: &str, read: impl Fn(&str) -> Option<String>) -> Option<usize> {
    cgroup::directories(proc_self_cgroup, "cpu")
        .iter()
        .filter_map(|directory| quota_of(directory, &read))
        .min()
}

fn quota_of(directory: &str, read: &impl Fn(&str) -> Option<String>) -> Option<usize> {
    if let Some(line) = read(&format!("{directory}/cpu.max")) {
        return cgroup_quota(&line);
    }
    let quota = read(&format!("{directory}/cpu.cfs_quota_us"))?;
    let period = read(&format!("{directory}/cpu.cfs_period_us"))?;
    cgroup_quota(&format!("{} {}", quota.trim(), period.trim()))
}

/// Whole CPUs granted by a line `<quota> <period>` in microseconds; `None` when unlimited (`max` or -1).
fn cgroup_quota(line: &str) -> Option<usize> {
    let mut words = line.split_whitespace();
    let quota: u64 = words.next()?.parse().ok()?;
    let period: u64 = words.next()?.parse().ok()?;
    (period > 0).then(|| (quota / period) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_thread_are_found_by_its_name() {
        let work = || {
            let started = std::time::Instant::now();
            while started.elapsed() < Duration::from_millis(60) {
                std::hint::black_box(0);
            }
            times_of_threads("worker-")
        };
        let thread = std::thread::Builder::new().name("worker-7".to_owned());
        let times = thread
            .spawn(work)
            .expect("a thread")
            .join()
            .expect("no panic");
        let [(7, time)] = times[..] else {
            panic!("{times:?}");
        };
        assert!(time < Duration::from_secs(10), "{time:?}");
    }

    #[test]
    fn user_and_kernel_time_are_added_up() {
        let line = "42 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 1 0\n";
        assert_eq!(
            parse_stat(line),
            Some(("a (b) c", Duration::from_millis(1750)))
        );
        assert_eq!(parse_stat("42 (short) S 1 2\n"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn cgroup_quota_is_rounded_down_and_max_means_unlimited() {
        fn check(text: &str, expected: Option<usize>) {
            assert_eq!(cgroup_quota(text), expected, "{text:?}");
        }
        check("max 100000\n", None);
        check("200000 100000\n", Some(2));
        check("250000 100000\n", Some(2));
        check("50000 100000\n", Some(0));
        check("-1 100000", None);
        check("", None);
        check("1 0", None);
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts() {
        fn check(proc_self_cgroup: &str, files: &[(&str, &str)], expected: Option<usize>) {
            let found = smallest_quota(proc_self_cgroup, |path| {
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
                    "/sys/fs/cgroup/system.slice/ringcable.service/cpu.max",
                    "400000 100000",
                ),
                ("/sys/fs/cgroup/system.slice/cpu.max", "300000 100000"),
            ],
            Some(3),
        );
        check(
            "0::/\n",
            &[("/sys/fs/cgroup/cpu.max", "200000 100000")],
            Some(2),
        );
        check(
            "4:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n",
            &[
                ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000"),
                ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
            ],
            Some(1),
        );
    }

    #[test]
    fn pinning_to_an_allowed_cpu_works_and_to_an_absurd_one_fails() {
        let cpus = allowed();
        std::thread::spawn(move || {
            pin_current_thread(cpus[0]).expect("an allowed CPU");
            assert_eq!(allowed(), vec![cpus[0]]);
            assert!(pin_current_thread(usize::MAX).is_err());
        })
        .join()
        .expect("the pinned thread ends well");
    }
}
