//! Connection state and channel state: texts by key. The app sets them in an answer and gets them back with the next call.
//!
//! Most sessions have none, some have one or two keys, and they do not change for hours. A sorted slice of exact size takes
//! a tenth of the memory of a tree. Source: `contract/rpc.md` §6.

/// Bytes of an entry besides its texts: two pointers with lengths, and what the allocator adds when it rounds up.
const ENTRY_BYTES: usize = 48;

/// A map of texts, sorted bytewise by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    entries: Box<[(Box<str>, Box<str>)]>,
}

impl State {
    /// True when there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory that its keys and values take.
    pub fn bytes(&self) -> usize {
        let text_bytes = self.iter().map(|(key, value)| key.len() + value.len());
        text_bytes.sum::<usize>() + self.entries.len() * ENTRY_BYTES
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let position = self.position(key).ok()?;
        Some(&self.entries[position].1)
    }

    /// Keys and values in bytewise order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Applies the changes of an answer: an empty value deletes its key, any other value sets it.
    pub fn merge(&mut self, changes: &[(String, String)]) {
        let mut entries = std::mem::take(&mut self.entries).into_vec();
        for (key, value) in changes {
            let position = entries.binary_search_by(|(other, _)| (**other).cmp(key));
            match (position, value.is_empty()) {
                (Ok(position), true) => drop(entries.remove(position)),
                (Ok(position), false) => entries[position].1 = value.as_str().into(),
                (Err(_), true) => {}
                (Err(position), false) => {
                    entries.insert(position, (key.as_str().into(), value.as_str().into()));
                }
            }
        }
        self.entries = entries.into_boxed_slice();
    }

    fn position(&self, key: &str) -> Result<usize, usize> {
        self.entries
            .binary_search_by(|(other, _)| (**other).cmp(key))
    }
}

/// Of equal keys the last one counts.
impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for State {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut sorted: std::collections::BTreeMap<Box<str>, Box<str>> = Default::default();
        for (key, value) in entries {
            sorted.insert(key.into().into(), value.into().into());
        }
        Self {
            entries: sorted.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(entries: &[(&str, &str)]) -> Vec<(String, String)> {
        entries
            .iter()
            .map(|&(key, value)| (key.into(), value.into()))
            .collect()
    }

    #[test]
    fn an_empty_value_deletes_and_any_other_sets() {
        let mut state = State::default();
        state.merge(&changes(&[("b", "2"), ("a", "1"), ("b", "3"), ("c", "")]));
        assert_eq!(state.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "3")]);
        assert_eq!((state.get("b"), state.get("c")), (Some("3"), None));
        state.merge(&changes(&[("a", ""), ("b", "")]));
        assert!(state.is_empty());
    }

    #[test]
    fn collecting_keeps_an_empty_value_and_the_last_of_equal_keys() {
        let state: State = [("k", "1"), ("a", ""), ("k", "2")].into_iter().collect();
        assert_eq!(state.iter().collect::<Vec<_>>(), [("a", ""), ("k", "2")]);
    }
}
