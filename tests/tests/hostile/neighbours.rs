//! A pod's entries in the node's neighbour table are limited to its own addresses. One table serves all
//! interfaces (`gc_thresh3`), so a pod that fills it cuts the node off.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use harness::forge::{Ethernet, link, packet};
use harness::{Endpoint, Forge, Frame, Node, Place, Pod, Probe, Service, eventually};
use proxy_common::maps::Reason;
use serde_json::Value;

use crate::topology::{SECOND, SOON, Topology, at, captured, of_family};

const MANY: u16 = 100;
/// The node port of a service of dead hosts.
const SCAN_PORT: u16 = 30_099;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// A protocol number for experiments (RFC 3692 §2.1).
const EXPERIMENTAL: u8 = 253;
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The neighbours that the node knows at a pod's interface.
pub fn known(pod: &Pod) -> Vec<String> {
    known_at(pod.node(), pod.host_interface(), &[])
}

/// The neighbours that the node knows at an interface, as `ip neigh` selects them.
fn known_at(node: &Node, interface: &str, selected: &[&str]) -> Vec<String> {
    let mut command = node.command("ip");
    let output = command
        .args(["-j", "neigh", "show", "dev", interface])
        .args(selected)
        .output();
    let output = output.expect("running ip");
    let entries: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    entries
        .iter()
        .filter_map(|entry| Some(entry["dst"].as_str()?.to_owned()))
        .collect()
}

/// The number of neighbour entries at the node's uplink, unresolved ones included.
fn looked_for(node: &Node) -> usize {
    known_at(node, "eth0", &["nud", "all"]).len()
}

/// The addresses of the pod, its link-local one included.
pub fn own(pod: &Pod) -> Vec<String> {
    let mut own: Vec<String> = pod.addresses().iter().map(ToString::to_string).collect();
    own.push(link_local(pod).to_string());
    own
}

/// The link-local address that follows from the pod's hardware address.
pub fn link_local(pod: &Pod) -> Ipv6Addr {
    link_local_of(pod.mac("eth0"))
}

/// The link-local address that follows from a hardware address (RFC 4291 appendix A).
pub fn link_local_of(mac: [u8; 6]) -> Ipv6Addr {
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        pair(mac[0] ^ 2, mac[1]),
        pair(mac[2], 0xff),
        pair(0xfe, mac[3]),
        pair(mac[4], mac[5]),
    )
}

/// Waits for the replies to a pod's honest packets in both families, which are sent until replies come.
#[track_caller]
fn assert_only_own_are_known(topology: &Topology, what: &str) {
    let pod = &topology.pod;
    let (capture, forge, mac) = (captured(pod), pod.forge_out(), pod.mac("eth0"));
    let is_arp = |frame: &Frame| !frame.outgoing && frame.bytes.get(12..14) == Some(&[0x08, 0x06]);
    let is_advertisement = |frame: &Frame| !frame.outgoing && frame.bytes.get(54) == Some(&136);
    let broadcast = Ethernet {
        to: link::BROADCAST,
        ..forge.ethernet()
    };
    let question = link::arp(true, (mac, pod.ip()), ([0; 6], GATEWAY));
    forge.send_frame(&broadcast.of(link::ARP, &question));
    assert!(
        capture.find(SOON, is_arp).expect("to read").is_some(),
        "{what}: ARP for its own address gets a reply"
    );
    forge.send(&link::neighbour_solicitation((mac, pod.ip6()), GATEWAY6));
    let found = capture.find(SOON, is_advertisement).expect("to read");
    assert!(
        found.is_some(),
        "{what}: a solicitation for its own address gets a reply"
    );
    let own = own(pod);
    let foreign: Vec<String> = known(pod)
        .into_iter()
        .filter(|entry| !own.contains(entry))
        .collect();
    assert!(
        foreign.is_empty(),
        "{what}: {} foreign neighbours, {} among them",
        foreign.len(),
        foreign[0]
    );
}

#[test]
fn arp_for_foreign_addresses_leaves_no_neighbours() {
    harness::require_root!();
    let topology = Topology::build();
    let (pod, node) = (&topology.pod, topology.node());
    let (forge, mac) = (pod.forge_out(), pod.mac("eth0"));
    for (is_request, to) in [
        (true, link::BROADCAST),
        (true, node.mac(pod.host_interface())),
        (false, node.mac(pod.host_interface())),
    ] {
        for number in 0..MANY {
            let ethernet = Ethernet {
                to,
                ..forge.ethernet()
            };
            for target in [node.ip(), GATEWAY] {
                let sender = Ipv4Addr::from(0xc633_6400 + u32::from(number) + 1);
                let message = link::arp(
                    is_request,
                    (mac, sender),
                    (node.mac(pod.host_interface()), target),
                );
                forge.send_frame(&ethernet.of(link::ARP, &message));
            }
        }
        assert_only_own_are_known(&topology, "ARP");
    }
}

