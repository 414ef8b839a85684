//! The tunnel to other nodes believes Nodes only, each for its own pods, and no pod comes by its port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use harness::config::DEFAULTS;
use harness::forge::{Ethernet, VLAN, link, packet};
use harness::{Client, Endpoint, Node, NodeSpec, Place, Pod, Probe, Service, World, eventually};
use proxy_common::maps::Reason;

use crate::town::{
    Refusals, SECOND, SOON, assert_nothing_came, at, captured, counted, datagram, honest, wait_served,
};

const PORT: u16 = 8472;
const NODE_PORT: u16 = 30_053;
const SEGMENT: u32 = 1;
const FORGED: &[u8] = b"forged";
/// Why a node refuses what strangers send to its tunnel, or in it.
const STRANGE: &[Reason] = &[Reason::TunnelSource, Reason::ForgedSource];

/// Three nodes with pods and a tunnel between them, and a host on their link.
struct Town {
    world: World,
    outside: Client,
    /// One for each node.
    pods: Vec<Pod>,
    _agents: Vec<harness::Agent>,
}

impl Town {
    fn build() -> Self {
        let spec = NodeSpec::millrace;
        let world = World::builder().node(spec()).node(spec()).node(spec()).build();
        let agents = world.start_agents_with(&format!("{DEFAULTS}routingMode: vxlan\n"));
        let outside = world.add_client("outside");
        let pods: Vec<Pod> = (1..=3)
            .map(|n| world.node(n).add_pod(&format!("pod-{n}")))
            .collect();
        let _servers: Vec<_> = pods.iter().map(|pod| pod.serve(8080)).collect();
        for client in &pods {
            for server in &pods {
                wait_served(client, SocketAddr::new(server.ip().into(), 8080));
            }
        }
        Self {
            world,
            outside,
            pods,
            _agents: agents,
        }
    }

    fn pod(&self, number: usize) -> &Pod {
        &self.pods[number - 1]
    }

    fn tunnel_port(&self, number: usize) -> SocketAddr {
        SocketAddr::new(self.world.node(number).ip().into(), PORT)
    }
}

/// The hardware address of a node's end of the tunnel.
fn end_of(node: &Node) -> [u8; 6] {
    let [a, b, c, d] = node.ip().octets();
    [0x0a, 0x6d, a, b, c, d]
}

/// What the tunnel carries to a node.
fn carried(node: &Node, packet: &[u8]) -> Vec<u8> {
    let ethernet = Ethernet {
        to: end_of(node),
        from: [2; 6],
        tags: Vec::new(),
    };
    link::vxlan(SEGMENT, &ethernet.of_packet(packet))
}

/// A forged datagram within the tunnel.
fn forgery(node: &Node, from: IpAddr, to: &Pod) -> Vec<u8> {
    let to = to.addresses()[usize::from(from.is_ipv6())];
    carried(node, &datagram((from, 999), SocketAddr::new(to, 9), FORGED))
}

