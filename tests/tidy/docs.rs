//! Files and names of the code that the pages name are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::assert_only;
use crate::source::{is_part, root, sources, words};

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

/// Names such as `Hub::attach` of which a part is no identifier of the code.
fn missing_names(page: &Page, exists: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let is_name = |quote: &&str| {
        quote.starts_with(|c: char| c.is_ascii_uppercase())
            && quote.contains("::")
            && quote.chars().all(|c| is_part(c) || c == ':')
    };
    quotes(&page.text)
        .filter(is_name)
        .filter(|quote| !quote.split("::").all(&exists))
        .map(|quote| (quote.to_owned(), page.path.clone()))
        .collect()
}

#[test]
fn names_in_the_map_exist() {
    let code: String = sources("src/").iter().map(|it| &*it.shipped).collect();
    let exists = |name: &str| words(&code, name).next().is_some();
    let missing: BTreeMap<String, String> = pages()
        .iter()
        .filter(|page| MAPS.contains(&page.path.as_str()))
        .flat_map(|page| missing_names(page, exists))
        .collect();
    assert_only("names that are not there", &missing, &[]);
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
        text: "| `hub/b.rs` | 2 |\n`hub/a.rs` and `hub/c.rs`, `hub/` and `bub/`, `Hub::join` and `Hub::part`\n"
            .to_owned(),
    };
    let missing = missing_names(&page, |name| name != "part");
    assert_eq!(missing.keys().collect::<Vec<_>>(), ["Hub::part"]);
    let missing = missing_files(&page, |path| path == "hub/a.rs" || path == "hub/");
    assert_eq!(
        missing.keys().collect::<Vec<_>>(),
        ["bub/", "hub/b.rs", "hub/c.rs"]
    );
}
