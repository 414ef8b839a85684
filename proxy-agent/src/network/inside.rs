//! Routes of others inside ranges that routes of ours lead.
//!
//! Such a route is more specific than ours, or stands in a table that rules look up before the main one. So
//! packets to its addresses go its way, or nowhere. It is left alone, and named with the command that removes
//! it. Not meant are subnets of interfaces, routes to pods of ours and those that lead where ours do.
//!
//! Addresses of other nodes' pods that are this node's own take packets before any other route does. Those of
//! services are translated first, and caches on the node may have them.

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

/// How many are named one by one.
const MOST: usize = 16;
const LOCAL_TABLE: u32 = libc::RT_TABLE_LOCAL as u32;
/// The kind of a route whose addresses are the node's own, as `ip` writes it.
const LOCAL: &str = "local";

/// Where a route of ours leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leading {
    /// The interface.
    pub interface: u32,
    /// The gateway; `None` where the interface alone counts.
    pub via: Option<IpAddr>,
}

/// Ranges that routes of ours lead, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Led {
    ranges: BTreeMap<IpNet, Leading>,
    shortest: u8,
}

/// Tables that are looked up before the main one, for IPv4 and for others.
type TablesAhead = [BTreeSet<u32>; 2];

impl Led {
    /// Of these ranges.
    pub fn new(ranges: impl IntoIterator<Item = (IpNet, Leading)>) -> Self {
        let ranges = ranges.into_iter();
        let ranges: BTreeMap<_, _> = ranges.map(|(range, leading)| (range.trunc(), leading)).collect();
        let shortest = ranges.keys().map(IpNet::prefix_len).min();
        Self {
            shortest: shortest.unwrap_or(u8::MAX),
            ranges,
        }
    }

    /// The smallest range that a prefix lies in or is.
    fn around(&self, prefix: IpNet) -> Option<(IpNet, Leading)> {
        let mut at = prefix.trunc();
        while at.prefix_len() >= self.shortest {
            if let Some(leading) = self.ranges.get(&at) {
                return Some((at, *leading));
            }
            at = at.supernet()?;
        }
        None
    }

    /// Whether a change may have brought a route of others inside a range, or taken one away.
    pub fn is_concerned(&self, change: &Change) -> bool {
        let is_inside = |prefix: &IpNet| self.around(*prefix).is_some_and(|(range, _)| range != *prefix);
        let is_led = |prefix: &IpNet| self.around(*prefix).is_some();
        change.resynced
            || change.rules > 0
            || change.routes.iter().any(is_inside)
            || change.other_routes.iter().any(is_led)
    }

    /// What the kernel has of them.
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
        let is_meant = |route: &Foreign, leading: Leading| {
            if route.is_local() && leading.via.is_none() {
                return true;
            }
            let link = route.interface.and_then(|index| links.get(index));
            link.is_some_and(|link| {
                let is_pods = InterfaceRole::of_pod(&link.name) == InterfaceRole::OwnPod;
                // One address of services may lie inside a range of pods.
                let is_ours = route.is_local() || route.protocol == host_routes::PROTOCOL;
                (is_pods && !route.is_local()) || (is_own(&link.name) && is_ours)
            })
        };
        let inside = |route: Foreign| {
            let (range, leading) = self.around(route.prefix)?;
            let comes_first = match route.table {
                // One for the range itself is found where ours is to be set.
                netlink::MAIN_TABLE => route.prefix != range,
                LOCAL_TABLE => true,
                table => tables[usize::from(range.addr().is_ipv6())].contains(&table),
            };
            let is_odd = comes_first && !route.leads_where(leading) && !is_meant(&route, leading);
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
                    "{} more of others lie inside ranges that Millrace leads: see `ip route show table all`",
                    found.len() - MOST
                ),
            });
        }
        problems
    }
}

