//! JSON Web Tokens: where a request carries one, and what the token proves.
//!
//! Owns the order of both searches, because clients can see it: the first token found is the only one checked, and
//! `token_expired` makes clients fetch a new one. Does not decide what happens next. Called by `session` at connect.
//!
//! Source: `contract/auth_streams.md` §3.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ring::hmac;

use crate::protocol::json::{JsonError, JsonKind, Reader};
use crate::wire::query::{BadQuery, query_param_first_strict};

/// How a sub-protocol entry that carries a token starts.
const SUBPROTOCOL_PREFIX: &str = "anycable-token.";

/// What a token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtVerdict {
    /// The connection identifiers, exactly as signed.
    Valid { identifiers: String },
    /// The signature is right, but the token has expired.
    Expired,
    /// Anything else is wrong with the token.
    Unauthorized,
    /// The token is valid but has no `ext` text: a mistake in making the token, and not a refusal.
    MissingExt,
}

/// Verifies `token` at the time `now_unix_secs`. Only HS256, HS384 and HS512 are accepted.
///
/// The signature is checked first: a token that is expired and badly signed is unauthorized. Times are compared without
/// leeway.
pub fn verify(token: &str, secret: &str, now_unix_secs: f64) -> JwtVerdict {
    let Some(claims) = verify_signature(token, secret) else {
        return JwtVerdict::Unauthorized;
    };
    let Ok(claims) = Claims::decode(&claims) else {
        return JwtVerdict::Unauthorized;
    };
    if claims.expires.is_over(now_unix_secs) {
        return JwtVerdict::Expired;
    }
    if claims.expires == Moment::Invalid || !claims.not_before.is_reached(now_unix_secs) {
        return JwtVerdict::Unauthorized;
    }
    match claims.identifiers {
        Some(identifiers) => JwtVerdict::Valid { identifiers },
        None => JwtVerdict::MissingExt,
    }
}

/// Finds the token of a request: in its `x-<param>` header, else in its sub-protocol list, else in its query.
///
/// `header` is the value of `x-<param>`, `subprotocol` that of `Sec-WebSocket-Protocol`, `query` the part behind the `?`.
/// The first place that has a token decides, even if that token is bad.
///
/// # Errors
/// [`BadQuery`] when the search reaches the query and any part of it is malformed, whether or not that part is the token.
pub fn find_token(
    header: Option<&str>,
    subprotocol: Option<&str>,
    query: Option<&str>,
    param: &str,
) -> Result<Option<String>, BadQuery> {
    let from_subprotocol = || {
        subprotocol?
            .split(',')
            .find_map(|entry| entry.trim().strip_prefix(SUBPROTOCOL_PREFIX))
    };
    let from_headers = header
        .filter(|token| !token.is_empty())
        .or_else(|| from_subprotocol().filter(|token| !token.is_empty()));
    if let Some(token) = from_headers {
        return Ok(Some(token.to_owned()));
    }
    let in_query = query_param_first_strict(query.unwrap_or_default(), param)?;
    Ok(in_query
        .filter(|token| !token.is_empty())
        .map(Cow::into_owned))
}

/// The decoded claims part, if the signature over it is right.
fn verify_signature(token: &str, secret: &str) -> Option<Vec<u8>> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let algorithm = decode_algorithm(&decode_part(header)?)?;
    let signature = decode_part(signature)?;
    let claims = decode_part(claims)?;
    let key = hmac::Key::new(algorithm, secret.as_bytes());
    hmac::verify(&key, signed.as_bytes(), &signature).ok()?;
    Some(claims)
}

fn decode_algorithm(header: &[u8]) -> Option<hmac::Algorithm> {
    let mut algorithm = None;
    let mut reader = Reader::new(header);
    let read = reader.object(|reader, name| {
        if name != "alg" || reader.kind()? != JsonKind::String {
            return reader.skip_value();
        }
        algorithm = match &*reader.string()? {
            "HS256" => Some(hmac::HMAC_SHA256),
            "HS384" => Some(hmac::HMAC_SHA384),
            "HS512" => Some(hmac::HMAC_SHA512),
            _ => None,
        };
        Ok::<_, JsonError>(())
    });
    read.and_then(|()| reader.finish()).ok()?;
    algorithm
}

fn decode_part(part: &str) -> Option<Vec<u8>> {
    const UNPADDED: GeneralPurpose = GeneralPurpose::new(
        &alphabet::URL_SAFE,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::RequireNone)
            .with_decode_allow_trailing_bits(true),
    );
    UNPADDED.decode(part).ok()
}

