//! ICMP errors that the receiver's stack acts upon, whether a flow is known here or not.

use super::*;
use crate::maps::NodeNumber;
use crate::packet::{ether_type, parse};

const NEIGHBOUR: &str = "10.244.1.11";
const PEER: &str = "192.168.50.12";
const TUNNEL: u16 = 8472;
const INTERFACE: u32 = 7;

fn node() -> Fake {
    let mut fake = Fake::node();
    fake.config.tunnel_port = Port::new(TUNNEL);
    fake.addresses
        .insert(ip(PEER), AddressFlags::of_peer(NodeNumber(2)));
    fake.ranges.insert(
        ip("10.244.2.2"),
        RangeFlags(RangeFlags::PODS | 2 << NodeNumber::SHIFT),
    );
    fake.pod_links.insert(INTERFACE, PodLink::default());
    fake
}

/// The transport header of the packet that an error is about.
#[derive(Clone, Copy)]
struct Embedded<'a> {
    from: (&'a str, u16),
    to: (&'a str, u16),
    protocol: u8,
    /// Flags and offset of an IPv4 header.
    fragment: u16,
}

fn udp<'a>(from: (&'a str, u16), to: (&'a str, u16)) -> Embedded<'a> {
    Embedded {
        from,
        to,
        protocol: protocol::UDP,
        fragment: 0,
    }
}

fn header(source: &str, destination: &str, next: u8, fragment: u16) -> Vec<u8> {
    let (source, destination) = (ip(source), ip(destination));
    let mut bytes = Vec::new();
    if source.is_v4() {
        bytes.extend([0x45, 0, 0, 200, 0, 7]);
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, next, 0, 0]);
        bytes.extend(&source.octets()[12..]);
        bytes.extend(&destination.octets()[12..]);
    } else {
        bytes.extend([0x60, 0, 0, 0, 0, 200, next, 64]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
    }
    bytes
}

/// The frame of an error from one host to another.
fn frame_of((source, destination): (&str, &str), about: Embedded<'_>, fragment: u16) -> Vec<u8> {
    let (kind, icmp, code) = if ip(source).is_v4() {
        (ether_type::IPV4, protocol::ICMP, [3, 4])
    } else {
        (ether_type::IPV6, protocol::ICMPV6, [2, 0])
    };
    let mut frame = vec![0; 12];
    frame.extend(kind.to_be_bytes());
    frame.extend(header(source, destination, icmp, fragment));
    frame.extend(code);
    frame.extend([0, 0, 0, 0, 2, 40]);
    frame.extend(header(about.from.0, about.to.0, about.protocol, about.fragment));
    frame.extend(about.from.1.to_be_bytes());
    frame.extend(about.to.1.to_be_bytes());
    frame.extend([0; 12]);
    frame
}

/// The verdict on such an error at an entry.
fn verdict(fake: &Fake, entry: Entry, ends: (&str, &str), about: Embedded<'_>, fragment: u16) -> Decision {
    let frame = frame_of(ends, about, fragment);
    let kind = u16::from_be_bytes([frame[12], frame[13]]);
    let mut ctx = PacketContext::new(parse(&frame[..], kind, 14).expect("an ICMP error"));
    assert!(ctx.headers.is_icmp_error());
    ctx.interface = INTERFACE;
    // Values that an earlier packet has left.
    ctx.embedded.src = ip(POD);
    ctx.embedded.dst = ip(ends.0);
    decide::entering(fake, &mut ctx, &frame[..], entry)
}

const FORGED: Decision = Decision::Drop(Reason::ForgedSource);
const PASSED: Decision = Decision::Pass(Reason::NotOurs);

