//! A pod sends without VLAN tags. A tag does not hide the packet after it from the check of sources, and it
//! is not forwarded.

use std::net::{IpAddr, SocketAddr};

use harness::cni::PodSpec;
use harness::forge::{Ethernet, SERVICE_VLAN, Tag, VLAN, link, packet};
use harness::{Forge, Frame, NodeSpec, PacketSocket, Place, Pod, Probe};
use proxy_common::maps::Reason;
use serde_json::json;

use crate::topology::{
    CLUSTER_IP, LOCAL_BALANCER, LOCAL_NODE_PORT, NODE_PORT, Refusals, SECOND, SOON, Topology,
    assert_nothing_came, at, came_before, captured, datagram, honest, of_family,
};

const FORGED: &[u8] = b"forged";
/// The reason of a pod's tagged frame, which is dropped at the pod's interface.
const SPOOFED: &[Reason] = &[Reason::SpoofedSource];

/// Tags that hide a packet from a program that reads the first `EtherType` only.
fn doubled() -> Vec<Vec<Tag>> {
    vec![
        vec![(VLAN, 0), (VLAN, 0)],
        vec![(SERVICE_VLAN, 0), (VLAN, 0)],
        vec![(VLAN, 0), (SERVICE_VLAN, 0)],
        vec![(VLAN, 0x6000), (VLAN, 0x2000)],
        vec![(VLAN, 5), (VLAN, 0)],
        vec![(VLAN, 0), (VLAN, 0), (VLAN, 0)],
        vec![(SERVICE_VLAN, 0), (VLAN, 0), (VLAN, 0)],
    ]
}

/// Sends a datagram of each source with each of these tags from a pod, to another pod, to the node and to a
/// service. Asserts that none arrives.
#[track_caller]
fn assert_goes_nowhere(topology: &Topology, all_tags: &[Vec<Tag>], only_own: bool) {
    let own = topology.pod.addresses();
    let foreign = ["192.168.50.77", "fd00:50::77", "10.244.1.77", "fd00:244:1::77"];
    let mut sources: Vec<IpAddr> = own.to_vec();
    if !only_own {
        sources.extend(
            foreign
                .iter()
                .map(|text| -> IpAddr { text.parse().expect("an address") }),
        );
    }
    let (at_web, forge) = (topology.at_web(), topology.pod.forge_out());
    let node_socket = topology.node().udp_bind(at("0.0.0.0", 9)).expect("a socket");
    node_socket
        .set_read_timeout(Some(SECOND / 100))
        .expect("a deadline");
    for tags in all_tags {
        let refused = Refusals::of(topology.node(), SPOOFED);
        for source in &sources {
            let v4 = source.is_ipv4();
            for to in [
                SocketAddr::new(of_family(&topology.web, v4), 9),
                SocketAddr::new(of_family(topology.node(), v4), 9),
                at(CLUSTER_IP[usize::from(!v4)], 80),
                SocketAddr::new(of_family(topology.node(), v4), NODE_PORT),
            ] {
                forge.send_tagged(tags, &datagram((*source, 999), to, FORGED));
            }
        }
        let what = format!("a pod's frame with {tags:x?}");
        let to = SocketAddr::new(topology.web.ip().into(), 9);
        assert_nothing_came(&at_web, FORGED, &what, honest(&topology.pod, to));
        let at_node = node_socket.recv_from(&mut [0; 64]);
        assert!(at_node.is_err(), "{what}: it arrived at the node");
        refused.assert_rose_by(4 * sources.len() as u64, &what);
    }
}

#[test]
fn a_doubly_tagged_frame_of_a_pod_goes_nowhere() {
    harness::require_root!();
    assert_goes_nowhere(&Topology::build(), &doubled(), false);
}

#[test]
fn a_doubly_tagged_frame_of_a_pod_goes_nowhere_past_the_stack() {
    harness::require_root!();
    let topology = Topology::with(NodeSpec::millrace(), "hostRouting: redirect\n");
    assert_goes_nowhere(&topology, &doubled(), false);
}

