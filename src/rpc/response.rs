//! Reads one HTTP/1.x response out of bytes that come in pieces of any size.
//!
//! Pure: no I/O, no clock. Called by [`super::connection`] with what it read. Only status 200 has a body worth keeping; the
//! body of any other answer is skipped if it is short, so that the connection stays usable.
//!
//! Source: `contract/rpc.md` §2 and §5, RFC 9112 §6 and §7.

use std::io::Read;
use std::mem::MaybeUninit;

use flate2::bufread::MultiGzDecoder;

use super::error::BadResponse;

/// Largest response body, as received and after unpacking.
pub const RPC_RESPONSE_BYTES_MAX: usize = 16 << 20;
/// Largest response head, interim (1xx) heads and trailers included.
pub const RPC_HEAD_BYTES_MAX: usize = 64 << 10;
/// Header fields in one head.
const HEADERS_MAX: usize = 128;
/// Body bytes of a failed call that are read for the sake of the connection; a longer body closes it.
const SKIPPED_BYTES_MAX: u64 = 64 << 10;
/// Length of a chunk-size line with its extensions.
const CHUNK_LINE_BYTES_MAX: usize = 4 << 10;
/// Room made for a body before any of it came, whatever length was announced.
const BODY_BYTES_RESERVED_MAX: usize = 64 << 10;

/// A whole response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub status: u16,
    /// Unpacked. Empty unless the status is 200.
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
    /// The app closed it in good order.
    Closed,
    /// It was reset, or its TLS session has no end: more could have come.
    Broken,
}

