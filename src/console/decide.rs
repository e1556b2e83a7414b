//! Decides from the head alone what to do with a request to the console.

use std::borrow::Cow;

use super::access::{ACTION_HEADER, Access, Guard, is_from_own_page, upgrade_is_from_own_page};
use super::{ConsoleRoute, PATH, page};
use crate::endpoints::Response;
use crate::wire::http_request::RequestHead;

const LOGIN_PATH: &str = "/_console/login";
const NO_SECRET: &str = "This server has no secret, so nobody can log in. It answers without a login on the machine itself: \
                         open it there, or through ssh -L, not through a proxy.";

/// What to do with a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Answer this; the body has not been read.
    Answer(Response),
    /// Read the form and check the secret in it.
    LogIn,
    /// Make this the console's Action Cable connection, unless there are too many.
    Upgrade,
    /// Answer with the recent records.
    Records,
    /// Read the body and do this.
    Operation(Operation),
}

/// An operation that the page can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Search,
    Streams,
    Stream,
    Disconnect,
    Publish,
}

/// Decides what to do with a request to `route`. `tls`: it came over the server's own TLS.
pub fn decide(
    guard: &Guard,
    route: ConsoleRoute,
    head: &RequestHead,
    tls: bool,
    now_unix_secs: u64,
) -> Decision {
    let access = guard.access(head, now_unix_secs);
    let is_post = head.method() == "POST";
    let reads = matches!(head.method(), "GET" | "HEAD");
    let answer = match route {
        ConsoleRoute::Nowhere => Response::not_found(),
        ConsoleRoute::File(file) if reads => page::of_file(file),
        ConsoleRoute::Page if reads && access.is_granted() => {
            page::index(access == Access::LoggedIn)
        }
        ConsoleRoute::Page if reads => page::see_other(LOGIN_PATH),
        ConsoleRoute::Login if reads && access.is_granted() => page::see_other(PATH),
        ConsoleRoute::Login if reads => page::login(
            200,
            (!guard.has_login()).then_some(NO_SECRET),
            guard.has_login(),
        ),
        ConsoleRoute::Login if is_post && is_from_own_page(head) => return Decision::LogIn,
        ConsoleRoute::Logout if is_post && is_from_own_page(head) => page::see_other(LOGIN_PATH)
            .with_headers(vec![("Set-Cookie", Cow::Owned(Guard::log_out(head, tls)))]),
        ConsoleRoute::Login | ConsoleRoute::Logout if is_post => another_page(),
        ConsoleRoute::Cable if reads => return upgrade(head, access),
        ConsoleRoute::Records if reads && access.is_granted() => return Decision::Records,
        ConsoleRoute::Records if reads => login_needed(),
        ConsoleRoute::Search if is_post => return operation(head, access, Operation::Search),
        ConsoleRoute::Streams if is_post => return operation(head, access, Operation::Streams),
        ConsoleRoute::Stream if is_post => return operation(head, access, Operation::Stream),
        ConsoleRoute::Disconnect if is_post => {
            return operation(head, access, Operation::Disconnect);
        }
        ConsoleRoute::Publish if is_post => return operation(head, access, Operation::Publish),
        ConsoleRoute::Login => wrong_method("GET, POST"),
        ConsoleRoute::Logout
        | ConsoleRoute::Search
        | ConsoleRoute::Streams
        | ConsoleRoute::Stream
        | ConsoleRoute::Disconnect
        | ConsoleRoute::Publish => wrong_method("POST"),
        ConsoleRoute::File(_)
        | ConsoleRoute::Page
        | ConsoleRoute::Cable
        | ConsoleRoute::Records => wrong_method("GET"),
    };
    Decision::Answer(answer)
}

fn upgrade(head: &RequestHead, access: Access) -> Decision {
    match access.is_granted() {
        true if upgrade_is_from_own_page(head) => Decision::Upgrade,
        true => Decision::Answer(another_page()),
        false => Decision::Answer(login_needed()),
    }
}

fn operation(head: &RequestHead, access: Access, operation: Operation) -> Decision {
    if !access.is_granted() {
        return Decision::Answer(login_needed());
    }
    if is_from_own_page(head) && head.header(ACTION_HEADER).is_some() {
        return Decision::Operation(operation);
    }
    Decision::Answer(another_page())
}

