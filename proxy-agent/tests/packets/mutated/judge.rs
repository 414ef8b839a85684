//! What is owed for one frame: a verdict of the stated set, one count, and a packet that is untouched or wholly changed.

use std::net::{IpAddr, SocketAddr};

use proxy_common::maps::Reason;
use proxy_common::protocol;

use super::entries::{
    addresses, is_for_another_host, is_for_group, is_for_loopback, is_for_loopback_unread, is_forged,
    is_forged_unread, is_one_host,
};
use super::layout::{L3, Layout};
use super::refusal;
use super::world::{Frontends, Has, MASQUERADE_PORTS, POD, is_in_ranges};
use super::{FROM_HOST, FROM_LOOPBACK, FROM_UPLINK, TO_POD, TO_UPLINK};
use crate::frame::crc32c;
use crate::node::NODE;
use crate::{PASS, REDIRECT, SHOT};

/// A run of a program.
pub struct Ran<'a> {
    pub program: usize,
    pub frame: &'a [u8],
    pub verdict: u32,
    pub out: &'a [u8],
}

/// Whether something is as it should be.
pub fn check(right: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if right { Ok(()) } else { Err(what()) }
}

/// The reason for which a packet was left alone, if its headers tell; nothing is counted as `NotOurs`.
pub fn left_alone(ran: &Ran<'_>) -> Option<Reason> {
    let is_left = ran.verdict == PASS && ran.out == ran.frame;
    if is_left && is_for_another_host(ran) {
        return Some(Reason::OtherHost);
    }
    match Layout::of(ran.frame) {
        Err(reason) if is_left => Some(reason),
        Ok(_) if is_left && is_for_group(ran) => Some(Reason::OtherHost),
        Ok(Layout { l4: Some(_), .. }) if is_left => Some(Reason::NotOurs),
        _ => None,
    }
}

/// Compares a run with the rules; `counted` is the reason and how many bytes were counted under it.
pub fn judge(frontends: &Frontends, ran: &Ran<'_>, counted: Option<(Reason, u64)>) -> Result<(), String> {
    let Ran {
        program,
        frame,
        verdict,
        out,
    } = *ran;
    check(out.len() <= frame.len() + 48, || "too long".into())?;
    let reason = counted.map(|(reason, _)| reason);
    let is_passed = matches!(
        reason,
        None | Some(Reason::NotBalanced | Reason::Malformed | Reason::Fragment | Reason::OtherHost)
    );
    let bytes = counted.map_or(0, |(_, bytes)| bytes);
    let owed_bytes = if is_passed { 0 } else { frame.len() as u64 };
    check(bytes == owed_bytes, || format!("{bytes} bytes counted"))?;
    if is_passed {
        check(out == frame, || "passed and touched".into())?;
        // What is not translated at our own device ends there.
        let owed = if program == FROM_HOST { SHOT } else { PASS };
        check(verdict == owed, || "the wrong verdict".into())?;
    }
    if is_for_another_host(ran) {
        return check(reason == Some(Reason::OtherHost), || "of another host".into());
    }
    let layout = match Layout::of(frame) {
        Ok(layout) => layout,
        Err(Reason::MappedAddress) => {
            let is_dropped = reason == Some(Reason::MappedAddress) && verdict == SHOT;
            return check(is_dropped, || "a mapped address".into());
        }
        // A pod's address does not leave in what cannot be translated.
        Err(_) if program == TO_UPLINK && reason == Some(Reason::NotMasqueraded) => {
            return check(verdict == SHOT && is_pods_outwards(frame), || "not owed".into());
        }
        Err(_) if is_for_loopback_unread(program, frame) => {
            let is_dropped = reason == Some(Reason::LoopbackDestination) && verdict == SHOT;
            return check(is_dropped, || "to a loopback address, before odd headers".into());
        }
        // Nor does a source that comes from nowhere enter in it.
        Err(_) if is_forged_unread(frontends, program, frame) => {
            let is_dropped = reason == Some(Reason::ForgedSource) && verdict == SHOT;
            return check(is_dropped, || "a forged source before odd headers".into());
        }
        Err(odd) => return check(reason == Some(odd), || format!("left alone as {odd:?}")),
    };
    let [from, to] = layout.ends(frame, L3);
    if is_for_loopback(program, to) {
        let is_dropped = reason == Some(Reason::LoopbackDestination) && verdict == SHOT;
        return check(is_dropped, || format!("{to} is no destination here"));
    }
    let has_one_receiver = !is_for_group(ran) || is_one_host(to);
    if has_one_receiver && is_forged(frontends, program, from) {
        let is_dropped = reason == Some(Reason::ForgedSource) && verdict == SHOT;
        return check(is_dropped, || format!("{from} is no source here"));
    }
    if is_for_group(ran) {
        return check(reason == Some(Reason::OtherHost), || "for a group".into());
    }
    check(is_owed(frontends, ran, layout, reason), || "not owed".into())?;
    match reason {
        None | Some(Reason::Fragment) => Ok(()),
        Some(Reason::NewFlow | Reason::Established | Reason::Moved | Reason::Reply) => {
            translated(frontends, ran, layout, reason == Some(Reason::Reply))
        }
        Some(Reason::RelatedError) => translated_error(frontends, ran, layout),
        Some(Reason::EchoReply) => refusal::echo(ran, layout),
        Some(reason) if reason.is_reject() => refusal::refused(ran, layout, reason),
        Some(reason) if reason.is_drop() => check(verdict == SHOT, || "the wrong verdict".into()),
        Some(_) => Err("a reason that no packet has".into()),
    }
}

