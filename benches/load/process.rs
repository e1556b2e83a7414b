//! What the kernel reports about another process: its memory, its CPU, and the kernel memory for it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::process::{Signal, set_parent_process_death_signal};

use crate::sys::{self, Cpu};

/// How long to wait until a memory group is empty.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// User memory of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Memory that it shares with no other process.
    pub private_bytes: u64,
    pub rss_bytes: u64,
    /// As the above, but of memory that it shares only its part.
    pub proportional_bytes: u64,
}

/// User memory of a running process.
pub fn memory(pid: u32) -> Memory {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process runs");
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.parse::<u64>().ok())
            .expect("a line of smaps_rollup")
            * 1024
    };
    Memory {
        private_bytes: bytes("Private_Dirty:"),
        rss_bytes: bytes("Rss:"),
        proportional_bytes: bytes("Pss:"),
    }
}

/// Resident memory of a running process.
pub fn rss(pid: u32) -> u64 {
    status_bytes(pid, "VmRSS:")
}

/// The largest resident memory since [`reset_peak`], by the kernel's own count.
pub fn peak_rss(pid: u32) -> u64 {
    status_bytes(pid, "VmHWM:")
}

/// Makes [`peak_rss`] start again.
pub fn reset_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("a process of ours");
}

fn status_bytes(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok())
        .expect("a line of status")
        * 1024
}

/// How long the threads of a process were ready to run and had to wait for a CPU. A large value means that other processes
/// use this machine, so rates and latencies are less reliable.
pub fn waited(pid: u32) -> Duration {
    Duration::from_nanos(schedule_nanos(pid, 1))
}

/// CPU that a process has used so far. The sum is exact to the nanosecond; the split into user and system is sampled by the
/// kernel.
pub fn cpu(pid: u32) -> Cpu {
    let nanos = schedule_nanos(pid, 0);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let (user, system) = ticks(&stat);
    let total = Duration::from_nanos(nanos);
    let user = total.mul_f64(user as f64 / (user + system).max(1) as f64);
    Cpu {
        user,
        system: total.saturating_sub(user),
    }
}

/// The sum of a field of schedstat over the threads of a process.
fn schedule_nanos(pid: u32, field: usize) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let nanos = |folder: PathBuf| {
        let text = fs::read_to_string(folder.join("schedstat")).ok()?;
        text.split_whitespace().nth(field)?.parse::<u64>().ok()
    };
    tasks.flatten().filter_map(|task| nanos(task.path())).sum()
}

/// CPU that the first thread of a process has used so far.
pub fn main_thread_cpu(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat"));
    let nanos = text
        .ok()
        .and_then(|text| text.split(' ').next()?.parse().ok());
    Duration::from_nanos(nanos.expect("the process runs"))
}

/// How often threads with names that begin like this have gone to sleep so far.
pub fn sleeps(pid: u32, name_begin: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let sleeps = |folder: PathBuf| {
        let text = fs::read_to_string(folder.join("status")).ok()?;
        let value = |key: &str| Some(text.lines().find_map(|line| line.strip_prefix(key))?.trim());
        value("Name:")?
            .starts_with(name_begin)
            .then(|| value("voluntary_ctxt_switches:")?.parse::<u64>().ok())?
    };
    tasks.flatten().filter_map(|task| sleeps(task.path())).sum()
}

/// Open descriptors of a process.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Bytes in those slabs of the kernel that are charged to no memory group: plain kmalloc, for everything on this machine.
///
/// For example, the state of an armed receive is there.
pub fn uncharged_bytes() -> u64 {
    let text = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let bytes = text.lines().filter_map(|line| {
        let size = line.strip_prefix("kmalloc-")?;
        if !size.starts_with(|first: char| first.is_ascii_digit()) {
            return None;
        }
        let mut numbers = line
            .split_whitespace()
            .skip(1)
            .map(|word| word.parse::<u64>().ok());
        let (objects, _, object_bytes) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(objects * object_bytes)
    });
    bytes.sum()
}

