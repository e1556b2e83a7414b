//! The endpoint that takes the app's broadcasts: who may post, and the answers.
//!
//! Decides from method and headers whether the body is worth reading. It does not read the body, parse it or deliver it:
//! `shard::http` does that between [`check`] and [`accepted`]. The API's publish endpoint uses the same functions.
//!
//! Every answer of the endpoint needs [`cors_headers`]: [`check`] adds them to its own answers, the caller adds them to the
//! others with [`Response::with_headers`].

use std::borrow::Cow;

use crate::endpoints::Response;
use crate::endpoints::bearer::authorised;
use crate::endpoints::response::Headers;
use crate::wire::origins::AllowedOrigins;

/// The largest body of one broadcast request, in bytes, after chunk decoding.
///
/// The reference has no limit, so there one request can take all memory. Larger bodies get the answer [`body_too_large`]. A
/// thousand messages of the largest client message size fit into this limit.
pub const BROADCAST_BODY_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Who may post and which browsers may call.
#[derive(Debug, Default)]
pub struct BroadcastPolicy {
    /// The key; `None` = no authorization.
    pub token: Option<String>,
    pub cors: Cors,
}

/// CORS of an endpoint. It is advice to browsers and no access control: a request of another origin is still served.
#[derive(Debug, Default)]
pub enum Cors {
    /// No CORS headers; `OPTIONS` counts as a wrong method.
    #[default]
    Off,
    /// Switched on (`--http_broadcast_cors`, `api.cors_headers`) with an empty list of hosts.
    AnyOrigin,
    /// Switched on with hosts (`--allowed_origins`, `api.cors_hosts`): the rule that upgrades use as well.
    Origins(AllowedOrigins),
}

/// What to do with a request, decided from its head.
#[derive(Debug, PartialEq, Eq)]
pub enum BroadcastVerdict {
    /// Send this answer. The body, if any, has not been read. With `Expect: 100-continue` no 100 may be sent, and the
    /// connection closes after the answer.
    Refuse(Response),
    /// Authorised: send the 100 if one is expected, read the body, deliver it, answer [`accepted`].
    ReadBody,
}

/// Checks method, then token. A preflight is answered here too.
///
/// Source: `contract/broadcast.md` §3 (rows 1 to 3), in this order: a wrong method is 422 even without a token.
pub fn check(
    method: &str,
    authorization: Option<&str>,
    origin: Option<&str>,
    policy: &BroadcastPolicy,
) -> BroadcastVerdict {
    let status = match method {
        "OPTIONS" if policy.cors.is_on() => 200,
        "POST" if authorised(authorization, policy.token.as_deref()) => {
            return BroadcastVerdict::ReadBody;
        }
        "POST" => 401,
        _ => 422,
    };
    BroadcastVerdict::Refuse(Response::empty(status).with_headers(cors_headers(origin, policy)))
}

/// The publication is in the inbox of every shard that may have a listener. A body that is no publication at all gets this
/// answer as well.
///
/// Rails treats every status but 201 as an error, and reads nothing else of the answer.
pub fn accepted() -> Response {
    Response::empty(201)
}

/// The body ended too early or its framing is wrong. The server cannot tell where the next request starts, so the connection
/// closes.
pub fn unreadable_body() -> Response {
    Response::empty(422).closing()
}

/// The body exceeds [`BROADCAST_BODY_BYTES_MAX`]. The rest of it is not read, so the connection closes.
pub fn body_too_large() -> Response {
    Response::empty(413).closing()
}

/// The CORS headers of an answer to a request from `origin`; none when CORS is off.
pub fn cors_headers(origin: Option<&str>, policy: &BroadcastPolicy) -> Headers {
    policy.cors.headers(origin)
}

impl Cors {
    /// `on` is the switch, `origins` the entries of the list of hosts.
    pub fn new(on: bool, origins: &[String]) -> Self {
        match (on, origins.is_empty()) {
            (false, _) => Cors::Off,
            (true, true) => Cors::AnyOrigin,
            (true, false) => Cors::Origins(AllowedOrigins::new(origins)),
        }
    }

    fn is_on(&self) -> bool {
        !matches!(self, Cors::Off)
    }

