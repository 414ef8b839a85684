//! The tunnel accepts packets of other nodes only, and from each node only those of its own pods. No pod
//! sends through the tunnel's port.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use harness::forge::{Ethernet, VLAN, link, packet};
use harness::{Endpoint, Forge, Place, Probe, Service, eventually};
use proxy_common::maps::Reason;

use crate::topology::{
    Refusals, SECOND, SOON, assert_nothing_came, at, came_before, captured, counted, datagram, honest,
};
use crate::tunnel_topology::{
    FOREIGN_SOURCE, FORGED, PORT, Topology, assert_is_counted, carried, carried_to, end_of, forgery,
    in_fragments, send_until_refused, wait_refused,
};

const NODE_PORT: u16 = 30_053;

#[test]
fn vxlan_of_a_pod_reaches_no_node() {
    harness::require_root!();
    assert_no_pod_reaches_a_tunnel(&Topology::build());
}

#[test]
fn vxlan_of_a_pod_reaches_no_node_over_ipv6() {
    harness::require_root!();
    assert_no_pod_reaches_a_tunnel(&Topology::over_ipv6());
}

#[track_caller]
fn assert_no_pod_reaches_a_tunnel(topology: &Topology) {
    let (attacker, n1) = (topology.pod(1), topology.world.node(1));
    let near = n1.add_pod("near");
    // An indirect path: a service whose endpoints are tunnels.
    let (service, round) = topology.round();
    topology.world.apply(&service);
    let socket = attacker.udp_socket_for(round).expect("a socket");
    for (number, victim) in [(1, &near), (2, topology.pod(2))] {
        let (node, tunnel) = (topology.world.node(number), topology.tunnel_port(number));
        let capture = captured(victim);
        topology
            .world
            .apply_all(service.slices([Endpoint::at(&[tunnel.ip()])]));
        let what = format!("from a pod by the tunnel to n{number}");
        send_until_refused(n1, &what, || drop(socket.send_to(b"early", round)));
        let sources = [
            topology.ip(topology.pod(3)),
            topology.ip(topology.pod(2)),
            topology.ip(topology.pod(1)),
            topology.ip(&topology.outside),
            topology.ip(topology.world.node(3)),
            topology.pod(3).ip6().into(),
        ];
        let forge = attacker.forge_out();
        let refused = Refusals::of(n1, &[Reason::TunnelPort]);
        for source in sources {
            let forgery = forgery(node, source, victim);
            let _ = socket.send_to(&forgery, tunnel);
            let _ = socket.send_to(&forgery, round);
            let packet = datagram((topology.ip(attacker), 12_345), tunnel, &forgery);
            for fragment in in_fragments(&packet) {
                forge.send(&fragment);
            }
        }
        assert_nothing_came(
            &capture,
            FORGED,
            &what,
            honest(attacker, topology.discard(victim)),
        );
        // One refusal each for the datagram to the port, the one to the service, and the first fragment.
        refused.assert_rose_by(3 * sources.len() as u64, &what);
        // The first of these forgeries does arrive if the node of the inner pod sends it.
        let mut by_tunnel = topology.by_tunnel(3, (node, tunnel), victim);
        came_before(&capture, "from a node", &mut by_tunnel);
    }
}

/// The tunnel's socket listens at more addresses than the nodes' own: at the tunnel's address and at
/// multicast addresses.
#[test]
fn vxlan_at_other_addresses_of_the_socket_reaches_no_pod() {
    harness::require_root!();
    let groups = ["192.168.50.255", "255.255.255.255", "224.0.0.1", "239.1.2.3"];
    assert_no_other_address_reaches_a_pod(&Topology::build(), &groups);
}

#[test]
fn vxlan_at_other_addresses_of_the_socket_reaches_no_pod_over_ipv6() {
    harness::require_root!();
    assert_no_other_address_reaches_a_pod(&Topology::over_ipv6(), &["ff02::1", "ff0e::1"]);
}

