//! The rules of the socket decision, one test per rule.

use super::PacketContext;
use super::packet::{Decision, Entry, entering};
use super::socket::{self as decide, Owner, Sender, SocketDecision, may_bind, receive};
use super::testing::{Fake, ip, packet};
use crate::maps::{BackendState, ConfigFlags, FrontendFlags, FrontendKind, Reason};
use crate::{Ip, Port, protocol};

const VIP: &str = "10.96.0.1";

fn connect(fake: &Fake, address: Ip, port: Port, protocol: u8) -> SocketDecision {
    decide::connect(fake, &fake.config, Owner::Node, address, port, protocol)
}

fn connect_of_pod(fake: &Fake, address: &str) -> SocketDecision {
    decide::connect(
        fake,
        &fake.config,
        Owner::Pod,
        ip(address),
        Port::new(80),
        protocol::TCP,
    )
}

fn send(fake: &Fake, cookie: u64, address: Ip, port: Port) -> SocketDecision {
    let sender = Sender {
        cookie,
        port: Port::new(40_000),
    };
    decide::send(fake, &fake.config, &sender, address, port)
}

fn backend(decision: SocketDecision) -> u32 {
    match decision {
        SocketDecision::Translate(selected) => selected.id,
        other => panic!("not translated: {other:?}"),
    }
}

#[test]
fn connect_translates_tcp_only() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 53)]);
    assert_eq!(backend(connect(&fake, ip(VIP), Port::new(80), protocol::TCP)), 0);
    let udp = connect(&fake, ip(VIP), Port::new(53), protocol::UDP);
    assert_eq!(udp, SocketDecision::Leave(Reason::NotBalanced));
    let not_ours = connect(&fake, ip("10.244.2.2"), Port::new(80), protocol::TCP);
    assert_eq!(not_ours, SocketDecision::Leave(Reason::NotOurs));
}

#[test]
fn connect_is_refused_only_where_no_endpoint_exists_anywhere() {
    let mut fake = Fake::node();
    let key = fake.service(VIP, 80, protocol::TCP, &[]);
    assert_eq!(
        connect(&fake, ip(VIP), Port::new(80), protocol::TCP),
        SocketDecision::Refuse
    );
    fake.frontends.get_mut(&key).unwrap().flags = crate::maps::FrontendFlags::LOCAL_ONLY;
    let decision = connect(&fake, ip(VIP), Port::new(80), protocol::TCP);
    assert_eq!(decision, SocketDecision::Leave(Reason::NoLocalEndpoints));
}

#[test]
fn datagrams_of_a_socket_stay_together_until_the_backend_is_gone() {
    let mut fake = Fake::node();
    let key = fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 53), ("10.244.2.3", 53)]);
    let first = backend(send(&fake, 7, ip(VIP), Port::new(53)));
    for _ in 0..50 {
        assert_eq!(backend(send(&fake, 7, ip(VIP), Port::new(53))), first);
    }
    fake.backends[first as usize].state = BackendState::Gone as u8;
    fake.frontends.get_mut(&key).unwrap().slots = crate::maps::SlotRange::new(1 - first, 1).0;
    assert_eq!(backend(send(&fake, 7, ip(VIP), Port::new(53))), 1 - first);
}

#[test]
fn the_source_of_a_reply_is_the_virtual_address() {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 5353)]);
    let _ = send(&fake, 7, ip(VIP), Port::new(53));
    let source = receive(&fake, 7, ip("10.244.2.2"), Port::new(5353));
    assert_eq!(source, Some((ip(VIP), Port::new(53))));
    assert_eq!(receive(&fake, 8, ip("10.244.2.2"), Port::new(5353)), None);
}

#[test]
fn a_second_virtual_address_of_one_backend_is_left_to_the_packet_path() {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 53)]);
    fake.service("10.96.0.2", 53, protocol::UDP, &[("10.244.2.2", 53)]);
    let _ = backend(send(&fake, 7, ip(VIP), Port::new(53)));
    let second = send(&fake, 7, ip("10.96.0.2"), Port::new(53));
    assert_eq!(second, SocketDecision::Leave(Reason::NotOurs));
    // The packet path gives this flow another source port, but lets other sockets keep theirs.
    for (cookie, keeps_port) in [(7, false), (8, true)] {
        let request = packet(protocol::UDP, ("192.168.50.11", 40_000), ("10.96.0.2", 53));
        let mut ctx = PacketContext::new(request);
        ctx.socket = cookie;
        let decision = entering(&fake, &mut ctx, &[0_u8; 64][..], Entry::Host);
        assert_eq!(decision, Decision::Translate(Reason::NewFlow));
        assert_eq!(ctx.flow.sport == request.sport, keeps_port, "socket {cookie}");
        fake.new_flows.borrow_mut().clear();
    }
}

