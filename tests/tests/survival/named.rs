//! The agent reports a loss that it cannot repair, and is not ready.

use std::time::Instant;

use aya::maps::{Array, HashMap, Map, MapData};
use harness::{Endpoint, Service, eventually, slowness};
use proxy_common::Plain as _;
use proxy_common::maps::{Frontend, SlotRange};
use serde_json::json;

use super::topology::{CLUSTER_IP, PROMISED, SOON, Topology, of_family};

#[test]
fn a_rule_that_diverts_packets_is_named() {
    harness::require_root!();
    let topology = Topology::build();
    let address = topology.far.ip();
    for (to, route) in [
        (CLUSTER_IP.to_owned(), "route 10.96."),
        (address.to_string(), "route 10."),
    ] {
        let range = format!("{to}/16");
        topology
            .node()
            .run_ip(&format!("rule add to {range} pref 100 unreachable"));
        let status = topology.wait_named(route);
        assert!(status["waitingFor"].to_string().contains("self-test"), "{status}");
        topology
            .node()
            .run_ip(&format!("rule del to {range} pref 100 unreachable"));
        topology.wait_ready();
    }
    topology.assert_in_order("without rules");
}

#[test]
fn a_rule_that_matches_sources_interfaces_or_protocols_is_named() {
    harness::require_root!();
    let topology = Topology::build();
    let near = topology.near.host_interface().to_owned();
    topology.node().run_ip("route add blackhole default table 77");
    topology
        .node()
        .run_ip("route add default via 192.168.50.1 dev eth0 table 78");
    let mut times = Vec::new();
    for (family, rule) in [
        ("", "from 10.244.0.0/16 pref 100 unreachable".to_owned()),
        ("", "from 10.244.0.0/16 pref 100 lookup 78".to_owned()),
        ("", format!("iif {near} pref 100 prohibit")),
        ("-6 ", format!("iif {near} pref 100 prohibit")),
        ("", format!("iif {near} pref 100 lookup 77")),
        ("", "iif eth0 to 10.244.0.0/16 pref 100 prohibit".to_owned()),
        ("", "ipproto tcp to 10.244.0.0/16 pref 100 prohibit".to_owned()),
        (
            "",
            "iif lo ipproto udp to 10.244.0.0/16 pref 100 prohibit".to_owned(),
        ),
    ] {
        topology.node().run_ip(&format!("{family}rule add {rule}"));
        let begun = Instant::now();
        let status = topology.wait_named("`ip rule`");
        times.push(begun.elapsed());
        assert!(
            status["waitingFor"].to_string().contains("self-test"),
            "{rule}: {status}"
        );
        topology.node().run_ip(&format!("{family}rule del {rule}"));
        topology.wait_ready();
    }
    // A rule of the operator about packets that leave the cluster is reported, and the agent stays ready.
    let rule = format!("iif {near} to 192.0.2.0/24 pref 100 prohibit");
    topology.node().run_ip(&format!("rule add {rule}"));
    let address = of_family(topology.near.addresses(), true);
    topology.wait_reported(&format!("packets from {address}"));
    topology.node().run_ip(&format!("rule del {rule}"));
    topology.wait_ready();
    times.sort_unstable();
    println!("named after {times:?}");
    // A single report may be late on a busy machine, so the median counts.
    assert!(times[times.len() / 2] <= PROMISED * slowness(), "{times:?}");
    topology.assert_in_order("without rules");
}

#[test]
fn a_route_inside_a_range_is_named_with_the_command_that_removes_it() {
    harness::require_root!();
    let topology = Topology::build();
    let [v4, v6] = [true, false].map(|v4| of_family(topology.far.addresses(), v4));
    let (v4, v6) = (format!("{v4}/32"), format!("{v6}/128"));
    let service = format!("{CLUSTER_IP}/32");
    topology
        .node()
        .run_ip("rule add to 10.244.0.0/16 pref 50 lookup 77");
    for (prefix, route) in [
        (&v4, format!("blackhole {v4}")),
        (&v4, format!("unreachable {v4}")),
        (&v4, format!("prohibit {v4} metric 7")),
        (&v4, format!("{v4} via 192.168.50.9 dev eth0 onlink")),
        (&v4, format!("blackhole {v4} table 77")),
        (&v6, format!("blackhole {v6}")),
        (&v6, format!("{v6} via fd00:50::9 dev eth0 onlink")),
        (&service, format!("blackhole {service}")),
        (&service, format!("{service} dev eth0")),
    ] {
        topology.node().run_ip(&format!("route add {route}"));
        let status = topology.wait_reported(&format!("\"route {prefix}\""));
        let errors = status["errors"].as_array().expect("a list").iter();
        let commands: Vec<_> = errors
            .filter_map(|error| error["message"].as_str()?.split('`').nth(1))
            .collect();
        let [command] = commands[..] else {
            panic!("{route}: {status}")
        };
        let command = command.strip_prefix("ip ").expect("a command of ip");
        topology.node().run_ip(command);
        topology.wait_ready();
    }
    topology
        .node()
        .run_ip("rule del to 10.244.0.0/16 pref 50 lookup 77");
    // A table that no rule uses may hold any route.
    topology
        .node()
        .run_ip(&format!("route add blackhole {v4} table 78"));
    topology.await_checks(2);
    assert_eq!(topology.status()["errors"], json!([]));
    topology.assert_in_order("in the end");
}

