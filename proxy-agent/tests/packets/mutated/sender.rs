//! The packets that one of our pods may send, by the table of entries and without the code under test.

use std::net::{Ipv4Addr, Ipv6Addr};

use proxy_common::protocol;

use super::UPLINK_MAC;
use super::layout::L3;
use super::world::{MAC, POD};
use crate::frame::ether_type;

const HOP_BY_HOP: u8 = 0;
const GATEWAY: [u8; 4] = [169, 254, 1, 1];
/// The pod's link-local address, which follows from its MAC address (RFC 4291 appendix A).
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x00ff, 0xfe00, 2);

/// The outcome for a frame at the pod's interface.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// The program drops the frame.
    Refused,
    /// The program drops the frame, there or when it parses the packet: its source is an IPv4-mapped address.
    Mapped,
    /// The gateway sends this reply.
    Replied(Vec<u8>),
    /// The program parses the packet and decides about it.
    Read,
}

pub fn fate(frame: &[u8]) -> Fate {
    let is_own_mac = frame[6..12] == MAC;
    let may_go = match ether_type(frame) {
        0x0800 => frame
            .get(L3..L3 + 20)
            .is_some_and(|header| header[12..16] == own_v4()),
        0x86dd => {
            let Some(header) = frame.get(L3..L3 + 40) else {
                return Fate::Refused;
            };
            let source = Ipv6Addr::from_octets(std::array::from_fn(|byte| header[8 + byte]));
            if source.to_ipv4_mapped().is_some() {
                return Fate::Mapped;
            }
            let own: Ipv6Addr = POD[1].parse().expect("an address");
            source == own || may_lack_address(source, header[6], &frame[L3 + 40..])
        }
        0x0806 => return fate_of_arp(frame),
        _ => false,
    };
    if may_go && is_own_mac {
        Fate::Read
    } else {
        Fate::Refused
    }
}

fn own_v4() -> [u8; 4] {
    let own: Ipv4Addr = POD[0].parse().expect("an address");
    own.octets()
}

/// Whether an IPv6 packet is one that a host sends before it has an address. These are solicitations and
/// advertisements of neighbours, solicitations of routers, and reports of listeners (RFC 4861 §4, RFC 2710,
/// RFC 3810).
fn may_lack_address(source: Ipv6Addr, next: u8, behind: &[u8]) -> bool {
    match next {
        protocol::ICMPV6 => {
            (source.is_unspecified() || source == LINK_LOCAL)
                && matches!(behind.first(), Some(133 | 135 | 136))
        }
        HOP_BY_HOP => {
            (source.is_unspecified() || source.is_unicast_link_local())
                && behind.get(..2) == Some(&[protocol::ICMPV6, 0])
                && matches!(behind.get(8), Some(131 | 132 | 143))
        }
        _ => false,
    }
}

/// An ARP message must have the pod itself as its sender, or no address (RFC 826, RFC 5227 §2.1.1).
fn fate_of_arp(frame: &[u8]) -> Fate {
    let Some((mac, address)) = frame.get(L3 + 8..L3 + 18).map(|sender| sender.split_at(6)) else {
        return Fate::Refused;
    };
    let is_own = address == own_v4();
    if mac != MAC || !(is_own || address == [0; 4]) {
        return Fate::Refused;
    }
    let asks = frame.get(L3..L3 + 8) == Some(&[0, 1, 8, 0, 6, 4, 0, 1]);
    if !is_own || !asks || frame.get(L3 + 24..L3 + 28) != Some(&GATEWAY) {
        return Fate::Read;
    }
    let mut reply = [MAC, UPLINK_MAC].concat();
    reply.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    reply.extend(UPLINK_MAC);
    reply.extend(GATEWAY);
    reply.extend(MAC);
    reply.extend(own_v4());
    reply.extend(&frame[L3 + 28..]);
    Fate::Replied(reply)
}
