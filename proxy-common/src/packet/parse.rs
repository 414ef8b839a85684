//! The parser: Ethernet payload to [`Headers`].
//!
//! The rules for unusual packets:
//!
//! - A header that ends early or contradicts itself: [`Reason::Malformed`]. The packet is left to the kernel,
//!   which drops it.
//! - An IPv6 packet from or to an IPv4-mapped address: [`Reason::MappedAddress`]. The packet is dropped,
//!   since no link may carry it (draft-itojun-v6ops-v4mapped-harmful), and its address would be taken for
//!   IPv4.
//! - A protocol without ports, or more than [`MAX_EXTENSIONS`] IPv6 extension headers:
//!   [`Reason::NotBalanced`].
//! - A fragment has the addresses, and the ports if it is the first.
//! - An ICMP echo has an identifier in place of the port of the side that sends the requests.

use super::{IcmpHead, Ipv4Header, Ipv6Extension, Ipv6Header, Packet, Ports, TcpHead, ether_type};
use crate::maps::Reason;
use crate::{Ip, Port, protocol};

/// The most IPv6 extension headers that the parser reads.
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
/// The reply to an INIT (RFC 9260 §3.3.3).
pub const SCTP_INIT_ACK: u8 = 2;
/// The server accepts the cookie that the client has returned.
pub const SCTP_COOKIE_ACK: u8 = 11;
/// The association ends at once (RFC 9260 §3.3.7).
pub const SCTP_ABORT: u8 = 6;
/// The last chunk of an association (RFC 9260 §3.3.13).
pub const SCTP_SHUTDOWN_COMPLETE: u8 = 14;
/// The value if the packet ends before the first chunk's type. No chunk type with a meaning here has this
/// number.
const SCTP_NONE: u8 = 0xff;

/// Offset of the identifier in an ICMP echo (RFC 792; RFC 4443 §4).
pub const ECHO_ID: u32 = 4;

/// The header fields that a decision needs.
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
    /// Whether the ports are known: read from the packet, or stored from the first fragment.
    pub has_ports: bool,
    /// Identification of the datagram, as it stands in the header (RFC 791 §3.1; RFC 8200 §4.5). Only
    /// fragments have it.
    pub fragment_id: u32,
    /// TCP: sequence number, in host order.
    pub sequence: u32,
    /// TCP: acknowledgement number, in host order.
    pub acknowledgement: u32,
    /// TCP: bytes of data, by the length in the IP header. It is wrong for packets of more than 64 KiB (BIG
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

    /// Whether this packet is the other side's reply to an opening packet: a SYN,ACK, or an INIT ACK.
    #[inline(always)]
    pub const fn is_opening_reply(&self) -> bool {
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

    /// Whether this is an ICMP echo reply of either family.
    #[inline(always)]
    pub const fn is_echo_reply(&self) -> bool {
        self.l4 != 0
            && ((self.protocol == protocol::ICMP && self.detail == 0 && self.src.is_v4())
                || (self.protocol == protocol::ICMPV6 && self.detail == 129 && !self.src.is_v4()))
    }

    /// Whether the packet can be assigned to a flow: by ports, or by the identifier of an echo.
    #[inline(always)]
    pub const fn has_flow(&self) -> bool {
        self.has_ports || self.is_echo_request() || self.is_echo_reply()
    }

    /// Whether this is a later fragment of a protocol with ports, whose ports are not known. Behind an IPv6
    /// fragment header the next extension header may take the place of the protocol.
    #[inline(always)]
    pub const fn is_lost_fragment(&self) -> bool {
        self.is_fragment
            && !self.has_ports
            && (self.is_balanced() || (self.l4 == 0 && !self.src.is_v4() && is_extension(self.protocol)))
    }

    /// Whether there are too many extension headers for the parser, or they end too early.
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

    /// Whether this is an ICMP error, which carries the beginning of the packet that it is about (RFC 792;
    /// RFC 4443 §3).
    #[inline(always)]
    pub const fn is_icmp_error(&self) -> bool {
        (self.protocol == protocol::ICMP && self.src.is_v4() && matches!(self.detail, 3 | 11 | 12))
            || (self.protocol == protocol::ICMPV6 && !self.src.is_v4() && matches!(self.detail, 1..=4))
    }

    /// Whether the sender may get an error for a refused packet. It gets none if the source is not a single
    /// host, or if the packet is an ICMP error (RFC 1122 §3.2.2; RFC 4443 §2.4).
    #[inline(always)]
    pub const fn may_be_refused(&self) -> bool {
        let is_error = match self.protocol {
            protocol::ICMP => matches!(self.detail, 3..=5 | 11 | 12),
            protocol::ICMPV6 => self.detail < 128,
            _ => false,
        };
        self.src.is_one_host() && !is_error
    }

    /// Whether services may use the protocol: TCP, UDP or SCTP.
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

/// As [`parse`], but into memory of the caller, since a kernel program's stack is too small. After an error
/// only the addresses and the protocol count. If the addresses are unspecified, neither was read.
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

/// Stops at a packet before its addresses are read. It clears the addresses, so that those of an earlier
/// packet are not taken for this one's.
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

/// Whether this is the number of an extension header that the parser reads.
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

/// Stores the identifier of an ICMP echo as the port of the side that sends the requests. Returns false if
/// the packet is no echo, and `None` if it ends too early.
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
mod tests;