/// A route that may be one of others. One with a protocol number of ours may be, too.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Foreign {
    prefix: IpNet,
    /// As `ip` writes it; nothing if it leads somewhere.
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

    /// Whether its addresses are the node's own.
    fn is_local(&self) -> bool {
        self.kind == LOCAL
    }

    fn leads_where(&self, ours: Leading) -> bool {
        let by_the_same = self.kind.is_empty() && self.interface == Some(ours.interface);
        by_the_same && (ours.via.is_none() || ours.via == self.via)
    }

    fn problem(&self, range: IpNet, links: &Links) -> Problem {
        let leading = match (self.kind, self.interface, self.via) {
            ("", Some(interface), Some(via)) => format!("{} to {via}", route::through(interface)),
            ("", Some(interface), None) => route::through(interface),
            ("", None, _) => "by several ways".to_owned(),
            (LOCAL, ..) => "to this node itself".to_owned(),
            _ => "nowhere".to_owned(),
        };
        Problem {
            code: Trouble::RouteTaken,
            object: format!("route {}", self.prefix),
            message: format!(
                "inside {range}, leading {leading} (protocol {}), and left alone: packets to these addresses go \
                 that way; remove it with `{}` to have Millrace lead them",
                self.protocol,
                self.removal(links)
            ),
        }
    }

    /// The command that removes it and no other.
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

    /// The address, with its prefix length, for which the kernel has made this route, and the interface.
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

/// The tables that rules lead some packets to before the main one is looked up for all. A kernel without
/// rules, or without IPv6, has none.
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

