//! The plan of one service: its frontends, and what each of them leads to.
//!
//! A *group* is one service port in one family under one policy: its frontends share one slice of backends and one
//! service id.

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

/// What a plan depends on besides the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeContext {
    /// This node's name.
    pub name: String,
    /// This node's zone.
    pub zone: Option<String>,
    /// The node's addresses that node ports are served on.
    pub node_port_addresses: Vec<IpAddr>,
    /// Whether `spec.externalIPs` are served.
    pub external_ips: bool,
    /// Ranges of pods and of cluster IPs, in which no address from outside may lie.
    pub cluster_ranges: Vec<IpNet>,
    /// Addresses on links of the node that are no host's, such as those for broadcast.
    pub no_hosts: Vec<IpAddr>,
    /// Where API servers are reached: no frontend from outside may stand there.
    pub api_servers: BTreeSet<SocketAddr>,
    /// The UDP port of the nodes' tunnels, if there may be any.
    pub tunnel_port: Option<u16>,
}

/// Where a backend listens, and what it may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Address.
    pub address: Ip,
    /// Port.
    pub port: Port,
    /// State.
    pub state: BackendState,
    /// The node it stands on, where the slice says.
    pub node: Option<Symbol>,
}

/// One service port in one family under one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What clients address.
    pub frontends: Frontends,
    /// The port's name.
    pub port_name: Symbol,
    /// Whether only endpoints of this node are used.
    pub local: bool,
    /// Backends of new flows.
    pub active: Vec<Target>,
    /// Backends that only keep what they have.
    pub draining: Vec<Target>,
    /// Flags that all of its frontends have, see [`FrontendFlags`].
    pub flags: u16,
    /// For how many seconds a client stays with its backend, or 0.
    pub affinity_seconds: u32,
    /// Whose packets frontends with [`FrontendFlags::SOURCE_RANGES`] let through.
    pub source_ranges: Arc<[IpNet]>,
}

/// What a service should look like in the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// The groups.
    pub groups: Vec<Group>,
    /// What is odd about it.
    pub remarks: Vec<Remark>,
}

/// The context of a service that leads to the API servers themselves, as a balancer in front of them does: it
/// may have their address and port.
fn leads_to_api_servers(endpoints: &[MergedEndpoint], node: &NodeContext) -> Option<NodeContext> {
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

/// Plans a service; an empty plan if it is not there.
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
            let open = leads_to_api_servers(&merged.endpoints, node);
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
