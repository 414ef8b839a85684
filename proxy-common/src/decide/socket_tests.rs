//! What the socket decision owes, one test per rule.

use super::socket::{SocketDecision, connect, receive, send};
use super::testing::{Fake, ip};
use crate::maps::{BackendState, Reason};
use crate::{Port, protocol};

const VIP: &str = "10.96.0.1";

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
    let strange = connect(&fake, ip("10.244.2.2"), Port::new(80), protocol::TCP);
    assert_eq!(strange, SocketDecision::Leave(Reason::NotOurs));
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
fn the_sender_of_an_answer_is_the_virtual_address() {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 5353)]);
    let _ = send(&fake, 7, ip(VIP), Port::new(53));
    let answer = receive(&fake, 7, ip("10.244.2.2"), Port::new(5353));
    assert_eq!(answer, Some((ip(VIP), Port::new(53))));
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
}
