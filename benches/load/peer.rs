//! A server under measurement: starts the binary, reads its memory and CPU from /proc, asks its endpoints, stops it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::sys::{self, Cpu};

/// How long a server may take to answer its health check.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How long a server may take to end after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How ringcable waits for its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    IoUring,
    Epoll,
}

impl Driver {
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "io_uring" => Ok(Self::IoUring),
            "epoll" => Ok(Self::Epoll),
            other => Err(format!("--driver takes io_uring or epoll, not {other:?}")),
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Target {
    /// The server's name in results.
    pub name: &'static str,
    pub binary: PathBuf,
    /// Flags that only this binary knows.
    pub own_flags: Vec<String>,
    pub environment: Vec<(&'static str, String)>,
    pub cores: usize,
}

impl Target {
    pub fn ringcable(driver: Driver, cores: usize) -> Self {
        let (name, driver) = match driver {
            Driver::IoUring => ("ringcable", "io_uring"),
            Driver::Epoll => ("ringcable epoll", "epoll"),
        };
        Self {
            name,
            binary: env!("CARGO_BIN_EXE_ringcable").into(),
            own_flags: vec![format!("--driver={driver}"), format!("--cores={cores}")],
            environment: Vec::new(),
            cores,
        }
    }

    /// Another binary with the same flags.
    pub fn peer(binary: &Path, cores: usize) -> Self {
        Self {
            name: "peer",
            binary: binary.to_owned(),
            own_flags: Vec::new(),
            environment: vec![("GOMAXPROCS", cores.to_string())],
            cores,
        }
    }

    /// The CPUs of the server: the first ones.
    pub fn cpus(&self) -> Vec<usize> {
        (0..self.cores.min(machine_cpus())).collect()
    }

    /// The CPUs that are left for the clients; all of them when none is left.
    pub fn client_cpus(&self) -> Vec<usize> {
        (self.cores..machine_cpus()).collect()
    }
}

fn machine_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// User memory of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Pages that no other process shares.
    pub private_bytes: u64,
    pub rss_bytes: u64,
}

/// Flags for streams without an app: everybody may connect and subscribe to public streams.
pub fn public_flags() -> Vec<String> {
    ["--public", "--norpc", "--broadcast_adapter=http"]
        .map(str::to_owned)
        .into()
}

/// A running server. Dropping it stops it.
pub struct Peer {
    pub name: &'static str,
    pub address: SocketAddrV4,
    pub broadcast_address: SocketAddrV4,
    /// All flags it was started with.
    pub flags: Vec<String>,
    /// From the start of the process to the first 200 of `/health`.
    pub started_in: Duration,
    child: Child,
    log: PathBuf,
}

impl Peer {
    /// Starts a server and waits until it is healthy. With a group, the kernel's memory for it is counted there.
    ///
    /// # Panics
    /// When the server does not start: there is nothing to measure then.
    pub fn start(target: &Target, flags: &[String], group: Option<&KernelMemory>) -> Self {
        let (address, broadcast_address) = (free_address(), free_address());
        let mut all = vec![
            "--host=127.0.0.1".to_owned(),
            format!("--port={}", address.port()),
            format!("--http_broadcast_port={}", broadcast_address.port()),
            "--metrics_http=/metrics".to_owned(),
        ];
        all.extend(flags.iter().chain(&target.own_flags).cloned());
        let log = std::env::temp_dir().join(format!("ringcable-load-{}.log", address.port()));
        let output = File::create(&log).expect("a log file can be made");
        let mut command = Command::new(&target.binary);
        command
            .args(&all)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle of a file"))
            .stderr(output);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ANYCABLE_") {
                command.env_remove(name);
            }
        }
        command.envs(target.environment.iter().cloned());
        enter(&mut command, target.cpus(), group);
        let begun = Instant::now();
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", target.binary.display()));
        let mut peer = Self {
            name: target.name,
            address,
            broadcast_address,
            flags: all,
            started_in: Duration::ZERO,
            child,
            log,
        };
        peer.wait_healthy(begun);
        peer.started_in = begun.elapsed();
        peer
    }

    fn wait_healthy(&mut self, begun: Instant) {
        while http_get(self.address, "/health").is_none_or(|(status, _)| status != 200) {
            let ended = self.child.try_wait().expect("a child can be asked");
            if ended.is_some() || begun.elapsed() > START_PATIENCE {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                panic!("{} does not get healthy ({ended:?}):\n{log}", self.name);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// User memory now.
    pub fn memory(&self) -> Memory {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))
            .expect("the server runs");
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
            kib.and_then(|kib| kib.parse::<u64>().ok())
                .expect("a line of smaps_rollup")
                * 1024
        };
        Memory {
            private_bytes: bytes("Private_Clean:") + bytes("Private_Dirty:"),
            rss_bytes: bytes("Rss:"),
        }
    }

    /// User memory once it stands still: the same in two looks, or after two seconds.
    pub fn settled_memory(&self) -> Memory {
        let mut last = self.memory();
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(200));
            let now = self.memory();
            if now.private_bytes == last.private_bytes {
                return now;
            }
            last = now;
        }
        last
    }

    /// CPU used so far: the sum is exact to the nanosecond, its split is the kernel's sampling.
    pub fn cpu(&self) -> Cpu {
        let tasks = format!("/proc/{}/task", self.pid());
        let mut nanos = 0;
        for task in fs::read_dir(tasks).expect("the server runs").flatten() {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanos += text
                .split(' ')
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0);
        }
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the server runs");
        let (user, system) = ticks(&stat);
        let total = Duration::from_nanos(nanos);
        let user = total.mul_f64(user as f64 / (user + system).max(1) as f64);
        Cpu {
            user,
            system: total - user,
        }
    }

    /// Threads of the process.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).map_or(0, Iterator::count)
    }

    /// The sum of a counter over its labels; `None` when the server does not have it.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, page) = http_get(self.address, "/metrics")?;
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            if !rest.starts_with(['{', ' ']) {
                return None;
            }
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        });
        values.reduce(|sum, value| sum + value)
    }

    /// Stops the server and waits for its end.
    pub fn stop(self) {}

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        // It may have ended by itself.
        let _ = kill_process(pid.expect("a process has a number"), signal);
    }

    fn wait_end(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        if !self.wait_end(STOP_PATIENCE) {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the log of {} is in {}", self.name, self.log.display());
        } else {
            let _ = fs::remove_file(&self.log);
        }
    }
}

