//! The far ends of an experiment: one thread with its own CPU and descriptor table, whose cost is not counted.
//!
//! The near ends are measured; they belong to the calling thread. Orders go to the thread, and it answers when each is done.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::{Domain, Socket, Type};

use crate::limit::finish;
use crate::sys;

const BACKLOG: i32 = 65_535;
/// Connections that wait to be accepted; fewer than the smallest usual accept queue (4,096).
pub const CHUNK: usize = 1_000;
const READ_BYTES: usize = 256 * 1024;
const WAKE_KEY: u64 = u64::MAX;
const PATIENCE: Duration = Duration::from_secs(60);
/// The first source address; the range starts at 127.32.0.0.
const SOURCES_FROM: u32 = 0x7F20_0000;

enum Order {
    /// Opens sockets, from this many source addresses in turn.
    Connect {
        address: SocketAddrV4,
        count: usize,
        sources: u32,
    },
    /// Reads everything that comes from now on.
    Read,
    /// Writes this to every socket.
    Write(Box<[u8]>),
    Stop,
}

/// The thread and what it counted. Dropping it closes all far ends.
pub struct Far {
    orders: Sender<Order>,
    answers: Receiver<()>,
    wake: OwnedFd,
    read_bytes: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Far {
    /// Starts the thread, without sockets. Empty `cpus`: any CPU.
    pub fn start(cpus: &[usize]) -> Self {
        let (orders, inbox) = channel();
        let (done, answers) = channel();
        let wake = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
        let read_bytes = Arc::new(AtomicU64::new(0));
        let (number, counted, cpus) = (wake.as_raw_fd(), read_bytes.clone(), cpus.to_vec());
        let thread = std::thread::spawn(move || {
            let ends = Ends::new(number, &cpus, inbox, done, counted);
            ends.serve();
        });
        let far = Self {
            orders,
            answers,
            wake,
            read_bytes,
            thread: Some(thread),
        };
        // Sockets opened here before the thread has its own table would be closed in that table.
        far.wait();
        far
    }

    fn order(&self, order: Order) {
        self.orders
            .send(order)
            .expect("the thread runs until it is told to stop");
        rustix::io::write(&self.wake, &1u64.to_ne_bytes()).expect("an eventfd takes a count");
    }

    /// Waits until the last order is done.
    pub fn wait(&self) {
        self.answers
            .recv_timeout(PATIENCE)
            .expect("the far ends do as they are told");
    }

    /// Starts to connect; [`Far::wait`] waits for the end.
    pub fn connect(&self, address: SocketAddrV4, count: usize, sources: u32) {
        self.order(Order::Connect {
            address,
            count,
            sources,
        });
    }

    /// Connects and accepts; returns the near ends.
    pub fn open(&self, listener: &Socket, count: usize) -> Vec<OwnedFd> {
        let mut near = Vec::with_capacity(count);
        while near.len() < count {
            let chunk = CHUNK.min(count - near.len());
            self.connect(address_of(listener), chunk, 1);
            self.wait();
            for _ in 0..chunk {
                let (socket, _) = listener.accept().expect("a connection waits");
                socket.set_nonblocking(true).expect("it may not block");
                socket.set_tcp_nodelay(true).expect("TCP has the option");
                near.push(socket.into());
            }
        }
        near
    }

    /// Reads everything that comes from now on.
    pub fn read(&self) {
        self.order(Order::Read);
        self.wait();
    }

    /// Starts to write this to every socket; [`Far::wait`] waits for the end.
    pub fn write(&self, bytes: &[u8]) {
        self.order(Order::Write(bytes.into()));
    }

    /// Bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(SeqCst)
    }

