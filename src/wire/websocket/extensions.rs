//! `Sec-WebSocket-Extensions`: the client's offers, and which offer of permessage-deflate is accepted.
//!
//! Only text. Each message is compressed on its own with a window of 32 KiB, because the compressor has no other. So an
//! offer that asks for a smaller window is declined and the next one is tried: a client with a smaller window could not
//! decompress our messages. Called by `handshake`.
//!
//! Source: RFC 6455 §9.1 (the grammar), RFC 7692 §5 and §7.1 (the parameters).

/// Bits of the window of our compressor. A client may use this or any smaller window.
const WINDOW_BITS: u8 = 15;
/// The smallest window that a client may name.
const WINDOW_BITS_MIN: u8 = 8;

/// An accepted offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeflateAgreement {
    /// The client said nothing about our window.
    AnyWindow,
    /// The client asked for the largest window, so the answer must confirm it.
    LargestWindow,
}

impl DeflateAgreement {
    /// The value of the answer's `Sec-WebSocket-Extensions`.
    pub fn answer(self) -> &'static str {
        match self {
            Self::AnyWindow => {
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
            }
            Self::LargestWindow => {
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; \
                 server_max_window_bits=15"
            }
        }
    }
}

/// The first offer of permessage-deflate that can be accepted, in the order of the lines. Of a line that breaks the grammar,
/// the part before the error counts.
pub fn accept<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<DeflateAgreement> {
    lines.into_iter().find_map(|line| {
        let mut text = Scanner { rest: line };
        while let Some(offer) = text.offer() {
            match offer {
                Offer::Accepted(agreement) => return Some(agreement),
                Offer::Declined => {}
            }
        }
        None
    })
}

enum Offer {
    Accepted(DeflateAgreement),
    /// Another extension, or parameters that are unknown or cannot be accepted.
    Declined,
}

/// The parameters of one offer of permessage-deflate so far; all of them can be accepted.
#[derive(Default)]
struct Parameters {
    seen: [bool; 4],
    largest_window: bool,
}

impl Parameters {
    /// Records one parameter. False: the offer must be declined. Source: RFC 7692 §7, "MUST decline".
    fn note(&mut self, name: &str, value: Option<&str>) -> bool {
        let (place, fits) = match name {
            "server_no_context_takeover" => (0, value.is_none()),
            "client_no_context_takeover" => (1, value.is_none()),
            // The client's own window. Without a value the client says that it understands this parameter.
            "client_max_window_bits" => (2, value.is_none_or(|value| window_bits(value).is_some())),
            // Our window.
            "server_max_window_bits" => {
                self.largest_window = true;
                (3, value.and_then(window_bits) == Some(WINDOW_BITS))
            }
            _ => return false,
        };
        fits && !std::mem::replace(&mut self.seen[place], true)
    }
}

/// A decimal number without leading zeros.
fn window_bits(text: &str) -> Option<u8> {
    (WINDOW_BITS_MIN..=WINDOW_BITS).find(|bits| bits.to_string() == text)
}

/// Reads the list from the left.
struct Scanner<'a> {
    rest: &'a str,
}

impl<'a> Scanner<'a> {
    /// The next offer; `None` at the end of the list, or where it breaks the grammar.
    fn offer(&mut self) -> Option<Offer> {
        // Empty items of a list are allowed and ignored.
        while self.take(',') {}
        let is_deflate = self.token()? == "permessage-deflate";
        let mut parameters = Parameters::default();
        let mut fits = is_deflate;
        while self.take(';') {
            let name = self.token()?;
            let value = match self.take('=') {
                true => Some(self.value()?),
                false => None,
            };
            fits = fits && parameters.note(name, value.as_deref());
        }
        if !self.is_at_end() && !self.take(',') {
            return None;
        }
        Some(match (fits, parameters.largest_window) {
            (false, _) => Offer::Declined,
            (true, false) => Offer::Accepted(DeflateAgreement::AnyWindow),
            (true, true) => Offer::Accepted(DeflateAgreement::LargestWindow),
        })
    }

    fn take(&mut self, wanted: char) -> bool {
        self.skip_blanks();
        match self.rest.strip_prefix(wanted) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn token(&mut self) -> Option<&'a str> {
        self.skip_blanks();
        let end = self
            .rest
            .bytes()
            .position(|byte| !is_token_byte(byte))
            .unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!token.is_empty()).then_some(token)
    }

    /// A token, or the contents of a quoted text.
    fn value(&mut self) -> Option<String> {
        if !self.take('"') {
            return self.token().map(str::to_owned);
        }
        let mut value = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(chars.next()?.1),
                c => value.push(c),
            }
        }
        None
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn is_at_end(&mut self) -> bool {
        self.skip_blanks();
        self.rest.is_empty()
    }
}

