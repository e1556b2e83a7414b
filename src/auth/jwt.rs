//! JSON Web Tokens: where a request carries one, and what it proves.
//!
//! Owns the order of both searches, because the client sees it: a token that is there decides alone, and `token_expired`
//! makes clients fetch a new one. Must not know what happens next. Called by `session` at connect.
//!
//! Source: `contract/auth_streams.md` §3.

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, Mac};
use sha2::{Sha256, Sha384, Sha512};
use thiserror::Error;

use crate::protocol::json::{JsonError, Kind, Reader, lossy_text};

/// How a sub-protocol entry that carries a token starts.
const SUBPROTOCOL_PREFIX: &str = "anycable-token.";

/// What a token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtVerdict {
    /// The connection identifiers, exactly as signed.
    Valid { identifiers: String },
    /// Rightly signed, but its time is over.
    Expired,
    /// Anything else that is wrong with it.
    Unauthorized,
    /// Good, but without an `ext` text: an error of whoever made it, not a refusal.
    MissingExt,
}

/// The query string breaks the rules, so no token can be looked up in it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadQuery {
    #[error("expected `&` between query parameters, found `;`")]
    Semicolon,
    #[error("expected two hexadecimal digits after `%`, found {found:?}")]
    Escape { found: String },
}

/// Verifies `token` at the time `now_unix_secs`. Only HS256, HS384 and HS512 are taken.
///
/// The signature comes first: a token that is expired and badly signed is unauthorized. There is no leeway.
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
/// `header` is the value of `x-<param>`, `subprotocol` that of `Sec-WebSocket-Protocol`, `query` what stands behind the
/// `?`. The first place that has a token decides, whatever the token is worth.
///
/// # Errors
/// [`BadQuery`] when the search gets to the query and any part of it is malformed, token or not.
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
    match from_headers {
        Some(token) => Ok(Some(token.to_owned())),
        None => first_in_query(query.unwrap_or_default(), param),
    }
}

/// The claims part, decoded, when the signature over it is right.
fn verify_signature(token: &str, secret: &str) -> Option<Vec<u8>> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let algorithm = decode_algorithm(&decode_part(header)?)?;
    let signature = decode_part(signature)?;
    let claims = decode_part(claims)?;
    let matches = match algorithm {
        Algorithm::Hs256 => mac_matches::<Hmac<Sha256>>(secret, signed, &signature),
        Algorithm::Hs384 => mac_matches::<Hmac<Sha384>>(secret, signed, &signature),
        Algorithm::Hs512 => mac_matches::<Hmac<Sha512>>(secret, signed, &signature),
    };
    matches.then_some(claims)
}

#[derive(Clone, Copy)]
enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
}

fn decode_algorithm(header: &[u8]) -> Option<Algorithm> {
    let mut algorithm = None;
    let mut reader = Reader::new(header);
    let read = reader.object(|reader, name| {
        if name != "alg" || reader.kind()? != Kind::String {
            return reader.skip_value();
        }
        algorithm = match &*reader.string()? {
            "HS256" => Some(Algorithm::Hs256),
            "HS384" => Some(Algorithm::Hs384),
            "HS512" => Some(Algorithm::Hs512),
            _ => None,
        };
        Ok::<_, JsonError>(())
    });
    read.and_then(|()| reader.finish()).ok()?;
    algorithm
}

fn mac_matches<M: Mac + hmac::digest::KeyInit>(
    secret: &str,
    signed: &str,
    signature: &[u8],
) -> bool {
    let mut mac =
        <M as Mac>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    mac.verify_slice(signature).is_ok()
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
                "ext" if reader.kind()? == Kind::String => {
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
    /// Not a number, or one no double can hold.
    Invalid,
}

impl Moment {
    fn read(reader: &mut Reader<'_>) -> Result<Self, JsonError> {
        if reader.kind()? != Kind::Number {
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

/// The first value of `param`, if it is not empty. The whole query is checked, not only the part up to there.
fn first_in_query(query: &str, param: &str) -> Result<Option<String>, BadQuery> {
    let mut first = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if pair.contains(';') {
            return Err(BadQuery::Semicolon);
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (unescape_query(name)?, unescape_query(value)?);
        if name == param && first.is_none() {
            first = Some(value.into_owned());
        }
    }
    Ok(first.filter(|token| !token.is_empty()))
}

fn unescape_query(text: &str) -> Result<Cow<'_, str>, BadQuery> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text));
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let digits = bytes.get(at + 1..at + 3).unwrap_or(&bytes[at + 1..]);
                out.push(hex_byte(digits).ok_or_else(|| BadQuery::Escape {
                    found: lossy_text(digits).into_owned(),
                })?);
                at += 3;
            }
            byte => {
                out.push(if byte == b'+' { b' ' } else { byte });
                at += 1;
            }
        }
    }
    Ok(Cow::Owned(lossy_text(&out).into_owned()))
}

fn hex_byte(digits: &[u8]) -> Option<u8> {
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    match *digits {
        [high, low] => u8::try_from(nibble(high)? << 4 | nibble(low)?).ok(),
        _ => None,
    }
}
