//! The changes from the programmed state to the planned one.
//!
//! The diff does not touch what stays. A backend keeps its id as long as its address and port stay in the
//! group. A slice is not written if its content is the same. So a restarted agent that finds everything right
//! writes nothing, and a change costs no more than its size. A new endpoint of a service costs a new slice by
//! stores, and one map write for each of the service's frontends.

use proxy_common::maps::{Backend, BackendState, FrontendKey, Slot};
use proxy_common::{Ip, Port};

use super::allocator::{Allocator, Full};
use super::programmed::{Programmed, ProgrammedGroup, View};
use super::service::{Group, ServicePlan, Target};
use super::source_ranges;
use super::writes::Writes;

/// Adds to `writes` the changes that lead from `old` to `new`, and returns the state that is programmed then.
///
/// # Errors
/// A table is full. Then `writes` and `allocator` are unchanged, and `old` stays in force.
pub fn diff(
    old: &Programmed,
    new: &ServicePlan,
    view: &impl View,
    allocator: &mut Allocator,
    writes: &mut Writes,
) -> Result<Programmed, Full> {
    let mut taken = Taken::default();
    let mut groups = Vec::with_capacity(new.groups.len());
    let mut kept = vec![false; old.groups.len()];
    let before = Mark::new(writes);
    for group in &new.groups {
        let matching = old
            .groups
            .iter()
            .position(|old| group.frontends.iter().any(|frontend| old.has_key(&frontend.key)));
        // Two new groups never share a frontend, but both may have been one old group.
        let matching = matching.filter(|index| !std::mem::replace(&mut kept[*index], true));
        match diff_group(
            matching.map(|index| &old.groups[index]),
            group,
            view,
            allocator,
            writes,
            &mut taken,
        ) {
            Ok(group) => groups.push(group),
            Err(full) => {
                before.restore(writes);
                taken.give_back(allocator);
                return Err(full);
            }
        }
    }
    for (index, group) in old.groups.iter().enumerate() {
        let has = |group: &Group, key: &FrontendKey| group.frontends.iter().any(|known| known.key == *key);
        let gone = |key: &FrontendKey| !new.groups.iter().any(|group| has(group, key));
        let gone = group.keys().filter(|key| gone(key));
        writes
            .remove_frontends
            .extend(gone.map(|key| (*key, group.service)));
        if !kept[index] {
            remove(group, view, writes);
        }
    }
    Ok(Programmed {
        groups: groups.into_boxed_slice(),
    })
}

/// The allocations so far, which are freed if one of them fails.
#[derive(Default)]
struct Taken {
    slots: Vec<(u32, u32)>,
    backends: Vec<u32>,
}

impl Taken {
    fn give_back(self, allocator: &mut Allocator) {
        self.slots
            .into_iter()
            .for_each(|(start, count)| allocator.free_slots(start, count));
        self.backends
            .into_iter()
            .for_each(|id| allocator.free_backend(id));
    }
}

/// The lengths of the lists that [`diff`] adds to before it can fail.
struct Mark([usize; 8]);

impl Mark {
    fn new(writes: &Writes) -> Self {
        Self([
            writes.backends.len(),
            writes.slots.len(),
            writes.slices.len(),
            writes.set_frontends.len(),
            writes.set_ranges.len(),
            writes.remove_ranges.len(),
            writes.gone.len(),
            writes.freed_slots.len(),
        ])
    }

    fn restore(&self, writes: &mut Writes) {
        let Self(
            [
                backends,
                slots,
                slices,
                frontends,
                ranges,
                old_ranges,
                gone,
                freed,
            ],
        ) = self;
        writes.backends.truncate(*backends);
        writes.slots.truncate(*slots);
        writes.slices.truncate(*slices);
        writes.set_frontends.truncate(*frontends);
        writes.set_ranges.truncate(*ranges);
        writes.remove_ranges.truncate(*old_ranges);
        writes.gone.truncate(*gone);
        writes.freed_slots.truncate(*freed);
    }
}

fn diff_group(
    old: Option<&ProgrammedGroup>,
    new: &Group,
    view: &impl View,
    allocator: &mut Allocator,
    writes: &mut Writes,
    taken: &mut Taken,
) -> Result<ProgrammedGroup, Full> {
    let draining = &new.draining[..new.draining.len().min(usize::from(u16::MAX))];
    let mut group = ProgrammedGroup {
        frontends: new.frontends.clone(),
        service: old.map_or_else(|| allocator.service(), |old| old.service),
        start: old.map_or(0, |old| old.start),
        active: new.active.len() as u32,
        draining: draining.len() as u16,
        flags: new.flags,
        affinity: new.affinity_seconds,
        source_ranges: None,
    };
    let (known, planned) = (
        old.and_then(|old| old.source_ranges.as_deref())
            .unwrap_or_default(),
        source_ranges::keys(new, group.service),
    );
    source_ranges::compare(known, &planned, &mut writes.set_ranges, &mut writes.remove_ranges);
    group.source_ranges = Some(planned.into_boxed_slice()).filter(|ranges| !ranges.is_empty());
    let targets = || new.active.iter().chain(draining);
    if !old.is_some_and(|old| has_exactly(old, &group, targets(), view)) {
        replace_slice(old, &mut group, targets(), view, allocator, writes, taken)?;
    }
    for frontend in &group.frontends {
        let value = group.value(frontend);
        let found =
            old.and_then(|old| Some((old, old.frontends.iter().find(|known| known.key == frontend.key)?)));
        if !found.is_some_and(|(old, known)| old.value(known) == value) {
            writes.set_frontends.push((frontend.key, value));
        }
    }
    Ok(group)
}

