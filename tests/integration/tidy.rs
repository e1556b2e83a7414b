//! Rules that the sources keep and no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

/// Records of what clients, peers and the app do. The others are about starts, stops and what an operator does.
const CAUSED_BY_OTHERS: [&str; 2] = ["src/shard/", "src/demo/"];

/// In those folders, but at most one in the life of a shard or of a drain.
const ONCE: [&str; 4] = [
    "cannot pin the shard to its CPU",
    "io_uring is refused to this shard",
    "invoking remaining disconnects",
    "{text}",
];

/// One call of a macro of `tracing`, from its name to its last bracket.
struct Record {
    file: String,
    level: String,
    text: String,
}

fn sources(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// What ships: without the tests at the end of a file.
fn shipped(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("UTF-8");
    match text.split_once("#[cfg(test)]\nmod tests") {
        Some((shipped, _)) => shipped.to_owned(),
        None => text,
    }
}

/// Up to the bracket that closes the one before `text`; brackets in texts do not count.
fn until_closed(text: &str) -> &str {
    let (mut depth, mut in_text, mut escaped) = (1, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_text => escaped = true,
            '"' => in_text = !in_text,
            '(' if !in_text => depth += 1,
            ')' if !in_text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    panic!("not closed: {text}")
}

fn records() -> Vec<Record> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let mut records = Vec::new();
    for path in files {
        let file = path
            .strip_prefix(root)
            .expect("within")
            .display()
            .to_string();
        let text = shipped(&path);
        // The log itself tests its macros, and explains them.
        for (at, _) in text.match_indices("tracing::") {
            let rest = &text[at + "tracing::".len()..];
            let Some((level, body)) = rest.split_once("!(") else {
                continue;
            };
            if ["error", "warn", "info", "debug", "trace"].contains(&level)
                && !file.starts_with("src/log/")
            {
                records.push(Record {
                    file: file.clone(),
                    level: level.to_owned(),
                    text: until_closed(body).to_owned(),
                });
            }
        }
    }
    assert!(records.len() > 80, "{} records found", records.len());
    records
}

#[test]
fn no_record_shows_the_debug_form_of_a_value() {
    for Record { file, text, .. } in records() {
        let sigil = text
            .split([',', '(', '=', ' ', '\n'])
            .any(|word| word.starts_with('?'));
        let debug =
            sigil || text.contains(":?}") || text.contains(":#?}") || text.contains("field::debug");
        assert!(!debug, "{file}: {text}");
    }
}

#[test]
fn what_others_can_cause_says_how_many_like_it_were_left_out() {
    for Record { file, level, text } in records() {
        let by_others = CAUSED_BY_OTHERS
            .iter()
            .any(|folder| file.starts_with(folder));
        if !by_others || level == "debug" || ONCE.iter().any(|once| text.contains(once)) {
            continue;
        }
        assert!(text.contains("left_out"), "{file}: {text}");
    }
}
