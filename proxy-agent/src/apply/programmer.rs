//! Updates the tables to the plan, service by service, and remembers the written state.
//!
//! Invariants: `programmed` equals the content of the tables, or will once [`Tables`] has no pending writes.
//! A service whose new form does not fit keeps its old one. If only source ranges do not fit, the addresses
//! that they are for are left out, and the rest of the service is programmed.

mod compare;
mod growth;

use std::collections::HashMap;

use proxy_common::Ip;
use proxy_common::maps::{AddressFlags, FrontendKey};

use super::addresses::Addresses;
use super::claims::{Claims, name, owner_of};
use super::found::Found;
use super::room::Need;
use super::store::Store;
use super::tables::Tables;
use crate::bpf::object::MapSizes;
use crate::cluster::ClusterState;
use crate::plan::{Full, NodeContext, Programmed, ServicePlan, plan, source_ranges};
use crate::source::{ObjectId, ObjectIdMap, ObjectIdSet};
use crate::trouble::{Remark, Trouble};

/// The number of services that are planned before their writes are carried out together.
const CHUNK: usize = 2048;

/// The limits for the growth of tables.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The largest sizes.
    pub max: MapSizes,
}

/// The work of one sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Elements written into tables, by a store to memory or by a system call.
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
    /// During the first sync, the elements in the tables that no plan has adopted so far.
    found: Found,
    problems: ObjectIdMap<Vec<Remark>>,
    /// Services that did not fit into the tables in their planned form.
    unfit: ObjectIdSet,
    /// True during the first sync, which compares all addresses with the table at once.
    bulk: bool,
    synced: bool,
}

impl<S: Store> Programmer<S> {
    /// A programmer that does not know the content of the tables; [`Self::sync`] reads it.
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

    /// The tables in the kernel.
    pub fn store(&self) -> &S {
        self.tables.store()
    }

    /// The tables, for operations outside of the programmer's work.
    pub fn store_mut(&mut self) -> &mut S {
        self.tables.store_mut()
    }

    /// The programmed state of a service.
    pub fn programmed(&self, id: ObjectId) -> Option<&Programmed> {
        self.programmed.get(&id)
    }

    /// Whether the planned form of a service does not fit into the tables.
    pub fn does_not_fit(&self, id: ObjectId) -> bool {
        self.unfit.contains(&id)
    }

    /// The number of frontends in the tables.
    pub fn frontend_count(&self) -> u32 {
        self.frontends
    }

    /// The number of backends of all frontends; a backend of two frontends counts twice.
    pub fn endpoint_count(&self) -> u64 {
        self.endpoints
    }

    /// The largest sizes that the tables may grow to.
    pub fn largest(&self) -> MapSizes {
        self.tables.largest()
    }

    /// The number of addresses in the tables.
    pub fn address_count(&self) -> u32 {
        self.addresses.count_with([].iter())
    }

    /// The virtual addresses in the tables.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = Ip> {
        self.addresses.virtual_addresses()
    }

    /// The virtual addresses that came or went since the last call.
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

    /// The problems of a service.
    pub fn problems_of(&self, id: ObjectId) -> &[Remark] {
        self.problems.get(&id).map_or(&[], Vec::as_slice)
    }

    /// The problems of all services.
    pub fn problems(&self) -> impl Iterator<Item = (ObjectId, &[Remark])> {
        self.problems
            .iter()
            .map(|(id, remarks)| (*id, remarks.as_slice()))
    }

    /// Updates all tables for the first time. Elements that the plan wants are adopted as they are, and all
    /// others are removed. To be called once, after the first full list of every kind.
    pub fn sync(&mut self, cluster: &ClusterState, node: &NodeContext) -> std::io::Result<Progress> {
        let before = self.tables.written();
        self.found = Found::read(self.store())?;
        self.tables.adopt(&self.found);
        self.tables.forget_refusal();
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
        // Addresses come first: a frontend is never without its address, and an address is not long without a
        // frontend.
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

    /// Updates the tables for some services.
    pub fn update(&mut self, ids: &ObjectIdSet, cluster: &ClusterState, node: &NodeContext) -> Progress {
        let before = self.tables.written();
        let mut todo: Vec<_> = ids.iter().copied().collect();
        let mut again = ObjectIdSet::default();
        self.tables.release();
        let services = todo.len();
        // A settled claim may change the other claimant, whose claim is then settled too: three rounds reach
        // all of them. One more round is for services that did not fit, which get the space that others
        // freed.
        for _ in 0..4 {
            for (index, id) in todo.drain(..).enumerate() {
                let mut planned = plan(cluster, id, node);
                let old = self.programmed.get(&id).cloned().unwrap_or_default();
                let (tables, programmed) = (&self.tables, &self.programmed);
                let owner = |key: &FrontendKey| owner_of(programmed, tables.frontend(key)?.service);
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

    /// Sets the node's own addresses, and the flags of other machines' addresses. Before the first sync it
    /// writes no address, since the sync compares all of them.
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

    /// Tries again the writes that failed; true if none is left.
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

    /// Updates the counts and the addresses for changed frontends.
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
        // Loopback addresses are for socket hooks, which do not look addresses up.
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

    /// Removes addresses that are not wanted, and sets those that are missing; returns both.
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
