//! The packets that a pod may send.

use super::super::admission::Frame;
use super::super::sender::may_send;
use super::*;
use crate::packet::ether_type;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 6];
const INTERFACE: u32 = 7;
const POD_V6: &str = "fd00:244:1::5";
/// The link-local address that follows from the hardware address, and another one.
const LINK_LOCAL: &str = "fe80::ff:fe00:5";
const OTHER_LINK_LOCAL: &str = "fe80::5";

fn node() -> Fake {
    let mut fake = Fake::node();
    let pod = Pod {
        interface: INTERFACE,
        mac: MAC,
        ..Pod::default()
    };
    fake.own_pods.insert(ip(POD), pod);
    fake.own_pods.insert(ip(POD_V6), pod);
    // The pod next to it.
    let neighbour = Pod { interface: 8, ..pod };
    fake.own_pods.insert(ip("10.244.1.11"), neighbour);
    let link = PodLink {
        mac: MAC,
        ..PodLink::default()
    };
    fake.pod_links.insert(INTERFACE, link);
    fake
}

fn frame(mac: [u8; 6], source: &str, next: u8, payload: &[u8]) -> (Vec<u8>, u16) {
    let source = ip(source);
    let mut frame = vec![0; 6];
    frame.extend(mac);
    if source.is_v4() {
        frame.extend(ether_type::IPV4.to_be_bytes());
        frame.extend([0x45, 0, 0, 20, 0, 0, 0, 0, 64, next, 0, 0]);
        frame.extend(&source.octets()[12..]);
        frame.extend([10, 96, 0, 1]);
        frame.extend(payload);
        return (frame, ether_type::IPV4);
    }
    frame.extend(ether_type::IPV6.to_be_bytes());
    frame.extend([0x60, 0, 0, 0, 0, payload.len() as u8, next, 255]);
    frame.extend(source.octets());
    frame.extend(ip("ff02::1").octets());
    frame.extend(payload);
    (frame, ether_type::IPV6)
}

/// An untagged frame to the interface.
const fn metadata(ether_type: u16) -> Frame {
    Frame {
        ether_type,
        vlan: Frame::UNTAGGED,
        is_for_other: false,
    }
}

fn may(fake: &Fake, mac: [u8; 6], source: &str) -> bool {
    let (frame, kind) = frame(mac, source, protocol::UDP, &[0; 8]);
    may_send(fake, &frame[..], metadata(kind), INTERFACE, true)
}

#[test]
fn a_pod_sends_from_its_own_addresses_and_its_own_hardware_address() {
    let fake = node();
    for (mac, source, allowed) in [
        (MAC, POD, true),
        (MAC, POD_V6, true),
        (OTHER_MAC, POD, false),
        (MAC, "10.244.1.11", false),
        (MAC, OUTSIDE, false),
        (MAC, "0.0.0.0", false),
        (MAC, "2001:db8::1", false),
        (MAC, LINK_LOCAL, false),
    ] {
        assert_eq!(may(&fake, mac, source), allowed, "{source} {mac:?}");
    }
}

#[test]
fn exempt_pods_and_pods_of_other_plugins_may_send_any_packet() {
    let mut fake = node();
    let link = fake.pod_links.get_mut(&INTERFACE).unwrap();
    link.flags = PodLinkFlags::ANY_SOURCE;
    assert!(may(&fake, OTHER_MAC, OUTSIDE));
    fake.pod_links.clear();
    let (frame, kind) = frame(OTHER_MAC, OUTSIDE, protocol::UDP, &[0; 8]);
    assert!(may_send(&fake, &frame[..], metadata(kind), INTERFACE, false));
}

#[test]
fn an_interface_of_our_own_without_its_entries_sends_nothing() {
    let solicitation = || frame(MAC, "::", protocol::ICMPV6, &[135, 0, 0, 0, 0, 0, 0, 0]);
    let mut fake = node();
    fake.pod_links.clear();
    // While the entries of its addresses exist, they identify the pod.
    assert!(may(&fake, MAC, POD) && !may(&fake, MAC, OUTSIDE));
    fake.own_pods.clear();
    // If an agent starts with empty tables, they are not in use either.
    for source in [POD, POD_V6, OUTSIDE, LINK_LOCAL] {
        assert!(!may(&fake, MAC, source), "{source}");
    }
    let (packet, kind) = solicitation();
    assert!(!may_send(&fake, &packet[..], metadata(kind), INTERFACE, true));
    assert!(may_send(&fake, &packet[..], metadata(kind), INTERFACE, false));
}