    /// The headers of an answer to a request from `origin`; none when CORS is off.
    ///
    /// Source: `contract/broadcast.md` §3, "CORS"; `contract/http_transports.md` §1.1.
    pub fn headers(&self, origin: Option<&str>) -> Headers {
        let allowed_origin = match self {
            Cors::Off => return Headers::new(),
            Cors::AnyOrigin => Some(Cow::Borrowed("*")),
            Cors::Origins(allowed) => origin
                .filter(|origin| allowed.allows(Some(origin)))
                .map(|origin| Cow::Owned(origin.to_lowercase())),
        };
        let mut headers = Headers::with_capacity(4);
        headers.extend(allowed_origin.map(|origin| ("Access-Control-Allow-Origin", origin)));
        headers.extend([
        ("Access-Control-Allow-Methods", Cow::Borrowed("POST, OPTIONS")),
        ("Access-Control-Allow-Credentials", Cow::Borrowed("true")),
        (
            "Access-Control-Allow-Headers",
            Cow::Borrowed(
                "Origin, X-Requested-With, X-Request-ID, Content-Type, Accept, X-CSRF-Token, Authorization",
            ),
        ),
    ]);
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(token: Option<&str>, cors: Cors) -> BroadcastPolicy {
        BroadcastPolicy {
            token: token.map(str::to_owned),
            cors,
        }
    }

    fn only_example_com() -> Cors {
        Cors::new(true, &["example.com".to_owned()])
    }

    /// `expected` is a status, or 0 for "read the body".
    #[track_caller]
    fn check_status(
        method: &str,
        authorization: Option<&str>,
        policy: &BroadcastPolicy,
        expected: u16,
    ) {
        match check(method, authorization, None, policy) {
            BroadcastVerdict::ReadBody => assert_eq!(0, expected, "{method} {authorization:?}"),
            BroadcastVerdict::Refuse(response) => {
                assert_eq!(response.status, expected, "{method} {authorization:?}");
                assert!(response.body.is_empty());
            }
        }
    }

    #[test]
    fn the_method_is_checked_before_the_token() {
        let secured = policy(Some("K"), Cors::Off);
        check_status("GET", None, &secured, 422);
        check_status("GET", Some("Bearer K"), &secured, 422);
        check_status("HEAD", Some("Bearer K"), &secured, 422);
        check_status("PUT", Some("Bearer K"), &secured, 422);
        check_status("post", Some("Bearer K"), &secured, 422);
        check_status("OPTIONS", None, &secured, 422);
        check_status("", None, &secured, 422);
        check_status("POST", None, &secured, 401);
        check_status("POST", Some("bearer K"), &secured, 401);
        check_status("POST", Some("Bearer k"), &secured, 401);
        check_status("POST", Some("Bearer K"), &secured, 0);
    }

    #[test]
    fn without_a_token_every_post_is_read() {
        let open = policy(None, Cors::Off);
        check_status("POST", None, &open, 0);
        check_status("POST", Some("Bearer x"), &open, 0);
        check_status("GET", None, &open, 422);
    }

    #[test]
    fn a_preflight_is_200_without_a_token_when_cors_is_on() {
        check_status("OPTIONS", None, &policy(Some("K"), Cors::AnyOrigin), 200);
        check_status("OPTIONS", None, &policy(Some("K"), only_example_com()), 200);
        check_status("GET", None, &policy(Some("K"), Cors::AnyOrigin), 422);
        check_status("POST", None, &policy(Some("K"), Cors::AnyOrigin), 401);
    }

    #[track_caller]
    fn check_cors(origin: Option<&str>, cors: Cors, expected: &[(&str, &str)]) {
        let policy = policy(Some("K"), cors);
        let headers = cors_headers(origin, &policy);
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_ref()))
            .collect();
        assert_eq!(headers, expected, "{origin:?}");
        let BroadcastVerdict::Refuse(refusal) = check("POST", None, origin, &policy) else {
            panic!("a POST without the key must be refused");
        };
        let on_refusal: Vec<_> = refusal
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_ref()))
            .collect();
        assert_eq!(on_refusal, expected, "every answer carries them");
    }

    const ALWAYS: [(&str, &str); 3] = [
        ("Access-Control-Allow-Methods", "POST, OPTIONS"),
        ("Access-Control-Allow-Credentials", "true"),
        (
            "Access-Control-Allow-Headers",
            "Origin, X-Requested-With, X-Request-ID, Content-Type, Accept, X-CSRF-Token, Authorization",
        ),
    ];

    fn with_origin(origin: &'static str) -> Vec<(&'static str, &'static str)> {
        [("Access-Control-Allow-Origin", origin)]
            .into_iter()
            .chain(ALWAYS)
            .collect()
    }

    #[test]
    fn cors_headers_are_on_every_answer_when_cors_is_on() {
        check_cors(Some("http://a.com"), Cors::Off, &[]);
        check_cors(None, Cors::AnyOrigin, &with_origin("*"));
        check_cors(Some("http://a.com"), Cors::AnyOrigin, &with_origin("*"));
        check_cors(
            Some("http://Example.COM"),
            only_example_com(),
            &with_origin("http://example.com"),
        );
        check_cors(Some("http://other.com"), only_example_com(), &ALWAYS);
        check_cors(None, only_example_com(), &ALWAYS);
    }

    #[test]
    fn cors_is_what_two_options_make_of_it() {
        let origins = ["example.com".to_owned()];
        assert!(matches!(Cors::new(false, &origins), Cors::Off));
        assert!(matches!(Cors::new(true, &[]), Cors::AnyOrigin));
        assert!(matches!(Cors::new(true, &origins), Cors::Origins(_)));
    }

    #[test]
    fn a_disallowed_origin_is_served_all_the_same() {
        let policy = policy(None, only_example_com());
        assert_eq!(
            check("POST", None, Some("http://other.com"), &policy),
            BroadcastVerdict::ReadBody
        );
    }

    #[track_caller]
    fn check_answer(response: Response, expected_status: u16, expected_close: bool) {
        assert_eq!(response.status, expected_status);
        assert_eq!(response.close, expected_close);
        assert!(response.body.is_empty());
        assert!(response.headers.is_empty());
    }

    #[test]
    fn answers_after_the_body_are_empty() {
        check_answer(accepted(), 201, false);
        check_answer(unreadable_body(), 422, true);
        check_answer(body_too_large(), 413, true);
    }
}