/// Whether an IP packet of a pod's goes to the world outside, as far as its addresses are there.
fn is_pods_outwards(frame: &[u8]) -> bool {
    addresses(frame).is_some_and(|(from, to)| is_pod(from) && is_outside(to))
}

/// Whether the rules allow this reason, by where the packet goes.
fn is_owed(frontends: &Frontends, ran: &Ran<'_>, layout: Layout, reason: Option<Reason>) -> bool {
    let [from, to] = layout.sockets(ran.frame, L3);
    // A translation may fail by name.
    let fails = matches!(
        reason,
        Some(Reason::RewriteFailed | Reason::TtlExceeded | Reason::NoRoute | Reason::TooBig)
    );
    let belongs = fails || matches!(reason, Some(Reason::Reply | Reason::RelatedError));
    if ran.program == TO_UPLINK {
        return is_owed_outwards(ran, layout, reason, belongs);
    }
    if ran.program == TO_POD {
        return belongs
            || is_exchange(from, reason)
            || matches!(reason, None | Some(Reason::Malformed | Reason::NotBalanced));
    }
    let begins = fails
        || matches!(
            reason,
            Some(
                Reason::NewFlow
                    | Reason::Established
                    | Reason::Moved
                    | Reason::NoSourcePort
                    | Reason::SourcePortShare
            )
        );
    let is_virtual = frontends.keys().any(|(frontend, _)| frontend.ip() == to.ip()) && !is_node(to.ip());
    let in_range = match to.ip() {
        IpAddr::V4(address) => address.octets().starts_with(&[10, 96]),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0x96, 0, 0, 0, 0, 0]),
    };
    let to_service = in_range || ran.program == FROM_HOST;
    if layout.l4.is_none() {
        return match reason {
            Some(Reason::FragmentBeforeFirst) => is_virtual && layout.may_have_ports(),
            Some(Reason::NoSuchService) => to_service && !is_virtual,
            Some(Reason::NoSuchPort) => is_virtual,
            Some(Reason::Fragment) => layout.may_have_ports() && !is_virtual,
            None => !(is_virtual && layout.has_ports()),
            Some(Reason::Reply) => layout.may_have_ports() || layout.is_icmp(),
            Some(reason) => layout.may_have_ports() && (begins || belongs || reason.is_drop()),
        };
    }
    let frontend = frontends.get(&(to, layout.protocol));
    if let Some(frontend) = frontend {
        // A reply goes to the flow that has this port of the node for its source, at once or by the stack.
        let is_backend = frontends.values().any(|known| known.backends.contains(&from));
        if is_backend && is_node(to.ip()) && (belongs || reason.is_none()) {
            return true;
        }
        let is_kept_here = frontend.has == Has::OnlyElsewhere
            && (frontend.is_cluster_ip
                || ran.program == FROM_UPLINK
                || (ran.program == FROM_HOST && !is_node(from.ip())));
        return match frontend.has {
            Has::Nobody => reason == Some(Reason::NoEndpoints),
            // The same packet may have begun a flow as a pod's.
            Has::OnlyElsewhere if is_kept_here => {
                matches!(reason, Some(Reason::NoLocalEndpoints | Reason::Established)) || fails
            }
            Has::Ranges
                if frontend.is_load_balancer
                    && !(is_own(ran.program) && from.ip() == to.ip())
                    && !is_in_ranges(from.ip()) =>
            {
                reason == Some(Reason::SourceNotAllowed)
            }
            // Nobody can be answered who has no address.
            _ => begins || (from.ip().is_unspecified() && reason == Some(Reason::NoNodeAddress)),
        };
    }
    if layout.is_echo(ran.frame) && !layout.is_fragment && is_virtual && layout.may_be_told(ran.frame) {
        return reason == Some(Reason::EchoReply);
    }
    match reason {
        Some(Reason::NoSuchPort) => is_virtual,
        Some(Reason::NoSuchService) => to_service && !is_virtual && !is_node(to.ip()),
        None if in_range => is_answer_to_service(frontends, ran, from),
        None => ran.program != FROM_HOST || is_node(to.ip()) || is_virtual,
        _ => belongs,
    }
}

