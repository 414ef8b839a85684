//! The parser: Ethernet payload to [`Headers`].
//!
//! Stated rules for what is odd: a header that ends early or contradicts itself is [`Reason::Malformed`] and left to
//! the kernel, which drops it. An IPv6 packet from or to an IPv4-mapped address, which no wire may carry
//! (draft-itojun-v6ops-v4mapped-harmful), is [`Reason::MappedAddress`] and dropped: it would be taken for an IPv4 packet's here. A protocol without ports is [`Reason::NotBalanced`]; IPv6 extension headers are walked
//! up to [`MAX_EXTENSIONS`], beyond that the packet is [`Reason::NotBalanced`]. A fragment carries the addresses, and
//! the ports if it is the first. An ICMP echo has an identifier in place of ports, the asking side's.

use super::{IcmpHead, Ipv4Header, Ipv6Extension, Ipv6Header, Packet, Ports, TcpHead, ether_type};
use crate::maps::Reason;
use crate::{Ip, Port, protocol};

/// How many IPv6 extension headers are walked.
pub const MAX_EXTENSIONS: u32 = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// TCP: no more bytes from the sender.
pub const TCP_FIN: u8 = 0x01;
/// TCP: a connection begins.
pub const TCP_SYN: u8 = 0x02;
/// TCP: the connection is over.
pub const TCP_RST: u8 = 0x04;
/// Size of the IPv6 header, in bytes.
const IPV6_HEADER: u32 = 40;
/// TCP: the acknowledgement number counts.
pub const TCP_ACK: u8 = 0x10;

/// Offset of the first chunk's type in an SCTP packet (RFC 9260 §3).
const SCTP_FIRST_CHUNK: u32 = 12;
/// Begins an association (RFC 9260 §3.3.2).
pub const SCTP_INIT: u8 = 1;
/// The reply to it (RFC 9260 §3.3.3).
pub const SCTP_INIT_ACK: u8 = 2;
/// SCTP: the cookie that the client has returned is right.
pub const SCTP_COOKIE_ACK: u8 = 11;
/// The association is over at once (RFC 9260 §3.3.7).
pub const SCTP_ABORT: u8 = 6;
/// The last chunk of an association (RFC 9260 §3.3.13).
pub const SCTP_SHUTDOWN_COMPLETE: u8 = 14;
/// No chunk's type that means anything here: the packet ends before it.
const SCTP_NONE: u8 = 0xff;

/// Offset of the identifier in an ICMP echo (RFC 792; RFC 4443 §4).
pub const ECHO_ID: u32 = 4;

/// What a decision needs to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Source address.
    pub src: Ip,
    /// Destination address.
    pub dst: Ip,
    /// Source port, or the identifier of an ICMP echo request; 0 for other ICMP and later fragments.
    pub sport: Port,
    /// Destination port, or the identifier of an ICMP echo reply; 0 for other ICMP and later fragments.
    pub dport: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags, the type of SCTP's first chunk, or the ICMP type.
    pub detail: u8,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Whether the packet is a fragment, the first one included.
    pub is_fragment: bool,
    /// Whether the ports are known: read from the packet, or remembered of the first fragment.
    pub has_ports: bool,
    /// Identification of the datagram, as it stands in the header (RFC 791 §3.1; RFC 8200 §4.5); only of
    /// fragments.
    pub fragment_id: u32,
    /// TCP: sequence number, in host order.
    pub sequence: u32,
    /// TCP: acknowledgement number, in host order.
    pub acknowledgement: u32,
    /// TCP: bytes of data, by the length in the IP header. Not known of packets of more than 64 KiB (BIG
    /// TCP).
    pub payload: u32,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the transport header; 0 if the packet has none (a later fragment).
    pub l4: u32,
}

impl Headers {
    /// The headers of no packet.
    pub const EMPTY: Self = Self {
        src: Ip::UNSPECIFIED,
        dst: Ip::UNSPECIFIED,
        sport: Port::new(0),
        dport: Port::new(0),
        protocol: 0,
        detail: 0,
        ttl: 0,
        is_fragment: false,
        has_ports: false,
        fragment_id: 0,
        sequence: 0,
        acknowledgement: 0,
        payload: 0,
        l3: 0,
        l4: 0,
    };

    /// Whether this packet begins a connection: a TCP SYN, or an SCTP INIT.
    #[inline(always)]
    pub const fn is_opening(&self) -> bool {
        (self.protocol == protocol::TCP && self.detail & (TCP_SYN | TCP_ACK) == TCP_SYN)
            || (self.protocol == protocol::SCTP && self.detail == SCTP_INIT)
    }

    /// Whether this packet is the other side's answer to such a one.
    #[inline(always)]
    pub const fn is_opening_answer(&self) -> bool {
        const BOTH: u8 = TCP_SYN | TCP_ACK;
        (self.protocol == protocol::TCP && self.detail & BOTH == BOTH)
            || (self.protocol == protocol::SCTP && self.detail == SCTP_INIT_ACK)
    }

