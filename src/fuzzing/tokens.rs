//! What proves the identity of a client: JSON Web Tokens and signed stream names.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use serde_json::Value;

use super::Input;
use super::serde_values::{Members, is_grammatical};
use crate::auth::channels::{LocalSubscribe, Route, is_local_channel, route_subscribe};
use crate::auth::jwt::{self, JwtVerdict};
use crate::auth::signed_stream;
use crate::config::StreamsConfig;
use crate::protocol::json::NESTING_MAX;

const SECRET: &str = "known to the targets alone";
const NOW_UNIX_SECS: f64 = 1_700_000_000.0;

/// The input is a choice, then a token, claims to sign, or a name. Text without a valid signature must be refused, signed
/// text must mean what `serde_json` reads in it, and every changed byte must be noticed.
pub fn tokens(data: &[u8]) {
    let mut input = Input(data);
    let choice = input.byte();
    let place = usize::from(input.byte());
    let text = String::from_utf8_lossy(input.0);
    match choice % 4 {
        0 => check_unsigned(&text),
        1 => check_claims(choice >> 2, input.0, place),
        2 => check_stream_name(&text, place),
        _ => check_search(&text, place),
    }
    check_identifier(&text);
}

/// Texts that were not made with the secret. Also used as a header with a correct signature behind it.
fn check_unsigned(text: &str) {
    assert_eq!(
        jwt::verify(text, SECRET, NOW_UNIX_SECS),
        JwtVerdict::Unauthorized
    );
    assert_eq!(signed_stream::verify(text, SECRET), None);
    let signed = format!("{}.e30", URL_SAFE_NO_PAD.encode(text));
    let token = format!(
        "{signed}.{}",
        URL_SAFE_NO_PAD.encode(mac(hmac::HMAC_SHA256, &signed))
    );
    if jwt::verify(&token, SECRET, NOW_UNIX_SECS) != JwtVerdict::Unauthorized {
        let header: Value = serde_json::from_str(text).expect("a header is JSON");
        assert_eq!(header["alg"], "HS256");
    }
}

fn check_claims(algorithm: u8, claims: &[u8], place: usize) {
    if claims.len() > NESTING_MAX {
        return;
    }
    let name = ["HS256", "HS384", "HS512"][usize::from(algorithm) % 3];
    let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{name}"}}"#));
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
    let mut signature = match name {
        "HS256" => mac(hmac::HMAC_SHA256, &signed),
        "HS384" => mac(hmac::HMAC_SHA384, &signed),
        _ => mac(hmac::HMAC_SHA512, &signed),
    };
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature));
    let verdict = jwt::verify(&token, SECRET, NOW_UNIX_SECS);
    if verdict != JwtVerdict::Unauthorized {
        assert!(is_grammatical(claims));
    }
    if let Ok(members) = serde_json::from_slice(claims) {
        assert_eq!(verdict, expected_verdict(&members));
    }
    for secret in [
        "",
        "known to the targets alon",
        "known to the targets alone ",
    ] {
        let verdict = jwt::verify(&token, secret, NOW_UNIX_SECS);
        assert_eq!(verdict, JwtVerdict::Unauthorized);
    }
    let index = place % signature.len();
    signature[index] ^= 1 << (place % 8);
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(&signature));
    let verdict = jwt::verify(&token, SECRET, NOW_UNIX_SECS);
    assert_eq!(verdict, JwtVerdict::Unauthorized);
}

/// Names are compared exactly, and the last value of a repeated one counts; null is a value here.
fn expected_verdict(claims: &Members) -> JwtVerdict {
    let moment = |name| match claims.exact(name).last() {
        None => Ok(None),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(0.0) => Ok(None),
            secs => secs.ok_or(()).map(Some),
        },
        Some(_) => Err(()),
    };
    match (moment("exp"), moment("nbf")) {
        (Ok(Some(expires)), _) if NOW_UNIX_SECS >= expires => JwtVerdict::Expired,
        (Err(()), _) | (_, Err(())) => JwtVerdict::Unauthorized,
        (_, Ok(Some(not_before))) if NOW_UNIX_SECS < not_before => JwtVerdict::Unauthorized,
        _ => match claims.exact("ext").last() {
            Some(Value::String(identifiers)) => JwtVerdict::Valid {
                identifiers: identifiers.clone(),
            },
            _ => JwtVerdict::MissingExt,
        },
    }
}

fn check_stream_name(name: &str, place: usize) {
    let encoded = STANDARD.encode(serde_json::to_string(name).expect("text is JSON"));
    let digest: String = mac(hmac::HMAC_SHA256, &encoded)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let signed = format!("{encoded}--{digest}");
    let expected = Some(name.to_owned()).filter(|name| !name.is_empty());
    assert_eq!(signed_stream::verify(&signed, SECRET), expected);
    assert_eq!(signed_stream::verify(&signed, ""), None);
    let mut changed = signed.clone().into_bytes();
    let index = place % changed.len();
    changed[index] = if changed[index] == b'0' { b'1' } else { b'0' };
    let changed = String::from_utf8(changed).expect("ASCII");
    assert_eq!(signed_stream::verify(&changed, SECRET), None);
    let identifier = serde_json::json!({ "channel": "$pubsub", "signed_stream_name": signed });
    let route = route_subscribe(&identifier.to_string(), &streams());
    let answer = match expected {
        Some(stream) => LocalSubscribe::Confirm {
            stream,
            whisper: false,
            presence: false,
        },
        None => LocalSubscribe::Reject,
    };
    assert_eq!(route, Route::Local(answer));
}

/// Header, sub-protocols and query of a request, cut out of `text`.
fn check_search(text: &str, place: usize) {
    let mut parts = text.splitn(3, '\n');
    let header = parts.next().filter(|_| place & 1 != 0);
    let subprotocol = parts.next().filter(|_| place & 2 != 0);
    let query = parts.next();
    let found = jwt::find_token(header, subprotocol, query, "jid");
    match found {
        Ok(Some(token)) => {
            assert!(!token.is_empty());
            if let Some(header) = header.filter(|header| !header.is_empty()) {
                assert_eq!(token, header);
            }
        }
        Ok(None) => assert!(header.is_none_or(str::is_empty)),
        Err(_) => assert!(query.is_some_and(|query| query.contains([';', '%']))),
    }
}

/// No identifier may be confirmed without a correct signature in it.
fn check_identifier(identifier: &str) {
    let streams = streams();
    let route = route_subscribe(identifier, &streams);
    assert_eq!(
        matches!(route, Route::Local(_)),
        is_local_channel(identifier, &streams)
    );
    assert!(!matches!(
        route,
        Route::Local(LocalSubscribe::Confirm { .. })
    ));
}

fn streams() -> StreamsConfig {
    StreamsConfig {
        pubsub_channel: "$pubsub".to_owned(),
        secret: Some(SECRET.to_owned()),
        public: false,
        whisper: false,
        presence: false,
        turbo_secret: Some(SECRET.to_owned()),
        cable_ready_secret: None,
    }
}

fn mac(algorithm: hmac::Algorithm, text: &str) -> Vec<u8> {
    let key = hmac::Key::new(algorithm, SECRET.as_bytes());
    hmac::sign(&key, text.as_bytes()).as_ref().to_vec()
}
