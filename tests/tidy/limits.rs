//! `docs/limits.md` against the code: each constant that it names exists and has the value that it says, and so has each
//! option; each metric exists. A constant whose name ends in `_MAX` stands on the page.

use std::collections::{BTreeMap, BTreeSet};

use crate::assert_only;
use crate::source::{Source, sources};

const PAGE: &str = include_str!("../../docs/limits.md");
/// Made from the table of options; a test of `config::generate` keeps it so.
const OPTIONS: &str = include_str!("../../docs/OPTIONS.md");

/// Constants that end in `_MAX` and need no row.
const NO_LIMITS: &[(&str, &str)] = &[
    ("ACCEPT_QUEUE_MAX", "advice of --check"),
    ("HEADER_BYTES_MAX", "fixed by RFC 6455"),
    ("HEAD_BYTES_MAX", "the upper end of --max_head_size"),
    ("PAYLOAD_BYTES_MAX", "fixed by RFC 6455"),
];
/// Folders without limits of the server: the application of `--demo`, and the reading of options.
const NOT_SEARCHED: [&str; 2] = ["src/demo/", "src/config/"];

/// A row of a table of the page.
struct Row<'a> {
    name: &'a str,
    /// The end of its file's path; empty where the name is enough.
    file: &'a str,
    value: &'a str,
    metrics: &'a str,
}

/// A constant of the sources: where it is, and what stands behind its `=`.
struct Constant<'a> {
    file: &'a str,
    expression: &'a str,
}

type Constants<'a> = BTreeMap<&'a str, Vec<Constant<'a>>>;

fn rows(page: &str) -> Vec<Row<'_>> {
    let is_row = |line: &&str| {
        line.starts_with("| ") && !line.starts_with("| limit |") && !line.starts_with("| ---")
    };
    page.lines().filter(is_row).map(row).collect()
}

fn row(line: &str) -> Row<'_> {
    let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
    let [limit, value, _, metrics] = cells[..] else {
        panic!("not four cells: {line}");
    };
    let mut quoted = limit.split('`');
    let name = match limit.starts_with('`') {
        true => quoted.nth(1).expect("a second quote"),
        false => "",
    };
    Row {
        name,
        file: quoted.nth(1).unwrap_or(""),
        value,
        metrics,
    }
}

/// What a cell begins with, in nanoseconds, bytes or pieces: 1.5e9 for "1.5 s …", 65,536 for "64 KiB".
fn number(cell: &str) -> Option<f64> {
    let mut words = cell
        .split(' ')
        .map(|word| word.trim_end_matches([',', ';', ':']));
    let number: f64 = words.next()?.replace(',', "").parse().ok()?;
    let unit = match words.next().unwrap_or("") {
        "KiB" => 1024.0,
        "MiB" => 1024.0 * 1024.0,
        "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => 1.0,
    };
    Some(number * unit)
}

/// Every constant that ships and stands outside of functions, by name.
fn constants<'a>(sources: &[&'a Source]) -> Constants<'a> {
    let is_searched = |source: &&&Source| {
        !NOT_SEARCHED
            .iter()
            .any(|folder| source.path.starts_with(folder))
    };
    let mut constants = Constants::new();
    for source in sources.iter().filter(is_searched) {
        for (name, expression) in source.shipped.lines().filter_map(constant) {
            constants.entry(name).or_default().push(Constant {
                file: &source.path,
                expression,
            });
        }
    }
    constants
}

/// `pub const NAME: Type = expression;` on a line without indentation.
fn constant(line: &str) -> Option<(&str, &str)> {
    let (before, rest) = line.split_once("const ")?;
    if !(before.is_empty() || before.starts_with("pub")) {
        return None;
    }
    let (name, rest) = rest.split_once(": ")?;
    let (_, expression) = rest.split_once(" = ")?;
    Some((name, expression.trim_end().strip_suffix(';')?))
}

/// The value of an expression such as `(16 << 10) + 256` or `Duration::from_millis(100)`; times are in nanoseconds.
fn value(expression: &str) -> Option<f64> {
    for (unit, nanos) in [("secs", 1e9), ("millis", 1e6), ("micros", 1e3)] {
        if let Some(rest) = expression.strip_prefix(&format!("Duration::from_{unit}(")) {
            return Some(integer(rest.strip_suffix(')')?)? as f64 * nanos);
        }
    }
    Some(integer(expression)? as f64)
}

