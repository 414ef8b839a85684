//! Other owners of the addresses that services name from outside.
//!
//! An address of a service may belong to another machine. This may be an API server, a router that translates
//! an address of this node's object, a host on a link, or a route's target. At such an address the service
//! has its own ports, and all other traffic goes where it went before, as with addresses of other nodes. The
//! evidence is the state of the cluster and the kernel. The agent asks the kernel once about an address on a
//! link. A host that was there counts until it sends no reply, since the kernel forgets neighbours without
//! traffic.
//!
//! At the address of a load balancer some host of the link replies as a rule: the node that announces it. And
//! a route to a range around the address leads to the balancer. So for a balancer's address neither is
//! evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::cluster::ClusterState;
use crate::control::ObjectError;
use crate::network::others::{ForeignRoute, Neighbour};
use crate::network::{Change, Links, Netlink, NetworkError, NodeAddresses, Role, Roles, is_own};
use crate::trouble::Trouble;

/// The owner of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressOwner {
    /// An API server.
    ApiServer,
    /// This node, by its Node object; no interface has the address.
    ThisNode,
    /// A host of a link.
    Neighbour { mac: String, interface: String },
    /// The machine behind a route.
    Route(ForeignRoute),
}

impl fmt::Display for AddressOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiServer => write!(f, "an API server of the cluster"),
            Self::ThisNode => write!(f, "this node, as its Node object says; no interface has it"),
            Self::Neighbour { mac, interface } => write!(f, "the host {mac} on the link of {interface}"),
            Self::Route(route) => write!(f, "the next hop of the route {route}"),
        }
    }
}

/// The known owners of addresses that services name.
#[derive(Debug, Default)]
pub struct AddressOwners {
    found: BTreeMap<IpAddr, AddressOwner>,
    /// The addresses that services name, outside of all ranges.
    named: BTreeSet<IpAddr>,
    /// The external IPs among them.
    external: BTreeSet<IpAddr>,
    /// The addresses whose owner the kernel may know.
    watched: BTreeSet<IpAddr>,
    /// The addresses that the kernel was asked about.
    asked: BTreeSet<IpAddr>,
}

/// The sources of evidence.
pub struct Evidence<'a> {
    pub netlink: &'a Netlink,
    pub links: &'a Links,
    pub roles: &'a Roles,
    pub addresses: &'a NodeAddresses,
    pub cluster: &'a ClusterState,
}

impl AddressOwners {
    /// Looks for the owners of the addresses that services name (`named`). `known` has the owners that the
    /// cluster's objects show.
    pub async fn look(
        &mut self,
        evidence: &Evidence<'_>,
        named: BTreeSet<IpAddr>,
        known: BTreeMap<IpAddr, AddressOwner>,
    ) -> Result<(), NetworkError> {
        let cluster = evidence.cluster;
        let is_cluster_ip = |address: &IpAddr| cluster.service_at(*address).is_some();
        let is_open = |address: &&IpAddr| {
            !evidence.addresses.holds(**address) && !known.contains_key(*address) && !is_cluster_ip(address)
        };
        self.watched = named.iter().filter(is_open).copied().collect();
        self.asked.retain(|address| self.watched.contains(address));
        let external = named.iter().copied();
        self.external = external
            .filter(|address| cluster.is_external_ip(*address))
            .collect();
        let mut found = known;
        found.retain(|address, _| !is_cluster_ip(address));
        if !self.watched.is_empty() {
            found.extend(self.kernel_owners(evidence).await?);
        }
        for (address, owner) in found.iter().filter(|(address, _)| named.contains(address)) {
            if !self.named.contains(address) || self.found.get(address) != Some(owner) {
                tracing::info!(%address, %owner, "of this address only the ports of services are taken");
            }
        }
        (self.found, self.named) = (found, named);
        Ok(())
    }

