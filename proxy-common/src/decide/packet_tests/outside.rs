//! Services for clients from outside: node ports, load balancers, traffic policies.

use super::*;

#[test]
fn a_client_from_outside_comes_to_a_node_port_with_the_nodes_address() {
    let mut fake = Fake::node();
    node_port(&mut fake, protocol::TCP, &[("10.244.2.2", 8080)]);
    // A pod of another node counts as a client from outside too: the reply to it would bypass this node.
    fake.pods.push(ip("10.244.2.7"));
    for client in [OUTSIDE, "10.244.2.7"] {
        let request = packet(protocol::TCP, (client, 40_000), (NODE, 30_080));
        let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
        assert_eq!(
            (flow.src, flow.deliver),
            (ip(NODE), Deliver::Route as u8),
            "{client}"
        );
        assert_reply(
            entering(&fake, &reply_of(&flow, protocol::TCP), Entry::Uplink),
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
    assert_reply(
        leaving(&fake, &reply_of(&flow, protocol::TCP)),
        &request,
        Deliver::Stack,
    );
}

#[test]
fn a_backend_on_the_node_sees_the_client_and_its_reply_is_translated_at_the_uplink() {
    let mut fake = Fake::node();
    node_port(&mut fake, protocol::TCP, &[(NODE, 8080)]);
    let request = packet(protocol::TCP, (OUTSIDE, 40_000), (NODE, 30_080));
    let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
    assert_eq!(
        (flow.src, flow.sport, flow.deliver),
        (ip(OUTSIDE), Port::new(40_000), Deliver::Stack as u8)
    );
    assert!(fake.outside_to_node.get());
    assert_reply(
        leaving(&fake, &reply_of(&flow, protocol::TCP)),
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
    assert_reply(
        entering(&fake, &reply_of(&flow, protocol::UDP), Entry::Pod),
        &request,
        Deliver::Loopback,
    );

    let mut fake = Fake::node();
    node_port(&mut fake, protocol::UDP, &[(NODE, 8080)]);
    let (flow, _) = translated(entering(&fake, &request, Entry::Loopback));
    assert_eq!((flow.src, flow.deliver), (ip(NODE), Deliver::Stack as u8));
    assert_reply(
        entering(&fake, &reply_of(&flow, protocol::UDP), Entry::Loopback),
        &request,
        Deliver::Stack,
    );
}

/// The stack would take them where `net.ipv4.conf.*.route_localnet` is 1, as kube-proxy leaves it
/// (CVE-2020-8558).
#[test]
fn packets_to_loopback_addresses_come_by_the_loopback_only() {
    let mut fake = Fake::node();
    fake.service("127.0.0.1", 30_080, protocol::TCP, &[("10.244.2.2", 8080)]);
    for (entry, decision) in [
        (Entry::Pod, Decision::Drop(Reason::LoopbackDestination)),
        (Entry::Uplink, Decision::Drop(Reason::LoopbackDestination)),
        (Entry::Loopback, Decision::Pass(Reason::NotOurs)),
    ] {
        let request = packet(protocol::TCP, (OUTSIDE, 40_000), ("127.0.0.1", 30_080));
        assert_eq!(entering(&fake, &request, entry).0, decision);
    }
}

/// A node port of policy Local: `inside` for pods of this node and the node itself, `outside` for all other
/// clients.
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
    let (mut fake, reply) = (fake, reply_of(&flow, protocol::TCP));
    fake.config.pods_reply_outside = 1;
    assert_reply(entering(&fake, &reply, Entry::Pod), &request, Deliver::Route);
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
