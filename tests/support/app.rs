//! An HTTP/1.1 server that does what a script says, right or wrong. [`Rails`](super::rails::Rails) is one with the manners
//! of an app; the tests of the RPC client give it scripts of their own.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::{Domain, SockRef, Socket, Type};

/// Pending connections of the listener: more than any test opens at once.
const BACKLOG: i32 = 1024;

/// How long one look waits for the caller to close.
const CALLER_LOOK_TIME: Duration = Duration::from_millis(5);

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Connections are numbered as they are accepted.
    pub connection: usize,
    /// Its place on the connection.
    pub number: usize,
    /// The request line and the header lines, with the empty line behind them.
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.head.lines().skip(1);
        lines.filter_map(|line| line.split_once(": "))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The next one, or `None` at the end of the connection.
    pub fn read(stream: &mut impl Read, connection: usize, number: usize) -> Option<Self> {
        let mut bytes = Vec::new();
        let head_bytes = loop {
            read_more(stream, &mut bytes)?;
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let body = bytes.split_off(head_bytes);
        let head = String::from_utf8_lossy(&bytes).into_owned();
        let mut request = Self {
            connection,
            number,
            head,
            body,
        };
        let length = request
            .header("content-length")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        while request.body.len() < length {
            read_more(stream, &mut request.body)?;
        }
        assert_eq!(request.body.len(), length, "no pipelining");
        Some(request)
    }

    /// Head and body.
    pub fn text(&self) -> String {
        format!("{}{}", self.head, String::from_utf8_lossy(&self.body))
    }
}

/// What happens on the connection after a request.
#[derive(Debug, Clone)]
pub enum Reply {
    /// These bytes; the next request may come.
    Send(Vec<u8>),
    /// The same, byte by byte.
    SendSlowly(Vec<u8>),
    /// These bytes, then the connection ends.
    SendAndClose(Vec<u8>),
    /// No answer; the caller has to close.
    Silence,
}

/// Who waits for an answer.
pub struct Caller<'a>(&'a TcpStream);

impl Caller<'_> {
    /// The address that was called.
    pub fn authority(&self) -> String {
        self.0
            .local_addr()
            .map(|address| address.to_string())
            .unwrap_or_default()
    }

    /// Whether the connection is still open. Takes a few milliseconds to say yes.
    pub fn is_there(&self) -> bool {
        match self.look() {
            Ok(0) => false,
            Ok(_) => {
                thread::sleep(CALLER_LOOK_TIME);
                true
            }
            Err(error) => matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
            ),
        }
    }

    fn look(&self) -> io::Result<usize> {
        self.0.set_read_timeout(Some(CALLER_LOOK_TIME))?;
        let looked = self.0.peek(&mut [0]);
        self.0.set_read_timeout(None)?;
        looked
    }
}

