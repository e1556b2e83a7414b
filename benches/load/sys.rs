//! The few system calls without a safe wrapper, each in its own function. All other unsafe code of this program is in
//! `limit` and `experiments`.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use rustix::thread::{CpuSet, UnshareFlags, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// CPU time, with the kernel's split.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    pub user: Duration,
    pub system: Duration,
}

impl Cpu {
    pub fn total(self) -> Duration {
        self.user + self.system
    }

    /// The time used since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

impl std::ops::AddAssign for Cpu {
    fn add_assign(&mut self, other: Self) {
        self.user += other.user;
        self.system += other.system;
    }
}

/// Nanoseconds of CLOCK_MONOTONIC: the same clock in every process of this machine.
pub fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Gives the calling thread its own descriptor table, which holds only the standard streams and `kept`.
///
/// The limit on open files applies to one table and not to a whole process, so more threads can hold more sockets.
pub fn own_descriptor_table(kept: RawFd) -> io::Result<()> {
    // SAFETY: the thread has just begun and owns no descriptor; what the table of the process held stays open there.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FILES)? };
    let kept = u32::try_from(kept).expect("an open descriptor");
    close_range(3, kept - 1)?;
    close_range(kept + 1, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: called on a table of copies that nothing else refers to (see `own_descriptor_table`).
    match unsafe { libc::close_range(first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// CPU used by the calling thread.
pub fn thread_cpu() -> Cpu {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a rusage that may be written, and all zeroes is a valid one.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    let duration = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    Cpu {
        user: duration(usage.ru_utime),
        system: duration(usage.ru_stime),
    }
}

/// Lets a bound socket choose its port when it connects, so that ports are counted per destination.
pub fn bind_address_no_port(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the whole call, the value is an int of the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Pins the calling thread (or the calling process, before it has threads) to these CPUs; empty: any CPU.
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}
