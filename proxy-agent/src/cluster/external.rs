//! The external side of a Service: its node ports, its load balancer's addresses, and the external IPs that
//! the cluster's operator routes to the nodes.
//!
//! This module refuses an address that would divert traffic of the node itself or of its neighbours
//! (loopback, link-local, multicast, 0.0.0.0/8). `plan` refuses cluster IPs and addresses in the cluster's
//! own ranges, which are known only later.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::address::{Family, canonical_ip, canonical_net};
use super::problems::Findings;
use super::service::ServicePort;
use crate::source::wire;

/// The external side of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct External {
    /// Clients from outside reach only endpoints of the node that receives their packets, and keep their
    /// source address.
    pub local: bool,
    /// The addresses of `spec.externalIPs`.
    pub external_ips: SmallVec<[IpAddr; 1]>,
    /// The addresses of `status.loadBalancer.ingress`, without those whose balancer is a proxy.
    pub load_balancer_ips: SmallVec<[IpAddr; 1]>,
    /// The clients whose packets to the load balancer's addresses are let through; `None` for all clients.
    pub source_ranges: Option<SourceRanges>,
    /// The port at which a load balancer checks the health of this node's endpoints, or 0.
    pub health_check_node_port: u16,
}

/// The ranges of `spec.loadBalancerSourceRanges`: ranges of one family mean nothing to clients of the other.
///
/// A range lets through every client that it contains. So ranges inside others are left out, and adjacent
/// ranges become one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceRanges {
    v4: Arc<[IpNet]>,
    v6: Arc<[IpNet]>,
}

impl SourceRanges {
    /// The fewest ranges that contain the same addresses.
    pub fn new(ranges: &Vec<IpNet>) -> Self {
        let mut ranges = IpNet::aggregate(ranges);
        // The order of the table's keys: family, prefix length, address.
        ranges.sort_unstable_by_key(|range| (range.addr().is_ipv6(), range.prefix_len(), range.network()));
        let (v4, v6) = ranges.split_at(ranges.partition_point(|range| range.addr().is_ipv4()));
        Self {
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    /// The ranges of one family, by prefix length and then by address.
    pub const fn of(&self, family: Family) -> &Arc<[IpNet]> {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl External {
    /// The external addresses of the Service, besides those of nodes.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.external_ips.iter().chain(&self.load_balancer_ips).copied()
    }

    /// Reads the fields for clients from outside; `None` if the Service is not reached from there.
    pub(super) fn read(
        spec: &wire::ServiceSpec,
        status: Option<&wire::ServiceStatus>,
        ports: &[ServicePort],
        findings: &mut Findings,
    ) -> Option<Self> {
        let external_ips = read_external_ips(spec, findings);
        let load_balancer_ips = read_load_balancer_ips(status, findings);
        let has_node_port = ports.iter().any(|port| port.node_port != 0);
        if external_ips.is_empty() && load_balancer_ips.is_empty() && !has_node_port {
            return None;
        }
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        Some(Self {
            local,
            external_ips,
            load_balancer_ips,
            source_ranges: read_source_ranges(spec, findings),
            health_check_node_port: if local {
                read_health_check_port(spec, findings)
            } else {
                0
            },
        })
    }
}

fn read_external_ips(spec: &wire::ServiceSpec, findings: &mut Findings) -> SmallVec<[IpAddr; 1]> {
    let mut addresses = SmallVec::new();
    for (i, text) in spec.external_ips.iter().flatten().enumerate() {
        read_address(text, &mut addresses, findings, || {
            format!("spec.externalIPs[{i}]")
        });
    }
    addresses
}

fn read_load_balancer_ips(
    status: Option<&wire::ServiceStatus>,
    findings: &mut Findings,
) -> SmallVec<[IpAddr; 1]> {
    let ingress = status
        .and_then(|status| status.load_balancer.as_ref())
        .and_then(|balancer| balancer.ingress.as_deref());
    let mut addresses = SmallVec::new();
    for (i, ingress) in ingress.unwrap_or_default().iter().enumerate() {
        // KEP-1860: packets go to the balancer itself, which sends them on to a node's address.
        let is_proxy = ingress.ip_mode.as_deref() == Some("Proxy");
        if let Some(text) = ingress.ip.as_deref().filter(|text| !text.is_empty() && !is_proxy) {
            let field = || format!("status.loadBalancer.ingress[{i}].ip");
            read_address(text, &mut addresses, findings, field);
        }
    }
    addresses
}

fn read_address(
    text: &str,
    addresses: &mut SmallVec<[IpAddr; 1]>,
    findings: &mut Findings,
    field: impl Fn() -> String,
) {
    match canonical_ip(text) {
        Some(address) => match unfit(address) {
            None if addresses.contains(&address) => {}
            None => addresses.push(address),
            Some(kind) => findings.add(|| {
                format!(
                    "{}: {address} is {kind} and can be no service's; it is left out",
                    field()
                )
            }),
        },
        None => findings.add(|| format!("{}: {text:?} is not an address; it is left out", field())),
    }
}

/// The kind of an address that no service may have, for the message.
pub(super) fn unfit(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let in_zero_net =
        matches!(address, IpAddr::V4(address) if address.octets()[0] == 0 || address.is_broadcast());
    if address.is_loopback() {
        Some("a loopback address")
    } else if link_local {
        Some("a link-local address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address.is_unspecified() || in_zero_net {
        Some("no host's address")
    } else {
        None
    }
}

fn read_source_ranges(spec: &wire::ServiceSpec, findings: &mut Findings) -> Option<SourceRanges> {
    let listed = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    if listed.is_empty() {
        return None;
    }
    let mut ranges = Vec::with_capacity(listed.len());
    for (i, text) in listed.iter().enumerate() {
        match canonical_net(text) {
            Some(range) => ranges.push(range),
            None => findings.add(|| {
                let field = format!("spec.loadBalancerSourceRanges[{i}]");
                format!("{field}: {text:?} is not an address range; it is left out, and allows no client")
            }),
        }
    }
    Some(SourceRanges::new(&ranges))
}

fn read_health_check_port(spec: &wire::ServiceSpec, findings: &mut Findings) -> u16 {
    let port = spec.health_check_node_port.unwrap_or(0);
    u16::try_from(port).unwrap_or_else(|_| {
        findings.add(|| {
            format!("spec.healthCheckNodePort: {port} is outside 1–65535; the node's health is not reported")
        });
        0
    })
}
