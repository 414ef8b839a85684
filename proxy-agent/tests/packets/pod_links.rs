//! Tests of the steps at a pod's interface before any decision: the limits come first, and the gateway sends
//! its replies.

use std::os::fd::AsFd as _;
use std::process::Command;

use millrace::bpf::test_run::DryRunner;
use millrace::bpf::{Datapath, sys};
use proxy_common::Plain as _;
use proxy_common::maps::{LIMITED_MARK, PodLink, PodLinkFlags, Reason};
use proxy_common::protocol;

use super::frame::frame;
use super::live::open_map;
use super::node::Node;
use super::pods::add_pod;
use super::{PASS, REDIRECT, SHOT};

const POD: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];
/// The MAC addresses of the pod, and of the node's side.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

/// Runs `ip` in the node's namespace.
pub fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("ip");
    assert!(output.status.success(), "ip {line}: {output:?}");
}

/// A pod with such an entry at the interface where frames enter.
fn node(flags: u32, limiter: u32) -> Node {
    let node = Node::new();
    add_pod(&node, POD);
    set_link(node.programmer.store(), node.uplink, flags, limiter);
    node
}

fn set_link(datapath: &Datapath, interface: u32, flags: u32, limiter: u32) {
    let link = PodLink {
        mac: MAC,
        reserved: [0; 2],
        flags,
        limiter,
    };
    let links = open_map(datapath, "POD_LINKS");
    sys::map_update(links.as_fd(), &interface.to_ne_bytes(), link.as_bytes()).expect("a link");
}

#[test]
fn a_limited_pod_is_decided_about_when_its_packet_comes_back() {
    let node = node(PodLinkFlags::LIMITED_FIRST, 1);
    for (client, outside, unserved, forged) in [
        (
            "10.244.1.5:40000",
            "172.31.0.5:80",
            "10.96.0.10:9",
            "10.244.1.6:40000",
        ),
        (
            "[fd00:244:1::5]:40000",
            "[2001:db8:31::5]:80",
            "[fd00:96::10]:9",
            "[fd00:244:1::6]:40000",
        ),
    ] {
        let [own, refused, forged] = [(client, outside), (client, unserved), (forged, outside)]
            .map(|(from, to)| frame(from, to, protocol::UDP, 0, b"hello"));
        for packet in [&own, &refused] {
            let sent = node.run_marked("from_pod", packet, 0);
            assert_eq!(
                sent,
                (REDIRECT, packet.clone(), LIMITED_MARK),
                "to the limiter, as it is"
            );
        }
        assert_eq!(
            node.run_marked("from_pod", &own, LIMITED_MARK),
            (PASS, own.clone(), 0)
        );
        // The program checks the packet once, and decides about it once.
        let before = node.count(Reason::SpoofedSource);
        assert_eq!(node.run_marked("from_pod", &forged, 0).0, SHOT);
        assert_eq!(node.count(Reason::SpoofedSource), before + 1);
        let (verdict, _, mark) = node.run_marked("from_pod", &refused, LIMITED_MARK);
        assert_ne!(verdict, PASS, "the service has no endpoint");
        assert_eq!(mark, 0);
    }
}

#[test]
fn a_limit_behind_the_programs_and_none_are_decided_about_at_once() {
    let node = node(0, 1);
    let own = frame("10.244.1.5:40000", "172.31.0.5:80", protocol::TCP, 2, b"");
    for (flags, limiter) in [(0, 1), (0, 0), (PodLinkFlags::LIMITED_FIRST, 0)] {
        set_link(node.programmer.store(), node.uplink, flags, limiter);
        assert_eq!(node.run_marked("from_pod", &own, 0), (PASS, own.clone(), 0));
        // Another program's mark does not change.
        assert_eq!(node.run_marked("from_pod", &own, 7), (PASS, own.clone(), 7));
    }
}

#[test]
fn a_dry_run_of_a_limited_pod_shows_the_decision() {
    let node = node(PodLinkFlags::LIMITED_FIRST, 1);
    let runner = DryRunner::new(node.programmer.store(), "from_pod").expect("a runner");
    let own = frame("10.244.1.5:40000", "10.96.99.99:80", protocol::UDP, 0, b"x");
    let found = runner.run(&own, node.uplink).expect("a dry run");
    assert_eq!(found.reason, Reason::NoSuchService);
}

#[test]
fn the_gateway_replies_for_its_address_alone() {
    let node = node(0, 0);
    for line in [
        "link set uplink0 address 02:00:00:00:00:77",
        "route add 10.244.1.5 dev uplink0",
        "neigh add 10.244.1.5 lladdr 02:00:00:00:00:02 dev uplink0 nud permanent",
    ] {
        ip(line);
    }
    let asking = |sender: [u8; 4], target: [u8; 4]| {
        let mut frame = vec![0xff; 6];
        frame.extend(MAC);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(MAC);
        frame.extend(sender);
        frame.extend([0; 6]);
        frame.extend(target);
        frame
    };
    let own = asking([10, 244, 1, 5], [169, 254, 1, 1]);
    let mut reply = MAC.to_vec();
    reply.extend(GATEWAY_MAC);
    reply.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    reply.extend(GATEWAY_MAC);
    reply.extend([169, 254, 1, 1]);
    reply.extend(MAC);
    reply.extend([10, 244, 1, 5]);
    assert_eq!(node.run("from_pod", &own), (REDIRECT, reply));
    let mut reply = own.clone();
    reply[21] = 2;
    for other in [
        asking([10, 244, 1, 5], [169, 254, 1, 2]),
        asking([10, 244, 1, 5], [192, 168, 50, 11]),
        reply,
    ] {
        let (verdict, out) = node.run("from_pod", &other);
        assert!(verdict != REDIRECT && out == other, "{verdict}");
    }
    // The interface belongs to another plugin.
    sys::map_delete(
        open_map(node.programmer.store(), "POD_LINKS").as_fd(),
        &node.uplink.to_ne_bytes(),
    )
    .expect("to remove the link");
    assert_ne!(node.run("from_pod", &own).0, REDIRECT);
}
