//! All objects that count, and what an event changes about them.
//!
//! Services and slices arrive in any order, so a service's row exists as soon as either is known, and the slices of a
//! service hang on its row as a list. During a full list every row carries a mark that it was named; at its end the rows without
//! the mark go.
//!
//! Invariant: before the first full list of every kind is complete nothing is reported dirty, since nothing may be
//! removed on the strength of half a list; the event that completes it reports [`Changes::synced`].

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::address::Family;
use super::endpoint_slice::EndpointSlice;
use super::merge::Merged;
use super::names::Names;
use super::node::{Node, ServiceCidr};
use super::problems::{Findings, Problem, Problems};
use super::service::{Service, ServicePort};
use super::table::{Row, Table};
use crate::source::{Change, Event, Kind, Object, ObjectId, ObjectIdSet, wire};

/// The end of a list of slices.
const NONE: u32 = u32::MAX;

/// What has to be looked at again after one or more events.
#[derive(Debug, Default)]
pub struct Changes {
    /// Services to plan again; those that are gone too.
    pub services: ObjectIdSet,
    /// Some node came, went or changed.
    pub nodes: bool,
    /// The ranges of cluster IPs changed.
    pub service_cidrs: bool,
    /// The first full list of every kind is complete: everything has to be planned.
    pub synced: bool,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.nodes && !self.service_cidrs && !self.synced
    }

    /// Forgets what was done, keeping the memory for the next time.
    pub fn clear(&mut self) {
        self.services.clear();
        (self.nodes, self.service_cidrs, self.synced) = (false, false, false);
    }
}

/// A service, its slices, or both.
#[derive(Debug)]
struct ServiceRow {
    id: ObjectId,
    service: Option<Service>,
    first_slice: u32,
    seen: bool,
}

#[derive(Debug)]
struct SliceRow {
    id: ObjectId,
    slice: EndpointSlice,
    service: u32,
    next: u32,
    seen: bool,
}

impl Row for ServiceRow {
    fn id(&self) -> ObjectId {
        self.id
    }
}

impl Row for SliceRow {
    fn id(&self) -> ObjectId {
        self.id
    }
}

/// The few objects that are about the cluster as a whole, in the order of their names.
type Small<T> = BTreeMap<String, (T, ObjectId, bool)>;

/// How far the full list of a kind is.
#[derive(Clone, Copy, Debug, Default)]
struct Listing {
    running: bool,
    complete: bool,
}

/// Everything known about the cluster.
#[derive(Debug, Default)]
pub struct ClusterState {
    proxy_name: Option<String>,
    names: Names,
    services: Table<ServiceRow>,
    slices: Table<SliceRow>,
    nodes: Small<Node>,
    service_cidrs: Small<ServiceCidr>,
    listings: [Listing; Kind::ALL.len()],
    problems: Problems,
    served: usize,
}

impl ClusterState {
    /// Nothing known yet. `proxy_name` is the `service-proxy-name` that means us; without one every labelled Service is another's.
    pub fn new(proxy_name: Option<String>) -> Self {
        Self {
            proxy_name,
            ..Self::default()
        }
    }

    /// Takes in an event and adds to `changes` what it changed.
    pub fn apply(&mut self, event: Event, changes: &mut Changes) {
        let was_synced = self.synced();
        match event.change {
            Change::Begin(kind) => self.begin(kind),
            Change::Apply(object) => self.put(&object, changes),
            Change::Delete(kind, id) => self.delete(kind, id, changes),
            Change::End(kind) => self.end(kind, changes),
            Change::Problems { subject, messages } => self.problems.set_input(subject, messages),
        }
        if !was_synced {
            changes.clear();
            changes.synced = self.synced();
        }
    }

    /// Whether the first full list of every kind is complete. Before that nothing may be removed from the maps.
    pub fn synced(&self) -> bool {
        self.listings.iter().all(|listing| listing.complete)
    }

    /// The kinds whose first full list is not complete.
    pub fn waiting_for(&self) -> Vec<Kind> {
        Kind::ALL
            .into_iter()
            .filter(|&kind| !self.listings[kind as usize].complete)
            .collect()
    }

    /// The shared values that symbols stand for.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// A service that counts.
    pub fn service(&self, id: ObjectId) -> Option<&Service> {
        self.services.get(self.services.find(id)?).service.as_ref()
    }