#[derive(Default)]
struct Claims {
    expires: Moment,
    not_before: Moment,
    identifiers: Option<String>,
}

impl Claims {
    fn decode(claims: &[u8]) -> Result<Self, JsonError> {
        let mut decoded = Self::default();
        let mut reader = Reader::new(claims);
        reader.object(|reader, name| {
            match name {
                "exp" => decoded.expires = Moment::read(reader)?,
                "nbf" => decoded.not_before = Moment::read(reader)?,
                "ext" if reader.kind()? == JsonKind::String => {
                    decoded.identifiers = Some(reader.string()?.into_owned())
                }
                "ext" => {
                    decoded.identifiers = None;
                    reader.skip_value()?;
                }
                _ => reader.skip_value()?,
            }
            Ok::<_, JsonError>(())
        })?;
        reader.finish()?;
        Ok(decoded)
    }
}

/// A time claim.
#[derive(Clone, Copy, Default, PartialEq)]
enum Moment {
    /// Missing or zero.
    #[default]
    Unset,
    /// Unix seconds, may have a fraction or be negative.
    At(f64),
    /// Not a number, or a number that does not fit into an `f64`.
    Invalid,
}

impl Moment {
    fn read(reader: &mut Reader<'_>) -> Result<Self, JsonError> {
        if reader.kind()? != JsonKind::Number {
            return reader.skip_value().map(|()| Moment::Invalid);
        }
        Ok(match reader.number()?.parse::<f64>() {
            Ok(0.0) => Moment::Unset,
            Ok(secs) if secs.is_finite() => Moment::At(secs),
            _ => Moment::Invalid,
        })
    }

    fn is_over(self, now_unix_secs: f64) -> bool {
        matches!(self, Moment::At(secs) if now_unix_secs >= secs)
    }

