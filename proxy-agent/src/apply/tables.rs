//! The tables and the state that writes to them need: the elements in use, the pending writes, and the limits
//! of growth.

use std::time::{Duration, Instant};

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

/// How long the agent waits before it asks for larger tables again. An attempt loads all programs.
const GROWTH_PAUSE: Duration = Duration::from_secs(10);

/// The tables of one node.
pub struct Tables<S> {
    store: S,
    /// The sizes that they may grow to.
    largest: MapSizes,
    allocator: Allocator,
    quarantine: Quarantine,
    writer: Writer,
    /// The next writes.
    writes: Writes,
    /// Whether any element was removed, so that an element that did not fit may fit now.
    freed: bool,
    /// When the kernel last refused larger tables.
    growth_failed: Option<Instant>,
}

impl<S: Store> Tables<S> {
    /// Tables with unknown content; [`Self::adopt`] sets it.
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
            growth_failed: None,
        }
    }

    /// The tables in the kernel.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The tables in the kernel, for operations outside of services.
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

    /// A frontend as it is, or will be once no write is pending.
    pub fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.writer.frontend(key, &self.store)
    }

    /// Takes the found elements as in use.
    pub fn adopt(&mut self, found: &Found) {
        self.allocator = found.allocator(&self.store);
    }

    /// Adds the writes that lead from the programmed state of a service to its plan.
    pub fn diff(&mut self, old: &Programmed, planned: &ServicePlan) -> Result<Programmed, Full> {
        diff(old, planned, &self.store, &mut self.allocator, &mut self.writes)
    }

    /// Adds the writes that remove the found elements that no plan wanted.
    pub fn remove_rest(&mut self, found: Found, programmed: &ObjectIdMap<Programmed>) {
        found.remove_rest(programmed, &self.store, &mut self.allocator, &mut self.writes);
    }

    /// Adds the write of an address; without flags the address is removed.
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

    /// Sets addresses at once, ahead of the writes collected so far; a failed write is tried again.
    pub fn set_addresses(&mut self, addresses: &[(Ip, u32)]) {
        self.writer.set_addresses(addresses, &self.store);
    }

    /// Removes frontends that another process made, and restores those that it removed or altered; a failed
    /// write is tried again.
    pub fn put_back_frontends(&mut self, lost: &[(FrontendKey, Frontend)], foreign: &[FrontendKey]) {
        if let Err((_, error)) = self.store.remove_frontends(foreign) {
            tracing::warn!(%error, "removing a foreign frontend failed, will be looked for again");
        }
        self.writer.set_frontends(lost, &self.store);
    }

    /// Notes the wanted flags of an address, for the next [`Self::retry`].
    pub fn want_address(&mut self, address: Ip, flags: Option<u32>) {
        self.writer.want_address(address, flags);
    }

    /// Tries again the writes that failed.
    pub fn retry(&mut self) {
        self.writer.retry(&self.store, &mut self.quarantine);
    }

    /// Takes back the numbers that no reader can use any more.
    pub fn release(&mut self) {
        self.quarantine.release(&mut self.allocator);
    }

    /// Notes that an element was removed.
    pub fn note_freed(&mut self) {
        self.freed = true;
    }

    /// Whether any element was removed since the last call.
    pub fn take_freed(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// Whether the kernel refused larger tables, and the pause after that is over at `now`. Asked once for
    /// each attempt.
    pub fn take_growth_due(&mut self, now: Instant) -> bool {
        let is_due = |since: Instant| now.duration_since(since) >= GROWTH_PAUSE;
        self.growth_failed.take_if(|since| is_due(*since)).is_some()
    }

    /// Lets the next attempt to grow go ahead without a pause.
    pub fn forget_refusal(&mut self) {
        self.growth_failed = None;
    }

    /// Waits for the quarantine, or grows the tables for this load; false if neither makes space in the full
    /// table.
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
        // An attempt takes a second, so one that failed is not repeated for each service.
        // An attempt takes a second, so a refused one is not repeated for each service.
        if self.growth_failed.is_some() {
            return false;
        }
        // The writes planned so far refer to the present tables.
        self.flush();
        if let Err(error) = self.store.grow(&wanted) {
            tracing::error!(%error, "growing the tables failed");
            self.growth_failed = Some(Instant::now());
            return false;
        }
        self.growth_failed = None;
        self.allocator.grow(wanted.slots, wanted.backends);
        true
    }

    /// The message about a full table, for the operator.
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
