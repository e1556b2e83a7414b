//! The app under load: answers Connect, Command and Disconnect calls over keep-alive HTTP, after a fixed delay.
//!
//! One thread with one epoll, so that its cost stays small compared with the server's; that cost is counted separately. It
//! implements the channels of the Campfire room page (`answers`). [`bare_calls`] calls it directly, to measure what it can
//! answer without a server.

pub mod answers;
mod bare;
pub mod epoll;

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use answers::{Call, Parsed};
use epoll::{EVENT, EVENTS_MAX, Epoll};

pub use bare::bare_calls;

/// Path below which the server sends the calls.
const MOUNT: &str = "/_anycable";
/// A call usually is one segment; longer ones are collected.
const READ_BUFFER_BYTES: usize = 64 * 1024;
/// epoll token of the listener; connections are numbered from zero.
const LISTENER: u64 = u64::MAX;

/// Counters of the app. Written only by its thread.
#[derive(Default)]
pub struct Counts {
    connects: AtomicU64,
    commands: AtomicU64,
    disconnects: AtomicU64,
    concurrent_max: AtomicU64,
    accepted: AtomicU64,
    errors: AtomicU64,
}

impl Counts {
    /// Calls that were or are being answered.
    pub fn calls(&self) -> u64 {
        self.connects.load(Relaxed) + self.commands.load(Relaxed) + self.disconnects()
    }

    pub fn disconnects(&self) -> u64 {
        self.disconnects.load(Relaxed)
    }

    /// Largest number of simultaneous calls.
    pub fn concurrent_max(&self) -> u64 {
        self.concurrent_max.load(Relaxed)
    }

    /// TCP connections accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Relaxed)
    }

    /// Requests that could not be read, and connections that broke during a call.
    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }
}

/// A running app; dropping it stops it.
pub struct App {
    address: SocketAddr,
    counts: Arc<Counts>,
    stopping: Arc<AtomicBool>,
    thread_id: i32,
    thread: Option<JoinHandle<()>>,
}

