//! Bodies of HTTP/1.1 messages: how long they are, and the chunked coding.
//!
//! Called by the shard's HTTP phase for request bodies and by `rpc` for answers. The decoder fills the caller's buffer and
//! enforces the caller's limit; it reads trailers and drops them.

use super::http_head::HttpError;
use super::percent::hex_digit;

/// One chunk-size line of a request with its extensions. Clients do not send extensions; the limit stops an attack with long
/// ones.
const CHUNK_LINE_BYTES_MAX: u32 = 1024;
/// All trailer fields of a request together.
const TRAILER_BYTES_MAX: u32 = 16 * 1024;

/// Limits for the parts of a chunked body that carry no data. `Default` is for requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLimits {
    /// One chunk-size line with its extensions.
    pub line_bytes_max: u32,
    /// All trailer fields together.
    pub trailer_bytes_max: u32,
}

impl Default for ChunkLimits {
    fn default() -> Self {
        ChunkLimits {
            line_bytes_max: CHUNK_LINE_BYTES_MAX,
            trailer_bytes_max: TRAILER_BYTES_MAX,
        }
    }
}

/// How the end of a request body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is no body.
    None,
    /// This number of bytes follows the head.
    Length(u64),
    /// Chunks follow: use a [`ChunkedDecoder`].
    Chunked,
}

/// How the end of a response body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseBodyFraming {
    /// This number of bytes follows the head; 0 when there is no body.
    Length(u64),
    /// Chunks follow: use a [`ChunkedDecoder`].
    Chunked,
    /// The body is all that comes before the sender closes; the connection cannot be used again.
    UntilClose,
}

/// Reads a chunked body that arrives in pieces of any size.
///
/// Lines must end with CRLF: parsers disagree about a bare LF. Source: RFC 9112 §7.1.
#[derive(Debug, Clone, Default)]
pub struct ChunkedDecoder {
    state: ChunkState,
    limits: ChunkLimits,
    /// Bytes of the current chunk-size line, or of all trailers while these are read.
    line_bytes: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ChunkState {
    /// Before the first digit of a chunk size.
    #[default]
    SizeStart,
    Size(u64),
    Extension(u64),
    SizeLineFeed(u64),
    Data(u64),
    DataCarriageReturn,
    DataLineFeed,
    /// At the start of a trailer line, or of the blank line that ends the body.
    TrailerStart,
    Trailer,
    TrailerLineFeed,
    EndLineFeed,
    Done,
}

impl ChunkedDecoder {
    /// At the start of a body.
    pub fn new(limits: ChunkLimits) -> Self {
        ChunkedDecoder {
            limits,
            ..ChunkedDecoder::default()
        }
    }

    /// Takes bytes from the start of `input` and appends the data of the chunks to `body`.
    ///
    /// Returns the number of bytes taken, and true when the body is complete; later bytes belong to the next message.
    ///
    /// # Errors
    /// [`HttpError::BodyTooLarge`] when the announced size of a chunk would make `body` exceed `body_bytes_max`, before the
    /// data of that chunk is read; [`HttpError::BadChunk`] for any other problem.
    pub fn decode(
        &mut self,
        input: &[u8],
        body: &mut Vec<u8>,
        body_bytes_max: usize,
    ) -> Result<(usize, bool), HttpError> {
        let mut at = 0;
        while at < input.len() && self.state != ChunkState::Done {
            if let ChunkState::Data(left) = self.state {
                let here = &input[at..];
                let taken = usize::try_from(left).map_or(here.len(), |left| left.min(here.len()));
                body.extend_from_slice(&here[..taken]);
                at += taken;
                self.state = match left - taken as u64 {
                    0 => ChunkState::DataCarriageReturn,
                    left => ChunkState::Data(left),
                };
                continue;
            }
            self.state = self.step(input[at])?;
            at += 1;
            if let ChunkState::Data(size) = self.state {
                check_room(size, body.len(), body_bytes_max)?;
            }
        }
        Ok((at, self.state == ChunkState::Done))
    }

    /// Handles one byte outside chunk data.
    fn step(&mut self, byte: u8) -> Result<ChunkState, HttpError> {
        use ChunkState as S;
        self.count_line_byte()?;
        match (self.state, byte) {
            (S::SizeStart, digit) => match hex_digit(digit) {
                Some(value) => Ok(S::Size(u64::from(value))),
                None => Err(HttpError::BadChunk("a size must start with a hex digit")),
            },
            (S::Size(size), b'\r') | (S::Extension(size), b'\r') => Ok(S::SizeLineFeed(size)),
            (S::Size(size), b';' | b' ' | b'\t') => Ok(S::Extension(size)),
            (S::Size(size), digit) => match (hex_digit(digit), size.checked_mul(16)) {
                (Some(value), Some(size)) => Ok(S::Size(size + u64::from(value))),
                (Some(_), None) => Err(HttpError::BadChunk("size does not fit in 64 bits")),
                (None, _) => Err(HttpError::BadChunk("bad character in a size")),
            },
            (S::Extension(_), b'\n') => Err(HttpError::BadChunk("bare line feed")),
            (S::Extension(size), _) => Ok(S::Extension(size)),
            (S::SizeLineFeed(size), b'\n') => {
                self.line_bytes = 0;
                Ok(if size == 0 {
                    S::TrailerStart
                } else {
                    S::Data(size)
                })
            }
            (S::DataCarriageReturn, b'\r') => Ok(S::DataLineFeed),
            (S::DataLineFeed, b'\n') => {
                self.line_bytes = 0;
                Ok(S::SizeStart)
            }
            (S::TrailerStart, b'\r') => Ok(S::EndLineFeed),
            (S::TrailerStart | S::Trailer, b'\n') => Err(HttpError::BadChunk("bare line feed")),
            (S::Trailer, b'\r') => Ok(S::TrailerLineFeed),
            (S::TrailerStart | S::Trailer, _) => Ok(S::Trailer),
            (S::TrailerLineFeed, b'\n') => Ok(S::TrailerStart),
            (S::EndLineFeed, b'\n') => Ok(S::Done),
            (S::DataCarriageReturn, _) => Err(HttpError::BadChunk("data is longer than its size")),
            _ => Err(HttpError::BadChunk("carriage return without line feed")),
        }
    }

