//! Busy polling: before it sleeps, the thread checks its queue again for a limited time.
//!
//! The far end never sleeps, so that only the near end's wake-up is in the round trip. SO_BUSY_POLL is not tried: it polls
//! the queue of a network card, and loopback has none.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::net::{RecvFlags, SendFlags};

use super::cost::Cost;
use super::{Bench, FAR_CPU};
use crate::histogram::Histogram;
use crate::sys;

const MESSAGE: [u8; 64] = [b'x'; 64];
/// Time between an answer and the next message; the first value means no pause.
const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_micros(30),
    Duration::from_micros(100),
    Duration::from_millis(1),
];

pub fn run(bench: &mut Bench) {
    for look in [0, 20, 50, 200].map(Duration::from_micros) {
        for pause in PAUSES {
            let case = format!("busy polling: {look:?}, messages {pause:?} apart");
            bench.measure(&case, |setting, notes| {
                let (cost, trips) = measure(look, pause, setting.time);
                notes.say("round trip p50", "µs", trips.percentile(50.0) as f64 / 1e3);
                notes.say("round trip p99", "µs", trips.percentile(99.0) as f64 / 1e3);
                notes.say("CPU per message", "µs", cost.micros_each(trips.count()));
                let share = cost.cpu.as_secs_f64() / cost.elapsed.as_secs_f64();
                notes.say("CPU busy", "%", 100.0 * share);
            });
        }
    }
}

/// The CPU cost of echoing, and the round trips in nanoseconds.
fn measure(look: Duration, pause: Duration, time: Duration) -> (Cost, Histogram) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let address = listener
        .local_addr()
        .expect("a bound socket has an address");
    let far = std::thread::spawn(move || {
        sys::pin(FAR_CPU).expect("the CPU exists");
        let socket = TcpStream::connect(address).expect("a listener waits");
        socket.set_nodelay(true).expect("TCP has the option");
        ask(&socket, pause, time)
    });
    let (socket, _) = listener.accept().expect("a client connects");
    socket.set_nodelay(true).expect("TCP has the option");
    let mut cost = Cost::default();
    cost.count(|| echo(&socket, look));
    (cost, far.join().expect("the far end does not panic"))
}

/// Sends messages and waits for the answers without sleeping.
fn ask(socket: &TcpStream, pause: Duration, time: Duration) -> Histogram {
    let mut trips = Histogram::default();
    let begun = Instant::now();
    let mut buffer = [0; MESSAGE.len()];
    while begun.elapsed() < time {
        let asked = Instant::now();
        rustix::net::send(socket, &MESSAGE, SendFlags::NOSIGNAL).expect("the near end reads");
        while rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT).is_err() {
            std::hint::spin_loop();
        }
        trips.record(asked.elapsed().as_nanos() as u64);
        let answered = Instant::now();
        while answered.elapsed() < pause {
            std::hint::spin_loop();
        }
    }
    trips
}

/// Answers until the far end closes.
fn echo(socket: &TcpStream, look: Duration) {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    let key = epoll::EventData::new_u64(0);
    epoll::add(&epoll, socket.as_fd(), key, epoll::EventFlags::IN).expect("it is watched");
    let mut events: Vec<epoll::Event> = Vec::with_capacity(4);
    let mut buffer = [0; MESSAGE.len()];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        let begun = Instant::now();
        events.clear();
        while events.is_empty() {
            let looks = begun.elapsed() < look;
            let timeout = looks.then_some(&at_once);
            let spare = rustix::buffer::spare_capacity(&mut events);
            let _ = epoll::wait(&epoll, spare, timeout);
        }
        match rustix::net::recv(socket, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((_, 0)) | Err(rustix::io::Errno::CONNRESET) => return,
            Ok((_, bytes)) => {
                let _ = rustix::net::send(socket, &buffer[..bytes], SendFlags::NOSIGNAL);
            }
            Err(_) => {}
        }
    }
}
