//! What the packet decision owes, one test per rule.

use super::Work;
use super::packet::{self as decide, Decision, Entry};
use super::testing::{Fake, ip, packet};
use crate::maps::{
    AddressFlags, BackendState, ConfigFlags, Deliver, Flow, FlowState, FrontendFlags, FrontendKey,
    FrontendKind, Lifetime, Reason, Scope,
};
use crate::packet::{Headers, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use crate::{Port, protocol};

const POD: &str = "10.244.1.10";
const NODE: &str = "192.168.50.11";
const VIP: &str = "10.96.0.1";

type Outcome = (Decision, Flow);

fn entering(fake: &Fake, headers: &Headers, entry: Entry) -> Outcome {
    let mut work = Work::new(*headers);
    (decide::entering(fake, &mut work, &[][..], entry), work.flow)
}

fn leaving(fake: &Fake, headers: &Headers) -> Outcome {
    let mut work = Work::new(*headers);
    (decide::leaving(fake, &mut work, &[][..]), work.flow)
}

fn translated(outcome: Outcome) -> (Flow, Reason) {
    match outcome {
        (Decision::Translate(reason), flow) => (flow, reason),
        (other, _) => panic!("not translated: {other:?}"),
    }
}

fn answer(flow: &Flow, protocol: u8) -> Headers {
    Headers {
        src: flow.dst,
        dst: flow.src,
        sport: flow.dport,
        dport: flow.sport,
        ..packet(protocol, (VIP, 0), (VIP, 0))
    }
}

/// The answer to `flow` must become (source, destination) of the client's own conversation again.
fn assert_answered(outcome: Outcome, request: &Headers, deliver: Deliver) {
    let (reply, reason) = translated(outcome);
    assert_eq!(reason, Reason::Reply);
    assert_eq!((reply.src, reply.sport), (request.dst, request.dport));
    assert_eq!((reply.dst, reply.dport), (request.src, request.sport));
    assert_eq!(reply.deliver, deliver as u8);
}

#[test]
fn a_pods_packet_keeps_its_source_and_its_answer_is_translated_back() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let (flow, reason) = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!(reason, Reason::NewFlow);
    assert_eq!(
        (flow.src, flow.sport, flow.dst, flow.dport),
        (ip(POD), Port::new(40_000), ip("10.244.2.2"), Port::new(8080))
    );
    assert_eq!(flow.deliver, Deliver::Stack as u8);
    assert_answered(
        leaving(&fake, &answer(&flow, protocol::TCP)),
        &request,
        Deliver::Stack,
    );
}

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
fn a_pod_that_reaches_itself_sees_the_node() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[(POD, 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!(
        (flow.src, flow.dst, flow.deliver),
        (ip(NODE), ip(POD), Deliver::SameInterface as u8)
    );
    assert!((61_000..62_000).contains(&flow.sport.number()));
    assert_answered(
        entering(&fake, &answer(&flow, protocol::TCP), Entry::Pod),
        &request,
        Deliver::SameInterface,
    );
}

#[test]
fn the_nodes_packet_is_routed_and_its_answer_enters_by_our_device() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (NODE, 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &request, Entry::Host));
    assert_eq!(
        (flow.src, flow.sport, flow.deliver),
        (ip(NODE), Port::new(40_000), Deliver::Route as u8)
    );
    for entry in [Entry::Uplink, Entry::Pod] {
        assert_answered(
            entering(&fake, &answer(&flow, protocol::TCP), entry),
            &request,
            Deliver::Host,
        );
    }
}

#[test]
fn the_node_reaches_itself_with_the_virtual_address_as_source() {
    let mut fake = Fake::node();
    fake.service(VIP, 443, protocol::TCP, &[(NODE, 6443)]);
    let request = packet(protocol::TCP, (NODE, 40_000), (VIP, 443));
    let (flow, _) = translated(entering(&fake, &request, Entry::Host));
    assert_eq!(
        (flow.src, flow.dst, flow.deliver),
        (ip(VIP), ip(NODE), Deliver::Host as u8)
    );
    assert_answered(
        entering(&fake, &answer(&flow, protocol::TCP), Entry::Host),
        &request,
        Deliver::Host,
    );
}

