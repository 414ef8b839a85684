//! Checks a translated packet. Its new addresses and ports belong together, and the differences of its
//! checksums from the right values do not change.

use std::net::SocketAddr;

use proxy_common::protocol;

use super::judge::{Ran, check, is_node, is_own, is_pod};
use super::layout::{L3, Layout};
use super::world::{Frontends, MASQUERADE_PORTS};
use super::{TO_POD, TO_UPLINK};
use crate::frame::crc32c;
use crate::{PASS, REDIRECT};

/// Whether only the source port of a packet of the node itself differs.
fn is_exchanged(old: [SocketAddr; 2], new: [SocketAddr; 2]) -> bool {
    is_node(old[0].ip()) && old[0].ip() == new[0].ip() && old[1] == new[1]
}

/// Whether only bytes in these ranges differ.
fn differs_only_in(ran: &Ran<'_>, ranges: &[std::ops::Range<usize>]) -> Result<(), String> {
    check(ran.out.len() == ran.frame.len(), || "another length".into())?;
    let both = ran.frame.iter().zip(ran.out).enumerate();
    let changed = both
        .filter(|(_, (old, new))| old != new)
        .find(|(at, _)| !ranges.iter().any(|range| range.contains(at)));
    check(changed.is_none(), || {
        format!("byte {} changed", changed.map_or(0, |(at, _)| at))
    })
}

/// The ranges that may differ in the headers. The time to live may be one less if the packet is redirected,
/// and its MAC addresses may differ then.
fn ranges_of_headers(ran: &Ran<'_>, layout: Layout) -> Result<Vec<std::ops::Range<usize>>, String> {
    check(matches!(ran.verdict, PASS | REDIRECT), || {
        "the wrong verdict".into()
    })?;
    let addresses = layout.addresses_at();
    let start = if layout.is_v4 { 10 } else { addresses.start };
    let hardware = 0..if ran.verdict == REDIRECT { 12 } else { 0 };
    let mut ranges = vec![hardware, L3 + start..L3 + addresses.end];
    if ran.verdict == REDIRECT {
        let ttl = L3 + if layout.is_v4 { 8 } else { 7 };
        let (old, new) = (ran.frame[ttl], *ran.out.get(ttl).unwrap_or(&0));
        let is_forwarded = !is_own(ran.program);
        check(
            new == old || (is_forwarded && new == old.wrapping_sub(1) && new > 0),
            || format!("TTL {new} of {old}"),
        )?;
        ranges.push(ttl..ttl + 1);
    }
    Ok(ranges)
}

pub fn translated(
    frontends: &Frontends,
    ran: &Ran<'_>,
    layout: Layout,
    is_reply: bool,
) -> Result<(), String> {
    let mut ranges = ranges_of_headers(ran, layout)?;
    if let Some(l4) = layout.l4 {
        let (at, width) = layout.checksum_at();
        let ports = layout.ports_at();
        ranges.extend([l4 + ports.start..l4 + ports.end, l4 + at..l4 + at + width]);
    }
    differs_only_in(ran, &ranges)?;
    let (old, new) = (layout.sockets(ran.frame, L3), layout.sockets(ran.out, L3));
    // If the ports are in another packet, only the addresses are compared.
    let is_translation = |(frontend, protocol): (SocketAddr, u8), backend: SocketAddr| {
        let mut all = frontends.iter().filter(|((known, of), _)| {
            (*of == protocol || !layout.has_ports())
                && known.ip() == frontend.ip()
                && (layout.l4.is_none() || *known == frontend)
        });
        all.any(|(_, frontend)| {
            let mut backends = frontend.backends.iter();
            backends.any(|known| known.ip() == backend.ip() && (layout.l4.is_none() || *known == backend))
        })
    };
    let is_whole = if is_reply {
        let (client, node) = ([new[1], new[0]], [old[1], old[0]]);
        is_translation((new[0], layout.protocol), old[0])
            || is_masqueraded(layout, client, node)
            || is_exchanged(client, node)
    } else if ran.program == TO_UPLINK {
        is_masqueraded(layout, old, new) || is_exchanged(old, new)
    } else if ran.program == TO_POD {
        is_exchanged(old, new)
    } else {
        is_translation((old[1], layout.protocol), new[1])
    };
    check(is_whole, || format!("{old:?} became {new:?}"))?;
    check_sums(ran, layout)?;
    let Some(l4) = layout.l4 else {
        return Ok(());
    };
    let (at, width) = layout.checksum_at();
    // SCTP may end before its checksum, if the ports do not change.
    let [before, after] =
        [ran.frame, ran.out].map(|frame| frame.get(l4 + at..l4 + at + width).unwrap_or_default());
    let is_absent = |field: &[u8]| field.iter().all(|byte| *byte == 0);
    match layout.protocol {
        protocol::UDP | protocol::SCTP if is_absent(before) => {
            check(is_absent(after), || "a checksum where none was".into())
        }
        protocol::SCTP => {
            let [before, after] = [ran.frame, ran.out].map(|frame| layout.sctp(frame).map(sctp_error));
            check(before == after, || {
                format!("SCTP checksum off by {before:?}, then {after:?}")
            })
        }
        protocol::UDP if is_absent(after) => Err("the checksum is gone".into()),
        _ => {
            let (before, after) = (layout.transport_error(ran.frame), layout.transport_error(ran.out));
            check(before == after, || {
                format!("checksum off by {before}, then {after}")
            })
        }
    }
}

