//! The addresses and ports of one service port, with the clients that each is for.
//!
//! A service port has two sets of backends: those of policy Cluster, and those of policy Local. A frontend
//! leads to one of them, which depends on the kind of its address, the policy of that kind, and the client.
//! Under `externalTrafficPolicy: Local`, pods of this node and the node itself reach all endpoints. Only
//! clients from outside are limited to the endpoints of this node.
//!
//! A service that is left to the node has no frontend at its cluster IPs; its external addresses are
//! frontends as usual.
//!
//! An external address is refused if it is a cluster IP, or lies in a range of pods or cluster IPs. It would
//! take the cluster's own traffic. The port of an API server at its address is refused too, since the agent
//! itself depends on it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_common::Port;
use proxy_common::maps::{FrontendFlags, FrontendKey, FrontendKind, Scope};
use smallvec::SmallVec;

use super::service::NodeContext;
use crate::cluster::{ClusterState, External, Family, Protocol, Service, ServicePort};
use crate::trouble::{Remark, Trouble};

/// One frontend of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedFrontend {
    /// The address, port, protocol and scope that clients send to.
    pub key: FrontendKey,
    /// Flags that only this frontend has, see [`FrontendFlags`].
    pub flags: u16,
}

impl PlannedFrontend {
    fn new(address: IpAddr, port: u16, service_port: &ServicePort, scope: Scope, flags: u32) -> Self {
        let key = FrontendKey::new(address.into(), Port::new(port), service_port.protocol.number());
        Self {
            key: FrontendKey {
                scope: scope as u8,
                ..key
            },
            flags: flags as u16,
        }
    }

    /// The kind of the service's address.
    pub fn kind(&self) -> FrontendKind {
        FrontendFlags(u32::from(self.flags)).kind()
    }

    /// Whether the frontend is listed for people. The loopback frontend of a node port is not, since it comes
    /// with the node port. Of two views only the one from outside is.
    pub fn is_listed(&self) -> bool {
        let flags = FrontendFlags(u32::from(self.flags));
        !self.key.address.is_loopback() && !flags.has(FrontendFlags::OUTSIDE_DIFFERS)
    }
}

/// Frontends of a group; most have one.
pub type Frontends = SmallVec<[PlannedFrontend; 1]>;

/// The frontends of a service port in one family, by their set of backends.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ByPolicy {
    /// The frontends that lead to all usable endpoints.
    pub cluster: Frontends,
    /// The frontends that lead to endpoints of this node.
    pub local: Frontends,
}

/// The frontends of a port, and remarks about addresses that are refused.
pub fn frontends(
    cluster: &ClusterState,
    service: &Service,
    port: &ServicePort,
    cluster_ip: IpAddr,
    node: &NodeContext,
    remarks: &mut Vec<Remark>,
) -> ByPolicy {
    let mut found = ByPolicy::default();
    let internal = PlannedFrontend::new(cluster_ip, port.port, port, Scope::Any, 0);
    let of_policy = if service.internal_local {
        &mut found.local
    } else {
        &mut found.cluster
    };
    of_policy.extend(Some(internal).filter(|_| !service.left_to_node));
    if let Some(external) = service.external.as_deref() {
        add_external(
            cluster,
            external,
            port,
            Family::of(cluster_ip),
            node,
            &mut found,
            remarks,
        );
    }
    found
}

