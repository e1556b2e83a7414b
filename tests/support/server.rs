//! The real binary as a child process: start, logs, signals, exit, and never a survivor.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::http::{self, Response};
use super::rails::Gate;
use super::wait::{PATIENCE, until};

/// The back end of sockets and readiness. Every test runs on both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    IoUring,
    Epoll,
}

impl Driver {
    pub fn flag(self) -> &'static str {
        match self {
            Self::IoUring => "--driver=io_uring",
            Self::Epoll => "--driver=epoll",
        }
    }

    /// Whether this kernel lets us have it. Docker's default seccomp profile does not allow io_uring; `CI` must not pass by
    /// skipping, so `RINGCABLE_REQUIRE_IO_URING` turns the skip into a failure.
    pub fn is_available(self) -> bool {
        self == Self::Epoll || *IO_URING_IS_AVAILABLE
    }
}

/// Asked once, on a thread of its own: tearing a ring down later interrupts whatever its thread waits for.
static IO_URING_IS_AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
    let probe = thread::spawn(|| io_uring::IoUring::new(8).map(drop));
    match probe.join().expect("the probe does not panic") {
        Ok(()) => true,
        Err(error) => {
            let required = std::env::var_os("RINGCABLE_REQUIRE_IO_URING").is_some();
            assert!(
                !required,
                "io_uring is required here, but the kernel refuses it: {error}"
            );
            eprintln!("io_uring tests are skipped: the kernel refuses it: {error}");
            false
        }
    }
});

/// How to start the binary.
pub struct Launch {
    binary: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    directory: Option<PathBuf>,
    open_files_max: Option<u32>,
    data_bytes_max: Option<u64>,
    log: LogReader,
}

/// What becomes of the server's stdout.
enum LogReader {
    /// Read as it comes.
    Reads,
    /// Read from the moment in which the gate is opened.
    StandsStill(Gate),
    /// The server has this in place of a pipe of ours.
    Elsewhere(Stdio),
}

impl Launch {
    /// A listener of its own on loopback and two shards, so that mistakes between shards show.
    pub fn new(driver: Driver) -> Self {
        Self::bare().args(["--host=127.0.0.1", "--port=0", "--cores=2", driver.flag()])
    }

    /// No argument at all.
    pub fn bare() -> Self {
        Self::of(Path::new(env!("CARGO_BIN_EXE_ringcable")))
    }

    /// Another program, without arguments.
    pub fn of(binary: &Path) -> Self {
        Self {
            binary: binary.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            directory: None,
            open_files_max: None,
            log: LogReader::Reads,
            data_bytes_max: None,
        }
    }

    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Soft and hard limit of open files.
    pub fn open_files_max(mut self, count: u32) -> Self {
        self.open_files_max = Some(count);
        self
    }

    /// Nobody reads the log before `gate` is opened. To be started with [`Self::start_at`]: no port is read from it.
    pub fn log_is_read_after(mut self, gate: &Gate) -> Self {
        self.log = LogReader::StandsStill(gate.clone());
        self
    }

    /// The server's stdout. To be started with [`Self::start_at`]: its log is not seen.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.log = LogReader::Elsewhere(stdout.into());
        self
    }

    /// Soft and hard limit of private memory (RLIMIT_DATA).
    pub fn data_bytes_max(mut self, bytes: u64) -> Self {
        self.data_bytes_max = Some(bytes);
        self
    }

    /// Runs to the end, for what prints and exits.
    pub fn run(self) -> Finished {
        let process = Process::spawn(self);
        let status = process.wait_exit();
        Finished {
            status,
            stdout: process.stdout.text(),
            stderr: process.stderr.text(),
        }
    }

    /// Starts and waits until `/health` answers 200 on the port that the log names.
    pub fn start(self) -> Server {
        let server = self.spawn_without_health();
        until("/health to answer 200", || {
            server.assert_running();
            http::try_get(server.address, "/health").filter(|response| response.status == 200)
        });
        server
    }

    /// Starts with a log that names no port and waits until `port` accepts.
    pub fn start_at(self, port: u16) -> Server {
        let process = Process::spawn(self);
        let server = Server {
            process,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        };
        server.wait_until_it_accepts();
        server
    }

    /// Starts and waits until the port that the log names accepts.
    pub fn spawn_without_health(self) -> Server {
        Server::of(Process::spawn(self))
    }

    /// The same, with a SIGHUP as soon as the first line of the log is there.
    pub fn spawn_and_hang_up(self) -> Server {
        let process = Process::spawn(self);
        process
            .stdout
            .wait_for("the first line", |lines| lines.first().cloned());
        process.signal(Signal::HUP);
        Server::of(process)
    }
}

