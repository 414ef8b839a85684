//! The rules of the packet decision, one test per rule.

mod cluster_ip;
mod colliding_flows;
mod direct;
mod egress;
mod errors;
mod flows;
mod fragments;
mod host_ports;
mod local;
mod local_sockets;
mod outside;
mod sender;
mod shares;
mod uplinks;
mod verdicts;

use super::PacketContext;
use super::egress::leaving_node as egress_decision;
use super::packet::{self as decide, Decision, Entry};
use super::testing::{Fake, ip, packet};
use crate::maps::{
    AddressFlags, BackendState, ConfigFlags, Deliver, Flow, FlowState, FrontendFlags, FrontendKey,
    FrontendKind, HostPort, HostPortKey, Lifetime, Pod, PodLink, PodLinkFlags, RangeFlags, Reason, Scope,
};
use crate::packet::{Headers, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
use crate::{Port, protocol};

const POD: &str = "10.244.1.10";
const NODE: &str = "192.168.50.11";
const VIP: &str = "10.96.0.1";
const OUTSIDE: &str = "172.31.0.5";

type Outcome = (Decision, Flow);

fn entering(fake: &Fake, headers: &Headers, entry: Entry) -> Outcome {
    let mut ctx = PacketContext::new(*headers);
    (decide::entering(fake, &mut ctx, &[][..], entry), ctx.flow)
}

fn leaving(fake: &Fake, headers: &Headers) -> Outcome {
    let mut ctx = PacketContext::new(*headers);
    (decide::leaving(fake, &mut ctx, &[][..]), ctx.flow)
}

fn leaving_node(fake: &Fake, headers: &Headers) -> Outcome {
    let mut ctx = PacketContext::new(*headers);
    (egress_decision(fake, &mut ctx, &[][..]), ctx.flow)
}

fn translated(outcome: Outcome) -> (Flow, Reason) {
    match outcome {
        (Decision::Translate(reason), flow) => (flow, reason),
        (other, _) => panic!("not translated: {other:?}"),
    }
}

fn reply_of(flow: &Flow, protocol: u8) -> Headers {
    Headers {
        src: flow.dst,
        dst: flow.src,
        sport: flow.dport,
        dport: flow.sport,
        ..packet(protocol, (VIP, 0), (VIP, 0))
    }
}

/// Checks that the reply of `flow` gets the source and destination of the client's own connection again.
fn assert_reply(outcome: Outcome, request: &Headers, deliver: Deliver) {
    let (reply, reason) = translated(outcome);
    assert_eq!(reason, Reason::Reply);
    assert_eq!((reply.src, reply.sport), (request.dst, request.dport));
    assert_eq!((reply.dst, reply.dport), (request.src, request.sport));
    assert_eq!(reply.deliver, deliver as u8);
}

/// The same packet with these flags. A FIN follows a SYN with the sequence number 0.
fn with_flags(headers: Headers, detail: u8) -> Headers {
    let sequence = u32::from(headers.protocol == protocol::TCP && detail & TCP_FIN != 0);
    Headers {
        detail,
        sequence,
        ..headers
    }
}

/// The acknowledgement of a FIN of [`with_flags`].
fn acknowledging_fin(headers: Headers) -> Headers {
    Headers {
        acknowledgement: 2,
        ..with_flags(headers, TCP_ACK)
    }
}

/// An echo request, or the reply to one, with this identifier.
fn echo(src: &str, dst: &str, id: u16, is_reply: bool) -> Headers {
    let (sport, dport) = if is_reply { (0, id) } else { (id, 0) };
    let is_v4 = ip(src).is_v4();
    let (protocol, detail) = match (is_v4, is_reply) {
        (true, false) => (protocol::ICMP, 8),
        (true, true) => (protocol::ICMP, 0),
        (false, false) => (protocol::ICMPV6, 128),
        (false, true) => (protocol::ICMPV6, 129),
    };
    Headers {
        detail,
        ..packet(protocol, (src, sport), (dst, dport))
    }
}

/// A later fragment of a packet.
fn later_fragment(first: Headers) -> Headers {
    Headers {
        l4: 0,
        has_ports: false,
        detail: 0,
        sport: Port::new(0),
        dport: Port::new(0),
        ..first
    }
}

/// A node that masquerades what its pod sends to the world outside.
fn masquerading() -> Fake {
    let mut fake = Fake::node();
    fake.config.flags |= ConfigFlags::MASQUERADE_PODS;
    fake.own_pods.insert(ip(POD), Pod::default());
    fake.pods.push(ip(POD));
    fake.pods.push(ip("10.244.2.2"));
    fake.config.own_range[0] = ip("10.244.1.0");
    fake.config.own_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00");
    fake.config.around_pods[0] = ip("10.244.0.0");
    fake.config.around_pods_mask[0] = ip("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0");
    fake
}

/// A node port at the node's address that leads to these backends.
fn node_port(fake: &mut Fake, protocol: u8, backends: &[(&str, u16)]) -> FrontendKey {
    let key = fake.service(NODE, 30_080, protocol, backends);
    fake.frontends.get_mut(&key).unwrap().flags |= FrontendFlags::of_kind(FrontendKind::NodePort);
    fake.addresses
        .insert(ip(NODE), AddressFlags(AddressFlags::NODE | AddressFlags::VIRTUAL));
    key
}
