//! Packets that compete with a flow: forged ends and handshakes, and connections to the backend itself.

use super::flows::open;
use super::*;

/// From outside, the RST and the SYN may both be forged.
#[test]
fn a_reset_and_a_handshake_from_outside_leave_a_connection_where_it_is() {
    let mut fake = Fake::node();
    node_port(
        &mut fake,
        protocol::TCP,
        &[("10.244.2.2", 8080), ("10.244.2.3", 8080)],
    );
    let request = packet(protocol::TCP, (OUTSIDE, 40_000), (NODE, 30_080));
    let (first, _) = translated(entering(&fake, &with_flags(request, TCP_SYN), Entry::Uplink));
    let reply = reply_of(&first, protocol::TCP);
    let by_backend = |flags| translated(entering(&fake, &with_flags(reply, flags), Entry::Uplink)).1;
    let by_client = |flags| {
        let expected = Headers {
            sequence: 1,
            ..with_flags(request, flags)
        };
        translated(entering(&fake, &expected, Entry::Uplink)).1
    };
    assert_eq!(by_backend(TCP_SYN | TCP_ACK), Reason::Reply);
    assert_eq!(by_client(TCP_ACK), Reason::Established);
    let _ = by_client(TCP_RST);
    assert_eq!(by_client(TCP_SYN), Reason::Established);
    assert!(!is_kept(&fake, &request));
    // The backend has an open connection, and acknowledges (RFC 5961 §4).
    assert_eq!(by_backend(TCP_ACK), Reason::Reply);
    assert!(is_kept(&fake, &request));
    // The backend has no connection any more, so a new one begins.
    let _ = by_client(TCP_RST);
    assert_eq!(by_client(TCP_SYN), Reason::Established);
    assert_eq!(by_backend(TCP_SYN | TCP_ACK), Reason::Reply);
    assert!(!is_kept(&fake, &request));
    assert_eq!(by_client(TCP_ACK), Reason::Established);
    assert!(is_kept(&fake, &request));
}

/// Whether the entries of a flow are in a table that evicts nothing.
fn is_kept(fake: &Fake, request: &Headers) -> bool {
    fake.flows.borrow().contains_key(&request.flow_key())
}

/// This happens if two nodes translate for one client port, or if only one of two flows is translated.
#[test]
fn the_newer_of_two_udp_flows_gets_its_replies() {
    let mut fake = Fake::node();
    node_port(&mut fake, protocol::UDP, &[("10.244.1.2", 8080)]);
    let key = FrontendKey::new(ip(NODE), Port::new(30_080), protocol::UDP);
    fake.frontends.get_mut(&key).unwrap().flags |= FrontendFlags::KEEP_SOURCE;
    let request = packet(protocol::UDP, (OUTSIDE, 40_000), (NODE, 30_080));
    let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
    fake.config.pods_reply_outside = 1;
    let reply = reply_of(&flow, protocol::UDP);
    assert_eq!(translated(entering(&fake, &reply, Entry::Pod)).1, Reason::Reply);

    let direct = packet(protocol::UDP, (OUTSIDE, 40_000), ("10.244.1.2", 8080));
    let pass = Decision::Pass(Reason::NotOurs);
    assert_eq!(entering(&fake, &direct, Entry::Uplink).0, pass);
    assert_eq!(entering(&fake, &reply, Entry::Pod).0, pass);
    // The older flow begins anew.
    assert_eq!(
        translated(entering(&fake, &request, Entry::Uplink)).1,
        Reason::NewFlow
    );
    assert_eq!(translated(entering(&fake, &reply, Entry::Pod)).1, Reason::Reply);
}

/// The same client port, used first through the frontend and then for the backend itself.
#[test]
fn a_connection_made_to_the_backend_itself_gets_its_reply_untranslated() {
    let mut fake = Fake::node();
    fake.config.own_range[0] = ip("10.244.1.0");
    fake.config.own_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = with_flags(packet(protocol::TCP, (POD, 40_000), (VIP, 80)), TCP_SYN);
    let flow = open(&fake, &request);
    let syn_ack = with_flags(reply_of(&flow, protocol::TCP), TCP_SYN | TCP_ACK);
    assert_reply(leaving(&fake, &syn_ack), &request, Deliver::Stack);
    let rst = Headers {
        sequence: 1,
        ..with_flags(reply_of(&flow, protocol::TCP), TCP_RST)
    };
    assert_reply(leaving(&fake, &rst), &request, Deliver::Stack);
    // The RST and a SYN,ACK may be forged. The pod's own SYN to the backend shows that the connection is
    // over.
    assert_reply(leaving(&fake, &syn_ack), &request, Deliver::Stack);
    let direct = with_flags(
        packet(protocol::TCP, (POD, 40_000), ("10.244.2.2", 8080)),
        TCP_SYN,
    );
    assert_eq!(
        entering(&fake, &direct, Entry::Pod).0,
        Decision::Pass(Reason::NotOurs)
    );
    for packet in [syn_ack, with_flags(syn_ack, TCP_ACK)] {
        assert_eq!(leaving(&fake, &packet).0, Decision::Pass(Reason::NotOurs));
    }
    // Beside another plugin, a SYN,ACK counts as a pod's own.
    fake.config.own_mask[0] = ip("::");
    let _ = open(&fake, &request);
    assert_reply(leaving(&fake, &syn_ack), &request, Deliver::Stack);
    assert_reply(leaving(&fake, &rst), &request, Deliver::Stack);
    assert_eq!(leaving(&fake, &syn_ack).0, Decision::Pass(Reason::NotOurs));
}

