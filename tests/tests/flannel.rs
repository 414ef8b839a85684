//! Millrace beside flannel. The tunnel of one node is flannel's: the test sets it up as flannel's daemon
//! does, from the annotations of Node objects. That node reaches Millrace's pods, and they reach it.

use std::net::SocketAddr;
use std::time::Duration;

use harness::{Agent, Client, Node, NodeSpec, Pod, Probe, World, eventually};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
/// The MAC address of the other node's end of the tunnel.
const OTHER: &str = "02:00:00:00:09:01";
/// The MAC address that is derived from 192.168.50.11.
const DERIVED: &str = "0a:6d:c0:a8:32:0b";

/// A Node object with the annotations of flannel's daemon.
fn annotated(mut node: Value, mac: &str) -> Value {
    node["metadata"]["annotations"] = json!({
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": json!({"VNI": 1, "VtepMAC": mac}).to_string(),
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
    });
    node
}

fn object(other: &Client) -> Value {
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n9"},
        "spec": {"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": other.ip()}]},
    });
    annotated(node, OTHER)
}

/// The set-up that flannel's daemon makes. An address of the loopback stands for a pod.
fn lay_out(other: &Client) {
    for line in [
        &format!(
            "link add flannel.1 address {OTHER} mtu 1450 type vxlan id 1 local {} dstport 8472 nolearning",
            other.ip()
        ),
        "addr add 10.244.9.0/32 dev flannel.1",
        "addr add 10.244.9.1/32 dev lo",
        "link set flannel.1 up",
        "route add 10.244.1.0/24 via 10.244.1.0 dev flannel.1 onlink",
    ] {
        other.run_ip(line);
    }
}

/// The entries that flannel's daemon makes from the annotation of a Millrace node.
fn add_tunnel_entries(other: &Client, node: &Node, mac: &str) {
    other.run_ip(&format!(
        "neigh replace 10.244.1.0 lladdr {mac} dev flannel.1 nud permanent"
    ));
    let dst = node.ip().to_string();
    let output = other
        .command("bridge")
        .args([
            "fdb",
            "replace",
            mac,
            "dev",
            "flannel.1",
            "dst",
            &dst,
            "self",
            "permanent",
        ])
        .output()
        .expect("running bridge");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "bridge fdb: {error}");
}

fn mac_of_tunnel(node: &Node) -> String {
    let output = node
        .command("ip")
        .args(["-o", "link", "show", "millrace-vxlan"])
        .output();
    let text = String::from_utf8(output.expect("running ip").stdout).expect("text");
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "link/ether")
        .skip(1);
    words.next().unwrap_or_default().to_owned()
}

fn assert_reach_each_other(pod: &Pod, other: &Client) {
    let there = SocketAddr::from(([10, 244, 9, 1], 8080));
    let here = SocketAddr::from((pod.ip(), 8080));
    // By TCP only: a host that acts as its own pod sends datagrams from the address of its tunnel.
    let reply = pod.ask(Probe::Tcp, there);
    let reply = reply.unwrap_or_else(|error| panic!("to {there}: {error}"));
    assert_eq!(reply.peer.ip(), here.ip());
    for probe in [Probe::Tcp, Probe::Udp] {
        let from = SocketAddr::from(([10, 244, 9, 1], 0));
        let reply = other.ask_from(probe, from, here, 3 * SECOND);
        let reply = reply.unwrap_or_else(|error| panic!("to {here}: {error}"));
        assert_eq!(reply.peer.ip(), there.ip());
    }
}

fn started(node: &Node) -> Agent {
    let mut agent = node.agent().start();
    agent.wait_ready(20 * SECOND);
    agent
}

#[test]
fn a_node_of_flannels_and_one_of_ours_reach_each_other() {
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    let other = world.add_remote_client("flannel");
    lay_out(&other);
    add_tunnel_entries(&other, node, DERIVED);
    world.apply(&object(&other));
    let _agent = started(node);
    let pod = node.add_pod("pod");
    let _servers = [pod.serve_tcp(8080), pod.serve_udp(8080), other.serve_tcp(8080)];
    assert_eq!(mac_of_tunnel(node), DERIVED);
    assert_reach_each_other(&pod, &other);

    // A node that flannel served before keeps the MAC address that other nodes know.
    let known = "02:00:00:00:01:01";
    world.apply(&annotated(node.object(), known));
    eventually("the tunnel to be made anew", 5 * SECOND, || {
        mac_of_tunnel(node) == known
    });
    add_tunnel_entries(&other, node, known);
    eventually("the way through it", 5 * SECOND, || {
        pod.ping([10, 244, 9, 1].into(), SECOND / 2).is_ok()
    });
    assert_reach_each_other(&pod, &other);
}

#[test]
fn flannels_own_device_is_left_alone_and_named() {
    harness::require_root!();
    let world = World::builder().node(NodeSpec::millrace()).build();
    let node = world.node(1);
    let other = world.add_remote_client("flannel");
    node.run_ip("link add flannel.1 type vxlan id 1 local 192.168.50.11 dstport 8472 nolearning");
    world.apply(&object(&other));
    let agent = started(node);
    let errors = agent.cli(&["status"])["errors"].to_string();
    assert!(errors.contains("flannel.1 perhaps: remove it"), "{errors}");
    node.run_ip("link show flannel.1");
    node.run_ip("link del flannel.1");
    eventually("a tunnel of ours", 5 * SECOND, || mac_of_tunnel(node) == DERIVED);
    eventually("nothing to be wrong", 5 * SECOND, || {
        agent.cli(&["status"])["errors"] == json!([])
    });
}