/// An answer to a client that calls itself by a service's address is translated behind the stack, like all answers.
fn is_answer_to_service(frontends: &Frontends, ran: &Ran<'_>, from: SocketAddr) -> bool {
    let mut all = frontends.values();
    !is_own(ran.program) && all.any(|frontend| frontend.backends.contains(&from))
}

/// Whether packets of a pod to there leave with the node's address.
pub fn is_outside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            matches!(address.octets()[0], 1..=223) && !matches!(address.octets(), [10, 244 | 96, ..])
        }
        IpAddr::V6(address) => {
            let [first, second, ..] = address.segments();
            !address.is_multicast()
                && !address.is_unspecified()
                && !address.is_unicast_link_local()
                && !matches!([first, second], [0xfd00, 0x244])
                && !address.segments().starts_with(&[0xfd00, 0x96, 0, 0, 0, 0, 0])
        }
    }
}

/// Whether the rules allow this reason where a packet leaves the node.
fn is_owed_outwards(ran: &Ran<'_>, layout: Layout, reason: Option<Reason>, may_belong: bool) -> bool {
    let [from, to] = layout.ends(ran.frame, L3);
    let is_pods = is_pod(from) && is_outside(to);
    match reason {
        // What came to the pod itself is answered with its address: `Fuzz` looks for the entry.
        None | Some(Reason::Malformed | Reason::NotBalanced) => true,
        Some(
            Reason::NotMasqueraded
            | Reason::NewFlow
            | Reason::Established
            | Reason::Moved
            | Reason::NoSourcePort
            | Reason::SourcePortShare
            | Reason::FragmentBeforeFirst,
        ) => {
            is_pods
                || is_exchange(
                    SocketAddr::new(from, layout.sockets(ran.frame, L3)[0].port()),
                    reason,
                )
        }
        _ => may_belong,
    }
}

