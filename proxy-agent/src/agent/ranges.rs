//! Addresses and ranges of addresses from the cluster's objects and the configuration together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::Ip;
use proxy_common::maps::{MAX_SERVICE_RANGES, MAX_UPLINKS, NodeNumber, RangeKey};
use siphasher::sip::SipHasher13;

use crate::cluster::{ClusterState, External, Node};
use crate::config::AgentOptions;
use crate::control::ObjectError;
use crate::network::{Links, UplinkAddresses};
use crate::trouble::Trouble;

/// The node's addresses from the configuration or its Node object.
pub fn node_addresses(cluster: &ClusterState, options: &AgentOptions) -> Vec<IpAddr> {
    let configured = &options.configuration.node_addresses;
    if configured.is_empty() {
        cluster
            .node(&options.node_name)
            .map(|node| node.addresses.clone())
            .unwrap_or_default()
    } else {
        configured.clone()
    }
}

/// The addresses of the other nodes, of every type, and the node of each. An internal address belongs to the
/// node that names it as such; other nodes' claims to it do not count.
pub fn peers(cluster: &ClusterState, options: &AgentOptions) -> BTreeMap<IpAddr, NodeNumber> {
    let others = || cluster.nodes().filter(|node| node.name != options.node_name);
    let numbered = |node: &Node, addresses: &[IpAddr]| {
        let number = node_number(&node.name);
        let numbered = addresses.iter().map(|address| (*address, number));
        numbered.collect::<Vec<_>>()
    };
    let outer = others().flat_map(|node| numbered(node, &node.other_addresses));
    let inner = others().flat_map(|node| numbered(node, &node.addresses));
    outer.chain(inner).collect()
}

/// The addresses among `addresses` that belong to other nodes, with the names of these nodes.
pub fn node_names(
    cluster: &ClusterState,
    options: &AgentOptions,
    addresses: &BTreeSet<IpAddr>,
) -> BTreeMap<IpAddr, String> {
    let others = cluster.nodes().filter(|node| node.name != options.node_name);
    let named = others.flat_map(|node| {
        let all = node.other_addresses.iter().chain(&node.addresses);
        all.map(move |address| (*address, node.name.to_string()))
    });
    named.filter(|(address, _)| addresses.contains(address)).collect()
}

/// Every address from outside that a service names and that lies in no range of cluster IPs.
pub fn named_outside(cluster: &ClusterState, options: &AgentOptions) -> BTreeSet<IpAddr> {
    let ranges = service_cidrs(cluster, options);
    let external = cluster
        .services()
        .filter_map(|(_, service)| service.external.as_deref());
    let named = external.flat_map(External::addresses);
    named
        .filter(|address| is_outside_ranges(address, &ranges))
        .collect()
}

/// The addresses that this node's object names, of every type; the node need not hold them.
pub fn own_addresses(cluster: &ClusterState, options: &AgentOptions) -> Vec<IpAddr> {
    let object = cluster.node(&options.node_name).into_iter();
    let named = object.flat_map(|node| node.addresses.iter().chain(&node.other_addresses));
    named
        .chain(&options.configuration.node_addresses)
        .copied()
        .collect()
}

/// The number of a node. It follows from the node's name, so that a restarted agent finds the same number in
/// the maps.
pub fn node_number(name: &str) -> NodeNumber {
    let hash = SipHasher13::new().hash(name.as_bytes());
    NodeNumber((hash % u64::from(NodeNumber::MAX)) as u32 + 1)
}

/// The ranges of other nodes' pods, and the node of each.
pub fn pod_cidrs_of_others(
    cluster: &ClusterState,
    options: &AgentOptions,
) -> impl Iterator<Item = (IpNet, NodeNumber)> {
    let others = cluster.nodes().filter(|node| node.name != options.node_name);
    others.flat_map(|node| {
        let number = node_number(&node.name);
        node.pod_cidrs.iter().map(move |range| (*range, number))
    })
}

/// The smallest range of each family that contains all given ranges, IPv4 first. `None` for a family without
/// ranges, or if the range would be too wide to be of use.
pub fn around(ranges: &[IpNet]) -> [Option<IpNet>; 2] {
    /// The least prefix lengths: IPv4, IPv6.
    const LEAST: [u8; 2] = [4, 8];
    [true, false].map(|v4| {
        let mut of_family = ranges.iter().filter(|range| range.addr().is_ipv4() == v4);
        let mut around = of_family.next()?.trunc();
        for range in of_family {
            while !around.contains(range) {
                around = around.supernet()?;
            }
        }
        (around.prefix_len() >= LEAST[usize::from(!v4)]).then_some(around)
    })
}

/// Whether no service range contains a virtual address, so that it needs a route of its own.
pub fn is_outside_ranges(address: &IpAddr, ranges: &[IpNet]) -> bool {
    !ranges.iter().any(|range| range.contains(address))
}

