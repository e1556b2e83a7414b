//! Which `Origin` values may open a WebSocket (`--allowed_origins`).
//!
//! Compares text only. Called by `handshake`.
//!
//! Source: `contract/websocket.md` §3.2, with its recommendations: entries are trimmed and empty ones ignored.

/// The configured list. If it is empty, every client may connect.
#[derive(Debug, Clone, Default)]
pub struct AllowedOrigins {
    entries: Vec<Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    /// `host[:port]` is exactly this.
    Exact(String),
    /// `host[:port]` ends with this; written with a leading `*`.
    Suffix(String),
}

impl AllowedOrigins {
    /// Takes the entries of the option as configured.
    pub fn new(entries: &[String]) -> Self {
        let entries = entries
            .iter()
            .map(|entry| entry.trim().to_lowercase())
            .filter(|entry| !entry.is_empty())
            .map(|entry| match entry.strip_prefix('*') {
                Some(suffix) => Entry::Suffix(suffix.to_owned()),
                None => Entry::Exact(entry),
            })
            .collect();
        AllowedOrigins { entries }
    }

    /// True when each of the `Origin` lines of a request is allowed.
    pub fn allows_all<'a>(&self, mut origins: impl Iterator<Item = &'a str>) -> bool {
        match origins.next() {
            Some(first) => {
                self.allows(Some(first)) && origins.all(|origin| self.allows(Some(origin)))
            }
            None => self.allows(None),
        }
    }

    /// True when a request with this `Origin` field is allowed. Without the field, only an empty list or a bare `*` allows
    /// it.
    pub fn allows(&self, origin: Option<&str>) -> bool {
        if self.entries.is_empty() {
            return true;
        }
        let origin = origin.unwrap_or("").to_lowercase();
        let Some(host) = url_host(&origin) else {
            return false;
        };
        self.entries.iter().any(|entry| match entry {
            Entry::Exact(exact) => host == exact,
            Entry::Suffix(suffix) => host.ends_with(suffix.as_str()),
        })
    }
}

/// The `host[:port]` of a URL as Go's `url.Parse` finds it: empty when the URL has none, `None` when Go cannot parse it.
fn url_host(url: &str) -> Option<&str> {
    if url.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
        return None;
    }
    let after_scheme = match url.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => rest,
        Some(("", _)) => return None,
        _ => url,
    };
    let Some(after_slashes) = after_scheme.strip_prefix("//") else {
        return Some("");
    };
    let authority_end = after_slashes
        .find(['/', '?', '#'])
        .unwrap_or(after_slashes.len());
    let authority = &after_slashes[..authority_end];
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    is_host(host).then_some(host)
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

/// A name or a bracketed address, with an optional numeric port.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((address, "")) => (address, ""),
            Some((address, port)) if port.starts_with(':') => (address, &port[1..]),
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, _)) if name.contains(['[', ']']) => return false,
            Some((name, port)) => (name, port),
            None => (host, ""),
        },
    };
    port.bytes().all(|byte| byte.is_ascii_digit())
        && !name
            .bytes()
            .any(|byte| matches!(byte, b' ' | b'"' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(list: &str, origin: Option<&str>, expected: bool) {
        let entries: Vec<String> = list.split(',').map(str::to_owned).collect();
        assert_eq!(
            AllowedOrigins::new(&entries).allows(origin),
            expected,
            "{list:?} {origin:?}"
        );
    }

    #[test]
    fn an_empty_list_takes_everybody() {
        assert!(AllowedOrigins::new(&[]).allows(None));
        check("", Some("http://evil.example"), true);
        check(" , ", Some("::bad::"), true);
    }

    #[test]
    fn every_origin_line_must_be_allowed() {
        let list = AllowedOrigins::new(&["a.example".to_owned(), "b.example".to_owned()]);
        let check = |lines: &[&str], expected: bool| {
            assert_eq!(
                list.allows_all(lines.iter().copied()),
                expected,
                "{lines:?}"
            );
        };
        check(&["http://a.example"], true);
        check(&["http://a.example", "http://b.example"], true);
        check(&["http://a.example", "http://evil.example"], false);
        check(&["http://evil.example", "http://a.example"], false);
        check(&["http://a.example", ""], false);
        check(&[], false);
        assert!(AllowedOrigins::new(&[]).allows_all([].into_iter()));
    }

    #[test]
    fn entries_are_compared_with_host_and_port() {
        check("example.com", Some("http://example.com"), true);
        check("example.com", Some("HTTPS://EXAMPLE.com/path"), true);
        check("Example.COM", Some("http://example.com"), true);
        check("example.com", Some("http://example.com:3000"), false);
        check("example.com:3000", Some("http://example.com:3000"), true);
        check("example.com", Some("http://www.example.com"), false);
        check("a.com, b.com", Some("http://b.com"), true);
        check("a.com,", Some("http://c.com"), false);
        check("[::1]:80", Some("http://[::1]:80"), true);
    }

    #[test]
    fn a_leading_star_compares_the_end() {
        check("*.example.com", Some("http://www.example.com"), true);
        check("*.example.com", Some("http://example.com"), false);
        check("*example.com", Some("http://badexample.com"), true);
        check(
            "*.example.com:*",
            Some("http://www.example.com:3000"),
            false,
        );
        check("*", Some("http://anything:1"), true);
        check("*", None, true);
        check("*", Some("null"), true);
        check("*", Some("http://a:b"), false);
        check("*", Some("http://a b"), false);
    }

    #[test]
    fn origins_without_a_host_are_refused() {
        for origin in [
            None,
            Some(""),
            Some("null"),
            Some("file://"),
            Some("example.com"),
            Some("http://[::1"),
            Some(":x"),
        ] {
            check("example.com", origin, false);
        }
    }

    proptest! {
        #[test]
        fn any_origin_is_compared_without_panic(origin in ".*") {
            check("only.example", Some(&origin), false);
        }
    }
}
