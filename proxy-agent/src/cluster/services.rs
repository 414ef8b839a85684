//! Services and their slices.
//!
//! Services and slices arrive in any order, so a service's row exists as soon as either is known. The slices
//! of a service form a linked list that begins in its row. A row with neither service nor slices is removed.

use std::net::IpAddr;

use super::address::Family;
use super::cluster_ips::ClusterIps;
use super::endpoint_slice::EndpointSlice;
use super::external::External;
use super::names::Names;
use super::service::Service;
use crate::source::table::{Row, Table};
use crate::source::{ObjectId, ObjectIdSet};

/// A service, its slices, or both.
#[derive(Debug)]
struct ServiceRow {
    id: ObjectId,
    service: Option<Service>,
    first_slice: Option<SliceNumber>,
    seen: bool,
}

#[derive(Debug)]
struct SliceRow {
    id: ObjectId,
    slice: EndpointSlice,
    service: u32,
    next: Option<SliceNumber>,
    seen: bool,
}

/// A slice's row, counted from one so that an `Option` of it takes no more space.
type SliceNumber = std::num::NonZeroU32;

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

// Together with its endpoints and its share of three indexes, a service with one slice takes some 280 bytes.
const _: () = assert!(size_of::<ServiceRow>() <= 120 && size_of::<SliceRow>() <= 104);

/// All services that count and all slices.
#[derive(Debug, Default)]
pub(super) struct Services {
    rows: Table<ServiceRow>,
    slices: Table<SliceRow>,
    cluster_ips: ClusterIps,
    served: usize,
}

impl Services {
    pub(super) fn get(&self, id: ObjectId) -> Option<&Service> {
        self.rows.get(self.rows.find(id)?)?.service.as_ref()
    }

    /// A service with this cluster IP.
    pub(super) fn at(&self, address: IpAddr) -> Option<&Service> {
        let number = self.cluster_ips.find(address, |number| {
            cluster_ip(&self.rows, number, Family::of(address)) == Some(address)
        });
        self.rows.get(number?)?.service.as_ref()
    }

