//! How flows stay together, end, and share source ports.

use super::*;

#[test]
fn a_flow_stays_with_its_backend_while_others_come_and_go() {
    let mut fake = Fake::node();
    let key = fake.service(
        VIP,
        53,
        protocol::UDP,
        &[("10.244.2.2", 53), ("10.244.2.3", 53), ("10.244.2.4", 53)],
    );
    let request = packet(protocol::UDP, (POD, 40_000), (VIP, 53));
    let (first, _) = translated(entering(&fake, &request, Entry::Pod));
    fake.frontends.get_mut(&key).unwrap().slots = crate::maps::SlotRange::new((first.backend + 1) % 3, 1).0;
    let (again, reason) = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!((again.backend, reason), (first.backend, Reason::Established));
}

#[test]
fn the_next_datagram_after_a_backend_is_gone_goes_to_another() {
    let mut fake = Fake::node();
    let key = fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 53), ("10.244.2.3", 53)]);
    let request = packet(protocol::UDP, (POD, 40_000), (VIP, 53));
    let (first, _) = translated(entering(&fake, &request, Entry::Pod));
    fake.backends[first.backend as usize].state = BackendState::Gone as u8;
    fake.frontends.get_mut(&key).unwrap().slots = crate::maps::SlotRange::new(1 - first.backend, 1).0;
    let (moved, reason) = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!((moved.backend, reason), (1 - first.backend, Reason::Moved));
    assert_answered(
        leaving(&fake, &answer(&moved, protocol::UDP)),
        &request,
        Deliver::Stack,
    );
}

#[test]
fn a_reused_backend_id_is_not_the_old_backend() {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 53)]);
    let request = packet(protocol::UDP, (POD, 40_000), (VIP, 53));
    let _ = entering(&fake, &request, Entry::Pod);
    fake.backends[0].generation += 1;
    fake.backends[0].address = ip("10.244.2.9");
    let (moved, reason) = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!((moved.dst, reason), (ip("10.244.2.9"), Reason::Moved));
}

#[test]
fn a_connection_outlives_its_endpoint_and_its_service() {
    let mut fake = Fake::node();
    let key = fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
    fake.backends[0].state = BackendState::Gone as u8;
    fake.frontends.get_mut(&key).unwrap().slots = 0;
    assert_eq!(
        translated(entering(&fake, &request, Entry::Pod)),
        (flow, Reason::Established)
    );
    fake.frontends.clear();
    assert_eq!(
        translated(entering(&fake, &request, Entry::Pod)),
        (flow, Reason::Established)
    );
}

#[test]
fn a_new_connection_never_goes_to_a_terminating_backend_that_left_the_slice() {
    let mut fake = Fake::node();
    let key = fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 80), ("10.244.2.3", 80)]);
    let mut syn = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    syn.detail = 0x02;
    let (first, _) = translated(entering(&fake, &syn, Entry::Pod));
    fake.backends[first.backend as usize].state = BackendState::Terminating as u8;
    fake.frontends.get_mut(&key).unwrap().slots = crate::maps::SlotRange::new(1 - first.backend, 1).0;
    let (second, _) = translated(entering(&fake, &syn, Entry::Pod));
    assert_eq!(second.backend, 1 - first.backend);
}

#[test]
fn two_frontends_that_lead_one_port_to_one_backend_do_not_collide() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    fake.service("10.96.0.2", 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let one = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let two = packet(protocol::TCP, (POD, 40_000), ("10.96.0.2", 80));
    let (first, _) = translated(entering(&fake, &one, Entry::Pod));
    let (second, _) = translated(entering(&fake, &two, Entry::Pod));
    assert_eq!(first.sport, Port::new(40_000));
    assert_ne!(second.sport, Port::new(40_000));
    assert_answered(
        leaving(&fake, &answer(&first, protocol::TCP)),
        &one,
        Deliver::Stack,
    );
    assert_answered(
        leaving(&fake, &answer(&second, protocol::TCP)),
        &two,
        Deliver::Stack,
    );
}

