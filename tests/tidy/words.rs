//! The words of the glossary (docs/ARCHITECTURE.md), as far as names show them.

use std::collections::BTreeMap;

use crate::assert_only;
use crate::source::{Source, identifier, line_of, sources, words};

/// Words that names of types and files do not have, and what is said instead.
const SAID_OTHERWISE: [(&str, &str); 12] = [
    ("worker", "shard"),
    ("gate", "shard"),
    ("peer", "client"),
    ("user", "client, or connection identifiers"),
    ("channel", "identifier, stream, or inbox"),
    ("topic", "stream"),
    ("ids", "connection identifiers"),
    ("push", "publication or delivery"),
    ("seq", "offset"),
    ("manager", "what it does"),
    ("helper", "what it does"),
    ("util", "what it does"),
];

/// Where the app's own words are meant.
const EXCEPTIONS: &[(&str, &str)] = &[
    (
        "src/auth/channels.rs channels",
        "the app's channels, by their names",
    ),
    (
        "src/auth/channels.rs LocalChannel",
        "the app's channels, by their names",
    ),
    (
        "src/demo/channels.rs channels",
        "the demo is an app, and has channels",
    ),
    (
        "src/demo/channels.rs Channel",
        "the demo is an app, and has channels",
    ),
    ("src/demo/user.rs user", "the demo is an app, and has users"),
    ("src/demo/user.rs User", "the demo is an app, and has users"),
];

/// Names of several types that other files see, and what each of them is.
const SEVERAL_MEANINGS: &[(&str, &str)] = &[
    (
        "Admission",
        "rpc: through the breaker; session: of a client",
    ),
    ("Connection", "rpc: to the app; shard: to a client"),
    (
        "Finding",
        "check: about the host; rpc: about the app at the start",
    ),
    ("Permit", "mesh: for a socket; rpc: for a call"),
    (
        "Place",
        "rpc: of an idle connection; shard: of a session in the schedule",
    ),
    ("Reader", "protocol: of JSON; shard: of a client's socket"),
    (
        "Received",
        "net: in the HTTP phase; shard: from a session's socket",
    ),
    (
        "Reply",
        "mesh: to a question to all shards; protocol: to a client",
    ),
    ("Response", "endpoints: ours; rpc: the app's"),
    ("Route", "auth: of a subscribe; shard/http: of a path"),
    ("StartError", "rpc: of its client; server: of all"),
    ("Token", "config: a bearer's; reactor: of a session"),
];

/// An application of its own, and properties for fuzzing.
const OTHER_PROGRAMS: [&str; 2] = ["demo", "fuzzing"];

const MARKS_OF_THE_UNFINISHED: [&str; 4] = ["TODO", "FIXME", "XXX", "HACK"];

/// Names of types and files with a word that is said otherwise.
fn broken(source: &Source) -> BTreeMap<String, String> {
    let mut broken = BTreeMap::new();
    if source.shipped.trim().is_empty() && !source.code.trim().is_empty() {
        return broken; // tests are called after what they test
    }
    for (name, line) in names(source) {
        for (word, instead) in SAID_OTHERWISE {
            if parts(&name)
                .iter()
                .any(|part| part == word || part.strip_suffix('s') == Some(word))
            {
                let place = format!("line {line}: `{name}` has `{word}`; say {instead}");
                broken.insert(format!("{} {name}", source.path), place);
            }
        }
    }
    broken
}

/// The file's own name and those of its types.
fn names(source: &Source) -> Vec<(String, usize)> {
    let file = source.path.trim_end_matches("/mod.rs");
    let file = file.rsplit('/').next().unwrap_or(file);
    let mut names = vec![(file.trim_end_matches(".rs").to_owned(), 1)];
    for keyword in ["struct", "enum", "trait", "type", "union"] {
        for at in words(&source.shipped, keyword) {
            let name = identifier(source.shipped[at + keyword.len()..].trim_start());
            names.push((name.to_owned(), line_of(&source.shipped, at)));
        }
    }
    names
}

/// `["ping", "frames"]` for `PingFrames` and for `ping_frames`.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for c in name.chars() {
        if c.is_uppercase() || c == '_' {
            parts.push(String::new());
        }
        if c != '_' {
            parts
                .last_mut()
                .expect("one is there")
                .extend(c.to_lowercase());
        }
    }
    parts
}

