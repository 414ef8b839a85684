//! A table of objects by identity that costs little more than the objects.
//!
//! Rows are on pages and the index holds their 4-byte numbers. So neither the empty part of a hash table nor
//! its growth costs whole objects. Rows can refer to each other by number (a service to its slices).

use hashbrown::HashTable;

use super::ObjectId;
use super::pages::Pages;

/// A row that knows which object it describes.
pub(crate) trait Row {
    /// The identity of the row's object, which never changes.
    fn id(&self) -> ObjectId;
}

/// Rows by identity and by number.
#[derive(Debug)]
pub(crate) struct Table<T> {
    rows: Pages<T>,
    index: HashTable<u32>,
}

impl<T: Row> Table<T> {
    /// The number of an object's row.
    pub(crate) fn find(&self, id: ObjectId) -> Option<u32> {
        self.index.find(id.hash(), |&number| self.is(number, id)).copied()
    }

    /// Adds a row for an object that has none yet.
    pub(crate) fn insert(&mut self, row: T) -> u32 {
        let id = row.id();
        let number = self.rows.insert(row);
        let Self { rows, index } = self;
        index.insert_unique(id.hash(), number, |&number| {
            rows.get(number).map_or(0, |row| row.id().hash())
        });
        number
    }

    /// Removes a row and returns it.
    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let row = self.rows.remove(number)?;
        if let Ok(entry) = self
            .index
            .find_entry(row.id().hash(), |&candidate| candidate == number)
        {
            entry.remove();
        }
        Some(row)
    }

    /// The row of this number.
    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.rows.get(number)
    }

    /// The row of this number, to change anything but its identity.
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.rows.get_mut(number)
    }

    /// Iterates over every row.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.rows.iter()
    }

    /// Iterates over the rows of one page; `None` behind the last page. A row never changes its page.
    pub(crate) fn page(&self, page: usize) -> Option<impl Iterator<Item = &T>> {
        self.rows.page(page)
    }

    /// Iterates over every row, to change anything but its identity.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.rows.iter_mut()
    }

    fn is(&self, number: u32, id: ObjectId) -> bool {
        self.rows.get(number).is_some_and(|row| row.id() == id)
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            rows: Pages::new(),
            index: HashTable::default(),
        }
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
        let mut table = Table::default();
        for i in 0..1000 {
            table.insert(Named(id(i), i));
        }
        for i in (0..1000).step_by(2) {
            let number = table.find(id(i)).expect("inserted");
            assert_eq!(table.remove(number).map(|row| row.1), Some(i));
        }
        for i in 0..1000 {
            assert_eq!(
                table
                    .find(id(i))
                    .and_then(|number| table.get(number))
                    .map(|row| row.1),
                (i % 2 == 1).then_some(i)
            );
        }
        assert_eq!(table.iter().count(), 500);
    }
}
