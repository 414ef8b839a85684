//! Room in the tables: whether a plan fits, and the growth of tables that are too small.

use std::time::Instant;

use super::Programmer;
use crate::apply::room::{Load, Need};
use crate::apply::store::Store;
use crate::cluster::ClusterState;
use crate::plan::{Full, NodeContext, Programmed, ServicePlan, source_ranges};
use crate::source::ObjectIdSet;

impl<S: Store> Programmer<S> {
    /// Grows the tables for the objects that have arrived so far and a little more. Returns how many more
    /// entries fit into every table then. It may be called before [`Self::sync`], any number of times.
    pub fn make_room_ahead(&mut self, cluster: &ClusterState, node: &NodeContext) -> u32 {
        let need = Need::of(cluster, node);
        self.grow_to(need.and_more());
        need.left(&self.store().sizes())
    }

    /// The services that did not fit, if the kernel refused larger tables and may be asked again at `now`.
    pub fn due_again(&mut self, now: Instant) -> ObjectIdSet {
        if self.tables.take_growth_due(now) {
            self.make_room_for_addresses();
            return self.unfit.clone();
        }
        ObjectIdSet::default()
    }

    /// Computes the writes of a service, and makes space in a full table.
    pub(super) fn fit(&mut self, planned: &ServicePlan, old: &Programmed) -> Result<Programmed, Full> {
        loop {
            let room = self.room_for_frontends(planned, old);
            let room = room.and_then(|()| self.room_for_ranges(planned, old));
            match room.and_then(|()| self.tables.diff(old, planned)) {
                Err(full) if self.tables.make_room(full, self.load(planned)) => {}
                result => return result,
            }
        }
    }

    fn room_for_frontends(&self, planned: &ServicePlan, old: &Programmed) -> Result<(), Full> {
        let wanted: usize = planned.groups.iter().map(|group| group.frontends.len()).sum();
        let old: usize = old.groups.iter().map(|group| group.frontends.len()).sum();
        let more = wanted.saturating_sub(old) as u32;
        if more == 0 {
            return Ok(());
        }
        let sizes = self.store().sizes();
        let others = self.found.count();
        if self.frontends + others + more > sizes.frontends {
            return Err(Full::Frontends);
        }
        // Each frontend has one address at the most. Addresses are counted only if that bound might not fit.
        let frontends = planned.groups.iter().flat_map(|group| &group.frontends);
        let keys = frontends.map(|frontend| &frontend.key);
        let addresses = keys.chain(self.found.keys()).map(|key| &key.address);
        if self.addresses.at_most() + others + more > sizes.addresses
            && self.addresses.count_with(addresses) > sizes.addresses
        {
            return Err(Full::Addresses);
        }
        Ok(())
    }

    fn room_for_ranges(&self, planned: &ServicePlan, old: &Programmed) -> Result<(), Full> {
        let wanted = source_ranges::entries(planned) as u32;
        let more = wanted.saturating_sub(old.range_count());
        let fits = || self.source_ranges + self.found.range_count() + more <= self.store().max_ranges();
        (more == 0 || fits()).then_some(()).ok_or(Full::SourceRanges)
    }

    /// An upper bound of the tables' content with this plan.
    fn load(&self, planned: &ServicePlan) -> Load {
        let groups = planned.groups.iter();
        let (frontends, targets) = groups.fold((0, 0), |(frontends, targets), group| {
            let more = group.active.len() + group.draining.len();
            (frontends + group.frontends.len() as u32, targets + more as u32)
        });
        let (slots, backends) = self.tables.allocated();
        let others = self.found.count();
        Load {
            frontends: self.frontends + others + frontends,
            slots: slots + targets,
            backends: backends + targets,
            addresses: self.address_count() + others + frontends,
        }
    }

    /// Grows the table of addresses until the node's own addresses fit in, or the table has its largest size.
    pub(super) fn make_room_for_addresses(&mut self) {
        let load = |programmer: &Self| programmer.load(&ServicePlan::default());
        while self.address_count() > self.store().sizes().addresses
            && self.tables.make_room(Full::Addresses, load(self))
        {}
    }

    /// Grows the tables as far as a need asks for.
    pub(super) fn grow_to(&mut self, need: Need) {
        let wanted = need.sizes(self.store().sizes(), self.largest());
        self.tables.grow(wanted);
    }
}
