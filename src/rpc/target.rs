//! Where the app is: the parsed URL of the configuration, and the request heads made from it.
//!
//! Pure. The URL is the only place that may hold credentials; [`RpcTarget::display_url`] leaves them out.
//!
//! Source: `contract/rpc.md` §1–§3.

use std::{borrow::Cow, fmt::Write as _, net::IpAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use thiserror::Error;

use super::Method;
use crate::wire::percent;

/// The query of the check at the start: it tells the check from a client's call in the app's log.
const CHECK_QUERY: &str = "ringcable=start-check";

const METHODS: [Method; 3] = [Method::Connect, Method::Command, Method::Disconnect];

/// The app's address, and all parts of a request that are the same for every call.
///
/// Not `Debug`, because it holds the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct RpcTarget {
    /// True for `https`.
    pub tls: bool,
    /// Name or IP address, without brackets.
    pub host: String,
    /// Port, 80 or 443 unless given.
    pub port: u16,
    /// Base URL without credentials, query and trailing slash.
    base: String,
    /// Per [`Method`]: request line and headers up to the value of `Content-Length`.
    heads: [String; 3],
    /// The same for the check at the start.
    check_head: String,
    /// What stands between the value of `Content-Length` and the value of `X-Anycable-Meta-Sid`.
    middle: String,
}

/// What is wrong with the configured URL.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum UrlError {
    /// Neither `http://` nor `https://`, in lower case.
    #[error("expected http:// or https://")]
    Scheme,
    /// A control character somewhere.
    #[error("contains a control character")]
    Control,
    /// Nothing between the slashes.
    #[error("has no host")]
    NoHost,
    /// Characters that no host name has, or an unmatched bracket.
    #[error("invalid host {0:?}")]
    Host(String),
    /// Not a number from 1 to 65535.
    #[error("invalid port {0:?}")]
    Port(String),
    /// A `%` that is not followed by two hexadecimal digits.
    #[error("invalid percent-encoding")]
    Percent,
}

impl RpcTarget {
    /// Parses the base URL and writes the heads. `token` is sent as `Bearer`; without one, credentials in the URL are sent
    /// as `Basic`.
    ///
    /// # Errors
    /// [`UrlError`] when `url` is not an absolute `http` or `https` URL.
    pub fn parse(url: &str, token: Option<&str>) -> Result<RpcTarget, UrlError> {
        let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(UrlError::Scheme),
        };
        if rest.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(UrlError::Control);
        }
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (rest, query) = rest
            .split_once('?')
            .map_or((rest, None), |(before, query)| (before, Some(query)));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (credentials, authority) = authority
            .rsplit_once('@')
            .map_or((None, authority), |(before, after)| (Some(before), after));
        let (host, port) = split_authority(authority)?;
        let authority = authority.strip_suffix(':').unwrap_or(authority);
        let authorization = match (token, credentials) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, Some(credentials)) => Some(basic(credentials)?),
            (None, None) => None,
        };

        let path = clean_path(path)?;
        let query = query
            .map(|query| format!("?{}", escape(query)))
            .unwrap_or_default();
        let head = |method: Method, query: &str| {
            let method = method.path_segment();
            format!(
                "POST {path}/{method}{query} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: Go-http-client/1.1\r\n\
                 Content-Length: "
            )
        };
        let heads = METHODS.map(|method| head(method, &query));
        let separator = if query.is_empty() { '?' } else { '&' };
        let check_head = head(Method::Connect, &format!("{query}{separator}{CHECK_QUERY}"));
        Ok(RpcTarget {
            tls,
            port: port.unwrap_or(if tls { 443 } else { 80 }),
            base: format!("{}://{authority}{path}", if tls { "https" } else { "http" }),
            host,
            heads,
            check_head,
            middle: middle(authorization.as_deref()),
        })
    }

    /// The whole request: head and body in one buffer, so that one write sends it.
    ///
    /// Characters of `sid` that a header must not contain are left out.
    pub fn request(&self, method: Method, sid: &str, body: &[u8]) -> Vec<u8> {
        self.with_head(&self.heads[method as usize], sid, body)
    }

    /// The request of the check at the start: a Connect without a body. Its query shows what it is in the app's log. The
    /// Ruby side looks only at the path. Source: `contract/rpc.md` §1, §9.
    pub fn check_request(&self, sid: &str) -> Vec<u8> {
        self.with_head(&self.check_head, sid, b"")
    }

    fn with_head(&self, head: &str, sid: &str, body: &[u8]) -> Vec<u8> {
        let mut request =
            Vec::with_capacity(head.len() + self.middle.len() + sid.len() + body.len() + 48);
        request.extend_from_slice(head.as_bytes());
        request.extend_from_slice(itoa::Buffer::new().format(body.len()).as_bytes());
        request.extend_from_slice(self.middle.as_bytes());
        request.extend(sid.bytes().filter(|byte| !byte.is_ascii_control()));
        request.extend_from_slice(b"\r\nAccept-Encoding: gzip\r\n\r\n");
        request.extend_from_slice(body);
        request
    }

    /// The URL of `method` for logs and errors: no credentials, no query.
    pub fn display_url(&self, method: Method) -> String {
        format!("{}/{}", self.base, method.path_segment())
    }

    /// The address if the host is an IP address, which needs no lookup.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

