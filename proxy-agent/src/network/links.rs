//! The links of the namespace, their addresses and the default routes, as the kernel last reported them.
//!
//! This module does no I/O. [`Links::take`] applies one netlink message and notes the differences in a
//! [`Change`]; [`super::monitor`] owns the sockets. A message may arrive twice, or describe the state that a
//! dump has already shown: its second application changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cni_plugin::attachment::is_of_limiter;
use ipnet::IpNet;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::tc::TcHandle;

use super::default_route::DefaultRoute;
use super::is_own;
use super::link::{Address, Link};
use super::multipath::MultipathRoutes;
use super::netlink;
use super::on_link::LinkRoutes;
use super::others::Neighbour;
use super::pods::TUNNEL_DEVICE;
use super::port_rules::PortAt;
use crate::bpf::links::InterfaceRole;

/// The differences that messages made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Links that were added, removed or changed.
    pub links: BTreeSet<u32>,
    /// Whether a public address was added, removed or changed, or the ranges of hosts on links changed.
    pub addresses: bool,
    /// Whether the default routes changed.
    pub default_routes: bool,
    /// Prefixes whose routes in the main table were added or removed.
    pub routes: BTreeSet<IpNet>,
    /// Prefixes whose routes in other tables were added or removed. Of the table `local` only those count
    /// that make addresses the node's own.
    pub other_routes: BTreeSet<IpNet>,
    /// How many foreign rules were added or removed.
    pub rules: usize,
    /// Links that lost a neighbour, a link-local address, a qdisc or a filter, or got a filter. Links of our
    /// pods and the tunnel are also in it if they got a neighbour. The tunnel's device is in it after every
    /// message about it.
    pub touched: BTreeSet<u32>,
    /// The ports whose rules of ours were removed.
    pub lost_rules: BTreeSet<PortAt>,
    /// Addresses of neighbours, other than our pods, that the kernel resolved or failed to resolve.
    pub neighbours: BTreeSet<IpAddr>,
    /// Links of limiters that were removed, and links whose root qdisc was added or removed.
    pub queues: BTreeSet<u32>,
    /// Whether messages were lost and everything was read anew, so that anything else may have changed too.
    pub resynced: bool,
}

impl Change {
    /// Whether the change is empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The links of the namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    by_index: BTreeMap<u32, Link>,
    addresses: BTreeMap<u32, Vec<Address>>,
    default_routes: BTreeSet<DefaultRoute>,
    local_ranges: BTreeSet<IpNet>,
    link_routes: LinkRoutes,
    multipath: MultipathRoutes,
}

impl Links {
    /// Every link, by index.
    pub fn iter(&self) -> impl Iterator<Item = &Link> {
        self.by_index.values()
    }

    /// The link with this index.
    pub fn get(&self, index: u32) -> Option<&Link> {
        self.by_index.get(&index)
    }

    /// The name of the link with this index; a generic name if the link no longer exists.
    pub fn name(&self, index: u32) -> String {
        self.get(index)
            .map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }

