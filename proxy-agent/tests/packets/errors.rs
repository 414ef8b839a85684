//! Tests of ICMP errors about translated packets, and of packets that are too big.

use std::net::{IpAddr, SocketAddr};

use proxy_common::maps::Reason;
use proxy_common::protocol;
use serde_json::json;

use super::frame::{checked, ends, frame, icmp_error};
use super::node::{NODE, Node, of_family};
use super::{PASS, REDIRECT};

const VIP: [&str; 2] = ["10.96.0.1", "fd00:96::1"];
const BACKEND: [&str; 2] = ["10.244.2.2", "fd00:244:2::2"];
const POD: [&str; 2] = ["10.244.1.5", "fd00:244:1::5"];
const OUTSIDE: [&str; 2] = ["172.31.0.5", "fd00:31::5"];
const ROUTER: [&str; 2] = ["172.30.0.1", "fd00:30::1"];

fn node() -> Node {
    let mut node = Node::new();
    let port = |protocol| json!({"name": protocol, "protocol": protocol, "port": 80, "nodePort": 30_080});
    let mut objects = vec![json!({
        "kind": "Service",
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"type": "NodePort", "clusterIPs": VIP, "ports": [port("TCP"), port("UDP")]},
    })];
    for (family, name) in ["IPv4", "IPv6"].into_iter().enumerate() {
        objects.push(json!({
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default", "name": name,
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": name,
            "ports": [
                {"name": "TCP", "protocol": "TCP", "port": 8080},
                {"name": "UDP", "protocol": "UDP", "port": 8080},
            ],
            "endpoints": [{"addresses": [BACKEND[family]], "nodeName": "n2"}],
        }));
    }
    node.program(&objects);
    node
}

fn end(addresses: [&str; 2], family: usize, port: u16) -> SocketAddr {
    SocketAddr::new(of_family(addresses, family), port)
}

/// Makes the ICMP error "fragmentation needed" or "packet too big".
fn too_big(from: IpAddr, to: IpAddr, about: &[u8]) -> Vec<u8> {
    let head = if from.is_ipv4() {
        [3, 4, 0, 0, 0, 0, 5, 0]
    } else {
        [2, 0, 0, 0, 0, 0, 5, 0]
    };
    icmp_error(from, to, head, about)
}

/// The addresses of an error, and the addresses and ports of the packet that it is about.
fn addresses_of(error: &[u8]) -> ((IpAddr, IpAddr), (SocketAddr, SocketAddr)) {
    let headers = checked(error);
    let outer = (IpAddr::from(headers.src), IpAddr::from(headers.dst));
    let carried = proxy_common::packet::parse_embedded(error, &headers).expect("a packet inside");
    (outer, ends(&carried))
}

#[test]
fn an_error_about_a_pods_packet_reaches_the_pod_as_one_about_what_it_sent() {
    let node = node();
    for family in [0, 1] {
        for (port, protocol) in [(41_000, protocol::TCP), (41_001, protocol::UDP)] {
            let (pod, vip) = (end(POD, family, port), end(VIP, family, 80));
            let request = frame(&pod.to_string(), &vip.to_string(), protocol, 2, b"hello");
            let (verdict, sent) = node.run("from_pod", &request);
            assert_eq!(verdict, PASS);
            let router = of_family(ROUTER, family);
            let error = too_big(router, pod.ip(), &sent[14..]);
            let (verdict, out) = node.run("to_pod", &error);
            assert_eq!(verdict, PASS);
            assert_eq!(addresses_of(&out), ((router, pod.ip()), (pod, vip)));
            // The error comes from the backend itself, which the pod knows as the service.
            let error = too_big(of_family(BACKEND, family), pod.ip(), &sent[14..]);
            let (_, out) = node.run("to_pod", &error);
            assert_eq!(addresses_of(&out), ((vip.ip(), pod.ip()), (pod, vip)));
        }
    }
    assert_eq!(node.count(Reason::RelatedError), 8);
}