/// The pod cannot choose the hardware addresses in the message and in the frame either.
#[test]
fn arp_with_foreign_hardware_addresses_leaves_no_neighbours() {
    harness::require_root!();
    let topology = Topology::build();
    let (pod, node) = (&topology.pod, topology.node());
    let forge = pod.forge_out();
    for number in 0..MANY {
        let [high, low] = number.to_be_bytes();
        let foreign = [2, 0x99, 0, 0, high, low];
        let ethernet = Ethernet {
            to: link::BROADCAST,
            from: foreign,
            tags: Vec::new(),
        };
        for sender in [
            topology.web.ip(),
            node.ip(),
            topology.outside.ip(),
            Ipv4Addr::from(0xc633_6500 + u32::from(number)),
        ] {
            let message = link::arp(true, (foreign, sender), ([0; 6], GATEWAY));
            forge.send_frame(&ethernet.of(link::ARP, &message));
        }
    }
    assert_only_own_are_known(&topology, "ARP with foreign hardware addresses");
}

#[test]
fn neighbour_discovery_for_foreign_addresses_leaves_no_neighbours() {
    harness::require_root!();
    let topology = Topology::build();
    let pod = &topology.pod;
    let (forge, mac) = (pod.forge_out(), pod.mac("eth0"));
    let foreign = |number: u16| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x1000, number);
    for number in 0..MANY {
        forge.send(&link::neighbour_solicitation((mac, foreign(number)), GATEWAY6));
    }
    assert_only_own_are_known(&topology, "solicitations from foreign link-local addresses");
    for number in 0..MANY {
        forge.send(&link::router_solicitation((mac, foreign(number)), GATEWAY6));
    }
    assert_only_own_are_known(&topology, "solicitations of routers");
    for number in 0..MANY {
        forge.send(&link::neighbour_advertisement((mac, foreign(number)), GATEWAY6));
        let [high, low] = number.to_be_bytes();
        let other = [2, 0x99, 0, 0, high, low];
        forge.send(&link::neighbour_solicitation((other, foreign(number)), GATEWAY6));
    }
    assert_only_own_are_known(&topology, "advertisements and foreign hardware addresses");
}

/// For a reply to a foreign address of the pod's link, the node would look for a neighbour there.
#[test]
fn echo_requests_from_foreign_link_local_addresses_leave_no_neighbours() {
    harness::require_root!();
    let topology = Topology::build();
    let forge = topology.pod.forge_out();
    for number in 0..MANY {
        let foreign = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0x2000, number);
        forge.send(&packet::echo(foreign.into(), GATEWAY6.into(), true, number, b"?"));
        // An ICMP error about a packet with a foreign source would go to that source.
        forge.send(&packet::udp((foreign, 9).into(), (GATEWAY6, 9).into(), b"?"));
    }
    assert_only_own_are_known(&topology, "echo requests");
}

/// The hosts of the node's subnets are the node's neighbours, and a pod may send to each of them.
#[test]
fn a_pod_that_scans_a_subnet_of_the_node_fills_no_table() {
    harness::require_root!();
    let topology = Topology::build();
    let node = topology.node();
    let _servers = topology.outside.serve(9100);
    for v4 in [true, false] {
        assert_scan_fills_no_table(&topology, of_family(node, v4));
        // The pod still reaches a neighbour that the node knows, and other pods reach new ones.
        let to = (of_family(&topology.outside, v4), 9100).into();
        for pod in [&topology.pod, &topology.web] {
            let reply = pod.ask_within(Probe::Tcp, to, SECOND);
            assert!(reply.is_ok(), "from {} after a scan: {reply:?}", pod.ip());
        }
    }
}

