//! The links of the namespace, their addresses and the default routes, as the kernel last told.
//!
//! Pure: [`Links::take`] folds one netlink message in and notes in a [`Change`] what became different; the
//! sockets are [`super::monitor`]'s. Messages may arrive twice or describe what a dump has shown already:
//! folding is idempotent.

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
use super::netlink;
use super::on_link::LinkRoutes;
use super::others::Neighbour;
use super::pods::TUNNEL_DEVICE;
use super::port_rules::PortAt;
use crate::bpf::links::InterfaceRole;

/// What became different.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Links that came, went or are another than before.
    pub links: BTreeSet<u32>,
    /// Some address that others may know came, went or changed, or other ranges of hosts are on links.
    pub addresses: bool,
    /// The default routes lead elsewhere.
    pub default_routes: bool,
    /// Prefixes of the main table whose routes came or went.
    pub routes: BTreeSet<IpNet>,
    /// The same of other tables; of the table `local` only those that make addresses the node's own.
    pub other_routes: BTreeSet<IpNet>,
    /// How many rules of others came or went.
    pub rules: usize,
    /// Links of which a neighbour, a link-local address, a qdisc or a filter went, or a filter came; those of
    /// our pods and the tunnel also where a neighbour came. The tunnel's where the kernel told of it at all.
    pub touched: BTreeSet<u32>,
    /// Rules of ours that went.
    pub lost_rules: BTreeSet<PortAt>,
    /// Addresses of neighbours, other than pods of ours, that answered or did not.
    pub neighbours: BTreeSet<IpAddr>,
    /// Parts of limiters that went, and links whose outermost queue came or went.
    pub queues: BTreeSet<u32>,
    /// Messages were lost and everything was read anew: anything else may have changed too.
    pub resynced: bool,
}

impl Change {
    /// Whether nothing changed.
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

    /// The name of the link with this index, also if there is none any more.
    pub fn name(&self, index: u32) -> String {
        self.get(index)
            .map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }

    /// The link with this name.
    pub fn by_name(&self, name: &str) -> Option<&Link> {
        self.iter().find(|link| link.name == name)
    }

    /// The link at which what comes by this one is received: its bridge or bond, else the link itself. A
    /// port of a VRF receives by itself.
    pub fn receiver<'a>(&'a self, link: &'a Link) -> &'a Link {
        let master = link.master.and_then(|index| self.get(index));
        let takes_over = |master: &&Link| matches!(master.kind.as_str(), "bridge" | "bond" | "team");
        master.filter(takes_over).unwrap_or(link)
    }

    /// The addresses of a link, as the kernel orders them.
    pub fn addresses(&self, index: u32) -> &[Address] {
        self.addresses.get(&index).map_or(&[], Vec::as_slice)
    }

    /// The interfaces that default routes of either family lead to, in whichever table.
    pub fn default_interfaces(&self) -> BTreeSet<u32> {
        self.default_routes.iter().map(|route| route.interface).collect()
    }

    /// Whether several interfaces have default routes of IPv4 with the same metric in the main table.
    pub fn has_equal_default_routes(&self) -> bool {
        let is_main = |route: &&DefaultRoute| !route.ipv6 && route.table == netlink::MAIN_TABLE;
        let v4 = || self.default_routes.iter().filter(is_main);
        v4().any(|one| v4().any(|other| other.interface != one.interface && other.metric == one.metric))
    }

    /// Ranges and addresses that are the node's own by a route of the table `local` which the kernel did not make for an
    /// address of an interface.
    pub fn local_ranges(&self) -> impl Iterator<Item = IpNet> {
        self.local_ranges.iter().copied()
    }

    /// The ranges that are on a link by a route, by interface.
    pub fn ranges_on_links(&self) -> BTreeMap<u32, Vec<IpNet>> {
        self.link_routes.by_interface()
    }

    /// Whether routes to an interface may say which hosts are on a link. Those to pods of ours come and go
    /// with the pods, whose neighbours are there for good.
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

    /// Whether a neighbour or a forwarding entry may stand in the place of one that is there for good: a
    /// pod's, or that of an end of the tunnel. Link-local ones are the kernel's, which learns as many as a
    /// pod likes.
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

