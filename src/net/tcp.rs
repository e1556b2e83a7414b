//! One TCP connection as a task uses it: to a client in its HTTP phase, or to the app.
//!
//! Every operation is tried at once, without blocking; only what finds nothing to do waits for readiness. So what fits into
//! the kernel's buffers, which is nearly everything, costs one system call on either driver, a socket that never waits is
//! unknown to the driver, and one that waits holds no buffer.

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use monoio::buf::IoBufMut;
use monoio::io::AsyncReadRent;
use monoio::net::TcpStream;

use crate::os::sockets;

/// A connection.
pub struct TcpSocket {
    held: Held,
}

/// Who knows the descriptor.
enum Held {
    /// We alone.
    Bare(std::net::TcpStream),
    /// The driver too, which closes it.
    Watched(TcpStream),
    /// Lost when the driver refused it.
    Gone,
}

impl TcpSocket {
    /// Takes over a connected socket that does not block.
    pub fn new(stream: std::net::TcpStream) -> Self {
        Self {
            held: Held::Bare(stream),
        }
    }

    /// Connects to `address`; data is sent without delay, and a far end that is silent for so long is looked for.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Cancel safety
    /// Dropping the future gives the connection up.
    pub async fn connect(address: SocketAddr, keepalive: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_addr(address).await?;
        stream.set_nodelay(true)?;
        stream.set_tcp_keepalive(Some(keepalive), Some(keepalive), None)?;
        Ok(Self {
            held: Held::Watched(stream),
        })
    }

    /// Appends what has arrived to `buffer`, waiting for the first byte. Room for `bytes` is made when there is something to
    /// read. 0 = the far end has closed.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn read(&mut self, buffer: &mut Vec<u8>, bytes: usize) -> io::Result<usize> {
        loop {
            buffer.reserve(bytes);
            match sockets::receive(&self.fd()?, buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => return result,
            }
            if buffer.is_empty() {
                // Who waits holds no buffer.
                *buffer = Vec::new();
            }
            self.watched()?.readable(false).await?;
        }
    }

    /// Appends what arrives to `buffer`, at most what fits into its spare capacity. For bytes that cannot be there yet: the
    /// driver is asked to read at once, which saves a system call or two, but the buffer is its own meanwhile. Only for
    /// sockets of [`Self::connect`]. 0 = the far end has closed.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Cancel safety
    /// None: bytes may be lost when the future is dropped. Drop it only to drop the socket too.
    pub async fn read_later(&mut self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        let stream = match self.watched() {
            Ok(stream) => stream,
            Err(error) => return (Err(error), buffer),
        };
        let (start, end) = (buffer.len(), buffer.capacity());
        let (result, slice) = stream.read(buffer.slice_mut(start..end)).await;
        (result, slice.into_inner())
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// The kernel's.
    ///
    /// # Cancel safety
    /// After a drop nobody knows how much was written.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match sockets::send(&self.fd()?, bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.watched()?.writable(false).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Closes the sending side. The far end may have closed already, which is as good.
    pub fn finish_writing(&self) {
        if let Ok(fd) = self.fd() {
            let _ = sockets::finish_writing(&fd);
        }
    }

    /// Closing will reset the connection.
    pub fn reset_on_close(&self) {
        if let Ok(fd) = self.fd() {
            // A socket whose far end has reset it already is as good.
            let _ = sockets::reset_on_close(&fd);
        }
    }

    /// Open, and nothing to read: neither bytes nor the end of the connection. Costs one system call.
    pub fn is_quiet(&self) -> bool {
        self.fd().is_ok_and(|fd| sockets::is_quiet(&fd))
    }

    /// Gives the socket up, non-blocking. Call when nothing waits for it.
    ///
    /// # Errors
    /// When the driver refused the socket before.
    pub fn into_std(self) -> io::Result<std::net::TcpStream> {
        match self.held {
            Held::Bare(stream) => Ok(stream),
            Held::Watched(stream) => Ok(sockets::own(stream).into()),
            Held::Gone => Err(gone()),
        }
    }

    fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.held {
            Held::Bare(stream) => Ok(stream.as_fd()),
            Held::Watched(stream) => Ok(sockets::borrow(stream)),
            Held::Gone => Err(gone()),
        }
    }

    /// Makes the driver know the socket.
    fn watched(&mut self) -> io::Result<&mut TcpStream> {
        if let Held::Bare(_) = self.held
            && let Held::Bare(stream) = mem::replace(&mut self.held, Held::Gone)
        {
            self.held = Held::Watched(TcpStream::from_std(stream)?);
        }
        match &mut self.held {
            Held::Watched(stream) => Ok(stream),
            _ => Err(gone()),
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the driver has refused this socket")
}
