//! Options that `config/` asks for by name are rows of the table: a name that is not there is a panic at the start.

use std::collections::{BTreeMap, BTreeSet};

use crate::assert_only;
use crate::source::{Source, line_of, sources};

const TABLE: &str = "src/config/options/table.rs";

/// Methods of `Settings` and `Flags` whose first argument is the name of an option.
const LOOK_UPS: [&str; 13] = [
    ".as_given(",
    ".derive(",
    ".int(",
    ".is_default(",
    ".is_given(",
    ".last(",
    ".list(",
    ".on(",
    ".reset(",
    ".source(",
    ".stream_limits(",
    ".tags(",
    ".text(",
];

/// The names in the rows `"name", "file.key", …`.
fn rows(table: &Source) -> BTreeSet<String> {
    let rows = table.text.lines().filter_map(|line| {
        let row = line.trim_start().strip_prefix('"')?;
        let (name, rest) = row.split_once('"')?;
        rest.starts_with(", \"").then(|| name.to_owned())
    });
    rows.collect()
}

/// The names that a file asks for, each with its line.
fn asked_for(source: &Source) -> Vec<(String, usize)> {
    let shipped = source.shipped.lines().zip(source.text.lines());
    let lines = shipped.map(|(code, text)| if code.trim().is_empty() { "" } else { text });
    let text = lines.collect::<Vec<_>>().join("\n");
    let mut names = Vec::new();
    for look_up in LOOK_UPS {
        for (at, _) in text.match_indices(look_up) {
            let argument = text[at + look_up.len()..].trim_start();
            if let Some((name, _)) = argument
                .strip_prefix('"')
                .and_then(|rest| rest.split_once('"'))
            {
                names.push((name.to_owned(), line_of(&text, at)));
            }
        }
    }
    names
}

fn missing(source: &Source, rows: &BTreeSet<String>) -> BTreeMap<String, String> {
    let asked = asked_for(source).into_iter();
    asked
        .filter(|(name, _)| !rows.contains(name))
        .map(|(name, line)| (name, format!("{}:{line}", source.path)))
        .collect()
}

#[test]
fn options_are_asked_for_by_names_of_the_table() {
    let config = sources("src/config/");
    let table = config.iter().find(|source| source.path == TABLE);
    let rows = rows(table.expect("the table of options"));
    let asked: usize = config.iter().map(|source| asked_for(source).len()).sum();
    assert!(
        rows.len() > 150 && asked > 90,
        "{} rows, {asked} names",
        rows.len()
    );
    let missing: BTreeMap<String, String> = config
        .iter()
        .flat_map(|source| missing(source, &rows))
        .collect();
    assert_only("options that are in no row", &missing, &[]);
}

#[test]
fn a_name_in_no_row_is_found() {
    let table = Source::new(
        TABLE,
        "    \"port\", \"server.port\", PORT, \"8080\",\n        \"Where\";\n",
    );
    let text = "fn a() {\n    settings.int(\"port\");\n    settings.derive(\n        \"prot\", b);\n}\n\
                #[cfg(test)]\nfn b() { settings.on(\"test\") }\n";
    let missing = missing(&Source::new("src/config/a.rs", text), &rows(&table));
    let expected = ("prot".to_owned(), "src/config/a.rs:3".to_owned());
    assert_eq!(missing.into_iter().collect::<Vec<_>>(), [expected]);
}