/// A route without a gateway makes neighbours too, in any routing table, even if the node has no address
/// there.
#[test]
fn a_pod_that_scans_the_range_of_a_link_route_fills_no_table() {
    harness::require_root!();
    let topology = Topology::build();
    let node = topology.node();
    // More routes than the programs hold.
    for number in 0..12 {
        node.run_ip(&format!("route add 198.18.{}.0/24 dev eth0", number * 16));
    }
    node.run_ip("-6 route add 2001:db8:77::/64 dev eth0");
    node.run_ip("rule add to 198.51.100.0/24 lookup 77");
    node.run_ip("route add 198.51.100.0/24 dev eth0 table 77");
    for range in ["198.18.0.9", "198.18.176.9", "2001:db8:77::9", "198.51.100.9"] {
        let range: IpAddr = range.parse().expect("an address");
        let (forge, refused) = (
            topology.pod.forge_out(),
            node.counters()[Reason::NeighbourShare as usize],
        );
        let from = of_family(&topology.pod, range.is_ipv4());
        eventually("the agent to know of the route", SOON, || {
            for _ in 0..100 {
                forge.send(&packet::udp((from, 4000).into(), (range, 53).into(), b"?"));
            }
            node.counters()[Reason::NeighbourShare as usize] > refused
        });
        assert_scan_fills_no_table(&topology, range);
    }
}

/// Has the pod send to many addresses of a range, and asserts that the node looks for few of them.
#[track_caller]
fn assert_scan_fills_no_table(topology: &Topology, range: IpAddr) {
    /// The most packets that a pod's share passes in the time of a scan.
    const FEW: usize = 100;
    let node = topology.node();
    let refused = || node.counters()[Reason::NeighbourShare as usize];
    let forge = topology.pod.forge_out();
    let from = of_family(&topology.pod, range.is_ipv4());
    let known = looked_for(node);
    let before = refused();
    // Packets of all kinds: a datagram, whole or in fragments, a segment of no connection, an echo request, a
    // protocol without ports.
    for number in 0..1000_u16 {
        let last = 20 + number % 200;
        let to: IpAddr = match range {
            IpAddr::V4(ip) => Ipv4Addr::from((ip.to_bits() & !0xff) | u32::from(last)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from((ip.to_bits() & !0xffff) | u128::from(1000 + number)).into(),
        };
        if topology.outside.addresses().contains(&to) || topology.world.node(2).addresses().contains(&to) {
            continue;
        }
        let (source, target) = ((from, 4000).into(), (to, 53).into());
        match number % 5 {
            0 => forge.send(&packet::udp(source, target, b"?")),
            1 => forge.send(&packet::tcp(source, target, packet::ACK, 7, b"?")),
            2 => forge.send(&packet::echo(from, to, true, number, b"?")),
            3 => forge.send(&packet::ip(from, to, EXPERIMENTAL, b"?")),
            _ => {
                let large = packet::udp(source, target, &[b'?'; 600]);
                for piece in packet::fragments(&large, 400) {
                    forge.send(&piece);
                }
            }
        }
    }
    eventually("packets to be refused", SOON, || refused() > before + 500);
    // A pod's share is named by its IPv4 address.
    topology.assert_share_is_reported("neighbours", &topology.pod.ip().to_string(), 2 * SOON);
    let new = looked_for(node).saturating_sub(known);
    assert!(new <= FEW, "{new} neighbours for a scan of {range} from {from}");
}

/// The kernel forwards to IPv6 link-local addresses as well, out of the interface that the packet came in by.
#[test]
fn a_pod_that_scans_link_local_addresses_fills_no_table() {
    harness::require_root!();
    let topology = Topology::build();
    let (node, pod) = (topology.node(), &topology.pod);
    let forge = pod.forge_out();
    let from = of_family(pod, false);
    for number in 0..200_u16 {
        let to = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 7, 1000 + number).into();
        forge.send(&match number % 2 {
            0 => packet::udp((from, 4000).into(), (to, 53).into(), b"?"),
            _ => packet::ip(from, to, EXPERIMENTAL, b"?"),
        });
    }
    let refused = || node.counters()[Reason::NeighbourShare as usize];
    eventually("packets to be refused", SOON, || refused() > 100);
    let looked_for = known_at(node, pod.host_interface(), &["nud", "all"]).len();
    assert!(looked_for < 100, "{looked_for} neighbours at the pod's interface");
}