#[test]
fn vxlan_of_a_pod_reaches_no_node() {
    harness::require_root!();
    let town = Town::build();
    let (attacker, n1) = (town.pod(1), town.world.node(1));
    let near = n1.add_pod("near");
    // A way round: a service whose endpoints are tunnels.
    let service = Service::new("round")
        .cluster_ip("10.96.0.20")
        .udp("vxlan", 53, PORT);
    let tunnels = [1, 2].map(|number| Endpoint::at(&[town.world.node(number).ip().into()]));
    town.world.apply(&service);
    for (number, victim) in [(1, &near), (2, town.pod(2))] {
        let node = town.world.node(number);
        let capture = captured(victim);
        town.world
            .apply_all(service.slices([tunnels[number - 1].clone()]));
        let sources = [
            town.pod(3).ip().into(),
            town.pod(2).ip().into(),
            town.pod(1).ip().into(),
            town.outside.ip().into(),
            town.world.node(3).ip().into(),
            town.pod(3).ip6().into(),
        ];
        let socket = attacker
            .udp_socket_for(town.tunnel_port(number))
            .expect("a socket");
        let forge = attacker.forge_out();
        let refused = Refusals::of(n1, &[Reason::TunnelPort]);
        for source in sources {
            let forgery = forgery(node, source, victim);
            let _ = socket.send_to(&forgery, town.tunnel_port(number));
            let _ = socket.send_to(&forgery, at("10.96.0.20", 53));
            let own = (attacker.ip().into(), 12_345);
            let packet = datagram(own, town.tunnel_port(number), &forgery);
            for fragment in packet::fragments(&packet, 32) {
                forge.send(&fragment);
            }
        }
        let to = SocketAddr::new(victim.ip().into(), 9);
        let what = format!("from a pod by the tunnel to n{number}");
        assert_nothing_came(&capture, FORGED, &what, honest(attacker, to));
        // By the port, by the service, and the first fragments.
        refused.assert_rose_by(3 * sources.len() as u64, &what);
    }
}

/// The tunnel's socket listens at more addresses than the nodes': at the tunnel's own, and at those of
/// groups.
#[test]
fn vxlan_at_other_addresses_of_the_socket_reaches_no_pod() {
    harness::require_root!();
    let town = Town::build();
    let (attacker, n1) = (town.pod(1), town.world.node(1));
    let near = n1.add_pod("near");
    let capture = captured(&near);
    let end = |number: u8| IpAddr::from([10, 244, number, 0]);
    let mut places: Vec<IpAddr> = vec![end(1), n1.ip().into()];
    for group in ["192.168.50.255", "255.255.255.255", "224.0.0.1", "239.1.2.3"] {
        places.push(group.parse().expect("an address"));
    }
    let forgery = forgery(n1, town.pod(3).ip().into(), &near);
    for (sender, forge) in [
        (attacker.ip(), attacker.forge_out()),
        (town.outside.ip(), town.outside.forge_to(n1)),
    ] {
        for place in &places {
            let packet = datagram((sender.into(), 12_345), SocketAddr::new(*place, PORT), &forgery);
            // As it should be addressed, to all hosts of the link, and to a group of them.
            forge.send(&packet);
            for to in [link::BROADCAST, [1, 0, 0x5e, 0, 0, 1]] {
                let ethernet = Ethernet {
                    to,
                    ..forge.ethernet()
                };
                forge.send_frame(&ethernet.of_packet(&packet));
            }
        }
    }
    // By the tunnel, to the end of it on another node.
    let far = captured(town.pod(2));
    let to_far = self::forgery(town.world.node(2), town.pod(3).ip().into(), town.pod(2));
    let own = (attacker.ip().into(), 12_345);
    attacker
        .forge_out()
        .send(&datagram(own, SocketAddr::new(end(2), PORT), &to_far));
    for (capture, victim) in [(&capture, &near), (&far, town.pod(2))] {
        let to = SocketAddr::new(victim.ip().into(), 9);
        assert_nothing_came(capture, FORGED, "to other addresses", honest(attacker, to));
    }
}

/// IPv6 extension headers that no program walks do not hide a forged source.
#[test]
fn extension_headers_beyond_the_limit_hide_no_source() {
    harness::require_root!();
    let town = Town::build();
    let (victim, n1) = (town.pod(1), town.world.node(1));
    let near = n1.add_pod("near");
    let capture = captured(victim);
    let forge = town.outside.forge_to(n1);
    for source in [near.ip6(), n1.ip6()] {
        let inner = datagram((source.into(), 999), (victim.ip6(), 9).into(), FORGED);
        // Seven headers of destination options, each of eight bytes, before the datagram.
        let mut bytes = inner[..40].to_vec();
        for number in 0..7_u8 {
            let next = if number == 6 { inner[6] } else { 60 };
            bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]);
        }
        bytes.extend(&inner[40..]);
        bytes[6] = 60;
        let payload = u16::try_from(bytes.len() - 40).expect("a short packet");
        bytes[4..6].copy_from_slice(&payload.to_be_bytes());
        forge.send(&bytes);
    }
    let to = SocketAddr::new(victim.ip().into(), 9);
    assert_nothing_came(&capture, FORGED, "behind seven headers", honest(town.pod(2), to));
}

