//! Traces on nodes with Millrace's pod network: their pods are known by address, and nodes send through a
//! tunnel.

use std::time::Duration;

use harness::config::DEFAULTS;
use harness::{Agent, Endpoint, Node, NodeSpec, Service, World};
use serde_json::Value;

const SECOND: Duration = Duration::from_secs(1);
const SERVICE: &str = "10.96.0.10:80";

/// Two nodes, and a service with one endpoint.
fn world() -> (World, Vec<Agent>) {
    let spec = NodeSpec::millrace;
    let world = World::builder().node(spec()).node(spec()).build();
    let mut agents = world.start_agents_with(&format!("{DEFAULTS}routingMode: vxlan\n"));
    for agent in &mut agents {
        agent.wait_ready(10 * SECOND);
    }
    (world, agents)
}

fn trace(node: &Node, from: &str, to: &str, protocol: &str) -> Value {
    let verb = ["trace", "--from", from, "--to", to, "--proto", protocol];
    node.cli(&verb).expect("a trace")
}

#[track_caller]
fn assert_has_step(trace: &Value, what: &str) {
    assert!(
        trace["steps"].to_string().contains(what),
        "{what} is not in {trace}"
    );
}

#[test]
fn a_trace_names_the_pod_and_the_program_at_its_interface() {
    harness::require_root!();
    let (world, _agents) = world();
    let node = world.node(1);
    let (client, server) = (node.add_pod("client"), node.add_pod("server"));
    let _servers = server.serve(80);
    let service = Service::new("web").cluster_ip("10.96.0.10").tcp("http", 80, 80);
    world.apply(&service);
    world.apply_all(service.slices([Endpoint::of(&server)]));
    harness::eventually("the service", 10 * SECOND, || {
        trace(node, &client.ip().to_string(), SERVICE, "tcp")["verdict"] == "forward"
    });
    let known = trace(node, &client.ip().to_string(), SERVICE, "tcp");
    assert_has_step(&known, &format!("at interface {}", client.host_interface()));
    assert_has_step(&known, "the program from_own_pod decides");
    assert_has_step(&known, "with 1 usable endpoint\"");
    // Sockets of pods are connected to a backend directly.
    assert_has_step(&known, "sockets of pods get a backend from connect()");
    let datagram = trace(node, &client.ip().to_string(), "192.0.2.99:53", "udp");
    assert_has_step(&datagram, "the program from_own_pod decides, packet by packet");

    let unknown = trace(node, "10.244.1.250", SERVICE, "tcp");
    assert_has_step(
        &unknown,
        "no pod that `millrace-cni` made on this node has 10.244.1.250",
    );
    assert!(!known["steps"].to_string().contains("no pod"), "{known}");

    // A verdict sets the exit status only with an option.
    let from = client.ip().to_string();
    let refused = [
        "trace",
        "--from",
        &from,
        "--to",
        "10.96.77.77:80",
        "--proto",
        "tcp",
    ];
    for (flags, status) in [(&[][..], 0), (&["--exit-code"][..], 3)] {
        let output = node.run(&[&refused[..], flags].concat()).expect("to run it");
        assert_eq!(output.status.code(), Some(status), "{output:?}");
    }
}

#[test]
fn a_packet_for_the_tunnel_carries_what_its_node_may_send() {
    harness::require_root!();
    let (world, _agents) = world();
    let (node, other) = (world.node(1), world.node(2));
    let to = format!("{}:8472", node.ip());
    let of_node = trace(node, &other.ip().to_string(), &to, "udp");
    assert_eq!(of_node["verdict"], "pass", "{of_node}");
    assert_has_step(&of_node, "as from a pod of node n2");
    let of_unknown_address = trace(node, "198.51.100.7", &to, "udp");
    assert_eq!(of_unknown_address["verdict"], "drop", "{of_unknown_address}");
    assert_has_step(&of_unknown_address, "no node has this source");
}
