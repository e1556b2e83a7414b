//! An Action Cable client on `tungstenite`, for everything that a well-behaved client does.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::handshake::client::Response;
use tungstenite::http::{HeaderName, HeaderValue};
use tungstenite::{Error, Message, WebSocket};

use super::rails::confirmation;
use super::server::Server;
use super::wait::PATIENCE;

/// How long one read blocks before the deadline is looked at.
const READ_SLICE: Duration = Duration::from_millis(200);

/// How to connect.
pub struct CableRequest {
    address: SocketAddr,
    target: String,
    headers: Vec<(String, String)>,
}

impl CableRequest {
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The session cookie of the Campfire app's user `id`.
    pub fn user(self, id: u32) -> Self {
        self.header(
            "Cookie",
            &format!(
                "theme=dark; session_token={}",
                super::campfire::session_token(id)
            ),
        )
    }

    pub fn subprotocols(self, list: &str) -> Self {
        self.header("Sec-WebSocket-Protocol", list)
    }

    /// Upgrades; nothing has been read from the socket yet.
    pub fn open(self) -> Cable {
        let stream =
            TcpStream::connect_timeout(&self.address, PATIENCE).expect("the server accepts");
        stream.set_nodelay(true).expect("an option of every socket");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("an option of every socket");
        let url = format!("ws://{}{}", self.address, self.target);
        let mut request = url.into_client_request().expect("a valid URL");
        for (name, value) in self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
            request
                .headers_mut()
                .append(name, HeaderValue::from_str(&value).expect("a header value"));
        }
        let (socket, response) =
            tungstenite::client(request, stream).expect("the upgrade succeeds");
        socket
            .get_ref()
            .set_read_timeout(Some(READ_SLICE))
            .expect("an option of every socket");
        Cable { socket, response }
    }

    /// Upgrades and waits for the welcome.
    pub fn welcomed(self) -> Cable {
        let mut cable = self.open();
        let welcome = cable.next_json();
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        cable
    }
}

/// A connected client.
pub struct Cable {
    socket: WebSocket<TcpStream>,
    response: Response,
}

impl Cable {
    pub fn to(server: &Server) -> CableRequest {
        Self::at(server, "/cable")
    }

    pub fn at(server: &Server, target: &str) -> CableRequest {
        CableRequest {
            address: server.address(),
            target: target.to_owned(),
            headers: Vec::new(),
        }
    }

    /// A header of the 101.
    pub fn response_header(&self, name: &str) -> Option<&str> {
        self.response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    }

    pub fn send(&mut self, text: &str) {
        self.socket
            .send(Message::text(text))
            .expect("the connection is open");
    }

    pub fn command(&mut self, command: &str, identifier: &str) {
        self.send(&json!({ "command": command, "identifier": identifier }).to_string());
    }

    pub fn perform(&mut self, identifier: &str, data: &str) {
        self.send(
            &json!({ "command": "message", "identifier": identifier, "data": data }).to_string(),
        );
    }

    /// Subscribes and waits for the confirmation.
    pub fn subscribe(&mut self, identifier: &str) {
        self.command("subscribe", identifier);
        assert_eq!(self.next_text(), confirmation(identifier));
    }

    /// The next data message that is not a ping.
    pub fn next_text(&mut self) -> String {
        loop {
            match self.next_message() {
                Message::Text(text) if text.starts_with(r#"{"type":"ping""#) => {}
                Message::Text(text) => return text.as_str().to_owned(),
                other => panic!("expected a text, got {other:?}"),
            }
        }
    }

    pub fn next_json(&mut self) -> Value {
        let text = self.next_text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// The next message, pings included.
    pub fn next_message(&mut self) -> Message {
        let message = self.next_within(PATIENCE);
        message.unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for a message"))
    }

    /// The same, or nothing when none comes in this time.
    pub fn next_within(&mut self, patience: Duration) -> Option<Message> {
        let deadline = Instant::now() + patience;
        loop {
            match self.socket.read() {
                Ok(message) => return Some(message),
                Err(Error::Io(error))
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) =>
                {
                    if Instant::now() >= deadline {
                        return None;
                    }
                }
                Err(error) => panic!("expected a message, got {error}"),
            }
        }
    }

    /// The next message, pings aside, is a close frame with these values.
    pub fn expect_close(&mut self, code: u16, reason: &str) {
        loop {
            match self.next_message() {
                Message::Text(text) if text.starts_with(r#"{"type":"ping""#) => {}
                Message::Close(Some(frame)) => {
                    assert_eq!(
                        (u16::from(frame.code), frame.reason.as_str()),
                        (code, reason)
                    );
                    return;
                }
                other => panic!("expected close {code} {reason:?}, got {other:?}"),
            }
        }
    }

    /// Nothing was queued for us before the answer to this `ping` command.
    pub fn expect_nothing_before_pong(&mut self) {
        self.send(r#"{"command":"ping"}"#);
        assert_eq!(self.next_text(), r#"{"type":"pong"}"#);
    }

    /// Says goodbye as a browser does and waits for the answer.
    pub fn close(mut self) {
        self.socket.close(None).expect("the connection is open");
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.socket.read() {
                Err(Error::ConnectionClosed | Error::AlreadyClosed) => return,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => return,
                _ => assert!(
                    Instant::now() < deadline,
                    "the server does not answer the close frame"
                ),
            }
        }
    }
}
