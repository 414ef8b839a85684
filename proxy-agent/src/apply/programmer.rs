//! Brings the tables in line with the plan, service by service, and remembers what it wrote.
//!
//! Invariants: what `programmed` says is what the tables hold, or will hold once [`Tables`] has nothing
//! pending; a service whose new form does not fit keeps its old one. Where only source ranges do not fit, the
//! addresses that they are for are left out, and everything else of the service goes on.

mod compare;

use std::collections::HashMap;

use proxy_common::Ip;
use proxy_common::maps::{AddressFlags, FrontendKey};

use super::addresses::Addresses;
use super::claims::{Claims, holder, name};
use super::found::Found;
use super::room::{Load, Need};
use super::store::Store;
use super::tables::Tables;
use crate::bpf::object::MapSizes;
use crate::cluster::ClusterState;
use crate::plan::{Full, NodeContext, Programmed, ServicePlan, plan, source_ranges};
use crate::source::{ObjectId, ObjectIdMap, ObjectIdSet};
use crate::trouble::{Remark, Trouble};

/// Services planned before their writes are carried out together.
const CHUNK: usize = 2048;

/// How far tables may grow.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest sizes.
    pub max: MapSizes,
}

/// What a sync did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Elements written into tables, by store or by system call.
    pub writes: u64,
    /// Services looked at.
    pub services: usize,
}

/// The programmer of one node's tables.
pub struct Programmer<S> {
    tables: Tables<S>,
    programmed: ObjectIdMap<Programmed>,
    claims: Claims,
    addresses: Addresses,
    frontends: u32,
    source_ranges: u32,
    endpoints: u64,
    /// During the first sync, what the tables hold that was not taken over so far.
    found: Found,
    problems: ObjectIdMap<Vec<Remark>>,
    /// Services that did not fit as they should be.
    unfit: ObjectIdSet,
    /// During the first sync addresses are compared with the table all at once.
    bulk: bool,
    synced: bool,
}

impl<S: Store> Programmer<S> {
    /// Nothing is known of what the tables hold; [`Self::sync`] finds out.
    pub fn new(store: S, limits: Limits) -> Self {
        Self {
            tables: Tables::new(store, limits.max),
            programmed: ObjectIdMap::default(),
            claims: Claims::default(),
            addresses: Addresses::default(),
            frontends: 0,
            source_ranges: 0,
            endpoints: 0,
            found: Found::default(),
            problems: ObjectIdMap::default(),
            unfit: ObjectIdSet::default(),
            bulk: false,
            synced: false,
        }
    }

    /// The tables.
    pub fn store(&self) -> &S {
        self.tables.store()
    }

    /// The tables, for what does not concern the programmer.
    pub fn store_mut(&mut self) -> &mut S {
        self.tables.store_mut()
    }

    /// What is programmed for a service.
    pub fn programmed(&self, id: ObjectId) -> Option<&Programmed> {
        self.programmed.get(&id)
    }

    /// Frontends in the tables.
    pub fn frontend_count(&self) -> u32 {
        self.frontends
    }

    /// Backends that frontends lead to, each as often as it is led to.
    pub fn endpoint_count(&self) -> u64 {
        self.endpoints
    }

    /// The largest sizes that the tables may grow to.
    pub fn largest(&self) -> MapSizes {
        self.tables.largest()
    }

    /// Addresses in the tables.
    pub fn address_count(&self) -> u32 {
        self.addresses.count_with([].iter())
    }

