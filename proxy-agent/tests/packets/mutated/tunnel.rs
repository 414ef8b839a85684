//! The permitted senders to the port of the nodes' tunnel, and the permitted inner frames (RFC 7348). The
//! rules follow the table of entries, without the code under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proxy_common::maps::Reason;
use proxy_common::protocol;

use super::entries::{
    addresses, is_for_another_host, is_from_no_address, is_in_service_range, is_one_host, is_virtual, unread,
};
use super::judge::{Ran, check, is_node};
use super::layout::{L3, Layout, is_extension};
use super::world::{BROADCASTS, Frontends, PEERS, TUNNEL, TUNNEL_PORT, is_in_pods_of, is_in_pods_range};
use super::{At, FROM_POD, FROM_UPLINK};
use crate::frame::ether_type;
use crate::{PASS, SHOT};

/// The note beside a packet that an uplink has admitted.
pub const ADMITTED: u32 = proxy_common::decide::tunnel::ADMITTED;

/// The length of the UDP and VXLAN headers in bytes.
const FRAME: usize = 8 + 8;

/// The expected outcome for a packet to the port of the tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    Admitted,
    Refused(Reason),
    /// The inner frame has an IPv4-mapped address, so the packet is dropped here or at the tunnel's device.
    Either,
}

/// The expected outcome, if the port shows that this is a tunnel packet.
pub fn expected(frontends: &Frontends, ran: &Ran<'_>, layout: Layout) -> Option<Expected> {
    let [from, to] = layout.sockets(ran.frame, L3);
    let l4 = layout.l4?;
    if layout.protocol != protocol::UDP || to.port() != TUNNEL_PORT {
        return None;
    }
    let to = to.ip();
    match ran.program {
        FROM_POD => {
            let is_open = is_in_service_range(to)
                || is_virtual(frontends, to)
                || (is_in_pods_range(to) && !is_tunnel_endpoint(to));
            (!is_open).then_some(Expected::Refused(Reason::TunnelPort))
        }
        FROM_UPLINK if is_node(to) || is_shared(to) => Some(if layout.is_fragment {
            Expected::Refused(Reason::TunnelSource)
        } else {
            let content = ran.frame.get(l4 + FRAME..).unwrap_or_default();
            // Other nodes send to the node's address, and not to its end of the tunnel.
            match inside(from.ip(), content) {
                Expected::Admitted | Expected::Either if is_among(&TUNNEL, to) => {
                    Expected::Refused(Reason::TunnelSource)
                }
                expected => expected,
            }
        }),
        _ => None,
    }
}

/// Checks that the inner frame is from a pod of the sending node to a pod of this node.
fn inside(from: IpAddr, frame: &[u8]) -> Expected {
    let ends: Option<[IpAddr; 2]> = match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(L3..L3 + 20).map(|header| {
            [12, 16].map(|at| Ipv4Addr::from_octets(std::array::from_fn(|byte| header[at + byte])).into())
        }),
        Some([0x86, 0xdd]) => frame.get(L3..L3 + 40).map(|header| {
            [8, 24].map(|at| Ipv6Addr::from_octets(std::array::from_fn(|byte| header[at + byte])).into())
        }),
        _ => None,
    };
    let peer = (2..).zip(PEERS).find(|(_, addresses)| is_among(addresses, from));
    match (ends, peer) {
        (Some(ends), Some(_)) if ends.iter().any(|end| is_mapped(*end)) => Expected::Either,
        (Some([source, to]), Some((number, _))) if is_in_pods_of(number, source) && is_in_pods_of(1, to) => {
            Expected::Admitted
        }
        _ => Expected::Refused(Reason::TunnelSource),
    }
}

