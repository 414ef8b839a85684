//! The content of the table of addresses: virtual addresses while a frontend uses them, the node's own, and
//! those of other nodes.
//!
//! An external address may belong to another node or another machine. Its frontends are served all the same,
//! but it is not virtual: other packets to it are for that machine. The table has no entry for a machine that
//! is no node.

use std::collections::{HashMap, HashSet};

use proxy_common::Ip;
use proxy_common::maps::AddressFlags;
#[cfg(test)]
use proxy_common::maps::NodeNumber;

/// The flags of an address that belongs to a machine outside of the cluster's nodes: it is no virtual
/// address.
pub const ANOTHERS: AddressFlags = AddressFlags(0);

/// The addresses that the table should hold.
#[derive(Debug, Default)]
pub struct Addresses {
    /// The number of frontends that use each virtual address.
    uses: HashMap<Ip, u32>,
    node: Vec<Ip>,
    /// Addresses of other machines, and those that are no host's.
    others: HashMap<Ip, AddressFlags>,
    changed: Vec<Ip>,
}

impl Addresses {
    /// The virtual addresses.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = Ip> {
        self.uses.keys().copied()
    }

    /// The virtual addresses that came or went since the last call.
    pub fn take_changed(&mut self) -> Vec<Ip> {
        std::mem::take(&mut self.changed)
    }

    /// Counts a new frontend with this address. Returns the flags to write if it is the first one.
    pub fn add(&mut self, address: Ip) -> Option<u32> {
        let uses = self.uses.entry(address).or_default();
        *uses += 1;
        if *uses > 1 {
            return None;
        }
        self.changed.push(address);
        Some(self.flags(&address)).filter(|flags| *flags != 0)
    }

    /// Counts the removal of a frontend with this address. Returns the flags to write if it was the last one,
    /// 0 to remove the address.
    pub fn remove(&mut self, address: &Ip) -> Option<u32> {
        let uses = self.uses.get_mut(address)?;
        *uses -= 1;
        if *uses > 0 {
            return None;
        }
        self.uses.remove(address);
        self.changed.push(*address);
        Some(self.flags(address))
    }

    /// Replaces the node's own addresses and the flags of other machines' addresses. Returns the addresses
    /// whose flags may have changed.
    pub fn set_nodes(&mut self, own: &[Ip], others: HashMap<Ip, AddressFlags>) -> Vec<Ip> {
        let mut touched = Vec::new();
        if self.node != own {
            touched = std::mem::replace(&mut self.node, own.to_vec());
            touched.extend(own);
        }
        if self.others != others {
            let before = std::mem::replace(&mut self.others, others);
            let gone = before.keys().filter(|address| !self.others.contains_key(address));
            touched.extend(gone);
            let new = self.others.iter();
            let new = new.filter(|(address, flags)| before.get(address) != Some(flags));
            touched.extend(new.map(|(address, _)| *address));
        }
        touched
    }

    /// The flags that the table should have for an address; 0 for no entry.
    pub fn flags(&self, address: &Ip) -> u32 {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let other = self.others.get(address).copied();
        let is_anothers = other.is_some_and(|other| other == ANOTHERS || other.is_peer());
        flag(self.node.contains(address), AddressFlags::NODE)
            | other.unwrap_or_default().0
            | flag(
                self.uses.contains_key(address) && !is_anothers,
                AddressFlags::VIRTUAL,
            )
    }

    /// Every address that the table should hold.
    pub fn all(&self) -> impl Iterator<Item = &Ip> {
        let unused = |address: &&Ip| !self.uses.contains_key(*address);
        let node_only = self.node.iter().filter(unused);
        let others_only = self.others.keys().filter(unused);
        let others_only = others_only.filter(|address| !self.node.contains(address));
        let all = self.uses.keys().chain(node_only).chain(others_only);
        all.filter(|address| self.others.get(*address) != Some(&ANOTHERS) || self.node.contains(address))
    }

    /// The number of addresses in the table once `more` are added.
    pub fn count_with<'a>(&'a self, more: impl Iterator<Item = &'a Ip>) -> u32 {
        let new: HashSet<_> = more
            .chain(&self.node)
            .chain(self.others.keys())
            .filter(|address| !self.uses.contains_key(*address))
            .collect();
        (self.uses.len() + new.len()) as u32
    }

    /// An upper bound of the number of addresses in the table.
    pub fn at_most(&self) -> u32 {
        (self.uses.len() + self.node.len() + self.others.len()) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ip {
        text.parse::<std::net::IpAddr>().expect("an address").into()
    }

    #[test]
    fn an_address_stays_as_long_as_a_frontend_or_the_node_has_it() {
        let mut addresses = Addresses::default();
        let (vip, node) = (ip("10.96.0.1"), ip("192.0.2.1"));
        assert_eq!(addresses.set_nodes(&[node], HashMap::new()), [node]);
        assert_eq!(addresses.set_nodes(&[node], HashMap::new()), []);
        assert_eq!(addresses.add(vip), Some(AddressFlags::VIRTUAL));
        assert_eq!(addresses.add(vip), None);
        assert_eq!(
            addresses.add(node),
            Some(AddressFlags::VIRTUAL | AddressFlags::NODE)
        );
        assert_eq!(addresses.take_changed(), [vip, node]);
        assert_eq!(addresses.remove(&vip), None);
        assert_eq!(addresses.remove(&vip), Some(0));
        assert_eq!(addresses.remove(&node), Some(AddressFlags::NODE));
        assert_eq!(addresses.remove(&node), None);
        assert_eq!(addresses.take_changed(), [vip, node]);
    }

    #[test]
    fn the_address_of_another_node_is_not_virtual() {
        let mut addresses = Addresses::default();
        let other = ip("192.0.2.2");
        let peers = |number| HashMap::from([(other, AddressFlags::of_peer(NodeNumber(number)))]);
        let flags = AddressFlags::PEER | 7 << NodeNumber::SHIFT;
        assert_eq!(addresses.set_nodes(&[], peers(7)), [other]);
        assert_eq!(addresses.flags(&other), flags);
        assert_eq!(addresses.set_nodes(&[], peers(7)), []);
        assert_eq!(addresses.all().collect::<Vec<_>>(), [&other]);
        assert_eq!(addresses.add(other), Some(flags));
        assert_eq!(addresses.all().count(), 1);
        assert_eq!(
            addresses.set_nodes(&[], peers(8)),
            [other],
            "another node has it now"
        );
        assert_eq!(addresses.set_nodes(&[], HashMap::new()), [other]);
        assert_eq!(addresses.flags(&other), AddressFlags::VIRTUAL);
    }

    #[test]
    fn the_address_of_another_machine_is_not_virtual_and_not_in_the_table() {
        let mut addresses = Addresses::default();
        let other = ip("192.0.2.100");
        let known = HashMap::from([(other, ANOTHERS)]);
        assert_eq!(addresses.add(other), Some(AddressFlags::VIRTUAL));
        assert_eq!(addresses.set_nodes(&[], known.clone()), [other]);
        assert_eq!(addresses.flags(&other), 0, "the element goes");
        assert_eq!(addresses.all().count(), 0);
        assert_eq!(addresses.remove(&other), Some(0));
        assert_eq!(addresses.add(other), None, "nothing to write");
        addresses.set_nodes(&[other], known);
        assert_eq!(addresses.flags(&other), AddressFlags::NODE);
        assert_eq!(addresses.all().count(), 1);
        addresses.set_nodes(&[], HashMap::new());
        assert_eq!(
            addresses.flags(&other),
            AddressFlags::VIRTUAL,
            "the machine is gone"
        );
    }

    #[test]
    fn addresses_are_counted_once() {
        let mut addresses = Addresses::default();
        let (vip, node, other) = (ip("10.96.0.1"), ip("192.0.2.1"), ip("10.96.0.2"));
        addresses.set_nodes(&[node, vip], HashMap::new());
        addresses.add(vip);
        assert_eq!(addresses.count_with([].iter()), 2);
        assert_eq!(addresses.count_with([other, other, vip, node].iter()), 3);
        assert_eq!(addresses.at_most(), 3);
    }
}