    /// Whether the protocol has connections.
    #[inline(always)]
    pub const fn has_connections(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::SCTP)
    }

    /// Whether this is a TCP segment with one of these flags.
    #[inline(always)]
    pub const fn has_tcp_flag(&self, flags: u8) -> bool {
        self.protocol == protocol::TCP && self.detail & flags != 0
    }

    /// Whether this is an ICMP echo request of either family.
    #[inline(always)]
    pub const fn is_echo_request(&self) -> bool {
        (self.protocol == protocol::ICMP && self.detail == 8 && self.src.is_v4())
            || (self.protocol == protocol::ICMPV6 && self.detail == 128 && !self.src.is_v4())
    }

    /// Whether this is the reply to such a one.
    #[inline(always)]
    pub const fn is_echo_reply(&self) -> bool {
        self.l4 != 0
            && ((self.protocol == protocol::ICMP && self.detail == 0 && self.src.is_v4())
                || (self.protocol == protocol::ICMPV6 && self.detail == 129 && !self.src.is_v4()))
    }

    /// Whether the packet can be told from those of other conversations: by ports, or by the identifier of an echo.
    #[inline(always)]
    pub const fn has_flow(&self) -> bool {
        self.has_ports || self.is_echo_request() || self.is_echo_reply()
    }

    /// Whether this is a later fragment of something with ports, which are not known. Behind an IPv6 fragment header the next
    /// extension header may stand in place of the protocol.
    #[inline(always)]
    pub const fn is_lost_fragment(&self) -> bool {
        self.is_fragment
            && !self.has_ports
            && (self.is_balanced() || (self.l4 == 0 && !self.src.is_v4() && is_extension(self.protocol)))
    }

    /// Whether the extension headers are too many to be walked, or end too early.
    #[inline(always)]
    pub const fn is_unwalked(&self, reason: Reason) -> bool {
        !self.src.is_v4() && (is_extension(self.protocol) || matches!(reason, Reason::Malformed))
    }

    /// Whether this is ICMP, of either family.
    #[inline(always)]
    pub const fn is_icmp(&self) -> bool {
        matches!(self.protocol, protocol::ICMP | protocol::ICMPV6)
    }

    /// The identifier of an ICMP echo.
    #[inline(always)]
    pub const fn echo_id(&self) -> Port {
        Port::from_raw(self.sport.raw() | self.dport.raw())
    }

    /// Whether this is an ICMP error, which carries the beginning of the packet that it is about (RFC 792; RFC 4443 §3).
    #[inline(always)]
    pub const fn is_icmp_error(&self) -> bool {
        (self.protocol == protocol::ICMP && self.src.is_v4() && matches!(self.detail, 3 | 11 | 12))
            || (self.protocol == protocol::ICMPV6 && !self.src.is_v4() && matches!(self.detail, 1..=4))
    }

    /// Whether the sender may be told that its packet was refused: not who is no single host, and not about an ICMP error
    /// (RFC 1122 §3.2.2; RFC 4443 §2.4).
    #[inline(always)]
    pub const fn may_be_refused(&self) -> bool {
        let is_error = match self.protocol {
            protocol::ICMP => matches!(self.detail, 3..=5 | 11 | 12),
            protocol::ICMPV6 => self.detail < 128,
            _ => false,
        };
        self.src.is_one_host() && !is_error
    }

    /// Whether the protocol has ports that services are balanced by.
    #[inline(always)]
    pub const fn is_balanced(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP | protocol::SCTP)
    }
}

/// Parses the packet whose network header starts at `l3`.
#[inline(always)]
pub fn parse<P: Packet + ?Sized>(packet: &P, ether_type: u16, l3: u32) -> Result<Headers, Reason> {
    let mut headers = Headers::EMPTY;
    parse_into(packet, ether_type, l3, &mut headers).map(|()| headers)
}

/// As [`parse`], to where the headers are kept: on a kernel program's stack there is no room for them. After an error they
/// mean nothing.
#[inline(always)]
pub fn parse_into<P: Packet + ?Sized>(
    packet: &P,
    ether_type: u16,
    l3: u32,
    headers: &mut Headers,
) -> Result<(), Reason> {
    match ether_type {
        ether_type::IPV4 => parse_v4(packet, l3, headers),
        ether_type::IPV6 => parse_v6(packet, l3, headers),
        _ => unread(headers, Reason::NotBalanced),
    }
}

/// Gives up on a packet before its addresses are read. No address of an earlier packet may be taken for one
/// of this.
#[inline(always)]
const fn unread(headers: &mut Headers, reason: Reason) -> Result<(), Reason> {
    headers.src = Ip::UNSPECIFIED;
    headers.dst = Ip::UNSPECIFIED;
    Err(reason)
}

