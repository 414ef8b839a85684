//! Packets that leave the node: only pods' packets to the world outside are masqueraded.

use super::*;

const NODE_B: &str = "192.168.50.12";

/// The reply comes in by the uplink and continues through the stack to the pod, from the address that the pod
/// has sent to.
fn assert_comes_back(fake: &Fake, flow: &Flow, request: &Headers) {
    let reply = reply_of(flow, request.protocol);
    assert_reply(entering(fake, &reply, Entry::Uplink), request, Deliver::Stack);
}

#[test]
fn a_pods_flow_to_the_world_outside_carries_the_nodes_address_and_a_port_of_the_range() {
    for protocol in [protocol::TCP, protocol::UDP, protocol::SCTP] {
        let fake = masquerading();
        let request = packet(protocol, (POD, 40_000), (OUTSIDE, 80));
        let request = with_flags(
            request,
            if protocol == protocol::UDP {
                0
            } else {
                opening(protocol)
            },
        );
        assert_eq!(
            entering(&fake, &request, Entry::Pod).0,
            Decision::Pass(Reason::NotOurs)
        );
        let (flow, reason) = translated(leaving_node(&fake, &request));
        assert_eq!(
            (flow.src, flow.dst, flow.dport),
            (ip(NODE), ip(OUTSIDE), Port::new(80))
        );
        assert!((61_000..62_000).contains(&flow.sport.number()), "{flow:?}");
        assert_eq!((reason, flow.deliver), (Reason::NewFlow, Deliver::Stack as u8));
        assert_comes_back(&fake, &flow, &request);
        // The next packet belongs to the same flow, even if programs look for replies to any address.
        let (mut fake, next) = (fake, with_flags(request, TCP_ACK));
        let (same, reason) = translated(leaving_node(&fake, &next));
        assert_eq!((same.sport, reason), (flow.sport, Reason::Established));
        fake.config.pods_reply_outside = 1;
        let at_the_pod = entering(&fake, &next, Entry::Pod).0;
        assert_eq!(
            at_the_pod,
            Decision::Pass(Reason::NotOurs),
            "translated as it leaves"
        );
    }
}

fn opening(protocol: u8) -> u8 {
    if protocol == protocol::TCP { TCP_SYN } else { 1 }
}

#[test]
fn a_source_port_within_the_range_is_kept_while_it_is_free() {
    let mut fake = masquerading();
    fake.own_pods.insert(ip("10.244.1.11"), Pod::default());
    let request = |pod| packet(protocol::UDP, (pod, 61_500), (OUTSIDE, 53));
    let (flow, _) = translated(leaving_node(&fake, &request(POD)));
    assert_eq!(flow.sport, Port::new(61_500));
    let (flow, _) = translated(leaving_node(&fake, &request("10.244.1.11")));
    assert_ne!(flow.sport, Port::new(61_500));
    assert_comes_back(&fake, &flow, &request("10.244.1.11"));
}

#[test]
fn a_port_of_the_nodes_own_sockets_is_not_taken() {
    let mut fake = masquerading();
    fake.own_ports.push(61_500);
    let request = packet(protocol::UDP, (POD, 61_500), (OUTSIDE, 53));
    let (flow, _) = translated(leaving_node(&fake, &request));
    assert_ne!(flow.sport, Port::new(61_500));
}