#[test]
fn a_pod_reports_about_packets_to_itself_only() {
    let mut fake = node();
    for receiver in [NEIGHBOUR, NODE, PEER, OUTSIDE] {
        let about = |to| udp((receiver, 40_000), (to, 5353));
        let report =
            |fake: &Fake, about, fragment| verdict(fake, Entry::Pod, (POD, receiver), about, fragment);
        assert_ne!(report(&fake, about(POD), 0), FORGED, "{receiver}");
        for other in [OUTSIDE, PEER, NODE, VIP, "10.244.2.2"] {
            assert_eq!(report(&fake, about(other), 0), FORGED, "{receiver} about {other}");
        }
        // The kernel reads these packets, although they have no ports here.
        let later = Embedded {
            fragment: 1,
            ..about(OUTSIDE)
        };
        let other_protocol = Embedded {
            protocol: 47,
            ..about(OUTSIDE)
        };
        for unread in [later, other_protocol] {
            assert_eq!(report(&fake, unread, 0), FORGED, "{receiver}");
        }
        assert_eq!(report(&fake, about(POD), 0x2000), FORGED, "in pieces");
    }
    // A router in a pod, and a pod of another plugin.
    let about = udp((NEIGHBOUR, 40_000), (OUTSIDE, 5353));
    let link = PodLink {
        flags: PodLinkFlags::ANY_SOURCE,
        ..PodLink::default()
    };
    fake.pod_links.insert(INTERFACE, link);
    assert_ne!(verdict(&fake, Entry::Pod, (POD, NEIGHBOUR), about, 0), FORGED);
    fake.pod_links.clear();
    assert_ne!(verdict(&fake, Entry::Pod, (POD, NEIGHBOUR), about, 0), FORGED);
}

#[test]
fn an_error_about_the_tunnel_does_not_come_in() {
    let mut fake = node();
    let arrives =
        |fake: &Fake, about, fragment| verdict(fake, Entry::Uplink, (OUTSIDE, NODE), about, fragment);
    let to_peer = udp((NODE, 40_000), (PEER, TUNNEL));
    let dropped = Decision::Drop(Reason::TunnelSource);
    assert_eq!(arrives(&fake, to_peer, 0), dropped);
    assert_eq!(arrives(&fake, to_peer, 0x2000), dropped, "in pieces");
    // The kernel looks at fragments too.
    let later = Embedded {
        fragment: 9,
        ..to_peer
    };
    assert_eq!(arrives(&fake, later, 0), dropped);
    for about in [
        udp((NODE, 40_000), (PEER, 53)),
        udp((NODE, 40_000), (OUTSIDE, TUNNEL)),
        Embedded {
            protocol: protocol::TCP,
            ..to_peer
        },
        Embedded {
            protocol: protocol::ICMP,
            from: (NODE, 0x0800),
            ..to_peer
        },
        // Other tunnels between nodes: GRE, ESP.
        Embedded {
            protocol: 47,
            ..to_peer
        },
        Embedded {
            protocol: 50,
            ..to_peer
        },
    ] {
        assert_eq!(arrives(&fake, about, 0), PASSED);
    }
    fake.config.tunnel_port = Port::new(0);
    assert_eq!(arrives(&fake, to_peer, 0), PASSED, "no tunnel");
}

/// The stack processes a packet in a frame to a group, and does not check the version in an error.
#[test]
fn an_error_does_not_come_in_by_a_frame_to_a_group_or_in_disguise() {
    let fake = node();
    let about = |version: u8, entry, receiver: &str| {
        let (source, embedded) = match entry {
            Entry::Pod => (POD, udp((receiver, 40_000), (OUTSIDE, 53))),
            _ => (OUTSIDE, udp((receiver, 40_000), (PEER, TUNNEL))),
        };
        let mut frame = frame_of((source, receiver), embedded, 0);
        frame[14 + 20 + 8] = version << 4 | 5;
        let mut ctx = PacketContext::new(parse(&frame[..], ether_type::IPV4, 14).expect("an ICMP error"));
        ctx.interface = INTERFACE;
        ctx.is_for_group = 1;
        decide::entering(&fake, &mut ctx, &frame[..], entry)
    };
    for version in [4, 5] {
        assert_eq!(about(version, Entry::Pod, NEIGHBOUR), FORGED);
        assert_eq!(
            about(version, Entry::Uplink, NODE),
            Decision::Drop(Reason::TunnelSource)
        );
    }
}
