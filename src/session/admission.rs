//! What a request says about the client that wants a session: its id, the env for the app, its token and its ping settings.
//!
//! These rules hold for every transport, WebSocket or not. Pure: a part of the request that is ignored is returned as a
//! [`Flaw`], which the shard logs. Before this, the transport's own rules and [`AllowedOrigins::allows_all`] decide whether
//! the request may become a session. Called by `shard::http`.
//!
//! [`AllowedOrigins::allows_all`]: crate::wire::origins::AllowedOrigins::allows_all

use std::borrow::Cow;
use std::net::IpAddr;

use crate::auth::jwt;
use crate::config::{Config, JwtConfig, PingPrecision};
use crate::protocol::request_env::{filter_cookies, request_url};
use crate::protocol::rpc::encode_env_prefix;
use crate::protocol::sid::SID_BYTES_MAX;
use crate::session::Credentials;
use crate::wire::http_request::RequestHead;
use crate::wire::query::{BadQuery, query_param_last};

/// What a session is opened with.
#[derive(Debug, Default)]
pub struct Admission {
    /// The id that the client or a proxy has chosen, or a random one.
    pub sid: String,
    /// The id of the session that the client wants to continue. Source: contract/extended.md §1.
    pub earlier: Option<String>,
    /// url and headers of the RPC env, as the calls of this session send them.
    pub env: Box<str>,
    pub credentials: Credentials,
    /// `None`: the server's default.
    pub ping_interval_secs: Option<i64>,
    /// `None`: the server's default.
    pub ping_precision: Option<PingPrecision>,
    /// The parts of the request that were ignored. The client is served all the same.
    pub flaws: Vec<Flaw>,
}

/// A part of a request that cannot be used as it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Flaw {
    /// An `X-Request-ID` of more than `SID_BYTES_MAX` bytes: a random session id is used instead.
    RequestIdTooLong { bytes: usize },
    /// `?pi=` with a value that is not a whole number: the default is used.
    PingInterval(String),
    /// The query cannot be searched for a token. The session is refused when it is authenticated.
    Query(BadQuery),
}

impl Admission {
    /// Reads `head`, which came from `peer`. `token` is a token that the transport itself carried, for example in a
    /// sub-protocol. `new_sid` makes the session id if the client has not chosen one.
    pub fn new(
        head: &RequestHead,
        token: Option<&str>,
        peer: IpAddr,
        config: &Config,
        new_sid: impl FnOnce() -> String,
    ) -> Self {
        let mut flaws = Vec::new();
        let query = head.query().unwrap_or("");
        Self {
            sid: requested_sid(head, &mut flaws).unwrap_or_else(new_sid),
            earlier: earlier_sid(head, query),
            ping_interval_secs: ping_interval_secs(query, &mut flaws),
            ping_precision: query_param_last(query, "ptp").map(|text| match &*text {
                "ms" => PingPrecision::Milliseconds,
                "ns" => PingPrecision::Nanoseconds,
                _ => PingPrecision::Seconds,
            }),
            env: encode_env(head, token, peer, config),
            credentials: credentials(head, config.auth.jwt.as_ref(), &mut flaws),
            flaws,
        }
    }
}

/// Source: contract/websocket.md §3.3; the reference has no limit.
fn requested_sid(head: &RequestHead, flaws: &mut Vec<Flaw>) -> Option<String> {
    let id = head.filled("x-request-id")?;
    if id.len() > SID_BYTES_MAX {
        flaws.push(Flaw::RequestIdTooLong { bytes: id.len() });
        return None;
    }
    Some(id.to_owned())
}

/// The header wins over the query. An id that no session can have is none.
fn earlier_sid(head: &RequestHead, query: &str) -> Option<String> {
    let in_header = head.filled("x-anycable-restore-sid").map(str::to_owned);
    let sid = in_header.or_else(|| Some(query_param_last(query, "sid")?.into_owned()));
    sid.filter(|sid| !sid.is_empty() && sid.len() <= SID_BYTES_MAX)
}

fn ping_interval_secs(query: &str, flaws: &mut Vec<Flaw>) -> Option<i64> {
    let text = query_param_last(query, "pi")?;
    let secs = text.parse().ok();
    if secs.is_none() {
        flaws.push(Flaw::PingInterval(text.into_owned()));
    }
    secs
}

