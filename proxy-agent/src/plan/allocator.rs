//! The owners of slots and backend ids.
//!
//! All services share the kernel's arrays, and only this module knows which parts are free. A freed part
//! comes back here only after its grace period. The allocator stores nothing on disk: a restarted agent marks
//! the parts that the frontends in the tables use, and all others are free.

use std::collections::{BTreeMap, BTreeSet};

/// A table that is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The table `FRONTENDS`.
    Frontends,
    /// The table `SLOTS`.
    Slots,
    /// The table `BACKENDS`.
    Backends,
    /// The table `ADDRESSES`.
    Addresses,
    /// The table `SOURCE_RANGES`, which does not grow.
    SourceRanges,
}

/// Ranges of slots, backend ids and service ids.
#[derive(Debug, Default)]
pub struct Allocator {
    slots: Ranges,
    backends: Ids,
    next_service: u32,
}

impl Allocator {
    /// An allocator in which everything is free.
    pub fn new(slots: u32, backends: u32) -> Self {
        Self {
            slots: Ranges {
                capacity: slots,
                ..Ranges::default()
            },
            backends: Ids {
                capacity: backends,
                ..Ids::default()
            },
            next_service: 1,
        }
    }

    /// An allocator in which everything is free but these: ranges of slots (start and count), backend ids,
    /// and all service ids up to `last_service`.
    pub fn with_used(
        slots: u32,
        backends: u32,
        mut used_slots: Vec<(u32, u32)>,
        mut used_backends: Vec<u32>,
        last_service: u32,
    ) -> Self {
        let mut allocator = Self::new(slots, backends);
        used_slots.sort_unstable();
        for (start, count) in used_slots {
            let end = allocator.slots.end;
            if start > end {
                allocator.slots.free(end, start - end);
            }
            allocator.slots.end = end.max(start + count);
        }
        used_backends.sort_unstable();
        for id in used_backends {
            let end = allocator.backends.end;
            allocator.backends.free.extend(end..id);
            allocator.backends.end = end.max(id + 1);
        }
        allocator.next_service = last_service.wrapping_add(1).max(1);
        allocator
    }

    /// Extends the capacity after the arrays have grown.
    pub fn grow(&mut self, slots: u32, backends: u32) {
        self.slots.capacity = slots;
        self.backends.capacity = backends;
    }

    /// A new service id. An id is never used twice while the pins exist, so that no slot passes for another
    /// service's.
    pub fn service(&mut self) -> u32 {
        let id = self.next_service;
        self.next_service = id.wrapping_add(1).max(1);
        id
    }

    /// Allocates a range of slots, and returns the first.
    pub fn slots(&mut self, count: u32) -> Result<u32, Full> {
        self.slots.take(count).ok_or(Full::Slots)
    }

    /// Allocates a backend id.
    pub fn backend(&mut self) -> Result<u32, Full> {
        self.backends.take().ok_or(Full::Backends)
    }

    /// Frees a range of slots.
    pub fn free_slots(&mut self, start: u32, count: u32) {
        self.slots.free(start, count);
    }

    /// Frees a backend id.
    pub fn free_backend(&mut self, id: u32) {
        self.backends.free.push(id);
    }

    /// The numbers of slots and backends that are in use or in quarantine.
    pub fn used(&self) -> (u32, u32) {
        (
            self.slots.used(),
            self.backends.end - self.backends.free.len() as u32,
        )
    }
}

/// Best-fit allocation of ranges; adjacent free ranges are merged.
#[derive(Debug, Default)]
struct Ranges {
    capacity: u32,
    end: u32,
    by_start: BTreeMap<u32, u32>,
    by_count: BTreeSet<(u32, u32)>,
}

impl Ranges {
    fn take(&mut self, count: u32) -> Option<u32> {
        if count == 0 {
            return Some(0);
        }
        if let Some(&(found, start)) = self.by_count.range((count, 0)..).next() {
            self.forget(start, found);
            if found > count {
                self.note(start + count, found - count);
            }
            return Some(start);
        }
        let start = self.end;
        let end = start.checked_add(count).filter(|end| *end <= self.capacity)?;
        self.end = end;
        Some(start)
    }

    fn free(&mut self, mut start: u32, mut count: u32) {
        if count == 0 {
            return;
        }
        if let Some((&before, &len)) = self.by_start.range(..start).next_back()
            && before + len == start
        {
            self.forget(before, len);
            (start, count) = (before, count + len);
        }
        if let Some(&len) = self.by_start.get(&(start + count)) {
            self.forget(start + count, len);
            count += len;
        }
        if start + count == self.end {
            self.end = start;
        } else {
            self.note(start, count);
        }
    }

    fn note(&mut self, start: u32, count: u32) {
        self.by_start.insert(start, count);
        self.by_count.insert((count, start));
    }

    fn forget(&mut self, start: u32, count: u32) {
        self.by_start.remove(&start);
        self.by_count.remove(&(count, start));
    }

    fn used(&self) -> u32 {
        self.end - self.by_start.values().sum::<u32>()
    }
}

#[derive(Debug, Default)]
struct Ids {
    capacity: u32,
    end: u32,
    free: Vec<u32>,
}

impl Ids {
    fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop() {
            return Some(id);
        }
        (self.end < self.capacity).then(|| {
            self.end += 1;
            self.end - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn freed_neighbours_become_one_range() {
        let mut allocator = Allocator::new(100, 0);
        let (a, b, c, d) = (
            allocator.slots(10).unwrap(),
            allocator.slots(10).unwrap(),
            allocator.slots(10).unwrap(),
            allocator.slots(1).unwrap(),
        );
        assert_eq!((a, b, c, d), (0, 10, 20, 30));
        allocator.free_slots(a, 10);
        allocator.free_slots(c, 10);
        allocator.free_slots(b, 10);
        assert_eq!(allocator.slots(30), Ok(0));
        assert_eq!(allocator.slots(70), Err(Full::Slots));
        assert_eq!(allocator.slots(69), Ok(31));
        assert_eq!(allocator.used(), (100, 0));
    }

    #[test]
    fn what_a_restart_finds_is_not_given_out() {
        let mut allocator = Allocator::with_used(20, 5, vec![(8, 4), (2, 3)], vec![3, 1], 41);
        assert_eq!(allocator.service(), 42);
        let mut given: Vec<_> = (0..3).map(|_| allocator.backend().unwrap()).collect();
        given.sort_unstable();
        assert_eq!((given, allocator.backend()), (vec![0, 2, 4], Err(Full::Backends)));
        let mut slots: Vec<_> = std::iter::from_fn(|| allocator.slots(1).ok()).collect();
        slots.sort_unstable();
        assert_eq!(slots, [0, 1, 5, 6, 7, 12, 13, 14, 15, 16, 17, 18, 19]);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(steps in prop::collection::vec((any::<bool>(), 1_u32..20), 1..200)) {
            let mut allocator = Allocator::new(256, 0);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (take, count) in steps {
                if take {
                    if let Ok(start) = allocator.slots(count) {
                        prop_assert!(start + count <= 256);
                        for (other, len) in &held {
                            prop_assert!(start + count <= *other || other + len <= start);
                        }
                        held.push((start, count));
                    }
                } else if !held.is_empty() {
                    let (start, count) = held.swap_remove(count as usize % held.len());
                    allocator.free_slots(start, count);
                }
                prop_assert_eq!(allocator.used().0, held.iter().map(|(_, count)| count).sum::<u32>());
            }
        }
    }
}