impl Method {
    /// The last segment of the request path.
    pub fn path_segment(self) -> &'static str {
        match self {
            Method::Connect => "connect",
            Method::Command => "command",
            Method::Disconnect => "disconnect",
        }
    }
}

/// The configured URL without the parts that may be secret. For URLs that cannot be parsed.
pub fn without_secrets(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let start = url.find("://").map_or(0, |at| at + 3);
    let shown = &url[..end];
    match shown.rfind('@') {
        Some(at) if at >= start => format!("{}***{}", &shown[..start], &shown[at..]),
        _ => shown.to_owned(),
    }
}

fn middle(authorization: Option<&str>) -> String {
    let mut middle = String::from("\r\n");
    if let Some(authorization) = authorization {
        middle.push_str("Authorization: ");
        middle.push_str(authorization);
        middle.push_str("\r\n");
    }
    middle.push_str(
        "Content-Type: application/json\r\nX-Anycable-Meta-Protov: v1\r\nX-Anycable-Meta-Sid: ",
    );
    middle
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn split_authority(authority: &str) -> Result<(String, Option<u16>), UrlError> {
    let invalid = || UrlError::Host(authority.to_owned());
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or_else(invalid)?;
            if !matches!(host.parse(), Ok(IpAddr::V6(_))) {
                return Err(invalid());
            }
            match after.strip_prefix(':') {
                Some(port) => (host, port),
                None if after.is_empty() => (host, ""),
                None => return Err(invalid()),
            }
        }
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    if host.is_empty() {
        return Err(UrlError::NoHost);
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if !authority.starts_with('[') && !host.bytes().all(is_name) {
        return Err(invalid());
    }
    let port = match port {
        "" => None,
        digits => match digits.parse() {
            Ok(port) if port > 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(port),
            _ => return Err(UrlError::Port(digits.to_owned())),
        },
    };
    Ok((host.to_owned(), port))
}

fn basic(credentials: &str) -> Result<String, UrlError> {
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let plain = [&*unescape(user)?, b":", &*unescape(password)?].concat();
    Ok(format!("Basic {}", STANDARD.encode(plain)))
}

/// Resolves `.` and `..`, drops empty segments; the result is empty or starts with a slash and does not end with one.
fn clean_path(path: &str) -> Result<String, UrlError> {
    unescape(path)?;
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(escape(segment)),
        }
    }
    Ok(segments
        .iter()
        .fold(String::new(), |path, segment| path + "/" + segment))
}

/// Percent-encodes the characters that a request target must not contain; existing escapes stay.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic()
            && !matches!(
                byte,
                b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'
            )
        {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("writing to a String cannot fail");
        }
    }
    escaped
}

