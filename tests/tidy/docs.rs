//! What the pages name is there: files, and the constants that are limits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::assert_only;
use crate::source::{Source, identifier, root, sources, words};

/// The pages that name files of the project.
const MAPS: [&str; 1] = ["docs/ARCHITECTURE.md"];

struct Page {
    path: String,
    text: String,
}

fn pages() -> Vec<Page> {
    let mut folders = vec![root().join("docs")];
    let mut pages = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(Page {
                    path: path
                        .strip_prefix(root())
                        .expect("within")
                        .display()
                        .to_string(),
                    text: fs::read_to_string(&path).expect("UTF-8"),
                });
            }
        }
    }
    pages
}

/// What stands between back-quotes.
fn quotes(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The first cells of the rows of tables whose first column is called `limit`.
fn limit_cells(page: &Page) -> Vec<&str> {
    let mut cells = Vec::new();
    let mut in_table = false;
    for line in page.text.lines() {
        let Some(row) = line.strip_prefix('|') else {
            in_table = false;
            continue;
        };
        let cell = row.split('|').next().unwrap_or(row).trim();
        if in_table && !cell.starts_with("--") {
            cells.push(cell);
        }
        in_table |= cell == "limit";
    }
    cells
}

fn is_constant(name: &str) -> bool {
    let upper = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    name.len() > 1 && name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(upper)
}

/// Names of constants, each with the files that define one.
fn constants<'a>(sources: &[&'a Source]) -> BTreeMap<String, Vec<&'a str>> {
    let mut constants: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for source in sources {
        for at in words(&source.shipped, "const") {
            let name = identifier(source.shipped[at + "const".len()..].trim_start());
            if is_constant(name) {
                constants
                    .entry(name.to_owned())
                    .or_default()
                    .push(&source.path);
            }
        }
    }
    constants
}

/// Constants in the tables of limits that do not exist, or not in the file that the cell names.
fn missing_limits(
    page: &Page,
    constants: &BTreeMap<String, Vec<&str>>,
) -> BTreeMap<String, String> {
    let mut missing = BTreeMap::new();
    for cell in limit_cells(page) {
        let file = quotes(cell).find(|quote| quote.ends_with(".rs"));
        for name in quotes(cell).filter(|quote| is_constant(quote)) {
            let defined = constants.get(name).map_or(&[][..], Vec::as_slice);
            let wrong_file =
                file.is_some_and(|file| !defined.iter().any(|path| path.ends_with(file)));
            if defined.is_empty() || wrong_file {
                missing.insert(name.to_owned(), format!("{}: {cell}", page.path));
            }
        }
    }
    missing
}

/// Paths of Rust files, and folders with a slash at the end, that are not there, given those of the project.
fn missing_files(page: &Page, exists: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    quotes(&page.text)
        .filter(|quote| !quote.contains(['*', ' ', ':', '<', '=']))
        .filter(|quote| {
            quote.ends_with(".rs") || quote.ends_with('/') && !quote.starts_with(['/', '.', '-'])
        })
        .filter(|quote| !exists(quote))
        .map(|quote| (quote.to_owned(), page.path.clone()))
        .collect()
}

/// From the root of the project, from `src/`, or below any folder.
fn is_in_project(path: &str, files: &BTreeSet<String>) -> bool {
    let end = format!("/{path}");
    root().join(path).exists()
        || root().join("src").join(path).exists()
        || files
            .iter()
            .any(|file| file.ends_with(&end) || path.ends_with('/') && file.contains(&end))
}

#[test]
fn limits_in_the_pages_exist_in_the_code() {
    let constants = constants(&sources("src/"));
    let pages = pages();
    let cells: usize = pages.iter().map(|page| limit_cells(page).len()).sum();
    assert!(cells > 90, "only {cells} rows of limits found");
    let missing: BTreeMap<String, String> = pages
        .iter()
        .flat_map(|page| missing_limits(page, &constants))
        .collect();
    assert_only("limits that no constant has", &missing, &[]);
}

#[test]
fn files_in_the_map_exist() {
    let files: BTreeSet<String> = sources("")
        .into_iter()
        .map(|source| source.path.clone())
        .collect();
    let mut missing = BTreeMap::new();
    for page in pages()
        .iter()
        .filter(|page| MAPS.contains(&page.path.as_str()))
    {
        missing.extend(missing_files(page, |path| is_in_project(path, &files)));
    }
    assert_only("files that are not there", &missing, &[]);
}

#[test]
fn what_is_missing_is_found() {
    let page = Page {
        path: "docs/a.md".to_owned(),
        text: "| limit | value |\n| --- | --- |\n| `A_MAX` (`hub/a.rs`), `B_MAX` | 1 |\n| `C_MAX` (`hub/b.rs`) | 2 |\n\n\
               | other | value |\n| `D_MAX` | 3 |\n`hub/a.rs` and `hub/c.rs`, `hub/` and `bub/`\n"
            .to_owned(),
    };
    let source = Source::new(
        "src/hub/a.rs",
        "const A_MAX: u8 = 1;\npub const C_MAX: u8 = 2;",
    );
    let missing = missing_limits(&page, &constants(&[&source]));
    assert_eq!(missing.keys().collect::<Vec<_>>(), ["B_MAX", "C_MAX"]);
    let missing = missing_files(&page, |path| path == "hub/a.rs" || path == "hub/");
    assert_eq!(
        missing.keys().collect::<Vec<_>>(),
        ["bub/", "hub/b.rs", "hub/c.rs"]
    );
}
