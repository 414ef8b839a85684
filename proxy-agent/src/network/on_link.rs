//! The ranges whose hosts are neighbours of the node: the kernel resolves each host there by ARP or neighbour
//! discovery.
//!
//! A range is on a link if a route of any table leads to it without a gateway. The kernel makes such a route
//! for the subnet of an address. An operator or a DHCP client adds others, for which the node needs no
//! address. Devices that resolve no neighbours (`IFF_NOARP`) and the loopback have none.
//!
//! Invariant: [`fit`] may add hosts that are no neighbours, and never leaves a neighbour out. Its users must
//! also ask the kernel, or refuse little if the result is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};

use super::link::{Address, Link};
use super::links::Links;
use super::netlink;

/// A route that makes hosts neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct LinkRoute {
    prefix: IpNet,
    table: u32,
    interface: u32,
    metric: u32,
}

/// The routes of all tables that lead directly to hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct LinkRoutes(BTreeSet<LinkRoute>);

impl LinkRoutes {
    /// Applies a message; returns true if something changed. `counts` says whether an interface may have
    /// neighbours.
    pub fn take(&mut self, message: &RouteMessage, present: bool, counts: impl Fn(u32) -> bool) -> bool {
        let routes = read(message).into_iter();
        let routes = routes.filter(|route| !present || counts(route.interface));
        routes.fold(false, |changed, route| {
            changed
                | if present {
                    self.0.insert(route)
                } else {
                    self.0.remove(&route)
                }
        })
    }

    /// Whether there is a route to the prefix of a message, in any table.
    pub fn has_prefix_of(&self, message: &RouteMessage) -> bool {
        netlink::prefix(message).is_some_and(|prefix| self.0.iter().any(|route| route.prefix == prefix))
    }

    /// Removes the routes of an interface; returns true if there were some.
    pub fn forget(&mut self, interface: u32) -> bool {
        let before = self.0.len();
        self.0.retain(|route| route.interface != interface);
        self.0.len() != before
    }

    /// Whether IPv4 routes lead to the interface. The kernel removes them without a message when it goes
    /// down.
    pub fn may_lose(&self, interface: u32) -> bool {
        let is_lost = |route: &LinkRoute| route.interface == interface && route.prefix.addr().is_ipv4();
        self.0.iter().any(is_lost)
    }

    /// The ranges that are on a link, by interface.
    pub fn by_interface(&self) -> BTreeMap<u32, Vec<IpNet>> {
        let mut ranges: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
        for route in &self.0 {
            ranges
                .entry(route.interface)
                .or_default()
                .push(route.prefix.trunc());
        }
        ranges
    }
}

/// The routes of a message that lead directly to hosts: one for each next hop without a gateway.
fn read(message: &RouteMessage) -> Vec<LinkRoute> {
    let prefix = netlink::prefix(message)
        .filter(|prefix| message.header.kind == RouteType::Unicast && may_be_forwarded_to(prefix.addr()));
    let Some(prefix) = prefix else {
        return Vec::new();
    };
    let (table, metric) = (netlink::table(message), netlink::metric(message));
    let route = |interface| LinkRoute {
        prefix,
        table,
        interface,
        metric,
    };
    let has_gateway = |attributes: &[RouteAttribute]| {
        let is_gateway = |attribute: &RouteAttribute| {
            matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
        };
        attributes.iter().any(is_gateway)
    };
    let mut routes = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(interface) if !has_gateway(&message.attributes) => {
                routes.push(route(*interface));
            }
            RouteAttribute::MultiPath(hops) => {
                let straight = hops.iter().filter(|hop| !has_gateway(&hop.attributes));
                routes.extend(straight.map(|hop| route(hop.interface_index)));
            }
            _ => {}
        }
    }
    routes
}

/// Whether the kernel forwards to addresses of this kind by the table's routes. The programs themselves
/// recognise link-local IPv6 addresses.
const fn may_be_forwarded_to(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_multicast(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_multicast() && !ip.is_unicast_link_local(),
    }
}

/// Whether the kernel resolves the hosts of a link.
pub(super) fn has_neighbours(link: &Link) -> bool {
    !link.is_loopback() && !link.flags.contains(LinkFlags::Noarp)
}