    /// The link with this name.
    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.iter().find(|link| link.name == name)
    }

    /// The link that receives the packets of this one: its bridge or bond, else the link itself. A port of a
    /// VRF receives its own packets.
    pub fn receiver<'a>(&'a self, link: &'a Link) -> &'a Link {
        let master = link.master.and_then(|index| self.get(index));
        let takes_over = |master: &&Link| matches!(master.kind.as_str(), "bridge" | "bond" | "team");
        master.filter(takes_over).unwrap_or(link)
    }

    /// The addresses of a link, as the kernel orders them.
    pub fn addresses(&self, index: u32) -> &[Address] {
        self.addresses.get(&index).map_or(&[], Vec::as_slice)
    }

    /// The interfaces that default routes of either family lead to, in any table.
    pub fn default_interfaces(&self) -> BTreeSet<u32> {
        self.default_routes.iter().map(|route| route.interface).collect()
    }

    /// Whether IPv4 packets to one address may leave by several interfaces: by a multipath route of any
    /// table, or by default routes with the same metric in the main table.
    pub fn has_equal_routes(&self) -> bool {
        if self.multipath.exist() {
            return true;
        }
        let is_main = |route: &&DefaultRoute| !route.ipv6 && route.table == netlink::MAIN_TABLE;
        let v4 = || self.default_routes.iter().filter(is_main);
        v4().any(|one| v4().any(|other| other.interface != one.interface && other.metric == one.metric))
    }

    /// Ranges and addresses that a route of the table `local` makes the node's own. Routes that the kernel
    /// made for an address of an interface do not count.
    pub fn local_ranges(&self) -> impl Iterator<Item = IpNet> {
        self.local_ranges.iter().copied()
    }

    /// The ranges that a route puts on a link, by interface.
    pub fn ranges_on_links(&self) -> BTreeMap<u32, Vec<IpNet>> {
        self.link_routes.by_interface()
    }

    /// Whether routes to an interface may show which hosts are on its link. Routes to our pods do not count:
    /// they come and go with the pods, whose neighbour entries are permanent.
    fn has_hosts(&self, index: u32) -> bool {
        self.get(index).is_none_or(|link| {
            !link.is_loopback()
                && !is_own(&link.name)
                && InterfaceRole::of_pod(&link.name) != InterfaceRole::OwnPod
        })
    }

    /// Adds a link, or replaces it.
    pub fn set_link(&mut self, link: Link, change: &mut Change) {
        let index = link.index;
        if self.by_index.get(&index) != Some(&link) {
            self.by_index.insert(index, link);
            change.links.insert(index);
        }
    }

    /// Adds an address to a link, or replaces it.
    pub fn set_address(&mut self, index: u32, address: Address, change: &mut Change) {
        let public = address.is_public();
        let held = self.addresses.entry(index).or_default();
        match held.iter_mut().find(|other| is_same(other, &address)) {
            Some(other) if *other == address => return,
            Some(other) => *other = address,
            None => held.push(address),
        }
        change.addresses |= public;
    }

    fn remove_link(&mut self, index: u32, change: &mut Change) {
        if let Some(link) = self.by_index.remove(&index) {
            change.links.insert(index);
            if is_of_limiter(&link.name) {
                change.queues.insert(index);
            }
        }
        change.addresses |= self
            .addresses
            .remove(&index)
            .is_some_and(|held| held.iter().any(Address::is_public));
        let routes = self.default_routes.len();
        self.default_routes.retain(|route| route.interface != index);
        change.default_routes |= self.default_routes.len() != routes;
        change.addresses |= self.link_routes.forget(index);
        self.multipath.forget(index);
    }

    fn remove_address(&mut self, index: u32, address: &Address, change: &mut Change) {
        if let Some(held) = self.addresses.get_mut(&index) {
            held.retain(|other| {
                let stays = !is_same(other, address);
                change.addresses |= !stays && other.is_public();
                if !stays && !other.is_public() {
                    change.touched.insert(index);
                }
                stays
            });
        }
    }

    fn take_route(&mut self, message: &RouteMessage, present: bool, change: &mut Change) {
        if netlink::is_cached(message) {
            return;
        }
        let Some(prefix) = netlink::prefix(message) else {
            return;
        };
        self.multipath.take(message, present);
        let mut link_routes = std::mem::take(&mut self.link_routes);
        change.addresses |= link_routes.take(message, present, |index| self.has_hosts(index));
        self.link_routes = link_routes;
        if is_local(message) {
            change.addresses |= if present {
                self.local_ranges.insert(prefix)
            } else {
                self.local_ranges.remove(&prefix)
            };
        }
        if prefix.prefix_len() > 0 {
            if netlink::is_main_table(message) {
                change.routes.insert(prefix);
            } else if message.header.table != libc::RT_TABLE_LOCAL || message.header.kind == RouteType::Local
            {
                change.other_routes.insert(prefix);
            }
            return;
        }
        for route in DefaultRoute::read(message) {
            change.default_routes |= if present {
                self.default_routes.insert(route)
            } else {
                self.default_routes.remove(&route)
            };
        }
    }

    /// Whether a neighbour or forwarding entry may replace a permanent one: a pod's, or that of an end of the
    /// tunnel. Link-local entries do not count: the kernel learns as many of them as a pod sends.
    fn may_replace_ours(&self, message: &NeighbourMessage) -> bool {
        let link = self.get(message.header.ifindex);
        let is_kept = link.is_some_and(|link| {
            link.name == TUNNEL_DEVICE || InterfaceRole::of_pod(&link.name) == InterfaceRole::OwnPod
        });
        let is_link_local = message.attributes.iter().any(|attribute| {
            matches!(attribute, NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip))
                if ip.is_unicast_link_local() || ip.is_multicast())
        });
        is_kept && !is_link_local
    }

    /// Applies one message.
    pub fn take(&mut self, message: &RouteNetlinkMessage, change: &mut Change) {
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                if let Some(link) = Link::read(message) {
                    // A [`Link`] holds none of the facts that make the device a tunnel.
                    if link.name == TUNNEL_DEVICE {
                        change.touched.insert(link.index);
                    }
                    self.set_link(link, change);
                }
            }
            RouteNetlinkMessage::DelLink(message) => {
                if let Some(link) = Link::read(message) {
                    self.remove_link(link.index, change);
                }
            }
            RouteNetlinkMessage::NewAddress(message) => {
                if let Some((index, address)) = Address::read(message) {
                    self.set_address(index, address, change);
                }
            }
            RouteNetlinkMessage::DelAddress(message) => {
                if let Some((index, address)) = Address::read(message) {
                    self.remove_address(index, &address, change);
                }
            }
            RouteNetlinkMessage::NewRoute(message) => self.take_route(message, true, change),
            RouteNetlinkMessage::DelRoute(message) => self.take_route(message, false, change),
            RouteNetlinkMessage::NewRule(message) => {
                change.rules += usize::from(PortAt::read(message).is_none());
            }
            RouteNetlinkMessage::DelRule(message) => match PortAt::read(message) {
                Some(port) => {
                    change.lost_rules.insert(port);
                }
                None => change.rules += 1,
            },
            RouteNetlinkMessage::DelNeighbour(message) => {
                change.touched.insert(message.header.ifindex);
            }
            RouteNetlinkMessage::NewNeighbour(message) if self.may_replace_ours(message) => {
                change.touched.insert(message.header.ifindex);
            }
            RouteNetlinkMessage::NewNeighbour(message) if self.has_hosts(message.header.ifindex) => {
                let parsed = Neighbour::read(message);
                change
                    .neighbours
                    .extend(parsed.map(|neighbour| neighbour.address));
            }
            RouteNetlinkMessage::NewQueueDiscipline(message)
            | RouteNetlinkMessage::DelQueueDiscipline(message)
                if message.header.parent == TcHandle::ROOT =>
            {
                change.queues.extend(u32::try_from(message.header.index));
            }
            RouteNetlinkMessage::DelQueueDiscipline(message)
            | RouteNetlinkMessage::NewTrafficFilter(message)
            | RouteNetlinkMessage::DelTrafficFilter(message) => {
                change.touched.extend(u32::try_from(message.header.index));
            }
            _ => {}
        }
    }

    /// Replaces the kept routes by those among `routes`.
    pub(super) fn set_routes<'a>(
        &mut self,
        routes: impl IntoIterator<Item = &'a RouteMessage>,
        change: &mut Change,
    ) {
        let routes: Vec<_> = routes.into_iter().collect();
        let local = routes.iter().filter(|message| is_local(message));
        let local = local.filter_map(|message| netlink::prefix(message)).collect();
        change.addresses |= self.local_ranges != local;
        self.local_ranges = local;
        let mut link_routes = LinkRoutes::default();
        self.multipath = MultipathRoutes::default();
        for message in &routes {
            self.multipath.take(message, true);
            link_routes.take(message, true, |index| self.has_hosts(index));
        }
        change.addresses |= self.link_routes != link_routes;
        self.link_routes = link_routes;
        let is_default =
            |message: &&RouteMessage| netlink::prefix(message).is_some_and(|prefix| prefix.prefix_len() == 0);
        let defaults = routes.into_iter().filter(is_default);
        let defaults = defaults.flat_map(DefaultRoute::read).collect();
        change.default_routes |= self.default_routes != defaults;
        self.default_routes = defaults;
    }

    /// Replaces the state by that of a dump.
    pub(super) fn replace(&mut self, dumped: Self, change: &mut Change) {
        let indices: BTreeSet<u32> = self
            .by_index
            .keys()
            .chain(dumped.by_index.keys())
            .copied()
            .collect();
        change.links.extend(
            indices
                .iter()
                .filter(|index| self.by_index.get(index) != dumped.by_index.get(index)),
        );
        let public = |links: &Self, index| {
            links
                .addresses(index)
                .iter()
                .filter(|it| it.is_public())
                .cloned()
                .collect::<Vec<_>>()
        };
        change.addresses |= indices
            .iter()
            .any(|index| public(self, *index) != public(&dumped, *index));
        change.default_routes |= self.default_routes != dumped.default_routes;
        change.addresses |= self.link_routes != dumped.link_routes;
        change.addresses |= self.local_ranges != dumped.local_ranges;
        *self = dumped;
    }

    /// The links here whose peer was the veth `index` and is not known to have moved. They must be read again
    /// when that veth disappears. The kernel sends no message about the remaining end when its peer moves to
    /// another namespace.
    pub(super) fn peers_of(&self, index: u32) -> impl Iterator<Item = u32> {
        let stays = move |link: &&Link| {
            link.kind == "veth" && link.peer == Some(index) && link.peer_namespace.is_none()
        };
        self.iter().filter(stays).map(|link| link.index)
    }

    /// Whether a kept route may be the one that this message replaces: any default route, or one with the
    /// same prefix in any table.
    pub(super) fn keeps_route_like(&self, message: &RouteMessage) -> bool {
        message.header.destination_prefix_length == 0 || self.link_routes.has_prefix_of(message)
    }

    /// Whether the kept routes of the link include IPv4 routes, which the kernel removes without a message
    /// when the link goes down.
    pub(super) fn may_lose_routes(&self, index: u32) -> bool {
        let mut defaults = self.default_routes.iter();
        defaults.any(|route| !route.ipv6 && route.interface == index) || self.link_routes.may_lose(index)
    }
}

/// Whether two are the same address of one link. An address can exist once for each prefix length.
fn is_same(a: &Address, b: &Address) -> bool {
    a.ip == b.ip && a.prefix_len == b.prefix_len
}

/// Whether a route makes addresses the node's own that no interface has.
fn is_local(message: &RouteMessage) -> bool {
    let header = &message.header;
    header.table == libc::RT_TABLE_LOCAL
        && header.kind == RouteType::Local
        && header.protocol != RouteProtocol::Kernel
}

#[cfg(test)]
mod tests;
