//! The committed corpora, unchanged and modified, on the stable toolchain.

use std::path::{Path, PathBuf};
use std::{fs, panic};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

type Target = fn(&[u8]);

/// The inputs of a target with their names, always in the same order.
fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .map(|path| (path.clone(), fs::read(path).expect("a readable file")))
        .collect();
    inputs.sort();
    inputs
}

fn replay(name: &str, target: Target) {
    let inputs = corpus(name);
    assert!(inputs.len() > 20, "{name}: only {} inputs", inputs.len());
    for (path, input) in &inputs {
        let replayed = panic::catch_unwind(|| target(input));
        assert!(replayed.is_ok(), "with {}, see above", path.display());
    }
}

/// One change of an input.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Remove(Index),
    Insert(Index, u8),
    CutOff(Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        any::<Index>().prop_map(Change::Remove),
        (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        any::<Index>().prop_map(Change::CutOff),
    ];
    proptest::collection::vec(change, 1..6)
}

fn apply(input: &mut Vec<u8>, change: &Change) {
    let bytes = input.len();
    match change {
        Change::Insert(at, byte) => input.insert(at.index(bytes + 1), *byte),
        _ if bytes == 0 => {}
        Change::Set(at, byte) => input[at.index(bytes)] = *byte,
        Change::Remove(at) => drop(input.remove(at.index(bytes))),
        Change::CutOff(at) => input.truncate(at.index(bytes)),
    }
}

/// Feeds modified inputs of the corpus. proptest prints the smallest change that fails.
fn mutate(name: &str, target: Target) {
    let inputs = corpus(name);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let strategy = (any::<Index>(), any::<Index>(), changes());
    let outcome = runner.run(&strategy, |(first, second, changes)| {
        let mut input = first.get(&inputs).1.clone();
        // Sometimes two inputs are joined.
        if let Some(Change::CutOff(_)) = changes.first() {
            input.extend_from_slice(&second.get(&inputs).1);
        }
        for change in &changes {
            apply(&mut input, change);
        }
        target(&input);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{name}: {error}");
    }
}

macro_rules! corpora {
    ($($replayed:ident, $mutated:ident: $target:ident;)*) => {
        $(
            #[test]
            fn $replayed() {
                replay(stringify!($target), $target);
            }

            #[test]
            fn $mutated() {
                mutate(stringify!($target), $target);
            }
        )*

        /// A corpus without a target would never be replayed.
        #[test]
        fn every_corpus_and_every_target_is_here() {
            let mut known = vec![$(stringify!($target).to_owned()),*];
            known.sort();
            let names = |folder: &str, suffix: &str| {
                let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
                let mut names: Vec<String> = fs::read_dir(folder)
                    .expect("a readable folder")
                    .map(|entry| entry.expect("a readable folder").file_name())
                    .map(|name| name.to_string_lossy().trim_end_matches(suffix).to_owned())
                    .collect();
                names.sort();
                names
            };
            assert_eq!(names("fuzz/corpus", ""), known);
            assert_eq!(names("fuzz/fuzz_targets", ".rs"), known);
        }
    };
}

corpora! {
    readings_of_the_corpus_hold, changed_readings_hold: durable_streams;
    broker_of_the_corpus_holds, changed_lines_of_the_broker_hold: broker;
    requests_of_the_corpus_hold, changed_requests_hold: http_request;
    json_of_the_corpus_holds, changed_json_holds: json;
    polls_of_the_corpus_hold, changed_polls_hold: poll;
    answers_of_the_corpus_hold, changed_answers_hold: rpc_answer;
    event_requests_of_the_corpus_hold, changed_event_requests_hold: sse_request;
    tokens_of_the_corpus_hold, changed_tokens_hold: tokens;
    websocket_bytes_of_the_corpus_hold, changed_websocket_bytes_hold: websocket;
}
