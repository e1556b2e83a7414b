//! The only code that works with `monoio::net`: listeners, sockets of the HTTP phase and of calls to the app, time limits,
//! and the wake-up of the reactor.
//!
//! Established sessions are not here: their sockets have left monoio and belong to the shard and its reactor.

mod tcp;
mod timeouts;
pub mod tls;
mod yields;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use monoio::net::{TcpListener, TcpStream};

pub use self::tcp::TcpSocket;
pub use self::timeouts::Timeouts;
pub use self::yields::Yields;
use crate::net::tls::{OPENING_BYTES, PLAIN_HTTP_ANSWER, ServerTls, TlsSession, is_plain_http};
use crate::os::sockets;

/// Ciphertext bytes per read: most heads, and the messages of the handshake, come in one read.
const RECORD_READ_BYTES: usize = 4096;
/// Bytes that are read and dropped from a client that does not speak TLS: without this a reset could overtake the answer.
const REFUSED_BYTES_MAX: usize = 64 << 10;

/// The driver that reports readiness, to monoio and to the reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    IoUring,
    Epoll,
}

impl Driver {
    /// As in `--driver` and in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// A listening socket. Accepts in batches: one readiness, then accepts until no connection waits.
pub struct Listener {
    listener: std::net::TcpListener,
    readiness: TcpListener,
}

impl Listener {
    /// Adopts a non-blocking listening socket. Call on the shard's thread, inside its runtime.
    ///
    /// # Errors
    /// The error of dup(2) or of the driver's registration.
    pub fn adopt(listener: std::net::TcpListener) -> io::Result<Self> {
        let readiness = TcpListener::from_std(listener.try_clone()?)?;
        Ok(Self {
            listener,
            readiness,
        })
    }

    /// Waits until a connection can be accepted.
    ///
    /// # Errors
    /// Those of the driver.
    pub async fn ready(&self) -> io::Result<()> {
        self.readiness.readable(false).await
    }

    /// Accepts one waiting connection, non-blocking and with its options set; `None` when there is none.
    ///
    /// # Errors
    /// Those of accept4(2): EMFILE when out of descriptors, ECONNABORTED when the client has left already, …
    pub fn accept(&self) -> io::Result<Option<(std::net::TcpStream, SocketAddr)>> {
        match sockets::accept(&self.listener) {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A client socket in its HTTP phase. With TLS or without, what is read and written here is HTTP.
pub struct Socket {
    tcp: TcpSocket,
    tls: Option<Box<TlsLayer>>,
}

/// What TLS needs for a socket of the HTTP phase.
struct TlsLayer {
    session: TlsSession,
    /// Decrypted and not read yet.
    plain: Vec<u8>,
    /// Ciphertext, incoming or outgoing.
    records: Vec<u8>,
    /// The client's first bytes, which show whether it speaks TLS, or HTTP by mistake.
    opening: Vec<u8>,
}

/// What a read has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// Something to read.
    Bytes,
    /// TLS used all of it: read again.
    Nothing,
    /// The client has closed.
    End,
}

impl Received {
    fn of(bytes: usize) -> Self {
        if bytes > 0 { Self::Bytes } else { Self::End }
    }
}

/// A socket that has left monoio.
pub struct Released {
    /// Non-blocking.
    pub stream: std::net::TcpStream,
    pub tls: Option<Box<TlsSession>>,
    /// Decrypted bytes that no read has taken.
    pub unread: Vec<u8>,
}

impl Socket {
    /// Adopts a socket that [`Listener::accept`] gave.
    ///
    /// # Errors
    /// A TLS configuration that rustls refuses.
    pub fn adopt(stream: std::net::TcpStream, tls: Option<&ServerTls>) -> io::Result<Self> {
        Ok(Self {
            tcp: TcpSocket::new(stream),
            tls: tls.map(TlsLayer::new).transpose()?,
        })
    }

    /// Takes a socket back that [`Self::release`] has given.
    pub fn readopt(stream: std::net::TcpStream, tls: Option<Box<TlsSession>>) -> Self {
        Self {
            tcp: TcpSocket::new(stream),
            tls: tls.map(|session| TlsLayer::with(*session)),
        }
    }

    /// Appends what has arrived to `buffer`; waits for the first byte. Room for `bytes` is allocated only when there is
    /// something to read.
    ///
    /// # Errors
    /// Those of the kernel, and `InvalidData` for a client that does not speak TLS where it should; that client has got an
    /// answer then.
    ///
    /// # Cancel safety
    /// With TLS, a drop may cut off a record that TLS has to send. Drop the future only to drop the socket too.
    pub async fn read(&mut self, buffer: &mut Vec<u8>, bytes: usize) -> io::Result<Received> {
        match &mut self.tls {
            None => self.tcp.read(buffer, bytes).await.map(Received::of),
            // This future is large and only needed with TLS, so it is boxed.
            Some(tls) => Box::pin(tls.read(&mut self.tcp, buffer)).await,
        }
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// Those of the kernel.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => self.tcp.write_all(bytes).await,
            Some(tls) => {
                tls.session.encrypt(bytes, &mut tls.records);
                tls.write_records(&mut self.tcp).await
            }
        }
    }

    /// Takes the connection out, for somebody who writes to it; it must be put back before anything else is done here.
    /// `None` with TLS, where what is written has to be encrypted first, and when the driver has refused the socket.
    pub fn lend(&mut self) -> Option<TcpSocket> {
        let lends = self.tls.is_none() && self.tcp.fd().is_ok();
        lends.then(|| self.tcp.take())
    }

    /// Puts back what [`Self::lend`] has given.
    pub fn put_back(&mut self, tcp: TcpSocket) {
        self.tcp = tcp;
    }

    /// Tells the client that nothing more comes. An error means that it has closed already, and is ignored.
    pub async fn finish_writing(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.session.close(&mut tls.records);
            let _ = tls.write_records(&mut self.tcp).await;
        }
        self.tcp.finish_writing();
    }

