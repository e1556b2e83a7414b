//! An ordinary HTTP answer as a value.
//!
//! Owns the content of an answer, not its bytes: `wire` and `shard::http` write it. They add `Content-Length`, `Date` and
//! `Connection`, and leave out the body of a HEAD answer.

use std::borrow::Cow;

/// The headers of an answer, in the order in which they are written.
pub type Headers = Vec<(&'static str, Cow<'static, str>)>;

/// The `Content-Type` of all plain text answers.
pub const TEXT_PLAIN: &str = "text/plain; charset=utf-8";

/// An answer to a request that does not become a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// Without `Content-Length`, `Date` and `Connection`.
    pub headers: Headers,
    /// The whole body; for HEAD only its length is used.
    pub body: Cow<'static, [u8]>,
    /// The connection must be closed after this answer, because the rest of the input has no clear start or is too much to
    /// skip.
    pub close: bool,
}

impl Response {
    /// No headers, no body; the connection stays open.
    pub fn empty(status: u16) -> Response {
        Response {
            status,
            headers: Vec::new(),
            body: Cow::Borrowed(&[]),
            close: false,
        }
    }

    /// A plain text answer; the connection stays open.
    pub fn text(status: u16, body: &'static str) -> Response {
        Response {
            headers: vec![("Content-Type", Cow::Borrowed(TEXT_PLAIN))],
            body: Cow::Borrowed(body.as_bytes()),
            ..Response::empty(status)
        }
    }

    /// There is no memory for the request. Its rest is not read, so the connection closes; the client may try again.
    pub fn no_memory() -> Response {
        Response::text(503, "no memory for this request, try again\n")
            .with_headers(vec![("Retry-After", Cow::Borrowed("1"))])
            .closing()
    }

    /// Nothing is served on this path.
    ///
    /// Source: `contract/websocket.md` §1.
    pub fn not_found() -> Response {
        Response::text(404, "404 page not found\n")
            .with_headers(vec![("X-Content-Type-Options", Cow::Borrowed("nosniff"))])
    }

    /// The headers as they are encoded.
    pub fn fields(&self) -> Vec<(&str, &str)> {
        let headers = self.headers.iter();
        headers.map(|(name, value)| (*name, &**value)).collect()
    }

    /// Appends `headers`.
    pub fn with_headers(mut self, headers: Headers) -> Response {
        self.headers.extend(headers);
        self
    }

    /// Asks for the connection to be closed after the answer.
    pub fn closing(mut self) -> Response {
        self.close = true;
        self
    }

    /// The first value of the header `name`, which is compared without regard to case.
    #[cfg(test)]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_path_gets_the_text_of_the_reference() {
        let response = Response::not_found();
        assert_eq!(response.status, 404);
        assert_eq!(response.body.as_ref(), b"404 page not found\n");
        assert_eq!(response.body.len(), 19);
        assert_eq!(
            response.header("content-type"),
            Some("text/plain; charset=utf-8")
        );
        assert_eq!(response.header("X-Content-Type-Options"), Some("nosniff"));
        assert!(!response.close);
    }
}
