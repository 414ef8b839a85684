//! The endpoints of a service on this node, counted for health checks and metrics.
//!
//! These functions look at one service at a time and depend on the cluster alone; the plan does not use them.

use std::collections::BTreeSet;

use crate::cluster::{ClusterState, Conditions, Endpoint, Family};
use crate::source::ObjectId;

/// How many endpoints of a service take new connections on this node. A pod with an address of each family is
/// one endpoint.
///
/// Endpoints that only serve while they terminate do not count, though they get new connections if there are
/// no better ones. A balancer should look for a better node meanwhile (KEP-1669).
pub fn local_ready(cluster: &ClusterState, id: ObjectId, node: &str) -> u32 {
    let not_ready_too = cluster
        .service(id)
        .is_some_and(|service| service.publish_not_ready);
    let counts = |conditions: Conditions| conditions.ready() || (not_ready_too && !conditions.terminating());
    let in_family = |family| {
        let local = local(cluster, id, node, family).filter(|endpoint| counts(endpoint.conditions));
        let addresses: BTreeSet<_> = local.map(|endpoint| endpoint.address).collect();
        addresses.len() as u32
    };
    in_family(Family::V4).max(in_family(Family::V6))
}

/// Whether a service has endpoints that could be used in a family, and none of them on this node.
pub fn only_elsewhere(cluster: &ClusterState, id: ObjectId, node: &str, family: Family) -> bool {
    let usable = |endpoint: &Endpoint| {
        let conditions = endpoint.conditions;
        conditions.ready() || (conditions.serving() && conditions.terminating())
    };
    let mut anywhere = of_family(cluster, id, family).filter(usable);
    anywhere.next().is_some() && !local(cluster, id, node, family).any(|endpoint| usable(&endpoint))
}

fn of_family(cluster: &ClusterState, id: ObjectId, family: Family) -> impl Iterator<Item = Endpoint> {
    let slices = cluster
        .slices_of(id)
        .filter(move |slice| slice.endpoints.family() == family);
    slices.flat_map(|slice| slice.endpoints.iter())
}

fn local<'a>(
    cluster: &'a ClusterState,
    id: ObjectId,
    node: &str,
    family: Family,
) -> impl Iterator<Item = Endpoint> + 'a {
    let names = cluster.names();
    let node = names.find(node);
    of_family(cluster, id, family)
        .filter(move |endpoint| node.is_some() && names.placement(endpoint.placement).node == node)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::Changes;
    use crate::source::{Change, Event, Kind, Object};

    fn cluster(publish_not_ready: bool, endpoints: &Value) -> ClusterState {
        let service = json!({
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "publishNotReadyAddresses": publish_not_ready},
        });
        let slice = |family: &str, endpoints: &Value| {
            json!({
                "metadata": {"name": family, "namespace": "b", "labels": {"kubernetes.io/service-name": "a"}},
                "addressType": family, "ports": [{"port": 80}], "endpoints": endpoints,
            })
        };
        let v6 = json!([{"addresses": ["fd00::1"], "nodeName": "here"}]);
        let objects = [
            Object::Service(serde_json::from_value(service).unwrap()),
            Object::EndpointSlice(serde_json::from_value(slice("IPv4", endpoints)).unwrap()),
            Object::EndpointSlice(serde_json::from_value(slice("IPv6", &v6)).unwrap()),
        ];
        let mut cluster = ClusterState::new(None);
        for object in objects {
            let event = Event::new(Instant::now(), Change::Apply(Box::new(object)));
            cluster.apply(event, &mut Changes::default());
        }
        cluster
    }

    fn endpoint(address: &str, node: &str, ready: bool, terminating: bool) -> Value {
        let conditions = json!({"ready": ready, "serving": ready || terminating, "terminating": terminating});
        json!({"addresses": [address], "nodeName": node, "conditions": conditions})
    }

    fn id() -> ObjectId {
        ObjectId::new(Kind::Service, "b", "a")
    }

    #[test]
    fn ready_endpoints_of_this_node_count_once() {
        let endpoints = json!([
            endpoint("10.0.0.1", "here", true, false),
            endpoint("10.0.0.1", "here", true, false),
            endpoint("10.0.0.2", "here", true, false),
            endpoint("10.0.0.3", "there", true, false),
            endpoint("10.0.0.4", "here", false, false),
            endpoint("10.0.0.5", "here", false, true),
        ]);
        assert_eq!(local_ready(&cluster(false, &endpoints), id(), "here"), 2);
        assert_eq!(local_ready(&cluster(true, &endpoints), id(), "here"), 3);
        assert_eq!(local_ready(&cluster(false, &endpoints), id(), "nowhere"), 0);
        let terminating = json!([endpoint("10.0.0.5", "there", false, true)]);
        assert_eq!(local_ready(&cluster(false, &terminating), id(), "there"), 0);
        // Without an IPv4 endpoint, the IPv6 endpoint counts.
        assert_eq!(local_ready(&cluster(false, &json!([])), id(), "here"), 1);
    }

    #[test]
    fn a_service_without_any_endpoint_is_not_elsewhere() {
        let elsewhere =
            |endpoints: Value, node| only_elsewhere(&cluster(false, &endpoints), id(), node, Family::V4);
        assert!(!elsewhere(json!([]), "here"));
        assert!(elsewhere(
            json!([endpoint("10.0.0.1", "there", true, false)]),
            "here"
        ));
        assert!(!elsewhere(
            json!([endpoint("10.0.0.1", "there", true, false)]),
            "there"
        ));
        let draining = json!([
            endpoint("10.0.0.1", "there", true, false),
            endpoint("10.0.0.2", "here", false, true)
        ]);
        assert!(!elsewhere(draining, "here"));
        assert!(!elsewhere(
            json!([endpoint("10.0.0.1", "there", false, false)]),
            "here"
        ));
    }
}