#[test]
fn vxlan_of_a_pod_through_the_tunnel_itself_reaches_no_node() {
    harness::require_root!();
    let town = Town::build();
    // Within the honest tunnel of its node, to the tunnel's port at an address that only the other end has.
    let (attacker, victim, n2) = (town.pod(1), town.pod(2), town.world.node(2));
    let capture = captured(victim);
    let forgery = forgery(n2, town.pod(3).ip().into(), victim);
    let inner = datagram((attacker.ip().into(), 999), town.tunnel_port(2), &forgery);
    let n1 = SocketAddr::new(town.world.node(1).ip().into(), 40_000);
    let outer = packet::udp(n1, town.tunnel_port(2), &carried(n2, &inner));
    let refused = Refusals::of(n2, STRANGE);
    town.outside.forge_to(n2).send(&outer);
    let to = SocketAddr::new(victim.ip().into(), 9);
    assert_nothing_came(&capture, FORGED, "a tunnel in the tunnel", honest(attacker, to));
    refused.assert_rose_by(1, "a tunnel in the tunnel");
}

#[test]
fn vxlan_of_a_stranger_reaches_no_pod() {
    harness::require_root!();
    let town = Town::build();
    let (victim, n2) = (town.pod(2), town.world.node(2));
    let capture = captured(victim);
    let forge = town.outside.forge_to(n2);
    let strangers = [
        town.outside.ip(),
        Ipv4Addr::new(192, 168, 50, 222),
        Ipv4Addr::new(198, 51, 100, 9),
        town.pod(1).ip(),
        n2.ip(),
        Ipv4Addr::LOCALHOST,
    ];
    let refused = Refusals::of(n2, STRANGE);
    for stranger in strangers {
        for source in [
            IpAddr::from(town.pod(1).ip()),
            town.pod(1).ip6().into(),
            town.outside.ip().into(),
            town.world.node(1).ip().into(),
        ] {
            let packet = datagram(
                (stranger.into(), 40_000),
                town.tunnel_port(2),
                &forgery(n2, source, victim),
            );
            forge.send(&packet);
            for fragment in packet::fragments(&packet, 32) {
                forge.send(&fragment);
            }
        }
    }
    let socket = town
        .outside
        .udp_socket_for(town.tunnel_port(2))
        .expect("a socket");
    let _ = socket.send_to(&forgery(n2, town.pod(1).ip().into(), victim), town.tunnel_port(2));
    let to = SocketAddr::new(victim.ip().into(), 9);
    assert_nothing_came(&capture, FORGED, "from a stranger", honest(town.pod(1), to));
    // Whole, and by their first fragments.
    refused.assert_rose_by(2 * 4 * strangers.len() as u64 + 1, "from a stranger");
}