fn add_external(
    cluster: &ClusterState,
    external: &External,
    port: &ServicePort,
    family: Family,
    node: &NodeContext,
    found: &mut ByPolicy,
    remarks: &mut Vec<Remark>,
) {
    let mut add = |address: IpAddr, number: u16, kind: FrontendKind, flags: u32| {
        let flags = flags | FrontendFlags::of_kind(kind);
        let from_anywhere = PlannedFrontend::new(address, number, port, Scope::Any, flags);
        let is_known = |known: &PlannedFrontend| known.key == from_anywhere.key;
        if found.cluster.iter().chain(&found.local).any(is_known) {
            return;
        }
        if external.local {
            let inside = PlannedFrontend::new(
                address,
                number,
                port,
                Scope::Any,
                flags | FrontendFlags::OUTSIDE_DIFFERS,
            );
            let outside = PlannedFrontend::new(
                address,
                number,
                port,
                Scope::Outside,
                flags | FrontendFlags::KEEP_SOURCE,
            );
            found.cluster.push(inside);
            found.local.push(outside);
        } else {
            found.cluster.push(from_anywhere);
        }
    };
    let of_family = |address: &&IpAddr| Family::of(**address) == family;
    if port.node_port != 0 {
        for address in node.node_port_addresses.iter().filter(of_family) {
            let at = SocketAddr::new(*address, port.node_port);
            match remark_on_api_server(node, at, port.protocol, "spec.ports.nodePort") {
                None => add(*address, port.node_port, FrontendKind::NodePort, 0),
                Some(remark) => remarks.push(remark),
            }
        }
    }
    let ranges = if external.source_ranges.is_some() {
        FrontendFlags::SOURCE_RANGES
    } else {
        0
    };
    let mut refused = |address: &IpAddr, field: &str| {
        let remark = why_refused(cluster, node, address)
            .map(|why| {
                let message = format!("{field}: {address} {why}; it is left out");
                Remark::new(Trouble::AddressRefused, message)
            })
            .or_else(|| {
                let at = SocketAddr::new(*address, port.port);
                remark_on_api_server(node, at, port.protocol, field)
                    .or_else(|| remark_on_tunnel(cluster, node, at, port.protocol, field))
            });
        let is_refused = remark.is_some();
        remarks.extend(remark.filter(|remark| !remarks.contains(remark)));
        is_refused
    };
    for address in external.load_balancer_ips.iter().filter(of_family) {
        if !refused(address, "status.loadBalancer.ingress") {
            add(*address, port.port, FrontendKind::LoadBalancer, ranges);
        }
    }
    if node.external_ips {
        for address in external.external_ips.iter().filter(of_family) {
            if !refused(address, "spec.externalIPs") {
                add(*address, port.port, FrontendKind::ExternalIp, 0);
            }
        }
    }
    if port.node_port != 0 {
        let loopback = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        };
        let flags = FrontendFlags::of_kind(FrontendKind::NodePort);
        found.cluster.push(PlannedFrontend::new(
            loopback,
            port.node_port,
            port,
            Scope::Any,
            flags,
        ));
    }
}

/// The remark about a frontend that would take the agent's packets to an API server.
fn remark_on_api_server(
    node: &NodeContext,
    at: SocketAddr,
    protocol: Protocol,
    field: &str,
) -> Option<Remark> {
    let is_taken = protocol == Protocol::Tcp && node.api_servers.contains(&at);
    is_taken.then(|| {
        let (address, port) = (at.ip(), at.port());
        let message = format!(
            "{field}: an API server of this cluster is at {address} port {port}; this port is left out there, and goes \
             where it went before. Give the service another address or port"
        );
        Remark::new(Trouble::AddressRefused, message)
    })
}

/// The remark about a frontend that would take a node's tunnel packets to another node.
fn remark_on_tunnel(
    cluster: &ClusterState,
    node: &NodeContext,
    at: SocketAddr,
    protocol: Protocol,
    field: &str,
) -> Option<Remark> {
    if protocol != Protocol::Udp || node.tunnel_port != Some(at.port()) {
        return None;
    }
    let owner = cluster.nodes().find(|node| {
        let mut all = node.addresses.iter().chain(&node.other_addresses);
        all.any(|address| *address == at.ip())
    })?;
    let message = format!(
        "{field}: {} is an address of Node {}, and port {} is the one of the nodes' tunnels; this port is left out \
         there. Give the service another address or port",
        at.ip(),
        owner.name,
        at.port(),
    );
    Some(Remark::new(Trouble::AddressRefused, message))
}

/// Why an external address is refused: it would take the cluster's own traffic, or no client can use it.
/// `None` if it is accepted.
fn why_refused(cluster: &ClusterState, node: &NodeContext, address: &IpAddr) -> Option<String> {
    let range = node.cluster_ranges.iter().find(|range| range.contains(address));
    if let Some(range) = range {
        return Some(format!("lies in {range}, a range of the cluster's own"));
    }
    if node.no_hosts.contains(address) {
        let what =
            "is no host's address: on a link of this node it is for broadcast, or stands for the network";
        return Some(what.to_owned());
    }
    let owner = cluster.service_at(*address)?;
    let namespace = cluster.names().text(owner.namespace);
    Some(format!("is the cluster IP of Service {namespace}/{}", owner.name))
}
