//! Tests of the programmer, over tables that can be told to fail.

use std::time::Instant;

use proxy_common::Ip;

use super::{Limits, Programmer, Store};
use crate::bpf::object::MapSizes;
use crate::cluster::{Changes, ClusterState};
use crate::plan::NodeContext;
use crate::source::{Change, Event, Kind, Object, ObjectId, ObjectIdSet};
use crate::trouble::{Remark, Trouble};
use fake::{Fake, sizes};

mod altered;
mod cluster_ips;
mod failing;
mod fake;
mod full;
mod listing;
mod source_ranges;

/// A cluster and the programmer of its node.
struct World {
    cluster: ClusterState,
    changes: Changes,
    programmer: Programmer<Fake>,
}

impl World {
    fn new(store: Fake, max: u32) -> Self {
        let mut world = Self {
            cluster: ClusterState::new(None),
            changes: Changes::default(),
            programmer: Programmer::new(store, Limits { max: sizes(max) }),
        };
        for kind in Kind::ALL {
            world.event(Change::Begin(kind));
            world.event(Change::End(kind));
        }
        world.changes.clear();
        world
    }

    /// Replaces the programmer, and keeps the tables.
    fn restart(&mut self, max: MapSizes) {
        self.programmer = Programmer::new(self.programmer.store().copy(), Limits { max });
    }

    fn event(&mut self, change: Change) {
        self.cluster
            .apply(Event::new(Instant::now(), change), &mut self.changes);
    }

    fn service(&mut self, name: &str, ip: &str, created: &str, port: u16) {
        let json = format!(
            r#"{{"metadata":{{"namespace":"t","name":"{name}","creationTimestamp":"{created}"}},
            "spec":{{"clusterIP":"{ip}","ports":[{{"name":"p","port":{port}}}]}}}}"#
        );
        self.event(Change::Apply(Box::new(Object::Service(
            serde_json::from_str(&json).unwrap(),
        ))));
    }

    fn slice(&mut self, service: &str, endpoints: &[(&str, &str)]) {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(address, conditions)| {
                format!(r#"{{"addresses":["{address}"],"conditions":{{{conditions}}}}}"#)
            })
            .collect();
        let json = format!(
            r#"{{"metadata":{{"namespace":"t","name":"{service}-1","labels":{{"kubernetes.io/service-name":"{service}"}}}},
            "addressType":"IPv4","ports":[{{"name":"p","port":8080}}],"endpoints":[{}]}}"#,
            endpoints.join(",")
        );
        self.event(Change::Apply(Box::new(Object::EndpointSlice(
            serde_json::from_str(&json).unwrap(),
        ))));
    }

    fn delete(&mut self, name: &str) {
        self.event(Change::Delete(
            Kind::Service,
            ObjectId::new(Kind::Service, "t", name),
        ));
    }

    fn sync(&mut self) -> u64 {
        self.programmer
            .sync(&self.cluster, &NodeContext::default())
            .unwrap()
            .writes
    }

    fn update(&mut self) -> u64 {
        let ids: ObjectIdSet = self.changes.services.drain().collect();
        self.programmer
            .update(&ids, &self.cluster, &NodeContext::default())
            .writes
    }

    fn backends_of(&self, ip: &str) -> Vec<String> {
        let ip: Ip = ip.parse::<std::net::IpAddr>().unwrap().into();
        let dump = self.programmer.store().dump();
        let found = dump.iter().find(|(key, _)| key.address == ip);
        let text = |(address, ..): &(Ip, u16, u8)| std::net::IpAddr::from(*address).to_string();
        found
            .map(|(_, backends)| backends.iter().map(text).collect())
            .unwrap_or_default()
    }
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-02-01T00:00:00Z";

fn two_services(world: &mut World) {
    world.service("a", "10.96.0.1", OLD, 80);
    world.slice("a", &[("10.244.1.1", ""), ("10.244.1.2", "")]);
    world.service("b", "10.96.0.2", OLD, 80);
    world.slice("b", &[("10.244.1.1", "")]);
}

#[test]
fn a_service_is_programmed_and_follows_its_endpoints() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    world.sync();
    assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.1", "10.244.1.2"]);
    world.slice("a", &[("10.244.1.2", ""), ("10.244.1.3", "")]);
    world.update();
    assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.2", "10.244.1.3"]);
    assert_eq!(world.backends_of("10.96.0.2"), ["10.244.1.1"]);
    world.delete("a");
    world.update();
    assert_eq!(world.programmer.store().frontends.borrow().len(), 1);
    assert_eq!(world.programmer.store().addresses.borrow().len(), 1);
}

