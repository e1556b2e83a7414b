//! The user of a demo page: a name, read from where Rails reads its session, and the user's global id. Pure.
//!
//! Called by `channels`. There are no accounts: anybody may use any name.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::wire::percent;

/// Longest name, in characters.
const NAME_CHARS_MAX: usize = 24;
const COOKIE: &str = "demo_user";
const QUERY_PARAMETER: &str = "name";
const GID_PREFIX: &str = "gid://ringcable-demo/User/";

/// A visitor, as pages see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct User {
    /// The global id parameter: unpadded base64 of a `gid://` URL, as Rails writes it.
    pub id: String,
    pub name: String,
}

/// The connection identifiers as JSON: `{"current_user":"<global id parameter>"}`.
#[derive(Serialize, Deserialize)]
struct Identifiers {
    current_user: String,
}

impl User {
    /// The user called `name`. `None` when `name` is blank, too long, or has control characters.
    pub fn named(name: &str) -> Option<User> {
        let name = name.trim();
        let fits = !name.is_empty()
            && name.chars().count() <= NAME_CHARS_MAX
            && !name.chars().any(char::is_control);
        fits.then(|| User {
            id: gid_param(&format!("{GID_PREFIX}{name}")),
            name: name.to_owned(),
        })
    }

    /// Reads the name from the cable URL (`?name=`), else from the cookie.
    ///
    /// The URL goes first, because the windows of one browser share the cookie and the demo needs two users in two windows.
    pub fn from_env(url: &str, cookie: Option<&str>) -> Option<User> {
        let query = url.split_once('?').map_or("", |(_, query)| query);
        let in_query = value_of(query.split('&'), QUERY_PARAMETER);
        let in_cookie = || value_of(cookie?.split(';').map(str::trim), COOKIE);
        let value = in_query.or_else(in_cookie)?;
        // A name with a broken escape is used undecoded.
        User::named(&percent::decode_form(value).unwrap_or(Cow::Borrowed(value)))
    }

    /// The connection identifiers that Connect returns for this user.
    pub fn identifiers(&self) -> String {
        super::rpc::json(&Identifiers {
            current_user: self.id.clone(),
        })
    }

    /// The user that [`User::identifiers`] was made from.
    pub fn from_identifiers(identifiers: &str) -> Option<User> {
        let Identifiers { current_user } = sonic_rs::from_str(identifiers).ok()?;
        let gid = String::from_utf8(URL_SAFE_NO_PAD.decode(current_user).ok()?).ok()?;
        User::named(gid.strip_prefix(GID_PREFIX)?)
    }
}

/// A global id as Rails writes it in URLs and stream names.
pub fn gid_param(gid: &str) -> String {
    URL_SAFE_NO_PAD.encode(gid)
}

/// The value of the first `name=value` among `pairs`.
fn value_of<'a>(pairs: impl Iterator<Item = &'a str>, name: &str) -> Option<&'a str> {
    pairs
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(url: &str, cookie: Option<&str>, expected: Option<&str>) {
        let user = User::from_env(url, cookie);
        assert_eq!(
            user.map(|user| user.name).as_deref(),
            expected,
            "{url} {cookie:?}"
        );
    }

    #[test]
    fn the_name_comes_from_the_url_or_else_from_the_cookie() {
        check("http://h/cable?name=Ann", None, Some("Ann"));
        check(
            "http://h/cable?pi=5&name=Ann%20Lee",
            Some("demo_user=Bob"),
            Some("Ann Lee"),
        );
        check("http://h/cable?name=Ann+Lee", None, Some("Ann Lee"));
        check(
            "http://h/cable",
            Some("a=1; demo_user=Zo%C3%AB; b=2"),
            Some("Zoë"),
        );
        check("http://h/cable", Some("xdemo_user=Bob"), None);
        check("http://h/cable?name=100%", None, Some("100%"));
    }

    #[test]
    fn what_is_not_a_name_is_nobody() {
        check("http://h/cable", None, None);
        check("http://h/cable?name=", Some("demo_user=Bob"), None);
        check("http://h/cable?name=%0a%00x", None, None);
        check(
            &format!("http://h/cable?name={}", "x".repeat(NAME_CHARS_MAX + 1)),
            None,
            None,
        );
    }

    #[test]
    fn identifiers_are_written_as_rails_writes_them() {
        let user = User::named("Ann").expect("a name");
        let expected = format!(
            r#"{{"current_user":"{}"}}"#,
            "Z2lkOi8vcmluZ2NhYmxlLWRlbW8vVXNlci9Bbm4"
        );
        assert_eq!(user.identifiers(), expected);
        assert_eq!(User::from_identifiers(&expected), Some(user));
        assert_eq!(
            User::from_identifiers(r#"{"current_user":"Z2lkOi8vb3RoZXIvVXNlci9Bbm4"}"#),
            None
        );
        assert_eq!(User::from_identifiers("nope"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(url in ".*", cookie in ".*") {
            let user = User::from_env(&url, Some(&cookie));
            if let Some(user) = user {
                prop_assert_eq!(User::from_identifiers(&user.identifiers()), Some(user));
            }
        }
    }
}
