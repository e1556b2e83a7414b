//! Values of options: their kinds, how each kind is read from a word or from a file, and which values are allowed.
//!
//! Pure. Numbers and booleans are read as Go literals, because the reference does so.
//! Source: `contract/operations.md` §1.

use std::fmt;

use super::stream_limits::{self, StreamLimits};
use crate::wire::websocket::extensions::is_token_byte;

/// A value of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Bool(bool),
    Int(i64),
    Text(String),
    List(Vec<String>),
    /// Names and values of constant labels.
    Tags(Vec<(String, String)>),
    StreamLimits(Vec<StreamLimits>),
}

/// How an option is read and what it accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    Bool,
    /// An integer; both ends are allowed.
    Int {
        min: i64,
        max: i64,
    },
    /// Seconds from 0 to 4,294,967,295, or a boolean where `false` is 0 and `true` lets the server choose.
    SecsOrSwitch,
    Text,
    /// A text that may not be empty.
    Name,
    /// The path of a file on this machine; may be empty.
    File,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A URL path.
    Path {
        may_be_empty: bool,
    },
    /// URL paths with placeholders, comma-separated; an array in the file.
    Paths,
    /// Items are trimmed, and empty items are dropped.
    List {
        separator: char,
        array_in_file: bool,
        items: Items,
    },
    /// `name:value,name:value`; a table in the file.
    Tags,
    /// An array of tables, which only the file can have.
    StreamLimits,
}

/// What the items of a list are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Items {
    Any,
    HeaderNames,
    CookieNames,
    /// `host`, `host:port`, or a `*` followed by the end of these.
    Hosts,
    /// Letters, digits, `_`, `-` and `.`.
    Words,
}

impl Items {
    fn check(self, items: &[String]) -> Result<(), String> {
        match items.iter().find(|item| !self.allows(item)) {
            None => Ok(()),
            Some(item) => {
                let expected = match self {
                    Self::Any => "",
                    Self::HeaderNames => "names of headers",
                    Self::CookieNames => "names of cookies",
                    Self::Hosts => {
                        "hosts without scheme and path, such as example.com, *.example.com or example.com:3000"
                    }
                    Self::Words => "words",
                };
                let quoted = quoted(item);
                if quoted.is_empty() {
                    Err(format!("{expected}, not {item}"))
                } else {
                    Err(format!("{expected}{quoted}"))
                }
            }
        }
    }

    fn allows(self, item: &str) -> bool {
        let is_quote = |c: char| matches!(c, '"' | '\'' | '`');
        match self {
            Self::Any => true,
            _ if item.contains(is_quote) => false,
            Self::HeaderNames => is_token(item),
            // Browsers accept more than the tokens of the RFC.
            Self::CookieNames => {
                !item.contains(|c: char| c.is_whitespace() || c.is_control() || "=;,\\".contains(c))
            }
            Self::Hosts => {
                let host = item.strip_prefix('*').unwrap_or(item);
                host.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]%".contains(&byte))
            }
            Self::Words => item
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)),
        }
    }
}

/// Source: RFC 9110 §5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// A hint about quotes, for messages about a value that cannot contain any.
pub fn quoted(text: &str) -> &'static str {
    if text.contains(['"', '\'', '`']) {
        ", without the quotes (docker --env-file and others keep them as a part of the value)"
    } else {
        ""
    }
}

/// Why a word cannot be read as a value of its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    Syntax,
    /// An integer that does not fit into 64 bits.
    Range,
    /// An item without a colon in a list of tags.
    TagWithoutColon,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Syntax => "parse error",
            Self::Range => "value out of range",
            Self::TagWithoutColon => "expected name:value items",
        })
    }
}

impl Value {
    /// True for an empty text or list.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Bool(_) | Self::Int(_) => false,
            Self::Text(text) => text.is_empty(),
            Self::List(items) => items.is_empty(),
            Self::Tags(tags) => tags.is_empty(),
            Self::StreamLimits(table) => table.is_empty(),
        }
    }
}

/// Writes the value as on the command line.
impl fmt::Display for Value {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(on) => write!(out, "{on}"),
            Self::Int(number) => write!(out, "{number}"),
            Self::Text(text) => out.write_str(text),
            Self::List(items) => out.write_str(&items.join(",")),
            Self::Tags(tags) => {
                let items: Vec<String> = tags
                    .iter()
                    .map(|(name, value)| format!("{name}:{value}"))
                    .collect();
                out.write_str(&items.join(","))
            }
            Self::StreamLimits(table) => {
                let entries: Vec<String> = table.iter().map(ToString::to_string).collect();
                out.write_str(&entries.join(", "))
            }
        }
    }
}

