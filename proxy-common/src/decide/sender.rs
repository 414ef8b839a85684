//! What a pod may send: packets from its own addresses, by its own interface, with its own hardware address.
//!
//! Everything else would be taken for somebody else's: another pod's traffic past its network policy, answers of a name
//! server, a neighbour's advertisement. What our plugin made is held to it, unless the operator exempts an interface;
//! interfaces of other plugins are those plugins' business. An interface of our own without its entry sends no IP packet:
//! what a pod may send is unknown while its entry is lost.
//!
//! A packet without an address of its own yet is let through where IPv6 cannot do without: solicitations and
//! advertisements of neighbours, solicitations of routers and reports of multicast listeners, from a link-local address or
//! none. The stack forwards none of these. Advertisements of routers and redirects are not among them: a pod is no router.
//! Nor is IPv4's `0.0.0.0`: nobody here answers DHCP. ARP and whatever else is not IP is not forwarded, and left alone.

use super::Tables;
use crate::Ip;
use crate::maps::{InUse, PodLinkFlags};
use crate::packet::{ETHERNET_LEN, Ipv4Header, Ipv6Header, Packet, ether_type};
use crate::protocol;

/// Offset of a frame's source address.
const SOURCE_MAC: u32 = 6;
const IPV6_HEADER: u32 = 40;
const HOP_BY_HOP: u8 = 0;
/// A hop-by-hop header that holds the router alert alone, as listeners' reports have it (RFC 3810 §5).
const ROUTER_ALERT: u32 = 8;

/// Whether a frame may come out of a pod by this interface, which is `strict` where our own plugin made it.
#[inline(always)]
pub fn may_send<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    packet: &P,
    ether_type: u16,
    interface: u32,
    strict: bool,
) -> bool {
    if !strict && !tables.is_in_use(InUse::PODS) {
        return true;
    }
    // What ends before its addresses goes nowhere.
    let (source, is_discovery) = match ether_type {
        ether_type::IPV4 => match packet.load::<Ipv4Header>(ETHERNET_LEN) {
            Some(ip) => (Ip::from_v4_word(ip.src), false),
            None => return true,
        },
        ether_type::IPV6 => match packet.load::<Ipv6Header>(ETHERNET_LEN) {
            Some(ip) => {
                let source = Ip::from_v6_words(ip.src);
                let has_none = source.is_unspecified() || source.is_link_local();
                (source, has_none && is_discovery(packet, ip.next_header))
            }
            None => return true,
        },
        _ => return true,
    };
    let Some(mac) = packet.load::<[u8; 6]>(SOURCE_MAC) else {
        return true;
    };
    if let Some(pod) = tables.pod(&source)
        && pod.interface == interface
        && is_same(&pod.mac, &mac)
    {
        return true;
    }
    match tables.pod_link(interface) {
        Some(link) if link.flags & PodLinkFlags::ANY_SOURCE == 0 => is_discovery && is_same(&link.mac, &mac),
        Some(_) => true,
        None => !strict,
    }
}

/// Byte by byte, which the verifier follows and LLVM does not turn into a call.
#[inline(always)]
const fn is_same(one: &[u8; 6], other: &[u8; 6]) -> bool {
    (one[0] ^ other[0])
        | (one[1] ^ other[1])
        | (one[2] ^ other[2])
        | (one[3] ^ other[3])
        | (one[4] ^ other[4])
        | (one[5] ^ other[5])
        == 0
}

/// Whether an IPv6 packet is one of those that a host sends before it has an address (RFC 4861 §4, RFC 2710, RFC 3810).
#[inline(always)]
fn is_discovery<P: Packet + ?Sized>(packet: &P, next_header: u8) -> bool {
    const ROUTER_SOLICITATION: u8 = 133;
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const LISTENER_REPORT: u8 = 131;
    const LISTENER_DONE: u8 = 132;
    const LISTENER_REPORT_V2: u8 = 143;
    let first = ETHERNET_LEN + IPV6_HEADER;
    if next_header == protocol::ICMPV6 {
        return packet.load::<u8>(first).is_some_and(|kind| {
            matches!(
                kind,
                ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT
            )
        });
    }
    if next_header != HOP_BY_HOP {
        return false;
    }
    let header = packet.load::<[u8; 2]>(first);
    header.is_some_and(|header| header == [protocol::ICMPV6, 0])
        && packet
            .load::<u8>(first + ROUTER_ALERT)
            .is_some_and(|kind| matches!(kind, LISTENER_REPORT | LISTENER_DONE | LISTENER_REPORT_V2))
}
