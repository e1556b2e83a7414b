//! A client of long polling, written from the protocol's documentation alone.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;

use super::http::{HttpConnection, Response};
use super::server::Server;

/// The header with the id of a session.
pub const POLL_ID: &str = "X-Anycable-Poll-ID";

/// A session over long polling. Each request has a connection of its own.
#[derive(Clone)]
pub struct Poller {
    address: SocketAddr,
    target: Arc<str>,
    pub id: String,
}

/// A request that has no answer yet.
pub struct Waiting(HttpConnection);

impl Poller {
    /// Opens a session and returns the messages of the answer.
    ///
    /// # Panics
    /// When it is refused.
    pub fn open(server: &Server, commands: &str) -> (Self, Vec<Value>) {
        let answer = try_open(server.address(), "/lp", &[], commands);
        assert_eq!(answer.status, 200, "{answer:?}");
        let poller = Self {
            address: server.address(),
            target: "/lp".into(),
            id: answer.header(POLL_ID).expect("an id").to_owned(),
        };
        (poller, messages(&answer))
    }

    /// The same for another client of this session.
    pub fn with_id(&self, id: &str) -> Self {
        Self {
            id: id.to_owned(),
            ..self.clone()
        }
    }

    /// Sends a poll.
    pub fn start(&self, commands: &str) -> Waiting {
        let mut connection = HttpConnection::open(self.address).expect("accepted");
        self.send(&mut connection, commands);
        Waiting(connection)
    }

    /// Sends a poll on this connection.
    pub fn send(&self, connection: &mut HttpConnection, commands: &str) {
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: a\r\n{POLL_ID}: {}\r\nContent-Length: {}\r\n\r\n{commands}",
            self.target,
            self.id,
            commands.len()
        );
        connection.write(request.as_bytes()).expect("written");
    }

    /// Polls and waits for the answer.
    pub fn answer(&self, commands: &str) -> Response {
        self.start(commands).answer()
    }

    /// Polls and returns the messages of the answer.
    ///
    /// # Panics
    /// When the session has ended.
    pub fn poll(&self, commands: &str) -> Vec<Value> {
        let answer = self.answer(commands);
        assert_eq!(answer.status, 200, "{answer:?}");
        messages(&answer)
    }

    /// Polls until so many messages have come.
    pub fn poll_for(&self, count: usize) -> Vec<Value> {
        let mut all = Vec::new();
        while all.len() < count {
            all.extend(self.poll(""));
        }
        all
    }
}

impl Waiting {
    pub fn answer(self) -> Response {
        self.try_answer().expect("an answer")
    }

    /// # Errors
    /// The connection has ended, or nothing comes.
    pub fn try_answer(mut self) -> io::Result<Response> {
        self.0.read_response(false)
    }

    pub fn messages(self) -> Vec<Value> {
        messages(&self.answer())
    }

    pub fn connection(&mut self) -> &mut HttpConnection {
        &mut self.0
    }
}

/// Sends the request that opens a session.
pub fn try_open(
    address: SocketAddr,
    target: &str,
    headers: &[(&str, &str)],
    commands: &str,
) -> Response {
    super::http::request(address, "POST", target, headers, commands.as_bytes()).expect("an answer")
}

/// The messages of an answer: one on each line, and every line has its end.
///
/// # Panics
/// When a line is no JSON.
pub fn messages(answer: &Response) -> Vec<Value> {
    let text = answer.text();
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}")))
        .collect()
}

/// Sends a request on a connection with TLS and reads its answer, whose body has a length.
pub fn over_tls(stream: &mut (impl Read + Write), request: &str) -> Response {
    stream.write_all(request.as_bytes()).expect("written");
    let mut reader = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    };
    let status_line = line();
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok());
    let mut response = Response {
        status: status.expect("a status"),
        headers: Vec::new(),
        body: Vec::new(),
    };
    while let Some((name, value)) = line().split_once(':') {
        response
            .headers
            .push((name.to_owned(), value.trim().to_owned()));
    }
    let length = response.header("content-length").expect("a length");
    response.body.resize(length.parse().expect("a number"), 0);
    reader.read_exact(&mut response.body).expect("the body");
    response
}