fn login_needed() -> Response {
    page::refusal(401, "log in first").with_headers(vec![(
        "WWW-Authenticate",
        Cow::Borrowed(r#"Console realm="ringcable""#),
    )])
}

fn another_page() -> Response {
    page::refusal(403, "only the console's own page may ask for this")
}

fn wrong_method(allowed: &'static str) -> Response {
    page::refusal(405, "wrong method").with_headers(vec![("Allow", Cow::Borrowed(allowed))])
}

#[cfg(test)]
mod tests {
    use super::super::route;
    use super::*;
    use crate::config::ConsoleConfig;
    use crate::wire::http_head::HeadLimits;

    /// `Err` holds the status of the answer.
    fn decision(bound_to_loopback: bool, request: &str, fields: &str) -> Result<Decision, u16> {
        let text = format!("{request} HTTP/1.1\r\nHost: localhost:8080\r\n{fields}\r\n");
        let (head, _) = RequestHead::decode(text.as_bytes(), &HeadLimits::default())
            .expect("a good head")
            .expect("a whole head");
        let guard = Guard::new(&ConsoleConfig {
            secret: Some("S".to_owned()),
            bound_to_loopback,
        });
        let route = route(head.path()).expect("a path of the console");
        match decide(&guard, route, &head, false, 1_800_000_000) {
            Decision::Answer(response) => Err(response.status),
            other => Ok(other),
        }
    }

    const OWN: &str = "Sec-Fetch-Site: same-origin\r\n";
    const OWN_ACTION: &str = "Sec-Fetch-Site: same-origin\r\nX-Ringcable-Console: 1\r\n";

    #[test]
    fn without_a_login_only_the_way_to_it_is_open() {
        let check = |request: &str, fields: &str, expected: Result<Decision, u16>| {
            assert_eq!(decision(false, request, fields), expected, "{request}");
        };
        check("GET /_console", "", Err(303));
        check("GET /_console/login", "", Err(200));
        check("GET /_console/console.css", "", Err(200));
        check("GET /_console/records", "", Err(401));
        check("GET /_console/cable", OWN, Err(401));
        check("POST /_console/search", OWN_ACTION, Err(401));
        check("POST /_console/streams", OWN_ACTION, Err(401));
        check("POST /_console/stream", OWN_ACTION, Err(401));
        check("POST /_console/disconnect", OWN_ACTION, Err(401));
        check("POST /_console/publish", OWN_ACTION, Err(401));
        check("POST /_console/login", OWN, Ok(Decision::LogIn));
        check("POST /_console/login", "", Err(403));
        check(
            "POST /_console/login",
            "Origin: http://evil.example\r\n",
            Err(403),
        );
    }

    #[test]
    fn actions_are_for_the_own_page_alone() {
        let check = |request: &str, fields: &str, expected: Result<Decision, u16>| {
            assert_eq!(
                decision(true, request, fields),
                expected,
                "{request} {fields}"
            );
        };
        check(
            "POST /_console/search",
            OWN_ACTION,
            Ok(Decision::Operation(Operation::Search)),
        );
        check(
            "POST /_console/streams",
            OWN_ACTION,
            Ok(Decision::Operation(Operation::Streams)),
        );
        check(
            "POST /_console/stream",
            OWN_ACTION,
            Ok(Decision::Operation(Operation::Stream)),
        );
        check("POST /_console/streams", OWN, Err(403));
        check("GET /_console/stream", OWN_ACTION, Err(405));
        check(
            "POST /_console/disconnect",
            OWN_ACTION,
            Ok(Decision::Operation(Operation::Disconnect)),
        );
        check(
            "POST /_console/publish",
            OWN_ACTION,
            Ok(Decision::Operation(Operation::Publish)),
        );
        check("POST /_console/search", OWN, Err(403));
        check(
            "POST /_console/search",
            "X-Ringcable-Console: 1\r\n",
            Err(403),
        );
        check(
            "POST /_console/publish",
            "Sec-Fetch-Site: cross-site\r\nX-Ringcable-Console: 1\r\n",
            Err(403),
        );
        check("GET /_console/search", OWN_ACTION, Err(405));
        check(
            "GET /_console/cable",
            "Origin: http://localhost:8080\r\n",
            Ok(Decision::Upgrade),
        );
        check(
            "GET /_console/cable",
            "Origin: http://evil.example\r\n",
            Err(403),
        );
        check("GET /_console/cable", "", Err(403));
        check("POST /_console/cable", OWN, Err(405));
    }

    #[test]
    fn who_is_in_sees_the_page() {
        let check = |request: &str, expected: Result<Decision, u16>| {
            assert_eq!(decision(true, request, OWN), expected, "{request}");
        };
        check("GET /_console", Err(200));
        check("HEAD /_console", Err(200));
        check("POST /_console", Err(405));
        check("GET /_console/login", Err(303));
        check("DELETE /_console/login", Err(405));
        check("POST /_console/logout", Err(303));
        check("GET /_console/logout", Err(405));
        check("GET /_console/records", Ok(Decision::Records));
        check("GET /_console/nothing", Err(404));
    }
}