#[test]
fn neighbours_are_solicited_before_there_is_an_address() {
    let fake = node();
    for (source, next, payload, allowed) in [
        ("::", protocol::ICMPV6, &[135_u8, 0, 0, 0, 0, 0, 0, 0][..], true),
        (LINK_LOCAL, protocol::ICMPV6, &[133, 0, 0, 0], true),
        (LINK_LOCAL, protocol::ICMPV6, &[136, 0, 0, 0], true),
        (LINK_LOCAL, 0, &[58, 0, 5, 2, 0, 0, 0, 0, 143, 0, 0, 0], true),
        ("::", 0, &[58, 0, 5, 2, 0, 0, 0, 0, 143, 0, 0, 0], true),
        (
            OTHER_LINK_LOCAL,
            0,
            &[58, 0, 5, 2, 0, 0, 0, 0, 143, 0, 0, 0],
            true,
        ),
        // A link-local address that does not follow from the hardware address: each would take an entry of
        // the node's table.
        (OTHER_LINK_LOCAL, protocol::ICMPV6, &[133, 0, 0, 0], false),
        (OTHER_LINK_LOCAL, protocol::ICMPV6, &[135, 0, 0, 0], false),
        (OTHER_LINK_LOCAL, protocol::ICMPV6, &[136, 0, 0, 0], false),
        // A router advertisement, a redirect, an echo, a datagram, and a packet with another header first.
        (LINK_LOCAL, protocol::ICMPV6, &[134, 0, 0, 0], false),
        (LINK_LOCAL, protocol::ICMPV6, &[137, 0, 0, 0], false),
        (LINK_LOCAL, protocol::ICMPV6, &[128, 0, 0, 0], false),
        (LINK_LOCAL, protocol::UDP, &[0; 8], false),
        (LINK_LOCAL, 0, &[17, 0, 5, 2, 0, 0, 0, 0, 143, 0, 0, 0], false),
        (LINK_LOCAL, 0, &[58, 1, 5, 2, 0, 0, 0, 0, 143, 0, 0, 0], false),
        ("2001:db8::1", protocol::ICMPV6, &[135, 0, 0, 0], false),
    ] {
        for mac in [MAC, OTHER_MAC] {
            let (frame, kind) = frame(mac, source, next, payload);
            let owed = allowed && mac == MAC;
            assert_eq!(
                may_send(&fake, &frame[..], metadata(kind), INTERFACE, true),
                owed,
                "{source} {next} {payload:?} {mac:?}"
            );
        }
    }
}

#[test]
fn what_a_pod_sends_beside_ip_is_arp_and_has_no_tag() {
    let fake = node();
    let (frame, kind) = frame(MAC, POD, protocol::UDP, &[0; 8]);
    for (vlan, strict, allowed) in [
        (Frame::UNTAGGED, true, true),
        (0, true, false),
        (5, true, false),
        (5, false, true),
    ] {
        let metadata = Frame {
            vlan,
            ..metadata(kind)
        };
        assert_eq!(
            may_send(&fake, &frame[..], metadata, INTERFACE, strict),
            allowed,
            "{vlan} {strict}"
        );
    }
    for kind in [ether_type::VLAN, ether_type::SERVICE_VLAN, 0x8847, 0x888e, 0x0000] {
        assert!(
            !may_send(&fake, &frame[..], metadata(kind), INTERFACE, true),
            "{kind:x}"
        );
        assert!(
            may_send(&fake, &frame[..], metadata(kind), INTERFACE, false),
            "another plugin's: {kind:x}"
        );
    }
}

/// An ARP request with this sender.
fn arp(mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(MAC);
    frame.extend(ether_type::ARP.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(sender);
    frame.extend([0, 0, 0, 0, 0, 0, 169, 254, 1, 1]);
    frame
}

/// Each sender would take an entry of a table that all interfaces of the node share.
#[test]
fn arp_names_the_pod_itself() {
    let mut fake = node();
    for (mac, sender, allowed) in [
        (MAC, [10, 244, 1, 10], true),
        (MAC, [0, 0, 0, 0], true),
        (OTHER_MAC, [10, 244, 1, 10], false),
        (MAC, [10, 244, 1, 11], false),
        (MAC, [198, 51, 100, 7], false),
        (MAC, [169, 254, 1, 1], false),
    ] {
        let frame = arp(mac, sender);
        let asks = may_send(&fake, &frame[..], metadata(ether_type::ARP), INTERFACE, true);
        assert_eq!(asks, allowed, "{mac:?} {sender:?}");
    }
    let frame = arp(MAC, [10, 244, 1, 10]);
    for len in 0..32 {
        let asks = may_send(&fake, &frame[..len], metadata(ether_type::ARP), INTERFACE, true);
        assert!(!asks, "{len} bytes");
    }
    let foreign = arp(OTHER_MAC, [198, 51, 100, 7]);
    assert!(may_send(
        &fake,
        &foreign[..],
        metadata(ether_type::ARP),
        INTERFACE,
        false
    ));
    fake.pod_links.get_mut(&INTERFACE).unwrap().flags = PodLinkFlags::ANY_SOURCE;
    assert!(
        may_send(&fake, &foreign[..], metadata(ether_type::ARP), INTERFACE, true),
        "a router"
    );
}
