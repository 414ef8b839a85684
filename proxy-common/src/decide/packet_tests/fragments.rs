//! Later fragments, and the places that a source has for its datagrams.

use std::collections::HashSet;

use super::*;
use crate::maps::FragmentKey;
use crate::packet::{ether_type, parse};

const POD6: &str = "fd00:244:1::10";
/// Another pod of the same node.
const POD_B: &str = "10.244.1.11";
const POD6_B: &str = "fd00:244:1::11";
const VIP_B: &str = "10.96.0.2";
const VIP6: &str = "fd00:96::10";

/// The first fragment of a datagram with this identification, in host order.
fn first_fragment(id: u32, whole: Headers) -> Headers {
    let fragment_id = if whole.src.is_v4() {
        u32::from((id as u16).to_be())
    } else {
        id.to_be()
    };
    Headers {
        is_fragment: true,
        fragment_id,
        ..whole
    }
}

/// A node with services of each family.
fn serving() -> Fake {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 53)]);
    fake.service(VIP, 53, protocol::TCP, &[("10.244.2.2", 53)]);
    fake.service(VIP_B, 53, protocol::UDP, &[("10.244.2.3", 53)]);
    fake.service(VIP6, 53, protocol::UDP, &[("fd00:244:2::2", 53)]);
    fake
}

/// How many datagrams of a source are known.
fn places_of(fake: &Fake, source: &str) -> usize {
    let fragments = fake.fragments.borrow();
    fragments.keys().filter(|key| key.source == ip(source)).count()
}

#[test]
fn a_source_with_many_datagrams_keeps_to_its_places() {
    let fake = serving();
    let other = first_fragment(7, packet(protocol::UDP, (POD_B, 40_000), (VIP, 53)));
    let (flow, _) = translated(entering(&fake, &other, Entry::Pod));
    for id in 0..10_000 {
        let first = first_fragment(id, packet(protocol::UDP, (POD, 40_000), (VIP, 53)));
        let _ = translated(entering(&fake, &first, Entry::Pod));
    }
    assert_eq!(places_of(&fake, POD), FragmentKey::PLACES as usize);
    assert_eq!(fake.fragments.borrow().len(), FragmentKey::PLACES as usize + 1);
    let (same, reason) = translated(entering(&fake, &later_fragment(other), Entry::Pod));
    assert_eq!(
        (same.dst, same.sport, reason),
        (flow.dst, flow.sport, Reason::Established)
    );
}

#[test]
fn sequential_identifications_fall_to_different_places() {
    for (client, service) in [(POD, VIP), (POD6, VIP6)] {
        // The 16 bits of IPv4 wrap around within the second run, and the bits carry within the third.
        for start in [0, 0xffe0, 0xf0] {
            let fake = serving();
            let firsts: Vec<_> = (start..start + FragmentKey::PLACES)
                .map(|id| first_fragment(id, packet(protocol::UDP, (client, 40_000), (service, 53))))
                .collect();
            for first in &firsts {
                let _ = translated(entering(&fake, first, Entry::Pod));
            }
            let places: HashSet<_> = fake.fragments.borrow().keys().map(|key| key.place).collect();
            assert_eq!(
                places.len(),
                FragmentKey::PLACES as usize,
                "{client} from {start:#x}"
            );
            for first in firsts {
                let (_, reason) = translated(entering(&fake, &later_fragment(first), Entry::Pod));
                assert_eq!(reason, Reason::Established);
            }
        }
    }
}

