//! Two nodes that see the network between them differently: one has lost an address, or has another netmask.
//! Each node still accepts the packets of the other one.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use harness::{Agent, NodeSpec, Pod, Probe, Server, World, eventually};
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);
/// The longest interruption between the pods after a change.
const SOON: Duration = Duration::from_secs(2);

/// A pod on each of two nodes.
struct Pair {
    world: World,
    pods: [Pod; 2],
    agents: Vec<Agent>,
    _servers: Vec<Server>,
}

impl Pair {
    fn build() -> Self {
        let world = World::builder()
            .node(NodeSpec::millrace())
            .node(NodeSpec::millrace())
            .build();
        let agents = world.start_agents();
        let pods = [world.node(1).add_pod("one"), world.node(2).add_pod("two")];
        let servers = pods
            .iter()
            .flat_map(|pod| [pod.serve_tcp(8080), pod.serve_udp(8080)]);
        let servers = servers.collect();
        let pair = Self {
            world,
            pods,
            agents,
            _servers: servers,
        };
        for v4 in [true, false] {
            pair.wait_joined(v4, 10 * SECOND);
        }
        pair
    }

    /// Whether each pod reaches the other one, with its own address.
    fn are_joined(&self, v4: bool) -> bool {
        let [one, two] = &self.pods;
        let of = |pod: &Pod| pod.addresses().iter().copied().find(|ip| ip.is_ipv4() == v4);
        [(one, two), (two, one)].into_iter().all(|(client, server)| {
            let to = SocketAddr::new(of(server).expect("an address"), 8080);
            [Probe::Tcp, Probe::UdpConnected].into_iter().all(|probe| {
                let reply = client.ask_within(probe, to, SECOND / 2);
                reply.is_ok_and(|reply| Some(reply.peer.ip()) == of(client))
            })
        })
    }

    #[track_caller]
    fn wait_joined(&self, v4: bool, within: Duration) {
        let family = if v4 { "IPv4" } else { "IPv6" };
        eventually(&format!("{family} between the pods"), within, || {
            self.are_joined(v4)
        });
    }

    /// The first node's address of a family, as `ip address` takes it.
    fn address(&self, v4: bool) -> (IpAddr, String) {
        let node = self.world.node(1);
        let held = node.addresses().iter().copied().find(|ip| ip.is_ipv4() == v4);
        let ip = held.expect("an address");
        (ip, format!("{ip}/{}", if v4 { 24 } else { 64 }))
    }

    fn errors(&self) -> String {
        self.agents[0].cli(&["status"])["errors"].to_string()
    }
}

#[test]
fn the_loss_of_a_familys_address_costs_that_family_and_is_named() {
    harness::require_root!();
    let pair = Pair::build();
    let node = pair.world.node(1);
    for lost_v4 in [false, true] {
        let (ip, prefix) = pair.address(lost_v4);
        assert!(!pair.errors().contains(&ip.to_string()));
        node.run_ip(&format!("addr del {prefix} dev eth0"));
        pair.wait_joined(!lost_v4, SOON);
        let message = format!("{ip} of this Node is on no interface");
        eventually("the address in status", 3 * SECOND, || {
            pair.errors().contains(&message)
        });
        pair.wait_joined(!lost_v4, SOON);
        let nodad = if lost_v4 { "" } else { " nodad" };
        node.run_ip(&format!("addr add {prefix} dev eth0{nodad}"));
        pair.wait_joined(lost_v4, SOON);
        eventually("no error", 3 * SECOND, || {
            pair.agents[0].cli(&["status"])["errors"] == json!([])
        });
    }
}

/// The second node has its address without a subnet, and a route instead. So it does not treat the first one
/// as a neighbour and sends through the tunnel, while the first one sends directly.
#[test]
fn unlike_netmasks_do_not_cut_nodes_apart() {
    harness::require_root!();
    let pair = Pair::build();
    let second = pair.world.node(2);
    let v4 = second.ip();
    second.run_ip(&format!("addr del {v4}/24 dev eth0"));
    second.run_ip(&format!("addr add {v4}/32 dev eth0"));
    let network = pair.world.node(1).ip();
    second.run_ip(&format!("route add {network}/32 dev eth0"));
    let mode_of = |agent: &Agent, other: &str| {
        let nodes = agent.cli(&["node", "list"]);
        let mut nodes = nodes.as_array().expect("a list").iter();
        let node = nodes.find(|node| node["name"] == other).expect("the node");
        node["mode"].clone()
    };
    eventually("the second node to judge otherwise", 3 * SECOND, || {
        mode_of(&pair.agents[1], "n1") == "vxlan"
    });
    assert_eq!(mode_of(&pair.agents[0], "n2"), "direct");
    for v4 in [true, false] {
        pair.wait_joined(v4, SOON);
    }
}