#[inline(always)]
fn parse_v4<P: Packet + ?Sized>(packet: &P, l3: u32, headers: &mut Headers) -> Result<(), Reason> {
    let Some(ip) = packet.load::<Ipv4Header>(l3) else {
        return unread(headers, Reason::Malformed);
    };
    let header_len = u32::from(ip.version_ihl & 0xf) * 4;
    if ip.version_ihl >> 4 != 4 || header_len < 20 {
        return unread(headers, Reason::Malformed);
    }
    let fragment = u16::from_be(ip.fragment);
    let later = fragment & 0x1fff != 0;
    *headers = Headers {
        src: Ip::from_v4_word(ip.src),
        dst: Ip::from_v4_word(ip.dst),
        protocol: ip.protocol,
        ttl: ip.ttl,
        is_fragment: later || fragment & 0x2000 != 0,
        fragment_id: u32::from(ip.id),
        payload: u32::from(u16::from_be(ip.total_len)),
        l3,
        l4: if later { 0 } else { l3 + header_len },
        ..Headers::EMPTY
    };
    parse_transport(packet, headers)
}

#[inline(always)]
fn parse_v6<P: Packet + ?Sized>(packet: &P, l3: u32, headers: &mut Headers) -> Result<(), Reason> {
    let Some(ip) = packet.load::<Ipv6Header>(l3) else {
        return unread(headers, Reason::Malformed);
    };
    if u32::from_be(ip.version_class_label) >> 28 != 6 {
        return unread(headers, Reason::Malformed);
    }
    *headers = Headers {
        src: Ip::from_v6_words(ip.src),
        dst: Ip::from_v6_words(ip.dst),
        protocol: ip.next_header,
        ttl: ip.hop_limit,
        payload: u32::from(u16::from_be(ip.payload_len)) + IPV6_HEADER,
        l3,
        l4: l3 + IPV6_HEADER,
        ..Headers::EMPTY
    };
    if headers.src.is_v4() || headers.dst.is_v4() {
        return Err(Reason::MappedAddress);
    }
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(headers.protocol) {
            break;
        }
        let extension: Ipv6Extension = packet.load(headers.l4).ok_or(Reason::Malformed)?;
        headers.l4 += match headers.protocol {
            FRAGMENT => 8,
            AUTHENTICATION => u32::from(extension.len) * 4 + 8,
            _ => u32::from(extension.len) * 8 + 8,
        };
        if headers.protocol == FRAGMENT {
            headers.is_fragment = true;
            headers.fragment_id = packet.load(headers.l4 - 4).ok_or(Reason::Malformed)?;
            if u16::from_be(extension.fragment) & 0xfff8 != 0 {
                headers.protocol = extension.next_header;
                headers.l4 = 0;
                return Ok(());
            }
        }
        headers.protocol = extension.next_header;
    }
    parse_transport(packet, headers)
}

/// Whether this is the number of an extension header that is walked.
#[inline(always)]
pub const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT
    )
}

#[inline(always)]
fn parse_transport<P: Packet + ?Sized>(packet: &P, headers: &mut Headers) -> Result<(), Reason> {
    if headers.l4 == 0 {
        return Ok(());
    }
    match headers.protocol {
        protocol::TCP => {
            let tcp: TcpHead = packet.load(headers.l4).ok_or(Reason::Malformed)?;
            set_ports(headers, tcp.ports);
            headers.detail = tcp.flags;
            headers.sequence = u32::from_be(tcp.sequence);
            headers.acknowledgement = u32::from_be(tcp.acknowledgement);
            let all_headers = headers.l4 - headers.l3 + u32::from(tcp.offset >> 4) * 4;
            headers.payload = headers.payload.wrapping_sub(all_headers);
            Ok(())
        }
        protocol::UDP | protocol::SCTP => {
            let ports: Ports = packet.load(headers.l4).ok_or(Reason::Malformed)?;
            set_ports(headers, ports);
            if headers.protocol == protocol::SCTP {
                headers.detail = packet.load(headers.l4 + SCTP_FIRST_CHUNK).unwrap_or(SCTP_NONE);
            }
            Ok(())
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let icmp: IcmpHead = packet.load(headers.l4).ok_or(Reason::Malformed)?;
            headers.detail = icmp.kind;
            read_echo(packet, headers).ok_or(Reason::Malformed)?;
            Ok(())
        }
        _ => Err(Reason::NotBalanced),
    }
}

#[inline(always)]
const fn set_ports(headers: &mut Headers, ports: Ports) {
    headers.sport = Port::from_raw(ports.sport);
    headers.dport = Port::from_raw(ports.dport);
    headers.has_ports = true;
}

/// Takes the identifier of an ICMP echo for the port of whoever asks: false if this is none, `None` if it ends too early.
#[inline(always)]
pub(super) fn read_echo<P: Packet + ?Sized>(packet: &P, headers: &mut Headers) -> Option<bool> {
    let (is_request, is_reply) = (headers.is_echo_request(), headers.is_echo_reply());
    if !is_request && !is_reply {
        return Some(false);
    }
    let id = Port::from_raw(packet.load(headers.l4 + ECHO_ID)?);
    if is_request {
        headers.sport = id;
        headers.dport = Port::default();
    } else {
        headers.sport = Port::default();
        headers.dport = id;
    }
    Some(true)
}

#[cfg(test)]
mod tests {
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
    fn errors_and_whoever_is_no_single_host_are_not_told() {
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
}
