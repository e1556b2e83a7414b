//! Long polling: what a request asks for, and the heads of the answers.
//!
//! A request opens a session, or it polls one whose id it has. Its body has commands of the client, one a line. Decides from
//! method and headers; `shard::http` reads the body, and the session table answers.
//!
//! Source: `contract/http_transports.md` §3.

use std::borrow::Cow;

use crate::endpoints::Response;
use crate::endpoints::broadcast::Cors;
use crate::endpoints::response::Headers;
use crate::protocol::disconnect::DisconnectReason;
use crate::protocol::poll_id::PollId;
use crate::protocol::reply::Reply;
use crate::wire::origins::AllowedOrigins;

/// The header with the id of the session: in the answer that opens it, and in each poll.
pub const POLL_ID: &str = "X-Anycable-Poll-ID";
/// The type of bodies with one JSON text a line.
const JSON_LINES: &str = "application/x-ndjson";

/// Which browsers may call.
#[derive(Debug, Default)]
pub struct PollPolicy {
    pub origins: AllowedOrigins,
    pub cors: Cors,
}

impl PollPolicy {
    /// Takes the entries of `--allowed_origins`.
    pub fn new(origins: &[String]) -> Self {
        Self {
            origins: AllowedOrigins::new(origins),
            cors: Cors::new(true, origins),
        }
    }
}

/// What a request asks for, decided from its head.
#[derive(Debug, PartialEq, Eq)]
pub enum PollRequest {
    /// Nothing: send this answer. The body, if any, has not been read.
    Refused(Response),
    /// A new session.
    Open,
    /// The messages of this session.
    Poll(PollId),
    /// The messages of a session that this server cannot have.
    Unknown,
}

/// Looks at a request. A preflight is answered here too. `poll_id` is the value of [`POLL_ID`] if it is not empty.
///
/// A browser sends the request that opens a session without asking first, and commands in it act for the user. So, unlike
/// CORS alone, another origin is refused, as for a WebSocket. Only browsers send an origin; without one there is nobody to
/// protect.
pub fn check(
    method: &str,
    poll_id: Option<&str>,
    origin: Option<&str>,
    policy: &PollPolicy,
) -> PollRequest {
    let status = match method {
        "OPTIONS" => 200,
        "POST" if origin.is_none_or(|origin| policy.origins.allows(Some(origin))) => {
            return match poll_id {
                None => PollRequest::Open,
                Some(id) => PollId::decode(id).map_or(PollRequest::Unknown, PollRequest::Poll),
            };
        }
        "POST" => 403,
        _ => 405,
    };
    let mut response = Response::empty(status).with_headers(headers(origin, policy));
    if status == 405 {
        response = response.with_headers(vec![("Allow", Cow::Borrowed("POST, OPTIONS"))]);
    }
    PollRequest::Refused(response)
}

/// The headers of each answer to a request from `origin`.
pub fn headers(origin: Option<&str>, policy: &PollPolicy) -> Headers {
    let mut headers = policy.cors.headers(origin);
    headers.extend([
        ("Access-Control-Allow-Headers", Cow::Borrowed(POLL_ID)),
        ("Access-Control-Expose-Headers", Cow::Borrowed(POLL_ID)),
        ("Cache-Control", Cow::Borrowed("no-store")),
    ]);
    headers
}

/// The answer to a poll, without its body of `body_bytes`: messages, one a line. `id` is for the client of a new session.
pub fn messages(status: u16, id: Option<String>, body_bytes: usize) -> Response {
    let mut response = Response::empty(status);
    let content_type = (body_bytes > 0).then_some(("Content-Type", Cow::Borrowed(JSON_LINES)));
    let id = id.map(|id| (POLL_ID, Cow::Owned(id)));
    response.headers.extend(content_type.into_iter().chain(id));
    response
}

