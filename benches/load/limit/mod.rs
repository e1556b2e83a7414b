//! What this kernel allows without any server logic: a child process accepts the same clients and writes the same frames.
//! The child knows no protocol except a fixed 101 answer; it writes given bytes to given sockets.

mod child;
mod ring;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::fleet::{Clients, Mark};
use crate::process::{self, KernelMemory};
use crate::publisher::{Outlet, stream_name};

#[cfg(feature = "experiments")]
pub use child::finish;
pub use child::run as run_child;

/// How the child holds an idle socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Registered with nothing.
    Bare,
    Epoll,
    /// A poll through io_uring, for one event.
    OneShotPoll,
    MultishotPoll,
    /// A receive through io_uring.
    Receive,
}

impl Hold {
    pub const ALL: [Self; 5] = [
        Self::Bare,
        Self::Epoll,
        Self::OneShotPoll,
        Self::MultishotPoll,
        Self::Receive,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bare => "nothing registered",
            Self::Epoll => "epoll",
            Self::OneShotPoll => "one-shot poll",
            Self::MultishotPoll => "multishot poll",
            Self::Receive => "armed recv",
        }
    }
}

/// How the child writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// write(2), or writev(2) for several frames at once.
    Write,
    /// Batches of SEND requests through io_uring.
    Ring,
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "write(2)",
            Self::Ring => "io_uring SEND",
        }
    }
}

/// One order to the child: write these frames to all sockets of a stream. Integers are little-endian.
#[derive(Debug)]
struct Order {
    method: Method,
    stream: u32,
    /// Length of each frame; all frames are of the same length, one behind the other.
    frame_bytes: u32,
    frames: Vec<u8>,
}

impl Order {
    const HEAD_BYTES: usize = 16;

    fn head(&self) -> [u8; Self::HEAD_BYTES] {
        let mut head = [0; Self::HEAD_BYTES];
        head[0] = u8::from(self.method == Method::Ring);
        head[4..8].copy_from_slice(&self.stream.to_le_bytes());
        head[8..12].copy_from_slice(&self.frame_bytes.to_le_bytes());
        head[12..16].copy_from_slice(&(self.frames.len() as u32).to_le_bytes());
        head
    }

    /// Reads an order from a blocking stream.
    fn read(stream: &mut impl Read) -> std::io::Result<Self> {
        let mut head = [0; Self::HEAD_BYTES];
        stream.read_exact(&mut head)?;
        let number =
            |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let mut frames = vec![0; number(12) as usize];
        stream.read_exact(&mut frames)?;
        let method = if head[0] == 1 {
            Method::Ring
        } else {
            Method::Write
        };
        Ok(Self {
            method,
            stream: number(4),
            frame_bytes: number(8),
            frames,
        })
    }
}

/// The running child, seen from its parent. Dropping it ends the child.
pub struct Limit {
    pub address: SocketAddrV4,
    child: Child,
    /// One control connection per thread of the child.
    controls: Vec<TcpStream>,
}

impl Limit {
    /// Starts the child with this many pinned threads.
    pub fn start(threads: usize, hold: Hold, group: Option<&KernelMemory>) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(program);
        command.args([
            "limit-child",
            &format!("--threads={threads}"),
            &format!("--case={}", hold.name()),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let cpus = (0..threads.min(process::machine_cpus())).collect();
        process::enter(&mut command, cpus, group);
        let mut child = command.spawn().expect("this program can be started again");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe was asked for")).lines();
        let mut address = || {
            let line = lines
                .next()
                .expect("the child tells its ports")
                .expect("a line of text");
            SocketAddrV4::new(Ipv4Addr::LOCALHOST, line.parse().expect("a port"))
        };
        let clients = address();
        let controls = (0..threads).map(|_| {
            let control = TcpStream::connect(address()).expect("the child takes orders");
            control.set_nodelay(true).expect("TCP has the option");
            control
        });
        Self {
            address: clients,
            controls: controls.collect(),
            child,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes frames to all sockets of a stream; returns the time until all of them are written.
    pub fn write(
        &mut self,
        method: Method,
        stream: u32,
        frame_bytes: usize,
        frames: Vec<u8>,
    ) -> Duration {
        let begun = Instant::now();
        let order = Order {
            method,
            stream,
            frame_bytes: frame_bytes as u32,
            frames,
        };
        let bytes = [&order.head(), &order.frames[..]].concat();
        for control in &mut self.controls {
            control.write_all(&bytes).expect("the child takes orders");
        }
        for control in &mut self.controls {
            control
                .read_exact(&mut [0])
                .expect("the child answers an order");
        }
        begun.elapsed()
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The clients of a scenario in a form for the child: the path names the stream, and there are no commands.
pub struct Bare(pub Arc<dyn Clients>);

impl Clients for Bare {
    fn target(&self, index: u32) -> String {
        format!("/{}", self.0.stream(index).unwrap_or(0))
    }

    fn identifiers(&self, _index: u32) -> Vec<String> {
        Vec::new()
    }

    fn stream(&self, index: u32) -> Option<u32> {
        self.0.stream(index)
    }
}

/// Publishes through the child, in the frames that a server would build.
pub struct LimitOutlet<'a> {
    pub limit: &'a mut Limit,
    pub method: Method,
    /// All messages of one call go out in one gathered write instead of one write each.
    pub gathered: bool,
}

impl Outlet for LimitOutlet<'_> {
    fn publish(&mut self, marks: &[Mark]) -> Duration {
        let frames: Vec<Vec<u8>> = marks.iter().map(|mark| frame(*mark)).collect();
        let (frame_bytes, stream) = (frames[0].len(), marks[0].stream);
        if self.gathered {
            return self
                .limit
                .write(self.method, stream, frame_bytes, frames.concat());
        }
        let taken = marks.iter().zip(frames);
        taken
            .map(|(mark, frame)| {
                self.limit
                    .write(self.method, mark.stream, frame_bytes, frame)
            })
            .sum()
    }
}

/// The identifier of a public stream.
pub fn identifier(stream: u32) -> String {
    json!({"channel": "$pubsub", "stream_name": stream_name(stream)}).to_string()
}

fn frame(mark: Mark) -> Vec<u8> {
    let mut text = format!(
        r#"{{"identifier":{},"message":"#,
        json!(identifier(mark.stream))
    );
    mark.write_message(&mut text);
    text.push('}');
    text_frame(text.as_bytes())
}

/// A text frame as a server sends it.
pub fn text_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match payload.len() {
        length @ 0..126 => frame.push(length as u8),
        length @ 126..65_536 => {
            frame.push(126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(payload);
    frame
}
