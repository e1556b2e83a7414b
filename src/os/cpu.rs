//! Which CPUs this process may use, how to pin a thread to one of them, and how much CPU time the threads have used.

use std::fs;
use std::io;
use std::mem;
use std::num::NonZero;
use std::thread;
use std::time::Duration;

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

/// Lowers the priority of the calling thread: `niceness` is 0 for all other threads, and 19 is the lowest priority.
///
/// # Errors
/// The error of setpriority(2).
pub fn make_way(niceness: i32) -> io::Result<()> {
    // SAFETY: the call has no memory arguments. On Linux 0 stands for the calling thread.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of shards without `--cores`: the allowed CPUs, limited by the CPU quota of the cgroup and of those above it
/// (rounded down, at least 1), as container users expect.
pub fn default_cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// User and kernel CPU time of each thread of this process whose name is `prefix` and a number. The kernel reports it in
/// hundredths of a second.
pub fn times_of_threads(prefix: &str) -> Vec<(usize, Duration)> {
    let tasks = fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| {
            // The thread may have ended since the directory was read.
            let stat = fs::read_to_string(task.path().join("stat")).ok()?;
            let (name, time) = parse_stat(&stat)?;
            Some((name.strip_prefix(prefix)?.parse().ok()?, time))
        })
        .collect()
}

/// Name and CPU time in a line of `/proc/<pid>/stat`: `42 (shard-0) S 1 …`, where utime and stime are the 14th and 15th
/// field.
fn parse_stat(line: &str) -> Option<(&str, Duration)> {
    const TICK_MILLIS: u64 = 10;
    let (head, rest) = line.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    let mut times = rest.split(' ').skip(11);
    let mut ticks = || times.next()?.parse::<u64>().ok();
    let sum = ticks()?.saturating_add(ticks()?);
    Some((name, Duration::from_millis(sum.saturating_mul(TICK_MILLIS))))
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
        let thread = thread::Builder::new().name("worker-7".to_owned());
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
    fn pinning_to_an_allowed_cpu_works_and_to_an_absurd_one_fails() {
        let cpus = allowed();
        thread::spawn(move || {
            pin_current_thread(cpus[0]).expect("an allowed CPU");
            assert_eq!(allowed(), vec![cpus[0]]);
            assert_eq!(default_cores(), 1, "no more shards than CPUs are allowed");
            assert!(pin_current_thread(usize::MAX).is_err());
        })
        .join()
        .expect("the pinned thread ends well");
    }
}