    fn is_reached(self, now_unix_secs: f64) -> bool {
        match self {
            Moment::Unset => true,
            Moment::At(secs) => now_unix_secs >= secs,
            Moment::Invalid => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "s3Krit";
    /// Some time in 2023.
    const NOW: f64 = 1_700_000_000.0;

    fn valid(identifiers: &str) -> JwtVerdict {
        JwtVerdict::Valid {
            identifiers: identifiers.to_owned(),
        }
    }

    #[test]
    fn the_vectors_of_the_contract_hold() {
        fn check(token: &str, expected: JwtVerdict) {
            assert_eq!(verify(token, SECRET, NOW), expected, "{token}");
        }
        // J1: HS256, no exp.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9In0.jLskgCJzIKBN9nOZRH4-1sX6NDWD3CeevYySwiWAdzI",
            valid(r#"{"user_id":15}"#),
        );
        // J2: HS256, header with typ, exp 2100.
        check(
            "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ.-TcgDHbNTFGwcSMcFEHvmNtgJjatYZ6iGw-QYUaIJrg",
            valid(r#"{"user_id":15}"#),
        );
        // J3: HS384.
        check(
            "eyJhbGciOiJIUzM4NCJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ.QqeVKbvn3lPJb-KMNf01fnJ5ITH39iAfq8GaQV0qe7QEdgbLUOVHat7WqP69oxyH",
            valid(r#"{"user_id":15}"#),
        );
        // J4: HS512.
        check(
            "eyJhbGciOiJIUzUxMiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ.pPR2WtE8rR5QXg_aHRDRcEUeS76IwTA5gvYAZ9gccPFPolAoWhpqLzVvmsDpySgNfEMKITXHzEOYD4uL0tRANw",
            valid(r#"{"user_id":15}"#),
        );
        // J5: expired 2001-09-09.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjoxMDAwMDAwMDAwfQ.RK1sfmRVVWzNcucJpP3-xJlFOdUbT0sZ5A-8eIJU-7M",
            JwtVerdict::Expired,
        );
        // J6: expired and wrong key.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjoxMDAwMDAwMDAwfQ.gB0jjo3lLdBp-a1uQfzYc71gx0LgrAEsyi8rAYsG_lw",
            JwtVerdict::Unauthorized,
        );
        // J7: wrong key.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwfQ._s1k_CMdPZDzRlhZguoceOr6RLAbygvHp2tbz_CV5LQ",
            JwtVerdict::Unauthorized,
        );
        // J8: alg none, empty signature.
        check(
            "eyJhbGciOiJub25lIn0.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9In0.",
            JwtVerdict::Unauthorized,
        );
        // J9: header says RS256, HMAC-signed.
        check(
            "eyJhbGciOiJSUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9In0.V3SGdobmZH8umP6sTNMoVZW7gvcThmqJw0aerRv2sEg",
            JwtVerdict::Unauthorized,
        );
        // J10: exp: 0 (means no expiry).
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjowfQ.fVflVAGnXe4Lklac9rBEikkatCfbrBKq6nKHLQRtoZk",
            valid(r#"{"user_id":15}"#),
        );
        // J11: exp is a string.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjoiNDEwMjQ0NDgwMCJ9.sr8pTF_CgvDW0c0f-jTyxa-yXxcn9Jh6OeSoyDVV6SE",
            JwtVerdict::Unauthorized,
        );
        // J12: exp: null.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjpudWxsfQ.oUEuJ45ZMleSIu7RJcbtoZJn8Ai7IQ-kzXvXI405WUQ",
            JwtVerdict::Unauthorized,
        );
        // J13: exp fractional.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjo0MTAyNDQ0ODAwLjV9.NPNItTl4ZXCwvuS0DKzzMcTlv2vy1X0FiRIR-svUBrs",
            valid(r#"{"user_id":15}"#),
        );
        // J14: nbf in 2100.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwibmJmIjo0MTAyNDQ0ODAwfQ.SsbCZugH7zdptKqPQUb8RufAc197TCWTZXEjhV6h2iw",
            JwtVerdict::Unauthorized,
        );
        // J15: nbf in 2100 and expired.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwibmJmIjo0MTAyNDQ0ODAwLCJleHAiOjEwMDAwMDAwMDB9.a1kGTUrYVVAmJtUe6m2CMRtbN5HOGDLjtSrMxuIYWXA",
            JwtVerdict::Expired,
        );
        // J16: iat in 2100 (ignored).
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiaWF0Ijo0MTAyNDQ0ODAwfQ.NRUfMN-pY6OWdwR3wXemAzNu6s3Amb89Bi8kTTJeZFk",
            valid(r#"{"user_id":15}"#),
        );
        // J17: no ext claim.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxNSIsImV4cCI6NDEwMjQ0NDgwMH0.AfYrt7j54MoBPoaZm0sNV5ln7qiwSrmWOoGNV-mh7_g",
            JwtVerdict::MissingExt,
        );
        // J18: ext is an object.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOnsidXNlcl9pZCI6MTV9LCJleHAiOjQxMDI0NDQ4MDB9.zNA_x1BHBkj-HLb0CfFsdrqFtpjiZRcMCwuFqutqtVQ",
            JwtVerdict::MissingExt,
        );
        // J19: ext is an empty string.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiIiLCJleHAiOjQxMDI0NDQ4MDB9.AqfV75blZ16MYjbwY3GFCXRp2aAbvO5SMeDjC292JL4",
            valid(""),
        );
        // J20: ext is not JSON.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ1c2VyLTE1IiwiZXhwIjo0MTAyNDQ0ODAwfQ.tNzkoq1SrF3jY1Iyv1WukLDKgtupAE9iVPj9bZfe3Ks",
            valid("user-15"),
        );
        // J21: not a JWT.
        check("secret-token-not-a-jwt-at-all", JwtVerdict::Unauthorized);
        // J22: expired, no ext.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjEwMDAwMDAwMDB9.2bDxrvw9gwCS9hhjubbVLJXrTJ4coyUN3a8onQILQNY",
            JwtVerdict::Expired,
        );
        // J23: exp negative.
        check(
            "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyX2lkXCI6MTV9IiwiZXhwIjotMX0.KnsA3gMEB8dNGm7kcOoAF1Gtteo5OEAOPgIN4BQdXls",
            JwtVerdict::Expired,
        );
    }

    fn sign(header: &str, claims: &str) -> String {
        let encode = |text: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let signed = format!(
            "{}.{}",
            encode(header.as_bytes()),
            encode(claims.as_bytes())
        );
        let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
        let signature = hmac::sign(&key, signed.as_bytes());
        format!("{signed}.{}", encode(signature.as_ref()))
    }

    #[test]
    fn claims_are_judged_without_leeway() {
        fn check(claims: &str, expected: JwtVerdict) {
            assert_eq!(
                verify(&sign(r#"{"alg":"HS256"}"#, claims), SECRET, NOW),
                expected,
                "{claims}"
            );
        }
        check(r#"{"ext":"u","exp":1700000000}"#, JwtVerdict::Expired);
        check(r#"{"ext":"u","exp":1700000000.25}"#, valid("u"));
        check(r#"{"ext":"u","exp":1700000001}"#, valid("u"));
        check(r#"{"ext":"u","nbf":1700000000}"#, valid("u"));
        check(r#"{"ext":"u","nbf":1700000001}"#, JwtVerdict::Unauthorized);
        check(r#"{"ext":"u","nbf":"1"}"#, JwtVerdict::Unauthorized);
        check(r#"{"ext":"u","nbf":"1","exp":1}"#, JwtVerdict::Expired);
        check(r#"{"ext":"u","nbf":0,"exp":0.0}"#, valid("u"));
        check(r#"{"ext":"u","exp":1e400}"#, JwtVerdict::Unauthorized);
        check(r#"{"ext":"u","iss":5,"aud":{},"iat":"x"}"#, valid("u"));
        check(r#"{"EXT":"u"}"#, JwtVerdict::MissingExt);
        check(r#"{"ext":null}"#, JwtVerdict::MissingExt);
        check(r#"["ext"]"#, JwtVerdict::Unauthorized);
        check("{", JwtVerdict::Unauthorized);
    }

    #[test]
    fn headers_decide_by_algorithm_only() {
        fn check(header: &str, expected: JwtVerdict) {
            assert_eq!(
                verify(&sign(header, r#"{"ext":"u"}"#), SECRET, NOW),
                expected,
                "{header}"
            );
        }
        check(
            r#"{"alg":"HS256","typ":5,"kid":"k","crit":["x"]}"#,
            valid("u"),
        );
        check(r#"{"alg":"hs256"}"#, JwtVerdict::Unauthorized);
        check(r#"{"alg":"HS384"}"#, JwtVerdict::Unauthorized);
        check(r#"{"alg":["HS256"]}"#, JwtVerdict::Unauthorized);
        check(r#"{}"#, JwtVerdict::Unauthorized);
        check("HS256", JwtVerdict::Unauthorized);
    }

    #[test]
    fn a_token_is_looked_for_in_three_places_in_order() {
        type Found = Result<Option<&'static str>, ()>;
        fn check(
            header: Option<&str>,
            subprotocol: Option<&str>,
            query: Option<&str>,
            expected: Found,
        ) {
            let found = find_token(header, subprotocol, query, "jid");
            let found = found.as_ref().map(|token| token.as_deref()).map_err(|_| ());
            assert_eq!(found, expected, "{header:?} {subprotocol:?} {query:?}");
        }
        let offered = Some("actioncable-v1-json,  anycable-token.S , anycable-token.T");
        check(Some("H"), offered, Some("jid=Q"), Ok(Some("H")));
        check(Some(""), offered, Some("jid=Q"), Ok(Some("S")));
        check(
            None,
            Some("actioncable-v1-json"),
            Some("a=1&jid=Q&jid=R"),
            Ok(Some("Q")),
        );
        check(None, Some("anycable-token."), Some("jid=Q"), Ok(Some("Q")));
        check(None, None, Some("jid=&jid=R"), Ok(None));
        check(None, None, Some("JID=Q&xjid=Q&jid"), Ok(None));
        check(None, None, Some("%6aid=a%2Eb+c"), Ok(Some("a.b c")));
        check(None, None, Some("&&jid=a=b"), Ok(Some("a=b")));
        check(None, None, None, Ok(None));
        check(None, None, Some("a=1;b=2"), Err(()));
        check(None, None, Some("jid=Q&a=%zz"), Err(()));
        check(None, None, Some("jid=Q&a=%2"), Err(()));
        check(None, None, Some("jid=Q&%"), Err(()));
        check(Some("H"), None, Some("a=1;b=2"), Ok(Some("H")));
    }

    proptest! {
        #[test]
        fn garbage_is_unauthorized_and_never_panics(token in any::<String>(), claims in any::<String>()) {
            prop_assert_eq!(verify(&token, SECRET, NOW), JwtVerdict::Unauthorized);
            verify(&sign(&token, &claims), SECRET, NOW);
            verify(&sign(r#"{"alg":"HS256"}"#, &claims), SECRET, NOW);
            let _ = find_token(None, Some(&token), Some(&claims), "jid");
        }
    }
}
