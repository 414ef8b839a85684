//! An EndpointSlice: some of the endpoints of one Service in one address family.
//!
//! A Service's endpoints are spread over any number of slices, so a slice alone does not describe the
//! Service; `merge.rs` merges them. A port or endpoint that cannot be served is reported and left out, and
//! the others stay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use compact_str::CompactString;
use smallvec::SmallVec;

use super::address::{Family, canonical_ip};
use super::endpoint::{Endpoint, Endpoints};
use super::external::unfit;
use super::interner::Symbol;
use super::names::{Names, Placement};
use super::port::{Protocol, read_port};
use super::problems::Findings;
use crate::source::wire;

/// A slice of IPv4 or IPv6 addresses; one of host names (`FQDN`) does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The name; its namespace is the Service's.
    pub name: CompactString,
    /// The ports that every endpoint of the slice has.
    pub ports: SmallVec<[EndpointPort; 2]>,
    /// The endpoints, all of one family.
    pub endpoints: Endpoints,
}

/// A port of all endpoints of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The name of the port in the Service.
    pub name: Symbol,
    /// The port that packets are sent to.
    pub port: u16,
    /// The protocol of the port.
    pub protocol: Protocol,
}

impl EndpointSlice {
    /// Releases the uses that [`EndpointSlice::read`] acquired.
    pub(super) fn release(&self, names: &mut Names) {
        for port in &self.ports {
            names.release(port.name);
        }
        for endpoint in self.endpoints.iter() {
            names.release_placement(endpoint.placement);
        }
    }

    /// Reads a slice; `None` if it does not count.
    pub(super) fn read(
        wire: &wire::EndpointSlice,
        names: &mut Names,
        findings: &mut Findings,
    ) -> Option<Self> {
        let family = match wire.address_type.as_deref() {
            Some("IPv4") => Family::V4,
            Some("IPv6") => Family::V6,
            Some("FQDN") => return None,
            other => {
                let other = other.unwrap_or_default();
                findings.add(|| {
                    format!("addressType: {other:?} is none of IPv4, IPv6, FQDN; the slice is left out")
                });
                return None;
            }
        };
        let ports = read_ports(wire, names, findings);
        let endpoints = match family {
            Family::V4 => Endpoints::V4(read_endpoints::<Ipv4Addr>(wire, names, findings)),
            Family::V6 => Endpoints::V6(read_endpoints::<Ipv6Addr>(wire, names, findings)),
        };
        Some(Self {
            name: wire.metadata.name.clone(),
            ports,
            endpoints,
        })
    }
}

fn read_ports(
    wire: &wire::EndpointSlice,
    names: &mut Names,
    findings: &mut Findings,
) -> SmallVec<[EndpointPort; 2]> {
    let mut ports = SmallVec::<[EndpointPort; 2]>::new();
    for (i, wire) in wire.ports.iter().flatten().enumerate() {
        let field = || format!("ports[{i}]");
        let Some(protocol) = Protocol::read(wire.protocol.as_deref(), findings, field) else {
            continue;
        };
        let Some(port) = read_port(wire.port, findings, field) else {
            continue;
        };
        let name = names.intern(wire.name.as_deref().unwrap_or_default());
        ports.push(EndpointPort { name, port, protocol });
    }
    ports.shrink_to_fit();
    ports
}

/// An address type of one family.
trait Address: Copy + Into<IpAddr> {
    const FAMILY: Family;

    fn of(address: IpAddr) -> Option<Self>;
}

impl Address for Ipv4Addr {
    const FAMILY: Family = Family::V4;

    fn of(address: IpAddr) -> Option<Self> {
        if let IpAddr::V4(address) = address {
            Some(address)
        } else {
            None
        }
    }
}

impl Address for Ipv6Addr {
    const FAMILY: Family = Family::V6;

    fn of(address: IpAddr) -> Option<Self> {
        if let IpAddr::V6(address) = address {
            Some(address)
        } else {
            None
        }
    }
}

fn read_endpoints<A: Address>(
    wire: &wire::EndpointSlice,
    names: &mut Names,
    findings: &mut Findings,
) -> Box<[Endpoint<A>]> {
    let listed = wire.endpoints.as_deref().unwrap_or_default();
    let mut endpoints = Vec::with_capacity(listed.len());
    for (i, endpoint) in listed.iter().enumerate() {
        match read_address(endpoint) {
            Ok(address) => {
                let conditions = endpoint.conditions.unwrap_or_default().into();
                endpoints.push(Endpoint {
                    address,
                    placement: read_placement(endpoint, names),
                    conditions,
                });
            }
            Err(message) => {
                findings.add(|| format!("endpoints[{i}].addresses{message}; the endpoint is left out"));
            }
        }
    }
    endpoints.into_boxed_slice()
}

/// The endpoint's address, or the error. Bad endpoints are rare enough for a message each.
fn read_address<A: Address>(endpoint: &wire::Endpoint) -> Result<A, String> {
    // Further addresses mean the same endpoint; kube-proxy uses the first too.
    let text = endpoint.addresses.iter().flatten().next().ok_or(": empty")?;
    let address = canonical_ip(text).ok_or_else(|| format!("[0]: {text:?} is not an address"))?;
    let Some(right) = A::of(address) else {
        let (is, of) = (Family::of(address).name(), A::FAMILY.name());
        return Err(format!("[0]: {address} is {is} in a slice of addressType {of}"));
    };
    if let Some(what) = unfit(address) {
        return Err(format!("[0]: {address} is {what} and can be no endpoint's"));
    }
    Ok(right)
}

fn read_placement(endpoint: &wire::Endpoint, names: &mut Names) -> Symbol {
    let mut name = |text: &Option<wire::Text>| {
        let text = text.as_deref().filter(|text| !text.is_empty())?;
        Some(names.intern(text))
    };
    let (node, zone) = (name(&endpoint.node_name), name(&endpoint.zone));
    let mut list = |hints: Option<&Vec<wire::Named>>| -> Box<[Symbol]> {
        hints
            .into_iter()
            .flatten()
            .map(|hint| names.intern(&hint.name))
            .collect()
    };
    let hints = endpoint.hints.as_ref();
    let for_zones = list(hints.and_then(|hints| hints.for_zones.as_ref()));
    let for_nodes = list(hints.and_then(|hints| hints.for_nodes.as_ref()));
    names.intern_placement(Placement {
        node,
        zone,
        for_zones,
        for_nodes,
    })
}
