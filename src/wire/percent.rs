//! Percent-encoding: escapes to bytes, and the hexadecimal digits of HTTP.
//!
//! As strict as Go's `net/url`: a `%` that two hexadecimal digits do not follow makes the whole text invalid. This file does
//! not know where a text comes from. Called by [`super::query`], and for paths and credentials.

use std::borrow::Cow;

use thiserror::Error;

/// A `%` that is not followed by two hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("expected two hexadecimal digits after `%`, found {found:?}")]
pub struct BadEscape {
    /// The text after it, at most two bytes.
    pub found: String,
}

/// The bytes of a path or of a part of an authority, where `+` stands for itself.
///
/// # Errors
/// [`BadEscape`] for the first invalid escape.
pub fn decode(text: &str) -> Result<Cow<'_, [u8]>, BadEscape> {
    if text.contains('%') {
        unescape(text, b'+').map(Cow::Owned)
    } else {
        Ok(Cow::Borrowed(text.as_bytes()))
    }
}

/// The text of a name or value in a query or a form, where `+` stands for a blank. Invalid UTF-8 becomes U+FFFD.
///
/// # Errors
/// [`BadEscape`] for the first invalid escape.
pub fn decode_form(text: &str) -> Result<Cow<'_, str>, BadEscape> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text));
    }
    let bytes = unescape(text, b' ')?;
    Ok(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
}

/// The value of a hexadecimal digit, upper or lower case.
pub(super) fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn unescape(text: &str, plus: u8) -> Result<Vec<u8>, BadEscape> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        bytes.push(match first {
            b'+' => plus,
            b'%' => {
                let (digits, behind) = after.split_at(after.len().min(2));
                rest = behind;
                escaped_byte(digits).ok_or_else(|| BadEscape {
                    found: String::from_utf8_lossy(digits).into_owned(),
                })?
            }
            byte => *byte,
        });
    }
    Ok(bytes)
}

fn escaped_byte(digits: &[u8]) -> Option<u8> {
    match *digits {
        [high, low] => Some(hex_digit(high)? << 4 | hex_digit(low)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_become_bytes_and_a_plus_is_a_blank_in_forms_alone() {
        fn check(text: &str, plain: &[u8], form: &str) {
            assert_eq!(decode(text).as_deref(), Ok(plain), "{text}");
            assert_eq!(decode_form(text).as_deref(), Ok(form), "{text}");
        }
        check("", b"", "");
        check("a/b", b"a/b", "a/b");
        check("a+b", b"a+b", "a b");
        check("%41%2b+%2F%c3%AB", "A++/ë".as_bytes(), "A+ /ë");
        check("%25%30%30", b"%00", "%00");
        check("%ff%00", b"\xff\0", "\u{fffd}\0");
    }

    #[test]
    fn a_percent_sign_without_two_digits_is_malformed() {
        fn check(text: &str, found: &str) {
            let expected = BadEscape {
                found: found.to_owned(),
            };
            assert_eq!(decode(text), Err(expected.clone()), "{text}");
            assert_eq!(decode_form(text), Err(expected), "{text}");
        }
        check("%", "");
        check("a%2", "2");
        check("%zz", "zz");
        check("%+5", "+5");
        check("%41%4g%", "4g");
        check("%éx", "é");
        check("%aé", "a\u{fffd}");
    }

    proptest! {
        #[test]
        fn what_was_escaped_comes_back(text in ".{0,20}") {
            let escaped: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(decode(&escaped), Ok(Cow::Borrowed(text.as_bytes())));
            let escaped = escaped.to_uppercase();
            prop_assert_eq!(decode_form(&escaped), Ok(Cow::Borrowed(text.as_str())));
        }

        #[test]
        fn any_text_is_read_without_panic(text in "[%+a-fé]{0,20}") {
            prop_assert_eq!(decode(&text).is_ok(), decode_form(&text).is_ok());
        }
    }
}
