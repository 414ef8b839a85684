//! The effects of events on the state: objects that count, dirty services, removals by a full list, effects
//! of a bad field.

use std::time::Instant;

use super::*;
use crate::source::{Change, Event, Kind, Object, ObjectId};

pub(super) const SERVICE: &str = r#"{
    "metadata": {"name": "cart", "namespace": "shop", "resourceVersion": "1", "creationTimestamp": "2026-01-02T03:04:05Z"},
    "spec": {"clusterIP": "10.96.0.010", "clusterIPs": ["10.96.0.010", "fd00:10:96::a"],
             "ports": [{"name": "http", "port": 80, "nodePort": 30080}, {"name": "dns", "port": 53, "protocol": "UDP"}]}
}"#;
pub(super) const SLICE: &str = r#"{
    "metadata": {"name": "cart-a", "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"}},
    "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
    "endpoints": [{"addresses": ["10.1.0.2"], "nodeName": "n2", "zone": "b", "hints": {"forZones": [{"name": "b"}]}},
                  {"addresses": ["10.1.0.1"], "nodeName": "n1", "conditions": {"ready": false}}]
}"#;

fn parse<T: serde::de::DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error} in {json}"))
}

pub(super) fn service(json: &str) -> Change {
    Change::Apply(Box::new(Object::Service(parse(json))))
}

pub(super) fn slice(json: &str) -> Change {
    Change::Apply(Box::new(Object::EndpointSlice(parse(json))))
}

pub(super) fn cart() -> ObjectId {
    ObjectId::new(Kind::Service, "shop", "cart")
}

/// A state whose first lists are complete and empty.
pub(super) struct World(pub(super) ClusterState);

impl World {
    pub(super) fn new() -> Self {
        Self::named(None)
    }

    pub(super) fn named(proxy_name: Option<&str>) -> Self {
        let mut world = Self(ClusterState::new(proxy_name.map(str::to_owned)));
        for kind in Kind::ALL {
            world.apply(Change::Begin(kind));
            world.apply(Change::End(kind));
        }
        world
    }

    pub(super) fn apply(&mut self, change: Change) -> Changes {
        let mut changes = Changes::default();
        self.0.apply(Event::new(Instant::now(), change), &mut changes);
        changes
    }

    /// Whether the event made only the one service of these tests dirty.
    pub(super) fn dirties(&mut self, change: Change) -> bool {
        let changes = self.apply(change);
        assert!(!changes.nodes && !changes.service_cidrs && !changes.synced);
        assert!(
            changes.services.iter().all(|&id| id == cart()),
            "another service is dirty"
        );
        !changes.services.is_empty()
    }

    pub(super) fn messages(&self) -> Vec<String> {
        self.0
            .problems()
            .into_iter()
            .flat_map(|problem| problem.messages)
            .collect()
    }

    pub(super) fn endpoints(&self, family: Family, port: usize) -> Merged {
        let port = self.0.service(cart()).expect("served").ports[port];
        self.0.endpoints_of(cart(), family, &port)
    }

    pub(super) fn endpoint_names(&self) -> Vec<String> {
        let merged = self.endpoints(Family::V4, 0);
        merged
            .endpoints
            .iter()
            .map(|endpoint| format!("{}:{}", endpoint.address, endpoint.port))
            .collect()
    }
}

