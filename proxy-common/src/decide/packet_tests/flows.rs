//! Flows that keep their backend, flows that end, and the source ports of flows.

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
    assert_reply(
        leaving(&fake, &reply_of(&moved, protocol::UDP)),
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
    assert_reply(
        leaving(&fake, &reply_of(&first, protocol::TCP)),
        &one,
        Deliver::Stack,
    );
    assert_reply(
        leaving(&fake, &reply_of(&second, protocol::TCP)),
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
    let reply = reply_of(&flow, protocol::UDP);

    fake.evict(&reply.flow_key());
    fake.advance_clock(1);
    let _ = entering(&fake, &request, Entry::Pod);
    assert_reply(leaving(&fake, &reply), &request, Deliver::Stack);

    fake.evict(&request.flow_key());
    fake.advance_clock(1);
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

/// Completes the handshake of a TCP connection and returns its flow.
pub(super) fn open(fake: &Fake, request: &Headers) -> Flow {
    let (flow, _) = translated(entering(fake, &with_flags(*request, TCP_SYN), Entry::Pod));
    let reply = reply_of(&flow, protocol::TCP);
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
    let reply = reply_of(&flow, protocol::TCP);
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
    // A repeated acknowledgement is still translated.
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

#[test]
fn ports_of_the_nodes_own_sockets_are_never_taken() {
    let mut fake = Fake::node();
    fake.config.masquerade_count = 4;
    node_port(&mut fake, protocol::TCP, &[("10.244.2.2", 8080)]);
    // No flow gets such a port: neither as the client's own port, which it would keep, nor by chance.
    fake.own_ports = vec![61_000, 61_001, 61_003];
    for sport in (40_000..40_050).chain([61_000]) {
        let request = packet(protocol::TCP, (OUTSIDE, sport), (NODE, 30_080));
        let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
        assert_eq!(flow.sport, Port::new(61_002));
        fake.new_flows.borrow_mut().clear();
    }
}

/// CPUs read the clock one after the other, so a packet may be a tick older than the flow that has its port.
#[test]
fn a_flow_that_was_seen_a_tick_later_does_not_look_idle() {
    let mut fake = Fake::node();
    fake.config.masquerade_count = 1;
    node_port(&mut fake, protocol::UDP, &[("10.244.2.2", 8080)]);
    let ask = |fake: &Fake, sport| {
        let request = packet(protocol::UDP, (OUTSIDE, sport), (NODE, 30_080));
        entering(fake, &request, Entry::Uplink)
    };
    fake.advance_clock(10);
    let (flow, _) = translated(ask(&fake, 40_000));
    fake.clock.set(fake.clock.get() - (1 << 30));
    assert_eq!(ask(&fake, 40_001).0, Decision::Drop(Reason::NoSourcePort));
    // The flow looks idle when it has been silent for long enough.
    fake.advance_clock(4);
    assert_eq!(translated(ask(&fake, 40_001)).0.sport, flow.sport);
}

#[test]
fn a_stream_that_was_seen_a_tick_later_keeps_its_port() {
    let mut fake = Fake::node();
    fake.config.masquerade_count = 1;
    node_port(&mut fake, protocol::UDP, &[("10.244.2.2", 8080)]);
    let ask = |fake: &Fake, sport| {
        let request = packet(protocol::UDP, (OUTSIDE, sport), (NODE, 30_080));
        entering(fake, &request, Entry::Uplink)
    };
    fake.advance_clock(10);
    let (flow, _) = translated(ask(&fake, 40_000));
    let _ = translated(entering(&fake, &reply_of(&flow, protocol::UDP), Entry::Uplink));
    fake.advance_clock(1);
    let (stream, _) = translated(ask(&fake, 40_000));
    assert!(stream.state().has(FlowState::CONFIRMED));
    fake.clock.set(fake.clock.get() - (1 << 30));
    assert_eq!(ask(&fake, 40_001).0, Decision::Drop(Reason::NoSourcePort));
    fake.advance_clock(33);
    assert_eq!(translated(ask(&fake, 40_001)).0.sport, flow.sport);
}

#[test]
fn flows_are_forgotten_when_their_time_is_over() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    fake.config.lifetimes[Lifetime::Opening as usize] = 10;
    fake.config.lifetimes[Lifetime::Open as usize] = 100;
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let _ = open(&fake, &request);
    fake.advance_clock(100);
    let ack = with_flags(request, TCP_ACK);
    assert_eq!(
        translated(entering(&fake, &ack, Entry::Pod)).1,
        Reason::Established
    );
    fake.advance_clock(101);
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
    fake.advance_clock(1);
    reset(40_000);
    fake.advance_clock(1);
    reset(40_001);
    let (third, _) = translated(connect(40_002));
    assert_eq!(third.sport, first.sport);
    // The old client's entry was removed with its port, so its further packets do not belong to the new flow.
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
    let reply = reply_of(&flow, protocol::TCP);
    let _ = leaving(&fake, &acknowledging_fin(reply));
    let reply_key = reply.flow_key();
    let states = [request.flow_key(), reply_key].map(|key| fake.known_flow(&key).unwrap().state);
    let expected = FlowState::SEEN_REPLY | FlowState::CONFIRMED | FlowState::CLIENT_DONE;
    assert_eq!(states, [expected; 2]);
}
