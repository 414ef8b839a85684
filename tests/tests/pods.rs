//! Settings of the operator and of pods: the pods whose sockets are translated, and the interfaces that
//! belong to pods.

use std::time::Duration;

use harness::{Agent, Endpoint, Pod, Probe, Service, World, eventually};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);

/// A pod's object, as its node's kubelet reports it.
fn object(pod: &Pod, socket_lb: Option<&str>) -> Value {
    let addresses = pod.addresses();
    let addresses: Vec<_> = addresses.iter().map(|address| json!({"ip": address})).collect();
    let annotations = socket_lb.map_or_else(|| json!({}), |value| json!({"millrace.dev/socket-lb": value}));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name(), "namespace": "default", "annotations": annotations},
        "spec": {"nodeName": pod.node().name()},
        "status": {"phase": "Running", "podIPs": addresses},
    })
}

fn namespace(socket_lb: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "default", "annotations": {"millrace.dev/socket-lb": socket_lb}},
    })
}

fn entries(agent: &Agent, map: &str) -> u64 {
    let status = agent.cli(&["status"]);
    status["maps"][map]["entries"].as_u64().expect("a number")
}

/// The number of flows, established ones and ended ones.
fn flows(agent: &Agent) -> u64 {
    entries(agent, "flows") + entries(agent, "newFlows")
}

#[track_caller]
fn wait_for_namespaces(agent: &Agent, count: u64) {
    eventually(&format!("{count} namespaces"), 5 * SECOND, || {
        entries(agent, "podNamespaces") == count
    });
}

#[test]
fn sockets_of_pods_that_opt_out_are_left_to_the_packet_path() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let [plain, shy, backend] = ["plain", "shy", "backend"].map(|name| node.add_pod(name));
    let _server = backend.serve_tcp(8080);
    let service = Service::new("web").cluster_ip("10.96.0.10").tcp("http", 80, 8080);
    world.apply(&service);
    world.apply_all(service.slices([Endpoint::of(&backend)]));
    let to = "10.96.0.10:80".parse().expect("an address");
    let mut agent = node.agent().start();
    agent.wait_ready(10 * SECOND);
    wait_for_namespaces(&agent, 3);

    for pod in [&plain, &backend] {
        world.apply(&object(pod, None));
    }
    world.apply(&object(&shy, Some("off")));
    wait_for_namespaces(&agent, 2);
    let ask = |pod: &Pod| pod.ask(Probe::Tcp, to).expect("a reply");
    ask(&plain);
    assert_eq!(flows(&agent), 0, "translated at connect()");
    ask(&shy);
    assert!(flows(&agent) > 0, "translated packet by packet");

    // While some pods opt out, the sockets of a pod without a known object are not translated. The pod is
    // served all the same.
    let unselected = node.add_pod("stranger");
    ask(&unselected);
    assert_eq!(entries(&agent, "podNamespaces"), 2);
    world.apply(&object(&unselected, None));
    wait_for_namespaces(&agent, 3);

    world.apply(&namespace("off"));
    wait_for_namespaces(&agent, 0);
    world.apply(&namespace("on"));
    wait_for_namespaces(&agent, 3);
    world.apply(&object(&shy, None));
    wait_for_namespaces(&agent, 4);
}

#[test]
fn the_operator_names_the_interfaces_of_pods() {
    harness::require_root!();
    let world = World::with_nodes(1);
    let node = world.node(1);
    let [named, other] = ["named", "other"].map(|name| node.add_pod(name));
    let mut agent = node
        .agent()
        .arg("--pod-interfaces")
        .arg(named.host_interface())
        .start();
    agent.wait_ready(10 * SECOND);
    let attached = || agent.cli(&["status"])["programs"]["from_pod"]["attachedTo"].clone();
    assert_eq!(attached(), json!([named.host_interface()]));
    drop(other);

    let output = node
        .agent()
        .arg("--pod-interfaces")
        .arg("a*b")
        .start()
        .wait_ended(5 * SECOND);
    assert!(!output.success(), "a pattern that is none");
}
