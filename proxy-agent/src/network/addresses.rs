//! The addresses that the node holds, and the primary address of each family.
//!
//! The choice must not depend on the time at which the agent was started, since routes carry the address. So
//! the best of several addresses wins, and not the first that the agent saw.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::is_own;
use super::link::Address;
use super::links::Links;
use super::on_link::{has_neighbours, subnet_of};
use super::roles::{Role, Roles};

/// The node's own addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// The IPv4 source address of the node's packets to pods and virtual addresses.
    pub primary_v4: Option<Ipv4Addr>,
    /// The IPv6 source address of the node's packets to pods and virtual addresses.
    pub primary_v6: Option<Ipv6Addr>,
    /// Every address of the node that other machines may know, sorted. It contains no loopback or link-local
    /// addresses, and none of pods' interfaces or of the agent's own device.
    pub all: Vec<IpAddr>,
    /// Ranges that a route of the table `local` makes the node's own.
    pub local: Vec<IpNet>,
    /// Broadcast and network addresses of IPv4 subnets on interfaces.
    pub broadcasts: Vec<IpAddr>,
    /// Network addresses of IPv6 subnets on interfaces, which stand for all routers there (RFC 4291 §2.6.1).
    /// A node is one.
    pub anycasts: Vec<IpAddr>,
    /// Uplinks where the node masquerades with another address than the primary ones, and those addresses.
    pub elsewhere: Vec<UplinkAddresses>,
    /// The ranges whose hosts are neighbours, by the subnets of addresses and by routes. A range within
    /// another one is left out.
    pub on_link: Vec<IpNet>,
}

/// The addresses that the kernel masquerades with on an uplink (`inet_select_addr` in `net/ipv4/devinet.c`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UplinkAddresses {
    /// The interface index of the uplink.
    pub interface: u32,
    /// The uplink's IPv4 address, if it has one.
    pub v4: Option<Ipv4Addr>,
    /// The uplink's IPv6 address, if it has one.
    pub v6: Option<Ipv6Addr>,
}

impl NodeAddresses {
    /// Derives the addresses from the interfaces. `node_object` holds the internal addresses of the Node
    /// object. The first of each family that the node holds is primary, else the best address of the first
    /// uplink that has any.
    pub fn find(links: &Links, roles: &Roles, node_object: &[IpAddr]) -> Self {
        let pods: BTreeSet<u32> = roles.of(Role::Pod).map(|pod| pod.index).collect();
        let (mut all, mut broadcasts, mut on_link) = (Vec::new(), Vec::new(), Vec::new());
        let (mut given, mut anycasts) = (Vec::new(), Vec::new());
        let by_routes = links.ranges_on_links();
        for link in links
            .iter()
            .filter(|link| !is_own(&link.name) && !pods.contains(&link.index))
        {
            let held = links.addresses(link.index).iter();
            broadcasts.extend(
                held.clone()
                    .flat_map(|address| ends_of(address.ip, address.prefix_len)),
            );
            given.extend(held.clone().filter_map(|address| address.broadcast));
            let public = held.clone().filter(|address| address.is_public());
            anycasts.extend(public.clone().filter_map(anycast_of));
            on_link.extend(public.filter_map(subnet_of));
            if has_neighbours(link) {
                on_link.extend(by_routes.get(&link.index).into_iter().flatten());
            }
            all.extend(
                held.filter(|address| address.is_public() && address.usable)
                    .map(|address| address.ip),
            );
        }
        for broadcast in given
            .into_iter()
            .filter(|ip| !ip.is_broadcast() && !ip.is_unspecified())
        {
            if !broadcasts.contains(&broadcast.into()) {
                broadcasts.push(broadcast.into());
            }
        }
        // Addresses that no interface has and that a route makes the node's.
        let (lone, local): (Vec<_>, Vec<_>) = links
            .local_ranges()
            .filter(|range| !range.addr().is_loopback())
            .partition(|range| range.prefix_len() == range.max_prefix_len());
        all.extend(lone.iter().map(IpNet::addr));
        all.sort_unstable();
        all.dedup();

        let primary = |is_family: fn(&IpAddr) -> bool| {
            let named = node_object
                .iter()
                .copied()
                .find(|ip| is_family(ip) && all.binary_search(ip).is_ok());
            named.or_else(|| {
                roles
                    .of(Role::Uplink)
                    .find_map(|uplink| best(links.addresses(uplink.index), is_family))
            })
        };
        let (primary_v4, primary_v6) = (
            primary(IpAddr::is_ipv4).and_then(v4),
            primary(IpAddr::is_ipv6).and_then(v6),
        );
        let named = roles.of(Role::Uplink).map(|uplink| {
            let held = links.addresses(uplink.index);
            let is_primary = |ip: IpAddr| held.iter().any(|address| address.ip == ip);
            UplinkAddresses {
                interface: uplink.index,
                v4: primary_v4
                    .filter(|ip| is_primary((*ip).into()))
                    .or_else(|| best(held, IpAddr::is_ipv4).and_then(v4)),
                v6: primary_v6
                    .filter(|ip| is_primary((*ip).into()))
                    .or_else(|| best(held, IpAddr::is_ipv6).and_then(v6)),
            }
        });
        let is_other = |uplink: &UplinkAddresses| {
            (uplink.v4.is_some() && uplink.v4 != primary_v4)
                || (uplink.v6.is_some() && uplink.v6 != primary_v6)
        };
        let elsewhere = named.filter(is_other).collect();
        Self {
            primary_v4,
            primary_v6,
            all,
            local,
            broadcasts,
            anycasts,
            elsewhere,
            on_link: IpNet::aggregate(&on_link),
        }
    }