/// An earlier connected socket had the port that another one has now.
#[test]
fn an_older_flow_of_the_packet_path_keeps_its_replies_or_ends() {
    let mut fake = Fake::node();
    for address in [VIP, "10.96.0.2", "127.0.0.1"] {
        fake.service(address, 53, protocol::UDP, &[("10.244.2.2", 53)]);
    }
    let request = packet(protocol::UDP, ("192.168.50.11", 40_000), (VIP, 53));
    let mut ctx = PacketContext::new(request);
    let _ = entering(&fake, &mut ctx, &[0_u8; 64][..], Entry::Host);
    let reply_key = ctx.flow.reply_key(&ctx.key);
    assert!(fake.known_flow(&reply_key).is_some());
    let other = send(&fake, 7, ip("10.96.0.2"), Port::new(53));
    assert_eq!(other, SocketDecision::Leave(Reason::NotOurs));
    // The packet path does not handle loopback addresses.
    let _ = backend(send(&fake, 7, ip("127.0.0.1"), Port::new(53)));
    assert!(fake.known_flow(&reply_key).is_none());
}

#[test]
fn what_depends_on_a_pods_address_is_left_to_the_packet_path() {
    for flag in [FrontendFlags::AFFINITY, FrontendFlags::SOURCE_RANGES] {
        let mut fake = Fake::node();
        let key = fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
        fake.frontends.get_mut(&key).unwrap().flags = flag;
        assert_eq!(connect_of_pod(&fake, VIP), SocketDecision::Leave(Reason::NotOurs));
        let node = connect(&fake, ip(VIP), Port::new(80), protocol::TCP);
        if flag == FrontendFlags::AFFINITY {
            assert_eq!(backend(node), 0);
        } else {
            assert_eq!(node, SocketDecision::Leave(Reason::SourceNotAllowed));
            fake.allowed.push((1, fake.config.node_v4));
            assert_eq!(backend(connect(&fake, ip(VIP), Port::new(80), protocol::TCP)), 0);
        }
    }
}

#[test]
fn where_all_is_masqueraded_pods_are_left_to_the_packet_path() {
    let mut fake = Fake::node();
    fake.service(VIP, 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    fake.config.flags |= ConfigFlags::MASQUERADE_ALL;
    assert_eq!(connect_of_pod(&fake, VIP), SocketDecision::Leave(Reason::NotOurs));
    assert_eq!(backend(connect(&fake, ip(VIP), Port::new(80), protocol::TCP)), 0);
}

#[test]
fn the_node_stays_with_its_backend_where_clients_do() {
    let mut fake = Fake::node();
    let backends = [("10.244.2.2", 80), ("10.244.2.3", 80), ("10.244.2.4", 80)];
    let key = fake.service(VIP, 80, protocol::TCP, &backends);
    let frontend = fake.frontends.get_mut(&key).unwrap();
    (frontend.flags, frontend.affinity) = (FrontendFlags::AFFINITY, 60);
    let first = backend(connect(&fake, ip(VIP), Port::new(80), protocol::TCP));
    for _ in 0..50 {
        assert_eq!(
            backend(connect(&fake, ip(VIP), Port::new(80), protocol::TCP)),
            first
        );
    }
}

#[test]
fn a_pods_loopback_is_its_own() {
    let mut fake = Fake::node();
    fake.service("127.0.0.1", 80, protocol::TCP, &[("10.244.2.2", 8080)]);
    assert_eq!(
        backend(connect(&fake, ip("127.0.0.1"), Port::new(80), protocol::TCP)),
        0
    );
    assert_eq!(
        connect_of_pod(&fake, "127.0.0.1"),
        SocketDecision::Leave(Reason::NotOurs)
    );
}

#[test]
fn node_ports_are_kept_from_being_bound() {
    let mut fake = Fake::node();
    for address in ["192.168.50.11", "127.0.0.1", VIP] {
        let key = fake.service(address, 30_080, protocol::TCP, &[]);
        if address != VIP {
            fake.frontends.get_mut(&key).unwrap().flags = FrontendFlags::of_kind(FrontendKind::NodePort);
        }
    }
    let bind = |address, port, protocol| may_bind(&fake, ip(address), Port::new(port), protocol);
    for address in ["0.0.0.0", "::", "192.168.50.11", "127.0.0.1"] {
        assert!(!bind(address, 30_080, protocol::TCP), "{address}");
        assert!(bind(address, 30_081, protocol::TCP), "{address}");
        assert!(bind(address, 30_080, protocol::UDP), "{address}");
    }
    assert!(
        bind("192.168.60.11", 30_080, protocol::TCP),
        "no address of the service"
    );
    assert!(bind(VIP, 30_080, protocol::TCP), "no node port");
}
