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
/// valid: the reference then verifies with an empty key, and anybody can sign with that key. An empty name is refused too.
pub fn verify(signed: &str, secret: &str) -> Option<String> {
    if secret.is_empty() {
        return None;
    }
    // The last separator is the right one, because URL-safe base64 may contain `--` itself.
    let (encoded, digest) = signed.rsplit_once("--")?;
    if !constant_time_eq(digest, &hmac_sha256_hex(secret, encoded.as_bytes())) {
        return None;
    }
    decode_string(&decode_base64(encoded)?).filter(|stream| !stream.is_empty())
}

/// Accepts both base64 alphabets: the digest has proved who wrote the text, and AnyCable's own Ruby helper uses the URL-safe
/// one.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "s3Krit";

    #[test]
    fn the_vectors_of_the_contract_hold() {
        fn check(signed: &str, expected: Option<&str>) {
            assert_eq!(verify(signed, SECRET).as_deref(), expected, "{signed}");
        }
        check(
            "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e8320c",
            Some("chat/2023"),
        );
        check(
            "Im5vdGlmaWNhdGlvbnMvMTci--c62400386f163b04d299833afb1dc07263d6c8c534fd223de19177e92de231ed",
            Some("notifications/17"),
        );
        check(
            "ImNhZsOpLzEi--5bb1eea7346d4d5da83ff8d072fc2f572ada875a55905b767d66d27b9fa0b3de",
            Some("café/1"),
        );
        check(
            "ImNhZlx1MDBlOS8xIg==--afe43c37f71e157b22312e75eb00f2e2b05f0316502dff16444c0f3c2f6055d2",
            Some("café/1"),
        );
        check(
            "ImE/Yj5jfiI=--4de6ed71e89f22abab791291154d858a234cc739786309dd7d554e200e717df6",
            Some("a?b>c~"),
        );
        // S6: the reference rejects the URL-safe alphabet.
        check(
            "ImE_Yj5jfiI=--071ba877f4f8b66ca09c037f7b90ff9dc7b0f0341b025ab43d8ca7d2d8b7e008",
            Some("a?b>c~"),
        );
        check(
            "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e8320c",
            Some("chat/2023"),
        );
        // S8: upper-case digest.
        check(
            "ImNoYXQvMjAyMyI=--2B2E054B6413BF3BC7E8BBAD2F68962AA2BA19821800CCBD8DE6FD7314E8320C",
            None,
        );
        // S9: no padding.
        check(
            "ImNoYXQvMSI--a6f77399284af6429d8a5a03b486e370c1b51d9da30e109b2379dc200ac1a61f",
            None,
        );
        // S10: another key.
        check(
            "ImNoYXQvMjAyMyI=--d62670fccb54ef166ae2d10fd1bc3d65705c7e04ac699c52899e969b26c07994",
            None,
        );
        // S11: empty key.
        check(
            "ImNoYXQvMjAyMyI=--03f5fc02d1df23911d39c85d53c5109d96b4036ea81a5d868b4cfcf281dd2f50",
            None,
        );
        // S12: a number.
        check(
            "NDI=--2d53b38533171491dd1a58c191944702e1782607fc51394999267fb18def0fc6",
            None,
        );
        // S13: an array.
        check(
            "WyJhIl0=--e7d945d1d982a9df75295fa3971e14f7c652afa26ba2f89093541a8ee8a48e2b",
            None,
        );
        // S14: an empty name, which the reference accepts.
        check(
            "IiI=--2a111c4d4ce3ca2bb84d8d2af6d29fa8ff12419ac99d7c5b7cb8099e54504dd4",
            None,
        );
        // S15: no JSON.
        check(
            "Y2hhdC8x--cde340361a096c22e77ca956414735079215450fdad68c84201bcd42d4728bce",
            None,
        );
        // S16: three parts.
        check(
            "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e8320c--x",
            None,
        );
        // S17: tampered digest.
        check(
            "ImNoYXQvMjAyMyI=--2b2e054b6413bf3bc7e8bbad2f68962aa2ba19821800ccbd8de6fd7314e83200",
            None,
        );
    }

    #[test]
    fn without_a_secret_nothing_is_valid() {
        let signed_with_the_empty_key =
            "ImNoYXQvMjAyMyI=--03f5fc02d1df23911d39c85d53c5109d96b4036ea81a5d868b4cfcf281dd2f50";
        assert_eq!(verify(signed_with_the_empty_key, ""), None);
    }

    #[test]
    fn both_alphabets_and_folded_text_are_read_once_the_digest_matches() {
        fn check(encoded: &str, expected: Option<&str>) {
            let signed = format!("{encoded}--{}", hmac_sha256_hex(SECRET, encoded.as_bytes()));
            assert_eq!(verify(&signed, SECRET).as_deref(), expected, "{encoded}");
        }
        check("ImNoYXQv\r\nMjAyMyI=", Some("chat/2023"));
        // In URL-safe base64 a name may contain the separator.
        let encoded = base64::engine::general_purpose::URL_SAFE.encode("\"abs\u{ff01}\"");
        assert!(encoded.contains("--"));
        check(&encoded, Some("abs\u{ff01}"));
        check("", None);
        check("--", None);
        check("=", None);
    }

    proptest! {
        #[test]
        fn what_rails_signs_is_valid_and_nothing_else(stream in ".+", garbage in any::<String>()) {
            let json = serde_json::to_string(&stream).unwrap();
            let encoded = base64::engine::general_purpose::STANDARD.encode(json);
            let digest = hmac_sha256_hex(SECRET, encoded.as_bytes());
            prop_assert_eq!(verify(&format!("{encoded}--{digest}"), SECRET), Some(stream));
            prop_assert_eq!(verify(&format!("{garbage}{encoded}--{digest}x"), SECRET), None);
            prop_assert_eq!(verify(&garbage, SECRET), None);
        }
    }
}
