//! The head of an HTTP/1.x request: bytes to [`RequestHead`].
//!
//! This file defines the meaning of a request line and its fields (target forms, Host rules, keep-alive, body framing). It
//! knows no routes. The shard's HTTP phase calls it for every connection.

use std::borrow::Cow;

use super::http_body::BodyFraming;
use super::http_head::{
    HeadCopy, HeadLimits, HeadScanner, HeaderStore, HttpError, Span, field_slots, list_items,
    parse_error,
};
use super::percent;

/// Fields with one value by definition: two of them joined would be a value that the client has not sent. Source: RFC 9110,
/// RFC 6454 §7.3, RFC 6455 §11.3.
const SINGLE_VALUED: [&str; 17] = [
    "authorization",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "date",
    "from",
    "host",
    "if-modified-since",
    "max-forwards",
    "origin",
    "proxy-authorization",
    "range",
    "referer",
    "sec-websocket-key",
    "user-agent",
    "x-request-id",
];

/// A request without its body: one text buffer, and positions in it.
///
/// Invalid UTF-8 in field values has become U+FFFD; a target that is not UTF-8 is refused.
#[derive(Debug, Clone)]
pub struct RequestHead {
    store: HeaderStore,
    method: Span,
    target: Span,
    version_minor: u8,
}

impl RequestHead {
    /// Reads one head from the start of `input`. `Ok(None)` while its blank line has not arrived. The number is the length
    /// of the head; the body follows it.
    ///
    /// Each call looks through all of `input`: while a head arrives in small pieces, ask a [`HeadScanner`] first.
    ///
    /// # Errors
    /// [`HttpError`] with the status to answer; the connection must be closed then.
    ///
    /// Source: RFC 9112 §2–§5, `contract/websocket.md` §1.
    pub fn decode(
        input: &[u8],
        limits: &HeadLimits,
    ) -> Result<Option<(RequestHead, usize)>, HttpError> {
        let Some(end) = HeadScanner::default().find_end(input, limits)? else {
            return Ok(None);
        };
        let input = &input[..end];
        let mut slots = field_slots(input, limits);
        let mut parsed = httparse::Request::new(&mut slots);
        match parsed.parse(input) {
            Ok(httparse::Status::Complete(consumed)) => {
                Self::from_parsed(&parsed, input).map(|head| Some((head, consumed)))
            }
            // For example because of a blank line inside the request line.
            Ok(httparse::Status::Partial) => Err(HttpError::Malformed("the head ends too early")),
            Err(error) => Err(parse_error(error, limits)),
        }
    }

    /// The method as sent; methods are case-sensitive.
    pub fn method(&self) -> &str {
        self.store.text(self.method)
    }

    /// The request target as sent.
    pub fn target(&self) -> &str {
        self.store.text(self.target)
    }

    /// The path, still percent-encoded; `/` if the target has none.
    pub fn path(&self) -> &str {
        match self.path_and_query().split_once('?') {
            Some((path, _)) => path_or_root(path),
            None => path_or_root(self.path_and_query()),
        }
    }

    /// The text after the first `?`, still percent-encoded; `None` without a `?`.
    pub fn query(&self) -> Option<&str> {
        self.path_and_query()
            .split_once('?')
            .map(|(_, query)| query)
    }

    /// 0 for HTTP/1.0, 1 for HTTP/1.1.
    pub fn version_minor(&self) -> u8 {
        self.version_minor
    }

