//! A table for the objects of a kind with few objects.

use std::collections::BTreeMap;

use crate::source::ObjectId;

/// The objects of a kind with few objects, by name (and namespace). A look-up may walk over all of them.
#[derive(Debug)]
pub(super) struct Small<T>(BTreeMap<String, SmallRow<T>>);

#[derive(Debug)]
struct SmallRow<T> {
    id: ObjectId,
    object: T,
    seen: bool,
}

impl<T> Default for Small<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: PartialEq> Small<T> {
    pub(super) fn get(&self, name: &str) -> Option<&T> {
        self.0.get(name).map(|row| &row.object)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.values().map(|row| &row.object)
    }

    /// Stores an object; true if that made a difference.
    pub(super) fn put(&mut self, name: &str, id: ObjectId, object: T) -> bool {
        if let Some(row) = self.0.get_mut(name) {
            row.seen = true;
            let differs = row.object != object;
            row.object = object;
            return differs;
        }
        self.0.insert(
            name.to_owned(),
            SmallRow {
                id,
                object,
                seen: true,
            },
        );
        true
    }

    /// Removes an object; true if it was there.
    pub(super) fn remove(&mut self, id: ObjectId) -> bool {
        let before = self.0.len();
        self.0.retain(|_, row| row.id != id);
        self.0.len() < before
    }

    pub(super) fn forget_seen(&mut self) {
        self.0.values_mut().for_each(|row| row.seen = false);
    }

    pub(super) fn unseen(&self) -> Vec<ObjectId> {
        self.0
            .values()
            .filter(|row| !row.seen)
            .map(|row| row.id)
            .collect()
    }
}