#[test]
fn what_did_not_change_is_not_written() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    assert!(world.sync() > 0);
    world.slice("a", &[("10.244.1.1", ""), ("10.244.1.2", "")]);
    world
        .changes
        .services
        .insert(ObjectId::new(Kind::Service, "t", "a"));
    assert_eq!(world.update(), 0);
}

/// As after a watch that expired, and by a new agent.
#[test]
fn ten_thousand_services_that_are_listed_again_are_not_written() {
    const SERVICES: u32 = 10_000;
    const ENDPOINTS: u32 = 10;
    const ROOM: u32 = 1 << 18;
    fn list(world: &mut World) {
        for kind in Kind::ALL {
            world.event(Change::Begin(kind));
        }
        for number in 0..SERVICES {
            let [.., high, low] = number.to_be_bytes();
            let name = format!("s{number}");
            world.service(&name, &format!("10.96.{high}.{low}"), OLD, 80);
            let addresses: Vec<_> = (1..=ENDPOINTS).map(|n| format!("10.{n}.{high}.{low}")).collect();
            let endpoints: Vec<_> = addresses.iter().map(|address| (address.as_str(), "")).collect();
            world.slice(&name, &endpoints);
        }
        for kind in Kind::ALL {
            world.event(Change::End(kind));
        }
    }
    let mut world = World::new(Fake::new(ROOM), ROOM);
    list(&mut world);
    assert!(world.sync() > u64::from(2 * SERVICES * ENDPOINTS));
    world.changes.clear();
    list(&mut world);
    assert_eq!(world.cluster.service_count(), SERVICES as usize);
    let all = world.cluster.services().map(|(id, _)| id);
    world.changes.services.extend(all);
    assert_eq!(world.update(), 0);
    world.restart(sizes(ROOM));
    assert_eq!(world.sync(), 0);
}

#[test]
fn a_restarted_agent_adopts_everything_and_writes_only_what_differs() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    world.slice(
        "b",
        &[
            ("10.244.1.1", ""),
            ("10.244.1.9", r#""ready":false,"serving":true,"terminating":true"#),
        ],
    );
    world.sync();
    world.slice("a", &[("10.244.1.2", "")]);
    world.update();
    let before = world.programmer.store().dump();
    world.restart(sizes(64));
    assert_eq!(world.sync(), 0);
    assert_eq!(world.programmer.store().dump(), before);

    world.delete("b");
    world.changes.clear();
    world.restart(sizes(64));
    world.sync();
    assert_eq!(
        world.programmer.store().frontends.borrow().len(),
        1,
        "a service deleted while the agent was away goes"
    );
    assert_eq!(world.programmer.store().addresses.borrow().len(), 1);
}

/// A service with an address from outside. `how` adds fields to its spec, such as the address as an external
/// IP.
fn exposed(world: &mut World, name: &str, number: u8, created: &str, how: &str) {
    let json = format!(
        r#"{{"metadata":{{"namespace":"t","name":"{name}","creationTimestamp":"{created}"}},
        "spec":{{"clusterIP":"10.96.0.{number}","ports":[{{"name":"p","port":80,"nodePort":30080}}],{how}"type":"LoadBalancer"}},
        "status":{{"loadBalancer":{{"ingress":[{}]}}}}}}"#,
        if how.contains("externalIPs") {
            ""
        } else {
            r#"{"ip":"198.51.100.7"}"#
        },
    );
    let service = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error} in {json}"));
    world.event(Change::Apply(Box::new(Object::Service(service))));
}