#[test]
fn an_echo_has_its_identifier_for_a_port() {
    for (pod, outside, node) in [
        (POD, OUTSIDE, NODE),
        ("fd00:244:1::5", "2001:db8::5", "fd00:50::11"),
    ] {
        let mut fake = masquerading();
        fake.config.node_v6 = ip("fd00:50::11");
        fake.own_pods.insert(ip(pod), Pod::default());
        let request = echo(pod, outside, 7, false);
        let (flow, _) = translated(leaving_node(&fake, &request));
        assert_eq!((flow.src, flow.dst), (ip(node), ip(outside)));
        assert!((61_000..62_000).contains(&flow.echo_id().number()), "{flow:?}");
        let reply = echo(outside, node, flow.echo_id().number(), true);
        assert_reply(entering(&fake, &reply, Entry::Uplink), &request, Deliver::Stack);
        // A reply with another identifier, and a request to the node itself.
        for other in [echo(outside, node, 7, true), echo(outside, node, 7, false)] {
            assert_eq!(
                entering(&fake, &other, Entry::Uplink).0,
                Decision::Pass(Reason::NotOurs)
            );
        }
        // A client that sent an echo request to the pod knows it by its own address.
        let echo_reply = echo(pod, outside, 9, true);
        let unsolicited = leaving_node(&fake, &echo_reply).0;
        assert_eq!(unsolicited, Decision::Drop(Reason::NotMasqueraded));
        let _ = entering(&fake, &echo(outside, pod, 9, false), Entry::Uplink);
        assert_eq!(
            leaving_node(&fake, &echo_reply).0,
            Decision::Pass(Reason::NotOurs)
        );
    }
}

#[test]
fn nothing_is_masqueraded_that_need_not_be() {
    let mut fake = masquerading();
    fake.ranges
        .insert(ip("198.51.100.9"), RangeFlags(RangeFlags::NO_MASQUERADE));
    let passes = |fake: &Fake, from, to, why: &str| {
        for protocol in [protocol::TCP, protocol::UDP] {
            let request = with_flags(packet(protocol, (from, 40_000), (to, 80)), TCP_SYN);
            assert_eq!(
                leaving_node(fake, &request).0,
                Decision::Pass(Reason::NotOurs),
                "{why}"
            );
        }
    };
    passes(&fake, POD, "10.244.2.2", "another node's pod");
    passes(&fake, POD, "198.51.100.9", "a range that the operator names");
    passes(&fake, POD, "224.0.0.251", "multicast");
    passes(&fake, "fd00:244:1::a", "fe80::7", "link-local");
    passes(&fake, NODE, OUTSIDE, "the node itself");
    passes(&fake, "10.244.1.77", OUTSIDE, "no pod of ours");
    fake.config.flags = 0;
    passes(&fake, POD, OUTSIDE, "masquerading is off");
    assert!(fake.new_flows.borrow().is_empty());
}

#[test]
fn a_reply_to_a_client_outside_carries_the_pods_address() {
    let fake = masquerading();
    // Connections leave entries, and so do datagrams. The entries stay as long as the flow is in use.
    let client = packet(protocol::TCP, (NODE_B, 40_000), (POD, 80));
    let server = packet(protocol::TCP, (POD, 80), (NODE_B, 40_000));
    for (is_client, flags) in [
        (true, TCP_SYN),
        (false, TCP_SYN | TCP_ACK),
        (true, TCP_ACK),
        (false, TCP_ACK),
        (true, TCP_ACK),
    ] {
        let (headers, entry) = if is_client {
            (client, true)
        } else {
            (server, false)
        };
        let headers = with_flags(headers, flags);
        let decision = if entry {
            entering(&fake, &headers, Entry::Uplink).0
        } else {
            leaving_node(&fake, &headers).0
        };
        assert_eq!(decision, Decision::Pass(Reason::NotOurs), "{is_client} {flags}");
        fake.advance_clock(1);
    }
    assert_eq!(fake.flows.borrow().len(), 2, "the handshake is over");
    let request = packet(protocol::UDP, (NODE_B, 40_000), (POD, 53));
    let reply = packet(protocol::UDP, (POD, 53), (NODE_B, 40_000));
    for _ in 0..3 {
        assert_eq!(
            entering(&fake, &request, Entry::Uplink).0,
            Decision::Pass(Reason::NotOurs)
        );
        assert_eq!(leaving_node(&fake, &reply).0, Decision::Pass(Reason::NotOurs));
    }
    // Another port of the pod makes another flow.
    let other = packet(protocol::UDP, (POD, 54), (NODE_B, 40_000));
    translated(leaving_node(&fake, &other));
}

