//! ICMP errors from hosts that are not the destination of a packet. They end no exchange of other pods and
//! lower no path MTU.
//!
//! An error carries the packet that it is about, and an attacker can guess all of that. A pod may report
//! errors about packets to itself only. The tunnel accepts no such error from pods or hosts.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use harness::config::DEFAULTS;
use harness::forge::{link, packet};
use harness::manifest::Family;
use harness::{Agent, Client, Forge, Node, NodeSpec, PacketSocket, Place, Pod, Server, World, wait_for};
use proxy_common::maps::Reason;

use crate::topology::{
    Refusals, SECOND, SOON, Topology, assert_nothing_came, came_before, captured, datagram, honest,
    wait_served,
};

const FORGED: &[u8] = b"forged";
/// The port of a resolver outside that does not reply.
const SILENT: u16 = 5353;
/// A port without a listener.
const CLOSED: u16 = 9;
const TUNNEL_PORT: u16 = 8472;
const SEGMENT: u32 = 1;
/// The size of a datagram that fits through the tunnel, but not through one with a lowered MTU.
const LARGE: usize = 1300;

/// The place's address of a family. The place may have one family only.
#[track_caller]
pub fn like(place: &Place, v4: bool) -> IpAddr {
    let found = place.addresses().iter().find(|ip| ip.is_ipv4() == v4);
    *found.expect("an address of that family")
}

const fn ether_type(v4: bool) -> u16 {
    if v4 { packet::IPV4 } else { packet::IPV6 }
}

/// The message "port unreachable" about a packet.
fn unreachable(v4: bool, about: &[u8]) -> Vec<u8> {
    let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
    [&[kind, code, 0, 0, 0, 0, 0, 0], about].concat()
}

/// The message "packet too big" about a packet, with the MTU `room`.
fn too_big(v4: bool, room: u16, about: &[u8]) -> Vec<u8> {
    let (kind, code) = if v4 { (3, 4) } else { (2, 0) };
    let [high, low] = room.to_be_bytes();
    [&[kind, code, 0, 0, 0, 0, high, low], about].concat()
}

/// A socket that is connected to a peer, and its own address.
#[track_caller]
fn connected(place: &Place, to: SocketAddr) -> (UdpSocket, SocketAddr) {
    let socket = place.udp_socket_for(to).expect("a socket");
    socket.connect(to).expect("to connect");
    socket.set_read_timeout(Some(SECOND)).expect("a deadline");
    let own = socket.local_addr().expect("an address");
    (socket, own)
}

/// The result of waiting for a reply.
fn received(socket: &UdpSocket) -> Result<usize, ErrorKind> {
    socket.recv(&mut [0; 64]).map_err(|error| error.kind())
}

#[test]
fn a_pods_errors_about_packets_of_others_arrive_nowhere() {
    harness::require_root!();
    let topology = Topology::build();
    let (attacker, forge) = (&topology.pod, topology.pod.forge_out());
    for v4 in [true, false] {
        let silent = SocketAddr::new(like(&topology.outside, v4), SILENT);
        let _listener = topology.outside.udp_bind(silent).expect("a socket");
        // The packets of the attacker that the programs at its interface pass to the node.
        let at_node = topology
            .node()
            .protocol_socket(attacker.host_interface(), ether_type(v4))
            .expect("a capture");
        let victims: [(&Place, PacketSocket); 2] = [
            (&topology.web, captured(&topology.web)),
            (topology.node(), at_node),
        ];
        for (victim, capture) in victims {
            let (socket, own) = connected(victim, silent);
            socket.send(b"?").expect("to send");
            let about = packet::udp(own, silent, FORGED);
            let message = unreachable(v4, &about);
            forge.send(&packet::icmp(like(attacker, v4), own.ip(), &message));
            let what = format!("an error about a question of {}", victim.name());
            let to = SocketAddr::new(own.ip(), CLOSED);
            assert_nothing_came(&capture, FORGED, &what, honest(attacker, to));
            assert_eq!(received(&socket), Err(ErrorKind::WouldBlock), "{what}");
        }
    }
}

/// The same for masqueraded packets: only the destination of a packet may report an error about it.
#[test]
fn a_pods_errors_end_no_exchange_of_others() {
    harness::require_root!();
    let topology = Topology::build();
    for v4 in [true, false] {
        let silent = SocketAddr::new(like(&topology.outside, v4), SILENT);
        let listener = topology.outside.udp_bind(silent).expect("a socket");
        let (victim, _) = connected(&topology.web, silent);
        victim.send(b"?").expect("to send");
        let (_, seen) = listener.recv_from(&mut [0; 64]).expect("a question");
        let message = unreachable(v4, &packet::udp(seen, silent, b"?"));
        let refused = Refusals::of(topology.node(), &[Reason::ForgedSource]);
        topology
            .pod
            .forge_out()
            .send(&packet::icmp(like(&topology.pod, v4), seen.ip(), &message));
        assert_eq!(received(&victim), Err(ErrorKind::WouldBlock), "by another pod");
        refused.assert_rose_by(1, "by another pod");
        topology
            .forge()
            .send(&packet::icmp(silent.ip(), seen.ip(), &message));
        assert_eq!(
            received(&victim),
            Err(ErrorKind::ConnectionRefused),
            "by the other end"
        );
    }
}