#[test]
fn a_nodes_tunnel_carries_that_nodes_pods_only() {
    harness::require_root!();
    let town = Town::build();
    let (victim, n2) = (town.pod(2), town.world.node(2));
    let capture = captured(victim);
    let forge = town.outside.forge_to(n2);
    let n1 = (town.world.node(1).ip().into(), 40_000);
    let by_tunnel = |content: &[u8]| forge.send(&datagram(n1, town.tunnel_port(2), content));
    let sources: [IpAddr; 16] = [
        // Another peer's, the own ones, and no peer's.
        town.pod(3).ip().into(),
        town.pod(3).ip6().into(),
        n2.ip().into(),
        n2.ip6().into(),
        victim.ip().into(),
        victim.ip6().into(),
        "10.244.2.77".parse().expect("an address"),
        "fd00:244:2::77".parse().expect("an address"),
        town.world.node(3).ip().into(),
        town.outside.ip().into(),
        town.outside.ip6().into(),
        "127.0.0.1".parse().expect("an address"),
        "0.0.0.0".parse().expect("an address"),
        "224.0.0.1".parse().expect("an address"),
        "::1".parse().expect("an address"),
        "10.96.0.1".parse().expect("an address"),
    ];
    let refused = Refusals::of(n2, STRANGE);
    for source in sources {
        by_tunnel(&forgery(n2, source, victim));
    }
    // The same forgery with a source of that node's arrives, so it is the source that counts.
    let pod_of_n1: IpAddr = "10.244.1.77".parse().expect("an address");
    let to = SocketAddr::new(victim.ip().into(), 9);
    assert_nothing_came(&capture, FORGED, "in a node's name", |mark| {
        by_tunnel(&carried(n2, &datagram((pod_of_n1, 999), to, mark)));
    });
    refused.assert_rose_by(sources.len() as u64, "in a node's name");
}

/// A peer sends to this node and its pods by the tunnel, and to nothing behind them.
#[test]
fn a_tunnels_end_is_no_way_on() {
    harness::require_root!();
    let town = Town::build();
    let (n2, n3) = (town.world.node(2), town.world.node(3));
    let forge = town.outside.forge_to(n2);
    let n1 = (town.world.node(1).ip().into(), 40_000);
    let by_tunnel = |content: &[u8]| forge.send(&datagram(n1, town.tunnel_port(2), content));
    let source: IpAddr = town.pod(1).ip().into();
    let places: [&Place; 3] = [town.pod(3), &town.outside, n3];
    for place in places {
        let refused = Refusals::of(n2, STRANGE);
        let (capture, to) = (captured(place), SocketAddr::new(place.ip().into(), 9));
        by_tunnel(&carried(n2, &datagram((source, 999), to, FORGED)));
        let what = format!("by the tunnel of n2 to {to}");
        assert_nothing_came(&capture, FORGED, &what, honest(town.pod(2), to));
        refused.assert_rose_by(1, &what);
    }
}

/// A peer translates for its own pods, and clients outside come by the node's uplink.
#[test]
fn a_tunnels_end_is_no_way_to_services() {
    harness::require_root!();
    let town = Town::build();
    let (n2, pod) = (town.world.node(2), town.pod(2));
    let service = Service::new("dns")
        .cluster_ip("10.96.0.20")
        .udp("dns", 53, 8080)
        .node_port("dns", NODE_PORT);
    town.world.apply_all(service.slices([Endpoint::of(pod)]));
    town.world.apply(&service);
    let _server = pod.serve(8080);
    let node_port = SocketAddr::new(n2.ip().into(), NODE_PORT);
    let cluster_ip = at("10.96.0.20", 53);
    for to in [node_port, cluster_ip] {
        eventually("the service", 2 * SOON, || {
            n2.ask_within(Probe::Udp, to, SECOND).is_ok()
        });
    }
    let forge = town.outside.forge_to(n2);
    let n1 = (town.world.node(1).ip().into(), 40_000);
    let capture = captured(pod);
    let source: IpAddr = town.pod(1).ip().into();
    for to in [node_port, cluster_ip] {
        let refused = Refusals::of(n2, STRANGE);
        let inner = carried(n2, &datagram((source, 999), to, FORGED));
        forge.send(&datagram(n1, town.tunnel_port(2), &inner));
        let what = format!("by the tunnel of n2 to {to}");
        let direct = SocketAddr::new(pod.ip().into(), 9);
        assert_nothing_came(&capture, FORGED, &what, honest(town.pod(1), direct));
        refused.assert_rose_by(1, &what);
    }
}

