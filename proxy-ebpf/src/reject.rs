//! Refusals, so that a sender learns of a dropped packet at once. A TCP segment gets a RST. All other packets
//! get an ICMP error, and so do packets that are too large or have no time to live left.
//!
//! The refused packet itself becomes the refusal. A TCP segment becomes a RST by an exchange of its ends and
//! its flags, and its options stay. That updates its checksum word by word, so the checksum stays right,
//! whether it is complete or left to the NIC. For an ICMP error, the packet is truncated behind the bytes
//! that an error carries, and the headers are inserted in front (RFC 792). RFC 4443 would allow more bytes,
//! but senders read only the ports.
//!
//! The number of errors in a second is limited for each group of senders (RFC 1812 §4.3.2.8).

use proxy_common::Ip;
use proxy_common::decide::SCRATCH_WORDS;
use proxy_common::maps::Reason;
use proxy_common::packet::{Headers, Packet, TCP_ACK, TCP_RST};
use proxy_common::protocol;

use crate::counters::may_refuse;
use crate::kernel::{Skb, checksum};
use crate::rewrite::{set_ttl, swap_addresses};

const TCP_CHECKSUM: u32 = 16;
const TTL: u8 = 64;
/// Bytes of the refused packet's transport header that an error carries. TCP needs more bytes, which have to
/// include its checksum if that was left to the NIC.
const EMBEDDED: u32 = 8;
const EMBEDDED_OF_TCP: u32 = 20;
/// Size of IPv6's fragment header, in bytes.
const FRAGMENT_HEADER: u32 = 8;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const ICMP_HEADER: u32 = 8;

/// Turns the packet into its refusal. `None` if no refusal may be sent, or the kernel refused a step. `mtu`
/// is the MTU of the link that a packet is too big for. `source` is the source address of an ICMP error.
#[inline(always)]
pub fn refuse(
    skb: &Skb<'_>,
    headers: &Headers,
    reason: Reason,
    mtu: u32,
    source: &Ip,
    sum: &mut [u32; SCRATCH_WORDS],
) -> Option<()> {
    let is_too_big = reason as u8 == Reason::TooBig as u8;
    let is_too_late = reason as u8 == Reason::TtlExceeded as u8;
    if headers.l4 == 0 || (headers.is_fragment && !is_too_big) || !headers.may_be_refused() {
        return None;
    }
    if headers.protocol == protocol::TCP && !is_too_big && !is_too_late {
        return reset(skb, headers);
    }
    if !may_refuse(&headers.src) {
        return None;
    }
    let is_v4 = headers.dst.is_v4();
    let (head, rest) = match (is_too_big, is_too_late) {
        // Packet too big: RFC 1191 and RFC 4443 §3.2.
        (true, _) => (if is_v4 { 0x0304_0000 } else { 0x0200_0000 }, mtu),
        // Time exceeded: RFC 792 and RFC 4443 §3.3.
        (_, true) => (if is_v4 { 0x0b00_0000 } else { 0x0300_0000 }, 0),
        // Port unreachable: RFC 792 and RFC 4443 §3.1.
        _ => (if is_v4 { 0x0303_0000 } else { 0x0104_0000 }, 0),
    };
    let error = Error { head, rest };
    if is_v4 {
        error_v4(skb, headers, &error, source, sum)
    } else {
        error_v6(skb, headers, &error, source, sum)
    }
}

/// The first two words of an ICMP error, in host order: type and code, and the word that depends on them.
struct Error {
    head: u32,
    rest: u32,
}

/// Turns a TCP segment into a RST (RFC 9293 §3.10.7.1). A segment with an ACK gets `<SEQ=SEG.ACK><CTL=RST>`.
/// Any other one gets `<SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>`; it is a SYN, of length 1. A RST gets no
/// reply.
#[inline(always)]
fn reset(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    if headers.has_tcp_flag(TCP_RST) || skb.is_gso() {
        return None;
    }
    let old: [u32; 4] = [
        u32::from(headers.sport.raw()) | u32::from(headers.dport.raw()) << 16,
        skb.load(headers.l4 + 4)?,
        skb.load(headers.l4 + 8)?,
        skb.load(headers.l4 + 12)?,
    ];
    // The data offset stays; the window becomes 0.
    let offset = u32::from_be(old[3]) & 0xf000_0000;
    let (sequence, acknowledged, flags) = if headers.has_tcp_flag(TCP_ACK) {
        (old[2], 0, 0x0004_0000)
    } else {
        (0, u32::from_be(old[1]).wrapping_add(1).to_be(), 0x0014_0000)
    };
    let new: [u32; 4] = [
        u32::from(headers.dport.raw()) | u32::from(headers.sport.raw()) << 16,
        sequence,
        acknowledged,
        (offset | flags).to_be(),
    ];
    for word in 1..4 {
        let (from, to) = (u64::from(old[word]), u64::from(new[word]));
        skb.update_transport_checksum(headers.l4 + TCP_CHECKSUM, from, to, 4)?;
    }
    skb.store(headers.l4, &new)?;
    set_ttl(skb, headers, TTL)?;
    swap_addresses(skb, headers)
}

