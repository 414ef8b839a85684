//! Tests of `parse`.

use super::*;
use proptest::prelude::*;

fn v4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 14];
    packet.extend([0x45, 0, 0, 0, 0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 96, 0, 1]);
    packet.extend(payload);
    packet
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 14];
    packet.extend([0x60, 0, 0, 0, 0, 0, next, 64]);
    packet.extend([0xfd; 16]);
    packet.extend([0xfe; 16]);
    packet.extend(payload);
    packet
}

#[test]
fn udp_over_ipv4() {
    let headers = parse(
        &v4(17, 0, &[0x30, 0x39, 0, 53, 0, 8, 0, 0])[..],
        ether_type::IPV4,
        14,
    )
    .unwrap();
    assert_eq!((headers.sport.number(), headers.dport.number()), (12345, 53));
    assert_eq!((headers.l3, headers.l4, headers.is_fragment), (14, 34, false));
}

#[test]
fn a_later_fragment_has_no_ports() {
    let headers = parse(&v4(17, 0x2001, &[1; 8])[..], ether_type::IPV4, 14).unwrap();
    assert_eq!(
        (headers.l4, headers.is_fragment, headers.sport),
        (0, true, Port::default())
    );
    let first = parse(
        &v4(17, 0x2000, &[0, 1, 0, 2, 0, 8, 0, 0])[..],
        ether_type::IPV4,
        14,
    )
    .unwrap();
    assert_eq!((first.is_fragment, first.dport.number()), (true, 2));
}

#[test]
fn extension_headers_are_walked_to_a_limit() {
    let mut payload = vec![60, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    payload.extend([6, 0, 0, 0, 0, 0, 0, 0]);
    payload.extend([0, 80, 0, 81, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0]);
    let headers = parse(&v6(0, &payload)[..], ether_type::IPV6, 14).unwrap();
    assert_eq!(
        (headers.l4, headers.sport.number(), headers.is_opening()),
        (78, 80, true)
    );

    let endless = [60_u8, 0, 0, 0, 0, 0, 0, 0].repeat(20);
    assert_eq!(
        parse(&v6(60, &endless)[..], ether_type::IPV6, 14),
        Err(Reason::NotBalanced)
    );
}

#[test]
fn short_headers_are_malformed() {
    let whole = v4(6, 0, &[0; 20]);
    for len in 14..whole.len() - 4 {
        assert_eq!(
            parse(&whole[..len], ether_type::IPV4, 14),
            Err(Reason::Malformed),
            "{len}"
        );
    }
    assert_eq!(
        parse(&v4(47, 0, &[])[..], ether_type::IPV4, 14),
        Err(Reason::NotBalanced)
    );
    assert_eq!(parse(&v4(6, 0, &[])[..], 0x0806, 14), Err(Reason::NotBalanced));
}

#[test]
fn errors_and_senders_that_are_no_single_host_get_no_error() {
    let of = |protocol, kind, source: [u8; 4]| {
        let mut packet = v4(protocol, 0, &[kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        packet[26..30].copy_from_slice(&source);
        parse(&packet[..], ether_type::IPV4, 14).unwrap().may_be_refused()
    };
    let host = [10, 0, 0, 1];
    assert!(of(protocol::UDP, 3, host) && of(protocol::TCP, 3, host) && of(protocol::ICMP, 8, host));
    for kind in [3, 4, 5, 11, 12] {
        assert!(!of(protocol::ICMP, kind, host), "{kind}");
    }
    assert!(!of(protocol::UDP, 0, [224, 0, 0, 1]) && !of(protocol::TCP, 0, [0; 4]));
}

#[test]
fn six_extension_headers_are_walked_and_a_seventh_is_not() {
    for (count, expected) in [(5, true), (6, true), (7, false), (8, false)] {
        let mut payload = [60_u8, 0, 0, 0, 0, 0, 0, 0].repeat(count);
        payload[(count - 1) * 8] = protocol::UDP;
        payload.extend([0, 80, 0, 81, 0, 8, 0, 0]);
        let is_parsed = parse(&v6(60, &payload)[..], ether_type::IPV6, 14).is_ok();
        assert_eq!(is_parsed, expected, "{count}");
    }
}

#[test]
fn an_ipv6_packet_of_a_mapped_address_is_malformed() {
    let whole = v6(17, &[0, 80, 0, 81, 0, 8, 0, 0]);
    for at in [22, 38] {
        let mut packet = whole.clone();
        packet[at..at + 16].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 1]);
        assert_eq!(
            parse(&packet[..], ether_type::IPV6, 14),
            Err(Reason::MappedAddress)
        );
    }
}

proptest! {
    #[test]
    fn any_frame_is_decided_without_harm(
        mut bytes in prop::collection::vec(any::<u8>(), 60..120),
        to_service: bool,
        v6: bool,
        protocol in prop::sample::select(vec![1_u8, 6, 17, 58, 132]),
    ) {
        bytes[12..15].copy_from_slice(if v6 { &[0x86, 0xdd, 0x60] } else { &[8, 0, 0x45] });
        bytes[if v6 { 20 } else { 23 }] = protocol;
        if to_service && v6 {
            bytes[38..54].copy_from_slice(&[0xfd, 0, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            bytes[56..58].copy_from_slice(&[0, 80]);
        } else if to_service {
            bytes[30..34].copy_from_slice(&[10, 96, 0, 1]);
            bytes[36..38].copy_from_slice(&[0, 80]);
        }
        crate::decide::testing::check_frame(&bytes);
    }

    #[test]
    fn any_bytes_are_parsed_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool) {
        let ether_type = if v6 { ether_type::IPV6 } else { ether_type::IPV4 };
        if let Ok(headers) = parse(&bytes[..], ether_type, 14) {
            prop_assert!(headers.l4 == 0 || (headers.l4 as usize) < bytes.len());
            prop_assert!(headers.is_balanced() || headers.l4 == 0 || headers.detail == bytes[headers.l4 as usize]);
        }
    }
}
