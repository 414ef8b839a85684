//! Foreign routes inside the ranges of our routes.
//!
//! Such a route is more specific than ours, or is in a table that rules look up before the main one. So
//! packets to its addresses follow it, or go nowhere. The agent leaves it alone, and reports it with the
//! command that removes it. It does not report subnets of interfaces, routes to our pods, and routes to the
//! same next hop as ours.
//!
//! A pod address of another node that is also this node's own address takes packets before any other route
//! does. Addresses of services do not: the programs translate them first, and a cache on the node may have
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::error::{NetworkError, Problem};
use super::links::{Change, Links};
use super::netlink::{self, Netlink};
use super::{host_routes, is_own, route};
use crate::bpf::links::InterfaceRole;
use crate::trouble::Trouble;

/// How many routes are reported one by one.
const MOST: usize = 16;
const LOCAL_TABLE: u32 = libc::RT_TABLE_LOCAL as u32;
/// The kind of a route whose addresses are the node's own, as `ip` writes it.
const LOCAL: &str = "local";

/// The next hop of one of our routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// The index of the output device.
    pub interface: u32,
    /// The gateway; `None` if only the interface matters.
    pub via: Option<IpAddr>,
}

/// The ranges of our routes, with their next hops.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnRoutes {
    ranges: BTreeMap<IpNet, NextHop>,
    shortest: u8,
}

/// Tables that the kernel looks up before the main one, for IPv4 and for IPv6.
type TablesAhead = [BTreeSet<u32>; 2];

impl OwnRoutes {
    /// Makes the set from ranges and their next hops.
    pub fn new(ranges: impl IntoIterator<Item = (IpNet, NextHop)>) -> Self {
        let ranges = ranges.into_iter();
        let ranges: BTreeMap<_, _> = ranges
            .map(|(range, next_hop)| (range.trunc(), next_hop))
            .collect();
        let shortest = ranges.keys().map(IpNet::prefix_len).min();
        Self {
            shortest: shortest.unwrap_or(u8::MAX),
            ranges,
        }
    }

    /// The smallest range that contains a prefix or equals it.
    fn around(&self, prefix: IpNet) -> Option<(IpNet, NextHop)> {
        let mut at = prefix.trunc();
        while at.prefix_len() >= self.shortest {
            if let Some(next_hop) = self.ranges.get(&at) {
                return Some((at, *next_hop));
            }
            at = at.supernet()?;
        }
        None
    }

    /// Whether a change may have added or removed a foreign route inside a range.
    pub fn is_concerned(&self, change: &Change) -> bool {
        let is_inside = |prefix: &IpNet| self.around(*prefix).is_some_and(|(range, _)| range != *prefix);
        let is_covered = |prefix: &IpNet| self.around(*prefix).is_some();
        change.resynced
            || change.rules > 0
            || change.routes.iter().any(is_inside)
            || change.other_routes.iter().any(is_covered)
    }

    /// Reads the foreign routes that lie inside the ranges.
    pub async fn routes_of_others(
        &self,
        netlink: &Netlink,
        links: &Links,
    ) -> Result<Vec<Problem>, NetworkError> {
        if self.ranges.is_empty() {
            return Ok(Vec::new());
        }
        let tables = tables_ahead(netlink).await?;
        Ok(self.problems(&netlink.routes().await?, &tables, links))
    }

    fn problems(&self, routes: &[RouteMessage], tables: &TablesAhead, links: &Links) -> Vec<Problem> {
        let is_expected = |route: &Foreign, next_hop: NextHop| {
            if route.is_local() && next_hop.via.is_none() {
                return true;
            }
            let link = route.interface.and_then(|index| links.get(index));
            link.is_some_and(|link| {
                let is_pods = InterfaceRole::of_pod(&link.name) == InterfaceRole::OwnPod;
                // A single service address may lie inside a range of pods.
                let is_ours = route.is_local() || route.protocol == host_routes::PROTOCOL;
                (is_pods && !route.is_local()) || (is_own(&link.name) && is_ours)
            })
        };
        let inside = |route: Foreign| {
            let (range, next_hop) = self.around(route.prefix)?;
            let comes_first = match route.table {
                // A route for the range itself is reported where ours is set.
                netlink::MAIN_TABLE => route.prefix != range,
                LOCAL_TABLE => true,
                table => tables[usize::from(range.addr().is_ipv6())].contains(&table),
            };
            let is_odd = comes_first && !route.has_next_hop(next_hop) && !is_expected(&route, next_hop);
            is_odd.then_some((range, route))
        };
        let found: Vec<_> = routes
            .iter()
            .filter_map(Foreign::read)
            .filter_map(inside)
            .collect();
        let named = found.iter().take(MOST);
        let mut problems: Vec<_> = named.map(|(range, route)| route.problem(*range, links)).collect();
        if found.len() > MOST {
            problems.push(Problem {
                code: Trouble::RouteTaken,
                object: "routes".into(),
                message: format!(
                    "{} more foreign routes lie inside ranges that Millrace routes: see `ip route show table all`",
                    found.len() - MOST
                ),
            });
        }
        problems
    }
}

/// A route that may be foreign. A route with our protocol number may be foreign, too.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Foreign {
    prefix: IpNet,
    /// The kind as `ip` writes it; empty for a unicast route.
    kind: &'static str,
    interface: Option<u32>,
    via: Option<IpAddr>,
    table: u32,
    metric: u32,
    protocol: u8,
}