/// The user and system ticks of a line of /proc/PID/stat.
fn ticks(stat: &str) -> (u64, u64) {
    // The second field is a name in brackets and may hold anything.
    let behind_name = stat.rsplit(')').next().unwrap_or("");
    let field = |number: usize| {
        behind_name
            .split_whitespace()
            .nth(number - 3)
            .and_then(|word| word.parse().ok())
    };
    (field(14).unwrap_or(0), field(15).unwrap_or(0))
}

/// Makes a child begin on its CPUs and in its memory group.
pub fn enter(command: &mut Command, cpus: Vec<usize>, group: Option<&KernelMemory>) {
    let members = group.map(KernelMemory::members);
    // SAFETY: between fork and exec the closure makes two system calls and touches no lock and no heap.
    unsafe {
        command.pre_exec(move || {
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
    /// Makes a group, where this machine lets us.
    pub fn new() -> Option<Self> {
        let name = format!("ringcable-load-{}", std::process::id());
        [("/sys/fs/cgroup/memory", false), ("/sys/fs/cgroup", true)]
            .into_iter()
            .find_map(|(root, version_2)| {
                let folder = Path::new(root).join(&name);
                let _ = fs::create_dir(&folder);
                let group = Self { folder, version_2 };
                if !version_2 {
                    // Socket buffers are counted only where they are limited.
                    let _ = fs::write(
                        group.folder.join("memory.kmem.tcp.limit_in_bytes"),
                        (1u64 << 50).to_string(),
                    );
                }
                group.read().is_some().then_some(group)
            })
    }

    /// Bytes of slabs, page tables, stacks and socket buffers now.
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
        let _ = fs::remove_dir(&self.folder);
    }
}

/// An address of this machine whose port is free now.
pub fn free_address() -> SocketAddrV4 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let port = listener
        .local_addr()
        .expect("a bound socket has an address")
        .port();
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// One GET; `None` when there is no whole answer.
fn http_get(address: SocketAddrV4, path: &str) -> Option<(u16, String)> {
    let mut socket = TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
