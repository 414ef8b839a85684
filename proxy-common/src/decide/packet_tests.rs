//! What the packet decision owes, one test per rule.

use super::Work;
use super::packet::{self as decide, Decision, Entry};
use super::testing::{Fake, ip, packet};
use crate::maps::{AddressFlags, BackendState, Deliver, Flow, Reason};
use crate::packet::Headers;
use crate::{Port, protocol};

const POD: &str = "10.244.1.10";
const NODE: &str = "192.168.50.11";
const VIP: &str = "10.96.0.1";

type Outcome = (Decision, Flow);

fn entering(fake: &Fake, headers: &Headers, entry: Entry) -> Outcome {
    let mut work = Work::new(*headers);
    (decide::entering(fake, &mut work, entry), work.flow)
}

fn leaving_to_pod(fake: &Fake, headers: &Headers) -> Outcome {
    let mut work = Work::new(*headers);
    (decide::leaving_to_pod(fake, &mut work), work.flow)
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
        leaving_to_pod(&fake, &answer(&flow, protocol::TCP)),
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
        leaving_to_pod(&fake, &answer(&moved, protocol::UDP)),
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
    assert_eq!((flow.src, flow.deliver), (ip("10.244.2.7"), Deliver::Stack as u8));
    assert!(fake.outside.get());
    fake.config.pods_answer_outside = 1;
    assert_answered(
        entering(&fake, &answer(&flow, protocol::TCP), Entry::Pod),
        &request,
        Deliver::Stack,
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
        leaving_to_pod(&fake, &answer(&first, protocol::TCP)),
        &one,
        Deliver::Stack,
    );
    assert_answered(
        leaving_to_pod(&fake, &answer(&second, protocol::TCP)),
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

    fake.flows.borrow_mut().remove(&reply.flow_key());
    fake.time.set(1);
    let _ = entering(&fake, &request, Entry::Pod);
    assert_answered(leaving_to_pod(&fake, &reply), &request, Deliver::Stack);

    fake.flows.borrow_mut().remove(&request.flow_key());
    fake.time.set(2);
    let _ = leaving_to_pod(&fake, &reply);
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