/// `<<` binds less than `+`, and `+` less than `*`.
fn integer(expression: &str) -> Option<u64> {
    let text = expression.trim();
    for (operator, apply) in [
        ("<<", (|left, right| left << right) as fn(u64, u64) -> u64),
        ("+", |left, right| left + right),
        ("*", |left, right| left * right),
    ] {
        if let Some(at) = outside_brackets(text, operator) {
            let right = &text[at + operator.len()..];
            return Some(apply(integer(&text[..at])?, integer(right)?));
        }
    }
    match text.strip_prefix('(') {
        Some(inner) => integer(inner.strip_suffix(')')?),
        None => text.replace('_', "").parse().ok(),
    }
}

/// Where `operator` stands last outside of brackets.
fn outside_brackets(text: &str, operator: &str) -> Option<usize> {
    let is_outside = |at: &usize| {
        let before = &text[..*at];
        before.matches('(').count() == before.matches(')').count()
    };
    let mut places = text.rmatch_indices(operator).map(|(at, _)| at);
    places.find(is_outside)
}

/// What is wrong with a row that names a constant.
fn wrong_constant(row: &Row<'_>, constants: &Constants<'_>) -> Option<String> {
    let all = constants.get(row.name).map_or(&[][..], Vec::as_slice);
    let mut found = all.iter().filter(|found| found.file.ends_with(row.file));
    let (Some(constant), None) = (found.next(), found.next()) else {
        let files: Vec<&str> = all.iter().map(|found| found.file).collect();
        return Some(format!(
            "one is wanted in {:?}, the code has it in {files:?}",
            row.file
        ));
    };
    let code = value(constant.expression);
    if code.is_some() && code == number(row.value) {
        return None;
    }
    Some(format!(
        "the page says {:?}, {} says {}",
        row.value, constant.file, constant.expression
    ))
}

/// What is wrong with a row that names an option.
fn wrong_option(row: &Row<'_>, options: &str) -> Option<String> {
    let begin = format!("| `{}` |", row.name);
    let Some(line) = options.lines().find(|line| line.starts_with(&begin)) else {
        return Some("there is no such option".to_owned());
    };
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let default = match (cells[4].trim_matches('`'), cells[5].split_once("; 0 = ")) {
        ("0" | "-1", None) => None,
        ("0" | "-1", Some((_, meant))) => meant.parse::<f64>().ok(),
        (default, _) => Some(default.parse::<f64>().expect("a number")),
    };
    let fits = match (default, number(row.value)) {
        // "off" or "auto: …".
        (None, None) => true,
        // An option in seconds or milliseconds says so in its text alone.
        (Some(default), Some(shown)) => [1.0, 1e6, 1e9].iter().any(|unit| default * unit == shown),
        _ => false,
    };
    (!fits).then(|| format!("the page says {:?}, the default is {}", row.value, cells[4]))
}

/// Names of the page with what is wrong about them.
fn wrong_rows(page: &str, constants: &Constants<'_>, options: &str) -> BTreeMap<String, String> {
    let wrong = |row: &Row<'_>| match row.name {
        "" => None,
        name if name.starts_with("--") => wrong_option(row, options),
        _ => wrong_constant(row, constants),
    };
    let named = |row: Row<'_>| wrong(&row).map(|problem| (row.name.to_owned(), problem));
    rows(page).into_iter().filter_map(named).collect()
}

/// Constants that have more than one row, with the last one. An option may have a row in each table.
fn twice(page: &str) -> BTreeMap<String, String> {
    let mut seen = BTreeSet::new();
    let is_second = |row: &Row<'_>| {
        let is_constant = !row.name.is_empty() && !row.name.starts_with("--");
        is_constant && !seen.insert((row.name.to_owned(), row.file.to_owned()))
    };
    let second = rows(page).into_iter().filter(is_second);
    second
        .map(|row| (row.name.to_owned(), row.value.to_owned()))
        .collect()
}

