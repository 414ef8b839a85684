//! Ports of the node that lead to a pod.

use super::super::socket::{Owner, Sender, SocketDecision, connect, send};
use super::*;

const TARGET: &str = "10.244.1.20";
const OTHER_ADDRESS: &str = "192.168.60.11";

/// Port 8080 at all addresses of the node, or at one, leads to port 80 of the pod.
fn host_port(fake: &mut Fake, at: &str, protocol: u8, generation: u32) {
    let key = HostPortKey {
        address: ip(at),
        port: Port::new(8080),
        protocol,
        reserved: 0,
    };
    let target = HostPort {
        pod: ip(TARGET),
        port: Port::new(80),
        reserved: [0; 2],
        interface: 7,
        generation,
    };
    fake.host_ports.insert(key, target);
}

fn node() -> Fake {
    let mut fake = Fake::node();
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        host_port(&mut fake, "0.0.0.0", protocol, 1);
    }
    fake
}

fn to(target: &str) -> Headers {
    packet(protocol::TCP, (OUTSIDE, 40_000), (target, 8080))
}

#[test]
fn a_client_from_outside_keeps_its_address() {
    let mut fake = node();
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        let request = packet(protocol, (OUTSIDE, 40_000), (NODE, 8080));
        let (flow, reason) = translated(entering(&fake, &request, Entry::Uplink));
        assert_eq!((flow.src, flow.sport), (request.src, request.sport));
        assert_eq!((flow.dst, flow.dport), (ip(TARGET), Port::new(80)));
        assert_eq!((reason, flow.deliver), (Reason::NewFlow, Deliver::Route as u8));
        assert!(fake.outside.take());
        fake.config.pods_reply_outside = 1;
        let reply = entering(&fake, &reply_of(&flow, protocol), Entry::Pod);
        assert_reply(reply, &request, Deliver::Route);
        fake.config.pods_reply_outside = 0;
        let (_, reason) = translated(entering(&fake, &with_flags(request, TCP_ACK), Entry::Uplink));
        assert_eq!(reason, Reason::Established);
    }
}

#[test]
fn a_pod_of_the_node_keeps_its_address_unless_it_reaches_itself() {
    let fake = node();
    let request = packet(protocol::TCP, (POD, 40_000), (NODE, 8080));
    let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!((flow.src, flow.deliver), (ip(POD), Deliver::Stack as u8));
    assert_reply(
        leaving(&fake, &reply_of(&flow, protocol::TCP)),
        &request,
        Deliver::Stack,
    );
    let request = packet(protocol::TCP, (TARGET, 40_000), (NODE, 8080));
    let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!((flow.src, flow.deliver), (ip(NODE), Deliver::SameInterface as u8));
}

#[test]
fn the_node_itself_comes_by_the_loopback() {
    let fake = node();
    let request = packet(protocol::UDP, (NODE, 40_000), (NODE, 8080));
    let (flow, _) = translated(entering(&fake, &request, Entry::Loopback));
    assert_eq!((flow.src, flow.deliver), (ip(NODE), Deliver::Route as u8));
    let reply = entering(&fake, &reply_of(&flow, protocol::UDP), Entry::Pod);
    assert_reply(reply, &request, Deliver::Loopback);
}

#[test]
fn only_addresses_of_the_node_have_the_ports_that_are_for_all_of_them() {
    let mut fake = node();
    let pass = Decision::Pass(Reason::NotOurs);
    assert_eq!(entering(&fake, &to("192.168.50.12"), Entry::Uplink).0, pass);
    assert_eq!(entering(&fake, &to(OTHER_ADDRESS), Entry::Uplink).0, pass);
    assert_eq!(entering(&fake, &to("0.0.0.0"), Entry::Uplink).0, pass);
    fake.addresses
        .insert(ip(OTHER_ADDRESS), AddressFlags(AddressFlags::NODE));
    fake.config.flags |= ConfigFlags::MORE_NODE_ADDRESSES;
    translated(entering(&fake, &to(OTHER_ADDRESS), Entry::Uplink));
}

#[test]
fn a_host_port_of_one_address_comes_before_one_of_all() {
    let mut fake = node();
    host_port(&mut fake, NODE, protocol::TCP, 9);
    let (flow, _) = translated(entering(&fake, &to(NODE), Entry::Uplink));
    assert_eq!(flow.generation, 9);
}

#[test]
fn a_service_comes_before_a_host_port() {
    let mut fake = node();
    fake.service(NODE, 8080, protocol::TCP, &[("10.244.2.2", 1)]);
    let (flow, _) = translated(entering(&fake, &to(NODE), Entry::Uplink));
    assert_eq!(flow.dst, ip("10.244.2.2"));
}

