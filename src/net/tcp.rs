//! One TCP connection as a task uses it: to a client in its HTTP phase, or to the app.
//!
//! Every operation is first tried without blocking, and waits for readiness only when there is nothing to do. Nearly all
//! data fits into the kernel's buffers, so an operation usually costs one system call on either driver. A socket that never
//! waits is not registered with the driver, and one that waits holds no buffer.

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

/// Where the descriptor is registered.
enum Held {
    /// Only here.
    Bare(std::net::TcpStream),
    /// With the driver too, which closes it.
    Watched(TcpStream),
    /// Lost, because the driver refused it.
    Gone,
}

impl TcpSocket {
    /// Takes the socket out of this place.
    pub fn take(&mut self) -> Self {
        Self {
            held: mem::replace(&mut self.held, Held::Gone),
        }
    }

    /// Takes over a connected, non-blocking socket.
    pub fn new(stream: std::net::TcpStream) -> Self {
        Self {
            held: Held::Bare(stream),
        }
    }

    /// Connects to `address`, without delay for small packets. `keepalive`: after this time of silence the kernel probes the
    /// far end.
    ///
    /// # Errors
    /// Those of the kernel.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn connect(address: SocketAddr, keepalive: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_addr(address).await?;
        stream.set_nodelay(true)?;
        stream.set_tcp_keepalive(Some(keepalive), Some(keepalive), None)?;
        Ok(Self {
            held: Held::Watched(stream),
        })
    }

    /// Appends what has arrived to `buffer`; waits for the first byte. Room for `bytes` is allocated only when there is
    /// something to read. 0 = the far end has closed.
    ///
    /// # Errors
    /// Those of the kernel.
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
                // A waiting task keeps no read buffer.
                *buffer = Vec::new();
            }
            self.watched()?.readable(false).await?;
        }
    }

    /// Appends what arrives to `buffer`, at most its spare capacity. For bytes that cannot have arrived yet: the driver gets
    /// the read at once, which saves a system call or two, but it owns the buffer meanwhile. Only for sockets of
    /// [`Self::connect`]. 0 = the far end has closed.
    ///
    /// # Errors
    /// Those of the kernel.
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
    /// Those of the kernel.
    ///
    /// # Cancel safety
    /// After a drop it is not known how many bytes were written.
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

    /// Closes the sending side. An error means that the far end has closed already, and is ignored.
    pub fn finish_writing(&self) {
        if let Ok(fd) = self.fd() {
            let _ = sockets::finish_writing(&fd);
        }
    }

    /// Makes the later close a reset.
    pub fn reset_on_close(&self) {
        if let Ok(fd) = self.fd() {
            // An error means that the far end has reset it already.
            let _ = sockets::reset_on_close(&fd);
        }
    }

    /// True when the connection is open and there is nothing to read, neither bytes nor its end. Costs one system call.
    pub fn is_quiet(&self) -> bool {
        self.fd().is_ok_and(|fd| sockets::is_quiet(&fd))
    }

    /// Gives the socket away, non-blocking. Call it when no operation waits.
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

    /// # Errors
    /// When the driver has refused the socket before.
    pub fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.held {
            Held::Bare(stream) => Ok(stream.as_fd()),
            Held::Watched(stream) => Ok(sockets::borrow(stream)),
            Held::Gone => Err(gone()),
        }
    }

    /// Registers the socket with the driver.
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