fn unescape(text: &str) -> Result<Cow<'_, [u8]>, UrlError> {
    percent::decode(text).map_err(|_| UrlError::Percent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `expected`: request target of `connect`, Host header, host, port.
    fn check(url: &str, expected: Result<(&str, &str, &str, u16), UrlError>) {
        let target = RpcTarget::parse(url, None);
        match (target, expected) {
            (Ok(target), Ok((path, authority, host, port))) => {
                let line = format!("POST {path} HTTP/1.1\r\nHost: {authority}\r\n");
                let head = target.request(Method::Connect, "s", b"{}");
                assert!(
                    head.starts_with(line.as_bytes()),
                    "{url}: {}",
                    String::from_utf8_lossy(&head)
                );
                assert_eq!((target.host.as_str(), target.port), (host, port), "{url}");
            }
            (target, expected) => assert_eq!(target.err(), expected.err(), "{url}"),
        }
    }

    #[test]
    fn urls_are_joined_with_the_method_as_the_reference_does() {
        check(
            "http://localhost:13000/_anycable",
            Ok(("/_anycable/connect", "localhost:13000", "localhost", 13000)),
        );
        check(
            "http://app/_anycable/",
            Ok(("/_anycable/connect", "app", "app", 80)),
        );
        check("http://app", Ok(("/connect", "app", "app", 80)));
        check("http://app/", Ok(("/connect", "app", "app", 80)));
        check("http://app:", Ok(("/connect", "app", "app", 80)));
        check("http://app/a/../b", Ok(("/b/connect", "app", "app", 80)));
        check(
            "http://app/../a//./b",
            Ok(("/a/b/connect", "app", "app", 80)),
        );
        check(
            "http://app/x?token=1",
            Ok(("/x/connect?token=1", "app", "app", 80)),
        );
        check(
            "http://app?token=1#part",
            Ok(("/connect?token=1", "app", "app", 80)),
        );
        check(
            "https://app.example",
            Ok(("/connect", "app.example", "app.example", 443)),
        );
        check(
            "https://app:8443/é x",
            Ok(("/%C3%A9%20x/connect", "app:8443", "app", 8443)),
        );
        check(
            "http://[::1]:3000/a",
            Ok(("/a/connect", "[::1]:3000", "::1", 3000)),
        );
        check("http://[::1]", Ok(("/connect", "[::1]", "::1", 80)));
        check("http://u:p@app:1", Ok(("/connect", "app:1", "app", 1)));
    }

    #[test]
    fn urls_that_cannot_be_called_are_refused() {
        check("HTTP://app", Err(UrlError::Scheme));
        check("localhost:50051", Err(UrlError::Scheme));
        check("", Err(UrlError::Scheme));
        check("http://", Err(UrlError::NoHost));
        check("http:///x", Err(UrlError::NoHost));
        check("http://:80", Err(UrlError::NoHost));
        check("http://a b", Err(UrlError::Host("a b".into())));
        check("http://::1", Err(UrlError::NoHost));
        check("http://[::1", Err(UrlError::Host("[::1".into())));
        check("http://[app]", Err(UrlError::Host("[app]".into())));
        check("http://[::1]x", Err(UrlError::Host("[::1]x".into())));
        check("http://app:70000", Err(UrlError::Port("70000".into())));
        check("http://app:0", Err(UrlError::Port("0".into())));
        check("http://app:+1", Err(UrlError::Port("+1".into())));
        check("http://app/a\r\nX: y", Err(UrlError::Control));
        check("http://app/%zz", Err(UrlError::Percent));
        check("http://a%2:b@app", Err(UrlError::Percent));
    }

    #[test]
    fn the_request_is_the_one_of_the_contract() {
        let token = "4b7da2749fe2a4534cec0d2acbd16277a800cf2acd31158ac4edae4a62a8f18d";
        let target = RpcTarget::parse("http://localhost:13000/_anycable", Some(token)).unwrap();
        let request =
            String::from_utf8(target.request(Method::Command, "req-1", b"{\"a\":1}")).unwrap();
        let expected = [
            "POST /_anycable/command HTTP/1.1",
            "Host: localhost:13000",
            "User-Agent: Go-http-client/1.1",
            "Content-Length: 7",
            &format!("Authorization: Bearer {token}"),
            "Content-Type: application/json",
            "X-Anycable-Meta-Protov: v1",
            "X-Anycable-Meta-Sid: req-1",
            "Accept-Encoding: gzip",
            "",
            "{\"a\":1}",
        ];
        assert_eq!(request, expected.join("\r\n"));
    }

    #[test]
    fn credentials_in_the_url_are_sent_unless_there_is_a_token_and_are_never_shown() {
        let url = "http://us%3Aer:p%40ss@app/x?token=1";
        let basic = RpcTarget::parse(url, None).unwrap();
        let request = String::from_utf8(basic.request(Method::Connect, "", b"")).unwrap();
        // base64 of "us:er:p@ss"
        assert!(
            request.contains("\r\nAuthorization: Basic dXM6ZXI6cEBzcw==\r\n"),
            "{request}"
        );
        assert_eq!(basic.display_url(Method::Connect), "http://app/x/connect");
        let bearer = RpcTarget::parse(url, Some("T")).unwrap();
        let request = String::from_utf8(bearer.request(Method::Connect, "", b"")).unwrap();
        assert!(
            request.contains("\r\nAuthorization: Bearer T\r\n") && !request.contains("Basic"),
            "{request}"
        );
    }

    #[test]
    fn a_refused_url_is_shown_without_its_secrets() {
        let shown = [
            "http://u:p@a b/x?t=1",
            "u:p@app",
            "http://app#x",
            "ftp://a?b@c",
        ]
        .map(without_secrets);
        assert_eq!(
            shown,
            ["http://***@a b/x", "***@app", "http://app", "ftp://a"]
        );
    }

    #[test]
    fn a_sid_cannot_add_a_header() {
        let target = RpcTarget::parse("http://app", None).unwrap();
        let request =
            String::from_utf8(target.request(Method::Connect, "a\r\nEvil: 1\0", b"")).unwrap();
        assert!(
            request.contains("\r\nX-Anycable-Meta-Sid: aEvil: 1\r\nAccept-Encoding: gzip\r\n\r\n"),
            "{request}"
        );
    }

    proptest! {
        #[test]
        fn no_url_panics_or_adds_a_line(rest in "\\PC{0,40}", sid in "\\PC{0,20}") {
            if let Ok(target) = RpcTarget::parse(&format!("http://{rest}"), None) {
                let request = target.request(Method::Disconnect, &sid, b"");
                let text = String::from_utf8_lossy(&request);
                prop_assert_eq!(text.matches("\r\n").count(), text.matches('\n').count());
                prop_assert!((9..=10).contains(&text.matches("\r\n").count()));
                prop_assert_eq!(text.lines().next().unwrap_or("").split(' ').count(), 3);
            }
        }
    }
}
