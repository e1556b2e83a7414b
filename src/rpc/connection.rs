//! One connection to the app, plain or TLS, and one exchange of request and response on it.
//!
//! Together with [`super::tls`], this is the only file of `rpc` that reads and writes sockets. Called by [`super::client`].

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};

use super::{
    error::{BadResponse, TlsFailure, TransportError},
    idle::Age,
    response::{End, Response, ResponseDecoder, ResponseError},
    tls::{TlsError, TlsStream},
};
use crate::net::TcpSocket;

/// Bytes asked for in one read. Nearly every answer fits into them.
const READ_BYTES: usize = 4 << 10;
/// Finds an app that vanished without closing its connections, also when all time limits are switched off.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A connected socket between two exchanges.
pub(super) struct Connection {
    stream: Stream,
    address: SocketAddr,
    age: Age,
}

enum Stream {
    Plain(TcpSocket),
    Tls(Box<TlsStream>),
}

/// Why an exchange has no response.
#[derive(Debug)]
pub(super) enum ExchangeError {
    /// The connection broke before any byte of a response had come.
    NothingReceived(TransportError),
    /// The connection broke, or something else than HTTP came, before a response head was complete.
    Transport(TransportError),
    /// A response came, but it cannot be used.
    Bad(BadResponse),
    /// The TLS session broke.
    Tls(TlsFailure),
}

impl Connection {
    /// Connects, and does the TLS handshake if `tls` is given.
    pub async fn open(
        address: SocketAddr,
        age: Age,
        tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    ) -> Result<Connection, TlsError> {
        let tcp = TcpSocket::connect(address, KEEPALIVE).await?;
        let stream = match tls {
            None => Stream::Plain(tcp),
            Some((config, name)) => {
                Stream::Tls(Box::new(TlsStream::connect(tcp, config, name).await?))
            }
        };
        Ok(Connection {
            stream,
            address,
            age,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn age(&self) -> Age {
        self.age
    }

    /// Sends `request` and reads the response.
    ///
    /// # Cancel safety
    /// Not cancel safe: after a drop the connection is in the middle of an exchange. The future owns the connection, so the
    /// drop closes it too.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<Response, ExchangeError> {
        let mut decoder = ResponseDecoder::new();
        let mut buffer = Vec::new();
        // An app that answers early and closes (401, 413) makes the write fail while its answer can be read.
        let unsent = self.write_all(request).await.err();
        loop {
            buffer.clear();
            let complete = match self.read(&mut buffer).await {
                Ok(0) => decoder.end(End::Closed).map(|()| true),
                Ok(_) => decoder.push(&buffer),
                Err(TlsError::Protocol(error)) => {
                    return Err(ExchangeError::Tls(TlsFailure::Protocol(error)));
                }
                Err(TlsError::Io(error)) if decoder.in_head() => {
                    return Err(lost(
                        TransportError::Broken(first_cause(unsent, error)),
                        &decoder,
                    ));
                }
                Err(TlsError::Io(_)) => decoder.end(End::Broken).map(|()| true),
            };
            match complete {
                Ok(false) => {}
                Ok(true) => {
                    let mut response = decoder.finish().map_err(ExchangeError::Bad)?;
                    response.keep_alive &= unsent.is_none();
                    return Ok(response);
                }
                Err(ResponseError::Closed) => return Err(lost(TransportError::Closed, &decoder)),
                Err(ResponseError::NotHttp(what)) => {
                    return Err(lost(TransportError::NotHttp(what), &decoder));
                }
                Err(ResponseError::Bad(cause)) => return Err(ExchangeError::Bad(cause)),
            }
        }
    }

    /// True when the connection is open and there is nothing to read: neither its end nor bytes that were not asked for.
    /// Costs one system call.
    pub fn is_quiet(&self) -> bool {
        let tcp = match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.tcp(),
        };
        tcp.is_quiet()
    }

    async fn write_all(&mut self, request: &[u8]) -> Result<(), TlsError> {
        match &mut self.stream {
            Stream::Plain(tcp) => tcp.write_all(request).await.map_err(TlsError::Io),
            Stream::Tls(tls) => tls.write_all(request).await,
        }
    }

    /// Appends the next bytes to the buffer; 0 is the end of the connection.
    async fn read(&mut self, buffer: &mut Vec<u8>) -> Result<usize, TlsError> {
        match &mut self.stream {
            Stream::Plain(tcp) => {
                let mut room = std::mem::take(buffer);
                room.reserve(READ_BYTES);
                let (result, read) = tcp.read_later(room).await;
                *buffer = read;
                Ok(result?)
            }
            Stream::Tls(tls) => tls.read(buffer).await,
        }
    }
}

/// The error of the write, if there is one: it says more than the error of the read after it.
fn first_cause(unsent: Option<TlsError>, read: io::Error) -> io::Error {
    match unsent {
        Some(TlsError::Io(write)) => write,
        Some(TlsError::Protocol(_)) | None => read,
    }
}

fn lost(cause: TransportError, decoder: &ResponseDecoder) -> ExchangeError {
    if decoder.started() {
        ExchangeError::Transport(cause)
    } else {
        ExchangeError::NothingReceived(cause)
    }
}
