//! Rules of the project that no compiler checks. Reads the sources and the pages; starts nothing.
//!
//! Each rule has a list of known exceptions with their reasons. An exception that no longer occurs fails its test, so a list
//! gets shorter together with the code. Each check is also run on a small text that breaks its rule.

#[path = "tidy/calls.rs"]
mod calls;
#[path = "tidy/dependencies.rs"]
mod dependencies;
#[path = "tidy/docs.rs"]
mod docs;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/limits.rs"]
mod limits;
#[path = "tidy/options.rs"]
mod options;
#[path = "tidy/purity.rs"]
mod purity;
#[path = "tidy/records.rs"]
mod records;
#[path = "tidy/sizes.rs"]
mod sizes;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/unsafe_code.rs"]
mod unsafe_code;
#[path = "tidy/words.rs"]
mod words;

use std::collections::BTreeMap;
use std::fmt::Display;

/// Holds what breaks a rule against its exceptions: each exception is a subject and the reason why it may.
///
/// # Panics
/// Where something is no exception, or an exception does not occur any more.
fn assert_only<S: Display>(rule: &str, found: &BTreeMap<String, S>, exceptions: &[(&str, &str)]) {
    let problems = differences(found, exceptions);
    assert!(problems.is_empty(), "{rule}:\n{}", problems.join("\n"));
}

fn differences<S: Display>(
    found: &BTreeMap<String, S>,
    exceptions: &[(&str, &str)],
) -> Vec<String> {
    let known = |subject: &str| exceptions.iter().any(|(known, _)| *known == subject);
    let broken = found
        .iter()
        .filter(|(subject, _)| !known(subject))
        .map(|(subject, place)| format!("{subject}: {place}"));
    let gone = exceptions
        .iter()
        .filter(|(subject, _)| !found.contains_key(*subject))
        .map(|(subject, _)| format!("{subject}: take this exception away, it does not occur"));
    broken.chain(gone).collect()
}

#[test]
fn what_is_not_excepted_and_what_is_excepted_in_vain_are_told() {
    let found = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
    let exceptions = [("b", "old"), ("c", "older")];
    assert_eq!(
        differences(&found, &exceptions),
        ["a: 1", "c: take this exception away, it does not occur"]
    );
    assert!(differences(&found, &[("a", ""), ("b", "")]).is_empty());
}