impl Foreign {
    fn read(message: &RouteMessage) -> Option<Self> {
        let kind = match message.header.kind {
            RouteType::Unicast => "",
            RouteType::BlackHole => "blackhole",
            RouteType::Unreachable => "unreachable",
            RouteType::Prohibit => "prohibit",
            RouteType::Throw => "throw",
            RouteType::Local => LOCAL,
            _ => return None,
        };
        let (protocol, table) = (message.header.protocol, netlink::table(message));
        if kind != LOCAL && (protocol == RouteProtocol::Kernel || table == LOCAL_TABLE) {
            return None;
        }
        let (mut interface, mut via) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => interface = Some(*index),
                RouteAttribute::Gateway(address) => via = netlink::ip(address),
                _ => {}
            }
        }
        Some(Self {
            prefix: netlink::prefix(message)?,
            kind,
            interface,
            via,
            table,
            metric: netlink::metric(message),
            protocol: u8::from(protocol),
        })
    }

    /// Whether the route makes its addresses the node's own.
    fn is_local(&self) -> bool {
        self.kind == LOCAL
    }

    fn has_next_hop(&self, ours: NextHop) -> bool {
        let by_the_same = self.kind.is_empty() && self.interface == Some(ours.interface);
        by_the_same && (ours.via.is_none() || ours.via == self.via)
    }

    fn problem(&self, range: IpNet, links: &Links) -> Problem {
        let next_hop = match (self.kind, self.interface, self.via) {
            ("", Some(interface), Some(via)) => format!("{} to {via}", route::through(interface)),
            ("", Some(interface), None) => route::through(interface),
            ("", None, _) => "by several next hops".to_owned(),
            (LOCAL, ..) => "to this node itself".to_owned(),
            _ => "nowhere".to_owned(),
        };
        Problem {
            code: Trouble::RouteTaken,
            object: format!("route {}", self.prefix),
            message: format!(
                "a foreign route inside {range} goes {next_hop} (protocol {}), and packets to its addresses follow it: \
                 remove it with `{}` to have Millrace route them",
                self.protocol,
                self.removal(links)
            ),
        }
    }

    /// The command that removes this route and no other.
    fn removal(&self, links: &Links) -> String {
        if let Some((address, link)) = self.address(links) {
            return format!("ip addr del {address} dev {link}");
        }
        let mut command = "ip route del".to_owned();
        let mut add = |words: &[&str]| {
            for word in words.iter().filter(|word| !word.is_empty()) {
                command.push(' ');
                command.push_str(word);
            }
        };
        add(&[self.kind, &self.prefix.to_string()]);
        if self.kind.is_empty()
            && let Some(via) = self.via
        {
            add(&["via", &via.to_string()]);
        }
        if (self.kind.is_empty() || self.is_local())
            && let Some(link) = self.interface.and_then(|index| links.get(index))
        {
            add(&["dev", &link.name]);
        }
        if self.table != netlink::MAIN_TABLE {
            add(&["table", &self.table.to_string()]);
        }
        if self.metric != route::default_metric(self.prefix) {
            add(&["metric", &self.metric.to_string()]);
        }
        command
    }

    /// The address, with its prefix length, for which the kernel made this route, and its interface.
    fn address<'a>(&self, links: &'a Links) -> Option<(IpNet, &'a str)> {
        if !self.is_local() || self.protocol != u8::from(RouteProtocol::Kernel) {
            return None;
        }
        links.iter().find_map(|link| {
            let mut held = links.addresses(link.index).iter();
            let held = held.find(|held| held.ip == self.prefix.addr())?;
            Some((IpNet::new(held.ip, held.prefix_len).ok()?, link.name.as_str()))
        })
    }
}

/// The tables that rules lead some packets to before the main table, which all packets look up. A kernel
/// without rules, or without IPv6, has none.
async fn tables_ahead(netlink: &Netlink) -> Result<TablesAhead, NetworkError> {
    let mut tables = TablesAhead::default();
    for (tables, version) in tables.iter_mut().zip([IpVersion::V4, IpVersion::V6]) {
        let messages = netlink.reading().rule().get(version).execute();
        match messages.try_collect::<Vec<_>>().await {
            Ok(rules) => *tables = ahead(&rules),
            Err(rtnetlink::Error::NetlinkError(message))
                if [-libc::EOPNOTSUPP, -libc::EAFNOSUPPORT].contains(&message.raw_code()) => {}
            Err(error) => return Err(NetworkError::request("listing the rules")(error)),
        }
    }
    Ok(tables)
}

/// The tables that the rules of one family look up before the main one.
fn ahead(rules: &[RuleMessage]) -> BTreeSet<u32> {
    let table = |rule: &RuleMessage| {
        let long = rule.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Table(table) => Some(*table),
            _ => None,
        });
        long.unwrap_or_else(|| rule.header.table.into())
    };
    let priority = |rule: &RuleMessage| {
        let priority = rule.attributes.iter().find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
        priority.unwrap_or_default()
    };
    let of_main = rules.iter().filter(|rule| table(rule) == netlink::MAIN_TABLE);
    // An earlier rule for the main table may match only some packets.
    let last = of_main.map(priority).max().unwrap_or(u32::MAX);
    let earlier = rules
        .iter()
        .filter(|rule| rule.header.action == RuleAction::ToTable && priority(rule) < last);
    let none = [0, LOCAL_TABLE, netlink::MAIN_TABLE];
    earlier.map(table).filter(|table| !none.contains(table)).collect()
}

#[cfg(test)]
mod tests;
