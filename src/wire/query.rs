//! Query strings, read as Go's `url.ParseQuery` reads them, because that decides which parameter the reference sees.
//!
//! Pure text to text. Called through `http_request` by the session (`pi`, `ptp`, `sid`) and by auth (`jid`).

use std::borrow::Cow;

/// The value of the last parameter called `name`. Parameters that do not decode are skipped.
///
/// Source: `contract/websocket.md` §3.4.
pub fn query_param_last<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    pairs(query)
        .flatten()
        .filter(|(key, _)| key == name)
        .last()
        .map(|(_, value)| value)
}

/// The value of the first parameter called `name`. Parameters that do not decode are skipped.
pub fn query_param_first<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    pairs(query)
        .flatten()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value)
}

/// False when Go's strict parse would fail: a `;` outside an escape, or a `%` without two hex digits.
///
/// Source: `contract/auth_streams.md` §3.
pub fn strict_query_ok(query: &str) -> bool {
    pairs(query).all(|pair| pair.is_some())
}

/// True when every `%` is followed by two hex digits.
pub(super) fn percent_escapes_ok(text: &str) -> bool {
    text.split('%')
        .skip(1)
        .all(|rest| matches!(rest.as_bytes(), [high, low, ..] if hex_pair(*high, *low).is_some()))
}

/// Decoded key and value of each parameter, `None` for one that does not decode.
fn pairs(query: &str) -> impl Iterator<Item = Option<(Cow<'_, str>, Cow<'_, str>)>> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            if part.contains(';') {
                return None;
            }
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Some((unescape(key)?, unescape(value)?))
        })
}

/// `+` is a blank, `%XX` a byte; bytes that are not UTF-8 afterwards become U+FFFD. `None` for a bad escape.
fn unescape(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains(['%', '+']) {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => break,
            [b'+', rest @ ..] => {
                bytes.push(b' ');
                rest
            }
            [b'%', high, low, rest @ ..] => {
                bytes.push(hex_pair(*high, *low)?);
                rest
            }
            [b'%', ..] => return None,
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
    Some(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
}

fn hex_pair(high: u8, low: u8) -> Option<u8> {
    let high = char::from(high).to_digit(16)?;
    let low = char::from(low).to_digit(16)?;
    u8::try_from(high * 16 + low).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters_decode_as_in_go() {
        fn check(query: &str, first: Option<&str>, last: Option<&str>) {
            assert_eq!(query_param_first(query, "pi").as_deref(), first, "{query}");
            assert_eq!(query_param_last(query, "pi").as_deref(), last, "{query}");
        }
        check("", None, None);
        check("pi=1", Some("1"), Some("1"));
        check("pi=1&x=2&pi=3", Some("1"), Some("3"));
        check("pi", Some(""), Some(""));
        check("&&pi=", Some(""), Some(""));
        check("p%69=a+b%2Bc", Some("a b+c"), Some("a b+c"));
        check("PI=1", None, None);
        check("pi=1=2", Some("1=2"), Some("1=2"));
        check("pi=1;x&pi=2", Some("2"), Some("2"));
        check("pi=%zz&pi=4", Some("4"), Some("4"));
        check("pi=%4", None, None);
        check("pi=%ff", Some("\u{fffd}"), Some("\u{fffd}"));
    }

    #[test]
    fn a_semicolon_or_a_bad_escape_fails_the_strict_parse() {
        fn check(query: &str, expected: bool) {
            assert_eq!(strict_query_ok(query), expected, "{query}");
        }
        check("", true);
        check("a=1&b", true);
        check("a=%3B", true);
        check("a=1;b=2", false);
        check(";", false);
        check("a=%", false);
        check("%g0=1", false);
    }

    proptest! {
        #[test]
        fn any_query_is_read_without_panic(query in ".*") {
            let _ = (query_param_first(&query, "a"), query_param_last(&query, "a"), strict_query_ok(&query), percent_escapes_ok(&query));
        }

        #[test]
        fn escaped_values_come_back(value in ".{0,20}") {
            let escaped: String = value.bytes().map(|byte| format!("%{byte:02x}")).collect();
            let query = format!("v={escaped}");
            let decoded = query_param_last(&query, "v");
            prop_assert_eq!(decoded.as_deref(), Some(value.as_str()));
        }
    }
}