    /// The services that name this address as one from outside.
    pub(super) fn naming(&self, address: IpAddr) -> impl Iterator<Item = (ObjectId, &Service)> {
        let named = self.cluster_ips.named_by(address);
        named.filter_map(|id| Some((id, self.get(id)?)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ObjectId, &Service)> {
        self.rows
            .iter()
            .filter_map(|row| Some((row.id, row.service.as_ref()?)))
    }

    /// The services on one page of the table; `None` behind the last page.
    pub(super) fn page(&self, page: usize) -> Option<impl Iterator<Item = (ObjectId, &Service)>> {
        let rows = self.rows.page(page)?;
        Some(rows.filter_map(|row| Some((row.id, row.service.as_ref()?))))
    }

    /// The number of services that count.
    pub(super) const fn len(&self) -> usize {
        self.served
    }

    pub(super) fn slices_of(&self, service: ObjectId) -> impl Iterator<Item = &EndpointSlice> {
        let first = self
            .rows
            .find(service)
            .and_then(|number| self.rows.get(number)?.first_slice);
        std::iter::successors(self.slice(first), |row| self.slice(row.next)).map(|row| &row.slice)
    }

    /// Stores a service, or its absence; `dirty` gains it if that makes a difference.
    pub(super) fn put(
        &mut self,
        id: ObjectId,
        service: Option<Service>,
        names: &mut Names,
        dirty: &mut ObjectIdSet,
    ) {
        let number = match (self.rows.find(id), &service) {
            (Some(number), _) => number,
            (None, None) => return,
            (None, Some(_)) => self.rows.insert(ServiceRow {
                id,
                service: None,
                first_slice: None,
                seen: true,
            }),
        };
        let Some(row) = self.rows.get_mut(number) else {
            return;
        };
        row.seen = true;
        let differs = row.service != service;
        self.served += usize::from(service.is_some());
        let old = std::mem::replace(&mut row.service, service);
        if differs {
            dirty.insert(id);
            self.index(number, old.as_ref(), dirty);
        }
        if let Some(old) = old {
            self.served -= 1;
            old.release(names);
        }
        self.drop_empty(number);
    }

    /// Updates the index of addresses for a row that held `old` before.
    fn index(&mut self, number: u32, old: Option<&Service>, dirty: &mut ObjectIdSet) {
        let Self {
            rows, cluster_ips, ..
        } = self;
        let Some(row) = rows.get(number) else { return };
        let (before, after) = (outside(old), outside(row.service.as_ref()));
        cluster_ips.name(row.id, before, after);
        for family in [Family::V4, Family::V6] {
            let before = old.and_then(|service| service.cluster_ip(family));
            let after = cluster_ip(rows, number, family);
            if before == after {
                continue;
            }
            if let Some(address) = before {
                cluster_ips.remove(address, number);
            }
            if let Some(address) = after {
                cluster_ips.add(address, number, |number| cluster_ip(rows, number, family));
            }
            let touched = before.into_iter().chain(after);
            dirty.extend(touched.flat_map(|address| cluster_ips.named_by(address)));
        }
    }

    /// Stores a slice of the service `owner`; `dirty` gains the services for which that makes a difference.
    pub(super) fn put_slice(
        &mut self,
        id: ObjectId,
        owner: ObjectId,
        slice: EndpointSlice,
        names: &mut Names,
        dirty: &mut ObjectIdSet,
    ) {
        let owner_number = self.rows.find(owner).unwrap_or_else(|| {
            // Only the apply of the service itself marks it as listed.
            self.rows.insert(ServiceRow {
                id: owner,
                service: None,
                first_slice: None,
                seen: false,
            })
        });
        if let Some(number) = self.slices.find(id)
            && let Some(row) = self.slices.get_mut(number)
        {
            if row.service == owner_number {
                row.seen = true;
                let differs = row.slice != slice;
                std::mem::replace(&mut row.slice, slice).release(names);
                if differs {
                    self.touch(owner_number, dirty);
                }
                return;
            }
            // The slice's label has been moved to another service.
            self.remove_slice(id, names, dirty);
        }
        let next = self.rows.get(owner_number).and_then(|row| row.first_slice);
        let number = self.slices.insert(SliceRow {
            id,
            slice,
            service: owner_number,
            next,
            seen: true,
        });
        if let Some(row) = self.rows.get_mut(owner_number) {
            row.first_slice = SliceNumber::new(number + 1);
        }
        self.touch(owner_number, dirty);
    }

    pub(super) fn remove_slice(&mut self, id: ObjectId, names: &mut Names, dirty: &mut ObjectIdSet) {
        let Some(number) = self.slices.find(id) else {
            return;
        };
        let Some(removed) = self.slices.remove(number) else {
            return;
        };
        removed.slice.release(names);
        let Some(owner) = self.rows.get_mut(removed.service) else {
            return;
        };
        let itself = SliceNumber::new(number + 1);
        if owner.first_slice == itself {
            owner.first_slice = removed.next;
        } else {
            let mut before = owner.first_slice;
            while let Some(number) = before {
                let Some(row) = self.slices.get_mut(number.get() - 1) else {
                    break;
                };
                if row.next == itself {
                    row.next = removed.next;
                    break;
                }
                before = row.next;
            }
        }
        self.touch(removed.service, dirty);
        self.drop_empty(removed.service);
    }

    /// Begins a full list of services: it has named none of them yet.
    pub(super) fn forget_seen(&mut self) {
        self.rows.iter_mut().for_each(|row| row.seen = false);
    }

    /// Begins a full list of slices: it has named none of them yet.
    pub(super) fn forget_seen_slices(&mut self) {
        self.slices.iter_mut().for_each(|row| row.seen = false);
    }

    /// The services that the list did not name.
    pub(super) fn unseen(&self) -> Vec<ObjectId> {
        let unseen = self.rows.iter().filter(|row| !row.seen && row.service.is_some());
        unseen.map(|row| row.id).collect()
    }

    /// The slices that the list did not name.
    pub(super) fn unseen_slices(&self) -> Vec<ObjectId> {
        self.slices
            .iter()
            .filter(|row| !row.seen)
            .map(|row| row.id)
            .collect()
    }

    fn slice(&self, number: Option<SliceNumber>) -> Option<&SliceRow> {
        self.slices.get(number?.get() - 1)
    }

    /// Marks a service dirty whose slice changed, if the service counts.
    fn touch(&self, number: u32, dirty: &mut ObjectIdSet) {
        if let Some(row) = self.rows.get(number)
            && row.service.is_some()
        {
            dirty.insert(row.id);
        }
    }

    fn drop_empty(&mut self, number: u32) {
        let row = self.rows.get(number);
        if row.is_some_and(|row| row.service.is_none() && row.first_slice.is_none()) {
            self.rows.remove(number);
        }
    }
}

/// The cluster IP of the service of a row.
fn cluster_ip(rows: &Table<ServiceRow>, number: u32, family: Family) -> Option<IpAddr> {
    rows.get(number)?.service.as_ref()?.cluster_ip(family)
}

/// The external addresses of a service.
fn outside(service: Option<&Service>) -> impl Iterator<Item = IpAddr> {
    let external = service.and_then(|service| service.external.as_deref());
    external.into_iter().flat_map(External::addresses)
}
