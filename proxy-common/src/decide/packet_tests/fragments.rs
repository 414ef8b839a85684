//! Later fragments.

use super::*;
use crate::packet::{ether_type, parse};

#[test]
fn fragments_follow_the_first_one() {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 53)]);
    let first = Headers {
        is_fragment: true,
        fragment_id: 77,
        ..packet(protocol::UDP, (POD, 40_000), (VIP, 53))
    };
    let later = Headers {
        l4: 0,
        has_ports: false,
        sport: Port::new(0),
        dport: Port::new(0),
        ..first
    };
    assert_eq!(
        entering(&fake, &later, Entry::Pod).0,
        Decision::Drop(Reason::FragmentBeforeFirst)
    );
    let (flow, _) = translated(entering(&fake, &first, Entry::Pod));
    let (same, reason) = translated(entering(&fake, &later, Entry::Pod));
    assert_eq!(
        (same.dst, same.sport, reason),
        (flow.dst, flow.sport, Reason::Established)
    );
    let other = Headers {
        fragment_id: 78,
        ..later
    };
    assert_eq!(
        entering(&fake, &other, Entry::Pod).0,
        Decision::Drop(Reason::FragmentBeforeFirst)
    );
    // Answers alike.
    let first = Headers {
        is_fragment: true,
        fragment_id: 5,
        ..answer(&flow, protocol::UDP)
    };
    let later = Headers {
        l4: 0,
        has_ports: false,
        sport: Port::new(0),
        dport: Port::new(0),
        ..first
    };
    assert_eq!(leaving(&fake, &later).0, Decision::Pass(Reason::NotOurs));
    let _ = translated(leaving(&fake, &first));
    assert_eq!(translated(leaving(&fake, &later)).0.src, ip(VIP));
}

/// The next header of an IPv6 fragment is what stands behind the fragment header, which need not be the transport's: here
/// options for the destination.
#[test]
fn ipv6_fragments_follow_a_first_one_with_destination_options() {
    const DESTINATION_OPTIONS: u8 = 60;
    const POD6: &str = "fd00:244:1::10";
    const VIP6: &str = "fd00:96::10";
    let mut fake = Fake::node();
    fake.service(VIP6, 53, protocol::UDP, &[("fd00:244:2::2", 53)]);
    let datagram = |is_first: bool, id: u32| {
        let request = packet(protocol::UDP, (POD6, 40_000), (VIP6, 53));
        let mut bytes = vec![0x60, 0, 0, 0, 0, 24, 44, 64];
        bytes.extend(request.src.octets());
        bytes.extend(request.dst.octets());
        let offset: u16 = if is_first { 1 } else { 16 };
        bytes.extend([DESTINATION_OPTIONS, 0]);
        bytes.extend(offset.to_be_bytes());
        bytes.extend(id.to_be_bytes());
        if is_first {
            bytes.extend([protocol::UDP, 0, 1, 4, 0, 0, 0, 0]);
            bytes.extend([0x9c, 0x40, 0, 53, 0, 16, 1, 1]);
        } else {
            bytes.extend([b'q'; 16]);
        }
        parse(&bytes[..], ether_type::IPV6, 0).expect("headers")
    };
    let (first, later) = (datagram(true, 7), datagram(false, 7));
    assert_eq!(
        (first.protocol, first.fragment_id),
        (protocol::UDP, later.fragment_id)
    );
    assert_eq!(later.protocol, DESTINATION_OPTIONS);
    assert_eq!(
        entering(&fake, &later, Entry::Pod).0,
        Decision::Drop(Reason::FragmentBeforeFirst)
    );
    let (flow, _) = translated(entering(&fake, &first, Entry::Pod));
    let (same, reason) = translated(entering(&fake, &later, Entry::Pod));
    assert_eq!(
        (same.dst, same.sport, reason),
        (flow.dst, flow.sport, Reason::Established)
    );
    assert_eq!(
        entering(&fake, &datagram(false, 8), Entry::Pod).0,
        Decision::Drop(Reason::FragmentBeforeFirst)
    );
}
