//! A server under measurement: starts the binary, asks its endpoints, stops it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustls::{ClientConfig, StreamOwned};

use crate::nginx::Nginx;
use crate::process::{self, KernelMemory, Memory};
use crate::sys::Cpu;
use crate::target::{Target, free_address};
use crate::tls::{self, Certificate};

/// How long a server may take to answer its health check.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Memory counts as settled when it has not changed for longer than the default ping interval.
const SETTLED_AFTER: Duration = Duration::from_millis(3_500);
/// How long to wait until memory is settled.
const SETTLE_PATIENCE: Duration = Duration::from_secs(20);
/// How long a server may take to end after SIGTERM.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How a server ended.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    pub took: Duration,
    pub killed: bool,
}

/// A running server. Dropping it stops it.
pub struct Peer {
    pub name: &'static str,
    pub address: SocketAddrV4,
    pub broadcast_address: SocketAddrV4,
    /// All flags with which it was started.
    pub flags: Vec<String>,
    /// From the start of the process to the first 200 of `/health`.
    pub started_in: Duration,
    tls: Option<Arc<ClientConfig>>,
    /// A proxy in front; its memory and CPU count as the server's.
    proxy: Option<Nginx>,
    child: Child,
    log: PathBuf,
}

impl Peer {
    /// Starts a server and waits until it is healthy. If a group is given, the kernel's memory for the server is counted
    /// there.
    ///
    /// # Panics
    /// When the server does not start, because then nothing can be measured.
    pub fn start(target: &Target, flags: &[String], group: Option<&KernelMemory>) -> Self {
        Self::start_with(target, flags, group, None)
    }

    /// The same; with a certificate, all ports of the server use TLS.
    pub fn start_with(
        target: &Target,
        flags: &[String],
        group: Option<&KernelMemory>,
        certificate: Option<&Certificate>,
    ) -> Self {
        let (address, broadcast_address) = (free_address(), free_address());
        let mut all = vec![
            "--host=127.0.0.1".to_owned(),
            format!("--port={}", address.port()),
            format!("--http_broadcast_port={}", broadcast_address.port()),
            "--metrics_http=/metrics".to_owned(),
            // Without this another server might wait for Redis.
            "--broadcast_adapter=http".to_owned(),
        ];
        all.extend(flags.iter().chain(&target.own_flags).cloned());
        all.extend(certificate.into_iter().flat_map(Certificate::flags));
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
        process::enter(&mut command, target.cpus(), group);
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
            tls: certificate.map(|certificate| Arc::clone(&certificate.client)),
            proxy: None,
            child,
            log,
        };
        peer.wait_healthy(begun);
        peer.started_in = begun.elapsed();
        peer
    }

    fn wait_healthy(&mut self, begun: Instant) {
        while self.get("/health").is_none_or(|(status, _)| status != 200) {
            let ended = self.child.try_wait().expect("a child can be asked");
            if ended.is_some() || begun.elapsed() > START_PATIENCE {
                let log = self.log();
                panic!("{} does not get healthy ({ended:?}):\n{log}", self.name);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Puts a proxy in front; returns the address for the clients.
    pub fn put_behind(&mut self, proxy: Nginx) -> SocketAddrV4 {
        self.proxy.insert(proxy).address
    }

    /// Current user memory.
    pub fn memory(&self) -> Memory {
        let own = process::memory(self.pid());
        let proxy = self.proxy.as_ref().map_or(Memory::default(), Nginx::memory);
        Memory {
            private_bytes: own.private_bytes + proxy.private_bytes,
            rss_bytes: own.rss_bytes + proxy.rss_bytes,
            proportional_bytes: own.proportional_bytes + proxy.proportional_bytes,
        }
    }

    /// User memory after it has settled.
    ///
    /// An allocator may give memory back only at a later allocation, so a whole round of pings must pass without a change.
    pub fn settled_memory(&self) -> Memory {
        let begun = Instant::now();
        let (mut settled, mut since) = (self.memory(), begun);
        loop {
            std::thread::sleep(Duration::from_millis(250));
            let now = self.memory();
            if now.private_bytes.abs_diff(settled.private_bytes) > settled.private_bytes / 500 {
                (settled, since) = (now, Instant::now());
            }
            if since.elapsed() > SETTLED_AFTER || begun.elapsed() > SETTLE_PATIENCE {
                return now;
            }
        }
    }

    /// CPU used so far.
    pub fn cpu(&self) -> Cpu {
        let mut cpu = process::cpu(self.pid());
        cpu += self.proxy.as_ref().map_or(Cpu::default(), Nginx::cpu);
        cpu
    }

    /// Threads of the process.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).map_or(0, Iterator::count)
    }

    /// The sum of a counter over its labels; `None` when the server does not have this metric.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metric_by_label(name)
            .into_iter()
            .reduce(|sum, value| sum + value)
    }

    /// The values of a metric for each of its labels; none when the server does not have it.
    pub fn metric_by_label(&self, name: &str) -> Vec<f64> {
        let page = self.metrics_page().unwrap_or_default();
        let values = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            if !rest.starts_with(['{', ' ']) {
                return None;
            }
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        });
        values.collect()
    }

    /// The page with all metrics.
    pub fn metrics_page(&self) -> Option<String> {
        Some(self.get("/metrics")?.1)
    }

    /// Makes one GET request; `None` when no complete answer comes.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let socket = TcpStream::connect(self.address).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        match &self.tls {
            None => get_over(socket, self.address, path),
            Some(config) => {
                let stream = StreamOwned::new(tls::connection(config), socket);
                get_over(stream, self.address, path)
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        // The server may have ended already, so an error is ignored.
        let _ = kill_process(pid.expect("a process has a number"), signal);
    }

    /// Stops it as `docker stop` does: SIGTERM, and SIGKILL after `patience`.
    pub fn stop(&mut self, patience: Duration) -> Stop {
        let begun = Instant::now();
        self.signal(Signal::TERM);
        let killed = !self.wait_end(patience);
        if killed {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
        Stop {
            took: begun.elapsed(),
            killed,
        }
    }

    /// The log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn wait_end(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.stop(STOP_PATIENCE);
        }
        if std::thread::panicking() {
            eprintln!("the log of {} is in {}", self.name, self.log.display());
        } else {
            let _ = fs::remove_file(&self.log);
        }
    }
}

fn get_over(
    mut stream: impl Read + Write,
    address: SocketAddrV4,
    path: &str,
) -> Option<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}