/// What a process that ended by itself left behind.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl fmt::Display for Finished {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}\n--- stdout\n{}\n--- stderr\n{}",
            self.status, self.stdout, self.stderr
        )
    }
}

/// A server that answers.
pub struct Server {
    process: Process,
    address: SocketAddr,
}

impl Server {
    /// Waits until the port that the log names accepts.
    fn of(process: Process) -> Self {
        let port = process.wait_for_port("Handle WebSocket connections at ");
        let server = Self {
            process,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
        };
        server.wait_until_it_accepts();
        server
    }

    fn wait_until_it_accepts(&self) {
        until("the port to accept", || {
            self.assert_running();
            TcpStream::connect(self.address).ok()
        });
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Established TCP connections that the server still holds on its main port, as the kernel counts them.
    pub fn sessions_open(&self) -> usize {
        let port = format!(":{:04X}", self.port());
        let established = |line: &&str| {
            let mut columns = line.split_whitespace().skip(1);
            let local = columns.next().unwrap_or_default();
            // State 01 is ESTABLISHED, 08 CLOSE_WAIT: closed by the client only.
            local.ends_with(&port) && matches!(columns.nth(1), Some("01" | "08"))
        };
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.process.pid));
        table
            .expect("the kernel has a TCP table")
            .lines()
            .filter(established)
            .count()
    }

    /// Whether the server has read everything that `client` has sent, as the kernel counts it.
    pub fn has_read_all(&self, client: &TcpStream) -> bool {
        let client = client.local_addr().expect("a connected socket").port();
        let (local, remote) = (format!(":{:04X}", self.port()), format!(":{client:04X}"));
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.process.pid));
        let table = table.expect("the kernel has a TCP table");
        let mut lines = table.lines().map(|line| line.split_whitespace().collect());
        lines.any(|columns: Vec<&str>| {
            columns[1].ends_with(&local)
                && columns[2].ends_with(&remote)
                && columns[4].ends_with(":00000000")
        })
    }

    /// How many descriptors the process holds.
    pub fn open_files(&self) -> usize {
        self.descriptors().len()
    }

    /// Waits until it holds no more than `count`.
    ///
    /// # Panics
    /// After [`PATIENCE`], naming what is still open.
    pub fn wait_for_open_files(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.open_files() > count {
            let waiting = Instant::now() < deadline;
            assert!(
                waiting,
                "more than {count} files are open: {:#?}",
                self.descriptors()
            );
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// What each descriptor is, as the kernel names it.
    fn descriptors(&self) -> Vec<String> {
        let directory = std::fs::read_dir(format!("/proc/{}/fd", self.process.pid));
        let names = directory
            .expect("a running process")
            .flatten()
            .map(|entry| std::fs::read_link(entry.path()));
        names
            .flatten()
            .map(|name| name.display().to_string())
            .collect()
    }

    /// CPU time used so far, user and kernel.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.pid));
        let stat = stat.expect("a running process");
        // After the name in brackets: utime and stime are the 12th and 13th field, in ticks of 10 ms.
        let fields = stat
            .rsplit(") ")
            .next()
            .expect("fields")
            .split(' ')
            .skip(11)
            .take(2);
        let ticks: u64 = fields
            .map(|field| field.parse::<u64>().expect("a number"))
            .sum();
        ticks as f64 / 100.0
    }

    /// The port of a start-up line such as `Accept broadcast requests at `.
    pub fn port_in_log(&self, before_url: &str) -> u16 {
        self.process.wait_for_port(before_url)
    }

    pub fn get(&self, path: &str) -> Response {
        http::get(self.address, path)
    }

    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    pub fn interrupt(&self) {
        self.process.signal(Signal::INT);
    }

    pub fn hang_up(&self) {
        self.process.signal(Signal::HUP);
    }

    pub fn wait_exit(&self) -> ExitStatus {
        self.process.wait_exit()
    }

    pub fn assert_running(&self) {
        self.process.assert_running();
    }

    /// Every line of the log so far.
    pub fn log(&self) -> Vec<String> {
        self.process.stdout.lines()
    }

    pub fn stderr(&self) -> Vec<String> {
        self.process.stderr.lines()
    }

    /// The first log line that contains all `parts`.
    pub fn wait_for_log(&self, parts: &[&str]) -> String {
        self.process
            .stdout
            .wait_for(&format!("a log line with {parts:?}"), |lines| {
                lines
                    .iter()
                    .find(|line| parts.iter().all(|part| line.contains(part)))
                    .cloned()
            })
    }

    /// The value of an unlabelled metric of the reference, for example `clients_num`.
    pub fn metric(&self, name: &str) -> i64 {
        let body = self.get("/metrics").text();
        let prefix = format!("anycable_go_{name} ");
        let line = body.lines().find(|line| line.starts_with(&prefix));
        let value = line.unwrap_or_else(|| panic!("no metric {name} in\n{body}"));
        value[prefix.len()..]
            .trim()
            .parse()
            .expect("a metric of the reference is an integer")
    }

    /// The sum of one of ringcable's own metrics over all shards, for example `sessions_num`.
    pub fn own_metric(&self, name: &str) -> i64 {
        let prefix = format!("ringcable_{name}{{");
        let page = self.get("/metrics").text();
        let values = page.lines().filter(|line| line.starts_with(&prefix));
        values
            .map(|line| {
                line.rsplit(' ')
                    .next()
                    .and_then(|value| value.parse::<i64>().ok())
                    .expect("a number")
            })
            .sum()
    }

    pub fn wait_for_metric(&self, name: &str, value: i64) {
        let mut last = 0;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            last = self.metric(name);
            if last == value {
                return;
            }
            thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("metric {name} is {last}, expected {value}");
    }
}