#[test]
fn errors_about_masqueraded_packets_are_translated_both_ways() {
    let node = node();
    for family in [0, 1] {
        for (port, protocol) in [(42_000, protocol::TCP), (42_001, protocol::UDP)] {
            let (client, service) = (end(OUTSIDE, family, port), end(NODE, family, 30_080));
            let request = frame(&client.to_string(), &service.to_string(), protocol, 2, b"hello");
            let (verdict, sent) = node.run("from_uplink", &request);
            assert_eq!(verdict, REDIRECT);
            let (masqueraded, backend) = ends(&checked(&sent));
            assert_eq!(masqueraded.ip(), of_family(NODE, family));
            let router = of_family(ROUTER, family);
            // The error is about a packet to the backend, and goes to the client.
            let (verdict, out) = node.run("from_uplink", &too_big(router, masqueraded.ip(), &sent[14..]));
            assert_eq!(verdict, REDIRECT);
            assert_eq!(addresses_of(&out), ((router, client.ip()), (client, service)));
            // The error is about a reply to the client. It goes to the backend, from the only peer that the
            // backend knows.
            let reply = frame(
                &backend.to_string(),
                &masqueraded.to_string(),
                protocol,
                0x12,
                b"hello",
            );
            let (_, reply) = node.run("from_uplink", &reply);
            let (verdict, out) = node.run("from_uplink", &too_big(router, service.ip(), &reply[14..]));
            assert_eq!(verdict, REDIRECT);
            assert_eq!(
                addresses_of(&out),
                ((masqueraded.ip(), backend.ip()), (backend, masqueraded))
            );
        }
    }
}

#[test]
fn errors_about_strangers_packets_are_left_alone() {
    let node = node();
    for family in [0, 1] {
        let (pod, other) = (end(POD, family, 43_000), end(OUTSIDE, family, 80));
        let about = frame(&pod.to_string(), &other.to_string(), protocol::TCP, 2, b"hello");
        let error = too_big(of_family(ROUTER, family), pod.ip(), &about[14..]);
        for program in ["from_uplink", "to_pod"] {
            assert_eq!(node.run(program, &error), (PASS, error.clone()));
        }
    }
}

#[test]
fn an_error_is_left_alone_that_is_not_addressed_to_the_sender_of_what_it_carries() {
    let node = node();
    for family in [0, 1] {
        let (pod, vip) = (end(POD, family, 43_001), end(VIP, family, 80));
        let request = frame(&pod.to_string(), &vip.to_string(), protocol::UDP, 0, b"hello");
        let (_, sent) = node.run("from_pod", &request);
        let (router, other) = (of_family(ROUTER, family), of_family(OUTSIDE, family));
        let error = too_big(router, other, &sent[14..]);
        for program in ["from_uplink", "to_pod"] {
            assert_eq!(node.run(program, &error), (PASS, error.clone()));
        }
    }
    assert_eq!(node.count(Reason::RelatedError), 0);
}

#[test]
fn the_sender_of_a_packet_that_is_too_big_gets_the_mtu() {
    let node = node();
    for family in [0, 1] {
        for (port, protocol) in [(44_000, protocol::TCP), (44_001, protocol::UDP)] {
            let (client, service) = (end(OUTSIDE, family, port), end(NODE, family, 30_080));
            let request = frame(&client.to_string(), &service.to_string(), protocol, 2, &[7; 1600]);
            let (verdict, out) = node.run("from_uplink", &request);
            assert_eq!(verdict, REDIRECT);
            assert_eq!(
                addresses_of(&out),
                ((service.ip(), client.ip()), (client, service))
            );
            let headers = checked(&out);
            let l4 = headers.l4 as usize;
            let expected: &[u8] = if family == 0 { &[3, 4] } else { &[2, 0] };
            assert_eq!(&out[l4..l4 + 2], expected);
            let mtu = u32::from_be_bytes([out[l4 + 4], out[l4 + 5], out[l4 + 6], out[l4 + 7]]);
            assert_eq!(mtu, if reports_mtu() { 1500 } else { 1280 }, "the link's MTU");
        }
    }
    assert_eq!(node.count(Reason::TooBig), 4);
}

/// Whether this kernel returns the MTU of a route: since 5.13, or any kernel that returns it apart from the
/// packet's size.
fn reports_mtu() -> bool {
    let release = nix::sys::utsname::uname().expect("a release");
    let release = release.release().to_string_lossy().into_owned();
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(13))
}
