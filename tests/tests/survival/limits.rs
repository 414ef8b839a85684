//! Limits of pods that are lost: the agent restores each, whether an annotation set it or only the runtime.

use std::time::Instant;

use harness::cni::PodSpec;
use harness::{Pod, Probe, wait_for};
use serde_json::json;

use super::topology::{SECOND, SOON, Topology, of_family};

const RATE: u32 = 5_000_000;

/// The output of `tc` on the node.
fn shown(topology: &Topology, arguments: &str) -> String {
    let output = topology.node().command("tc").args(arguments.split(' ')).output();
    String::from_utf8(output.expect("to run tc").stdout).expect("text")
}

/// Asserts that each direction has its token bucket, and waits until the pod reaches the outside through
/// them.
#[track_caller]
fn assert_limited(topology: &Topology, pod: &Pod, when: &str) {
    for prefix in ["mr", "ml"] {
        let interface = pod.host_interface().replacen("mr", prefix, 1);
        let queue = shown(topology, &format!("qdisc show dev {interface} root"));
        let is_one = queue.starts_with("qdisc tbf 1: ") && queue.contains("rate 5Mbit");
        assert!(is_one, "{when}: {interface} has {queue}");
    }
    let to = (of_family(topology.outside.addresses(), true), 8080).into();
    wait_for(&format!("{when}: the world outside"), SOON, || {
        pod.ask_within(Probe::Tcp, to, SECOND)
    });
}

#[test]
fn limits_that_only_the_runtime_gave_come_back() {
    harness::require_root!();
    let topology = Topology::build();
    let limit = json!({"ingressRate": RATE, "egressRate": RATE});
    let spec = PodSpec::new("limited").asking("bandwidth", limit);
    let pod = topology.node().add_pod_by_plugin(&spec);
    assert_limited(&topology, &pod, "at first");
    let [mr, ml, mk] = ["mr", "ml", "mk"].map(|prefix| pod.host_interface().replacen("mr", prefix, 1));
    for (program, loss) in [
        ("tc", format!("qdisc del dev {mr} root")),
        ("tc", format!("qdisc del dev {ml} root")),
        (
            "tc",
            format!("qdisc replace dev {ml} root tbf rate 1gbit burst 1m limit 1m"),
        ),
        // The agent replaces the queue of another program.
        ("tc", format!("qdisc replace dev {mr} root htb")),
        ("tc", format!("filter del dev {mk} ingress")),
        ("tc", format!("qdisc del dev {mk} clsact")),
        ("ip", format!("link set {ml} down")),
        ("ip", format!("link set {mk} down")),
        ("ip", format!("link set {ml} mtu 1000")),
        ("ip", format!("link set {mk} mtu 1000")),
        ("ip", format!("link del {ml}")),
    ] {
        topology.lose("limit", |topology| topology.run(program, &loss));
        assert_limited(&topology, &pod, &loss);
    }
    topology.assert_in_time();
    pod.delete();
    topology.assert_in_order("without the pod");
}

/// Waits until the status names the queue of another program, with the command that removes it.
#[track_caller]
fn assert_foreign(topology: &Topology, interface: &str, queue: &str) {
    let status = topology.wait_reported(&format!("`tc qdisc del dev {interface} root`"));
    let reported = status["errors"].to_string();
    let is_named = reported.contains(&format!(
        "interface {interface} has the queueing discipline {queue} "
    ));
    assert!(is_named && !reported.contains("os error"), "{reported}");
}

#[test]
fn the_queue_of_another_program_at_a_pod_without_a_limit_is_named_and_stays() {
    harness::require_root!();
    let topology = Topology::build();
    let interface = topology.near.host_interface();
    for (queue, shown_as) in [
        ("handle 77: tbf rate 1gbit burst 1m limit 1m", "tbf 77:"),
        ("handle 1: htb", "htb 1:"),
    ] {
        topology.run("tc", &format!("qdisc add dev {interface} root {queue}"));
        assert_foreign(&topology, interface, shown_as);
        let there = shown(&topology, &format!("qdisc show dev {interface} root"));
        assert!(there.contains(shown_as), "{there}");
        topology.run("tc", &format!("qdisc del dev {interface} root"));
        topology.wait_ready();
    }
    topology.assert_in_order("without it");
}

#[test]
fn the_queue_of_another_program_at_a_device_of_ours_is_named_and_stays() {
    harness::require_root!();
    let topology = Topology::with("routingMode: vxlan\n");
    let shaped = "root handle 1: tbf rate 1gbit burst 1m limit 1m";
    for interface in ["millrace0", "millrace-vxlan"] {
        topology.run("tc", &format!("qdisc add dev {interface} {shaped}"));
        let begun = Instant::now();
        assert_foreign(&topology, interface, "tbf 1:");
        let took = begun.elapsed();
        assert!(took <= SOON, "{interface}: named after {took:?}");
        let there = shown(&topology, &format!("qdisc show dev {interface} root"));
        assert!(there.contains("tbf 1:"), "{there}");
        topology.run("tc", &format!("qdisc del dev {interface} root"));
        topology.wait_ready();
    }
    // An operator may shape the packets that leave by an uplink.
    topology.run("tc", &format!("qdisc add dev eth0 {shaped}"));
    topology.await_checks(3);
    assert_eq!(topology.status()["errors"], json!([]));
    topology.run("tc", "qdisc del dev eth0 root");
    topology.assert_in_order("without them");
}
