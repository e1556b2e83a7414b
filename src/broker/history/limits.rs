//! How many messages a stream keeps, and how long: the same for all, or by the beginning of its name.

use crate::config::HistoryLimits;

/// The limits of all streams. Streams with the same limits are one class.
#[derive(Debug, Clone)]
pub struct Classes {
    /// Longer ones first, so that the first one that fits is the longest. Each is the prefix of the class with its index.
    prefixes: Box<[Box<str>]>,
    /// By class; the last one has the streams without a prefix.
    limits: Box<[HistoryLimits]>,
}

impl Classes {
    /// The longest prefix of a stream decides, and `default` where there is none. The configuration has checked them.
    pub fn new(default: HistoryLimits, prefixes: &[(String, HistoryLimits)]) -> Self {
        let mut prefixes: Vec<(Box<str>, HistoryLimits)> = prefixes
            .iter()
            .map(|(prefix, limits)| (prefix.as_str().into(), *limits))
            .collect();
        prefixes.sort_by(|(one, _), (other, _)| (other.len(), other).cmp(&(one.len(), one)));
        let (prefixes, mut limits): (Vec<_>, Vec<_>) = prefixes.into_iter().unzip();
        limits.push(default);
        Self {
            prefixes: prefixes.into(),
            limits: limits.into(),
        }
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

    pub(super) fn limits(&self, class: usize) -> HistoryLimits {
        self.limits[class]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn limits(messages: usize) -> HistoryLimits {
        HistoryLimits {
            messages,
            ttl: Duration::from_secs(300),
        }
    }

    #[test]
    fn the_longest_prefix_of_a_stream_decides() {
        let prefixes = ["chat/", "chat/room/", "c", "chat/roof"];
        let table: Vec<(String, HistoryLimits)> = (1..)
            .zip(prefixes)
            .map(|(messages, prefix)| (prefix.to_owned(), limits(messages)))
            .collect();
        let classes = Classes::new(limits(100), &table);
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
        let classes = Classes::new(limits(100), &[]);
        assert_eq!((classes.len(), classes.class_of("any")), (1, 0));
    }
}
