//! An EndpointSlice: some of the endpoints of one Service in one address family.
//!
//! A Service's endpoints are spread over any number of slices, so a slice alone says nothing about the Service; merging is
//! in `merge.rs`. Conditions that are not given have the defaults of `discovery.k8s.io/v1`: ready and serving, not terminating.

use std::net::{IpAddr, Ipv6Addr};

use compact_str::CompactString;
use smallvec::SmallVec;

use super::address::{Family, canonical_ip};
use super::interner::Symbol;
use super::names::{Names, Placement};
use super::port::{Protocol, read_port};
use super::problems::Findings;
use crate::source::wire;

/// A slice that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The name; its namespace is the Service's.
    pub name: CompactString,
    /// The family of every address in it.
    pub family: Family,
    /// The ports that every endpoint of the slice has.
    pub ports: SmallVec<[EndpointPort; 2]>,
    /// The endpoints.
    pub endpoints: Box<[Endpoint]>,
}

/// A port of all endpoints of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Matches the port's name in the Service.
    pub name: Symbol,
    /// The port that packets are sent to.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// One endpoint. 24 bytes: there are a few hundred thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    // IPv4 as a mapped address.
    address: Ipv6Addr,
    /// Where it stands; see [`Names::placement`].
    pub placement: Symbol,
    /// Its state.
    pub conditions: Conditions,
}

/// An endpoint's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions(u8);

impl Conditions {
    const READY: u8 = 1;
    const SERVING: u8 = 2;
    const TERMINATING: u8 = 4;

    /// Takes new connections.
    pub const fn ready(self) -> bool {
        self.0 & Self::READY != 0
    }

    /// Able to answer, even while terminating.
    pub const fn serving(self) -> bool {
        self.0 & Self::SERVING != 0
    }

    /// On its way out.
    pub const fn terminating(self) -> bool {
        self.0 & Self::TERMINATING != 0
    }
}

impl From<wire::Conditions> for Conditions {
    fn from(wire: wire::Conditions) -> Self {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        Self(
            bit(wire.ready.unwrap_or(true), Self::READY)
                | bit(wire.serving.unwrap_or(true), Self::SERVING)
                | bit(wire.terminating.unwrap_or(false), Self::TERMINATING),
        )
    }
}

impl Endpoint {
    /// The address.
    pub const fn address(&self) -> IpAddr {
        self.address.to_canonical()
    }
}

impl EndpointSlice {
    /// Gives up the uses that [`EndpointSlice::read`] gained.
    pub(super) fn release(&self, names: &mut Names) {
        for port in &self.ports {
            names.release(port.name);
        }
        for endpoint in &self.endpoints {
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
                findings.add(|| {
                    format!(
                        "addressType: {:?} is none of IPv4, IPv6, FQDN; the slice is left out",
                        other.unwrap_or("")
                    )
                });
                return None;
            }
        };
        let ports = read_ports(wire, names, findings);
        let wire_endpoints = wire.endpoints.as_deref().unwrap_or_default();
        let mut endpoints = Vec::with_capacity(wire_endpoints.len());
        for (i, endpoint) in wire_endpoints.iter().enumerate() {
            if let Some(address) = read_address(endpoint, i, family, findings) {
                let conditions = endpoint.conditions.unwrap_or_default().into();
                endpoints.push(Endpoint {
                    address,
                    placement: read_placement(endpoint, names),
                    conditions,
                });
            }
        }
        Some(Self {
            name: wire.metadata.name.clone(),
            family,
            ports,
            endpoints: endpoints.into_boxed_slice(),
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

fn read_address(
    endpoint: &wire::Endpoint,
    i: usize,
    family: Family,
    findings: &mut Findings,
) -> Option<Ipv6Addr> {
    let Some(text) = endpoint.addresses.iter().flatten().next() else {
        findings.add(|| format!("endpoints[{i}].addresses: empty; the endpoint is left out"));
        return None;
    };
    let field = || format!("endpoints[{i}].addresses[0]");
    let Some(address) = canonical_ip(text) else {
        findings.add(|| {
            format!(
                "{}: {text:?} is not an address; the endpoint is left out",
                field()
            )
        });
        return None;
    };
    if Family::of(address) != family {
        findings.add(|| {
            let (is, of) = (Family::of(address).name(), family.name());
            format!(
                "{}: {address} is {is} in a slice of addressType {of}; the endpoint is left out",
                field()
            )
        });
        return None;
    }
    if address.is_unspecified() || address.is_multicast() {
        findings.add(|| {
            format!(
                "{}: {address} is no host's address; the endpoint is left out",
                field()
            )
        });
        return None;
    }
    Some(match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    })
}

fn read_placement(endpoint: &wire::Endpoint, names: &mut Names) -> Symbol {
    let node = endpoint
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .map(|name| names.intern(name));
    let zone = endpoint
        .zone
        .as_deref()
        .filter(|name| !name.is_empty())
        .map(|name| names.intern(name));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_that_are_not_given_have_kubernetes_defaults() {
        let read = |ready, serving, terminating| {
            let conditions = Conditions::from(wire::Conditions {
                ready,
                serving,
                terminating,
            });
            (conditions.ready(), conditions.serving(), conditions.terminating())
        };
        assert_eq!(read(None, None, None), (true, true, false));
        assert_eq!(read(Some(false), None, None), (false, true, false));
        assert_eq!(read(Some(false), Some(true), Some(true)), (false, true, true));
        assert_eq!(read(Some(true), Some(false), Some(false)), (true, false, false));
    }

    #[test]
    fn an_endpoint_is_small() {
        assert_eq!(size_of::<Endpoint>(), 24);
    }
}
