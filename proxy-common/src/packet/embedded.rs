//! The packet that an ICMP error carries.

use super::parse::{FRAGMENT, read_echo};
use super::{Headers, IcmpHead, Ipv4Header, Ipv6Extension, Ipv6Header, Packet, Ports};
use crate::{Ip, Port};

/// Bytes between the start of an ICMP error and the packet in it.
const ICMP_HEADER: u32 = 8;

/// Parses the packet that an ICMP error with these headers carries. It needs at least the first eight bytes
/// behind the IP header, which include the ports. It returns `None` for a later fragment, which has no ports.
/// It also returns `None` behind extension headers, which it does not read: such an error belongs to no flow.
#[inline(always)]
pub fn parse_embedded<P: Packet + ?Sized>(packet: &P, headers: &Headers) -> Option<Headers> {
    let mut embedded = Headers::EMPTY;
    parse_embedded_into(packet, headers, &mut embedded).map(|()| embedded)
}

/// As [`parse_embedded`], but into memory of the caller. If it fails, the addresses are still those of the
/// packet in the error, or unspecified if they cannot be read.
#[inline(always)]
pub fn parse_embedded_into<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers,
    embedded: &mut Headers,
) -> Option<()> {
    let l3 = headers.l4 + ICMP_HEADER;
    embedded.src = Ip::UNSPECIFIED;
    embedded.dst = Ip::UNSPECIFIED;
    let is_unread;
    *embedded = if headers.src.is_v4() {
        let ip: Ipv4Header = packet.load(l3)?;
        let header_len = u32::from(ip.version_ihl & 0xf) * 4;
        if header_len < 20 {
            return None;
        }
        // The kernel does not check the version.
        is_unread = ip.version_ihl >> 4 != 4 || u16::from_be(ip.fragment) & 0x1fff != 0;
        Headers {
            src: Ip::from_v4_word(ip.src),
            dst: Ip::from_v4_word(ip.dst),
            protocol: ip.protocol,
            l3,
            l4: l3 + header_len,
            ..*headers
        }
    } else {
        let ip: Ipv6Header = packet.load(l3)?;
        let (mut protocol, mut l4, mut offset) = (ip.next_header, l3 + 40, 0);
        if protocol == FRAGMENT {
            // A first fragment has the ports. Only senders make IPv6 fragments, so a router's error is about
            // a fragment.
            let extension: Ipv6Extension = packet.load(l4)?;
            offset = u16::from_be(extension.fragment) & 0xfff8;
            (protocol, l4) = (extension.next_header, l4 + 8);
        }
        is_unread = offset != 0;
        Headers {
            src: Ip::from_v6_words(ip.src),
            dst: Ip::from_v6_words(ip.dst),
            protocol,
            l3,
            l4,
            ..*headers
        }
    };
    embedded.has_ports = false;
    if is_unread {
        return None;
    }
    let is_mapped =
        embedded.src.is_v4() != headers.src.is_v4() || embedded.dst.is_v4() != headers.src.is_v4();
    if is_mapped {
        return None;
    }
    if embedded.is_icmp() {
        let icmp: IcmpHead = packet.load(embedded.l4)?;
        embedded.detail = icmp.kind;
        return read_echo(packet, embedded)?.then_some(());
    }
    if !embedded.is_balanced() {
        return None;
    }
    let ports: Ports = packet.load(embedded.l4)?;
    embedded.sport = Port::from_raw(ports.sport);
    embedded.dport = Port::from_raw(ports.dport);
    embedded.has_ports = true;
    Some(())
}
