//! Rules that lead the node's own packets to single ports of an address to our device.
//!
//! An address that another machine has as well gets no route of ours, which would take all packets of the
//! node to it. For the ports of services there are rules instead (`ip rule`). They look up a table with one
//! route, the default one, to our device. They match only packets of the node itself (`iif lo`), and come
//! before foreign rules, which match no port.
//!
//! Invariant: the agent changes or removes only those rules, and those routes in our table, that have our
//! protocol number.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use futures::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::IpVersion;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};

use super::addresses::NodeAddresses;
use super::error::{NetworkError, Problem};
use super::host_routes::PROTOCOL;
use super::netlink::{self, Netlink};
use super::route;

/// The number of the table and the preference of the rules, equal to the protocol number of our routes.
const TABLE: u32 = PROTOCOL as u32;

/// A service's port on an address that another machine has as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortAt {
    /// The destination address.
    pub address: IpAddr,
    /// The IP protocol number.
    pub protocol: u8,
    /// The destination port.
    pub port: u16,
}

/// The rules of the last sync.
#[derive(Debug, Default)]
pub struct PortRules {
    wanted: BTreeSet<PortAt>,
    /// Whether a sync has read the kernel's rules; an earlier agent may have left some.
    is_known: bool,
}

impl PortRules {
    /// Whether a port has a rule, or should have one.
    pub fn contains(&self, port: &PortAt) -> bool {
        self.wanted.contains(port)
    }

    /// Whether the rules need a sync, since the wanted ones have changed.
    pub fn differ(&self, wanted: &BTreeSet<PortAt>) -> bool {
        self.wanted != *wanted
    }

    /// Brings rules and routes in step.
    pub(super) async fn sync(
        &mut self,
        netlink: &Netlink,
        device: u32,
        node: &NodeAddresses,
        wanted: BTreeSet<PortAt>,
    ) -> Result<Vec<Problem>, NetworkError> {
        if self.is_known && self.wanted.is_empty() && wanted.is_empty() {
            return Ok(Vec::new());
        }
        let before = std::mem::replace(&mut self.wanted, wanted);
        self.is_known = true;
        let mut problems = sync_routes(netlink, device, &self.sources(node)).await?;
        let found = rules(netlink).await?;
        let stale = found.iter().filter(|(port, _)| !self.wanted.contains(port));
        for (port, message) in stale {
            let removed = netlink.writing().rule().del(message.clone()).execute().await;
            note(&mut problems, port, removed, "removing it");
        }
        for port in self.wanted.iter().filter(|port| !found.contains_key(port)) {
            let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRule(port.rule()));
            request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
            netlink.note_write();
            let added = netlink.send_request(request).await;
            if added.is_ok() && before.contains(port) {
                netlink.note_restored("rule", port.to_string());
            }
            note(&mut problems, port, added, "adding it");
        }
        Ok(problems)
    }

    /// The wanted default routes, and the source of each.
    fn sources(&self, node: &NodeAddresses) -> BTreeMap<IpNet, IpAddr> {
        let sources = self.wanted.iter().filter_map(|port| {
            let any = if port.address.is_ipv4() {
                "0.0.0.0/0"
            } else {
                "::/0"
            };
            Some((any.parse().ok()?, node.primary_for(port.address)?))
        });
        sources.collect()
    }
}

impl fmt::Display for PortAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} protocol {} port {}",
            self.address, self.protocol, self.port
        )
    }
}

impl PortAt {
    /// The port of a rule, if the rule is ours.
    pub(super) fn read(message: &RuleMessage) -> Option<Self> {
        let attributes = &message.attributes;
        let is_ours = attributes.contains(&RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)))
            && attributes.contains(&RuleAttribute::Table(TABLE));
        let (mut address, mut protocol, mut port) = (None, None, None);
        for attribute in attributes {
            match attribute {
                RuleAttribute::Destination(ip) => address = Some(*ip),
                RuleAttribute::IpProtocol(number) => protocol = Some(u8::from(*number)),
                RuleAttribute::DestinationPortRange(range) => port = Some(range.start),
                _ => {}
            }
        }
        Some(Self {
            address: address.filter(|_| is_ours)?,
            protocol: protocol?,
            port: port?,
        })
    }

    fn rule(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        (message.header.family, message.header.dst_len) = match self.address {
            IpAddr::V4(_) => (AddressFamily::Inet, 32),
            IpAddr::V6(_) => (AddressFamily::Inet6, 128),
        };
        message.header.action = RuleAction::ToTable;
        message.header.table = PROTOCOL;
        message.attributes = vec![
            RuleAttribute::Destination(self.address),
            RuleAttribute::Iifname("lo".to_owned()),
            RuleAttribute::IpProtocol(IpProtocol::from(self.protocol)),
            RuleAttribute::DestinationPortRange(RulePortRange {
                start: self.port,
                end: self.port,
            }),
            RuleAttribute::Priority(TABLE),
            RuleAttribute::Table(TABLE),
            RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        ];
        message
    }
}

