//! The protocols of a link: ARP, neighbour discovery, and VXLAN, which carries the frames of a link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet;
use crate::netlink::Mac;

/// `EtherType` of ARP.
pub const ARP: u16 = 0x0806;

/// The broadcast hardware address.
pub const BROADCAST: Mac = [0xff; 6];

const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

/// An ARP message for Ethernet and IPv4, a request or a reply.
#[must_use]
pub fn arp(is_request: bool, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, if is_request { 1 } else { 2 }];
    for (mac, address) in [sender, target] {
        message.extend(mac);
        message.extend(address.octets());
    }
    message
}

/// A solicitation of the neighbour that has `target`, sent to that address itself.
#[must_use]
pub fn neighbour_solicitation(sender: (Mac, Ipv6Addr), target: Ipv6Addr) -> Vec<u8> {
    let message = discovery(135, 0, Some(target), SOURCE_LINK_ADDRESS, sender.0);
    packet::icmp(IpAddr::V6(sender.1), IpAddr::V6(target), &message)
}

/// An advertisement of an address as the sender's own, to `receiver`. It overrides the receiver's entry.
#[must_use]
pub fn neighbour_advertisement(sender: (Mac, Ipv6Addr), receiver: Ipv6Addr) -> Vec<u8> {
    const OVERRIDE: u8 = 0x20;
    let message = discovery(136, OVERRIDE, Some(sender.1), TARGET_LINK_ADDRESS, sender.0);
    packet::icmp(IpAddr::V6(sender.1), IpAddr::V6(receiver), &message)
}

/// A solicitation of routers, sent to one router.
#[must_use]
pub fn router_solicitation(sender: (Mac, Ipv6Addr), router: Ipv6Addr) -> Vec<u8> {
    let message = discovery(133, 0, None, SOURCE_LINK_ADDRESS, sender.0);
    packet::icmp(IpAddr::V6(sender.1), IpAddr::V6(router), &message)
}

fn discovery(kind: u8, flags: u8, target: Option<Ipv6Addr>, option: u8, mac: Mac) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.iter().flat_map(Ipv6Addr::octets));
    message.extend([option, 1]);
    message.extend(mac);
    message
}

/// The payload of a datagram that carries a frame of the segment `id` (RFC 7348).
#[must_use]
pub fn vxlan(id: u32, frame: &[u8]) -> Vec<u8> {
    const HAS_ID: [u8; 4] = [8, 0, 0, 0];
    [&HAS_ID, (id << 8).to_be_bytes().as_slice(), frame].concat()
}
