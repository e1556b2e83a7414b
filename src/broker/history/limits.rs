//! How many messages a stream keeps, and how long: the same for all, or by the beginning of its name.

use std::time::Duration;

use thiserror::Error;

/// Prefixes with limits of their own.
pub const PREFIXES_MAX: usize = 64;
const _: () = assert!(PREFIXES_MAX == crate::config::PREFIXES_MAX);

/// What a stream keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Messages. With 0 nothing is kept, but messages have positions.
    pub messages: usize,
    /// The age at which a message is dropped.
    pub ttl: Duration,
}

/// Why a table of prefixes cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PrefixError {
    #[error("expected at most {PREFIXES_MAX} prefixes of streams, found {0}")]
    TooMany(usize),
    #[error("expected every prefix of streams once, found {0:?} twice")]
    Twice(Box<str>),
    #[error("expected the beginning of the names of streams, found an empty prefix")]
    Empty,
}

/// The limits of all streams. Streams with the same limits are one class.
#[derive(Debug, Clone)]
pub struct Classes {
    /// Longer ones first, so that the first one that fits is the longest. Each is the prefix of the class with its index.
    prefixes: Box<[Box<str>]>,
    /// By class; the last one has the streams without a prefix.
    limits: Box<[Limits]>,
}

impl Classes {
    /// The longest prefix of a stream decides, and `default` where there is none.
    ///
    /// # Errors
    /// [`PrefixError`] when there are too many prefixes, or one has no meaning.
    pub fn new(
        default: Limits,
        mut prefixes: Vec<(Box<str>, Limits)>,
    ) -> Result<Self, PrefixError> {
        if prefixes.len() > PREFIXES_MAX {
            return Err(PrefixError::TooMany(prefixes.len()));
        }
        if prefixes.iter().any(|(prefix, _)| prefix.is_empty()) {
            return Err(PrefixError::Empty);
        }
        prefixes.sort_by(|(one, _), (other, _)| (other.len(), other).cmp(&(one.len(), one)));
        if let Some(pair) = prefixes.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(PrefixError::Twice(pair[0].0.clone()));
        }
        let (prefixes, mut limits): (Vec<_>, Vec<_>) = prefixes.into_iter().unzip();
        limits.push(default);
        Ok(Self {
            prefixes: prefixes.into(),
            limits: limits.into(),
        })
    }

    /// Number of classes, at least 1.
    pub(super) fn len(&self) -> usize {
        self.limits.len()
    }

    /// The class of a stream.
    pub(super) fn class_of(&self, stream: &str) -> usize {
        let longest = self
            .prefixes
            .iter()
            .position(|it| stream.starts_with(&**it));
        longest.unwrap_or(self.prefixes.len())
    }

    pub(super) fn limits(&self, class: usize) -> Limits {
        self.limits[class]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(messages: usize) -> Limits {
        Limits {
            messages,
            ttl: Duration::from_secs(300),
        }
    }

    fn prefixes(prefixes: &[&str]) -> Vec<(Box<str>, Limits)> {
        (1..)
            .zip(prefixes)
            .map(|(messages, prefix)| ((*prefix).into(), limits(messages)))
            .collect()
    }

    #[test]
    fn the_longest_prefix_of_a_stream_decides() {
        let table = prefixes(&["chat/", "chat/room/", "c", "chat/roof"]);
        let classes = Classes::new(limits(100), table).expect("a good table");
        let check = |stream: &str, expected: usize| {
            let found = classes.limits(classes.class_of(stream));
            assert_eq!(found, limits(expected), "{stream}");
        };
        check("chat/1", 1);
        check("chat/room/1", 2);
        check("chat/room/", 2);
        check("chat/room", 1);
        check("chat", 3);
        check("chat/roof1", 4);
        check("notes", 100);
        check("", 100);
    }

    #[test]
    fn without_a_table_all_streams_are_one_class() {
        let classes = Classes::new(limits(100), Vec::new()).expect("a good table");
        assert_eq!((classes.len(), classes.class_of("any")), (1, 0));
    }

    #[test]
    fn a_table_that_means_nothing_is_refused() {
        let check = |table: Vec<(Box<str>, Limits)>, expected: PrefixError| {
            let refused = Classes::new(limits(1), table).expect_err("refused");
            assert_eq!(refused, expected);
        };
        check(prefixes(&["a", ""]), PrefixError::Empty);
        check(prefixes(&["a", "b", "a"]), PrefixError::Twice("a".into()));
        let many: Vec<String> = (0..=PREFIXES_MAX).map(|it| it.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        check(prefixes(&many), PrefixError::TooMany(PREFIXES_MAX + 1));
        assert!(Classes::new(limits(1), prefixes(&many[1..])).is_ok());
    }
}