#[test]
fn datagrams_move_with_the_port_and_connections_stay() {
    for protocol in [protocol::TCP, protocol::UDP] {
        let mut fake = node();
        let request = packet(protocol, (OUTSIDE, 40_000), (NODE, 8080));
        translated(entering(&fake, &with_flags(request, TCP_SYN), Entry::Uplink));
        host_port(&mut fake, "0.0.0.0", protocol, 2);
        let (flow, reason) = translated(entering(&fake, &with_flags(request, TCP_ACK), Entry::Uplink));
        let owed = if protocol == protocol::TCP {
            (1, Reason::Established)
        } else {
            (2, Reason::Moved)
        };
        assert_eq!((flow.generation, reason), owed);
        let (flow, _) = translated(entering(&fake, &with_flags(request, TCP_SYN), Entry::Uplink));
        assert_eq!(flow.generation, 2, "whoever begins comes to the pod of now");
        // No pod has the port any more.
        fake.host_ports.clear();
        let last = entering(&fake, &with_flags(request, TCP_ACK), Entry::Uplink).0;
        assert_eq!(
            matches!(last, Decision::Translate(_)),
            protocol == protocol::TCP,
            "{last:?}"
        );
    }
}

#[test]
fn sockets_of_the_node_and_of_pods_are_translated_by_their_hooks() {
    let fake = node();
    let ask = |owner, address: &str| {
        connect(
            &fake,
            &fake.config,
            owner,
            ip(address),
            Port::new(8080),
            protocol::TCP,
        )
    };
    for (owner, address, is_served) in [
        (Owner::Node, NODE, true),
        (Owner::Node, "127.0.0.1", true),
        (Owner::Node, OUTSIDE, false),
        (Owner::Node, "::1", false),
        (Owner::Pod, NODE, true),
        (Owner::Pod, "127.0.0.1", false),
    ] {
        match ask(owner, address) {
            SocketDecision::Translate(selected) => {
                assert!(is_served, "{owner:?} to {address}");
                assert_eq!(
                    (selected.backend.address, selected.backend.port),
                    (ip(TARGET), Port::new(80))
                );
            }
            other => assert!(!is_served, "{owner:?} to {address}: {other:?}"),
        }
    }
}

#[test]
fn an_unconnected_socket_follows_the_port_to_another_pod() {
    let mut fake = node();
    let sender = Sender {
        cookie: 5,
        port: Port::new(40_000),
    };
    for generation in [1, 1, 2] {
        host_port(&mut fake, "0.0.0.0", protocol::UDP, generation);
        match send(&fake, &fake.config, &sender, ip("127.0.0.1"), Port::new(8080)) {
            SocketDecision::Translate(selected) => assert_eq!(selected.backend.generation, generation),
            other => panic!("{other:?}"),
        }
    }
}

/// Lets a port of the node lead to another pod than the one that senders mean.
fn add_host_port(fake: &mut Fake, port: Port, protocol: u8) {
    let key = HostPortKey {
        address: ip("0.0.0.0"),
        port,
        protocol,
        reserved: 0,
    };
    let other_pod = HostPort {
        pod: ip("10.244.1.99"),
        port: Port::new(80),
        reserved: [0; 2],
        interface: 7,
        generation: 1,
    };
    fake.host_ports.insert(key, other_pod);
}

/// A pod may ask for any host port, even one that flows have as source port.
#[test]
fn replies_of_flows_that_were_there_first_do_not_go_to_a_host_port() {
    for protocol in [protocol::TCP, protocol::UDP] {
        let mut fake = masquerading();
        let detail = if protocol == protocol::TCP { TCP_SYN } else { 0 };
        let request = packet(protocol, (POD, 40_000), (OUTSIDE, 443));
        let (flow, _) = translated(leaving_node(&fake, &with_flags(request, detail)));
        add_host_port(&mut fake, flow.sport, protocol);
        let reply = reply_of(&flow, protocol);
        let detail = if protocol == protocol::TCP {
            TCP_SYN | TCP_ACK
        } else {
            0
        };
        let reply = with_flags(reply, detail);
        assert_reply(entering(&fake, &reply, Entry::Uplink), &request, Deliver::Stack);
    }
}

#[test]
fn replies_to_the_node_itself_do_not_go_to_a_host_port() {
    for protocol in [protocol::TCP, protocol::UDP] {
        let mut fake = masquerading();
        add_host_port(&mut fake, Port::new(45_678), protocol);
        let reply = packet(protocol, (OUTSIDE, 443), (NODE, 45_678));
        let detail = if protocol == protocol::TCP {
            TCP_SYN | TCP_ACK
        } else {
            0
        };
        fake.own_connections.push(reply.flow_key());
        let to_node = entering(&fake, &with_flags(reply, detail), Entry::Uplink).0;
        assert_eq!(to_node, Decision::Pass(Reason::NotOurs));
        let other = packet(protocol, (OUTSIDE, 444), (NODE, 45_678));
        let detail = if protocol == protocol::TCP { TCP_SYN } else { 0 };
        let (flow, _) = translated(entering(&fake, &with_flags(other, detail), Entry::Uplink));
        assert_eq!(flow.dst, ip("10.244.1.99"));
    }
}
