//! What the app gets to know about the upgrade request: its URL and its cookies.
//!
//! Two rules, without any HTTP parsing. `session` calls this when a connection is made, and passes the result to
//! [`crate::protocol::rpc::encode_env_prefix`].
//!
//! Source: `contract/rpc.md` §4.1 and §4.3.

/// Keeps the cookies in `names` (all when it is empty). `None` when no cookie is left: then the header is not sent.
///
/// Names are compared exactly, after trimming both sides; a value may contain `=`. The reference drops all cookies but the
/// first of an ordinary browser header; this server does not.
pub fn filter_cookies(header: &str, names: &[String]) -> Option<String> {
    if names.is_empty() {
        return (!header.is_empty()).then(|| header.to_owned());
    }
    let is_kept = |cookie: &&str| {
        cookie
            .split_once('=')
            .is_some_and(|(name, _)| names.iter().any(|kept| kept.trim() == name.trim_end()))
    };
    let kept: Vec<&str> = header.split(';').map(str::trim).filter(is_kept).collect();
    (!kept.is_empty()).then(|| kept.join("; "))
}

/// The URL that the app sees. `host` is the Host header as sent (empty when missing), `target` the request target.
///
/// `tls` is true only when this server itself ends TLS; forwarding headers are ignored. A target in absolute form is used as
/// it is.
pub fn request_url(tls: bool, host: &str, target: &str) -> String {
    if is_absolute(target) {
        return target.to_owned();
    }
    let scheme = if tls { "https://" } else { "http://" };
    [scheme, host, target].concat()
}

fn is_absolute(target: &str) -> bool {
    target.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_kept_by_name_wherever_they_stand() {
        fn check(header: &str, names: &[&str], expected: Option<&str>) {
            let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            assert_eq!(
                filter_cookies(header, &names).as_deref(),
                expected,
                "{header:?} {names:?}"
            );
        }
        let header = "a=1; b=2; c=x=y";
        check(header, &[], Some(header));
        check("", &[], None);
        check(header, &["a"], Some("a=1"));
        check(header, &["b"], Some("b=2"));
        check(header, &["c"], Some("c=x=y"));
        check(header, &["a", " b"], Some("a=1; b=2"));
        check(header, &["a", "b", "c"], Some(header));
        check(header, &["A"], None);
        check(header, &["x"], None);
        check(header, &[""], None);
        check("flag; a=1;", &["flag", "a"], Some("a=1"));
        check("a =1;a=2", &["a"], Some("a =1; a=2"));
        check(
            "session_token=eyJf==--0af",
            &["session_token"],
            Some("session_token=eyJf==--0af"),
        );
    }

    #[test]
    fn the_url_is_what_the_client_asked_this_server_for() {
        fn check(tls: bool, host: &str, target: &str, expected: &str) {
            assert_eq!(request_url(tls, host, target), expected);
        }
        check(
            false,
            "localhost:18080",
            "/cable",
            "http://localhost:18080/cable",
        );
        check(
            true,
            "Chat.example",
            "/cable?a=1&b=%20",
            "https://Chat.example/cable?a=1&b=%20",
        );
        check(false, "", "/cable", "http:///cable");
        check(true, "here", "http://other/cable", "http://other/cable");
        check(
            false,
            "here",
            "/cable?to=http://other",
            "http://here/cable?to=http://other",
        );
        check(false, "here", "://x", "http://here://x");
    }
}