    /// Folds one message in.
    pub fn take(&mut self, message: &RouteNetlinkMessage, change: &mut Change) {
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                if let Some(link) = Link::read(message) {
                    // What makes it a tunnel is none of the facts that are kept of a link.
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
                let told = Neighbour::read(message);
                change.neighbours.extend(told.map(|neighbour| neighbour.address));
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

    /// Replaces the routes that are kept by those among `routes`.
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
        for message in &routes {
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

    /// Takes over what a dump has shown.
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

    /// The links here whose peer was the veth `index` and is not known to have left: they must be read again
    /// when it goes, since the kernel does not tell the end that stays that the other one was moved to
    /// another namespace.
    pub(super) fn peers_of(&self, index: u32) -> impl Iterator<Item = u32> {
        let stays = move |link: &&Link| {
            link.kind == "veth" && link.peer == Some(index) && link.peer_namespace.is_none()
        };
        self.iter().filter(stays).map(|link| link.index)
    }

    /// Whether IPv4 routes that are kept lead to the link: the kernel removes them without a word when it
    /// goes down. Whether a route of this prefix and table is kept here, which a new one may replace.
    pub(super) fn keeps_route_like(&self, message: &RouteMessage) -> bool {
        message.header.destination_prefix_length == 0 || self.link_routes.has_prefix_of(message)
    }

    pub(super) fn may_lose_routes(&self, index: u32) -> bool {
        let mut defaults = self.default_routes.iter();
        defaults.any(|route| !route.ipv6 && route.interface == index) || self.link_routes.may_lose(index)
    }
}

/// One address of one link: an address can be there once for each prefix length.
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
mod tests {
    use rtnetlink::packet_route::AddressFamily;

    use super::*;
    use crate::network::fixture::{address, default_route, link};

    fn taken(links: &mut Links, message: &RouteNetlinkMessage) -> Change {
        let mut change = Change::default();
        links.take(message, &mut change);
        change
    }

    #[test]
    fn what_a_dump_has_shown_already_is_no_change() {
        let mut links = Links::default();
        let mut change = Change::default();
        links.set_link(link(2, "eth0", ""), &mut change);
        links.set_address(2, address("192.0.2.1/24"), &mut change);
        assert_eq!(change.links, BTreeSet::from([2]));
        assert!(change.addresses);
        change = Change::default();
        links.set_link(link(2, "eth0", ""), &mut change);
        links.set_address(2, address("192.0.2.1/24"), &mut change);
        let same = links.clone();
        links.replace(same, &mut change);
        assert!(change.is_empty());
    }

    #[test]
    fn a_link_local_address_concerns_nobody() {
        let mut links = Links::default();
        let mut change = Change::default();
        links.set_address(2, address("fe80::1/64"), &mut change);
        assert!(change.is_empty());
        assert_eq!(links.addresses(2).len(), 1);
    }

    #[test]
    fn a_default_route_goes_with_its_link() {
        let mut links = Links::default();
        links.set_link(link(2, "eth0", ""), &mut Change::default());
        assert!(taken(&mut links, &default_route(2)).default_routes);
        assert!(taken(&mut links, &default_route(2)).is_empty());
        assert_eq!(links.default_interfaces(), BTreeSet::from([2]));
        let mut message = rtnetlink::packet_route::link::LinkMessage::default();
        message.header.index = 2;
        assert!(taken(&mut links, &RouteNetlinkMessage::DelLink(message)).default_routes);
        assert!(links.default_interfaces().is_empty());
    }

    #[test]
    fn what_may_stand_in_the_place_of_an_entry_of_the_tunnel_is_noted() {
        let mut links = Links::default();
        links.set_link(link(2, "eth0", ""), &mut Change::default());
        links.set_link(link(3, TUNNEL_DEVICE, "vxlan"), &mut Change::default());
        let mut touched = |index, family, address| {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            message.header.ifindex = index;
            message.attributes = vec![NeighbourAttribute::Destination(address)];
            let change = taken(&mut links, &RouteNetlinkMessage::NewNeighbour(message));
            change.touched.contains(&index)
        };
        let end = NeighbourAddress::Inet([10, 244, 2, 0].into());
        let node = NeighbourAddress::Other(vec![192, 0, 2, 9]);
        let link_local = NeighbourAddress::Inet6("fe80::2".parse().expect("an address"));
        assert!(touched(3, AddressFamily::Inet, end.clone()));
        assert!(touched(3, AddressFamily::Bridge, node));
        assert!(!touched(3, AddressFamily::Inet6, link_local));
        assert!(!touched(2, AddressFamily::Inet, end));
    }

    #[test]
    fn each_message_about_the_tunnel_is_noted() {
        use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};

        let mut links = Links::default();
        for (index, name) in [(2, "eth0"), (3, TUNNEL_DEVICE)] {
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes = vec![LinkAttribute::IfName(name.into())];
            let message = RouteNetlinkMessage::NewLink(message);
            assert!(!taken(&mut links, &message).is_empty());
            let again = taken(&mut links, &message);
            assert!(again.links.is_empty());
            assert_eq!(again.touched.contains(&index), name == TUNNEL_DEVICE);
        }
    }

    #[test]
    fn a_dump_after_lost_messages_reports_the_difference() {
        let mut links = Links::default();
        links.set_link(link(2, "eth0", ""), &mut Change::default());
        links.set_link(link(3, "veth3", "veth"), &mut Change::default());
        let mut dumped = Links::default();
        dumped.set_link(link(2, "eth0", ""), &mut Change::default());
        dumped.set_link(link(4, "veth4", "veth"), &mut Change::default());
        let mut change = Change::default();
        links.replace(dumped, &mut change);
        assert_eq!(change.links, BTreeSet::from([3, 4]));
        assert!(!change.addresses);
    }
}
