//! Limits of pods that go: each is made again, whether an annotation or the runtime alone gave it.

use harness::cni::PodSpec;
use harness::{Pod, Probe, wait_for};
use serde_json::json;

use super::town::{SECOND, SOON, Town, of_family};

const RATE: u32 = 5_000_000;

/// What `tc` says, on the node.
fn shown(town: &Town, arguments: &str) -> String {
    let output = town.node().command("tc").args(arguments.split(' ')).output();
    String::from_utf8(output.expect("to run tc").stdout).expect("text")
}

/// Waits until each way has its bucket, and the pod reaches the world outside through them.
#[track_caller]
fn assert_limited(town: &Town, pod: &Pod, when: &str) {
    for prefix in ["mr", "ml"] {
        let interface = pod.host_interface().replacen("mr", prefix, 1);
        let queue = shown(town, &format!("qdisc show dev {interface} root"));
        let is_one = queue.starts_with("qdisc tbf 1: ") && queue.contains("rate 5Mbit");
        assert!(is_one, "{when}: {interface} has {queue}");
    }
    let to = (of_family(town.outside.addresses(), true), 8080).into();
    wait_for(&format!("{when}: the world outside"), SOON, || {
        pod.ask_within(Probe::Tcp, to, SECOND)
    });
}

#[test]
fn limits_that_only_the_runtime_gave_come_back() {
    harness::require_root!();
    let town = Town::build();
    let limit = json!({"ingressRate": RATE, "egressRate": RATE});
    let spec = PodSpec::new("limited").asking("bandwidth", limit);
    let pod = town.node().add_pod_by_plugin(&spec);
    assert_limited(&town, &pod, "at first");
    let [mr, ml, mk] = ["mr", "ml", "mk"].map(|prefix| pod.host_interface().replacen("mr", prefix, 1));
    for (program, loss) in [
        ("tc", format!("qdisc del dev {mr} root")),
        ("tc", format!("qdisc del dev {ml} root")),
        (
            "tc",
            format!("qdisc replace dev {ml} root tbf rate 1gbit burst 1m limit 1m"),
        ),
        ("tc", format!("filter del dev {mk} ingress")),
        ("tc", format!("qdisc del dev {mk} clsact")),
        ("ip", format!("link set {ml} down")),
        ("ip", format!("link set {mk} down")),
        ("ip", format!("link del {ml}")),
    ] {
        let before = town.restored("limit");
        town.run(program, &loss);
        town.wait_restored("limit", before);
        assert_limited(&town, &pod, &loss);
    }
    pod.delete();
    town.assert_in_order("without the pod");
}
