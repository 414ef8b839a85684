//! Tests with pods of our plugin: their permitted packets, the packets that leave with the node's address,
//! and the node's host ports.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;

use millrace::bpf::sys;
use proxy_common::maps::{ConfigFlags, HostPort, HostPortKey, InUse, Pod, PodLink, Reason};
use proxy_common::{Ip, Port, protocol};

use super::frame::{checked, ends, frame, icmp_error};
use super::live::open_map;
use super::node::{NODE, Node, of_family};
use super::{PASS, REDIRECT, SHOT, ip};

const POD: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];
const REMOTE_POD: [&str; 2] = ["10.244.2.2", "fd00:244:2::2"];
const OUTSIDE: [&str; 2] = ["172.31.0.5", "2001:db8:31::5"];
const ROUTER: [&str; 2] = ["172.30.0.1", "fd00:30::1"];
/// The source MAC address of every frame here.
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A node that masquerades, with one pod at the interface where frames enter.
fn node() -> Node {
    let node = Node::new();
    add_pod(&node, POD);
    node
}

/// Makes a node masquerade, and adds a pod at the interface where its frames enter.
pub fn add_pod(node: &Node, addresses: [&str; 2]) {
    let datapath = node.programmer.store();
    let mut config = datapath.config.get(0).expect("a configuration");
    config.flags |= ConfigFlags::MASQUERADE_PODS;
    (config.own_range[0], config.own_mask[0]) =
        (ip("10.244.1.0"), ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00"));
    (config.own_range[1], config.own_mask[1]) = (ip("fd00:244:1::"), ip("ffff:ffff:ffff:ffff::"));
    datapath.config.set(0, &config);
    let pod = Pod {
        interface: node.uplink,
        mac: MAC,
        ..Pod::default()
    };
    for address in addresses {
        datapath.pods.set(&ip(address), &pod).expect("a pod");
    }
    let in_use = open_map(datapath, "IN_USE");
    for table in [InUse::PODS, InUse::HOST_PORTS] {
        sys::map_update(in_use.as_fd(), &table.to_ne_bytes(), &1_u32.to_ne_bytes()).expect("to tell so");
    }
}

fn end(addresses: [&str; 2], family: usize, port: u16) -> SocketAddr {
    SocketAddr::new(of_family(addresses, family), port)
}

fn between(from: SocketAddr, to: SocketAddr, protocol: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(&from.to_string(), &to.to_string(), protocol, flags, payload)
}

/// An echo request or reply with this identifier.
fn echo(from: IpAddr, to: IpAddr, id: u16, is_reply: bool, payload: &[u8]) -> Vec<u8> {
    let kind = match (from.is_ipv4(), is_reply) {
        (true, false) => 8,
        (true, true) => 0,
        (false, false) => 128,
        (false, true) => 129,
    };
    let [high, low] = id.to_be_bytes();
    icmp_error(from, to, [kind, 0, 0, 0, high, low, 0, 1], payload)
}

const ALL: [(u8, u8); 3] = [(protocol::TCP, 2), (protocol::UDP, 0), (protocol::SCTP, 1)];

#[test]
fn what_a_pod_sends_outside_carries_the_nodes_address_and_comes_back() {
    let node = node();
    for family in [0, 1] {
        for (protocol, flags) in ALL {
            let (pod, outside) = (end(POD, family, 40_000), end(OUTSIDE, family, 80));
            let request = between(pod, outside, protocol, flags, b"hello");
            assert_eq!(node.run("from_pod", &request), (PASS, request.clone()));
            let (verdict, sent) = node.run("to_uplink", &request);
            assert_eq!(verdict, PASS);
            let (source, target) = ends(&checked(&sent));
            assert_eq!((source.ip(), target), (of_family(NODE, family), outside));
            assert!((61_000..65_000).contains(&source.port()), "{source}");
            let reply = between(outside, source, protocol, 0x12, b"hello back");
            let (verdict, received) = node.run("from_uplink", &reply);
            assert_eq!(verdict, PASS);
            assert_eq!(ends(&checked(&received)), (outside, pod));
        }
    }
    assert_eq!((node.count(Reason::NewFlow), node.count(Reason::Reply)), (6, 6));
}

#[test]
fn an_echo_is_masqueraded_by_its_identifier() {
    let node = node();
    for family in [0, 1] {
        let [pod, outside, own] = [POD, OUTSIDE, NODE].map(|addresses| of_family(addresses, family));
        let request = echo(pod, outside, 7, false, b"0123456789");
        let (verdict, sent) = node.run("to_uplink", &request);
        assert_eq!(verdict, PASS);
        let headers = checked(&sent);
        assert_eq!(
            (IpAddr::from(headers.src), IpAddr::from(headers.dst)),
            (own, outside)
        );
        let id = headers.echo_id().number();
        assert!((61_000..65_000).contains(&id), "{id}");
        let (verdict, received) = node.run("from_uplink", &echo(outside, own, id, true, b"0123456789"));
        assert_eq!(
            (verdict, &received),
            (PASS, &echo(outside, pod, 7, true, b"0123456789"))
        );
        // A reply that belongs to no flow is the node's.
        let unsolicited = echo(outside, own, 7, true, b"0123456789");
        assert_eq!(node.run("from_uplink", &unsolicited), (PASS, unsolicited.clone()));
    }
}

#[test]
fn errors_about_masqueraded_packets_are_translated_both_ways() {
    let node = node();
    for family in [0, 1] {
        let [pod, outside, own, router] =
            [POD, OUTSIDE, NODE, ROUTER].map(|addresses| of_family(addresses, family));
        let unreachable = |from, to, about: &[u8]| {
            let head = if family == 0 {
                [3, 3, 0, 0, 0, 0, 0, 0]
            } else {
                [1, 4, 0, 0, 0, 0, 0, 0]
            };
            icmp_error(from, to, head, about)
        };
        let datagram = between(
            end(POD, family, 41_000),
            end(OUTSIDE, family, 53),
            protocol::UDP,
            0,
            b"hello",
        );
        for request in [datagram, echo(pod, outside, 7, false, b"0123456789")] {
            let (_, sent) = node.run("to_uplink", &request);
            assert_ne!(sent, request);
            // The error is about the pod's packet, and the pod sees its own addresses in it.
            let (verdict, out) = node.run("from_uplink", &unreachable(router, own, &sent[14..]));
            assert_eq!(verdict, PASS);
            let headers = checked(&out);
            assert_eq!(
                (IpAddr::from(headers.src), IpAddr::from(headers.dst)),
                (router, pod)
            );
            let about = proxy_common::packet::parse_embedded(&out[..], &headers).expect("a packet inside");
            let asked = checked(&request);
            assert_eq!(
                (about.src, about.sport, about.dst, about.dport),
                (asked.src, asked.sport, asked.dst, asked.dport)
            );
            // The pod sends an error about a reply. The error goes to the sender of the reply, from the node,
            // with the addresses of that reply.
            let sent = checked(&sent);
            let reply = if asked.is_icmp() {
                echo(outside, own, sent.echo_id().number(), true, b"0123456789")
            } else {
                let (near, far) = ends(&sent);
                between(far, near, protocol::UDP, 0, b"hello back")
            };
            let (_, received) = node.run("from_uplink", &reply);
            let error = unreachable(pod, outside, &received[14..]);
            assert_eq!(
                node.run("from_pod", &error),
                (PASS, error.clone()),
                "translated as it leaves"
            );
            let (verdict, out) = node.run("to_uplink", &error);
            assert_eq!(verdict, PASS);
            let headers = checked(&out);
            assert_eq!(
                (IpAddr::from(headers.src), IpAddr::from(headers.dst)),
                (own, outside)
            );
            let about = proxy_common::packet::parse_embedded(&out[..], &headers).expect("a packet inside");
            let replied = checked(&reply);
            assert_eq!(
                (about.src, about.sport, about.dst, about.dport),
                (replied.src, replied.sport, replied.dst, replied.dport)
            );
        }
    }
}

#[test]
fn what_need_not_be_masqueraded_is_not() {
    let node = node();
    for family in [0, 1] {
        let (pod, outside) = (end(POD, family, 42_000), end(OUTSIDE, family, 80));
        for (from, to) in [
            (pod, end(REMOTE_POD, family, 80)),
            (end(NODE, family, 42_000), outside),
            (end(REMOTE_POD, family, 42_000), outside),
        ] {
            for (protocol, flags) in ALL {
                let packet = between(from, to, protocol, flags, b"hello");
                assert_eq!(node.run("to_uplink", &packet), (PASS, packet.clone()));
            }
        }
        // The pod replies with its own address to a client that used that address.
        let request = between(outside, pod, protocol::TCP, 2, b"");
        assert_eq!(node.run("from_uplink", &request), (PASS, request.clone()));
        let reply = between(pod, outside, protocol::TCP, 0x12, b"");
        assert_eq!(node.run("to_uplink", &reply), (PASS, reply.clone()));
        let request = between(outside, pod, protocol::UDP, 0, b"hello");
        assert_eq!(node.run("from_uplink", &request), (PASS, request.clone()));
        let reply = between(pod, outside, protocol::UDP, 0, b"hello back");
        assert_eq!(node.run("to_uplink", &reply), (PASS, reply.clone()));
        let ping = echo(outside.ip(), of_family(POD, family), 7, false, b"0123");
        assert_eq!(node.run("from_uplink", &ping), (PASS, ping.clone()));
        let reply = echo(of_family(POD, family), outside.ip(), 7, true, b"0123");
        assert_eq!(node.run("to_uplink", &reply), (PASS, reply.clone()));
    }
}

/// Makes a port of all the node's addresses lead to port 80 of a pod.
pub fn add_host_ports(node: &Node, port: u16, addresses: [&str; 2], generation: u32) {
    for (all, pod) in ["0.0.0.0", "::"].into_iter().zip(addresses) {
        for (protocol, _) in ALL {
            let key = HostPortKey {
                address: Ip::from(all.parse::<IpAddr>().expect("an address")),
                port: Port::new(port),
                protocol,
                reserved: 0,
            };
            let target = HostPort {
                pod: ip(pod),
                port: Port::new(80),
                reserved: [0; 2],
                interface: node.uplink,
                generation,
            };
            node.programmer
                .store()
                .host_ports
                .set(&key, &target)
                .expect("a host port");
        }
    }
}

#[test]
fn a_host_port_is_translated_to_its_pod_and_the_client_keeps_its_address() {
    let node = node();
    add_host_ports(&node, 8080, POD, 1);
    for line in [
        "addr add 10.244.1.1/24 dev uplink0",
        "-6 addr add fd00:244:1::1/64 dev uplink0 nodad",
    ] {
        let output = std::process::Command::new("ip")
            .args(line.split(' '))
            .output()
            .expect("ip");
        assert!(output.status.success(), "ip {line}: {output:?}");
    }
    for family in [0, 1] {
        for (protocol, flags) in ALL {
            let (client, port) = (end(OUTSIDE, family, 43_000), end(NODE, family, 8080));
            let target = end(POD, family, 80);
            let request = between(client, port, protocol, flags, b"hello");
            let (verdict, sent) = node.run("from_uplink", &request);
            assert_eq!((verdict, ends(&checked(&sent))), (REDIRECT, (client, target)));
            let reply = between(target, client, protocol, 0x12, b"hello back");
            let (verdict, out) = node.run("from_pod", &reply);
            assert_eq!((verdict, ends(&checked(&out))), (REDIRECT, (port, client)));
            // The packets of a pod of this node go through the kernel's stack in both directions.
            let client = end(["10.244.1.9", "fd00:244:1::9"], family, 43_000);
            let request = between(client, port, protocol, flags, b"hello");
            let (verdict, sent) = node.run("from_pod", &request);
            assert_eq!((verdict, ends(&checked(&sent))), (PASS, (client, target)));
            let reply = between(target, client, protocol, 0x12, b"hello back");
            let (verdict, out) = node.run("to_pod", &reply);
            assert_eq!((verdict, ends(&checked(&out))), (PASS, (port, client)));
            // The packets of the pod itself come back to it, with the node's address.
            let client = end(POD, family, 43_001);
            let request = between(client, port, protocol, flags, b"hello");
            let (verdict, sent) = node.run("from_pod", &request);
            let (source, to) = ends(&checked(&sent));
            assert_eq!((verdict, source.ip(), to), (REDIRECT, port.ip(), target));
        }
    }
    // Datagrams go to the pod that has the port now.
    let moved = node.count(Reason::Moved);
    add_host_ports(&node, 8080, POD, 2);
    let request = between(
        end(OUTSIDE, 0, 43_000),
        end(NODE, 0, 8080),
        protocol::UDP,
        0,
        b"hello",
    );
    assert_eq!(node.run("from_uplink", &request).0, REDIRECT);
    assert_eq!(node.count(Reason::Moved), moved + 1);
}

#[test]
fn a_pod_sends_from_its_own_addresses_only() {
    let node = node();
    let datapath = node.programmer.store();
    let link = PodLink {
        mac: MAC,
        ..PodLink::default()
    };
    datapath.pod_links.set(&node.uplink, &link).expect("a link");
    let mut dropped = 0;
    for family in [0, 1] {
        let to = end(OUTSIDE, family, 80);
        let own = between(end(POD, family, 44_000), to, protocol::TCP, 2, b"");
        assert_eq!(node.run("from_pod", &own), (PASS, own.clone()));
        let mut other_mac = own.clone();
        other_mac[11] = 9;
        let foreign = [NODE, REMOTE_POD, OUTSIDE]
            .map(|from| between(end(from, family, 44_000), to, protocol::TCP, 2, b""));
        for packet in foreign.into_iter().chain([other_mac]) {
            assert_eq!(node.run("from_pod", &packet).0, SHOT);
            dropped += 1;
        }
    }
    assert_eq!(node.count(Reason::SpoofedSource), dropped);
    // Neighbour solicitations have no address yet.
    let [unspecified, group]: [IpAddr; 2] = ["::", "ff02::1"].map(|text| text.parse().expect("an address"));
    let solicitation = icmp_error(unspecified, group, [135, 0, 0, 0, 0, 0, 0, 0], &[0; 16]);
    assert_eq!(node.run("from_pod", &solicitation).0, PASS);
    // At our own interfaces the source of a packet that is not IP is checked too; this one has another
    // sender.
    let mut arp = between(end(OUTSIDE, 0, 1), end(NODE, 0, 1), protocol::UDP, 0, b"");
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    assert_eq!(node.run("from_pod", &arp).0, PASS);
    assert_eq!(node.run("from_own_pod", &arp).0, SHOT);
    datapath.pod_links.remove(&node.uplink).expect("to remove");
    let foreign = between(
        end(OUTSIDE, 0, 44_000),
        end(REMOTE_POD, 0, 80),
        protocol::TCP,
        2,
        b"",
    );
    assert_eq!(node.run("from_pod", &foreign).0, PASS);
    // The interface of our plugin has lost its entry.
    assert_eq!(node.run("from_own_pod", &foreign).0, SHOT);
    assert_eq!(node.count(Reason::SpoofedSource), dropped + 2);
    datapath.pod_links.set(&node.uplink, &link).expect("a link");
    let own = between(end(POD, 0, 44_000), end(OUTSIDE, 0, 80), protocol::TCP, 2, b"");
    assert_eq!(node.run("from_own_pod", &own), (PASS, own.clone()));
}
