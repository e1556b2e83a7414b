//! The streams in whose presence the sessions of this shard are.

use std::collections::HashMap;

use ahash::RandomState;

/// By the slot of the session. Sessions that are present nowhere take no memory.
#[derive(Default)]
pub(super) struct Memberships {
    by_slot: HashMap<u32, Vec<Box<str>>, RandomState>,
}

impl Memberships {
    /// The session is present in this stream. It may be so already.
    pub fn add(&mut self, slot: u32, stream: Box<str>) {
        let streams = self.by_slot.entry(slot).or_default();
        if !streams.contains(&stream) {
            streams.push(stream);
        }
    }

    pub fn contains(&self, slot: u32, stream: &str) -> bool {
        let mut streams = self.by_slot.get(&slot).into_iter().flatten();
        streams.any(|other| **other == *stream)
    }

    pub fn remove(&mut self, slot: u32, stream: &str) {
        if let Some(streams) = self.by_slot.get_mut(&slot) {
            streams.retain(|other| **other != *stream);
            if streams.is_empty() {
                self.by_slot.remove(&slot);
            }
        }
    }

    /// The session has ended. Returns where it was present.
    pub fn forget(&mut self, slot: u32) -> Vec<Box<str>> {
        self.by_slot.remove(&slot).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_in_each_stream_once_and_nowhere_after_its_end() {
        let mut memberships = Memberships::default();
        for stream in ["a", "b", "a"] {
            memberships.add(1, stream.into());
        }
        memberships.add(2, "a".into());
        memberships.remove(1, "unknown");
        memberships.remove(3, "a");
        assert!(memberships.contains(1, "a") && !memberships.contains(2, "b"));
        assert_eq!(memberships.forget(1), ["a".into(), "b".into()]);
        assert!(memberships.forget(1).is_empty() && memberships.contains(2, "a"));
        memberships.remove(2, "a");
        assert!(memberships.by_slot.is_empty());
    }
}
