//! What an operator reads about requests that were refused: what is wrong with them, and which setting to change. Pure.

/// What to do about a WebSocket request for `path`, which this listener does not serve.
pub fn unknown_path(path: &str, served: &[String]) -> String {
    let hint = if served
        .iter()
        .any(|served| served.trim_end_matches('/') == path.trim_end_matches('/') && served != path)
    {
        "a slash at the end makes it another path".to_owned()
    } else if path == "/" {
        "a proxy in front strips the path: set --path=/ (ANYCABLE_PATH)".to_owned()
    } else if served
        .iter()
        .any(|served| served != "/" && path.ends_with(served.as_str()))
    {
        format!(
            "a proxy in front does not strip its prefix: set --path={path} (ANYCABLE_PATH), or let it strip"
        )
    } else {
        "set --path (ANYCABLE_PATH) to the path that arrives here, or correct the URL of the client or the proxy"
            .to_owned()
    };
    format!("served are {}; {hint}", served.join(", "))
}

/// What is wrong with the `Authorization` of a request that got a 401. The text never contains the header's value.
pub fn bad_authorization(authorization: Option<&str>) -> &'static str {
    match authorization {
        None | Some("") => "it has no Authorization header",
        Some(text) if !text.starts_with("Bearer ") => "its Authorization is not \"Bearer <key>\"",
        Some(_) => "its key is another one",
    }
}

/// Which secret both sides have to share for `feature_option`, such as `broadcast_key`.
pub fn shared_secret(feature_option: &str, derived: bool) -> String {
    if derived {
        format!(
            "the secrets differ: --secret (ANYCABLE_SECRET) must be the same text here and in the app, and {feature_option} \
             must not be set on one side only"
        )
    } else {
        format!(
            "the secrets differ: --{feature_option} (ANYCABLE_{}) must be the same text here and in the app",
            feature_option.to_uppercase()
        )
    }
}

/// The subprotocols in an offer, without the entry that carries a token; `None` when no other entry is there.
pub fn offered_subprotocols(header: &str) -> Option<String> {
    let names: Vec<&str> = header
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && !name.starts_with("anycable-token."))
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Whether a POST to `path` is meant for the broadcast endpoint at `broadcast_path`: the last segment is the same.
pub fn is_meant_for(path: &str, broadcast_path: &str) -> bool {
    last_segment(path) == last_segment(broadcast_path)
}

fn last_segment(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rsplit_once('/').map_or(path, |(_, last)| last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_about_a_path_says_what_the_proxy_does() {
        fn check(path: &str, served: &[&str], words: &str) {
            let served: Vec<String> = served.iter().map(|&path| path.to_owned()).collect();
            let hint = unknown_path(path, &served);
            assert!(
                hint.starts_with(&format!("served are {}; ", served.join(", "))),
                "{hint}"
            );
            assert!(hint.contains(words), "{path}: {hint}");
        }
        check("/", &["/cable"], "set --path=/ (ANYCABLE_PATH)");
        check("/cable/", &["/cable"], "a slash at the end");
        check("/app/cable", &["/a", "/cable"], "set --path=/app/cable");
        check(
            "/cable",
            &["/"],
            "set --path (ANYCABLE_PATH) to the path that arrives",
        );
        check(
            "/ws",
            &["/cable"],
            "set --path (ANYCABLE_PATH) to the path that arrives",
        );
    }

    #[test]
    fn what_is_wrong_with_a_token_is_said_without_it() {
        fn check(authorization: Option<&str>, expected: &str) {
            let said = bad_authorization(authorization);
            assert!(
                said.contains(expected) && !said.contains("s3cr3t"),
                "{said}"
            );
        }
        check(None, "no Authorization header");
        check(Some(""), "no Authorization header");
        check(Some("s3cr3t"), "is not \"Bearer <key>\"");
        check(Some("bearer s3cr3t"), "is not \"Bearer <key>\"");
        check(Some("Bearer s3cr3t"), "its key is another one");
    }

    #[test]
    fn the_secret_to_look_at_depends_on_where_the_key_comes_from() {
        assert!(shared_secret("broadcast_key", true).contains("ANYCABLE_SECRET"));
        assert!(
            shared_secret("broadcast_key", false)
                .contains("--broadcast_key (ANYCABLE_BROADCAST_KEY)")
        );
    }

    #[test]
    fn tokens_are_not_among_the_subprotocols() {
        fn check(header: &str, expected: Option<&str>) {
            assert_eq!(
                offered_subprotocols(header).as_deref(),
                expected,
                "{header:?}"
            );
        }
        check("graphql-ws", Some("graphql-ws"));
        check("a , b,anycable-token.abc", Some("a, b"));
        check("anycable-token.abc", None);
        check(" ,", None);
        check("", None);
    }

    #[test]
    fn a_misplaced_broadcast_is_known_by_its_last_segment() {
        fn check(path: &str, expected: bool) {
            assert_eq!(is_meant_for(path, "/_broadcast"), expected, "{path}");
        }
        check("/_broadcast", true);
        check("/_broadcast/", true);
        check("/cable/_broadcast", true);
        check("/", false);
        check("/wp-login.php", false);
    }
}