/// Constants that end in `_MAX` and have no row, with their files.
fn without_row(page: &str, constants: &Constants<'_>) -> BTreeMap<String, String> {
    let rows = rows(page);
    let has_row = |name: &str, file: &str| {
        rows.iter()
            .any(|row| row.name == name && file.ends_with(row.file))
    };
    let mut lacking = BTreeMap::new();
    for (name, found) in constants.iter().filter(|(name, _)| name.ends_with("_MAX")) {
        for constant in found.iter().filter(|it| !has_row(name, it.file)) {
            lacking.insert((*name).to_owned(), constant.file.to_owned());
        }
    }
    lacking
}

/// Metrics of the page whose names do not stand as a text in `code`.
fn unknown_metrics(page: &str, code: &str) -> BTreeMap<String, String> {
    let mut unknown = BTreeMap::new();
    for row in rows(page) {
        for metric in row.metrics.split('`').skip(1).step_by(2) {
            let bare = metric
                .strip_prefix("ringcable_")
                .or(metric.strip_prefix("anycable_go_"));
            let bare = bare.and_then(|name| name.split('{').next());
            if !bare.is_some_and(|name| code.contains(&format!("\"{name}\""))) {
                unknown.insert(metric.to_owned(), row.name.to_owned());
            }
        }
    }
    unknown
}

#[test]
fn limits_of_the_page_have_their_values_in_the_code() {
    assert!(rows(PAGE).len() > 100, "only {} rows", rows(PAGE).len());
    let wrong = wrong_rows(PAGE, &constants(&sources("src/")), OPTIONS);
    assert_only("docs/limits.md", &wrong, &[]);
}

#[test]
fn maxima_of_the_code_stand_on_the_page() {
    let lacking = without_row(PAGE, &constants(&sources("src/")));
    assert_only("docs/limits.md lacks", &lacking, NO_LIMITS);
}

#[test]
fn metrics_of_the_page_exist() {
    let code: String = sources("src/metrics/").iter().map(|it| &*it.text).collect();
    let unknown = unknown_metrics(PAGE, &code);
    assert_only("metrics that do not exist", &unknown, &[]);
}

#[test]
fn no_constant_has_two_rows() {
    assert_only("rows twice on docs/limits.md", &twice(PAGE), &[]);
}

#[test]
fn what_differs_is_found() {
    let source = Source::new(
        "src/hub/a.rs",
        "const A_MAX: usize = (1 << 10) + 2 * 3;\npub const WAIT: Duration = Duration::from_millis(1_500);\n\
         const B_MAX: usize = 7;\n",
    );
    let constants = constants(&[&source]);
    let options = "| `--a` | `A` | `a` | `3000` | Milliseconds | works |\n";
    let page = |a: &str, wait: &str, option: &str| {
        format!(
            "| limit | value | when | metric |\n| --- | --- | --- | --- |\n| `A_MAX` | {a} | – | `ringcable_b` |\n\
             | `WAIT` (`hub/a.rs`) | {wait} | – | – |\n| `--a` | {option} | – | `ringcable_a` |\n"
        )
    };
    let wrong = |page: &str| -> Vec<String> {
        let wrong = wrong_rows(page, &constants, options);
        wrong.into_keys().collect()
    };
    let right = page("1,030 bytes", "1.5 s of it", "3 s, or less");
    assert_eq!(wrong(&right), [""; 0]);
    let off = page("1 KiB", "1.4 s", "2 s");
    assert_eq!(wrong(&off), ["--a", "A_MAX", "WAIT"]);
    let gone = right.replace("A_MAX", "Z_MAX").replace("hub/a", "hub/z");
    assert_eq!(wrong(&gone), ["WAIT", "Z_MAX"]);
    let lacking = without_row(&right, &constants);
    assert_eq!(lacking.into_keys().collect::<Vec<_>>(), ["B_MAX"]);
    assert!(twice(&right).is_empty());
    let doubled = twice(&format!("{right}{right}"));
    assert_eq!(doubled.into_keys().collect::<Vec<_>>(), ["A_MAX", "WAIT"]);
    let unknown = unknown_metrics(&right, "\"a\"");
    assert_eq!(unknown.into_keys().collect::<Vec<_>>(), ["ringcable_b"]);
}
