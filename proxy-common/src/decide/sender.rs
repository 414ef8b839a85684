//! What a pod may send: packets from its own addresses, by its own interface, with its own hardware address.
//!
//! Everything else would be taken for the traffic of others: of another pod past its network policy, replies of a name
//! server, a neighbour's advertisement. What our plugin made is held to it, unless the operator exempts an interface;
//! interfaces of other plugins are those plugins' business. An interface of our own without its entry sends nothing: what a
//! pod may send is unknown while its entry is lost.
//!
//! A pod sends IPv4, IPv6 and ARP without a VLAN tag. A tag would hide what is behind it: the kernel takes one off before
//! the programs run, and the next ones after.
//!
//! A packet without an address of its own yet is let through where IPv6 cannot do without: solicitations and
//! advertisements of neighbours, solicitations of routers and reports of multicast listeners, from no address or the
//! link-local one of the pod's hardware address. Each other sender would take an entry of the node's neighbour table, which
//! all interfaces share; ARP is held to the pod's own addresses for that reason. Reports of listeners take no entry, and
//! come from any link-local address. Advertisements of routers and redirects are not among them: a pod is no router. Nor is
//! IPv4's `0.0.0.0`: a pod gets its address without DHCP.

use super::Tables;
use super::admission::Frame;
use crate::Ip;
use crate::maps::{InUse, PodLink, PodLinkFlags};
use crate::packet::{ETHERNET_LEN, Ipv4Header, Ipv6Header, Packet, ether_type};
use crate::protocol;

/// Offset of a frame's source address.
const SOURCE_MAC: u32 = 6;
const IPV6_HEADER: u32 = 40;
const HOP_BY_HOP: u8 = 0;
/// A hop-by-hop header that holds the router alert alone, as listeners' reports have it (RFC 3810 §5).
const ROUTER_ALERT: u32 = 8;
/// Offset of the sender's addresses in ARP (RFC 826).
const ARP_SENDER: u32 = ETHERNET_LEN + 8;

/// Whether a frame may come out of a pod by this interface, which is `strict` where our own plugin made it.
#[inline(always)]
pub fn may_send<T: Tables, P: Packet + ?Sized>(
    tables: &T,
    packet: &P,
    frame: Frame,
    interface: u32,
    strict: bool,
) -> bool {
    if !strict && !tables.is_in_use(InUse::PODS) {
        return true;
    }
    if strict && frame.vlan != Frame::UNTAGGED {
        return false;
    }
    // What ends before its addresses goes nowhere.
    let (source, without) = match frame.ether_type {
        ether_type::IPV4 => match packet.load::<Ipv4Header>(ETHERNET_LEN) {
            Some(ip) => (Ip::from_v4_word(ip.src), Without::No),
            None => return !strict,
        },
        ether_type::IPV6 => match packet.load::<Ipv6Header>(ETHERNET_LEN) {
            Some(ip) => {
                let source = Ip::from_v6_words(ip.src);
                let has_none = source.is_unspecified() || source.is_link_local();
                let without = if has_none {
                    without_address(packet, ip.next_header)
                } else {
                    Without::No
                };
                (source, without)
            }
            None => return !strict,
        },
        ether_type::ARP if strict => return may_ask(tables, packet, interface),
        _ => return !strict,
    };
    let Some(mac) = packet.load::<[u8; 6]>(SOURCE_MAC) else {
        return !strict;
    };
    if let Some(pod) = tables.pod(&source)
        && pod.interface == interface
        && is_same(&pod.mac, &mac)
    {
        return true;
    }
    let Some(link) = tables.pod_link(interface) else {
        return !strict;
    };
    if is_exempt(&link) {
        return true;
    }
    let may_go = match without {
        Without::No => false,
        Without::AsListener => true,
        Without::AsNeighbour => source.is_unspecified() || source.is_link_local_of(&link.mac),
    };
    may_go && is_same(&link.mac, &mac)
}

/// Whether the operator lets the pod send from any address.
#[inline(always)]
pub const fn is_exempt(link: &PodLink) -> bool {
    link.flags & PodLinkFlags::ANY_SOURCE != 0
}

/// Whether an ARP packet names the pod itself as its sender, or no address as a probe does (RFC 5227 §2.1.1).
#[inline(always)]
fn may_ask<T: Tables, P: Packet + ?Sized>(tables: &T, packet: &P, interface: u32) -> bool {
    let Some(link) = tables.pod_link(interface) else {
        return false;
    };
    if is_exempt(&link) {
        return true;
    }
    let (Some(mac), Some(address)) = (
        packet.load::<[u8; 6]>(ARP_SENDER),
        packet.load::<u32>(ARP_SENDER + 6),
    ) else {
        return false;
    };
    let is_own = |pod: crate::maps::Pod| pod.interface == interface;
    is_same(&link.mac, &mac) && (address == 0 || tables.pod(&Ip::from_v4_word(address)).is_some_and(is_own))
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

/// What an IPv6 packet is that has no address of the pod's own as source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    /// Nothing that may be sent so.
    No,
    /// A solicitation or an advertisement, whose sender the node may remember.
    AsNeighbour,
    /// A report of a multicast listener.
    AsListener,
}

/// Whether an IPv6 packet is one of those that a host sends before it has an address (RFC 4861 §4, RFC 2710, RFC 3810).
#[inline(always)]
fn without_address<P: Packet + ?Sized>(packet: &P, next_header: u8) -> Without {
    const ROUTER_SOLICITATION: u8 = 133;
    const NEIGHBOUR_SOLICITATION: u8 = 135;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const LISTENER_REPORT: u8 = 131;
    const LISTENER_DONE: u8 = 132;
    const LISTENER_REPORT_V2: u8 = 143;
    let first = ETHERNET_LEN + IPV6_HEADER;
    if next_header == protocol::ICMPV6 {
        return match packet.load::<u8>(first) {
            Some(ROUTER_SOLICITATION | NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT) => {
                Without::AsNeighbour
            }
            _ => Without::No,
        };
    }
    if next_header != HOP_BY_HOP || packet.load::<[u8; 2]>(first) != Some([protocol::ICMPV6, 0]) {
        return Without::No;
    }
    match packet.load::<u8>(first + ROUTER_ALERT) {
        Some(LISTENER_REPORT | LISTENER_DONE | LISTENER_REPORT_V2) => Without::AsListener,
        _ => Without::No,
    }
}
