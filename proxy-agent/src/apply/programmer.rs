//! Brings the tables in line with the plan, service by service, and remembers what it wrote.
//!
//! Invariants: what `programmed` says is what the tables hold, or will hold once `pending` is empty; nothing is freed while
//! a write that takes a pointer to it away is pending; a service whose new form does not fit keeps its old one.

use std::collections::{BTreeMap, HashMap};

use proxy_common::Ip;
use proxy_common::maps::{AddressFlags, Backend, Frontend, FrontendKey};

use super::claims::{Claims, holder, name};
use super::quarantine::Quarantine;
use super::store::Store;
use crate::bpf::object::MapSizes;
use crate::cluster::ClusterState;
use crate::plan::programmed::ProgrammedGroup;
use crate::plan::{Allocator, Full, NodeContext, Programmed, ServicePlan, Writes, diff, plan};
use crate::source::{ObjectId, ObjectIdMap, ObjectIdSet};

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

/// What a frontend should become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// This value.
    Set(Frontend),
    /// Nothing, if it still belongs to this service id: another service may have taken it over in between.
    Removed(u32),
}

/// What nothing points at any more once every write before it has succeeded.
struct Leftover {
    gone: Vec<(u32, Backend)>,
    slots: Vec<(u32, u32)>,
}

/// The programmer of one node's tables.
pub struct Programmer<S> {
    store: S,
    limits: Limits,
    allocator: Allocator,
    quarantine: Quarantine,
    programmed: ObjectIdMap<Programmed>,
    claims: Claims,
    addresses: HashMap<Ip, u32>,
    addresses_changed: bool,
    node_addresses: Vec<Ip>,
    frontends: u32,
    endpoints: u64,
    pending_frontends: BTreeMap<FrontendKey, Wanted>,
    pending_addresses: BTreeMap<Ip, Option<u32>>,
    held: Vec<Leftover>,
    problems: ObjectIdMap<Vec<String>>,
    writes: u64,
    scratch: Writes,
    /// During the first sync addresses are compared with the table all at once.
    bulk: bool,
    synced: bool,
}

impl<S: Store> Programmer<S> {
    /// Nothing is known of what the tables hold; [`Self::sync`] finds out.
    pub fn new(store: S, limits: Limits) -> Self {
        let sizes = store.sizes();
        Self {
            store,
            limits,
            allocator: Allocator::new(sizes.slots, sizes.backends),
            quarantine: Quarantine::new(),
            programmed: ObjectIdMap::default(),
            claims: Claims::default(),
            addresses: HashMap::new(),
            addresses_changed: false,
            node_addresses: Vec::new(),
            frontends: 0,
            endpoints: 0,
            pending_frontends: BTreeMap::new(),
            pending_addresses: BTreeMap::new(),
            held: Vec::new(),
            problems: ObjectIdMap::default(),
            writes: 0,
            scratch: Writes::default(),
            bulk: false,
            synced: false,
        }
    }

