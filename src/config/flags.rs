//! The command line: Go's flag syntax, read with the help of the option table.
//!
//! `-name` and `--name` are the same; `--name=value`, `--name value`; a boolean takes its value only after `=`; the last of
//! repeated flags wins. Source: `contract/operations.md` §1. This differs from the reference in two ways: a word that is no
//! flag is refused (the reference silently ends the flags there), and the program's own name as the first word is skipped.

use std::slice;

use super::error::ConfigError;
use super::options::{OPTIONS, OptionSpec, index_of_flag};
use super::settings::{Settings, Source};
use super::suggest;
use super::value::{OptionKind, Value};

/// The names of the program: its own, and the reference's for those who change over.
const PROGRAM_NAMES: [&str; 2] = ["ringcable", "anycable-go"];

/// Flags that may be given as a plain word, as with other servers: `ringcable version`.
const COMMAND_WORDS: [&str; 3] = ["demo", "help", "version"];

/// The flags as given, in order.
#[derive(Debug, Default)]
pub struct Flags {
    given: Vec<(usize, Value)>,
}

impl Flags {
    /// Reads the arguments (without the program's name). Each argument that cannot be read is left out and goes into
    /// `problems`, as one of the flag variants of [`ConfigError`].
    pub fn parse(args: &[String], problems: &mut Vec<ConfigError>) -> Self {
        let mut flags = Self::default();
        let mut words = args[usize::from(starts_with_name(args))..].iter();
        if let Some(index) = words.as_slice().first().and_then(|word| command_word(word)) {
            words.next();
            flags.given.push((index, Value::Bool(true)));
        }
        while let Some(word) = words.next() {
            if word == "--" {
                break;
            }
            match flags.read_flag(word, &mut words) {
                Ok(flag) => flags.given.push(flag),
                Err(problem) => problems.push(problem),
            }
        }
        if let Some(word) = words.next() {
            problems.push(flags.unexpected(word));
        }
        flags
    }

    /// Reads the flag in `word`. Its value is in `word` or is the next word.
    fn read_flag(
        &self,
        word: &str,
        words: &mut slice::Iter<'_, String>,
    ) -> Result<(usize, Value), ConfigError> {
        let Some((name, inline)) = split_flag(word)? else {
            return Err(self.unexpected(word));
        };
        let Some(index) = index_of_flag(name) else {
            // The next word is the value of the unknown flag and no second problem, so it is skipped.
            if inline.is_none() && is_word(words.as_slice().first()) {
                words.next();
            }
            return Err(unknown(name));
        };
        let option = &OPTIONS[index];
        let value = match (option.kind, inline) {
            (OptionKind::Bool, None) => Value::Bool(true),
            // A separate word after this flag is its value, because no other word may stand there.
            (OptionKind::SecsOrSwitch, None) if !is_word(words.as_slice().first()) => {
                Value::Bool(true)
            }
            (_, Some(text)) => read(option, name, text)?,
            (_, None) => {
                let text = words.next().ok_or_else(|| ConfigError::FlagWithoutValue {
                    name: name.to_owned(),
                })?;
                read(option, name, text)?
            }
        };
        Ok((index, value))
    }

    /// Applies the flags over the file and the environment.
    pub fn apply(self, settings: &mut Settings) {
        for (index, value) in self.given {
            settings.set_at(index, value, Source::Flag);
        }
    }

    /// The last value of a flag.
    pub fn last(&self, name: &str) -> Option<&Value> {
        let index = index_of_flag(name)?;
        self.given
            .iter()
            .rev()
            .find(|(given, _)| *given == index)
            .map(|(_, value)| value)
    }

    pub fn on(&self, name: &str) -> bool {
        self.last(name) == Some(&Value::Bool(true))
    }

