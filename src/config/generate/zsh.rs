//! Completions for zsh.

use std::fmt::Write;

use super::{Argument, offered, short_form};
use crate::config::options::OptionSpec;

const BEFORE_FLAGS: &str = r#"#compdef ringcable
# Completions of ringcable for zsh, made by `ringcable --generate=complete-zsh`: a file called _ringcable in one of the
# folders of $fpath, or sourced behind compinit.

_ringcable() {
  _arguments \
"#;

const AFTER_FLAGS: &str = r#"    && return 0
}

if [[ $funcstack[1] == _ringcable ]]; then
  _ringcable "$@"
else
  compdef _ringcable ringcable
fi
"#;

pub fn text() -> String {
    let mut out = BEFORE_FLAGS.to_owned();
    for option in offered() {
        writeln!(out, "    {} \\", spec(option)).expect("a String takes all");
    }
    out.push_str(AFTER_FLAGS);
    out
}

/// One argument of `_arguments`.
fn spec(option: &OptionSpec) -> String {
    let (name, help) = (option.name, explanation(option.help));
    if let Some(letter) = short_form(option) {
        return format!("'(- *)'{{-{letter},--{name}}}{}", quoted(&help));
    }
    let rest = match Argument::of(option) {
        Argument::Switch => help,
        Argument::Words(words) => format!("={help}:word:({})", words.join(" ")),
        Argument::File => format!("={help}:file:_files"),
        Argument::Text => format!("={help}:value: "),
    };
    quoted(&format!("--{name}{rest}"))
}

/// The text in brackets; a backslash removes the special meaning of brackets and colons in it.
fn explanation(text: &str) -> String {
    let mut out = String::from("[");
    for c in text.chars() {
        if matches!(c, '[' | ']' | '\\' | ':') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push(']');
    out
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanations_hold_anything() {
        assert_eq!(explanation(r"a: [b] \c"), r"[a\: \[b\] \\c]");
        assert_eq!(quoted("the app's"), r"'the app'\''s'");
    }

    #[test]
    fn every_kind_of_argument_has_its_form() {
        let text = text();
        for start in [
            "    '(- *)'{-h,--help}'[Print",
            "    '--driver=[How",
            "    '--ssl_cert=[PEM",
            "    '--debug[Set",
        ] {
            assert!(text.lines().any(|line| line.starts_with(start)), "{start}");
        }
        for end in [
            ":word:(auto io_uring epoll)' \\",
            ":file:_files' \\",
            ":value: ' \\",
        ] {
            assert!(text.lines().any(|line| line.ends_with(end)), "{end}");
        }
    }
}
