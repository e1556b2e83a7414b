//! What request heads and response heads share: limits, errors, the search for the end, and the storage of header fields.
//!
//! This file knows neither methods nor statuses. Called by `http_request` and `http_response`; the shard uses
//! [`HeadScanner`] while a head is still arriving.

use memchr::{memchr, memchr_iter};
use thiserror::Error;

/// Bytes of one head unless another limit is configured. Source: `contract/websocket.md` §1.
pub const HEAD_BYTES_MAX: usize = 1 << 20;

/// Header fields of one head unless another limit is configured. The reference has no such limit; browsers and proxies send
/// far fewer.
pub const HEADERS_MAX: usize = 256;

/// Positions in a head are stored as `u32`. The text may become three times as long where invalid UTF-8 is replaced, and
/// still fits.
const HEAD_BYTES_CEILING: usize = 1 << 30;

/// How large a head may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes from the first one to the end of the blank line. Values above 1 GiB are treated as 1 GiB.
    pub head_bytes_max: usize,
    /// Number of header fields.
    pub headers_max: usize,
}

impl Default for HeadLimits {
    fn default() -> Self {
        HeadLimits {
            head_bytes_max: HEAD_BYTES_MAX,
            headers_max: HEADERS_MAX,
        }
    }
}

/// Why HTTP bytes are refused. After any of these errors the connection cannot be used again, because it is not known where
/// the next message starts.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HttpError {
    #[error("the head is longer than {bytes_max} bytes")]
    HeadTooLarge { bytes_max: usize },
    #[error("more than {max} header fields")]
    TooManyHeaders { max: usize },
    #[error("malformed head: {0}")]
    Malformed(&'static str),
    #[error("unsupported protocol version")]
    UnsupportedVersion,
    #[error("missing required Host header")]
    MissingHost,
    #[error("too many Host headers")]
    DuplicateHost,
    #[error("malformed Host header")]
    BadHost,
    #[error("Content-Length must be one decimal number, got {0:?}")]
    BadContentLength(String),
    #[error("two different Content-Length headers")]
    DifferentLengths,
    #[error("Transfer-Encoding must be chunked, got {0:?}")]
    UnsupportedTransferEncoding(String),
    #[error("both Transfer-Encoding and Content-Length are given")]
    AmbiguousLength,
    #[error("malformed chunk: {0}")]
    BadChunk(&'static str),
    #[error("the body is longer than {bytes_max} bytes")]
    BodyTooLarge { bytes_max: usize },
}

impl HttpError {
    /// The status of the answer before the connection is closed.
    pub fn status(&self) -> u16 {
        match self {
            HttpError::HeadTooLarge { .. } | HttpError::TooManyHeaders { .. } => 431,
            HttpError::UnsupportedVersion => 505,
            HttpError::UnsupportedTransferEncoding(_) => 501,
            HttpError::BodyTooLarge { .. } => 413,
            HttpError::Malformed(_)
            | HttpError::MissingHost
            | HttpError::DuplicateHost
            | HttpError::BadHost
            | HttpError::BadContentLength(_)
            | HttpError::DifferentLengths
            | HttpError::AmbiguousLength
            | HttpError::BadChunk(_) => 400,
        }
    }
}

/// Finds the end of a head that arrives in pieces, and looks at each byte once.
///
/// A head may arrive one byte at a time. If each search began at the start, the cost would be the square of its size. Use
/// one scanner per head, and pass it the whole buffer each time.
#[derive(Debug, Clone, Default)]
pub struct HeadScanner {
    /// The end is not before this position.
    scanned: usize,
    /// True after a byte other than CR and LF: blank lines before a request line end nothing.
    started: bool,
}

impl HeadScanner {
    /// The number of bytes up to and including the blank line, or `None` if it has not arrived.
    ///
    /// `input` must be the input of the last call with new bytes appended.
    ///
    /// # Errors
    /// [`HttpError::HeadTooLarge`] as soon as it is certain that the head does not fit.
    pub fn find_end(
        &mut self,
        input: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<usize>, HttpError> {
        let bytes_max = limits.head_bytes_max.min(HEAD_BYTES_CEILING);
        let window = &input[..input.len().min(bytes_max)];
        match self.search(window) {
            Some(end) => Ok(Some(end)),
            None if window.len() == bytes_max => Err(HttpError::HeadTooLarge { bytes_max }),
            None => Ok(None),
        }
    }

    fn search(&mut self, window: &[u8]) -> Option<usize> {
        if !self.started {
            self.skip_blank_lines(window);
        }
        while let Some(step) = memchr(b'\n', window.get(self.scanned..)?) {
            let line_end = self.scanned + step;
            match window.get(line_end + 1..) {
                Some([b'\n', ..]) => return Some(line_end + 2),
                Some([b'\r', b'\n', ..]) => return Some(line_end + 3),
                // The next read may bring the blank line after this line feed: so the next search begins at it.
                Some([] | [b'\r']) | None => {
                    self.scanned = line_end;
                    return None;
                }
                Some(_) => self.scanned = line_end + 1,
            }
        }
        self.scanned = window.len();
        None
    }

    fn skip_blank_lines(&mut self, window: &[u8]) {
        while let Some(byte) = window.get(self.scanned) {
            if !matches!(byte, b'\r' | b'\n') {
                self.started = true;
                return;
            }
            self.scanned += 1;
        }
    }
}

/// A part of a [`HeaderStore`]'s text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    fn len(self) -> usize {
        (self.end - self.start) as usize
    }
}