/// The answer to a poll of a session that has ended, or has never been.
///
/// The clients of the extended protocol forget their session when they get a disconnect message. So none is sent when the
/// session may be continued (`may_return`): the status alone makes them connect again.
pub fn expired(may_return: bool) -> Response {
    if may_return {
        return Response::empty(401);
    }
    let message = Reply::Disconnect {
        reason: DisconnectReason::SessionExpired,
        reconnect: true,
    };
    let mut line = message.json().into_owned();
    line.push(b'\n');
    Response {
        headers: messages(401, None, line.len()).headers,
        body: Cow::Owned(line),
        ..Response::empty(401)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: PollId = PollId {
        shard: 0,
        slot: 1,
        generation: 2,
        secret: 3,
    };

    fn status(request: PollRequest) -> u16 {
        match request {
            PollRequest::Refused(response) => response.status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_opens_or_polls() {
        let policy = PollPolicy::default();
        let check = |poll_id: Option<&str>| check("POST", poll_id, None, &policy);
        assert_eq!(check(None), PollRequest::Open);
        assert_eq!(check(Some(&ID.encode())), PollRequest::Poll(ID));
        // What a JavaScript client sends that has no id.
        for id in ["undefined", "null", "é", &"x".repeat(1 << 20)] {
            assert_eq!(check(Some(id)), PollRequest::Unknown);
        }
    }

    #[test]
    fn other_methods_are_refused_and_a_preflight_is_answered() {
        let policy = PollPolicy::new(&[]);
        for method in ["GET", "HEAD", "PUT", "DELETE", "post", ""] {
            let request = check(method, None, None, &policy);
            let PollRequest::Refused(response) = request else {
                panic!("{method}");
            };
            assert_eq!(response.status, 405, "{method}");
            assert_eq!(response.header("allow"), Some("POST, OPTIONS"));
        }
        let preflight = check("OPTIONS", None, Some("https://a.com"), &policy);
        let PollRequest::Refused(response) = preflight else {
            panic!("a preflight");
        };
        assert_eq!(response.status, 200);
        let expected = [
            ("Access-Control-Allow-Origin", "*"),
            ("Access-Control-Allow-Methods", "POST, OPTIONS"),
            ("Access-Control-Expose-Headers", POLL_ID),
        ];
        for (name, value) in expected {
            assert_eq!(response.header(name), Some(value), "{name}");
        }
        let allowed = ("Access-Control-Allow-Headers", Cow::Borrowed(POLL_ID));
        assert!(response.headers.contains(&allowed));
    }

    #[test]
    fn a_browser_of_another_origin_is_refused() {
        let policy = PollPolicy::new(&["a.com".to_owned(), "*.b.com".to_owned()]);
        let check = |method: &str, origin: Option<&str>| check(method, None, origin, &policy);
        for origin in [None, Some("https://A.com"), Some("http://x.b.com")] {
            assert_eq!(check("POST", origin), PollRequest::Open, "{origin:?}");
        }
        for origin in ["https://a.com.evil", "null", "", "https://a.com:81"] {
            assert_eq!(status(check("POST", Some(origin))), 403, "{origin}");
        }
        let PollRequest::Refused(response) = check("OPTIONS", Some("https://A.com")) else {
            panic!("a preflight");
        };
        let allowed = response.header("access-control-allow-origin");
        assert_eq!(allowed, Some("https://a.com"));
    }

    #[test]
    fn an_ended_session_is_said_to_be_expired_unless_it_may_return() {
        let response = expired(false);
        let line = br#"{"type":"disconnect","reason":"session_expired","reconnect":true}"#;
        assert_eq!(
            (response.status, &response.body[..]),
            (401, &[&line[..], b"\n"].concat()[..])
        );
        assert_eq!(response.header("content-type"), Some(JSON_LINES));
        let response = expired(true);
        assert_eq!((response.status, &response.body[..]), (401, &b""[..]));
        assert_eq!(response.header("content-type"), None);
    }

    proptest! {
        #[test]
        fn every_request_has_one_meaning(
            method in "(GET|POST|OPTIONS|[A-Z]{0,8})",
            poll_id in proptest::option::of("\\PC{1,80}"),
            origin in proptest::option::of("(https?://)?[a-z.:0-9*/@]{0,20}"),
            entries in proptest::collection::vec("\\*?[a-z.]{0,8}", 0..3),
        ) {
            let policy = PollPolicy::new(&entries);
            let allowed = origin.as_deref().is_none_or(|origin| policy.origins.allows(Some(origin)));
            match check(&method, poll_id.as_deref(), origin.as_deref(), &policy) {
                PollRequest::Open => prop_assert!(method == "POST" && allowed && poll_id.is_none()),
                PollRequest::Poll(id) => {
                    prop_assert!(method == "POST" && allowed);
                    prop_assert_eq!(Some(id.encode()), poll_id);
                }
                PollRequest::Unknown => prop_assert!(method == "POST" && allowed && poll_id.is_some()),
                PollRequest::Refused(response) => match response.status {
                    200 => prop_assert_eq!(&*method, "OPTIONS"),
                    403 => prop_assert!(method == "POST" && !allowed),
                    status => prop_assert!(status == 405 && method != "POST" && method != "OPTIONS"),
                },
            }
        }
    }
}
