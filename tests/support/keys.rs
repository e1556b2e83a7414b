//! Secrets and what is derived from them, computed apart from the server.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::hmac;

/// The application secret of every test that does not bring its own. Its RPC token is a check value of the contract.
pub const SECRET: &str = "s3cr3t";

/// Lower-case hex of HMAC-SHA256. Source: `contract/operations.md` §4.
pub fn hmac_hex(key: &str, message: impl AsRef<[u8]>) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    hmac::sign(&key, message.as_ref())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A token with these claims, signed with HS256.
pub fn jwt(secret: &str, claims: &str) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
    let signed = format!(
        "{}.{}",
        BASE64.encode(r#"{"alg":"HS256","typ":"JWT"}"#),
        BASE64.encode(claims)
    );
    let hex = hmac_hex(secret, &signed);
    let mac: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal digits"))
        .collect();
    format!("{signed}.{}", BASE64.encode(mac))
}

pub fn rpc_token(secret: &str) -> String {
    hmac_hex(secret, "rpc-cable")
}

pub fn broadcast_token(secret: &str) -> String {
    hmac_hex(secret, "broadcast-cable")
}

pub fn api_token(secret: &str) -> String {
    hmac_hex(secret, "api-cable")
}

/// A stream name as Rails' message verifier signs it. Source: `contract/auth_streams.md` §5.
pub fn signed_stream_name(secret: &str, stream: &str) -> String {
    let encoded = STANDARD.encode(serde_json::to_string(stream).expect("a string is JSON"));
    format!("{encoded}--{}", hmac_hex(secret, &encoded))
}

/// The stream name inside a signed one, if the signature is right.
pub fn verified_stream_name(secret: &str, signed: &str) -> Option<String> {
    let (encoded, digest) = signed.split_once("--")?;
    if hmac_hex(secret, encoded) != digest {
        return None;
    }
    serde_json::from_slice(&STANDARD.decode(encoded).ok()?).ok()
}

/// A Rails global id as parameter: unpadded base64 of `gid://campfire/<what>`. Source: `contract/campfire.md` §5.
pub fn gid(what: &str) -> String {
    STANDARD_NO_PAD.encode(format!("gid://campfire/{what}"))
}
