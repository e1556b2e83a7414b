//! Texts that many sessions share, stored once with a reference count.

use ahash::RandomState;
use hashbrown::HashTable;
use slab::Slab;

/// Index of an interned text. Valid while its count is above zero.
pub type TextId = u32;

struct Interned {
    text: Box<str>,
    references: u32,
}

/// A set of texts, each with a count of its users. A text is removed with its last user.
///
/// Texts are not stored twice: the hash table holds indices and compares through the slab.
#[derive(Default)]
pub struct Interner {
    texts: Slab<Interned>,
    index: HashTable<TextId>,
    hasher: RandomState,
    text_bytes: usize,
}

/// Memory of a text in addition to its bytes: its entry and its place in the index.
const TEXT_BYTES: usize = 48;

impl Interner {
    /// No texts. `hasher` is used for their hashes.
    pub fn with_hasher(hasher: RandomState) -> Self {
        Self {
            hasher,
            ..Self::default()
        }
    }

    /// Adds a user of `text`. Returns its index, and its hash if it is new.
    pub fn acquire(&mut self, text: &str) -> (TextId, Option<u64>) {
        let hash = self.hasher.hash_one(text);
        if let Some(&id) = self
            .index
            .find(hash, |&id| &*self.texts[id as usize].text == text)
        {
            self.texts[id as usize].references += 1;
            return (id, None);
        }
        self.text_bytes += text.len();
        if self.texts.len() == self.texts.capacity() {
            // Doubling would leave up to half of the entries unused.
            self.texts.reserve_exact((self.texts.len() / 4).max(8));
        }
        let id = self.texts.insert(Interned {
            text: text.into(),
            references: 1,
        }) as TextId;
        let (texts, hasher) = (&self.texts, &self.hasher);
        self.index.insert_unique(hash, id, |&other| {
            hasher.hash_one(&*texts[other as usize].text)
        });
        (id, Some(hash))
    }

    /// Adds a user of a text that is in use.
    pub fn acquire_again(&mut self, id: TextId) {
        self.texts[id as usize].references += 1;
    }

    /// The index of `text`, if it is in use.
    pub fn find(&self, text: &str) -> Option<TextId> {
        let hash = self.hasher.hash_one(text);
        self.index
            .find(hash, |&id| &*self.texts[id as usize].text == text)
            .copied()
    }

    /// The text of an index in use.
    pub fn text(&self, id: TextId) -> &str {
        &self.texts[id as usize].text
    }

    /// The hash of the text with this index, if it is in use.
    pub fn hash_of(&self, id: TextId) -> Option<u64> {
        let interned = self.texts.get(id as usize)?;
        Some(self.hasher.hash_one(&*interned.text))
    }

    /// Removes one user. Returns the hash of the text when it was the last and the text is gone.
    pub fn release(&mut self, id: TextId) -> Option<u64> {
        let interned = &mut self.texts[id as usize];
        interned.references -= 1;
        if interned.references > 0 {
            return None;
        }
        self.text_bytes -= interned.text.len();
        let hash = self.hasher.hash_one(&*interned.text);
        if let Ok(entry) = self.index.find_entry(hash, |&other| other == id) {
            entry.remove();
        }
        self.texts.remove(id as usize);
        Some(hash)
    }

    /// Texts in use.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// True when no text is in use.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Bytes of the texts in use.
    pub fn held_bytes(&self) -> usize {
        self.text_bytes + self.texts.len() * TEXT_BYTES
    }

    /// Every text in use.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(|(_, interned)| &*interned.text)
    }

    /// Places of texts, from 0 on. A text keeps its place; some places are empty.
    pub fn places(&self) -> usize {
        self.texts.capacity()
    }

    /// The text at a place.
    pub fn text_at(&self, place: usize) -> Option<&str> {
        self.texts.get(place).map(|interned| &*interned.text)
    }

    /// Frees memory after many texts have been removed: shrinks what is more than three quarters empty.
    pub fn shrink(&mut self) {
        if self.index.capacity() > 4 * self.index.len().max(64) {
            let (texts, hasher) = (&self.texts, &self.hasher);
            self.index
                .shrink_to_fit(|&other| hasher.hash_one(&*texts[other as usize].text));
        }
        if self.texts.is_empty() {
            self.texts.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_lives_as_long_as_its_last_user() {
        let mut interner = Interner::default();
        let (first, new) = interner.acquire("a");
        assert_eq!(new, interner.hash_of(first));
        assert_eq!(interner.acquire("a"), (first, None));
        let (second, new) = interner.acquire("b");
        assert!(new.is_some() && second != first);
        assert_eq!((interner.text(first), interner.len()), ("a", 2));
        let texts = (0..interner.places()).filter_map(|place| interner.text_at(place));
        assert_eq!(texts.collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(interner.release(first), None);
        let hash = interner.hash_of(first);
        assert_eq!(interner.release(first), hash);
        assert_eq!(interner.hash_of(first), None);
        assert_eq!(interner.find("a"), None);
        assert_eq!(interner.find("b"), Some(second));
    }
}
