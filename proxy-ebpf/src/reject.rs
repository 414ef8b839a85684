//! Refusing a packet so that its sender learns it at once: a TCP RST, or an ICMP port unreachable for everything else.
//!
//! The refused packet itself becomes the answer. A SYN turns into a RST by exchanging its ends and flags, options and all,
//! which updates its checksum word by word and so stays right whether that checksum is whole or left to the NIC. For an
//! ICMP error room is made in front, and the packet is cut behind the eight bytes that an error carries of it
//! (RFC 792; RFC 4443 would allow more, but senders look at the ports only).

use proxy_common::packet::{Headers, Packet};
use proxy_common::protocol;

use crate::kernel::{Skb, checksum};
use crate::rewrite::{set_ttl, swap_addresses};

const TCP_CHECKSUM: u32 = 16;
const TTL: u8 = 64;
/// Bytes of the refused packet's transport header that an error carries.
const CARRIED: u32 = 8;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const ICMP_HEADER: u32 = 8;

/// Turns the packet into its refusal; `None` if there is none to be sent, or the kernel refused a step.
#[inline(always)]
pub fn refuse(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    if headers.l4 == 0 || headers.is_fragment {
        return None;
    }
    match headers.protocol {
        protocol::TCP => reset(skb, headers),
        protocol::UDP | protocol::SCTP if headers.dst.is_v4() => unreachable_v4(skb, headers),
        protocol::UDP | protocol::SCTP => unreachable_v6(skb, headers),
        _ => None,
    }
}

/// RFC 9293 §3.10.7.1: a SYN is answered with `<SEQ=0><ACK=SEG.SEQ+1><CTL=RST,ACK>`. Only connections that begin are
/// refused; a segment of a connection that nobody knows is dropped, as its sender will find out by itself.
#[inline(always)]
fn reset(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    if !headers.is_syn() {
        return None;
    }
    let old: [u32; 4] = [
        u32::from(headers.sport.raw()) | u32::from(headers.dport.raw()) << 16,
        skb.load(headers.l4 + 4)?,
        skb.load(headers.l4 + 8)?,
        skb.load(headers.l4 + 12)?,
    ];
    // Data offset stays; flags become RST and ACK; the window is closed.
    let control = (u32::from_be(old[3]) & 0xf000_0000 | 0x0014_0000).to_be();
    let new: [u32; 4] = [
        u32::from(headers.dport.raw()) | u32::from(headers.sport.raw()) << 16,
        0,
        u32::from_be(old[1]).wrapping_add(1).to_be(),
        control,
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
fn unreachable_v4(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    // Options would move the ports out of reach; who uses them finds out by time-out.
    if headers.l4 != headers.l3 + IPV4_HEADER {
        return None;
    }
    skb.insert_behind_ethernet(IPV4_HEADER + ICMP_HEADER)?;
    let inner = headers.l3 + IPV4_HEADER + ICMP_HEADER;
    skb.truncate(inner + IPV4_HEADER + CARRIED)?;
    let carried: [u32; 7] = skb.load(inner)?;
    let mut ip: [u32; 5] = [
        0x45c0_0038_u32.to_be(),
        0,
        (u32::from(TTL) << 24 | u32::from(protocol::ICMP) << 16).to_be(),
        headers.dst.v4_word(),
        headers.src.v4_word(),
    ];
    ip[2] |= u32::from(checksum(&mut ip)) << 16;
    skb.store(headers.l3, &ip)?;
    // Type 3, code 3: port unreachable.
    let mut icmp: [u32; 9] = [0; 9];
    icmp[0] = 0x0303_0000_u32.to_be();
    let mut word = 0;
    while word < 7 {
        icmp[word + 2] = carried[word];
        word += 1;
    }
    let head = icmp[0] | u32::from(checksum(&mut icmp)) << 16;
    skb.store(headers.l3 + IPV4_HEADER, &[head, 0])
}

#[inline(always)]
fn unreachable_v6(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    if headers.l4 != headers.l3 + IPV6_HEADER {
        return None;
    }
    skb.insert_behind_ethernet(IPV6_HEADER + ICMP_HEADER)?;
    let inner = headers.l3 + IPV6_HEADER + ICMP_HEADER;
    skb.truncate(inner + IPV6_HEADER + CARRIED)?;
    let carried: [u32; 12] = skb.load(inner)?;
    let len = ICMP_HEADER + IPV6_HEADER + CARRIED;
    let (src, dst) = (headers.dst.v6_words(), headers.src.v6_words());
    let head = (len << 16 | u32::from(protocol::ICMPV6) << 8 | u32::from(TTL)).to_be();
    skb.store(headers.l3, &[0x6000_0000_u32.to_be(), head])?;
    skb.store(headers.l3 + 8, &src)?;
    skb.store(headers.l3 + 24, &dst)?;
    // The pseudo-header (RFC 8200 §8.1), then type 1, code 4: port unreachable.
    let mut sum: [u32; 24] = [0; 24];
    let mut word = 0;
    while word < 4 {
        sum[word] = src[word];
        sum[word + 4] = dst[word];
        word += 1;
    }
    sum[8] = len.to_be();
    sum[9] = u32::from(protocol::ICMPV6).to_be();
    sum[10] = 0x0104_0000_u32.to_be();
    word = 0;
    while word < 12 {
        sum[word + 12] = carried[word];
        word += 1;
    }
    let head = sum[10] | u32::from(checksum(&mut sum)) << 16;
    skb.store(headers.l3 + IPV6_HEADER, &[head, 0])
}
