//! `docs/OPTIONS.md`: all options in one table per section.

use std::fmt::Write;

use crate::config::deprecated;
use crate::config::options::{OPTIONS, OptionSpec, Section, Support};

const HEAD: &str = "\
# Options

All options of ringcable: those of anycable-go 1.6.16, including those that ringcable does not support, and its own.
[configuration.md](configuration.md) says how to give options and which source has precedence.

This page is generated from the table that the server itself reads; do not edit it. Run `cargo run -- --generate=options >
docs/OPTIONS.md` to write it again.

| state | means |
| --- | --- |
| works | it does what this page says |
| without effect | it is accepted; if its value is not the default, the log says at the start that it has no effect |
| deprecated | it works, with a notice; use the option that the notice names |
| not supported | if its value is not the default, the start fails with one line |
";

pub fn text() -> String {
    let mut out = HEAD.to_owned();
    for options in OPTIONS.chunk_by(|left, right| left.section == right.section) {
        let section = options
            .first()
            .map_or(Section::General, |option| option.section);
        let title = match section {
            Section::General => "GENERAL",
            other => other.title(),
        };
        write!(
            out,
            "\n## {title}\n\n| flag | variable | file key | default | means | state |\n\
             | --- | --- | --- | --- | --- | --- |\n"
        )
        .expect("a String takes all");
        for option in options {
            writeln!(out, "{}", row(option)).expect("a String takes all");
        }
    }
    out
}

fn row(option: &OptionSpec) -> String {
    let flag = option.has_flag.then(|| format!("--{}", option.name));
    format!(
        "| {} | {} | {} | {} | {} | {} |",
        code(flag.as_slice()),
        code(&option.env_names()),
        code(&texts(option.file_key)),
        code(&texts(option.default_text)),
        escaped(option.help),
        escaped(&state(option)),
    )
}

fn state(option: &OptionSpec) -> String {
    match option.support {
        Support::Works => "works".to_owned(),
        Support::NoEffect(why) => format!("without effect: {why}"),
        Support::Deprecated => match deprecated::instead_of(option.name) {
            Some(instead) => format!("deprecated. {instead}"),
            None => "deprecated".to_owned(),
        },
        Support::Refused(why) => format!("not supported: {why}"),
    }
}

/// No items for an empty text.
fn texts(text: &str) -> Vec<String> {
    Some(text)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .into_iter()
        .collect()
}

fn code(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| format!("`{text}`")).collect();
    texts.join(", ")
}

/// Escapes what would be Markdown or the end of a cell.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '|' | '*' | '<' | '>' | '`' | '[' | ']' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_committed_page_is_the_one_that_is_made() {
        let committed = include_str!("../../../docs/OPTIONS.md");
        assert!(
            committed == text(),
            "docs/OPTIONS.md is not what the option table gives: renew it with\n    \
             cargo run -- --generate=options > docs/OPTIONS.md"
        );
    }

    #[test]
    fn a_section_stands_in_one_place() {
        let mut sections = HashSet::new();
        for options in OPTIONS.chunk_by(|left, right| left.section == right.section) {
            assert!(
                sections.insert(options[0].section.title()),
                "{} stands twice in the table",
                options[0].section.title()
            );
        }
    }

    #[test]
    fn rows_say_all_there_is_to_an_option() {
        let text = text();
        for row in [
            "| `--port` | `ANYCABLE_PORT`, `PORT` | `server.port` | `8080` | Port of the main listener; 0 lets the kernel \
             choose | works |",
            "| `--help` |  |  | `false` | Print this list and exit | works |",
            "|  |  | `streams.pubsub_channel` | `$pubsub` | Name of the signed and public streams channel; empty removes it \
             | works |",
            "| `--jwt_id_key` | `ANYCABLE_JWT_ID_KEY` |  |  | Deprecated name of jwt_secret | deprecated. Use jwt_secret \
             instead. |",
        ] {
            assert!(text.lines().any(|line| line == row), "{row}");
        }
        let state = |start: &str, end: &str| {
            let line = text.lines().find(|line| line.starts_with(start));
            assert!(line.is_some_and(|line| line.ends_with(end)), "{line:?}");
        };
        state(
            "| `--embed_nats` |",
            "| not supported: there is no embedded NATS server |",
        );
        state(
            "| `--pusher_secret` |",
            "| without effect: the Pusher protocol is not served |",
        );
    }

    #[test]
    fn cells_hold_anything() {
        assert_eq!(escaped("x-<param> | a_b*"), r"x-\<param\> \| a_b\*");
    }
}
