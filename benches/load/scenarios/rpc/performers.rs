//! Clients that perform in a closed loop: each sends its next perform when the app's echo of the last one has arrived.

use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use memchr::memmem;

use crate::app::epoll::{EVENT, EVENTS_MAX, Epoll};
use crate::fleet::client_frame;
use crate::histogram::Histogram;
use crate::sys::{Cpu, thread_cpu};

const SUBSCRIBE: &str = r#"{"command":"subscribe","identifier":"{\"channel\":\"BenchChannel\"}"}"#;
const PERFORM: &str = concat!(
    r#"{"command":"message","identifier":"{\"channel\":\"BenchChannel\"}","#,
    r#""data":"{\"action\":\"echo\"}"}"#
);
/// The end of the app's transmission; it occurs in no other message.
const ECHO: &[u8] = br#""message":"echo"}"#;
const OPCODE_TEXT: u8 = 1;
/// Time limit for one step of the setup, and for one echo.
const PATIENCE: Duration = Duration::from_secs(10);

struct Performer {
    socket: TcpStream,
    /// Bytes that came since its perform.
    heard: Vec<u8>,
    performed: Instant,
}

/// Subscribed clients on one thread.
pub struct Performers {
    epoll: Epoll,
    clients: Vec<Performer>,
    perform: Vec<u8>,
}

/// The result of a closed loop.
pub struct Performed {
    pub performs: u64,
    pub elapsed: Duration,
    /// Time from perform to echo, in ns.
    pub latency: Histogram,
    /// CPU of the clients.
    pub cpu: Cpu,
}

impl Performers {
    /// Connects and subscribes `count` clients, all at once, so that the app's delays do not add up.
    pub fn connect(address: SocketAddrV4, count: usize) -> io::Result<Self> {
        let hello = format!(
            "GET /cable HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: actioncable-v1-json\r\nOrigin: http://{address}\r\n\r\n"
        );
        let mut subscribe = Vec::new();
        client_frame(OPCODE_TEXT, SUBSCRIBE.as_bytes(), &mut subscribe);
        let mut perform = Vec::new();
        client_frame(OPCODE_TEXT, PERFORM.as_bytes(), &mut perform);
        let mut performers = Self {
            epoll: Epoll::new()?,
            clients: Vec::new(),
            perform,
        };
        for _ in 0..count {
            let mut socket = TcpStream::connect(address)?;
            socket.set_nodelay(true)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.write_all(hello.as_bytes())?;
            performers.clients.push(Performer {
                socket,
                heard: Vec::new(),
                performed: Instant::now(),
            });
        }
        // Not together with the upgrade: some servers refuse a client that sends a frame before the 101.
        for client in &mut performers.clients {
            client.hear_until(b"welcome")?;
            client.socket.write_all(&subscribe)?;
        }
        for (token, client) in performers.clients.iter_mut().enumerate() {
            client.hear_until(b"confirm_subscription")?;
            performers
                .epoll
                .watch(client.socket.as_raw_fd(), token as u64)?;
        }
        Ok(performers)
    }

    /// Performs for `time`, then waits until all echoes are there.
    pub fn run(&mut self, time: Duration) -> io::Result<Performed> {
        let started = Instant::now();
        let cpu = thread_cpu();
        let mut latency = Histogram::default();
        for client in &mut self.clients {
            client.perform(&self.perform)?;
        }
        let mut outstanding = self.clients.len();
        let mut events = [EVENT; EVENTS_MAX];
        while outstanding > 0 {
            let ready = self.epoll.wait(&mut events, Some(PATIENCE));
            if ready.is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{outstanding} echoes did not come"),
                ));
            }
            for event in ready {
                let client = &mut self.clients[event.u64 as usize];
                if !client.hear(ECHO)? {
                    continue;
                }
                latency.record(client.performed.elapsed().as_nanos() as u64);
                if started.elapsed() < time {
                    client.perform(&self.perform)?;
                } else {
                    outstanding -= 1;
                }
            }
        }
        Ok(Performed {
            performs: latency.count(),
            elapsed: started.elapsed(),
            latency,
            cpu: thread_cpu().since(cpu),
        })
    }
}

impl Performer {
    fn perform(&mut self, frame: &[u8]) -> io::Result<()> {
        self.heard.clear();
        self.performed = Instant::now();
        self.socket.write_all(frame)
    }

    /// Reads what is there (or waits for it once); returns whether `text` has come.
    fn hear(&mut self, text: &[u8]) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        match self.socket.read(&mut buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read if self.heard.is_empty() && memmem::find(&buffer[..read], text).is_some() => {
                Ok(true)
            }
            read => {
                self.heard.extend_from_slice(&buffer[..read]);
                Ok(memmem::find(&self.heard, text).is_some())
            }
        }
    }

    fn hear_until(&mut self, text: &[u8]) -> io::Result<()> {
        while !self.hear(text)? {}
        Ok(())
    }
}
