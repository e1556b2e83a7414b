//! Finds the secret of each feature. Source: `contract/operations.md` §4, `contract/broadcast.md` §1–§2,
//! `contract/auth_streams.md` §2.
//!
//! The word `none` clears a secret. The application secret is used where a feature has none: streams and JWT use it as it
//! is; broadcasts, RPC and API use a token derived from it.

use std::net::IpAddr;

use crate::auth::keys::{API_LABEL, BROADCAST_LABEL, RPC_LABEL, derive_token};

use super::options::{OptionSpec, Support};
use super::settings::Settings;
use super::value::OptionKind;

const NONE: &str = "none";

/// A bearer token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// `None` = no authorization.
    pub text: Option<String>,
    /// True when it comes from the application secret.
    pub derived: bool,
}

/// The token that the HTTP broadcast endpoint expects.
pub fn broadcast_token(settings: &Settings) -> Token {
    if settings.on("public") {
        return Token {
            text: None,
            derived: false,
        };
    }
    broadcast_token_before_public(settings)
}

/// The port is chosen as if `public` were off: `public` drops the token but does not change the port.
pub fn broadcast_is_secured(settings: &Settings) -> bool {
    broadcast_token_before_public(settings).text.is_some()
}

fn broadcast_token_before_public(settings: &Settings) -> Token {
    token(
        settings.text("broadcast_key"),
        settings.text("secret"),
        BROADCAST_LABEL,
    )
}

/// The token that RPC requests carry. `public` does not change it.
pub fn rpc_token(settings: &Settings) -> Token {
    token(
        settings.text("http_rpc_secret"),
        settings.text("secret"),
        RPC_LABEL,
    )
}

/// The token that the REST API expects. The word `none` has no special meaning here, but an application secret of `none`
/// counts as none.
pub fn api_token(settings: &Settings) -> Token {
    match (settings.text("api_secret"), application_secret(settings)) {
        ("", None) => Token {
            text: None,
            derived: false,
        },
        ("", Some(secret)) => Token {
            text: Some(derive_token(secret, API_LABEL)),
            derived: true,
        },
        (own, _) => Token {
            text: Some(own.to_owned()),
            derived: false,
        },
    }
}

/// The JWT key; `None` = JWT is off.
pub fn jwt_secret(settings: &Settings) -> Option<String> {
    own_or(settings.text("jwt_secret"), settings.text("secret"))
}

/// The key of signed stream names.
pub fn streams_secret(settings: &Settings) -> Option<String> {
    own_or(settings.text("streams_secret"), settings.text("secret"))
}

/// The key of a channel that uses the streams secret by default; `name` is the option with its own secret.
pub fn channel_secret(settings: &Settings, name: &str) -> Option<String> {
    match settings.text(name) {
        "" => streams_secret(settings),
        own => Some(own.to_owned()),
    }
}

/// The application secret, `None` when unset or the word `none`.
pub fn application_secret(settings: &Settings) -> Option<&str> {
    Some(settings.text("secret")).filter(|secret| !secret.is_empty() && *secret != NONE)
}

/// A shorter secret can be found by trying: clients see names that were signed with it.
const SECRET_CHARS_MIN: usize = 16;

/// Log lines about secrets that look like mistakes. No line shows a secret.
pub fn doubts(settings: &Settings) -> Vec<String> {
    let is_secret = |option: &OptionSpec| {
        option.sensitive && option.kind == OptionKind::Text && option.support == Support::Works
    };
    settings
        .iter()
        .filter(|(option, _, _)| is_secret(option))
        .map(|(option, _, _)| (option.name, settings.text(option.name)))
        .filter(|(_, secret)| !secret.is_empty() && *secret != NONE)
        .filter_map(|(name, secret)| {
            let doubt = doubt(secret, is_loopback(settings.text("host")))?;
            Some(format!("{} {doubt}", settings.as_given(name)))
        })
        .collect()
}

