//! A tagged frame at an uplink belongs to the VLAN device. A priority tag, whose VLAN is 0, does not count as
//! a tag: such a frame is served, and its tag is removed.

use std::net::SocketAddr;

use harness::forge::{SERVICE_VLAN, Tag, VLAN, packet};
use harness::{Frame, Place};
use proxy_common::maps::Reason;

use crate::tags::{assert_sees_tags, sender};
use crate::topology::{
    BALANCER, LOCAL_BALANCER, NODE_PORT, Refusals, SOON, Topology, assert_nothing_came, at, came_before,
    captured, datagram, honest, of_family,
};

const FORGED: &[u8] = b"forged";

/// Tags of VLANs that the node is not in.
fn foreign() -> [Vec<Tag>; 5] {
    [
        vec![(VLAN, 100)],
        vec![(SERVICE_VLAN, 100)],
        vec![(VLAN, 0x6064)],
        vec![(VLAN, 100), (VLAN, 100)],
        vec![(VLAN, 100), (VLAN, 0)],
    ]
}

#[test]
fn a_frame_of_a_vlan_is_not_served_at_the_uplink_below() {
    harness::require_root!();
    let topology = Topology::build();
    let (at_web, at_outside, forge) = (topology.at_web(), captured(&topology.outside), topology.forge());
    for tags in foreign() {
        for v4 in [true, false] {
            let from = (of_family(&topology.outside, v4), 999);
            let mut all = topology.entrances(v4);
            all.push(SocketAddr::new(of_family(&topology.web, v4), 9));
            let left = Refusals::of(topology.node(), &[Reason::Tagged]);
            for to in &all {
                let to = *to;
                forge.send_tagged(&tags, &datagram(from, to, FORGED));
                let syn = packet::tcp(SocketAddr::new(from.0, 999), to, packet::SYN, 1, FORGED);
                forge.send_tagged(&tags, &syn);
                forge.send_tagged(&tags, &packet::echo(from.0, to.ip(), true, 1, FORGED));
            }
            let what = format!("with {tags:x?}");
            assert_nothing_came(
                &at_web,
                FORGED,
                &what,
                honest(&topology.outside, at(BALANCER[0], 80)),
            );
            let replies: Vec<Frame> = at_outside.so_far().expect("to read");
            let replies = replies
                .iter()
                .filter(|frame| !frame.outgoing && frame.carries(FORGED));
            assert_eq!(
                replies.count(),
                0,
                "{what}: echo requests and datagrams got replies"
            );
            left.assert_rose_by(3 * all.len() as u64, &what);
        }
    }
}

#[test]
fn a_doubled_priority_tag_is_not_served() {
    harness::require_root!();
    let topology = Topology::build();
    let (at_web, forge) = (topology.at_web(), topology.forge());
    for tags in [vec![(VLAN, 0), (VLAN, 0)], vec![(SERVICE_VLAN, 0), (VLAN, 0)]] {
        let refused = Refusals::of(topology.node(), &[Reason::Retagged]);
        let mut sent = 0;
        for v4 in [true, false] {
            let from = (of_family(&topology.outside, v4), 999);
            for to in topology.entrances(v4) {
                forge.send_tagged(&tags, &datagram(from, to, FORGED));
                sent += 1;
            }
        }
        let what = format!("with {tags:x?}");
        assert_nothing_came(
            &at_web,
            FORGED,
            &what,
            honest(&topology.outside, at(BALANCER[0], 80)),
        );
        refused.assert_rose_by(sent, &what);
    }
}

#[test]
fn a_priority_tag_is_served_and_ends_at_the_uplink() {
    harness::require_root!();
    let topology = Topology::build();
    let (node, web, outside) = (topology.node(), &topology.web, &topology.outside);
    let places: [&Place; 2] = [web, outside];
    let [tagged_at_web, tagged_at_outside] =
        places.map(|place| place.tagged_socket("eth0").expect("a capture"));
    let from = of_family(node, true);
    let into_pod = node.forge(web.host_interface(), web.mac("eth0"));
    assert_sees_tags(&tagged_at_web, &into_pod, (from, of_family(web, true)));
    let out = node.forge("eth0", outside.mac("eth0"));
    assert_sees_tags(&tagged_at_outside, &out, (from, of_family(outside, true)));
    let (at_web, at_outside, forge) = (captured(web), captured(outside), topology.forge());
    let mut sent = 0;
    for v4 in [true, false] {
        let n = usize::from(!v4);
        let from = of_family(outside, v4);
        let all = [
            at(BALANCER[n], 80),
            at(LOCAL_BALANCER[n], 80),
            SocketAddr::new(of_family(node, v4), NODE_PORT),
        ];
        for (number, to) in (0..).zip(all) {
            for priority in [0, 0xa000] {
                let mark = format!("served {v4} {number} {priority}");
                let socket = outside.udp_socket_for(to).expect("a socket");
                let own = socket.local_addr().expect("an address").port();
                let question = packet::udp(SocketAddr::new(from, own), to, mark.as_bytes());
                forge.send_tagged(&[(VLAN, priority)], &question);
                sent += 1;
                let carries = |frame: &Frame| !frame.outgoing && frame.carries(mark.as_bytes());
                let arrived = at_web.find(SOON, carries).expect("to read");
                assert!(arrived.is_some(), "{mark} to {to}");
                let reply = at_outside.find(SOON, carries).expect("to read");
                assert_eq!(sender(&reply.expect("a reply").bytes), Some(to));
            }
        }
    }
    // An outgoing tagged frame is the host's own. An incoming one would be the node's.
    let [at_web, at_outside] =
        [tagged_at_web, tagged_at_outside].map(|socket| socket.so_far().expect("to read"));
    let (own, others): (Vec<_>, Vec<_>) = at_outside.iter().partition(|frame| frame.outgoing);
    assert_eq!(own.len(), sent, "the questions had tags");
    assert_eq!((at_web.len(), others.len()), (0, 0), "a tag travelled on");
}

#[test]
fn a_reply_with_a_tag_does_not_reach_the_masqueraded_pod() {
    harness::require_root!();
    let topology = Topology::build();
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
        assert_eq!(seen.ip(), of_family(topology.node(), v4), "masqueraded");
        let left = Refusals::of(topology.node(), &[Reason::Tagged]);
        for tags in foreign() {
            forge.send_tagged(&tags, &packet::udp(to, seen, FORGED));
        }
        assert_nothing_came(&at_pod, FORGED, "a reply with a tag", |mark| {
            forge.send(&packet::udp(to, seen, mark));
        });
        left.assert_rose_by(foreign().len() as u64, "a reply with a tag");
    }
}

/// A VLAN device above the uplink gets its frames from the stack, so the frames must reach the stack
/// unchanged.
#[test]
fn a_frame_of_a_vlan_is_left_to_the_stack_as_it_is() {
    harness::require_root!();
    let topology = Topology::build();
    let stack = topology
        .node()
        .protocol_socket("eth0", packet::IPV4)
        .expect("a capture");
    let (from, forge) = ((of_family(&topology.outside, true), 999), topology.forge());
    for to in topology.entrances(true) {
        let left = Refusals::of(topology.node(), &[Reason::Tagged]);
        let question = datagram(from, to, FORGED);
        forge.send_tagged(&[(VLAN, 100)], &question);
        let came = stack.find(SOON, |frame| frame.carries(FORGED)).expect("to read");
        let came = came.unwrap_or_else(|| panic!("{to}: a frame of a VLAN does not reach the stack"));
        assert!(came.bytes.ends_with(&question), "{to}: it was changed");
        left.assert_rose_by(1, "a frame of a VLAN");
    }
}