#[test]
fn a_note_of_datagrams_takes_no_flow_of_the_pods_own() {
    let fake = masquerading();
    let request = packet(protocol::UDP, (POD, 5000), (OUTSIDE, 53));
    let (flow, _) = translated(leaving_node(&fake, &request));
    let forged = packet(protocol::UDP, (OUTSIDE, 53), (POD, 5000));
    let _ = entering(&fake, &forged, Entry::Uplink);
    let (same, reason) = translated(leaving_node(&fake, &request));
    assert_eq!((same.sport, reason), (flow.sport, Reason::Established));
}

#[test]
fn a_note_of_datagrams_translates_nothing() {
    let fake = masquerading();
    let request = packet(protocol::UDP, (NODE_B, 40_000), (POD, 53));
    let _ = entering(&fake, &request, Entry::Uplink);
    let reply = packet(protocol::UDP, (POD, 53), (NODE_B, 40_000));
    let pass = Decision::Pass(Reason::NotOurs);
    assert_eq!(entering(&fake, &reply, Entry::Pod).0, pass);
    assert_eq!(
        leaving(&fake, &reply).0,
        pass,
        "to a pod, if that is there as well"
    );
    assert_eq!(leaving_node(&fake, &reply).0, pass);
}

#[test]
fn a_service_with_an_endpoint_outside_is_reached_through_both_translations() {
    let mut fake = masquerading();
    fake.service(VIP, 80, protocol::TCP, &[(OUTSIDE, 8080)]);
    let request = with_flags(packet(protocol::TCP, (POD, 40_000), (VIP, 80)), TCP_SYN);
    let (first, _) = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!((first.src, first.dst), (ip(POD), ip(OUTSIDE)));
    let between = Headers {
        dst: first.dst,
        dport: first.dport,
        ..request
    };
    let (second, _) = translated(leaving_node(&fake, &between));
    assert_eq!((second.src, second.dst), (ip(NODE), ip(OUTSIDE)));
    let (back, _) = translated(entering(&fake, &reply_of(&second, protocol::TCP), Entry::Uplink));
    let between = Headers {
        src: back.src,
        dst: back.dst,
        sport: back.sport,
        dport: back.dport,
        ..reply_of(&second, protocol::TCP)
    };
    assert_reply(leaving(&fake, &between), &request, Deliver::Stack);
}

#[test]
fn fragments_follow_their_first_one_out_and_back() {
    let fake = masquerading();
    for first in [
        packet(protocol::UDP, (POD, 40_000), (OUTSIDE, 53)),
        echo(POD, OUTSIDE, 7, false),
    ] {
        let first = Headers {
            is_fragment: true,
            fragment_id: 77,
            ..first
        };
        assert_eq!(
            leaving_node(&fake, &later_fragment(first)).0,
            Decision::Drop(Reason::FragmentBeforeFirst)
        );
        let (flow, _) = translated(leaving_node(&fake, &first));
        let (same, _) = translated(leaving_node(&fake, &later_fragment(first)));
        assert_eq!(same.src, flow.src);
        let reply = Headers {
            is_fragment: true,
            fragment_id: 78,
            has_ports: first.has_ports,
            detail: 0,
            ..reply_of(&flow, first.protocol)
        };
        assert_reply(entering(&fake, &reply, Entry::Uplink), &first, Deliver::Stack);
        let (later, _) = translated(entering(&fake, &later_fragment(reply), Entry::Uplink));
        assert_eq!((later.src, later.dst), (ip(OUTSIDE), ip(POD)));
    }
}

#[test]
fn a_large_echo_reply_of_a_pod_passes_in_fragments() {
    let fake = masquerading();
    let _ = entering(&fake, &echo(NODE_B, POD, 7, false), Entry::Uplink);
    let first = Headers {
        is_fragment: true,
        fragment_id: 79,
        ..echo(POD, NODE_B, 7, true)
    };
    for fragment in [first, later_fragment(first)] {
        assert_eq!(leaving_node(&fake, &fragment).0, Decision::Pass(Reason::NotOurs));
    }
}