#[inline(always)]
fn error_v4(
    skb: &Skb<'_>,
    headers: &Headers,
    error: &Error,
    source: &Ip,
    sum: &mut [u32; SCRATCH_WORDS],
) -> Option<()> {
    // Options would move the ports out of reach. A sender that uses them gets no error and times out.
    if headers.l4 != headers.l3 + IPV4_HEADER {
        return None;
    }
    *sum = [0; SCRATCH_WORDS];
    sum[0] = error.head.to_be();
    sum[1] = error.rest.to_be();
    copy::<5>(skb, headers.l3, sum, 2)?;
    let embedded = embed(skb, headers, sum, 7)?;
    skb.truncate(headers.l4 + embedded)?;
    skb.insert_behind_ethernet(IPV4_HEADER + ICMP_HEADER)?;
    let head = sum[0] | u32::from(checksum(sum)) << 16;
    skb.store(headers.l3 + IPV4_HEADER, &[head, error.rest.to_be()])?;
    let len = IPV4_HEADER + ICMP_HEADER + IPV4_HEADER + embedded;
    let mut ip: [u32; 5] = [
        (0x45c0_0000 | len).to_be(),
        0,
        (u32::from(TTL) << 24 | u32::from(protocol::ICMP) << 16).to_be(),
        source.v4_word(),
        headers.src.v4_word(),
    ];
    ip[2] |= u32::from(checksum(&mut ip)) << 16;
    skb.store(headers.l3, &ip)
}

#[inline(always)]
fn error_v6(
    skb: &Skb<'_>,
    headers: &Headers,
    error: &Error,
    source: &Ip,
    sum: &mut [u32; SCRATCH_WORDS],
) -> Option<()> {
    let behind = headers.l3 + IPV6_HEADER;
    *sum = [0; SCRATCH_WORDS];
    copy::<10>(skb, headers.l3, sum, 12)?;
    let embedded = if headers.l4 == behind {
        embed(skb, headers, sum, 22)?
    } else if headers.is_fragment && headers.l4 == behind + FRAGMENT_HEADER {
        copy::<4>(skb, behind, sum, 22)?;
        FRAGMENT_HEADER + EMBEDDED
    } else {
        // Other extension headers would move the ports out of reach.
        return None;
    };
    skb.truncate(behind + embedded)?;
    skb.insert_behind_ethernet(IPV6_HEADER + ICMP_HEADER)?;
    let len = ICMP_HEADER + IPV6_HEADER + embedded;
    let (src, dst) = (source.v6_words(), headers.src.v6_words());
    let head = (len << 16 | u32::from(protocol::ICMPV6) << 8 | u32::from(TTL)).to_be();
    skb.store(headers.l3, &[0x6000_0000_u32.to_be(), head])?;
    skb.store(headers.l3 + 8, &src)?;
    skb.store(headers.l3 + 24, &dst)?;
    // The pseudo-header (RFC 8200 §8.1) comes first.
    let mut word = 0;
    while word < 4 {
        sum[word] = src[word];
        sum[word + 4] = dst[word];
        word += 1;
    }
    sum[8] = len.to_be();
    sum[9] = u32::from(protocol::ICMPV6).to_be();
    sum[10] = error.head.to_be();
    sum[11] = error.rest.to_be();
    let head = sum[10] | u32::from(checksum(sum)) << 16;
    skb.store(headers.l3 + IPV6_HEADER, &[head, error.rest.to_be()])
}

/// Copies `N` words of the packet to the words that are summed up.
#[inline(always)]
fn copy<const N: usize>(skb: &Skb<'_>, offset: u32, sum: &mut [u32; SCRATCH_WORDS], at: usize) -> Option<()> {
    let words: [u32; N] = skb.load(offset)?;
    let mut word = 0;
    while word < N {
        sum[at + word] = words[word];
        word += 1;
    }
    Some(())
}

/// Copies the part of the refused packet's transport header that an error carries, and returns its length in
/// bytes.
#[inline(always)]
fn embed(skb: &Skb<'_>, headers: &Headers, sum: &mut [u32; SCRATCH_WORDS], at: usize) -> Option<u32> {
    if headers.protocol == protocol::TCP {
        copy::<5>(skb, headers.l4, sum, at)?;
        return Some(EMBEDDED_OF_TCP);
    }
    copy::<2>(skb, headers.l4, sum, at)?;
    Some(EMBEDDED)
}
