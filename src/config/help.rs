//! The text of `--help`. Source: `contract/operations.md` §10.

use std::fmt::Write;

use super::options::{OPTIONS, OptionSpec, Section, Support};
use super::value::OptionKind;

/// These options come last, so that a new user need not read about what is missing.
const NOT_YET: &str = "OPTIONS OF ANYCABLE-GO THAT ARE NOT SUPPORTED YET";

const MORE: &str = "\nMORE:\n   Every option, with its file key: man ringcable, or ringcable --generate=options\n   \
                    What comes of yours: ringcable --print-config; whether a start would like it: ringcable --check-config\n";

/// The whole help text, with a final newline. The printed defaults are the built-in ones, whatever the environment says.
pub fn text() -> String {
    let mut out = format!(
        "NAME:\n   ringcable - Action Cable server, holds very many WebSocket connections in little memory\n\n\
         USAGE:\n   ringcable [global options]\n\nVERSION:\n   {}\n\nGLOBAL OPTIONS:\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut shown: Vec<&OptionSpec> = OPTIONS.iter().filter(|option| !option.hidden).collect();
    shown.sort_by_key(|option| (option.section, option.name));
    let (missing, there): (Vec<&OptionSpec>, Vec<&OptionSpec>) =
        shown.into_iter().partition(|option| is_missing(option));
    for block in there.chunk_by(|left, right| left.section == right.section) {
        let section = block[0].section;
        write_block(
            &mut out,
            (section != Section::General).then(|| section.title()),
            block,
        );
    }
    write_block(&mut out, Some(NOT_YET), &missing);
    out.push_str(MORE);
    out
}

/// Whether the reference has the option and this server refuses it by name.
fn is_missing(option: &OptionSpec) -> bool {
    matches!(option.support, Support::Refused(_))
}

fn write_block(out: &mut String, title: Option<&str>, options: &[&OptionSpec]) {
    if let Some(title) = title {
        writeln!(out, "\n   {title}:\n").expect("a String takes all");
    }
    let width = options
        .iter()
        .map(|option| usage(option).len())
        .max()
        .unwrap_or(0);
    for option in options {
        let usage = usage(option);
        writeln!(out, "   {usage:width$}   {}", explanation(option)).expect("a String takes all");
    }
}

fn usage(option: &OptionSpec) -> String {
    let short = match option.name {
        "help" => ", -h",
        "version" => ", -v",
        _ => "",
    };
    let value = if option.kind == OptionKind::Bool {
        ""
    } else {
        " value"
    };
    format!("--{}{short}{value}", option.name)
}

fn explanation(option: &OptionSpec) -> String {
    let mut text = option.help.to_owned();
    if is_missing(option) {
        text.push_str(" (not supported yet)");
    }
    match option.kind {
        OptionKind::Bool | OptionKind::Int { .. } | OptionKind::SecsOrSwitch => {
            text.push_str(&format!(" (default: {})", option.default_text))
        }
        _ if option.default_text.is_empty() => {}
        _ => text.push_str(&format!(" (default: \"{}\")", option.default_text)),
    }
    let names: Vec<String> = option
        .env_names()
        .iter()
        .map(|name| format!("${name}"))
        .collect();
    if !names.is_empty() {
        text.push_str(&format!(" [{}]", names.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_has_the_blocks_of_the_reference() {
        let text = text();
        let blocks = [
            "NAME:\n   ringcable - ",
            "USAGE:\n   ringcable [global options]\n",
            "VERSION:\n   ",
            "GLOBAL OPTIONS:\n   --",
        ];
        for block in blocks {
            assert!(text.contains(block), "{block}");
        }
        assert!(text.ends_with(MORE) && MORE.contains("--generate=options"));
        let titles: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("   ") && line.ends_with(':'))
            .map(str::trim)
            .collect();
        assert_eq!(titles.first(), Some(&"API:"));
        assert!(titles.contains(&"WEBSOCKETS:"));
    }

    #[test]
    fn what_is_not_there_yet_stands_at_the_end_in_a_section_of_its_own() {
        let text = text();
        let (before, closing) = text.split_once(NOT_YET).expect("a section");
        assert!(!before.contains("(not supported yet)"));
        let lines: Vec<&str> = closing
            .lines()
            .filter(|line| line.contains("--") && !line.contains("ringcable --"))
            .collect();
        assert!(
            lines.len() > 10
                && lines
                    .iter()
                    .all(|line| line.contains("(not supported yet)")),
            "{lines:#?}"
        );
    }

    #[test]
    fn lines_show_default_and_variables() {
        let text = text();
        let check = |start: &str, end: &str| {
            let line = text
                .lines()
                .find(|line| line.trim_start().starts_with(start))
                .expect("shown");
            assert!(line.ends_with(end), "{line}");
        };
        check("--port value ", " (default: 8080) [$ANYCABLE_PORT, $PORT]");
        check(
            "--host value ",
            " (default: \"localhost\") [$ANYCABLE_HOST]",
        );
        check("--secret value ", " when unset [$ANYCABLE_SECRET]");
        check("--debug ", " (default: false) [$ANYCABLE_DEBUG]");
        check("--help, -h ", " Print this list and exit (default: false)");
        check(
            "--embed_nats ",
            " (not supported yet) (default: false) [$ANYCABLE_EMBED_NATS]",
        );
    }

    #[test]
    fn hidden_options_are_left_out() {
        for name in [
            "--node_id",
            "--jwt_id_key",
            "--rpc_impl",
            "--streams.pubsub_channel",
        ] {
            assert!(!text().contains(&format!("{name} ")), "{name}");
        }
    }
}