    /// The tables.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The tables, for what does not concern the programmer.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
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
        self.limits.max
    }

    /// Addresses in the tables.
    pub fn address_count(&self) -> usize {
        self.addresses.len()
    }

    /// The virtual addresses in the tables.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = Ip> {
        self.addresses.keys().copied()
    }

    /// Whether virtual addresses came or went since this was asked last.
    pub fn take_addresses_changed(&mut self) -> bool {
        std::mem::take(&mut self.addresses_changed)
    }

    /// Slots and backends in use or in quarantine.
    pub fn allocated(&self) -> (u32, u32) {
        self.allocator.used()
    }

    /// Elements written since the start.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Writes that failed and will be tried again.
    pub fn pending(&self) -> usize {
        self.pending_frontends.len() + self.pending_addresses.len()
    }

    /// What is wrong with services.
    pub fn problems(&self) -> impl Iterator<Item = (ObjectId, &[String])> {
        self.problems
            .iter()
            .map(|(id, messages)| (*id, messages.as_slice()))
    }

    /// Brings everything in line for the first time: what the tables hold and the plan wants is taken over as it is, what the
    /// plan does not want is removed. To be called once, after the first full list of every kind.
    pub fn sync(&mut self, cluster: &ClusterState, node: &NodeContext) -> std::io::Result<Progress> {
        let before = self.writes;
        let mut found = Found::read(&self.store)?;
        self.allocator = found.allocator(&self.store);
        self.bulk = true;
        let mut again = ObjectIdSet::default();
        let mut claimed: HashMap<FrontendKey, ObjectId> = HashMap::with_capacity(cluster.service_count());
        self.programmed.reserve(cluster.service_count());
        for (index, (id, _)) in cluster.services().enumerate() {
            let mut planned = plan(cluster, id, node);
            let owner = |key: &FrontendKey| claimed.get(key).copied();
            self.claims
                .settle(id, &mut planned, None, cluster, &mut again, owner);
            for key in planned.groups.iter().flat_map(|group| &group.frontends) {
                claimed.insert(*key, id);
            }
            let old = found.adopt(&planned);
            self.count(&Programmed::default(), &old);
            self.program(id, &planned, &old, cluster);
            if index % CHUNK == CHUNK - 1 {
                self.flush();
            }
        }
        drop(claimed);
        self.programmed.shrink_to_fit();
        // Addresses first: a frontend never stands without its address, nor an address for long without a frontend.
        self.sync_addresses()?;
        self.bulk = false;
        self.synced = true;
        found.remove_rest(self);
        self.flush();
        if !again.is_empty() {
            self.update(&again, cluster, node);
        }
        Ok(Progress {
            writes: self.writes - before,
            services: cluster.service_count(),
        })
    }

    /// Brings some services in line.
    pub fn update(&mut self, ids: &ObjectIdSet, cluster: &ClusterState, node: &NodeContext) -> Progress {
        let before = self.writes;
        let mut todo: Vec<_> = ids.iter().copied().collect();
        let mut again = ObjectIdSet::default();
        self.quarantine.release(&mut self.allocator);
        let services = todo.len();
        // Settling a claim may touch the other claimant, whose claim is then settled too: three rounds reach everybody.
        for _ in 0..3 {
            for (index, id) in todo.drain(..).enumerate() {
                let mut planned = plan(cluster, id, node);
                let old = self.programmed.get(&id).cloned().unwrap_or_default();
                let (claims, store, programmed) = (&mut self.claims, &self.store, &self.programmed);
                let pending = &self.pending_frontends;
                let owner = |key: &FrontendKey| owner(store, programmed, pending, key);
                claims.settle(id, &mut planned, Some(&old), cluster, &mut again, owner);
                self.program(id, &planned, &old, cluster);
                if index % CHUNK == CHUNK - 1 {
                    self.flush();
                }
            }
            self.flush();
            if again.is_empty() {
                break;
            }
            todo.extend(again.drain());
        }
        Progress {
            writes: self.writes - before,
            services,
        }
    }

    /// Tells which addresses the node itself holds. Before the first sync nothing is written: that compares them all.
    pub fn set_node_addresses(&mut self, addresses: &[Ip]) {
        if self.node_addresses == addresses {
            return;
        }
        let old = std::mem::replace(&mut self.node_addresses, addresses.to_vec());
        if !self.synced {
            return;
        }
        for address in old.iter().chain(addresses) {
            let flags = self.address_flags(address);
            if self.addresses.contains_key(address) || addresses.contains(address) || old.contains(address) {
                self.pend_address(*address, flags);
            }
        }
        self.retry();
    }

    /// Tries again what failed before; true if nothing is left.
    pub fn retry(&mut self) -> bool {
        self.quarantine.release(&mut self.allocator);
        self.flush_pending();
        self.pending() == 0
    }

    /// Compares plan and tables of one service and adds the writes.
    fn program(&mut self, id: ObjectId, planned: &ServicePlan, old: &Programmed, cluster: &ClusterState) {
        let mut problems = planned.remarks.clone();
        let result = self.fit(planned, old);
        match result {
            Ok(new) => {
                self.count(old, &new);
                if new.groups.is_empty() {
                    self.programmed.remove(&id);
                } else {
                    self.programmed.insert(id, new);
                }
            }
            Err(full) => {
                problems.push(format!("no room left: {}", self.describe(full)));
                tracing::error!(
                    service = name(cluster, id),
                    ?full,
                    "a table is full; the service stays as it is"
                );
            }
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
            let result =
                room.and_then(|()| diff(old, planned, &self.store, &mut self.allocator, &mut self.scratch));
            match result {
                Err(full) if self.make_room(full) => {}
                result => return result,
            }
        }
    }

    fn room_for_frontends(&self, planned: &ServicePlan, old: &Programmed) -> Result<(), Full> {
        let planned: usize = planned.groups.iter().map(|group| group.frontends.len()).sum();
        let old: usize = old.groups.iter().map(|group| group.frontends.len()).sum();
        let more = planned.saturating_sub(old) as u32;
        let sizes = self.store.sizes();
        if more > 0 && self.frontends + more > sizes.frontends {
            return Err(Full::Frontends);
        }
        if more > 0 && self.addresses.len() as u32 + more > sizes.addresses {
            return Err(Full::Addresses);
        }
        Ok(())
    }

    /// Waits for the quarantine, or grows the table; false if neither helps.
    fn make_room(&mut self, full: Full) -> bool {
        if matches!(full, Full::Slots | Full::Backends) && self.quarantine.drain(&mut self.allocator) {
            return true;
        }
        let (sizes, max) = (self.store.sizes(), self.limits.max);
        let mut wanted = sizes;
        let double = |now: u32, max: u32| now.saturating_mul(2).min(max).max(now);
        match full {
            Full::Frontends => wanted.frontends = double(sizes.frontends, max.frontends),
            Full::Slots => wanted.slots = double(sizes.slots, max.slots),
            Full::Backends => wanted.backends = double(sizes.backends, max.backends),
            Full::Addresses => wanted.addresses = double(sizes.addresses, max.addresses),
        }
        if wanted == sizes {
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

    fn describe(&self, full: Full) -> String {
        let (name, size) = match full {
            Full::Frontends => ("frontends", self.store.sizes().frontends),
            Full::Slots => ("slots", self.store.sizes().slots),
            Full::Backends => ("backends", self.store.sizes().backends),
            Full::Addresses => ("addresses", self.store.sizes().addresses),
        };
        format!("the table of {name} holds {size} at the most; raise maps.{name} in the configuration")
    }

    /// Keeps the counts and the addresses in step with the frontends.
    fn count(&mut self, old: &Programmed, new: &Programmed) {
        let keys = |programmed: &Programmed| -> Vec<FrontendKey> {
            programmed
                .groups
                .iter()
                .flat_map(|group| group.frontends.iter().copied())
                .collect()
        };
        let endpoints = |p: &Programmed| p.groups.iter().map(|group| u64::from(group.active)).sum::<u64>();
        self.endpoints = self.endpoints + endpoints(new) - endpoints(old);
        let (old, new) = (keys(old), keys(new));
        for key in new.iter().filter(|key| !old.contains(key)) {
            self.frontends += 1;
            let uses = self.addresses.entry(key.address).or_default();
            *uses += 1;
            self.addresses_changed |= *uses == 1;
            if *uses == 1 && !self.bulk {
                let flags = AddressFlags::VIRTUAL | self.node_flag(&key.address);
                self.scratch.set_addresses.push((key.address, flags));
            }
        }
        for key in old.iter().filter(|key| !new.contains(key)) {
            self.frontends -= 1;
            if let Some(uses) = self.addresses.get_mut(&key.address) {
                *uses -= 1;
                if *uses == 0 {
                    self.addresses.remove(&key.address);
                    self.addresses_changed = true;
                    self.pend_address_removal(key.address);
                }
            }
        }
    }

    fn pend_address_removal(&mut self, address: Ip) {
        match self.node_flag(&address) {
            0 => self.scratch.remove_addresses.push(address),
            flag => self.scratch.set_addresses.push((address, flag)),
        }
    }

    fn node_flag(&self, address: &Ip) -> u32 {
        if self.node_addresses.contains(address) {
            AddressFlags::NODE
        } else {
            0
        }
    }

    fn address_flags(&self, address: &Ip) -> u32 {
        let is_virtual = self.addresses.contains_key(address);
        self.node_flag(address) | if is_virtual { AddressFlags::VIRTUAL } else { 0 }
    }

    fn pend_address(&mut self, address: Ip, flags: u32) {
        self.pending_addresses
            .insert(address, (flags != 0).then_some(flags));
    }

    /// Removes addresses that nobody wants, and sets those that are missing.
    fn sync_addresses(&mut self) -> std::io::Result<()> {
        let mut found = HashMap::new();
        self.store.each_address(&mut |address, flags| {
            found.insert(address, flags);
        })?;
        let wanted = self.addresses.keys().chain(&self.node_addresses);
        let missing: Vec<_> = wanted
            .map(|address| (*address, self.address_flags(address)))
            .filter(|(address, flags)| found.remove(address) != Some(*flags))
            .collect();
        self.set_addresses(&missing);
        let unwanted: Vec<_> = found
            .into_keys()
            .filter(|address| self.address_flags(address) == 0)
            .collect();
        self.pending_addresses
            .extend(unwanted.into_iter().map(|address| (address, None)));
        self.flush_pending();
        Ok(())
    }

    /// Carries out the writes collected so far, in their phases.
    fn flush(&mut self) {
        let mut writes = std::mem::take(&mut self.scratch);
        for (id, backend) in &writes.backends {
            self.store.write_backend(*id, backend);
        }
        let mut slots = writes.slots.iter();
        for (start, count) in &writes.slices {
            for (offset, slot) in slots.by_ref().take(*count as usize).enumerate() {
                self.store.write_slot(start + offset as u32, *slot);
            }
        }
        self.writes += (writes.backends.len() + writes.slots.len()) as u64;
        // What is pending for a key is overtaken by what is written now.
        for (key, _) in &writes.set_frontends {
            self.pending_frontends.remove(key);
        }
        for (address, _) in &writes.set_addresses {
            self.pending_addresses.remove(address);
        }
        self.set_frontends(&writes.set_frontends);
        self.set_addresses(&writes.set_addresses);
        for (key, service) in writes.remove_frontends.drain(..) {
            let taken_over = matches!(self.pending_frontends.get(&key), Some(Wanted::Set(value)) if value.service != service);
            if !taken_over {
                self.pending_frontends.insert(key, Wanted::Removed(service));
            }
        }
        for address in writes.remove_addresses.drain(..) {
            self.pending_addresses.insert(address, None);
        }
        if !writes.gone.is_empty() || !writes.freed_slots.is_empty() {
            let (gone, slots) = (
                std::mem::take(&mut writes.gone),
                std::mem::take(&mut writes.freed_slots),
            );
            self.held.push(Leftover { gone, slots });
        }
        writes.clear();
        self.scratch = writes;
        self.flush_pending();
    }

    fn set_frontends(&mut self, mut frontends: &[(FrontendKey, Frontend)]) {
        while let Err((index, error)) = self.store.set_frontends(frontends) {
            let Some((key, value)) = frontends.get(index) else {
                break;
            };
            tracing::warn!(%error, ?key, "setting a frontend failed, will try again");
            self.pending_frontends.insert(*key, Wanted::Set(*value));
            self.writes += index as u64;
            frontends = &frontends[index + 1..];
        }
        self.writes += frontends.len() as u64;
    }

    fn set_addresses(&mut self, mut addresses: &[(Ip, u32)]) {
        while let Err((index, error)) = self.store.set_addresses(addresses) {
            let Some((address, flags)) = addresses.get(index) else {
                break;
            };
            tracing::warn!(%error, ?address, "setting an address failed, will try again");
            self.pending_addresses.insert(*address, Some(*flags));
            self.writes += index as u64;
            addresses = &addresses[index + 1..];
        }
        self.writes += addresses.len() as u64;
    }

    /// Carries out what is pending, and once nothing is, marks backends gone and sends what is free into quarantine.
    fn flush_pending(&mut self) {
        if !self.pending_frontends.is_empty() {
            let store = &self.store;
            let writes = &mut self.writes;
            self.pending_frontends.retain(|key, wanted| {
                let result = match wanted {
                    Wanted::Set(value) => store.set_frontends(&[(*key, *value)]),
                    Wanted::Removed(service)
                        if store.frontend(key).is_some_and(|f| f.service == *service) =>
                    {
                        store.remove_frontends(&[*key])
                    }
                    Wanted::Removed(_) => return false,
                };
                *writes += 1;
                result.is_err()
            });
        }
        if !self.pending_addresses.is_empty() {
            let store = &self.store;
            let writes = &mut self.writes;
            self.pending_addresses.retain(|address, flags| {
                *writes += 1;
                let result = match flags {
                    Some(flags) => store.set_addresses(&[(*address, *flags)]),
                    None => store.remove_addresses(&[*address]),
                };
                result.is_err()
            });
        }
        if self.pending_frontends.is_empty() {
            for Leftover { gone, slots } in std::mem::take(&mut self.held) {
                for (id, backend) in &gone {
                    self.store.write_backend(*id, backend);
                }
                self.writes += gone.len() as u64;
                self.quarantine
                    .put(slots, gone.into_iter().map(|(id, _)| id).collect());
            }
        }
    }
}

/// Which other service a frontend in the tables belongs to.
fn owner<S: Store>(
    store: &S,
    programmed: &ObjectIdMap<Programmed>,
    pending: &BTreeMap<FrontendKey, Wanted>,
    key: &FrontendKey,
) -> Option<ObjectId> {
    let value = match pending.get(key) {
        Some(Wanted::Set(value)) => *value,
        Some(Wanted::Removed(_)) => return None,
        None => store.frontend(key)?,
    };
    holder(programmed, value.service)
}

/// What a starting agent finds in the tables.
struct Found {
    frontends: HashMap<FrontendKey, Frontend>,
}

impl Found {
    fn read<S: Store>(store: &S) -> std::io::Result<Self> {
        let mut frontends = HashMap::new();
        store.each_frontend(&mut |key, value| {
            frontends.insert(key, value);
        })?;
        Ok(Self { frontends })
    }

    /// An allocator that gives out nothing that is in use.
    fn allocator<S: Store>(&self, store: &S) -> Allocator {
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

    /// What the tables hold for the frontends of a plan.
    fn adopt(&mut self, planned: &ServicePlan) -> Programmed {
        if self.frontends.is_empty() {
            return Programmed::default();
        }
        let mut groups: Vec<ProgrammedGroup> = Vec::new();
        for key in planned.groups.iter().flat_map(|group| &group.frontends) {
            let Some(value) = self
                .frontends
                .remove(key)
                .filter(|value| value.check == key.check())
            else {
                continue;
            };
            match groups.iter_mut().find(|group| group.service == value.service) {
                Some(group) => group.frontends.push(*key),
                None => groups.push(ProgrammedGroup::from_value(*key, &value)),
            }
        }
        Programmed {
            groups: groups.into_boxed_slice(),
        }
    }

    /// Removes what no plan wanted.
    fn remove_rest<S: Store>(self, programmer: &mut Programmer<S>) {
        let mut groups: BTreeMap<u32, ProgrammedGroup> = BTreeMap::new();
        for (key, value) in self.frontends {
            let group = ProgrammedGroup::from_value(key, &value);
            groups
                .entry(group.service)
                .and_modify(|found| found.frontends.push(key))
                .or_insert(group);
        }
        // Frontends of one group that stay keep its slice in use.
        let kept: std::collections::HashSet<u32> = programmer
            .programmed
            .values()
            .flat_map(|p| p.groups.iter().map(|group| group.service))
            .collect();
        for (service, group) in groups {
            if kept.contains(&service) {
                programmer
                    .scratch
                    .remove_frontends
                    .extend(group.frontends.iter().map(|key| (*key, service)));
                continue;
            }
            let old = Programmed {
                groups: Box::new([group]),
            };
            let nothing = ServicePlan::default();
            let result = diff(
                &old,
                &nothing,
                &programmer.store,
                &mut programmer.allocator,
                &mut programmer.scratch,
            );
            debug_assert!(result.is_ok(), "removing needs no room");
        }
    }
}
