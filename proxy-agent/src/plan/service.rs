//! The plan of one service: its frontends, and the backends of each.
//!
//! A *group* is one service port in one family under one policy: its frontends share one slice of backends
//! and one service id.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::maps::{BackendState, FrontendFlags};
use proxy_common::{Ip, Port};

use super::endpoints::{Locality, Policy, Use, choose};
use super::frontends::{Frontends, frontends};
use super::source_ranges;
use crate::cluster::{ClusterState, Family, MergedEndpoint, Names, Service, Symbol};
use crate::source::ObjectId;
use crate::trouble::{Remark, Trouble};

/// The input of a plan besides the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeContext {
    /// The name of this node.
    pub name: String,
    /// The zone of this node.
    pub zone: Option<String>,
    /// The node's addresses that serve node ports.
    pub node_port_addresses: Vec<IpAddr>,
    /// Whether the node serves `spec.externalIPs`.
    pub external_ips: bool,
    /// Ranges of pods and of cluster IPs, in which no external address may lie.
    pub cluster_ranges: Vec<IpNet>,
    /// Addresses on links of the node that no host has, such as broadcast addresses.
    pub no_hosts: Vec<IpAddr>,
    /// The addresses and ports of API servers, which no external frontend may have.
    pub api_servers: BTreeSet<SocketAddr>,
    /// The UDP port of the nodes' tunnels, if there may be any.
    pub tunnel_port: Option<u16>,
}

/// The address and port of a backend, and its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The IP address of the backend.
    pub address: Ip,
    /// The port of the backend.
    pub port: Port,
    /// The state of the backend.
    pub state: BackendState,
    /// The node of the backend, if the slice names it.
    pub node: Option<Symbol>,
}

/// One service port in one family under one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The frontends of the group.
    pub frontends: Frontends,
    /// The name of the port.
    pub port_name: Symbol,
    /// Whether the group uses only endpoints of this node.
    pub local: bool,
    /// The backends of new flows.
    pub active: Vec<Target>,
    /// The backends that only keep their connections.
    pub draining: Vec<Target>,
    /// The flags that all frontends of the group have, see [`FrontendFlags`].
    pub flags: u16,
    /// The time for which a client keeps its backend, in seconds; 0 without affinity.
    pub affinity_seconds: u32,
    /// The clients that frontends with [`FrontendFlags::SOURCE_RANGES`] accept.
    pub source_ranges: Arc<[IpNet]>,
}

/// The wanted state of a service in the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// The groups of the service.
    pub groups: Vec<Group>,
    /// The faults of the service, for its owner.
    pub remarks: Vec<Remark>,
}

/// The context of a service that leads to the API servers themselves, such as a balancer in front of them.
/// Such a service may have their address and port.
fn api_server_context(endpoints: &[MergedEndpoint], node: &NodeContext) -> Option<NodeContext> {
    let is_server = |endpoint: &MergedEndpoint| {
        let mut servers = node.api_servers.iter();
        servers.any(|server| server.ip() == endpoint.address)
    };
    (!node.api_servers.is_empty() && !endpoints.is_empty() && endpoints.iter().all(is_server)).then(|| {
        NodeContext {
            api_servers: BTreeSet::new(),
            ..node.clone()
        }
    })
}

/// Plans a service; the plan is empty if the service does not exist.
pub fn plan(cluster: &ClusterState, id: ObjectId, node: &NodeContext) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let Some(service) = cluster.service(id) else {
        return plan;
    };
    let names = cluster.names();
    let locality = Locality {
        node: names.find(&node.name),
        zone: node.zone.as_deref().and_then(|zone| names.find(zone)),
    };
    for address in service.cluster_ips() {
        let family = Family::of(address);
        for port in &service.ports {
            let merged = cluster.endpoints_of(id, family, port);
            let open = api_server_context(&merged.endpoints, node);
            let node = open.as_ref().unwrap_or(node);
            let found = frontends(cluster, service, port, address, node, &mut plan.remarks);
            for (frontends, local) in [(found.cluster, false), (found.local, true)] {
                if !frontends.is_empty() {
                    let source_ranges = source_ranges::of(service, family, &frontends);
                    plan.groups.push(Group {
                        source_ranges,
                        ..group(
                            service,
                            port.name,
                            frontends,
                            &merged.endpoints,
                            local,
                            names,
                            locality,
                        )
                    });
                }
            }
            let disagreements = merged.disagreements.into_iter();
            plan.remarks
                .extend(disagreements.map(|message| Remark::new(Trouble::EndpointsInvalid, message)));
        }
    }
    source_ranges::keep_to_share(&mut plan);
    plan
}

fn group(
    service: &Service,
    port_name: Symbol,
    frontends: Frontends,
    endpoints: &[MergedEndpoint],
    local: bool,
    names: &Names,
    locality: Locality,
) -> Group {
    let policy = Policy {
        local,
        publish_not_ready: service.publish_not_ready,
    };
    let (uses, local_only) = choose(endpoints, names, locality, policy);
    let flag = |set: bool, flag: u32| if set { flag as u16 } else { 0 };
    let mut group = Group {
        frontends,
        port_name,
        local,
        active: Vec::with_capacity(endpoints.len()),
        draining: Vec::new(),
        flags: flag(local_only, FrontendFlags::LOCAL_ONLY)
            | flag(service.affinity_seconds > 0, FrontendFlags::AFFINITY)
            | flag(service.reset_removed, FrontendFlags::RESET_REMOVED),
        affinity_seconds: service.affinity_seconds,
        source_ranges: Arc::default(),
    };
    for (endpoint, usage) in endpoints.iter().zip(uses) {
        let target = |state| Target {
            address: endpoint.address.into(),
            port: Port::new(endpoint.port),
            state,
            node: names.placement(endpoint.placement).node,
        };
        match usage {
            Use::New(state) => group.active.push(target(state)),
            Use::Drain => group.draining.push(target(BackendState::Terminating)),
            Use::Not => {}
        }
    }
    group
}
