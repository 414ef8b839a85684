//! The packet that the program makes of a packet that it replies to at once: a RST, an ICMP error, or an echo
//! reply.

use proxy_common::maps::Reason;
use proxy_common::protocol;

use super::judge::{Ran, check, is_own};
use super::layout::{L3, Layout};
use crate::frame::sum;
use crate::node::NODE;
use crate::{REDIRECT, SHOT};

const RST: u8 = 4;
const ACK: u8 = 16;

/// The Ethernet header of the reply.
fn ethernet(ran: &Ran<'_>) -> Vec<u8> {
    let mut header = ran.frame[..L3].to_vec();
    if is_own(ran.program) {
        header[..6].fill(0);
    } else {
        header[..12].rotate_left(6);
    }
    header
}

/// The packet with its addresses exchanged.
fn reversed(ran: &Ran<'_>, layout: Layout) -> Vec<u8> {
    let mut reversed = [&ethernet(ran), &ran.frame[L3..]].concat();
    let addresses = layout.addresses_at();
    let half = addresses.len() / 2;
    reversed[L3..][addresses].rotate_left(half);
    reversed
}

/// Compares the whole packet except two checksums, whose differences from the right values must not change.
fn is_same_but_checksums(
    ran: &Ran<'_>,
    layout: Layout,
    mut expected: Vec<u8>,
    l4: usize,
) -> Result<(), String> {
    let out = ran.out;
    check(out.len() == expected.len(), || "another length".into())?;
    let (at, width) = layout.checksum_at();
    for range in [L3 + 10..L3 + 12, l4 + at..l4 + at + width] {
        if layout.is_v4 || range.start > L3 + 12 {
            expected[range.clone()].copy_from_slice(&out[range]);
        }
    }
    check(expected == out, || "not as expected".into())?;
    let (before, after) = (layout.header_error(ran.frame, L3), layout.header_error(out, L3));
    check(before == after, || {
        format!("header checksum off by {before}, then {after}")
    })?;
    let (before, after) = (layout.transport_error(ran.frame), layout.transport_error(out));
    check(before == after, || {
        format!("checksum off by {before}, then {after}")
    })
}

pub fn echo(ran: &Ran<'_>, layout: Layout) -> Result<(), String> {
    let l4 = layout.l4.ok_or("no ICMP header")?;
    check(ran.verdict == REDIRECT, || "the wrong verdict".into())?;
    check(layout.may_get_error(ran.frame), || "a reply to no host".into())?;
    let mut expected = reversed(ran, layout);
    expected[l4] = if layout.is_v4 { 0 } else { 129 };
    is_same_but_checksums(ran, layout, expected, l4)
}

/// Whether the path cannot carry the packet. An ICMP error reports that for TCP too.
fn is_of_path(reason: Reason) -> bool {
    matches!(reason, Reason::TooBig | Reason::TtlExceeded)
}

/// Whether a refusal has a reply. It has none if headers are truncated or in between, or if the sender may
/// get none.
fn has_reply(ran: &Ran<'_>, layout: Layout, reason: Reason) -> bool {
    let Some(l4) = layout.l4 else {
        return false;
    };
    if !layout.may_get_error(ran.frame) || (layout.is_fragment && reason != Reason::TooBig) {
        return false;
    }
    let (len, is_tcp) = (ran.frame.len(), layout.protocol == protocol::TCP);
    if is_tcp && !is_of_path(reason) {
        return ran.frame[l4 + 13] & RST == 0 && len >= l4 + 18;
    }
    let plain = L3 + if layout.is_v4 { 20 } else { 40 };
    (l4 == plain || is_behind_fragment_header(layout)) && len >= plain + carried(layout)
}

/// Whether only a fragment header is between the IPv6 header and the transport header.
fn is_behind_fragment_header(layout: Layout) -> bool {
    !layout.is_v4 && layout.is_fragment && layout.l4 == Some(L3 + 48)
}

/// The number of bytes behind the IP header that an error carries.
fn carried(layout: Layout) -> usize {
    if is_behind_fragment_header(layout) {
        16
    } else if layout.protocol == protocol::TCP {
        20
    } else {
        8
    }
}