/// A child whose output is being read.
struct Process {
    child: Mutex<Child>,
    pid: u32,
    stdout: Arc<Output>,
    stderr: Arc<Output>,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

impl Process {
    fn spawn(launch: Launch) -> Self {
        let binary = &launch.binary;
        let open_files = launch
            .open_files_max
            .map(|count| format!("ulimit -n {count} && "));
        let data = launch
            .data_bytes_max
            .map(|bytes| format!("ulimit -d {} && ", bytes / 1024));
        let limits = open_files.unwrap_or_default() + &data.unwrap_or_default();
        let mut command = match limits.as_str() {
            "" => Command::new(binary),
            limits => {
                let mut shell = Command::new("/bin/sh");
                shell
                    .args(["-c", &format!("{limits}exec \"$0\" \"$@\"")])
                    .arg(binary);
                shell
            }
        };
        // A variable of whoever runs the tests must not configure the server.
        command.env_clear().envs(launch.env).args(launch.args);
        command.current_dir(launch.directory.unwrap_or_else(std::env::temp_dir));
        let (gate, own_stdout) = match launch.log {
            LogReader::Reads => (None, Stdio::piped()),
            LogReader::StandsStill(gate) => (Some(gate), Stdio::piped()),
            LogReader::Elsewhere(stdout) => (None, stdout),
        };
        command
            .stdin(Stdio::null())
            .stdout(own_stdout)
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary starts");
        // Our copy of a descriptor that was handed over.
        drop(command);
        let (stdout, stderr) = (Arc::new(Output::default()), Arc::new(Output::default()));
        let mut readers = vec![stderr.follow(child.stderr.take().expect("stderr is piped"), None)];
        if let Some(source) = child.stdout.take() {
            readers.push(stdout.follow(source, gate));
        }
        Self {
            pid: child.id(),
            child: Mutex::new(child),
            stdout,
            stderr,
            readers: Mutex::new(readers),
        }
    }