#[test]
fn a_service_and_its_slice_meet_in_either_order() {
    for service_first in [true, false] {
        let mut world = World::new();
        if service_first {
            assert!(world.dirties(service(SERVICE)));
            assert!(world.dirties(slice(SLICE)));
        } else {
            assert!(
                !world.dirties(slice(SLICE)),
                "a slice without its service is nothing to plan"
            );
            assert!(world.dirties(service(SERVICE)));
        }
        let cart = world.0.service(cart()).expect("served");
        assert_eq!(world.0.names().text(cart.namespace), "shop");
        assert_eq!(cart.created, 1_767_323_045);
        let ips: Vec<_> = cart.cluster_ips().map(|ip| ip.to_string()).collect();
        assert_eq!(ips, ["10.96.0.10", "fd00:10:96::a"]);
        assert_eq!(
            (cart.ports[0].node_port, cart.ports[1].protocol),
            (30080, Protocol::Udp)
        );
        assert_eq!(world.endpoint_names(), ["10.1.0.1:8080", "10.1.0.2:8080"]);
        let merged = world.endpoints(Family::V4, 0).endpoints;
        assert!(!merged[0].conditions.ready() && merged[1].conditions.ready());
        let placement = world.0.names().placement(merged[1].placement);
        assert_eq!(placement.node.map(|node| world.0.names().text(node)), Some("n2"));
        assert_eq!(&*placement.for_zones, [world.0.names().find("b").expect("named")]);
        assert!(
            world.endpoints(Family::V4, 1).endpoints.is_empty(),
            "ports match by name"
        );
        assert!(
            world.endpoints(Family::V6, 0).endpoints.is_empty(),
            "families stand apart"
        );
        assert!(world.messages().is_empty());
    }
}

#[test]
fn what_does_not_matter_makes_nothing_dirty() {
    let mut world = World::new();
    world.apply(service(SERVICE));
    world.apply(slice(SLICE));
    assert!(!world.dirties(service(SERVICE)));
    assert!(!world.dirties(service(&SERVICE.replace(
        r#""resourceVersion": "1""#,
        r#""resourceVersion": "2", "annotations": {"a": "b"}"#
    ))));
    assert!(!world.dirties(service(&SERVICE.replace("10.96.0.010", "10.96.0.10"))));
    assert!(!world.dirties(slice(SLICE)));
    assert!(world.dirties(service(&SERVICE.replace("\"port\": 80", "\"port\": 81"))));
    assert!(world.dirties(slice(&SLICE.replace("10.1.0.2", "10.1.0.3"))));
    assert!(world.dirties(Change::Delete(
        Kind::EndpointSlice,
        ObjectId::new(Kind::EndpointSlice, "shop", "cart-a")
    )));
    assert!(!world.dirties(Change::Delete(
        Kind::EndpointSlice,
        ObjectId::new(Kind::EndpointSlice, "shop", "cart-a")
    )));
    assert!(world.dirties(Change::Delete(Kind::Service, cart())));
    assert!(!world.dirties(Change::Delete(Kind::Service, cart())));
}

#[test]
fn nothing_is_kept_of_what_is_gone() {
    let mut world = World::new();
    for _ in 0..3 {
        world.apply(service(SERVICE));
        world.apply(slice(SLICE));
        world.apply(service(&SERVICE.replace("http", "web")));
        world.apply(slice(&SLICE.replace("n1", "n3")));
        world.apply(Change::Delete(Kind::Service, cart()));
        assert_eq!(world.0.service_count(), 0);
        world.apply(Change::Delete(
            Kind::EndpointSlice,
            ObjectId::new(Kind::EndpointSlice, "shop", "cart-a"),
        ));
        assert!(
            world.0.names().is_empty(),
            "a symbol leaked: {:?}",
            world.0.names()
        );
    }
}

#[test]
fn objects_that_do_not_count_are_as_if_gone() {
    for ignored in [
        SERVICE.replace("\"10.96.0.010\"", "\"None\""),
        SERVICE.replace("\"spec\": {", "\"spec\": {\"type\": \"ExternalName\", "),
        SERVICE.replace(
            "\"name\": \"cart\",",
            r#""name": "cart", "labels": {"service.kubernetes.io/headless": ""},"#,
        ),
        SERVICE.replace(
            "\"name\": \"cart\",",
            r#""name": "cart", "labels": {"service.kubernetes.io/service-proxy-name": "x"},"#,
        ),
    ] {
        let mut world = World::new();
        world.apply(service(SERVICE));
        world.apply(slice(SLICE));
        assert!(world.dirties(service(&ignored)), "{ignored}");
        assert!(world.0.service(cart()).is_none(), "{ignored}");
        assert_eq!(world.0.service_count(), 0);
        assert!(!world.dirties(slice(&SLICE.replace("10.1.0.2", "10.1.0.3"))));
        assert!(world.messages().is_empty());
        assert!(world.dirties(service(SERVICE)));
    }
}

