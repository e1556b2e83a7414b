//! Unsafe code stands in `os/` and `reactor/`, and every piece of it says why it is sound.

use std::collections::BTreeMap;

use crate::assert_only;
use crate::source::{Source, line_of, sources, words};

const UNSAFE: [&str; 2] = ["os", "reactor"];

const ELSEWHERE: &[(&str, &str)] = &[];

/// Comments in front of an `unsafe` may be followed by this many lines of the statement that it is part of.
const LINES_BETWEEN_MAX: usize = 3;

/// Lines of `unsafe` code without the reason in front of it.
fn unexplained(source: &Source) -> BTreeMap<String, String> {
    words(&source.code, "unsafe")
        .map(|at| line_of(&source.code, at))
        .filter(|line| !is_explained(source, *line))
        .map(|line| {
            (
                format!("{}:{line}", source.path),
                "no SAFETY note".to_owned(),
            )
        })
        .collect()
}

/// Whether the comment that ends before `line` (counted from 1) has the note.
fn is_explained(source: &Source, line: usize) -> bool {
    let code: Vec<&str> = source.code.lines().collect();
    let comments: Vec<&str> = source.comments.lines().collect();
    let is_comment =
        |at: usize| !comments[at].trim().is_empty() || code[at].trim().starts_with("#[");
    let mut at = line - 1;
    let statement = (line - 1).saturating_sub(LINES_BETWEEN_MAX);
    while at > statement && !is_comment(at - 1) {
        at -= 1;
    }
    let mut found = comments[line - 1].contains("SAFETY:");
    while at > 0 && is_comment(at - 1) {
        at -= 1;
        found |= comments[at].contains("SAFETY:") || comments[at].contains("# Safety");
    }
    found
}

fn elsewhere(source: &Source) -> BTreeMap<String, String> {
    let places = words(&source.code, "unsafe").filter(|_| !UNSAFE.contains(&source.module()));
    places
        .map(|at| line_of(&source.code, at))
        .map(|line| (source.path.clone(), format!("line {line}")))
        .collect()
}

#[test]
fn unsafe_code_stands_in_two_folders() {
    let found: BTreeMap<String, String> = sources("src/").into_iter().flat_map(elsewhere).collect();
    assert_only(
        "unsafe code outside of `os/` and `reactor/`",
        &found,
        ELSEWHERE,
    );
}

#[test]
fn every_unsafe_piece_says_why_it_is_sound() {
    let found: BTreeMap<String, String> = sources("").into_iter().flat_map(unexplained).collect();
    assert_only("unsafe code without a note", &found, &[]);
}

#[test]
fn unsafe_code_without_a_note_is_found() {
    let check = |text: &str, expected: usize| {
        let found = unexplained(&Source::new("src/os/a.rs", text));
        assert_eq!(found.len(), expected, "{text}");
    };
    check("let a = unsafe { b() };", 1);
    check("// SAFETY: b is there.\nlet a = unsafe { b() };", 0);
    check(
        "// SAFETY: b is there,\n// always.\nlet a = c(\n    d,\n    unsafe { b() },\n);",
        0,
    );
    check(
        "// SAFETY: b is there.\nlet a = b();\n\n\n\nlet c = unsafe { b() };",
        1,
    );
    check(
        "/// # Safety\n/// Never.\n#[inline]\npub unsafe fn a() {}",
        0,
    );
    check("/// Never.\npub unsafe fn a() {}", 1);
    check("// unsafe\nlet unsafety = \"unsafe\";", 0);
    let outside = Source::new("src/hub/a.rs", "// SAFETY: none.\nunsafe { b() }");
    assert_eq!(elsewhere(&outside).len(), 1);
    assert!(elsewhere(&Source::new("src/os/a.rs", "unsafe { b() }")).is_empty());
}