/// Both datagrams map to one place, and differ in the field that the row names.
#[test]
fn a_datagram_is_not_taken_for_another_one_in_its_place() {
    let udp = |from, to| packet(protocol::UDP, from, to);
    let tcp = |from, to| with_flags(packet(protocol::TCP, from, to), TCP_SYN);
    let (a, b) = (40_000, 40_001);
    for (what, first, other) in [
        (
            "source",
            first_fragment(7, udp((POD6, a), (VIP6, 53))),
            first_fragment(7, udp((POD6_B, b), (VIP6, 53))),
        ),
        (
            "destination",
            first_fragment(7, udp((POD, a), (VIP, 53))),
            first_fragment(7, udp((POD, b), (VIP_B, 53))),
        ),
        (
            "identification",
            first_fragment(7, udp((POD, a), (VIP, 53))),
            first_fragment(7 + FragmentKey::PLACES, udp((POD, b), (VIP, 53))),
        ),
        (
            "identification of IPv6",
            first_fragment(7, udp((POD6, a), (VIP6, 53))),
            first_fragment(7 + (1 << 31), udp((POD6, b), (VIP6, 53))),
        ),
        (
            "protocol",
            first_fragment(7, udp((POD, a), (VIP, 53))),
            first_fragment(7, tcp((POD, b), (VIP, 53))),
        ),
    ] {
        let fake = serving();
        let unseen = Decision::Drop(Reason::FragmentBeforeFirst);
        let enter = |headers: &Headers| entering(&fake, headers, Entry::Pod);
        let _ = translated(enter(&first));
        assert_eq!(
            enter(&later_fragment(other)).0,
            unseen,
            "{what}: not the first one's"
        );
        let (flow, _) = translated(enter(&other));
        assert_eq!(fake.fragments.borrow().len(), 1, "{what}: one place");
        assert_eq!(enter(&later_fragment(first)).0, unseen, "{what}: overwritten");
        let (same, _) = translated(enter(&later_fragment(other)));
        assert_eq!((same.dst, same.sport), (flow.dst, flow.sport), "{what}");
    }
}

#[test]
fn hosts_of_one_ipv6_network_share_their_places_and_own_pods_do_not() {
    for (are_own, expected) in [(false, 1), (true, 2)] {
        let mut fake = serving();
        for (pod, id) in [(POD6, 7), (POD6_B, 7 + FragmentKey::PLACES)] {
            if are_own {
                fake.own_pods.insert(ip(pod), Pod::default());
            }
            let first = first_fragment(id, packet(protocol::UDP, (pod, 40_000), (VIP6, 53)));
            let _ = translated(entering(&fake, &first, Entry::Pod));
        }
        assert_eq!(fake.fragments.borrow().len(), expected, "own pods: {are_own}");
    }
}

/// A pod's datagram to a service with an endpoint outside is translated where it enters and masqueraded where
/// it leaves. Its source and identification are the same at both.
#[test]
fn fragments_follow_their_first_one_through_both_translations() {
    let mut fake = masquerading();
    fake.service(VIP, 53, protocol::UDP, &[(OUTSIDE, 53)]);
    let first = first_fragment(7, packet(protocol::UDP, (POD, 40_000), (VIP, 53)));
    let (to_backend, _) = translated(entering(&fake, &first, Entry::Pod));
    let between = Headers {
        dst: to_backend.dst,
        dport: to_backend.dport,
        ..first
    };
    let (out, _) = translated(leaving_node(&fake, &between));
    assert_eq!(places_of(&fake, POD), 2);
    let (same, _) = translated(entering(&fake, &later_fragment(first), Entry::Pod));
    assert_eq!(same.dst, ip(OUTSIDE));
    let (same, _) = translated(leaving_node(&fake, &later_fragment(between)));
    assert_eq!((same.src, same.sport), (out.src, out.sport));
    // The same holds for the reply.
    let reply = first_fragment(9, reply_of(&out, protocol::UDP));
    let (back, _) = translated(entering(&fake, &reply, Entry::Uplink));
    let between = Headers {
        src: back.src,
        dst: back.dst,
        sport: back.sport,
        dport: back.dport,
        ..reply
    };
    assert_reply(leaving(&fake, &between), &first, Deliver::Stack);
    let (same, _) = translated(entering(&fake, &later_fragment(reply), Entry::Uplink));
    assert_eq!((same.dst, same.dport), (back.dst, back.dport));
    assert_reply(leaving(&fake, &later_fragment(between)), &first, Deliver::Stack);
}

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
    // The same holds for replies.
    let first = Headers {
        is_fragment: true,
        fragment_id: 5,
        ..reply_of(&flow, protocol::UDP)
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

/// The next header of an IPv6 fragment is the header that follows the fragment header. It need not be the
/// transport header: here it is a destination options header.
#[test]
fn ipv6_fragments_follow_a_first_one_with_destination_options() {
    const DESTINATION_OPTIONS: u8 = 60;
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
