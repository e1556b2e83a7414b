//! JSON as `serde_json` reads it, to compare our reader with it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// Whether the grammar of JSON allows `text`. Numbers may be too large for any type, and strings may be invalid UTF-8.
pub(super) fn is_grammatical(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}

/// The members of an object in the order they came, repeated ones too.
pub(super) struct Members(Vec<(String, Value)>);

impl Members {
    /// The value that counts: the last one of that name in any case that is not null.
    pub(super) fn last(&self, name: &str) -> Option<&Value> {
        self.all(name).last()
    }

    /// All values of that name, in any case, that are not null.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.0
            .iter()
            .filter(move |(key, value)| key.eq_ignore_ascii_case(name) && !value.is_null())
            .map(|(_, value)| value)
    }

    /// The text that counts; empty if there is none.
    pub(super) fn last_text(&self, name: &str) -> &str {
        self.last(name).and_then(Value::as_str).unwrap_or("")
    }

    /// The values of exactly that name, nulls too.
    pub(super) fn exact(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ByOne;
        impl<'de> Visitor<'de> for ByOne {
            type Value = Members;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(ByOne)
    }
}
