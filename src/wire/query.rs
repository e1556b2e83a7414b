//! Query strings, read as Go's `url.ParseQuery` reads them, because that decides which parameter the reference sees.
//!
//! Only text to text. Called by the shard's HTTP phase (`pi`, `ptp`), by `auth` (`jid`), and by the console for its form.

use std::borrow::Cow;

use thiserror::Error;

use super::percent::{BadEscape, decode_form};

/// A part of a query that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadQuery {
    #[error("expected `&` between query parameters, found `;`")]
    Semicolon,
    #[error(transparent)]
    Escape(#[from] BadEscape),
}

/// The value of the last parameter called `name`. Parameters that cannot be decoded are skipped.
///
/// Source: `contract/websocket.md` §3.4.
pub fn query_param_last<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    pairs(query)
        .flatten()
        .filter(|(key, _)| key == name)
        .last()
        .map(|(_, value)| value)
}

/// The value of the first parameter called `name`. Parameters that cannot be decoded are skipped.
pub fn query_param_first<'a>(query: &'a str, name: &str) -> Option<Cow<'a, str>> {
    pairs(query)
        .flatten()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value)
}

/// The value of the first parameter called `name`. The whole query is checked, also the part after that parameter.
///
/// # Errors
/// [`BadQuery`] when any parameter cannot be decoded.
///
/// Source: `contract/auth_streams.md` §3.
pub fn query_param_first_strict<'a>(
    query: &'a str,
    name: &str,
) -> Result<Option<Cow<'a, str>>, BadQuery> {
    let mut first = None;
    for pair in pairs(query) {
        let (key, value) = pair?;
        if key == name && first.is_none() {
            first = Some(value);
        }
    }
    Ok(first)
}

/// Decoded key and value of each parameter, in order.
pub fn pairs(query: &str) -> impl Iterator<Item = Result<(Cow<'_, str>, Cow<'_, str>), BadQuery>> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            if part.contains(';') {
                return Err(BadQuery::Semicolon);
            }
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode_form(key)?, decode_form(value)?))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters_decode_as_in_go() {
        /// `first`: the result of the strict function, `Err` when it refuses the query.
        fn check(query: &str, first: Result<Option<&str>, ()>, last: Option<&str>) {
            let strict = query_param_first_strict(query, "pi");
            let strict = strict.as_ref().map(Option::as_deref).map_err(|_| ());
            assert_eq!(strict, first, "{query}");
            assert_eq!(query_param_last(query, "pi").as_deref(), last, "{query}");
        }
        check("", Ok(None), None);
        check("pi=1", Ok(Some("1")), Some("1"));
        check("pi=1&x=2&pi=3", Ok(Some("1")), Some("3"));
        check("pi", Ok(Some("")), Some(""));
        check("&&pi=", Ok(Some("")), Some(""));
        check("p%69=a+b%2Bc", Ok(Some("a b+c")), Some("a b+c"));
        check("PI=1", Ok(None), None);
        check("pi=1=2", Ok(Some("1=2")), Some("1=2"));
        check("pi=%3B", Ok(Some(";")), Some(";"));
        check("pi=1;x&pi=2", Err(()), Some("2"));
        check("pi=%zz&pi=4", Err(()), Some("4"));
        check("pi=%4", Err(()), None);
        check("pi=%ff", Ok(Some("\u{fffd}")), Some("\u{fffd}"));
    }

    #[test]
    fn the_strict_reading_says_what_is_wrong_wherever_it_is() {
        fn check(query: &str, expected: &str) {
            let error = query_param_first_strict(query, "a").expect_err(query);
            assert_eq!(error.to_string(), expected, "{query}");
        }
        let semicolon = "expected `&` between query parameters, found `;`";
        check("a=1;b=2", semicolon);
        check("a=1&;", semicolon);
        let escape = |found| format!("expected two hexadecimal digits after `%`, found {found:?}");
        check("a=1&b=%", &escape(""));
        check("%g0=1", &escape("g0"));
    }

    proptest! {
        #[test]
        fn any_query_is_read_without_panic(query in ".*") {
            let _ = (query_param_first_strict(&query, "a"), query_param_last(&query, "a"));
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