#[test]
fn a_tagged_frame_of_a_pod_goes_nowhere_by_any_source() {
    harness::require_root!();
    let tags = [
        vec![(VLAN, 0)],
        vec![(VLAN, 5)],
        vec![(SERVICE_VLAN, 0)],
        vec![(SERVICE_VLAN, 5)],
    ];
    for routing in ["stack", "redirect"] {
        let topology = Topology::with(NodeSpec::millrace(), &format!("hostRouting: {routing}\n"));
        assert_goes_nowhere(&topology, &tags, true);
        assert_goes_nowhere(&topology, &tags, false);
    }
}

#[test]
fn a_tagged_arp_request_of_a_pod_gets_no_reply() {
    harness::require_root!();
    let topology = Topology::build();
    let (pod, node) = (&topology.pod, topology.node());
    let capture = captured(pod);
    let forge = pod.forge_out();
    let (mac, asked) = (pod.mac("eth0"), "169.254.1.1".parse().expect("an address"));
    let is_reply = |frame: &harness::Frame| !frame.outgoing && frame.bytes.get(12..14) == Some(&[0x08, 0x06]);
    for tags in [
        vec![],
        vec![(VLAN, 0)],
        vec![(VLAN, 0), (VLAN, 0)],
        vec![(SERVICE_VLAN, 0), (VLAN, 0)],
    ] {
        let question = link::arp(true, (mac, pod.ip()), ([0; 6], asked));
        let is_tagged = !tags.is_empty();
        let ethernet = Ethernet {
            to: link::BROADCAST,
            tags,
            ..forge.ethernet()
        };
        let refused = Refusals::of(node, SPOOFED);
        forge.send_frame(&ethernet.of(link::ARP, &question));
        let to = SocketAddr::new(topology.web.ip().into(), 9);
        let what = format!("an ARP question of {}", node.name());
        // The reply to this question comes after a reply to the ARP request.
        let came = if is_tagged {
            let _ = pod.ask(Probe::Udp, SocketAddr::new(to.ip(), 8080));
            capture.so_far().expect("to read")
        } else {
            capture
                .find(SECOND * 3, is_reply)
                .expect("to read")
                .into_iter()
                .collect()
        };
        let replies = came.iter().filter(|frame| is_reply(frame)).count();
        assert_eq!(replies > 0, !is_tagged, "{what}: {:x?}", ethernet.tags);
        refused.assert_rose_by(is_tagged.into(), &what);
    }
}

/// Asserts that a socket for tagged frames receives those that come in. So a frame that it lacks later did
/// not come.
#[track_caller]
pub fn assert_sees_tags(socket: &PacketSocket, forge: &Forge, (from, to): (IpAddr, IpAddr)) {
    for tags in [
        vec![(VLAN, 5)],
        vec![(SERVICE_VLAN, 5)],
        vec![(VLAN, 0)],
        vec![(VLAN, 5), (VLAN, 6)],
    ] {
        let mark = format!("tagged {:016x}", fastrand::u64(..));
        let packet = datagram((from, 999), SocketAddr::new(to, 9), mark.as_bytes());
        forge.send_tagged(&tags, &packet);
        let comes = |frame: &Frame| !frame.outgoing && frame.carries(mark.as_bytes());
        let seen = socket.find(SOON, comes).expect("to read");
        assert!(seen.is_some(), "a frame with {tags:x?} is not seen");
    }
}

