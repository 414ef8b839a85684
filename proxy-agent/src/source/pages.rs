//! Numbered rows that keep their place in memory.
//!
//! A vector of a hundred thousand rows doubles when it grows. Up to half of it is empty, and the event that
//! fills it waits for the copy of megabytes. Here rows are on pages of a fixed size. Growth adds one page,
//! and a freed number is used again.

/// The number of rows on a page. A page of the largest rows takes some 28 KiB.
const PAGE: usize = 256;
/// The end of the list of free slots.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
enum Slot<T> {
    Used(T),
    // The next free slot.
    Free(u32),
}

/// The rows, by number.
#[derive(Debug)]
pub(super) struct Pages<T> {
    pages: Vec<Vec<Slot<T>>>,
    first_free: u32,
}

impl<T> Pages<T> {
    pub(super) const fn new() -> Self {
        Self {
            pages: Vec::new(),
            first_free: NONE,
        }
    }

    pub(super) fn insert(&mut self, row: T) -> u32 {
        if self.first_free != NONE {
            let number = self.first_free;
            if let Slot::Free(next) = std::mem::replace(self.slot(number), Slot::Used(row)) {
                self.first_free = next;
            }
            return number;
        }
        if self.pages.last().is_none_or(|page| page.len() == PAGE) {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        let full_pages = self.pages.len() - 1;
        let page = &mut self.pages[full_pages];
        page.push(Slot::Used(row));
        (full_pages * PAGE + page.len() - 1) as u32
    }

    /// Removes a row and returns it; `None` if there is none of this number.
    pub(super) fn remove(&mut self, number: u32) -> Option<T> {
        self.get(number)?;
        let next = std::mem::replace(&mut self.first_free, number);
        match std::mem::replace(self.slot(number), Slot::Free(next)) {
            Slot::Used(row) => Some(row),
            Slot::Free(_) => None,
        }
    }

    pub(super) fn get(&self, number: u32) -> Option<&T> {
        match self
            .pages
            .get(number as usize / PAGE)?
            .get(number as usize % PAGE)?
        {
            Slot::Used(row) => Some(row),
            Slot::Free(_) => None,
        }
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        match self
            .pages
            .get_mut(number as usize / PAGE)?
            .get_mut(number as usize % PAGE)?
        {
            Slot::Used(row) => Some(row),
            Slot::Free(_) => None,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flatten().filter_map(|slot| match slot {
            Slot::Used(row) => Some(row),
            Slot::Free(_) => None,
        })
    }

    /// The rows of one page, in order of their numbers; `None` behind the last page.
    pub(super) fn page(&self, page: usize) -> Option<impl Iterator<Item = &T>> {
        let slots = self.pages.get(page)?.iter();
        Some(slots.filter_map(|slot| match slot {
            Slot::Used(row) => Some(row),
            Slot::Free(_) => None,
        }))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.pages.iter_mut().flatten().filter_map(|slot| match slot {
            Slot::Used(row) => Some(row),
            Slot::Free(_) => None,
        })
    }

    fn slot(&mut self, number: u32) -> &mut Slot<T> {
        &mut self.pages[number as usize / PAGE][number as usize % PAGE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_and_used_again() {
        let mut pages = Pages::new();
        let numbers: Vec<u32> = (0..1000).map(|i| pages.insert(i)).collect();
        assert_eq!(numbers, (0..1000).collect::<Vec<u32>>());
        for number in (0..1000).step_by(3) {
            assert_eq!(pages.remove(number), Some(number));
            assert_eq!(pages.remove(number), None);
        }
        assert_eq!(pages.iter().count(), 666);
        assert!(pages.iter().all(|&row| row % 3 != 0));
        let again: Vec<u32> = (0..334).map(|i| pages.insert(i)).collect();
        assert!(again.iter().all(|number| number % 3 == 0), "freed numbers first");
        assert_eq!(pages.insert(7), 1000);
    }
}