/// Both follow RFC 5961: a packet that can be forged does not end a connection in use.
#[test]
fn a_forged_syn_or_fin_ends_no_connection() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &with_flags(request, TCP_SYN), Entry::Pod));
    let _ = leaving(
        &fake,
        &with_flags(reply_of(&flow, protocol::TCP), TCP_SYN | TCP_ACK),
    );
    let first = Headers {
        sequence: 1,
        ..with_flags(request, TCP_ACK)
    };
    let _ = entering(&fake, &first, Entry::Pod);
    let state = || fake.known_flow(&request.flow_key()).unwrap().state();
    assert!(state().has(FlowState::CONFIRMED));
    let far = Headers {
        sequence: 0x6234_5678,
        ..with_flags(request, TCP_FIN | TCP_ACK)
    };
    let reply = reply_of(&flow, protocol::TCP);
    let _ = entering(&fake, &far, Entry::Pod);
    let _ = leaving(&fake, &with_flags(reply, TCP_ACK));
    assert!(!state().has(FlowState::CLIENT_DONE), "a FIN with any number");
    let near = Headers {
        sequence: 1 << 29,
        ..far
    };
    let _ = entering(&fake, &near, Entry::Pod);
    let _ = leaving(&fake, &with_flags(reply, TCP_ACK));
    assert!(
        !state().has(FlowState::CLIENT_DONE),
        "a FIN that is not acknowledged"
    );
    // The acknowledgement of data beyond the forged FIN.
    let more = Headers {
        acknowledgement: (1 << 29) + 20_000,
        ..with_flags(reply, TCP_ACK)
    };
    let _ = leaving(&fake, &more);
    assert!(!state().has(FlowState::CLIENT_DONE), "a FIN that was passed by");
    let _ = entering(&fake, &with_flags(request, TCP_FIN | TCP_ACK), Entry::Pod);
    assert!(!state().has(FlowState::CLIENT_DONE), "not yet");
    let _ = leaving(&fake, &acknowledging_fin(reply));
    assert!(state().has(FlowState::CLIENT_DONE));

    let other = packet(protocol::TCP, (POD, 40_001), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &with_flags(other, TCP_SYN), Entry::Pod));
    let _ = leaving(
        &fake,
        &with_flags(reply_of(&flow, protocol::TCP), TCP_SYN | TCP_ACK),
    );
    let _ = entering(&fake, &with_flags(other, TCP_ACK), Entry::Pod);
    fake.backends[0].state = BackendState::Terminating as u8;
    let again = translated(entering(&fake, &with_flags(other, TCP_SYN), Entry::Pod)).1;
    assert_eq!(again, Reason::Established, "of a backend that is going");
}

#[test]
fn a_stream_that_is_in_use_outlives_a_datagram_to_its_backend() {
    let mut fake = masquerading();
    let key = node_port(&mut fake, protocol::UDP, &[(POD, 8080)]);
    fake.frontends.get_mut(&key).unwrap().flags |= FrontendFlags::KEEP_SOURCE;
    fake.config.pods_reply_outside = 1;
    let request = packet(protocol::UDP, (OUTSIDE, 40_000), (NODE, 30_080));
    let reply = packet(protocol::UDP, (POD, 8080), (OUTSIDE, 40_000));
    for _ in 0..3 {
        let _ = translated(entering(&fake, &request, Entry::Uplink));
        let _ = translated(entering(&fake, &reply, Entry::Pod));
        fake.advance_clock(1);
    }
    let direct = packet(protocol::UDP, (OUTSIDE, 40_000), (POD, 8080));
    let _ = entering(&fake, &direct, Entry::Uplink);
    let _ = translated(entering(&fake, &reply, Entry::Pod));
    fake.advance_clock(11);
    let _ = entering(&fake, &direct, Entry::Uplink);
    let after = entering(&fake, &reply, Entry::Pod).0;
    assert_eq!(after, Decision::Pass(Reason::NotOurs), "it was silent");
}

/// A pod's source is checked where it enters, so no other host can end its stream.
#[test]
fn a_stream_in_use_ends_with_a_datagram_of_its_pod_to_the_backend() {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.1.9", 5353)]);
    let request = packet(protocol::UDP, (POD, 40_000), (VIP, 53));
    for _ in 0..3 {
        let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
        let reply = reply_of(&flow, protocol::UDP);
        assert_reply(leaving(&fake, &reply), &request, Deliver::Stack);
        fake.advance_clock(1);
    }
    let direct = packet(protocol::UDP, (POD, 40_000), ("10.244.1.9", 5353));
    let pass = Decision::Pass(Reason::NotOurs);
    assert_eq!(entering(&fake, &direct, Entry::Pod).0, pass);
    let reply = packet(protocol::UDP, ("10.244.1.9", 5353), (POD, 40_000));
    assert_eq!(leaving(&fake, &reply).0, pass);
}