impl App {
    /// Starts an app that answers each call after `delay`, on these CPUs (empty: any CPU).
    pub fn start(delay: Duration, cpus: Vec<usize>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (counts, stopping) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let mut desk = Desk::new(listener, delay, Arc::clone(&counts))?;
        let (started, start) = mpsc::channel();
        let stop = Arc::clone(&stopping);
        let thread = thread::Builder::new()
            .name("app".to_owned())
            .spawn(move || {
                // SAFETY: neither call has preconditions. Without the slack the delay would be up to 50 µs longer.
                let thread_id = unsafe {
                    libc::prctl(libc::PR_SET_TIMERSLACK, 1);
                    libc::gettid()
                };
                crate::sys::pin(&cpus).expect("the CPUs exist");
                let _ = started.send(thread_id);
                while !stop.load(Relaxed) {
                    desk.turn();
                }
            })?;
        let thread_id = start.recv().map_err(io::Error::other)?;
        Ok(Self {
            address,
            counts,
            stopping,
            thread_id,
            thread: Some(thread),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The flag that makes a server call this app.
    pub fn flag(&self) -> String {
        format!("--rpc_host=http://{}{MOUNT}", self.address)
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Waits until Disconnect calls for this many clients have come; false when the time is over.
    pub fn wait_told(&self, left: usize, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.counts.disconnects() < left as u64 {
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        true
    }

    /// User and system time of the app so far.
    pub fn cpu(&self) -> Duration {
        let path = format!("/proc/self/task/{}/schedstat", self.thread_id);
        let text = fs::read_to_string(path).unwrap_or_default();
        Duration::from_nanos(
            text.split(' ')
                .next()
                .and_then(|nanos| nanos.parse().ok())
                .unwrap_or(0),
        )
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stopping.store(true, Relaxed);
        // Any event ends the wait, and a connection is one.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One connection from a server.
struct Caller {
    socket: TcpStream,
    /// The beginning of a request that is not complete yet.
    unfinished: Vec<u8>,
    /// The answer whose time has not come. A caller makes one call at a time.
    answer: Vec<u8>,
    asking: bool,
    /// Shows whether the caller of an answer is still the one that made the call.
    generation: u32,
}

/// The state of the thread.
struct Desk {
    epoll: Epoll,
    listener: TcpListener,
    delay: Duration,
    callers: Vec<Option<Caller>>,
    free: Vec<usize>,
    generation: u32,
    /// All delays are equal, so the order of arrival is the order of the answers.
    due: VecDeque<(Instant, usize, u32)>,
    buffer: Box<[u8]>,
    counts: Arc<Counts>,
}

impl Desk {
    fn new(listener: TcpListener, delay: Duration, counts: Arc<Counts>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.watch(listener.as_raw_fd(), LISTENER)?;
        Ok(Self {
            epoll,
            listener,
            delay,
            callers: Vec::new(),
            free: Vec::new(),
            generation: 0,
            due: VecDeque::new(),
            buffer: vec![0; READ_BUFFER_BYTES].into(),
            counts,
        })
    }

    fn turn(&mut self) {
        let mut events = [EVENT; EVENTS_MAX];
        let timeout = self
            .due
            .front()
            .map(|(at, ..)| at.saturating_duration_since(Instant::now()));
        for event in self.epoll.wait(&mut events, timeout) {
            match event.u64 {
                LISTENER => self.accept(),
                slot => self.read(slot as usize),
            }
        }
        let now = Instant::now();
        while let Some(&(at, slot, generation)) = self.due.front() {
            if at > now {
                break;
            }
            self.due.pop_front();
            self.answer(slot, generation);
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            let slot = self.free.pop().unwrap_or_else(|| {
                self.callers.push(None);
                self.callers.len() - 1
            });
            let ready = socket
                .set_nonblocking(true)
                .and_then(|()| socket.set_nodelay(true));
            if ready
                .and_then(|()| self.epoll.watch(socket.as_raw_fd(), slot as u64))
                .is_err()
            {
                self.counts.errors.fetch_add(1, Relaxed);
                self.free.push(slot);
                continue;
            }
            self.counts.accepted.fetch_add(1, Relaxed);
            self.generation += 1;
            self.callers[slot] = Some(Caller {
                socket,
                unfinished: Vec::new(),
                answer: Vec::new(),
                asking: false,
                generation: self.generation,
            });
        }
    }

    fn read(&mut self, slot: usize) {
        let Some(caller) = &mut self.callers[slot] else {
            return;
        };
        let read = match caller.socket.read(&mut self.buffer) {
            Ok(read) if read > 0 => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            _ => return self.close(slot),
        };
        let request = if caller.unfinished.is_empty() {
            &self.buffer[..read]
        } else {
            caller.unfinished.extend_from_slice(&self.buffer[..read]);
            &caller.unfinished
        };
        let call = match Call::parse(request) {
            Parsed::Whole(call) => call,
            Parsed::Part if caller.unfinished.is_empty() => {
                return caller.unfinished = self.buffer[..read].to_vec();
            }
            Parsed::Part => return,
            Parsed::Wrong => {
                self.counts.errors.fetch_add(1, Relaxed);
                return self.close(slot);
            }
        };
        let count = match call {
            Call::Connect { .. } => Some(&self.counts.connects),
            Call::Command(_) => Some(&self.counts.commands),
            Call::Disconnect => Some(&self.counts.disconnects),
            Call::Check => None,
        };
        if let Some(count) = count {
            count.fetch_add(1, Relaxed);
        }
        caller.answer.clear();
        call.answer_into(&mut caller.answer);
        caller.unfinished.clear();
        caller.asking = true;
        let generation = caller.generation;
        self.due
            .push_back((Instant::now() + self.delay, slot, generation));
        self.counts
            .concurrent_max
            .fetch_max(self.due.len() as u64, Relaxed);
    }

    fn answer(&mut self, slot: usize, generation: u32) {
        let Some(caller) = self.callers[slot]
            .as_mut()
            .filter(|caller| caller.generation == generation)
        else {
            return;
        };
        caller.asking = false;
        // The caller waits only for this answer, so its socket has room.
        if !matches!(caller.socket.write(&caller.answer), Ok(written) if written == caller.answer.len())
        {
            self.counts.errors.fetch_add(1, Relaxed);
            self.close(slot);
        }
    }

    fn close(&mut self, slot: usize) {
        if let Some(caller) = self.callers[slot].take() {
            if caller.asking || !caller.unfinished.is_empty() {
                self.counts.errors.fetch_add(1, Relaxed);
            }
            self.free.push(slot);
        }
    }
}
