//! The boxes of the page, and how a line of the log is held against one.

use std::cell::Cell;
use std::thread;

use crate::support::wait::until;
use crate::support::{Launch, Server};

pub const PAGE: &str = include_str!("../../../docs/troubleshooting.md");

/// A box is a code fence ```` ```log <name> ```` with one line.
const FENCE: &str = "```log ";

/// The names of all boxes and their lines.
pub fn boxes() -> Vec<(&'static str, &'static str)> {
    PAGE.split(FENCE)
        .skip(1)
        .map(|rest| {
            let (content, _) = rest.split_once("\n```").expect("a fence ends");
            content.split_once('\n').expect("a fence has a line")
        })
        .collect()
}

/// A line of the page, which its test has to find.
pub struct Line {
    name: &'static str,
    pub text: &'static str,
    found: Cell<bool>,
}

impl Line {
    pub fn of(wanted: &str) -> Self {
        let (name, text) = boxes()
            .into_iter()
            .find(|(name, _)| *name == wanted)
            .unwrap_or_else(|| panic!("the page has no box {wanted}"));
        Self {
            name,
            text,
            found: Cell::new(false),
        }
    }

    /// Waits for it in the log, and gives it as it is there.
    pub fn wait_in(&self, server: &Server) -> String {
        let found = until(
            &format!("the line of {}:\n{}\n", self.name, self.text),
            || {
                server
                    .log()
                    .into_iter()
                    .find(|line| matches(self.text, line))
            },
        );
        self.found.set(true);
        found
    }

    /// Starts what cannot start, and looks for it on stderr.
    pub fn refuses(&self, launch: Launch) -> String {
        let finished = launch.run();
        assert_eq!(finished.status.code(), Some(1), "{finished}");
        assert!(matches(self.text, finished.stderr.trim_end()), "{finished}");
        self.found.set(true);
        finished.stderr
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        assert!(
            self.found.get() || thread::panicking(),
            "the test of {} did not look for its line",
            self.name
        );
    }
}

/// Whether `line` has the words of `pattern`, with something at each `<placeholder>`.
pub fn matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('<');
    let first = parts.next().expect("split gives one part at least");
    let Some((_, mut rest)) = line.split_once(first) else {
        return false;
    };
    for part in parts {
        let literal = part.split_once('>').map_or(part, |(_, literal)| literal);
        // What stands at the place of the placeholder has at least one character.
        let Some(from) = rest
            .char_indices()
            .nth(1)
            .map(|(at, _)| at)
            .or_else(|| (literal.is_empty() && !rest.is_empty()).then_some(rest.len()))
        else {
            return false;
        };
        let Some((_, after)) = rest[from..].split_once(literal) else {
            return false;
        };
        rest = after;
    }
    true
}

#[test]
fn placeholders_stand_for_something() {
    assert!(matches("a <x> c", "2026 a b c d"));
    assert!(matches("a <x>", "a b"));
    assert!(matches("a=<x> c=<y>", "a=1 b=2 c=3"));
    assert!(!matches("a <x> c", "a  c"));
    assert!(!matches("a <x>", "a "));
    assert!(!matches("a <x> d", "a b c"));
    assert!(!matches("a", "b"));
}
