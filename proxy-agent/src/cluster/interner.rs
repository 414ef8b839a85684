//! Values that many objects share, stored once.
//!
//! A hundred thousand services live in a few namespaces. Their ports have a handful of names, and their
//! endpoints are on a few thousand nodes. Objects hold a [`Symbol`] of four bytes in place of each such
//! value. Uses are counted, because nodes and namespaces come and go for as long as the agent runs. The code
//! that stores an object keeps one use for every symbol in it, and releases these uses with the object.
//!
//! Invariant: a symbol is valid as long as an object that holds it is stored; afterwards its number may name
//! another value.

use std::hash::{BuildHasher, Hash, RandomState};

use compact_str::CompactString;
use hashbrown::HashTable;
use slab::Slab;

/// The number of a shared value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(u32);

/// The shared values of one type.
#[derive(Debug)]
pub struct Interner<T> {
    values: Slab<(T, u32)>,
    index: HashTable<u32>,
    hasher: RandomState,
}

impl<T: Eq + Hash> Interner<T> {
    /// An interner without values.
    pub fn new() -> Self {
        Self {
            values: Slab::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
        }
    }

    /// The symbol of `value`, which gains a use; the second result is true if the value was not stored
    /// before.
    pub fn intern(&mut self, value: T) -> (Symbol, bool) {
        let hash = self.hasher.hash_one(&value);
        if let Some(&number) = self
            .index
            .find(hash, |&number| self.values[number as usize].0 == value)
        {
            self.values[number as usize].1 += 1;
            return (Symbol(number), false);
        }
        let number = self.values.insert((value, 1)) as u32;
        let Self {
            values,
            index,
            hasher,
        } = self;
        index.insert_unique(hash, number, |&number| {
            hasher.hash_one(&values[number as usize].0)
        });
        (Symbol(number), true)
    }

    /// Releases one use; returns the value if that was the last use.
    pub fn release(&mut self, symbol: Symbol) -> Option<T> {
        let number = symbol.0 as usize;
        let (_, uses) = self.values.get_mut(number)?;
        *uses -= 1;
        if *uses > 0 {
            return None;
        }
        let (value, _) = self.values.try_remove(number)?;
        let hash = self.hasher.hash_one(&value);
        if let Ok(entry) = self.index.find_entry(hash, |&number| number == symbol.0) {
            entry.remove();
        }
        Some(value)
    }

    /// The value of a symbol; `None` if no stored object holds it any more.
    pub fn get(&self, symbol: Symbol) -> Option<&T> {
        self.values.get(symbol.0 as usize).map(|(value, _)| value)
    }

    /// The number of stored values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether no value is stored.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

impl<T: Eq + Hash> Default for Interner<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl Interner<CompactString> {
    /// The symbol of `text`, if some object holds it. The text gains no use.
    pub fn find(&self, text: &str) -> Option<Symbol> {
        let hash = self.hasher.hash_one(text);
        let number = self
            .index
            .find(hash, |&number| self.values[number as usize].0 == text)?;
        Some(Symbol(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_stored_once_and_leaves_with_its_last_use() {
        let mut names = Interner::<CompactString>::new();
        let (http, new) = names.intern("http".into());
        assert!(new);
        assert_eq!(names.intern("http".into()), (http, false));
        assert_eq!(names.find("http"), Some(http));
        assert_eq!(names.release(http), None);
        assert_eq!(names.get(http).map(CompactString::as_str), Some("http"));
        assert_eq!(names.release(http).as_deref(), Some("http"));
        assert_eq!(names.find("http"), None);
        assert!(names.is_empty());
    }

    #[test]
    fn a_thousand_values_stay_apart() {
        let mut names = Interner::<CompactString>::new();
        let symbols: Vec<_> = (0..1000)
            .map(|i| names.intern(format!("node-{i}").into()).0)
            .collect();
        for (i, symbol) in symbols.iter().enumerate() {
            assert_eq!(
                names.get(*symbol).map(CompactString::as_str),
                Some(&*format!("node-{i}"))
            );
        }
        assert_eq!(names.len(), 1000);
    }
}