#[test]
fn what_goes_through_the_tunnel_carries_the_nodes_address_there() {
    let mut fake = masquerading();
    fake.config.tunnel_v4 = ip("10.244.1.0");
    fake.ranges.insert(
        ip("10.244.3.3"),
        RangeFlags(RangeFlags::PODS | RangeFlags::TUNNEL),
    );
    node_port(&mut fake, protocol::TCP, &[("10.244.3.3", 8080)]);
    let request = with_flags(packet(protocol::TCP, (OUTSIDE, 40_000), (NODE, 30_080)), TCP_SYN);
    let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
    assert_eq!(flow.src, ip("10.244.1.0"));
    assert_reply(
        entering(&fake, &reply_of(&flow, protocol::TCP), Entry::Uplink),
        &request,
        Deliver::Route,
    );
}

/// The other node accepts only packets from this node's pods and from this node's end of the tunnel.
#[test]
fn what_the_node_itself_sends_through_the_tunnel_carries_its_address_there() {
    for (entry, to) in [(Entry::Host, "10.96.0.1"), (Entry::Loopback, NODE)] {
        let mut fake = masquerading();
        fake.config.tunnel_v4 = ip("10.244.1.0");
        fake.ranges.insert(
            ip("10.244.3.3"),
            RangeFlags(RangeFlags::PODS | RangeFlags::TUNNEL),
        );
        fake.service(to, 80, protocol::UDP, &[("10.244.3.3", 8080)]);
        fake.service(to, 81, protocol::UDP, &[("10.244.2.2", 8080)]);
        let request = packet(protocol::UDP, (NODE, 40_000), (to, 80));
        let (flow, _) = translated(entering(&fake, &request, entry));
        assert_eq!(flow.src, ip("10.244.1.0"), "{entry:?}");
        let way = Deliver::from_number(flow.reply_deliver);
        assert_reply(
            entering(&fake, &reply_of(&flow, protocol::UDP), Entry::Uplink),
            &request,
            way,
        );
        let direct = packet(protocol::UDP, (NODE, 40_000), (to, 81));
        let (flow, _) = translated(entering(&fake, &direct, entry));
        assert_eq!(flow.src, ip(NODE), "{entry:?}: to a node on the link");
    }
}

#[test]
fn datagrams_follow_a_change_of_the_nodes_address_and_connections_do_not() {
    for protocol in [protocol::TCP, protocol::UDP] {
        let mut fake = masquerading();
        let request = with_flags(packet(protocol, (POD, 40_000), (OUTSIDE, 53)), TCP_SYN);
        translated(leaving_node(&fake, &request));
        fake.config.node_v4 = ip(NODE_B);
        let (flow, reason) = translated(leaving_node(&fake, &with_flags(request, TCP_ACK)));
        let owed = if protocol == protocol::TCP {
            (ip(NODE), Reason::Established)
        } else {
            (ip(NODE_B), Reason::Moved)
        };
        assert_eq!((flow.src, reason), owed);
    }
}

#[test]
fn a_connection_that_is_over_leaves_its_port_to_the_next() {
    let fake = masquerading();
    let request = with_flags(packet(protocol::TCP, (POD, 40_000), (OUTSIDE, 80)), TCP_SYN);
    translated(leaving_node(&fake, &request));
    let (_, reason) = translated(leaving_node(&fake, &request));
    assert_eq!(reason, Reason::Established, "a SYN that is sent again");
    translated(leaving_node(&fake, &with_flags(request, TCP_RST)));
    let (flow, reason) = translated(leaving_node(&fake, &request));
    assert_eq!((reason, flow.state), (Reason::Moved, 0));
}

