//! The permitted sources at each entry, by the stated rules and without the code under test.

use std::net::{IpAddr, SocketAddr};

use proxy_common::protocol;

use super::judge::{Ran, is_node};
use super::layout::{L3, Layout};
use super::world::{
    BROADCASTS, ELSEWHERE, Frontends, HOST_PORT, PEERS, TUNNEL_PORT, is_in_pods_of, is_in_pods_range,
    is_tunnelled,
};
use super::{At, FROM_UPLINK, UPLINK_MAC};
use crate::node::{NODE, of_family};

/// Whether a frame at an uplink or a pod's interface is addressed to another host.
pub fn is_for_another_host(ran: &Ran<'_>) -> bool {
    (ran.program == FROM_UPLINK || ran.at == At::OwnPod) && ran.frame[..6] != UPLINK_MAC && !is_for_group(ran)
}

/// Whether an input frame is addressed to a group; the programs inspect such a frame and never translate it.
pub fn is_for_group(ran: &Ran<'_>) -> bool {
    matches!(ran.program, FROM_UPLINK | super::FROM_POD) && ran.frame[0] & 1 != 0
}

/// Whether an address lies in the range of services.
pub fn is_in_service_range(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets().starts_with(&[10, 96]),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0x96, 0, 0, 0, 0, 0]),
    }
}

/// Whether a service has the address, and the node does not.
pub fn is_virtual(frontends: &Frontends, address: IpAddr) -> bool {
    !is_node(address) && frontends.keys().any(|(known, _)| known.ip() == address)
}

/// Whether the table of entries refuses a source.
pub fn is_forged(frontends: &Frontends, ran: &Ran<'_>, from: IpAddr) -> bool {
    if ran.program == super::FROM_POD {
        return is_in_service_range(from) || (is_virtual(frontends, from) && !is_in_pods_range(from));
    }
    if ran.program != FROM_UPLINK {
        return false;
    }
    let is_no_host = match from {
        IpAddr::V4(address) => {
            !matches!(address.octets()[0], 1..=223)
                || address.is_loopback()
                || address.octets() == [169, 254, 1, 1]
                || is_of(&BROADCASTS, from)
        }
        IpAddr::V6(address) => address.is_multicast() || address.is_unspecified() || address.is_loopback(),
    };
    is_in_service_range(from)
        || is_no_host
        || is_in_pods_of(1, from)
        || is_node(from)
        || is_virtual(frontends, from)
        || (ran.at == At::Uplink && is_tunnelled(from))
}

fn is_of(addresses: &[&str; 2], address: IpAddr) -> bool {
    let mut all = addresses.iter();
    all.any(|known| address == known.parse::<IpAddr>().expect("an address"))
}

/// Whether the route to the source of a packet uses another interface than the uplink, which has strict
/// reverse-path filtering.
pub fn is_against_route(ran: &Ran<'_>, from: IpAddr, to: IpAddr) -> bool {
    ran.program == FROM_UPLINK
        && ran.at == At::Uplink
        && is_one_host(to)
        && matches!(from, IpAddr::V4(from) if from.octets().starts_with(&ELSEWHERE))
}

/// Whether a datagram comes from another node's port that is a frontend, and so could loop. Only a node port
/// is no client's port.
pub fn is_loop(frontends: &Frontends, ran: &Ran<'_>, [from, to]: [SocketAddr; 2], layout: Layout) -> bool {
    let node = of_family(NODE, usize::from(to.is_ipv6()));
    let is_frontend = |ip| frontends.contains_key(&(SocketAddr::new(ip, from.port()), protocol::UDP));
    layout.protocol == protocol::UDP
        && ran.program == FROM_UPLINK
        && PEERS.iter().any(|peer| is_of(peer, from.ip()))
        && ((is_frontend(node) && from.port() != HOST_PORT)
            || (is_node(to.ip()) && (is_frontend(node) || is_frontend(to.ip()) || is_frontend(from.ip()))))
}

/// Whether a packet without a source address goes to a group. Both the frame and the packet go to a group
/// then.
pub fn is_from_no_address(ran: &Ran<'_>, from: IpAddr, to: IpAddr) -> bool {
    is_for_group(ran) && !is_one_host(to) && from.is_unspecified()
}

/// Whether replies to a client from outside would go to the port of another node's tunnel.
pub fn is_client_at_tunnel(ran: &Ran<'_>, from: SocketAddr, layout: Layout) -> bool {
    layout.protocol == protocol::UDP
        && ran.program == FROM_UPLINK
        && from.port() == TUNNEL_PORT
        && PEERS.iter().any(|peer| is_of(peer, from.ip()))
}

/// Whether a client's address is link-local, so that its packets are not forwarded.
pub fn is_link_local_client(ran: &Ran<'_>, from: IpAddr) -> bool {
    ran.program == FROM_UPLINK && matches!(from, IpAddr::V6(from) if from.is_unicast_link_local())
}

/// Whether one of our pods sends an ICMP error that is a fragment, or one about a packet that did not go to
/// that pod.
pub fn is_error_of_another(ran: &Ran<'_>, layout: Layout) -> bool {
    let [from, _] = layout.ends(ran.frame, L3);
    ran.at == At::OwnPod
        && layout.is_error(ran.frame)
        && (layout.is_fragment || layout.carried_ends(ran.frame).is_none_or(|[_, to]| to != from))
}

/// Whether a packet from elsewhere goes to a loopback address.
pub fn is_for_loopback(program: usize, to: IpAddr) -> bool {
    matches!(program, FROM_UPLINK | super::FROM_POD) && to.is_loopback()
}

/// As [`is_for_loopback`], for a packet with readable addresses before unreadable headers.
pub fn is_for_loopback_unread(program: usize, frame: &[u8]) -> bool {
    unread(frame).is_some_and(|(_, to)| is_for_loopback(program, to))
}

/// Whether a packet has readable addresses before unreadable headers, and the table of entries refuses its
/// source.
pub fn is_forged_unread(frontends: &Frontends, ran: &Ran<'_>) -> bool {
    unread(ran.frame)
        .is_some_and(|(from, to)| !is_from_no_address(ran, from, to) && is_forged(frontends, ran, from))
}

/// The addresses of a packet whose IP header is readable, for packets with unreadable headers behind it.
pub fn unread(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let is_whole = match crate::frame::ether_type(frame) {
        0x0800 => frame.len() >= L3 + 20 && frame[L3] >> 4 == 4 && frame[L3] & 15 >= 5,
        0x86dd => frame.len() >= L3 + 40 && frame[L3] >> 4 == 6,
        _ => false,
    };
    let ends = is_whole.then(|| addresses(frame)).flatten();
    // The programs treat these as missing addresses.
    let none = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
    ends.filter(|ends| *ends != (none, none))
}

pub fn is_one_host(to: IpAddr) -> bool {
    match to {
        IpAddr::V4(to) => matches!(to.octets()[0], 1..=223),
        IpAddr::V6(to) => !to.is_multicast() && !to.is_unspecified(),
    }
}

/// The source and the destination of an IP packet, if the frame contains them.
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
