//! The agent reports a kube-proxy that still runs, or the rules that one left behind, with the steps to
//! remove them.

use std::time::Duration;

use harness::{World, wait_for};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn stale_rules_of_kube_proxy_are_in_the_status_with_the_command_that_removes_them() {
    harness::require_root!();
    let world = World::with_nodes(2);
    let added = world
        .node(1)
        .command("ip")
        .args(["link", "add", "kube-ipvs0", "type", "veth"])
        .status();
    assert!(added.expect("to run ip").success());
    let agents = world.start_agents();
    let errors = wait_for("the report", 5 * SECOND, || {
        let errors = agents[0].cli(&["status"])["errors"].take();
        if errors.as_array().is_some_and(|errors| !errors.is_empty()) {
            Ok(errors)
        } else {
            Err("there is none")
        }
    });
    assert_eq!(errors[0]["code"], "KubeProxyLeftover");
    assert_eq!(errors[0]["object"], "kube-proxy's device kube-ipvs0");
    let message = errors[0]["message"].as_str().expect("text");
    assert!(
        message.ends_with("stop kube-proxy on this node first, then run `kube-proxy --cleanup`"),
        "{message}"
    );
    assert!(agents[0].log().contains(message), "it is logged too");
    assert_eq!(agents[1].cli(&["status"])["errors"], serde_json::json!([]));
}
