//! The only code that names `monoio::net`: listeners, sockets of the HTTP phase, and the wake-up of the reactor.
//!
//! Established sessions are not here: their sockets have left monoio and belong to the shard and its reactor.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};

use crate::os::sockets;

/// Which driver serves readiness, for monoio and the reactor alike.
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

/// A listening socket. Accepts in batches: one readiness, then plain accepts until none waits.
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

    /// Waits until a connection waits.
    ///
    /// # Errors
    /// The driver's.
    pub async fn ready(&self) -> io::Result<()> {
        self.readiness.readable(false).await
    }

    /// Takes one waiting connection; `None` when there is none.
    ///
    /// # Errors
    /// Those of accept4(2): EMFILE when out of descriptors, ECONNABORTED when the client has left already, …
    pub fn accept(&self) -> io::Result<Option<(std::net::TcpStream, SocketAddr)>> {
        match self.listener.accept() {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// The error of getsockname(2).
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A client socket in its HTTP phase.
pub struct Socket {
    stream: TcpStream,
}

impl Socket {
    /// Adopts an accepted socket and sets its options. Call on the shard's thread, inside its runtime.
    ///
    /// # Errors
    /// The kernel's; the client is usually gone then.
    pub fn adopt(stream: std::net::TcpStream, driver: Driver) -> io::Result<Self> {
        // io_uring answers EAGAIN at once on a non-blocking socket, epoll must not block.
        stream.set_nonblocking(driver == Driver::Epoll)?;
        sockets::prepare_client(&stream)?;
        Ok(Self {
            stream: TcpStream::from_std(stream)?,
        })
    }

    /// Appends what has arrived to `buffer`, at most what fits into its spare capacity. 0 = the client has closed.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Cancel safety
    /// None: bytes may be lost when the future is dropped. Drop it only to drop the socket too.
    pub async fn read(&mut self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        use monoio::buf::{IoBufMut, SliceMut};
        let start = buffer.len();
        let end = buffer.capacity();
        let slice: SliceMut<Vec<u8>> = buffer.slice_mut(start..end);
        let (result, slice) = self.stream.read(slice).await;
        (result, slice.into_inner())
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn write_all(&mut self, bytes: Vec<u8>) -> io::Result<()> {
        self.stream.write_all(bytes).await.0.map(drop)
    }

    /// Tells the client that nothing more comes. It may have closed already, which is as good.
    pub fn finish_writing(&self) {
        let _ = sockets::finish_writing(&self.stream);
    }

    /// Takes the socket out of monoio, non-blocking. Call when no read or write is under way.
    ///
    /// # Errors
    /// The error of ioctl(2).
    pub fn into_std(self) -> io::Result<std::net::TcpStream> {
        let stream = std::net::TcpStream::from(sockets::own(self.stream));
        stream.set_nonblocking(true)?;
        Ok(stream)
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
    /// The driver's.
    pub fn new(wake_fd: OwnedFd) -> io::Result<Self> {
        // monoio has no type for a bare descriptor. Only readiness is asked of this one, which every pollable descriptor
        // has; it is never read or written, and it is closed like any other.
        let stream = TcpStream::from_std(std::net::TcpStream::from(wake_fd))?;
        Ok(Self {
            stream: Rc::new(stream),
        })
    }

    /// Waits until events are there.
    ///
    /// # Errors
    /// The driver's.
    ///
    /// # Cancel safety
    /// Takes nothing: dropping the future loses nothing.
    pub async fn ready(&self) -> io::Result<()> {
        self.stream.readable(false).await
    }
}
