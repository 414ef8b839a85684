//! Nodes with several uplinks: a masqueraded flow carries the address of its uplink.

use super::*;
use crate::maps::UplinkAddresses;

const STORAGE: u32 = 9;
const OF_STORAGE: &str = "198.51.100.2";
const SERVER: &str = "198.51.100.9";

/// A node with a second uplink, which has an IPv4 address of its own.
fn fake() -> Fake {
    let mut fake = masquerading();
    fake.config.flags |= ConfigFlags::MORE_UPLINKS | ConfigFlags::MORE_NODE_ADDRESSES;
    fake.config.uplinks[0] = UplinkAddresses {
        interface: STORAGE,
        v4: ip(OF_STORAGE).v4_word(),
        ..UplinkAddresses::default()
    };
    fake.addresses
        .insert(ip(OF_STORAGE), AddressFlags(AddressFlags::NODE));
    fake
}

fn leaving_by(fake: &Fake, interface: u32, headers: &Headers) -> Outcome {
    let mut ctx = PacketContext::new(*headers);
    ctx.interface = interface;
    (egress_decision(fake, &mut ctx, &[][..]), ctx.flow)
}

#[test]
fn a_pods_flow_carries_the_address_of_the_uplink_it_leaves_by() {
    let fake = fake();
    let request = packet(protocol::UDP, (POD, 40_000), (SERVER, 53));
    let (flow, _) = translated(leaving_by(&fake, STORAGE, &request));
    assert_eq!(flow.src, ip(OF_STORAGE));
    let reply = reply_of(&flow, protocol::UDP);
    assert_reply(entering(&fake, &reply, Entry::Uplink), &request, Deliver::Stack);
    // The route has changed: a datagram follows it, as in netfilter.
    let (flow, reason) = translated(leaving_by(&fake, 2, &request));
    assert_eq!((flow.src, reason), (ip(NODE), Reason::Moved));
    let (_, reason) = translated(leaving_by(&fake, 2, &request));
    assert_eq!(reason, Reason::Established);
}

#[test]
fn a_connection_keeps_its_address_by_another_uplink() {
    let fake = fake();
    let request = with_flags(packet(protocol::TCP, (POD, 40_000), (SERVER, 80)), TCP_SYN);
    let (flow, _) = translated(leaving_by(&fake, STORAGE, &request));
    let next = with_flags(request, TCP_ACK);
    let (same, reason) = translated(leaving_by(&fake, 2, &next));
    assert_eq!(
        (same.src, same.sport, reason),
        (flow.src, flow.sport, Reason::Established)
    );
}

#[test]
fn an_uplink_without_an_address_of_the_family_lends_the_primary_one() {
    let mut fake = fake();
    fake.config.node_v6 = ip("fd00:50::11");
    fake.own_pods.insert(ip("fd00:244:1::10"), Pod::default());
    let request = packet(protocol::UDP, ("fd00:244:1::10", 40_000), ("2001:db8::9", 53));
    let (flow, _) = translated(leaving_by(&fake, STORAGE, &request));
    assert_eq!(flow.src, ip("fd00:50::11"));
}

#[test]
fn a_node_ports_client_gets_the_address_towards_the_endpoint() {
    let mut fake = fake();
    node_port(&mut fake, protocol::UDP, &[("10.244.2.2", 8080)]);
    for (device, source) in [(STORAGE, OF_STORAGE), (2, NODE), (0, NODE)] {
        fake.routes_out.insert(ip("10.244.2.2"), device);
        let request = packet(protocol::UDP, (OUTSIDE, 40_000 + device as u16), (NODE, 30_080));
        let (flow, _) = translated(entering(&fake, &request, Entry::Uplink));
        assert_eq!(flow.src, ip(source), "by {device}");
        let reply = reply_of(&flow, protocol::UDP);
        assert_reply(entering(&fake, &reply, Entry::Uplink), &request, Deliver::Route);
    }
}