    /// Waits until this many bytes were read in total.
    pub fn wait_read(&self, bytes: u64) {
        let deadline = Instant::now() + PATIENCE;
        while self.read_bytes() < bytes {
            assert!(Instant::now() < deadline, "bytes are lost");
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        self.order(Order::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A listener on a free port of this machine.
pub fn listen(reuse_port: Option<u16>) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    if reuse_port.is_some() {
        socket.set_reuse_port(true).expect("Linux has the option");
    }
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, reuse_port.unwrap_or(0));
    socket
        .bind(&SocketAddr::from(address).into())
        .expect("the port is ours");
    socket.listen(BACKLOG).expect("a bound socket listens");
    socket
}

/// The address of a listener.
pub fn address_of(listener: &Socket) -> SocketAddrV4 {
    let address = listener
        .local_addr()
        .expect("a bound socket has an address");
    address.as_socket_ipv4().expect("an IPv4 address")
}

/// The data of the thread.
struct Ends {
    epoll: OwnedFd,
    wake: OwnedFd,
    sockets: Vec<OwnedFd>,
    inbox: Receiver<Order>,
    done: Sender<()>,
    read_bytes: Arc<AtomicU64>,
    connected: u32,
}

impl Ends {
    fn new(
        wake: RawFd,
        cpus: &[usize],
        inbox: Receiver<Order>,
        done: Sender<()>,
        read_bytes: Arc<AtomicU64>,
    ) -> Self {
        sys::own_descriptor_table(wake).expect("a thread may have a descriptor table of its own");
        sys::pin(cpus).expect("the CPUs exist");
        // SAFETY: in this thread's own table the number is a copy that nobody else closes.
        let wake = unsafe { OwnedFd::from_raw_fd(wake) };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
        let key = epoll::EventData::new_u64(WAKE_KEY);
        epoll::add(&epoll, &wake, key, epoll::EventFlags::IN).expect("the eventfd is watched");
        done.send(()).expect("the asker waits");
        Self {
            epoll,
            wake,
            sockets: Vec::new(),
            inbox,
            done,
            read_bytes,
            connected: 0,
        }
    }

    fn serve(mut self) {
        let mut buffer = vec![0; READ_BYTES];
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        loop {
            let spare = rustix::buffer::spare_capacity(&mut events);
            match epoll::wait(&self.epoll, spare, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => panic!("epoll: {error}"),
            }
            let mut bytes = 0;
            let mut told = false;
            for event in events.drain(..) {
                match event.data.u64() {
                    WAKE_KEY => told = true,
                    at => {
                        let socket = &self.sockets[at as usize];
                        match rustix::net::recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                            Ok((_, 0)) | Err(Errno::CONNRESET) => {
                                let _ = epoll::delete(&self.epoll, socket);
                            }
                            Ok((_, read)) => bytes += read as u64,
                            Err(_) => {}
                        }
                    }
                }
            }
            self.read_bytes.fetch_add(bytes, SeqCst);
            if told && !self.carry_out() {
                return;
            }
        }
    }

    /// Carries out all orders; false after the last one.
    fn carry_out(&mut self) -> bool {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::Connect {
                    address,
                    count,
                    sources,
                } => {
                    for _ in 0..count {
                        self.connect(address, sources);
                    }
                }
                Order::Read => self.watch_all(),
                Order::Write(bytes) => {
                    for socket in &self.sockets {
                        let written = rustix::io::write(socket, &bytes).unwrap_or(0);
                        finish(socket, &bytes[written..]);
                    }
                }
                Order::Stop => return false,
            }
            let _ = self.done.send(());
        }
        true
    }

    fn connect(&mut self, address: SocketAddrV4, sources: u32) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let source = Ipv4Addr::from(SOURCES_FROM + self.connected % sources);
        self.connected += 1;
        sys::bind_address_no_port(socket.as_fd()).expect("Linux has the option");
        socket
            .bind(&SocketAddr::from((source, 0)).into())
            .expect("loopback has all of 127.0.0.0/8");
        socket
            .connect(&SocketAddr::from(address).into())
            .expect("a listener waits");
        socket.set_tcp_nodelay(true).expect("TCP has the option");
        self.sockets.push(socket.into());
    }

    fn watch_all(&self) {
        for (at, socket) in self.sockets.iter().enumerate() {
            let key = epoll::EventData::new_u64(at as u64);
            epoll::add(&self.epoll, socket, key, epoll::EventFlags::IN).expect("it is watched");
        }
    }
}