#[test]
fn an_outside_client_is_masqueraded() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, ("172.31.0.5", 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
    assert_eq!((flow.src, flow.deliver), (ip(NODE), Deliver::Route as u8));
    assert_answered(
        entering(&fake, &answer(&flow, protocol::TCP), Entry::Uplink),
        &request,
        Deliver::Route,
    );
    assert!(!fake.outside.get());
}

#[test]
fn a_pod_of_another_node_keeps_its_address_and_local_pods_look_for_its_answers() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[(POD, 8080)]);
    fake.pods.push(ip("10.244.2.7"));
    let request = packet(protocol::TCP, ("10.244.2.7", 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
    assert_eq!((flow.src, flow.deliver), (ip("10.244.2.7"), Deliver::Route as u8));
    assert!(fake.outside.get());
    fake.config.pods_answer_outside = 1;
    assert_answered(
        entering(&fake, &answer(&flow, protocol::TCP), Entry::Pod),
        &request,
        Deliver::Route,
    );
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
fn verdicts_without_a_backend() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[]);
    let decide =
        |dst, port, protocol, entry| entering(&fake, &packet(protocol, (POD, 40_000), (dst, port)), entry).0;
    assert_eq!(
        decide(VIP, 80, protocol::TCP, Entry::Pod),
        Decision::Drop(Reason::NoEndpoints)
    );
    assert_eq!(
        decide(VIP, 81, protocol::TCP, Entry::Pod),
        Decision::Drop(Reason::NoSuchPort)
    );
    assert_eq!(
        decide(VIP, 80, protocol::UDP, Entry::Pod),
        Decision::Drop(Reason::NoSuchPort)
    );
    assert_eq!(
        decide("10.96.7.7", 80, protocol::TCP, Entry::Pod),
        Decision::Drop(Reason::NoSuchService)
    );
    assert_eq!(
        decide("10.96.7.7", 80, protocol::TCP, Entry::Host),
        Decision::Drop(Reason::NoSuchService)
    );
    assert_eq!(
        decide("10.244.2.2", 80, protocol::TCP, Entry::Pod),
        Decision::Pass(Reason::NotOurs)
    );
    assert_eq!(
        decide(NODE, 80, protocol::TCP, Entry::Uplink),
        Decision::Pass(Reason::NotOurs)
    );
}

#[test]
fn echo_to_a_virtual_address_is_answered_unless_the_node_holds_it() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[]);
    let mut ping = packet(protocol::ICMP, (POD, 0), (VIP, 0));
    ping.detail = 8;
    assert_eq!(entering(&fake, &ping, Entry::Pod).0, Decision::Echo);
    fake.addresses
        .insert(ip(VIP), AddressFlags(AddressFlags::VIRTUAL | AddressFlags::NODE));
    assert_eq!(
        entering(&fake, &ping, Entry::Pod).0,
        Decision::Pass(Reason::NotOurs)
    );
    ping.dst = ip("10.96.7.7");
    assert_eq!(
        entering(&fake, &ping, Entry::Pod).0,
        Decision::Drop(Reason::NoSuchService)
    );
    ping.dst = ip("10.244.2.2");
    assert_eq!(
        entering(&fake, &ping, Entry::Pod).0,
        Decision::Pass(Reason::NotOurs)
    );
}

