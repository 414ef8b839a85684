//! Carries out writes, and tries again those that failed.
//!
//! A failed write is kept by its key, and a later write for the same key replaces it. While a write of a
//! frontend is pending, the writer marks no backend gone, and frees no slot and no backend.

use std::collections::BTreeMap;

use proxy_common::Ip;
use proxy_common::maps::{Backend, Frontend, FrontendKey, SourceRangeKey};

use super::quarantine::Quarantine;
use super::store::Store;
use crate::plan::Writes;

/// The wanted state of a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The frontend has this value.
    Set(Frontend),
    /// No frontend, if it still belongs to this service id: another service may have taken it over in
    /// between.
    Removed(u32),
}

/// Elements that lose their last pointer when all earlier writes succeed.
struct Freed {
    gone: Vec<(u32, Backend)>,
    slots: Vec<(u32, u32)>,
}

/// Carries out writes.
#[derive(Default)]
pub struct Writer {
    frontends: BTreeMap<FrontendKey, Wanted>,
    addresses: BTreeMap<Ip, Option<u32>>,
    /// Whether each of these source ranges is wanted.
    ranges: BTreeMap<SourceRangeKey, bool>,
    held: Vec<Freed>,
    count: u64,
}

impl Writer {
    /// Elements written since the start, by a store to memory or by a system call.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Writes that failed and will be tried again.
    pub fn pending(&self) -> usize {
        self.frontends.len() + self.addresses.len() + self.ranges.len()
    }

    /// A frontend as it is, or will be once no write is pending.
    pub fn frontend(&self, key: &FrontendKey, store: &impl Store) -> Option<Frontend> {
        match self.frontends.get(key) {
            Some(Wanted::Set(value)) => Some(*value),
            Some(Wanted::Removed(_)) => None,
            None => store.frontend(key),
        }
    }

    /// Notes the wanted flags of an address, for the next [`Self::retry`].
    pub fn want_address(&mut self, address: Ip, flags: Option<u32>) {
        self.addresses.insert(address, flags);
    }

    /// Carries out writes in their phases, and empties the list.
    pub fn carry_out(&mut self, writes: &mut Writes, store: &impl Store, quarantine: &mut Quarantine) {
        for (id, backend) in &writes.backends {
            store.write_backend(*id, backend);
        }
        let mut slots = writes.slots.iter();
        for (start, count) in &writes.slices {
            for (offset, slot) in slots.by_ref().take(*count as usize).enumerate() {
                store.write_slot(start + offset as u32, *slot);
            }
        }
        self.count += (writes.backends.len() + writes.slots.len()) as u64;
        // A new write replaces a pending one for the same key.
        for (key, _) in &writes.set_frontends {
            self.frontends.remove(key);
        }
        for (address, _) in &writes.set_addresses {
            self.addresses.remove(address);
        }
        for range in &writes.set_ranges {
            self.ranges.insert(*range, true);
        }
        self.write_ranges(true, store);
        self.set_frontends(&writes.set_frontends, store);
        self.set_addresses(&writes.set_addresses, store);
        for (key, service) in writes.remove_frontends.drain(..) {
            let owner = match self.frontends.get(&key) {
                // The frontend belongs to another service by now.
                Some(Wanted::Set(value)) if value.service != service => continue,
                // Its value was never written, so the value of the service before it may still be there.
                Some(Wanted::Set(_)) => store.frontend(&key).map_or(service, |found| found.service),
                _ => service,
            };
            self.frontends.insert(key, Wanted::Removed(owner));
        }
        for address in writes.remove_addresses.drain(..) {
            self.addresses.insert(address, None);
        }
        for range in writes.remove_ranges.drain(..) {
            self.ranges.insert(range, false);
        }
        if !writes.gone.is_empty() || !writes.freed_slots.is_empty() {
            let (gone, slots) = (
                std::mem::take(&mut writes.gone),
                std::mem::take(&mut writes.freed_slots),
            );
            self.held.push(Freed { gone, slots });
        }
        writes.clear();
        self.retry(store, quarantine);
    }

    /// Sets the source ranges that are wanted, or removes those that are not.
    fn write_ranges(&mut self, set: bool, store: &impl Store) {
        let count = &mut self.count;
        self.ranges.retain(|range, wanted| {
            if *wanted != set {
                return true;
            }
            *count += 1;
            let result = if *wanted {
                store.set_range(range)
            } else {
                store.remove_range(range)
            };
            result.is_err()
        });
    }

    /// Sets frontends at once; a failed write is tried again.
    pub fn set_frontends(&mut self, mut frontends: &[(FrontendKey, Frontend)], store: &impl Store) {
        while let Err((index, error)) = store.set_frontends(frontends) {
            let Some((key, value)) = frontends.get(index) else {
                break;
            };
            tracing::warn!(%error, ?key, "setting a frontend failed, will try again");
            self.frontends.insert(*key, Wanted::Set(*value));
            self.count += index as u64;
            frontends = &frontends[index + 1..];
        }
        self.count += frontends.len() as u64;
    }

    /// Sets addresses at once; a failed write is tried again.
    pub fn set_addresses(&mut self, mut addresses: &[(Ip, u32)], store: &impl Store) {
        while let Err((index, error)) = store.set_addresses(addresses) {
            let Some((address, flags)) = addresses.get(index) else {
                break;
            };
            tracing::warn!(%error, ?address, "setting an address failed, will try again");
            self.addresses.insert(*address, Some(*flags));
            self.count += index as u64;
            addresses = &addresses[index + 1..];
        }
        self.count += addresses.len() as u64;
    }

    /// Carries out the pending writes. Once none is left, it marks backends gone and puts free numbers into
    /// quarantine.
    pub fn retry(&mut self, store: &impl Store, quarantine: &mut Quarantine) {
        if !self.frontends.is_empty() {
            let count = &mut self.count;
            self.frontends.retain(|key, wanted| {
                let result = match wanted {
                    Wanted::Set(value) => store.set_frontends(&[(*key, *value)]),
                    Wanted::Removed(service)
                        if store.frontend(key).is_some_and(|f| f.service == *service) =>
                    {
                        store.remove_frontends(&[*key])
                    }
                    Wanted::Removed(_) => return false,
                };
                *count += 1;
                result.is_err()
            });
        }
        if !self.addresses.is_empty() {
            let count = &mut self.count;
            self.addresses.retain(|address, flags| {
                *count += 1;
                let result = match flags {
                    Some(flags) => store.set_addresses(&[(*address, *flags)]),
                    None => store.remove_addresses(&[*address]),
                };
                result.is_err()
            });
        }
        // If the table was full, removed ranges make space for new ones.
        self.write_ranges(false, store);
        self.write_ranges(true, store);
        if self.frontends.is_empty() {
            for Freed { gone, slots } in std::mem::take(&mut self.held) {
                for (id, backend) in &gone {
                    store.write_backend(*id, backend);
                }
                self.count += gone.len() as u64;
                quarantine.put(slots, gone.into_iter().map(|(id, _)| id).collect());
            }
        }
    }
}
