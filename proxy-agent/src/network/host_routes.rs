//! The routes on our device: the wanted ones, and the steps from the existing ones to them.
//!
//! There is one route for each range of cluster IPs, and one for each virtual address outside them. Their
//! source is the node's primary address, so that backends can reply. Our routes are those on our device that
//! carry our protocol number. The agent leaves every other route alone. If such a route leads the same prefix
//! elsewhere, the agent reports it and adds no second route.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteScope};

use super::addresses::NodeAddresses;
use super::error::{NetworkError, Problem};
use super::netlink::{self, Netlink};
use super::route;
use crate::trouble::Trouble;

/// The origin of our routes (`proto 157` in `ip route`). Neither the kernel's header nor the table of
/// iproute2 assigns this number.
pub const PROTOCOL: u8 = 157;

/// The input that the routes follow from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostRoutes {
    /// The ranges of cluster IPs.
    pub service_cidrs: Vec<IpNet>,
    /// The virtual addresses. One inside a range needs no route of its own, and one that the node holds gets
    /// none.
    pub virtual_addresses: BTreeSet<IpAddr>,
    /// The node's addresses.
    pub node: NodeAddresses,
}

/// A route as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Route {
    prefix: IpNet,
    interface: Option<u32>,
    protocol: u8,
    source: Option<IpAddr>,
    metric: u32,
}

impl Route {
    fn is_ours(&self, device: u32) -> bool {
        self.interface == Some(device) && self.protocol == PROTOCOL
    }
}

/// The changes that lead to the wanted routes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Steps {
    remove: Vec<Route>,
    replace: Vec<(IpNet, IpAddr)>,
    add: Vec<(IpNet, IpAddr)>,
    /// Prefixes that foreign routes lead elsewhere.
    foreign: Vec<Route>,
}

impl HostRoutes {
    /// The wanted routes, with their sources. A family in which the node has no address has none.
    pub(super) fn wanted(&self) -> BTreeMap<IpNet, IpAddr> {
        let ranges = self.service_cidrs.iter().map(IpNet::trunc);
        let outside = |ip: &&IpAddr| !self.service_cidrs.iter().any(|range| range.contains(*ip));
        let lone = self
            .virtual_addresses
            .iter()
            .filter(outside)
            .filter(|ip| !self.node.holds(**ip));
        let prefixes = ranges.chain(lone.map(|ip| IpNet::from(*ip)));
        prefixes
            .filter_map(|prefix| Some((prefix, self.node.primary_for(prefix.addr())?)))
            .collect()
    }

    /// Whether this prefix has one of our routes, or should have one.
    pub(super) fn wants(&self, prefix: IpNet) -> bool {
        let lone =
            prefix.prefix_len() == prefix.max_prefix_len() && self.virtual_addresses.contains(&prefix.addr());
        lone || self.service_cidrs.iter().any(|range| range.trunc() == prefix)
    }

    /// Whether one of our routes has this prefix only for services that name its one address.
    pub(super) fn is_lone(&self, prefix: IpNet) -> bool {
        let is_range = self.service_cidrs.iter().any(|range| range.trunc() == prefix);
        self.wants(prefix) && !is_range
    }

    /// Brings the kernel's routes in step. `before` are the routes that the agent added earlier.
    pub(super) async fn sync(
        &self,
        netlink: &Netlink,
        device: u32,
        before: &BTreeMap<IpNet, IpAddr>,
    ) -> Result<Vec<Problem>, NetworkError> {
        let existing: Vec<Route> = netlink.routes().await?.iter().filter_map(read).collect();
        let steps = steps(&self.wanted(), &existing, device);
        let mut problems: Vec<Problem> = steps.foreign.iter().map(report_foreign).collect();
        for stale in steps.remove {
            let message = message(stale.prefix, stale.source, device)?;
            let removed = route::remove(netlink, message, stale.metric).await;
            route::note(&mut problems, stale.prefix, removed, "removing it");
        }
        for (prefix, source) in steps.replace {
            let message = message(prefix, Some(source), device)?;
            let replaced = netlink.writing().route().add(message).replace().execute().await;
            route::note(&mut problems, prefix, replaced, "changing its source");
        }
        for (prefix, source) in steps.add {
            let message = message(prefix, Some(source), device)?;
            let added = netlink.writing().route().add(message).execute().await;
            if added.is_ok() && before.contains_key(&prefix) {
                netlink.note_restored("route", prefix.to_string());
            }
            route::note(&mut problems, prefix, added, "adding it");
        }
        Ok(problems)
    }
}

fn steps(wanted: &BTreeMap<IpNet, IpAddr>, existing: &[Route], device: u32) -> Steps {
    let mut at: BTreeMap<IpNet, Vec<Route>> = BTreeMap::new();
    for route in existing {
        if wanted.contains_key(&route.prefix) || route.is_ours(device) {
            at.entry(route.prefix).or_default().push(*route);
        }
    }
    let mut steps = Steps::default();
    for (prefix, source) in wanted {
        let here = at.remove(prefix).unwrap_or_default();
        if let Some(foreign) = here.iter().find(|route| route.interface != Some(device)) {
            steps.foreign.push(*foreign);
            continue;
        }
        // A foreign route on our device was added on purpose and has the same effect.
        let settled = here.iter().any(|route| !route.is_ours(device));
        let metric = route::default_metric(*prefix);
        let (proper, odd): (Vec<_>, Vec<_>) = here
            .into_iter()
            .filter(|route| route.is_ours(device))
            .partition(|route| route.metric == metric && !settled);
        steps.remove.extend(odd);
        match proper.first() {
            _ if settled => {}
            Some(route) if route.source == Some(*source) => {}
            Some(_) => steps.replace.push((*prefix, *source)),
            None => steps.add.push((*prefix, *source)),
        }
    }
    steps.remove.extend(at.into_values().flatten());
    steps
}