/// The text of a head in one allocation, and the positions of its fields.
#[derive(Debug, Clone)]
pub(super) struct HeaderStore {
    text: String,
    fields: Vec<(Span, Span)>,
}

/// Makes the [`HeaderStore`] of a head that has been parsed.
pub(super) struct HeadCopy<'a> {
    head: &'a [u8],
    /// The whole head if it is UTF-8, which is the usual case and needs a single copy; then the parts that are not in it.
    text: String,
    is_whole: bool,
}

impl<'a> HeadCopy<'a> {
    pub(super) fn new(head: &'a [u8]) -> Self {
        let mut text = String::with_capacity(head.len());
        let whole = std::str::from_utf8(head);
        text.push_str(whole.unwrap_or_default());
        HeadCopy {
            head,
            text,
            is_whole: whole.is_ok(),
        }
    }

    /// The position of a part of the head, with U+FFFD in place of invalid UTF-8.
    pub(super) fn span(&mut self, part: &[u8]) -> Span {
        match self.offset(part) {
            Some(start) => span(start, start + part.len()),
            None => {
                let start = self.text.len();
                self.text.push_str(&String::from_utf8_lossy(part));
                span(start, self.text.len())
            }
        }
    }

    /// Where `part` is in the whole head that was copied.
    fn offset(&self, part: &[u8]) -> Option<usize> {
        let offset = part
            .as_ptr()
            .addr()
            .checked_sub(self.head.as_ptr().addr())?;
        let is_inside = self.head.get(offset..)?.len() >= part.len();
        (self.is_whole && is_inside).then_some(offset)
    }

    pub(super) fn into_store(mut self, fields: &[httparse::Header<'_>]) -> HeaderStore {
        let fields = fields
            .iter()
            .map(|field| (self.span(field.name.as_bytes()), self.span(field.value)))
            .collect();
        HeaderStore {
            text: self.text,
            fields,
        }
    }
}

fn span(start: usize, end: usize) -> Span {
    let position = |at: usize| {
        u32::try_from(at).expect("a head is below HEAD_BYTES_CEILING, tripled it still fits in u32")
    };
    Span {
        start: position(start),
        end: position(end),
    }
}

impl HeaderStore {
    pub(super) fn text(&self, span: Span) -> &str {
        &self.text[span.start as usize..span.end as usize]
    }

    /// All fields in the order they came.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields
            .iter()
            .map(|(name, value)| (self.text(*name), self.text(*value)))
    }

    /// The first value of the field called `name` (in any case), without the blanks around it.
    pub(super) fn first(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let found = fields.find(|(field, _)| self.is_called(*field, name));
        found.map(|(_, value)| self.text(*value))
    }

