//! The programs translate only frames for this node, and a pod sends nothing but IP and ARP.

use std::net::SocketAddr;

use harness::Frame;
use harness::forge::{Ethernet, Forge, link, packet};
use proxy_common::maps::Reason;

use crate::tags::sender;
use crate::topology::{
    BALANCER, CLUSTER_IP, NODE_PORT, Refusals, SOON, Topology, assert_nothing_came, at, came_before,
    captured, datagram, honest, of_family,
};

const FORGED: &[u8] = b"forged";
/// `ETH_P_802_2` of `linux/if_ether.h`.
const LLC: u16 = 4;
/// The reason of a frame for another host, which is left to the stack.
const OTHER_HOST: &[Reason] = &[Reason::OtherHost];
/// The reason of a pod's frame that is dropped at the pod's interface.
const SPOOFED: &[Reason] = &[Reason::SpoofedSource];

/// Hardware addresses that are not the node's: a stranger's, broadcast and multicast ones.
const FOREIGN: [[u8; 6]; 4] = [
    [2, 0x99, 0, 0, 0, 1],
    link::BROADCAST,
    [1, 0, 0x5e, 0, 0, 1],
    [0x33, 0x33, 0, 0, 0, 1],
];

fn send_to(forge: &Forge, mac: [u8; 6], packet: &[u8]) {
    let ethernet = Ethernet {
        to: mac,
        ..forge.ethernet()
    };
    forge.send_frame(&ethernet.of_packet(packet));
}

#[test]
fn a_frame_for_another_host_is_not_translated() {
    harness::require_root!();
    let topology = Topology::build();
    topology.node().run_ip("link set eth0 promisc on");
    let (at_web, at_outside, forge) = (topology.at_web(), captured(&topology.outside), topology.forge());
    for mac in FOREIGN {
        let left = Refusals::of(topology.node(), OTHER_HOST);
        let mut sent = 0;
        for v4 in [true, false] {
            let from = (of_family(&topology.outside, v4), 999);
            let mut all = topology.entrances(v4);
            all.push(SocketAddr::new(of_family(&topology.web, v4), 9));
            for to in all {
                send_to(&forge, mac, &datagram(from, to, FORGED));
                let syn = packet::tcp(SocketAddr::new(from.0, 999), to, packet::SYN, 1, FORGED);
                send_to(&forge, mac, &syn);
                sent += 2;
                if to.port() == 80 {
                    send_to(&forge, mac, &packet::echo(from.0, to.ip(), true, 1, FORGED));
                    sent += 1;
                }
            }
        }
        let what = format!("for {mac:x?}");
        assert_nothing_came(
            &at_web,
            FORGED,
            &what,
            honest(&topology.outside, at(BALANCER[0], 80)),
        );
        let came: Vec<Frame> = at_outside.so_far().expect("to read");
        let is_echo = |frame: &&Frame| {
            let is_reply = frame.bytes.get(34) == Some(&0) || frame.bytes.get(54) == Some(&129);
            !frame.outgoing && is_reply && frame.carries(FORGED)
        };
        let came = came.iter().filter(is_echo).count();
        assert_eq!(came, 0, "{what}: {came} echo requests got replies");
        left.assert_rose_by(sent, &what);
    }
}

#[test]
fn a_reply_for_another_host_does_not_reach_the_masqueraded_pod() {
    harness::require_root!();
    let topology = Topology::build();
    topology.node().run_ip("link set eth0 promisc on");
    let (at_outside, at_pod, forge) = (
        captured(&topology.outside),
        captured(&topology.pod),
        topology.forge(),
    );
    for v4 in [true, false] {
        let to = SocketAddr::new(of_family(&topology.outside, v4), 5300);
        let _listener = topology.outside.udp_bind(to).expect("a socket");
        let pod = topology.pod.udp_socket_for(to).expect("a socket");
        let came = came_before(&at_outside, "a question", &mut |mark| {
            let _ = pod.send_to(b"which client do you see?", to);
            let _ = pod.send_to(mark, to);
        });
        let question = came
            .iter()
            .find(|frame| frame.carries(b"which client do you see?"));
        let seen = question
            .and_then(|frame| sender(&frame.bytes))
            .expect("the question");
        let left = Refusals::of(topology.node(), OTHER_HOST);
        for mac in FOREIGN {
            send_to(&forge, mac, &packet::udp(to, seen, FORGED));
        }
        assert_nothing_came(&at_pod, FORGED, "a reply for another host", |mark| {
            forge.send(&packet::udp(to, seen, mark));
        });
        left.assert_rose_by(FOREIGN.len() as u64, "a reply for another host");
    }
}