/// Whether a packet of the node itself may get another source port for this reason: its own may be a
/// masqueraded flow's.
fn is_exchange(from: SocketAddr, reason: Option<Reason>) -> bool {
    let begins = matches!(
        reason,
        Some(Reason::NewFlow | Reason::Established | Reason::Moved | Reason::NoSourcePort)
    );
    // A later fragment has its ports from the first.
    let has_such_port = from.port() == 0 || MASQUERADE_PORTS.contains(&from.port());
    begins && is_node(from.ip()) && has_such_port
}

/// Whether only the source port of a packet of the node itself is another one.
fn is_exchanged(old: [SocketAddr; 2], new: [SocketAddr; 2]) -> bool {
    is_node(old[0].ip()) && old[0].ip() == new[0].ip() && old[1] == new[1]
}

pub fn is_pod(address: IpAddr) -> bool {
    POD.iter().any(|pod| address == pod.parse::<IpAddr>().unwrap())
}

pub fn is_node(address: IpAddr) -> bool {
    NODE.iter().any(|node| address == node.parse::<IpAddr>().unwrap())
}

/// Whether only bytes in these ranges differ.
pub fn differs_only_in(ran: &Ran<'_>, ranges: &[std::ops::Range<usize>]) -> Result<(), String> {
    check(ran.out.len() == ran.frame.len(), || "another length".into())?;
    let both = ran.frame.iter().zip(ran.out).enumerate();
    let stray = both
        .filter(|(_, (old, new))| old != new)
        .find(|(at, _)| !ranges.iter().any(|range| range.contains(at)));
    check(stray.is_none(), || {
        format!("byte {} changed", stray.map_or(0, |(at, _)| at))
    })
}

/// The time to live may be one less where the packet is sent on, and hardware addresses may be others.
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

fn translated(frontends: &Frontends, ran: &Ran<'_>, layout: Layout, is_reply: bool) -> Result<(), String> {
    let mut ranges = ranges_of_headers(ran, layout)?;
    if let Some(l4) = layout.l4 {
        let (at, width) = layout.checksum_at();
        let ports = layout.ports_at();
        ranges.extend([l4 + ports.start..l4 + ports.end, l4 + at..l4 + at + width]);
    }
    differs_only_in(ran, &ranges)?;
    let (old, new) = (layout.sockets(ran.frame, L3), layout.sockets(ran.out, L3));
    // Where the ports are in another packet, addresses have to do.
    let leads = |(frontend, protocol): (SocketAddr, u8), backend: SocketAddr| {
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
        leads((new[0], layout.protocol), old[0])
            || is_masqueraded(layout, client, node)
            || is_exchanged(client, node)
    } else if ran.program == TO_UPLINK {
        is_masqueraded(layout, old, new) || is_exchanged(old, new)
    } else if ran.program == TO_POD {
        is_exchanged(old, new)
    } else {
        leads((old[1], layout.protocol), new[1])
    };
    check(is_whole, || format!("{old:?} became {new:?}"))?;
    check_sums(ran, layout)?;
    let Some(l4) = layout.l4 else {
        return Ok(());
    };
    let (at, width) = layout.checksum_at();
    // SCTP may end before its own, where the ports stay.
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

/// Whether a packet of a pod's, from one end to the other, became one of the node's on a port of its range.
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

/// The header's checksum is as far from right as it was.
fn check_sums(ran: &Ran<'_>, layout: Layout) -> Result<(), String> {
    let (before, after) = (
        layout.header_error(ran.frame, L3),
        layout.header_error(ran.out, L3),
    );
    check(before == after, || {
        format!("header checksum off by {before}, then {after}")
    })
}

fn translated_error(frontends: &Frontends, ran: &Ran<'_>, layout: Layout) -> Result<(), String> {
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

/// Whether packets turn back into the node where they are answered.
pub fn is_own(program: usize) -> bool {
    matches!(program, FROM_HOST | FROM_LOOPBACK)
}
