//! A client that asks the app directly: how much the app alone can answer.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::MOUNT;
use super::epoll::{EVENT, EVENTS_MAX, Epoll};
use crate::histogram::Histogram;

/// The result of a bare client.
pub struct Bare {
    pub calls: u64,
    pub elapsed: Duration,
    /// Time from request to answer, in ns.
    pub latency: Histogram,
}

/// Calls the app directly over `connections` keep-alive connections, one call at a time on each, for `time`. The call is a
/// perform as the server would send it.
/// perform as the server would send it.
pub fn bare_calls(address: SocketAddr, connections: usize, time: Duration) -> io::Result<Bare> {
    let request = bare_request(address);
    let epoll = Epoll::new()?;
    let mut sockets = Vec::new();
    for token in 0..connections as u64 {
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.write_all(&request)?;
        epoll.watch(socket.as_raw_fd(), token)?;
        sockets.push((socket, Instant::now()));
    }
    let started = Instant::now();
    let mut bare = Bare {
        calls: 0,
        elapsed: Duration::ZERO,
        latency: Histogram::default(),
    };
    let (mut events, mut buffer) = ([EVENT; EVENTS_MAX], [0; 4096]);
    while started.elapsed() < time {
        for event in epoll.wait(&mut events, Some(Duration::from_millis(100))) {
            let (socket, asked) = &mut sockets[event.u64 as usize];
            // An answer is far smaller than a segment, so it always arrives in one piece.
            if socket.read(&mut buffer)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bare.latency.record(asked.elapsed().as_nanos() as u64);
            bare.calls += 1;
            *asked = Instant::now();
            socket.write_all(&request)?;
        }
    }
    bare.elapsed = started.elapsed();
    Ok(bare)
}

fn bare_request(address: SocketAddr) -> Vec<u8> {
    let body = concat!(
        r#"{"command":"message","identifier":"{\"channel\":\"BenchChannel\"}","#,
        r#""connection_identifiers":"{\"current_user\":\"Z2lkOi8vY2FtcGZpcmUvVXNlci8x\"}","data":"{\"action\":\"echo\"}","#,
        r#""env":{"url":"http://localhost/cable","headers":{"REMOTE_ADDR":"127.0.0.1"}}}"#
    );
    format!(
        "POST {MOUNT}/command HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