    /// The first value of the field called `name` (in any case), without the blanks around it.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.store.first(name)
    }

    /// All fields in the order they came, with the names as sent.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.store.fields()
    }

    /// The values of all fields called `name` (in any case).
    pub fn header_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.store.values(name)
    }

    /// The lines called `name` as one value, as HTTP tells a recipient to read them: joined with a comma, cookies with a
    /// semicolon. Empty lines are left out; `None` when nothing is left. Fields that have one value by definition are not
    /// joined: their first line counts.
    ///
    /// Never longer than the head, because each line also has a name and a line end on the wire.
    ///
    /// Source: RFC 9110 §5.3, RFC 9113 §8.2.3 (proxies split cookies).
    pub fn combined(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = self
            .store
            .fields()
            .filter(|(field, value)| field.eq_ignore_ascii_case(name) && !value.is_empty())
            .map(|(_, value)| value);
        let first = values.next()?;
        let is_single = SINGLE_VALUED
            .iter()
            .any(|single| single.eq_ignore_ascii_case(name));
        let Some(second) = values.next().filter(|_| !is_single) else {
            return Some(Cow::Borrowed(first));
        };
        let separator = if name.eq_ignore_ascii_case("cookie") {
            "; "
        } else {
            ", "
        };
        let mut all = first.to_owned();
        for value in std::iter::once(second).chain(values) {
            all.push_str(separator);
            all.push_str(value);
        }
        Some(Cow::Owned(all))
    }

    /// The items of the comma list that all lines called `name` form together, trimmed, without empty ones.
    pub fn items<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.header_values(name)
            .flat_map(list_items)
            .filter(|item| !item.is_empty())
    }

    /// The first value of `name` that is not empty; for fields that are not lists.
    pub fn filled(&self, name: &str) -> Option<&str> {
        self.store
            .fields()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .find(|value| !value.is_empty())
    }

    /// Whether more than one line is called `name`.
    pub fn is_repeated(&self, name: &str) -> bool {
        self.header_values(name).nth(1).is_some()
    }

    /// True when one of the fields called `name` has `token` in its comma list; both in any case.
    pub fn header_has_token(&self, name: &str, token: &str) -> bool {
        self.store.has_token(name, token)
    }

    /// The authority that the client asked for: that of an absolute target, else the `Host` field, else empty.
    pub fn host(&self) -> &str {
        match absolute_form(self.target()) {
            Some((authority, _)) => authority,
            None => self.header("host").unwrap_or(""),
        }
    }

    /// Whether the client wants to send another request on this connection.
    pub fn keep_alive(&self) -> bool {
        self.store.keep_alive(self.version_minor)
    }

    /// How long the body is.
    ///
    /// # Errors
    /// Everything that two parties could read differently is refused: `Transfer-Encoding` together with `Content-Length` or
    /// on HTTP/1.0, several of either, a length that is not plain digits, a coding other than `chunked`.
    ///
    /// Source: RFC 9112 §6.
    pub fn body_framing(&self) -> Result<BodyFraming, HttpError> {
        let mut codings = self.header_values("transfer-encoding");
        let mut lengths = self.header_values("content-length");
        match (codings.next(), lengths.next()) {
            (None, None) => Ok(BodyFraming::None),
            (Some(_), Some(_)) => Err(HttpError::AmbiguousLength),
            (Some(coding), None) => {
                let single = codings.next().is_none();
                if single && self.version_minor >= 1 && coding.eq_ignore_ascii_case("chunked") {
                    Ok(BodyFraming::Chunked)
                } else {
                    Err(HttpError::UnsupportedTransferEncoding(coding.to_owned()))
                }
            }
            (None, Some(length)) => match lengths.next() {
                None => parse_content_length(length).map(BodyFraming::Length),
                Some(second) => Err(HttpError::BadContentLength(format!("{length}, {second}"))),
            },
        }
    }

    /// Whether the client waits for `100 Continue` before it sends the body. Source: RFC 9110 §10.1.1.
    pub fn expects_continue(&self) -> bool {
        self.version_minor >= 1 && self.header_has_token("expect", "100-continue")
    }

    fn from_parsed(
        parsed: &httparse::Request<'_, '_>,
        head: &[u8],
    ) -> Result<RequestHead, HttpError> {
        let incomplete = HttpError::Malformed("incomplete request line");
        let (Some(method), Some(target), Some(version_minor)) =
            (parsed.method, parsed.path, parsed.version)
        else {
            return Err(incomplete);
        };
        let mut copy = HeadCopy::new(head);
        let (method, target) = (copy.span(method.as_bytes()), copy.span(target.as_bytes()));
        let head = RequestHead {
            store: copy.into_store(parsed.headers),
            method,
            target,
            version_minor,
        };
        head.check_target()?;
        head.check_host()?;
        Ok(head)
    }

    fn check_target(&self) -> Result<(), HttpError> {
        let target = self.target();
        let known_form = target.starts_with('/')
            || target == "*"
            || self.method() == "CONNECT"
            || absolute_form(target).is_some();
        if !known_form {
            return Err(HttpError::Malformed("request target is not a path"));
        }
        match percent::decode(self.path()) {
            Ok(_) => Ok(()),
            Err(_) => Err(HttpError::Malformed("bad percent escape in the path")),
        }
    }

    fn check_host(&self) -> Result<(), HttpError> {
        let mut hosts = self.header_values("host");
        match (hosts.next(), hosts.next()) {
            (_, Some(_)) => Err(HttpError::DuplicateHost),
            (None, None) if self.version_minor >= 1 && self.method() != "CONNECT" => {
                Err(HttpError::MissingHost)
            }
            (Some(host), None) if !host.bytes().all(|byte| HOST_BYTES[usize::from(byte)]) => {
                Err(HttpError::BadHost)
            }
            _ => Ok(()),
        }
    }

    fn path_and_query(&self) -> &str {
        let target = self.target();
        match absolute_form(target) {
            Some((_, rest)) => rest,
            None => target,
        }
    }
}

