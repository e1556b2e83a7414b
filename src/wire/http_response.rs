//! HTTP/1.1 responses: writes ours, and reads the heads of the app's.
//!
//! This file does not decide what to answer. The shard's HTTP phase calls the encoding, `rpc` calls the decoding.

use super::http_body::ResponseBodyFraming;
use super::http_head::{HeadCopy, HeadLimits, HeaderStore, HttpError, field_slots, parse_error};
use super::http_request::parse_content_length;

/// Appends a response: its head ([`encode_head`]) and its body. `head_only` omits the body but still announces its length,
/// as the answer to `HEAD` must.
pub fn encode_response(
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
    date: &str,
    keep_alive: bool,
    head_only: bool,
    out: &mut Vec<u8>,
) {
    encode_head(status, headers, body.len(), date, keep_alive, out);
    if may_have_body(status) && !head_only {
        out.extend_from_slice(body);
    }
}

/// Appends the head of a response whose body has `body_bytes`. The fields have the order in which Go writes them: the
/// caller's, then `Date`, `Content-Length` and, without `keep_alive`, `Connection: close`.
///
/// `date` is an HTTP date. Header values must not contain line ends. An HTTP/1.0 client keeps the connection only if the
/// caller adds `Connection: keep-alive`.
pub fn encode_head(
    status: u16,
    headers: &[(&str, &str)],
    body_bytes: usize,
    date: &str,
    keep_alive: bool,
    out: &mut Vec<u8>,
) {
    let reason = reason_phrase(status);
    out.extend_from_slice(b"HTTP/1.1 ");
    push_number(u64::from(status), out);
    out.push(b' ');
    match reason {
        "" => {
            out.extend_from_slice(b"status code ");
            push_number(u64::from(status), out);
        }
        reason => out.extend_from_slice(reason.as_bytes()),
    }
    for (name, value) in headers {
        push_field(name, value, out);
    }
    push_field("Date", date, out);
    if may_have_body(status) {
        out.extend_from_slice(b"\r\nContent-Length: ");
        push_number(body_bytes as u64, out);
    }
    if !keep_alive {
        push_field("Connection", "close", out);
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends the head of a 200 whose body goes on until it or the connection ends. Its fields have the order of
/// [`encode_response`]. `chunked`: as chunks, which HTTP/1.0 does not know; otherwise the body ends with the connection.
pub fn encode_stream_head(headers: &[(&str, &str)], date: &str, chunked: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 200 OK");
    for (name, value) in headers {
        push_field(name, value, out);
    }
    push_field("Date", date, out);
    if chunked {
        push_field("Connection", "keep-alive", out);
        push_field("Transfer-Encoding", "chunked", out);
    } else {
        push_field("Connection", "close", out);
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends the answer to bytes that are not an HTTP request; the connection must be closed after it. Like Go's answer it has
/// no `Date`, and its body ends with the connection.
pub fn encode_malformed_request(error: &HttpError, out: &mut Vec<u8>) {
    let status = error.status();
    let reason = reason_phrase(status);
    out.extend_from_slice(
        format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n\
             {status} {reason}"
        )
        .as_bytes(),
    );
}

/// The phrase that Go writes for `status`; empty for a status that Go does not know.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Request Entity Too Large",
        414 => "Request URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Entity",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

/// A response without its body.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    store: HeaderStore,
    status: u16,
    version_minor: u8,
}

impl ResponseHead {
    /// Reads a whole head, whose end a [`HeadScanner`](super::http_head::HeadScanner) has found. Interim (1xx) responses are
    /// returned like any other.
    ///
    /// # Errors
    /// [`HttpError`]; the connection must be closed then.
    pub fn decode(head: &[u8], limits: &HeadLimits) -> Result<ResponseHead, HttpError> {
        let mut slots = field_slots(head, limits);
        let mut parsed = httparse::Response::new(&mut slots);
        let status = parsed
            .parse(head)
            .map_err(|error| parse_error(error, limits))?;
        let (true, Some(status), Some(version_minor)) =
            (status.is_complete(), parsed.code, parsed.version)
        else {
            return Err(HttpError::Malformed("the head ends too early"));
        };
        Ok(ResponseHead {
            store: HeadCopy::new(head).into_store(parsed.headers),
            status,
            version_minor,
        })
    }

    /// Three digits.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The values of all fields called `name` (in any case), without the blanks around them.
    pub fn header_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.store.values(name)
    }

    /// Whether the other side accepts another request on this connection. A body that ends with the connection
    /// ([`ResponseBodyFraming::UntilClose`]) makes that impossible, whatever this says.
    pub fn keep_alive(&self) -> bool {
        self.store.keep_alive(self.version_minor)
    }

    /// The length of the body of an answer to any method but `HEAD`.
    ///
    /// More lenient than for a request, because the application is trusted: `Transfer-Encoding` wins over `Content-Length`,
    /// equal lengths may be repeated, the version does not matter, and `identity` is not a coding.
    ///
    /// # Errors
    /// Lengths that are not numbers or that differ, and codings other than `chunked`.
    ///
    /// Source: RFC 9112 §6.3.
    pub fn body_framing(&self) -> Result<ResponseBodyFraming, HttpError> {
        if !may_have_body(self.status) {
            return Ok(ResponseBodyFraming::Length(0));
        }
        let length = self.content_length()?;
        let mut codings = self
            .header_values("transfer-encoding")
            .filter(|coding| !coding.eq_ignore_ascii_case("identity"));
        match (codings.next(), codings.next()) {
            (None, _) => {
                Ok(length.map_or(ResponseBodyFraming::UntilClose, ResponseBodyFraming::Length))
            }
            (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(ResponseBodyFraming::Chunked)
            }
            (Some(coding), _) => Err(HttpError::UnsupportedTransferEncoding(coding.to_owned())),
        }
    }

    fn content_length(&self) -> Result<Option<u64>, HttpError> {
        let mut lengths = self.header_values("content-length");
        let Some(first) = lengths.next() else {
            return Ok(None);
        };
        let length = parse_content_length(first)?;
        if lengths.any(|other| parse_content_length(other) != Ok(length)) {
            return Err(HttpError::DifferentLengths);
        }
        Ok(Some(length))
    }
}

/// Interim responses, 204 and 304 end with their head.
fn may_have_body(status: u16) -> bool {
    !matches!(status, 100..=199 | 204 | 304)
}

fn push_field(name: &str, value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
}

fn push_number(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DATE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";
    const HEALTH: &str = "Ah, ha, ha, ha, stayin' alive, stayin' alive.";

    #[test]
    fn responses_have_the_fields_in_the_order_of_go() {
        fn check(keep_alive: bool, head_only: bool, tail: &str) {
            let mut out = Vec::new();
            let headers = [("Content-Type", "text/plain; charset=utf-8")];
            encode_response(
                200,
                &headers,
                HEALTH.as_bytes(),
                DATE,
                keep_alive,
                head_only,
                &mut out,
            );
            let expected = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nDate: {DATE}\r\nContent-Length: 45\r\n{tail}"
            );
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        check(true, false, &format!("\r\n{HEALTH}"));
        check(true, true, "\r\n");
        check(false, false, &format!("Connection: close\r\n\r\n{HEALTH}"));
    }

    #[test]
    fn statuses_without_a_body_announce_none() {
        fn check(status: u16, expected: &str) {
            let mut out = Vec::new();
            encode_response(status, &[], b"", DATE, true, false, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
        check(
            204,
            &format!("HTTP/1.1 204 No Content\r\nDate: {DATE}\r\n\r\n"),
        );
        check(
            201,
            &format!("HTTP/1.1 201 Created\r\nDate: {DATE}\r\nContent-Length: 0\r\n\r\n"),
        );
        check(
            599,
            &format!("HTTP/1.1 599 status code 599\r\nDate: {DATE}\r\nContent-Length: 0\r\n\r\n"),
        );
    }

    #[test]
    fn malformed_requests_are_told_and_closed() {
        let mut out = Vec::new();
        encode_malformed_request(&HttpError::HeadTooLarge { bytes_max: 1 }, &mut out);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Connection: close\r\n\r\n431 Request Header Fields Too Large"
        );
    }

    fn head(text: &str) -> ResponseHead {
        ResponseHead::decode(text.as_bytes(), &HeadLimits::default()).expect("a good head")
    }

    #[test]
    fn a_rails_answer_is_read() {
        let head =
            head("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: 12\r\n\r\n");
        assert_eq!(head.status(), 200);
        assert!(head.header_values("Content-Type").eq(["application/json"]));
        assert_eq!(head.body_framing(), Ok(ResponseBodyFraming::Length(12)));
        assert!(head.keep_alive());
        for bad in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\n", ""] {
            let decoded = ResponseHead::decode(bad.as_bytes(), &HeadLimits::default());
            assert!(decoded.is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_way_to_end_a_body_is_found() {
        fn check(start: &str, expected: Result<ResponseBodyFraming, HttpError>) {
            let got = head(&format!("HTTP/{start}\r\n\r\n")).body_framing();
            assert_eq!(got, expected, "{start}");
        }
        use ResponseBodyFraming as F;
        check("1.1 200 OK", Ok(F::UntilClose));
        check("1.1 200", Ok(F::UntilClose));
        check("1.1 204 No Content\r\nContent-Length: 5", Ok(F::Length(0)));
        check(
            "1.1 304 Not Modified\r\nContent-Length: 5",
            Ok(F::Length(0)),
        );
        check("1.1 100 Continue", Ok(F::Length(0)));
        check("1.1 200 OK\r\nTransfer-Encoding: chunked", Ok(F::Chunked));
        check(
            "1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
            Ok(F::Chunked),
        );
        check("1.0 200 OK\r\nTransfer-Encoding: Chunked", Ok(F::Chunked));
        check(
            "1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 5",
            Ok(F::Length(5)),
        );
        check(
            "1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 05",
            Ok(F::Length(5)),
        );
        check(
            "1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
            Err(HttpError::DifferentLengths),
        );
        for length in ["5, 5", "five", "-1", "", "99999999999999999999"] {
            check(
                &format!("1.1 200 OK\r\nContent-Length: {length}"),
                Err(HttpError::BadContentLength(length.to_owned())),
            );
        }
        check(
            "1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
            Err(HttpError::UnsupportedTransferEncoding(
                "gzip, chunked".to_owned(),
            )),
        );
    }

    #[test]
    fn keep_alive_follows_version_and_connection() {
        assert!(!head("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").keep_alive());
        assert!(!head("HTTP/1.0 200 OK\r\n\r\n").keep_alive());
        assert!(head("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n").keep_alive());
    }

    proptest! {
        #[test]
        fn garbage_never_panics(input in "(HTTP/1.[01] [0-9]{1,4} ?[a-z]{0,4}\r\n)?[A-Za-z:, \r\n]{0,60}(\r\n\r\n)?") {
            if let Ok(head) = ResponseHead::decode(input.as_bytes(), &HeadLimits::default()) {
                let _ = (head.body_framing(), head.keep_alive(), head.header_values("a").count());
            }
        }
    }
}