    fn unexpected(&self, word: &str) -> ConfigError {
        // The usual cause is `--debug false`: a boolean takes no separate word, so the hint shows `=`.
        let hint = match self.given.last() {
            Some((index, Value::Bool(_))) if OPTIONS[*index].kind.parse(word).is_ok() => {
                Some(format!(" (write --{}={word})", OPTIONS[*index].name))
            }
            _ => suggest::flag_like(word).map(|name| format!(" (did you mean --{name}?)")),
        };
        ConfigError::UnexpectedArgument {
            word: word.to_owned(),
            hint,
        }
    }
}

fn is_word(argument: Option<&String>) -> bool {
    argument.is_some_and(|text| !text.starts_with('-'))
}

/// The flag for which a plain first word stands.
fn command_word(word: &str) -> Option<usize> {
    COMMAND_WORDS
        .contains(&word)
        .then(|| index_of_flag(word))
        .flatten()
}

/// Splits `--name=value`; `None` for a word that is no flag.
fn split_flag(word: &str) -> Result<Option<(&str, Option<&str>)>, ConfigError> {
    let Some(rest) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) else {
        return Ok(None);
    };
    let rest = rest.strip_prefix('-').unwrap_or(rest);
    if rest.is_empty() || rest.starts_with(['-', '=']) {
        return Err(ConfigError::FlagSyntax {
            word: word.to_owned(),
        });
    }
    Ok(Some(match rest.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (rest, None),
    }))
}

/// True for the arguments `anycable-go --port 9000`: in a container the command follows the entry point of the image, and
/// many commands repeat the program's name there.
fn starts_with_name(args: &[String]) -> bool {
    args.first()
        .and_then(|word| word.rsplit('/').next())
        .is_some_and(|name| PROGRAM_NAMES.contains(&name))
}

fn read(option: &OptionSpec, name: &str, text: &str) -> Result<Value, ConfigError> {
    option
        .kind
        .parse(text)
        .map_err(|cause| ConfigError::FlagValue {
            name: name.to_owned(),
            text: text.to_owned(),
            boolean: option.kind == OptionKind::Bool,
            cause: cause.to_string(),
        })
}

