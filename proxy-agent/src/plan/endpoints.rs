//! Which endpoints of a service port are used on this node.
//!
//! The ready ones; if there is none, those that still serve while they terminate; if there is none of those either,
//! nothing. `publishNotReadyAddresses` makes all usable. Under policy Local the rule is applied to the endpoints of this
//! node; under policy Cluster topology hints may narrow the choice, first by node, then by zone (KEP-2433, KEP-3015):
//! hints count only if every ready endpoint carries them and one of them names us.
//!
//! Endpoints that serve but are not used keep what they have: they *drain*. Those that a policy keeps away are not among
//! them.

use proxy_common::maps::BackendState;

use crate::cluster::{Conditions, MergedEndpoint, Names, Placement, Symbol};

/// What a choice depends on besides the endpoints.
#[derive(Debug, Clone, Copy)]
pub struct Locality {
    /// This node's name, where any object mentions it.
    pub node: Option<Symbol>,
    /// This node's zone, where any object mentions it.
    pub zone: Option<Symbol>,
}

/// How a service port chooses.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Only endpoints of this node.
    pub local: bool,
    /// Endpoints are usable whether they are ready or not.
    pub publish_not_ready: bool,
}

/// What becomes of each endpoint: its state if new flows use it, or if it drains; nothing if it is not to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// New flows go there.
    New(BackendState),
    /// Established flows may go on.
    Drain,
    /// Not reachable.
    Not,
}

/// Decides about every endpoint, in their order; the flag says that endpoints exist, but policy Local leaves none.
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

/// Which topology hints are in force.
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