/// Removes all our rules, for an uninstall, and returns them. The routes disappear with the device.
pub async fn remove_all(netlink: &Netlink) -> Result<Vec<PortAt>, NetworkError> {
    let found = rules(netlink).await?;
    for (port, message) in &found {
        let removed = netlink.writing().rule().del(message.clone()).execute().await;
        let removed = removed.map_err(NetworkError::request(format!("removing the rule for {port}")));
        match removed {
            // Another process has already removed the rule.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            removed => removed?,
        }
    }
    Ok(found.into_keys().collect())
}

/// Our rules, as the kernel has them. A kernel without rules, or without IPv6, has none.
async fn rules(netlink: &Netlink) -> Result<BTreeMap<PortAt, RuleMessage>, NetworkError> {
    let mut found = BTreeMap::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let messages = netlink.reading().rule().get(version).execute();
        match messages.try_collect::<Vec<_>>().await {
            Ok(messages) => found.extend(
                messages
                    .into_iter()
                    .filter_map(|message| Some((PortAt::read(&message)?, message))),
            ),
            Err(rtnetlink::Error::NetlinkError(message))
                if [-libc::EOPNOTSUPP, -libc::EAFNOSUPPORT].contains(&message.raw_code()) => {}
            Err(error) => return Err(NetworkError::request("listing the rules")(error)),
        }
    }
    Ok(found)
}

async fn sync_routes(
    netlink: &Netlink,
    device: u32,
    wanted: &BTreeMap<IpNet, IpAddr>,
) -> Result<Vec<Problem>, NetworkError> {
    let mut problems = Vec::new();
    let routes = netlink.routes().await?;
    let found = routes.iter().filter_map(|message| read_route(message, device));
    let found: BTreeMap<IpNet, Option<IpAddr>> = found.collect();
    for (prefix, source) in wanted {
        if found.get(prefix) != Some(&Some(*source)) {
            let message = route_message(*prefix, Some(*source), device)?;
            let made = netlink.writing().route().add(message).replace().execute().await;
            route::note(&mut problems, *prefix, made, "setting it in our table");
        }
    }
    for prefix in found.keys().filter(|prefix| !wanted.contains_key(prefix)) {
        let message = route_message(*prefix, None, device)?;
        let removed = route::remove(netlink, message, route::default_metric(*prefix)).await;
        route::note(&mut problems, *prefix, removed, "removing it from our table");
    }
    Ok(problems)
}

/// A route of ours in our table, and its source.
fn read_route(message: &RouteMessage, device: u32) -> Option<(IpNet, Option<IpAddr>)> {
    let is_ours = netlink::table(message) == TABLE
        && u8::from(message.header.protocol) == PROTOCOL
        && message.attributes.contains(&RouteAttribute::Oif(device));
    let source = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => netlink::ip(address),
        _ => None,
    });
    Some((netlink::prefix(message).filter(|_| is_ours)?, source))
}

fn route_message(prefix: IpNet, source: Option<IpAddr>, device: u32) -> Result<RouteMessage, NetworkError> {
    let scope = if prefix.addr().is_ipv4() {
        RouteScope::Link
    } else {
        RouteScope::Universe
    };
    let route = route::builder(prefix, PROTOCOL)?;
    let route = route.output_interface(device).table_id(TABLE).scope(scope);
    let route = match source {
        Some(source) => route.pref_source(source).map_err(route::refused(prefix))?,
        None => route,
    };
    Ok(route.build())
}

fn note(problems: &mut Vec<Problem>, port: &PortAt, done: Result<(), rtnetlink::Error>, what: &str) {
    if let Err(error) = done.map_err(NetworkError::request(what)) {
        problems.push(Problem {
            code: error.trouble(),
            object: format!("rule for {port}"),
            message: format!(
                "{error}: packets of the node itself to this port that no socket hook translates go to the other machine \
                 that has the address"
            ),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_of_ours_is_read_as_it_was_written() {
        for address in ["198.51.100.3", "2001:db8:51::3"] {
            let port = PortAt {
                address: address.parse().expect("an address"),
                protocol: 17,
                port: 53,
            };
            assert_eq!(PortAt::read(&port.rule()), Some(port));
            let mut foreign = port.rule();
            foreign
                .attributes
                .retain(|attribute| !matches!(attribute, RuleAttribute::Protocol(_)));
            assert_eq!(PortAt::read(&foreign), None);
        }
    }
}