/// The subnets of these interfaces in which other nodes are next hops, by interface.
///
/// `WireGuard` and the like choose the peer by a packet's destination, so a next hop means nothing there.
/// Such a subnet counts only if the operator wants direct routes (`all`).
pub fn subnets_of_nodes(links: &Links, uplinks: impl Iterator<Item = u32>, all: bool) -> Vec<(u32, IpNet)> {
    let uplinks = uplinks.filter(|index| all || links.get(*index).is_none_or(has_neighbours));
    let subnets = uplinks.flat_map(|index| {
        let held = links.addresses(index).iter();
        let held = held.filter(|address| address.is_public() && address.has_network() && address.usable);
        held.filter_map(move |address| Some((index, IpNet::new(address.ip, address.prefix_len).ok()?)))
    });
    subnets.collect()
}

/// The subnet of an address; `None` for a lone address.
pub(super) fn subnet_of(address: &Address) -> Option<IpNet> {
    let subnet = IpNet::new(address.ip, address.prefix_len).ok()?.trunc();
    address.has_network().then_some(subnet)
}

/// At most `room` ranges that contain all of these. While there are too many, the function joins the two
/// closest. Two ranges are closer if their common supernet is less short than the shorter of their prefixes,
/// so a whole family is the last resort. The result writes all of IPv6 as two halves, since the programs end
/// a list at an empty mask.
pub fn fit(ranges: &[IpNet], room: usize) -> Vec<IpNet> {
    let mut ranges = IpNet::aggregate(&ranges.to_vec());
    ranges.sort_unstable();
    let size = |ranges: &[IpNet]| ranges.len() + usize::from(ranges.iter().any(is_all_of_ipv6));
    while size(&ranges) > room {
        // In this order, the closest range is next to a range.
        let pairs = ranges.windows(2).enumerate();
        let joined = pairs.filter_map(|(place, pair)| Some((place, joined(pair[0], pair[1])?)));
        let Some((place, (_, supernet))) = joined.max_by_key(|(_, (closeness, _))| *closeness) else {
            break;
        };
        ranges.splice(place..place + 2, [supernet]);
        ranges = IpNet::aggregate(&ranges);
        ranges.sort_unstable();
    }
    let halves = |range: IpNet| {
        if !is_all_of_ipv6(&range) {
            return vec![range];
        }
        let networks = [Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(0x8000, 0, 0, 0, 0, 0, 0, 0)];
        let half = |network| Some(IpNet::from(Ipv6Net::new(network, 1).ok()?));
        networks.into_iter().filter_map(half).collect()
    };
    ranges.into_iter().flat_map(halves).collect()
}

fn is_all_of_ipv6(range: &IpNet) -> bool {
    range.addr().is_ipv6() && range.prefix_len() == 0
}