/// Whether a packet of a pod, between these ends, became a packet of the node with a port of its range.
fn is_masqueraded(layout: Layout, pods: [SocketAddr; 2], nodes: [SocketAddr; 2]) -> bool {
    let has_port = layout.l4.is_some() && layout.has_ports();
    is_pod(pods[0].ip())
        && is_node(nodes[0].ip())
        && pods[1] == nodes[1]
        && (!has_port || MASQUERADE_PORTS.contains(&nodes[0].port()))
}

fn sctp_error(packet: &[u8]) -> u32 {
    let found = u32::from_le_bytes(std::array::from_fn(|byte| packet[8 + byte]));
    let without = [&packet[..8], &[0; 4], &packet[12..]].concat();
    found ^ crc32c(&without)
}

/// Checks that the differences of the checksums from the right values do not change.
fn check_sums(ran: &Ran<'_>, layout: Layout) -> Result<(), String> {
    let (before, after) = (
        layout.header_error(ran.frame, L3),
        layout.header_error(ran.out, L3),
    );
    check(before == after, || {
        format!("header checksum off by {before}, then {after}")
    })
}

pub fn translated_error(frontends: &Frontends, ran: &Ran<'_>, layout: Layout) -> Result<(), String> {
    let l4 = layout.l4.ok_or("no ICMP header")?;
    let (l3, carried) = Layout::carried(ran.frame, layout.is_v4, l4).ok_or("nothing inside")?;
    let inside = carried.l4.ok_or("no ports inside")?;
    let [[_, to], [sender, _]] = [layout.ends(ran.frame, L3), carried.ends(ran.frame, l3)];
    check(to == sender, || {
        "not addressed to the sender of what it carries".into()
    })?;
    let mut ranges = ranges_of_headers(ran, layout)?;
    let addresses = carried.addresses_at();
    ranges.extend([
        l4 + 2..l4 + 4,
        l3 + addresses.start..l3 + addresses.end,
        inside + carried.ports_at().start..inside + carried.ports_at().end,
    ]);
    if layout.is_v4 {
        ranges.push(l3 + 10..l3 + 12);
    }
    differs_only_in(ran, &ranges)?;
    check_sums(ran, layout)?;
    let (before, after) = (
        carried.header_error(ran.frame, l3),
        carried.header_error(ran.out, l3),
    );
    check(before == after, || "the header checksum inside".into())?;
    let (before, after) = (layout.transport_error(ran.frame), layout.transport_error(ran.out));
    check(before == after, || {
        format!("ICMP checksum off by {before}, then {after}")
    })?;
    let [_, to] = layout.ends(ran.out, L3);
    let [sender, receiver] = carried.sockets(ran.out, l3);
    check(to == sender.ip(), || {
        format!("to {to} about a packet of {sender}")
    })?;
    let is_known = frontends.contains_key(&(receiver, carried.protocol))
        || frontends
            .values()
            .any(|frontend| frontend.backends.contains(&sender))
        || is_pod(sender.ip())
        || (is_node(receiver.ip()) && (carried.is_icmp() || MASQUERADE_PORTS.contains(&receiver.port())));
    check(is_known, || format!("about a packet from {sender} to {receiver}"))
}