fn doubt(secret: &str, only_this_machine: bool) -> Option<String> {
    let chars = secret.chars().count();
    if secret.trim() != secret || secret.chars().any(char::is_control) {
        Some("has white space at an end or a control character in it: was a line break copied with it?".to_owned())
    } else if is_in_quotes(secret) {
        Some("is in quotes, which are a part of it: docker --env-file keeps them".to_owned())
    } else if is_unreplaced_variable(secret) {
        Some("looks like the name of a variable that was not replaced by its value".to_owned())
    } else if chars < SECRET_CHARS_MIN && !only_this_machine {
        Some(format!(
            "is short ({chars} characters) and can be guessed: take {SECRET_CHARS_MIN} random ones or more, as from \
             `openssl rand -hex 32`"
        ))
    } else {
        None
    }
}

/// Whether the text is `$NAME` or `${NAME}`.
fn is_unreplaced_variable(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('$') else {
        return false;
    };
    let name = rest
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'))
        .unwrap_or(rest);
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn is_in_quotes(secret: &str) -> bool {
    ['"', '\'']
        .iter()
        .any(|quote| secret.len() > 1 && secret.starts_with(*quote) && secret.ends_with(*quote))
}

/// `secret` is used as it is: as in the reference, even the word `none` gives a token for broadcasts and RPC.
fn token(own: &str, secret: &str, label: &str) -> Token {
    match (own, secret) {
        (NONE, _) | ("", "") => Token {
            text: None,
            derived: false,
        },
        ("", secret) => Token {
            text: Some(derive_token(secret, label)),
            derived: true,
        },
        (own, _) => Token {
            text: Some(own.to_owned()),
            derived: false,
        },
    }
}

fn own_or(own: &str, secret: &str) -> Option<String> {
    let chosen = if own.is_empty() { secret } else { own };
    Some(chosen.to_owned()).filter(|chosen| !chosen.is_empty() && chosen != NONE)
}

#[cfg(test)]
mod tests {
    use super::super::value::Value;
    use super::*;

    #[test]
    fn secrets_that_are_hardly_meant_are_doubted() {
        let check = |secret: &str, host: &str, expected: Option<&str>| {
            let mut settings = Settings::defaults();
            settings.derive("secret", Value::Text(secret.to_owned()));
            settings.derive("host", Value::Text(host.to_owned()));
            let doubts = doubts(&settings);
            let found = doubts
                .iter()
                .any(|doubt| expected.is_some_and(|part| doubt.contains(part)));
            assert_eq!(doubts.len(), usize::from(expected.is_some()), "{doubts:?}");
            assert_eq!(found, expected.is_some(), "{doubts:?}");
            assert!(
                doubts.iter().all(|doubt| doubt.starts_with("--secret ")),
                "{doubts:?}"
            );
        };
        let long = "0123456789abcdef";
        check("", "", None);
        check("none", "", None);
        check(long, "", None);
        check(&long[1..], "", Some("short (15 characters)"));
        check("qwerty", "0.0.0.0", Some("short (6 characters)"));
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"] {
            check("qwerty", host, None);
        }
        check("0123456789abcdef\n", "localhost", Some("a line break"));
        check(" 0123456789abcdef", "localhost", Some("white space"));
        check("01234567\t89abcdef", "localhost", Some("control character"));
        check("01234567 89abcdef", "", None);
        check("$SECRET", "localhost", Some("not replaced"));
        check("${ANYCABLE_SECRET_1}", "localhost", Some("not replaced"));
        check("$2a$10$abcdefghij", "localhost", None);
        check("${}", "localhost", None);
        check("\"0123456789abcdef\"", "localhost", Some("is in quotes"));
        check("'0123456789abcdef'", "localhost", Some("is in quotes"));
        check("0123456789\"abcdef\"", "localhost", None);
    }

    #[test]
    fn every_secret_is_looked_at_and_none_is_shown() {
        let mut settings = Settings::defaults();
        let names = [
            "secret",
            "broadcast_key",
            "http_rpc_secret",
            "jwt_secret",
            "streams_secret",
            "turbo_streams_secret",
            "cable_ready_secret",
            "api_secret",
        ];
        for name in names {
            settings.derive(name, Value::Text("open sesame ".to_owned()));
        }
        let doubts = doubts(&settings);
        assert_eq!(doubts.len(), names.len(), "{doubts:?}");
        assert!(doubts.iter().all(|doubt| !doubt.contains("sesame")));
    }
}