    fn count_line_byte(&mut self) -> Result<(), HttpError> {
        self.line_bytes += 1;
        let in_trailers = matches!(
            self.state,
            ChunkState::TrailerStart
                | ChunkState::Trailer
                | ChunkState::TrailerLineFeed
                | ChunkState::EndLineFeed
        );
        match in_trailers {
            true if self.line_bytes > self.limits.trailer_bytes_max => {
                Err(HttpError::BadChunk("trailers are too long"))
            }
            false if self.line_bytes > self.limits.line_bytes_max => {
                Err(HttpError::BadChunk("a size line is too long"))
            }
            _ => Ok(()),
        }
    }
}

fn check_room(size: u64, body_bytes: usize, body_bytes_max: usize) -> Result<(), HttpError> {
    let room = body_bytes_max.saturating_sub(body_bytes) as u64;
    if size > room {
        return Err(HttpError::BodyTooLarge {
            bytes_max: body_bytes_max,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Decodes in pieces of `piece_bytes`; returns the body and the number of bytes taken.
    fn decode_in(input: &[u8], piece_bytes: usize) -> Result<Option<(Vec<u8>, usize)>, HttpError> {
        let mut decoder = ChunkedDecoder::default();
        let (mut body, mut taken) = (Vec::new(), 0);
        for piece in input.chunks(piece_bytes) {
            let (consumed, done) = decoder.decode(piece, &mut body, 100)?;
            taken += consumed;
            if done {
                return Ok(Some((body, taken)));
            }
            assert_eq!(consumed, piece.len(), "an unfinished body takes everything");
        }
        Ok(None)
    }

    fn check(input: &str, expected: Result<Option<(&str, &str)>, HttpError>) {
        for piece_bytes in [1, 2, 3, 1000] {
            let got = decode_in(input.as_bytes(), piece_bytes);
            let got = got.map(|found| {
                found.map(|(body, taken)| {
                    (String::from_utf8(body).unwrap(), input[taken..].to_owned())
                })
            });
            let expected = expected
                .clone()
                .map(|found| found.map(|(body, rest)| (body.to_owned(), rest.to_owned())));
            assert_eq!(got, expected, "{input:?} in pieces of {piece_bytes}");
        }
    }

    #[test]
    fn chunks_are_joined_and_the_rest_is_left() {
        check("5\r\nhello\r\n0\r\n\r\nGET", Ok(Some(("hello", "GET"))));
        check(
            "1\r\na\r\nA;x=y\r\n0123456789\r\n00\r\nT: v\r\n\r\n",
            Ok(Some(("a0123456789", ""))),
        );
        check("0\r\n\r\n", Ok(Some(("", ""))));
        check("5\r\nhel", Ok(None));
        check("5\r\nhello\r\n0\r\n", Ok(None));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        fn bad(input: &str, cause: &'static str) {
            check(input, Err(HttpError::BadChunk(cause)));
        }
        bad("\r\n", "a size must start with a hex digit");
        bad("-1\r\n", "a size must start with a hex digit");
        bad("1\na\r\n", "bad character in a size");
        bad("1;x\na\r\n", "bare line feed");
        bad("1x\r\n", "bad character in a size");
        bad("1\r\nab\r\n", "data is longer than its size");
        bad("1\r\na\rb", "carriage return without line feed");
        bad("0\r\n\n", "bare line feed");
        bad("0\r\nT: v\n\r\n", "bare line feed");
        bad("fffffffffffffffff\r\n", "size does not fit in 64 bits");
        bad(
            &format!("1;{}", "x".repeat(2000)),
            "a size line is too long",
        );
        bad(
            &format!("0\r\nT: {}", "x".repeat(20_000)),
            "trailers are too long",
        );
    }

    #[test]
    fn the_limit_is_on_the_announced_size() {
        let too_large = Err(HttpError::BodyTooLarge { bytes_max: 100 });
        check("65\r\n", too_large.clone());
        check("ffffffffffffffff\r\n", too_large.clone());
        check(&format!("64\r\n{}\r\n1\r\n", "x".repeat(100)), too_large);
        check("64\r\n", Ok(None));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_in(&input, 7);
        }

        #[test]
        fn what_was_chunked_comes_back(parts in proptest::collection::vec("[a-z\r\n]{1,20}", 0..5), piece_bytes in 1usize..9) {
            let mut wire = String::new();
            for part in &parts {
                wire.push_str(&format!("{:x}\r\n{part}\r\n", part.len()));
            }
            wire.push_str("0\r\n\r\n");
            let (body, taken) = decode_in(wire.as_bytes(), piece_bytes).unwrap().unwrap();
            prop_assert_eq!(body, parts.concat().into_bytes());
            prop_assert_eq!(taken, wire.len());
        }
    }
}
