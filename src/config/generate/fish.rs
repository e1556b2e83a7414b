//! Completions for fish.

use std::fmt::Write;

use super::{Argument, offered, short_form};

pub fn text() -> String {
    let mut out =
        "# Completions of ringcable for fish, made by `ringcable --generate=complete-fish`.\n\
                   complete -c ringcable -f\n"
            .to_owned();
    for option in offered() {
        let short = short_form(option)
            .map(|letter| format!(" -s {letter}"))
            .unwrap_or_default();
        let argument = match Argument::of(option) {
            Argument::Switch => String::new(),
            Argument::Words(words) => format!(" -x -a {}", quoted(&words.join(" "))),
            Argument::File => " -r -F".to_owned(),
            Argument::Text => " -x".to_owned(),
        };
        writeln!(
            out,
            "complete -c ringcable{short} -l {}{argument} -d {}",
            option.name,
            quoted(option.help)
        )
        .expect("a String takes all");
    }
    out
}

/// A word in single quotes; fish has only two escapes there.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_hold_anything() {
        assert_eq!(quoted("the app's"), r"'the app\'s'");
        assert_eq!(quoted(r"a\b"), r"'a\\b'");
    }

    #[test]
    fn every_kind_of_argument_has_its_form() {
        let text = text();
        for start in [
            "complete -c ringcable -s h -l help -d 'Print",
            "complete -c ringcable -l driver -x -a 'auto io_uring epoll' -d 'How",
            "complete -c ringcable -l ssl_cert -r -F -d 'PEM",
            "complete -c ringcable -l port -x -d 'Port",
            "complete -c ringcable -l debug -d 'Set",
        ] {
            assert!(text.lines().any(|line| line.starts_with(start)), "{start}");
        }
    }
}