    async fn kernel_owners(
        &mut self,
        evidence: &Evidence<'_>,
    ) -> Result<Vec<(IpAddr, AddressOwner)>, NetworkError> {
        let is_ours = |index| evidence.links.get(index).is_some_and(|link| is_own(&link.name));
        let routes = evidence.netlink.routes().await?;
        let routes = routes
            .iter()
            .filter_map(|route| ForeignRoute::read(route, is_ours));
        let routes: Vec<_> = routes.collect();
        let neighbours = evidence.netlink.neighbours().await?;
        let mut found = Vec::new();
        for address in self.watched.clone() {
            let owner = match self.longest_route(&routes, address) {
                Some(route) => Some(AddressOwner::Route(route)),
                None if self.external.contains(&address) => {
                    self.neighbour(evidence, &neighbours, address).await
                }
                None => None,
            };
            found.extend(owner.map(|owner| (address, owner)));
        }
        Ok(found)
    }

    fn longest_route(&self, routes: &[ForeignRoute], address: IpAddr) -> Option<ForeignRoute> {
        let route = ForeignRoute::longest(routes, address)?;
        let is_lone = route.prefix.prefix_len() == route.prefix.max_prefix_len();
        (is_lone || (route.has_gateway && self.external.contains(&address))).then(|| route.clone())
    }

    async fn neighbour(
        &mut self,
        evidence: &Evidence<'_>,
        neighbours: &[Neighbour],
        address: IpAddr,
    ) -> Option<AddressOwner> {
        let links = evidence.links;
        let ranges = links.ranges_on_links();
        // A neighbour entry of an address outside of the interface's link ranges belongs to a host that may
        // send from there.
        let is_here = |interface: &u32| {
            let mut ranges = ranges.get(interface).into_iter().flatten();
            ranges.any(|range| range.contains(&address))
        };
        let uplinks = evidence.roles.of(Role::Uplink).map(|uplink| uplink.index);
        let here: BTreeSet<u32> = uplinks.filter(is_here).collect();
        let entries = neighbours
            .iter()
            .filter(|entry| entry.address == address && here.contains(&entry.interface));
        let entries: Vec<_> = entries.collect();
        if entries.is_empty() {
            if let Some(interface) = here.first()
                && self.asked.insert(address)
                && let Err(error) = evidence.netlink.ask_for(*interface, address).await
            {
                tracing::debug!(%address, %error, "asking who has an address");
            }
            let before = self.found.get(&address).cloned();
            return before
                .filter(|owner| !here.is_empty() && matches!(owner, AddressOwner::Neighbour { .. }));
        }
        let is_ours = |mac: &[u8; 6]| links.iter().any(|link| link.mac.as_ref() == Some(mac));
        let mut there = entries
            .into_iter()
            .filter_map(|entry| Some((entry.interface, entry.mac.filter(|mac| !is_ours(mac))?)));
        let (interface, mac) = there.next()?;
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        Some(AddressOwner::Neighbour {
            mac,
            interface: links.name(interface),
        })
    }

    /// Whether a change may concern the owner of an address.
    pub fn is_concerned(&self, change: &Change) -> bool {
        let is_affected = |address: &IpAddr| {
            (self.external.contains(address) && change.neighbours.contains(address))
                || change.routes.iter().any(|prefix| prefix.contains(address))
        };
        self.watched.iter().any(is_affected)
    }

    /// The owner of an address, if another machine or this node's object has it.
    pub fn of(&self, address: IpAddr) -> Option<&AddressOwner> {
        self.found.get(&address)
    }

    /// Every address that another machine holds.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.found.keys().copied()
    }

    /// The addresses that services name, each with its owner.
    pub fn named(&self) -> impl Iterator<Item = (IpAddr, &AddressOwner)> {
        let found = self.found.iter();
        let named = found.filter(|(address, _)| self.named.contains(*address));
        named.map(|(address, owner)| (*address, owner))
    }

    /// Services whose address another owner has, most likely by mistake.
    pub fn problems(&self) -> impl Iterator<Item = ObjectError> {
        let conflicts = self.named().filter(|(address, owner)| match owner {
            AddressOwner::ApiServer => true,
            AddressOwner::ThisNode => false,
            AddressOwner::Neighbour { .. } | AddressOwner::Route(_) => self.external.contains(address),
        });
        conflicts.map(|(address, owner)| ObjectError {
            code: Trouble::AddressOfAnother,
            object: format!("address {address}"),
            message: format!(
                "a service has this address, and so has {owner}. Only the ports of the service are served there; other packets \
                 follow the kernel's routes. Give the service another address if this is a mistake"
            ),
        })
    }
}