/// Whether the slice of `old` holds these targets, in this order.
fn has_exactly<'a>(
    old: &ProgrammedGroup,
    new: &ProgrammedGroup,
    targets: impl Iterator<Item = &'a Target>,
    view: &impl View,
) -> bool {
    (old.active, old.draining) == (new.active, new.draining)
        && targets.enumerate().all(|(index, target)| {
            let slot = view.slot(old.start + index as u32);
            let backend = view.backend(slot.backend());
            slot.service() == old.service && stands_for(&backend, old.service, target)
        })
}

fn stands_for(backend: &Backend, service: u32, target: &Target) -> bool {
    backend.service == service
        && backend.address == target.address
        && backend.port == target.port
        && backend.state == target.state as u8
}

/// Writes a new slice, with the same ids for the backends that stay.
fn replace_slice<'a>(
    old: Option<&ProgrammedGroup>,
    group: &mut ProgrammedGroup,
    targets: impl Iterator<Item = &'a Target>,
    view: &impl View,
    allocator: &mut Allocator,
    writes: &mut Writes,
    taken: &mut Taken,
) -> Result<(), Full> {
    let mut known = old.map(|old| known_backends(old, view)).unwrap_or_default();
    let first_slot = writes.slots.len();
    for target in targets {
        let found = known.binary_search_by_key(&(target.address, target.port), Known::place);
        let id = if let Ok(index) = found {
            let known = &mut known[index];
            known.stays = true;
            if known.backend.state != target.state as u8 {
                writes.backends.push((
                    known.id,
                    Backend {
                        state: target.state as u8,
                        ..known.backend
                    },
                ));
            }
            known.id
        } else {
            let id = allocator.backend()?;
            taken.backends.push(id);
            writes
                .backends
                .push((id, new_backend(id, group.service, target, view)));
            id
        };
        writes.slots.push(Slot::new(group.service, id));
    }
    let slots = &writes.slots[first_slot..];
    let count = slots.len() as u32;
    let stands = old.is_some_and(|old| {
        old.slots() == count
            && slots
                .iter()
                .enumerate()
                .all(|(i, slot)| view.slot(old.start + i as u32) == *slot)
    });
    if stands {
        writes.slots.truncate(first_slot);
    } else {
        group.start = allocator.slots(count)?;
        taken.slots.push((group.start, count));
        writes.slices.push((group.start, count));
        writes.freed_slots.extend(old.map(|old| (old.start, old.slots())));
    }
    writes
        .gone
        .extend(known.iter().filter(|known| !known.stays).map(Known::gone));
    Ok(())
}

/// A backend of the old slice.
struct Known {
    id: u32,
    backend: Backend,
    stays: bool,
}

impl Known {
    fn place(&self) -> (Ip, Port) {
        (self.backend.address, self.backend.port)
    }

    fn gone(&self) -> (u32, Backend) {
        (
            self.id,
            Backend {
                state: BackendState::Gone as u8,
                ..self.backend
            },
        )
    }
}

fn known_backends(group: &ProgrammedGroup, view: &impl View) -> Vec<Known> {
    let mut known: Vec<_> = (group.start..group.start + group.slots())
        .map(|index| view.slot(index))
        .filter(|slot| slot.service() == group.service)
        .map(|slot| Known {
            id: slot.backend(),
            backend: view.backend(slot.backend()),
            stays: false,
        })
        .filter(|known| known.backend.service == group.service)
        .collect();
    known.sort_unstable_by_key(Known::place);
    known
}

fn new_backend(id: u32, service: u32, target: &Target, view: &impl View) -> Backend {
    Backend {
        address: target.address,
        port: target.port,
        state: target.state as u8,
        generation: view.backend(id).generation.wrapping_add(1),
        service,
        ..Backend::default()
    }
}

/// Removes the source ranges, backends and slots of a group that is no longer planned.
fn remove(group: &ProgrammedGroup, view: &impl View, writes: &mut Writes) {
    writes.remove_ranges.extend(
        group
            .source_ranges
            .iter()
            .flat_map(|ranges| ranges.iter().copied()),
    );
    writes
        .gone
        .extend(known_backends(group, view).iter().map(Known::gone));
    if group.slots() > 0 {
        writes.freed_slots.push((group.start, group.slots()));
    }
}