    /// The virtual addresses in the tables.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = Ip> {
        self.addresses.virtual_addresses()
    }

    /// The virtual addresses that came or went since this was asked last.
    pub fn take_changed_addresses(&mut self) -> Vec<Ip> {
        self.addresses.take_changed()
    }

    /// Slots and backends in use or in quarantine.
    pub fn allocated(&self) -> (u32, u32) {
        self.tables.allocated()
    }

    /// Elements written since the start.
    pub fn writes(&self) -> u64 {
        self.tables.written()
    }

    /// Writes that failed and will be tried again.
    pub fn pending(&self) -> usize {
        self.tables.pending()
    }

    /// What is wrong with a service.
    pub fn problems_of(&self, id: ObjectId) -> &[Remark] {
        self.problems.get(&id).map_or(&[], Vec::as_slice)
    }

    /// What is wrong with services.
    pub fn problems(&self) -> impl Iterator<Item = (ObjectId, &[Remark])> {
        self.problems
            .iter()
            .map(|(id, remarks)| (*id, remarks.as_slice()))
    }

    /// Makes room for what has arrived of the cluster so far and a little more, and says how many more entries fit into every
    /// table then. To be called before [`Self::sync`], as often as one likes.
    pub fn make_room_ahead(&mut self, cluster: &ClusterState, node: &NodeContext) -> u32 {
        let need = Need::of(cluster, node);
        self.grow_to(need.and_more());
        need.left(&self.store().sizes())
    }

    /// Brings everything in line for the first time: what the tables hold and the plan wants is taken over as it is, what the
    /// plan does not want is removed. To be called once, after the first full list of every kind.
    pub fn sync(&mut self, cluster: &ClusterState, node: &NodeContext) -> std::io::Result<Progress> {
        let before = self.tables.written();
        self.found = Found::read(self.store())?;
        self.tables.adopt(&self.found);
        self.grow_to(Need::of(cluster, node));
        self.bulk = true;
        let mut again = ObjectIdSet::default();
        let mut claimed: HashMap<FrontendKey, ObjectId> = HashMap::with_capacity(cluster.service_count());
        self.programmed.reserve(cluster.service_count());
        for (index, (id, _)) in cluster.services().enumerate() {
            let mut planned = plan(cluster, id, node);
            let owner = |key: &FrontendKey| claimed.get(key).copied();
            self.claims
                .settle(id, &mut planned, None, cluster, &mut again, owner);
            for frontend in planned.groups.iter().flat_map(|group| &group.frontends) {
                claimed.insert(frontend.key, id);
            }
            let old = self.found.adopt(&planned);
            self.count(&Programmed::default(), &old);
            self.program(id, &planned, &old, cluster);
            if index % CHUNK == CHUNK - 1 {
                self.tables.flush();
            }
        }
        drop(claimed);
        self.programmed.shrink_to_fit();
        self.make_room_for_addresses();
        // Addresses first: a frontend never stands without its address, nor an address for long without a frontend.
        self.sync_addresses()?;
        self.bulk = false;
        self.synced = true;
        self.tables
            .remove_rest(std::mem::take(&mut self.found), &self.programmed);
        self.tables.flush();
        again.extend(self.unfit.iter().copied());
        if !again.is_empty() {
            self.update(&again, cluster, node);
        }
        Ok(Progress {
            writes: self.tables.written() - before,
            services: cluster.service_count(),
        })
    }

    /// Brings some services in line.
    pub fn update(&mut self, ids: &ObjectIdSet, cluster: &ClusterState, node: &NodeContext) -> Progress {
        let before = self.tables.written();
        let mut todo: Vec<_> = ids.iter().copied().collect();
        let mut again = ObjectIdSet::default();
        self.tables.release();
        let services = todo.len();
        // Settling a claim may touch the other claimant, whose claim is then settled too: three rounds reach everybody.
        // One more is for those that did not fit, which get the room that others left.
        for _ in 0..4 {
            for (index, id) in todo.drain(..).enumerate() {
                let mut planned = plan(cluster, id, node);
                let old = self.programmed.get(&id).cloned().unwrap_or_default();
                let (tables, programmed) = (&self.tables, &self.programmed);
                let owner = |key: &FrontendKey| holder(programmed, tables.frontend(key)?.service);
                self.claims
                    .settle(id, &mut planned, Some(&old), cluster, &mut again, owner);
                self.program(id, &planned, &old, cluster);
                if index % CHUNK == CHUNK - 1 {
                    self.tables.flush();
                }
            }
            self.tables.flush();
            if again.is_empty() && self.tables.take_freed() {
                again.extend(self.unfit.iter().copied());
            }
            if again.is_empty() {
                break;
            }
            todo.extend(again.drain());
        }
        Progress {
            writes: self.tables.written() - before,
            services,
        }
    }

    /// Tells which addresses the node itself holds, and what is known of others. Before the first sync nothing is written: that compares them all.
    pub fn set_node_addresses(&mut self, own: &[Ip], others: HashMap<Ip, AddressFlags>) {
        let touched = self.addresses.set_nodes(own, others);
        if !self.synced || touched.is_empty() {
            return;
        }
        self.make_room_for_addresses();
        for address in touched {
            let flags = self.addresses.flags(&address);
            self.tables.want_address(address, (flags != 0).then_some(flags));
        }
        self.retry();
    }

    /// Tries again what failed before; true if nothing is left.
    pub fn retry(&mut self) -> bool {
        self.tables.release();
        self.tables.retry();
        self.pending() == 0
    }

    /// Compares plan and tables of one service and adds the writes.
    fn program(&mut self, id: ObjectId, planned: &ServicePlan, old: &Programmed, cluster: &ClusterState) {
        let mut problems = planned.remarks.clone();
        let mut result = self.fit(planned, old);
        let mut full = result.as_ref().err().copied();
        if full == Some(Full::SourceRanges) {
            let mut closed = planned.clone();
            source_ranges::close(&mut closed);
            result = self.fit(&closed, old);
            full = result.as_ref().err().copied().or(full);
        }
        match result {
            Ok(new) => {
                self.count(old, &new);
                if new.groups.is_empty() {
                    self.programmed.remove(&id);
                } else {
                    self.programmed.insert(id, new);
                }
            }
            Err(_) => {
                if !old.groups.is_empty() {
                    self.programmed.insert(id, old.clone());
                }
            }
        }
        if let Some(full) = full {
            let message = format!("no room left: {}", self.tables.describe(full));
            if self.unfit.insert(id) {
                tracing::error!(
                    service = name(cluster, id),
                    "{message}; it is tried again when room comes free"
                );
            }
            problems.push(Remark::new(Trouble::MapFull, message));
        } else {
            self.unfit.remove(&id);
        }
        if problems.is_empty() {
            self.problems.remove(&id);
        } else {
            self.problems.insert(id, problems);
        }
    }

    /// Diffs, and makes room where there is none.
    fn fit(&mut self, planned: &ServicePlan, old: &Programmed) -> Result<Programmed, Full> {
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
        // Each frontend has one address at the most; only where that might not fit, they are counted.
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

    /// What the tables would hold with a plan besides, at the most.
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

    /// Grows the table of addresses until the node's own fit in, if it can.
    fn make_room_for_addresses(&mut self) {
        let load = |programmer: &Self| programmer.load(&ServicePlan::default());
        while self.address_count() > self.store().sizes().addresses
            && self.tables.make_room(Full::Addresses, load(self))
        {}
    }

    /// Grows the tables as far as a need asks for.
    fn grow_to(&mut self, need: Need) {
        let wanted = need.sizes(self.store().sizes(), self.largest());
        self.tables.grow(wanted);
    }

    /// Keeps the counts and the addresses in step with the frontends.
    fn count(&mut self, old: &Programmed, new: &Programmed) {
        let keys = |programmed: &Programmed| -> Vec<FrontendKey> {
            programmed
                .groups
                .iter()
                .flat_map(|group| group.keys().copied())
                .collect()
        };
        let endpoints = |p: &Programmed| p.groups.iter().map(|group| u64::from(group.active)).sum::<u64>();
        self.endpoints = self.endpoints + endpoints(new) - endpoints(old);
        self.source_ranges = self.source_ranges + new.range_count() - old.range_count();
        let (old, new) = (keys(old), keys(new));
        // Loopback addresses are for socket hooks, which do not ask what an address is.
        for key in new.iter().filter(|key| !old.contains(key)) {
            self.frontends += 1;
            if !key.address.is_loopback()
                && let Some(flags) = self.addresses.add(key.address)
                && !self.bulk
            {
                self.tables.write_address(key.address, Some(flags));
            }
        }
        for key in old.iter().filter(|key| !new.contains(key)) {
            self.frontends -= 1;
            self.tables.note_freed();
            if key.address.is_loopback() {
                continue;
            }
            if let Some(flags) = self.addresses.remove(&key.address) {
                self.tables
                    .write_address(key.address, (flags != 0).then_some(flags));
            }
        }
    }

    /// Removes addresses that nothing wants, and sets those that are missing; gives both.
    fn sync_addresses(&mut self) -> std::io::Result<(Vec<Ip>, Vec<Ip>)> {
        let mut found = HashMap::new();
        self.store().each_address(&mut |address, flags| {
            found.insert(address, flags);
        })?;
        let wanted = self.addresses.all();
        let missing: Vec<_> = wanted
            .map(|address| (*address, self.addresses.flags(address)))
            .filter(|(address, flags)| found.remove(address) != Some(*flags))
            .collect();
        self.tables.set_addresses(&missing);
        let unwanted: Vec<_> = found
            .into_keys()
            .filter(|address| self.addresses.flags(address) == 0)
            .collect();
        for address in &unwanted {
            self.tables.want_address(*address, None);
        }
        self.tables.retry();
        let missing = missing.into_iter().map(|(address, _)| address);
        Ok((missing.collect(), unwanted))
    }
}
