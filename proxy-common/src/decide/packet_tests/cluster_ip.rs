//! The source address that a backend sees, and the translation of its reply.

use super::*;

#[test]
fn a_pods_packet_keeps_its_source_and_its_reply_is_translated_back() {
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
    assert_reply(
        leaving(&fake, &reply_of(&flow, protocol::TCP)),
        &request,
        Deliver::Stack,
    );
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
    assert_reply(
        entering(&fake, &reply_of(&flow, protocol::TCP), Entry::Pod),
        &request,
        Deliver::SameInterface,
    );
}

#[test]
fn the_nodes_packet_is_routed_and_its_reply_enters_by_our_device() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    let request = packet(protocol::TCP, (NODE, 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &request, Entry::Host));
    assert_eq!(
        (flow.src, flow.sport, flow.deliver),
        (ip(NODE), Port::new(40_000), Deliver::Route as u8)
    );
    for entry in [Entry::Uplink, Entry::Pod] {
        assert_reply(
            entering(&fake, &reply_of(&flow, protocol::TCP), entry),
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
    assert_reply(
        entering(&fake, &reply_of(&flow, protocol::TCP), Entry::Host),
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
    assert_reply(
        entering(&fake, &reply_of(&flow, protocol::TCP), Entry::Uplink),
        &request,
        Deliver::Route,
    );
    assert!(!fake.outside.get());
}

#[test]
fn a_pod_of_another_node_keeps_its_address_and_local_pods_look_for_its_replies() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[(POD, 8080)]);
    fake.pods.push(ip("10.244.2.7"));
    let request = packet(protocol::TCP, ("10.244.2.7", 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
    assert_eq!((flow.src, flow.deliver), (ip("10.244.2.7"), Deliver::Route as u8));
    assert!(fake.outside.get());
    fake.config.pods_reply_outside = 1;
    assert_reply(
        entering(&fake, &reply_of(&flow, protocol::TCP), Entry::Pod),
        &request,
        Deliver::Route,
    );
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
        assert_reply(
            entering(&fake, &reply_of(&flow, protocol::TCP), Entry::Uplink),
            &request,
            Deliver::Route,
        );
    }
}

#[test]
fn replies_that_the_stack_forwards_are_translated_once_it_has() {
    // Replies of some pods to clients outside must not affect other pods.
    let mut fake = Fake::node();
    fake.config.pods_reply_outside = 1;
    fake.service(VIP, 80, protocol::UDP, &[("10.244.1.2", 8080)]);
    let request = packet(protocol::UDP, (POD, 40_000), (VIP, 80));
    let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
    let reply = reply_of(&flow, protocol::UDP);
    for entry in [Entry::Pod, Entry::Uplink] {
        assert_eq!(entering(&fake, &reply, entry).0, Decision::Pass(Reason::NotOurs));
    }
    assert_reply(leaving(&fake, &reply), &request, Deliver::Stack);
}