/// Splits `http://authority/rest` into authority and rest; `None` for the other target forms.
fn absolute_form(target: &str) -> Option<(&str, &str)> {
    if target.starts_with('/') {
        return None;
    }
    let (scheme, rest) = target.split_once("://")?;
    let scheme_ok = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
    if !scheme_ok {
        return None;
    }
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    Some(rest.split_at(authority_end))
}

fn path_or_root(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

/// True for the bytes that Go's HTTP server accepts in a `Host` field. Source: golang.org/x/net/http/httpguts,
/// `ValidHostHeader`.
const HOST_BYTES: [bool; 256] = {
    let mut accepted = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        accepted[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"!$%&'()*+,-.:;=[]_~";
    let mut index = 0;
    while index < others.len() {
        accepted[others[index] as usize] = true;
        index += 1;
    }
    accepted
};

/// Only digits: no sign, no blanks, no list. Source: RFC 9110 §8.6.
pub(super) fn parse_content_length(value: &str) -> Result<u64, HttpError> {
    let bad = || HttpError::BadContentLength(value.to_owned());
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    value.parse().map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(input: &[u8]) -> Result<Option<(RequestHead, usize)>, HttpError> {
        RequestHead::decode(input, &HeadLimits::default())
    }

    fn head(text: &str) -> RequestHead {
        decode(text.as_bytes()).unwrap().expect("whole head").0
    }

    fn with_fields(fields: &str) -> RequestHead {
        head(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
    }

    #[test]
    fn a_browser_upgrade_is_read() {
        let text = "GET /cable?jid=a%20b HTTP/1.1\r\nHost: chat.example:3000\r\nUpgrade: websocket\r\n\
                    cookie: a=1\r\nCookie:  b=2 \r\n\r\nleft";
        let (head, consumed) = decode(text.as_bytes()).unwrap().unwrap();
        assert_eq!(&text[consumed..], "left");
        assert_eq!(head.method(), "GET");
        assert_eq!(head.target(), "/cable?jid=a%20b");
        assert_eq!(head.path(), "/cable");
        assert_eq!(head.query(), Some("jid=a%20b"));
        assert_eq!(head.version_minor(), 1);
        assert_eq!(head.host(), "chat.example:3000");
        assert_eq!(head.header("COOKIE"), Some("a=1"));
        assert_eq!(
            head.header_values("cookie").collect::<Vec<_>>(),
            ["a=1", "b=2"]
        );
        assert_eq!(head.header("origin"), None);
        assert_eq!(head.headers().count(), 4);
    }

    #[test]
    fn lines_of_one_name_are_one_value() {
        fn check(name: &str, lines: &[&str], expected: Option<&str>) {
            let fields: String = lines
                .iter()
                .enumerate()
                // Names match in any case.
                .map(|(at, value)| match at % 2 {
                    0 => format!("{name}: {value}\r\nX-Between: no\r\n"),
                    _ => format!("{}: {value}\r\n", name.to_uppercase()),
                })
                .collect();
            let head = head(&format!("GET / HTTP/1.0\r\n{fields}\r\n"));
            assert_eq!(head.combined(name).as_deref(), expected, "{name} {lines:?}");
        }
        check("cookie", &[], None);
        check("cookie", &[""], None);
        check("cookie", &["a=1; b=2"], Some("a=1; b=2"));
        check("cookie", &["a=1", "b=2", "c=3"], Some("a=1; b=2; c=3"));
        check("cookie", &["", "a=1", "", "b=x,y"], Some("a=1; b=x,y"));
        check(
            "x-forwarded-for",
            &["1.1.1.1", "2.2.2.2, 3.3.3.3"],
            Some("1.1.1.1, 2.2.2.2, 3.3.3.3"),
        );
        check("x-own", &["a", "b"], Some("a, b"));
        check("authorization", &["Bearer a", "Bearer b"], Some("Bearer a"));
        check("authorization", &["", "Bearer b"], Some("Bearer b"));
        for name in SINGLE_VALUED.iter().filter(|name| **name != "host") {
            check(name, &["1", "2"], Some("1"));
        }
    }

    #[test]
    fn items_come_from_all_lines() {
        let head = with_fields("A: x, y\r\nB: no\r\na: , z ,\r\nA:\r\n");
        assert_eq!(head.items("a").collect::<Vec<_>>(), ["x", "y", "z"]);
        assert!(head.is_repeated("a") && !head.is_repeated("b"));
        assert_eq!(with_fields("A:\r\nA: x\r\n").filled("a"), Some("x"));
    }

    #[test]
    fn every_target_form_has_a_path() {
        fn check(target: &str, path: &str, query: Option<&str>) {
            let head = head(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!((head.path(), head.query()), (path, query), "{target}");
        }
        check("/", "/", None);
        check("/?", "/", Some(""));
        check("/a?b?c", "/a", Some("b?c"));
        check("//cable", "//cable", None);
        check("/%63able", "/%63able", None);
        check("/r?u=http://x/y", "/r", Some("u=http://x/y"));
        check("http://h:1/cable?x=1", "/cable", Some("x=1"));
        check("http://h", "/", None);
        check("http://h?x", "/", Some("x"));
        check("*", "*", None);
    }

    #[test]
    fn bad_heads_get_a_status() {
        fn check(text: &str, status: u16) {
            let error = decode(text.as_bytes()).expect_err(text);
            assert_eq!(error.status(), status, "{text:?}: {error}");
        }
        check("GET / HTTP/1.1\r\n\r\n", 400);
        check("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400);
        check("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400);
        check("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400);
        check("GET cable HTTP/1.1\r\nHost: a\r\n\r\n", 400);
        check("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400);
        check("GET /\r\n\r\n", 400);
        check("GET\r\n\r\n", 400);
        check("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400);
        check("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505);
        check("GET / HTTP/1.1\r\nHost: a\r\nA : b\r\n\r\n", 400);
        check("GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n", 400);
        check("GET / HTTP/1.1\r\nHost: a\r\nA: b\0\r\n\r\n", 400);
        check("GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n", 400);
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505);
    }

    #[test]
    fn http_1_0_needs_no_host() {
        let head = head("GET /cable HTTP/1.0\r\n\r\n");
        assert_eq!(head.version_minor(), 0);
        assert_eq!(head.host(), "");
    }

    #[test]
    fn limits_are_exact() {
        let limits = HeadLimits {
            head_bytes_max: 40,
            headers_max: 2,
        };
        let fits = b"GET / HTTP/1.1\r\nHost: abc\r\nA: bcdef\r\n\r\n";
        assert_eq!(fits.len(), 39);
        assert!(RequestHead::decode(fits, &limits).unwrap().is_some());
        let long = b"GET / HTTP/1.1\r\nHost: abc\r\nA: bcdefgh\r\n\r\n";
        let error = RequestHead::decode(long, &limits).unwrap_err();
        assert_eq!(error, HttpError::HeadTooLarge { bytes_max: 40 });
        assert_eq!(error.status(), 431);
        let many = b"GET / HTTP/1.1\r\nHost: a\r\nA:\r\nB:\r\n\r\n";
        let error = RequestHead::decode(many, &limits).unwrap_err();
        assert_eq!(error, HttpError::TooManyHeaders { max: 2 });
        assert_eq!(error.status(), 431);
    }

    #[test]
    fn values_that_are_not_utf8_are_kept_lossily() {
        let (head, _) = decode(b"GET / HTTP/1.0\r\nX-Name: a\xe9b\r\n\r\n")
            .unwrap()
            .unwrap();
        assert_eq!(head.header("x-name"), Some("a\u{fffd}b"));
        assert_eq!(head.method(), "GET");
    }

    #[test]
    fn keep_alive_follows_version_and_connection() {
        fn check(version: &str, fields: &str, expected: bool) {
            let head = head(&format!("GET / HTTP/{version}\r\nHost: a\r\n{fields}\r\n"));
            assert_eq!(head.keep_alive(), expected, "{version} {fields}");
        }
        check("1.1", "", true);
        check("1.1", "Connection: Close\r\n", false);
        check(
            "1.1",
            "Connection: upgrade\r\nConnection: a, close\r\n",
            false,
        );
        check("1.0", "", false);
        check("1.0", "Connection: Keep-Alive\r\n", true);
    }

    #[test]
    fn body_framing_takes_only_what_cannot_be_misread() {
        fn check(fields: &str, expected: Result<BodyFraming, u16>) {
            let framing = with_fields(fields)
                .body_framing()
                .map_err(|error| error.status());
            assert_eq!(framing, expected, "{fields}");
        }
        check("", Ok(BodyFraming::None));
        check("Content-Length: 0\r\n", Ok(BodyFraming::Length(0)));
        check("Content-Length: 12\r\n", Ok(BodyFraming::Length(12)));
        check("Transfer-Encoding: Chunked\r\n", Ok(BodyFraming::Chunked));
        check("Content-Length:\r\n", Err(400));
        check("Content-Length: +1\r\n", Err(400));
        check("Content-Length: 1, 1\r\n", Err(400));
        check("Content-Length: 0x1\r\n", Err(400));
        check("Content-Length: 18446744073709551616\r\n", Err(400));
        check("Content-Length: 1\r\nContent-Length: 1\r\n", Err(400));
        check(
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            Err(400),
        );
        check("Transfer-Encoding: gzip, chunked\r\n", Err(501));
        check(
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Err(501),
        );
        check("Transfer-Encoding: identity\r\n", Err(501));
        let old = head("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(old.body_framing().unwrap_err().status(), 501);
    }

    #[test]
    fn expect_continue_counts_only_on_http_1_1() {
        assert!(with_fields("Expect: 100-Continue\r\n").expects_continue());
        assert!(!with_fields("").expects_continue());
        assert!(!head("POST / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expects_continue());
    }

    proptest! {
        #[test]
        fn a_combined_value_fits_into_its_head(values in proptest::collection::vec("[a-z=]{0,4}", 0..40)) {
            let fields: String = values.iter().map(|value| format!("c: {value}\r\n")).collect();
            let text = format!("GET / HTTP/1.0\r\n{fields}\r\n");
            let combined = head(&text).combined("c").map_or(0, |all| all.len());
            prop_assert!(combined < text.len());
        }

        #[test]
        fn garbage_never_panics(input in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&input);
        }

        #[test]
        fn near_requests_never_panic(input in "(GET|P|) ?[a-z:/?%*]{0,9} ?HTTP/1.[0-9]\r\n([A-Za-z:, \r\n]{0,40})\r\n\r\n") {
            if let Ok(Some((head, consumed))) = decode(input.as_bytes()) {
                prop_assert!(consumed <= input.len());
                let _ = (head.path().len(), head.query(), head.host().len(), head.keep_alive(), head.body_framing());
            }
        }

        #[test]
        fn a_cut_head_asks_for_more(cut in 0usize..64) {
            let text = b"GET /cable HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nA: b\r\n\r\n";
            let cut = cut.min(text.len() - 1);
            prop_assert!(decode(&text[..cut]).unwrap().is_none());
        }
    }
}