/// Asks a pod at a port through a translation, and has it reply with tags and without one. Asserts that the
/// client gets no frame with a tag.
#[track_caller]
fn assert_no_tag_travels_on(
    (client, wire): (&Place, &PacketSocket),
    (pod, port): (&Pod, u16),
    to: SocketAddr,
) {
    let tags = [
        vec![(VLAN, 5)],
        vec![(SERVICE_VLAN, 5)],
        vec![(VLAN, 0)],
        vec![(VLAN, 5), (VLAN, 6)],
    ];
    let (at_pod, at_client) = (captured(pod), captured(client));
    let asking = client.udp_socket_for(to).expect("a socket");
    // The pod replies to the client that it sees.
    let came = came_before(&at_pod, "a question", &mut |mark| {
        let _ = asking.send_to(b"which client do you see?", to);
        let _ = asking.send_to(mark, to);
    });
    let question = came
        .iter()
        .find(|frame| frame.carries(b"which client do you see?"));
    let seen = question
        .and_then(|frame| sender(&frame.bytes))
        .expect("the question");
    let own = SocketAddr::new(of_family(pod, to.is_ipv4()), port);
    let forge = pod.forge_out();
    let refused = Refusals::of(pod.node(), SPOOFED);
    for tags in &tags {
        forge.send_tagged(tags, &packet::udp(own, seen, FORGED));
    }
    came_before(&at_client, "a reply without a tag", &mut |mark| {
        forge.send(&packet::udp(own, seen, mark));
    });
    let tagged = wire.so_far().expect("to read");
    assert!(tagged.is_empty(), "{to}: {} frames left with a tag", tagged.len());
    refused.assert_rose_by(tags.len() as u64, "replies with a tag");
}

/// Has pods reply to clients that only a translation leads to: the host outside, and a pod of the same node.
#[track_caller]
fn assert_replies_have_no_tags(topology: &Topology) {
    let (node, outside) = (topology.node(), &topology.outside);
    let ports = json!([{"hostPort": 8081, "containerPort": 8082, "protocol": "udp"}]);
    let host_port = node.add_pod_by_plugin(&PodSpec::new("host-port").asking("portMappings", ports));
    let [to_outside, to_pod] = [
        node.forge("eth0", outside.mac("eth0")),
        node.forge(topology.pod.host_interface(), topology.pod.mac("eth0")),
    ];
    let places: [&Place; 2] = [outside, &topology.pod];
    let [at_outside, at_pod] = places.map(|place| place.tagged_socket("eth0").expect("a capture"));
    let from = of_family(node, true);
    assert_sees_tags(&at_outside, &to_outside, (from, of_family(outside, true)));
    assert_sees_tags(&at_pod, &to_pod, (from, of_family(&topology.pod, true)));
    for v4 in [true, false] {
        let n = usize::from(!v4);
        let address = of_family(node, v4);
        for (pod, to, port) in [
            (&topology.web, SocketAddr::new(address, NODE_PORT), 8080),
            (&topology.web, SocketAddr::new(address, LOCAL_NODE_PORT), 8080),
            (&topology.web, at(LOCAL_BALANCER[n], 80), 8080),
            (&host_port, SocketAddr::new(address, 8081), 8082),
        ] {
            assert_no_tag_travels_on((outside, &at_outside), (pod, port), to);
        }
        let to = at(CLUSTER_IP[n], 80);
        assert_no_tag_travels_on((&topology.pod, &at_pod), (&topology.web, 8080), to);
    }
}

#[test]
fn a_pods_tag_is_not_forwarded_with_its_reply() {
    harness::require_root!();
    for config in ["", "socketLB: \"off\"\n"] {
        assert_replies_have_no_tags(&Topology::with(NodeSpec::millrace(), config));
    }
}

#[test]
fn a_pods_tag_is_not_forwarded_with_its_reply_past_the_stack() {
    harness::require_root!();
    // Without socket hooks the replies to a pod are translated too.
    for config in ["", "socketLB: \"off\"\n"] {
        let config = format!("hostRouting: redirect\n{config}");
        assert_replies_have_no_tags(&Topology::with(NodeSpec::millrace(), &config));
    }
}

/// Source of the UDP datagram in a frame.
pub fn sender(frame: &[u8]) -> Option<SocketAddr> {
    let (ip, port) = match frame.get(12..14)? {
        [0x08, 0x00] => (IpAddr::from(<[u8; 4]>::try_from(frame.get(26..30)?).ok()?), 34),
        [0x86, 0xdd] => (IpAddr::from(<[u8; 16]>::try_from(frame.get(22..38)?).ok()?), 54),
        _ => return None,
    };
    let port = u16::from_be_bytes([*frame.get(port)?, *frame.get(port + 1)?]);
    Some(SocketAddr::new(ip, port))
}
