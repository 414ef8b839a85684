//! The index of cluster IPs, and of the addresses that services name from outside.
//!
//! An address from outside that is a cluster IP would take its service's traffic. So `plan` refuses it, even
//! if no range is known. A cluster IP that comes or goes makes the services dirty that name it as an address
//! from outside.
//!
//! Cluster IPs are found by the 4-byte numbers of their rows, as in [`Table`](crate::source::table::Table).

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;

use hashbrown::HashTable;

use super::address::Family;
use crate::source::ObjectId;

/// Rows of services by cluster IP, and services by their addresses from outside.
#[derive(Debug, Default)]
pub(super) struct ClusterIps {
    hasher: RandomState,
    v4: HashTable<u32>,
    v6: HashTable<u32>,
    outside: BTreeSet<(IpAddr, ObjectId)>,
}

impl ClusterIps {
    /// The row of a service with this cluster IP; `is_at` returns whether a row has it.
    pub(super) fn find(&self, address: IpAddr, is_at: impl Fn(u32) -> bool) -> Option<u32> {
        let table = match Family::of(address) {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let hash = self.hasher.hash_one(address);
        table.find(hash, |&number| is_at(number)).copied()
    }

    /// Adds a cluster IP of a row; `address_of` returns the cluster IP of the same family that a row has.
    pub(super) fn add(&mut self, address: IpAddr, number: u32, address_of: impl Fn(u32) -> Option<IpAddr>) {
        let Self { hasher, v4, v6, .. } = self;
        let table = match Family::of(address) {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let rehash = |&number: &u32| address_of(number).map_or(0, |address| hasher.hash_one(address));
        table.insert_unique(hasher.hash_one(address), number, rehash);
    }

    /// Removes a cluster IP of a row.
    pub(super) fn remove(&mut self, address: IpAddr, number: u32) {
        let table = match Family::of(address) {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        let hash = self.hasher.hash_one(address);
        if let Ok(entry) = table.find_entry(hash, |&candidate| candidate == number) {
            entry.remove();
        }
    }

    /// Replaces the addresses that a service names from outside.
    pub(super) fn name(
        &mut self,
        id: ObjectId,
        before: impl Iterator<Item = IpAddr>,
        after: impl Iterator<Item = IpAddr>,
    ) {
        for address in before {
            self.outside.remove(&(address, id));
        }
        self.outside.extend(after.map(|address| (address, id)));
    }

    /// The services that name this address as one from outside.
    pub(super) fn named_by(&self, address: IpAddr) -> impl Iterator<Item = ObjectId> {
        let all = self.outside.range((address, ObjectId::LEAST)..);
        all.take_while(move |(named, _)| *named == address)
            .map(|(_, id)| *id)
    }
}