/// Source: RFC 9110 §5.6.2.
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANY: Option<DeflateAgreement> = Some(DeflateAgreement::AnyWindow);
    const LARGEST: Option<DeflateAgreement> = Some(DeflateAgreement::LargestWindow);

    #[track_caller]
    fn check(lines: &[&str], expected: Option<DeflateAgreement>) {
        assert_eq!(accept(lines.iter().copied()), expected, "{lines:?}");
    }

    /// One offer with these parameters.
    #[track_caller]
    fn check_parameters(parameters: &str, expected: Option<DeflateAgreement>) {
        check(&[&format!("permessage-deflate{parameters}")], expected);
    }

    #[test]
    fn parameters_that_can_be_kept_are_agreed_to() {
        for parameters in [
            "",
            " ",
            "; client_max_window_bits",
            ";client_max_window_bits=15",
            "; client_max_window_bits=8",
            "; client_max_window_bits=\"10\"",
            "; server_no_context_takeover",
            "; client_no_context_takeover",
            " ;\tserver_no_context_takeover ; client_no_context_takeover;client_max_window_bits = 9 ",
        ] {
            check_parameters(parameters, ANY);
        }
        for parameters in [
            "; server_max_window_bits=15",
            ";server_max_window_bits = \"15\"",
            "; server_max_window_bits=\"1\\5\"; client_max_window_bits",
        ] {
            check_parameters(parameters, LARGEST);
        }
    }

    #[test]
    fn a_smaller_window_of_ours_is_declined_in_every_spelling() {
        for bits in 8..15 {
            check_parameters(&format!("; server_max_window_bits={bits}"), None);
            check_parameters(&format!("; server_max_window_bits=\"{bits}\""), None);
            check_parameters(
                &format!(";client_max_window_bits;server_max_window_bits = {bits}"),
                None,
            );
        }
    }

    #[test]
    fn what_the_rfc_says_must_be_declined_is() {
        for parameters in [
            "; unknown",
            "; unknown=1",
            "; Server_no_context_takeover",
            "; server_no_context_takeover=1",
            "; server_no_context_takeover=true",
            "; client_no_context_takeover=\"\"",
            "; server_no_context_takeover; server_no_context_takeover",
            "; client_max_window_bits; client_max_window_bits",
            "; client_max_window_bits=10; client_max_window_bits=10",
            "; server_max_window_bits=15; server_max_window_bits=15",
            "; server_max_window_bits",
            "; server_max_window_bits=",
            "; server_max_window_bits=\"\"",
            "; server_max_window_bits=16",
            "; server_max_window_bits=7",
            "; server_max_window_bits=015",
            "; server_max_window_bits=+15",
            "; server_max_window_bits=1 5",
            "; server_max_window_bits=0xf",
            "; server_max_window_bits=\"15",
            "; server_max_window_bits=\" 15\"",
            "; server_max_window_bits=99999999999999999999",
            "; client_max_window_bits=",
            "; client_max_window_bits=7",
            "; client_max_window_bits=16",
            "; client_max_window_bits=08",
            "; client_max_window_bits=a",
            ";",
            "; ;client_max_window_bits",
            "=1",
            " client_max_window_bits",
        ] {
            check_parameters(parameters, None);
        }
    }

    #[test]
    fn the_first_offer_that_can_be_kept_counts() {
        let small = "permessage-deflate; server_max_window_bits=10";
        check(&[], None);
        check(&["", " , ,"], None);
        check(&["x-webkit-deflate-frame"], None);
        check(&["permessage-bzip2; a=permessage-deflate"], None);
        check(&["x; a=\"1, permessage-deflate\""], None);
        check(
            &["x; a=\"1, \\\" permessage-deflate\", permessage-deflate"],
            ANY,
        );
        check(&["foo", "permessage-deflate"], ANY);
        check(
            &["x-webkit-deflate-frame, permessage-deflate;server_no_context_takeover"],
            ANY,
        );
        check(&[&format!("{small}, permessage-deflate")], ANY);
        check(&[small, "permessage-deflate"], ANY);
        check(
            &[small, "permessage-deflate; server_max_window_bits=15"],
            LARGEST,
        );
        check(&[&format!("{small},{small}"), small], None);
        check(
            &[&format!(
                "permessage-deflate; server_max_window_bits=15,{small}"
            )],
            LARGEST,
        );
        // After the error the start of the next offer is unknown, but the next line can be read.
        check(&["x; =, permessage-deflate", "permessage-deflate"], ANY);
        check(&["x; =, permessage-deflate"], None);
    }

    proptest! {
        #[test]
        fn any_text_is_judged_without_panic(text in "[ -~é\t]{0,60}") {
            let _ = accept([text.as_str()]);
        }

        #[test]
        fn near_offers_are_judged_without_panic(text in "(permessage-deflate|x)[;,= \"]{0,3}(server_max_window_bits|client_max_window_bits)?[=\"0-9\\\\,;é ]{0,8}") {
            let _ = accept([text.as_str()]);
        }
    }
}
