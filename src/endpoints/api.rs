//! The REST API: publishing with the API's token, and presence.
//!
//! Publishing is the broadcast endpoint with another token. Presence is asked of the home of the stream between the checks
//! and the answer; without a broker the answer is "not implemented", as in the reference. Called by `shard::http`.
//!
//! Source: `contract/http_transports.md` §2.

use std::borrow::Cow;

use crate::endpoints::Response;
use crate::endpoints::bearer::authorised;
use crate::endpoints::broadcast::{BroadcastPolicy, Cors};

/// The policy of `POST <api_path>/publish`, for `endpoints::broadcast::check`; `token` is the API's, `None` = no
/// authorization. The presence endpoint has no CORS headers, as in the reference.
pub fn publish_policy(token: Option<String>, cors: Cors) -> BroadcastPolicy {
    BroadcastPolicy { token, cors }
}

/// Checks a request below `<api_path>/presence/`. Returns the stream whose members are asked for.
///
/// `stream` is the name that `Route::ApiPresence` found in the path. The order of the checks is the reference's: method,
/// token, path.
///
/// # Errors
/// The answer to a request that asks for nothing.
pub fn presence_stream<'a>(
    method: &str,
    authorization: Option<&str>,
    token: Option<&str>,
    stream: Option<&'a str>,
) -> Result<&'a str, Response> {
    match (method, stream) {
        ("GET", _) if !authorised(authorization, token) => Err(Response::empty(401)),
        ("GET", None) => Err(Response::empty(404)),
        ("GET", Some(stream)) => Ok(stream),
        _ => Err(Response::empty(422)),
    }
}

/// The answer with the members of a stream, from [`info_message`](crate::protocol::presence::info_message).
pub fn members(info: &[u8]) -> Response {
    Response {
        headers: vec![("Content-Type", Cow::Borrowed("application/json"))],
        body: Cow::Owned(info.to_vec()),
        ..Response::empty(200)
    }
}

/// The answer when no presence is kept.
pub fn no_presence() -> Response {
    Response::empty(501)
}

/// The answer when the members of a stream cannot be told.
pub fn members_unknown() -> Response {
    Response::empty(400)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::broadcast::{BroadcastVerdict, check};

    #[track_caller]
    fn check_presence(
        method: &str,
        authorization: Option<&str>,
        stream: Option<&str>,
        expected: u16,
    ) {
        let checked = presence_stream(method, authorization, Some("K"), stream);
        let status = checked.map_or_else(|refusal| refusal.status, |_| 200);
        assert_eq!(status, expected, "{method} {authorization:?} {stream:?}");
    }

    #[test]
    fn presence_checks_method_then_token_then_path() {
        check_presence("POST", None, None, 422);
        check_presence("HEAD", Some("Bearer K"), Some("x"), 422);
        check_presence("OPTIONS", None, Some("x"), 422);
        check_presence("GET", None, None, 401);
        check_presence("GET", Some("Bearer X"), Some("x"), 401);
        check_presence("GET", Some("Bearer K"), None, 404);
        check_presence("GET", Some("Bearer K"), Some("x"), 200);
    }

    #[test]
    fn presence_without_a_token_needs_no_header() {
        assert_eq!(presence_stream("GET", None, None, Some("x")), Ok("x"));
    }

    #[track_caller]
    fn check_publish(method: &str, authorization: Option<&str>, expected: BroadcastVerdict) {
        let policy = publish_policy(Some("K".to_owned()), Cors::Off);
        assert_eq!(
            check(method, authorization, Some("http://a.com"), &policy),
            expected
        );
    }

    #[test]
    fn publishing_is_broadcasting_with_the_token_of_the_api() {
        check_publish(
            "GET",
            Some("Bearer K"),
            BroadcastVerdict::Refuse(Response::empty(422)),
        );
        check_publish(
            "OPTIONS",
            None,
            BroadcastVerdict::Refuse(Response::empty(422)),
        );
        check_publish("POST", None, BroadcastVerdict::Refuse(Response::empty(401)));
        check_publish("POST", Some("Bearer K"), BroadcastVerdict::ReadBody);
    }
}