    /// The values of all fields called `name` (in any case).
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields
            .iter()
            .filter(move |(field, _)| self.is_called(*field, name))
            .map(|(_, value)| self.text(*value))
    }

    /// Compares lengths first, because most fields are others.
    fn is_called(&self, field: Span, name: &str) -> bool {
        field.len() == name.len() && self.text(field).eq_ignore_ascii_case(name)
    }

    /// True when a field called `name` has `token` in its comma list; both in any case.
    pub(super) fn has_token(&self, name: &str, token: &str) -> bool {
        self.values(name)
            .flat_map(list_items)
            .any(|item| item.eq_ignore_ascii_case(token))
    }

    /// Whether the connection may carry another message, by the rules of RFC 9112 §9.3.
    pub(super) fn keep_alive(&self, version_minor: u8) -> bool {
        if self.has_token("connection", "close") {
            return false;
        }
        version_minor >= 1 || self.has_token("connection", "keep-alive")
    }
}

/// The items of a comma list, trimmed.
pub(super) fn list_items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

/// Slots for the header fields of `head`, which the parser needs: at most one for each line of the head.
pub(super) fn field_slots<'a>(head: &[u8], limits: &HeadLimits) -> Vec<httparse::Header<'a>> {
    let lines = memchr_iter(b'\n', head).count();
    vec![httparse::EMPTY_HEADER; lines.min(limits.headers_max)]
}

/// The error for a complaint of the parser.
pub(super) fn parse_error(error: httparse::Error, limits: &HeadLimits) -> HttpError {
    match error {
        httparse::Error::TooManyHeaders => HttpError::TooManyHeaders {
            max: limits.headers_max,
        },
        httparse::Error::Version => HttpError::UnsupportedVersion,
        httparse::Error::HeaderName => HttpError::Malformed("invalid header name"),
        httparse::Error::HeaderValue => HttpError::Malformed("invalid header value"),
        httparse::Error::NewLine => HttpError::Malformed("invalid line end"),
        httparse::Error::Status => HttpError::Malformed("invalid status"),
        httparse::Error::Token => HttpError::Malformed("invalid token"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(input: &[u8], expected: Option<usize>) {
        let whole = HeadScanner::default().find_end(input, &HeadLimits::default());
        assert_eq!(whole, Ok(expected), "{:?}", String::from_utf8_lossy(input));
        let mut scanner = HeadScanner::default();
        let found = (1..=input.len()).find_map(|end| {
            scanner
                .find_end(&input[..end], &HeadLimits::default())
                .unwrap()
        });
        assert_eq!(found, expected, "byte by byte");
    }

    #[test]
    fn the_end_is_found_whole_and_byte_by_byte() {
        check(b"", None);
        check(b"GET / HTTP/1.1\r\n", None);
        check(b"GET / HTTP/1.1\r\n\r", None);
        check(b"GET / HTTP/1.1\r\n\r\n", Some(18));
        check(b"GET / HTTP/1.1\n\n", Some(16));
        check(b"GET / HTTP/1.1\r\nA: b\r\n\r\nbody\r\n\r\n", Some(24));
        check(b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", Some(22));
        check(b"\r\n\r\n\r\n", None);
    }

    #[test]
    fn a_head_that_cannot_fit_is_refused_before_it_ends() {
        let limits = HeadLimits {
            head_bytes_max: 8,
            headers_max: 1,
        };
        let refused = Err(HttpError::HeadTooLarge { bytes_max: 8 });
        assert_eq!(
            HeadScanner::default().find_end(b"12345678", &limits),
            refused
        );
        assert_eq!(
            HeadScanner::default().find_end(b"1234567\r\n\r\n", &limits),
            refused
        );
        assert_eq!(
            HeadScanner::default().find_end(b"1234\r\n\r\nmore", &limits),
            Ok(Some(8))
        );
    }

    proptest! {
        #[test]
        fn splitting_the_input_does_not_move_the_end(
            input in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'a')], 0..60),
            cut in 0usize..60,
        ) {
            let limits = HeadLimits::default();
            let whole = HeadScanner::default().find_end(&input, &limits).unwrap();
            let mut scanner = HeadScanner::default();
            let first = scanner.find_end(&input[..cut.min(input.len())], &limits).unwrap();
            let second = first.or(scanner.find_end(&input, &limits).unwrap());
            prop_assert_eq!(whole, second);
        }
    }
}
