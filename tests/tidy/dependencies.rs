//! Every dependency has its reason beside it, and is named by the code that it is for.

use std::collections::BTreeMap;
use std::fs;

use crate::assert_only;
use crate::source::{Source, root, sources, words};

/// One line of a table of dependencies.
struct Dependency {
    name: String,
    has_reason: bool,
    for_tests: bool,
}

/// Reasons stand behind a line or as a comment above it.
fn dependencies(manifest: &str) -> Vec<Dependency> {
    let mut table = "";
    let mut above = "";
    let mut dependencies = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            table = line;
        }
        let is_dependency = ["[dependencies]", "[dev-dependencies]"].contains(&table);
        if let Some((name, _)) = line.split_once(" = ").filter(|_| is_dependency) {
            dependencies.push(Dependency {
                name: name.replace('-', "_"),
                has_reason: line.contains("# ") || above.starts_with("# "),
                for_tests: table == "[dev-dependencies]",
            });
        }
        above = line;
    }
    dependencies
}

fn problems(manifest: &str, sources: &[&Source]) -> BTreeMap<String, String> {
    let mut problems = BTreeMap::new();
    for dependency in dependencies(manifest) {
        let is_for = |source: &&&Source| dependency.for_tests || source.path.starts_with("src/");
        let mut code = sources
            .iter()
            .filter(is_for)
            .map(|source| match dependency.for_tests {
                true => &source.code,
                false => &source.shipped,
            });
        if !dependency.has_reason {
            problems.insert(dependency.name, "no reason beside it".to_owned());
        } else if !code.any(|code| words(code, &dependency.name).next().is_some()) {
            problems.insert(dependency.name, "no code names it".to_owned());
        }
    }
    problems
}

#[test]
fn dependencies_have_a_reason_and_a_use() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    assert!(dependencies(&manifest).len() > 30);
    let problems = problems(&manifest, &sources(""));
    let exceptions = [
        ("serde_json", "only with the feature for fuzzing"),
        ("tz_rs", "its code is called `tz`"),
    ];
    assert_only("dependencies", &problems, &exceptions);
}

#[test]
fn dependencies_without_a_reason_or_a_use_are_found() {
    let manifest = "[dependencies]\none = \"1\"\n# Why.\ntwo-x = \"1\"\nthree = \"1\" # why\n\
                    [dev-dependencies]\nfour = \"1\" # why\n[profile.dev]\nfive = 1\n";
    let source = Source::new("src/a.rs", "use one; use two_x;\n#[cfg(test)]\nuse four;");
    let found = problems(manifest, &[&source]);
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["one", "three"]);
}