/// The smallest range that contains two of one family. The number is its prefix length in thousandths of the
/// shorter one.
fn joined(one: IpNet, other: IpNet) -> Option<(u32, IpNet)> {
    if one.addr().is_ipv4() != other.addr().is_ipv4() {
        return None;
    }
    let shorter = one.prefix_len().min(other.prefix_len());
    let mut supernet = one;
    while !supernet.contains(&other) {
        supernet = supernet.supernet()?;
    }
    let closeness = u32::from(supernet.prefix_len()) * 1000 / u32::from(shorter).max(1);
    Some((closeness, supernet))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixture;
    use rtnetlink::RouteMessageBuilder;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a range")).collect()
    }

    fn route(prefix: &str, interface: u32, gateway: Option<&str>) -> RouteMessage {
        let prefix: IpNet = prefix.parse().expect("a prefix");
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .expect("a destination")
            .output_interface(interface);
        let gateway = gateway.map(|gateway| gateway.parse().expect("an address"));
        match gateway {
            Some(gateway) => route.gateway(gateway).expect("a gateway").build(),
            None => route.build(),
        }
    }

    #[test]
    fn a_link_that_resolves_no_neighbours_has_next_hops_only_if_the_operator_says_so() {
        let mut links = Links::default();
        let mut change = crate::network::Change::default();
        let mut tunnel = fixture::link(3, "wg0", "wireguard");
        tunnel.flags |= LinkFlags::Noarp;
        for (link, held) in [
            (fixture::link(2, "eth0", ""), "192.168.50.11/24"),
            (tunnel, "10.8.0.1/24"),
        ] {
            links.set_address(link.index, fixture::address(held), &mut change);
            links.set_link(link, &mut change);
        }
        let subnets = |all| {
            let found = subnets_of_nodes(&links, [2, 3].into_iter(), all);
            found.iter().map(|(index, _)| *index).collect::<Vec<_>>()
        };
        assert_eq!(subnets(false), [2]);
        assert_eq!(subnets(true), [2, 3]);
    }

    #[test]
    fn a_route_without_gateway_puts_hosts_on_a_link() {
        let mut routes = LinkRoutes::default();
        let counts = |interface| interface != 1;
        for (prefix, interface) in [("198.51.100.0/24", 2), ("2001:db8:7::/64", 3), ("0.0.0.0/0", 4)] {
            assert!(routes.take(&route(prefix, interface, None), true, counts));
            assert!(
                !routes.take(&route(prefix, interface, None), true, counts),
                "again"
            );
        }
        for (prefix, interface, gateway) in [
            ("203.0.113.0/24", 2, Some("192.0.2.1")),
            ("203.0.113.0/24", 1, None),
            ("fe80::/64", 2, None),
            ("ff00::/8", 2, None),
            ("127.0.0.0/8", 2, None),
        ] {
            assert!(
                !routes.take(&route(prefix, interface, gateway), true, counts),
                "{prefix}"
            );
        }
        let mut blackhole = route("203.0.113.0/24", 2, None);
        blackhole.header.kind = RouteType::BlackHole;
        assert!(!routes.take(&blackhole, true, counts));
        let expected = [
            (2, nets(&["198.51.100.0/24"])),
            (3, nets(&["2001:db8:7::/64"])),
            (4, nets(&["0.0.0.0/0"])),
        ];
        assert_eq!(routes.by_interface(), expected.into());
        assert!(
            routes.may_lose(2) && !routes.may_lose(3),
            "of IPv6 the kernel tells"
        );
        assert!(routes.take(&route("198.51.100.0/24", 2, None), false, counts));
        assert!(routes.forget(3) && !routes.forget(3));
        assert_eq!(routes.by_interface().into_keys().collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn the_closest_ranges_become_one_where_there_are_too_many() {
        for (ranges, room, expected) in [
            (&["10.0.1.0/24", "10.0.0.0/16"][..], 8, &["10.0.0.0/16"][..]),
            (&["10.0.0.0/24", "10.0.1.0/24"], 8, &["10.0.0.0/23"]),
            (
                &["10.0.0.0/24", "10.0.2.0/24", "192.168.0.0/16"],
                2,
                &["10.0.0.0/22", "192.168.0.0/16"],
            ),
            (
                &["10.0.0.0/8", "192.168.0.0/16", "fd00:1::/64", "fd00:2::/64"],
                3,
                &["10.0.0.0/8", "192.168.0.0/16", "fd00::/30"],
            ),
            (
                &["10.0.0.0/8", "192.168.0.0/16", "fd00::/64"],
                2,
                &["0.0.0.0/0", "fd00::/64"],
            ),
            (&["10.0.0.0/8", "fd00::/64"], 1, &["10.0.0.0/8", "fd00::/64"]),
            (&["::/0", "10.0.0.0/8"], 8, &["10.0.0.0/8", "::/1", "8000::/1"]),
            (&[], 8, &[]),
        ] {
            assert_eq!(fit(&nets(ranges), room), nets(expected), "{ranges:?} in {room}");
        }
    }

    #[test]
    fn no_range_is_left_out() {
        let ranges: Vec<IpNet> = (0..40)
            .map(|i| format!("{}.{}.{}.0/24", 10 + i % 3 * 81, i * 37 % 256, i * 91 % 256))
            .chain((0..20).map(|i| format!("fd{i:02x}:{i}::/64")))
            .map(|text| text.parse().expect("a range"))
            .collect();
        let fitting = fit(&ranges, 8);
        assert!(fitting.len() <= 8);
        assert!(fitting.iter().all(|range| range.prefix_len() > 0), "{fitting:?}");
        for range in ranges {
            assert!(fitting.iter().any(|around| around.contains(&range)), "{range}");
        }
    }
}
