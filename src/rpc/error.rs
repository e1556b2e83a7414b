//! Why a call to the app failed, and why the client could not start. Operators read these texts: each says what was tried.

use std::{io, net::SocketAddr, time::Duration};

use thiserror::Error;

use super::{response::RPC_RESPONSE_BYTES_MAX, target::UrlError};
use crate::os::limits::Shortage;
use crate::protocol::rpc::RpcDecodeError;

/// Why [`super::RpcClient::call_timed`] has no answer of the app.
///
/// `url` fields carry neither credentials nor the query of the configured URL.
///
/// Source: `contract/rpc.md` §5.
#[derive(Debug, Error)]
pub enum RpcError {
    /// No HTTP answer came back, in any attempt.
    #[error("could not reach {url}: {cause}{}", attempts_made(*.attempts))]
    Unreachable {
        /// The request URL.
        url: String,
        /// Attempts made, at least 1.
        attempts: u32,
        /// What ended the last attempt.
        cause: TransportError,
    },
    /// The request limit or the command limit passed during an attempt.
    #[error("no answer from {url} within {} s", seconds(*.limit))]
    Timeout {
        /// The request URL.
        url: String,
        /// Time that the last attempt had.
        limit: Duration,
    },
    /// The app answered with something else than 200. Redirects are not followed.
    #[error("HTTP status {status} instead of 200{}", status_hint(*.status))]
    Status {
        /// The status that came.
        status: u16,
    },
    /// Status 200 with a body that cannot be read to its end.
    #[error("unusable answer from {url}: {cause}")]
    BadResponse {
        /// The request URL.
        url: String,
        /// What was wrong with it.
        cause: BadResponse,
    },
    /// Status 200 with a complete body that is not an answer to a call.
    #[error(transparent)]
    Unreadable(#[from] RpcDecodeError),
    /// Too many calls failed lately, so nothing was sent.
    #[error("circuit breaker is open: nothing is sent to the app until it had time to recover")]
    BreakerOpen,
    /// The memory for clients and requests is used up, so nothing was sent.
    #[error(
        "the call is not made, the memory for clients and requests is used up (--memory_bytes_max)"
    )]
    NoMemory,
    /// The session ended while its call waited or ran. The caller that dropped the call makes this error, never the client.
    #[error("the session ended before its call")]
    Canceled,
    /// The TLS session could not be set up or broke. Not retried.
    #[error("TLS with {url} failed: {cause}")]
    Tls {
        /// The request URL.
        url: String,
        /// What TLS said.
        cause: TlsFailure,
    },
}

/// In seconds, rounded to a millisecond.
fn seconds(limit: Duration) -> f64 {
    (limit.as_secs_f64() * 1000.0).round() / 1000.0
}

fn attempts_made(attempts: u32) -> String {
    match attempts {
        1 => String::new(),
        _ => format!(" ({attempts} attempts)"),
    }
}

/// For statuses that mean a wrong setting: where the operator should look. [`super::diagnosis`] says more, in one line for
/// many calls.
fn status_hint(status: u16) -> &'static str {
    match status {
        300..=399 => " (redirects are not followed: check rpc_host)",
        401 => " (the secrets differ: the app must have the same secret or http_rpc_secret)",
        404 => " (check the path of rpc_host)",
        _ => "",
    }
}