/// The state between two pieces.
#[derive(Debug)]
pub(crate) struct ResponseDecoder {
    phase: Phase,
    /// Head bytes that are not parsed yet.
    head: Vec<u8>,
    /// Where the search for the end of the head goes on.
    searched: usize,
    /// All bytes that came before and after bodies so far.
    head_bytes: usize,
    status: u16,
    body: Vec<u8>,
    skipped: u64,
    encoding: Encoding,
    keep_alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    Length { left: u64 },
    Chunked(Chunk),
    UntilClose,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunk {
    Size {
        size: Option<u64>,
        line_bytes: usize,
    },
    Extension {
        size: u64,
        line_bytes: usize,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    Trailer {
        line_bytes: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Identity,
    Gzip,
    Unknown,
}

/// What a final head says about the rest.
struct Head {
    status: u16,
    framing: Phase,
    encoding: Encoding,
    keep_alive: bool,
}

impl ResponseDecoder {
    pub fn new() -> ResponseDecoder {
        ResponseDecoder {
            phase: Phase::Head,
            head: Vec::new(),
            searched: 0,
            head_bytes: 0,
            status: 0,
            body: Vec::new(),
            skipped: 0,
            encoding: Encoding::Identity,
            keep_alive: false,
        }
    }

    /// True once any byte came.
    pub fn started(&self) -> bool {
        self.head_bytes > 0
    }

    /// Takes the next piece. `Ok(true)`: the response is complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool, ResponseError> {
        match self.feed(bytes) {
            // The status already says that the call failed: the connection is all that is lost.
            Err(ResponseError::Bad(_)) if self.status != 200 => {
                self.phase = Phase::Done;
                self.keep_alive = false;
                Ok(true)
            }
            result => result.map(|()| self.phase == Phase::Done),
        }
    }

    /// True until the head of the final response is whole.
    pub fn in_head(&self) -> bool {
        self.phase == Phase::Head
    }

    /// The connection has ended. `Ok`: that completed the response.
    pub fn end(&mut self, end: End) -> Result<(), ResponseError> {
        self.keep_alive = false;
        match (self.phase, end) {
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

    /// The complete response, unpacked.
    pub fn finish(self) -> Result<Response, BadResponse> {
        debug_assert!(
            self.phase == Phase::Done,
            "only a complete response is taken"
        );
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

    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), ResponseError> {
        while !bytes.is_empty() {
            bytes = match self.phase {
                Phase::Head => self.feed_head(bytes)?,
                Phase::Length { left } => {
                    let (data, rest) = split_at_most(bytes, left);
                    self.keep(data)?;
                    let left = left - data.len() as u64;
                    self.phase = if left == 0 {
                        Phase::Done
                    } else {
                        Phase::Length { left }
                    };
                    rest
                }
                Phase::Chunked(chunk) => self.feed_chunked(chunk, bytes)?,
                Phase::UntilClose => {
                    self.keep(bytes)?;
                    &[]
                }
                Phase::Done => {
                    // Nobody asked for this: what comes next on this connection could not be trusted.
                    self.keep_alive = false;
                    &[]
                }
            };
        }
        Ok(())
    }

    /// Collects the head; parses it when it is whole. Returns what is left of `bytes`.
    fn feed_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], ResponseError> {
        const EXPECTED: &[u8] = b"HTTP/1.";
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        self.head_bytes = self.head_bytes.saturating_add(bytes.len());
        let known = self.head.len().min(EXPECTED.len());
        if self.head[..known] != EXPECTED[..known] {
            return Err(ResponseError::NotHttp("it does not start with HTTP/1."));
        }
        let Some(end) = self.head_end() else {
            if self.head_bytes > RPC_HEAD_BYTES_MAX {
                return Err(ResponseError::NotHttp("its head is too large"));
            }
            return Ok(&[]);
        };
        let head = parse_head(&self.head[..end])?;
        let rest = &bytes[end - before..];
        self.head_bytes -= rest.len();
        self.head.clear();
        self.searched = 0;
        if self.head_bytes > RPC_HEAD_BYTES_MAX {
            return Err(ResponseError::NotHttp("its head is too large"));
        }
        if let Some(head) = head {
            self.start_body(head)?;
        }
        Ok(rest)
    }

    /// Index behind the empty line. Looks at every byte once.
    fn head_end(&mut self) -> Option<usize> {
        let from = self.searched;
        for index in memchr::memchr_iter(b'\n', &self.head[from..]) {
            let line = &self.head[..from + index];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.ends_with(b"\n") {
                return Some(from + index + 1);
            }
        }
        self.searched = self.head.len();
        None
    }

    fn start_body(&mut self, head: Head) -> Result<(), ResponseError> {
        self.status = head.status;
        self.encoding = head.encoding;
        self.keep_alive = head.keep_alive && head.framing != Phase::UntilClose;
        self.phase = match head.framing {
            Phase::Length { left: 0 } => Phase::Done,
            // Waiting for the end of a body that nobody reads would only hold the slot.
            Phase::UntilClose if head.status != 200 => Phase::Done,
            framing => framing,
        };
        if let Phase::Length { left } = self.phase {
            let fits = usize::try_from(left).is_ok_and(|left| left <= RPC_RESPONSE_BYTES_MAX);
            if !fits {
                return Err(ResponseError::Bad(BadResponse::TooLarge));
            }
            if self.status == 200 {
                self.body
                    .reserve((left as usize).min(BODY_BYTES_RESERVED_MAX));
            } else if left > SKIPPED_BYTES_MAX {
                return Err(ResponseError::Bad(BadResponse::TooLarge));
            }
        }
        Ok(())
    }

    fn feed_chunked<'a>(
        &mut self,
        chunk: Chunk,
        bytes: &'a [u8],
    ) -> Result<&'a [u8], ResponseError> {
        if let Chunk::Data { left } = chunk {
            let (data, rest) = split_at_most(bytes, left);
            self.keep(data)?;
            let left = left - data.len() as u64;
            self.phase = Phase::Chunked(if left == 0 {
                Chunk::DataCr
            } else {
                Chunk::Data { left }
            });
            return Ok(rest);
        }
        let (first, rest) = bytes
            .split_first()
            .expect("feed goes on only while there are bytes");
        self.phase = self.step_chunk(chunk, *first)?;
        Ok(rest)
    }

    /// One byte between two pieces of data.
    fn step_chunk(&mut self, chunk: Chunk, byte: u8) -> Result<Phase, ResponseError> {
        let bad = || ResponseError::Bad(BadResponse::BadChunk);
        let next = match (chunk, byte) {
            (Chunk::Size { line_bytes, .. } | Chunk::Extension { line_bytes, .. }, _)
                if line_bytes >= CHUNK_LINE_BYTES_MAX =>
            {
                return Err(bad());
            }
            (
                Chunk::Size {
                    size: Some(size), ..
                }
                | Chunk::Extension { size, .. },
                b'\n',
            ) => match size {
                0 => Chunk::Trailer { line_bytes: 0 },
                left => Chunk::Data { left },
            },
            (
                Chunk::Size {
                    size: Some(size),
                    line_bytes,
                },
                b';' | b'\r' | b' ' | b'\t',
            ) => Chunk::Extension {
                size,
                line_bytes: line_bytes + 1,
            },
            (Chunk::Size { size, line_bytes }, byte) => {
                let digit = char::from(byte).to_digit(16).ok_or_else(bad)?;
                let size = size.unwrap_or(0).checked_mul(16).ok_or_else(bad)? + u64::from(digit);
                Chunk::Size {
                    size: Some(size),
                    line_bytes: line_bytes + 1,
                }
            }
            (Chunk::Extension { size, line_bytes }, _) => Chunk::Extension {
                size,
                line_bytes: line_bytes + 1,
            },
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataCr | Chunk::DataLf, b'\n') => Chunk::Size {
                size: None,
                line_bytes: 0,
            },
            (Chunk::DataCr | Chunk::DataLf, _) => return Err(bad()),
            (Chunk::Trailer { line_bytes: 0 }, b'\n') => return Ok(Phase::Done),
            (Chunk::Trailer { .. }, b'\n') => Chunk::Trailer { line_bytes: 0 },
            (Chunk::Trailer { line_bytes: 0 }, b'\r') => Chunk::Trailer { line_bytes: 0 },
            (Chunk::Trailer { line_bytes }, _) => Chunk::Trailer {
                line_bytes: line_bytes + 1,
            },
            (Chunk::Data { .. }, _) => return Err(bad()),
        };
        if let Chunk::Trailer { .. } = next {
            self.head_bytes += 1;
            if self.head_bytes > RPC_HEAD_BYTES_MAX {
                return Err(bad());
            }
        }
        Ok(Phase::Chunked(next))
    }