#[test]
fn an_address_of_another_nodes_pod_that_is_the_nodes_own_is_named() {
    harness::require_root!();
    let topology = Topology::build();
    let [v4, v6] = [true, false].map(|v4| of_family(topology.far.addresses(), v4));
    topology
        .node()
        .run_ip("rule add to 10.244.0.0/16 pref 50 lookup 77");
    let mut times = Vec::new();
    for (prefix, added) in [
        (format!("{v4}/32"), format!("addr add {v4}/32 dev lo")),
        (format!("{v4}/32"), format!("addr add {v4}/32 dev eth0")),
        (format!("{v6}/128"), format!("addr add {v6}/128 dev lo")),
        (
            format!("{v4}/32"),
            format!("route add local {v4} dev lo table 77"),
        ),
        (format!("{v4}/32"), format!("route add local {v4} dev lo")),
    ] {
        topology.node().run_ip(&added);
        let begun = Instant::now();
        let status = topology.wait_reported(&format!("\"route {prefix}\""));
        times.push(begun.elapsed());
        let errors = status["errors"].as_array().expect("a list").iter();
        let commands: Vec<_> = errors
            .filter_map(|error| error["message"].as_str()?.split('`').nth(1))
            .collect();
        let [command] = commands[..] else {
            panic!("{added}: {status}")
        };
        let command = command.strip_prefix("ip ").expect("a command of ip");
        topology.node().run_ip(command);
        topology.wait_ready();
    }
    topology
        .node()
        .run_ip("rule del to 10.244.0.0/16 pref 50 lookup 77");
    times.sort_unstable();
    println!("named after {times:?}");
    // A single report may be late on a busy machine, so the median counts.
    assert!(times[times.len() / 2] <= PROMISED * slowness(), "{times:?}");
    topology.assert_in_order("in the end");
}

#[test]
fn a_route_with_our_protocol_number_that_is_not_planned_is_removed() {
    harness::require_root!();
    let topology = Topology::build();
    let far = of_family(topology.far.addresses(), true);
    let begun = Instant::now();
    let route = format!("{far} via 192.168.50.99 dev eth0 onlink proto 158");
    topology.node().run_ip(&format!("route add {route}"));
    eventually("the route to be removed", SOON, || {
        let arguments = ["route", "show", "proto", "158"];
        let output = topology.node().command("ip").args(arguments).output();
        let shown = output.expect("to run ip").stdout;
        !String::from_utf8_lossy(&shown).contains("192.168.50.99")
    });
    let took = begun.elapsed();
    assert!(took <= PROMISED * slowness(), "removed after {took:?}");
    topology.wait_ready();
    topology.assert_in_order("without it");
    // The agent reports the same route in another table, and does not remove it.
    topology.node().run_ip("rule add pref 50 lookup 77");
    topology.node().run_ip(&format!("route add {route} table 77"));
    topology.wait_reported(&format!("\"route {far}/32\""));
    topology.node().run_ip(&format!("route del {route} table 77"));
    topology.wait_ready();
    topology.node().run_ip("rule del pref 50 lookup 77");
    topology.assert_in_order("without the rule");
}