#[track_caller]
fn assert_no_other_address_reaches_a_pod(topology: &Topology, groups: &[&str]) {
    let (attacker, n1, n2) = (topology.pod(1), topology.world.node(1), topology.world.node(2));
    let near = n1.add_pod("near");
    let capture = captured(&near);
    let own = [topology.end_port(1), topology.tunnel_port(1)];
    let groups = groups.iter().map(|group| at(group, PORT));
    let places: Vec<SocketAddr> = own.into_iter().chain(groups).collect();
    let forged = forgery(n1, topology.ip(topology.pod(3)), &near);
    let senders: [(&Place, Forge, &[Reason]); 2] = [
        (attacker, attacker.forge_out(), &[Reason::TunnelPort]),
        (&topology.outside, topology.outside.forge_to(n1), FOREIGN_SOURCE),
    ];
    for (sender, forge, reasons) in senders {
        for place in &places {
            let packet = datagram((topology.ip(sender), 12_345), *place, &forged);
            // In a frame to the right address, to all hosts of the link, and to a group of them.
            for to in [forge.ethernet().to, link::BROADCAST, [1, 0, 0x5e, 0, 0, 1]] {
                let ethernet = Ethernet {
                    to,
                    ..forge.ethernet()
                };
                let frame = ethernet.of_packet(&packet);
                let what = format!("{place} at {to:x?} from {}", sender.name());
                assert_is_counted(n1, reasons, &what, || forge.send_frame(&frame));
            }
        }
    }
    // Through the tunnel, to its end on another node.
    let far = captured(topology.pod(2));
    let to_far = forgery(n2, topology.ip(topology.pod(3)), topology.pod(2));
    let packet = datagram((topology.ip(attacker), 12_345), topology.end_port(2), &to_far);
    let forge = attacker.forge_out();
    assert_is_counted(n2, FOREIGN_SOURCE, "by the tunnel to its end", || {
        forge.send(&packet);
    });
    for (capture, victim) in [(&capture, &near), (&far, topology.pod(2))] {
        let to = topology.discard(victim);
        assert_nothing_came(capture, FORGED, "to other addresses", honest(attacker, to));
    }
    // The node of the inner pod may send the forgery, to the node's own address only. A service may lead to
    // the end of the tunnel, in the name of a node that masquerades.
    let mut to_end = topology.by_tunnel(3, (n1, topology.end_port(1)), &near);
    let refused = [Reason::TunnelSource];
    assert_is_counted(n1, &refused, "from a node to the end of the tunnel", || {
        to_end(FORGED);
    });
    let to_node = topology.by_tunnel(3, (n1, topology.tunnel_port(1)), &near);
    assert_nothing_came(&capture, FORGED, "from a node to the end of the tunnel", to_node);
}