/// Parses the route of a message. Returns `None` for a route that can neither conflict with ours nor be ours.
fn read(message: &RouteMessage) -> Option<Route> {
    if !route::decides(message) {
        return None;
    }
    let mut route = Route {
        prefix: netlink::prefix(message)?,
        interface: None,
        protocol: message.header.protocol.into(),
        source: None,
        metric: netlink::metric(message),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(interface) => route.interface = Some(*interface),
            RouteAttribute::PrefSource(address) => route.source = netlink::ip(address),
            _ => {}
        }
    }
    Some(route)
}

/// The message that adds or removes one of our routes.
fn message(prefix: IpNet, source: Option<IpAddr>, device: u32) -> Result<RouteMessage, NetworkError> {
    let route =
        route::builder(prefix, PROTOCOL)?
            .output_interface(device)
            .scope(if prefix.addr().is_ipv4() {
                RouteScope::Link
            } else {
                RouteScope::Universe
            });
    let route = match source {
        // The families never differ: the source was chosen by the prefix.
        Some(source) => route.pref_source(source).map_err(route::refused(prefix))?,
        None => route,
    };
    Ok(route.build())
}

fn report_foreign(route: &Route) -> Problem {
    let next_hop = route
        .interface
        .map_or_else(|| "nowhere, or by several next hops".into(), route::through);
    Problem {
        code: Trouble::RouteTaken,
        object: format!("route {}", route.prefix),
        message: format!(
            "a foreign route goes {next_hop} (protocol {}), and the node's own packets that no socket hook translates \
             follow it: remove that route to have Millrace serve these addresses",
            route.protocol
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: u32 = 7;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn ours(prefix: &str, source: &str) -> Route {
        let prefix = net(prefix);
        Route {
            prefix,
            interface: Some(DEVICE),
            protocol: PROTOCOL,
            source: Some(ip(source)),
            metric: route::default_metric(prefix),
        }
    }

    fn wanted(routes: &[(&str, &str)]) -> BTreeMap<IpNet, IpAddr> {
        routes
            .iter()
            .map(|(prefix, source)| (net(prefix), ip(source)))
            .collect()
    }

    #[test]
    fn ranges_and_lone_addresses_get_routes_of_their_family() {
        let routes = HostRoutes {
            service_cidrs: vec![net("10.96.0.1/12"), net("fd00:96::/112")],
            virtual_addresses: ["10.96.3.4", "203.0.113.9", "192.0.2.1", "2001:db8:f::1"]
                .map(ip)
                .into(),
            node: NodeAddresses {
                primary_v4: Some([192, 0, 2, 1].into()),
                all: vec![ip("192.0.2.1")],
                ..NodeAddresses::default()
            },
        };
        assert_eq!(
            routes.wanted(),
            wanted(&[("10.96.0.0/12", "192.0.2.1"), ("203.0.113.9/32", "192.0.2.1")])
        );
        assert!(routes.wants(net("10.96.0.0/12")) && routes.wants(net("203.0.113.9/32")));
        assert!(!routes.wants(net("10.96.0.0/16")));
        assert!(routes.is_lone(net("203.0.113.9/32")));
        assert!(!routes.is_lone(net("10.96.0.0/12")) && !routes.is_lone(net("203.0.113.8/32")));
    }

    #[test]
    fn right_routes_stay_and_stale_ones_are_removed() {
        let target = wanted(&[("10.96.0.0/12", "192.0.2.1"), ("fd00:96::/112", "2001:db8::1")]);
        let right = [
            ours("10.96.0.0/12", "192.0.2.1"),
            ours("fd00:96::/112", "2001:db8::1"),
        ];
        assert_eq!(steps(&target, &right, DEVICE), Steps::default());

        let stale = ours("203.0.113.9/32", "192.0.2.1");
        let of_another_agent = Route {
            interface: Some(8),
            ..ours("203.0.113.8/32", "192.0.2.1")
        };
        let moved = [ours("10.96.0.0/12", "192.0.2.2"), stale, of_another_agent];
        let expected = Steps {
            remove: vec![stale],
            replace: vec![(net("10.96.0.0/12"), ip("192.0.2.1"))],
            add: vec![(net("fd00:96::/112"), ip("2001:db8::1"))],
            foreign: vec![],
        };
        assert_eq!(steps(&target, &moved, DEVICE), expected);
    }

    #[test]
    fn a_foreign_route_is_reported_and_gets_no_rival() {
        let target = wanted(&[("10.96.0.0/12", "192.0.2.1")]);
        for foreign in [
            Route {
                interface: Some(3),
                protocol: 4,
                metric: 100,
                ..ours("10.96.0.0/12", "192.0.2.1")
            },
            Route {
                interface: None,
                protocol: 3,
                source: None,
                ..ours("10.96.0.0/12", "192.0.2.1")
            },
        ] {
            let expected = Steps {
                foreign: vec![foreign],
                ..Steps::default()
            };
            assert_eq!(steps(&target, &[foreign], DEVICE), expected);
        }
        let by_hand = Route {
            protocol: 3,
            source: None,
            ..ours("10.96.0.0/12", "192.0.2.1")
        };
        assert_eq!(steps(&target, &[by_hand], DEVICE), Steps::default());
    }
}
