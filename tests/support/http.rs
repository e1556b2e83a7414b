//! A small HTTP/1.1 client for the ordinary endpoints, one request per connection or many.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::wait::PATIENCE;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("a body of the server is UTF-8")
    }
}

/// One keep-alive connection.
pub struct HttpConnection {
    reader: BufReader<TcpStream>,
}

impl HttpConnection {
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::new(stream),
        })
    }

    /// Writes `bytes` as they are.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    pub fn request(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut head = format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\n",
            self.reader.get_ref().peer_addr()?
        );
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || method == "POST" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend_from_slice(body);
        self.write(&bytes)?;
        self.read_response(method == "HEAD")
    }

    /// Reads one response, body framed by length, chunks or the end of the connection.
    pub fn read_response(&mut self, head_only: bool) -> io::Result<Response> {
        let status_line = self.read_line()?;
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok());
        let status =
            status.ok_or_else(|| invalid(format!("not a status line: {status_line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.read_line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| invalid(format!("not a header: {line:?}")))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut response = Response {
            status,
            headers,
            body: Vec::new(),
        };
        if !head_only && status >= 200 && status != 204 && status != 304 {
            response.body = self.read_body(&response)?;
        }
        Ok(response)
    }

    /// The socket, for what HTTP does not have.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }

    /// True when the server closes without sending anything more.
    pub fn is_at_end(&mut self) -> bool {
        let mut rest = Vec::new();
        matches!(self.reader.read_to_end(&mut rest), Ok(0))
    }

    fn read_body(&mut self, response: &Response) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if let Some(length) = response.header("content-length") {
            body.resize(
                length
                    .parse()
                    .map_err(|_| invalid(format!("bad length {length:?}")))?,
                0,
            );
            self.reader.read_exact(&mut body)?;
        } else if response.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = self.read_line()?;
                let size = usize::from_str_radix(&size, 16)
                    .map_err(|_| invalid(format!("bad chunk {size:?}")))?;
                let start = body.len();
                body.resize(start + size, 0);
                self.reader.read_exact(&mut body[start..])?;
                self.read_line()?;
                if size == 0 {
                    break;
                }
            }
        } else {
            self.reader.read_to_end(&mut body)?;
        }
        Ok(body)
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        let Some(line) = line.strip_suffix(b"\r\n") else {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the connection ended inside a line",
            ));
        };
        Ok(String::from_utf8_lossy(line).into_owned())
    }
}

/// One request on its own connection, `None` when the server is not there.
pub fn try_get(address: SocketAddr, path: &str) -> Option<Response> {
    request(address, "GET", path, &[("Connection", "close")], b"").ok()
}

pub fn get(address: SocketAddr, path: &str) -> Response {
    try_get(address, path).unwrap_or_else(|| panic!("no answer to GET {path}"))
}

pub fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    HttpConnection::open(address)?.request(method, target, headers, body)
}

/// What the Ruby broadcast adapter does: a new connection and `Connection: close` for each publication.
#[derive(Debug, Clone)]
pub struct Broadcaster {
    pub address: SocketAddr,
    pub path: String,
    pub token: Option<String>,
}

impl Broadcaster {
    /// Publishes `data` (a JSON text or plain text) and insists on 201.
    pub fn publish(&self, stream: &str, data: &str) {
        self.post(&publication(stream, data));
    }

    /// Posts a body that must be accepted.
    pub fn post(&self, body: &str) {
        let response = self.try_post(body).expect("the broadcast endpoint answers");
        assert_eq!(response.status, 201, "answer to {body}");
        assert!(response.body.is_empty(), "a 201 has no body: {response:?}");
    }

    pub fn try_post(&self, body: &str) -> io::Result<Response> {
        let authorization = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let mut headers = vec![
            ("Content-Type", "application/json"),
            ("Connection", "close"),
        ];
        headers.extend(
            authorization
                .as_deref()
                .map(|value| ("Authorization", value)),
        );
        request(self.address, "POST", &self.path, &headers, body.as_bytes())
    }

    /// Many publications over one connection.
    pub fn keep_alive(&self) -> KeepAliveBroadcaster {
        KeepAliveBroadcaster {
            connection: HttpConnection::open(self.address).expect("the broadcast endpoint accepts"),
            path: self.path.clone(),
            authorization: self.token.as_ref().map(|token| format!("Bearer {token}")),
        }
    }
}

/// A publisher that reuses its connection.
pub struct KeepAliveBroadcaster {
    connection: HttpConnection,
    path: String,
    authorization: Option<String>,
}

impl KeepAliveBroadcaster {
    pub fn publish(&mut self, stream: &str, data: &str) {
        self.post(&publication(stream, data));
    }

    /// Posts a body of any kind.
    pub fn post(&mut self, body: &str) {
        let mut headers = vec![("Content-Type", "application/json")];
        headers.extend(
            self.authorization
                .as_deref()
                .map(|value| ("Authorization", value)),
        );
        let response = self
            .connection
            .request("POST", &self.path, &headers, body.as_bytes());
        assert_eq!(response.expect("the connection is kept alive").status, 201);
    }
}

/// The body of a single publication.
pub fn publication(stream: &str, data: &str) -> String {
    serde_json::json!({ "stream": stream, "data": data }).to_string()
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
