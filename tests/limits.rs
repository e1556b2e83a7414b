//! `docs/limits.md` against the code: each constant that it names exists and has the value that it says, so has each option,
//! and each metric. A constant whose name ends in `_MAX` stands on the page.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = include_str!("../docs/limits.md");
/// Made from the table of options, which a test of `config::generate` ensures.
const OPTIONS: &str = include_str!("../docs/OPTIONS.md");

/// Constants that end in `_MAX` and are no limits of the server.
const NO_LIMITS: [(&str, &str); 4] = [
    ("ACCEPT_QUEUE_MAX", "advice of --check"),
    ("HEADER_BYTES_MAX", "fixed by RFC 6455"),
    ("PAYLOAD_BYTES_MAX", "fixed by RFC 6455"),
    ("HEAD_BYTES_MAX", "the upper end of --max_head_size"),
];
/// Folders without limits of the server: the application of `--demo`, and the reading of options.
const NOT_SEARCHED: [&str; 2] = ["src/demo/", "src/config/"];

/// A row of a table of the page.
struct Row {
    name: &'static str,
    /// The end of its file's path; empty where the name is enough.
    file: &'static str,
    value: &'static str,
    metrics: &'static str,
}

/// A constant of the sources: where it is and what stands behind its `=`.
struct Constant {
    file: String,
    expression: String,
}

fn rows() -> Vec<Row> {
    let rows: Vec<Row> = PAGE
        .lines()
        .filter(|line| {
            line.starts_with("| ") && !line.starts_with("| limit |") && !line.starts_with("| ---")
        })
        .map(row)
        .collect();
    assert!(rows.len() > 100, "{} rows found", rows.len());
    rows
}

fn row(line: &'static str) -> Row {
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

/// Every constant of the server that stands outside of functions and tests, by name.
fn constants() -> BTreeMap<String, Vec<Constant>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    let mut constants: BTreeMap<String, Vec<Constant>> = BTreeMap::new();
    for path in files {
        let file = path
            .strip_prefix(root)
            .expect("within")
            .display()
            .to_string();
        if file.contains("tests") || NOT_SEARCHED.iter().any(|folder| file.starts_with(folder)) {
            continue;
        }
        for line in fs::read_to_string(&path).expect("UTF-8").lines() {
            if let Some((name, expression)) = constant(line) {
                let expression = expression.to_owned();
                let found = Constant {
                    file: file.clone(),
                    expression,
                };
                constants.entry(name.to_owned()).or_default().push(found);
            }
        }
    }
    constants
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// `pub const NAME: Type = expression;` on a line without indentation.
fn constant(line: &str) -> Option<(&str, &str)> {
    let (before, rest) = line.split_once("const ")?;
    if !(before.is_empty() || before.starts_with("pub")) {
        return None;
    }
    let (name, rest) = rest.split_once(": ")?;
    let (_, expression) = rest.split_once(" = ")?;
    Some((name, expression.strip_suffix(';')?))
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
    let depth_at = |at: usize| {
        let before = &text[..at];
        before.matches('(').count() - before.matches(')').count()
    };
    let mut places = text.rmatch_indices(operator).map(|(at, _)| at);
    places.find(|&at| depth_at(at) == 0)
}

/// What is wrong with a row that names a constant.
fn check_constant(row: &Row, constants: &BTreeMap<String, Vec<Constant>>) -> Option<String> {
    let all = constants.get(row.name).map_or(&[][..], Vec::as_slice);
    let found: Vec<&Constant> = all
        .iter()
        .filter(|found| found.file.ends_with(row.file))
        .collect();
    let [constant] = found[..] else {
        let files: Vec<&str> = all.iter().map(|found| &*found.file).collect();
        return Some(format!(
            "there has to be one, in {:?}; the code has it in {files:?}",
            row.file
        ));
    };
    let code = value(&constant.expression);
    if code.is_some() && code == number(row.value) {
        return None;
    }
    Some(format!(
        "the page says {:?}, {} says {}",
        row.value, constant.file, constant.expression
    ))
}

/// What is wrong with a row that names an option.
fn check_option(row: &Row) -> Option<String> {
    let begin = format!("| `{}` |", row.name);
    let Some(line) = OPTIONS.lines().find(|line| line.starts_with(&begin)) else {
        return Some("there is no such option".to_owned());
    };
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    let default = match (cells[4].trim_matches('`'), cells[5].split_once("; 0 = ")) {
        ("0" | "-1", None) => None,
        ("0" | "-1", Some((_, meant))) => meant.parse::<f64>().ok(),
        (default, _) => Some(default.parse::<f64>().expect("a number")),
    };
    let shown = number(row.value);
    let fits = match (default, shown) {
        // "off" or "auto: …".
        (None, None) => true,
        // An option in seconds or milliseconds says so in its text alone.
        (Some(default), Some(shown)) => [1.0, 1e6, 1e9].iter().any(|unit| default * unit == shown),
        _ => false,
    };
    (!fits).then(|| {
        format!(
            "the page says {:?}, its default is {:?}",
            row.value, cells[4]
        )
    })
}

#[test]
fn every_limit_of_the_page_has_its_value_in_the_code() {
    let constants = constants();
    let mut wrong = Vec::new();
    for row in rows().iter().filter(|row| !row.name.is_empty()) {
        let problem = match row.name.starts_with("--") {
            true => check_option(row),
            false => check_constant(row, &constants),
        };
        wrong.extend(problem.map(|problem| format!("{}: {problem}", row.name)));
    }
    assert!(wrong.is_empty(), "docs/limits.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_maximum_of_the_code_stands_on_the_page() {
    let rows = rows();
    let is_known = |name: &str, file: &str| {
        let on_page = rows
            .iter()
            .any(|row| row.name == name && file.ends_with(row.file));
        on_page || NO_LIMITS.iter().any(|(no_limit, _)| *no_limit == name)
    };
    for (name, found) in constants()
        .iter()
        .filter(|(name, _)| name.ends_with("_MAX"))
    {
        for constant in found {
            assert!(
                is_known(name, &constant.file),
                "docs/limits.md lacks {name} ({})",
                constant.file
            );
        }
    }
}

#[test]
fn every_metric_of_the_page_exists() {
    let mut files = Vec::new();
    collect(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src/metrics"),
        &mut files,
    );
    let code: String = files
        .iter()
        .map(|file| fs::read_to_string(file).expect("UTF-8"))
        .collect();
    for row in rows() {
        for metric in row.metrics.split('`').skip(1).step_by(2) {
            let name = metric
                .strip_prefix("ringcable_")
                .or(metric.strip_prefix("anycable_go_"));
            let name = name.expect("a prefix").split('{').next().expect("a name");
            assert!(
                code.contains(&format!("\"{name}\"")),
                "there is no metric {metric}"
            );
        }
    }
}