fn unknown(name: &str) -> ConfigError {
    ConfigError::UnknownFlag {
        name: name.to_owned(),
        suggestion: suggest::flag_like(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(args: &[&str]) -> Result<Settings, String> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let (mut settings, mut problems) = (Settings::defaults(), Vec::new());
        Flags::parse(&args, &mut problems).apply(&mut settings);
        match problems.first() {
            Some(problem) => Err(problem.to_string()),
            None => Ok(settings),
        }
    }

    #[test]
    fn all_value_forms_are_read() {
        let check = |args: &[&str], name: &str, expected: Value| {
            assert_eq!(
                parse(args).expect("good flags").value(name),
                &expected,
                "{args:?}"
            );
        };
        check(&["--port=9000"], "port", Value::Int(9000));
        check(&["-port=9000"], "port", Value::Int(9000));
        check(&["--port", "9000"], "port", Value::Int(9000));
        check(&["-port", "0x50"], "port", Value::Int(80));
        check(&["--port=1", "--port=2"], "port", Value::Int(2));
        check(&["--debug"], "debug", Value::Bool(true));
        check(&["--debug=F"], "debug", Value::Bool(false));
        check(&["--debug", "--port=1", "--"], "port", Value::Int(1));
        check(&["--host="], "host", Value::Text(String::new()));
        check(&["--host", ""], "host", Value::Text(String::new()));
        check(&["--secret=a=b"], "secret", Value::Text("a=b".to_owned()));
        check(
            &["--rpc_concurrency", "-1"],
            "rpc_concurrency",
            Value::Int(-1),
        );
        check(&["--max-conn=3"], "max-conn", Value::Int(3));
        let slow = "shutdown_slowdrain";
        check(&["--shutdown_slowdrain=5"], slow, Value::Int(5));
        check(&["--shutdown_slowdrain", "5"], slow, Value::Int(5));
        check(&["--shutdown_slowdrain"], slow, Value::Bool(true));
        check(&["--shutdown_slowdrain", "-debug"], slow, Value::Bool(true));
        check(&["--shutdown_slowdrain", "--"], slow, Value::Bool(true));
        check(&["--shutdown_slowdrain=false"], slow, Value::Int(0));
        check(
            &["--headers", "Cookie, X-Api"],
            "headers",
            Value::List(vec!["Cookie".to_owned(), "X-Api".to_owned()]),
        );
        for word in ["demo", "help", "version"] {
            check(&[word], word, Value::Bool(true));
            check(&["ringcable", word], word, Value::Bool(true));
            check(&[word, "--port=9000"], "port", Value::Int(9000));
        }
        for name in ["anycable-go", "ringcable", "/usr/local/bin/anycable-go"] {
            check(&[name, "--port=9000"], "port", Value::Int(9000));
            check(&[name], "port", Value::Int(8080));
        }
    }

    #[test]
    fn bad_command_lines_are_named() {
        let check = |args: &[&str], expected: &str| {
            assert_eq!(
                parse(args).map(|_| ()).expect_err("bad flags"),
                expected,
                "{args:?}"
            );
        };
        check(&["--nope"], "flag provided but not defined: -nope");
        check(&["dance"], "unexpected argument \"dance\"");
        check(
            &["--norpc", "demo"],
            "unexpected argument \"demo\" (did you mean --demo?)",
        );
        check(
            &["check-config"],
            "unexpected argument \"check-config\" (did you mean --check-config?)",
        );
        check(
            &["verison"],
            "unexpected argument \"verison\" (did you mean --version?)",
        );
        check(&["-nope=1"], "flag provided but not defined: -nope");
        check(
            &["--prot", "1"],
            "flag provided but not defined: -prot (did you mean --port?)",
        );
        check(
            &["--max_conn=1"],
            "flag provided but not defined: -max_conn (did you mean --max-conn?)",
        );
        check(
            &["--port=abc"],
            "invalid value \"abc\" for flag -port: parse error",
        );
        check(
            &["--port="],
            "invalid value \"\" for flag -port: parse error",
        );
        check(
            &["--port=99999999999999999999"],
            "invalid value \"99999999999999999999\" for flag -port: value out of range",
        );
        check(
            &["--debug=maybe"],
            "invalid boolean value \"maybe\" for flag -debug: parse error",
        );
        check(
            &["--metrics_tags=env"],
            "invalid value \"env\" for flag -metrics_tags: expected name:value items",
        );
        check(&["--port"], "flag needs an argument: -port");
        check(
            &["--shutdown_slowdrain", "soon"],
            "invalid value \"soon\" for flag -shutdown_slowdrain: parse error",
        );
        check(&["foo", "--port", "9005"], "unexpected argument \"foo\"");
        check(&["--", "foo"], "unexpected argument \"foo\"");
        check(&["-"], "unexpected argument \"-\"");
        check(
            &["--debug", "false"],
            "unexpected argument \"false\" (write --debug=false)",
        );
        check(&["---port=1"], "bad flag syntax: ---port=1");
        check(&["--=1"], "bad flag syntax: --=1");
        check(
            &["--debug", "ringcable"],
            "unexpected argument \"ringcable\"",
        );
        check(
            &["anycable-go", "anycable-go"],
            "unexpected argument \"anycable-go\"",
        );
        check(
            &["my-anycable-go"],
            "unexpected argument \"my-anycable-go\"",
        );
    }

    #[test]
    fn each_bad_flag_is_a_problem_of_its_own() {
        let args = ["--nope", "x", "--port=a", "--debug", "-other", "--host"].map(str::to_owned);
        let mut problems = Vec::new();
        let flags = Flags::parse(&args, &mut problems);
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "flag provided but not defined: -nope",
                "invalid value \"a\" for flag -port: parse error",
                "flag provided but not defined: -other",
                "flag needs an argument: -host",
            ]
        );
        assert!(flags.on("debug"));
    }

    proptest! {
        #[test]
        fn any_words_are_read_or_refused(words in proptest::collection::vec("-{0,3}[a-z_=]{0,12}", 0..5)) {
            Flags::parse(&words, &mut Vec::new());
        }
    }
}