/// Names of types that are public in more than one file, with the files.
fn several_meanings(sources: &[&Source]) -> BTreeMap<String, String> {
    let mut places: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for source in sources {
        if OTHER_PROGRAMS.contains(&source.module()) {
            continue;
        }
        for line in source.shipped.lines() {
            let mut words = line.split(' ');
            let is_public = words.next().is_some_and(|word| word.starts_with("pub"));
            let is_type = words
                .next()
                .is_some_and(|word| ["struct", "enum", "trait", "type"].contains(&word));
            if let Some(name) = words.next().filter(|_| is_public && is_type) {
                let files = places.entry(identifier(name).to_owned()).or_default();
                files.push(&source.path);
            }
        }
    }
    places.retain(|_, files| files.len() > 1);
    let with_files = places.into_iter();
    with_files
        .map(|(name, files)| (name, files.join(" ")))
        .collect()
}

/// Functions called `get_…`.
fn getters(source: &Source) -> BTreeMap<String, String> {
    words(&source.code, "fn")
        .filter_map(|at| {
            let name = identifier(source.code[at + 2..].trim_start());
            let line = line_of(&source.code, at);
            name.starts_with("get_")
                .then(|| (format!("{} {name}", source.path), format!("line {line}")))
        })
        .collect()
}

fn unfinished(source: &Source) -> BTreeMap<String, String> {
    let lines = source.comments.lines().enumerate();
    lines
        .filter(|(_, line)| {
            MARKS_OF_THE_UNFINISHED
                .iter()
                .any(|mark| words(line, mark).next().is_some())
        })
        .map(|(at, line)| {
            (
                format!("{}:{}", source.path, at + 1),
                line.trim().to_owned(),
            )
        })
        .collect()
}

#[test]
fn types_and_files_have_the_words_of_the_glossary() {
    let found: BTreeMap<String, String> = sources("src/").into_iter().flat_map(broken).collect();
    assert_only("words that are said otherwise", &found, EXCEPTIONS);
}

#[test]
fn one_name_is_one_type() {
    let found = several_meanings(&sources("src/"));
    assert_only("public types of one name", &found, SEVERAL_MEANINGS);
}

#[test]
fn two_types_of_one_name_are_found() {
    let source = |path, text| Source::new(path, text);
    let first = source("src/hub/a.rs", "pub struct Table<T>;\nenum Own {}\n");
    let second = source(
        "src/rpc/b.rs",
        "pub(crate) type Table = u8;\npub enum Own {}\n",
    );
    let found = several_meanings(&[&first, &second]);
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["Table"]);
}

#[test]
fn no_function_is_called_get() {
    let found: BTreeMap<String, String> = sources("").into_iter().flat_map(getters).collect();
    let exceptions = [(
        "benches/load/peer.rs get_over",
        "it makes a request with the method GET",
    )];
    assert_only("`get_` says nothing", &found, &exceptions);
}

#[test]
fn no_comment_promises_something() {
    let found: BTreeMap<String, String> = sources("").into_iter().flat_map(unfinished).collect();
    assert_only("what is missing is not noted in a comment", &found, &[]);
}

#[test]
fn other_words_are_found() {
    let check = |path: &str, text: &str, expected: &[&str]| {
        let found = broken(&Source::new(path, text));
        let found: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(found, expected, "{path}: {text}");
    };
    check(
        "src/hub/a.rs",
        "pub struct TopicTable;",
        &["src/hub/a.rs TopicTable"],
    );
    check("src/hub/a.rs", "enum Users {}", &["src/hub/a.rs Users"]);
    check("src/hub/workers.rs", "", &["src/hub/workers.rs workers"]);
    check("src/peer/mod.rs", "", &["src/peer/mod.rs peer"]);
    check(
        "src/hub/a.rs",
        "struct Pusher; struct Gateway; struct Topical;",
        &[],
    );
    check("src/hub/a.rs", "// struct Topic\nfn topic() {}", &[]);
    let source = Source::new(
        "src/a.rs",
        "fn get_name() {}\nfn getter() {}\n// TODO: more\n",
    );
    assert_eq!(getters(&source).len(), 1);
    assert_eq!(unfinished(&source).len(), 1);
}
