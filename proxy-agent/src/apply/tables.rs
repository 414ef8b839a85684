//! The tables with what belongs to writing them: which elements are in use, what is on its way in, and how they grow.

use proxy_common::Ip;
use proxy_common::maps::{Frontend, FrontendKey};

use super::found::Found;
use super::quarantine::Quarantine;
use super::room::Load;
use super::store::Store;
use super::writer::Writer;
use crate::bpf::object::MapSizes;
use crate::plan::{Allocator, Full, Programmed, ServicePlan, Writes, diff};
use crate::source::ObjectIdMap;

/// The tables of one node.
pub struct Tables<S> {
    store: S,
    /// The sizes that they may grow to.
    largest: MapSizes,
    allocator: Allocator,
    quarantine: Quarantine,
    writer: Writer,
    /// What is to be written next.
    writes: Writes,
    /// Whether anything was taken out, so that something may fit now that did not.
    freed: bool,
}

impl<S: Store> Tables<S> {
    /// Tables of which nothing is known; [`Self::adopt`] tells.
    pub fn new(store: S, largest: MapSizes) -> Self {
        let sizes = store.sizes();
        Self {
            store,
            largest,
            allocator: Allocator::new(sizes.slots, sizes.backends),
            quarantine: Quarantine::new(),
            writer: Writer::default(),
            writes: Writes::default(),
            freed: false,
        }
    }

    /// The kernel's side of them.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The kernel's side of them, for what does not concern services.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// The sizes that they may grow to.
    pub fn largest(&self) -> MapSizes {
        self.largest
    }

    /// Slots and backends in use or in quarantine.
    pub fn allocated(&self) -> (u32, u32) {
        self.allocator.used()
    }

    /// Elements written since the start.
    pub fn written(&self) -> u64 {
        self.writer.count()
    }

    /// Writes that failed and will be tried again.
    pub fn pending(&self) -> usize {
        self.writer.pending()
    }

    /// A frontend as it is, or will be once nothing is pending.
    pub fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.writer.frontend(key, &self.store)
    }

    /// Takes what was found in them as in use.
    pub fn adopt(&mut self, found: &Found) {
        self.allocator = found.allocator(&self.store);
    }

    /// Adds the writes that lead from what is programmed for a service to its plan.
    pub fn diff(&mut self, old: &Programmed, planned: &ServicePlan) -> Result<Programmed, Full> {
        diff(old, planned, &self.store, &mut self.allocator, &mut self.writes)
    }

    /// Adds the writes that remove what was found and no plan wanted.
    pub fn remove_rest(&mut self, found: Found, programmed: &ObjectIdMap<Programmed>) {
        found.remove_rest(programmed, &self.store, &mut self.allocator, &mut self.writes);
    }

    /// Adds the write of an address; without flags it goes.
    pub fn write_address(&mut self, address: Ip, flags: Option<u32>) {
        match flags {
            Some(flags) => self.writes.set_addresses.push((address, flags)),
            None => self.writes.remove_addresses.push(address),
        }
    }

    /// Carries out the writes collected so far.
    pub fn flush(&mut self) {
        self.freed |= !self.writes.gone.is_empty()
            || !self.writes.freed_slots.is_empty()
            || !self.writes.remove_ranges.is_empty();
        self.writer
            .carry_out(&mut self.writes, &self.store, &mut self.quarantine);
    }

    /// Sets addresses at once, ahead of the writes collected so far; what fails is tried again.
    pub fn set_addresses(&mut self, addresses: &[(Ip, u32)]) {
        self.writer.set_addresses(addresses, &self.store);
    }

    /// Removes frontends that another process made, and sets those that it took or altered; what fails is
    /// tried again.
    pub fn put_back_frontends(&mut self, lost: &[(FrontendKey, Frontend)], foreign: &[FrontendKey]) {
        if let Err((_, error)) = self.store.remove_frontends(foreign) {
            tracing::warn!(%error, "removing a foreign frontend failed, will be looked for again");
        }
        self.writer.set_frontends(lost, &self.store);
    }

    /// Notes what an address should become, for the next [`Self::retry`].
    pub fn want_address(&mut self, address: Ip, flags: Option<u32>) {
        self.writer.want_address(address, flags);
    }

    /// Tries again what failed before.
    pub fn retry(&mut self) {
        self.writer.retry(&self.store, &mut self.quarantine);
    }

    /// Takes back what no reader can hold any more.
    pub fn release(&mut self) {
        self.quarantine.release(&mut self.allocator);
    }

    /// Notes that something was taken out.
    pub fn note_freed(&mut self) {
        self.freed = true;
    }

    /// Whether anything was taken out since this was asked last.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Waits for the quarantine, or grows the tables for this load; false if neither makes room in the one that is full.
    pub fn make_room(&mut self, full: Full, load: Load) -> bool {
        if matches!(full, Full::Slots | Full::Backends) && self.quarantine.drain(&mut self.allocator) {
            return true;
        }
        let (sizes, max) = (self.store.sizes(), self.largest);
        let wanted = load.sizes(full, sizes, max);
        let grows = match full {
            Full::Frontends => wanted.frontends > sizes.frontends,
            Full::Slots => wanted.slots > sizes.slots,
            Full::Backends => wanted.backends > sizes.backends,
            Full::Addresses => wanted.addresses > sizes.addresses,
            Full::SourceRanges => false,
        };
        grows && self.grow(wanted)
    }

    /// Grows to these sizes; false if they stay as they are.
    pub fn grow(&mut self, wanted: MapSizes) -> bool {
        if wanted == self.store.sizes() {
            return false;
        }
        // What is planned so far refers to the tables as they are.
        self.flush();
        if let Err(error) = self.store.grow(&wanted) {
            tracing::error!(%error, "growing the tables failed");
            return false;
        }
        self.allocator.grow(wanted.slots, wanted.backends);
        true
    }

    /// What to tell an operator of a full table.
    pub fn describe(&self, full: Full) -> String {
        let sizes = self.store.sizes();
        let (name, size) = match full {
            Full::Frontends => ("frontends", sizes.frontends),
            Full::Slots => ("slots", sizes.slots),
            Full::Backends => ("backends", sizes.backends),
            Full::Addresses => ("addresses", sizes.addresses),
            Full::SourceRanges => {
                return format!(
                    "the table of source ranges holds {} at the most; the load balancer's addresses are left out",
                    self.store.max_ranges()
                );
            }
        };
        format!("the table of {name} holds {size} at the most; raise maps.{name} in the configuration")
    }
}
