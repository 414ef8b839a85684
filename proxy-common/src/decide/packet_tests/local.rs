//! Packets between pods of this node, past its stack.

use super::super::local::{LocalDelivery, deliver_locally, is_enabled};
use super::*;
use crate::maps::PodFlags;

const OTHER: &str = "10.244.1.20";
const SENDER: u32 = 7;
const RECEIVER: u32 = 8;

fn node() -> Fake {
    let mut fake = Fake::node();
    fake.config.flags |= ConfigFlags::REDIRECT_TO_PODS;
    for (address, interface) in [(POD, SENDER), (OTHER, RECEIVER)] {
        let pod = Pod {
            interface,
            ..Pod::default()
        };
        fake.own_pods.insert(ip(address), pod);
    }
    fake
}

/// The path of a packet that comes out of the pod at this interface.
fn delivery(fake: &Fake, headers: &Headers, interface: u32) -> (LocalDelivery, Flow, u32) {
    let mut ctx = PacketContext::new(*headers);
    let is_translated = match decide::entering(fake, &mut ctx, &[][..], Entry::Pod) {
        Decision::Pass(Reason::NotOurs) => false,
        Decision::Translate(_) => true,
        other => panic!("{other:?}"),
    };
    let delivery = deliver_locally(fake, &mut ctx, interface, is_translated);
    (delivery, ctx.flow, ctx.receiver.interface)
}

#[test]
fn a_packet_goes_straight_to_the_other_pod() {
    let fake = node();
    assert!(is_enabled(&fake));
    for protocol in [protocol::TCP, protocol::UDP, protocol::ICMP] {
        let packet = packet(protocol, (POD, 1), (OTHER, 2));
        let (found, flow, receiver) = delivery(&fake, &packet, SENDER);
        assert_eq!((found, receiver), (LocalDelivery::Pod, RECEIVER));
        assert_eq!(flow.deliver, Deliver::Pod as u8);
    }
}

#[test]
fn a_service_is_translated_both_ways_without_the_stack() {
    let mut fake = node();
    fake.service(VIP, 80, protocol::TCP, &[(OTHER, 8080)]);
    let request = packet(protocol::TCP, (POD, 40_000), (VIP, 80));
    let (found, flow, receiver) = delivery(&fake, &request, SENDER);
    assert_eq!((found, receiver), (LocalDelivery::Pod, RECEIVER));
    assert_eq!((flow.dst, flow.deliver), (ip(OTHER), Deliver::Pod as u8));
    let (found, flow, receiver) = delivery(&fake, &reply_of(&flow, protocol::TCP), RECEIVER);
    assert_eq!((found, receiver), (LocalDelivery::PodReply, SENDER));
    assert_eq!((flow.src, flow.sport), (request.dst, request.dport));
    // The conntrack entry stores delivery through the stack, since the next packet may need it.
    let (flow, _) = translated(entering(&fake, &request, Entry::Pod));
    assert_eq!(flow.deliver, Deliver::Stack as u8);
}

#[test]
fn packets_that_need_the_stack_go_through_it() {
    let request = packet(protocol::TCP, (POD, 1), (OTHER, 2));
    let found = |fake: &Fake, headers: &Headers| delivery(fake, headers, SENDER).0;
    assert_eq!(found(&node(), &request), LocalDelivery::Pod);
    for limited in [POD, OTHER] {
        for flag in [PodFlags::LIMITED_INGRESS, PodFlags::LIMITED_EGRESS] {
            let mut fake = node();
            fake.own_pods.get_mut(&ip(limited)).unwrap().flags = flag;
            assert_eq!(
                found(&fake, &request),
                LocalDelivery::Stack,
                "{limited} is limited, {flag}"
            );
        }
    }
    let mut fake = node();
    fake.own_pods.remove(&ip(POD));
    assert_eq!(
        found(&fake, &request),
        LocalDelivery::Stack,
        "the sender is not ours"
    );
    let elsewhere = delivery(&node(), &request, 99).0;
    assert_eq!(
        elsewhere,
        LocalDelivery::Stack,
        "the sender has another interface"
    );
    let fake = node();
    let last = Headers { ttl: 1, ..request };
    assert_eq!(
        found(&fake, &last),
        LocalDelivery::Stack,
        "its time to live ends here"
    );
    let elsewhere = packet(protocol::TCP, (POD, 1), ("10.244.2.2", 2));
    assert_eq!(
        found(&fake, &elsewhere),
        LocalDelivery::Stack,
        "the receiver is not here"
    );
    let itself = packet(protocol::TCP, (POD, 1), (POD, 2));
    assert_eq!(
        found(&fake, &itself),
        LocalDelivery::Stack,
        "the receiver is the sender"
    );
    let error = with_flags(packet(protocol::ICMP, (POD, 0), (OTHER, 0)), 3);
    assert_eq!(
        found(&fake, &error),
        LocalDelivery::Stack,
        "an error may be about a translated flow"
    );
}

#[test]
fn local_delivery_has_to_be_configured() {
    let mut fake = node();
    fake.config.flags &= !ConfigFlags::REDIRECT_TO_PODS;
    assert!(!is_enabled(&fake));
    let mut fake = node();
    fake.own_pods.clear();
    assert!(!is_enabled(&fake), "there are no pods of ours");
}