#[test]
fn a_lost_half_of_a_flow_is_written_again_at_the_next_tick() {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 53)]);
    let request = packet(protocol::UDP, (POD, 40_000), (VIP, 53));
    let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
    let reply = answer(&flow, protocol::UDP);

    fake.evict(&reply.flow_key());
    fake.pass_ticks(1);
    let _ = entering(&fake, &request, Entry::Pod);
    assert_answered(leaving(&fake, &reply), &request, Deliver::Stack);

    fake.evict(&request.flow_key());
    fake.pass_ticks(1);
    let _ = leaving(&fake, &reply);
    assert_eq!(
        translated(entering(&fake, &request, Entry::Pod)).1,
        Reason::Established
    );
}

#[test]
fn a_connection_to_a_removed_backend_is_reset_where_its_service_wants_that() {
    let mut fake = Fake::node();
    let key = fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let _ = translated(entering(&fake, &request, Entry::Pod));
    fake.backends[0].state = BackendState::Gone as u8;
    let stays = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!(stays.1, Reason::Established);
    fake.frontends.get_mut(&key).unwrap().flags |= FrontendFlags::RESET_REMOVED;
    assert_eq!(
        entering(&fake, &request, Entry::Pod).0,
        Decision::Drop(Reason::BackendRemoved)
    );
    assert!(fake.new_flows.borrow().is_empty(), "and nothing is left of it");
}

/// Lets a TCP connection through its handshake, and gives its flow.
fn open(fake: &Fake, request: &Headers) -> Flow {
    let (flow, _) = translated(entering(fake, &with_flags(*request, TCP_SYN), Entry::Pod));
    let reply = answer(&flow, protocol::TCP);
    let _ = translated(leaving(fake, &with_flags(reply, TCP_SYN | TCP_ACK)));
    translated(entering(fake, &with_flags(*request, TCP_ACK), Entry::Pod)).0
}

#[test]
fn connections_move_between_the_tables_as_they_open_and_close() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let _ = translated(entering(&fake, &with_flags(request, TCP_SYN), Entry::Pod));
    assert_eq!((fake.flows.borrow().len(), fake.new_flows.borrow().len()), (0, 2));
    let flow = open(&fake, &request);
    assert_eq!((fake.flows.borrow().len(), fake.new_flows.borrow().len()), (2, 0));
    let reply = answer(&flow, protocol::TCP);
    let _ = translated(leaving(&fake, &with_flags(reply, TCP_FIN | TCP_ACK)));
    let _ = translated(entering(&fake, &acknowledging_fin(request), Entry::Pod));
    assert_eq!(fake.flows.borrow().len(), 2, "one side still speaks");
    let _ = translated(entering(
        &fake,
        &with_flags(request, TCP_FIN | TCP_ACK),
        Entry::Pod,
    ));
    assert_eq!(fake.flows.borrow().len(), 2, "the FIN may be forged");
    let _ = translated(leaving(&fake, &acknowledging_fin(reply)));
    assert_eq!((fake.flows.borrow().len(), fake.new_flows.borrow().len()), (0, 2));
    // A repeated acknowledgement still finds its way.
    let (_, reason) = translated(leaving(&fake, &acknowledging_fin(reply)));
    assert_eq!(reason, Reason::Reply);
}