#[test]
fn masquerading_without_an_address_is_a_named_drop() {
    let mut fake = Fake::node();
    fake.config.node_v4 = crate::Ip::UNSPECIFIED;
    fake.service(VIP, 80, protocol::TCP, &[(POD, 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    assert_eq!(
        entering(&fake, &request, Entry::Pod).0,
        Decision::Drop(Reason::NoNodeAddress)
    );
}

#[test]
fn exhausted_source_ports_are_a_named_drop() {
    let mut fake = Fake::node();
    fake.config.masquerade_count = 1;
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = |port| packet(protocol::TCP, ("172.31.0.5", port), (VIP, 80));
    let _ = translated(entering(&fake, &request(40_000), Entry::Uplink));
    assert_eq!(
        entering(&fake, &request(40_001), Entry::Uplink).0,
        Decision::Drop(Reason::NoSourcePort)
    );
}

const OUTSIDE: &str = "172.31.0.5";

/// A node port at the node's address that leads to these backends.
fn node_port(fake: &mut Fake, protocol: u8, backends: &[(&str, u16)]) -> FrontendKey {
    let key = fake.service(NODE, 30_080, protocol, backends);
    fake.frontends.get_mut(&key).unwrap().flags |= FrontendFlags::of_kind(FrontendKind::NodePort);
    fake.addresses
        .insert(ip(NODE), AddressFlags(AddressFlags::NODE | AddressFlags::VIRTUAL));
    key
}

fn with_flags(headers: Headers, detail: u8) -> Headers {
    Headers { detail, ..headers }
}

#[test]
fn a_client_from_outside_comes_to_a_node_port_with_the_nodes_address() {
    let mut fake = Fake::node();
    node_port(&mut fake, protocol::TCP, &[("10.244.2.2", 8080)]);
    // A pod of another node is from outside too: its answer would bypass this node.
    fake.pods.push(ip("10.244.2.7"));
    for client in [OUTSIDE, "10.244.2.7"] {
        let request = packet(protocol::TCP, (client, 40_000), (NODE, 30_080));
        let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
        assert_eq!(
            (flow.src, flow.deliver),
            (ip(NODE), Deliver::Route as u8),
            "{client}"
        );
        assert_answered(
            entering(&fake, &answer(&flow, protocol::TCP), Entry::Uplink),
            &request,
            Deliver::Route,
        );
    }
}

#[test]
fn a_pod_of_this_node_keeps_its_address_at_a_node_port() {
    let mut fake = Fake::node();
    node_port(&mut fake, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (NODE, 30_080));
    let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!((flow.src, flow.deliver), (ip(POD), Deliver::Stack as u8));
    assert_answered(
        leaving(&fake, &answer(&flow, protocol::TCP)),
        &request,
        Deliver::Stack,
    );
}

#[test]
fn a_backend_on_the_node_sees_the_client_and_its_answer_is_translated_at_the_uplink() {
    let mut fake = Fake::node();
    node_port(&mut fake, protocol::TCP, &[(NODE, 8080)]);
    let request = packet(protocol::TCP, (OUTSIDE, 40_000), (NODE, 30_080));
    let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
    assert_eq!(
        (flow.src, flow.sport, flow.deliver),
        (ip(OUTSIDE), Port::new(40_000), Deliver::Stack as u8)
    );
    assert!(fake.outside_to_node.get());
    assert_answered(
        leaving(&fake, &answer(&flow, protocol::TCP)),
        &request,
        Deliver::Stack,
    );
}

#[test]
fn the_nodes_packet_to_its_own_node_port_comes_and_goes_by_the_loopback() {
    let mut fake = Fake::node();
    node_port(&mut fake, protocol::UDP, &[("10.244.1.2", 8080)]);
    let request = packet(protocol::UDP, (NODE, 40_000), (NODE, 30_080));
    let (flow, _) = translated(entering(&fake, &request, Entry::Loopback));
    assert_eq!((flow.src, flow.deliver), (ip(NODE), Deliver::Route as u8));
    assert_answered(
        entering(&fake, &answer(&flow, protocol::UDP), Entry::Pod),
        &request,
        Deliver::Loopback,
    );

    let mut fake = Fake::node();
    node_port(&mut fake, protocol::UDP, &[(NODE, 8080)]);
    let (flow, _) = translated(entering(&fake, &request, Entry::Loopback));
    assert_eq!((flow.src, flow.deliver), (ip(NODE), Deliver::Stack as u8));
    assert_answered(
        entering(&fake, &answer(&flow, protocol::UDP), Entry::Loopback),
        &request,
        Deliver::Stack,
    );
}

#[test]
fn packets_to_loopback_addresses_are_nobodys_on_a_wire() {
    let mut fake = Fake::node();
    fake.service("127.0.0.1", 30_080, protocol::TCP, &[("10.244.2.2", 8080)]);
    for entry in [Entry::Pod, Entry::Uplink, Entry::Loopback] {
        let request = packet(protocol::TCP, (OUTSIDE, 40_000), ("127.0.0.1", 30_080));
        assert_eq!(
            entering(&fake, &request, entry).0,
            Decision::Pass(Reason::NotOurs)
        );
    }
}

/// A node port of policy Local: `inside` for pods of this node and itself, `outside` for all others.
fn local_policy(inside: &[(&str, u16)], outside: &[(&str, u16)]) -> Fake {
    let mut fake = Fake::node();
    let key = node_port(&mut fake, protocol::TCP, inside);
    let local = fake.service("192.0.2.99", 30_080, protocol::TCP, outside);
    let mut frontend = fake.frontends.remove(&local).unwrap();
    let outside_key = FrontendKey {
        scope: Scope::Outside as u8,
        ..key
    };
    frontend.check = outside_key.check();
    frontend.flags |= FrontendFlags::of_kind(FrontendKind::NodePort) | FrontendFlags::KEEP_SOURCE;
    if outside.is_empty() && !inside.is_empty() {
        frontend.flags |= FrontendFlags::LOCAL_ONLY;
    }
    fake.frontends.insert(outside_key, frontend);
    fake.frontends.get_mut(&key).unwrap().flags |= FrontendFlags::OUTSIDE_DIFFERS;
    fake
}

#[test]
fn under_policy_local_clients_from_outside_keep_their_address_and_reach_local_endpoints() {
    let fake = local_policy(&[("10.244.2.2", 8080)], &[("10.244.1.2", 8080)]);
    let request = packet(protocol::TCP, (OUTSIDE, 40_000), (NODE, 30_080));
    let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
    assert_eq!(
        (flow.src, flow.dst, flow.deliver),
        (ip(OUTSIDE), ip("10.244.1.2"), Deliver::Route as u8)
    );
    assert!(fake.outside.get());
    let (mut fake, reply) = (fake, answer(&flow, protocol::TCP));
    fake.config.pods_answer_outside = 1;
    assert_answered(entering(&fake, &reply, Entry::Pod), &request, Deliver::Route);
}

#[test]
fn under_policy_local_pods_of_the_node_and_the_node_itself_reach_all_endpoints() {
    let fake = local_policy(&[("10.244.2.2", 8080)], &[]);
    for (client, entry) in [(POD, Entry::Pod), (NODE, Entry::Loopback), (NODE, Entry::Host)] {
        let request = packet(protocol::TCP, (client, 40_000), (NODE, 30_080));
        assert_eq!(
            translated(entering(&fake, &request, entry)).0.dst,
            ip("10.244.2.2")
        );
    }
    let request = packet(protocol::TCP, (OUTSIDE, 40_000), (NODE, 30_080));
    assert_eq!(
        entering(&fake, &request, Entry::Uplink).0,
        Decision::Drop(Reason::NoLocalEndpoints)
    );
    let fake = local_policy(&[], &[]);
    assert_eq!(
        entering(&fake, &request, Entry::Uplink).0,
        Decision::Drop(Reason::NoEndpoints)
    );
}

#[test]
fn a_load_balancers_address_is_open_to_its_ranges_and_to_itself() {
    let mut fake = Fake::node();
    let key = fake.service("203.0.113.7", 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    fake.frontends.get_mut(&key).unwrap().flags =
        FrontendFlags::of_kind(FrontendKind::LoadBalancer) | FrontendFlags::SOURCE_RANGES;
    let decide = |fake: &Fake, client, entry| {
        entering(
            fake,
            &packet(protocol::TCP, (client, 40_000), ("203.0.113.7", 80)),
            entry,
        )
        .0
    };
    for (client, entry) in [(OUTSIDE, Entry::Uplink), (POD, Entry::Pod)] {
        assert_eq!(
            decide(&fake, client, entry),
            Decision::Drop(Reason::SourceNotAllowed)
        );
    }
    let itself = decide(&fake, "203.0.113.7", Entry::Loopback);
    assert_eq!(itself, Decision::Translate(Reason::NewFlow));
    fake.allowed.push((1, ip(OUTSIDE)));
    assert_eq!(
        decide(&fake, OUTSIDE, Entry::Uplink),
        Decision::Translate(Reason::NewFlow)
    );
}

#[test]
fn undefined_ports_of_addresses_outside_of_all_service_ranges_are_refused() {
    let mut fake = Fake::node();
    fake.service("203.0.113.7", 80, protocol::UDP, &[("10.244.2.2", 8080)]);
    fake.config.flags |= ConfigFlags::STRAY_ADDRESSES;
    let to = |address| packet(protocol::UDP, (OUTSIDE, 40_000), (address, 81));
    assert_eq!(
        entering(&fake, &to("203.0.113.7"), Entry::Uplink).0,
        Decision::Drop(Reason::NoSuchPort)
    );
    for other in ["203.0.113.8", NODE] {
        assert_eq!(
            entering(&fake, &to(other), Entry::Uplink).0,
            Decision::Pass(Reason::NotOurs)
        );
    }
}

#[test]
fn masquerade_all_means_all() {
    let mut fake = Fake::node();
    fake.config.flags |= ConfigFlags::MASQUERADE_ALL;
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    fake.pods.push(ip("10.244.2.7"));
    for (client, entry) in [(POD, Entry::Pod), ("10.244.2.7", Entry::Uplink)] {
        let request = packet(protocol::TCP, (client, 40_000), (VIP, 80));
        let (flow, _) = translated(entering(&fake, &request, entry));
        assert_eq!((flow.src, flow.deliver), (ip(NODE), Deliver::Route as u8));
        assert_answered(
            entering(&fake, &answer(&flow, protocol::TCP), Entry::Uplink),
            &request,
            Deliver::Route,
        );
    }
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
    assert_eq!(fake.flows.borrow().len(), 2, "one side still speaks");
    let _ = translated(entering(
        &fake,
        &with_flags(request, TCP_FIN | TCP_ACK),
        Entry::Pod,
    ));
    assert_eq!((fake.flows.borrow().len(), fake.new_flows.borrow().len()), (0, 2));
    // The last acknowledgement still finds its way.
    let (_, reason) = translated(leaving(&fake, &with_flags(reply, TCP_ACK)));
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
fn fragments_follow_the_first_one() {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 53)]);
    let first = Headers {
        is_fragment: true,
        fragment_id: 77,
        ..packet(protocol::UDP, (POD, 40_000), (VIP, 53))
    };
    let later = Headers {
        l4: 0,
        has_ports: false,
        sport: Port::new(0),
        dport: Port::new(0),
        ..first
    };
    assert_eq!(
        entering(&fake, &later, Entry::Pod).0,
        Decision::Drop(Reason::FragmentBeforeFirst)
    );
    let (flow, _) = translated(entering(&fake, &first, Entry::Pod));
    let (same, reason) = translated(entering(&fake, &later, Entry::Pod));
    assert_eq!(
        (same.dst, same.sport, reason),
        (flow.dst, flow.sport, Reason::Established)
    );
    let other = Headers {
        fragment_id: 78,
        ..later
    };
    assert_eq!(
        entering(&fake, &other, Entry::Pod).0,
        Decision::Drop(Reason::FragmentBeforeFirst)
    );
    // Answers alike.
    let first = Headers {
        is_fragment: true,
        fragment_id: 5,
        ..answer(&flow, protocol::UDP)
    };
    let later = Headers {
        l4: 0,
        has_ports: false,
        sport: Port::new(0),
        dport: Port::new(0),
        ..first
    };
    assert_eq!(leaving(&fake, &later).0, Decision::Pass(Reason::NotOurs));
    let _ = translated(leaving(&fake, &first));
    assert_eq!(translated(leaving(&fake, &later)).0.src, ip(VIP));
}

#[test]
fn the_state_of_a_flow_is_the_same_in_both_entries() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let flow = open(&fake, &request);
    let _ = entering(&fake, &with_flags(request, TCP_FIN | TCP_ACK), Entry::Pod);
    let reply_key = answer(&flow, protocol::TCP).flow_key();
    let states = [request.flow_key(), reply_key].map(|key| fake.known_flow(&key).unwrap().state);
    let expected = FlowState::ANSWERED | FlowState::CONFIRMED | FlowState::CLIENT_DONE;
    assert_eq!(states, [expected; 2]);
}

#[test]
fn answers_that_the_stack_forwards_are_translated_once_it_has() {
    // That some pods answer clients outside must make no difference to others.
    let mut fake = Fake::node();
    fake.config.pods_answer_outside = 1;
    fake.service(VIP, 80, protocol::UDP, &[("10.244.1.2", 8080)]);
    let request = packet(protocol::UDP, (POD, 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
    let reply = answer(&flow, protocol::UDP);
    for entry in [Entry::Pod, Entry::Uplink] {
        assert_eq!(entering(&fake, &reply, entry).0, Decision::Pass(Reason::NotOurs));
    }
    assert_answered(leaving(&fake, &reply), &request, Deliver::Stack);
}
