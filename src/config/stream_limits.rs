//! Limits of streams by the beginning of their names: `[[broker.limits]]` in the file.

use std::collections::HashSet;
use std::fmt;

/// Prefixes with limits of their own.
pub const PREFIXES_MAX: usize = 64;

/// One entry of the table. What it leaves out is as for all other streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamLimits {
    pub prefix: String,
    pub history_limit: Option<i64>,
    pub history_ttl: Option<i64>,
}

/// Writes the entry for a message, in one line.
impl fmt::Display for StreamLimits {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.prefix)?;
        for (name, number) in self.numbers() {
            write!(out, " {name}={number}")?;
        }
        Ok(())
    }
}

impl StreamLimits {
    /// The entry in a table of the file; `None` when the table has another key or a wrong type, or no prefix.
    pub fn read(entry: &toml::Value) -> Option<Self> {
        let (mut prefix, mut history_limit, mut history_ttl) = (None, None, None);
        for (key, value) in entry.as_table()? {
            match key.to_ascii_lowercase().as_str() {
                "prefix" => prefix = Some(value.as_str()?.to_owned()),
                "history_limit" => history_limit = Some(value.as_integer()?),
                "history_ttl" => history_ttl = Some(value.as_integer()?),
                _ => return None,
            }
        }
        Some(Self {
            prefix: prefix?,
            history_limit,
            history_ttl,
        })
    }

    /// The entry as the file writes it.
    pub fn to_toml(&self) -> toml::Value {
        let prefix = ("prefix", toml::Value::String(self.prefix.clone()));
        let numbers = self.numbers();
        let numbers = numbers.map(|(name, number)| (name, toml::Value::Integer(number)));
        let members = std::iter::once(prefix).chain(numbers);
        toml::Value::Table(members.map(|(name, it)| (name.to_owned(), it)).collect())
    }

    fn numbers(&self) -> impl Iterator<Item = (&'static str, i64)> {
        [
            ("history_limit", self.history_limit),
            ("history_ttl", self.history_ttl),
        ]
        .into_iter()
        .filter_map(|(name, number)| Some((name, number?)))
    }
}

/// Whether the table has a meaning; the error says what is expected.
pub fn check(table: &[StreamLimits]) -> Result<(), String> {
    if table.len() > PREFIXES_MAX {
        return Err(format!("at most {PREFIXES_MAX} prefixes"));
    }
    let mut prefixes = HashSet::new();
    for entry in table {
        if entry.prefix.is_empty() {
            return Err("prefixes that are not empty".to_owned());
        }
        if !prefixes.insert(&entry.prefix) {
            return Err(format!("every prefix once, found {:?} twice", entry.prefix));
        }
        let out_of_range = entry
            .numbers()
            .find(|(_, number)| u32::try_from(*number).is_err());
        if let Some((name, _)) = out_of_range {
            return Err(format!("{name} from 0 to {}", u32::MAX));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(
        prefix: &str,
        history_limit: impl Into<Option<i64>>,
        history_ttl: impl Into<Option<i64>>,
    ) -> StreamLimits {
        StreamLimits {
            prefix: prefix.to_owned(),
            history_limit: history_limit.into(),
            history_ttl: history_ttl.into(),
        }
    }

    #[test]
    fn an_entry_is_a_table_with_a_prefix() {
        let check = |text: &str, expected: Option<StreamLimits>| {
            let table: toml::Table = text.parse().expect("TOML");
            let read = StreamLimits::read(&toml::Value::Table(table));
            assert_eq!(read, expected, "{text}");
            if let Some(entry) = read {
                assert_eq!(StreamLimits::read(&entry.to_toml()), Some(entry));
            }
        };
        check("prefix = 'chat/'", Some(entry("chat/", None, None)));
        check(
            "history_ttl = 60\nPREFIX = ''\nHistory_Limit = -1",
            Some(entry("", -1, 60)),
        );
        check("history_limit = 5", None);
        check("prefix = 5", None);
        check("prefix = 'a'\nhistory_limit = '5'", None);
        check("prefix = 'a'\nhistory_ttl = 1.5", None);
        check("prefix = 'a'\nsessions_ttl = 5", None);
        assert_eq!(StreamLimits::read(&toml::Value::Integer(5)), None);
    }

    #[test]
    fn a_table_that_means_nothing_says_what_is_expected() {
        let is = |table: &[StreamLimits], expected: Result<(), &str>| {
            assert_eq!(check(table), expected.map_err(str::to_owned));
        };
        is(&[], Ok(()));
        is(
            &[entry("a", 0, 0), entry("ab", i64::from(u32::MAX), None)],
            Ok(()),
        );
        is(&[entry("", 1, None)], Err("prefixes that are not empty"));
        is(
            &[
                entry("a", 1, None),
                entry("b", 1, None),
                entry("a", None, 1),
            ],
            Err("every prefix once, found \"a\" twice"),
        );
        is(
            &[entry("a", -1, None)],
            Err("history_limit from 0 to 4294967295"),
        );
        is(
            &[entry("a", 1, 1 << 32)],
            Err("history_ttl from 0 to 4294967295"),
        );
        let many: Vec<_> = (0..=PREFIXES_MAX)
            .map(|it| entry(&it.to_string(), 1, 1))
            .collect();
        is(&many, Err("at most 64 prefixes"));
        is(&many[1..], Ok(()));
    }
}