#[test]
fn a_client_port_that_is_used_again_begins_a_new_connection() {
    let mut fake = Fake::node();
    let key = fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 80), ("10.244.2.3", 80)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let first = open(&fake, &request);
    let _ = translated(entering(&fake, &with_flags(request, TCP_RST), Entry::Pod));
    fake.frontends.get_mut(&key).unwrap().slots = crate::maps::SlotRange::new(1 - first.backend, 1).0;
    let (second, reason) = translated(entering(&fake, &with_flags(request, TCP_SYN), Entry::Pod));
    assert_eq!(
        (second.backend, second.state, reason),
        (1 - first.backend, 0, Reason::Moved)
    );
}

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
    let reply = answer(&first, protocol::TCP);
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
    // The backend has an open connection, and says so (RFC 5961 §4).
    assert_eq!(by_backend(TCP_ACK), Reason::Reply);
    assert!(is_kept(&fake, &request));
    // It had none any more: a new one begins.
    let _ = by_client(TCP_RST);
    assert_eq!(by_client(TCP_SYN), Reason::Established);
    assert_eq!(by_backend(TCP_SYN | TCP_ACK), Reason::Reply);
    assert!(!is_kept(&fake, &request));
    assert_eq!(by_client(TCP_ACK), Reason::Established);
    assert!(is_kept(&fake, &request));
}

/// Whether the entries of a flow lie where nothing is evicted.
fn is_kept(fake: &Fake, request: &Headers) -> bool {
    fake.flows.borrow().contains_key(&request.flow_key())
}

#[test]
fn ports_of_the_nodes_own_sockets_are_never_taken() {
    let mut fake = Fake::node();
    fake.config.masquerade_count = 4;
    node_port(&mut fake, protocol::TCP, &[("10.244.2.2", 8080)]);
    // Neither when it is the client's own, which would be kept, nor by chance.
    fake.own_ports = vec![61_000, 61_001, 61_003];
    for sport in (40_000..40_050).chain([61_000]) {
        let request = packet(protocol::TCP, (OUTSIDE, sport), (NODE, 30_080));
        let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
        assert_eq!(flow.sport, Port::new(61_002));
        fake.new_flows.borrow_mut().clear();
    }
}

/// CPUs read the clock one after the other, so a packet may be a tick older than the flow in its way.
#[test]
fn a_flow_that_was_seen_a_tick_later_does_not_look_idle() {
    let mut fake = Fake::node();
    fake.config.masquerade_count = 1;
    node_port(&mut fake, protocol::UDP, &[("10.244.2.2", 8080)]);
    let ask = |fake: &Fake, sport| {
        let request = packet(protocol::UDP, (OUTSIDE, sport), (NODE, 30_080));
        entering(fake, &request, Entry::Uplink)
    };
    fake.pass_ticks(10);
    let (flow, _) = translated(ask(&fake, 40_000));
    fake.clock.set(fake.clock.get() - (1 << 30));
    assert_eq!(ask(&fake, 40_001).0, Decision::Drop(Reason::NoSourcePort));
    // It does when it has been silent for long enough.
    fake.pass_ticks(4);
    assert_eq!(translated(ask(&fake, 40_001)).0.sport, flow.sport);
}

/// As when two nodes translate for one client port, or one and nobody.
#[test]
fn the_newer_of_two_conversations_by_datagrams_gets_its_answers() {
    let mut fake = Fake::node();
    node_port(&mut fake, protocol::UDP, &[("10.244.1.2", 8080)]);
    let key = FrontendKey::new(ip(NODE), Port::new(30_080), protocol::UDP);
    fake.frontends.get_mut(&key).unwrap().flags |= FrontendFlags::KEEP_SOURCE;
    let request = packet(protocol::UDP, (OUTSIDE, 40_000), (NODE, 30_080));
    let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
    fake.config.pods_answer_outside = 1;
    let reply = answer(&flow, protocol::UDP);
    assert_eq!(translated(entering(&fake, &reply, Entry::Pod)).1, Reason::Reply);

    let direct = packet(protocol::UDP, (OUTSIDE, 40_000), ("10.244.1.2", 8080));
    let pass = Decision::Pass(Reason::NotOurs);
    assert_eq!(entering(&fake, &direct, Entry::Uplink).0, pass);
    assert_eq!(entering(&fake, &reply, Entry::Pod).0, pass);
    // And back.
    assert_eq!(
        translated(entering(&fake, &request, Entry::Uplink)).1,
        Reason::NewFlow
    );
    assert_eq!(translated(entering(&fake, &reply, Entry::Pod)).1, Reason::Reply);
}