#[test]
fn a_node_without_an_address_of_the_family_says_so() {
    let mut fake = masquerading();
    fake.config.node_v4 = crate::Ip::UNSPECIFIED;
    let request = packet(protocol::UDP, (POD, 40_000), (OUTSIDE, 53));
    assert_eq!(
        leaving_node(&fake, &request).0,
        Decision::Drop(Reason::NoNodeAddress)
    );
}

/// The entry of an idle connection may be gone, after a day or because the agent has recreated its tables.
#[test]
fn a_midstream_connection_without_an_entry_leaves_with_the_nodes_address_and_its_old_port() {
    let fake = masquerading();
    for sport in [40_000, 40_001, 61_500] {
        let syn = with_flags(packet(protocol::TCP, (POD, sport), (OUTSIDE, 443)), TCP_SYN);
        let (first, _) = translated(leaving_node(&fake, &syn));
        fake.evict(&syn.flow_key());
        fake.evict(&first.reply_key(&syn.flow_key()));
        for flags in [TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST] {
            let (again, reason) = translated(leaving_node(&fake, &with_flags(syn, flags)));
            assert_eq!((again.src, again.sport), (ip(NODE), first.sport), "{flags}");
            assert_eq!(
                reason,
                if flags == TCP_ACK {
                    Reason::NewFlow
                } else {
                    Reason::Established
                }
            );
        }
    }
    let inside = with_flags(packet(protocol::TCP, (POD, 40_000), ("10.244.2.2", 443)), TCP_ACK);
    assert_eq!(
        leaving_node(&fake, &inside).0,
        Decision::Pass(Reason::NotOurs),
        "to a pod"
    );
}

#[test]
fn a_connection_from_outside_to_the_pod_itself_is_picked_up_by_what_its_client_sends() {
    let fake = masquerading();
    let client = with_flags(packet(protocol::TCP, (OUTSIDE, 40_000), (POD, 80)), TCP_ACK);
    let server = with_flags(packet(protocol::TCP, (POD, 80), (OUTSIDE, 40_000)), TCP_ACK);
    let pass = Decision::Pass(Reason::NotOurs);
    assert_eq!(entering(&fake, &client, Entry::Uplink).0, pass);
    assert_eq!(leaving_node(&fake, &server).0, pass);
}

#[test]
fn what_has_no_ports_does_not_leave_with_a_pods_address() {
    let fake = masquerading();
    let unread = |from, to, reason| {
        let headers = Headers {
            has_ports: false,
            ..packet(47, (from, 0), (to, 0))
        };
        crate::decide::egress::leaving_unread(&fake, &headers, reason)
    };
    for reason in [Reason::NotBalanced, Reason::Malformed] {
        assert_eq!(unread(POD, OUTSIDE, reason), Reason::NotMasqueraded);
        assert_eq!(unread(POD, "10.244.2.2", reason), reason, "to a pod");
        assert_eq!(unread(NODE, OUTSIDE, reason), reason, "the node's own");
    }
    // A packet that is not IP has no addresses.
    assert_eq!(unread("::", OUTSIDE, Reason::NotBalanced), Reason::NotBalanced);
}

#[test]
fn no_later_fragment_leaves_with_a_pods_address() {
    let mut fake = masquerading();
    fake.config.node_v6 = ip("fd00:50::11");
    fake.own_pods.insert(ip("fd00:244:1::a"), Pod::default());
    for protocol in [protocol::TCP, protocol::UDP, protocol::ICMP, 60, 47] {
        for (from, to) in [(POD, OUTSIDE), ("fd00:244:1::a", "2001:db8:7::40")] {
            let first = packet(protocol, (from, 40_000), (to, 80));
            let later = Headers {
                is_fragment: true,
                ..later_fragment(first)
            };
            let decision = leaving_node(&fake, &later).0;
            assert!(
                matches!(decision, Decision::Drop(_)),
                "{protocol} from {from}: {decision:?}"
            );
        }
    }
}