    /// Every service that counts.
    pub fn services(&self) -> impl Iterator<Item = (ObjectId, &Service)> {
        self.services
            .iter()
            .filter_map(|(_, row)| Some((row.id, row.service.as_ref()?)))
    }

    /// How many services count.
    pub fn service_count(&self) -> usize {
        self.served
    }

    /// The slices of a service, in no order.
    pub fn slices_of(&self, service: ObjectId) -> impl Iterator<Item = &EndpointSlice> {
        let first = self
            .services
            .find(service)
            .map_or(NONE, |row| self.services.get(row).first_slice);
        let row = |number: u32| (number != NONE).then(|| self.slices.get(number));
        std::iter::successors(row(first), move |slice| row(slice.next)).map(|row| &row.slice)
    }

    /// The endpoints of a service's port in one family.
    pub fn endpoints_of(&self, service: ObjectId, family: Family, port: &ServicePort) -> Merged {
        Merged::new(self.slices_of(service), family, port)
    }

    /// Every node, in the order of names.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().map(|(node, ..)| node)
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).map(|(node, ..)| node)
    }

    /// The ranges that cluster IPs are taken from.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.service_cidrs
            .values()
            .flat_map(|(object, ..)| object.cidrs.iter().copied())
    }

    /// What is wrong with the input.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems.list()
    }

    fn begin(&mut self, kind: Kind) {
        self.listings[kind as usize].running = true;
        match kind {
            Kind::Service => self.services.iter_mut().for_each(|row| row.seen = false),
            Kind::EndpointSlice => self.slices.iter_mut().for_each(|row| row.seen = false),
            Kind::Node => self.nodes.values_mut().for_each(|(.., seen)| *seen = false),
            Kind::ServiceCidr => self
                .service_cidrs
                .values_mut()
                .for_each(|(.., seen)| *seen = false),
        }
    }

    fn end(&mut self, kind: Kind, changes: &mut Changes) {
        if !std::mem::take(&mut self.listings[kind as usize].running) {
            return;
        }
        self.listings[kind as usize].complete = true;
        let gone: Vec<ObjectId> = match kind {
            Kind::Service => self
                .services
                .iter()
                .filter(|(_, row)| !row.seen && row.service.is_some())
                .map(|(_, row)| row.id)
                .collect(),
            Kind::EndpointSlice => self
                .slices
                .iter()
                .filter(|(_, row)| !row.seen)
                .map(|(_, row)| row.id)
                .collect(),
            Kind::Node => self
                .nodes
                .values()
                .filter(|(.., seen)| !seen)
                .map(|&(_, id, _)| id)
                .collect(),
            Kind::ServiceCidr => self
                .service_cidrs
                .values()
                .filter(|(.., seen)| !seen)
                .map(|&(_, id, _)| id)
                .collect(),
        };
        for id in gone {
            self.delete(kind, id, changes);
        }
    }

    fn delete(&mut self, kind: Kind, id: ObjectId, changes: &mut Changes) {
        self.problems.clear(id);
        match kind {
            Kind::Service => self.put_service(id, None, changes),
            Kind::EndpointSlice => self.remove_slice(id, changes),
            Kind::Node => changes.nodes |= remove_small(&mut self.nodes, id),
            Kind::ServiceCidr => changes.service_cidrs |= remove_small(&mut self.service_cidrs, id),
        }
    }

    fn put(&mut self, object: &Object, changes: &mut Changes) {
        let id = object.id();
        let mut findings = Findings::default();
        match object {
            Object::Service(wire) => {
                let service = Service::read(wire, self.proxy_name.as_deref(), &mut self.names, &mut findings);
                self.put_service(id, service, changes);
            }
            Object::EndpointSlice(wire) => self.put_slice(id, wire, &mut findings, changes),
            Object::Node(wire) => {
                let node = Node::read(wire, &mut findings);
                changes.nodes |= put_small(&mut self.nodes, &wire.metadata.name, id, node);
            }
            Object::ServiceCidr(wire) => {
                let cidr = ServiceCidr::read(wire, &mut findings);
                changes.service_cidrs |= put_small(&mut self.service_cidrs, &wire.metadata.name, id, cidr);
            }
        }
        self.problems
            .set(id, findings.into_messages(), || object.to_string());
    }

    fn put_service(&mut self, id: ObjectId, service: Option<Service>, changes: &mut Changes) {
        let number = match (self.services.find(id), &service) {
            (Some(number), _) => number,
            (None, None) => return,
            (None, Some(_)) => self.services.insert(ServiceRow {
                id,
                service: None,
                first_slice: NONE,
                seen: true,
            }),
        };
        let row = self.services.get_mut(number);
        row.seen = true;
        let changed = row.service != service;
        self.served += usize::from(service.is_some());
        if let Some(old) = std::mem::replace(&mut row.service, service) {
            self.served -= 1;
            old.release(&mut self.names);
        }
        if changed {
            changes.services.insert(id);
        }
        self.drop_empty_row(number);
    }

    fn put_slice(
        &mut self,
        id: ObjectId,
        wire: &wire::EndpointSlice,
        findings: &mut Findings,
        changes: &mut Changes,
    ) {
        let owner = wire
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.service_name.as_deref());
        let Some(owner) = owner.filter(|name| !name.is_empty()) else {
            findings.add(|| {
                "metadata.labels: no kubernetes.io/service-name, so it belongs to no Service; the slice is left out".to_owned()
            });
            return self.remove_slice(id, changes);
        };
        let Some(slice) = EndpointSlice::read(wire, &mut self.names, findings) else {
            return self.remove_slice(id, changes);
        };
        let owner = ObjectId::new(Kind::Service, wire.metadata.namespace(), owner);
        if let Some(number) = self.slices.find(id) {
            let row = self.slices.get_mut(number);
            row.seen = true;
            if self.services.get(row.service).id == owner {
                let changed = row.slice != slice;
                let old = std::mem::replace(&mut row.slice, slice);
                old.release(&mut self.names);
                if changed {
                    self.touch(owner, changes);
                }
                return;
            }
            // The label was moved to another service.
            self.remove_slice(id, changes);
        }
        let service = self.services.find(owner).unwrap_or_else(|| {
            // Whether the service itself was listed is for its own apply to say.
            self.services.insert(ServiceRow {
                id: owner,
                service: None,
                first_slice: NONE,
                seen: false,
            })
        });
        let next = self.services.get(service).first_slice;
        let number = self.slices.insert(SliceRow {
            id,
            slice,
            service,
            next,
            seen: true,
        });
        self.services.get_mut(service).first_slice = number;
        self.touch(owner, changes);
    }

    fn remove_slice(&mut self, id: ObjectId, changes: &mut Changes) {
        let Some(number) = self.slices.find(id) else {
            return;
        };
        let removed = self.slices.remove(number);
        removed.slice.release(&mut self.names);
        let owner = self.services.get_mut(removed.service);
        let owner_id = owner.id;
        if owner.first_slice == number {
            owner.first_slice = removed.next;
        } else {
            let mut before = owner.first_slice;
            while self.slices.get(before).next != number {
                before = self.slices.get(before).next;
            }
            self.slices.get_mut(before).next = removed.next;
        }
        self.touch(owner_id, changes);
        self.drop_empty_row(removed.service);
    }

    /// A slice of this service changed; that matters if the service counts.
    fn touch(&self, service: ObjectId, changes: &mut Changes) {
        if self.service(service).is_some() {
            changes.services.insert(service);
        }
    }

    fn drop_empty_row(&mut self, number: u32) {
        let row = self.services.get(number);
        if row.service.is_none() && row.first_slice == NONE {
            self.services.remove(number);
        }
    }
}

/// Stores an object; whether that changed anything.
fn put_small<T: PartialEq>(objects: &mut Small<T>, name: &str, id: ObjectId, object: T) -> bool {
    if let Some((stored, _, seen)) = objects.get_mut(name) {
        *seen = true;
        let changed = *stored != object;
        *stored = object;
        return changed;
    }
    objects.insert(name.to_owned(), (object, id, true));
    true
}

/// Removes an object; whether it was there. The tables are small, so a walk will do.
fn remove_small<T>(objects: &mut Small<T>, id: ObjectId) -> bool {
    let before = objects.len();
    objects.retain(|_, (_, stored, _)| *stored != id);
    objects.len() < before
}
