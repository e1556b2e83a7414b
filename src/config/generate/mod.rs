//! Texts made from the option table: the man page, completions for shells, the page with all options.
//!
//! Pure: the table in, text out. `--generate=WORD` prints them, so that a package makes these texts with the binary that it
//! contains, and they always match its options.

mod bash;
mod fish;
mod man;
mod page;
mod zsh;

use super::options::{OPTIONS, OptionSpec, Support};
use super::value::OptionKind;

/// The words that `--generate` takes.
pub const WORDS: [&str; 5] = [
    "man",
    "complete-bash",
    "complete-zsh",
    "complete-fish",
    "options",
];

/// The text that is called `word`, with a final newline; `None` for a word that is not in [`WORDS`].
pub fn text(word: &str) -> Option<String> {
    match word {
        "man" => Some(man::text()),
        "complete-bash" => Some(bash::text()),
        "complete-zsh" => Some(zsh::text()),
        "complete-fish" => Some(fish::text()),
        "options" => Some(page::text()),
        _ => None,
    }
}

/// What a shell can offer after a flag.
#[derive(Debug, PartialEq, Eq)]
enum Argument {
    /// Nothing: a value is possible only in the same word.
    Switch,
    /// One of a few words.
    Words(Vec<&'static str>),
    /// A file on this machine.
    File,
    /// Anything else.
    Text,
}

impl Argument {
    fn of(option: &OptionSpec) -> Self {
        match option.kind {
            OptionKind::Bool => Self::Switch,
            OptionKind::Word(words) => Self::Words(
                words
                    .iter()
                    .copied()
                    .filter(|word| !word.is_empty())
                    .collect(),
            ),
            OptionKind::File => Self::File,
            _ => Self::Text,
        }
    }
}

/// The flags that shells offer: those in `--help`, without refused ones and ones without effect.
fn offered() -> impl Iterator<Item = &'static OptionSpec> {
    OPTIONS
        .iter()
        .filter(|option| option.has_flag && !option.hidden && option.support == Support::Works)
}

/// `h` for `--help`; only two flags have a short form.
fn short_form(option: &OptionSpec) -> Option<char> {
    match option.name {
        "help" => Some('h'),
        "version" => Some('v'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::index_of;
    use super::*;

    #[test]
    fn every_word_of_the_option_has_its_text() {
        let option = &OPTIONS[index_of("generate").expect("in the table")];
        assert_eq!(Argument::of(option), Argument::Words(WORDS.to_vec()));
        for word in WORDS {
            let text = text(word).expect("a text");
            assert!(text.ends_with('\n') && text.len() > 1000, "{word}");
        }
        assert_eq!(text(""), None);
    }

    #[test]
    fn shells_offer_what_works() {
        let offers = |name: &str| offered().any(|option| option.name == name);
        for name in [
            "help", "port", "rpc_host", "driver", "ssl_cert", "broker", "generate",
        ] {
            assert!(offers(name), "{name}");
        }
        for name in ["pubsub", "jwt_id_key", "rpc_impl", "streams.pubsub_channel"] {
            assert!(!offers(name), "{name}");
        }
    }
}
