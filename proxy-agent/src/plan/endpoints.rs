//! Chooses the endpoints of a service port that this node uses.
//!
//! These are the ready endpoints. If there is none, they are those that still serve while they terminate; if
//! there is none of those, the node uses no endpoint. `publishNotReadyAddresses` makes all endpoints usable.
//!
//! Under policy Local the rule applies to the endpoints of this node. Under policy Cluster, topology hints
//! may narrow the choice, first by node, then by zone (KEP-2433, KEP-3015). Hints count only if every ready
//! endpoint carries them and one of them names this node or zone.
//!
//! Endpoints that serve but are not used keep their connections: they *drain*. Endpoints that a policy
//! excludes do not.

use proxy_common::maps::BackendState;

use crate::cluster::{Conditions, MergedEndpoint, Names, Placement, Symbol};

/// The input of a choice besides the endpoints.
#[derive(Debug, Clone, Copy)]
pub struct Locality {
    /// This node's name, if an object mentions it.
    pub node: Option<Symbol>,
    /// This node's zone, if an object mentions it.
    pub zone: Option<Symbol>,
}

/// The policy of a service port.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Whether only endpoints of this node are usable.
    pub local: bool,
    /// Whether endpoints are usable before they are ready.
    pub publish_not_ready: bool,
}

/// The use of each endpoint: for new flows with a state, for a drain, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// New flows go to the endpoint.
    New(BackendState),
    /// Established flows may continue.
    Drain,
    /// No flow reaches the endpoint.
    Not,
}

/// Decides about every endpoint, in their order. The flag says that endpoints exist, but policy Local leaves
/// none.
pub fn choose(
    endpoints: &[MergedEndpoint],
    names: &Names,
    locality: Locality,
    policy: Policy,
) -> (Vec<Use>, bool) {
    let ready = |conditions: Conditions| policy.publish_not_ready || conditions.ready();
    let fallback = |conditions: Conditions| conditions.serving() && conditions.terminating();
    let is_local = |endpoint: &MergedEndpoint| {
        let node = names.placement(endpoint.placement).node;
        node.is_some() && node == locality.node
    };
    let in_policy = |endpoint: &MergedEndpoint| !policy.local || is_local(endpoint);
    let any_ready = endpoints
        .iter()
        .any(|endpoint| in_policy(endpoint) && ready(endpoint.conditions));
    let hints = if policy.local || !any_ready {
        Hints::None
    } else {
        let placements = endpoints.iter().filter(|endpoint| ready(endpoint.conditions));
        Hints::find(
            &placements.map(|endpoint| names.placement(endpoint.placement)),
            locality,
        )
    };
    let mut usable_anywhere = false;
    let mut any_used = false;
    let uses = endpoints
        .iter()
        .map(|endpoint| {
            let conditions = endpoint.conditions;
            let candidate = if any_ready {
                ready(conditions)
            } else {
                fallback(conditions)
            };
            usable_anywhere |= ready(conditions) || fallback(conditions);
            if candidate && in_policy(endpoint) && hints.allow(names.placement(endpoint.placement)) {
                any_used = true;
                let state = if ready(conditions) {
                    BackendState::Active
                } else {
                    BackendState::LastResort
                };
                Use::New(state)
            } else if in_policy(endpoint) && (ready(conditions) || conditions.serving()) {
                Use::Drain
            } else {
                Use::Not
            }
        })
        .collect();
    (uses, policy.local && !any_used && usable_anywhere)
}

/// The topology hints that are in force.
enum Hints {
    None,
    Node(Symbol),
    Zone(Symbol),
}

impl Hints {
    fn find<'a>(ready: &(impl Iterator<Item = &'a Placement> + Clone), locality: Locality) -> Self {
        if let Some(node) = locality.node
            && ready.clone().all(|placement| !placement.for_nodes.is_empty())
            && ready.clone().any(|placement| placement.for_nodes.contains(&node))
        {
            return Self::Node(node);
        }
        if let Some(zone) = locality.zone
            && ready.clone().all(|placement| !placement.for_zones.is_empty())
            && ready.clone().any(|placement| placement.for_zones.contains(&zone))
        {
            return Self::Zone(zone);
        }
        Self::None
    }

    fn allow(&self, placement: &Placement) -> bool {
        match self {
            Self::None => true,
            Self::Node(node) => placement.for_nodes.contains(node),
            Self::Zone(zone) => placement.for_zones.contains(zone),
        }
    }
}