#[test]
fn a_pods_frame_for_another_host_is_not_translated() {
    harness::require_root!();
    let topology = Topology::build();
    let (at_web, forge) = (topology.at_web(), topology.pod.forge_out());
    for mac in FOREIGN {
        let left = Refusals::of(topology.node(), OTHER_HOST);
        for v4 in [true, false] {
            let from = (of_family(&topology.pod, v4), 999);
            for to in [
                at(CLUSTER_IP[usize::from(!v4)], 80),
                at(BALANCER[usize::from(!v4)], 80),
                SocketAddr::new(of_family(topology.node(), v4), NODE_PORT),
                SocketAddr::new(of_family(&topology.web, v4), 9),
            ] {
                send_to(&forge, mac, &datagram(from, to, FORGED));
            }
        }
        let to = SocketAddr::new(topology.web.ip().into(), 9);
        let what = format!("for {mac:x?}");
        assert_nothing_came(&at_web, FORGED, &what, honest(&topology.pod, to));
        left.assert_rose_by(2 * 4, &what);
    }
}

#[test]
fn other_protocols_of_a_pod_end_at_its_interface() {
    harness::require_root!();
    let topology = Topology::build();
    let (node, pod) = (topology.node(), &topology.pod);
    let forge = pod.forge_out();
    let replies = captured(pod);
    let is_arp = |frame: &Frame| !frame.outgoing && frame.bytes.get(12..14) == Some(&[0x08, 0x06]);
    let others: [u16; 9] = [
        0x88cc, // LLDP
        0x8847, // MPLS
        0x8863, // PPPoE discovery
        0x8864, // PPPoE
        0x88f7, // PTP
        0x888e, // 802.1X
        0x8035, // RARP
        0x22f0, // AVTP
        0x88b5, // experiments
    ];
    for other in others {
        let capture = node
            .protocol_socket(pod.host_interface(), other)
            .expect("a capture");
        let refused = Refusals::of(node, SPOOFED);
        for mac in [
            node.mac(pod.host_interface()),
            link::BROADCAST,
            [1, 0x80, 0xc2, 0, 0, 0x0e],
        ] {
            let ethernet = Ethernet {
                to: mac,
                ..forge.ethernet()
            };
            forge.send_frame(&ethernet.of(other, FORGED));
        }
        // An honest ARP request passes the same program, which replies for the gateway.
        let question = link::arp(
            true,
            (pod.mac("eth0"), pod.ip()),
            ([0; 6], "169.254.1.1".parse().expect("an address")),
        );
        forge.send_frame(&forge.ethernet().of(link::ARP, &question));
        let honest = replies.find(SOON, is_arp).expect("to read");
        assert!(honest.is_some(), "ARP gets a reply");
        let came = capture.so_far().expect("to read").len();
        assert_eq!(came, 0, "{came} frames of EtherType {other:#06x} passed");
        refused.assert_rose_by(3, &format!("EtherType {other:#06x}"));
    }
    // A frame of IEEE 802.3, as bridges send: it has a length in place of an EtherType.
    let capture = node
        .protocol_socket(pod.host_interface(), LLC)
        .expect("a capture");
    let bridge = Ethernet {
        to: [1, 0x80, 0xc2, 0, 0, 0],
        ..forge.ethernet()
    };
    let refused = Refusals::of(node, SPOOFED);
    forge.send_frame(&bridge.of(38, &[&[0x42, 0x42, 3], [0_u8; 35].as_slice()].concat()));
    let question = link::arp(
        true,
        (pod.mac("eth0"), pod.ip()),
        ([0; 6], "169.254.1.1".parse().expect("an address")),
    );
    forge.send_frame(&forge.ethernet().of(link::ARP, &question));
    assert!(
        replies.find(SOON, is_arp).expect("to read").is_some(),
        "ARP gets a reply"
    );
    assert_eq!(
        capture.so_far().expect("to read").len(),
        0,
        "a bridge's frame passed"
    );
    refused.assert_rose_by(1, "a bridge's frame");
}
