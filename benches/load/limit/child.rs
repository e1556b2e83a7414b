//! The child process: its threads accept, answer with 101 and a welcome, hold the sockets, and write what the parent orders.

use std::io::{IoSlice, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::{Domain, Socket, Type};

use super::ring::Ring;
use super::{Hold, Method, Order, text_frame};
use crate::options::Options;
use crate::process::machine_cpus;
use crate::sys;

const BACKLOG: i32 = 65_535;
const ACCEPTS_PER_TURN: usize = 64;
const LISTENER_KEY: u64 = u64::MAX;
const CONTROL_KEY: u64 = u64::MAX - 1;
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: actioncable-v1-json\r\n\r\n";

/// Runs until the parent closes a control connection. Prints the port for clients, then one control port per thread.
pub fn run(options: &Options) {
    let hold = Hold::ALL
        .into_iter()
        .find(|hold| hold.name() == options.case)
        .expect("a way to hold");
    let mut address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    let mut listeners = Vec::new();
    for _ in 0..options.threads {
        let listener = listen(address);
        address.set_port(
            listener
                .local_addr()
                .expect("a bound socket has an address")
                .port(),
        );
        listeners.push((
            listener,
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free"),
        ));
    }
    println!("{}", address.port());
    for (_, control) in &listeners {
        println!(
            "{}",
            control
                .local_addr()
                .expect("a bound socket has an address")
                .port()
        );
    }
    let threads: Vec<_> = (0..)
        .zip(listeners)
        .map(|(number, (listener, control))| {
            std::thread::spawn(move || {
                sys::pin(&[number % machine_cpus()]).expect("the CPU exists");
                let (control, _) = control.accept().expect("the parent connects");
                Holder::new(listener, control, hold).serve();
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no thread panics");
    }
}

fn listen(address: SocketAddrV4) -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_port(true).expect("Linux has the option");
    socket
        .bind(&SocketAddr::from(address).into())
        .expect("the port is ours");
    socket.listen(BACKLOG).expect("a bound socket listens");
    socket
        .set_nonblocking(true)
        .expect("a socket may not block");
    socket.into()
}

/// Edge-triggered, so that a socket that has ended is reported only once.
const ONCE: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ET);

/// One thread of the child.
struct Holder {
    listener: TcpListener,
    control: TcpStream,
    hold: Hold,
    epoll: OwnedFd,
    ring: Ring,
    /// By descriptor: sockets whose request has not come yet.
    asking: Vec<Option<OwnedFd>>,
    /// By stream: sockets whose request was answered.
    streams: Vec<Vec<OwnedFd>>,
}

impl Holder {
    fn new(listener: TcpListener, control: TcpStream, hold: Hold) -> Self {
        control.set_nodelay(true).expect("TCP has the option");
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
        let watch = |socket: BorrowedFd<'_>, key| {
            let key = epoll::EventData::new_u64(key);
            epoll::add(&epoll, socket, key, epoll::EventFlags::IN).expect("it is watched");
        };
        watch(listener.as_fd(), LISTENER_KEY);
        watch(control.as_fd(), CONTROL_KEY);
        Self {
            listener,
            control,
            hold,
            epoll,
            ring: Ring::new(),
            asking: Vec::new(),
            streams: Vec::new(),
        }
    }

    fn serve(mut self) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(256);
        loop {
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => panic!("epoll: {error}"),
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER_KEY => self.accept_some(),
                    CONTROL_KEY => match Order::read(&mut self.control) {
                        Ok(order) => self.carry_out(&order),
                        Err(_) => return,
                    },
                    descriptor => self.answer(descriptor as usize),
                }
            }
        }
    }

    fn accept_some(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Ok((socket, _)) = self.listener.accept() else {
                return;
            };
            socket.set_nodelay(true).expect("TCP has the option");
            socket
                .set_nonblocking(true)
                .expect("a socket may not block");
            let descriptor = socket.as_raw_fd() as usize;
            let key = epoll::EventData::new_u64(descriptor as u64);
            epoll::add(&self.epoll, &socket, key, ONCE).expect("it is watched");
            if self.asking.len() <= descriptor {
                self.asking.resize_with(descriptor + 1, || None);
            }
            self.asking[descriptor] = Some(socket.into());
        }
    }

    /// Answers a request, which comes in one piece over loopback. If the socket becomes readable later, it has ended.
    fn answer(&mut self, descriptor: usize) {
        let Some(socket) = self.asking[descriptor].take() else {
            return;
        };
        let mut request = [0; 4096];
        let read = rustix::net::recv(&socket, &mut request, RecvFlags::empty());
        let bytes = read.map_or(0, |(_, bytes)| bytes);
        if bytes == 0 {
            return;
        }
        let welcome = text_frame(br#"{"type":"welcome"}"#);
        let answer = [SWITCHING.as_bytes(), &welcome].concat();
        rustix::io::write(&socket, &answer).expect("an empty socket takes a few bytes");
        self.register(&socket);
        let stream = stream_of(&request[..bytes]);
        if self.streams.len() <= stream {
            self.streams.resize_with(stream + 1, Vec::new);
        }
        self.streams[stream].push(socket);
    }

    fn register(&mut self, socket: &OwnedFd) {
        if self.hold != Hold::Epoll {
            epoll::delete(&self.epoll, socket).expect("it was watched");
        }
        match self.hold {
            Hold::Bare | Hold::Epoll => {}
            Hold::OneShotPoll => self.ring.arm_poll(socket, false),
            Hold::MultishotPoll => self.ring.arm_poll(socket, true),
            Hold::Receive => self.ring.arm_receive(socket),
        }
    }

    fn carry_out(&mut self, order: &Order) {
        if let Some(sockets) = self.streams.get(order.stream as usize) {
            match order.method {
                Method::Write => write_all(sockets, order),
                Method::Ring => self.ring.send_all(sockets, &order.frames),
            }
        }
        self.control.write_all(b"!").expect("the parent waits");
    }
}

/// Makes one write(2) per socket, or one writev(2) for several frames. What a socket does not take is written at the end.
fn write_all(sockets: &[OwnedFd], order: &Order) {
    let frames: Vec<IoSlice> = order
        .frames
        .chunks(order.frame_bytes as usize)
        .map(IoSlice::new)
        .collect();
    let mut unfinished: Vec<(&OwnedFd, usize)> = Vec::new();
    for socket in sockets {
        let written = match &frames[..] {
            [_] => rustix::io::write(socket, &order.frames),
            several => rustix::io::writev(socket, several),
        };
        let written = written.unwrap_or(0);
        if written < order.frames.len() {
            unfinished.push((socket, written));
        }
    }
    for (socket, written) in unfinished {
        finish(socket, &order.frames[written..]);
    }
}

/// Writes the rest and waits for room. A socket that has ended is skipped.
pub fn finish(socket: &OwnedFd, mut rest: &[u8]) {
    while !rest.is_empty() {
        let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], None);
        match rustix::io::write(socket, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// The stream in `GET /17 HTTP/1.1`.
fn stream_of(request: &[u8]) -> usize {
    let digits = request
        .iter()
        .skip("GET /".len())
        .take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}
