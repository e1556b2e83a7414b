//! Lower layers never name higher ones, and folders of one layer do not name each other in a circle.

use std::collections::{BTreeMap, BTreeSet};

use crate::assert_only;
use crate::source::{Source, identifier, line_of, sources, words};

/// Every folder and file of `src/` that is a module of its own, from the lowest layer up.
const LAYERS: [&[&str]; 5] = [
    &["auth", "config", "log", "metrics", "os", "protocol", "wire"],
    &["broker", "console", "endpoints", "hub", "session"],
    &["mesh", "net", "reactor", "rpc"],
    &["shard"],
    &[
        "certificate",
        "check",
        "demo",
        "driver",
        "reporting",
        "server",
        "startup",
    ],
];

/// The roots of both crates.
const ROOTS: [&str; 2] = ["lib", "main"];

const EXCEPTIONS: &[(&str, &str)] = &[];

/// Which modules name which, and where.
type Arrows = BTreeMap<(String, String), String>;

fn arrows(sources: &[&Source]) -> Arrows {
    let mut arrows = Arrows::new();
    for source in sources {
        for (module, at) in names(source) {
            let place = format!("{}:{}", source.path, line_of(&source.shipped, at));
            if module != source.module() {
                arrows
                    .entry((source.module().to_owned(), module))
                    .or_insert(place);
            }
        }
    }
    arrows
}

/// The modules of the crate's root that a file names: `crate::hub`, and `crate::{hub, mesh::Mesh}`.
fn names(source: &Source) -> Vec<(String, usize)> {
    let mut names = Vec::new();
    for at in words(&source.shipped, "crate") {
        let Some(path) = source.shipped[at..].strip_prefix("crate::") else {
            continue;
        };
        match path.strip_prefix('{') {
            Some(group) => names.extend(group_members(group).map(|name| (name.to_owned(), at))),
            None => names.push((identifier(path).to_owned(), at)),
        }
    }
    let is_module = |name: &str| name.starts_with(|c: char| c.is_ascii_lowercase());
    names.retain(|(name, _)| is_module(name));
    names
}

/// The first names of the members of a `{…}` of which `group` is what follows the bracket.
fn group_members(group: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    let mut starts = vec![0];
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => starts.push(at + 1),
            _ => {}
        }
    }
    starts
        .into_iter()
        .map(|at| identifier(group[at..].trim_start()))
}

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| layer.contains(&module))
        .unwrap_or_else(|| panic!("`{module}` is in no layer: give it a place in LAYERS"))
}

/// What looks up, and what is part of a circle within a layer.
fn broken(arrows: &Arrows) -> BTreeMap<String, String> {
    let mut broken = BTreeMap::new();
    for ((from, to), place) in arrows {
        let looks_up = layer(from) < layer(to);
        let circles = layer(from) == layer(to) && reaches(arrows, to, from);
        if looks_up || circles {
            broken.insert(format!("{from} -> {to}"), place.clone());
        }
    }
    broken
}

fn reaches(arrows: &Arrows, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::from([from.to_owned()]);
    let mut open = vec![from.to_owned()];
    while let Some(module) = open.pop() {
        for (_, next) in arrows.keys().filter(|(start, _)| *start == module) {
            if next == to {
                return true;
            }
            if seen.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    false
}

/// Files that leave their top folder by `super::`, which no reader of imports would see.
fn escapes(source: &Source) -> BTreeMap<String, String> {
    let below = source.path.strip_prefix("src/").unwrap_or(&source.path);
    let depth = below.trim_end_matches("/mod.rs").split('/').count();
    let ladder = "super::".repeat(depth);
    words(&source.shipped, "super")
        .filter(|at| source.shipped[*at..].starts_with(&ladder))
        .map(|at| {
            (
                source.path.clone(),
                line_of(&source.shipped, at).to_string(),
            )
        })
        .collect()
}

fn without_roots() -> Vec<&'static Source> {
    let mut sources = sources("src/");
    sources.retain(|source| !ROOTS.contains(&source.module()) && source.module() != "fuzzing");
    sources
}

#[test]
fn no_folder_names_one_of_a_higher_layer() {
    let arrows = arrows(&without_roots());
    assert!(arrows.len() > 50, "only {} arrows found", arrows.len());
    assert_only(
        "lower layers name higher ones, or a layer has a circle",
        &broken(&arrows),
        EXCEPTIONS,
    );
}

#[test]
fn other_folders_are_named_by_crate_and_not_by_super() {
    let escapes: BTreeMap<String, String> = without_roots().into_iter().flat_map(escapes).collect();
    assert_only(
        "`super::` leads out of the folder; say `crate::`",
        &escapes,
        &[],
    );
}

#[test]
fn every_layer_holds_what_is_there() {
    let modules: BTreeSet<String> = without_roots()
        .iter()
        .map(|source| source.module().to_owned())
        .collect();
    let placed: BTreeSet<String> = LAYERS.concat().into_iter().map(str::to_owned).collect();
    assert_eq!(modules, placed);
}

#[test]
fn looking_up_and_circles_are_found() {
    let check = |path: &str, text: &str, expected: &[&str]| {
        let other = Source::new("src/wire/frame.rs", "use crate::protocol::json;");
        let found = broken(&arrows(&[&Source::new(path, text), &other]));
        let found: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(found, expected, "{path}: {text}");
    };
    check(
        "src/hub/table.rs",
        "use crate::shard::Shard;",
        &["hub -> shard"],
    );
    check("src/hub/table.rs", "use crate::protocol::Sid;", &[]);
    check("src/hub/table.rs", "// crate::shard\n\"crate::shard\"", &[]);
    check(
        "src/hub/table.rs",
        "use crate::{os, shard::{a, b}};",
        &["hub -> shard"],
    );
    check(
        "src/hub/table.rs",
        "#[cfg(test)]\nmod tests { use crate::shard; }",
        &[],
    );
    check(
        "src/protocol/json.rs",
        "use crate::wire::frame;",
        &["protocol -> wire", "wire -> protocol"],
    );
    let deep = Source::new("src/hub/table.rs", "use super::super::shard::Shard;");
    assert_eq!(escapes(&deep).len(), 1);
    let near = Source::new("src/hub/table.rs", "use super::intern;");
    assert!(escapes(&near).is_empty());
    let root = Source::new("src/hub/mod.rs", "use super::shard;");
    assert_eq!(escapes(&root).len(), 1);
}