impl OptionKind {
    /// Reads a word of the command line or the environment.
    ///
    /// # Errors
    /// [`Unreadable`] when the word does not have the form of this kind. Whether the value is allowed is decided by
    /// [`OptionKind::check`].
    pub fn parse(&self, text: &str) -> Result<Value, Unreadable> {
        match self {
            Self::Bool => parse_bool(text).map(Value::Bool),
            Self::Int { .. } => parse_int(text).map(Value::Int),
            Self::SecsOrSwitch => parse_secs_or_switch(text),
            Self::Text | Self::Name | Self::File | Self::Word(_) | Self::Path { .. } => {
                Ok(Value::Text(text.to_owned()))
            }
            Self::Paths => Ok(Value::List(split(text, ','))),
            Self::List { separator, .. } => Ok(Value::List(split(text, *separator))),
            Self::Tags => split(text, ',')
                .iter()
                .map(|item| parse_tag(item))
                .collect::<Result<_, _>>()
                .map(Value::Tags),
            Self::StreamLimits if text.is_empty() => Ok(Value::StreamLimits(Vec::new())),
            Self::StreamLimits => Err(Unreadable::Syntax),
        }
    }

    /// Reads a value of the TOML file; `None` when it has the wrong type.
    ///
    /// A list may be written as an array or as one text with separators, whichever of the two the reference expects.
    pub fn read_toml(&self, value: &toml::Value) -> Option<Value> {
        match (self, value) {
            (Self::Bool, toml::Value::Boolean(on)) => Some(Value::Bool(*on)),
            (Self::Int { .. } | Self::SecsOrSwitch, toml::Value::Integer(number)) => {
                Some(Value::Int(*number))
            }
            (Self::SecsOrSwitch, toml::Value::Boolean(on)) => Some(switch(*on)),
            (
                Self::Text | Self::Name | Self::File | Self::Word(_) | Self::Path { .. },
                toml::Value::String(text),
            ) => Some(Value::Text(text.clone())),
            (Self::Paths | Self::List { .. }, toml::Value::Array(items)) => {
                let items: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
                Some(Value::List(trimmed(items?.into_iter())))
            }
            (Self::Paths | Self::List { .. }, toml::Value::String(text)) => self.parse(text).ok(),
            (Self::Tags, toml::Value::Table(table)) => table
                .iter()
                .map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect::<Option<_>>()
                .map(Value::Tags),
            (Self::StreamLimits, toml::Value::Array(entries)) => entries
                .iter()
                .map(StreamLimits::read)
                .collect::<Option<_>>()
                .map(Value::StreamLimits),
            _ => None,
        }
    }

    /// The TOML type that this kind needs, for messages.
    pub fn toml_type(&self) -> &'static str {
        match self {
            Self::Bool => "a boolean",
            Self::Int { .. } => "an integer",
            Self::SecsOrSwitch => "an integer or a boolean",
            Self::Text | Self::Name | Self::File | Self::Word(_) | Self::Path { .. } => "a string",
            Self::Paths | Self::List { .. } => "an array of strings",
            Self::Tags => "a table of strings",
            Self::StreamLimits => {
                "an array of tables, each with prefix and whole numbers as history_limit or history_ttl"
            }
        }
    }

    /// Whether `value` is allowed; the error says which values are.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        match (self, value) {
            (Self::Int { min, max }, Value::Int(number)) if number < min || number > max => {
                Err(range_text(*min, *max))
            }
            (Self::SecsOrSwitch, Value::Int(secs)) if u32::try_from(*secs).is_err() => {
                Err(format!("seconds from 0 to {}, true or false", u32::MAX))
            }
            (Self::Name, Value::Text(text)) if text.is_empty() => {
                Err("a text that is not empty".to_owned())
            }
            // The value becomes part of a header name.
            (Self::Name, Value::Text(text)) if !is_token(text) || !quoted(text).is_empty() => Err(
                format!("a name of letters, digits, - and _{}", quoted(text)),
            ),
            (Self::List { items, .. }, Value::List(list)) => items.check(list),
            (Self::Word(words), Value::Text(text)) if !words.contains(&text.as_str()) => {
                let words: Vec<&str> = words
                    .iter()
                    .copied()
                    .filter(|word| !word.is_empty())
                    .collect();
                Err(format!("one of {}{}", words.join(", "), quoted(text)))
            }
            (Self::Path { may_be_empty }, Value::Text(text)) => {
                if is_url_path(text) || (*may_be_empty && text.is_empty()) {
                    Ok(())
                } else {
                    Err(format!(
                        "a path that starts with / and has no spaces{}",
                        quoted(text)
                    ))
                }
            }
            (Self::Paths, Value::List(paths)) => paths.iter().try_for_each(|path| {
                check_path_pattern(path).map_err(|expected| expected + quoted(path))
            }),
            (Self::Tags, Value::Tags(tags)) => tags.iter().try_for_each(|(name, _)| {
                check_label_name(name).map_err(|expected| expected + quoted(name))
            }),
            (Self::StreamLimits, Value::StreamLimits(table)) => stream_limits::check(table),
            _ => Ok(()),
        }
    }
}

/// Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Result<bool, Unreadable> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(Unreadable::Syntax),
    }
}

/// A number always means seconds, also `0` and `1`, which Go would read as booleans.
fn parse_secs_or_switch(text: &str) -> Result<Value, Unreadable> {
    match parse_int(text) {
        Err(Unreadable::Syntax) => parse_bool(text).map(switch),
        number => number.map(Value::Int),
    }
}

/// `false` means 0 seconds.
fn switch(on: bool) -> Value {
    if on { Value::Bool(true) } else { Value::Int(0) }
}

/// Go's `strconv.ParseInt` with base 0: sign, base prefix, `_` between digits.
fn parse_int(text: &str) -> Result<i64, Unreadable> {
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = split_base(unsigned);
    let prefixed = digits.len() != unsigned.len();
    if digits.is_empty()
        || digits.ends_with('_')
        || digits.contains("__")
        || (!prefixed && digits.starts_with('_'))
    {
        return Err(Unreadable::Syntax);
    }
    let plain: String = digits.chars().filter(|&c| c != '_').collect();
    if plain.is_empty() || !plain.chars().all(|c| c.is_digit(radix)) {
        return Err(Unreadable::Syntax);
    }
    let magnitude = i128::from_str_radix(&plain, radix).map_err(|_| Unreadable::Range)?;
    i64::try_from(if negative { -magnitude } else { magnitude }).map_err(|_| Unreadable::Range)
}

fn split_base(text: &str) -> (u32, &str) {
    let prefixes = [
        ("0x", 16),
        ("0X", 16),
        ("0o", 8),
        ("0O", 8),
        ("0b", 2),
        ("0B", 2),
    ];
    for (prefix, radix) in prefixes {
        if let Some(digits) = text.strip_prefix(prefix) {
            return (radix, digits);
        }
    }
    match text.strip_prefix('0') {
        Some(digits) if !digits.is_empty() => (8, digits),
        _ => (10, text),
    }
}

fn split(text: &str, separator: char) -> Vec<String> {
    trimmed(text.split(separator))
}