/// Why one attempt brought no HTTP answer. These are retried.
#[derive(Debug, Error)]
pub enum TransportError {
    /// The host name has no address.
    #[error("cannot resolve {host}: {cause}")]
    Resolve {
        /// The name that was looked up.
        host: String,
        /// What the resolver said.
        cause: io::Error,
    },
    /// Every address refused.
    #[error("cannot connect to {0}")]
    Connect(ConnectFailure),
    /// The connection broke before a whole response head was there.
    #[error("connection broke: {0}")]
    Broken(io::Error),
    /// The app closed the connection before a whole response head was there.
    #[error("connection closed before an answer")]
    Closed,
    /// What came is not HTTP/1.x.
    #[error("the answer is not HTTP/1.x: {0}")]
    NotHttp(&'static str),
}

impl TransportError {
    /// What this server or its machine lacked for the attempt. Such an error says nothing about the app.
    pub fn shortage(&self) -> Option<Shortage> {
        match self {
            Self::Resolve { cause, .. } | Self::Broken(cause) => Shortage::of(cause),
            Self::Connect(failure) => Shortage::of(&failure.cause),
            Self::Closed | Self::NotHttp(_) => None,
        }
    }
}

/// The last address that was tried, and why connecting to it failed.
#[derive(Debug, Error)]
#[error("{address}: {cause}")]
pub struct ConnectFailure {
    /// The address.
    pub address: SocketAddr,
    /// What the kernel said.
    pub cause: io::Error,
}

/// What is wrong with an answer of status 200.
#[derive(Debug, Error)]
pub enum BadResponse {
    /// The body is larger than `RPC_RESPONSE_BYTES_MAX`, before or after decompression.
    #[error("body larger than {RPC_RESPONSE_BYTES_MAX} bytes")]
    TooLarge,
    /// The connection ended before the body did.
    #[error("body cut off after {received} bytes")]
    Truncated {
        /// Body bytes that came.
        received: usize,
    },
    /// A chunk does not start with its size or does not end with CRLF.
    #[error("malformed chunk")]
    BadChunk,
    /// `Content-Encoding: gzip`, but the body is not gzip.
    #[error("body is not valid gzip: {0}")]
    BadGzip(io::Error),
    /// A content encoding that the request did not ask for.
    #[error("body has a content encoding that was not asked for, only gzip was")]
    UnknownEncoding,
}

impl BadResponse {
    /// The answer was not complete: the connection or the app behind it is broken.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Truncated { .. } | Self::BadChunk)
    }
}

/// What went wrong in TLS.
#[derive(Debug, Error)]
pub enum TlsFailure {
    /// A protocol error, or a certificate that is not trusted.
    #[error(transparent)]
    Protocol(#[from] rustls::Error),
}

/// Why the client cannot be set up from the configuration.
#[derive(Debug, Error)]
pub enum StartError {
    /// RPC is switched off: there is nothing to call.
    #[error("RPC is disabled, there is no app to call")]
    NoEndpoint,
    /// `rpc_host` is not a usable URL.
    #[error("invalid RPC URL {url:?}: {cause}")]
    BadUrl {
        /// The URL as configured, without credentials and query.
        url: String,
        /// What is wrong with it.
        cause: UrlError,
    },
    /// The derived or configured token cannot be sent in a header.
    #[error("the RPC secret contains characters that cannot be sent in an HTTP header")]
    BadToken,
    /// The file named by `rpc_tls_root_ca` cannot be read.
    #[error("cannot read rpc_tls_root_ca {path:?}: {cause}")]
    RootCaUnreadable {
        /// The path as configured.
        path: String,
        /// What the system said.
        cause: io::Error,
    },
    /// `rpc_tls_root_ca` holds no certificate.
    #[error("rpc_tls_root_ca contains no usable PEM certificate")]
    RootCaEmpty,
    /// `https` without any trusted root.
    #[error("no system root certificates found; install ca-certificates or set rpc_tls_root_ca")]
    NoSystemRoots,
    /// The TLS library refused its own defaults.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limits_are_told_in_seconds() {
        for (limit, shown) in [
            (2_999_973, "3"),
            (400_000, "0.4"),
            (1_234_567, "1.235"),
            (60_000_000, "60"),
        ] {
            let error = RpcError::Timeout {
                url: "http://app".to_owned(),
                limit: Duration::from_micros(limit),
            };
            assert_eq!(
                error.to_string(),
                format!("no answer from http://app within {shown} s")
            );
        }
    }
}
