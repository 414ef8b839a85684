//! Sockets of the node with a port that a masqueraded flow to the same peer has.

use super::*;

/// The port that a client from outside has at the backend.
fn taken_port(fake: &Fake, protocol: u8) -> Port {
    let request = opening(packet(protocol, (OUTSIDE, 40_000), (NODE, 30_080)));
    translated(entering(fake, &request, Entry::Uplink)).0.sport
}

fn opening(headers: Headers) -> Headers {
    let detail = match headers.protocol {
        protocol::TCP => TCP_SYN,
        protocol::SCTP => 1,
        _ => 0,
    };
    with_flags(headers, detail)
}

/// A packet of the node itself from this port to the pod.
fn own(protocol: u8, port: Port) -> Headers {
    opening(packet(protocol, (NODE, port.number()), (POD, 8080)))
}

#[test]
fn a_socket_of_the_node_gets_another_port_than_the_flow_that_has_its_own() {
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        let leaves = |is_local, fake: &Fake, headers: &Headers| {
            if is_local {
                leaving(fake, headers)
            } else {
                leaving_node(fake, headers)
            }
        };
        for (is_local, pod, entry) in [(true, POD, Entry::Pod), (false, "10.244.2.2", Entry::Uplink)] {
            let mut fake = masquerading();
            node_port(&mut fake, protocol, &[(pod, 8080)]);
            let port = taken_port(&fake, protocol);
            let request = opening(packet(protocol, (NODE, port.number()), (pod, 8080)));
            let (flow, reason) = translated(leaves(is_local, &fake, &request));
            assert_eq!(
                (flow.src, flow.dst, flow.dport),
                (ip(NODE), ip(pod), Port::new(8080))
            );
            assert_ne!(flow.sport, port);
            assert_eq!((flow.deliver, reason), (Deliver::Stack as u8, Reason::NewFlow));
            let reply = entering(&fake, &reply_of(&flow, protocol), entry);
            assert_reply(reply, &request, Deliver::Stack);
            // The next packets take the same port, and the client's flow continues too.
            let next = with_flags(request, TCP_ACK);
            let (same, reason) = translated(leaves(is_local, &fake, &next));
            assert_eq!((same.sport, reason), (flow.sport, Reason::Established));
            let to_client = packet(protocol, (pod, 8080), (NODE, port.number()));
            let (to_client, _) = translated(entering(&fake, &to_client, entry));
            assert_eq!((to_client.dst, to_client.dport), (ip(OUTSIDE), Port::new(40_000)));
        }
    }
}

#[test]
fn a_port_of_another_socket_of_the_node_is_not_given() {
    let mut fake = masquerading();
    node_port(&mut fake, protocol::UDP, &[(POD, 8080)]);
    fake.config.masquerade_count = 2;
    let port = taken_port(&fake, protocol::UDP);
    let other = if port == Port::new(61_000) { 61_001 } else { 61_000 };
    fake.own_ports.push(other);
    let refused = leaving(&fake, &own(protocol::UDP, port)).0;
    assert_eq!(refused, Decision::Drop(Reason::NoSourcePort));
    fake.own_ports.clear();
    let (flow, _) = translated(leaving(&fake, &own(protocol::UDP, port)));
    assert_eq!(flow.sport, Port::new(other));
}

#[test]
fn other_packets_with_such_a_port_stay_as_they_are() {
    let mut fake = masquerading();
    let key = node_port(&mut fake, protocol::TCP, &[(POD, 8080)]);
    let port = taken_port(&fake, protocol::TCP);
    let pass = Decision::Pass(Reason::NotOurs);
    let mut arrived = PacketContext::new(own(protocol::TCP, port));
    arrived.arrived_by = 2;
    assert_eq!(
        decide::leaving(&fake, &mut arrived, &[][..]),
        pass,
        "the client's own"
    );
    assert_eq!(
        leaving(&fake, &own(protocol::TCP, Port::new(62_000))).0,
        pass,
        "outside of the range"
    );
    let free = Port::new(if port == Port::new(61_000) { 61_001 } else { 61_000 });
    assert_eq!(leaving(&fake, &own(protocol::TCP, free)).0, pass, "a free port");
    let midstream = with_flags(own(protocol::TCP, port), TCP_ACK);
    assert_eq!(leaving(&fake, &midstream).0, pass, "older than the client's flow");
    let elsewhere = opening(packet(protocol::TCP, (NODE, port.number()), (POD, 9090)));
    assert_eq!(leaving(&fake, &elsewhere).0, pass, "another peer");

    // The node sends to the service itself, with a port of the range.
    fake.frontends.get_mut(&key).unwrap().flags = 0;
    let by_service = opening(packet(protocol::TCP, (NODE, 61_700), (NODE, 30_080)));
    let (flow, _) = translated(entering(&fake, &by_service, Entry::Host));
    let as_sent = opening(packet(protocol::TCP, (NODE, flow.sport.number()), (POD, 8080)));
    assert_eq!(leaving(&fake, &as_sent).0, pass, "translated already");
}

#[test]
fn a_flow_that_has_expired_keeps_no_port_from_a_socket() {
    let mut fake = masquerading();
    fake.config.lifetimes[Lifetime::Datagram as usize] = 30;
    node_port(&mut fake, protocol::UDP, &[(POD, 8080)]);
    let port = taken_port(&fake, protocol::UDP);
    fake.advance_clock(31);
    assert_eq!(
        leaving(&fake, &own(protocol::UDP, port)).0,
        Decision::Pass(Reason::NotOurs)
    );
}

#[test]
fn an_uplink_is_watched_where_sockets_get_such_ports() {
    let mut fake = Fake::node();
    assert!(!crate::decide::egress::is_watched(&fake));
    fake.config.flags |= ConfigFlags::LOCAL_PORTS_OVERLAP;
    assert!(crate::decide::egress::is_watched(&fake));
}