#[test]
fn a_proxy_name_of_our_own_is_ours() {
    let labelled = SERVICE.replace(
        "\"name\": \"cart\",",
        r#""name": "cart", "labels": {"service.kubernetes.io/service-proxy-name": "ours"},"#,
    );
    let mut world = World::named(Some("ours"));
    assert!(world.dirties(service(&labelled)));
    assert!(!world.dirties(service(SERVICE)), "no label is ours too");
    assert!(world.dirties(service(&labelled.replace("\"ours\"", "\"other\""))));
    assert_eq!(world.0.service_count(), 0);
}

#[test]
fn fqdn_slices_and_slices_without_a_service_are_left_out() {
    let mut world = World::new();
    world.apply(service(SERVICE));
    world.apply(slice(SLICE));
    assert!(world.dirties(slice(&SLICE.replace("\"IPv4\"", "\"FQDN\""))));
    assert!(world.endpoint_names().is_empty() && world.messages().is_empty());
    world.apply(slice(SLICE));
    assert!(world.dirties(slice(&SLICE.replace("kubernetes.io/service-name", "app"))));
    assert!(world.endpoint_names().is_empty());
    assert!(
        world.messages()[0].contains("kubernetes.io/service-name"),
        "{:?}",
        world.messages()
    );
}

#[test]
fn slices_of_one_service_are_merged_and_each_brings_its_ports() {
    let mut world = World::new();
    world.apply(service(SERVICE));
    world.apply(slice(SLICE));
    let second = SLICE
        .replace("cart-a", "cart-b")
        .replace("8080", "9090")
        .replace("10.1.0.2", "10.1.0.3");
    world.apply(slice(&second));
    world.apply(slice(
        &SLICE
            .replace("cart-a", "cart-c")
            .replace("\"name\": \"http\"", "\"name\": \"other\""),
    ));
    assert_eq!(
        world.endpoint_names(),
        ["10.1.0.1:8080", "10.1.0.1:9090", "10.1.0.2:8080", "10.1.0.3:9090"]
    );
    assert_eq!(world.0.slices_of(cart()).count(), 3);
    world.apply(Change::Delete(
        Kind::EndpointSlice,
        ObjectId::new(Kind::EndpointSlice, "shop", "cart-b"),
    ));
    assert_eq!(world.endpoint_names(), ["10.1.0.1:8080", "10.1.0.2:8080"]);
    assert_eq!(world.0.slices_of(cart()).count(), 2);
}

#[test]
fn where_slices_disagree_the_living_endpoint_wins_in_any_order() {
    let terminating = SLICE.replace("cart-a", "cart-b").replace(
        "\"nodeName\": \"n2\"",
        r#""nodeName": "n3", "conditions": {"ready": false, "terminating": true}"#,
    );
    for order in [[SLICE, terminating.as_str()], [terminating.as_str(), SLICE]] {
        let mut world = World::new();
        world.apply(service(SERVICE));
        for json in order {
            world.apply(slice(json));
        }
        let merged = world.endpoints(Family::V4, 0);
        assert_eq!(merged.endpoints.len(), 2);
        assert!(merged.endpoints[1].conditions.ready());
        assert_eq!(
            merged.disagreements.len(),
            1,
            "endpoints that agree are no disagreement"
        );
        let message = &merged.disagreements[0];
        assert!(
            message.contains("10.1.0.2 port 8080") && message.contains("EndpointSlice cart-b"),
            "{message}"
        );
    }
}