/// url and headers of the RPC env. Source: contract/rpc.md §4.1, §4.2.
fn encode_env(head: &RequestHead, token: Option<&str>, peer: IpAddr, config: &Config) -> Box<str> {
    let url = request_url(config.server.tls.is_some(), head.host(), head.target());
    let mut headers: Vec<(&str, Cow<'_, str>)> =
        vec![("REMOTE_ADDR", Cow::Owned(peer.to_canonical().to_string()))];
    let token_header = config.auth.jwt.as_ref().map(jwt_header);
    let forwarded = config.rpc.headers.iter().filter(|name| *name != "host");
    for name in forwarded {
        let value = if token_header.as_ref() == Some(name) {
            head.filled(name).map(Cow::Borrowed)
        } else {
            head.combined(name)
        };
        let Some(value) = value else {
            continue;
        };
        if name != "cookie" || config.rpc.cookies.is_empty() {
            headers.push((name, value));
        } else if let Some(cookies) = filter_cookies(&value, &config.rpc.cookies) {
            headers.push((name, Cow::Owned(cookies)));
        }
    }
    if let Some(name) = &token_header {
        let token = head.filled(name).or(token);
        if let Some(token) = token.filter(|_| !config.rpc.headers.contains(name)) {
            headers.push((name, Cow::Borrowed(token)));
        }
    }
    encode_env_prefix(&url, &mut headers)
}

/// The header in which a token may come. It is not a list: of several lines, the first that is not empty counts.
fn jwt_header(config: &JwtConfig) -> String {
    format!("x-{}", config.param.to_lowercase())
}

/// The token that the client sent, if JWT is on. Source: contract/auth_streams.md §3.
fn credentials(
    head: &RequestHead,
    config: Option<&JwtConfig>,
    flaws: &mut Vec<Flaw>,
) -> Credentials {
    let Some(config) = config else {
        return Credentials::default();
    };
    let header = head.filled(&jwt_header(config));
    let subprotocol = head.combined("sec-websocket-protocol");
    match jwt::find_token(header, subprotocol.as_deref(), head.query(), &config.param) {
        Ok(token) => Credentials {
            token,
            bad_query: false,
        },
        Err(error) => {
            flaws.push(Flaw::Query(error));
            Credentials {
                token: None,
                bad_query: true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Startup, load};
    use crate::wire::http_head::HeadLimits;

    const JWT: &str = "--jwt_secret=0123456789abcdef";

    fn config(args: &[&str]) -> Config {
        let args: Vec<String> = ["--rpc_host=http://app"]
            .iter()
            .chain(args)
            .map(|arg| (*arg).to_owned())
            .collect();
        match load(&args, &[]) {
            Ok(Startup::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn admit_from(
        peer: &str,
        args: &[&str],
        target: &str,
        fields: &str,
        token: Option<&str>,
    ) -> Admission {
        let text = format!("GET {target} HTTP/1.1\r\nHost: chat\r\n{fields}\r\n");
        let (head, _) = RequestHead::decode(text.as_bytes(), &HeadLimits::default())
            .expect("a good head")
            .expect("a whole head");
        let peer = peer.parse().expect("an address");
        Admission::new(&head, token, peer, &config(args), random_sid)
    }

    fn random_sid() -> String {
        "random".to_owned()
    }

    fn admit(args: &[&str], target: &str, fields: &str) -> Admission {
        admit_from("10.0.0.1", args, target, fields, None)
    }

    #[test]
    fn a_request_id_is_the_session_id_unless_it_is_too_long() {
        fn check(fields: &str, expected: Option<&str>, flaws: &[Flaw]) {
            let admission = admit(&[], "/cable", fields);
            let random = random_sid();
            assert_eq!(admission.sid, expected.unwrap_or(&random), "{fields}");
            assert_eq!(admission.flaws, flaws, "{fields}");
        }
        check("", None, &[]);
        check("X-Request-ID:\r\n", None, &[]);
        check("X-Request-ID: a-1\r\n", Some("a-1"), &[]);
        check("x-request-id:\r\nX-Request-ID: b\r\n", Some("b"), &[]);
        let longest = "x".repeat(SID_BYTES_MAX);
        check(&format!("X-Request-ID: {longest}\r\n"), Some(&longest), &[]);
        let flaw = Flaw::RequestIdTooLong {
            bytes: SID_BYTES_MAX + 1,
        };
        check(&format!("X-Request-ID: {longest}x\r\n"), None, &[flaw]);
    }

    #[test]
    fn the_query_says_how_the_client_wants_to_be_pinged() {
        fn check(target: &str, secs: Option<i64>, precision: Option<PingPrecision>, flaw: &str) {
            let admission = admit(&[], target, "");
            assert_eq!(admission.ping_interval_secs, secs, "{target}");
            assert_eq!(admission.ping_precision, precision, "{target}");
            let flaws = [Flaw::PingInterval(flaw.to_owned())];
            let flaws = if flaw.is_empty() { &[][..] } else { &flaws };
            assert_eq!(admission.flaws, flaws, "{target}");
        }
        use PingPrecision as P;
        check("/cable", None, None, "");
        check("/cable?pi=5", Some(5), None, "");
        check("/cable?pi=-1&pi=7", Some(7), None, "");
        check("/cable?pi=-1", Some(-1), None, "");
        check("/cable?pi=1.5", None, None, "1.5");
        check("/cable?pi=5&pi=no%20number", None, None, "no number");
        check("/cable?ptp=ms", None, Some(P::Milliseconds), "");
        check("/cable?ptp=ns&pi=1", Some(1), Some(P::Nanoseconds), "");
        check("/cable?ptp=s", None, Some(P::Seconds), "");
        check("/cable?ptp=MS", None, Some(P::Seconds), "");
        check("/cable?ptp=", None, Some(P::Seconds), "");
    }

    #[track_caller]
    fn check_env(admission: &Admission, url: &str, headers: &str) {
        let expected = format!(r#""url":"{url}","headers":{{{headers}}}"#);
        assert_eq!(&*admission.env, expected);
    }

    #[test]
    fn the_app_is_told_url_address_and_the_headers_that_it_wants() {
        let fields = "Cookie: a=1; b=2\r\nX-Tenant: t\r\nX-Tenant: u\r\n";
        let address = r#""REMOTE_ADDR":"10.0.0.1""#;
        let check = |args: &[&str], target: &str, url: &str, headers: &str| {
            let headers = format!("{address}{headers}");
            check_env(&admit(args, target, fields), url, &headers);
        };
        let url = "http://chat/cable?x=1";
        let both = r#","cookie":"a=1; b=2""#;
        check(&[], "/cable?x=1", url, both);
        check(&[], "http://other/cable", "http://other/cable", both);
        let tls = ["--ssl_cert=c", "--ssl_key=k"];
        check(&tls, "/cable?x=1", "https://chat/cable?x=1", both);
        check(&["--headers=x-none"], "/cable?x=1", url, "");
        check(&["--headers=Host"], "/cable?x=1", url, "");
        let tenant = r#","x-tenant":"t, u""#;
        check(&["--headers=X-Tenant"], "/cable?x=1", url, tenant);
        let b = r#","cookie":"b=2""#;
        check(&["--proxy-cookies=b"], "/cable?x=1", url, b);
        check(&["--proxy-cookies=c"], "/cable?x=1", url, "");
    }

    #[test]
    fn an_ipv4_client_of_an_ipv6_listener_has_its_ipv4_address() {
        let check = |peer: &str, expected: &str| {
            let admission = admit_from(peer, &[], "/cable", "", None);
            let headers = format!(r#""REMOTE_ADDR":"{expected}""#);
            check_env(&admission, "http://chat/cable", &headers);
        };
        check("::ffff:192.0.2.7", "192.0.2.7");
        check("2001:db8::1", "2001:db8::1");
    }

    #[test]
    fn the_app_gets_the_token_once() {
        let address = r#""REMOTE_ADDR":"10.0.0.1""#;
        let check = |args: &[&str], fields: &str, token: Option<&str>, headers: &str| {
            let admission = admit_from("10.0.0.1", args, "/cable", fields, token);
            let headers = format!("{address}{headers}");
            check_env(&admission, "http://chat/cable", &headers);
        };
        let header = "X-JID:\r\nX-JID: one\r\nX-JID: two\r\n";
        check(&[], header, Some("three"), "");
        check(&[JWT], "", None, "");
        check(&[JWT], header, None, r#","x-jid":"one""#);
        check(&[JWT], header, Some("three"), r#","x-jid":"one""#);
        check(&[JWT], "", Some("three"), r#","x-jid":"three""#);
        let forwards = [JWT, "--headers=x-jid"];
        check(&forwards, header, None, r#","x-jid":"one""#);
        check(&forwards, "", Some("three"), "");
        let renamed = [JWT, "--jwt_param=Tok"];
        check(&renamed, "X-Tok: t\r\n", None, r#","x-tok":"t""#);
    }

    #[test]
    fn a_token_is_looked_for_only_with_jwt() {
        fn check(args: &[&str], target: &str, fields: &str, expected: Option<&str>) {
            let admission = admit(args, target, fields);
            let Credentials { token, bad_query } = admission.credentials;
            assert_eq!(token.as_deref(), expected, "{args:?} {target} {fields}");
            assert!(!bad_query);
            assert_eq!(admission.flaws, []);
        }
        let subprotocol =
            "Sec-WebSocket-Protocol: foo\r\nSec-WebSocket-Protocol: anycable-token.s\r\n";
        check(&[], "/cable?jid=q;", subprotocol, None);
        check(&[JWT], "/cable", "", None);
        check(&[JWT], "/cable?jid=q", "", Some("q"));
        check(&[JWT], "/cable?jid=q", subprotocol, Some("s"));
        check(&[JWT], "/cable?jid=q", "X-JID: h\r\n", Some("h"));
        check(&[JWT, "--jwt_param=Tok"], "/cable?Tok=q", "", Some("q"));
    }

    #[test]
    fn a_query_that_cannot_be_read_may_have_a_token_in_it() {
        let admission = admit(&[JWT], "/cable?a;b", "");
        assert!(admission.credentials.bad_query);
        assert_eq!(admission.flaws, [Flaw::Query(BadQuery::Semicolon)]);
        // The query is not searched when the token is in a header.
        let admission = admit(&[JWT], "/cable?a;b", "X-JID: h\r\n");
        assert!(!admission.credentials.bad_query);
        assert_eq!(admission.flaws, []);
    }
}
