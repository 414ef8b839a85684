//! The plan of one service: its frontends, and what each of them leads to.
//!
//! A *group* is one service port in one family: its frontends share one slice of backends and one service id.

use proxy_common::maps::{BackendState, FrontendKey};
use proxy_common::{Ip, Port};
use smallvec::SmallVec;

use super::endpoints::{Locality, Policy, Use, choose};
use crate::cluster::{ClusterState, Family, Merged, Symbol};
use crate::source::ObjectId;

/// What a plan depends on besides the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeContext {
    /// This node's name.
    pub name: String,
    /// This node's zone.
    pub zone: Option<String>,
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

/// One service port in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// What clients address.
    pub frontends: SmallVec<[FrontendKey; 1]>,
    /// The port's name.
    pub port_name: Symbol,
    /// Backends of new flows.
    pub active: Vec<Target>,
    /// Backends that only keep what they have.
    pub draining: Vec<Target>,
    /// Endpoints exist, but policy Local leaves none on this node.
    pub local_only: bool,
}

/// What a service should look like in the tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// The groups.
    pub groups: Vec<Group>,
    /// What is odd about it.
    pub remarks: Vec<String>,
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
    let policy = Policy {
        local: service.internal_local,
        publish_not_ready: service.publish_not_ready,
    };
    for address in service.cluster_ips() {
        let family = Family::of(address);
        for port in &service.ports {
            let Merged {
                endpoints,
                disagreements,
            } = cluster.endpoints_of(id, family, port);
            let (uses, local_only) = choose(&endpoints, names, locality, policy);
            let key = FrontendKey::new(address.into(), Port::new(port.port), port.protocol.number());
            let mut group = Group {
                frontends: SmallVec::from_buf([key]),
                port_name: port.name,
                active: Vec::with_capacity(endpoints.len()),
                draining: Vec::new(),
                local_only,
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
            plan.groups.push(group);
            plan.remarks.extend(disagreements);
        }
    }
    plan
}
