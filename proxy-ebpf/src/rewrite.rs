//! Changing addresses and ports in a packet, checksums included.
//!
//! The checksum helpers know whether a checksum is whole, left to the NIC, or absent; what is told to them is which
//! part of the change also counts in the pseudo-header: the addresses do, the ports do not.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use proxy_common::maps::Flow;
use proxy_common::packet::{ETHERNET_LEN, Headers, Packet};
use proxy_common::protocol;

use crate::kernel::{Skb, checksum_difference};

const TCP_CHECKSUM: u32 = 16;
const UDP_CHECKSUM: u32 = 6;
const IPV4_CHECKSUM: u32 = 10;
const IPV4_ADDRESSES: u32 = 12;
const IPV6_ADDRESSES: u32 = 8;
const IPV4_TTL: u32 = 8;
const IPV6_HOP_LIMIT: u32 = 7;
const ICMP_CHECKSUM: u32 = 2;

/// Makes the packet what `flow` says. `None` if the kernel refused a step, after which the packet must be dropped.
#[inline(always)]
pub fn rewrite(skb: &Skb<'_>, headers: &Headers, flow: &Flow) -> Option<()> {
    let (checksum, mangled) = match headers.protocol {
        protocol::TCP => (headers.l4 + TCP_CHECKSUM, 0),
        protocol::UDP => (headers.l4 + UDP_CHECKSUM, u64::from(BPF_F_MARK_MANGLED_0)),
        _ => (0, 0),
    };
    let difference = rewrite_addresses(skb, headers, flow)?;
    if checksum != 0 {
        let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled;
        skb.update_transport_checksum(checksum, 0, difference, flags)?;
    }
    let old = u32::from(headers.sport.raw()) | u32::from(headers.dport.raw()) << 16;
    let new = u32::from(flow.sport.raw()) | u32::from(flow.dport.raw()) << 16;
    if old == new {
        return Some(());
    }
    if checksum == 0 {
        // SCTP's CRC covers the ports and cannot be updated by a difference of words.
        return None;
    }
    skb.update_transport_checksum(checksum, u64::from(old), u64::from(new), 4 | mangled)?;
    skb.store(headers.l4, &new)
}

/// Writes the addresses and gives the difference they make to a checksum.
#[inline(always)]
fn rewrite_addresses(skb: &Skb<'_>, headers: &Headers, flow: &Flow) -> Option<u64> {
    if headers.dst.is_v4() {
        let mut old = [headers.src.v4_word(), headers.dst.v4_word()];
        let mut new = [flow.src.v4_word(), flow.dst.v4_word()];
        let difference = checksum_difference(&mut old, &mut new);
        skb.update_ip_checksum(headers.l3 + IPV4_CHECKSUM, difference)?;
        skb.store(headers.l3 + IPV4_ADDRESSES, &u64_of(new))?;
        Some(difference)
    } else {
        let (src, dst) = (headers.src.v6_words(), headers.dst.v6_words());
        let mut old = [src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3]];
        let (src, dst) = (flow.src.v6_words(), flow.dst.v6_words());
        let mut new = [src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3]];
        let difference = checksum_difference(&mut old, &mut new);
        skb.store(headers.l3 + IPV6_ADDRESSES, &src)?;
        skb.store(headers.l3 + IPV6_ADDRESSES + 16, &dst)?;
        Some(difference)
    }
}

/// Two words as they lie in memory.
#[inline(always)]
const fn u64_of(words: [u32; 2]) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (words[0].to_ne_bytes(), words[1].to_ne_bytes());
    [a, b, c, d, e, f, g, h]
}

/// Turns an echo request into its answer: swapped addresses leave every checksum as it is, the type does not.
#[inline(always)]
pub fn answer_echo(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    let (old, new) = if headers.dst.is_v4() {
        (8_u8, 0_u8)
    } else {
        (128, 129)
    };
    if headers.dst.is_v4() {
        let swapped = [headers.dst.v4_word(), headers.src.v4_word()];
        skb.store(headers.l3 + IPV4_ADDRESSES, &u64_of(swapped))?;
    } else {
        skb.store(headers.l3 + IPV6_ADDRESSES, &headers.dst.v6_words())?;
        skb.store(headers.l3 + IPV6_ADDRESSES + 16, &headers.src.v6_words())?;
    }
    let word = |kind: u8| u64::from(u16::from_ne_bytes([kind, 0]));
    skb.update_transport_checksum(headers.l4 + ICMP_CHECKSUM, word(old), word(new), 2)?;
    skb.store(headers.l4, &new)
}

/// Exchanges source and destination address, which leaves every checksum as it is.
#[inline(always)]
pub fn swap_addresses(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    if headers.dst.is_v4() {
        let swapped = [headers.dst.v4_word(), headers.src.v4_word()];
        skb.store(headers.l3 + IPV4_ADDRESSES, &u64_of(swapped))
    } else {
        skb.store(headers.l3 + IPV6_ADDRESSES, &headers.dst.v6_words())?;
        skb.store(headers.l3 + IPV6_ADDRESSES + 16, &headers.src.v6_words())
    }
}

/// Takes one off the time to live; `None` if nothing is left of it.
#[inline(always)]
pub fn decrement_ttl(skb: &Skb<'_>, headers: &Headers) -> Option<()> {
    if headers.ttl <= 1 {
        return None;
    }
    set_ttl(skb, headers, headers.ttl - 1)
}

/// Sets the time to live.
#[inline(always)]
pub fn set_ttl(skb: &Skb<'_>, headers: &Headers, ttl: u8) -> Option<()> {
    if headers.dst.is_v4() {
        let mut old = [u32::from(headers.ttl)];
        let mut new = [u32::from(ttl)];
        let difference = checksum_difference(&mut old, &mut new);
        skb.update_ip_checksum(headers.l3 + IPV4_CHECKSUM, difference)?;
        skb.store(headers.l3 + IPV4_TTL, &ttl)
    } else {
        skb.store(headers.l3 + IPV6_HOP_LIMIT, &ttl)
    }
}

/// Sends the frame back to where it came from.
#[inline(always)]
pub fn swap_macs(skb: &Skb<'_>) -> Option<()> {
    let dst: [u8; 6] = skb.load(0)?;
    let src: [u8; 6] = skb.load(6)?;
    skb.store(0, &src)?;
    skb.store(6, &dst)
}

/// Addresses the frame to a device.
#[inline(always)]
pub fn set_destination_mac(skb: &Skb<'_>, mac: &[u8; 6]) -> Option<()> {
    skb.store(0, mac)
}

/// Offset of the network header on every interface that the programs are attached to.
pub const NETWORK_HEADER: u32 = ETHERNET_LEN;