/// CPUs of this machine. The first call must come before this program is pinned to some of them.
pub fn machine_cpus() -> usize {
    static CPUS: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));
    *CPUS
}

/// The user and system ticks of a line of /proc/PID/stat.
fn ticks(stat: &str) -> (u64, u64) {
    // The second field is a name in brackets that may contain any character, so parsing starts behind the last bracket.
    let behind_name = stat.rsplit(')').next().unwrap_or("");
    let field = |number: usize| {
        behind_name
            .split_whitespace()
            .nth(number - 3)
            .and_then(|word| word.parse().ok())
    };
    (field(14).unwrap_or(0), field(15).unwrap_or(0))
}

/// Starts a child on its CPUs and in its memory group, and makes it end with the thread that starts it.
pub fn enter(command: &mut Command, cpus: Vec<usize>, group: Option<&KernelMemory>) {
    let members = group.map(KernelMemory::members);
    // SAFETY: between fork and exec the closure makes three system calls and touches no lock and no heap.
    unsafe {
        command.pre_exec(move || {
            // So that an interrupted measurement leaves no server running.
            set_parent_process_death_signal(Some(Signal::TERM))?;
            if let Some(members) = &members {
                (&*members).write_all(b"0")?;
            }
            sys::pin(&cpus)
        });
    }
}

/// A memory control group: the kernel's own count of what it holds for one process.
pub struct KernelMemory {
    folder: PathBuf,
    version_2: bool,
}

impl KernelMemory {
    /// Creates a group, if this machine allows it.
    pub fn new() -> Option<Self> {
        let name = format!("ringcable-load-{}", std::process::id());
        [("/sys/fs/cgroup/memory", false), ("/sys/fs/cgroup", true)]
            .into_iter()
            .find_map(|(root, version_2)| {
                let folder = Path::new(root).join(&name);
                fs::create_dir(&folder).ok()?;
                let group = Self { folder, version_2 };
                if !version_2 {
                    // The kernel counts socket buffers only in groups with a limit on them.
                    let _ = fs::write(
                        group.folder.join("memory.kmem.tcp.limit_in_bytes"),
                        (1u64 << 50).to_string(),
                    );
                }
                group.read().is_some().then_some(group)
            })
    }

    /// The group into which a parent has put this process; the parent removes it.
    #[cfg(feature = "experiments")]
    pub fn of_this_process() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let name = groups
            .lines()
            .find_map(|line| line.rsplit_once("/ringcable-load-"))?
            .1;
        [("/sys/fs/cgroup/memory", false), ("/sys/fs/cgroup", true)]
            .into_iter()
            .map(|(root, version_2)| Self {
                folder: Path::new(root).join(format!("ringcable-load-{name}")),
                version_2,
            })
            .find(|group| group.read().is_some())
    }

    /// Current bytes of slabs, page tables, stacks and socket buffers.
    pub fn bytes(&self) -> u64 {
        self.read().unwrap_or(0)
    }

    fn read(&self) -> Option<u64> {
        let file = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        if self.version_2 {
            let text = file("memory.stat")?;
            let line = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|line| line.trim().parse::<u64>().ok())
            };
            return Some(line("kernel ")? + line("sock ")?);
        }
        let number = |name: &str| file(name)?.trim().parse::<u64>().ok();
        let buffers = number("memory.kmem.tcp.usage_in_bytes").unwrap_or(0);
        Some(number("memory.kmem.usage_in_bytes")? + buffers)
    }

    fn members(&self) -> File {
        let path = self.folder.join("cgroup.procs");
        OpenOptions::new()
            .write(true)
            .open(path)
            .expect("a group of our own takes members")
    }
}

impl Drop for KernelMemory {
    fn drop(&mut self) {
        // The last tasks of a process may leave its group a moment after `wait` has returned.
        let deadline = Instant::now() + REMOVE_PATIENCE;
        while fs::remove_dir(&self.folder).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
