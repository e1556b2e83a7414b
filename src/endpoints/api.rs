//! The REST API: publishing with the API's token, and presence.
//!
//! Publishing is the broadcast endpoint with another token. Presence needs a broker, which ringcable does not have yet, so
//! its checks end in "not implemented", as the reference's do without a broker. Called by `shard::http`.
//!
//! Source: `contract/http_transports.md` §2.

use crate::endpoints::Response;
use crate::endpoints::bearer::authorised;
use crate::endpoints::broadcast::{BroadcastPolicy, Cors};

/// The policy of `POST <api_path>/publish`, for `endpoints::broadcast::check`; `token` is the API's, `None` = no
/// authorization.
pub fn publish_policy(token: Option<String>) -> BroadcastPolicy {
    BroadcastPolicy {
        token,
        cors: Cors::Off,
    }
}

/// Answers a request below `<api_path>/presence/`.
///
/// `stream` is the name that `Route::ApiPresence` found in the path. The order of the checks is the reference's: method,
/// token, path, and last the answer "not implemented".
pub fn presence(
    method: &str,
    authorization: Option<&str>,
    token: Option<&str>,
    stream: Option<&str>,
) -> Response {
    let status = match (method, stream) {
        ("GET", _) if !authorised(authorization, token) => 401,
        ("GET", None) => 404,
        ("GET", Some(_)) => 501,
        _ => 422,
    };
    Response::empty(status)
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
        let response = presence(method, authorization, Some("K"), stream);
        assert_eq!(
            response,
            Response::empty(expected),
            "{method} {authorization:?} {stream:?}"
        );
    }

    #[test]
    fn presence_checks_method_then_token_then_path() {
        check_presence("POST", None, None, 422);
        check_presence("HEAD", Some("Bearer K"), Some("x"), 422);
        check_presence("OPTIONS", None, Some("x"), 422);
        check_presence("GET", None, None, 401);
        check_presence("GET", Some("Bearer X"), Some("x"), 401);
        check_presence("GET", Some("Bearer K"), None, 404);
        check_presence("GET", Some("Bearer K"), Some("x"), 501);
    }

    #[test]
    fn presence_without_a_token_needs_no_header() {
        assert_eq!(presence("GET", None, None, Some("x")).status, 501);
    }

    #[track_caller]
    fn check_publish(method: &str, authorization: Option<&str>, expected: BroadcastVerdict) {
        let policy = publish_policy(Some("K".to_owned()));
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
