//! A table of objects by identity that costs little more than the objects.
//!
//! Rows lie in a slab and the index holds their 4-byte numbers, so that neither the empty part of a hash table nor its
//! growth is paid for in whole objects, and rows can name each other by number (a service its slices).

use hashbrown::HashTable;
use slab::Slab;

use crate::source::ObjectId;

/// A row that knows which object it describes.
pub trait Row {
    /// The object's identity; never changes.
    fn id(&self) -> ObjectId;
}

/// Rows by identity and by number.
#[derive(Debug)]
pub struct Table<T> {
    rows: Slab<T>,
    index: HashTable<u32>,
}

impl<T: Row> Table<T> {
    /// No rows.
    pub fn new() -> Self {
        Self {
            rows: Slab::new(),
            index: HashTable::new(),
        }
    }

    /// The number of an object's row.
    pub fn find(&self, id: ObjectId) -> Option<u32> {
        self.index
            .find(id.hash(), |&row| self.rows[row as usize].id() == id)
            .copied()
    }

    /// Adds a row for an object that has none yet.
    pub fn insert(&mut self, row: T) -> u32 {
        let id = row.id();
        let number = self.rows.insert(row) as u32;
        let Self { rows, index } = self;
        index.insert_unique(id.hash(), number, |&row| rows[row as usize].id().hash());
        number
    }

    /// Takes a row out.
    pub fn remove(&mut self, number: u32) -> T {
        let row = self.rows.remove(number as usize);
        if let Ok(entry) = self
            .index
            .find_entry(row.id().hash(), |&candidate| candidate == number)
        {
            entry.remove();
        }
        row
    }

    /// The row of this number.
    pub fn get(&self, number: u32) -> &T {
        &self.rows[number as usize]
    }

    /// The row of this number, to change anything but its identity.
    pub fn get_mut(&mut self, number: u32) -> &mut T {
        &mut self.rows[number as usize]
    }

    /// Every row with its number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.rows.iter().map(|(number, row)| (number as u32, row))
    }

    /// Every row, to change anything but its identity.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.rows.iter_mut().map(|(_, row)| row)
    }

    /// How many rows there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.rows.len()
    }
}

impl<T: Row> Default for Table<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Kind;

    struct Named(ObjectId, usize);

    impl Row for Named {
        fn id(&self) -> ObjectId {
            self.0
        }
    }

    #[test]
    fn rows_are_found_by_identity_through_growth_and_removal() {
        let id = |i: usize| ObjectId::new(Kind::Node, "", &i.to_string());
        let mut table = Table::new();
        for i in 0..1000 {
            table.insert(Named(id(i), i));
        }
        for i in (0..1000).step_by(2) {
            let number = table.find(id(i)).expect("inserted");
            assert_eq!(table.remove(number).1, i);
        }
        for i in 0..1000 {
            assert_eq!(
                table.find(id(i)).map(|number| table.get(number).1),
                (i % 2 == 1).then_some(i)
            );
        }
        assert_eq!(table.len(), 500);
    }
}
