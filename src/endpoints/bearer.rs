//! The check of `Authorization: Bearer <token>`, for broadcasts and the API.

use subtle::ConstantTimeEq;

/// True when no token is configured, or the header is exactly `Bearer <token>`: scheme and token are compared byte for
/// byte.
///
/// The comparison takes the same time wherever the first difference is, so that the token cannot be guessed byte by byte.
/// Only its length shows.
///
/// Source: `contract/broadcast.md` §2.
pub(super) fn authorised(authorization: Option<&str>, token: Option<&str>) -> bool {
    let Some(token) = token else {
        return true;
    };
    let offered = authorization.and_then(|value| value.strip_prefix("Bearer "));
    offered.is_some_and(|offered| bool::from(offered.as_bytes().ct_eq(token.as_bytes())))
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