#[test]
fn an_address_that_a_service_chose_does_not_keep_the_node_from_being_ready() {
    harness::require_root!();
    let topology = Topology::build();
    // The first and the last address of the nodes' own subnet, and the subnet-router anycast address.
    let no_hosts = ["192.168.50.255", "192.168.50.0", "fd00:50::"];
    let elsewhere = "203.0.113.77";
    let loud = Service::new("loud")
        .cluster_ip("10.96.0.12")
        .cluster_ip("fd00:96::12");
    let loud = loud.tcp("http", 80, 80).set("externalIPs", json!(no_hosts));
    let lost = Service::new("lost").cluster_ip("10.96.0.13").tcp("http", 80, 80);
    let lost = lost.set("externalIPs", json!([elsewhere]));
    for service in [&loud, &lost] {
        topology.world.apply(service);
    }
    topology
        .node()
        .run_ip(&format!("rule add to {elsewhere} pref 100 unreachable"));
    topology.wait_reported(&format!("route {elsewhere}/32"));
    for address in no_hosts {
        topology.wait_reported(&format!("spec.externalIPs: {address} is no host's address"));
    }
    topology.await_checks(4);
    let status = topology.status();
    assert_eq!(
        (&status["ready"], &status["waitingFor"]),
        (&json!(true), &json!([]))
    );
    assert!(
        !status["errors"].to_string().contains("route 192.168.50."),
        "{status}"
    );
    topology
        .node()
        .run_ip(&format!("rule del to {elsewhere} pref 100 unreachable"));
    for service in [&loud, &lost] {
        topology.world.delete(service);
    }
    topology.wait_ready();
    topology.assert_in_order("without such services");
}

#[test]
fn a_pod_whose_interface_is_gone_is_named_until_it_is_deleted_and_the_node_stays_ready() {
    harness::require_root!();
    let topology = Topology::build();
    for from_inside in [false, true] {
        let doomed = topology.node().add_pod("doomed");
        // The removal of one end removes the other one too. A pod with CAP_NET_ADMIN can remove its own end.
        if from_inside {
            doomed.run_ip("link del eth0");
        } else {
            topology
                .node()
                .run_ip(&format!("link del {}", doomed.host_interface()));
        }
        let status = topology.wait_reported("delete the pod");
        assert!(
            status["errors"].to_string().contains("default/doomed"),
            "{status}"
        );
        topology.await_checks(2);
        let status = topology.status();
        assert_eq!(
            (&status["ready"], &status["waitingFor"]),
            (&json!(true), &json!([]))
        );
        doomed.delete();
        topology.wait_ready();
    }
    topology.assert_in_order("without it");
}

/// Removes the backends from the slots of some frontends. The agent does not compare slots.
fn clear_slots(topology: &Topology, is_doomed: fn(&[u8; 20]) -> bool) {
    let map = |name: &str| {
        let path = topology.node().bpf_root().join("current/maps").join(name);
        MapData::from_pin(path).expect("a map")
    };
    let frontends: HashMap<_, [u8; 20], [u8; 32]> =
        HashMap::try_from(Map::HashMap(map("FRONTENDS"))).expect("a hash table");
    let mut slots: Array<_, [u8; 8]> = Array::try_from(Map::Array(map("SLOTS"))).expect("an array");
    for (_, value) in frontends.iter().flatten().filter(|(key, _)| is_doomed(key)) {
        let range = SlotRange(Frontend::from_bytes(&value).expect("a frontend").slots);
        for slot in range.start()..range.start() + range.count() {
            slots.set(slot, [0; 8], 0).expect("to write");
        }
    }
}

#[test]
fn a_service_without_backends_in_the_maps_does_not_keep_the_node_from_being_ready() {
    harness::require_root!();
    let topology = Topology::build();
    // The self-test asks for the first service, and then for another one.
    let other = Service::new("other").cluster_ip("10.96.0.11").tcp("http", 80, 80);
    topology.world.apply(&other);
    topology
        .world
        .apply_all(other.slices([Endpoint::of(&topology.far)]));
    eventually("the other service", SOON, || topology.status()["services"] == 2);
    clear_slots(&topology, |key| key[12..16] == [10, 96, 0, 10]);
    topology.await_checks(4);
    let status = topology.status();
    assert_eq!((&status["ready"], &status["errors"]), (&json!(true), &json!([])));
    // If no frontend leads to an endpoint, the programs themselves are wrong.
    clear_slots(&topology, |_| true);
    let status = topology.wait_named("leads to no endpoint");
    assert!(status["waitingFor"].to_string().contains("self-test"), "{status}");
}

#[test]
fn a_route_in_the_place_of_a_pods_is_named_with_its_interface() {
    harness::require_root!();
    let topology = Topology::build();
    let address = of_family(topology.web.addresses(), true);
    for rival in ["dev eth0", "via 192.0.2.9 dev eth0 onlink"] {
        topology
            .node()
            .run_ip(&format!("route replace {address}/32 {rival}"));
        let status = topology.wait_named(&format!("ip route del {address}"));
        assert!(
            status["errors"].to_string().contains("by interface eth0"),
            "{status}"
        );
        let lost = topology.before_loss("route");
        topology
            .node()
            .run_ip(&format!("route del {address}/32 dev eth0"));
        lost.wait_restored();
    }
    topology.assert_in_order("without a rival");
    topology.assert_in_time();
}
