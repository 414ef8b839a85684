//! Addresses and ranges of addresses that the cluster's objects and the configuration name, together.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::Ip;
use proxy_common::maps::{MAX_SERVICE_RANGES, RangeKey};

use crate::cluster::ClusterState;
use crate::config::AgentOptions;
use crate::control::ObjectError;

/// The node's addresses as its object or the configuration has them.
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

/// The addresses of the other nodes.
pub fn others_addresses(cluster: &ClusterState, options: &AgentOptions) -> BTreeSet<IpAddr> {
    cluster
        .nodes()
        .filter(|node| node.name != options.node_name)
        .flat_map(|node| node.addresses.iter().copied())
        .collect()
}

/// Whether no service range covers a virtual address, so that it needs a route of its own.
pub fn is_stray(address: &IpAddr, ranges: &[IpNet]) -> bool {
    !ranges.iter().any(|range| range.contains(address))
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

/// The ranges of this node's pods, as the configuration or its object has them.
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

/// Warns of ranges that the programs have no room for.
pub fn too_many(service_cidrs: &[IpNet]) -> Option<ObjectError> {
    let rest = service_cidrs
        .get(MAX_SERVICE_RANGES..)
        .filter(|rest| !rest.is_empty())?;
    let rest: Vec<_> = rest.iter().map(ToString::to_string).collect();
    Some(ObjectError {
        object: "service ranges".into(),
        message: format!(
            "there is room for {MAX_SERVICE_RANGES}: in {} services are served, but what no service has is not refused",
            rest.join(", ")
        ),
    })
}

/// Network and mask of a range, in the form of an IPv4-mapped or an IPv6 address.
pub fn range_words(range: &IpNet) -> (Ip, Ip) {
    let bits = range_bits(range);
    let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
    (
        Ip::from(range.network()),
        Ip::from(std::net::Ipv6Addr::from(mask)),
    )
}

/// A range as the map `POD_RANGES` has it.
pub fn range_key(range: &IpNet) -> RangeKey {
    RangeKey {
        prefix_len: range_bits(range),
        address: Ip::from(range.network()),
    }
}

fn range_bits(range: &IpNet) -> u32 {
    u32::from(range.prefix_len()) + if range.addr().is_ipv4() { 96 } else { 0 }
}