    /// Makes the later close a reset: so the client learns that it got no answer.
    pub fn reset_on_close(&self) {
        self.tcp.reset_on_close();
    }

    /// Takes the socket out of monoio, non-blocking. Call when no read or write is under way.
    ///
    /// # Errors
    /// When the driver has refused the socket.
    pub fn release(self) -> io::Result<Released> {
        let stream = self.tcp.into_std()?;
        let (tls, unread) = match self.tls {
            Some(tls) => (Some(Box::new(tls.session)), tls.plain),
            None => (None, Vec::new()),
        };
        Ok(Released {
            stream,
            tls,
            unread,
        })
    }
}

impl TlsLayer {
    fn new(tls: &ServerTls) -> io::Result<Box<Self>> {
        let session = TlsSession::new(tls.config()).map_err(io::Error::other)?;
        Ok(Self::with(session))
    }

    fn with(session: TlsSession) -> Box<Self> {
        Box::new(Self {
            session,
            plain: Vec::new(),
            records: Vec::new(),
            opening: Vec::new(),
        })
    }

    /// Reads some records; this also does the handshake. The records may contain nothing to read, and a client can send tens
    /// of thousands of them in one handshake, so the caller decides when to read again.
    async fn read(&mut self, tcp: &mut TcpSocket, buffer: &mut Vec<u8>) -> io::Result<Received> {
        let is_open = !self.session.peer_has_closed();
        if self.plain.is_empty() && is_open && self.fill(tcp).await? > 0 && self.plain.is_empty() {
            return Ok(Received::Nothing);
        }
        let bytes = self.plain.len();
        buffer.append(&mut self.plain);
        Ok(Received::of(bytes))
    }

    /// One read from the kernel, and the records that TLS has to send because of it. 0 = the client has closed.
    async fn fill(&mut self, tcp: &mut TcpSocket) -> io::Result<usize> {
        let bytes = tcp.read(&mut self.records, RECORD_READ_BYTES).await?;
        let missing = OPENING_BYTES - self.opening.len();
        self.opening
            .extend(self.records.iter().take(missing).copied());
        let decrypted = self.session.decrypt(&mut self.records, &mut self.plain);
        self.records.clear();
        self.session.take_output(&mut self.records);
        if let Err(error) = decrypted {
            if is_plain_http(&self.opening) {
                self.records = PLAIN_HTTP_ANSWER.to_vec();
            }
            // The client may be gone. The error to report is what it did wrong, in any case.
            let _ = self.refuse(tcp).await;
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        self.write_records(tcp).await?;
        Ok(bytes)
    }

    /// Sends the alert or the answer and waits until the client has closed. If the server closed first, a reset could
    /// overtake it.
    async fn refuse(&mut self, tcp: &mut TcpSocket) -> io::Result<()> {
        self.write_records(tcp).await?;
        tcp.finish_writing();
        let mut discarded = 0;
        while discarded < REFUSED_BYTES_MAX {
            self.records.clear();
            match tcp.read(&mut self.records, RECORD_READ_BYTES).await? {
                0 => break,
                bytes => discarded += bytes,
            }
        }
        Ok(())
    }

    async fn write_records(&mut self, tcp: &mut TcpSocket) -> io::Result<()> {
        let result = tcp.write_all(&self.records).await;
        self.records.clear();
        result
    }
}

/// Tells when the reactor has events.
#[derive(Clone)]
pub struct ReactorWake {
    stream: Rc<TcpStream>,
}

impl ReactorWake {
    /// Watches the descriptor that [`crate::reactor::Reactor::wake_fd`] gives.
    ///
    /// # Errors
    /// Those of the driver.
    pub fn new(wake_fd: OwnedFd) -> io::Result<Self> {
        // monoio has no type for a bare descriptor. This one is only asked for readiness, which every pollable descriptor
        // has. It is never read or written, and it is closed like any other.
        let stream = TcpStream::from_std(std::net::TcpStream::from(wake_fd))?;
        Ok(Self {
            stream: Rc::new(stream),
        })
    }

    /// Waits until events are there.
    ///
    /// # Errors
    /// Those of the driver.
    ///
    /// # Cancel safety
    /// Takes no events: dropping the future loses nothing.
    pub async fn ready(&self) -> io::Result<()> {
        self.stream.readable(false).await
    }
}
