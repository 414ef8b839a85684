//! Three nodes with a tunnel between them, and functions that forge the tunnel's packets.

use std::net::{IpAddr, SocketAddr};

use harness::config::DEFAULTS;
use harness::forge::{Ethernet, Tag, link, packet};
use harness::manifest::Family;
use harness::{Client, Node, NodeSpec, Place, Pod, Service, World, eventually, wait_for};
use proxy_common::maps::Reason;

use crate::icmp::like;
use crate::topology::{SOON, at, counted, datagram, wait_served};

pub const PORT: u16 = 8472;
const SEGMENT: u32 = 1;
pub const FORGED: &[u8] = b"forged";
/// A node's end of the tunnel.
const DEVICE: &str = "millrace-vxlan";
/// The reasons for which a node refuses packets of strangers to its tunnel, or inside it.
pub const FOREIGN_SOURCE: &[Reason] = &[Reason::TunnelSource, Reason::ForgedSource];

/// A line of the agents' configuration.
const VXLAN: &str = "routingMode: vxlan\n";

/// Three nodes with pods and a tunnel between them, and a host on their link.
pub struct Topology {
    pub world: World,
    pub outside: Client,
    /// One pod for each node.
    pods: Vec<Pod>,
    /// Whether the outer header is IPv4.
    pub over_v4: bool,
    _agents: Vec<harness::Agent>,
}

impl Topology {
    /// Nodes of both families, whose tunnel runs over IPv4.
    pub fn build() -> Self {
        Self::of(&NodeSpec::millrace(), true, VXLAN)
    }

    /// The same nodes, whose pods reach each other by routes. The tunnels exist all the same.
    pub fn routed() -> Self {
        Self::of(&NodeSpec::millrace(), true, "")
    }

    /// Nodes of IPv6 only, whose tunnel runs over IPv6.
    pub fn over_ipv6() -> Self {
        Self::of(&NodeSpec::millrace().only(Family::V6), false, VXLAN)
    }

    fn of(spec: &NodeSpec, over_v4: bool, mode: &str) -> Self {
        let builder = World::builder().node(spec.clone()).node(spec.clone());
        let world = builder.node(spec.clone()).build();
        let agents = world.start_agents_with(&format!("{DEFAULTS}{mode}"));
        let outside = world.add_client("outside");
        let pods: Vec<Pod> = (1..=3)
            .map(|n| world.node(n).add_pod(&format!("pod-{n}")))
            .collect();
        let _servers: Vec<_> = pods.iter().map(|pod| pod.serve(8080)).collect();
        for client in &pods {
            for server in &pods {
                wait_served(client, SocketAddr::new(like(server, over_v4), 8080));
            }
        }
        Self {
            world,
            outside,
            pods,
            over_v4,
            _agents: agents,
        }
    }

    pub fn pod(&self, number: usize) -> &Pod {
        &self.pods[number - 1]
    }

    /// A place's address of the outer header's family.
    #[track_caller]
    pub fn ip(&self, place: &Place) -> IpAddr {
        like(place, self.over_v4)
    }

    /// A socket address of a place without a listener.
    #[track_caller]
    pub fn discard(&self, place: &Place) -> SocketAddr {
        SocketAddr::new(self.ip(place), 9)
    }

    pub fn tunnel_port(&self, number: usize) -> SocketAddr {
        SocketAddr::new(self.ip(self.world.node(number)), PORT)
    }

    /// The tunnel's port at the address of the node's tunnel device.
    pub fn end_port(&self, number: usize) -> SocketAddr {
        let ranges = self.world.node(number).pod_cidrs();
        SocketAddr::new(ranges[usize::from(!self.over_v4)].network(), PORT)
    }

    /// A service of the outer header's family for endpoints that are tunnels.
    pub fn round(&self) -> (Service, SocketAddr) {
        let ip = if self.over_v4 { "10.96.0.20" } else { "fd00:96::20" };
        let service = Service::new("round").cluster_ip(ip).udp("vxlan", 53, PORT);
        (service, at(ip, 53))
    }

    /// Sends as the tunnel of a node does for its pod, to a node with a tunnel.
    pub fn by_tunnel(
        &self,
        from: usize,
        (node, entrance): (&Node, SocketAddr),
        victim: &Pod,
    ) -> impl FnMut(&[u8]) {
        let (forge, mac, to) = (self.outside.forge_to(node), end_of(node), self.discard(victim));
        let outer = (self.ip(self.world.node(from)), 40_000);
        let inner = (self.ip(self.pod(from)), 999);
        move |mark| {
            let content = carried_to(mac, Vec::new(), &datagram(inner, to, mark));
            forge.send(&datagram(outer, entrance, &content));
        }
    }
}

/// The hardware address of a node's end of the tunnel.
pub fn end_of(node: &Node) -> [u8; 6] {
    node.mac(DEVICE)
}

/// The payload of a datagram of the tunnel to a node.
pub fn carried(node: &Node, packet: &[u8]) -> Vec<u8> {
    carried_to(end_of(node), Vec::new(), packet)
}

pub fn carried_to(to: [u8; 6], tags: Vec<Tag>, packet: &[u8]) -> Vec<u8> {
    let from = [2; 6];
    link::vxlan(SEGMENT, &Ethernet { to, from, tags }.of_packet(packet))
}

/// The payload of the tunnel with a forged datagram inside.
pub fn forgery(node: &Node, from: IpAddr, to: &Pod) -> Vec<u8> {
    let to = like(to, from.is_ipv4());
    carried(node, &datagram((from, 999), SocketAddr::new(to, 9), FORGED))
}

/// A packet of either family in fragments. The first fragment has the ports.
pub fn in_fragments(packet: &[u8]) -> Vec<Vec<u8>> {
    if packet[0] >> 4 == 4 {
        packet::fragments(packet, 32)
    } else {
        packet::fragments_with_options(packet, fastrand::u32(..), 32)
    }
}

/// Waits until a node has refused this number of packets in all. The node may not have handled the last ones
/// yet.
#[track_caller]
pub fn wait_refused(node: &Node, reasons: &[Reason], count: u64, what: &str) {
    wait_for(&format!("{what} to be refused"), SOON, || {
        let refused = counted(node, reasons);
        if refused >= count {
            Ok(())
        } else {
            Err(format!("{refused} of {count}"))
        }
    });
}

/// Sends one packet, and asserts that a node counts it for one of these reasons.
#[track_caller]
pub fn assert_is_counted(node: &Node, reasons: &[Reason], what: &str, send: impl FnOnce()) {
    let before = counted(node, reasons);
    send();
    wait_refused(node, reasons, before + 1, what);
}

/// Sends until a node refuses the packet: the service has no effect before it is programmed.
#[track_caller]
pub fn send_until_refused(node: &Node, what: &str, mut send: impl FnMut()) {
    let refused = || counted(node, &[Reason::TunnelPort]);
    let before = refused();
    eventually(&format!("{what} to be refused"), SOON, || {
        send();
        refused() > before
    });
}
