//! The elements that a starting agent finds in the tables, and their further use.
//!
//! Elements that the plan wants are adopted as they are, ids and slices included. The others are removed like
//! all elements that are no longer planned. The agent stores this state in the tables only.

use std::collections::{BTreeMap, HashMap, HashSet};

use proxy_common::maps::{Frontend, FrontendKey, SourceRangeKey};

use super::store::Store;
use crate::plan::programmed::ProgrammedGroup;
use crate::plan::{Allocator, Programmed, ServicePlan, Writes, diff};
use crate::source::ObjectIdMap;

/// The elements that a starting agent finds in the tables.
#[derive(Default)]
pub struct Found {
    frontends: HashMap<FrontendKey, Frontend>,
    /// Source ranges by service id, in order.
    ranges: HashMap<u32, Vec<SourceRangeKey>>,
}

impl Found {
    /// Reads the tables.
    pub fn read<S: Store>(store: &S) -> std::io::Result<Self> {
        let mut frontends = HashMap::new();
        store.each_frontend(&mut |key, value| {
            frontends.insert(key, value);
        })?;
        let mut ranges: HashMap<u32, Vec<SourceRangeKey>> = HashMap::new();
        store.each_range(&mut |range| ranges.entry(range.service).or_default().push(range))?;
        for ranges in ranges.values_mut() {
            ranges.sort_unstable();
        }
        Ok(Self { frontends, ranges })
    }

    /// The number of frontends that no plan has adopted.
    pub fn count(&self) -> u32 {
        self.frontends.len() as u32
    }

    /// The number of source ranges that no plan has adopted.
    pub fn range_count(&self) -> u32 {
        self.ranges.values().map(|ranges| ranges.len() as u32).sum()
    }

    /// The keys of the frontends that no plan has adopted.
    pub fn keys(&self) -> impl Iterator<Item = &FrontendKey> {
        self.frontends.keys()
    }

    /// An allocator that gives out no number that is in use.
    pub fn allocator<S: Store>(&self, store: &S) -> Allocator {
        let sizes = store.sizes();
        let mut groups: Vec<_> = self
            .frontends
            .iter()
            .map(|(key, value)| ProgrammedGroup::from_value(*key, value))
            .collect();
        groups.sort_unstable_by_key(|group| (group.service, group.start));
        groups.dedup_by_key(|group| (group.service, group.start));
        let last = groups.last().map_or(0, |group| group.service);
        let slots: Vec<_> = groups
            .iter()
            .map(|g| (g.start, g.slots()))
            .filter(|(_, count)| *count > 0)
            .collect();
        let backends = groups
            .iter()
            .flat_map(|group| {
                (group.start..group.start + group.slots()).map(|index| store.slot(index).backend())
            })
            .filter(|id| *id < sizes.backends)
            .collect();
        Allocator::with_used(sizes.slots, sizes.backends, slots, backends, last)
    }

    /// Adopts the elements for the frontends of a plan, and returns them as the programmed state.
    pub fn adopt(&mut self, planned: &ServicePlan) -> Programmed {
        if self.frontends.is_empty() {
            return Programmed::default();
        }
        let mut groups: Vec<ProgrammedGroup> = Vec::new();
        for frontend in planned.groups.iter().flat_map(|group| &group.frontends) {
            let key = &frontend.key;
            let Some(value) = self
                .frontends
                .remove(key)
                .filter(|value| value.check == key.check())
            else {
                continue;
            };
            match groups.iter_mut().find(|group| group.service == value.service) {
                Some(group) => group.frontends.push(ProgrammedGroup::frontend(*key, &value)),
                None => groups.push(ProgrammedGroup {
                    source_ranges: self.ranges.remove(&value.service).map(Vec::into_boxed_slice),
                    ..ProgrammedGroup::from_value(*key, &value)
                }),
            }
        }
        Programmed {
            groups: groups.into_boxed_slice(),
        }
    }

    /// Adds the writes that remove the elements that no plan wanted.
    pub fn remove_rest<S: Store>(
        self,
        programmed: &ObjectIdMap<Programmed>,
        store: &S,
        allocator: &mut Allocator,
        writes: &mut Writes,
    ) {
        let mut groups: BTreeMap<u32, ProgrammedGroup> = BTreeMap::new();
        for (key, value) in self.frontends {
            let group = ProgrammedGroup::from_value(key, &value);
            groups
                .entry(group.service)
                .and_modify(|found| found.frontends.push(ProgrammedGroup::frontend(key, &value)))
                .or_insert(group);
        }
        // Frontends of a group that stay keep its slice in use.
        let kept: HashSet<u32> = programmed
            .values()
            .flat_map(|programmed| programmed.groups.iter().map(|group| group.service))
            .collect();
        for (service, group) in groups {
            if kept.contains(&service) {
                writes
                    .remove_frontends
                    .extend(group.keys().map(|key| (*key, service)));
                continue;
            }
            let old = Programmed {
                groups: Box::new([group]),
            };
            let result = diff(&old, &ServicePlan::default(), store, allocator, writes);
            debug_assert!(result.is_ok(), "removing needs no room");
        }
        // The ranges of groups that stay were adopted with them.
        writes.remove_ranges.extend(self.ranges.into_values().flatten());
    }
}
