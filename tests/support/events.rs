//! A client of server-sent events that reads an answer as a browser does: head, chunks, then events by the rules of the HTML
//! standard (§9.2.6).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http::Response;
use super::wait::PATIENCE;

/// How long one read blocks before the deadline is looked at.
const READ_SLICE: Duration = Duration::from_millis(200);

/// How to ask for events.
pub struct EventRequest {
    address: SocketAddr,
    head: String,
    body: Option<String>,
}

impl EventRequest {
    pub fn get(address: SocketAddr, target: &str) -> Self {
        Self::new(address, &format!("GET {target} HTTP/1.1"))
    }

    pub fn post(address: SocketAddr, target: &str, body: &str) -> Self {
        let mut request = Self::new(address, &format!("POST {target} HTTP/1.1"));
        request.body = Some(body.to_owned());
        request
    }

    /// A request line of any kind.
    pub fn new(address: SocketAddr, line: &str) -> Self {
        Self {
            address,
            head: format!("{line}\r\nHost: {address}\r\n"),
            body: None,
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Sends the request and reads nothing.
    pub fn send(self) -> TcpStream {
        let mut stream =
            TcpStream::connect_timeout(&self.address, PATIENCE).expect("the server accepts");
        stream.set_nodelay(true).expect("an option of every socket");
        stream
            .set_read_timeout(Some(READ_SLICE))
            .expect("an option of every socket");
        let mut text = self.head;
        if let Some(body) = &self.body {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(self.body.as_deref().unwrap_or_default());
        stream
            .write_all(text.as_bytes())
            .expect("the server takes a request");
        stream
    }

    /// Expects a 200, and reads on from there.
    pub fn open(self) -> Events {
        Events::read(self.send())
    }

    /// Expects an answer without a body, and the end of the connection if it says so.
    pub fn refused(self) -> Response {
        let mut reader = Reader::new(self.send());
        let response = reader.head();
        assert_eq!(response.header("content-length"), Some("0"), "{response:?}");
        if response.header("connection") == Some("close") {
            assert!(reader.is_at_end(), "something follows {response:?}");
        }
        response
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `message` when it has no type.
    pub kind: String,
    pub data: String,
    /// The last id so far.
    pub id: String,
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// A stream of events.
pub struct Events {
    reader: Reader,
    pub response: Response,
    chunked: bool,
    /// Text that has arrived and is not read yet.
    text: Vec<u8>,
    /// The body has ended.
    ended: bool,
    id: String,
    pub retry: Option<u64>,
    pub comments: usize,
}

impl Events {
    pub fn read(stream: impl Read + 'static) -> Self {
        let mut reader = Reader::new(stream);
        let response = reader.head();
        assert_eq!(response.status, 200, "{response:?}");
        Self {
            reader,
            chunked: response.header("transfer-encoding") == Some("chunked"),
            response,
            text: Vec::new(),
            ended: false,
            id: String::new(),
            retry: None,
            comments: 0,
        }
    }

    /// The next event that is not a ping.
    pub fn next(&mut self) -> Event {
        loop {
            let event = self.next_of_all().expect("an event, not the end");
            if event.kind != "ping" {
                return event;
            }
        }
    }

    /// The next event of this type, with its data as JSON.
    pub fn expect(&mut self, kind: &str) -> Value {
        let event = self.next();
        assert_eq!(event.kind, kind, "{event:?}");
        event.json()
    }

    /// The next event without a type: its data.
    pub fn message(&mut self) -> String {
        let event = self.next();
        assert_eq!(event.kind, "message", "{event:?}");
        event.data
    }

    /// Expects that the body ends before another event but pings comes.
    pub fn expect_end(&mut self) {
        while let Some(event) = self.next_of_all() {
            assert_eq!(event.kind, "ping", "{event:?}");
        }
        assert!(self.reader.is_at_end(), "something follows the last chunk");
    }

    /// The next event, pings included; `None` at the end of the body.
    pub fn next_of_all(&mut self) -> Option<Event> {
        let (mut kind, mut data) = (String::new(), String::new());
        loop {
            let line = self.line()?;
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if !line.is_empty() => self.comments += 1,
                "" if data.is_empty() => kind.clear(),
                "" => {
                    data.pop();
                    return Some(Event {
                        kind: if kind.is_empty() {
                            "message".to_owned()
                        } else {
                            kind
                        },
                        data,
                        id: self.id.clone(),
                    });
                }
                "event" => kind = value.to_owned(),
                "data" => {
                    data.push_str(value);
                    data.push('\n');
                }
                "id" if !value.contains('\0') => self.id = value.to_owned(),
                "retry" => self.retry = value.parse().ok(),
                _ => {}
            }
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            let end = self.text.iter().position(|byte| b"\r\n".contains(byte));
            if let Some(at) = end {
                let is_pair = self.text[at..].starts_with(b"\r\n");
                let mut line: Vec<u8> = self.text.drain(..=at + usize::from(is_pair)).collect();
                line.truncate(at);
                return Some(String::from_utf8(line).expect("events are UTF-8"));
            }
            if self.ended {
                return None;
            }
            self.read_more();
        }
    }

    fn read_more(&mut self) {
        if !self.chunked {
            let bytes = self.reader.some();
            self.ended = bytes.is_empty();
            self.text.extend_from_slice(&bytes);
            return;
        }
        let size = self.reader.line();
        let size = usize::from_str_radix(&size, 16)
            .unwrap_or_else(|error| panic!("{error} in the size of a chunk: {size:?}"));
        self.ended = size == 0;
        self.text.extend(self.reader.exactly(size));
        assert_eq!(self.reader.line(), "", "a chunk ends with a line end");
    }
}

/// Reads with a deadline.
struct Reader(BufReader<Box<dyn Read>>);

impl Reader {
    fn new(stream: impl Read + 'static) -> Self {
        Self(BufReader::new(Box::new(stream)))
    }

    fn head(&mut self) -> Response {
        let status = self.line();
        let status = status
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or_else(|| panic!("not a status line: {status:?}"));
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").expect("a header");
            headers.push((name.to_owned(), value.to_owned()));
        }
        Response {
            status,
            headers,
            body: Vec::new(),
        }
    }

    /// The bytes that are there; none at the end.
    fn some(&mut self) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.0.fill_buf() {
                Ok(bytes) => {
                    let bytes = bytes.to_vec();
                    self.0.consume(bytes.len());
                    return bytes;
                }
                Err(error) if is_pause(&error) => assert!(
                    Instant::now() < deadline,
                    "waited {PATIENCE:?} in vain for bytes"
                ),
                Err(error) => panic!("expected bytes, got {error}"),
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            line.extend(self.exactly(1));
        }
        line.truncate(line.len() - 2);
        String::from_utf8(line).expect("UTF-8")
    }

    fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let mut filled = 0;
        let deadline = Instant::now() + PATIENCE;
        while filled < count {
            match self.0.read(&mut bytes[filled..]) {
                Ok(0) => panic!("the connection ended"),
                Ok(read) => filled += read,
                Err(error) if is_pause(&error) => assert!(
                    Instant::now() < deadline,
                    "waited {PATIENCE:?} in vain for {count} bytes"
                ),
                Err(error) => panic!("expected {count} bytes, got {error}"),
            }
        }
        bytes
    }

    fn is_at_end(&mut self) -> bool {
        self.some().is_empty()
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}