/// Those among the rules of a family.
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
    // One before it may be for some packets only.
    let last = of_main.map(priority).max().unwrap_or(u32::MAX);
    let earlier = rules
        .iter()
        .filter(|rule| rule.header.action == RuleAction::ToTable && priority(rule) < last);
    let none = [0, LOCAL_TABLE, netlink::MAIN_TABLE];
    earlier.map(table).filter(|table| !none.contains(table)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::fixture::{World, link};
    use crate::network::pods::routes::PROTOCOL as PODS_PROTOCOL;
    use rtnetlink::RouteMessageBuilder;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Services by interface 7, pods of another node by a neighbour.
    fn led() -> Led {
        let services = Leading {
            interface: 7,
            via: None,
        };
        let pods = |via| Leading {
            interface: 2,
            via: Some(ip(via)),
        };
        Led::new([
            (net("10.96.0.0/12"), services),
            (net("10.244.2.0/24"), pods("192.0.2.2")),
            (net("fd00:244:2::/64"), pods("2001:db8::2")),
        ])
    }

    fn links() -> World {
        World::new()
            .add(link(2, "eth0", ""))
            .add(link(7, "millrace0", "veth"))
            .pod(8, "mr0123456789ab", None)
    }

    fn route(prefix: &str, kind: RouteType, leading: Option<(u32, Option<&str>)>) -> RouteMessage {
        let prefix = net(prefix);
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .expect("a destination")
            .protocol(RouteProtocol::Boot)
            .table_id(netlink::MAIN_TABLE);
        if let Some((interface, via)) = leading {
            route = route.output_interface(interface);
            if let Some(via) = via {
                route = route.gateway(ip(via)).expect("a gateway");
            }
        }
        let mut message = route.build();
        message.header.kind = kind;
        let metric = route::default_metric(prefix);
        message.attributes.push(RouteAttribute::Priority(metric));
        message
    }

    fn told(routes: &[RouteMessage], tables: &TablesAhead) -> Vec<(String, String)> {
        let problems = led().problems(routes, tables, &links().0).into_iter();
        let command = |message: &str| message.split('`').nth(1).map(str::to_owned);
        problems
            .map(|problem| (problem.object, command(&problem.message).expect("a command")))
            .collect()
    }

    #[test]
    fn what_takes_packets_before_ours_is_named_with_the_command_that_removes_it() {
        for (message, prefix, command) in [
            (
                route("10.244.2.2/32", RouteType::BlackHole, None),
                "10.244.2.2/32",
                "ip route del blackhole 10.244.2.2/32",
            ),
            (
                route("10.244.2.128/25", RouteType::Unreachable, None),
                "10.244.2.128/25",
                "ip route del unreachable 10.244.2.128/25",
            ),
            (
                route("fd00:244:2::2/128", RouteType::Prohibit, Some((1, None))),
                "fd00:244:2::2/128",
                "ip route del prohibit fd00:244:2::2/128",
            ),
            (
                route("10.244.2.2/32", RouteType::Unicast, Some((2, Some("192.0.2.9")))),
                "10.244.2.2/32",
                "ip route del 10.244.2.2/32 via 192.0.2.9 dev eth0",
            ),
            (
                route("10.96.0.10/32", RouteType::Unicast, Some((2, None))),
                "10.96.0.10/32",
                "ip route del 10.96.0.10/32 dev eth0",
            ),
        ] {
            let expected = [(format!("route {prefix}"), command.to_owned())];
            assert_eq!(told(&[message], &TablesAhead::default()), expected);
        }
        let mut odd = route("10.244.2.2/32", RouteType::BlackHole, None);
        odd.attributes
            .retain(|it| !matches!(it, RouteAttribute::Priority(_)));
        odd.attributes.push(RouteAttribute::Priority(7));
        let command = "ip route del blackhole 10.244.2.2/32 metric 7".to_owned();
        let expected = [("route 10.244.2.2/32".to_owned(), command)];
        assert_eq!(told(&[odd], &TablesAhead::default()), expected);
    }

    #[test]
    fn a_table_counts_if_it_is_looked_up_first() {
        let in_table = |prefix: &str| {
            let mut message = route(prefix, RouteType::BlackHole, None);
            message.header.table = 77;
            message
                .attributes
                .retain(|it| !matches!(it, RouteAttribute::Table(_)));
            message
        };
        let tables = [BTreeSet::from([77]), BTreeSet::new()];
        for prefix in ["10.244.2.0/24", "10.244.2.2/32"] {
            let routes = [in_table(prefix)];
            assert_eq!(told(&routes, &TablesAhead::default()), []);
            let command = format!("ip route del blackhole {prefix} table 77");
            assert_eq!(told(&routes, &tables), [(format!("route {prefix}"), command)]);
        }
        assert_eq!(told(&[in_table("fd00:244:2::2/128")], &tables), []);
    }

    #[test]
    fn an_address_of_another_nodes_pod_that_is_the_nodes_own_is_named() {
        let local = |prefix: &str, interface: u32, table: u32, protocol: RouteProtocol| {
            let mut message = route(prefix, RouteType::Local, Some((interface, None)));
            message
                .attributes
                .retain(|it| !matches!(it, RouteAttribute::Table(_)));
            message.attributes.push(RouteAttribute::Table(table));
            message.header.protocol = protocol;
            message
        };
        let tables = [BTreeSet::from([77]), BTreeSet::new()];
        let links = links().holding(2, &["10.244.2.3/25", "fd00:244:2::3/64"]);
        for (message, command) in [
            (
                local("10.244.2.3/32", 2, LOCAL_TABLE, RouteProtocol::Kernel),
                Some("ip addr del 10.244.2.3/25 dev eth0"),
            ),
            (
                local("fd00:244:2::3/128", 1, LOCAL_TABLE, RouteProtocol::Kernel),
                Some("ip addr del fd00:244:2::3/64 dev eth0"),
            ),
            (
                local("10.244.2.0/24", 1, LOCAL_TABLE, RouteProtocol::Boot),
                Some("ip route del local 10.244.2.0/24 dev lo table 255"),
            ),
            (
                local("10.244.2.2/32", 1, 77, RouteProtocol::Boot),
                Some("ip route del local 10.244.2.2/32 dev lo table 77"),
            ),
            (local("10.244.2.2/32", 1, 78, RouteProtocol::Boot), None),
            // Of a cache on the node, and of a device of ours.
            (
                local("10.96.0.10/32", 1, LOCAL_TABLE, RouteProtocol::Kernel),
                None,
            ),
            (
                local("10.244.2.2/32", 7, LOCAL_TABLE, RouteProtocol::Kernel),
                None,
            ),
            (local("192.0.2.1/32", 2, LOCAL_TABLE, RouteProtocol::Kernel), None),
        ] {
            let problems = led().problems(&[message], &tables, &links.0);
            let told: Vec<_> = problems
                .iter()
                .filter_map(|it| it.message.split('`').nth(1))
                .collect();
            let expected: Vec<_> = command.into_iter().collect();
            assert_eq!(told, expected, "{problems:?}");
        }
    }

    #[test]
    fn our_protocol_number_alone_makes_no_route_ours() {
        let with = |prefix: &str, protocol, leading| {
            let mut message = route(prefix, RouteType::Unicast, Some(leading));
            message.header.protocol = RouteProtocol::Other(protocol);
            message
        };
        let astray = with("10.244.2.0/25", PODS_PROTOCOL, (2, Some("192.0.2.9")));
        let command = "ip route del 10.244.2.0/25 via 192.0.2.9 dev eth0".to_owned();
        let expected = [("route 10.244.2.0/25".to_owned(), command)];
        assert_eq!(told(&[astray], &TablesAhead::default()), expected);
        // An address of services inside a range of pods, and routes of ours where they should lead.
        let ours = [
            with("10.244.2.9/32", host_routes::PROTOCOL, (7, None)),
            with("10.244.2.0/24", PODS_PROTOCOL, (2, Some("192.0.2.2"))),
            with("10.96.0.0/12", host_routes::PROTOCOL, (7, None)),
        ];
        assert_eq!(told(&ours, &TablesAhead::default()), []);
    }

    #[test]
    fn what_is_the_kernels_or_does_the_same_is_not_named() {
        let with = |protocol: RouteProtocol, kind: RouteType, leading| {
            let mut message = route("10.244.2.2/32", kind, leading);
            message.header.protocol = protocol;
            message
        };
        let somewhere = Some((2, Some("192.0.2.9")));
        let mut local = with(RouteProtocol::Boot, RouteType::Unicast, somewhere);
        local
            .attributes
            .retain(|it| !matches!(it, RouteAttribute::Table(_)));
        local.header.table = libc::RT_TABLE_LOCAL;
        let routes = [
            with(RouteProtocol::Kernel, RouteType::Unicast, Some((3, None))),
            local,
            // To a pod of this node, and where ours lead.
            with(RouteProtocol::Boot, RouteType::Unicast, Some((8, None))),
            with(
                RouteProtocol::Static,
                RouteType::Unicast,
                Some((2, Some("192.0.2.2"))),
            ),
            route("10.96.0.10/32", RouteType::Unicast, Some((7, None))),
            // The range itself, around it, and elsewhere.
            route("10.244.2.0/24", RouteType::BlackHole, None),
            route("10.244.0.0/16", RouteType::BlackHole, None),
            route("10.244.3.2/32", RouteType::BlackHole, None),
            route("0.0.0.0/0", RouteType::Unicast, somewhere),
        ];
        assert_eq!(told(&routes, &TablesAhead::default()), []);
    }

    #[test]
    fn many_are_named_by_their_number() {
        let routes: Vec<_> = (0..100)
            .map(|host| route(&format!("10.244.2.{host}/32"), RouteType::BlackHole, None))
            .collect();
        let told = led().problems(&routes, &TablesAhead::default(), &links().0);
        assert_eq!(told.len(), MOST + 1);
        assert!(told[MOST].message.starts_with("84 more "), "{:?}", told[MOST]);
    }

    #[test]
    fn tables_behind_the_main_one_do_not_count() {
        let rule = |priority, table: u32, action| {
            let mut message = RuleMessage::default();
            message.header.action = action;
            message.attributes = vec![RuleAttribute::Priority(priority), RuleAttribute::Table(table)];
            message
        };
        let rules = [
            rule(0, LOCAL_TABLE, RuleAction::ToTable),
            rule(50, 77, RuleAction::ToTable),
            rule(60, 78, RuleAction::Unreachable),
            rule(70, netlink::MAIN_TABLE, RuleAction::ToTable),
            rule(80, 1000, RuleAction::ToTable),
            rule(32_766, netlink::MAIN_TABLE, RuleAction::ToTable),
            rule(32_767, 253, RuleAction::ToTable),
        ];
        assert_eq!(ahead(&rules), BTreeSet::from([77, 1000]));
    }

    #[test]
    fn a_change_concerns_what_lies_inside() {
        let concerns = |prefix: &str, is_main: bool| {
            let mut change = Change::default();
            let routes = if is_main {
                &mut change.routes
            } else {
                &mut change.other_routes
            };
            routes.insert(net(prefix));
            led().is_concerned(&change)
        };
        assert!(concerns("10.244.2.2/32", true) && concerns("10.244.2.0/24", false));
        // Those of ours come and go.
        assert!(!concerns("10.244.2.0/24", true));
        for elsewhere in ["10.244.3.2/32", "10.244.0.0/16", "2001:db8::/64"] {
            assert!(
                !concerns(elsewhere, true) && !concerns(elsewhere, false),
                "{elsewhere}"
            );
        }
        assert!(!Led::default().is_concerned(&Change::default()));
    }
}