/// The same client port, used first through the frontend and then for the backend itself.
#[test]
fn a_connection_made_to_the_backend_itself_gets_its_answer_as_it_is() {
    let mut fake = Fake::node();
    fake.config.own_range[0] = ip("10.244.1.0");
    fake.config.own_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = with_flags(packet(protocol::TCP, (POD, 40_000), (VIP, 80)), TCP_SYN);
    let flow = open(&fake, &request);
    let syn_ack = with_flags(answer(&flow, protocol::TCP), TCP_SYN | TCP_ACK);
    assert_answered(leaving(&fake, &syn_ack), &request, Deliver::Stack);
    let rst = Headers {
        sequence: 1,
        ..with_flags(answer(&flow, protocol::TCP), TCP_RST)
    };
    assert_answered(leaving(&fake, &rst), &request, Deliver::Stack);
    // The RST and a SYN,ACK may be forged. The pod's own SYN to the backend shows that the connection is
    // over.
    assert_answered(leaving(&fake, &syn_ack), &request, Deliver::Stack);
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
    // Beside another plugin a SYN,ACK is taken for a pod's own.
    fake.config.own_mask[0] = ip("::");
    let _ = open(&fake, &request);
    assert_answered(leaving(&fake, &syn_ack), &request, Deliver::Stack);
    assert_answered(leaving(&fake, &rst), &request, Deliver::Stack);
    assert_eq!(leaving(&fake, &syn_ack).0, Decision::Pass(Reason::NotOurs));
}

#[test]
fn flows_are_forgotten_when_their_time_is_over() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    fake.config.lifetimes[Lifetime::Opening as usize] = 10;
    fake.config.lifetimes[Lifetime::Open as usize] = 100;
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let _ = open(&fake, &request);
    fake.pass_ticks(100);
    let ack = with_flags(request, TCP_ACK);
    assert_eq!(
        translated(entering(&fake, &ack, Entry::Pod)).1,
        Reason::Established
    );
    fake.pass_ticks(101);
    let (flow, reason) = translated(entering(&fake, &ack, Entry::Pod));
    assert_eq!((reason, flow.state), (Reason::NewFlow, 0));
    assert_eq!((fake.flows.borrow().len(), fake.new_flows.borrow().len()), (0, 2));
}

#[test]
fn the_source_port_of_a_flow_that_is_over_is_used_again_the_oldest_first() {
    let mut fake = Fake::node();
    fake.config.masquerade_count = 2;
    node_port(&mut fake, protocol::TCP, &[("10.244.2.2", 8080)]);
    let connect = |port| {
        let request = packet(protocol::TCP, (OUTSIDE, port), (NODE, 30_080));
        entering(&fake, &with_flags(request, TCP_SYN), Entry::Uplink)
    };
    let reset = |port| {
        let request = packet(protocol::TCP, (OUTSIDE, port), (NODE, 30_080));
        let _ = translated(entering(&fake, &with_flags(request, TCP_RST), Entry::Uplink));
    };
    let (first, _) = translated(connect(40_000));
    let (second, _) = translated(connect(40_001));
    assert_ne!(first.sport, second.sport);
    assert_eq!(connect(40_002).0, Decision::Drop(Reason::NoSourcePort));
    fake.pass_ticks(1);
    reset(40_000);
    fake.pass_ticks(1);
    reset(40_001);
    let (third, _) = translated(connect(40_002));
    assert_eq!(third.sport, first.sport);
    // The old client's entry went with its port: what it still sends is no part of the new flow.
    let old = packet(protocol::TCP, (OUTSIDE, 40_000), (NODE, 30_080));
    assert!(fake.known_flow(&old.flow_key()).is_none());
}