#[test]
fn a_pods_error_about_a_packet_to_itself_arrives() {
    harness::require_root!();
    let topology = Topology::build();
    let far = topology.world.node(2).add_pod("far");
    let askers: [&Place; 3] = [&topology.web, &far, topology.node()];
    for asker in askers {
        for v4 in [true, false] {
            let to = SocketAddr::new(like(&topology.pod, v4), CLOSED);
            let (socket, _) = connected(asker, to);
            let what = format!("{} to get an error that {to} is closed", asker.name());
            wait_for(&what, SOON, || {
                // An error about the datagram before may come at once.
                let received = socket.send(b"?").and_then(|_| socket.recv(&mut [0; 64]));
                match received {
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        }
    }
}

/// Two nodes of one family with a tunnel between them, a pod on each, and a host on their link.
struct Tunnel {
    world: World,
    outside: Client,
    near: Pod,
    far: Pod,
    v4: bool,
    _servers: [Server; 2],
    _agents: Vec<Agent>,
}

impl Tunnel {
    fn between_nodes_of(family: Family) -> Self {
        let spec = || NodeSpec::millrace().only(family);
        let world = World::builder().node(spec()).node(spec()).build();
        let outside = world.add_client("outside");
        let agents = world.start_agents_with(&format!("{DEFAULTS}routingMode: vxlan\n"));
        let (near, far) = (world.node(1).add_pod("near"), world.node(2).add_pod("far"));
        let servers = far.serve(8080);
        let tunnel = Self {
            world,
            outside,
            near,
            far,
            v4: family == Family::V4,
            _servers: servers,
            _agents: agents,
        };
        wait_served(&tunnel.near, tunnel.server());
        tunnel
    }

    fn server(&self) -> SocketAddr {
        SocketAddr::new(like(&self.far, self.v4), 8080)
    }

    /// The address of a node.
    fn node(&self, number: usize) -> IpAddr {
        like(self.world.node(number), self.v4)
    }

    /// The node's route has no lowered MTU, and large datagrams pass.
    #[track_caller]
    fn assert_is_wide(&self, when: &str) {
        let route = route_to(self.world.node(1), self.node(2));
        assert!(!route.contains("mtu"), "{when}: {route}");
        let to = self.server();
        let (socket, _) = connected(&self.near, to);
        for number in 1..=5 {
            let asked = socket.send(&[b'?'; LARGE]);
            let replied = asked.and_then(|_| socket.recv(&mut [0; 2 * LARGE]));
            let length = replied.unwrap_or_else(|error| panic!("{when}, question {number}: {error}"));
            assert!(length > LARGE, "{when}: a reply of {length} bytes");
        }
    }
}

/// The kernel's route to an address, with the MTU that it has learnt.
#[track_caller]
fn route_to(node: &Node, to: IpAddr) -> String {
    let mut ip = node.command("ip");
    ip.args(["route", "get", &to.to_string()]);
    let output = ip.output().expect("to run ip");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip route get {to}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn errors_about_the_tunnel_make_it_no_narrower() {
    harness::require_root!();
    // The smallest MTU that a host accepts.
    for (family, room) in [(Family::V4, 552), (Family::V6, 1280)] {
        let tunnel = Tunnel::between_nodes_of(family);
        tunnel.assert_is_wide("at first");
        let (node, v4) = (tunnel.world.node(1), tunnel.v4);
        let (own, peer) = (tunnel.node(1), tunnel.node(2));
        let carried = link::vxlan(SEGMENT, &[0; 40]);
        let about = packet::udp(
            SocketAddr::new(own, 40_000),
            SocketAddr::new(peer, TUNNEL_PORT),
            &carried,
        );
        let message = too_big(v4, room, &about);
        let near: (&Place, Forge, &str) = (
            &tunnel.near,
            tunnel.near.forge_out(),
            tunnel.near.host_interface(),
        );
        let outside: (&Place, Forge, &str) = (&tunnel.outside, tunnel.outside.forge_to(node), "eth0");
        for (place, forge, interface) in [near, outside] {
            let from = like(place, v4);
            let capture = node
                .protocol_socket(interface, ether_type(v4))
                .expect("a capture");
            for _ in 0..3 {
                forge.send(&packet::icmp(from, own, &message));
            }
            // Once the node has received this datagram, it has handled the packets before it on the same
            // path.
            let what = format!("errors of {}", place.name());
            came_before(&capture, &what, &mut |mark| {
                forge.send(&datagram((from, 999), SocketAddr::new(own, CLOSED), mark));
            });
            tunnel.assert_is_wide(&format!("after {what}"));
        }
    }
}
