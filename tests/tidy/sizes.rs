//! Sizes that a reader can hold: files up to 700 lines, functions up to 60, lines with comments up to 125 columns.

use std::collections::BTreeMap;

use crate::assert_only;
use crate::source::{Source, closing, identifier, line_of, sources, words};

const FILE_LINES_MAX: usize = 700;
const FUNCTION_LINES_MAX: usize = 60;
const COMMENT_COLUMNS_MAX: usize = 125;

const LONG_FILES: &[(&str, &str)] = &[];

const LONG_FUNCTIONS: &[(&str, &str)] = &[
    (
        "benches/load/scenarios/churn.rs tell",
        "a report, line by line",
    ),
    ("benches/load/scenarios/fanout.rs cases", "a table of cases"),
    (
        "tests/integration/rpc.rs recorded_exchange_is_reproduced_byte_for_byte",
        "a recording, step by step",
    ),
];

fn long_file(source: &Source) -> Option<(String, String)> {
    let lines = source.text.lines().count();
    (lines > FILE_LINES_MAX).then(|| (source.path.clone(), format!("{lines} lines")))
}

/// Functions that are too long, from the line with `fn` to that of the closing bracket. Tests are not counted: most of them
/// are a table of inputs.
fn long_functions(source: &Source) -> Vec<(String, String)> {
    let code = &source.shipped;
    let is_test = |at: usize| code[..at].trim_end().ends_with("#[test]");
    let functions = words(code, "fn").filter(|at| !is_test(*at));
    let long = functions.filter_map(|at| {
        let name = identifier(code[at + 2..].trim_start());
        let end = body_end(code, at).filter(|_| !name.is_empty())?;
        let lines = code[at..end].matches('\n').count() + 1;
        let place = format!("line {}: {lines} lines", line_of(code, at));
        (lines > FUNCTION_LINES_MAX).then(|| (format!("{} {name}", source.path), place))
    });
    long.collect()
}

/// Where the body of the function at `start` ends; `None` where it has none.
fn body_end(code: &str, start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (offset, c) in code[start..].char_indices() {
        match c {
            '{' if depth == 0 => return Some(closing(code, start + offset)),
            ';' if depth == 0 => return None,
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

/// The lines with comments that are too wide.
fn wide_comments(source: &Source) -> Vec<usize> {
    let lines = source.text.lines().zip(source.comments.lines()).enumerate();
    lines
        .filter(|(_, (line, comment))| {
            !comment.trim().is_empty() && line.chars().count() > COMMENT_COLUMNS_MAX
        })
        .map(|(at, _)| at + 1)
        .collect()
}

#[test]
fn long_files_have_a_reason() {
    let found: BTreeMap<String, String> = sources("").into_iter().filter_map(long_file).collect();
    assert_only("files over 700 lines", &found, LONG_FILES);
}

#[test]
fn functions_are_short() {
    let found: BTreeMap<String, String> =
        sources("").into_iter().flat_map(long_functions).collect();
    assert_only("functions over 60 lines", &found, LONG_FUNCTIONS);
}

#[test]
fn comments_are_not_wide() {
    let mut found = BTreeMap::new();
    for source in sources("") {
        let lines = wide_comments(source);
        if !lines.is_empty() {
            found.insert(source.path.clone(), format!("lines {lines:?}"));
        }
    }
    assert_only("comments wider than 125 columns", &found, &[]);
}

#[test]
fn what_is_too_large_is_found() {
    let source = |text: &str| Source::new("src/a.rs", text);
    assert!(long_file(&source(&"\n".repeat(FILE_LINES_MAX))).is_none());
    assert!(long_file(&source(&"\n".repeat(FILE_LINES_MAX + 1))).is_some());

    let function = |lines: usize| {
        let body = "x();\n".repeat(lines - 2);
        source(&format!("fn a(b: [u8; 2]) -> c {{\n{body}}}\nfn d();\n"))
    };
    assert!(long_functions(&function(FUNCTION_LINES_MAX)).is_empty());
    let found = long_functions(&function(FUNCTION_LINES_MAX + 1));
    assert_eq!(
        found,
        [("src/a.rs a".to_owned(), "line 1: 61 lines".to_owned())]
    );
    let test = source(
        &function(FUNCTION_LINES_MAX + 1)
            .text
            .replace("fn a", "#[test]\nfn a"),
    );
    assert!(long_functions(&test).is_empty());

    let wide = "é".repeat(COMMENT_COLUMNS_MAX - 3);
    assert!(wide_comments(&source(&format!("// {wide}"))).is_empty());
    assert_eq!(wide_comments(&source(&format!("a\n//  {wide}"))), [2]);
    assert!(wide_comments(&source(&format!("\"    {wide}\""))).is_empty());
}