/// What a request gets.
pub type Script = dyn Fn(&Request, &Caller<'_>) -> Reply + Send + Sync;

/// What serves a connection, by its number.
type Serve = dyn Fn(usize, TcpStream) + Send + Sync;

/// The server. It ends with the value.
pub struct App {
    address: SocketAddr,
    listener: Mutex<Socket>,
    serve: Arc<Serve>,
    connections: Arc<Connections>,
}

#[derive(Default)]
struct Connections {
    accepted: AtomicUsize,
    open: Mutex<HashMap<usize, TcpStream>>,
    /// Those that have ended and were not asked for yet.
    ends: AtomicUsize,
}

impl App {
    pub fn start(script: impl Fn(&Request, &Caller<'_>) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_raw(move |connection, mut stream| {
            let socket = stream.try_clone().expect("a descriptor");
            converse(connection, &mut stream, &socket, &script);
        })
    }

    /// Speaks TLS.
    pub fn start_tls(
        config: Arc<ServerConfig>,
        script: impl Fn(&Request, &Caller<'_>) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_raw(move |connection, stream| {
            let socket = stream.try_clone().expect("a descriptor");
            let tls = ServerConnection::new(Arc::clone(&config)).expect("a valid configuration");
            converse(
                connection,
                &mut StreamOwned::new(tls, stream),
                &socket,
                &script,
            );
        })
    }

    /// Each connection is handed to `serve` on a thread of its own.
    pub fn start_raw(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = listener
            .local_addr()
            .ok()
            .and_then(|address| address.as_socket());
        let app = Self {
            address: address.expect("a bound socket has an address"),
            listener: Mutex::new(listener),
            serve: Arc::new(serve),
            connections: Arc::default(),
        };
        app.restart();
        app
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes every connection and refuses new ones, but keeps the port.
    pub fn stop(&self) {
        let mut listener = self.listener();
        // Wakes the accepting thread: its accept fails from now on.
        listener
            .shutdown(Shutdown::Both)
            .expect("a listening socket can be shut down");
        self.close_connections();
        // Bound but not listening: connections are refused and nobody else can take the port meanwhile.
        *listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        *listener = bind(self.address);
    }

    /// Listens, after a stop on the same port.
    pub fn restart(&self) {
        let listener = self.listener();
        listener.listen(BACKLOG).expect("the port is ours");
        let socket = listener.try_clone().expect("a descriptor");
        let (serve, connections) = (Arc::clone(&self.serve), Arc::clone(&self.connections));
        thread::spawn(move || accept(&socket, &serve, &connections));
    }

    /// Ends every connection.
    pub fn close_connections(&self) {
        for stream in self.connections.open().values() {
            // Fails only when the far end was quicker.
            let _closed_by_peer = stream.shutdown(Shutdown::Both);
        }
    }

    /// Ends every connection with a reset.
    pub fn reset_connections(&self) {
        for stream in self.connections.open().values() {
            let option = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            option.expect("an option of every socket");
            // Fails only when the far end was quicker.
            let _closed_by_peer = stream.shutdown(Shutdown::Read);
        }
    }

    /// How many connections were accepted: the number of the next one.
    pub fn accepted(&self) -> usize {
        self.connections.accepted.load(Ordering::SeqCst)
    }

    /// Whether a connection has ended of which this was not said before, whoever ended it.
    pub fn take_end(&self) -> bool {
        let ends = &self.connections.ends;
        ends.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |ends| {
            ends.checked_sub(1)
        })
        .is_ok()
    }

    fn listener(&self) -> MutexGuard<'_, Socket> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // Fails when the app was stopped already.
        let _not_listening = self.listener().shutdown(Shutdown::Both);
        self.close_connections();
    }
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, HashMap<usize, TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bind(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket
        .set_reuse_address(true)
        .expect("an option of every socket");
    socket.bind(&address.into()).expect("the port is free");
    socket
}

fn accept(listener: &Socket, serve: &Arc<Serve>, connections: &Arc<Connections>) {
    while let Ok((socket, _)) = listener.accept() {
        let stream = TcpStream::from(socket);
        let number = connections.accepted.fetch_add(1, Ordering::SeqCst);
        let (serve, connections) = (Arc::clone(serve), Arc::clone(connections));
        thread::spawn(move || {
            let Ok(copy) = stream.try_clone() else { return };
            connections.open().insert(number, copy);
            if stream.set_nodelay(true).is_ok() {
                serve(number, stream);
            }
            connections.open().remove(&number);
            connections.ends.fetch_add(1, Ordering::SeqCst);
        });
    }
}

/// Requests and replies, until one side ends the connection.
fn converse(
    connection: usize,
    stream: &mut (impl Read + Write),
    socket: &TcpStream,
    script: &Script,
) {
    let mut number = 0;
    while let Some(request) = Request::read(stream, connection, number) {
        number += 1;
        // An error is the far end's end of the connection.
        match obey(script(&request, &Caller(socket)), stream) {
            Ok(true) => {}
            Ok(false) => {
                let _closed_by_peer = socket.shutdown(Shutdown::Write);
                return;
            }
            Err(_) => return,
        }
    }
}

/// Whether the connection goes on.
fn obey(reply: Reply, stream: &mut (impl Read + Write)) -> io::Result<bool> {
    match reply {
        Reply::Send(bytes) => stream.write_all(&bytes)?,
        Reply::SendSlowly(bytes) => {
            for byte in bytes {
                stream.write_all(&[byte])?;
                stream.flush()?;
            }
        }
        Reply::SendAndClose(bytes) => {
            stream.write_all(&bytes)?;
            stream.flush()?;
            return Ok(false);
        }
        Reply::Silence => {
            drain(stream);
            return Ok(false);
        }
    }
    stream.flush()?;
    Ok(true)
}

fn read_more(stream: &mut impl Read, bytes: &mut Vec<u8>) -> Option<()> {
    let mut piece = [0; 64 << 10];
    let count = stream.read(&mut piece).ok().filter(|count| *count > 0)?;
    bytes.extend_from_slice(&piece[..count]);
    Some(())
}

/// Reads until the caller closes.
pub fn drain(stream: &mut impl Read) {
    let _ended = io::copy(stream, &mut io::sink());
}