/// The node still resolves a neighbour for each pod when the entry has been removed.
#[test]
fn a_scan_of_one_pod_does_not_keep_another_from_new_neighbours() {
    harness::require_root!();
    let topology = Topology::build();
    let node = topology.node();
    let _servers = topology.outside.serve(9100);
    let IpAddr::V4(own) = of_family(node, true) else {
        panic!("an IPv4 address")
    };
    let forge = topology.pod.forge_out();
    for round in 0..3 {
        for last in 20..220_u32 {
            let to = Ipv4Addr::from((own.to_bits() & !0xff) | last);
            if to != topology.outside.ip() {
                forge.send(&packet::udp(
                    (topology.pod.ip(), 4000).into(),
                    (to, 53).into(),
                    b"?",
                ));
            }
        }
        let mut forget = node.command("ip");
        let gone = forget
            .args(["neigh", "del", &topology.outside.ip().to_string(), "dev", "eth0"])
            .status();
        assert!(gone.expect("running ip").success());
        let reply = topology
            .web
            .ask_within(Probe::Udp, (topology.outside.ip(), 9100).into(), SECOND);
        assert!(reply.is_ok(), "round {round}: {reply:?}");
    }
}

/// A service whose endpoints, written by a tenant, are unused addresses of the node's link. It has IPv6 only:
/// the link has fewer IPv4 addresses than the table has entries.
fn service_of_dead_hosts(topology: &Topology, endpoints: u16) {
    let service = Service::new("scan")
        .cluster_ip("fd00:96::99")
        .udp("scan", 80, 80)
        .node_port("scan", SCAN_PORT);
    let endpoints = (1..=endpoints).map(|last| {
        let ip = Ipv6Addr::from([0xfd00, 0x50, 0, 0, 0, 0, 5, last]);
        Endpoint::at(&[ip.into()])
    });
    topology.world.apply(&service);
    topology.world.apply_all(service.slices(endpoints));
}

/// Has a place send to the service until the first node has refused `refusals` packets. Asserts that the node
/// then looks for `most` new neighbours at most.
#[track_caller]
fn assert_dead_hosts_fill_no_table(
    topology: &Topology,
    (from, forge): (IpAddr, &Forge),
    to: SocketAddr,
    [refusals, most]: [u64; 2],
) {
    let node = topology.node();
    let refused = || node.counters()[Reason::NeighbourShare as usize];
    let (before, known) = (refused(), looked_for(node));
    let mut port = 2000;
    eventually("packets to be refused", SOON, || {
        for _ in 0..200 {
            port += 1;
            forge.send(&packet::udp((from, port).into(), to, b"?"));
        }
        refused() >= before + refusals
    });
    let new = u64::try_from(looked_for(node).saturating_sub(known)).expect("a count");
    assert!(new <= most, "{new} neighbours for the endpoints of one service");
}

/// The node looks for as many as the pod's share allows.
#[test]
fn a_pod_that_asks_a_service_of_dead_hosts_fills_no_table() {
    harness::require_root!();
    let topology = Topology::build();
    service_of_dead_hosts(&topology, 200);
    let (from, forge) = (of_family(&topology.pod, false), topology.pod.forge_out());
    assert_dead_hosts_fill_no_table(&topology, (from, &forge), at("fd00:96::99", 80), [1, 100]);
}

/// Addresses of clients outside may be forged, so the share belongs to the service.
#[test]
fn endpoints_on_the_link_asked_for_from_outside_fill_no_table_of_neighbours() {
    harness::require_root!();
    let topology = Topology::build();
    assert_asked_for_at_a_node_port(&topology, &topology.outside, &topology.forge());
}

#[test]
fn endpoints_on_the_link_asked_for_by_another_nodes_pod_fill_no_table_of_neighbours() {
    harness::require_root!();
    let topology = Topology::build();
    let pod = topology.world.node(2).add_pod("far");
    assert_asked_for_at_a_node_port(&topology, &pod, &pod.forge_out());
}

#[track_caller]
fn assert_asked_for_at_a_node_port(topology: &Topology, client: &Place, forge: &Forge) {
    let node = topology.node();
    let _server = topology.outside.serve_udp(9100);
    service_of_dead_hosts(topology, 1000);
    let to = SocketAddr::new(of_family(node, false), SCAN_PORT);
    let client = (of_family(client, false), forge);
    assert_dead_hosts_fill_no_table(topology, client, to, [1000, 200]);
    // The node still resolves a neighbour whose entry has been removed.
    let mut forget = node.command("ip");
    let host = topology.outside.ip6();
    let gone = forget
        .args(["neigh", "del", &host.to_string(), "dev", "eth0"])
        .status();
    assert!(gone.expect("running ip").success());
    let reply = node.ask_within(Probe::Udp, (host, 9100).into(), SECOND);
    assert!(reply.is_ok(), "{reply:?}");
}
