//! Who may come by an entry, by the rules that are stated and without the code that is tested.

use std::net::IpAddr;

use super::judge::{Ran, is_node};
use super::layout::L3;
use super::world::Frontends;
use super::{FROM_UPLINK, UPLINK_MAC};

/// Whether an uplink hears a frame that is not addressed to it.
pub fn is_for_another_host(ran: &Ran<'_>) -> bool {
    ran.program == FROM_UPLINK && ran.frame[..6] != UPLINK_MAC && !is_for_group(ran)
}

/// Whether a frame enters that is addressed to a group, which is looked at and never translated.
pub fn is_for_group(ran: &Ran<'_>) -> bool {
    matches!(ran.program, FROM_UPLINK | super::FROM_POD) && ran.frame[0] & 1 != 0
}

/// Whether the table of entries refuses a source.
pub fn is_forged(frontends: &Frontends, program: usize, from: IpAddr) -> bool {
    let in_service_range = match from {
        IpAddr::V4(address) => address.octets().starts_with(&[10, 96]),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0x96, 0, 0, 0, 0, 0]),
    };
    let is_virtual = !is_node(from) && frontends.keys().any(|(known, _)| known.ip() == from);
    if program == super::FROM_POD {
        return in_service_range || is_virtual;
    }
    if program != FROM_UPLINK {
        return false;
    }
    let is_no_host = match from {
        IpAddr::V4(address) => {
            !matches!(address.octets()[0], 1..=223)
                || address.is_loopback()
                || address.octets().starts_with(&[10, 244, 1])
                || address.octets() == [169, 254, 1, 1]
        }
        IpAddr::V6(address) => {
            address.is_multicast()
                || address.is_unspecified()
                || address.is_loopback()
                || address.segments().starts_with(&[0xfd00, 0x244, 1, 0])
        }
    };
    in_service_range || is_no_host || is_node(from) || is_virtual
}

/// Whether a packet from elsewhere goes to a loopback address.
pub fn is_for_loopback(program: usize, to: IpAddr) -> bool {
    matches!(program, FROM_UPLINK | super::FROM_POD) && to.is_loopback()
}

/// The same where its addresses stand before what cannot be read.
pub fn is_for_loopback_unread(program: usize, frame: &[u8]) -> bool {
    unread(frame).is_some_and(|(_, to)| is_for_loopback(program, to))
}

/// Whether the addresses of a packet stand before what cannot be read, and the table of entries refuses the
/// source. What goes to no single host is none of it.
pub fn is_forged_unread(frontends: &Frontends, program: usize, frame: &[u8]) -> bool {
    unread(frame).is_some_and(|(from, _)| is_forged(frontends, program, from))
}

/// The addresses of a packet to one host that stand before what cannot be read.
fn unread(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let is_whole = match crate::frame::ether_type(frame) {
        0x0800 => frame.len() >= L3 + 20 && frame[L3] >> 4 == 4 && frame[L3] & 15 >= 5,
        0x86dd => frame.len() >= L3 + 40 && frame[L3] >> 4 == 6,
        _ => false,
    };
    let ends = is_whole.then(|| addresses(frame)).flatten();
    // A host without an address asks for one over IPv6.
    ends.filter(|(from, to)| *from != IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED) && is_one_host(*to))
}

pub fn is_one_host(to: IpAddr) -> bool {
    match to {
        IpAddr::V4(to) => matches!(to.octets()[0], 1..=223),
        IpAddr::V6(to) => !to.is_multicast() && !to.is_unspecified(),
    }
}

/// Source and destination of an IP packet, as far as they are there.
pub fn addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let of = |at: usize, len: usize| frame.get(L3 + at..L3 + at + len);
    let address = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => Some(IpAddr::from(v4)),
        Err(_) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    let (from, to) = match crate::frame::ether_type(frame) {
        0x0800 => (of(12, 4)?, of(16, 4)?),
        _ => (of(8, 16)?, of(24, 16)?),
    };
    Some((address(from)?, address(to)?))
}
