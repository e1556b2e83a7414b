//! Keys that are derived from the application secret, and the check of a bearer token.
//!
//! Source: `contract/auth_streams.md` §2 and §9, `contract/broadcast.md` §2.

use ring::hmac;
use subtle::ConstantTimeEq;

/// Label of the broadcast key.
pub const BROADCAST_LABEL: &str = "broadcast-cable";
/// Label of the HTTP RPC key.
pub const RPC_LABEL: &str = "rpc-cable";
/// Label of the REST API key.
pub const API_LABEL: &str = "api-cable";
/// Label of the token for the login at the console.
pub const CONSOLE_LABEL: &str = "console-cable";

/// Derives the key for `label`: lower-case hex of HMAC-SHA256 with `secret` as key.
pub fn derive_token(secret: &str, label: &str) -> String {
    hmac_sha256_hex(secret, label.as_bytes())
}

/// Whether an `Authorization` header is exactly `Bearer <token>`. The time does not depend on the content.
pub fn bearer_matches(header: Option<&str>, token: &str) -> bool {
    header
        .and_then(|header| header.strip_prefix("Bearer "))
        .is_some_and(|given| constant_time_eq(given, token))
}

/// Compares in a time that does not depend on where the texts differ. The lengths are not secret.
pub(crate) fn constant_time_eq(left: &str, right: &str) -> bool {
    left.as_bytes().ct_eq(right.as_bytes()).into()
}

/// Lower-case hex of HMAC-SHA256.
pub(crate) fn hmac_sha256_hex(secret: &str, message: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    lower_hex(hmac::sign(&key, message).as_ref())
}

fn lower_hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).expect("a nibble is below 16");
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_keys_equal_those_of_the_reference() {
        fn check(secret: &str, label: &str, expected: &str) {
            assert_eq!(derive_token(secret, label), expected, "{secret} {label}");
        }
        check(
            "qwerty",
            BROADCAST_LABEL,
            "42923a28b760e667fc92f7c6123bb07a282822b329dd2ef48e7aee7830d98485",
        );
        check(
            "qwerty",
            RPC_LABEL,
            "57c40610d142fe7d7999be4e23dfba4f42c3c542e1f278063e8e3b6a30b0c2bd",
        );
        check(
            "qwerty",
            API_LABEL,
            "bdd0244b3664404d03b7d0c2f1b946dc4fc6c13fdcbfa2be62a4a28deb04d096",
        );
        check(
            "s3Krit",
            BROADCAST_LABEL,
            "a239a7ca182c90fc32bdedf73703d271388cf433843affffd3a5e757041fc716",
        );
        check(
            "s3Krit",
            RPC_LABEL,
            "08ac56f1562c6377ddd5d2d55cee2e35e117a55959d6a6ea3a63548ef0a7e559",
        );
        check(
            "s3Krit",
            API_LABEL,
            "1db397202b5bd68b12665b638515c3aeac9100f721fd7c4fcb6f29c69f32c886",
        );
        check(
            "S",
            BROADCAST_LABEL,
            "b015d1a3c08cf2fec39f3014255191ef020d4ac845ac9ee7ab068b97234c62c8",
        );
        check(
            "sec",
            BROADCAST_LABEL,
            "ffb1e33f6f743cbfa4df8537400db3dc8abd3eef8124e8ac23fd0effaa45c35e",
        );
        check(
            "none",
            BROADCAST_LABEL,
            "cefe585c117433fd0b169e2e123e15eaf8faa67bd62d87372ec54828f2d6950d",
        );
        check(
            "s3cr3t",
            RPC_LABEL,
            "4b7da2749fe2a4534cec0d2acbd16277a800cf2acd31158ac4edae4a62a8f18d",
        );
        check(
            "none",
            RPC_LABEL,
            "38d75108abdc139d4d314a2d69b5a8bd034dedac711a06bc865e10482b2529bf",
        );
    }

    #[test]
    fn only_the_exact_bearer_header_matches() {
        fn check(header: Option<&str>, expected: bool) {
            assert_eq!(bearer_matches(header, "key"), expected, "{header:?}");
        }
        check(Some("Bearer key"), true);
        check(Some("bearer key"), false);
        check(Some("Bearer  key"), false);
        check(Some("Bearer key "), false);
        check(Some("Bearer ke"), false);
        check(Some("Bearer Key"), false);
        check(Some("Bearer"), false);
        check(Some("key"), false);
        check(Some(""), false);
        check(None, false);
    }
}
