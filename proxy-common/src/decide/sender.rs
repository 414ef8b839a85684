//! The packets that a pod may send: from its own addresses, by its own interface, with its own hardware
//! address.
//!
//! Any other packet would be taken for the traffic of another host. Examples are a packet of another pod past
//! that pod's network policy, a reply of a name server, and an advertisement of a neighbour. The program
//! checks each interface that our plugin made, unless the operator exempts it. Interfaces of other plugins
//! are those plugins' responsibility. An interface of our own without its entry sends nothing: while the
//! entry is lost, the program does not know the pod's addresses.
//!
//! A pod sends IPv4, IPv6 and ARP without a VLAN tag. A tag would hide the headers behind it: the kernel
//! removes one tag before the programs run, and further tags after them.
//!
//! Some packets have no address of the pod as source, and IPv6 needs them: neighbour solicitations and
//! advertisements, router solicitations, and multicast listener reports. They may have no source address, or
//! the link-local address of the pod's hardware address. Any other sender would take an entry of the node's
//! neighbour table, which all interfaces share. For the same reason ARP may name only the pod's own
//! addresses. Listener reports take no entry, so any link-local address may send them. A pod may not send
//! router advertisements or redirects, because it is no router. IPv4's `0.0.0.0` is refused too, because a
//! pod gets its address without DHCP.

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
/// A hop-by-hop header that contains only the router alert, as in listener reports (RFC 3810 §5).
const ROUTER_ALERT: u32 = 8;
/// Offset of the sender's addresses in ARP (RFC 826).
const ARP_SENDER: u32 = ETHERNET_LEN + 8;

/// Whether a frame may come out of a pod by this interface. `strict` says that our own plugin made the
/// interface.
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
    // No host takes a packet that ends before its addresses.
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

/// Whether an ARP packet names the pod itself as its sender, or no address as in a probe (RFC 5227 §2.1.1).
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

/// Compares byte by byte, because LLVM does not turn that into a call, and the verifier follows it.
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

/// The kind of an IPv6 packet whose source is not an address of the pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    /// A packet that may not be sent without an address.
    No,
    /// A solicitation or an advertisement, whose sender the node may enter in its neighbour table.
    AsNeighbour,
    /// A multicast listener report.
    AsListener,
}

/// The kind of an IPv6 packet without an address: a host sends some before it has one (RFC 4861 §4, RFC 2710,
/// RFC 3810).
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
