//! Publishes over HTTP as an app does: `POST /_broadcast` on keep-alive connections.
//!
//! Fan-out scenarios use an [`Outlet`]: this publisher, or the bare loop of [`crate::limit`].

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use crate::fleet::Mark;

/// After this time without an answer the publication counts as lost.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// Something that publishes.
pub trait Outlet {
    /// Publishes these messages in this order; returns the time until they were accepted.
    fn publish(&mut self, marks: &[Mark]) -> Duration;
}

/// The name of a public stream by its number.
pub fn stream_name(stream: u32) -> String {
    format!("s{stream}")
}

/// One connection to the broadcast endpoint.
pub struct Publisher {
    address: SocketAddrV4,
    socket: Option<TcpStream>,
    /// Buffer of the request, reused so that publishing allocates nothing.
    request: Vec<u8>,
    body: String,
    message: String,
}

impl Publisher {
    /// Connects only at the first publication, because a server closes a connection that sends nothing for some seconds.
    pub fn new(address: SocketAddrV4) -> Self {
        Self {
            address,
            socket: None,
            request: Vec::new(),
            body: String::new(),
            message: String::new(),
        }
    }

    /// Sends a publication, or a batch when there are several, without waiting for the answer.
    pub fn send(&mut self, marks: &[Mark]) {
        self.body.clear();
        if marks.len() != 1 {
            self.body.push('[');
        }
        for (at, mark) in marks.iter().enumerate() {
            self.message.clear();
            mark.write_message(&mut self.message);
            // The message is a JSON string without escapes, so only its quotes must be escaped inside another JSON string.
            let text = self.message.trim_matches('"');
            let comma = if at > 0 { "," } else { "" };
            let _ = write!(
                self.body,
                r#"{comma}{{"stream":"{}","data":"\"{text}\""}}"#,
                stream_name(mark.stream)
            );
        }
        if marks.len() != 1 {
            self.body.push(']');
        }
        self.request.clear();
        let _ = write!(
            self.request,
            "POST /_broadcast HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{}",
            self.address,
            self.body.len(),
            self.body
        );
        let address = self.address;
        self.socket
            .get_or_insert_with(|| connect(address))
            .write_all(&self.request)
            .expect("the broadcast endpoint takes the request");
    }

    /// Waits for the answer to the oldest unanswered request.
    ///
    /// # Panics
    /// When the answer is not 201, because it is then unknown what was published.
    pub fn wait_taken(&mut self) {
        let socket = self.socket.as_mut().expect("a publication was sent");
        let mut answer = [0; 1024];
        let mut filled = 0;
        while !answer[..filled].ends_with(b"\r\n\r\n") {
            let bytes = socket
                .read(&mut answer[filled..])
                .expect("an answer in time");
            assert!(bytes > 0, "the broadcast endpoint closed the connection");
            filled += bytes;
        }
        let head = String::from_utf8_lossy(&answer[..filled]);
        assert!(
            head.starts_with("HTTP/1.1 201"),
            "a publication was answered with {head}"
        );
    }
}

fn connect(address: SocketAddrV4) -> TcpStream {
    let socket = TcpStream::connect(address).expect("the broadcast endpoint takes connections");
    socket.set_nodelay(true).expect("TCP has the option");
    socket
        .set_read_timeout(Some(ANSWER_PATIENCE))
        .expect("a timeout above 0");
    socket
}

impl Outlet for Publisher {
    fn publish(&mut self, marks: &[Mark]) -> Duration {
        let begun = Instant::now();
        self.send(marks);
        self.wait_taken();
        begun.elapsed()
    }
}