#[test]
fn the_state_of_a_flow_is_the_same_in_both_entries() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let flow = open(&fake, &request);
    let _ = entering(&fake, &with_flags(request, TCP_FIN | TCP_ACK), Entry::Pod);
    let reply = answer(&flow, protocol::TCP);
    let _ = leaving(&fake, &acknowledging_fin(reply));
    let reply_key = reply.flow_key();
    let states = [request.flow_key(), reply_key].map(|key| fake.known_flow(&key).unwrap().state);
    let expected = FlowState::ANSWERED | FlowState::CONFIRMED | FlowState::CLIENT_DONE;
    assert_eq!(states, [expected; 2]);
}

/// Both are RFC 5961: what a forger can send does not end a connection that is in use.
#[test]
fn a_forged_syn_or_fin_ends_no_connection() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &with_flags(request, TCP_SYN), Entry::Pod));
    let _ = leaving(
        &fake,
        &with_flags(answer(&flow, protocol::TCP), TCP_SYN | TCP_ACK),
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
    let reply = answer(&flow, protocol::TCP);
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
    // The acknowledgement of data beyond it.
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
        &with_flags(answer(&flow, protocol::TCP), TCP_SYN | TCP_ACK),
    );
    let _ = entering(&fake, &with_flags(other, TCP_ACK), Entry::Pod);
    fake.backends[0].state = BackendState::Terminating as u8;
    let again = translated(entering(&fake, &with_flags(other, TCP_SYN), Entry::Pod)).1;
    assert_eq!(again, Reason::Established, "of a backend that is going");
}

#[test]
fn a_stream_that_is_in_use_gives_no_way_to_a_datagram_to_its_backend() {
    let mut fake = masquerading();
    let key = node_port(&mut fake, protocol::UDP, &[(POD, 8080)]);
    fake.frontends.get_mut(&key).unwrap().flags |= FrontendFlags::KEEP_SOURCE;
    fake.config.pods_answer_outside = 1;
    let request = packet(protocol::UDP, (OUTSIDE, 40_000), (NODE, 30_080));
    let reply = packet(protocol::UDP, (POD, 8080), (OUTSIDE, 40_000));
    for _ in 0..3 {
        let _ = translated(entering(&fake, &request, Entry::Uplink));
        let _ = translated(entering(&fake, &reply, Entry::Pod));
        fake.pass_ticks(1);
    }
    let direct = packet(protocol::UDP, (OUTSIDE, 40_000), (POD, 8080));
    let _ = entering(&fake, &direct, Entry::Uplink);
    let _ = translated(entering(&fake, &reply, Entry::Pod));
    fake.pass_ticks(11);
    let _ = entering(&fake, &direct, Entry::Uplink);
    let after = entering(&fake, &reply, Entry::Pod).0;
    assert_eq!(after, Decision::Pass(Reason::NotOurs), "it was silent");
}

/// A pod's source is checked where it enters, so that no other host can end its stream.
#[test]
fn a_stream_in_use_gives_way_to_a_datagram_of_the_pod_that_has_it() {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.1.9", 5353)]);
    let request = packet(protocol::UDP, (POD, 40_000), (VIP, 53));
    for _ in 0..3 {
        let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
        let reply = answer(&flow, protocol::UDP);
        assert_answered(leaving(&fake, &reply), &request, Deliver::Stack);
        fake.pass_ticks(1);
    }
    let direct = packet(protocol::UDP, (POD, 40_000), ("10.244.1.9", 5353));
    let pass = Decision::Pass(Reason::NotOurs);
    assert_eq!(entering(&fake, &direct, Entry::Pod).0, pass);
    let reply = packet(protocol::UDP, ("10.244.1.9", 5353), (POD, 40_000));
    assert_eq!(leaving(&fake, &reply).0, pass);
}