    /// Whether the node holds the address.
    pub fn holds(&self, ip: IpAddr) -> bool {
        self.all.binary_search(&ip).is_ok() || self.local.iter().any(|range| range.contains(&ip))
    }

    /// Addresses on the node's links that no host has, sorted. The kernel delivers packets to them locally or
    /// broadcasts them.
    pub fn no_hosts(&self) -> Vec<IpAddr> {
        let all = self.broadcasts.iter().chain(&self.anycasts).copied();
        let mut addresses: Vec<_> = all.filter(|ip| !self.holds(*ip)).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The primary address of the same family as `ip`.
    pub fn primary_for(&self, ip: IpAddr) -> Option<IpAddr> {
        if ip.is_ipv4() {
            self.primary_v4.map(IpAddr::V4)
        } else {
            self.primary_v6.map(IpAddr::V6)
        }
    }
}

const fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

const fn v6(ip: IpAddr) -> Option<Ipv6Addr> {
    match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(ip) => Some(ip),
    }
}

/// The first and the last address of an IPv4 subnet, which no host may have (RFC 1122 §3.3.6). A subnet of at
/// most two addresses has none (RFC 3021).
fn ends_of(ip: IpAddr, prefix_len: u8) -> Vec<IpAddr> {
    match ip {
        IpAddr::V4(ip) if prefix_len < 31 && !ip.is_loopback() => Ipv4Net::new(ip, prefix_len)
            .map(|net| vec![net.network().into(), net.broadcast().into()])
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// The first address of an IPv6 subnet. A subnet of at most two addresses has none (RFC 6164).
fn anycast_of(address: &Address) -> Option<IpAddr> {
    let subnet = subnet_of(address)?;
    (address.ip.is_ipv6() && address.prefix_len < 127).then(|| subnet.addr())
}

/// The best source address. An address with a network comes before a lone (floating) one, then the one with
/// the lowest demerit. Then it is the first for IPv4 and the smallest for IPv6, whose order differs between a
/// dump and messages.
fn best(held: &[Address], is_family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let usable = held
        .iter()
        .enumerate()
        .filter(|(_, address)| is_family(&address.ip) && address.is_public() && address.usable);
    let rank = |(place, address): &(usize, &Address)| {
        let order = if address.ip.is_ipv4() {
            (*place, None)
        } else {
            (0, Some(address.ip))
        };
        (!address.has_network(), address.demerit, order)
    };
    usable.min_by_key(rank).map(|(_, address)| address.ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Change;
    use crate::network::fixture::{World, address, link};
    use crate::network::roles::{RoleOptions, roles};
    use rtnetlink::packet_route::link::LinkFlags;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn find(world: &World, node_object: &[&str]) -> NodeAddresses {
        let object: Vec<IpAddr> = node_object.iter().map(|text| ip(text)).collect();
        NodeAddresses::find(&world.0, &roles(&world.0, &RoleOptions::default()), &object)
    }

    fn node() -> World {
        World::new()
            .add(link(2, "eth0", ""))
            .holding(
                2,
                &[
                    "192.0.2.7/32",
                    "192.0.2.9/24",
                    "192.0.2.5/24",
                    "2001:db8::9/64",
                    "2001:db8::5/64",
                    "fe80::1/64",
                ],
            )
            .default_route(2)
            .add(link(3, "cni0", "bridge"))
            .holding(3, &["10.244.0.1/24"])
            .pod(4, "veth4", None)
            .holding(4, &["10.244.0.1/32", "10.1.1.1/32"])
    }

    #[test]
    fn the_best_address_of_the_uplink_is_primary() {
        let found = find(&node(), &[]);
        assert_eq!(
            found.primary_v4,
            Some([192, 0, 2, 9].into()),
            "the first with a network"
        );
        assert_eq!(
            found.primary_for(ip("::")),
            Some(ip("2001:db8::5")),
            "the smallest"
        );
    }

    #[test]
    fn the_node_object_chooses_among_those_held() {
        let found = find(&node(), &["198.51.100.1", "192.0.2.7"]);
        assert_eq!(found.primary_v4, Some([192, 0, 2, 7].into()));
    }

    #[test]
    fn loopback_link_local_and_pods_addresses_are_not_the_nodes() {
        let found = find(&node(), &[]);
        let expected = [
            "10.244.0.1",
            "192.0.2.5",
            "192.0.2.7",
            "192.0.2.9",
            "2001:db8::5",
            "2001:db8::9",
        ]
        .map(ip);
        assert_eq!(found.all, expected);
        assert!(found.holds(ip("192.0.2.7")) && !found.holds(ip("10.1.1.1")));
    }

    #[test]
    fn the_ends_of_subnets_are_no_hosts_unless_the_node_holds_them() {
        let given = Address {
            broadcast: Some([198, 51, 100, 77].into()),
            ..address("198.51.100.1/24")
        };
        let unlimited = Address {
            broadcast: Some([255, 255, 255, 255].into()),
            ..address("198.51.100.2/24")
        };
        let mut world = node()
            .add(link(9, "eth1", ""))
            .add(link(10, "flannel.1", "vxlan"))
            // flannel sets an address like this: the network's address is the node's.
            .holding(10, &["10.244.0.0/32"])
            .holding(9, &["203.0.113.1/31", "203.0.113.9/32", "2001:db8:9::1/127"]);
        for address in [given, unlimited] {
            world.0.set_address(9, address, &mut Change::default());
        }
        let expected = [
            "10.244.0.255",
            "192.0.2.0",
            "192.0.2.255",
            "198.51.100.0",
            "198.51.100.77",
            "198.51.100.255",
            "2001:db8::",
        ]
        .map(ip);
        assert_eq!(find(&world, &[]).no_hosts(), expected);
    }

    #[test]
    fn routes_without_gateway_put_hosts_on_links_that_resolve_neighbours() {
        let mut tunnel = link(5, "tun0", "tun");
        tunnel.flags |= LinkFlags::Noarp;
        let world = World::new()
            .add(link(2, "eth0", ""))
            .holding(2, &["192.0.2.9/24"])
            .pod(4, "veth4", None)
            .add(tunnel)
            .link_route(2, "198.51.100.0/24")
            .link_route(2, "192.0.2.128/25")
            .link_route(4, "10.1.1.1/32")
            .link_route(5, "100.64.0.0/10");
        let expected = ["192.0.2.0/24", "198.51.100.0/24"];
        let expected = expected.map(|text| text.parse::<IpNet>().expect("a range"));
        assert_eq!(find(&world, &[]).on_link, expected);
        let everywhere = find(&world.default_route(2), &[]).on_link;
        assert_eq!(everywhere, ["0.0.0.0/0".parse::<IpNet>().expect("a range")]);
    }

    #[test]
    fn each_uplink_has_the_address_that_the_kernel_masquerades_with() {
        let world = node()
            .add(link(9, "eth1", ""))
            .holding(9, &["198.51.100.7/24", "198.51.100.5/24"])
            .add(link(10, "eth2", ""))
            .default_route(10);
        let found = find(&world, &["192.0.2.5"]);
        assert_eq!(found.primary_v4, Some([192, 0, 2, 5].into()));
        let expected = UplinkAddresses {
            interface: 9,
            v4: Some([198, 51, 100, 7].into()),
            v6: None,
        };
        assert_eq!(
            found.elsewhere,
            [expected],
            "not of those that have the primary ones, or none"
        );
    }

    #[test]
    fn an_address_in_bad_standing_comes_last() {
        let held = [
            Address {
                usable: false,
                ..address("2001:db8::1/64")
            },
            Address {
                demerit: 2,
                ..address("2001:db8::2/64")
            },
            address("2001:db8::3/64"),
        ];
        assert_eq!(best(&held, IpAddr::is_ipv6), Some(ip("2001:db8::3")));
        assert_eq!(best(&held[..2], IpAddr::is_ipv6), Some(ip("2001:db8::2")));
        assert_eq!(best(&held[..1], IpAddr::is_ipv6), None);
    }
}
