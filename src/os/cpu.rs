//! Which CPUs this process may use, and pinning a thread to one of them.

use std::fs;
use std::io;
use std::mem;

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
    match cgroup_quota(&fs::read_to_string("/sys/fs/cgroup/cpu.max").unwrap_or_default()) {
        Some(quota) => allowed.min(quota.max(1)),
        None => allowed,
    }
}

/// Whole CPUs granted by a cgroup v2 `cpu.max` line (`<quota> <period>` in microseconds); `None` when unlimited.
fn cgroup_quota(cpu_max: &str) -> Option<usize> {
    let mut words = cpu_max.split_whitespace();
    let quota: u64 = words.next()?.parse().ok()?;
    let period: u64 = words.next()?.parse().ok()?;
    (period > 0).then(|| (quota / period) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_quota_is_rounded_down_and_max_means_unlimited() {
        fn check(text: &str, expected: Option<usize>) {
            assert_eq!(cgroup_quota(text), expected, "{text:?}");
        }
        check("max 100000\n", None);
        check("200000 100000\n", Some(2));
        check("250000 100000\n", Some(2));
        check("50000 100000\n", Some(0));
        check("", None);
        check("1 0", None);
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
