//! Signed stream names, compatible with Rails' message verifier.
//!
//! Source: `contract/auth_streams.md` §5 (algorithm), Traps 1, 3 and 10 (where this differs from the reference).

use base64::Engine;
use base64::alphabet;
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};

use super::keys::{constant_time_eq, hmac_sha256_hex};
use crate::protocol::json::decode_string;

/// The stream name inside `signed`, if its signature was made with `secret`.
///
/// `signed` is `<base64 of a JSON string>--<lower-case hex HMAC-SHA256 of the base64 text>`. Without a secret nothing is
/// valid: the reference then verifies with an empty key, which anybody can sign with. An empty name is refused too.
pub fn verify(signed: &str, secret: &str) -> Option<String> {
    if secret.is_empty() {
        return None;
    }
    // The last separator: text in the URL-safe alphabet may hold one of its own.
    let (encoded, digest) = signed.rsplit_once("--")?;
    if !constant_time_eq(digest, &hmac_sha256_hex(secret, encoded)) {
        return None;
    }
    decode_string(&decode_base64(encoded)?).filter(|stream| !stream.is_empty())
}

/// Either alphabet: the digest has proved who wrote this, and AnyCable's own Ruby helper writes the URL-safe one.
fn decode_base64(encoded: &str) -> Option<Vec<u8>> {
    const LENIENT: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
    let unfolded: Vec<u8> = encoded
        .bytes()
        .filter(|byte| !b"\r\n".contains(byte))
        .collect();
    STANDARD
        .decode(&unfolded)
        .or_else(|_| URL_SAFE.decode(&unfolded))
        .ok()
}
