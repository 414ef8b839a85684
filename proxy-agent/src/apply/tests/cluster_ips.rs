//! Cluster IPs that other services name as addresses from outside.

use std::net::IpAddr;

use super::*;
use crate::source::Change::Apply;

const THIEF: &str = "thief";
const VICTIM: &str = "victim";
const REMARK: &str = "is the cluster IP of Service t/victim; it is left out";

/// A service of both families with an endpoint in each.
fn both_families(world: &mut World, name: &str, number: u8, created: &str, port: u16, outside: &str) {
    let object =
        |json: String| serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error} in {json}"));
    let service = object(format!(
        r#"{{"metadata":{{"namespace":"t","name":"{name}","creationTimestamp":"{created}"}},
        "spec":{{"clusterIPs":["10.96.0.{number}","fd00:96::{number}"],
            "ports":[{{"name":"p","port":{port}}}]{outside}}}"#
    ));
    world.event(Apply(Box::new(Object::Service(service))));
    for (family, endpoint) in [("IPv4", "10.244.1."), ("IPv6", "fd00:244::")] {
        let json = format!(
            r#"{{"metadata":{{"namespace":"t","name":"{name}-{family}","labels":{{"kubernetes.io/service-name":"{name}"}}}},
            "addressType":"{family}","ports":[{{"name":"p","port":8080}}],
            "endpoints":[{{"addresses":["{endpoint}{number}"]}}]}}"#
        );
        let slice = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error} in {json}"));
        world.event(Apply(Box::new(Object::EndpointSlice(slice))));
    }
}

fn bring(world: &mut World, first: bool) {
    let node = NodeContext {
        external_ips: true,
        ..NodeContext::default()
    };
    let ids: ObjectIdSet = world.changes.services.drain().collect();
    if first {
        world.programmer.sync(&world.cluster, &node).unwrap();
    } else {
        world.programmer.update(&ids, &world.cluster, &node);
    }
}

/// The ports that are served at an address, with their backends.
fn served(world: &World, address: &str) -> Vec<(u16, Vec<String>)> {
    let address = Ip::from(address.parse::<IpAddr>().expect("an address"));
    let dump = world.programmer.store().dump();
    let there = dump.into_iter().filter(|(key, _)| key.address == address);
    let text = |(address, ..): (Ip, u16, u8)| IpAddr::from(address).to_string();
    there
        .map(|(key, backends)| (key.port.number(), backends.into_iter().map(text).collect()))
        .collect()
}

fn reported(world: &World) -> Vec<String> {
    let problems = world.programmer.problems();
    let remarks = problems.flat_map(|(_, reported)| reported);
    remarks.map(|remark| remark.message.clone()).collect()
}

/// Calls `check` with each field that can name the victim's cluster IPs, and with a port.
fn each_case(check: impl Fn(&str, u16)) {
    let addresses = r#""10.96.0.1","fd00:96::1""#;
    let ingress = r#"{"ip":"10.96.0.1"},{"ip":"fd00:96::1"}"#;
    for policy in ["Cluster", "Local"] {
        let cases = [
            format!(r#","externalTrafficPolicy":"{policy}","externalIPs":[{addresses}]}}"#),
            format!(
                r#","externalTrafficPolicy":"{policy}"}},"status":{{"loadBalancer":{{"ingress":[{ingress}]}}}}"#
            ),
        ];
        for case in &cases {
            for port in [80, 81] {
                check(case, port);
            }
        }
    }
}

const FAMILIES: [(&str, &str, &str); 2] = [
    ("10.96.0.1", "10.244.1.1", "10.244.1.9"),
    ("fd00:96::1", "fd00:244::1", "fd00:244::9"),
];

fn assert_victims(world: &World, case: &str, port: u16) {
    for (address, victim, _) in FAMILIES {
        assert_eq!(
            served(world, address),
            [(80, vec![victim.to_owned()])],
            "{case} {port}"
        );
        let all = reported(world);
        let remark = format!("{address} {REMARK}");
        assert!(all.iter().any(|reported| reported.ends_with(&remark)), "{all:?}");
    }
    assert_eq!(reported(world).len(), 2, "{case} {port}");
    assert_eq!(
        served(world, "10.96.0.9").len(),
        1,
        "the rest of the thief is served"
    );
}

fn assert_thiefs(world: &World, case: &str, port: u16) {
    for (address, _, thief) in FAMILIES {
        let found = served(world, address);
        assert!(!found.is_empty(), "{case} {port}");
        // Under policy Local there is a view from outside, which leads to no endpoint of this node.
        let backends = |(number, backends): &(u16, Vec<String>)| {
            *number == port && (backends.is_empty() || *backends == [thief])
        };
        assert!(found.iter().all(backends), "{case} {port}: {found:?}");
    }
    assert_eq!(reported(world), [""; 0], "{case} {port}");
}

#[test]
fn an_older_service_that_is_edited_gets_no_cluster_ip_of_another() {
    each_case(|case, port| {
        let mut world = World::new(Fake::new(64), 64);
        both_families(&mut world, THIEF, 9, OLD, port, "}");
        both_families(&mut world, VICTIM, 1, NEW, 80, "}");
        bring(&mut world, true);
        both_families(&mut world, THIEF, 9, OLD, port, case);
        bring(&mut world, false);
        assert_victims(&world, case, port);
        world.restart(sizes(64));
        bring(&mut world, true);
        assert_victims(&world, case, port);
    });
}

#[test]
fn a_cluster_ip_that_comes_later_is_its_services_and_when_it_goes_the_other_has_the_address() {
    each_case(|case, port| {
        let mut world = World::new(Fake::new(64), 64);
        both_families(&mut world, THIEF, 9, OLD, port, case);
        bring(&mut world, true);
        assert_thiefs(&world, case, port);
        for _ in 0..2 {
            both_families(&mut world, VICTIM, 1, NEW, 80, "}");
            bring(&mut world, false);
            assert_victims(&world, case, port);
            world.delete(VICTIM);
            bring(&mut world, false);
            assert_thiefs(&world, case, port);
        }
        // A service that gets other cluster IPs releases those that it had.
        both_families(&mut world, VICTIM, 1, NEW, 80, "}");
        bring(&mut world, false);
        both_families(&mut world, VICTIM, 2, NEW, 80, "}");
        bring(&mut world, false);
        assert_thiefs(&world, case, port);
    });
}

#[test]
fn a_cluster_ip_comes_before_age_where_a_node_port_claims_it() {
    let node = NodeContext {
        node_port_addresses: vec!["10.96.0.1".parse().unwrap()],
        ..NodeContext::default()
    };
    let mut world = World::new(Fake::new(64), 64);
    let port = r#","ports":[{"name":"p","port":90,"nodePort":80}],"type":"NodePort"}"#;
    both_families(&mut world, VICTIM, 1, NEW, 80, "}");
    world.programmer.sync(&world.cluster, &node).unwrap();
    let json = format!(
        r#"{{"metadata":{{"namespace":"t","name":"thief","creationTimestamp":"{OLD}"}},"spec":{{"clusterIP":"10.96.0.9"{port}}}"#
    );
    let thief = serde_json::from_str(&json).unwrap();
    world.event(Apply(Box::new(Object::Service(thief))));
    let ids: ObjectIdSet = world.changes.services.drain().collect();
    world.programmer.update(&ids, &world.cluster, &node);
    assert_eq!(served(&world, "10.96.0.1"), [(80, vec!["10.244.1.1".to_owned()])]);
    assert_eq!(
        reported(&world),
        ["10.96.0.1 port 80: the cluster IP of Service t/victim; left out"]
    );
}
