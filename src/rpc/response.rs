//! Reads one HTTP/1.x response from bytes that come in pieces of any size.
//!
//! Pure: no I/O, no clock. [`super::connection`] passes it what it read. Only the body of a 200 is used. The body of any
//! other answer is read to its end if it is short, so that the connection can be used again. `wire` knows the grammar of
//! heads and chunks.
//!
//! Source: `contract/rpc.md` §2 and §5, RFC 9112 §6 and §7.

use std::io::Read;

use flate2::bufread::MultiGzDecoder;

use super::error::BadResponse;
use crate::wire::http_body::{ChunkLimits, ChunkedDecoder, ResponseBodyFraming};
use crate::wire::http_head::{HeadLimits, HeadScanner, HttpError};
use crate::wire::http_response::ResponseHead;

/// Largest response body, as received and after unpacking.
pub const RPC_RESPONSE_BYTES_MAX: usize = 16 << 20;
/// Largest response head, interim (1xx) heads and trailers included.
pub const RPC_HEAD_BYTES_MAX: usize = 64 << 10;
/// Header fields in one head.
const HEADERS_MAX: usize = 128;
/// Body bytes of a failed call that are read to keep the connection usable. With a longer body the connection is closed.
const SKIPPED_BYTES_MAX: usize = 64 << 10;
/// Bytes of a chunk-size line with its extensions.
const CHUNK_LINE_BYTES_MAX: u32 = 4 << 10;
/// Room that is allocated for a body before its first byte has come, whatever length was announced.
const BODY_BYTES_RESERVED_MAX: usize = 64 << 10;
/// The first bytes of every answer. An answer that begins otherwise is refused at once.
const START: &[u8] = b"HTTP/1.";

