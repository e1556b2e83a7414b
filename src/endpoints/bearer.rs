//! The check of `Authorization: Bearer <token>`, for broadcasts and the API.

use crate::auth::keys::bearer_matches;

/// True when no token is configured, or the header is exactly `Bearer <token>`.
///
/// Source: `contract/broadcast.md` §2.
pub(super) fn authorised(authorization: Option<&str>, token: Option<&str>) -> bool {
    token.is_none_or(|token| bearer_matches(authorization, token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(authorization: Option<&str>, token: Option<&str>, expected: bool) {
        assert_eq!(
            authorised(authorization, token),
            expected,
            "{authorization:?} against {token:?}"
        );
    }

    #[test]
    fn only_the_exact_scheme_and_token_pass() {
        check(Some("Bearer key"), Some("key"), true);
        check(Some("bearer key"), Some("key"), false);
        check(Some("BEARER key"), Some("key"), false);
        check(Some("Bearer  key"), Some("key"), false);
        check(Some("Bearer key "), Some("key"), false);
        check(Some("Bearer Key"), Some("key"), false);
        check(Some("Bearer ke"), Some("key"), false);
        check(Some("Bearer keys"), Some("key"), false);
        check(Some("Bearer "), Some("key"), false);
        check(Some("Bearer"), Some("key"), false);
        check(Some("key"), Some("key"), false);
        check(Some(""), Some("key"), false);
        check(None, Some("key"), false);
    }

    #[test]
    fn without_a_token_everybody_passes() {
        check(None, None, true);
        check(Some("Bearer whatever"), None, true);
    }
}