/// Whether an ICMP error is about a tunnel packet from one node to another, as far as the error shows it.
pub fn is_error(ran: &Ran<'_>, layout: Layout) -> bool {
    if ran.program != FROM_UPLINK || !layout.is_error(ran.frame) {
        return false;
    }
    if layout.is_fragment {
        return is_tunnel_endpoint(layout.ends(ran.frame, L3)[1]);
    }
    let Some([from, to]) = layout
        .carried_ends(ran.frame)
        .map(|ends| ends.map(|end| end.to_canonical()))
    else {
        return false;
    };
    let is_peer = |address: IpAddr| PEERS.iter().any(|peer| is_among(peer, address));
    let carried = layout
        .l4
        .and_then(|l4| Layout::carried(ran.frame, layout.is_v4, l4));
    let ports = carried.filter(|(_, carried)| carried.has_ports());
    let ports = ports.and_then(|(_, carried)| ran.frame.get(carried.l4?..carried.l4? + 4));
    let protocol = layout.carried_protocol(ran.frame);
    let is_to_port = match ports {
        Some(ports) => protocol == Some(protocol::UDP) && ports[2..] == TUNNEL_PORT.to_be_bytes(),
        // The kernel looks behind extension headers, and at fragments.
        None => protocol.is_some_and(|it| it == protocol::UDP || (!layout.is_v4 && is_extension(it))),
    };
    is_to_port && (is_node(from) || is_peer(from)) && is_peer(to)
}

/// The reason to refuse a packet whose tunnel port may be behind unreadable headers, if there is one.
pub fn hidden(ran: &Ran<'_>, odd: Reason) -> Option<Reason> {
    if ether_type(ran.frame) != 0x86dd || !(odd == Reason::Malformed || Layout::is_unwalked(ran.frame)) {
        return None;
    }
    let (from, to) = unread(ran.frame)?;
    if is_from_no_address(ran, from, to) {
        return None;
    }
    match ran.program {
        FROM_POD if is_tunnel_endpoint(to) => Some(Reason::TunnelPort),
        // This may be an ICMP error about another's packet.
        FROM_POD => Some(Reason::ForgedSource),
        FROM_UPLINK if is_tunnel_endpoint(to) => Some(Reason::TunnelSource),
        _ => None,
    }
}

/// Checks the note. The tunnel's device accepts no frame without the note of its admission, and clears the
/// note.
pub fn notes(frontends: &Frontends, ran: &Ran<'_>) -> Result<(), String> {
    if ran.program != FROM_UPLINK || is_for_another_host(ran) {
        return check(ran.left == ran.note, || format!("the note {:x}", ran.left));
    }
    let is_admitted = match Layout::of(ran.frame) {
        Ok(layout) => expected(frontends, ran, layout).unwrap_or(Expected::Refused(Reason::NotOurs)),
        Err(_) => Expected::Refused(Reason::NotOurs),
    };
    if ran.verdict == PASS && is_admitted == Expected::Admitted {
        return check(ran.left == ADMITTED, || "admitted, and not noted".into());
    }
    // IPsec packets of another node carry the note as well; the kernel decapsulates them without a program.
    let is_peers =
        addresses(ran.frame).is_some_and(|(from, _)| PEERS.iter().any(|peer| is_among(peer, from)));
    let may_be_noted = ran.verdict == PASS && (is_admitted == Expected::Either || is_peers);
    check(
        ran.left == 0 || may_be_noted || (ran.verdict == SHOT && ran.left == ran.note),
        || format!("the note {:x}", ran.left),
    )
}

/// Whether the tunnel's device refuses a frame because no uplink has admitted it.
pub fn misses_note(ran: &Ran<'_>) -> bool {
    ran.at == At::Tunnel && ran.program == FROM_UPLINK && ran.note != ADMITTED
}

fn is_among(addresses: &[&str; 2], address: IpAddr) -> bool {
    let mut all = addresses.iter();
    all.any(|known| address == known.parse::<IpAddr>().expect("an address"))
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// Whether a node's socket for the tunnel listens at an address.
fn is_tunnel_endpoint(to: IpAddr) -> bool {
    is_node(to) || PEERS.iter().any(|peer| is_among(peer, to)) || is_shared(to)
}

/// Whether several hosts may have an address, or it is this node's end of the tunnel.
fn is_shared(to: IpAddr) -> bool {
    is_among(&TUNNEL, to)
        || !is_one_host(to)
        || is_among(&BROADCASTS, to)
        || matches!(to, IpAddr::V6(to) if to.is_unicast_link_local())
}