/// An address inside a range: the first host's, not the network's own. A range of one address yields that
/// address.
pub fn inside(prefix: &IpNet) -> IpAddr {
    if prefix.prefix_len() == prefix.max_prefix_len() {
        return prefix.addr();
    }
    prefix.hosts().next().unwrap_or_else(|| prefix.addr())
}

/// The ranges of cluster IPs, from objects and configuration.
pub fn service_cidrs(cluster: &ClusterState, options: &AgentOptions) -> Vec<IpNet> {
    let mut ranges: Vec<_> = cluster
        .service_cidrs()
        .chain(options.configuration.service_cidrs.iter().copied())
        .collect();
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

/// The ranges of pods, from objects and configuration.
pub fn pod_cidrs(cluster: &ClusterState, options: &AgentOptions) -> Vec<IpNet> {
    let of_others = cluster
        .nodes()
        .filter(|node| node.name != options.node_name)
        .flat_map(|node| node.pod_cidrs.iter());
    of_others
        .chain(&options.configuration.cluster_cidrs)
        .copied()
        .chain(own_pod_cidrs(cluster, options))
        .collect()
}

/// The ranges of this node's pods, from the configuration or its Node object.
pub fn own_pod_cidrs(cluster: &ClusterState, options: &AgentOptions) -> Vec<IpNet> {
    let configured = &options.configuration.pod_cidrs;
    if !configured.is_empty() {
        return configured.clone();
    }
    cluster
        .node(&options.node_name)
        .map(|node| node.pod_cidrs.clone())
        .unwrap_or_default()
}

/// Warns of ranges beyond the number that the programs can hold.
pub fn too_many(service_cidrs: &[IpNet]) -> Option<ObjectError> {
    let rest = service_cidrs
        .get(MAX_SERVICE_RANGES..)
        .filter(|rest| !rest.is_empty())?;
    let rest: Vec<_> = rest.iter().map(ToString::to_string).collect();
    Some(ObjectError {
        code: Trouble::LimitExceeded,
        object: "service ranges".into(),
        message: format!(
            "there is room for {MAX_SERVICE_RANGES}: in {} services are served, but what no service has is not refused",
            rest.join(", ")
        ),
    })
}

/// Warns of uplinks beyond the number that the programs can hold.
pub fn too_many_uplinks(uplinks: &[UplinkAddresses], links: &Links) -> Option<ObjectError> {
    let rest = uplinks.get(MAX_UPLINKS..).filter(|rest| !rest.is_empty())?;
    let names: Vec<_> = rest.iter().map(|uplink| links.name(uplink.interface)).collect();
    Some(ObjectError {
        code: Trouble::LimitExceeded,
        object: "uplinks".into(),
        message: format!(
            "there is room for the addresses of {MAX_UPLINKS}: what is masqueraded and leaves by {} carries the \
             address of the Node, and its replies may be lost. Name the uplinks in use with --uplink",
            names.join(", ")
        ),
    })
}

/// Whether a range is a single address.
pub fn is_host(range: &IpNet) -> bool {
    range.prefix_len() == range.max_prefix_len()
}

/// Network and mask of a range, as IPv6 or IPv4-mapped addresses.
pub fn range_words(range: &IpNet) -> (Ip, Ip) {
    let bits = range_bits(range);
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    (
        Ip::from(range.network()),
        Ip::from(std::net::Ipv6Addr::from(mask)),
    )
}

/// A range as a key of the map `POD_RANGES`.
pub fn range_key(range: &IpNet) -> RangeKey {
    RangeKey {
        prefix_len: range_bits(range),
        address: Ip::from(range.network()),
    }
}

fn range_bits(range: &IpNet) -> u32 {
    u32::from(range.prefix_len()) + if range.addr().is_ipv4() { 96 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_range_around_others_is_the_smallest() {
        for (ranges, expected) in [
            (
                &["10.244.1.0/24", "10.244.2.0/24", "10.244.9.0/24"][..],
                [Some("10.244.0.0/20"), None],
            ),
            (
                &["10.244.1.0/24", "fd00:1::/64", "fd00:2::/64"],
                [Some("10.244.1.0/24"), Some("fd00::/30")],
            ),
            (&["10.0.0.0/16", "192.168.0.0/16"], [None, None]),
            (&["10.0.0.0/8", "10.244.1.7/24"], [Some("10.0.0.0/8"), None]),
            (&[], [None, None]),
        ] {
            let expected = expected.map(|text| text.map(|text| text.parse().unwrap()));
            assert_eq!(around(&nets(ranges)), expected, "{ranges:?}");
        }
    }

    #[test]
    fn nodes_have_numbers() {
        let numbers = ["a", "b", "worker-1", "worker-2"].map(node_number);
        for (index, number) in numbers.iter().enumerate() {
            assert!(number.is_some() && number.0 <= NodeNumber::MAX);
            assert!(!numbers[..index].contains(number));
        }
        assert_eq!(node_number("a"), node_number("a"));
    }
}