/// A whole response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub status: u16,
    /// Decompressed. Empty unless the status is 200.
    pub body: Vec<u8>,
    /// Another request may follow on the same connection.
    pub keep_alive: bool,
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) enum ResponseError {
    /// The connection ended before the head did.
    Closed,
    /// The head is not HTTP/1.x.
    NotHttp(&'static str),
    /// The head says 200, the rest is unusable.
    Bad(BadResponse),
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The app closed it in an orderly way.
    Closed,
    /// It was reset, or its TLS session ended without a close_notify: the body may be cut off.
    Broken,
}

/// The state between two pieces.
#[derive(Debug)]
pub(crate) struct ResponseDecoder {
    phase: Phase,
    /// Head bytes that are not parsed yet.
    head: Vec<u8>,
    scanner: HeadScanner,
    /// Of the heads that are parsed.
    head_bytes: usize,
    status: u16,
    /// As received. Dropped at the end if the status is not 200.
    body: Vec<u8>,
    encoding: Encoding,
    keep_alive: bool,
}

#[derive(Debug)]
enum Phase {
    Head,
    Length { left: u64 },
    Chunked(ChunkedDecoder),
    UntilClose,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Unknown,
}

impl ResponseDecoder {
    pub fn new() -> ResponseDecoder {
        ResponseDecoder {
            phase: Phase::Head,
            head: Vec::new(),
            scanner: HeadScanner::default(),
            head_bytes: 0,
            status: 0,
            body: Vec::new(),
            encoding: Encoding::Identity,
            keep_alive: false,
        }
    }

    /// True after the first byte.
    pub fn started(&self) -> bool {
        self.head_bytes > 0 || !self.head.is_empty()
    }

    /// Takes the next piece. `Ok(true)`: the response is complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool, ResponseError> {
        match self.feed(bytes) {
            // The status already says that the call failed, so only the connection is lost.
            Err(ResponseError::Bad(_)) if self.status != 200 => {
                self.phase = Phase::Done;
                self.keep_alive = false;
                Ok(true)
            }
            result => result.map(|()| self.is_done()),
        }
    }

    /// True until the head of the final response is whole.
    pub fn in_head(&self) -> bool {
        matches!(self.phase, Phase::Head)
    }

    /// The connection has ended. `Ok`: the response is complete now.
    pub fn end(&mut self, end: End) -> Result<(), ResponseError> {
        self.keep_alive = false;
        match (&self.phase, end) {
            (Phase::Done, _) => {}
            (Phase::Head, _) => return Err(ResponseError::Closed),
            (Phase::UntilClose, End::Closed) => self.phase = Phase::Done,
            _ if self.status == 200 => {
                return Err(ResponseError::Bad(BadResponse::Truncated {
                    received: self.body.len(),
                }));
            }
            _ => self.phase = Phase::Done,
        }
        Ok(())
    }

    /// The complete response, decompressed.
    pub fn finish(self) -> Result<Response, BadResponse> {
        debug_assert!(self.is_done(), "only a complete response is taken");
        let body = match self.encoding {
            _ if self.status != 200 => Vec::new(),
            Encoding::Identity => self.body,
            Encoding::Gzip => unpack(&self.body)?,
            Encoding::Unknown => return Err(BadResponse::UnknownEncoding),
        };
        Ok(Response {
            status: self.status,
            body,
            keep_alive: self.keep_alive,
        })
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ResponseError> {
        while !bytes.is_empty() {
            let taken = self.take(bytes)?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Takes bytes from the start of `bytes`, which is not empty; returns how many.
    fn take(&mut self, bytes: &[u8]) -> Result<usize, ResponseError> {
        let (taken, is_whole) = match &mut self.phase {
            Phase::Head => return self.take_head(bytes),
            Phase::Length { left } => {
                let taken =
                    usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.body.extend_from_slice(&bytes[..taken]);
                *left -= taken as u64;
                (taken, *left == 0)
            }
            // No limit here: the limit on all bodies is checked below.
            Phase::Chunked(decoder) => decoder.decode(bytes, &mut self.body, usize::MAX)?,
            Phase::UntilClose => {
                self.body.extend_from_slice(bytes);
                (bytes.len(), false)
            }
            Phase::Done => {
                // These bytes answer no request, so what follows on this connection cannot be trusted.
                self.keep_alive = false;
                return Ok(bytes.len());
            }
        };
        if self.body.len() > self.body_bytes_max() {
            return Err(ResponseError::Bad(BadResponse::TooLarge));
        }
        if is_whole {
            self.phase = Phase::Done;
        }
        Ok(taken)
    }

    /// Collects the head; parses it when it is whole. Returns how many of `bytes` belong to it.
    fn take_head(&mut self, bytes: &[u8]) -> Result<usize, ResponseError> {
        let collected_bytes = self.head.len();
        self.head.extend_from_slice(bytes);
        let known = self.head.len().min(START.len());
        if self.head[..known] != START[..known] {
            return Err(ResponseError::NotHttp("it does not start with HTTP/1."));
        }
        let limits = HeadLimits {
            head_bytes_max: self.head_bytes_left(),
            headers_max: HEADERS_MAX,
        };
        let Some(end) = self.scanner.find_end(&self.head, &limits)? else {
            return Ok(bytes.len());
        };
        let head = ResponseHead::decode(&self.head[..end], &limits)?;
        self.head_bytes += end;
        self.head.clear();
        self.scanner = HeadScanner::default();
        if is_final(head.status()) {
            self.start_body(&head)?;
        }
        Ok(end - collected_bytes)
    }

    fn start_body(&mut self, head: &ResponseHead) -> Result<(), ResponseError> {
        let framing = head.body_framing()?;
        // Both headers say how the body ends, and the app and a proxy may disagree about which one counts.
        let is_ambiguous = framing == ResponseBodyFraming::Chunked
            && head.header_values("content-length").next().is_some();
        self.status = head.status();
        self.encoding = encoding(head);
        self.keep_alive = head.keep_alive()
            && !is_ambiguous
            && framing != ResponseBodyFraming::UntilClose
            && self.status != 101;
        self.phase = match framing {
            ResponseBodyFraming::Length(0) => Phase::Done,
            ResponseBodyFraming::Length(left) => self.expect_length(left)?,
            ResponseBodyFraming::Chunked => Phase::Chunked(ChunkedDecoder::new(ChunkLimits {
                line_bytes_max: CHUNK_LINE_BYTES_MAX,
                trailer_bytes_max: self.head_bytes_left() as u32,
            })),
            // This body is not used, and waiting for its end would only keep the slot busy.
            ResponseBodyFraming::UntilClose if self.status != 200 => Phase::Done,
            ResponseBodyFraming::UntilClose => Phase::UntilClose,
        };
        Ok(())
    }

    fn expect_length(&mut self, left: u64) -> Result<Phase, ResponseError> {
        if left > self.body_bytes_max() as u64 {
            return Err(ResponseError::Bad(BadResponse::TooLarge));
        }
        self.body
            .reserve((left as usize).min(BODY_BYTES_RESERVED_MAX));
        Ok(Phase::Length { left })
    }

    fn body_bytes_max(&self) -> usize {
        match self.status {
            200 => RPC_RESPONSE_BYTES_MAX,
            _ => SKIPPED_BYTES_MAX,
        }
    }

    fn head_bytes_left(&self) -> usize {
        RPC_HEAD_BYTES_MAX - self.head_bytes
    }
}

/// 101 is final: this client never asks for another protocol, so 101 is a wrong answer like any other.
fn is_final(status: u16) -> bool {
    !(100..200).contains(&status) || status == 101
}

impl From<HttpError> for ResponseError {
    fn from(error: HttpError) -> Self {
        let cause = match error {
            HttpError::BadChunk(_) => return ResponseError::Bad(BadResponse::BadChunk),
            HttpError::BodyTooLarge { .. } => return ResponseError::Bad(BadResponse::TooLarge),
            HttpError::HeadTooLarge { .. } => "its head is too large",
            HttpError::TooManyHeaders { .. } => "it has too many headers",
            HttpError::BadContentLength(_) => "its Content-Length is not a number",
            HttpError::DifferentLengths => "it has two different Content-Length headers",
            HttpError::UnsupportedTransferEncoding(_) => "its transfer encoding is not chunked",
            _ => "its head is malformed",
        };
        ResponseError::NotHttp(cause)
    }
}

fn encoding(head: &ResponseHead) -> Encoding {
    let mut codings = head
        .header_values("content-encoding")
        .filter(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"));
    match (codings.next(), codings.next()) {
        (None, _) => Encoding::Identity,
        (Some(one), None)
            if one.eq_ignore_ascii_case("gzip") || one.eq_ignore_ascii_case("x-gzip") =>
        {
            Encoding::Gzip
        }
        _ => Encoding::Unknown,
    }
}

/// Decompresses gzip, up to the limit: a few compressed bytes can stand for gigabytes.
fn unpack(packed: &[u8]) -> Result<Vec<u8>, BadResponse> {
    let mut body = Vec::new();
    let limit = RPC_RESPONSE_BYTES_MAX as u64 + 1;
    MultiGzDecoder::new(packed)
        .take(limit)
        .read_to_end(&mut body)
        .map_err(BadResponse::BadGzip)?;
    if body.len() > RPC_RESPONSE_BYTES_MAX {
        return Err(BadResponse::TooLarge);
    }
    Ok(body)
}

#[cfg(test)]
mod tests;
