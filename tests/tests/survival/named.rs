//! The agent reports a loss that it cannot repair, and is not ready.

use std::time::Instant;

use aya::maps::{Array, HashMap, Map, MapData};
use harness::{Endpoint, Service, eventually, slowness};
use proxy_common::Plain as _;
use proxy_common::maps::{Frontend, SlotRange};
use serde_json::json;

use super::town::{CLUSTER_IP, PROMISED, SOON, Town, of_family};

#[test]
fn a_rule_that_leads_packets_elsewhere_is_named() {
    harness::require_root!();
    let town = Town::build();
    let address = town.far.ip();
    for (to, route) in [
        (CLUSTER_IP.to_owned(), "route 10.96."),
        (address.to_string(), "route 10."),
    ] {
        let range = format!("{to}/16");
        town.node()
            .run_ip(&format!("rule add to {range} pref 100 unreachable"));
        let status = town.wait_named(route);
        assert!(status["waitingFor"].to_string().contains("self-test"), "{status}");
        town.node()
            .run_ip(&format!("rule del to {range} pref 100 unreachable"));
        town.wait_ready();
    }
    town.assert_in_order("without rules");
}

#[test]
fn a_rule_that_looks_at_sources_interfaces_or_protocols_is_named() {
    harness::require_root!();
    let town = Town::build();
    let near = town.near.host_interface().to_owned();
    town.node().run_ip("route add blackhole default table 77");
    town.node()
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
        town.node().run_ip(&format!("{family}rule add {rule}"));
        let begun = Instant::now();
        let status = town.wait_named("`ip rule`");
        times.push(begun.elapsed());
        assert!(
            status["waitingFor"].to_string().contains("self-test"),
            "{rule}: {status}"
        );
        town.node().run_ip(&format!("{family}rule del {rule}"));
        town.wait_ready();
    }
    // A rule of the operator about packets that leave the cluster is reported, and the agent stays ready.
    let rule = format!("iif {near} to 192.0.2.0/24 pref 100 prohibit");
    town.node().run_ip(&format!("rule add {rule}"));
    let address = of_family(town.near.addresses(), true);
    town.wait_told(&format!("packets from {address}"));
    town.node().run_ip(&format!("rule del {rule}"));
    town.wait_ready();
    times.sort_unstable();
    println!("named after {times:?}");
    // A single report may be late on a busy machine, so the median counts.
    assert!(times[times.len() / 2] <= PROMISED * slowness(), "{times:?}");
    town.assert_in_order("without rules");
}

#[test]
fn a_route_inside_a_range_is_named_with_the_command_that_removes_it() {
    harness::require_root!();
    let town = Town::build();
    let [v4, v6] = [true, false].map(|v4| of_family(town.far.addresses(), v4));
    let (v4, v6) = (format!("{v4}/32"), format!("{v6}/128"));
    let service = format!("{CLUSTER_IP}/32");
    town.node().run_ip("rule add to 10.244.0.0/16 pref 50 lookup 77");
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
        town.node().run_ip(&format!("route add {route}"));
        let status = town.wait_told(&format!("\"route {prefix}\""));
        let errors = status["errors"].as_array().expect("a list").iter();
        let told: Vec<_> = errors
            .filter_map(|error| error["message"].as_str()?.split('`').nth(1))
            .collect();
        let [command] = told[..] else {
            panic!("{route}: {status}")
        };
        let command = command.strip_prefix("ip ").expect("a command of ip");
        town.node().run_ip(command);
        town.wait_ready();
    }
    town.node().run_ip("rule del to 10.244.0.0/16 pref 50 lookup 77");
    // A table that no rule uses may hold any route.
    town.node().run_ip(&format!("route add blackhole {v4} table 78"));
    town.await_looks(2);
    assert_eq!(town.status()["errors"], json!([]));
    town.assert_in_order("in the end");
}

#[test]
fn an_address_of_another_nodes_pod_that_is_the_nodes_own_is_named() {
    harness::require_root!();
    let town = Town::build();
    let [v4, v6] = [true, false].map(|v4| of_family(town.far.addresses(), v4));
    town.node().run_ip("rule add to 10.244.0.0/16 pref 50 lookup 77");
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
        town.node().run_ip(&added);
        let begun = Instant::now();
        let status = town.wait_told(&format!("\"route {prefix}\""));
        times.push(begun.elapsed());
        let errors = status["errors"].as_array().expect("a list").iter();
        let told: Vec<_> = errors
            .filter_map(|error| error["message"].as_str()?.split('`').nth(1))
            .collect();
        let [command] = told[..] else {
            panic!("{added}: {status}")
        };
        let command = command.strip_prefix("ip ").expect("a command of ip");
        town.node().run_ip(command);
        town.wait_ready();
    }
    town.node().run_ip("rule del to 10.244.0.0/16 pref 50 lookup 77");
    times.sort_unstable();
    println!("named after {times:?}");
    // A single report may be late on a busy machine, so the median counts.
    assert!(times[times.len() / 2] <= PROMISED * slowness(), "{times:?}");
    town.assert_in_order("in the end");
}