#[test]
fn an_address_from_outside_is_the_oldest_services_of_any_kind() {
    let local = r#""externalTrafficPolicy":"Local","#;
    let kinds = [
        String::new(),
        local.to_owned(),
        r#""externalIPs":["198.51.100.7"],"#.to_owned(),
        format!(r#""externalIPs":["198.51.100.7"],{local}"#),
    ];
    let node = NodeContext {
        external_ips: true,
        ..NodeContext::default()
    };
    let all = kinds
        .iter()
        .flat_map(|old| kinds.iter().map(move |young| (old, young)));
    for (old, young) in all {
        let mut world = World::new(Fake::new(64), 64);
        world.slice("old", &[("10.244.1.1", "")]);
        world.slice("young", &[("10.244.1.2", "")]);
        // The younger service is there first.
        exposed(&mut world, "young", 2, NEW, young);
        world.programmer.sync(&world.cluster, &node).unwrap();
        assert_eq!(world.backends_of("198.51.100.7"), ["10.244.1.2"], "{old} {young}");
        exposed(&mut world, "old", 1, OLD, old);
        let ids: ObjectIdSet = world.changes.services.drain().collect();
        world.programmer.update(&ids, &world.cluster, &node);
        assert_eq!(world.backends_of("198.51.100.7"), ["10.244.1.1"], "{old} {young}");
        let reported: Vec<_> = world
            .programmer
            .problems()
            .flat_map(|(_, reported)| reported.to_vec())
            .collect();
        let part = "198.51.100.7 port 80: already taken by the older Service t/old";
        let is_it =
            |reported: &Remark| reported.code == Trouble::AddressHeldTwice && reported.message.contains(part);
        assert!(reported.iter().any(is_it), "{reported:?}");
        world.restart(sizes(64));
        world.programmer.sync(&world.cluster, &node).unwrap();
        assert_eq!(
            world.backends_of("198.51.100.7"),
            ["10.244.1.1"],
            "restarted: {old} {young}"
        );
    }
}

#[test]
fn an_address_from_outside_in_a_range_of_the_cluster_is_refused() {
    for range in ["198.51.100.0/24", "198.51.100.7/32"] {
        let node = NodeContext {
            external_ips: true,
            cluster_ranges: vec![range.parse().unwrap()],
            ..NodeContext::default()
        };
        for how in ["", r#""externalIPs":["198.51.100.7"],"#] {
            let mut world = World::new(Fake::new(64), 64);
            world.slice("a", &[("10.244.1.1", "")]);
            exposed(&mut world, "a", 1, OLD, how);
            world.programmer.sync(&world.cluster, &node).unwrap();
            assert_eq!(world.backends_of("198.51.100.7"), [""; 0], "{range} {how}");
            assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.1"], "{range} {how}");
            let reported = world
                .programmer
                .problems()
                .flat_map(|(_, reported)| reported.to_vec());
            assert!(
                reported
                    .into_iter()
                    .any(|reported| reported.message.contains("a range of the cluster's own"))
            );
        }
    }
}

#[test]
fn an_address_from_outside_that_is_no_hosts_on_a_link_is_refused() {
    let node = NodeContext {
        external_ips: true,
        no_hosts: vec!["198.51.100.7".parse().unwrap()],
        ..NodeContext::default()
    };
    for how in ["", r#""externalIPs":["198.51.100.7"],"#] {
        let mut world = World::new(Fake::new(64), 64);
        world.slice("a", &[("10.244.1.1", "")]);
        exposed(&mut world, "a", 1, OLD, how);
        world.programmer.sync(&world.cluster, &node).unwrap();
        assert_eq!(world.backends_of("198.51.100.7"), [""; 0], "{how}");
        assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.1"], "{how}");
        let mut reported = world
            .programmer
            .problems()
            .flat_map(|(_, reported)| reported.to_vec());
        let is_it = |reported: Remark| {
            reported.code == Trouble::AddressRefused && reported.message.contains("198.51.100.7 is no host's")
        };
        assert!(reported.any(is_it), "{how}");
    }
}

#[test]
fn the_port_of_an_api_server_is_no_services_at_its_address() {
    let at = |text: &str| text.parse().unwrap();
    for (server, is_refused) in [("198.51.100.7:80", true), ("198.51.100.7:6443", false)] {
        let node = NodeContext {
            external_ips: true,
            api_servers: [at(server), at("10.96.0.1:80")].into(),
            ..NodeContext::default()
        };
        for how in ["", r#""externalIPs":["198.51.100.7"],"#] {
            let mut world = World::new(Fake::new(64), 64);
            world.slice("a", &[("10.244.1.1", "")]);
            exposed(&mut world, "a", 1, OLD, how);
            world.programmer.sync(&world.cluster, &node).unwrap();
            let expected: &[&str] = if is_refused { &[] } else { &["10.244.1.1"] };
            assert_eq!(world.backends_of("198.51.100.7"), expected, "{server} {how}");
            let own = world.backends_of("10.96.0.1");
            assert_eq!(own, ["10.244.1.1"], "the cluster IP is its own");
            let reported = world
                .programmer
                .problems()
                .flat_map(|(_, reported)| reported.to_vec());
            let reported: Vec<_> = reported
                .filter(|reported| reported.message.contains("an API server of this cluster"))
                .collect();
            assert_eq!(reported.is_empty(), !is_refused, "{reported:?}");
        }
    }
}

#[test]
fn the_oldest_service_keeps_a_contested_address_and_the_next_inherits_it() {
    let mut world = World::new(Fake::new(64), 64);
    two_services(&mut world);
    world.service("young", "10.96.0.1", NEW, 80);
    world.slice("young", &[("10.244.1.7", "")]);
    world.sync();
    assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.1", "10.244.1.2"]);
    assert_eq!(world.programmer.problems().count(), 1);
    world.delete("a");
    world.update();
    assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.7"]);
    assert_eq!(world.programmer.problems().count(), 0);
    // The older one comes back and takes its address again.
    world.service("a", "10.96.0.1", OLD, 80);
    world.update();
    assert_eq!(world.backends_of("10.96.0.1"), ["10.244.1.1", "10.244.1.2"]);
}