pub fn refused(ran: &Ran<'_>, layout: Layout, reason: Reason) -> Result<(), String> {
    if !has_reply(ran, layout, reason) {
        return check(ran.verdict == SHOT, || "an unexpected reply".into());
    }
    check(ran.verdict == REDIRECT, || "a reply is expected".into())?;
    if layout.protocol == protocol::TCP && !is_of_path(reason) {
        reset(ran, layout)
    } else {
        error(ran, layout, reason)
    }
}

/// Checks a reset (RFC 9293 §3.10.7.1).
fn reset(ran: &Ran<'_>, layout: Layout) -> Result<(), String> {
    let l4 = layout.l4.ok_or("no TCP header")?;
    let mut expected = reversed(ran, layout);
    expected[L3 + if layout.is_v4 { 8 } else { 7 }] = 64;
    expected[l4..l4 + 4].rotate_left(2);
    let old = &ran.frame[l4..];
    let sequence = u32::from_be_bytes([old[4], old[5], old[6], old[7]]);
    if old[13] & ACK == 0 {
        expected[l4 + 4..l4 + 8].fill(0);
        expected[l4 + 8..l4 + 12].copy_from_slice(&sequence.wrapping_add(1).to_be_bytes());
        expected[l4 + 13] = RST | ACK;
    } else {
        expected[l4 + 4..l4 + 8].copy_from_slice(&old[8..12]);
        expected[l4 + 8..l4 + 12].fill(0);
        expected[l4 + 13] = RST;
    }
    expected[l4 + 12] = old[12] & 0xf0;
    expected[l4 + 14..l4 + 16].fill(0);
    is_same_but_checksums(ran, layout, expected, l4)
}

/// Checks an ICMP error (RFC 792, RFC 1191 and RFC 4443). It must be complete and correct for any refused
/// packet.
fn error(ran: &Ran<'_>, layout: Layout, reason: Reason) -> Result<(), String> {
    let is_v4 = layout.is_v4;
    let (ip, transport) = (if is_v4 { 20 } else { 40 }, carried(layout));
    let (l4, carried) = (L3 + ip, ip + transport);
    let out = ran.out;
    check(out.len() == l4 + 8 + carried, || format!("{} bytes", out.len()))?;
    let error = Layout::of(out).map_err(|reason| format!("{reason:?}"))?;
    let protocol = if is_v4 { protocol::ICMP } else { protocol::ICMPV6 };
    check(
        error.is_v4 == is_v4 && error.protocol == protocol && error.l4 == Some(l4),
        || format!("{error:?}"),
    )?;
    check(out[..12] == ethernet(ran)[..12], || "hardware addresses".into())?;
    let (length, ttl) = if is_v4 {
        (out.len() - L3, 8)
    } else {
        (out.len() - l4, 7)
    };
    let at = L3 + if is_v4 { 2 } else { 4 };
    check(out[at..at + 2] == (length as u16).to_be_bytes(), || {
        "the length".into()
    })?;
    check(out[L3 + ttl] == 64, || "the time to live".into())?;
    let [from, to] = layout.ends(ran.frame, L3);
    // A router sends the error from its own address.
    let source = if reason == Reason::TtlExceeded {
        let own = NODE[usize::from(!is_v4)].parse();
        own.map_err(|error| format!("{error}"))?
    } else {
        to
    };
    check(error.ends(out, L3) == [source, from], || "addresses".into())?;
    let expected = match (is_v4, reason) {
        (true, Reason::TooBig) => [3, 4],
        (false, Reason::TooBig) => [2, 0],
        (true, Reason::TtlExceeded) => [11, 0],
        (false, Reason::TtlExceeded) => [3, 0],
        (true, _) => [3, 3],
        (false, _) => [1, 4],
    };
    check(out[l4..l4 + 2] == expected, || "type and code".into())?;
    check(out[l4 + 8..] == ran.frame[L3..L3 + carried], || {
        "what it carries".into()
    })?;
    check(error.header_error(out, L3) == 0, || "header checksum".into())?;
    let others = if is_v4 {
        0
    } else {
        u32::from(protocol) + (out.len() - l4) as u32
    };
    let sum = sum(&[], error.transport_error(out) + others);
    check(sum == u16::MAX || sum == 0, || "ICMP checksum".into())
}