#[test]
fn a_route_with_our_protocol_number_that_is_not_planned_is_removed() {
    harness::require_root!();
    let town = Town::build();
    let far = of_family(town.far.addresses(), true);
    let begun = Instant::now();
    let route = format!("{far} via 192.168.50.99 dev eth0 onlink proto 158");
    town.node().run_ip(&format!("route add {route}"));
    eventually("the route to be removed", SOON, || {
        let arguments = ["route", "show", "proto", "158"];
        let output = town.node().command("ip").args(arguments).output();
        let shown = output.expect("to run ip").stdout;
        !String::from_utf8_lossy(&shown).contains("192.168.50.99")
    });
    let took = begun.elapsed();
    assert!(took <= PROMISED * slowness(), "removed after {took:?}");
    town.wait_ready();
    town.assert_in_order("without it");
    // The agent reports the same route in another table, and does not remove it.
    town.node().run_ip("rule add pref 50 lookup 77");
    town.node().run_ip(&format!("route add {route} table 77"));
    town.wait_told(&format!("\"route {far}/32\""));
    town.node().run_ip(&format!("route del {route} table 77"));
    town.wait_ready();
    town.node().run_ip("rule del pref 50 lookup 77");
    town.assert_in_order("without the rule");
}

#[test]
fn an_address_that_a_service_chose_does_not_keep_the_node_from_being_ready() {
    harness::require_root!();
    let town = Town::build();
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
        town.world.apply(service);
    }
    town.node()
        .run_ip(&format!("rule add to {elsewhere} pref 100 unreachable"));
    town.wait_told(&format!("route {elsewhere}/32"));
    for address in no_hosts {
        town.wait_told(&format!("spec.externalIPs: {address} is no host's address"));
    }
    town.await_looks(4);
    let status = town.status();
    assert_eq!(
        (&status["ready"], &status["waitingFor"]),
        (&json!(true), &json!([]))
    );
    assert!(
        !status["errors"].to_string().contains("route 192.168.50."),
        "{status}"
    );
    town.node()
        .run_ip(&format!("rule del to {elsewhere} pref 100 unreachable"));
    for service in [&loud, &lost] {
        town.world.delete(service);
    }
    town.wait_ready();
    town.assert_in_order("without such services");
}

#[test]
fn a_pod_whose_interface_is_gone_is_named_until_it_is_deleted_and_the_node_stays_ready() {
    harness::require_root!();
    let town = Town::build();
    for from_inside in [false, true] {
        let doomed = town.node().add_pod("doomed");
        // The removal of one end removes the other one too. A pod with CAP_NET_ADMIN can remove its own end.
        if from_inside {
            doomed.run_ip("link del eth0");
        } else {
            town.node()
                .run_ip(&format!("link del {}", doomed.host_interface()));
        }
        let status = town.wait_told("delete the pod");
        assert!(
            status["errors"].to_string().contains("default/doomed"),
            "{status}"
        );
        town.await_looks(2);
        let status = town.status();
        assert_eq!(
            (&status["ready"], &status["waitingFor"]),
            (&json!(true), &json!([]))
        );
        doomed.delete();
        town.wait_ready();
    }
    town.assert_in_order("without it");
}

/// Removes the backends from the slots of some frontends. The agent does not compare slots.
fn blank_slots(town: &Town, is_doomed: fn(&[u8; 20]) -> bool) {
    let map = |name: &str| {
        let path = town.node().bpf_root().join("current/maps").join(name);
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
fn a_service_that_leads_nowhere_does_not_keep_the_node_from_being_ready() {
    harness::require_root!();
    let town = Town::build();
    // The self-test asks for the first service, and then for another one.
    let other = Service::new("other").cluster_ip("10.96.0.11").tcp("http", 80, 80);
    town.world.apply(&other);
    town.world.apply_all(other.slices([Endpoint::of(&town.far)]));
    eventually("the other service", SOON, || town.status()["services"] == 2);
    blank_slots(&town, |key| key[12..16] == [10, 96, 0, 10]);
    town.await_looks(4);
    let status = town.status();
    assert_eq!((&status["ready"], &status["errors"]), (&json!(true), &json!([])));
    // If no frontend leads to an endpoint, the programs themselves are wrong.
    blank_slots(&town, |_| true);
    let status = town.wait_named("leads to no endpoint");
    assert!(status["waitingFor"].to_string().contains("self-test"), "{status}");
}

#[test]
fn a_route_in_the_place_of_a_pods_is_named_with_its_interface() {
    harness::require_root!();
    let town = Town::build();
    let address = of_family(town.web.addresses(), true);
    for rival in ["dev eth0", "via 192.0.2.9 dev eth0 onlink"] {
        town.node().run_ip(&format!("route replace {address}/32 {rival}"));
        let status = town.wait_named(&format!("ip route del {address}"));
        assert!(
            status["errors"].to_string().contains("by interface eth0"),
            "{status}"
        );
        let lost = town.before_loss("route");
        town.node().run_ip(&format!("route del {address}/32 dev eth0"));
        lost.wait_restored();
    }
    town.assert_in_order("without a rival");
    town.assert_in_time();
}