/// A datagram behind seven destination options headers of eight bytes each.
fn behind_seven_headers(from: Ipv6Addr, to: SocketAddr, mark: &[u8]) -> Vec<u8> {
    let inner = datagram((from.into(), 999), to, mark);
    let mut bytes = inner[..40].to_vec();
    for number in 0..7_u8 {
        let next = if number == 6 { inner[6] } else { 60 };
        bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    bytes.extend(&inner[40..]);
    bytes[6] = 60;
    let payload = u16::try_from(bytes.len() - 40).expect("a short packet");
    bytes[4..6].copy_from_slice(&payload.to_be_bytes());
    bytes
}

/// IPv6 extension headers that no program walks do not hide a forged source.
#[test]
fn extension_headers_beyond_the_limit_hide_no_source() {
    harness::require_root!();
    let topology = Topology::build();
    let (victim, n1) = (topology.pod(1), topology.world.node(1));
    let near = n1.add_pod("near");
    let capture = captured(victim);
    let forge = topology.outside.forge_to(n1);
    let to = SocketAddr::new(victim.ip6().into(), 9);
    let sources = [near.ip6(), n1.ip6()];
    let refused = Refusals::of(n1, &[Reason::ForgedSource]);
    for source in sources {
        forge.send(&behind_seven_headers(source, to, FORGED));
    }
    // The same packet with the source of a host on the link arrives.
    let from = topology.outside.ip6();
    assert_nothing_came(&capture, FORGED, "behind seven headers", |mark| {
        forge.send(&behind_seven_headers(from, to, mark));
    });
    refused.assert_rose_by(sources.len() as u64, "behind seven headers");
}

#[test]
fn vxlan_of_a_pod_through_the_tunnel_itself_reaches_no_node() {
    harness::require_root!();
    let topology = Topology::build();
    // Inside the node's regular tunnel, to the tunnel's port at the other node's address.
    let (attacker, victim, n2) = (topology.pod(1), topology.pod(2), topology.world.node(2));
    let capture = captured(victim);
    let forgery = forgery(n2, topology.pod(3).ip().into(), victim);
    let inner = datagram((attacker.ip().into(), 999), topology.tunnel_port(2), &forgery);
    let n1 = SocketAddr::new(topology.world.node(1).ip().into(), 40_000);
    let outer = packet::udp(n1, topology.tunnel_port(2), &carried(n2, &inner));
    let refused = Refusals::of(n2, FOREIGN_SOURCE);
    topology.outside.forge_to(n2).send(&outer);
    let to = SocketAddr::new(victim.ip().into(), 9);
    assert_nothing_came(&capture, FORGED, "a tunnel in the tunnel", honest(attacker, to));
    refused.assert_rose_by(1, "a tunnel in the tunnel");
}

#[test]
fn vxlan_of_an_unknown_host_reaches_no_pod() {
    harness::require_root!();
    let unknown_hosts = ["192.168.50.222", "198.51.100.9", "127.0.0.1"];
    assert_no_unknown_host_reaches_a_pod(&Topology::build(), unknown_hosts);
}

#[test]
fn vxlan_of_an_unknown_host_reaches_no_pod_over_ipv6() {
    harness::require_root!();
    let unknown_hosts = ["fd00:50::222", "2001:db8:9::9", "::1"];
    assert_no_unknown_host_reaches_a_pod(&Topology::over_ipv6(), unknown_hosts);
}

#[track_caller]
fn assert_no_unknown_host_reaches_a_pod(topology: &Topology, unknown: [&str; 3]) {
    let (victim, n2) = (topology.pod(2), topology.world.node(2));
    let (capture, tunnel) = (captured(victim), topology.tunnel_port(2));
    let forge = topology.outside.forge_to(n2);
    let mut unknown_hosts = vec![
        topology.ip(&topology.outside),
        topology.ip(topology.pod(1)),
        topology.ip(n2),
    ];
    unknown_hosts.extend(unknown.map(|text| text.parse::<IpAddr>().expect("an address")));
    let sources = [
        topology.ip(topology.pod(1)),
        topology.pod(1).ip6().into(),
        topology.ip(&topology.outside),
        topology.ip(topology.world.node(1)),
    ];
    let before = counted(n2, FOREIGN_SOURCE);
    for unknown_host in &unknown_hosts {
        for source in sources {
            let packet = datagram((*unknown_host, 40_000), tunnel, &forgery(n2, source, victim));
            forge.send(&packet);
            for fragment in in_fragments(&packet) {
                forge.send(&fragment);
            }
        }
    }
    let socket = topology.outside.udp_socket_for(tunnel).expect("a socket");
    let _ = socket.send_to(&forgery(n2, sources[0], victim), tunnel);
    // The whole datagrams and their first fragments are refused.
    let sent = 2 * sources.len() as u64 * unknown_hosts.len() as u64 + 1;
    wait_refused(n2, FOREIGN_SOURCE, before + sent, "from an unknown host");
    // The first of these forgeries does arrive if the node of the inner pod sends it.
    let by_tunnel = topology.by_tunnel(1, (n2, tunnel), victim);
    assert_nothing_came(&capture, FORGED, "from an unknown host", by_tunnel);
}

#[test]
fn a_nodes_tunnel_carries_that_nodes_pods_only() {
    harness::require_root!();
    assert_a_node_sends_for_its_pods_only(&Topology::build());
}

#[test]
fn a_nodes_tunnel_carries_that_nodes_pods_only_over_ipv6() {
    harness::require_root!();
    assert_a_node_sends_for_its_pods_only(&Topology::over_ipv6());
}

#[track_caller]
fn assert_a_node_sends_for_its_pods_only(topology: &Topology) {
    let (victim, n2, n3) = (topology.pod(2), topology.world.node(2), topology.world.node(3));
    let capture = captured(victim);
    let forge = topology.outside.forge_to(n2);
    let n1 = (topology.ip(topology.world.node(1)), 40_000);
    let by_tunnel = |content: &[u8]| forge.send(&datagram(n1, topology.tunnel_port(2), content));
    let mut sources: Vec<IpAddr> = Vec::new();
    // Sources of another peer, of the node itself, and of no peer.
    let places: [&Place; 5] = [topology.pod(3), n2, victim, n3, &topology.outside];
    for place in places {
        sources.extend(place.addresses());
    }
    for text in [
        "10.244.2.77",
        "fd00:244:2::77",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "::",
        "ff02::1",
        "10.96.0.1",
        "fd00:96::1",
    ] {
        sources.push(text.parse().expect("an address"));
    }
    // Pods have the address families of their nodes.
    sources.retain(|source| topology.over_v4 || source.is_ipv6());
    let refused = Refusals::of(n2, FOREIGN_SOURCE);
    for source in &sources {
        by_tunnel(&forgery(n2, *source, victim));
    }
    // The same forgery with a source of that node's pods arrives, so the source is the reason of the refusal.
    let pod_of_n1 = if topology.over_v4 {
        "10.244.1.77"
    } else {
        "fd00:244:1::77"
    };
    let pod_of_n1: IpAddr = pod_of_n1.parse().expect("an address");
    let to = topology.discard(victim);
    assert_nothing_came(&capture, FORGED, "in a node's name", |mark| {
        by_tunnel(&carried(n2, &datagram((pod_of_n1, 999), to, mark)));
    });
    refused.assert_rose_by(sources.len() as u64, "in a node's name");
}

/// A peer sends through the tunnel to this node and its pods, and to no host behind them.
#[test]
fn a_tunnel_endpoint_forwards_no_packet() {
    harness::require_root!();
    let topology = Topology::build();
    let (n2, n3) = (topology.world.node(2), topology.world.node(3));
    let forge = topology.outside.forge_to(n2);
    let n1 = (topology.world.node(1).ip().into(), 40_000);
    let by_tunnel = |content: &[u8]| forge.send(&datagram(n1, topology.tunnel_port(2), content));
    let source: IpAddr = topology.pod(1).ip().into();
    let places: [&Place; 3] = [topology.pod(3), &topology.outside, n3];
    for place in places {
        let refused = Refusals::of(n2, FOREIGN_SOURCE);
        let (capture, to) = (captured(place), SocketAddr::new(place.ip().into(), 9));
        by_tunnel(&carried(n2, &datagram((source, 999), to, FORGED)));
        let what = format!("by the tunnel of n2 to {to}");
        assert_nothing_came(&capture, FORGED, &what, honest(topology.pod(2), to));
        refused.assert_rose_by(1, &what);
    }
}

/// A peer translates packets of its own pods, and packets of clients outside come in by the node's uplink.
#[test]
fn a_tunnel_endpoint_translates_no_packet_to_services() {
    harness::require_root!();
    let topology = Topology::build();
    let (n2, pod) = (topology.world.node(2), topology.pod(2));
    let service = Service::new("dns")
        .cluster_ip("10.96.0.20")
        .udp("dns", 53, 8080)
        .node_port("dns", NODE_PORT);
    topology.world.apply_all(service.slices([Endpoint::of(pod)]));
    topology.world.apply(&service);
    let _server = pod.serve(8080);
    let node_port = SocketAddr::new(n2.ip().into(), NODE_PORT);
    let cluster_ip = at("10.96.0.20", 53);
    for to in [node_port, cluster_ip] {
        eventually("the service", 2 * SOON, || {
            n2.ask_within(Probe::Udp, to, SECOND).is_ok()
        });
    }
    let forge = topology.outside.forge_to(n2);
    let n1 = (topology.world.node(1).ip().into(), 40_000);
    let capture = captured(pod);
    let source: IpAddr = topology.pod(1).ip().into();
    for to in [node_port, cluster_ip] {
        let refused = Refusals::of(n2, FOREIGN_SOURCE);
        let inner = carried(n2, &datagram((source, 999), to, FORGED));
        forge.send(&datagram(n1, topology.tunnel_port(2), &inner));
        let what = format!("by the tunnel of n2 to {to}");
        let direct = SocketAddr::new(pod.ip().into(), 9);
        assert_nothing_came(&capture, FORGED, &what, honest(topology.pod(1), direct));
        refused.assert_rose_by(1, &what);
    }
}

#[test]
fn a_frame_in_the_tunnel_has_no_tag_and_is_for_its_end() {
    harness::require_root!();
    let topology = Topology::build();
    let (victim, n2) = (topology.pod(2), topology.world.node(2));
    let (capture, tunnel) = (captured(victim), topology.tunnel_port(2));
    let forge = topology.outside.forge_to(n2);
    let n1 = (topology.ip(topology.world.node(1)), 40_000);
    let packet = datagram(
        (topology.ip(topology.pod(1)), 999),
        topology.discard(victim),
        FORGED,
    );
    let end = end_of(n2);
    let priority = vec![(VLAN, 0)];
    // The uplink's program refuses an inner tag. The program at the tunnel's device leaves a frame for
    // another host to the stack.
    let (tagged, for_other) = ([Reason::TunnelSource], [Reason::OtherHost]);
    for (mac, tags, reason) in [
        (end, priority.clone(), tagged),
        (end, vec![(VLAN, 5)], tagged),
        (end, [priority.clone(), priority].concat(), tagged),
        (end_of(topology.world.node(3)), Vec::new(), for_other),
        (link::BROADCAST, Vec::new(), for_other),
    ] {
        let what = format!("to {mac:x?} with {tags:x?}");
        let content = carried_to(mac, tags, &packet);
        assert_is_counted(n2, &reason, &what, || {
            forge.send(&datagram(n1, tunnel, &content));
        });
        // The same frame without a tag, to the end itself, arrives.
        let by_tunnel = topology.by_tunnel(1, (n2, tunnel), victim);
        assert_nothing_came(&capture, FORGED, &what, by_tunnel);
    }
}