#[test]
fn a_slice_may_move_to_another_service() {
    let mut world = World::new();
    world.apply(service(SERVICE));
    world.apply(service(&SERVICE.replace("\"cart\"", "\"desk\"")));
    world.apply(slice(SLICE));
    let changes = world.apply(slice(&SLICE.replace(
        r#""kubernetes.io/service-name": "cart""#,
        r#""kubernetes.io/service-name": "desk""#,
    )));
    assert_eq!(changes.services.len(), 2);
    assert_eq!(world.0.slices_of(cart()).count(), 0);
    assert_eq!(
        world
            .0
            .slices_of(ObjectId::new(Kind::Service, "shop", "desk"))
            .count(),
        1
    );
}

#[test]
fn a_full_list_removes_what_it_did_not_name_and_only_at_its_end() {
    let mut world = World::new();
    world.apply(service(SERVICE));
    world.apply(service(&SERVICE.replace("\"cart\"", "\"desk\"")));
    world.apply(slice(SLICE));
    assert!(world.apply(Change::Begin(Kind::Service)).is_empty());
    assert!(!world.dirties(service(SERVICE)));
    // The watch is lost in the middle of the list: a new list begins, and no object was removed.
    assert!(world.apply(Change::Begin(Kind::Service)).is_empty());
    assert_eq!(world.0.service_count(), 2);
    assert!(!world.dirties(service(SERVICE)));
    let changes = world.apply(Change::End(Kind::Service));
    assert_eq!(
        changes.services.into_iter().collect::<Vec<_>>(),
        [ObjectId::new(Kind::Service, "shop", "desk")]
    );
    assert_eq!(
        world.endpoint_names().len(),
        2,
        "another kind's list is another matter"
    );
    world.apply(Change::Begin(Kind::EndpointSlice));
    assert!(world.dirties(Change::End(Kind::EndpointSlice)));
    assert!(
        world.apply(Change::End(Kind::Service)).is_empty(),
        "an end without a begin removes nothing"
    );
    assert_eq!(world.0.service_count(), 1);
}

#[test]
fn nothing_is_dirty_before_every_kind_was_listed() {
    let mut world = World(ClusterState::new(None));
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        assert!(world.apply(Change::Begin(kind)).is_empty());
        assert!(world.apply(service(SERVICE)).is_empty());
        assert!(world.apply(Change::End(kind)).is_empty());
    }
    assert_eq!(world.0.waiting_for(), [Kind::ServiceCidr]);
    world.apply(Change::Begin(Kind::ServiceCidr));
    assert!(!world.0.synced());
    let changes = world.apply(Change::End(Kind::ServiceCidr));
    assert!(changes.synced && changes.services.is_empty() && world.0.synced());
    assert!(!world.apply(service(&SERVICE.replace("80", "81"))).synced);
}

#[test]
fn nodes_and_service_ranges_change_by_what_matters() {
    let mut world = World::new();
    let node = |json: &str| Change::Apply(Box::new(Object::Node(parse(json))));
    let json = r#"{"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "b"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
        "status": {"addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.1"}]}}"#;
    assert!(world.apply(node(json)).nodes);
    assert!(
        world
            .apply(node(
                &json.replace("\"status\": {", r#""status": {"images": [1], "#)
            ))
            .is_empty(),
        "a heartbeat"
    );
    let n1 = world.0.node("n1").expect("known");
    assert_eq!(
        (n1.addresses.len(), n1.pod_cidrs.len(), n1.zone.as_deref()),
        (1, 2, Some("b"))
    );
    assert!(
        world
            .apply(Change::Delete(Kind::Node, ObjectId::new(Kind::Node, "", "n1")))
            .nodes
    );
    assert_eq!(world.0.nodes().count(), 0);
    let cidr = parse(
        r#"{"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/112"]}}"#,
    );
    assert!(
        world
            .apply(Change::Apply(Box::new(Object::ServiceCidr(cidr))))
            .service_cidrs
    );
    assert_eq!(world.0.service_cidrs().count(), 2);
    world.apply(Change::Begin(Kind::ServiceCidr));
    assert!(world.apply(Change::End(Kind::ServiceCidr)).service_cidrs);
}
