//! A pod that the operator exempts may send from addresses that are not its own. No other pod may, regardless
//! of its own annotations.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use harness::config::DEFAULTS;
use harness::{Agent, NodeSpec, Place, Pod, PodSpec, World, eventually, wait_for};
use serde_json::{Value, json};

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 9000;
/// Addresses of hosts behind a pod.
const FOREIGN: [&str; 2] = ["172.20.0.9", "fd20::9"];
const CHOICE: &str = "podsWithAnySource: [{namespace: default, podSelector: {matchLabels: {app: router}}}]\n";

/// A node whose pods Millrace's plugin makes, and a pod that receives the packets of the others.
struct Topology {
    server: Pod,
    sockets: [UdpSocket; 2],
    file: PathBuf,
    agent: Agent,
    world: World,
}

impl Topology {
    fn open(settings: &str) -> Self {
        let world = World::builder().node(NodeSpec::millrace()).build();
        let node = world.node(1);
        let file = node.dir().join("agent.yaml");
        fs::write(&file, format!("{DEFAULTS}{settings}")).expect("writing the file");
        let builder = node.agent().arg("--config").arg(file.display().to_string());
        let mut agent = builder.start();
        agent.wait_ready(10 * SECOND);
        let server = node.add_pod("server");
        let sockets = [0, 1].map(|family| {
            let at = SocketAddr::new(server.addresses()[family], PORT);
            let socket = wait_for("the address to be usable", 5 * SECOND, || server.udp_bind(at));
            socket.set_read_timeout(Some(SECOND / 5)).expect("to set");
            socket
        });
        Self {
            server,
            sockets,
            file,
            agent,
            world,
        }
    }

    fn configure(&self, settings: &str) {
        fs::write(&self.file, format!("{DEFAULTS}{settings}")).expect("writing the file");
    }

    /// A pod that holds the foreign addresses, and its object.
    fn add_pod(&self, name: &str, metadata: Value) -> Pod {
        let node = self.world.node(1);
        let pod = node.add_pod_by_plugin(&PodSpec::new(name));
        for address in FOREIGN {
            let address: IpAddr = address.parse().expect("an address");
            pod.add_address("eth0", address.into());
        }
        self.describe(name, metadata);
        pod
    }

    fn describe(&self, name: &str, mut metadata: Value) {
        metadata["name"] = json!(name);
        metadata["namespace"] = json!("default");
        self.world.apply(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {"nodeName": "n1"},
            "status": {"phase": "Running"},
        }));
    }

    /// Whether a datagram that a pod sends from a foreign address of this family arrives, with that address.
    fn arrives(&self, pod: &Place, family: usize) -> bool {
        let from: IpAddr = FOREIGN[family].parse().expect("an address");
        let to = self.server.addresses()[family];
        // An IPv6 address takes a moment to be usable.
        let bound = || pod.udp_bind(SocketAddr::new(from, 0));
        let socket = wait_for("the address to be usable", 5 * SECOND, bound);
        socket
            .send_to(pod.name().as_bytes(), SocketAddr::new(to, PORT))
            .expect("to send");
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = self.sockets[family].recv_from(&mut buffer) {
            if &buffer[..length] == pod.name().as_bytes() {
                assert_eq!(peer.ip(), from);
                return true;
            }
        }
        false
    }

    #[track_caller]
    fn wait(&self, pod: &Pod, expected: bool) {
        for (family, from) in FOREIGN.iter().enumerate() {
            let what = format!("packets of {} from {from} to arrive: {expected}", pod.name());
            eventually(&what, 10 * SECOND, || self.arrives(pod, family) == expected);
        }
    }

    #[track_caller]
    fn assert_not_received(&self, pod: &Pod) {
        for (family, from) in FOREIGN.iter().enumerate() {
            for _ in 0..3 {
                assert!(!self.arrives(pod, family), "{} from {from}", pod.name());
            }
        }
    }
}

#[test]
fn only_the_operator_exempts_a_pod_from_the_source_check() {
    harness::require_root!();
    let mut topology = Topology::open(CHOICE);
    let router = topology.add_pod("router", json!({"labels": {"app": "router"}}));
    let plain = topology.add_pod("plain", json!({"labels": {"app": "web"}}));
    let bandwidth = json!({
        "millrace.dev/any-source": "true",
        "millrace.dev/podsWithAnySource": "true",
        "podsWithAnySource": "true",
    });
    let greedy = topology.add_pod("greedy", json!({"annotations": bandwidth}));
    topology.wait(&router, true);
    topology.assert_not_received(&plain);
    topology.assert_not_received(&greedy);

    // A pod that comes later, a pod that gets the label later, and one that loses it again.
    let second = topology.add_pod("second", json!({"labels": {"app": "router"}}));
    topology.wait(&second, true);
    topology.describe("plain", json!({"labels": {"app": "router"}}));
    topology.wait(&plain, true);
    topology.describe("plain", json!({"labels": {"app": "web"}}));
    topology.wait(&plain, false);

    // A restarted agent restores the exemptions.
    topology.agent.restart();
    topology.agent.wait_ready(10 * SECOND);
    topology.wait(&router, true);
    topology.assert_not_received(&plain);

    topology.configure("podsWithAnySource: [{namespace: default, names: [second]}]\n");
    topology.wait(&router, false);
    topology.wait(&second, true);
    topology.configure("");
    topology.wait(&second, false);
    topology.configure(CHOICE);
    topology.wait(&router, true);
    assert_eq!(topology.agent.cli(&["status"])["errors"], json!([]));
}

#[test]
fn a_selector_in_another_namespace_exempts_no_pod() {
    harness::require_root!();
    let topology = Topology::open("podsWithAnySource: [{namespace: other, podSelector: {}}]\n");
    let pod = topology.add_pod("pod", json!({"labels": {"app": "router"}}));
    topology.assert_not_received(&pod);
}