#[test]
fn a_frame_in_the_tunnel_has_no_tag_and_is_for_its_end() {
    harness::require_root!();
    let town = Town::build();
    let (victim, n2) = (town.pod(2), town.world.node(2));
    let capture = captured(victim);
    let forge = town.outside.forge_to(n2);
    let n1 = (town.world.node(1).ip().into(), 40_000);
    let to = SocketAddr::new(victim.ip().into(), 9);
    let packet = datagram((town.pod(1).ip().into(), 999), to, FORGED);
    let end = end_of(n2);
    let priority = vec![(VLAN, 0)];
    for (mac, tags) in [
        (end, priority.clone()),
        (end, vec![(VLAN, 5)]),
        (end, [priority.clone(), priority].concat()),
        (end_of(town.world.node(3)), Vec::new()),
        (link::BROADCAST, Vec::new()),
    ] {
        let ethernet = Ethernet {
            to: mac,
            from: [2; 6],
            tags,
        };
        let content = link::vxlan(SEGMENT, &ethernet.of_packet(&packet));
        forge.send(&datagram(n1, town.tunnel_port(2), &content));
        let what = format!("to {mac:x?} with {:x?}", ethernet.tags);
        assert_nothing_came(&capture, FORGED, &what, honest(town.pod(1), to));
    }
}

/// An address of n2 that its Node object lacks: to n1 it is any host's, and n1 would lend its own address.
#[test]
fn vxlan_reaches_no_node_by_an_address_that_its_object_lacks() {
    const UNLISTED: &str = "192.168.50.212";
    harness::require_root!();
    let town = Town::build();
    let (n1, n2) = (town.world.node(1), town.world.node(2));
    n2.run_ip(&format!("addr add {UNLISTED}/24 dev eth0"));
    let service = Service::new("round")
        .cluster_ip("10.96.0.20")
        .udp("vxlan", 53, PORT)
        .node_port("vxlan", NODE_PORT);
    town.world.apply(&service);
    let endpoint: IpAddr = UNLISTED.parse().expect("an address");
    town.world.apply_all(service.slices([Endpoint::at(&[endpoint])]));
    let (attacker, victim) = (town.pod(1), town.pod(2));
    let capture = captured(victim);
    let to = SocketAddr::new(victim.ip().into(), 9);
    let ways: [(&Place, SocketAddr); 3] = [
        (attacker, at(UNLISTED, PORT)),
        (attacker, at("10.96.0.20", 53)),
        (&town.outside, SocketAddr::new(n1.ip().into(), NODE_PORT)),
    ];
    for (place, entrance) in ways {
        let socket = place.udp_socket_for(entrance).expect("a socket");
        let inner = datagram(("10.244.1.99".parse().expect("an address"), 999), to, FORGED);
        let what = format!("from {} to {entrance}", place.name());
        let refused = || counted(n1, &[Reason::TunnelPort]);
        let before = refused();
        eventually(&format!("{what} to be refused"), SOON, || {
            // Before the service is programmed it leads nowhere.
            let _ = socket.send_to(&carried(n2, &inner), entrance);
            refused() > before
        });
        assert_nothing_came(&capture, FORGED, &what, honest(attacker, to));
    }
}

/// With `routingMode: vxlan` each node's pods come by the tunnel only.
#[test]
fn a_host_on_the_link_sends_as_no_pod_of_another_node() {
    harness::require_root!();
    let town = Town::build();
    let (n1, victim, named) = (town.world.node(1), town.pod(1), town.pod(2));
    let capture = captured(victim);
    let forge = town.outside.forge_to(n1);
    let to = SocketAddr::new(victim.ip().into(), 9);
    let refused = Refusals::of(n1, STRANGE);
    forge.send(&datagram((named.ip().into(), 999), to, FORGED));
    assert_nothing_came(&capture, FORGED, "without the tunnel", honest(named, to));
    refused.assert_rose_by(1, "without the tunnel");
}
