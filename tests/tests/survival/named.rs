//! What the agent cannot make again makes it not ready, and is named.

use harness::{Endpoint, Service, eventually};
use serde_json::json;

use super::pins::empty;
use super::town::{CLUSTER_IP, SOON, Town, of_family};

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
fn a_pod_whose_interface_is_gone_is_named_until_it_is_deleted_and_the_node_stays_ready() {
    harness::require_root!();
    let town = Town::build();
    for from_inside in [false, true] {
        let doomed = town.node().add_pod("doomed");
        // Either end takes the other with it, and a pod with CAP_NET_ADMIN can remove its own.
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

#[test]
fn a_service_that_leads_nowhere_does_not_keep_the_node_from_being_ready() {
    harness::require_root!();
    let town = Town::build();
    // The one that the self-test asks for first, then another one.
    let other = Service::new("other").cluster_ip("10.96.0.11").tcp("http", 80, 80);
    town.world.apply(&other);
    town.world.apply_all(other.slices([Endpoint::of(&town.far)]));
    eventually("the other service", SOON, || town.status()["services"] == 2);
    empty::<20, 32>(&town, "FRONTENDS", |key| key[12..16] == [10, 96, 0, 10]);
    town.await_looks(4);
    let status = town.status();
    assert_eq!((&status["ready"], &status["errors"]), (&json!(true), &json!([])));
    // With none left, what the programs do is wrong.
    empty::<20, 32>(&town, "FRONTENDS", |_| true);
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
        let before = town.restored("route");
        town.node().run_ip(&format!("route del {address}/32 dev eth0"));
        town.wait_restored("route", before);
    }
    town.assert_in_order("without a rival");
}