    /// Keeps body bytes of a 200, counts those of anything else.
    fn keep(&mut self, data: &[u8]) -> Result<(), ResponseError> {
        if self.status == 200 {
            if data.len() > RPC_RESPONSE_BYTES_MAX - self.body.len() {
                return Err(ResponseError::Bad(BadResponse::TooLarge));
            }
            self.body.extend_from_slice(data);
        } else {
            self.skipped += data.len() as u64;
            if self.skipped > SKIPPED_BYTES_MAX {
                return Err(ResponseError::Bad(BadResponse::TooLarge));
            }
        }
        Ok(())
    }
}

/// The head of a final response; `None` for an interim one.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, ResponseError> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut headers,
    );
    match parsed {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(ResponseError::NotHttp("its head has no end")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(ResponseError::NotHttp("it has too many headers"));
        }
        Err(_) => return Err(ResponseError::NotHttp("its head is malformed")),
    }
    let status = response.code.unwrap_or(0);
    // 101 is final: nobody asked for another protocol, so it is a wrong answer like any other.
    if (100..200).contains(&status) && status != 101 {
        return Ok(None);
    }
    let (framing, ambiguous) = match status {
        101 | 204 | 304 => (Phase::Length { left: 0 }, status == 101),
        _ => framing(response.headers)?,
    };
    let http_1_0 = response.version == Some(0);
    let listed =
        |token| values(response.headers, "connection").any(|value| has_token(value, token));
    let keep_alive = !ambiguous && !listed("close") && (!http_1_0 || listed("keep-alive"));
    Ok(Some(Head {
        status,
        framing,
        encoding: encoding(response.headers),
        keep_alive,
    }))
}

/// How the end of the body is found, and whether two headers disagree about it (RFC 9112 §6.3).
fn framing(headers: &[httparse::Header<'_>]) -> Result<(Phase, bool), ResponseError> {
    let mut lengths = values(headers, "content-length").map(parse_length);
    let length = match lengths.next() {
        None => None,
        Some(first) => {
            let first =
                first.ok_or(ResponseError::NotHttp("its Content-Length is not a number"))?;
            if lengths.any(|other| other != Some(first)) {
                return Err(ResponseError::NotHttp(
                    "it has two different Content-Length headers",
                ));
            }
            Some(first)
        }
    };
    let mut transfer = values(headers, "transfer-encoding")
        .filter(|value| !value.eq_ignore_ascii_case("identity"));
    match transfer.next() {
        Some(coding) if coding.eq_ignore_ascii_case("chunked") && transfer.next().is_none() => {
            Ok((
                Phase::Chunked(Chunk::Size {
                    size: None,
                    line_bytes: 0,
                }),
                length.is_some(),
            ))
        }
        Some(_) => Err(ResponseError::NotHttp(
            "its transfer encoding is not chunked",
        )),
        None => Ok((
            length.map_or(Phase::UntilClose, |left| Phase::Length { left }),
            false,
        )),
    }
}

fn encoding(headers: &[httparse::Header<'_>]) -> Encoding {
    let mut codings = values(headers, "content-encoding")
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

/// Trimmed values of every header of that name; values that are not text are empty.
fn values<'a>(headers: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a str> {
    headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| str::from_utf8(header.value).unwrap_or("").trim())
}

fn has_token(value: &str, token: &str) -> bool {
    value
        .split(',')
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

fn parse_length(value: &str) -> Option<u64> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| value.parse().ok()).flatten()
}

fn split_at_most(bytes: &[u8], count: u64) -> (&[u8], &[u8]) {
    bytes.split_at(
        usize::try_from(count)
            .unwrap_or(usize::MAX)
            .min(bytes.len()),
    )
}

/// Unpacks gzip, but never more than the limit: a few packed bytes can stand for gigabytes.
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
