//! What the agent cannot make again makes it not ready, and is named.

use super::town::{CLUSTER_IP, Town};

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
fn a_pod_whose_interface_is_gone_is_named_until_it_is_deleted() {
    harness::require_root!();
    let town = Town::build();
    let doomed = town.node().add_pod("doomed");
    town.node()
        .run_ip(&format!("link del {}", doomed.host_interface()));
    let status = town.wait_named("delete the pod");
    assert!(
        status["errors"].to_string().contains("default/doomed"),
        "{status}"
    );
    doomed.delete();
    town.wait_ready();
    town.assert_in_order("without it");
}