    fn wait_for_port(&self, before_url: &str) -> u16 {
        let line = until(&format!("a log line with {before_url:?}"), || {
            let found = self
                .stdout
                .lines()
                .into_iter()
                .find(|line| line.contains(before_url));
            if found.is_none() {
                self.assert_running();
            }
            found
        });
        port_after(&line, before_url).unwrap_or_else(|| panic!("no port in {line:?}"))
    }

    fn signal(&self, signal: Signal) {
        let pid =
            Pid::from_raw(i32::try_from(self.pid).expect("a pid fits")).expect("a pid is not zero");
        kill_process(pid, signal).expect("the server is there to be signalled");
    }

    fn wait_exit(&self) -> ExitStatus {
        let status = until("the process to exit", || {
            self.child
                .lock()
                .expect("not poisoned")
                .try_wait()
                .expect("our child")
        });
        for reader in self.readers.lock().expect("not poisoned").drain(..) {
            reader.join().expect("a reader of output does not panic");
        }
        status
    }

    fn assert_running(&self) {
        let ended = self
            .child
            .lock()
            .expect("not poisoned")
            .try_wait()
            .expect("our child");
        assert!(ended.is_none(), "the server ended by itself: {ended:?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self
            .child
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Both fail only when the process has ended already, which is what we want.
        let _already_gone = child.kill();
        let _already_reaped = child.wait();
        if thread::panicking() {
            eprintln!(
                "--- stdout of the server\n{}\n--- stderr\n{}",
                self.stdout.text(),
                self.stderr.text()
            );
        }
    }
}

/// Lines as they arrive.
#[derive(Default)]
struct Output {
    lines: Mutex<Vec<String>>,
    arrived: Condvar,
}

impl Output {
    fn follow(
        self: &Arc<Self>,
        source: impl Read + Send + 'static,
        gate: Option<Gate>,
    ) -> JoinHandle<()> {
        let output = Arc::clone(self);
        thread::spawn(move || {
            if let Some(gate) = gate {
                gate.wait();
            }
            for line in BufReader::new(source).split(b'\n') {
                let Ok(line) = line else { return };
                output
                    .lines
                    .lock()
                    .expect("not poisoned")
                    .push(String::from_utf8_lossy(&line).into_owned());
                output.arrived.notify_all();
            }
        })
    }

    fn lines(&self) -> Vec<String> {
        // A test that failed while it looked is no reason to keep the lines from it.
        let lines = self.lines.lock();
        lines.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn text(&self) -> String {
        self.lines().join("\n")
    }

    fn wait_for<T>(&self, what: &str, mut probe: impl FnMut(&[String]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.lines.lock().expect("not poisoned");
        loop {
            if let Some(found) = probe(&lines) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {PATIENCE:?} in vain for {what}");
            lines = self
                .arrived
                .wait_timeout(lines, left)
                .expect("not poisoned")
                .0;
        }
    }
}

/// The port of the URL that follows `before_url`.
fn port_after(line: &str, before_url: &str) -> Option<u16> {
    let url = &line[line.find(before_url)? + before_url.len()..];
    let authority = url.split_once("://")?.1;
    let digits = authority.split_once(':')?.1;
    let end = digits
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}