fn trimmed<'a>(items: impl Iterator<Item = &'a str>) -> Vec<String> {
    items
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Splits at the first colon, so that a value may contain colons (the reference drops everything after a second one).
fn parse_tag(item: &str) -> Result<(String, String), Unreadable> {
    let (name, value) = item.split_once(':').ok_or(Unreadable::TagWithoutColon)?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn range_text(min: i64, max: i64) -> String {
    match (min, max) {
        (0, i64::MAX) => "a number not below 0".to_owned(),
        _ => format!("a number from {min} to {max}"),
    }
}

/// Whether a request can have `text` as its path: clients escape quotes and angle brackets, so a path with them never
/// matches.
fn is_url_path(text: &str) -> bool {
    text.starts_with('/')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"?#\"<>`".contains(&byte))
}

/// Checks a path in which `{name}` stands for one segment and a final `*` for the rest.
fn check_path_pattern(path: &str) -> Result<(), String> {
    if !is_url_path(path) {
        return Err("paths that start with / and have no spaces".to_owned());
    }
    if path.find('*').is_some_and(|at| at + 1 != path.len()) {
        return Err("* only at the end of a path".to_owned());
    }
    let mut open = false;
    for byte in path.bytes() {
        match byte {
            b'{' if open => return Err("{name} placeholders without nesting".to_owned()),
            b'}' if !open => return Err("a { before every }".to_owned()),
            b'{' => open = true,
            b'}' => open = false,
            _ => {}
        }
    }
    if open {
        Err("a } after every {".to_owned())
    } else {
        Ok(())
    }
}

/// Checks that Prometheus accepts the label name: otherwise it could not read the metrics page at all.
fn check_label_name(name: &str) -> Result<(), String> {
    let good_start = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if good_start
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        Ok(())
    } else {
        Err("tag names made of letters, digits and _ that do not start with a digit".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn integers_are_go_literals() {
        let check = |text: &str, expected: Result<i64, Unreadable>| {
            assert_eq!(parse_int(text), expected, "{text:?}")
        };
        check("0", Ok(0));
        check("9000", Ok(9000));
        check("-1", Ok(-1));
        check("+7", Ok(7));
        check("0x50", Ok(80));
        check("0X5_0", Ok(80));
        check("0o17", Ok(15));
        check("017", Ok(15));
        check("0b101", Ok(5));
        check("0_7", Ok(7));
        check("1_000", Ok(1000));
        check("9223372036854775807", Ok(i64::MAX));
        check("-9223372036854775808", Ok(i64::MIN));
        check("9223372036854775808", Err(Unreadable::Range));
        check(
            "99999999999999999999999999999999999999999999",
            Err(Unreadable::Range),
        );
        for text in [
            "", "-", "abc", "08", "0x", "_1", "1_", "1__0", "1.5", " 1", "1 ", "0x-1", "--1", "٣",
        ] {
            check(text, Err(Unreadable::Syntax));
        }
    }

    #[test]
    fn booleans_are_go_literals() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(parse_bool(text), Ok(true), "{text}");
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(parse_bool(text), Ok(false), "{text}");
        }
        for text in ["", "yes", "on", "tRUE", " true"] {
            assert_eq!(parse_bool(text), Err(Unreadable::Syntax), "{text}");
        }
    }

    #[test]
    fn seconds_or_a_switch_take_both() {
        let check = |text: &str, expected: Result<Value, Unreadable>| {
            assert_eq!(OptionKind::SecsOrSwitch.parse(text), expected, "{text:?}");
        };
        check("5", Ok(Value::Int(5)));
        check("1", Ok(Value::Int(1)));
        check("true", Ok(Value::Bool(true)));
        check("T", Ok(Value::Bool(true)));
        check("false", Ok(Value::Int(0)));
        check("0", Ok(Value::Int(0)));
        check("5s", Err(Unreadable::Syntax));
        check("", Err(Unreadable::Syntax));
        check("99999999999999999999", Err(Unreadable::Range));
        let toml = |value: toml::Value| OptionKind::SecsOrSwitch.read_toml(&value);
        assert_eq!(toml(toml::Value::Integer(5)), Some(Value::Int(5)));
        assert_eq!(toml(toml::Value::Boolean(true)), Some(Value::Bool(true)));
        assert_eq!(toml(toml::Value::Boolean(false)), Some(Value::Int(0)));
        assert_eq!(toml(toml::Value::String("5".to_owned())), None);
        for allowed in [
            Value::Int(0),
            Value::Int(i64::from(u32::MAX)),
            Value::Bool(true),
        ] {
            assert_eq!(OptionKind::SecsOrSwitch.check(&allowed), Ok(()));
        }
        assert!(OptionKind::SecsOrSwitch.check(&Value::Int(-1)).is_err());
        assert!(
            OptionKind::SecsOrSwitch
                .check(&Value::Int(1 << 32))
                .is_err()
        );
    }

    #[test]
    fn list_items_are_trimmed_and_empty_ones_dropped() {
        let check =
            |text: &str, expected: &[&str]| assert_eq!(split(text, ','), expected, "{text:?}");
        check("/cable, /b", &["/cable", "/b"]);
        check(" a ,,b, ", &["a", "b"]);
        check("", &[]);
        check(" , ", &[]);
    }

    #[test]
    fn tags_are_split_at_the_first_colon() {
        let tag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            OptionKind::Tags.parse("env:dev, rev:1.1"),
            Ok(Value::Tags(vec![tag("env", "dev"), tag("rev", "1.1")]))
        );
        assert_eq!(
            OptionKind::Tags.parse("at:12:30"),
            Ok(Value::Tags(vec![tag("at", "12:30")]))
        );
        assert_eq!(
            OptionKind::Tags.parse("env"),
            Err(Unreadable::TagWithoutColon)
        );
        assert!(
            OptionKind::Tags
                .check(&Value::Tags(vec![tag("a-b", "c")]))
                .is_err()
        );
        assert!(
            OptionKind::Tags
                .check(&Value::Tags(vec![tag("", "c")]))
                .is_err()
        );
    }

    #[test]
    fn paths_start_with_a_slash() {
        let check =
            |path: &str, good: bool| assert_eq!(check_path_pattern(path).is_ok(), good, "{path}");
        for path in ["/", "/cable", "/{tenant}/cable", "/cable/*", "/a*"] {
            check(path, true);
        }
        for path in [
            "",
            "cable",
            "/a b",
            "/*/cable",
            "/{a",
            "/a}",
            "/{a{b}}",
            "/cable?x=1",
            "/é",
        ] {
            check(path, false);
        }
    }

    proptest! {
        #[test]
        fn reading_any_text_never_panics(text in ".{0,40}") {
            for kind in [OptionKind::Bool, OptionKind::Int { min: 0, max: 9 }, OptionKind::SecsOrSwitch, OptionKind::Paths, OptionKind::Tags] {
                if let Ok(value) = kind.parse(&text) {
                    kind.check(&value).ok();
                }
            }
        }

        #[test]
        fn printed_integers_read_back(number: i64) {
            prop_assert_eq!(parse_int(&number.to_string()), Ok(number));
        }
    }
}
