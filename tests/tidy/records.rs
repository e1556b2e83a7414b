//! What log records may show, and which of them say how many like them were left out.

use crate::source::{Source, identifier, sources, words};

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
    let sources = sources("src/");
    // The log itself tests its macros, and explains them.
    let with_records = sources
        .into_iter()
        .filter(|source| source.module() != "log");
    let records: Vec<Record> = with_records.flat_map(records_of).collect();
    assert!(records.len() > 80, "{} records found", records.len());
    records
}

fn records_of(source: &Source) -> Vec<Record> {
    let mut records = Vec::new();
    // In the text and not in the code: what is asked for stands in the texts of the macros.
    for at in words(&source.text, "tracing::") {
        let rest = &source.text[at + "tracing::".len()..];
        let level = identifier(rest);
        let Some(body) = rest[level.len()..].strip_prefix("!(") else {
            continue;
        };
        if ["error", "warn", "info", "debug", "trace"].contains(&level) {
            records.push(Record {
                file: source.path.clone(),
                level: level.to_owned(),
                text: until_closed(body).to_owned(),
            });
        }
    }
    records
}

fn shows_debug_form(text: &str) -> bool {
    let sigil = text
        .split([',', '(', '=', ' ', '\n'])
        .any(|word| word.starts_with('?'));
    sigil || text.contains(":?}") || text.contains(":#?}") || text.contains("field::debug")
}

fn hides_how_often(record: &Record) -> bool {
    let file = &record.file;
    let by_others = CAUSED_BY_OTHERS
        .iter()
        .any(|folder| file.starts_with(folder));
    let once = ONCE.iter().any(|once| record.text.contains(once));
    by_others && record.level != "debug" && !once && !record.text.contains("left_out")
}

#[test]
fn no_record_shows_the_debug_form_of_a_value() {
    for Record { file, text, .. } in records() {
        assert!(!shows_debug_form(&text), "{file}: {text}");
    }
}

#[test]
fn what_others_can_cause_says_how_many_like_it_were_left_out() {
    for record in records() {
        assert!(
            !hides_how_often(&record),
            "{}: {}",
            record.file,
            record.text
        );
    }
}

#[test]
fn records_that_break_a_rule_are_found() {
    let check = |path: &str, text: &str, debug: bool, hides: bool| {
        let records = records_of(&Source::new(path, text));
        let [record] = &records[..] else {
            panic!("{} records in {text}", records.len());
        };
        assert_eq!(shows_debug_form(&record.text), debug, "{text}");
        assert_eq!(hides_how_often(record), hides, "{text}");
    };
    check(
        "src/shard/a.rs",
        "tracing::warn!(a, \"lost )\");",
        false,
        true,
    );
    check(
        "src/shard/a.rs",
        "tracing::warn!(left_out, \"lost\");",
        false,
        false,
    );
    check(
        "src/shard/a.rs",
        "tracing::debug!(a = ?b(c), \"lost\");",
        true,
        false,
    );
    check(
        "src/rpc/a.rs",
        "tracing::error!(\"lost: {a:?}\");",
        true,
        false,
    );
    check(
        "src/rpc/a.rs",
        "tracing::error!(\"lost: {a}\");",
        false,
        false,
    );
}
